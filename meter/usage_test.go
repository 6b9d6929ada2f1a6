package meter_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/api"
)

func at(id string, when time.Time) string {
	return fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "call", "quantity": 1, "occurred_at": %q}`, id, when.Format(time.RFC3339Nano))
}

func TestF08OccurredAtAtItsEdgesAndOneBeyond(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	const age, ahead = 35 * 24 * time.Hour, 5 * time.Minute
	for i, tc := range []struct {
		when   time.Time
		status int
	}{
		{start.Add(-age - time.Microsecond), 422},
		{start.Add(ahead + time.Microsecond), 422},
		{start.Add(-age), 201},
		{start.Add(ahead), 201},
		{start.Add(ahead).In(time.FixedZone("", 5*3600)), 201},
	} {
		a := c.call(http.MethodPost, "/v1/usage", at(fmt.Sprintf("usage-%04d", i), tc.when))
		if a.status != tc.status || (tc.status == 422 && (a.code != "invalid_value" || !strings.Contains(a.body, "/occurred_at"))) {
			t.Errorf("at %v: answered %d, want %d: %s", tc.when, a.status, tc.status, a.body)
		}
	}
	if got := c.available(); got != "97" {
		t.Errorf("acme holds %s, want 97", got)
	}
}

// TestARepeatIsAnsweredAfterItsTimeHasRunOut sends usage at the edge of its time,
// and again when the clock has gone on: a refusal would say that nothing was
// recorded.
func TestARepeatIsAnsweredAfterItsTimeHasRunOut(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	edge := start.Add(-35 * 24 * time.Hour)
	first := c.want(201, http.MethodPost, "/v1/usage", at("usage-0001", edge))
	c.clock.pass(time.Minute)
	if a := c.call(http.MethodPost, "/v1/usage", at("usage-0002", edge)); a.status != 422 || a.code != "invalid_value" {
		t.Errorf("new usage of that time was answered %d: %s", a.status, a.body)
	}
	if a := c.call(http.MethodPost, "/v1/usage", at("usage-0001", edge.Add(-time.Second))); a.status != 422 || a.code != "idempotency_conflict" {
		t.Errorf("the same id with another time was answered %d: %s", a.status, a.body)
	}
	if a := c.call(http.MethodPost, "/v1/usage", at("usage-0001", edge)); a.status != 201 || !a.replayed || a.body != first.body {
		t.Errorf("the repeat was answered %d: %s", a.status, a.body)
	}
	all := c.call(http.MethodPost, "/v1/usage", `{"id": "u", "account": "acme", "meter": "call", "quantity": 0, "occurred_at": "2020-01-01T00:00:00Z"}`)
	if all.status != 422 || strings.Count(all.body, `"pointer"`) != 3 {
		t.Errorf("three mistakes were not reported at once: %s", all.body)
	}
}

func TestARepeatWithOtherContentIsRefused(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/meters/other", `{"credits_per_unit": 1}`)
	body := func(meter, quantity, occurred, dimensions string) string {
		return `{"id": "usage-0001", "account": "acme", "meter": "` + meter + `", "quantity": ` + quantity + occurred + dimensions + `}`
	}
	first := c.want(201, http.MethodPost, "/v1/usage", body("call", "2", "", `, "dimensions": {"a": "b", "ab": ""}`))
	for _, other := range []string{
		body("other", "2", "", `, "dimensions": {"a": "b", "ab": ""}`),
		body("call", "2.000001", "", `, "dimensions": {"a": "b", "ab": ""}`),
		body("call", "2", `, "occurred_at": "2026-03-01T12:00:00Z"`, `, "dimensions": {"a": "b", "ab": ""}`),
		body("call", "2", "", ""),
		body("call", "2", "", `, "dimensions": {"a": "ba", "b": ""}`), // the same letters, cut elsewhere
	} {
		if a := c.call(http.MethodPost, "/v1/usage", other); a.status != 422 || a.code != "idempotency_conflict" {
			t.Errorf("%s was answered %d: %s", other, a.status, a.body)
		}
	}
	c.clock.pass(time.Hour)
	for _, same := range []string{
		body("call", `"2.0"`, "", `, "dimensions": {"ab": "", "a": "b"}`),
		body("call", "2.000000", "", `, "dimensions": {"a": "b", "ab": ""}`),
	} {
		if a := c.call(http.MethodPost, "/v1/usage", same); a.status != 201 || !a.replayed || a.body != first.body {
			t.Errorf("%s was answered %d: %s", same, a.status, a.body)
		}
	}
	if got := c.available(); got != "98" {
		t.Errorf("acme holds %s, want 98", got)
	}
	c.verified()
}

func TestRatesTheFirstThatMatchesElseTheMeters(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	c.want(201, http.MethodPut, "/v1/meters/tokens", `{"credits_per_unit": "0.1", "rates": [
		{"match": {"model": "large", "tier": "batch"}, "credits_per_unit": 2},
		{"match": {"model": "large"}, "credits_per_unit": 4},
		{"match": {"tier": ""}, "credits_per_unit": 0}]}`)
	for i, tc := range []struct{ dimensions, credits string }{
		{`{}`, "1"},
		{`{"model": "small"}`, "1"},
		{`{"model": "large"}`, "40"},
		{`{"model": "large", "tier": "batch"}`, "20"},
		{`{"model": "large", "tier": "online", "region": "eu"}`, "40"},
		{`{"tier": ""}`, "0"},
		{`{"Model": "large"}`, "1"},
	} {
		var u api.Usage
		read(t, c.want(201, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%04d", "account": "acme", "meter": "tokens", "quantity": 10, "dimensions": %s}`, i, tc.dimensions)), &u)
		if string(u.Credits) != tc.credits || u.RateVersion != 1 {
			t.Errorf("ten with %s cost %s at version %d, want %s at 1", tc.dimensions, u.Credits, u.RateVersion, tc.credits)
		}
	}
	c.verified()
}

// TestM4UsageKeepsTheRateItWasPricedWith changes the rate while usage waits in the
// lane: it is priced by what holds when it is decided, and repeats keep that.
func TestM4UsageKeepsTheRateItWasPricedWith(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	first, release := c.stopped()
	answers := c.queued(usageOf("usage-0001", 10))
	for _, same := range []string{`{"credits_per_unit": "1.0", "stripe": {"kind": "meter", "event_name": "calls"}}`, `{"credits_per_unit": 1, "unit": "call"}`} {
		if a := c.want(200, http.MethodPut, "/v1/meters/call", same); !strings.Contains(a.body, `"rate_version":1`) {
			t.Errorf("the same rate is a new version: %s", a.body)
		}
	}
	c.want(200, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 3}`)
	release()
	var before, after api.Usage
	read(t, <-first, &before)
	read(t, answers()[0], &after)
	if before.Credits != "1" && before.Credits != "3" { // its transaction had begun; either rate is true
		t.Errorf("the usage before was charged %s", before.Credits)
	}
	if after.Credits != "30" || after.RateVersion != 2 {
		t.Errorf("usage decided after the change was charged %s at version %d, want 30 at 2", after.Credits, after.RateVersion)
	}
	c.want(200, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 5}`)
	if a := c.use("usage-0001", 10); !a.replayed || !strings.Contains(a.body, `"credits":"30"`) {
		t.Errorf("the repeat was answered %s", a.body)
	}
	c.verified()
}

func TestCountIsOneHoweverLargeTheQuantity(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/meters/images", `{"aggregation": "count", "credits_per_unit": 2, "stripe": {"kind": "meter", "event_name": "images"}}`)
	for i, quantity := range []string{"0.5", "1", "700"} {
		var u api.Usage
		read(t, c.want(201, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%04d", "account": "acme", "meter": "images", "quantity": %s}`, i, quantity)), &u)
		if u.Credits != "2" || string(u.Quantity) != quantity {
			t.Errorf("a quantity of %s was charged %s and kept as %s, want 2 and as it was", quantity, u.Credits, u.Quantity)
		}
	}
	if n := c.count("SELECT coalesce(sum(quantity), 0)::bigint FROM deliveries WHERE meter = 'images'"); n != 3_000_000 {
		t.Errorf("%d millionths were staged for Stripe, want three wholes", n)
	}
	c.verified()
}

func TestAPriceIsRoundedHalvesUpAndNeverOverflows(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	c.want(201, http.MethodPut, "/v1/meters/fine", `{"credits_per_unit": "0.000001"}`)
	c.want(201, http.MethodPut, "/v1/meters/dear", `{"credits_per_unit": 1000000000}`)
	usage := func(id, meter, quantity string) answer {
		return c.call(http.MethodPost, "/v1/usage", `{"id": "`+id+`", "account": "acme", "meter": "`+meter+`", "quantity": `+quantity+`}`)
	}
	if a := usage("usage-0001", "dear", "1000000000"); a.status != 422 || a.code != "price_out_of_range" {
		t.Errorf("a price beyond counting was answered %d: %s", a.status, a.body)
	}
	if a := usage("usage-0001", "dear", "0.0000011"); a.status != 422 || a.code != "invalid_value" {
		t.Errorf("a seventh place was answered %d: %s", a.status, a.body)
	}
	for quantity, credits := range map[string]string{"0.499999": "0", "0.5": "0.000001", "1.499999": "0.000001", "1.5": "0.000002"} {
		if a := usage("usage-"+quantity, "fine", quantity); a.status != 201 || !strings.Contains(a.body, `"credits":"`+credits+`"`) {
			t.Errorf("%s was charged otherwise than %s: %s", quantity, credits, a.body)
		}
	}
	c.verified()
}

func TestM5OnlyUsageOfABoundMeterIsStaged(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(201, http.MethodPut, "/v1/meters/unbound", `{"credits_per_unit": 1}`)
	c.want(201, http.MethodPost, "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "unbound", "quantity": 1}`)
	c.want(402, http.MethodPost, "/v1/usage", usageOf("usage-0002", 100))
	if n := c.count("SELECT count(*) FROM deliveries"); n != 0 {
		t.Errorf("%d deliveries of what is not Stripe's business, want none", n)
	}
	c.want(201, http.MethodPost, "/v1/usage", usageOf("usage-0003", 2))
	c.want(201, http.MethodPost, "/v1/usage", usageOf("usage-0003", 2))
	if n := c.count("SELECT sum(quantity)::bigint FROM deliveries"); n != 2_000_000 {
		t.Errorf("%d millionths were staged, want two wholes", n)
	}
	c.verified()
}

func TestBoundsOfDimensions(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	many := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("d", i)] = "v"
		}
		return m
	}
	for i, tc := range []struct {
		dimensions map[string]string
		status     int
	}{
		{many(21), 422},
		{map[string]string{"": "v"}, 422},
		{map[string]string{strings.Repeat("n", 65): "v"}, 422},
		{map[string]string{"n": strings.Repeat("v", 257)}, 422},
		{many(20), 201},
		{map[string]string{strings.Repeat("n", 64): strings.Repeat("v", 256)}, 201},
	} {
		body, err := json.Marshal(map[string]any{"id": fmt.Sprintf("usage-%04d", i), "account": "acme", "meter": "call", "quantity": 1, "dimensions": tc.dimensions})
		if err != nil {
			t.Fatal(err)
		}
		if a := c.call(http.MethodPost, "/v1/usage", string(body)); a.status != tc.status {
			t.Errorf("case %d was answered %d, want %d: %s", i, a.status, tc.status, a.body)
		}
	}
}

package meter_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"tallystick/api"
	"tallystick/meter"
)

// cursor is a position as lists give it.
func cursor(position string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(position))
}

func quoted(t *testing.T, text string) string {
	t.Helper()
	content, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestMeterRefusals(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	for _, tc := range []struct{ path, body, pointer string }{
		{"/v1/meters/a%20b", `{"credits_per_unit": 1}`, ""},
		{"/v1/meters/m", `{}`, "/credits_per_unit"},
		{"/v1/meters/m", `{"credits_per_unit": -1}`, "/credits_per_unit"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "aggregation": "mean"}`, "/aggregation"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "unit": "` + strings.Repeat("u", 65) + `"}`, "/unit"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "rates": [{"match": {}, "credits_per_unit": 1}]}`, "/rates/0/match"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "rates": [{"match": {"a": "b"}}]}`, "/rates/0/credits_per_unit"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "rates": [{"match": {"a": "b"}, "credits_per_unit": -1}]}`, "/rates/0/credits_per_unit"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "stripe": {"kind": "license", "price": "price_1"}}`, "/stripe/kind"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "stripe": {"kind": "usage_record", "price": ""}}`, "/stripe/price"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "stripe": {"kind": "usage_record", "price": "price 1"}}`, "/stripe/price"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "stripe": {"kind": "usage_record", "price": "price_1", "event_name": "calls"}}`, "/stripe/event_name"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "stripe": {"kind": "usage_record", "price": "price_1", "whole": true}}`, "/stripe/whole"},
		{"/v1/meters/m", `{"credits_per_unit": 0, "aggregation": "max", "stripe": {"kind": "usage_record", "price": "price_1"}}`, "/aggregation"},
		{"/v1/meters/m", `{"credits_per_unit": 0, "aggregation": "last", "stripe": {"kind": "usage_record", "price": "price_1"}}`, "/aggregation"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "stripe": {"kind": "meter"}}`, "/stripe/event_name"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "` + strings.Repeat("e", 101) + `"}}`, "/stripe/event_name"},
		{"/v1/meters/m", `{"credits_per_unit": 1, "aggregation": "max", "stripe": {"kind": "meter", "event_name": "e"}}`, "/aggregation"},
	} {
		if a := c.call(http.MethodPut, tc.path, tc.body); a.status != 422 || a.code != "invalid_value" || !strings.Contains(a.body, `"`+tc.pointer+`"`) && tc.pointer != "" {
			t.Errorf("%s with %.150s was answered %d: %s", tc.path, tc.body, a.status, a.body)
		}
	}
	if n := c.count("SELECT count(*) FROM meters"); n != 1 {
		t.Errorf("%d meters, want the one from before", n)
	}
}

// TestAMeterThatAnotherProcessMakesAtTheSameMoment lets the other one commit while
// ours is on its way.
func TestAMeterThatAnotherProcessMakesAtTheSameMoment(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	release := c.hold(`
		WITH m AS (INSERT INTO meters (meter, unit, aggregation, rate_version, created_at, updated_at) VALUES ('m', '', 'sum', 1, $1, $1))
		INSERT INTO meter_rates (meter, version, credits_per_unit, rates, created_at) VALUES ('m', 1, 2000000, '[]', $1)`, start)
	made := make(chan answer, 1)
	go func() { made <- c.call(http.MethodPut, "/v1/meters/m", `{"credits_per_unit": 3}`) }()
	c.blocked(1)
	release()
	if a := <-made; a.status != 200 || !strings.Contains(a.body, `"credits_per_unit":"3"`) || !strings.Contains(a.body, `"rate_version":2`) {
		t.Errorf("answered %d: %s", a.status, a.body)
	}
}

func TestManyMakeOneMeterAtOnce(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	for i := range 5 {
		created := make([]int, 8)
		var wg sync.WaitGroup
		for j := range created {
			wg.Go(func() {
				created[j] = c.call(http.MethodPut, fmt.Sprintf("/v1/meters/m%d", i), `{"credits_per_unit": 1}`).status
			})
		}
		wg.Wait()
		n := 0
		for _, status := range created {
			if status == 201 {
				n++
			} else if status != 200 {
				t.Errorf("a PUT was answered %d", status)
			}
		}
		if n != 1 {
			t.Errorf("%d of %v were told that they made the meter, want 1", n, created)
		}
	}
}

func TestMetersAndAccountsArePaged(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	for i := range 4 {
		c.want(201, http.MethodPut, fmt.Sprintf("/v1/meters/m%d", i), `{"credits_per_unit": 1}`)
		c.want(201, http.MethodPut, fmt.Sprintf("/v1/accounts/a%d", i), `{}`)
	}
	for _, list := range []string{"/v1/meters", "/v1/accounts"} {
		seen := map[string]int{}
		after := ""
		for pages := 0; pages < 3; pages++ {
			var page struct {
				Data []struct {
					Meter, Account string
				} `json:"data"`
				NextCursor *string `json:"next_cursor"`
			}
			read(t, c.want(200, http.MethodGet, list+"?limit=2"+after, ""), &page)
			for _, item := range page.Data {
				seen[item.Meter+item.Account]++
			}
			if (page.NextCursor == nil) != (pages == 2) {
				t.Fatalf("%s: page %d has the cursor %v", list, pages, page.NextCursor)
			}
			if page.NextCursor != nil {
				after = "&cursor=" + *page.NextCursor
			}
		}
		if len(seen) != 5 {
			t.Errorf("%s: seen were %v, want five, once each", list, seen)
		}
		for name, n := range seen {
			if n != 1 {
				t.Errorf("%s: %s was listed %d times", list, name, n)
			}
		}
	}
}

func TestAccountRefusals(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	c.want(201, http.MethodPut, "/v1/accounts/other", `{"stripe_customers": ["cus_taken"]}`)
	many := make([]string, 21)
	for i := range many {
		many[i] = fmt.Sprintf(`"cus_%d"`, i)
	}
	for _, tc := range []struct {
		account, body, code string
		status              int
	}{
		{"a%20b", `{}`, "invalid_value", 422},
		{strings.Repeat("a", 129), `{}`, "invalid_value", 422},
		{"a", `{"name": "` + strings.Repeat("n", 501) + `"}`, "invalid_value", 422},
		{"a", `{"overdraft": -1}`, "invalid_value", 422},
		{"a", `{"overdraft": "x"}`, "invalid_value", 422},
		{"a", `{"stripe_customers": ["prod_1"]}`, "invalid_value", 422},
		{"a", `{"stripe_customers": ["cus_1", "cus_1"]}`, "invalid_value", 422},
		{"a", `{"stripe_customers": [` + strings.Join(many, ",") + `]}`, "invalid_value", 422},
		{"a", `{"stripe_customers": ["cus_taken"]}`, "customer_taken", 409},
	} {
		if a := c.call(http.MethodPut, "/v1/accounts/"+tc.account, tc.body); a.status != tc.status || a.code != tc.code {
			t.Errorf("%.20s with %.100s was answered %d: %s", tc.account, tc.body, a.status, a.body)
		}
	}
	if n := c.count("SELECT count(*) FROM accounts"); n != 2 {
		t.Errorf("%d accounts, want the two from before", n)
	}
	c.want(201, http.MethodPut, "/v1/accounts/"+strings.Repeat("a", 128), `{"stripe_customers": [`+strings.Join(many[:20], ",")+`], "low_balance": 0}`)
}

// TestARevokedKeyIsRefusedEverywhere revokes in one process what
// another has in its cache.
func TestARevokedKeyIsRefusedEverywhere(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	other := c.beside()
	key, err := c.CreateKey(t.Context(), api.KeyRequest{Name: "k", Scopes: []string{meter.ScopeRead}})
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range []*till{c, other} {
		if !process.Works(t.Context(), key.Secret, meter.ScopeRead) || process.Works(t.Context(), key.Secret, meter.ScopeUsage) {
			t.Error("the key does not work as far as its scope, and no further")
		}
	}
	c.want(200, http.MethodDelete, "/v1/keys/"+key.ID, "")
	if c.Works(t.Context(), key.Secret, meter.ScopeRead) {
		t.Error("the process that revoked the key takes it")
	}
	c.await("the other process to refuse the key", func() bool { return !other.Works(t.Context(), key.Secret, meter.ScopeRead) })
	c.want(404, http.MethodDelete, "/v1/keys/nothing", "")
	if a := c.want(200, http.MethodGet, "/v1/keys", ""); strings.Contains(a.body, "tsk_") || !strings.Contains(a.body, `"revoked_at":"2026`) {
		t.Errorf("the list shows a secret, or not that the key is revoked: %s", a.body)
	}
}

// TestAPriceIsBoundToOneMeter refuses a second meter at a price, whose totals would
// overwrite the first one's, until the first lets go of it.
func TestAPriceIsBoundToOneMeter(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	const bound = `{"credits_per_unit": 1, "stripe": {"kind": "usage_record", "price": "price_1"}}`
	for _, status := range []int{201, 200} {
		if a := c.want(status, http.MethodPut, "/v1/meters/first", bound); !strings.Contains(a.body, `"stripe":{"kind":"usage_record","price":"price_1"}`) {
			t.Errorf("the meter is answered %s", a.body)
		}
	}
	if a := c.want(409, http.MethodPut, "/v1/meters/second", bound); a.code != "price_bound" || !strings.Contains(a.body, "first") {
		t.Errorf("the second was answered %s", a.body)
	}
	c.want(200, http.MethodPut, "/v1/meters/first", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "calls", "whole": true}}`)
	if a := c.want(200, http.MethodGet, "/v1/meters", ""); !strings.Contains(a.body, `"stripe":{"kind":"meter","event_name":"calls","whole":true}`) {
		t.Errorf("meters are %s", a.body)
	}
	c.want(201, http.MethodPut, "/v1/meters/second", bound)
}

// TestUsageOfAMeterAtAPriceIsStaged stages what is recorded, as for a billing meter.
func TestUsageOfAMeterAtAPriceIsStaged(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/meters/first", `{"credits_per_unit": 1, "stripe": {"kind": "usage_record", "price": "price_1"}}`)
	c.want(201, http.MethodPost, "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "first", "quantity": "1.5"}`)
	c.want(201, http.MethodPost, "/v1/reservations", `{"id": "hold-0001", "account": "acme", "meter": "first", "quantity": 4, "ttl_seconds": 60}`)
	c.want(201, http.MethodPost, "/v1/reservations/hold-0001/capture?account=acme", `{"quantity": 2}`)
	for _, id := range []string{"usage-0002", "usage-0003"} { // of an account that its lane remembers
		c.want(201, http.MethodPost, "/v1/usage", `{"id": "`+id+`", "account": "acme", "meter": "first", "quantity": 1}`)
	}
	if n := c.count("SELECT coalesce(sum(quantity), 0)::bigint FROM deliveries WHERE meter = 'first' AND event_name || price = ''"); n != 5_500_000 {
		t.Errorf("staged are %d millionths, want 5500000", n)
	}
}

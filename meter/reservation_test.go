package meter_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/meter"
)

// reserveOf is acme's reservation of so many calls for ten minutes.
func reserveOf(id string, quantity int) string {
	return fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "call", "quantity": %d, "ttl_seconds": 600}`, id, quantity)
}

func (c *till) reserve(id string, quantity int) answer {
	c.t.Helper()
	return c.call(http.MethodPost, "/v1/reservations", reserveOf(id, quantity))
}

func (c *till) reserved(id string, quantity int) {
	c.t.Helper()
	c.want(201, http.MethodPost, "/v1/reservations", reserveOf(id, quantity))
}

// on sends one of the calls on a reservation.
func (c *till) on(id, call, body string) answer {
	c.t.Helper()
	return c.call(http.MethodPost, "/v1/reservations/"+id+"/"+call, body)
}

// reservation is one as it stands.
func (c *till) reservation(id string) (r api.Reservation) {
	c.t.Helper()
	read(c.t, c.want(200, http.MethodGet, "/v1/reservations/"+id, ""), &r)
	return r
}

// books is acme's balance as available/held/debt.
func (c *till) books() string {
	c.t.Helper()
	var a api.Account
	read(c.t, c.want(200, http.MethodGet, "/v1/accounts/acme", ""), &a)
	return fmt.Sprintf("%s/%s/%s", a.Balance.Available, a.Balance.Held, a.Balance.Debt)
}

func (c *till) wantBooks(want string) {
	c.t.Helper()
	if got := c.books(); got != want {
		c.t.Errorf("acme has %s (available/held/debt), want %s", got, want)
	}
}

// stepped runs the sweeper until it has nothing to do.
func (c *till) stepped() {
	c.t.Helper()
	for more := true; more; {
		var err error
		if more, err = c.ReservationStep(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
	}
}

func TestReservationRefusals(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.reserved("resv-open", 4)
	c.reserved("resv-done", 1)
	c.want(201, http.MethodPost, "/v1/reservations/resv-done/capture", `{"quantity": 1}`)
	c.reserved("resv-free", 1)
	c.want(200, http.MethodPost, "/v1/reservations/resv-free/release", "")
	c.reserved("resv-wait", 1)
	c.want(200, http.MethodPost, "/v1/reservations/resv-wait/doubt", `{"reason": "timeout"}`)
	before := c.books()
	resv := func(more string) string {
		return `{"id": "resv-0001", "account": "acme", "meter": "call", ` + more + `}`
	}
	for _, tc := range []struct {
		name, path, body, want string
	}{
		{"neither quantity nor credits", "", resv(`"ttl_seconds": 60`), "422 invalid_value"},
		{"both", "", resv(`"quantity": 1, "credits": 1, "ttl_seconds": 60`), "422 invalid_value"},
		{"zero", "", resv(`"quantity": 0, "ttl_seconds": 60`), "422 invalid_value"},
		{"G04 exponent and negative", "", resv(`"credits": -1e1, "ttl_seconds": 60`), "422 invalid_value"},
		{"no time", "", resv(`"quantity": 1`), "422 invalid_value"},
		{"no time at all", "", resv(`"quantity": 1, "ttl_seconds": 0`), "422 invalid_value"},
		{"more than a day", "", resv(`"quantity": 1, "ttl_seconds": 86401`), "422 invalid_value"},
		{"unknown member", "", resv(`"quantity": 1, "ttl_seconds": 60, "ttl": 1`), "400 invalid_request"},
		{"short id", "", `{"id": "r", "account": "acme", "meter": "call", "quantity": 1, "ttl_seconds": 60}`, "422 invalid_value"},
		{"an id of a usage of ours", "", `{"id": "reservation@x", "account": "acme", "meter": "call", "quantity": 1, "ttl_seconds": 60}`, "422 invalid_value"},
		{"no account", "", `{"id": "resv-0001", "account": "nobody", "meter": "call", "quantity": 1, "ttl_seconds": 60}`, "404 account_not_found"},
		{"no meter", "", `{"id": "resv-0001", "account": "acme", "meter": "nothing", "quantity": 1, "ttl_seconds": 60}`, "404 meter_not_found"},
		{"C02 other quantity", "", reserveOf("resv-open", 5), "422 idempotency_conflict"},
		{"C02 credits for quantity", "", `{"id": "resv-open", "account": "acme", "meter": "call", "credits": 4, "ttl_seconds": 600}`, "422 idempotency_conflict"},
		{"C02 other time", "", `{"id": "resv-open", "account": "acme", "meter": "call", "quantity": 4, "ttl_seconds": 601}`, "422 idempotency_conflict"},
		{"C02 even when it ended", "", reserveOf("resv-done", 2), "422 idempotency_conflict"},
		{"more than there is", "", reserveOf("resv-0001", 100), "402 insufficient_credits"},
		{"capture of an unknown one", "resv-0009/capture", `{"quantity": 1}`, "404 reservation_not_found"},
		{"capture of what is no id", "r/capture", `{"quantity": 1}`, "404 reservation_not_found"},
		{"capture at another account", "resv-open/capture?account=other", `{"quantity": 1}`, "404 account_not_found"},
		{"capture without a measure", "resv-open/capture", `{}`, "422 invalid_value"},
		{"capture of nothing", "resv-open/capture", `{"quantity": 0}`, "422 invalid_value"},
		{"capture too old", "resv-open/capture", `{"quantity": 1, "occurred_at": "2020-01-01T00:00:00Z"}`, "422 invalid_value"},
		{"capture with a name too many", "resv-open/capture", `{"quantity": 1, "id": "usage-0001"}`, "400 invalid_request"},
		{"C07 captured twice", "resv-done/capture", `{"quantity": 2}`, "409 reservation_closed"},
		{"C08 release after capture", "resv-done/release", "", "409 reservation_closed"},
		{"C08 capture after release", "resv-free/capture", `{"quantity": 1}`, "409 reservation_closed"},
		{"extend after release", "resv-free/extend", `{"ttl_seconds": 60}`, "409 reservation_closed"},
		{"doubt after capture", "resv-done/doubt", `{"reason": "x"}`, "409 reservation_closed"},
		{"extend in doubt", "resv-wait/extend", `{"ttl_seconds": 60}`, "409 reservation_in_doubt"},
		{"another doubt", "resv-wait/doubt", `{"reason": "other"}`, "422 idempotency_conflict"},
		{"doubt without a reason", "resv-open/doubt", `{"reason": ""}`, "422 invalid_value"},
		{"a long reason", "resv-open/doubt", `{"reason": "` + strings.Repeat("x", 1001) + `"}`, "422 invalid_value"},
		{"extend by more than a day", "resv-open/extend", `{"ttl_seconds": 86401}`, "422 invalid_value"},
		{"release with content", "resv-open/release", `{"quantity": 1}`, "400 invalid_request"},
	} {
		path := "/v1/reservations"
		if tc.path != "" {
			path += "/" + tc.path
		}
		if a := c.call(http.MethodPost, path, tc.body); fmt.Sprint(a.status, " ", a.code) != tc.want {
			t.Errorf("%s: answered %d %s, want %s: %.300s", tc.name, a.status, a.code, tc.want, a.body)
		}
	}
	if a := c.on("resv-done", "release", ""); !strings.Contains(a.body, `"state":"captured"`) {
		t.Errorf("the refusal does not say how it ended: %s", a.body)
	}
	if a := c.on("resv-free", "capture", `{"quantity": 1}`); !strings.Contains(a.body, `"state":"released"`) || !strings.Contains(a.body, "POST /v1/usage") {
		t.Errorf("the refusal does not say how it ended, and what to do: %s", a.body)
	}
	c.wantBooks(before)
	c.verified()
}

func TestHeldCreditsAreSaidToStandInTheWay(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.reserved("resv-0001", 6)
	for _, tc := range []struct {
		name string
		send func(quantity int) answer
	}{
		{"usage", func(n int) answer { return c.use("usage-0001", n) }},
		{"reservation", func(n int) answer { return c.reserve("resv-0002", n) }},
	} {
		for quantity, only := range map[int]bool{5: true, 10: true, 11: false} {
			a := tc.send(quantity)
			if a.status != 402 || strings.Contains(a.body, `"held_by_reservations":true`) != only || !strings.Contains(a.body, `"held":"6"`) {
				t.Errorf("%s of %d with 4 available and 6 held was answered %d: %s", tc.name, quantity, a.status, a.body)
			}
		}
	}
	c.want(200, http.MethodPost, "/v1/reservations/resv-0001/release", "")
	if a := c.reserve("resv-0002", 10); a.status != 201 || a.replayed {
		t.Errorf("what was refused before was answered %d: %s", a.status, a.body)
	}
	c.verified()
}

// TestEachCallSentAgainIsAnsweredAgain sends every call twice, then all that can
// still be answered once more when the reservation has long ended.
func TestEachCallSentAgainIsAnsweredAgain(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	type call struct{ path, body string }
	first := map[call]string{}
	send := func(path, body string) {
		t.Helper()
		a := c.call(http.MethodPost, "/v1/reservations"+path, body)
		again := c.call(http.MethodPost, "/v1/reservations"+path, body)
		if a.status > 201 || a.replayed || again.status != a.status || again.body != a.body || !again.replayed {
			t.Errorf("%s was answered %d %s, again %d (replayed %v) %s", path, a.status, a.body, again.status, again.replayed, again.body)
		}
		first[call{path, body}] = a.body
	}
	send("", reserveOf("resv-0001", 5))
	send("", reserveOf("resv-0002", 6))
	send("", `{"id": "resv-0003", "account": "acme", "meter": "call", "credits": "7.5", "ttl_seconds": 600, "dimensions": {"model": "l"}}`)
	c.want(200, http.MethodPost, "/v1/reservations/resv-0001/extend", `{"ttl_seconds": 1200}`)
	send("/resv-0001/doubt", `{"reason": "timeout"}`)
	send("/resv-0001/capture", `{"quantity": 3}`)
	send("/resv-0002/release", "")
	c.clock.pass(11 * time.Minute)
	c.stepped()
	send("/resv-0003/capture", `{"credits": "2.5", "occurred_at": "2026-03-01T12:00:00Z"}`)
	c.clock.pass(40 * 24 * time.Hour)
	c.use("usage-0001", 1)
	for sent, body := range first {
		if strings.HasSuffix(sent.path, "/doubt") {
			continue // it has ended since
		}
		if a := c.call(http.MethodPost, "/v1/reservations"+sent.path, sent.body); a.body != body || !a.replayed {
			t.Errorf("%s, sent again much later, was answered %d %s, first %s", sent.path, a.status, a.body, body)
		}
	}
	c.verified()
}

func TestACaptureIsUsageOfItsMeter(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/meters/tokens", `{"credits_per_unit": "0.5", "rates": [{"match": {"model": "l"}, "credits_per_unit": 2}]}`)
	c.want(201, http.MethodPut, "/v1/meters/requests", `{"credits_per_unit": 3, "aggregation": "count", "stripe": {"kind": "meter", "event_name": "requests"}}`)
	c.want(201, http.MethodPut, "/v1/meters/gratis", `{"credits_per_unit": 0}`)
	hold := func(id, meter, measure string) {
		t.Helper()
		c.want(201, http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": "acme", "meter": %q, %s, "ttl_seconds": 60, "dimensions": {"model": "l"}}`, id, meter, measure))
	}
	hold("resv-0001", "tokens", `"quantity": 4`)
	hold("resv-0002", "tokens", `"quantity": 4`)
	hold("resv-0003", "tokens", `"credits": 9`)
	hold("resv-0004", "requests", `"quantity": 2`)
	hold("resv-0005", "requests", `"credits": 5`)
	hold("resv-0006", "gratis", `"credits": 5`)
	hold("resv-0007", "gratis", `"quantity": 5`)
	hold("resv-0008", "call", `"quantity": 5`)
	c.wantBooks("57/43/0")
	c.want(200, http.MethodPut, "/v1/meters/tokens", `{"credits_per_unit": 50}`) // what was reserved keeps its price
	for _, tc := range []struct{ id, body, want string }{
		{"resv-0001", `{"quantity": 3}`, "3 for 6@1 l"},
		{"resv-0002", `{"quantity": 3, "dimensions": {"model": "s"}}`, "3 for 1.5@1 s"},
		{"resv-0003", `{"credits": 5}`, "2.5 for 5@1 l"},
		{"resv-0004", `{"quantity": 7}`, "7 for 3@1 l"},
		{"resv-0005", `{"credits": 2}`, "1 for 2@1 l"},
		{"resv-0006", `{"credits": 4}`, "4 for 4@1 l"},
		{"resv-0007", `{"quantity": 4}`, "4 for 0@1 l"},
		{"resv-0008", `{"quantity": 9, "dimensions": {}}`, "9 for 9@1 "},
	} {
		var u api.Usage
		read(t, c.want(201, http.MethodPost, "/v1/reservations/"+tc.id+"/capture", tc.body), &u)
		if got := fmt.Sprintf("%s for %s@%d %s", u.Quantity, u.Credits, u.RateVersion, u.Dimensions["model"]); got != tc.want || u.ID != "reservation@"+tc.id {
			t.Errorf("%s captured %s is usage %s: %s, want %s", tc.id, tc.body, u.ID, got, tc.want)
		}
	}
	c.wantBooks("69.5/0/0")
	if n := c.count("SELECT sum(quantity) FROM deliveries WHERE meter IN ('call', 'requests')"); n != 11_000_000 {
		t.Errorf("%d millionths are staged for Stripe, want 9 calls and 2 requests", n)
	}
	if r := c.reservation("resv-0001"); r.State != "captured" || r.Captured != "6" || r.Returned != "2" || r.Usage == nil || len(r.Grants) != 1 {
		t.Errorf("the reservation stands as %+v", r)
	}
	c.verified()
}

func TestUsageThatHappenedIsNeverDropped(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.reserved("resv-0001", 6)
	c.reserved("resv-0002", 3)
	c.want(201, http.MethodPost, "/v1/reservations/resv-0001/capture", `{"quantity": 9}`) // six held, one available, two nowhere
	c.wantBooks("0/3/2")
	c.want(200, http.MethodPost, "/v1/reservations/resv-0002/release", "") // pays the debt first
	c.wantBooks("1/0/0")
	c.reserved("resv-0003", 1)
	c.clock.pass(10 * time.Minute)
	c.stepped()
	c.wantBooks("1/0/0")
	c.want(201, http.MethodPost, "/v1/reservations/resv-0003/capture", `{"quantity": 4}`)
	c.wantBooks("0/0/3")
	if r := c.reservation("resv-0003"); r.State != "expired" || r.Usage == nil || r.Captured != "0" || r.Returned != "1" {
		t.Errorf("captured after its expiry it stands as %+v", r)
	}
	if a := c.on("resv-0003", "capture", `{"quantity": 5}`); a.code != "reservation_closed" {
		t.Errorf("a second late capture was answered %d: %s", a.status, a.body)
	}
	c.want(201, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0002", "credits": 5}`)
	c.wantBooks("2/0/0")
	c.verified()
}

// TestA16ExpiryIsAtTheMicrosecond looks from both sides, with and without the
// sweeper.
func TestA16ExpiryIsAtTheMicrosecond(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	for i, id := range []string{"resv-0001", "resv-0002", "resv-0003", "resv-0004"} {
		c.reserved(id, i+1)
	}
	c.clock.pass(10*time.Minute - time.Microsecond)
	c.stepped()
	c.wantBooks("0/10/0")
	c.want(200, http.MethodPost, "/v1/reservations/resv-0001/release", "")
	c.want(200, http.MethodPost, "/v1/reservations/resv-0002/extend", `{"ttl_seconds": 1}`)
	c.want(200, http.MethodPost, "/v1/reservations/resv-0002/extend", `{"ttl_seconds": 60}`)
	c.want(200, http.MethodPost, "/v1/reservations/resv-0002/extend", `{"ttl_seconds": 2}`) // late heartbeat: not brought forward
	c.clock.pass(time.Microsecond)
	if a := c.on("resv-0003", "release", ""); a.code != "reservation_closed" || !strings.Contains(a.body, `"state":"expired"`) {
		t.Errorf("at its end a release was answered %d: %s", a.status, a.body)
	}
	if r := c.reservation("resv-0003"); r.State != "expired" {
		t.Errorf("a refusal because it expired did not let it expire: %+v", r)
	}
	c.wantBooks("4/6/0")
	c.stepped()
	c.wantBooks("8/2/0")
	c.clock.pass(time.Minute - 2*time.Microsecond)
	c.stepped()
	c.wantBooks("8/2/0")
	c.clock.pass(time.Microsecond)
	c.stepped()
	c.wantBooks("10/0/0")
	c.verified()
}

func TestHeldCreditsOfADueGrantExpireWhenTheyComeBack(t *testing.T) {
	t.Parallel()
	c := opened(t, 5)
	c.want(201, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-soon", "credits": 5, "priority": -1, "expires_at": "2026-03-01T12:05:00Z"}`)
	c.reserved("resv-0001", 4)
	c.reserved("resv-0002", 3)
	c.clock.pass(5 * time.Minute)
	c.want(201, http.MethodPost, "/v1/reservations/resv-0001/capture", `{"quantity": 3}`) // of the grant, though it is due
	c.want(200, http.MethodPost, "/v1/reservations/resv-0002/release", "")
	c.wantBooks("5/0/0")
	for id, want := range map[string]string{"resv-0001": "3/0/1", "resv-0002": "0/2/1"} {
		if r := c.reservation(id); fmt.Sprintf("%s/%s/%s", r.Captured, r.Returned, r.Expired) != want {
			t.Errorf("%s captured/returned/expired %s/%s/%s, want %s", id, r.Captured, r.Returned, r.Expired, want)
		}
	}
	c.verified()
}

func TestDoubtIsSettledByThePolicy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ policy, want, state string }{
		{`{"action": "release", "seconds": 60}`, "10/0/0", "released"},
		{`{"action": "capture", "seconds": 60}`, "6/0/0", "captured"},
		{"null", "6/4/0", "in_doubt"},
	} {
		t.Run(tc.state, func(t *testing.T) {
			t.Parallel()
			c := opened(t, 10)
			c.want(200, http.MethodPut, "/v1/accounts/acme", `{"in_doubt_after": `+tc.policy+`}`)
			c.want(201, http.MethodPost, "/v1/reservations", `{"id": "resv-0001", "account": "acme", "meter": "call", "credits": 3, "ttl_seconds": 1}`)
			c.want(201, http.MethodPost, "/v1/reservations", `{"id": "resv-0002", "account": "acme", "meter": "call", "quantity": 1, "ttl_seconds": 1}`)
			for _, id := range []string{"resv-0001", "resv-0002"} {
				c.want(200, http.MethodPost, "/v1/reservations/"+id+"/doubt", `{"reason": "timeout"}`)
			}
			c.clock.pass(time.Minute - time.Microsecond) // long past its own time
			c.stepped()
			c.wantBooks("6/4/0")
			c.clock.pass(time.Microsecond)
			c.stepped()
			c.wantBooks(tc.want)
			if r := c.reservation("resv-0001"); r.State != tc.state || r.Reason != "timeout" {
				t.Errorf("the reservation stands as %+v", r)
			}
			if n := c.count("SELECT count(*) FROM usage WHERE occurred_at = '2026-03-01T12:00:00Z' AND staged = quantity"); n != map[string]int{"captured": 2}[tc.state] {
				t.Errorf("%d usages at the time of the doubt", n)
			}
			c.verified()
		})
	}
}

func TestReservationsOfSeveralAccounts(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(201, http.MethodPut, "/v1/accounts/other", `{"overdraft": 10}`)
	c.reserved("resv-0001", 4)
	c.want(201, http.MethodPost, "/v1/reservations", strings.Replace(reserveOf("resv-0001", 5), "acme", "other", 1)) // C03
	for _, call := range []struct{ method, path, body string }{
		{http.MethodGet, "/v1/reservations/resv-0001", ""},
		{http.MethodPost, "/v1/reservations/resv-0001/release", ""},
		{http.MethodPost, "/v1/reservations/resv-0001/capture", `{"quantity": 1}`},
	} {
		if a := c.call(call.method, call.path, call.body); a.status != 409 || a.code != "reservation_ambiguous" {
			t.Errorf("%s %s was answered %d: %s", call.method, call.path, a.status, a.body)
		}
	}
	c.want(200, http.MethodPost, "/v1/reservations/resv-0001/release?account=other", "")
	c.want(404, http.MethodGet, "/v1/reservations/resv-0001?account=nobody", "")
	c.wantBooks("6/4/0")
	for i := range 5 {
		c.want(201, http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": "resv-1%03d", "account": "acme", "meter": "call", "quantity": 1, "ttl_seconds": 60}`, i))
	}
	for query, want := range map[string]string{
		"account=acme": "resv-0001 resv-1000 resv-1001 resv-1002 resv-1003 resv-1004", "account=other&state=released": "resv-0001",
		"state=released": "resv-0001", "account=acme&state=open": "resv-0001 resv-1000 resv-1001 resv-1002 resv-1003 resv-1004", "account=other&state=open": "", "state=expired": "",
	} {
		var got []string
		for cursor := ""; ; {
			var page struct {
				Data []api.Reservation `json:"data"`
				Next *string           `json:"next_cursor"`
			}
			read(t, c.want(200, http.MethodGet, "/v1/reservations?limit=2&"+query+cursor, ""), &page)
			for _, r := range page.Data {
				got = append(got, r.ID)
			}
			if page.Next == nil {
				break
			}
			cursor = "&cursor=" + *page.Next
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s lists %q, want %q", query, got, want)
		}
	}
	c.verified()
}

func TestScopesOfReservations(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	for _, scope := range []string{meter.ScopeUsage, meter.ScopeRead} {
		key, err := c.CreateKey(t.Context(), api.KeyRequest{Name: scope, Scopes: []string{scope}})
		if err != nil {
			t.Fatal(err)
		}
		as := func(method, path, body string) int {
			return c.call(method, path, body, "Authorization", "Bearer "+key.Secret).status
		}
		got := []int{
			as(http.MethodPost, "/v1/reservations", reserveOf("resv-"+scope, 1)), as(http.MethodPost, "/v1/reservations/resv-usage/extend", `{"ttl_seconds": 60}`),
			as(http.MethodPost, "/v1/reservations/resv-usage/doubt", `{"reason": "x"}`), as(http.MethodPost, "/v1/reservations/resv-usage/capture", `{"quantity": 1}`),
			as(http.MethodPost, "/v1/reservations/resv-usage/release", ""), as(http.MethodGet, "/v1/reservations", ""), as(http.MethodGet, "/v1/reservations/resv-usage", ""),
		}
		want := map[string][]int{meter.ScopeUsage: {201, 200, 200, 201, 409, 403, 403}, meter.ScopeRead: {403, 403, 403, 403, 403, 200, 200}}[scope]
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("scope %s is answered %v, want %v", scope, got, want)
		}
	}
}

func TestG08IdempotencyKeyNamesAReservation(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	body := `{"account": "acme", "meter": "call", "quantity": 1, "ttl_seconds": 60}`
	c.want(201, http.MethodPost, "/v1/reservations", body, "Idempotency-Key", "resv-0001")
	if a := c.call(http.MethodPost, "/v1/reservations", body, "Idempotency-Key", `"resv-0001"`); a.status != 201 || !a.replayed {
		t.Errorf("sent again: %d %s", a.status, a.body)
	}
	var r api.Reservation
	if err := json.Unmarshal([]byte(c.want(200, http.MethodGet, "/v1/reservations/resv-0001", "").body), &r); err != nil || r.ID != "resv-0001" {
		t.Errorf("%v: %+v", err, r)
	}
}

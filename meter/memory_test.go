package meter_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"tallystick/internal/pg/pgtest"
)

// TestWhatALaneRemembersIsNeverTrusted changes an account behind the back of a
// process that remembers it, in every way there is: the next usage is decided on
// what stands in the database.
func TestWhatALaneRemembersIsNeverTrusted(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]struct {
		change func(c *till)
		usage  string // after it
		status int
		left   string
	}{
		"usage elsewhere":               {func(c *till) { c.want(201, http.MethodPost, "/v1/usage", plainUsage("elsewhere-1", 50)) }, plainUsage("usage-0003", 49), 402, "48"},
		"the same id elsewhere":         {func(c *till) { c.want(201, http.MethodPost, "/v1/usage", plainUsage("usage-0003", 50)) }, plainUsage("usage-0003", 50), 201, "48"},
		"the same id, and nothing left": {func(c *till) { c.want(201, http.MethodPost, "/v1/usage", plainUsage("usage-0003", 97)) }, plainUsage("usage-0001", 99), 422, "1"},
		"the same id, otherwise":        {func(c *till) { c.want(201, http.MethodPost, "/v1/usage", plainUsage("usage-0003", 50)) }, plainUsage("usage-0003", 51), 422, "48"},
		"a grant": {func(c *till) {
			c.want(201, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0002", "credits": 100, "priority": -1}`)
		}, plainUsage("usage-0003", 150), 201, "48"},
		"an overdraft":      {func(c *till) { c.want(200, http.MethodPut, "/v1/accounts/acme", `{"overdraft": 10}`) }, plainUsage("usage-0003", 105), 201, "-7"},
		"a price":           {func(c *till) { c.want(200, http.MethodPut, "/v1/meters/plain", `{"credits_per_unit": 2}`) }, plainUsage("usage-0003", 40), 201, "18"},
		"time that expires": {func(c *till) { c.clock.pass(25 * time.Hour) }, plainUsage("usage-0003", 60), 402, "98"},
		"a void": {func(c *till) {
			c.want(201, http.MethodPost, "/v1/usage/usage-0001/void", `{"account": "acme", "reason": "wrong"}`)
		}, plainUsage("usage-0003", 99), 201, "0"},
		"a reservation": {func(c *till) {
			c.want(201, http.MethodPost, "/v1/reservations", `{"id": "hold-0001", "account": "acme", "meter": "plain", "credits": 90, "ttl_seconds": 60}`)
		}, plainUsage("usage-0003", 20), 402, "8"},
		"a balance by hand": {func(c *till) {
			pgtest.Exec(c.t, c.own, "UPDATE accounts SET available = 5000000 WHERE account = 'acme'")
		}, plainUsage("usage-0003", 20), 402, "5"},
		"nothing": {func(*till) {}, plainUsage("usage-0003", 98), 201, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := opened(t, 0)
			c.want(201, http.MethodPut, "/v1/meters/plain", `{"credits_per_unit": 1}`)
			grant := `{"id": "grant-0001", "credits": 100}`
			if name == "time that expires" {
				grant = `{"id": "grant-0001", "credits": 100, "expires_at": "` + c.clock.Now().Add(24*time.Hour).Format(time.RFC3339) + `"}`
			}
			c.want(201, http.MethodPost, "/v1/accounts/acme/grants", grant)
			other := c.beside()
			for i := range 2 { // the second is decided on what the first has left
				c.want(201, http.MethodPost, "/v1/usage", plainUsage(fmt.Sprintf("usage-000%d", i+1), 1))
			}
			of.change(other)
			a := c.call(http.MethodPost, "/v1/usage", of.usage)
			if a.status != of.status {
				t.Errorf("answered %d, want %d: %s", a.status, of.status, a.body)
			}
			if got := c.available(); got != of.left {
				t.Errorf("%s credits are left, want %s", got, of.left)
			}
			if name != "a balance by hand" {
				c.verified()
			}
		})
	}
}

func plainUsage(id string, quantity int) string {
	return fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "plain", "quantity": %d}`, id, quantity)
}

// TestTwoProcessesThatRememberOneAccount charge it in turn, and at once.
func TestTwoProcessesThatRememberOneAccount(t *testing.T) {
	t.Parallel()
	c := opened(t, 200)
	c.want(201, http.MethodPut, "/v1/meters/plain", `{"credits_per_unit": 1}`)
	tills := []*till{c, c.beside()}
	for i := range 60 {
		tills[i%2].want(201, http.MethodPost, "/v1/usage", plainUsage(fmt.Sprintf("turn-%04d", i), 1))
	}
	answers := make(chan int)
	for i := range 200 {
		go func() {
			answers <- tills[i%2].call(http.MethodPost, "/v1/usage", plainUsage(fmt.Sprintf("race-%04d", i), 1)).status
		}()
	}
	got := map[int]int{}
	for range 200 {
		got[<-answers]++
	}
	if got[201] != 140 || got[402] != 60 {
		t.Errorf("answers %v, want 140 charged and 60 refused", got)
	}
	if left := c.available(); left != "0" {
		t.Errorf("%s credits are left", left)
	}
	c.verified()
}

// TestAReservationChangedElsewhereIsReadAnew has a process that remembers the account
// end a reservation which another has changed without a transfer, and with one.
func TestAReservationChangedElsewhereIsReadAnew(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]struct {
		elsewhere, elsewhereBody string
		pass                     time.Duration
		here, hereBody           string
		status                   int
		state                    string
	}{
		"extended":          {"extend", `{"ttl_seconds": 3600}`, 10 * time.Minute, "capture", `{"quantity": 3}`, 201, "captured"},
		"in doubt":          {"doubt", `{"reason": "timeout"}`, 10 * time.Minute, "capture", `{"quantity": 3}`, 201, "captured"},
		"in doubt, to open": {"doubt", `{"reason": "timeout"}`, 0, "extend", `{"ttl_seconds": 3600}`, 409, "in_doubt"},
		"captured":          {"capture", `{"quantity": 3}`, 0, "release", "", 409, "captured"},
		"released":          {"release", "", 0, "capture", `{"quantity": 3}`, 409, "released"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := opened(t, 100)
			other := c.beside()
			c.reserved("resv-0001", 5)
			c.want(201, http.MethodPost, "/v1/usage", usageOf("usage-0001", 1))
			if a := other.on("resv-0001", of.elsewhere, of.elsewhereBody); a.status >= 300 {
				t.Fatalf("elsewhere: %d %s", a.status, a.body)
			}
			c.clock.pass(of.pass)
			if a := c.on("resv-0001", of.here, of.hereBody); a.status != of.status {
				t.Errorf("answered %d, want %d: %s", a.status, of.status, a.body)
			}
			if r := c.reservation("resv-0001"); r.State != of.state {
				t.Errorf("it ended as %s, want %s", r.State, of.state)
			}
			c.verified()
		})
	}
}

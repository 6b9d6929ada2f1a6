package mutants

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/apptest"
)

// How long the story waits for what is under way. A mutant may hinder it for good.
const (
	soundWait  = time.Minute
	mutantWait = 6 * time.Second
)

// story is what happens to the program. Of a sound one nothing is refused; a mutant
// may refuse what it likes.
type story struct {
	*apptest.Shop
	t     *testing.T
	sound bool
	now   time.Time
	duo   string // the customer of the account duo that usage goes to
}

// play puts the program through everything and gives what the checks then find.
func play(t *testing.T, a *apptest.App, sound bool) []api.Finding {
	t.Helper()
	s := &story{t: t, Shop: a.Stock(), sound: sound}
	s.advance(0)
	s.advance(s.now.Truncate(time.Hour).Add(time.Hour + 5*time.Minute).Sub(s.now)) // totals are compared by the hour
	s.open()
	s.purchases()
	s.usage()
	s.reservations()
	s.debt()
	s.moneyBack()
	s.faults()
	s.advance(2 * time.Hour)
	s.missed()
	s.advance(3 * time.Minute)
	return s.audit()
}

// do calls the API.
func (s *story) do(method, path, body string) apptest.Response {
	s.t.Helper()
	r := s.Call(method, path, body)
	switch {
	case r.Status < http.StatusBadRequest:
	case s.sound:
		s.t.Errorf("%s %s with %s was answered %d: %s", method, path, body, r.Status, r.Body)
	default:
		s.t.Logf("%s %s with %s was answered %d: %s", method, path, body, r.Status, r.Body)
	}
	return r
}

// advance moves the one clock.
func (s *story) advance(d time.Duration) {
	s.t.Helper()
	s.Control("/_sim/clock", fmt.Sprintf(`{"advance_seconds": %v}`, d.Seconds()))
	var clock struct{ Now int64 }
	s.state("/_sim/clock", &clock)
	s.now = time.Unix(clock.Now, 0).UTC()
}

// state reads the simulator's control plane.
func (s *story) state(path string, dst any) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.Info.StripeAPIBase+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal(s.Do(r).Body, dst); err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
}

// await waits until done is true; of a mutant, only for a while.
func (s *story) await(what string, done func() bool) {
	s.t.Helper()
	most := mutantWait
	if s.sound {
		most = soundWait
	}
	for deadline := time.Now().Add(most); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			if s.sound {
				s.t.Fatalf("waited too long for %s", what)
			}
			return
		}
	}
}

// settle waits until no webhook, event or delivery that is due is under way.
func (s *story) settle() {
	s.t.Helper()
	s.await("webhooks, events and deliveries", func() bool {
		var webhooks struct{ Queued int }
		if s.state("/_sim/webhooks", &webhooks); webhooks.Queued > 0 {
			return false
		}
		if s.due("/v1/stripe/events?limit=500&state=pending") {
			return false
		}
		for _, state := range []string{"pending", "sending", "ambiguous", "pending"} { // as a delivery moves
			if s.due("/v1/deliveries?limit=500&state=" + state) {
				return false
			}
		}
		return true
	})
}

// due tells whether a list has something whose time has come.
func (s *story) due(path string) bool {
	s.t.Helper()
	var list struct {
		Data []struct {
			NextTryAt time.Time `json:"next_try_at"`
		}
	}
	s.Want(http.StatusOK, http.MethodGet, path, nil, &list)
	for _, row := range list.Data {
		if !row.NextTryAt.After(s.now) {
			return true
		}
	}
	return false
}

func (s *story) pass(d time.Duration) {
	s.t.Helper()
	s.advance(d)
	s.settle()
}

// open makes what the shop lacks: a meter that is not billed at Stripe, with a rate
// of its own for one model, and accounts with two customers, and with none.
func (s *story) open() {
	s.t.Helper()
	s.duo = s.Make("/v1/customers", url.Values{"name": {"duo"}})
	second := s.Make("/v1/customers", url.Values{"name": {"duo's other"}})
	s.do("PUT", "/v1/accounts/duo", fmt.Sprintf(`{"stripe_customers": [%q, %q]}`, s.duo, second))
	s.do("PUT", "/v1/accounts/solo", `{}`)
	s.do("PUT", "/v1/meters/tokens", `{"credits_per_unit": "0.5", "rates": [{"match": {"model": "large"}, "credits_per_unit": "1.5"}]}`)
	s.do("POST", "/v1/accounts/duo/grants", `{"id": "grant-duo-1", "credits": 50}`)
	s.do("POST", "/v1/accounts/acme/grants", fmt.Sprintf(`{"id": "grant-short", "credits": 20, "priority": 5, "expires_at": %q}`, s.now.Add(90*time.Minute).Format(time.RFC3339)))
	s.do("POST", "/v1/accounts/solo/grants", `{"id": "grant-solo-1", "credits": 10, "reason": "a welcome"}`)
	s.do("POST", "/v1/accounts/solo/adjustments", `{"id": "adjust-solo-1", "credits": "-2.5", "reason": "a correction"}`)
}

// audit runs all checks and gives what is open.
func (s *story) audit() []api.Finding {
	s.t.Helper()
	var runs struct{ Data []api.Run }
	s.Want(http.StatusCreated, http.MethodPost, "/v1/reconcile/runs", `{}`, &runs)
	for _, r := range runs.Data {
		if r.State != "succeeded" {
			s.t.Errorf("%s has %s: %s", r.Check, r.State, r.Error)
		}
	}
	var list struct{ Data []api.Finding }
	s.Want(http.StatusOK, http.MethodGet, "/v1/findings?limit=500", nil, &list)
	return list.Data
}

package stripesim_test

import (
	"sync"
	"testing"
	"time"

	"tallystick/stripesim"
)

// TestLimitsAreSwitches sends one request too many for each limit.
func TestLimitsAreSwitches(t *testing.T) {
	t.Parallel()
	for reason, switches := range map[string]stripesim.Switches{
		"global-rate":   {RequestsPerSecond: 3},
		"endpoint-rate": {EndpointRequestsPerSecond: 3},
	} {
		clock := &still{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
		u := newUser(t, stripesim.Options{Switches: switches, Clock: clock})
		for range 3 {
			u.must("GET", "/v1/customers", "")
		}
		a := u.call("GET", "/v1/customers", "")
		u.refused(a, 429, invalidRequest, "rate_limit", "")
		if got := a.Header.Get("Stripe-Rate-Limited-Reason"); got != reason {
			t.Errorf("the reason is %q, want %q", got, reason)
		}
		other := u.call("GET", "/v1/products", "")
		if (other.Status == 200) != (reason == "endpoint-rate") {
			t.Errorf("%s: another endpoint answers %d", reason, other.Status)
		}
		u.refused(u.call("POST", "/v1/products", "name=a", "Authorization", ""), 401, invalidRequest, "", "")
		u.Advance(400 * time.Millisecond)
		u.must("GET", "/v1/customers", "")
		u.refused(u.call("GET", "/v1/customers", ""), 429, invalidRequest, "rate_limit", "")
		u.Advance(time.Hour)
		for range 3 {
			u.must("GET", "/v1/customers", "")
		}
		u.refused(u.call("GET", "/v1/customers", ""), 429, invalidRequest, "rate_limit", "")
	}
}

// TestConcurrencyIsLimited keeps calls waiting and sends one more.
func TestConcurrencyIsLimited(t *testing.T) {
	t.Parallel()
	for reason, switches := range map[string]stripesim.Switches{
		"global-concurrency":   {ConcurrentRequests: 2},
		"endpoint-concurrency": {EndpointConcurrentRequests: 2},
	} {
		u := newUser(t, stripesim.Options{Switches: switches})
		if err := u.AddFaults(&stripesim.Fault{Fault: "slow", Times: 2, DelayMS: 1500}); err != nil {
			t.Fatal(err)
		}
		var slow sync.WaitGroup
		for range 2 {
			slow.Go(func() { u.must("POST", "/v1/customers", "") })
		}
		for u.State().Requests < 2 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(150 * time.Millisecond) // until both are under way
		a := u.call("POST", "/v1/customers", "", key("k")...)
		u.refused(a, 429, invalidRequest, "rate_limit", "")
		if got := a.Header.Get("Stripe-Rate-Limited-Reason"); got != reason {
			t.Errorf("the reason is %q, want %q", got, reason)
		}
		if a := u.call("GET", "/v1/products", ""); (a.Status == 200) != (reason == "endpoint-concurrency") {
			t.Errorf("%s: another endpoint answers %d", reason, a.Status)
		}
		slow.Wait()
		u.must("POST", "/v1/customers", "", key("k")...)
	}
}

// still is a clock that moves only when it is told to.
type still struct {
	mu  sync.Mutex
	now time.Time
}

func (c *still) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *still) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

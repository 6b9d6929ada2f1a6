package stripesim

import (
	"fmt"
	"net/http"
)

// Bounds of test clocks.
const (
	clockCustomersMax     = 3
	clockSubscriptionsMax = 3 // for each customer
	clockAge              = 7 * 24 * 3600
	clockNameMax          = 300
)

const testClock = "test_helpers.test_clock"

func (s *Server) routeTestClocks() {
	s.agenda.do[testClock] = func(clock object) {
		if s.now() >= number(clock, "deletes_after") {
			s.deleteClock(nil, clock)
		}
	}
	s.handle("POST /v1/test_helpers/test_clocks", spec{"frozen_time": "int", "name": "string"}, func(c *call) (object, *apiError) {
		if err := c.require("frozen_time"); err != nil {
			return nil, err
		}
		if c.number("frozen_time") < 1 {
			return nil, invalid("frozen_time", "parameter_invalid_integer", "Invalid timestamp: must be an integer Unix timestamp.")
		}
		if len(c.text("name")) > clockNameMax {
			return nil, invalid("name", "parameter_invalid_string_length", "Invalid string: must be at most %d characters", clockNameMax)
		}
		o := object{
			"id": s.newID("clock"), "object": testClock, "created": s.now(), "deletes_after": s.now() + clockAge, "frozen_time": c.number("frozen_time"),
			"livemode": false, "name": c.orNull("name"), "status": "ready",
		}
		s.setAlarm(testClock, o, number(o, "deletes_after"))
		s.store.put(testClock, o)
		s.raise(c, testClock+".created", o, nil)
		return o, nil
	})
	s.handle("GET /v1/test_helpers/test_clocks/{id}", nil, func(c *call) (object, *apiError) { return s.find(testClock, c.target(), "test_clock") })
	s.handle("GET /v1/test_helpers/test_clocks", listSpec(nil), func(c *call) (object, *apiError) {
		return s.list(c, testClock, func(object) bool { return true })
	})
	s.handle("DELETE /v1/test_helpers/test_clocks/{id}", nil, func(c *call) (object, *apiError) {
		clock, err := s.find(testClock, c.target(), "test_clock")
		if err != nil {
			return nil, err
		}
		s.deleteClock(c, clock)
		return object{"id": c.target(), "object": testClock, "deleted": true}, nil
	})
	s.handle("POST /v1/test_helpers/test_clocks/{id}/advance", spec{"frozen_time": "int"}, func(c *call) (object, *apiError) {
		clock, err := s.find(testClock, c.target(), "test_clock")
		if err == nil {
			err = c.require("frozen_time")
		}
		if err != nil {
			return nil, err
		}
		return s.advanceClock(c, clock, c.number("frozen_time"))
	})
}

// advanceClock starts to move a test clock. What is due happens before it is ready
// again, and the answer shows it advancing.
func (s *Server) advanceClock(c *call, clock object, to int64) (object, *apiError) {
	if text(clock, "status") != "ready" {
		return nil, clockBusy(clock)
	}
	from := number(clock, "frozen_time")
	if to <= from {
		return nil, invalid("frozen_time", "", "Test clocks can only be advanced forward in time: %d is not after the current frozen time %d.", to, from)
	}
	if latest, why := s.clockReach(clock); to > latest {
		return nil, invalid("frozen_time", "", "Test clocks can be advanced at most %s: %d is after %d.", why, to, latest)
	}
	previous := s.change(testClock, clock, object{"status": "advancing", "frozen_time": to, "_ready_at": s.clock.Now().UnixMilli() + s.switches.TestClockAdvanceMS})
	s.raise(c, testClock+".advancing", clock, previous)
	shown := s.view(clock, nil)
	if s.switches.TestClockAdvanceMS <= 0 {
		s.finishClock(clock)
	}
	return shown, nil
}

// clockReach is how far a clock may be moved, and why: two intervals of its shortest
// subscription, or two years.
func (s *Server) clockReach(clock object) (latest int64, why string) {
	from, found := number(clock, "frozen_time"), false
	latest, why = cadence{unit: "year", count: 2}.boundary(from, 1), "two years, while it has no subscription"
	for _, sub := range s.store.shelf("subscription").with("test_clock", text(clock, "id")) {
		items := s.itemsOf(sub)
		if ended(sub) || len(items) == 0 {
			continue
		}
		if reach := cadenceOf(s.store.get("price", text(items[0], "price"))).boundary(from, 2); !found || reach < latest {
			latest, why, found = reach, "two intervals of its shortest subscription", true
		}
	}
	return latest, why
}

// finishClock lets everything happen that is due on a clock, and makes it ready.
func (s *Server) finishClock(clock object) {
	s.happenUntil(text(clock, "id"), number(clock, "frozen_time"))
	previous := s.change(testClock, clock, object{"status": "ready"})
	s.raise(nil, testClock+".ready", clock, previous)
}

// finishClocks makes the clocks ready whose time of advancing is over.
func (s *Server) finishClocks() {
	now := s.clock.Now().UnixMilli()
	for clock := range s.store.shelf(testClock).all {
		if text(clock, "status") == "advancing" && number(clock, "_ready_at") <= now {
			s.finishClock(clock)
		}
	}
}

func clockBusy(clock object) *apiError {
	return &apiError{
		status: http.StatusTooManyRequests, typ: "invalid_request_error", code: "rate_limit",
		message: fmt.Sprintf("Test clock advancement underway - cannot perform modifications: %s", text(clock, "id")),
	}
}

// still refuses to change what belongs to a test clock that moves.
func (s *Server) still(o object) *apiError {
	if clock := s.store.get(testClock, text(o, "test_clock")); text(clock, "status") == "advancing" {
		return clockBusy(clock)
	}
	return nil
}

// onClock runs an endpoint at the time of the test clock that an object belongs to,
// and refuses it while that clock moves.
func (s *Server) onClock(o object, do func() (object, *apiError)) (result object, err *apiError) {
	if err := s.still(o); err != nil {
		return nil, err
	}
	s.onClockOf(o, func() { result, err = do() })
	return result, err
}

// onNamedClock makes what a call puts on a test clock.
func (s *Server) onNamedClock(c *call, do func() (object, *apiError)) (object, *apiError) {
	id := c.text("test_clock")
	if id == "" {
		return do()
	}
	if _, err := s.find(testClock, id, "test_clock"); err != nil {
		return nil, err
	}
	if len(s.store.shelf("customer").with("test_clock", id)) >= clockCustomersMax {
		return nil, invalid("test_clock", "", "A test clock can have at most %d customers: %s has them already.", clockCustomersMax, id)
	}
	return s.onClock(object{"test_clock": id}, do)
}

// clockHasRoom refuses a further subscription of a customer who has all that a test
// clock allows.
func (s *Server) clockHasRoom(customer object) *apiError {
	if text(customer, "test_clock") == "" {
		return nil
	}
	running := 0
	for _, sub := range s.store.shelf("subscription").with("customer", text(customer, "id")) {
		if !ended(sub) {
			running++
		}
	}
	if running >= clockSubscriptionsMax {
		return invalid("customer", "customer_max_subscriptions", "A customer on a test clock can have at most %d subscriptions.", clockSubscriptionsMax)
	}
	return nil
}

// deleteClock takes a clock away, its customers and their subscriptions with it.
func (s *Server) deleteClock(c *call, clock object) {
	for _, customer := range s.store.shelf("customer").with("test_clock", text(clock, "id")) {
		s.cancelAllOf(c, customer)
		s.onClockOf(customer, func() { s.raise(c, "customer.deleted", customer, nil) })
		s.store.put("customer", object{"id": customer["id"], "object": "customer", "deleted": true})
	}
	delete(s.agenda.clocks, text(clock, "id"))
	s.store.delete(testClock, text(clock, "id"))
	s.raise(c, testClock+".deleted", clock, nil)
}

// eventTime is when an event is made: by the simulator's own clock, whatever a test
// clock says, as events are kept and listed by it.
func (s *Server) eventTime() int64 {
	if s.testing {
		return s.clock.Now().Unix()
	}
	return s.now()
}

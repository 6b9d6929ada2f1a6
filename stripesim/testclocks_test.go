package stripesim_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

func TestTestClocksAreRefused(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	clocks := "/v1/test_helpers/test_clocks"
	u.refused(u.call(http.MethodPost, clocks, ""), 400, "invalid_request_error", "parameter_missing", "frozen_time")
	u.refused(u.call(http.MethodPost, clocks, "frozen_time=now"), 400, "invalid_request_error", "parameter_invalid_integer", "frozen_time")
	u.refused(u.call(http.MethodPost, clocks, "frozen_time=0"), 400, "invalid_request_error", "parameter_invalid_integer", "frozen_time")
	u.refused(u.call(http.MethodPost, clocks, "frozen_time=1&name="+strings.Repeat("n", 301)), 400, "invalid_request_error", "parameter_invalid_string_length", "name")
	for _, call := range [][2]string{{http.MethodGet, ""}, {http.MethodDelete, ""}, {http.MethodPost, "/advance"}} {
		u.refused(u.call(call[0], clocks+"/clock_none"+call[1], ""), 404, "invalid_request_error", "resource_missing", "test_clock")
	}
	u.refused(u.call(http.MethodPost, "/v1/customers", "test_clock=clock_none"), 400, "invalid_request_error", "resource_missing", "test_clock")
	clock := u.make(clocks, fmt.Sprint("frozen_time=", opened.Unix()))
	u.refused(u.call(http.MethodPost, clocks+"/"+clock+"/advance", ""), 400, "invalid_request_error", "parameter_missing", "frozen_time")
	for range 3 {
		u.make("/v1/customers", "test_clock="+clock)
	}
	u.refused(u.call(http.MethodPost, "/v1/customers", "test_clock="+clock), 400, "invalid_request_error", "", "test_clock")
}

func TestAClockGoesForwardAndNotTooFar(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	try := func(to time.Time, status int) {
		t.Helper()
		path := "/v1/test_helpers/test_clocks/" + s.clock
		a := s.call(http.MethodPost, path+"/advance", fmt.Sprint("frozen_time=", to.Unix()))
		if status != http.StatusOK {
			s.refused(a, status, "invalid_request_error", "", "frozen_time")
			return
		}
		if a.Status != status || a.Body["status"] != "advancing" || wholeIn(a.Body["frozen_time"]) != to.Unix() {
			t.Errorf("to %s: answered %d %s", to, a.Status, a.Raw)
		}
		if now := s.must(http.MethodGet, path, ""); now["status"] != "ready" || wholeIn(now["frozen_time"]) != to.Unix() {
			t.Errorf("then it is %v", now)
		}
	}
	try(opened, http.StatusBadRequest)
	try(opened.Add(-time.Second), http.StatusBadRequest)
	try(opened.AddDate(2, 0, 0).Add(time.Second), http.StatusBadRequest)
	try(opened.AddDate(2, 0, 0), http.StatusOK)
	start := opened.AddDate(2, 0, 0) // 31 January 2026
	monthly := s.subscribe("items[0][price]=" + s.price(""))
	two := time.Date(2026, time.March, 31, 12, 0, 0, 0, time.UTC)
	try(two.Add(time.Second), http.StatusBadRequest)
	weekly := s.make("/v1/subscriptions", "customer="+monthly["customer"].(string)+"&items[0][price]="+s.price("recurring[interval]=week"))
	try(start.AddDate(0, 0, 14).Add(time.Second), http.StatusBadRequest)
	try(start.AddDate(0, 0, 14), http.StatusOK)
	s.must(http.MethodDelete, "/v1/subscriptions/"+weekly, "")
	try(time.Date(2026, time.April, 14, 12, 0, 0, 0, time.UTC), http.StatusOK)
	if end := s.sub(idIn(monthly))["current_period_end"]; dayIn(end) != "260430" {
		t.Errorf("the period ends %s", dayIn(end))
	}
	s.make("/v1/subscriptions", "customer="+monthly["customer"].(string)+"&items[0][price]="+s.price(""))
	s.make("/v1/subscriptions", "customer="+monthly["customer"].(string)+"&items[0][price]="+s.price(""))
	a := s.call(http.MethodPost, "/v1/subscriptions", "customer="+monthly["customer"].(string)+"&items[0][price]="+s.price(""))
	s.refused(a, 400, "invalid_request_error", "customer_max_subscriptions", "customer")
}

func TestAnAdvancingClockRefusesChanges(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripesim.Options{Switches: stripesim.Switches{TestClockAdvanceMS: 3_600_000}})
	sub := s.subscribe("items[0][price]=" + s.price(""))
	path := "/v1/test_helpers/test_clocks/" + s.clock
	s.must(http.MethodPost, path+"/advance", fmt.Sprint("frozen_time=", opened.AddDate(0, 0, 40).Unix()))
	for _, a := range []reply{
		s.call(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "metadata[a]=b"), s.call(http.MethodDelete, "/v1/subscriptions/"+idIn(sub), ""),
		s.call(http.MethodPost, path+"/advance", fmt.Sprint("frozen_time=", opened.AddDate(0, 0, 41).Unix())),
		s.call(http.MethodPost, "/v1/customers", "test_clock="+s.clock),
	} {
		s.refused(a, 429, "invalid_request_error", "rate_limit", "")
		if !strings.Contains(a.Raw, "Test clock advancement underway - cannot perform modifications: "+s.clock) {
			t.Errorf("it is refused with %s", a.Raw)
		}
	}
	if n := len(s.invoices()); n != 1 || s.must(http.MethodGet, path, "")["status"] != "advancing" {
		t.Errorf("%d invoices while it advances", n)
	}
	s.Advance(time.Hour + time.Second)
	if n := len(s.invoices()); n != 2 || s.must(http.MethodGet, path, "")["status"] != "ready" {
		t.Errorf("%d invoices when it is ready", n)
	}
	s.must(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "metadata[a]=b")
}

func TestAClockGetsReadyByItself(t *testing.T) {
	t.Parallel()
	s := newShop(t, stripesim.Options{Switches: stripesim.Switches{TestClockAdvanceMS: 20}})
	s.must(http.MethodPost, "/v1/test_helpers/test_clocks/"+s.clock+"/advance", fmt.Sprint("frozen_time=", opened.Add(time.Hour).Unix()))
	deadline := time.After(10 * time.Second)
	for s.State().Counts["event"] < 5 { // product, clock, advancing, ready and no call in between
		select {
		case <-deadline:
			t.Fatalf("after ten seconds there are %v", s.State().Counts)
		case <-time.After(10 * time.Millisecond):
		}
		if len(s.events("test_helpers.test_clock.ready")) == 1 {
			break
		}
	}
}

func TestAClocksLifeIsTold(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	sub := s.subscribe("items[0][price]=" + s.price(""))
	began := s.Now().Unix()
	s.advance(opened.AddDate(0, 0, 40))
	for _, kind := range []string{"created", "advancing", "ready"} {
		told := s.events("test_helpers.test_clock." + kind)
		if len(told) != 1 || told[0]["object"].(map[string]any)["id"] != s.clock {
			t.Errorf("%s is told %d times", kind, len(told))
		}
	}
	if got := s.events("test_helpers.test_clock.advancing")[0]["previous_attributes"]; fmt.Sprint(got) != fmt.Sprintf("map[frozen_time:%d status:ready]", opened.Unix()) {
		t.Errorf("what was before is %v", got)
	}
	raw := s.must(http.MethodGet, "/v1/events", "type=customer.subscription.updated")["data"].([]any)[0].(map[string]any)
	object := raw["data"].(map[string]any)["object"].(map[string]any)
	if at := wholeIn(raw["created"]); at < began || at > began+60 || wholeIn(object["created"]) != opened.Unix() {
		t.Errorf("the event is of %d, its subscription of %v", at, object["created"])
	}
	clock := s.must(http.MethodGet, "/v1/test_helpers/test_clocks", "")["data"].([]any)[0].(map[string]any)
	if wholeIn(clock["deletes_after"]) != wholeIn(clock["created"])+7*86400 {
		t.Errorf("the clock is %v", clock)
	}
	gone := s.must(http.MethodDelete, "/v1/test_helpers/test_clocks/"+s.clock, "")
	customer := s.must(http.MethodGet, "/v1/customers/"+sub["customer"].(string), "")
	if gone["deleted"] != true || customer["deleted"] != true || s.sub(idIn(sub))["status"] != "canceled" {
		t.Errorf("deletion gives %v and the customer %v", gone, customer)
	}
	s.refused(s.call(http.MethodGet, "/v1/test_helpers/test_clocks/"+s.clock, ""), 404, "invalid_request_error", "resource_missing", "test_clock")
	other := s.make("/v1/test_helpers/test_clocks", "frozen_time=1")
	s.Advance(7*24*time.Hour + time.Second)
	s.refused(s.call(http.MethodGet, "/v1/test_helpers/test_clocks/"+other, ""), 404, "invalid_request_error", "resource_missing", "test_clock")
}

// TestBillingSurvivesARestart ends the process in the middle of a period, and while
// a clock advances.
func TestBillingSurvivesARestart(t *testing.T) {
	t.Parallel()
	o := stripesim.Options{Dir: t.TempDir(), Switches: stripesim.Switches{TestClockAdvanceMS: 0}}
	first, err := stripesim.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	var clock, item, sub string
	serve := func(server *stripesim.Server, do func(s *shop)) {
		t.Helper()
		listener := listenFor(t, server)
		do(&shop{user: &user{Sim: &stripesim.Sim{Server: server, URL: listener, Key: "sk_test_x"}, t: t}, clock: clock, now: opened})
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	serve(first, func(s *shop) {
		s.product = s.make("/v1/products", "name=Gold")
		s.clock = s.make("/v1/test_helpers/test_clocks", fmt.Sprint("frozen_time=", opened.Unix()))
		made := s.subscribe("items[0][price]=" + s.price(legacyMetered+"&recurring[aggregate_usage]=last_ever"))
		clock, item, sub = s.clock, idIn(itemsIn(made)[0]), idIn(made)
		s.reported(item, "quantity=9", opened)
		s.advance(opened.AddDate(0, 0, 30))
		s.reported(item, "quantity=4", s.now)
		s.must(http.MethodPost, "/_sim/switches", `{"test_clock_advance_ms": 3600000}`)
		s.must(http.MethodPost, "/v1/test_helpers/test_clocks/"+clock+"/advance", fmt.Sprint("frozen_time=", opened.AddDate(0, 0, 61).Unix()))
	})
	second, err := stripesim.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	serve(second, func(s *shop) {
		if got := s.totals(item); got != "4, 9 billed" {
			t.Errorf("after the restart the periods hold %s", got)
		}
		s.Advance(time.Hour)
		if got := s.totals(item); got != "4, 4 billed, 9 billed" {
			t.Errorf("when the clock is ready they hold %s", got)
		}
		if end := s.sub(sub)["current_period_end"]; dayIn(end) != "240430" {
			t.Errorf("the period ends %s", dayIn(end))
		}
	})
}

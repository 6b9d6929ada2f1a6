package stripesim_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

func TestMeterEventsThatAreRefused(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	now := m.clock.Now().Unix()
	m.use("1", m.clock.Now()) // event-1
	payload := "&payload[stripe_customer_id]=" + m.customer + "&payload[value]="
	for _, tc := range []struct{ form, code, param, message string }{
		{"", "parameter_missing", "event_name", "Missing required param: event_name."},
		{"event_name=calls", "parameter_missing", "payload", "Missing required param: payload."},
		{"event_name=" + strings.Repeat("x", 101) + payload + "1", "", "event_name", "must be at most 100 characters"},
		{"event_name=calls&payload=x", "", "payload", "Invalid object"},
		{"event_name=calls&payload[value][x]=1", "", "payload[value]", ""},
		{"event_name=calls&timestamp=soon" + payload + "1", "parameter_invalid_integer", "timestamp", "Invalid integer: soon"},
		{"event_name=calls&value=1" + payload + "1", "parameter_unknown", "value", "Received unknown parameter: value"},
		{"event_name=calls&identifier=" + strings.Repeat("x", 101) + payload + "1", "", "identifier", "must be at most 100 characters"},
		{"event_name=calls" + payload + strings.Repeat("1", 101), "", "payload[value]", "must be at most 100 characters"},
		{
			fmt.Sprintf("event_name=calls&timestamp=%d%s1", now-35*86400-1, payload), "timestamp_too_far_in_past", "timestamp",
			fmt.Sprintf("The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to %d.", now-35*86400),
		},
		{fmt.Sprintf("event_name=calls&timestamp=%d%s1", now+301, payload), "timestamp_in_future", "timestamp", ""},
		{"event_name=calls&identifier=event-1" + payload + "5", "", "identifier", "An event already exists with identifier event-1."},
		{"event_name=other&identifier=event-1" + payload + "5", "", "identifier", "An event already exists with identifier event-1."},
		{"event_name=calls" + payload + "many", "meter_event_invalid_value", "payload", ""},
		{"event_name=calls" + payload + "1e3", "meter_event_invalid_value", "payload", ""},
		{"event_name=calls" + payload + "0.1234567890123", "meter_event_invalid_value", "payload", ""},
		{"event_name=calls" + payload + strings.Repeat("9", 40), "meter_event_invalid_value", "payload", ""},
	} {
		a := m.call(http.MethodPost, "/v1/billing/meter_events", tc.form)
		m.refused(a, http.StatusBadRequest, badRequest, tc.code, tc.param)
		if !strings.Contains(a.Raw, tc.message) {
			t.Errorf("%s says %s, want %q", tc.form, a.Raw, tc.message)
		}
		if strings.HasPrefix(tc.message, "An event already") && a.Header.Get("Stripe-Should-Retry") != "false" {
			t.Error("a duplicate may be retried")
		}
	}
	m.wantTotal("1", "after refusals")
	m.must(http.MethodPost, "/_sim/switches", `{"duplicate_event_code": "duplicate_meter_event", "whole_meter_values": true}`)
	m.refused(m.event("5", "identifier=event-1"), http.StatusBadRequest, badRequest, "duplicate_meter_event", "identifier")
	m.refused(m.event("5.0", ""), http.StatusBadRequest, badRequest, "meter_event_invalid_value", "payload")
}

func TestMeterEventsAtTheEdges(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	m.clock.Advance(999 * time.Millisecond)
	now := m.clock.Now()
	m.use("0.000000000001", now.Add(-35*24*time.Hour))
	m.use("-0.5", now.Add(5*time.Minute))
	m.use("99999999999999999999999999", now)
	if a := m.event("99999999999999999999999999", ""); a.Status != http.StatusBadRequest {
		t.Errorf("more than can be summed is answered %d", a.Status)
	}
	m.wantTotal("99999999999999999999999998.500000000001", "at the edges")
	a := m.event("1", "identifier="+strings.Repeat("é", 100))
	if a.Status != http.StatusOK || a.Body["timestamp"] != a.Body["created"] || a.Body["livemode"] != false {
		t.Errorf("an identifier of 100 characters is answered %s", a.Raw)
	}
	a = m.event("1", "identifier=")
	if id, _ := a.Body["identifier"].(string); a.Status != http.StatusOK || id == "" {
		t.Errorf("an event without an identifier is answered %s", a.Raw)
	}
	if p, _ := a.Body["payload"].(map[string]any); len(p) != 2 || p["value"] != "1" {
		t.Errorf("the payload of %s is not what was sent", a.Raw)
	}
}

// TestIdentifiersAreForgotten: after 24 hours an identifier counts a second time,
// which is how a careless client bills twice.
func TestIdentifiersAreForgotten(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		extra, wait time.Duration
		total       string
	}{
		{0, 24*time.Hour - 1, "1"},
		{0, 24 * time.Hour, "2"},
		{24 * time.Hour, 24*time.Hour - 1, "1"},
		{24 * time.Hour, 48*time.Hour + time.Second, "2"},
	} {
		m := newMetering(t, stripesim.Switches{MemoryExtraSeconds: int64(tc.extra.Seconds())}, newMeter+"sum")
		m.event("1", "identifier=same")
		m.clock.Advance(tc.wait)
		again := m.event("1", "identifier=same")
		if (again.Status == http.StatusOK) != (tc.total == "2") {
			t.Errorf("after %s it is answered %s", tc.wait, again.Raw)
		}
		m.wantTotal(tc.total, "after "+tc.wait.String())
		if tc.total == "2" {
			m.refused(m.event("1", "identifier=same"), http.StatusBadRequest, badRequest, "", "identifier")
			if a := m.cancel("same"); a.Status != http.StatusOK {
				t.Errorf("the second event is not cancelled: %s", a.Raw)
			}
			m.wantTotal("1", "after a cancellation of the second")
		}
	}
}

func TestFormulas(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ meter, total string }{
		{newMeter + "sum", "3.5"},
		{newMeter + "count", "4"},
		{newMeter + "last", "7"},
		{newMeter + "sum&event_time_window=hour", "5"}, // 12:00 -2, 11:00 7
		{newMeter + "count&event_time_window=hour", "2"},
		{newMeter + "sum&event_time_window=day", "7"},
		{newMeter + "last&event_time_window=hour", "-2"},
	} {
		m := newMetering(t, stripesim.Switches{FormulaLast: true}, tc.meter)
		noon := m.clock.Now().Truncate(time.Hour)
		m.use("0.5", noon.Add(10*time.Minute))
		m.use("-2", noon.Add(5*time.Minute))
		m.use("-2", noon.Add(-time.Second))
		m.use("7", noon.Add(-time.Second))
		if strings.Contains(tc.meter, "last") && !strings.Contains(tc.meter, "window") {
			tc.total = "0.5" // the latest by its own time
		}
		m.wantTotal(tc.total, tc.meter)
	}
}

// TestCountsNeedNoValue: a meter that counts takes events without a value, and
// does not look at one.
func TestCountsNeedNoValue(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"count&customer_mapping[type]=by_id&customer_mapping[event_payload_key]=who&value_settings[event_payload_key]=much")
	m.must(http.MethodPost, "/v1/billing/meter_events", "event_name=calls&payload[who]="+m.customer)
	m.must(http.MethodPost, "/v1/billing/meter_events", "event_name=calls&payload[much]=5&payload[who]="+m.customer)
	m.must(http.MethodPost, "/v1/billing/meter_events", "event_name=calls&payload[stripe_customer_id]="+m.customer) // of nobody
	m.wantTotal("2", "by its own keys")
}

// TestTheLastOfAWindowWins: cancelling the last one of a pre-aggregated window
// brings back the one before it, as long as it is known.
func TestTheLastOfAWindowWins(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum&event_time_window=hour")
	noon := m.clock.Now().Truncate(time.Hour)
	first := m.use("10", noon.Add(29*time.Minute))
	second := m.use("20", noon)
	third := m.use("30", noon.Add(time.Minute))
	m.use("1", noon.Add(-time.Second)) // the window before
	m.wantTotal("31", "with three in one hour")
	m.cancel(second)
	m.wantTotal("31", "after one that does not count was cancelled")
	m.cancel(third)
	m.wantTotal("11", "after the last was cancelled")
	m.clock.Advance(20 * time.Hour)
	fourth := m.use("40", noon)
	m.clock.Advance(5 * time.Hour) // the first is forgotten
	m.refused(m.cancel(first), http.StatusBadRequest, badRequest, "resource_missing", "cancel[identifier]")
	m.wantTotal("41", "with a late one")
	m.cancel(fourth)
	m.wantTotal("11", "after the late one was cancelled")
	m.use("50", noon)
	m.wantTotal("51", "with another")
}

func TestAdjustments(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	other := m.make("/v1/billing/meters", "display_name=x&event_name=other&default_aggregation[formula]=sum")
	id := m.use("5", m.clock.Now())
	m.use("7", m.clock.Now())
	path := "/v1/billing/meter_event_adjustments"
	for _, tc := range []struct{ form, code, param string }{
		{"", "parameter_missing", "event_name"},
		{"event_name=calls", "parameter_missing", "type"},
		{"event_name=calls&type=cancel", "parameter_missing", "cancel[identifier]"},
		{"event_name=calls&type=cancel&cancel[identifier]=", "parameter_missing", "cancel[identifier]"},
		{"event_name=calls&type=cancel&cancel[from]=1", "parameter_unknown", "cancel[from]"},
		{"event_name=calls&type=range&cancel[identifier]=" + id, "", "type"},
		{"event_name=calls&type=cancel&cancel[identifier]=" + strings.Repeat("x", 101), "", "cancel[identifier]"},
		{"event_name=calls&type=cancel&cancel[identifier]=none", "resource_missing", "cancel[identifier]"},
		{"event_name=other&type=cancel&cancel[identifier]=" + id, "resource_missing", "cancel[identifier]"},
	} {
		m.refused(m.call(http.MethodPost, path, tc.form), http.StatusBadRequest, badRequest, tc.code, tc.param)
	}
	m.wantTotal("12", "after refusals")
	a := m.cancel(id)
	if a.Status != http.StatusOK || a.Body["status"] != "pending" || a.Body["cancel"].(map[string]any)["identifier"] != id {
		t.Errorf("the adjustment is %s", a.Raw)
	}
	m.wantTotal("7", "after a cancellation")
	m.cancel(id)
	m.wantTotal("7", "after the same again")
	m.refused(m.event("5", "identifier="+id), http.StatusBadRequest, badRequest, "", "identifier") // a cancelled identifier is not free
	if st := m.State().MeterEvents; st != (stripesim.MeterCounts{Accepted: 2, Canceled: 1}) {
		t.Errorf("the counts are %+v", st)
	}
	m.must(http.MethodPost, "/_sim/switches", `{"adjustments_complete": true, "refuse_second_adjustment": true, "adjustment_lag_seconds": 60, "memory_extra_seconds": 86400}`)
	m.refused(m.cancel(id), http.StatusBadRequest, badRequest, "", "cancel[identifier]")
	late := m.use("100", m.clock.Now())
	if a := m.cancel(late); a.Body["status"] != "complete" {
		t.Errorf("the adjustment is %s", a.Raw)
	}
	m.refused(m.cancel(late), http.StatusBadRequest, badRequest, "", "cancel[identifier]")
	m.clock.Advance(time.Minute - 1)
	m.wantTotal("107", "before the cancellation settles")
	m.clock.Advance(1)
	m.wantTotal("7", "after it has settled")
	last := m.use("1", m.clock.Now())
	m.clock.Advance(24*time.Hour + 1)
	m.refused(m.cancel(last), http.StatusBadRequest, badRequest, "resource_missing", "cancel[identifier]")
	m.must(http.MethodPost, "/v1/billing/meters/"+other+"/deactivate", "")
}

func TestMeterEventsLag(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{MeterLagSeconds: 60}, newMeter+"sum")
	m.use("1", m.clock.Now())
	dropped := m.use("10", m.clock.Now())
	m.cancel(dropped)
	m.clock.Advance(time.Minute - 1)
	m.wantTotal("0", "before the lag is over")
	if st := m.State().MeterEvents; st != (stripesim.MeterCounts{Accepted: 2, Canceled: 1, Lagging: 1}) {
		t.Errorf("the counts are %+v", st)
	}
	m.clock.Advance(1)
	m.wantTotal("1", "after the lag")

	m.must(http.MethodPost, "/_sim/switches", `{"meter_lag_seconds": 0, "meter_lag_jitter_seconds": 600}`)
	for range 100 {
		m.use("1", m.clock.Now())
	}
	seen := map[string]bool{}
	for range 601 {
		m.clock.Advance(time.Second)
		seen[m.total()] = true
	}
	if m.wantTotal("101", "after the longest lag"); len(seen) < 40 {
		t.Errorf("100 events with a lag of up to 600 s came in %d steps", len(seen))
	}
}

// TestAWindowsLastIsTheLastReceived: lag must not let an older event win.
func TestAWindowsLastIsTheLastReceived(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{MeterLagSeconds: 60}, newMeter+"sum&event_time_window=day")
	m.use("1", m.clock.Now())
	m.must(http.MethodPost, "/_sim/switches", `{"meter_lag_seconds": 0}`)
	m.use("2", m.clock.Now())
	m.wantTotal("2", "while the first lags")
	m.clock.Advance(time.Minute)
	m.wantTotal("2", "after the first has come in")
}

// TestOneEventAtATimePerCustomerAndMeter: a slow call is under way until it has
// ended, also for a client that gave up waiting and asks again.
func TestOneEventAtATimePerCustomerAndMeter(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	second := m.make("/v1/customers", "")
	m.make("/v1/billing/meters", "display_name=x&event_name=other&default_aggregation[formula]=sum")
	if err := m.AddFaults(&stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "slow", Times: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		form := "event_name=calls&payload[stripe_customer_id]=" + m.customer + "&payload[value]=1000"
		r, _ := http.NewRequestWithContext(ctx, http.MethodPost, m.URL+"/v1/billing/meter_events", strings.NewReader(form))
		r.Header.Set("Authorization", "Bearer "+m.Key)
		if response, err := http.DefaultClient.Do(r); err == nil {
			_ = response.Body.Close()
		}
	}()
	for !strings.Contains(m.call(http.MethodGet, "/_sim/faults", "").Raw, `"hits":1`) {
		time.Sleep(time.Millisecond)
	}
	a, taken := m.event("1", ""), 0
	for ; a.Status == http.StatusOK && taken < 1000; taken++ { // the slow one is on its way
		a = m.event("1", "")
	}
	m.refused(a, http.StatusTooManyRequests, badRequest, "rate_limit", "")
	if reason := a.Header.Get("Stripe-Rate-Limited-Reason"); reason != "resource-specific" {
		t.Errorf("the reason is %q", reason)
	}
	m.must(http.MethodPost, "/v1/billing/meter_events", "event_name=calls&payload[value]=1&payload[stripe_customer_id]="+second)
	m.must(http.MethodPost, "/v1/billing/meter_events", "event_name=other&payload[value]=1&payload[stripe_customer_id]="+m.customer)
	m.wantTotal(fmt.Sprint(taken), "while the slow call is under way")
	giveUp()
	<-ended
	for m.event("1", "").Status == http.StatusTooManyRequests {
		time.Sleep(time.Millisecond)
	}
	m.wantTotal(fmt.Sprint(1000+taken+1), "once the slow call had ended")
}

func TestMeterEventsPerSecond(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{MeterEventsPerSecond: 3}, newMeter+"sum")
	for second := range 2 {
		for i := range 5 {
			a := m.event("1", "")
			if i < 3 && a.Status != http.StatusOK {
				t.Errorf("event %d of second %d is answered %s", i, second, a.Raw)
			}
			if i >= 3 {
				m.refused(a, http.StatusTooManyRequests, badRequest, "rate_limit", "")
				if reason := a.Header.Get("Stripe-Rate-Limited-Reason"); reason != "endpoint-rate" {
					t.Errorf("the reason is %q", reason)
				}
			}
		}
		m.clock.Advance(time.Second)
	}
	m.wantTotal("6", "at three a second")
}

// TestMetersSurviveTheirProcess: after a restart all is as if there had been none.
func TestMetersSurviveTheirProcess(t *testing.T) {
	t.Parallel()
	dir, clock := t.TempDir(), newMeterClock()
	start := func() *metering {
		server, err := stripesim.NewServer(stripesim.Options{Dir: dir, Clock: clock, Switches: stripesim.Switches{MeterLagSeconds: 60, AdjustmentLagSeconds: 600}})
		if err != nil {
			t.Fatal(err)
		}
		h := httptest.NewServer(server)
		t.Cleanup(h.Close)
		return &metering{user: &user{Sim: &stripesim.Sim{Server: server, URL: h.URL, Key: "sk_test_1"}, t: t}, clock: clock}
	}
	m := start()
	m.meter, m.customer = m.make("/v1/billing/meters", newMeter+"sum&event_time_window=hour"), m.make("/v1/customers", "")
	m.use("1.5", clock.Now().Add(-2*time.Hour))
	m.use("100", clock.Now())
	canceled := m.use("200", clock.Now())
	clock.Advance(time.Minute)
	m.cancel(canceled)
	m.use("0.000000000001", clock.Now().Add(-time.Hour)) // lags
	m.call(http.MethodPost, "/v1/billing/meter_events", "event_name=none&identifier=reported&payload[value]=1")
	before := m.State()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	after := start()
	after.meter, after.customer, after.sent = m.meter, m.customer, m.sent
	if got := after.State(); fmt.Sprint(got.Meters, got.MeterEvents) != fmt.Sprint(before.Meters, before.MeterEvents) {
		t.Errorf("%+v has become %+v", before, got)
	}
	after.refused(after.event("1", "identifier="+canceled), http.StatusBadRequest, badRequest, "", "identifier")
	after.wantTotal("201.5", "after a restart")
	clock.Advance(time.Minute)
	after.wantTotal("201.500000000001", "after the lag")
	clock.Advance(9 * time.Minute)
	after.wantTotal("101.500000000001", "after the cancellation settled")
	if reports := after.State().MeterErrors; len(reports) != 1 || !strings.Contains(fmt.Sprint(reports), "reported") {
		t.Errorf("the reports are %v", reports)
	}
	if err := after.Close(); err != nil {
		t.Fatal(err)
	}
}

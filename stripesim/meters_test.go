package stripesim_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/stripesim"
)

const badRequest = "invalid_request_error"

// meterClock moves only when it is told to.
type meterClock struct {
	mu  sync.Mutex
	now time.Time
}

func newMeterClock() *meterClock {
	return &meterClock{now: time.Date(2024, 3, 31, 12, 30, 30, 0, time.UTC)}
}

// Now is stripesim.Clock.
func (c *meterClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance is stripesim.Clock.
func (c *meterClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

const newMeter = "display_name=Calls&event_name=calls&default_aggregation[formula]="

func TestMetersThatCannotBeMade(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.make("/v1/billing/meters", "display_name=Taken&event_name=taken&default_aggregation[formula]=sum")
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, tc := range []struct{ form, code, param, message string }{
		{"", "parameter_missing", "display_name", "Missing required param: display_name."},
		{"display_name=a", "parameter_missing", "event_name", "Missing required param: event_name."},
		{"display_name=a&event_name=", "parameter_missing", "event_name", "Missing required param: event_name."},
		{"display_name=a&event_name=b", "parameter_missing", "default_aggregation", "Missing required param: default_aggregation."},
		{"display_name=a&event_name=b&default_aggregation[formula]=", "parameter_missing", "default_aggregation[formula]", "Missing required param: default_aggregation[formula]."},
		{newMeter + "max", "", "default_aggregation[formula]", "Invalid default_aggregation[formula]: must be one of count or sum"},
		{newMeter + "last", "", "default_aggregation[formula]", "Invalid default_aggregation[formula]: must be one of count or sum"},
		{newMeter + "sum&event_time_window=minute", "", "event_time_window", "Invalid event_time_window: must be one of day or hour"},
		{newMeter + "sum&customer_mapping[type]=by_id", "parameter_missing", "customer_mapping[event_payload_key]", ""},
		{newMeter + "sum&customer_mapping[event_payload_key]=c", "parameter_missing", "customer_mapping[type]", ""},
		{newMeter + "sum&customer_mapping[event_payload_key]=c&customer_mapping[type]=by_email", "", "customer_mapping[type]", ""},
		{newMeter + "sum&customer_mapping[type]=by_id&customer_mapping[event_payload_key]=" + x(101), "", "customer_mapping[event_payload_key]", ""},
		{newMeter + "sum&value_settings[event_payload_key]=", "parameter_missing", "value_settings[event_payload_key]", ""},
		{newMeter + "sum&value_settings[event_payload_key]=" + x(101), "", "value_settings[event_payload_key]", ""},
		{"display_name=" + x(251) + "&event_name=b&default_aggregation[formula]=sum", "", "display_name", "Invalid string: xxxxxxxxxxxxxxxxxxxx...; must be at most 250 characters"},
		{"display_name=a&event_name=" + x(101) + "&default_aggregation[formula]=sum", "", "event_name", ""},
		{newMeter + "sum&dimension=d", "parameter_unknown", "dimension", "Received unknown parameter: dimension"},
		{"display_name=a&event_name=taken&default_aggregation[formula]=sum", "resource_already_exists", "event_name", "An active meter with the event name `taken` already exists."},
	} {
		a := u.call(http.MethodPost, "/v1/billing/meters", tc.form)
		u.refused(a, http.StatusBadRequest, badRequest, tc.code, tc.param)
		if !strings.Contains(a.Raw, tc.message) {
			t.Errorf("%s says %s, want %q", tc.form, a.Raw, tc.message)
		}
	}
	if n := len(u.firstPage("/v1/billing/meters", "")); n != 1 {
		t.Errorf("refused calls made %d meters", n-1)
	}
	u.make("/v1/billing/meters", "display_name="+x(250)+"&event_name="+strings.Repeat("é", 100)+"&default_aggregation[formula]=count&event_time_window=day")
}

// firstPage reads the first page of a list.
func (u *user) firstPage(path, form string) []map[string]any {
	u.t.Helper()
	data, _ := u.must(http.MethodGet, path, form)["data"].([]any)
	rows := make([]map[string]any, len(data))
	for i := range data {
		rows[i], _ = data[i].(map[string]any)
	}
	return rows
}

func TestLifeOfAMeter(t *testing.T) {
	t.Parallel()
	clock := newMeterClock()
	u := newUser(t, stripesim.Options{Clock: clock})
	path := "/v1/billing/meters/"
	for _, verb := range []string{"", "/deactivate", "/reactivate"} {
		u.refused(u.call(http.MethodPost, path+"mtr_none"+verb, ""), http.StatusNotFound, badRequest, "resource_missing", "id")
	}
	u.refused(u.call(http.MethodGet, path+"mtr_none", ""), http.StatusNotFound, badRequest, "resource_missing", "id")
	u.refused(u.call(http.MethodGet, "/v1/billing/meters", "status=closed"), http.StatusBadRequest, badRequest, "", "status")

	id := u.make("/v1/billing/meters", newMeter+"sum")
	u.refused(u.call(http.MethodPost, path+id, "event_name=other"), http.StatusBadRequest, badRequest, "parameter_unknown", "event_name")
	u.refused(u.call(http.MethodPost, path+id, "display_name="), http.StatusBadRequest, badRequest, "parameter_invalid_empty", "display_name")
	u.refused(u.call(http.MethodPost, path+id, "display_name="+strings.Repeat("x", 251)), http.StatusBadRequest, badRequest, "", "display_name")
	u.refused(u.call(http.MethodPost, path+id+"/reactivate", ""), http.StatusBadRequest, badRequest, "", "")
	clock.Advance(time.Minute)
	if m := u.must(http.MethodPost, path+id, "display_name=All+calls"); m["display_name"] != "All calls" || fmt.Sprint(m["updated"]) != fmt.Sprint(clock.Now().Unix()) {
		t.Errorf("renamed, it is %v", m)
	}
	m := u.must(http.MethodPost, path+id+"/deactivate", "")
	if at := m["status_transitions"].(map[string]any)["deactivated_at"]; m["status"] != "inactive" || fmt.Sprint(at) != fmt.Sprint(clock.Now().Unix()) {
		t.Errorf("archived, it is %v", m)
	}
	u.refused(u.call(http.MethodPost, path+id+"/deactivate", ""), http.StatusBadRequest, badRequest, "", "")
	second := u.make("/v1/billing/meters", newMeter+"count")
	u.refused(u.call(http.MethodPost, path+id+"/reactivate", ""), http.StatusBadRequest, badRequest, "resource_already_exists", "event_name")
	u.must(http.MethodPost, path+second+"/deactivate", "")
	m = u.must(http.MethodPost, path+id+"/reactivate", "")
	if at := m["status_transitions"].(map[string]any)["deactivated_at"]; m["status"] != "active" || at != nil {
		t.Errorf("active again, it is %v", m)
	}
	for status, want := range map[string]string{"active": id, "inactive": second} {
		if rows := u.firstPage("/v1/billing/meters", "status="+status); len(rows) != 1 || rows[0]["id"] != want {
			t.Errorf("the %s meters are %v", status, rows)
		}
	}
	if rows := u.firstPage("/v1/events", "type=billing.meter.*"); len(rows) != 0 {
		t.Errorf("events that API 2023-10-16 does not have are raised: %v", rows)
	}
}

func TestMeterEventsAreRaisedBySwitch(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Switches: stripesim.Switches{MeterEventsRaised: true}})
	id := u.make("/v1/billing/meters", newMeter+"sum")
	u.must(http.MethodPost, "/v1/billing/meters/"+id, "display_name=New")
	u.must(http.MethodPost, "/v1/billing/meters/"+id+"/deactivate", "")
	u.must(http.MethodPost, "/v1/billing/meters/"+id+"/reactivate", "")
	var kinds []string
	for _, e := range u.firstPage("/v1/events", "type=billing.meter.*") {
		kinds = append(kinds, fmt.Sprint(e["type"]))
	}
	if got := strings.Join(kinds, " "); got != "billing.meter.reactivated billing.meter.deactivated billing.meter.updated billing.meter.created" {
		t.Errorf("the events are %s", got)
	}
}

// metering is a user with a meter and a customer, on a clock that stands still.
type metering struct {
	*user
	clock           *meterClock
	meter, customer string
	sent            int
}

func newMetering(t testing.TB, switches stripesim.Switches, meter string) *metering {
	t.Helper()
	clock := newMeterClock()
	m := &metering{user: newUser(t, stripesim.Options{Clock: clock, Switches: switches, Seed: 7}), clock: clock}
	m.meter = m.make("/v1/billing/meters", meter)
	m.customer = m.make("/v1/customers", "")
	return m
}

// event posts an event of the customer; more is appended to the form.
func (m *metering) event(value, more string) reply {
	m.t.Helper()
	return m.call(http.MethodPost, "/v1/billing/meter_events", "event_name=calls&payload[stripe_customer_id]="+m.customer+"&payload[value]="+value+"&"+more)
}

// use posts events that have to be accepted.
func (m *metering) use(value string, at time.Time) (identifier string) {
	m.t.Helper()
	m.sent++
	identifier = fmt.Sprintf("event-%d", m.sent)
	if a := m.event(value, fmt.Sprintf("identifier=%s&timestamp=%d", identifier, at.Unix())); a.Status != http.StatusOK {
		m.t.Fatalf("the value %s at %s is answered %d %s", value, at, a.Status, a.Raw)
	}
	return identifier
}

// total is the customer's usage over all time, by the summary.
func (m *metering) total() string {
	m.t.Helper()
	rows := m.firstPage("/v1/billing/meters/"+m.meter+"/event_summaries", "start_time=0&end_time=6000000000&customer="+m.customer)
	if len(rows) != 1 {
		m.t.Fatalf("the summary is %v", rows)
	}
	return fmt.Sprint(rows[0]["aggregated_value"])
}

func (m *metering) wantTotal(want, when string) {
	m.t.Helper()
	if got := m.total(); got != want {
		m.t.Errorf("%s the total is %s, want %s", when, got, want)
	}
}

func (m *metering) cancel(identifier string) reply {
	m.t.Helper()
	return m.call(http.MethodPost, "/v1/billing/meter_event_adjustments", "event_name=calls&type=cancel&cancel[identifier]="+identifier)
}

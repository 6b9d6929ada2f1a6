package stripesim_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// report is a thin event of the v2 API.
type report struct {
	ID      string    `json:"id"`
	Type    string    `json:"type"`
	Object  string    `json:"object"`
	Created time.Time `json:"created"`
	Related *struct {
		ID string `json:"id"`
	} `json:"related_object"`
	Data struct {
		Summary string    `json:"developer_message_summary"`
		Start   time.Time `json:"validation_start"`
		End     time.Time `json:"validation_end"`
		Reason  struct {
			Count int `json:"error_count"`
			Types []struct {
				Code    string `json:"code"`
				Count   int    `json:"error_count"`
				Samples []struct {
					Message string `json:"error_message"`
					Request struct {
						Identifier string `json:"identifier"`
					} `json:"request"`
				} `json:"sample_errors"`
			} `json:"error_types"`
		} `json:"reason"`
	} `json:"data"`
}

func (m *metering) reports() []report {
	m.t.Helper()
	raw, err := json.Marshal(m.State().MeterErrors)
	var reports []report
	if err == nil {
		err = json.Unmarshal(raw, &reports)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return reports
}

// TestWhatIsFoundOutWhen sends each kind of bad event under each setting of the
// switches: refused at once, or accepted, never counted, and reported.
func TestWhatIsFoundOutWhen(t *testing.T) {
	t.Parallel()
	never := stripesim.Switches{MeterErrorsAsync: true}
	always := stripesim.Switches{MeterErrorsSync: true}
	for _, tc := range []struct {
		code, param, form string
		early             bool // found out before the answer unless a switch says otherwise
	}{
		{"no_meter", "payload", "event_name=none&payload[stripe_customer_id]=CUS&payload[value]=1", false},
		{"archived_meter", "payload", "event_name=old&payload[stripe_customer_id]=CUS&payload[value]=1", false},
		{"meter_event_no_customer_defined", "payload", "event_name=calls&payload[value]=1", false},
		{"meter_event_customer_not_found", "payload", "event_name=calls&payload[stripe_customer_id]=cus_none&payload[value]=1", false},
		{"meter_event_customer_not_found", "payload", "event_name=calls&payload[stripe_customer_id]=GONE&payload[value]=1", false},
		{"meter_event_value_not_found", "payload", "event_name=calls&payload[stripe_customer_id]=CUS", false},
		{"meter_event_invalid_value", "payload", "event_name=calls&payload[stripe_customer_id]=CUS&payload[value]=x", true},
		{"timestamp_too_far_in_past", "timestamp", "event_name=calls&payload[stripe_customer_id]=CUS&payload[value]=1&timestamp=1", true},
		{"timestamp_in_future", "timestamp", "event_name=calls&payload[stripe_customer_id]=CUS&payload[value]=1&timestamp=9999999999", true},
	} {
		for _, switches := range []stripesim.Switches{{}, never, always} {
			m := newMetering(t, switches, newMeter+"sum")
			old := m.make("/v1/billing/meters", "display_name=x&event_name=old&default_aggregation[formula]=sum")
			m.must(http.MethodPost, "/v1/billing/meters/"+old+"/deactivate", "")
			gone := m.make("/v1/customers", "")
			m.must(http.MethodDelete, "/v1/customers/"+gone, "")
			a := m.call(http.MethodPost, "/v1/billing/meter_events", "identifier=bad&"+strings.NewReplacer("CUS", m.customer, "GONE", gone).Replace(tc.form))
			m.Advance(10 * time.Second)
			if switches.MeterErrorsSync || (tc.early && !switches.MeterErrorsAsync) {
				m.refused(a, http.StatusBadRequest, badRequest, tc.code, tc.param)
				if n := len(m.reports()); n != 0 || m.State().MeterEvents.Accepted != 0 {
					t.Errorf("%s was refused and still taken", tc.code)
				}
				continue
			}
			if a.Status != http.StatusOK {
				t.Errorf("%s is answered %s", tc.code, a.Raw)
			}
			m.wantTotal("0", tc.code)
			all := m.reports()
			if len(all) != 1 || len(all[0].Data.Reason.Types) != 1 || all[0].Data.Reason.Types[0].Code != tc.code || all[0].Data.Reason.Types[0].Samples[0].Request.Identifier != "bad" {
				t.Errorf("%s is reported as %+v", tc.code, all)
				continue
			}
			related := map[string]string{"no_meter": "", "archived_meter": old}
			want, special := related[tc.code]
			if !special {
				want = m.meter
			}
			if (want == "") != (all[0].Related == nil) || (want != "" && all[0].Related.ID != want) || strings.HasSuffix(all[0].Type, "no_meter_found") != (want == "") {
				t.Errorf("%s is reported of %+v", tc.code, all[0])
			}
		}
	}
}

// TestErrorsShareAReport: ten seconds of errors of one meter come in one report,
// with a few samples only.
func TestErrorsShareAReport(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{ErrorLagSeconds: 5}, newMeter+"sum")
	bodies := make(chan []byte, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- body
	}))
	t.Cleanup(receiver.Close)
	m.make("/v1/webhook_endpoints", "enabled_events[]=v1.billing.meter.error_report_triggered&url="+receiver.URL)
	bad := func(n int) {
		for i := range n {
			m.must(http.MethodPost, "/v1/billing/meter_events", fmt.Sprintf("event_name=calls&identifier=b%d-%d&payload[value]=1", m.clock.Now().UnixNano(), i))
		}
	}
	start := m.clock.Now()
	bad(7)
	m.must(http.MethodPost, "/v1/billing/meter_events", "event_name=calls&identifier=c&payload[stripe_customer_id]="+m.customer)
	m.Advance(9 * time.Second)
	bad(2)
	m.Advance(5*time.Second + 999*time.Millisecond)
	if n := len(m.reports()); n != 0 {
		t.Fatalf("%d reports come before their time", n)
	}
	m.Advance(time.Millisecond)
	all := m.reports()
	if len(all) != 1 {
		t.Fatalf("%d reports, want 1", len(all))
	}
	r := all[0]
	if r.Object != "v2.core.event" || r.Data.Reason.Count != 10 || r.Data.Summary != "There are 10 invalid events" || !r.Data.Start.Equal(start) || !r.Data.End.Equal(start.Add(10*time.Second)) {
		t.Errorf("the report is %+v", r)
	}
	if k := r.Data.Reason.Types; len(k) != 2 || k[0].Count != 9 || len(k[0].Samples) != 3 || k[1].Count != 1 || len(k[1].Samples) != 1 || k[1].Samples[0].Message == "" {
		t.Errorf("the kinds are %+v", k)
	}
	var sent report
	if err := json.Unmarshal(<-bodies, &sent); err != nil || sent.ID != r.ID || sent.Data.Reason.Count != 10 {
		t.Errorf("the webhook is %+v %v", sent, err)
	}
	if got := m.must(http.MethodGet, "/v2/core/events/"+r.ID, ""); got["type"] != r.Type {
		t.Errorf("the event is %v", got)
	}
	bad(1) // opens the next
	if all := m.reports(); len(all) != 1 {
		t.Errorf("the open report is shown: %+v", all)
	}
	m.Advance(30*24*time.Hour - time.Second)
	if all := m.reports(); len(all) != 2 || all[1].Data.Reason.Count != 1 {
		t.Errorf("before 30 days have passed there are %+v", all)
	}
	m.Advance(time.Second)
	if all := m.reports(); len(all) != 1 {
		t.Errorf("after 30 days there are %+v", all)
	}
	m.refused(m.call(http.MethodGet, "/v2/core/events/"+r.ID, ""), http.StatusNotFound, badRequest, "resource_missing", "id")
}

// TestLateErrors: an event that has long counted is found to be invalid.
func TestLateErrors(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	id := m.use("5", m.clock.Now())
	m.use("7", m.clock.Now())
	control := func(form string) reply { return m.call(http.MethodPost, "/_sim/meter_errors", form) }
	for form, want := range map[string]string{
		`{"code": "bad"}`: "archived_meter", `{"code": "no_meter", "identifier": "none"}`: "no meter event", `{"codes": 1}`: "docs/stripesim.md",
	} {
		if a := control(form); a.Status != http.StatusBadRequest || !strings.Contains(a.Raw, want) {
			t.Errorf("%s is answered %d %s", form, a.Status, a.Raw)
		}
	}
	if a := control(`{"code": "meter_event_customer_not_found", "identifier": "` + id + `"}`); a.Status != http.StatusOK {
		t.Fatalf("it is answered %s", a.Raw)
	}
	m.wantTotal("7", "after a late error")
	if a := control(`{"code": "no_meter", "identifier": "` + id + `"}`); a.Status != http.StatusBadRequest {
		t.Errorf("a second late error of an event is answered %s", a.Raw)
	}
	m.cancel(id)
	m.wantTotal("7", "after its cancellation")
	control(`{"code": "meter_event_dimension_count_too_high", "event_name": "other"}`)
	control(`{"code": "missing_dimension_payload_keys", "event_name": "calls", "times": 2}`)
	for range 3 {
		m.use("1", m.clock.Now())
	}
	m.wantTotal("8", "after two planned failures")
	m.Advance(10 * time.Second)
	all := m.reports()
	if len(all) != 1 || all[0].Data.Reason.Count != 3 {
		t.Errorf("the reports are %+v", all)
	}
	if st := m.State().MeterEvents; st != (stripesim.MeterCounts{Accepted: 5, Lost: 3}) {
		t.Errorf("the counts are %+v", st)
	}
	if !slices.Contains(stripesim.MeterErrorCodes, "no_meter") || len(stripesim.MeterErrorCodes) != 10 {
		t.Errorf("the codes are %q", stripesim.MeterErrorCodes)
	}
}

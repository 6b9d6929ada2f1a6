package stripesim_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

func (m *metering) summaries(from, to time.Time, more string) reply {
	m.t.Helper()
	return m.call(http.MethodGet, "/v1/billing/meters/"+m.meter+"/event_summaries", fmt.Sprintf("customer=%s&start_time=%d&end_time=%d&%s", m.customer, from.Unix(), to.Unix(), more))
}

// rows writes a page as start=value, start in hours from a time.
func rows(t *testing.T, a reply, from time.Time) (text, first, last string) {
	t.Helper()
	if a.Status != http.StatusOK {
		t.Fatalf("answered %d %s", a.Status, a.Raw)
	}
	var all []string
	for i, row := range a.Body["data"].([]any) {
		o := row.(map[string]any)
		var start, end int64
		_, _ = fmt.Sscan(fmt.Sprint(o["start_time"]), &start)
		_, _ = fmt.Sscan(fmt.Sprint(o["end_time"]), &end)
		all = append(all, fmt.Sprintf("%d-%d=%s", (start-from.Unix())/3600, (end-from.Unix())/3600, o["aggregated_value"]))
		last, _ = o["id"].(string)
		if i == 0 {
			first = last
		}
	}
	if a.Body["has_more"] == true {
		all = append(all, "more")
	}
	return strings.Join(all, " "), first, last
}

func TestSummariesThatAreRefused(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{SummariesNeedCustomer: true}, newMeter+"sum")
	path := "/v1/billing/meters/" + m.meter + "/event_summaries"
	c := "customer=" + m.customer
	for _, tc := range []struct{ form, code, param string }{
		{"", "parameter_missing", "customer"},
		{c, "parameter_missing", "start_time"},
		{c + "&start_time=0", "parameter_missing", "end_time"},
		{c + "&start_time=x&end_time=60", "parameter_invalid_integer", "start_time"},
		{c + "&start_time=1&end_time=60", "", "start_time"},
		{c + "&start_time=0&end_time=61", "", "end_time"},
		{c + "&start_time=60&end_time=60", "", "end_time"},
		{c + "&start_time=120&end_time=60", "", "end_time"},
		{c + "&start_time=-60&end_time=60", "", "start_time"},
		{c + "&start_time=0&end_time=60000000000000", "", "end_time"},
		{c + "&start_time=0&end_time=60&value_grouping_window=week", "", "value_grouping_window"},
		{c + "&start_time=0&end_time=60&value_grouping_window=", "", "value_grouping_window"},
		{c + "&start_time=60&end_time=3600&value_grouping_window=hour", "", "start_time"},
		{c + "&start_time=0&end_time=3660&value_grouping_window=hour", "", "end_time"},
		{c + "&start_time=3600&end_time=86400&value_grouping_window=day", "", "start_time"},
		{c + "&start_time=0&end_time=60&limit=0", "parameter_invalid_integer", "limit"},
		{c + "&start_time=0&end_time=60&limit=101", "parameter_invalid_integer", "limit"},
		{c + "&start_time=0&end_time=60&starting_after=mtrusg_none", "resource_missing", "starting_after"},
		{c + "&start_time=0&end_time=60&ending_before=mtrusg_test_0x00", "resource_missing", "ending_before"},
		{c + "&start_time=0&end_time=60&created=1", "parameter_unknown", "created"},
		{"customer=cus_none&start_time=0&end_time=60", "resource_missing", "customer"},
	} {
		m.refused(m.call(http.MethodGet, path, tc.form), http.StatusBadRequest, badRequest, tc.code, tc.param)
	}
	m.refused(m.call(http.MethodGet, "/v1/billing/meters/mtr_none/event_summaries", c+"&start_time=0&end_time=60"), http.StatusNotFound, badRequest, "resource_missing", "id")
}

func TestSummariesOfNoUsage(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	from := m.clock.Now().Truncate(24 * time.Hour)
	to := from.Add(24 * time.Hour)
	if got, _, _ := rows(t, m.summaries(from, to, ""), from); got != "0-24=0" {
		t.Errorf("without a window it is %s", got)
	}
	if got, _, _ := rows(t, m.summaries(from, to, "value_grouping_window=hour"), from); got != "" {
		t.Errorf("by the hour it is %s", got)
	}
	id := m.use("5", m.clock.Now())
	m.cancel(id)
	if got, _, _ := rows(t, m.summaries(from, to, "value_grouping_window=hour"), from); got != "" {
		t.Errorf("by the hour, all cancelled, it is %s", got)
	}
	m.must(http.MethodPost, "/_sim/switches", `{"no_zero_summary": true}`)
	if got, _, _ := rows(t, m.summaries(from, to, ""), from); got != "" {
		t.Errorf("with no_zero_summary it is %s", got)
	}
	m.use("5", m.clock.Now())
	m.use("-5", m.clock.Now())
	for _, window := range []string{"", "value_grouping_window=day"} {
		if got, _, _ := rows(t, m.summaries(from, to, window), from); got != "0-24=0" {
			t.Errorf("usage of zero by %q is %s", window, got)
		}
	}
}

func TestSummariesBeginInclusiveAndEndExclusive(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	from := m.clock.Now().Truncate(time.Hour).Add(-time.Hour)
	to := from.Add(time.Minute)
	m.use("1000", from.Add(-time.Second))
	m.use("0.1", from)
	m.use("0.02", to.Add(-time.Second))
	m.use("1000", to)
	for window, want := range map[string]string{"": "0.12", "value_grouping_window=hour": "1000.12"} {
		end := to
		if window != "" {
			end = from.Add(time.Hour)
		}
		a := m.summaries(from, end, window)
		if got := fmt.Sprint(a.Body["data"].([]any)[0].(map[string]any)["aggregated_value"]); got != want {
			t.Errorf("by %q the value is %s, want %s", window, got, want)
		}
	}
}

// TestSummariesByWindowAndPage walks pages both ways, while usage arrives and is
// cancelled in between.
func TestSummariesByWindowAndPage(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	from := m.clock.Now().Truncate(24 * time.Hour).Add(-48 * time.Hour)
	to := from.Add(72 * time.Hour)
	ids := map[int]string{}
	for _, h := range []int{1, 2, 5, 23, 24, 30, 49} {
		ids[h] = m.use(fmt.Sprint(h), from.Add(time.Duration(h)*time.Hour+59*time.Minute+59*time.Second))
	}
	page := func(more string) (string, string, string) { return rows(t, m.summaries(from, to, more), from) }
	if got, _, _ := page("value_grouping_window=day"); got != "48-72=49 24-48=54 0-24=31" {
		t.Errorf("by the day it is %s", got)
	}
	got, _, last := page("value_grouping_window=hour&limit=3")
	if got != "49-50=49 30-31=30 24-25=24 more" {
		t.Errorf("the first page is %s", got)
	}
	m.use("100", from.Add(12*time.Hour)) // in front of the cursor
	m.cancel(ids[24])                    // the cursor's own row is gone
	m.use("7", from.Add(29*time.Hour))   // behind it
	got, first, last := page("value_grouping_window=hour&limit=3&starting_after=" + last)
	if got != "23-24=23 12-13=100 5-6=5 more" {
		t.Errorf("the second page is %s", got)
	}
	got, _, _ = page("value_grouping_window=hour&limit=3&starting_after=" + last)
	if got != "2-3=2 1-2=1" {
		t.Errorf("the last page is %s", got)
	}
	if got, _, _ = page("value_grouping_window=hour&limit=2&ending_before=" + first); got != "30-31=30 29-30=7 more" {
		t.Errorf("the page before is %s", got)
	}
	if got, _, _ = page("value_grouping_window=hour&limit=3&ending_before=" + first); got != "49-50=49 30-31=30 29-30=7" {
		t.Errorf("the whole page before is %s", got)
	}
	m.refused(m.summaries(from, to, "value_grouping_window=day&starting_after="+first), http.StatusBadRequest, badRequest, "resource_missing", "starting_after")
	_, whole, _ := page("")
	for _, param := range []string{"starting_after", "ending_before"} {
		if got, _, _ := page(url.Values{param: {whole}}.Encode()); got != "" {
			t.Errorf("beside the only row there is %s", got)
		}
	}
	if _, again, _ := page(""); again != whole {
		t.Errorf("the row is now called %s, before %s", again, whole)
	}
}

// TestTotalsOfSeveral: usage of one customer and meter is nobody else's.
func TestTotalsOfSeveral(t *testing.T) {
	t.Parallel()
	m := newMetering(t, stripesim.Switches{}, newMeter+"sum")
	m.use("1", m.clock.Now())
	mine := m.customer
	m.customer = m.make("/v1/customers", "")
	m.use("2.5", m.clock.Now())
	m.must(http.MethodDelete, "/v1/customers/"+m.customer, "")
	m.event("4", "") // is not counted any more
	m.wantTotal("2.5", "of a deleted customer")
	m.customer = mine
	m.wantTotal("1", "of the other")
	st := m.State()
	if len(st.Meters) != 2 || st.Meters[0].Total == st.Meters[1].Total || st.Meters[0].EventName != "calls" || st.Meters[0].Meter != m.meter {
		t.Errorf("the state is %+v", st.Meters)
	}
}

package reconcile_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/stripesim"
)

// void voids acme's usage.
func (a *audited) void(id string) (v api.UsageVoid) {
	a.t.Helper()
	a.Want(http.StatusCreated, http.MethodPost, "/v1/usage/"+id+"/void", `{"account": "acme", "reason": "a mistake"}`, &v)
	return v
}

// counted is what Stripe has counted of acme's calls since a time.
func (a *audited) counted(from time.Time) float64 {
	a.t.Helper()
	query := url.Values{
		"customer": {a.Customer}, "start_time": {strconv.FormatInt(from.Truncate(time.Minute).Unix(), 10)},
		"end_time": {strconv.FormatInt(a.Clock.Now().Truncate(time.Minute).Add(time.Minute).Unix(), 10)},
	}
	sum := 0.0
	rows, _ := a.Stripe(http.MethodGet, "/v1/billing/meters/"+a.MeterID+"/event_summaries?"+query.Encode(), nil)["data"].([]any)
	for _, row := range rows {
		total, _ := row.(map[string]any)["aggregated_value"].(float64)
		sum += total
	}
	return sum
}

// TestD13VoidedUsageEndsEqual voids before and after usage was sent, and finds
// nothing at any moment: not before the correction, under way, nor after it.
func TestD13VoidedUsageEndsEqual(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	from := a.Clock.Now().Add(-time.Hour)
	clean := func(moment string, counted float64) {
		t.Helper()
		if found := a.runWith(`{}`); len(found) > 0 {
			t.Errorf("%s: %+v", moment, found)
		}
		if got := a.counted(from); got != counted {
			t.Errorf("%s: Stripe has counted %v, want %v", moment, got, counted)
		}
	}
	a.Use("usage-0002", 5)
	if v := a.void("usage-0002"); v.Stripe != "withdrawn" {
		t.Errorf("before it was sent the void tells Stripe %s", v.Stripe)
	}
	a.Pass(3 * time.Minute)
	a.Sim.Advance(3 * time.Minute)
	clean("never sent", 7)
	a.Use("usage-0003", 4)
	a.Pass(3 * time.Minute)
	a.Sim.Advance(3 * time.Minute)
	clean("sent", 11)
	a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "drop_before"})
	if v := a.void("usage-0003"); v.Stripe != "corrected" || v.Delivery == nil {
		t.Errorf("after it was sent the void tells Stripe %s", v.Stripe)
	}
	a.Await("a try", func() bool { return a.deliveries("ambiguous") > 0 })
	a.Sim.Advance(3 * time.Minute)
	clean("under way", 11)
	a.Sim.ClearFaults()
	a.Pass(20 * time.Minute)
	clean("corrected", 7)
}

// TestAVoidThatIsTooLateIsFound cannot be mended at Stripe, and says so.
func TestAVoidThatIsTooLateIsFound(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	from := a.Clock.Now()
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	a.Sim.Advance(36 * 24 * time.Hour)
	if v := a.void("usage-0002"); v.Stripe != "too_late" || v.Returned != "5" || v.Delivery != nil {
		t.Errorf("the void was answered %+v", v)
	}
	found := a.runWith(fmt.Sprintf(`{"checks": ["usage.totals"], "from": %q}`, from.Add(-time.Hour).Format(time.RFC3339)))
	if len(found) != 1 || found[0].Cause != "void_not_at_stripe" || found[0].Difference != "+5" || found[0].Repair != "" {
		t.Errorf("found were %+v", found)
	}
}

package stripe_test

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"tallystick/internal/stripe"
	"tallystick/stripesim"
)

// TestPeriodsOfUsageRecordsAreReadAsFarAsAsked has 13 periods, more than a page, each
// with its own total.
func TestPeriodsOfUsageRecordsAreReadAsFarAsAsked(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	customer := made(t, sim, "/v1/customers", url.Values{"name": {"acme"}})
	made(t, sim, "/v1/subscriptions", url.Values{"customer": {customer}, "items[0][price]": {metered(t, sim)}})
	items, err := client.SubscriptionItems(t.Context(), customer)
	if err != nil || len(items) != 1 {
		t.Fatalf("%d items, %v", len(items), err)
	}
	item := items[0]
	for i := range 13 {
		called(t, sim, http.MethodPost, "/v1/subscription_items/"+item.ID+"/usage_records", url.Values{"quantity": {string(rune('1' + i%9))}})
		if i < 12 {
			sim.Advance(31*24*time.Hour + time.Hour)
		}
	}
	all, err := client.UsageSummaries(t.Context(), item.ID, time.Time{})
	if err != nil || len(all) != 13 {
		t.Fatalf("%d periods, %v, want 13", len(all), err)
	}
	for i, s := range all {
		if want := int64((12-i)%9 + 1); s.Quantity != want || !s.To.After(s.From) || (s.Invoice == "") != (i == 0) || (i > 0 && !s.To.Equal(all[i-1].From)) {
			t.Errorf("period %d is %+v, want a quantity of %d", i, s, want)
		}
	}
	if !all[12].From.Equal(item.PeriodStart) || !all[12].To.Equal(item.PeriodEnd) {
		t.Errorf("the first period is %+v, the item was in %s to %s", all[12], item.PeriodStart, item.PeriodEnd)
	}
	if two, err := client.UsageSummaries(t.Context(), item.ID, all[2].To); err != nil || len(two) != 2 || two[1] != all[1] {
		t.Errorf("after the third from the end are %+v, %v", two, err)
	}
	if _, err := client.UsageSummaries(t.Context(), "si_nobody", time.Time{}); !stripe.IsMissing(err) {
		t.Errorf("an item that is none gives %v", err)
	}
}

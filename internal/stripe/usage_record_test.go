package stripe_test

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"tallystick/internal/stripe"
	"tallystick/stripesim"
)

// metered makes a product with a legacy metered price.
func metered(t *testing.T, sim *stripesim.Sim) (price string) {
	t.Helper()
	product := made(t, sim, "/v1/products", url.Values{"name": {"calls"}})
	return made(t, sim, "/v1/prices", url.Values{
		"product": {product}, "currency": {"usd"}, "unit_amount": {"2"}, "recurring[interval]": {"month"}, "recurring[usage_type]": {"metered"},
	})
}

// TestItemsOfAllSubscriptionsAreRead has several subscriptions, one with more items
// than its own list shows, and one that is cancelled.
func TestItemsOfAllSubscriptionsAreRead(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	customer := made(t, sim, "/v1/customers", url.Values{"name": {"acme"}})
	want := map[string]bool{}
	values := url.Values{"customer": {customer}}
	for i := range 12 {
		price := metered(t, sim)
		values.Set(fmt.Sprintf("items[%d][price]", i), price)
		want[price] = true
	}
	made(t, sim, "/v1/subscriptions", values)
	limited, gone := metered(t, sim), metered(t, sim)
	want[limited] = true
	made(t, sim, "/v1/subscriptions", url.Values{"customer": {customer}, "items[0][price]": {limited}, "billing_thresholds[amount_gte]": {"100000"}})
	ended := made(t, sim, "/v1/subscriptions", url.Values{"customer": {customer}, "items[0][price]": {gone}})
	called(t, sim, http.MethodDelete, "/v1/subscriptions/"+ended, nil)

	items, err := client.SubscriptionItems(t.Context(), customer)
	if err != nil || len(items) != len(want) {
		t.Fatalf("%d items, %v, want %d", len(items), err, len(want))
	}
	for _, i := range items {
		if !want[i.Price] || i.ID == "" || i.Subscription == "" || i.UsageType != "metered" || i.Aggregate != "sum" || i.Meter != "" ||
			i.Limited != (i.Price == limited) || !i.PeriodEnd.After(i.PeriodStart) || i.PeriodStart.IsZero() {
			t.Errorf("an item is %+v", i)
		}
	}
	if items, err := client.SubscriptionItems(t.Context(), "cus_nobody"); err != nil || len(items) > 0 {
		t.Errorf("nobody has %v, %v", items, err)
	}
}

// TestAUsageRecordIsSetNotAdded sends the same record again, and another total.
func TestAUsageRecordIsSetNotAdded(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	customer := made(t, sim, "/v1/customers", url.Values{"name": {"acme"}})
	made(t, sim, "/v1/subscriptions", url.Values{"customer": {customer}, "items[0][price]": {metered(t, sim)}})
	items, err := client.SubscriptionItems(t.Context(), customer)
	if err != nil || len(items) != 1 {
		t.Fatalf("items are %v, %v", items, err)
	}
	sim.Advance(2 * time.Minute)
	at := sim.Now().Truncate(time.Minute)
	for i, quantity := range []int64{5, 5, 8, 0, 7} {
		record := stripe.UsageRecord{Item: items[0].ID, Action: "set", Quantity: quantity, Timestamp: at, Key: fmt.Sprint("key-", i)}
		if v, _, err := client.SendUsageRecord(t.Context(), record); v != stripe.VerdictDone || err != nil {
			t.Fatalf("record %d: verdict %d, %v", i, v, err)
		}
	}
	for range 2 { // under one key an increment counts once
		record := stripe.UsageRecord{Item: items[0].ID, Action: "increment", Quantity: 1, Timestamp: at, Key: "once"}
		if v, _, err := client.SendUsageRecord(t.Context(), record); v != stripe.VerdictDone || err != nil {
			t.Fatalf("increment: verdict %d, %v", v, err)
		}
	}
	summaries := called(t, sim, http.MethodGet, "/v1/subscription_items/"+items[0].ID+"/usage_record_summaries", nil)
	if total := summaries["data"].([]any)[0].(map[string]any)["total_usage"]; fmt.Sprint(total) != "8" {
		t.Errorf("Stripe counts %v, want 8", total)
	}
	future := stripe.UsageRecord{Item: items[0].ID, Action: "set", Quantity: 1, Timestamp: at.Add(time.Hour), Key: "future"}
	if v, _, err := client.SendUsageRecord(t.Context(), future); v != stripe.VerdictRejected {
		t.Errorf("a time in the future: verdict %d, %v", v, err)
	}
	if v, _, err := client.SendUsageRecord(t.Context(), stripe.UsageRecord{Item: "si_nothing", Action: "set", Timestamp: at, Key: "nothing"}); v != stripe.VerdictRejected || !stripe.IsMissing(err) {
		t.Errorf("no such item: verdict %d, %v", v, err)
	}
}

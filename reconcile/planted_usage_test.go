package reconcile_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"tallystick/api"
)

// usageDefects are those of usage that the first ones do not have.
var usageDefects = []defect{
	{
		"wrong_customer", func(a *audited) {
			a.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/other", `{"overdraft": 100}`, nil)
			a.Want(http.StatusCreated, http.MethodPost, "/v1/usage", `{"id": "usage-0002", "account": "other", "meter": "call", "quantity": 5}`, nil)
			a.vandalise("UPDATE deliveries SET customer = $1 WHERE account = 'other'", a.Customer)
			a.Pass(3 * time.Minute)
		}, "usage.totals", "7", "12", "+5", "0.10 USD", "", false, true,
	},
	{
		"refused_asynchronously", func(a *audited) {
			if err := a.Sim.FailMeterEvents("calls", "meter_event_no_customer_defined", 1); err != nil {
				a.t.Fatal(err)
			}
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
			a.Pass(time.Minute)
		}, "usage.totals", "12", "7", "-5", "0.10 USD", "resend_usage", false, true,
	},
	{
		"cancelled_at_stripe", func(a *audited) {
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
			a.Sim.Advance(time.Hour)
			if found := a.run(); len(found) > 0 {
				a.t.Fatalf("before anything was cancelled: %+v", found)
			}
			a.Stripe(http.MethodPost, "/v1/billing/meter_event_adjustments", url.Values{
				"event_name": {"calls"}, "type": {"cancel"}, "cancel[identifier]": {a.latestDelivery().ID},
			})
		}, "usage.totals", "12", "7", "-5", "0.10 USD", "", false, true,
	},
	{
		"wrong_period", func(a *audited) {
			a.Use("usage-0002", 5)
			a.vandalise("UPDATE deliveries SET bucket = bucket - interval '1 hour' WHERE state = 'pending'")
			a.Pass(3 * time.Minute)
		}, "usage.totals", "12", "7", "-5", "0.00 USD", "", false, true,
	},
	{
		"unknown", func(a *audited) {
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
			a.Stripe(http.MethodPost, "/v1/billing/meter_events", url.Values{
				"event_name": {"calls"}, "payload[stripe_customer_id]": {a.Customer}, "payload[value]": {"-3"}, "identifier": {"foreign"},
				"timestamp": {fmt.Sprint(a.latestDelivery().Bucket.Unix())},
			})
		}, "usage.totals", "12", "9", "-3", "0.06 USD", "", false, true,
	},
	{
		"needs_review", func(a *audited) {
			a.vandalise(`INSERT INTO deliveries (part, account, meter, bucket, sequence, quantity, usages, origin, state, event_name, customer, identifier,
				attempts, next_try_at, error, created_at, updated_at)
				SELECT part, account, meter, bucket, sequence + 1, 2000000, 1, origin, 'needs_review', '', '', identifier || 'x', 1, next_try_at + interval '1 year',
				'planted', created_at, updated_at FROM deliveries`)
		}, "usage.deliveries", "2", "unknown", "", "0.04 USD", "", false, true,
	},
	{
		"deadline_near", func(a *audited) {
			a.vandalise(`INSERT INTO meters (meter, unit, aggregation, stripe_price, stripe_bound_at, rate_version, created_at, updated_at)
				SELECT 'record', unit, aggregation, 'price_x', stripe_bound_at, rate_version, created_at, updated_at FROM meters WHERE meter = 'call'`)
			a.vandalise(`INSERT INTO meter_rates SELECT 'record', version, credits_per_unit, rates, created_at FROM meter_rates WHERE meter = 'call'`)
			a.vandalise(`INSERT INTO subscription_items SELECT part, account, $1, 'price_x', 'si_x', 'sub_x', 'active', false, $2::timestamptz - interval '1 month', $2::timestamptz + interval '30 minutes', $2, $2
				FROM accounts WHERE account = 'acme'`, a.Customer, a.Clock.Now())
			a.vandalise(`INSERT INTO deliveries (part, account, meter, bucket, sequence, quantity, usages, origin, state, event_name, customer, identifier,
				attempts, next_try_at, error, created_at, updated_at, backend)
				SELECT part, account, 'record', bucket, 0, 2000000, 1, origin, 'pending', '', '', identifier || 'x', 1, next_try_at + interval '1 year',
				'planted', created_at - interval '20 minutes', updated_at, 'usage_record' FROM deliveries`)
		}, "usage.deliveries", "2", "unknown", "", "", "", false, true,
	},
	{
		"no_customer", func(a *audited) {
			a.Want(http.StatusOK, http.MethodPut, "/v1/accounts/acme", `{"stripe_customers": []}`, nil)
			a.Use("usage-0002", 5)
			a.Sim.Advance(2 * time.Hour)
		}, "usage.unbilled", "5", "0", "-5", "0.10 USD", "", false, true,
	},
	{
		"billed_to_deleted_customer", func(a *audited) {
			a.Stripe(http.MethodDelete, "/v1/customers/"+a.Customer, nil)
			a.Pass(2 * time.Hour)
		}, "usage.unbilled", "7", "0", "-7", "0.14 USD", "", false, true,
	},
	{
		"archived_meter", func(a *audited) {
			a.Stripe(http.MethodPost, "/v1/billing/meters/"+a.MeterID+"/deactivate", nil)
			a.Pass(2 * time.Hour)
		}, "usage.unbilled", "7", "0", "-7", "0.14 USD", "", false, true,
	},
	{
		"no_price", func(a *audited) {
			a.Stripe(http.MethodPost, "/v1/prices/"+a.usagePrice(), url.Values{"active": {"false"}})
			a.Pass(2 * time.Hour)
		}, "usage.unbilled", "7", "0", "-7", "", "", false, true,
	},
	{
		"no_subscription", func(a *audited) {
			other := a.Make("/v1/customers", url.Values{"name": {"other"}})
			a.Make("/v1/subscriptions", url.Values{"customer": {other}, "items[0][price]": {a.usagePrice()}})
			a.Pass(2 * time.Hour)
		}, "usage.unbilled", "7", "0", "-7", "0.14 USD", "", false, true,
	},
	{
		"unbound", func(a *audited) {
			a.Use("usage-0002", 5)
			a.Want(http.StatusOK, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1}`, nil)
			a.Sim.Advance(2 * time.Hour)
		}, "usage.unbilled", "5", "0", "-5", "", "", false, true,
	},
	{
		"reported_of_others", func(a *audited) {
			if err := a.Sim.FailMeterEvents("calls", "meter_event_no_customer_defined", 1); err != nil {
				a.t.Fatal(err)
			}
			a.Stripe(http.MethodPost, "/v1/billing/meter_events", url.Values{
				"event_name": {"calls"}, "payload[stripe_customer_id]": {a.Customer}, "payload[value]": {"5"}, "identifier": {"foreign"},
			})
			a.Pass(time.Minute)
		}, "usage.errors", "0", "1", "", "", "", false, false,
	},
}

// latestDelivery is what was sent last.
func (a *audited) latestDelivery() (latest api.Delivery) {
	a.t.Helper()
	var list struct{ Data []api.Delivery }
	a.Want(http.StatusOK, http.MethodGet, "/v1/deliveries?limit=500", nil, &list)
	for _, d := range list.Data {
		if d.Bucket.After(latest.Bucket) {
			latest = d
		}
	}
	return latest
}

// usagePrice is the price of the meter at Stripe.
func (a *audited) usagePrice() string {
	a.t.Helper()
	content, err := json.Marshal(a.Stripe(http.MethodGet, "/v1/prices?type=recurring&recurring[meter]="+a.MeterID, nil))
	if err != nil {
		a.t.Fatal(err)
	}
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal(content, &list); err != nil || len(list.Data) == 0 {
		a.t.Fatalf("the prices are %s", content)
	}
	return list.Data[0].ID
}

// TestWhatStripeReportsIsFoundBeforeTotalsAre runs the one check alone: the other
// would take the finding over.
func TestWhatStripeReportsIsFoundBeforeTotalsAre(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	if err := a.Sim.FailMeterEvents("calls", "meter_event_no_customer_defined", 1); err != nil {
		t.Fatal(err)
	}
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	a.Pass(time.Minute)
	found := a.runWith(`{"checks": ["usage.errors"]}`)
	if len(found) != 1 || found[0].Cause != "reported" || found[0].Account != "acme" {
		t.Fatalf("found were %+v", found)
	}
	if found = a.run(); len(found) != 1 || found[0].Cause != "refused_asynchronously" {
		t.Errorf("the totals then found %+v", found)
	}
}

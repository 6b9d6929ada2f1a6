package reconcile_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"tallystick/internal/stripe"
)

// endpoint is the id of our webhook endpoint at Stripe.
func (a *audited) endpoint() string {
	a.t.Helper()
	list, _ := a.Stripe(http.MethodGet, "/v1/webhook_endpoints", nil)["data"].([]any)
	if len(list) != 1 {
		a.t.Fatalf("%d endpoints at Stripe, want 1", len(list))
	}
	e, _ := list[0].(map[string]any)
	return fmt.Sprint(e["id"])
}

// remake puts an endpoint of another kind in the place of ours.
func (a *audited) remake(values url.Values) {
	a.t.Helper()
	id := a.endpoint()
	at := a.Stripe(http.MethodGet, "/v1/webhook_endpoints/"+id, nil)
	a.Stripe(http.MethodDelete, "/v1/webhook_endpoints/"+id, nil)
	values.Set("url", fmt.Sprint(at["url"]))
	a.Stripe(http.MethodPost, "/v1/webhook_endpoints", values)
}

// bind binds a meter that nobody uses to a billing meter of its own.
func (a *audited) bind(values url.Values) (stripeMeter string) {
	a.t.Helper()
	values.Set("display_name", "other")
	values.Set("event_name", "other")
	if values.Get("default_aggregation[formula]") == "" {
		values.Set("default_aggregation[formula]", "sum")
	}
	id := a.Make("/v1/billing/meters", values)
	a.Want(http.StatusCreated, http.MethodPut, "/v1/meters/other", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "other"}}`, nil)
	return id
}

// rebind binds the meter to a price, as its definition would.
func (a *audited) rebind(price string) {
	a.t.Helper()
	a.bind(url.Values{})
	a.vandalise("UPDATE meters SET stripe_event_name = NULL, stripe_price = $1 WHERE meter = 'other'", price)
}

// metered makes a metered price of usage records.
func (a *audited) metered(more url.Values) string {
	a.t.Helper()
	values := url.Values{
		"product": {a.Make("/v1/products", url.Values{"name": {"other"}})}, "currency": {"usd"}, "unit_amount": {"2"},
		"recurring[interval]": {"month"}, "recurring[usage_type]": {"metered"},
	}
	for name, value := range more {
		values[name] = value
	}
	return a.Make("/v1/prices", values)
}

// webhookDefects has one entry per cause of the checks of the inbox, the endpoint
// and the catalog.
var webhookDefects = []defect{
	{
		"event_missed", func(a *audited) {
			a.Control("/_sim/webhooks", `{"lose": {"types": ["customer.deleted"]}}`)
			a.Stripe(http.MethodDelete, "/v1/customers/"+a.Make("/v1/customers", nil), nil)
			a.Settled()
		}, "webhooks.gaps", "0", "1", "+1", "", "feed_event", true, true,
	},
	{
		"event_failed", func(a *audited) {
			a.Control("/_sim/webhooks", `{"lose": {"types": ["customer.deleted"]}}`)
			a.Stripe(http.MethodDelete, "/v1/customers/"+a.Make("/v1/customers", nil), nil)
			a.stored("customer.deleted")
			a.vandalise("UPDATE stripe_events SET state = 'failed', error = 'planted' WHERE type = 'customer.deleted'")
		}, "webhooks.failures", "0 applied", "1", "+1", "", "", false, true,
	},
	{
		"event_refused", func(a *audited) {
			a.Control("/_sim/webhooks", `{"lose": {"types": ["customer.deleted"]}}`)
			a.Stripe(http.MethodDelete, "/v1/customers/"+a.Make("/v1/customers", nil), nil)
			a.stored("customer.deleted")
			a.vandalise("UPDATE stripe_events SET state = 'flagged', error = 'planted' WHERE type = 'customer.deleted'")
		}, "webhooks.failures", "0 applied", "1", "+1", "", "", false, true,
	},
	{
		"event_waiting", func(a *audited) {
			a.Stripe(http.MethodDelete, "/v1/customers/"+a.Make("/v1/customers", nil), nil)
			a.Settled()
			a.vandalise("UPDATE stripe_events SET state = 'pending', error = 'planted', next_try_at = $1 WHERE type = 'customer.deleted'", a.Clock.Now().Add(48*time.Hour))
			a.Sim.Advance(2 * time.Hour)
		}, "webhooks.failures", "0 applied", "1", "+1", "", "", false, true,
	},
	{
		"endpoint_missing", func(a *audited) { a.Stripe(http.MethodDelete, "/v1/webhook_endpoints/"+a.endpoint(), nil) },
		"webhooks.endpoint", "an endpoint that ends in /webhooks/stripe", "none", "-1", "", "", false, false,
	},
	{
		"endpoint_disabled", func(a *audited) {
			a.Stripe(http.MethodPost, "/v1/webhook_endpoints/"+a.endpoint(), url.Values{"disabled": {"true"}})
		}, "webhooks.endpoint", "enabled", "disabled", "0", "", "", false, false,
	},
	{
		"endpoint_version", func(a *audited) {
			a.remake(url.Values{"enabled_events[0]": {"*"}, "api_version": {"2020-08-27"}})
		}, "webhooks.endpoint", stripe.APIVersion, "2020-08-27", "0", "", "", false, false,
	},
	{
		"endpoint_types", func(a *audited) {
			values := url.Values{"api_version": {stripe.APIVersion}}
			for i, kind := range webhookTypes() {
				if kind != "charge.dispute.closed" {
					values.Set("enabled_events["+strconv.Itoa(i)+"]", kind)
				}
			}
			a.remake(values)
		}, "webhooks.endpoint", strconv.Itoa(len(webhookTypes())) + " types", strconv.Itoa(len(webhookTypes())-1) + " types", "-1", "", "", false, false,
	},
	{
		"deliveries_failing", func(a *audited) {
			a.Control("/_sim/webhooks", `{"pause": true}`)
			a.Stripe(http.MethodDelete, "/v1/customers/"+a.Make("/v1/customers", nil), nil)
			a.stored("customer.deleted")
			a.vandalise("UPDATE stripe_events SET source = 'sweep' WHERE type = 'customer.deleted'")
			a.Sim.Advance(2 * time.Hour)
		}, "webhooks.endpoint", "0", "1", "+1", "", "", false, false,
	},
	{
		"meter_missing", func(a *audited) {
			a.Want(http.StatusCreated, http.MethodPut, "/v1/meters/other", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "nowhere"}}`, nil)
		}, "stripe.catalog", "nowhere", "none", "0", "", "", false, false,
	},
	{
		"meter_inactive", func(a *audited) {
			a.Stripe(http.MethodPost, "/v1/billing/meters/"+a.bind(url.Values{})+"/deactivate", nil)
		}, "stripe.catalog", "other", "inactive", "0", "", "", false, false,
	},
	{
		"meter_keys", func(a *audited) { a.bind(url.Values{"value_settings[event_payload_key]": {"tokens"}}) },
		"stripe.catalog", "stripe_customer_id, value", "stripe_customer_id, tokens", "0", "", "", false, false,
	},
	{
		"meter_aggregation", func(a *audited) { a.bind(url.Values{"default_aggregation[formula]": {"count"}}) },
		"stripe.catalog", "sum", "count", "0", "", "", false, false,
	},
	{
		"price_missing", func(a *audited) { a.rebind("price_nowhere") },
		"stripe.catalog", "price_nowhere", "none", "0", "", "", false, false,
	},
	{
		"price_inactive", func(a *audited) {
			price := a.metered(nil)
			a.rebind(price)
			a.Stripe(http.MethodPost, "/v1/prices/"+price, url.Values{"active": {"false"}})
		}, "stripe.catalog", "", "archived", "0", "", "", false, false,
	},
	{
		"price_kind", func(a *audited) { a.rebind(a.metered(url.Values{"recurring[usage_type]": {"licensed"}})) },
		"stripe.catalog", "metered by usage records", "not so", "0", "", "", false, false,
	},
	{
		"customer_missing", func(a *audited) {
			a.Want(http.StatusOK, http.MethodPut, "/v1/accounts/acme", `{"stripe_customers": ["`+a.Customer+`", "cus_nobody"]}`, nil)
			a.Sim.Advance(aDay)
		}, "stripe.catalog", "cus_nobody", "none", "0", "", "", false, false,
	},
	{
		"customer_deleted", func(a *audited) {
			a.Stripe(http.MethodDelete, "/v1/customers/"+a.Customer, nil)
			a.Settled()
			a.Sim.Advance(aDay)
		}, "stripe.catalog", "", "deleted", "0", "", "", false, false,
	},
}

// webhookTypes are those that the auditor says an endpoint needs: written here once
// more, so that a type that is forgotten in one place is found.
func webhookTypes() []string {
	return []string{
		"charge.dispute.closed", "charge.dispute.created", "charge.dispute.funds_reinstated", "charge.dispute.funds_withdrawn", "charge.dispute.updated", "charge.refund.updated",
		"charge.refunded", "checkout.session.async_payment_failed", "checkout.session.async_payment_succeeded", "checkout.session.completed", "credit_note.created",
		"credit_note.updated", "credit_note.voided", "customer.deleted", "invoice.marked_uncollectible", "invoice.paid", "invoice.voided", "payment_intent.canceled",
		"payment_intent.payment_failed", "payment_intent.succeeded", "refund.created", "refund.updated",
	}
}

// stored posts the newest event of a type as Stripe would, and waits until it was applied.
func (a *audited) stored(kind string) {
	a.t.Helper()
	for _, raw := range a.Events(`"` + kind + `"`) {
		var e struct{ Type string }
		if json.Unmarshal(raw, &e) == nil && e.Type == kind {
			if r := a.Webhook(string(raw)); r.Status != http.StatusOK {
				a.t.Fatalf("the webhook was answered %d: %s", r.Status, r.Body)
			}
			a.Await("the event", func() bool {
				var list struct{ Data []struct{ Type string } }
				a.Want(http.StatusOK, http.MethodGet, "/v1/stripe/events?state=pending", nil, &list)
				return len(list.Data) == 0
			})
			return
		}
	}
	a.t.Fatalf("no event %s at Stripe", kind)
}

package stripesim

import (
	"net/http"
	"strings"
	"sync"
)

// expandDepth is how many levels Stripe expands; the data of a list counts as one.
const expandDepth = 4

// answered names the object that the calls below a path answer with.
var answered = map[string]string{
	"balance_transactions": "balance_transaction", "billing/meter_event_adjustments": "billing.meter_event_adjustment",
	"billing/meter_events": "billing.meter_event", "billing/meters": "billing.meter", "billing/meters/{}/event_summaries": "billing.meter_event_summary",
	"charges": "charge", "charges/{}/refunds": "refund", "checkout/sessions": "checkout.session", "checkout/sessions/{}/line_items": "item",
	"coupons": "coupon", "credit_notes": "credit_note", "credit_notes/{}/lines": "credit_note_line_item", "customers": "customer",
	"customers/{}/balance_transactions": "customer_balance_transaction", "customers/{}/payment_methods": "payment_method", "disputes": "dispute",
	"events": "event", "invoiceitems": "invoiceitem", "invoices": "invoice", "invoices/upcoming/lines": "line_item", "invoices/{}/lines": "line_item",
	"payment_intents": "payment_intent", "payment_methods": "payment_method", "plans": "plan", "prices": "price", "products": "product",
	"refunds": "refund", "subscription_items": "subscription_item", "subscription_items/{}/usage_record_summaries": "usage_record_summary",
	"subscription_items/{}/usage_records": "usage_record", "subscriptions": "subscription", "test_helpers/refunds": "refund",
	"test_helpers/test_clocks": "test_helpers.test_clock", "webhook_endpoints": "webhook_endpoint",
}

// expandables is expandableMembers, taken apart once.
var expandables = sync.OnceValue(func() map[string]map[string]string {
	all := map[string]map[string]string{}
	for kind, line := range expandableMembers {
		all[kind] = map[string]string{}
		for _, word := range strings.Fields(line) {
			member, target, _ := strings.Cut(word, ":")
			all[kind][member] = target
		}
	}
	return all
})

// answerOf gives the object that a pattern's calls answer with, and whether they
// answer with a list of them; "" where that is not known.
func answerOf(pattern string) (kind string, list bool) {
	method, path, _ := strings.Cut(pattern, " ")
	parts := strings.Split(strings.TrimPrefix(path, "/v1/"), "/")
	for i, part := range parts {
		if strings.HasPrefix(part, "{") {
			parts[i] = "{}"
		}
	}
	for n := len(parts); n > 0; n-- {
		if kind := answered[strings.Join(parts[:n], "/")]; kind != "" {
			whole := n == len(parts) || parts[len(parts)-1] == "search"
			return kind, whole && method == http.MethodGet
		}
	}
	return "", false
}

// checkExpand refuses what cannot be expanded, before anything is done.
func (c *call) checkExpand() *apiError {
	kind, list := answerOf(c.r.Pattern)
	for _, path := range c.expand {
		if err := checkExpandPath(kind, list, path); err != nil {
			return err
		}
	}
	return nil
}

func checkExpandPath(kind string, list bool, path string) *apiError {
	parts := strings.Split(path, ".")
	if len(parts) > expandDepth {
		return invalid("", "property_expansion_max_depth", "You cannot expand more than %d levels of a property. Property: %s", expandDepth, path)
	}
	if list && parts[0] != "data" {
		return invalid("", "", "This property cannot be expanded (%s). You may want to try expanding 'data.%s' instead.", parts[0], path)
	}
	for _, part := range parts {
		if list && part == "data" {
			list = false
			continue
		}
		members := expandables()[kind]
		if members == nil {
			return nil
		}
		target, ok := members[part]
		if list || !ok {
			return invalid("", "", "This property cannot be expanded (%s).", part)
		}
		kind, list = strings.CutPrefix(target, "[")
	}
	return nil
}

package stripesim_test

import (
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"

	"tallystick/stripesim"
)

// named are parameters that endpoints want before they look for what the path names.
var named = map[string]string{
	"POST /v1/payment_methods/{id}/attach":           "customer=$customer",
	"POST /v1/subscription_items/{id}/usage_records": "quantity=1",
	"GET /v1/billing/meters/{id}/event_summaries":    "customer=cus_nobody&start_time=0&end_time=60",
	"POST /v1/test_helpers/test_clocks/{id}/advance": "frozen_time=1700000001",
	"POST /v1/customers/{id}/balance_transactions":   "amount=1&currency=usd",
}

// TestWhatThePathNamesIsNotFound asks every endpoint of the API for something that
// does not exist.
func TestWhatThePathNamesIsNotFound(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	customer := u.make("/v1/customers", "")
	before, asked := counts(u), 0
	for _, route := range routes(t) {
		method, path, _ := strings.Cut(route, " ")
		if !strings.Contains(path, "{id}") || strings.HasPrefix(path, "/_sim/") {
			continue
		}
		asked++
		form := os.Expand(named[route], func(string) string { return customer })
		path = strings.NewReplacer("{id}", "any_nobody", "{method}", "pm_nobody").Replace(path)
		a := u.call(method, path, form)
		e, _ := a.Body["error"].(map[string]any)
		message, _ := e["message"].(string)
		if a.Status != http.StatusNotFound || e["type"] != invalidRequest || e["code"] != "resource_missing" || e["param"] == nil || !strings.HasPrefix(message, "No such ") || !strings.HasSuffix(message, ": 'any_nobody'") {
			t.Errorf("%s of nobody is answered %d %s", route, a.Status, a.Raw)
		}
	}
	if asked < 60 {
		t.Errorf("only %d endpoints were asked", asked)
	}
	if after := counts(u); !maps.Equal(before, after) {
		t.Errorf("the refusals have made %v", after)
	}
}

// TestWhatAParameterNamesIsABadRequest names, at endpoints that find what their path
// names, other things by parameters that do not exist, and refers to one and the same
// customer by path and by parameter.
func TestWhatAParameterNamesIsABadRequest(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Switches: stripesim.Switches{SummariesNeedCustomer: true}})
	all := paidIntent(u)
	all["customer"], all["gone"] = u.make("/v1/customers", ""), u.make("/v1/customers", "")
	u.must(http.MethodDelete, "/v1/customers/"+all["gone"], "")
	all["price"] = u.make("/v1/prices", "currency=usd&unit_amount=100&product_data[name]=x&recurring[interval]=month")
	all["item"] = u.make("/v1/invoiceitems", "customer="+all["customer"]+"&amount=100&currency=usd")
	all["draft"] = u.make("/v1/invoices", "customer="+all["customer"])
	all["method"] = u.make("/v1/payment_methods", "type=card&card[token]=tok_visa")
	all["open"] = u.make("/v1/payment_intents", "amount=500&currency=usd")
	all["meter"] = u.make("/v1/billing/meters", "display_name=x&event_name=x&default_aggregation[formula]=sum")
	fill := func(s string) string { return filled(all, s) }
	for _, row := range []struct{ call, form, param, message string }{
		{"POST /v1/payment_intents/$open", "customer=cus_nobody", "customer", "No such customer: 'cus_nobody'"},
		{"POST /v1/payment_intents/$open/confirm", "payment_method=pm_nobody", "payment_method", "No such PaymentMethod: 'pm_nobody'"},
		{"POST /v1/payment_intents/$open", "customer=$gone", "customer", "No such customer: '$gone'"},
		{"POST /v1/payment_methods/$method/attach", "customer=$gone", "customer", "No such customer: '$gone'"},
		{"POST /v1/charges/$charge", "customer=cus_nobody", "customer", "No such customer: 'cus_nobody'"},
		{"POST /v1/customers/$customer", "default_source=card_nobody", "default_source", "No such source: 'card_nobody'"},
		{"GET /v1/billing/meters/$meter/event_summaries", "customer=cus_nobody&start_time=0&end_time=60", "customer", "No such customer: 'cus_nobody'"},
		{"GET /v1/customers/$customer/payment_methods", "starting_after=pm_nobody", "starting_after", "No such payment_method: 'pm_nobody'"},
		{"GET /v1/invoices/$draft/lines", "starting_after=il_nobody", "starting_after", "No such line_item: 'il_nobody'"},
		{"POST /v1/subscriptions", "customer=$gone&items[0][price]=$price", "customer", "No such customer: '$gone'"},
		{"POST /v1/subscriptions", "customer=$customer&items[0][price]=price_nobody", "items[0][price]", "No such price: 'price_nobody'"},
	} {
		method, path, _ := strings.Cut(fill(row.call), " ")
		before := counts(u)
		a := u.call(method, path, fill(row.form))
		u.refused(a, http.StatusBadRequest, invalidRequest, "resource_missing", row.param)
		judgeMessage(t, a, fill(row.message), "resource_missing")
		if after := counts(u); !maps.Equal(before, after) {
			t.Errorf("%s %s has changed %v into %v", method, path, before, after)
		}
	}
	for _, call := range []string{"POST", "DELETE"} {
		u.refused(u.call(call, "/v1/customers/"+all["gone"], ""), http.StatusNotFound, invalidRequest, "resource_missing", "id")
	}
}

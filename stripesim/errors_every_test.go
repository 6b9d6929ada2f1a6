package stripesim_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// apiRoutes lists the endpoints of Stripe's API, their path members filled in.
func apiRoutes(t *testing.T) (all [][2]string) {
	t.Helper()
	for _, route := range routes(t) {
		method, path, _ := strings.Cut(route, " ")
		if strings.HasPrefix(path, "/v1/") {
			all = append(all, [2]string{method, strings.NewReplacer("{id}", "any_nobody", "{method}", "pm_nobody").Replace(path)})
		}
	}
	return all
}

// TestEveryEndpointRefuses sends to each endpoint what is refused before it begins:
// parameters that it does not have, versions that are not its own, expansions of
// nothing, and metadata beyond Stripe's limits.
func TestEveryEndpointRefuses(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	u.make("/v1/customers", "")
	before, metadata := counts(u), 0
	for _, route := range apiRoutes(t) {
		method, path := route[0], route[1]
		refused := func(a reply, status int, code, param, message string) {
			t.Helper()
			e, _ := a.Body["error"].(map[string]any)
			if a.Status != status || e["type"] != invalidRequest || fmt.Sprint(e["code"]) != code || fmt.Sprint(e["param"]) != param || !strings.HasPrefix(fmt.Sprint(e["message"]), message) {
				t.Errorf("%s %s is answered %d %s, want %d with the code %s, param %s and %q", method, path, a.Status, a.Raw, status, code, param, message)
			}
		}
		refused(u.call(method, path, "colour=red"), 400, "parameter_unknown", "colour", "Received unknown parameter: colour")
		refused(u.call(method, path, "", "Stripe-Version", "2020-08-27"), 400, "<nil>", "<nil>", "Invalid Stripe API version: 2020-08-27")
		refused(u.call(method, path, "", "Stripe-Version", stripesim.APIVersion+"; other"), 400, "<nil>", "<nil>", "Invalid Stripe API version: ")
		refused(u.call(method, path, "", "Authorization", "Bearer pk_test_1"), 401, "<nil>", "<nil>", "Invalid API Key provided: pk_test_****")
		refused(u.call(method, path, "expand[]=a.b.c.d.e"), 400, "property_expansion_max_depth", "<nil>", "You cannot expand more than 4 levels of a property. Property: a.b.c.d.e")
		refused(u.call(method, path, "expand=a"), 400, "<nil>", "expand", "Invalid array")
		if a := u.call(method, path, many("metadata", 51)); method != post || member(a.Body, "error", "code") == "parameter_unknown" {
			continue
		}
		metadata++
		refused(u.call(method, path, many("metadata", 51)), 400, "<nil>", "metadata", "Metadata can have up to 50 keys, but you've set 51.")
		refused(u.call(method, path, "metadata["+strings.Repeat("k", 41)+"]=x"), 400, "<nil>", "metadata", "Metadata keys can have up to 40 characters, but you passed in a key that is 41 characters.")
		refused(u.call(method, path, "metadata[k]="+strings.Repeat("ü", 501)), 400, "<nil>", "metadata[k]", "Metadata values can have up to 500 characters, but you passed in a value that is 501 characters.")
		refused(u.call(method, path, "metadata[k][l]=x"), 400, "<nil>", "metadata[k]", "Metadata values must be strings")
	}
	if metadata < 20 {
		t.Errorf("only %d endpoints take metadata", metadata)
	}
	if after := counts(u); !maps.Equal(before, after) {
		t.Errorf("the refusals have changed %v into %v", before, after)
	}
}

// listed are the parameters that lists want before they look at their pages.
var listed = map[string]string{"/v1/subscription_items": "subscription=$sub&", "/v1/invoices/upcoming/lines": "customer=$customer&", "/v1/credit_notes/preview/lines": "invoice=$open&amount=5&"}

// TestEveryListRefuses asks each list for pages that there are not.
func TestEveryListRefuses(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Clock: &stillClock{now: time.Unix(errorTime, 0).UTC()}})
	all := plan("", "")(u)
	all["open"] = idIn(u.must(post, "/v1/invoices", "customer="+all["customer"]))
	u.make("/v1/invoiceitems", "customer="+all["customer"]+"&amount=700&currency=usd&invoice="+all["open"])
	u.must(post, "/v1/invoices/"+all["open"]+"/finalize", "auto_advance=false")
	all["note"] = u.make("/v1/credit_notes", "invoice="+all["open"]+"&amount=5")
	all["session"] = u.make("/v1/checkout/sessions", "mode=payment&success_url=https://example.com/&line_items[0][price_data][currency]=usd&line_items[0][price_data][unit_amount]=500&line_items[0][price_data][product_data][name]=x")
	owners := map[string]string{"customers": "$customer", "invoices": "$invoice", "credit_notes": "$note", "subscription_items": "$item", "checkout": "$session", "sessions": "$session"}
	before, lists := counts(u), 0
	for _, route := range append(routes(t), "GET /v1/customers/{id}/balance_transactions") {
		method, path, _ := strings.Cut(route, " ")
		if method != get || !strings.HasPrefix(path, "/v1/") {
			continue
		}
		form := filled(all, listed[path])
		path = filled(all, strings.ReplaceAll(path, "{id}", owners[strings.Split(path, "/")[2]]))
		a := u.call(get, path, strings.TrimSuffix(form, "&"))
		if a.Body["object"] != "list" {
			continue
		}
		lists++
		if a.Body["url"] != path {
			t.Errorf("%s says that it is %v", path, a.Body["url"])
		}
		const limits = "This value must be greater than or equal to 1 and less than or equal to 100 (sent: "
		for _, row := range [][4]string{
			{"limit=0", "parameter_invalid_integer", "limit", limits + "0)"},
			{"limit=101", "parameter_invalid_integer", "limit", limits + "101)"},
			{"limit=-1", "parameter_invalid_integer", "limit", limits + "-1)"},
			{"limit=ten", "parameter_invalid_integer", "limit", "Invalid integer: ten"},
			{"starting_after=x_nobody", "resource_missing", "starting_after", "No such …: 'x_nobody'"},
			{"ending_before=x_nobody", "resource_missing", "ending_before", "No such …: 'x_nobody'"},
		} {
			a := u.call(get, path, form+row[0])
			u.refused(a, 400, invalidRequest, row[1], row[2])
			begins, ends, _ := strings.Cut(row[3], "…")
			if message := fmt.Sprint(member(a.Body, "error", "message")); !strings.HasPrefix(message, begins) || !strings.HasSuffix(message, ends) {
				t.Errorf("%s of %s says %q, want %q", row[0], path, message, row[3])
			}
		}
		if got := u.must(get, path, form+"limit=100"); got["object"] != "list" {
			t.Errorf("a page of 100 of %s is %v", path, got)
		}
	}
	if lists < 20 {
		t.Errorf("only %d lists were asked", lists)
	}
	if after := counts(u); !maps.Equal(before, after) {
		t.Errorf("the refusals have changed %v into %v", before, after)
	}
}

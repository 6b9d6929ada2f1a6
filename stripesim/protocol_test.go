package stripesim_test

import (
	"fmt"
	"io"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"tallystick/stripesim"
)

// raw sends a request as it is, and gives the answer read whole.
func (u *user) raw(method, path, body string, header ...string) reply {
	u.t.Helper()
	r := httptest.NewRequestWithContext(u.t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+u.Key)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	u.ServeHTTP(w, r)
	raw, err := io.ReadAll(w.Result().Body)
	if err != nil {
		u.t.Fatal(err)
	}
	return answerOf(w.Code, w.Header(), raw)
}

// member follows names into nested objects.
func member(o map[string]any, path ...string) any {
	for _, name := range path[:len(path)-1] {
		o, _ = o[name].(map[string]any)
	}
	return o[path[len(path)-1]]
}

const formType = "application/x-www-form-urlencoded"

// many makes n parameters of a map.
func many(name string, n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf("%s[k%d]=v", name, i)
	}
	return strings.Join(parts, "&")
}

// TestWhatStripeRefusesBeforeItDoesAnything sends what is wrong in itself.
func TestWhatStripeRefusesBeforeItDoesAnything(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	long := strings.Repeat("x", 501)
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		code, param, message     string
	}{
		{"no key", "GET", "/v1/customers", "", []string{"Authorization", ""}, 401, "", "", "You did not provide an API key"},
		{"a key of live mode", "GET", "/v1/customers", "", []string{"Authorization", "Bearer sk_live_1"}, 401, "", "", "Invalid API Key provided: sk_live_****"},
		{"an unknown path", "GET", "/v1/nothing", "", nil, 404, "", "", "Unrecognized request URL (GET: /v1/nothing)"},
		{"a method that the path lacks", "PATCH", "/v1/customers", "", nil, 404, "", "", "Unrecognized request URL (PATCH: /v1/customers)"},
		{"a path with an empty part", "GET", "/v1//customers", "", nil, 404, "", "", "Unrecognized request URL (GET: /v1//customers)"},
		{"another version", "GET", "/v1/customers", "", []string{"Stripe-Version", "2024-06-20"}, 400, "", "", "Invalid Stripe API version: 2024-06-20"},
		{"another account", "GET", "/v1/customers", "", []string{"Stripe-Account", "acct_1"}, 403, "account_invalid", "", "does not have access to account 'acct_1'"},
		{"a body of JSON", "POST", "/v1/customers", `{"name": "x"}`, []string{"Content-Type", "application/json"}, 400, "", "", "check that your POST content type is application/x-www-form-urlencoded"},
		{"a body of no type", "POST", "/v1/customers", "name=x", []string{"Content-Type", ";"}, 400, "", "", "check that your POST content type"},
		{"half an escape", "POST", "/v1/customers", "name=%4", nil, 400, "", "", "not form-encoded"},
		{"half an escape in the query", "GET", "/v1/customers?email=%zz", "", nil, 400, "", "", "not form-encoded"},
		{"a byte 0", "POST", "/v1/customers", "name=a%00b", nil, 400, "", "name", "UTF-8"},
		{"no UTF-8", "POST", "/v1/customers", "name=%ff", nil, 400, "", "name", "UTF-8"},
		{"no UTF-8 in a name", "POST", "/v1/customers", "na%ffme=x", nil, 400, "", "", "UTF-8"},
		{"nested too deep", "POST", "/v1/customers", "a" + strings.Repeat("[b]", 33) + "=x", nil, 400, "", "", "deeper than 32"},
		{"nested as deep as can be", "POST", "/v1/customers", "a" + strings.Repeat("[b]", 32) + "=x", nil, 400, "parameter_unknown", "a", "Received unknown parameter: a"},
		{"a bracket that stays open", "POST", "/v1/customers", "metadata[a=x", nil, 400, "", "metadata[a", "Invalid parameter name"},
		{"a value and an object", "POST", "/v1/customers", "address=x&address[city]=y", nil, 400, "", "address[city]", "Invalid object"},
		{"a body too large", "POST", "/v1/customers", "name=" + strings.Repeat("x", 1<<20), nil, 413, "", "", "larger than 1048576 bytes"},
		{"an unknown parameter", "POST", "/v1/customers", "colour=red", nil, 400, "parameter_unknown", "colour", "Received unknown parameter: colour"},
		{"an unknown one further in", "POST", "/v1/customers", "address[colour]=red", nil, 400, "parameter_unknown", "address[colour]", "Received unknown parameter: address[colour]"},
		{"51 keys", "POST", "/v1/customers", many("metadata", 51), nil, 400, "", "metadata", "Metadata can have up to 50 keys, but you've set 51"},
		{"a key of 41", "POST", "/v1/customers", "metadata[" + long[:41] + "]=x", nil, 400, "", "metadata", "Metadata keys can have up to 40 characters, but you passed in a key that is 41 characters"},
		{"a value of 501", "POST", "/v1/customers", "metadata[a]=" + long, nil, 400, "", "metadata[a]", "Metadata values can have up to 500 characters, but you passed in a value that is 501 characters"},
		{"metadata of metadata", "POST", "/v1/customers", "metadata[a][b]=x", nil, 400, "", "metadata[a]", "Metadata values must be strings"},
		{"metadata further in", "POST", "/v1/checkout/sessions", "payment_intent_data[metadata][a]=" + long, nil, 400, "", "payment_intent_data[metadata][a]", "up to 500"},
		{"a key too long", "POST", "/v1/customers", "name=x", []string{"Idempotency-Key", long[:256]}, 400, "", "", "at most 255 characters long. Your key was 256"},
	} {
		a := u.raw(tc.method, tc.path, tc.body, tc.header...)
		u.refused(a, tc.status, invalidRequest, tc.code, tc.param)
		if message := fmt.Sprint(member(a.Body, "error", "message")); !strings.Contains(message, tc.message) {
			t.Errorf("%s: the message is %q, want %q in it", tc.name, message, tc.message)
		}
		if !strings.HasPrefix(a.Header.Get("Request-Id"), "req_") || a.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: the headers are %v", tc.name, a.Header)
		}
		if log := fmt.Sprint(member(a.Body, "error", "request_log_url")); !strings.Contains(log, "/test/logs/"+a.Header.Get("Request-Id")) {
			t.Errorf("%s: the log is at %s", tc.name, log)
		}
		want := any(nil)
		if tc.code != "" {
			want = "https://stripe.com/docs/error-codes/" + strings.ReplaceAll(tc.code, "_", "-")
		}
		if got := member(a.Body, "error", "doc_url"); got != want {
			t.Errorf("%s: doc_url is %v, want %v", tc.name, got, want)
		}
	}
	if got := u.State().Counts["customer"]; got != 0 {
		t.Errorf("%d customers were made all the same", got)
	}
}

// TestWhatStripeTakes is the other side of each edge.
func TestWhatStripeTakes(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	form := []string{"Content-Type", formType + "; charset=utf-8"}
	for _, body := range []string{
		"name=x", "name=" + url.QueryEscape("größer ✓"), many("metadata", 50), "metadata[" + strings.Repeat("ü", 40) + "]=" + strings.Repeat("ü", 500), "metadata=",
	} {
		if a := u.raw("POST", "/v1/customers", body, form...); a.Status != 200 {
			t.Errorf("%.60s was answered %d %s", body, a.Status, a.Raw)
		}
	}
	for _, header := range [][]string{
		{"Stripe-Version", stripesim.APIVersion}, {"Stripe-Account", stripesim.Account}, {"Authorization", "Basic c2tfdGVzdF94Og=="}, {"Authorization", "Bearer rk_test_1"},
	} {
		if a := u.raw("GET", "/v1/customers", "", header...); a.Status != 200 {
			t.Errorf("%v was answered %d %s", header, a.Status, a.Raw)
		}
	}
	if err := u.SetSwitches(stripesim.Switches{AnyVersion: true}); err != nil {
		t.Fatal(err)
	}
	if a := u.raw("GET", "/v1/customers", "", "Stripe-Version", "2024-06-20"); a.Status != 200 || a.Header.Get("Stripe-Version") != "2024-06-20" {
		t.Errorf("another version was answered %d with %v", a.Status, a.Header)
	}
	u.refused(u.raw("GET", "/v1/customers", "", "Stripe-Version", "yesterday"), 400, invalidRequest, "", "")
	a := u.raw("POST", "/v1/customers?name=query&email=a@example.com", "name=one&name=two", form...)
	if a.Body["name"] != "two" || a.Body["email"] != "a@example.com" {
		t.Errorf("of a parameter that came often this was taken: %v", a.Body)
	}
	if a := u.raw("GET", "/v1/customers", ""); a.Header.Get("Stripe-Version") != stripesim.APIVersion || a.Header.Get("Date") == "" {
		t.Errorf("the headers are %v", a.Header)
	}
}

// TestMetadataIsCountedAfterItsChange adds a key to an object that is full.
func TestMetadataIsCountedAfterItsChange(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	path := "/v1/customers/" + u.make("/v1/customers", many("metadata", 50))
	u.refused(u.call("POST", path, "metadata[more]=x"), 400, invalidRequest, "", "metadata")
	u.must("POST", path, "metadata[more]=x&metadata[k0]=")
	u.must("POST", path, "metadata[more]=y")
}

// TestExpansionIsOfWhatStripeNames goes along the paths of expand.
func TestExpansionIsOfWhatStripeNames(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	customer := u.make("/v1/customers", "")
	intent := u.make("/v1/payment_intents", "amount=500&currency=usd&confirm=true&payment_method=pm_card_visa&customer="+customer)
	one, list := "/v1/payment_intents/"+intent, "/v1/payment_intents"
	for _, tc := range []struct{ path, expand, code, message string }{
		{one, "colour", "", "This property cannot be expanded (colour)."},
		{one, "amount", "", "This property cannot be expanded (amount)."},
		{one, "latest_charge.amount", "", "This property cannot be expanded (amount)."},
		{one, "data.customer", "", "This property cannot be expanded (data)."},
		{one, "latest_charge.refunds.charge", "", "This property cannot be expanded (charge)."},
		{one, "latest_charge.refunds.data.charge.customer", "property_expansion_max_depth", "You cannot expand more than 4 levels of a property. Property: latest_charge.refunds.data.charge.customer"},
		{list, "customer", "", "This property cannot be expanded (customer). You may want to try expanding 'data.customer' instead."},
		{list, "data.latest_charge.colour", "", "This property cannot be expanded (colour)."},
		{list, "data.latest_charge.customer.default_source.x", "property_expansion_max_depth", "You cannot expand more than 4 levels of a property. Property: data.latest_charge.customer.default_source.x"},
	} {
		a := u.call("GET", tc.path, "expand[]="+tc.expand)
		u.refused(a, 400, invalidRequest, tc.code, "")
		if got := member(a.Body, "error", "message"); got != tc.message {
			t.Errorf("the message is %v, want %s", got, tc.message)
		}
	}
	made := u.State().Counts["customer"]
	u.refused(u.call("POST", "/v1/customers", "expand[]=colour"), 400, invalidRequest, "", "")
	if got := u.State().Counts["customer"]; got != made {
		t.Error("a call that cannot be expanded has made a customer")
	}
	got := u.must("GET", one, "expand[]=customer&expand[]=latest_charge.customer&expand[]=latest_charge.refunds.data")
	if member(got, "customer", "id") != customer || member(got, "latest_charge", "customer", "id") != customer || member(got, "latest_charge", "refunds", "object") != "list" {
		t.Errorf("the expanded intent is %v", got)
	}
	page := u.must("GET", list, "expand[]=data&expand[]=data.latest_charge.customer")
	if data, _ := page["data"].([]any); len(data) != 1 || member(data[0].(map[string]any), "latest_charge", "customer", "id") != customer {
		t.Errorf("the expanded list is %v", page)
	}
}

// TestListsTakeStripesCursors walks both ways, and refuses what Stripe refuses.
func TestListsTakeStripesCursors(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	var ids []string
	for range 5 {
		ids = append(ids, u.make("/v1/customers", ""))
	}
	for _, tc := range []struct{ query, code, param string }{
		{"limit=0", "parameter_invalid_integer", "limit"},
		{"limit=101", "parameter_invalid_integer", "limit"},
		{"limit=x", "parameter_invalid_integer", "limit"},
		{"starting_after=cus_nobody", "resource_missing", "starting_after"},
		{"ending_before=cus_nobody", "resource_missing", "ending_before"},
		{"starting_after=" + ids[0] + "&ending_before=cus_nobody", "resource_missing", "ending_before"},
		{"starting_after=" + ids[0] + "&ending_before=" + ids[1], "", ""},
	} {
		u.refused(u.call("GET", "/v1/customers", tc.query), 400, invalidRequest, tc.code, tc.param)
	}
	for _, tc := range []struct {
		query string
		want  []int // into ids, which the list has newest first
		more  bool
	}{
		{"limit=100", []int{4, 3, 2, 1, 0}, false},
		{"limit=5", []int{4, 3, 2, 1, 0}, false},
		{"limit=4", []int{4, 3, 2, 1}, true},
		{"limit=2&starting_after=" + ids[3], []int{2, 1}, true},
		{"limit=3&starting_after=" + ids[3], []int{2, 1, 0}, false},
		{"limit=2&ending_before=" + ids[1], []int{3, 2}, true},
		{"limit=3&ending_before=" + ids[1], []int{4, 3, 2}, false},
		{"starting_after=" + ids[0], nil, false},
		{"ending_before=" + ids[4], nil, false},
	} {
		page := u.must("GET", "/v1/customers", tc.query)
		data, _ := page["data"].([]any)
		var got []string
		for _, o := range data {
			got = append(got, o.(map[string]any)["id"].(string))
		}
		var want []string
		for _, i := range tc.want {
			want = append(want, ids[i])
		}
		if strings.Join(got, " ") != strings.Join(want, " ") || page["has_more"] != tc.more || page["url"] != "/v1/customers" {
			t.Errorf("%s gives %v, more %v, of %v; want %v", tc.query, got, page["has_more"], page["url"], want)
		}
	}
}

// TestAnExpiredKeyIsRefused and another one is not.
func TestAnExpiredKeyIsRefused(t *testing.T) {
	t.Parallel()
	u := keep(t)
	u.must("GET", "/v1/customers", "")
	if a := u.call("POST", "/_sim/api_keys/expire", "{}"); a.Status != 400 {
		t.Errorf("no key at all is answered %d", a.Status)
	}
	u.must("POST", "/_sim/api_keys/expire", `{"key": "sk_test_1"}`)
	for range 2 {
		u.refused(u.call("GET", "/v1/customers", ""), 401, invalidRequest, "api_key_expired", "")
		u.must("GET", "/v1/customers", "", "Authorization", "Bearer sk_test_2")
		u.restart()
	}
}

package stripesim_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

const sessionForm = "mode=payment&success_url=https://example.com&line_items[0][price]="

func TestSessionsRefuseWhatStripeRefuses(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Pack")
	price := u.make("/v1/prices", "currency=usd&unit_amount=700&product="+product)
	euro := u.make("/v1/prices", "currency=eur&unit_amount=700&product="+product)
	retired := u.make("/v1/prices", "currency=usd&unit_amount=700&product="+product)
	u.must(http.MethodPost, "/v1/prices/"+retired, "active=false")
	monthly := u.make("/v1/prices", "currency=usd&unit_amount=700&recurring[interval]=month&product="+product)
	customer, gone := u.make("/v1/customers", ""), u.make("/v1/customers", "")
	u.must(http.MethodDelete, "/v1/customers/"+gone, "")
	form := sessionForm + price
	now := u.Now().Unix()
	data := "mode=payment&success_url=https://example.com&line_items[0][price_data][currency]=usd&line_items[0][price_data]"
	before := u.State().Counts
	for _, tc := range []struct {
		form, code, param string
	}{
		{"success_url=https://example.com&line_items[0][price]=" + price, "parameter_missing", "mode"},
		{"mode=payment&line_items[0][price]=" + price, "parameter_missing", "success_url"},
		{"mode=payment&success_url=https://example.com", "parameter_missing", "line_items"},
		{form + "&line_items[0][quantity]=0", "parameter_invalid_integer", "line_items[0][quantity]"},
		{form + "&line_items[0][quantity]=1000000", "parameter_invalid_integer", "line_items[0][quantity]"},
		{form + "&line_items[0][quantity]=142858", "amount_too_large", "line_items"},
		{form + "&line_items[0][quantity]=1&line_items[0][adjustable_quantity][enabled]=true&line_items[0][adjustable_quantity][minimum]=2", "", "line_items[0][adjustable_quantity]"},
		{form + "&line_items[1][price]=price_nobody", "resource_missing", "line_items[1][price]"},
		{form + "&line_items[1][price]=" + euro, "", "line_items"},
		{form + "&line_items[1][price]=" + retired, "", "line_items[1][price]"},
		{form + "&line_items[1][price]=" + monthly, "", "line_items[1][price]"},
		{form + "&customer=" + gone, "resource_missing", "customer"},
		{form + "&customer=" + customer + "&customer_email=a@example.com", "", "customer_email"},
		{form + "&customer=" + customer + "&customer_creation=always", "", "customer_creation"},
		{form + "&customer_creation=never", "", "customer_creation"},
		{form + "&ui_mode=embedded", "", "success_url"},
		{"mode=payment&ui_mode=embedded&line_items[0][price]=" + price, "parameter_missing", "return_url"},
		{form + "&client_reference_id=" + strings.Repeat("x", 201), "", "client_reference_id"},
		{form + fmt.Sprintf("&expires_at=%d", now+29*60), "", "expires_at"},
		{form + fmt.Sprintf("&expires_at=%d", now+24*3600+60), "", "expires_at"},
		{form + "&payment_intent_data[capture_method]=never", "", "payment_intent_data[capture_method]"},
		{data + "[unit_amount]=700&line_items[0][price_data][product]=prod_nobody", "resource_missing", "line_items[0][price_data][product]"},
		{data + "[product]=" + product, "parameter_missing", "line_items[0][price_data][unit_amount]"},
		{data + "[unit_amount]=700&line_items[0][price_data][product_data][description]=x", "parameter_missing", "line_items[0][price_data][product_data][name]"},
		{data + "[unit_amount]=700&line_items[0][price_data][product_data][name]=x&line_items[1][price]=price_nobody", "resource_missing", "line_items[1][price]"},
	} {
		u.refused(u.call(http.MethodPost, "/v1/checkout/sessions", tc.form), 400, "invalid_request_error", tc.code, tc.param)
	}
	if after := u.State().Counts; fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("refused calls have made something: %v, then %v", before, after)
	}
}

func TestSessionsExpire(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Pack")
	price := u.make("/v1/prices", "currency=usd&unit_amount=700&product="+product)
	for _, least := range []int64{30*60 + 2, 24*3600 - 2} {
		u.must(http.MethodPost, "/v1/checkout/sessions", sessionForm+price+fmt.Sprintf("&expires_at=%d", u.Now().Unix()+least))
	}
	o := u.must(http.MethodPost, "/v1/checkout/sessions", sessionForm+price+fmt.Sprintf("&expires_at=%d&after_expiration[recovery][enabled]=true", u.Now().Unix()+3600))
	path := "/v1/checkout/sessions/" + at(o, "id")
	u.must(http.MethodPost, "/_sim/checkout/sessions/"+at(o, "id")+"/pay", `{"outcome":"card_declined"}`)
	open := u.must(http.MethodGet, path, "expand[]=payment_intent")
	wants(t, open, "status", "open", "payment_status", "unpaid", "payment_intent.status", "requires_payment_method", "payment_intent.last_payment_error.code", "card_declined", "after_expiration.recovery.url", "<nil>")
	u.Advance(59 * time.Minute)
	wants(t, u.must(http.MethodGet, path, ""), "status", "open")
	u.Advance(time.Minute + time.Second)
	gone := u.must(http.MethodGet, path, "expand[]=payment_intent")
	wants(t, gone, "status", "expired", "url", "<nil>", "payment_intent.status", "canceled")
	if !strings.HasPrefix(at(gone, "after_expiration.recovery.url"), "https://") {
		t.Errorf("the session cannot be recovered: %v", gone)
	}
	u.refused(u.call(http.MethodPost, path+"/expire", ""), 400, "invalid_request_error", "", "")
	if a := u.call(http.MethodPost, "/_sim/checkout/sessions/"+at(o, "id")+"/pay", `{"outcome":"paid"}`); a.Status != 400 {
		t.Errorf("an expired session is paid: %d %s", a.Status, a.Raw)
	}
	wants(t, lastEvent(u, "checkout.session.expired"), "data.object.id", at(o, "id"), "request.id", "<nil>")
}

func TestSessionsArePaid(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Pack")
	price := u.make("/v1/prices", "currency=usd&unit_amount_decimal=0.5&product="+product)
	free := u.make("/v1/prices", "currency=usd&unit_amount=0&product="+product)
	pay := func(form, outcome string) (path string, o map[string]any) {
		t.Helper()
		id := u.make("/v1/checkout/sessions", form)
		u.must(http.MethodPost, "/_sim/checkout/sessions/"+id+"/pay", `{"outcome":"`+outcome+`"}`)
		return "/v1/checkout/sessions/" + id, u.must(http.MethodGet, "/v1/checkout/sessions/"+id, "expand[]=payment_intent.latest_charge&expand[]=line_items")
	}
	_, o := pay(sessionForm+price+"&line_items[0][quantity]=1401&metadata[s]=1&payment_intent_data[metadata][p]=2&client_reference_id=acme&customer_email=a@example.com", "paid")
	wants(t, o, "payment_status", "paid", "amount_total", "701", "payment_intent.metadata.p", "2", "payment_intent.metadata.s", "<none>", "payment_intent.latest_charge.metadata.p", "2",
		"client_reference_id", "acme", "customer_details.email", "a@example.com", "customer", "<nil>", "line_items.data.0.quantity", "1401")
	wants(t, u.must(http.MethodGet, "/v1/checkout/sessions", "payment_intent="+at(o, "payment_intent.id")), "data.0.id", at(o, "id"), "data.1", "<none>")
	wants(t, u.must(http.MethodGet, "/v1/checkout/sessions", "customer_details[email]=a@example.com"), "data.0.id", at(o, "id"), "data.1", "<none>")
	_, o = pay(sessionForm+price+"&line_items[0][quantity]=2000&customer_creation=always", "paid")
	wants(t, u.must(http.MethodGet, "/v1/customers/"+at(o, "customer"), ""), "email", "buyer@example.com")
	wants(t, o, "payment_intent.customer", at(o, "customer"), "customer_details.email", "buyer@example.com")
	_, o = pay(sessionForm+free, "paid")
	wants(t, o, "payment_status", "no_payment_required", "status", "complete", "payment_intent", "<nil>")

	path, o := pay(sessionForm+price+"&line_items[0][quantity]=2000&payment_intent_data[capture_method]=manual", "paid")
	wants(t, o, "status", "complete", "payment_status", "unpaid", "payment_intent.status", "requires_capture")
	u.must(http.MethodPost, "/v1/payment_intents/"+at(o, "payment_intent.id")+"/capture", "")
	wants(t, u.must(http.MethodGet, path, ""), "payment_status", "paid")

	path, o = pay(sessionForm+price+"&line_items[0][quantity]=2000", "unpaid")
	wants(t, o, "status", "complete", "payment_status", "unpaid", "payment_intent.status", "processing")
	u.must(http.MethodPost, "/_sim/payment_intents/"+at(o, "payment_intent.id")+"/settle", `{"outcome":"succeeded"}`)
	wants(t, u.must(http.MethodGet, path, ""), "payment_status", "paid")
	wants(t, lastEvent(u, "checkout.session.async_payment_succeeded"), "data.object.payment_status", "paid", "data.object.id", at(o, "id"))

	path, o = pay(sessionForm+price+"&line_items[0][quantity]=2000", "unpaid")
	control := "/_sim/checkout/sessions/" + at(o, "id") + "/pay"
	u.must(http.MethodPost, control, `{"outcome":"async_failed"}`)
	wants(t, u.must(http.MethodGet, path, "expand[]=payment_intent"), "status", "complete", "payment_status", "unpaid", "payment_intent.status", "requires_payment_method")
	wants(t, lastEvent(u, "checkout.session.async_payment_failed"), "data.object.id", at(o, "id"))
	if a := u.call(http.MethodPost, control, `{"outcome":"async_succeeded"}`); a.Status != 400 {
		t.Errorf("a payment that failed settles: %d %s", a.Status, a.Raw)
	}
}

func TestABuyerAdjustsQuantities(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	product := u.make("/v1/products", "name=Pack")
	price := u.make("/v1/prices", "currency=usd&unit_amount=700&product="+product)
	o := u.must(http.MethodPost, "/v1/checkout/sessions", sessionForm+price+"&line_items[0][quantity]=2&line_items[0][adjustable_quantity][enabled]=true&line_items[0][adjustable_quantity][maximum]=5&line_items[1][quantity]=1&line_items[1][price]="+price+"&expand[]=line_items")
	first, second := at(o, "line_items.data.0.id"), at(o, "line_items.data.1.id")
	control := "/_sim/checkout/sessions/" + at(o, "id") + "/"
	for _, quantities := range []string{`{"` + first + `":6}`, `{"` + first + `":-1}`, `{"` + second + `":2}`, `{"li_nobody":1}`} {
		if a := u.call(http.MethodPost, control+"adjust", `{"quantities":`+quantities+`}`); a.Status != 400 {
			t.Errorf("%s is answered %d %s", quantities, a.Status, a.Raw)
		}
	}
	wants(t, u.must(http.MethodPost, control+"adjust", `{"quantities":{"`+first+`":5}}`), "amount_total", "4200")
	wants(t, u.must(http.MethodPost, control+"adjust", `{"quantities":{"`+first+`":0}}`), "amount_total", "700")
	wants(t, u.must(http.MethodGet, "/v1/checkout/sessions/"+at(o, "id")+"/line_items", ""), "data.0.id", second, "data.1", "<none>", "data.0._adjustable", "<none>")
	u.must(http.MethodPost, control+"pay", `{"outcome":"paid"}`)
	wants(t, u.must(http.MethodGet, "/v1/checkout/sessions/"+at(o, "id"), "expand[]=payment_intent"), "payment_intent.amount", "700")
	if a := u.call(http.MethodPost, control+"adjust", `{"quantities":{}}`); a.Status != 400 {
		t.Errorf("a paid session is adjusted: %d %s", a.Status, a.Raw)
	}
}

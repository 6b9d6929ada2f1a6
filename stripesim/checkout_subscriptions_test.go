package stripesim_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tallystick/stripesim"
)

// hosted are the parameters of every session for a subscription.
const hosted = "mode=subscription&success_url=https://example.com"

func listenFor(t *testing.T, server *stripesim.Server) string {
	t.Helper()
	l := httptest.NewServer(server)
	t.Cleanup(l.Close)
	return l.URL
}

func TestSessionsForSubscriptionsAreRefused(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	once := s.make("/v1/prices", "currency=usd&unit_amount=1&product="+s.product)
	for _, tc := range []struct{ form, code, param, message string }{
		{"", "parameter_missing", "line_items", "Missing required param"},
		{"&line_items[0][price]=" + once, "", "line_items", "You must provide at least one recurring price in `subscription` mode"},
		{"&line_items[0][quantity]=1&line_items[0][price]=" + s.price(legacyMetered), "", "line_items[0][quantity]", "Quantity should not be specified where usage_type is `metered`. Remove quantity from `line_items[0]`"},
		{"&line_items[0][quantity]=0&line_items[0][price]=" + s.price(""), "parameter_invalid_integer", "line_items[0][quantity]", "greater than or equal to 1"},
		{"&line_items[0][price]=" + s.price("") + "&line_items[1][price]=" + s.price("recurring[interval]=day"), "", "items", "Found mismatch in interval field."},
		{"&line_items[0][price]=" + s.price("") + "&line_items[1][price]=" + s.price("currency=eur"), "", "line_items", "same currency"},
	} {
		a := s.call(http.MethodPost, "/v1/checkout/sessions", hosted+tc.form)
		s.refused(a, 400, "invalid_request_error", tc.code, tc.param)
		if !strings.Contains(a.Raw, tc.message) {
			t.Errorf("%s is refused with %s", tc.form, a.Raw)
		}
	}
	s.refused(s.call(http.MethodPost, "/v1/checkout/sessions", "mode=setup"), 400, "invalid_request_error", "", "mode")
	s.refused(s.call(http.MethodPost, "/v1/checkout/sessions", "mode=payment&success_url=https://example.com&line_items[0][price]="+s.price("")), 400, "invalid_request_error", "", "line_items[0][price]")
}

func TestASessionBeginsASubscription(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	once := s.make("/v1/prices", "currency=usd&unit_amount=250&product="+s.product)
	form := hosted + "&customer_email=a@example.com&subscription_data[metadata][plan]=gold&line_items[0][quantity]=2&line_items[0][price]=" + s.price("") +
		"&line_items[1][price]=" + s.price(legacyMetered) + "&line_items[2][price]=" + once
	session := s.must(http.MethodPost, "/v1/checkout/sessions", form)
	if wholeIn(session["amount_total"]) != 2250 || session["mode"] != "subscription" || session["subscription"] != nil || session["payment_intent"] != nil {
		t.Errorf("the session is %v", session)
	}
	path := "/v1/checkout/sessions/" + idIn(session)
	if a := s.call(http.MethodPost, "/_sim"+path[3:]+"/pay", `{"outcome": "unpaid"}`); a.Status != http.StatusBadRequest {
		t.Errorf("a way that is not known is answered %d", a.Status)
	}
	s.must(http.MethodPost, "/_sim"+path[3:]+"/pay", `{"outcome": "card_declined"}`)
	if now := s.must(http.MethodGet, path, ""); now["status"] != "open" || now["subscription"] != nil {
		t.Errorf("after a declined card it is %v with %v", now["status"], now["subscription"])
	}
	s.must(http.MethodPost, "/_sim"+path[3:]+"/pay", `{"outcome": "paid"}`)
	done := s.must(http.MethodGet, path, "expand[]=subscription&expand[]=customer")
	sub := done["subscription"].(map[string]any)
	if done["status"] != "complete" || done["payment_status"] != "paid" || done["invoice"] != sub["latest_invoice"] || done["customer"].(map[string]any)["email"] != "a@example.com" {
		t.Errorf("the session became %v", done)
	}
	if sub["status"] != "active" || sub["metadata"].(map[string]any)["plan"] != "gold" || len(itemsIn(sub)) != 2 || wholeIn(itemsIn(sub)[0]["quantity"]) != 2 {
		t.Errorf("the subscription is %v", sub)
	}
	made := s.invoices()
	if len(made) != 1 || wholeIn(made[0]["total"]) != 2250 {
		t.Errorf("it is billed as %v", made)
	}
	created, updated := s.events("customer.subscription.created"), s.events("customer.subscription.updated")
	if len(created) != 1 || created[0]["object"].(map[string]any)["status"] != "incomplete" || len(updated) != 1 || updated[0]["previous_attributes"].(map[string]any)["status"] != "incomplete" {
		t.Errorf("it is told as %v and %v", created, updated)
	}
	if n := len(s.must(http.MethodGet, "/v1/checkout/sessions", "subscription="+idIn(sub))["data"].([]any)); n != 1 {
		t.Errorf("%d sessions are found by the subscription", n)
	}
}

func TestASessionMayBeginWithATrial(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	customer := s.customer()
	session := s.must(http.MethodPost, "/v1/checkout/sessions", hosted+"&customer="+customer+"&subscription_data[trial_period_days]=7&line_items[0][price]="+s.price(""))
	if wholeIn(session["amount_total"]) != 0 {
		t.Errorf("a trial costs %v", session["amount_total"])
	}
	if err := s.PayCheckout(idIn(session), "paid"); err != nil {
		t.Fatal(err)
	}
	done := s.must(http.MethodGet, "/v1/checkout/sessions/"+idIn(session), "expand[]=subscription")
	sub := done["subscription"].(map[string]any)
	if done["payment_status"] != "no_payment_required" || sub["status"] != "trialing" || sub["customer"] != customer || dayIn(sub["trial_end"]) != "240207" {
		t.Errorf("the session became %v", done)
	}
}

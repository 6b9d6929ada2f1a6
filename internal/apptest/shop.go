package apptest

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
)

// Shop is a running program with something to sell: the account acme and its
// customer at Stripe; a pack of 100 credits for 10.00 USD; and the meter call, at
// one credit each, which Stripe bills as calls at 2 cents each.
type Shop struct {
	*App
	Customer string
	Price    string // of the pack
	MeterID  string // at Stripe
}

// OpenShop starts the program and puts the shop on both sides.
func OpenShop(t testing.TB, o Options) *Shop {
	t.Helper()
	s := &Shop{App: Start(t, o)}
	s.Customer = s.Make("/v1/customers", url.Values{"name": {"acme"}})
	s.Price = s.Pack(url.Values{"metadata[credits]": {"100"}})
	s.MeterID = s.Make("/v1/billing/meters", url.Values{"display_name": {"calls"}, "event_name": {"calls"}, "default_aggregation[formula]": {"sum"}})
	s.Make("/v1/prices", url.Values{
		"product": {s.Make("/v1/products", url.Values{"name": {"calls"}})}, "currency": {"usd"}, "unit_amount": {"2"},
		"recurring[interval]": {"month"}, "recurring[usage_type]": {"metered"}, "recurring[meter]": {s.MeterID},
	})
	s.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{"stripe_customers": ["`+s.Customer+`"]}`, nil)
	s.Want(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "calls"}}`, nil)
	return s
}

// Make posts to the simulator and gives the id of what was made.
func (s *Shop) Make(path string, values url.Values) string {
	s.t.Helper()
	return fmt.Sprint(s.Stripe(http.MethodPost, path, values)["id"])
}

// Pack makes another price of 10.00 USD; more says what it buys.
func (s *Shop) Pack(more url.Values) string {
	s.t.Helper()
	values := url.Values{"product": {s.Make("/v1/products", url.Values{"name": {"credits"}})}, "currency": {"usd"}, "unit_amount": {"1000"}}
	for name, value := range more {
		values[name] = value
	}
	return s.Make("/v1/prices", values)
}

// Checkout opens a session of acme's for one price.
func (s *Shop) Checkout(price string) (session string) {
	s.t.Helper()
	return s.Make("/v1/checkout/sessions", url.Values{
		"mode": {"payment"}, "customer": {s.Customer}, "client_reference_id": {"acme"}, "success_url": {"https://example.com/thanks"},
		"line_items[0][price]": {price}, "line_items[0][quantity]": {"1"},
	})
}

// Buy opens a session and pays it. It gives the payment.
func (s *Shop) Buy(price string) (payment string) {
	s.t.Helper()
	session := s.Checkout(price)
	if err := s.Sim.PayCheckout(session, "paid"); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprint(s.Stripe(http.MethodGet, "/v1/checkout/sessions/"+session, nil)["payment_intent"])
}

// Grant gives acme credits.
func (s *Shop) Grant(id string, credits int) {
	s.t.Helper()
	s.Want(http.StatusCreated, http.MethodPost, "/v1/accounts/acme/grants", fmt.Sprintf(`{"id": %q, "credits": %d}`, id, credits), nil)
}

// Use records acme's usage.
func (s *Shop) Use(id string, quantity int) {
	s.t.Helper()
	s.Want(http.StatusCreated, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "call", "quantity": %d}`, id, quantity), nil)
}

// Available is an account's balance.
func (s *Shop) Available(account string) string {
	s.t.Helper()
	var a struct{ Balance struct{ Available string } }
	s.Want(http.StatusOK, http.MethodGet, "/v1/accounts/"+account, nil, &a)
	return a.Balance.Available
}

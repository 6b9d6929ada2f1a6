package apptest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
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
	return Start(t, o).Stock()
}

// Stock puts the shop on both sides of a program that has none yet.
func (a *App) Stock() *Shop {
	a.t.Helper()
	s := &Shop{App: a}
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

// Events gives Stripe's events that mention a text, newest first, as they are sent.
func (s *Shop) Events(mention string) []json.RawMessage {
	s.t.Helper()
	var events []json.RawMessage
	for after := ""; ; {
		var page struct {
			Data    []json.RawMessage `json:"data"`
			HasMore bool              `json:"has_more"`
		}
		content, err := json.Marshal(s.Stripe(http.MethodGet, "/v1/events?limit=100"+after, nil))
		if err == nil {
			err = json.Unmarshal(content, &page)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		var last struct{ ID string }
		for _, raw := range page.Data {
			_ = json.Unmarshal(raw, &last) // an event has an id
			if strings.Contains(string(raw), mention) {
				events = append(events, raw)
			}
		}
		if !page.HasMore {
			return events
		}
		after = "&starting_after=" + last.ID
	}
}

// Sign is the header with which Stripe signs a webhook at a time.
func Sign(body, secret string, at time.Time) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = fmt.Fprintf(mac, "%d.%s", at.Unix(), body)
	return fmt.Sprintf("t=%d,v1=%s", at.Unix(), hex.EncodeToString(mac.Sum(nil)))
}

// Webhook posts an event as Stripe does, rightly signed.
func (s *Shop) Webhook(body string) Response {
	s.t.Helper()
	return s.WebhookAs(body, Sign(body, s.Info.WebhookSecret, s.Clock.Now()))
}

// WebhookAs posts an event with a signature of the caller's.
func (s *Shop) WebhookAs(body, signature string) Response {
	s.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.Info.URL+"/webhooks/stripe", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if signature != "" {
		r.Header.Set("Stripe-Signature", signature)
	}
	return s.Do(r)
}

// Control posts JSON to the simulator's control plane.
func (s *Shop) Control(path, body string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.Info.StripeAPIBase+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if response := s.Do(r); response.Status != http.StatusOK {
		s.t.Fatalf("%s was answered %d: %s", path, response.Status, response.Body)
	}
}

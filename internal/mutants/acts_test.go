package mutants

import (
	"fmt"
	"net/url"
	"time"
)

// purchases buys packs: whose product says something else than its price, and for
// another account than the customer's.
func (s *story) purchases() {
	s.t.Helper()
	product := s.Make("/v1/products", url.Values{"name": {"old credits"}, "metadata[credits]": {"40"}})
	s.buy("acme", s.Make("/v1/prices", url.Values{"product": {product}, "currency": {"usd"}, "unit_amount": {"1000"}, "metadata[credits]": {"100"}}))
	s.buy("duo", s.Price)
	s.settle()
}

// buy pays a session of acme's customer for an account and gives the payment.
func (s *story) buy(account, price string) (payment string) {
	s.t.Helper()
	session := s.Make("/v1/checkout/sessions", url.Values{
		"mode": {"payment"}, "customer": {s.Customer}, "client_reference_id": {account}, "success_url": {"https://example.com/thanks"},
		"line_items[0][price]": {price}, "line_items[0][quantity]": {"1"},
	})
	s.Control("/_sim/checkout/sessions/"+session+"/pay", `{"outcome": "paid"}`)
	return fmt.Sprint(s.Stripe("GET", "/v1/checkout/sessions/"+session, nil)["payment_intent"])
}

// use records usage; at is when it occurred, zero for now.
func (s *story) use(id, account, meter string, quantity int, model string, at time.Time) {
	s.t.Helper()
	when := ""
	if !at.IsZero() {
		when = fmt.Sprintf(`, "occurred_at": %q`, at.Format(time.RFC3339))
	}
	s.do("POST", "/v1/usage", fmt.Sprintf(`{"id": %q, "account": %q, "meter": %q, "quantity": %d, "dimensions": {"model": %q}%s}`, id, account, meter, quantity, model, when))
}

func (s *story) void(id, account string) {
	s.t.Helper()
	s.do("POST", "/v1/usage/"+id+"/void", fmt.Sprintf(`{"account": %q, "reason": "a mistake"}`, account))
}

// usage is recorded once and again, in time and late, for both meters, and some of
// it is taken back: before Stripe has learned of it, and after.
func (s *story) usage() {
	s.t.Helper()
	first := s.now
	s.use("usage-0001", "acme", "call", 7, "small", time.Time{})
	s.use("usage-0001", "acme", "call", 7, "small", time.Time{})
	s.do("POST", "/v1/usage/batch", `{"usage": [{"id": "usage-0002", "account": "acme", "meter": "call", "quantity": 2}, {"id": "usage-0003", "account": "duo", "meter": "call", "quantity": 5}]}`)
	s.use("usage-0004", "acme", "tokens", 6, "large", time.Time{})
	s.use("usage-0005", "solo", "tokens", 4, "small", time.Time{})
	s.use("usage-0005", "solo", "tokens", 4, "small", time.Time{})
	s.use("usage-0006", "solo", "tokens", 3, "small", time.Time{})
	s.pass(3 * time.Minute)
	s.use("usage-0007", "acme", "call", 4, "small", first) // late
	s.pass(3 * time.Minute)
	s.void("usage-0002", "acme")
	s.void("usage-0006", "solo")
	s.use("usage-0008", "duo", "call", 9, "small", time.Time{})
	s.use("usage-0009", "duo", "call", 3, "small", time.Time{})
	s.void("usage-0009", "duo")
	s.pass(3 * time.Minute)
}

func (s *story) reserve(id, account, meter string, quantity int) {
	s.t.Helper()
	s.do("POST", "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": %q, "meter": %q, "quantity": %d, "ttl_seconds": 600}`, id, account, meter, quantity))
}

func (s *story) capture(id string, quantity int) {
	s.t.Helper()
	s.do("POST", "/v1/reservations/"+id+"/capture", fmt.Sprintf(`{"quantity": %d}`, quantity))
}

// reservations end in each way: captured for less and for more than was held,
// released, expired, and captured after that.
func (s *story) reservations() {
	s.t.Helper()
	s.reserve("resv-0001", "acme", "call", 10)
	s.reserve("resv-0002", "acme", "tokens", 8)
	s.reserve("resv-0003", "duo", "tokens", 6)
	s.reserve("resv-0004", "duo", "call", 2)
	s.reserve("resv-0005", "acme", "tokens", 12)
	s.capture("resv-0001", 6)
	s.do("POST", "/v1/reservations/resv-0002/release", "")
	s.capture("resv-0004", 3)
	s.advance(15 * time.Minute)
	s.await("reservations to expire", func() bool {
		r := s.do("GET", "/v1/reservations/resv-0003?account=duo", "")
		return contains(r.Body, `"expired"`)
	})
	s.capture("resv-0003", 6)
	s.settle()
}

// debt is made by a capture of more than there is, and paid by the next grant.
func (s *story) debt() {
	s.t.Helper()
	s.reserve("resv-0006", "solo", "tokens", 4)
	s.capture("resv-0006", 40)
	s.do("POST", "/v1/accounts/solo/grants", `{"id": "grant-solo-2", "credits": 5}`)
}

// moneyBack refunds in part, fails a refund of another payment, and lets the buyer's
// bank take two payments, one of which it gives back.
func (s *story) moneyBack() {
	s.t.Helper()
	part, all, lost, won := s.buy("acme", s.Price), s.buy("acme", s.Price), s.buy("duo", s.Price), s.buy("duo", s.Price)
	s.settle()
	s.Make("/v1/refunds", url.Values{"payment_intent": {part}, "amount": {"300"}})
	failed := s.Make("/v1/refunds", url.Values{"payment_intent": {all}})
	s.dispute(lost)
	reinstated := s.dispute(won)
	s.pass(time.Minute)
	s.Control("/_sim/refunds/"+failed+"/fail", `{"reason": "expired_or_canceled_card"}`)
	s.Control("/_sim/disputes/"+reinstated, `{"outcome": "won"}`)
	s.pass(time.Minute)
}

// dispute opens one about all of a payment.
func (s *story) dispute(payment string) (id string) {
	s.t.Helper()
	s.Control("/_sim/disputes", fmt.Sprintf(`{"charge": %q, "reason": "fraudulent", "stage": "opened"}`, s.Stripe("GET", "/v1/payment_intents/"+payment, nil)["latest_charge"]))
	list, _ := s.Stripe("GET", "/v1/disputes?payment_intent="+payment, nil)["data"].([]any)
	if len(list) != 1 {
		s.t.Fatalf("%d disputes of %s, want 1", len(list), payment)
	}
	d, _ := list[0].(map[string]any)
	return fmt.Sprint(d["id"])
}

// faults loses Stripe's answer to one meter event that it takes, and another before
// it takes it; and usage occurs just before an hour ends, so that it is sent in the next.
func (s *story) faults() {
	s.t.Helper()
	for i, fault := range []string{"error_500_after", "error_500_before"} {
		s.Control("/_sim/faults", fmt.Sprintf(`{"rules": [{"path": "/v1/billing/meter_events", "fault": %q, "times": 1}]}`, fault))
		s.use(fmt.Sprintf("usage-010%d", i), "acme", "call", 8, "small", time.Time{})
		for range 3 {
			s.pass(3 * time.Minute)
		}
	}
	hour := s.now.Truncate(time.Hour).Add(time.Hour)
	s.advance(hour.Add(-20 * time.Second).Sub(s.now))
	s.use("usage-0110", "acme", "call", 11, "small", time.Time{})
	s.pass(5 * time.Minute)
}

// missed buys once more while webhooks are lost, and fetches what was missed. It
// comes late: an hour after it, Stripe's own tries count as failed.
func (s *story) missed() {
	s.t.Helper()
	s.Control("/_sim/webhooks", `{"lose": {"types": ["checkout.session.completed", "payment_intent.succeeded"]}}`)
	s.buy("acme", s.Price)
	s.Control("/_sim/webhooks", `{"lose": {"types": ["nothing"]}}`)
	s.pass(5 * time.Minute)
	s.do("POST", "/v1/stripe/backfill", fmt.Sprintf(`{"from": %q, "to": %q}`, s.now.Add(-time.Hour).Format(time.RFC3339), s.now.Add(-2*time.Minute).Format(time.RFC3339)))
	s.settle()
}

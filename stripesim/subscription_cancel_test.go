package stripesim_test

import (
	"net/http"
	"testing"
	"time"
)

// failing gives a customer whose card declines what it is charged.
func (s *shop) failing() string {
	s.t.Helper()
	return s.make("/v1/customers", "test_clock="+s.clock+"&payment_method=pm_card_chargeCustomerFail&invoice_settings[default_payment_method]=pm_card_chargeCustomerFail")
}

// TestCancellingStopsCollection: what a cancelled subscription owes is not charged by
// itself any more.
func TestCancellingStopsCollection(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	customer := s.customer()
	id := idIn(s.must(http.MethodPost, "/v1/subscriptions", "customer="+customer+"&items[0][price]="+s.price("")))
	pm := s.make("/v1/payment_methods/pm_card_chargeCustomerFail/attach", "customer="+customer)
	s.must(http.MethodPost, "/v1/customers/"+customer, "invoice_settings[default_payment_method]="+pm)
	s.advance(time.Unix(wholeIn(s.sub(id)["current_period_end"]), 0).Add(2 * time.Hour))
	latest := "/v1/invoices/" + s.sub(id)["latest_invoice"].(string)
	if inv := s.must(http.MethodGet, latest, ""); inv["status"] != "open" || inv["auto_advance"] != true || inv["next_payment_attempt"] == nil {
		t.Fatalf("the invoice whose payment failed is %v", inv)
	}
	s.must(http.MethodDelete, "/v1/subscriptions/"+id, "")
	s.advance(s.now.Add(30 * 24 * time.Hour))
	if inv := s.must(http.MethodGet, latest, ""); inv["status"] != "open" || inv["auto_advance"] != false || inv["next_payment_attempt"] != nil || wholeIn(inv["attempt_count"]) != 1 {
		t.Errorf("after the cancelling it is %v", inv)
	}
}

// TestProrationsAtTheEnd: those that wait are removed when a subscription is
// cancelled at once, and collected when it ends with its period.
func TestProrationsAtTheEnd(t *testing.T) {
	t.Parallel()
	for _, atEnd := range []bool{false, true} {
		s := newShop(t)
		sub := s.subscribe("items[0][price]=" + s.price(""))
		id := idIn(sub)
		s.advance(opened.Add(24 * time.Hour))
		s.must(http.MethodPost, "/v1/subscription_items/"+idIn(itemsIn(sub)[0]), "quantity=3")
		if atEnd {
			s.must(http.MethodPost, "/v1/subscriptions/"+id, "cancel_at_period_end=true")
			s.advance(opened.AddDate(0, 0, 40))
		} else {
			s.must(http.MethodDelete, "/v1/subscriptions/"+id, "")
		}
		waiting := s.must(http.MethodGet, "/v1/invoiceitems", "pending=true")["data"].([]any)
		want := map[bool]int{false: 1, true: 2}[atEnd]
		if n := len(s.invoices()); n != want || len(waiting) != 0 || s.sub(id)["status"] != "canceled" {
			t.Errorf("at the end of the period %t: %d invoices, want %d, and %v waits", atEnd, n, want, waiting)
		}
	}
}

// TestWhatIsNotPaidIsNotThere: a subscription that insists on its payment leaves
// nothing behind when that fails.
func TestWhatIsNotPaidIsNotThere(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	customer := s.failing()
	s.must(http.MethodPost, "/v1/customers/"+customer, "balance=-300")
	s.must(http.MethodPost, "/v1/invoiceitems", "customer="+customer+"&amount=70&currency=usd")
	a := s.call(http.MethodPost, "/v1/subscriptions", "customer="+customer+"&payment_behavior=error_if_incomplete&items[0][price]="+s.price(""))
	s.refused(a, http.StatusPaymentRequired, "card_error", "card_declined", "")
	invoices := s.must(http.MethodGet, "/v1/invoices", "customer="+customer)["data"].([]any)
	waiting := s.must(http.MethodGet, "/v1/invoiceitems", "pending=true&customer="+customer)["data"].([]any)
	moves := s.must(http.MethodGet, "/v1/customers/"+customer+"/balance_transactions", "")["data"].([]any)
	if balance := s.must(http.MethodGet, "/v1/customers/"+customer, "")["balance"]; len(invoices) != 0 || len(waiting) != 1 || len(moves) != 1 || wholeIn(balance) != -300 {
		t.Errorf("what is left: invoices %v, waiting %v, transactions %v, a balance of %v", invoices, waiting, moves, balance)
	}
}

// TestAnIncompleteSubscriptionIsNotChanged but for its metadata.
func TestAnIncompleteSubscriptionIsNotChanged(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	create := "customer=" + s.failing() + "&items[0][price]=" + s.price("")
	s.refused(s.call(http.MethodPost, "/v1/subscriptions", create+"&payment_behavior=pending_if_incomplete"), 400, "invalid_request_error", "", "payment_behavior")
	sub := s.must(http.MethodPost, "/v1/subscriptions", create)
	if sub["status"] != "incomplete" {
		t.Fatalf("it is %v", sub["status"])
	}
	s.refused(s.call(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "cancel_at_period_end=true"), 400, "invalid_request_error", "", "cancel_at_period_end")
	if a := s.call(http.MethodPost, "/v1/subscription_items/"+idIn(itemsIn(sub)[0]), "quantity=2"); a.Status != http.StatusBadRequest {
		t.Errorf("another quantity is answered %d %s", a.Status, a.Raw)
	}
	s.must(http.MethodPost, "/v1/subscriptions/"+idIn(sub), "metadata[a]=b")
}

// TestTheFlatAmountOfAMeter is charged for a period, and not when one begins.
func TestTheFlatAmountOfAMeter(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	meter := s.make("/v1/billing/meters", "display_name=m&event_name=calls&default_aggregation[formula]=sum")
	price := s.price("recurring[usage_type]=metered&recurring[meter]=" + meter + "&billing_scheme=tiered&tiers_mode=graduated&tiers[0][up_to]=inf&tiers[0][unit_amount]=5&tiers[0][flat_amount]=700")
	sub := s.subscribe("items[0][price]=" + price)
	if inv := s.must(http.MethodGet, "/v1/invoices/"+sub["latest_invoice"].(string), ""); wholeIn(inv["total"]) != 0 {
		t.Errorf("the first invoice is of %v", inv["total"])
	}
	s.advance(opened.AddDate(0, 0, 32))
	if inv := s.must(http.MethodGet, "/v1/invoices/"+s.sub(idIn(sub))["latest_invoice"].(string), ""); wholeIn(inv["total"]) != 700 {
		t.Errorf("the second invoice is of %v", inv["total"])
	}
}

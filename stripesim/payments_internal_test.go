package stripesim

import "testing"

// TestAnInvoiceIsCharged pays invoices in every way in which a payment can go.
func TestAnInvoiceIsCharged(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, method string
		customer     object // members of the invoice's customer
		switches     Switches
		remaining    int64
		status       string // of the intent; "" for no intent
		paid         bool
	}{
		{"nothing to pay", "", nil, Switches{}, 0, "", true},
		{"an imagined card", "", nil, Switches{}, 700, "succeeded", true},
		{"no card to imagine", "", nil, Switches{InvoicesNeedMethod: true}, 700, "requires_payment_method", false},
		{"a method that is not there", "pm_nobody", nil, Switches{}, 700, "requires_payment_method", false},
		{"a method that is given", "pm_card_visa", nil, Switches{InvoicesNeedMethod: true}, 700, "succeeded", true},
		{"a method that declines", "pm_card_chargeCustomerFail", nil, Switches{}, 700, "requires_payment_method", false},
		{"the default method", "", object{"invoice_settings": object{"default_payment_method": "pm_card_mastercard"}}, Switches{InvoicesNeedMethod: true}, 700, "succeeded", true},
		{"the default source", "", object{"default_source": "tok_chargeDeclined"}, Switches{}, 700, "requires_payment_method", false},
		{"a buyer who must authenticate and is not there", "pm_card_authenticationRequired", nil, Switches{}, 700, "requires_payment_method", false},
		{"a debit", "pm_usBankAccount_success", nil, Switches{}, 700, "processing", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := New(t, Options{Switches: tc.switches})
			s.mu.Lock()
			defer s.mu.Unlock()
			customer := laidOver(s.newCustomer(), tc.customer)
			s.store.put("customer", customer)
			invoice := object{"id": "in_1", "object": "invoice", "customer": customer["id"], "currency": "usd", "amount_remaining": tc.remaining, "billing_reason": "subscription_cycle"}
			s.store.put("invoice", invoice)
			pi, paid := s.chargeInvoice(nil, invoice, tc.method)
			if paid != tc.paid || text(pi, "status") != tc.status {
				t.Fatalf("paid is %t and the intent %v, want %t and %q", paid, pi, tc.paid, tc.status)
			}
			if tc.status == "" {
				return
			}
			if text(pi, "invoice") != "in_1" || text(pi, "customer") != text(customer, "id") || number(pi, "amount") != tc.remaining {
				t.Errorf("the intent is %v", pi)
			}
			charge := s.store.get("charge", text(pi, "latest_charge"))
			if tried := tc.method != "pm_nobody" && tc.name != "no card to imagine"; tried != (charge != nil) || (tried && text(charge, "invoice") != "in_1") {
				t.Errorf("the charge is %v", charge)
			}
		})
	}
}

// TestALateInvoiceIsTold settles a debit after chargeInvoice has returned, and tries
// an invoice again whose first payment failed.
func TestALateInvoiceIsTold(t *testing.T) {
	t.Parallel()
	s := New(t)
	var told []bool
	s.mu.Lock()
	defer s.mu.Unlock()
	s.invoiceSettled = func(_ *call, invoice, intent object, paid bool) {
		if text(invoice, "id") != text(intent, "invoice") {
			t.Errorf("invoice %v is told of intent %v", invoice, intent)
		}
		told = append(told, paid)
	}
	invoice := object{"id": "in_1", "object": "invoice", "customer": nil, "currency": "usd", "amount_remaining": int64(900)}
	s.store.put("invoice", invoice)
	first, paid := s.chargeInvoice(nil, invoice, "pm_usBankAccount_insufficientFunds")
	s.change("invoice", invoice, object{"payment_intent": first["id"]})
	if again, _ := s.chargeInvoice(nil, invoice, "pm_card_visa"); paid || text(again, "id") != text(first, "id") || text(again, "status") != "processing" {
		t.Fatalf("a debit under way is paid over: %v", again)
	}
	s.settleIntent(nil, first, false)
	second, paid := s.chargeInvoice(nil, invoice, "pm_usBankAccount_success")
	if paid || text(second, "id") != text(first, "id") {
		t.Fatalf("the second try makes another intent: %v", second)
	}
	s.settleIntent(nil, second, true)
	if again, paid := s.chargeInvoice(nil, invoice, ""); !paid || text(again, "id") != text(first, "id") {
		t.Errorf("a paid invoice is charged again: %v", again)
	}
	if len(told) != 2 || told[0] || !told[1] {
		t.Errorf("told %v, want a failure and a success", told)
	}
}

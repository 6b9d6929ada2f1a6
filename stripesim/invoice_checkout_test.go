package stripesim_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"tallystick/stripesim"
)

func TestACheckoutMakesItsInvoice(t *testing.T) {
	t.Parallel()
	b := newBilling(t, stripesim.Switches{})
	b.must(http.MethodPost, "/v1/customers/"+b.customer+"/balance_transactions", "amount=-300&currency=usd")
	price := b.make("/v1/prices", "currency=usd&unit_amount=7&product="+b.make("/v1/products", "name=Pack"))
	b.make("/v1/invoiceitems", "amount=800&customer="+b.customer) // not bought here
	session := func(form string) string {
		return b.make("/v1/checkout/sessions", "mode=payment&success_url=https://example.com&line_items[0][price]="+price+"&line_items[0][quantity]=3&line_items[1][price]="+price+form)
	}
	invoiced := "&invoice_creation[enabled]=true&invoice_creation[invoice_data][footer]=bye&invoice_creation[invoice_data][metadata][a]=b"
	for _, row := range []struct {
		form     string
		outcomes []string
		made     bool
	}{
		{"&customer=" + b.customer, []string{"paid"}, false},
		{"&invoice_creation[enabled]=false&customer=" + b.customer, []string{"paid"}, false},
		{invoiced + "&customer=" + b.customer, []string{"unpaid"}, false},
		{invoiced + "&customer=" + b.customer, []string{"unpaid", "async_failed"}, false},
		{invoiced + "&customer=" + b.customer, []string{"unpaid", "async_succeeded"}, true},
		{invoiced + "&customer=" + b.customer, []string{"card_declined", "paid"}, true},
		{invoiced, []string{"paid"}, true},
	} {
		id := session(row.form)
		for _, outcome := range row.outcomes {
			if err := b.PayCheckout(id, outcome); err != nil {
				t.Fatal(err)
			}
		}
		o := b.must(http.MethodGet, "/v1/checkout/sessions/"+id, "")
		invoice, made := o["invoice"].(string)
		if made != row.made {
			t.Errorf("%s, %q: the session's invoice is %v", row.form, row.outcomes, o["invoice"])
		}
		if !made {
			continue
		}
		intent := o["payment_intent"].(string)
		pi := b.must(http.MethodGet, "/v1/payment_intents/"+intent, "expand[]=latest_charge")
		b.holds(pi, `{"invoice": "`+invoice+`"}`)
		charge := pi["latest_charge"].(map[string]any)
		b.holds(charge, `{"invoice": "`+invoice+`", "amount": 28}`)
		b.holds(b.invoice(invoice), fmt.Sprintf(`{"status": "paid", "total": 28, "amount_paid": 28, "starting_balance": 0, "ending_balance": 0, "payment_intent": %q, "charge": %q,
			"footer": "bye", "metadata": {"a": "b"}, "billing_reason": "manual", "attempt_count": 1}`, intent, charge["id"]))
		lines := b.invoice(invoice)["lines"].(map[string]any)["data"].([]any)
		b.holds(lines[0].(map[string]any), `{"amount": 21, "quantity": 3, "description": "Pack"}`)
		b.holds(lines[1].(map[string]any), `{"amount": 7, "quantity": 1}`)
		kinds, _ := b.raised(invoice)
		if want := []string{"invoice.created", "invoice.finalized", "invoice.updated", "invoice.paid", "invoice.payment_succeeded"}; !slices.Equal(kinds, want) {
			t.Errorf("the invoice's events are %q, want %q", kinds, want)
		}
	}
	b.holds(b.must(http.MethodGet, "/v1/customers/"+b.customer, ""), `{"balance": -300}`)
}

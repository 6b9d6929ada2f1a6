package webhooks_test

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
)

// billed is a till beside a shop whose customer can be invoiced.
func billed(t *testing.T) *scene {
	t.Helper()
	s, d := beside(t)
	c := &scene{till: d, h: &history{t: t, s: s}, t: t}
	method := s.Make("/v1/payment_methods", url.Values{"type": {"card"}, "card[token]": {"tok_visa"}})
	s.Make("/v1/payment_methods/"+method+"/attach", url.Values{"customer": {s.Customer}})
	s.Make("/v1/customers/"+s.Customer, url.Values{"invoice_settings[default_payment_method]": {method}})
	c.h.news()
	return c
}

// invoice drafts and finalizes an invoice of acme's for packs of a price.
func (c *scene) invoice(price, quantity string, more url.Values) (id string) {
	c.t.Helper()
	values := url.Values{"customer": {c.shop().Customer}, "auto_advance": {"false"}}
	for name, v := range more {
		values[name] = v
	}
	id = c.shop().Make("/v1/invoices", values)
	c.shop().Make("/v1/invoiceitems", url.Values{"customer": {c.shop().Customer}, "invoice": {id}, "price": {price}, "quantity": {quantity}})
	c.shop().Make("/v1/invoices/"+id+"/finalize", nil)
	return id
}

// pays settles an invoice and remembers its payment.
func (c *scene) settles(invoice string, how url.Values) {
	c.t.Helper()
	c.shop().Make("/v1/invoices/"+invoice+"/pay", how)
	c.payment = fmt.Sprint(c.shop().Stripe(http.MethodGet, "/v1/invoices/"+invoice, nil)["payment_intent"])
}

// TestE02AnInvoiceBuysOncePerPaymentWhateverEventsCome delivers all of them twice.
func TestE02AnInvoiceBuysOncePerPaymentWhateverEventsCome(t *testing.T) {
	t.Parallel()
	c := billed(t)
	invoice := c.invoice(c.shop().Price, "3", nil)
	c.hear("0")
	c.settles(invoice, nil)
	c.hear("300")
	for _, body := range c.h.all {
		c.deliver(body)
	}
	c.step()
	c.has("acme", "300")
	if got := c.payment; c.till.payment(got).State != "granted" {
		t.Errorf("the grant is not keyed on the payment intent %s: %+v", got, c.rows())
	}
	c.refunds("1500")
	c.hear("150")
	c.verify()
}

func TestAnInvoicePaidOutsideOfStripeCountsAsPaid(t *testing.T) {
	t.Parallel()
	c := billed(t)
	invoice := c.invoice(c.shop().Price, "1", nil)
	c.settles(invoice, url.Values{"paid_out_of_band": {"true"}})
	c.hear("100")
	if got := c.till.payment(invoice); got.State != "granted" || got.Account != "acme" {
		t.Errorf("the invoice is %+v, want it granted", got)
	}
	c.verify()
}

func TestInvoicesThatBuyNothing(t *testing.T) {
	t.Parallel()
	c := billed(t)
	other := c.shop().Pack(nil) // no credits
	c.settles(c.invoice(other, "1", nil), nil)
	c.hear("0")
	voided := c.invoice(c.shop().Price, "1", nil)
	c.shop().Make("/v1/invoices/"+voided+"/void", nil)
	c.hear("0")
	lost := c.invoice(c.shop().Price, "1", nil)
	c.shop().Make("/v1/invoices/"+lost+"/mark_uncollectible", nil)
	c.hear("0")
	free := c.shop().Make("/v1/prices", url.Values{
		"product": {c.shop().Make("/v1/products", url.Values{"name": {"free"}})}, "currency": {"usd"}, "unit_amount": {"0"}, "metadata[credits]": {"9"},
	})
	c.invoice(free, "1", nil) // of nothing: Stripe marks it paid by itself
	c.hear("0")
	if n := c.count("SELECT count(*) FROM payments"); n != 0 {
		t.Errorf("%d payments are kept", n)
	}
	c.shop().Make("/v1/invoices/"+lost+"/pay", nil)
	c.hear("100") // paid after all
}

// TestASubscriptionBuysCreditsWhereItsPriceSaysSo counts each period's invoice once.
func TestASubscriptionBuysCreditsWhereItsPriceSaysSo(t *testing.T) {
	t.Parallel()
	c := billed(t)
	monthly := func(credits string) string {
		values := url.Values{
			"product": {c.shop().Make("/v1/products", url.Values{"name": {"plan"}})}, "currency": {"usd"}, "unit_amount": {"2000"}, "recurring[interval]": {"month"},
		}
		if credits != "" {
			values.Set("metadata[credits]", credits)
		}
		return c.shop().Make("/v1/prices", values)
	}
	c.shop().Make("/v1/subscriptions", url.Values{"customer": {c.shop().Customer}, "items[0][price]": {monthly("")}})
	c.hear("0")
	c.shop().Make("/v1/subscriptions", url.Values{"customer": {c.shop().Customer}, "items[0][price]": {monthly("500")}, "items[0][quantity]": {"2"}})
	c.hear("1000")
	c.shop().Make("/v1/subscriptions", url.Values{"customer": {c.shop().Customer}, "items[0][price]": {monthly("7")}, "trial_period_days": {"7"}})
	c.hear("1000") // the trial's first invoice asks for nothing
	if n := c.count("SELECT count(*) FROM payments WHERE state = 'parked'"); n != 0 {
		t.Errorf("%d payments of subscriptions are parked", n)
	}
	c.verify()
}

// TestACreditNoteTakesBackWhatNoRefundDoes has all three parts in one note: its
// refund counts as the refund that it is, and not twice.
func TestACreditNoteTakesBackWhatNoRefundDoes(t *testing.T) {
	t.Parallel()
	c := billed(t)
	invoice := c.invoice(c.shop().Price, "1", nil)
	c.settles(invoice, nil)
	c.hear("100")
	note := c.shop().Make("/v1/credit_notes", url.Values{
		"invoice": {invoice}, "amount": {"600"}, "credit_amount": {"100"}, "out_of_band_amount": {"200"}, "refund_amount": {"300"},
	})
	c.hear("40")
	if got := c.journal(note); got != "[refund 30]" {
		t.Errorf("the note itself moved %s, want what is no refund", got)
	}
	c.shop().Make("/v1/credit_notes", url.Values{"invoice": {invoice}, "amount": {"400"}, "refund_amount": {"400"}})
	c.hear("0")
	c.verify()
}

// TestACreditNoteBeforeThePaymentLowersWhatIsBought voids it again.
func TestACreditNoteBeforeThePaymentLowersWhatIsBought(t *testing.T) {
	t.Parallel()
	c := billed(t)
	invoice := c.invoice(c.shop().Price, "1", nil)
	c.shop().Make("/v1/credit_notes", url.Values{"invoice": {invoice}, "amount": {"250"}})
	c.hear("0")
	c.settles(invoice, nil)
	c.hear("75")
	c.verify()
}

// TestACheckoutThatMakesAnInvoiceIsOnePurchase has credits on both ways.
func TestACheckoutThatMakesAnInvoiceIsOnePurchase(t *testing.T) {
	t.Parallel()
	c := billed(t)
	session := c.shop().Make("/v1/checkout/sessions", url.Values{
		"mode": {"payment"}, "customer": {c.shop().Customer}, "client_reference_id": {"acme"}, "success_url": {"https://example.com/thanks"},
		"invoice_creation[enabled]": {"true"}, "line_items[0][price]": {c.shop().Price}, "line_items[0][quantity]": {"1"},
	})
	c.h.pay(session, "paid")
	c.hear("100")
	c.payment = c.h.payments[0]
	c.refunds("1000")
	c.hear("0")
	if n := c.count("SELECT count(*) FROM payments"); n != 1 {
		t.Errorf("it is %d payments", n)
	}
	c.verify()
}

// TestSeveralPacksInOneSessionAddUp buys two of one and three of another.
func TestSeveralPacksInOneSessionAddUp(t *testing.T) {
	t.Parallel()
	c := billed(t)
	small := c.shop().Pack(url.Values{"metadata[credits]": {"7"}})
	session := c.shop().Make("/v1/checkout/sessions", url.Values{
		"mode": {"payment"}, "customer": {c.shop().Customer}, "client_reference_id": {"acme"}, "success_url": {"https://example.com/thanks"},
		"line_items[0][price]": {c.shop().Price}, "line_items[0][quantity]": {"2"}, "line_items[1][price]": {small}, "line_items[1][quantity]": {"3"},
	})
	c.h.pay(session, "paid")
	c.hear("221")
	c.h.pay(c.shop().Checkout(small), "paid")
	c.hear("228")
}

// TestADeletedCustomerKeepsItsAccount refunds its payment afterwards.
func TestADeletedCustomerKeepsItsAccount(t *testing.T) {
	t.Parallel()
	c := purchased(t)
	c.shop().Stripe(http.MethodDelete, "/v1/customers/"+c.shop().Customer, nil)
	c.hear("100")
	c.refunds("400")
	c.hear("60")
	if n := c.count("SELECT count(*) FROM stripe_customers"); n != 1 {
		t.Errorf("acme has %d customers", n)
	}
}

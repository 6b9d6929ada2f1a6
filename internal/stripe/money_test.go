package stripe_test

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"tallystick/internal/stripe"
	"tallystick/stripesim"
)

// charged makes a payment of 10.00 USD at the simulator, and its charge.
func charged(t *testing.T, sim *stripesim.Sim) (client *stripe.Client, payment string) {
	t.Helper()
	payment = made(t, sim, "/v1/payment_intents", url.Values{
		"amount": {"1000"}, "currency": {"usd"}, "payment_method": {"pm_card_visa"}, "payment_method_types[0]": {"card"}, "confirm": {"true"},
	})
	return stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL}), payment
}

func TestRefundsAreReadOneByOneOfAPaymentAndByTime(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client, payment := charged(t, sim)
	first := made(t, sim, "/v1/refunds", url.Values{"payment_intent": {payment}, "amount": {"100"}})
	second := made(t, sim, "/v1/refunds", url.Values{"payment_intent": {payment}, "amount": {"200"}})
	one, err := client.Refund(t.Context(), first)
	if err != nil || one.Money != 100 || one.Status != "succeeded" || one.PaymentIntent != payment || one.Charge == "" || one.Currency != "usd" {
		t.Errorf("the refund is %+v, %v", one, err)
	}
	if _, err := client.Refund(t.Context(), "re_nowhere"); !stripe.IsMissing(err) {
		t.Errorf("an unknown refund: %v", err)
	}
	var listed []string
	err = client.Refunds(t.Context(), sim.Now().Add(-time.Minute), sim.Now().Add(time.Minute), func(r stripe.Refund) error {
		listed = append(listed, r.ID)
		return nil
	})
	if err != nil || fmt.Sprint(listed) != fmt.Sprint([]string{second, first}) {
		t.Errorf("listed are %v, %v; want the newest first", listed, err)
	}
	of, err := client.RefundsOf(t.Context(), payment)
	if err != nil || len(of) != 2 || of[0].ID != second || of[0].Money != 200 {
		t.Errorf("of the payment are %+v, %v", of, err)
	}
}

// TestADisputeIsReadWithTheMoneyThatMoved follows it from its opening to a part of
// the money coming back.
func TestADisputeIsReadWithTheMoneyThatMoved(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client, payment := charged(t, sim)
	of, err := client.DisputesOf(t.Context(), payment)
	if err != nil || len(of) != 0 {
		t.Fatalf("before there are %+v, %v", of, err)
	}
	var charge string
	refund := made(t, sim, "/v1/refunds", url.Values{"payment_intent": {payment}, "amount": {"1"}}) // a refund names the charge
	if r, err := client.Refund(t.Context(), refund); err == nil {
		charge = r.Charge
	}
	id, err := sim.OpenDispute(stripesim.Dispute{Charge: charge, Amount: 999})
	if err != nil {
		t.Fatal(err)
	}
	d, err := client.Dispute(t.Context(), id)
	if err != nil || d.Money != 999 || d.Status != "needs_response" || !d.Open() || d.Inquiry() || d.PaymentIntent != payment || d.Reason != "fraudulent" || d.Refundable {
		t.Errorf("opened it is %+v, %v", d, err)
	}
	if len(d.Movements) != 1 || d.Movements[0].Money != -999 || d.Movements[0].Category != "dispute" || d.Movements[0].Fee <= 0 || d.Movements[0].CreatedAt.IsZero() {
		t.Errorf("opened it moved %+v", d.Movements)
	}
	if d.EvidenceDueAt.Before(sim.Now()) {
		t.Errorf("evidence is due at %v", d.EvidenceDueAt)
	}
	if err := sim.ResolveDispute(id, "partly_won", 400); err != nil {
		t.Fatal(err)
	}
	of, err = client.DisputesOf(t.Context(), payment)
	if err != nil || len(of) != 1 || of[0].Status != "lost" || of[0].Open() || len(of[0].Movements) != 2 || of[0].Movements[1].Money != 400 ||
		of[0].Movements[1].Category != "dispute_reversal" {
		t.Errorf("partly won it is %+v, %v", of, err)
	}
	if byCharge, err := client.DisputesOf(t.Context(), d.Charge); err != nil || len(byCharge) != 1 || byCharge[0].ID != id {
		t.Errorf("of the charge are %+v, %v", byCharge, err)
	}
	var listed []string
	err = client.Disputes(t.Context(), sim.Now().Add(-time.Minute), sim.Now().Add(time.Minute), func(d stripe.Dispute) error {
		listed = append(listed, d.ID)
		return nil
	})
	if err != nil || len(listed) != 1 || listed[0] != id {
		t.Errorf("listed are %v, %v", listed, err)
	}
}

func TestEndpointsAreMadeReadAndMended(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	events := []string{"charge.refunded", "payment_intent.succeeded"}
	for i := range 12 { // more than one digit in the place of a list
		events = append(events, fmt.Sprintf("made.up_%d", i))
	}
	first, err := client.CreateEndpoint(t.Context(), "http://localhost:1/webhooks/stripe", events, "key-1")
	if err != nil || first.Secret == "" || first.APIVersion != stripe.APIVersion || !first.Enabled {
		t.Fatalf("made is %+v, %v", first, err)
	}
	again, err := client.CreateEndpoint(t.Context(), "http://localhost:1/webhooks/stripe", events, "key-1")
	if err != nil || again.ID != first.ID {
		t.Errorf("the same call made %+v, %v; want the same endpoint", again, err)
	}
	if _, err := client.UpdateEndpoint(t.Context(), first.ID, events[:2], "key-2"); err != nil {
		t.Fatal(err)
	}
	all, err := client.Endpoints(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != first.ID || fmt.Sprint(all[0].EnabledEvents) != fmt.Sprint(events[:2]) || all[0].Secret != "" {
		t.Errorf("listed are %+v, %v", all, err)
	}
	if _, err := client.CreateEndpoint(t.Context(), "nonsense", events, "key-3"); err == nil {
		t.Error("an endpoint without an address was made")
	}
}

// TestAnInvoiceIsReadWithAllItsLinesAndWhatWasTakenBackOfIt has more lines than an
// invoice shows.
func TestAnInvoiceIsReadWithAllItsLinesAndWhatWasTakenBackOfIt(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	customer := made(t, sim, "/v1/customers", url.Values{"name": {"acme"}, "payment_method": {"pm_card_visa"}, "invoice_settings[default_payment_method]": {"pm_card_visa"}})
	product := made(t, sim, "/v1/products", url.Values{"name": {"credits"}, "metadata[credits]": {"7"}})
	price := made(t, sim, "/v1/prices", url.Values{"product": {product}, "currency": {"usd"}, "unit_amount": {"100"}, "metadata[credits]": {"5"}})
	invoice := made(t, sim, "/v1/invoices", url.Values{"customer": {customer}, "metadata[account]": {"acme"}})
	for range 12 {
		made(t, sim, "/v1/invoiceitems", url.Values{"customer": {customer}, "invoice": {invoice}, "price": {price}, "quantity": {"3"}})
	}
	made(t, sim, "/v1/invoices/"+invoice+"/pay", nil)
	i, err := client.Invoice(t.Context(), invoice)
	if err != nil || i.Status != "paid" || !i.Paid || i.OutOfBand || i.Total != 3600 || i.AmountPaid != 3600 || i.PaymentIntent == "" || i.Customer != customer ||
		i.BillingReason != "manual" || i.Metadata["account"] != "acme" || i.PaidAt.IsZero() || i.FinalizedAt.IsZero() || len(i.Lines) != 12 {
		t.Fatalf("the invoice is %+v, %v", i, err)
	}
	for _, line := range i.Lines {
		if line.Price != price || line.Product != product || line.Quantity != 3 || line.Money != 300 || line.Type != "invoiceitem" ||
			line.PriceMetadata["credits"] != "5" || line.ProductMetadata["credits"] != "7" || line.Metered || line.Proration {
			t.Errorf("a line is %+v", line)
		}
	}
	pi, err := client.PaymentIntent(t.Context(), i.PaymentIntent)
	if err != nil || pi.Invoice != invoice {
		t.Errorf("its payment is %+v, %v", pi, err)
	}
	if _, ok, err := client.SessionOfInvoice(t.Context(), customer, invoice); ok || err != nil {
		t.Errorf("it has a session: %t, %v", ok, err)
	}
	note := made(t, sim, "/v1/credit_notes", url.Values{"invoice": {invoice}, "amount": {"600"}, "credit_amount": {"100"}, "out_of_band_amount": {"200"}, "refund_amount": {"300"}})
	notes, err := client.CreditNotesOf(t.Context(), invoice)
	if err != nil || len(notes) != 1 {
		t.Fatalf("its notes are %+v, %v", notes, err)
	}
	if n := notes[0]; n.ID != note || n.Money != 600 || n.OutOfBand != 200 || n.Refund == "" || n.Balance == "" || n.Type != "post_payment" || n.Status != "issued" || n.Invoice != invoice {
		t.Errorf("its note is %+v", n)
	}
	if n, err := client.CreditNote(t.Context(), note); err != nil || n != notes[0] {
		t.Errorf("the note alone is %+v, %v", n, err)
	}
	var listed []string
	err = client.Invoices(t.Context(), sim.Now().Add(-time.Minute), sim.Now().Add(time.Minute), func(i stripe.Invoice) error {
		listed = append(listed, i.ID)
		return nil
	})
	if err != nil || len(listed) != 1 || listed[0] != invoice {
		t.Errorf("listed are %v, %v", listed, err)
	}
}

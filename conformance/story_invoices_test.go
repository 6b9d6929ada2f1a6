package conformance

import (
	"testing"

	"github.com/stripe/stripe-go/v76"
)

// invoicing plays invoices, invoice items, credit notes and the customer's balance.
func (s *story) invoicing(price *stripe.Price) {
	customer, err := s.api.Customers.New(&stripe.CustomerParams{Name: stripe.String("Billed"), Email: stripe.String("billed@example.com"), Balance: stripe.Int64(-150)})
	s.must(err)
	balance, err := s.api.CustomerBalanceTransactions.New(&stripe.CustomerBalanceTransactionParams{
		Customer: stripe.String(customer.ID), Amount: stripe.Int64(-100), Currency: stripe.String("usd"), Description: stripe.String("a gift"),
	})
	s.must(err)
	_, err = s.api.CustomerBalanceTransactions.Update(balance.ID, &stripe.CustomerBalanceTransactionParams{Customer: stripe.String(customer.ID), Description: stripe.String("a present")})
	s.must(err)
	_, err = s.api.CustomerBalanceTransactions.Get(balance.ID, &stripe.CustomerBalanceTransactionParams{Customer: stripe.String(customer.ID)})
	s.must(err)
	_, err = s.api.Invoices.Upcoming(&stripe.InvoiceUpcomingParams{Customer: stripe.String(customer.ID)})
	s.refused(err, stripe.ErrorCodeInvoiceUpcomingNone)
	s.invoiceItems(customer)
	invoice := s.paidInvoice(customer, price)
	s.creditNotes(invoice)
	s.unpaidInvoices(customer)
	s.invoicedCheckout(customer, price)
	s.invoiceLists(customer)
}

func (s *story) invoiceItems(customer *stripe.Customer) {
	item, err := s.api.InvoiceItems.New(&stripe.InvoiceItemParams{
		Customer: stripe.String(customer.ID), Amount: stripe.Int64(1234), Currency: stripe.String("usd"), Description: stripe.String("Work"),
		Metadata: map[string]string{"a": "b"}, Period: &stripe.InvoiceItemPeriodParams{Start: stripe.Int64(1700000000), End: stripe.Int64(1700086400)},
	})
	s.must(err)
	_, err = s.api.InvoiceItems.Update(item.ID, &stripe.InvoiceItemParams{UnitAmountDecimal: stripe.Float64(0.125), Quantity: stripe.Int64(10000)})
	s.must(err)
	_, err = s.api.InvoiceItems.Get(item.ID, nil)
	s.must(err)
	upcoming, err := s.api.Invoices.Upcoming(&stripe.InvoiceUpcomingParams{Customer: stripe.String(customer.ID)})
	s.must(err)
	if upcoming.Total != 1250 || upcoming.AmountDue != 1000 {
		s.t.Errorf("the upcoming invoice is of %d, %d due, want 1250 and 1000", upcoming.Total, upcoming.AmountDue)
	}
	lines := s.api.Invoices.UpcomingLines(&stripe.InvoiceUpcomingLinesParams{Customer: stripe.String(customer.ID)})
	for lines.Next() {
		if lines.InvoiceLineItem().Quantity != 10000 {
			s.t.Errorf("the upcoming line has the quantity %d", lines.InvoiceLineItem().Quantity)
		}
	}
	s.must(lines.Err())
	gone, err := s.api.InvoiceItems.New(&stripe.InvoiceItemParams{Customer: stripe.String(customer.ID), Amount: stripe.Int64(-5), Currency: stripe.String("usd")})
	s.must(err)
	_, err = s.api.InvoiceItems.Del(gone.ID, nil)
	s.must(err)
}

func (s *story) paidInvoice(customer *stripe.Customer, price *stripe.Price) *stripe.Invoice {
	invoice, err := s.api.Invoices.New(&stripe.InvoiceParams{
		Customer: stripe.String(customer.ID), PendingInvoiceItemsBehavior: stripe.String("include"), Description: stripe.String("for work"),
		CustomFields: []*stripe.InvoiceCustomFieldParams{{Name: stripe.String("PO"), Value: stripe.String("7")}},
	})
	s.must(err)
	for range 11 {
		_, err = s.api.InvoiceItems.New(&stripe.InvoiceItemParams{Customer: stripe.String(customer.ID), Invoice: stripe.String(invoice.ID), Price: stripe.String(price.ID)})
		s.must(err)
	}
	_, err = s.api.Invoices.Update(invoice.ID, &stripe.InvoiceParams{Footer: stripe.String("thanks"), Metadata: map[string]string{"c": "d"}})
	s.must(err)
	_, err = s.api.Invoices.FinalizeInvoice(invoice.ID, nil)
	s.must(err)
	_, err = s.api.Invoices.Pay(invoice.ID, &stripe.InvoicePayParams{PaymentMethod: stripe.String("pm_card_chargeDeclined")})
	s.refused(err, stripe.ErrorCodeCardDeclined)
	pay := &stripe.InvoicePayParams{PaymentMethod: stripe.String("pm_card_visa")}
	for _, name := range []string{"payment_intent", "charge", "customer", "lines.data.price.product"} {
		pay.AddExpand(name)
	}
	invoice, err = s.api.Invoices.Pay(invoice.ID, pay)
	s.must(err)
	if invoice.Status != "paid" || invoice.Total != 12250 || invoice.AmountPaid != 12000 || invoice.Charge.Amount != 12000 || !invoice.Lines.HasMore || invoice.Lines.Data[0].Price != nil {
		s.t.Errorf("the paid invoice is %+v", invoice)
	}
	n := 0
	lines := s.api.Invoices.ListLines(&stripe.InvoiceListLinesParams{Invoice: stripe.String(invoice.ID), ListParams: stripe.ListParams{Limit: stripe.Int64(5)}})
	for lines.Next() {
		n++
	}
	s.must(lines.Err())
	if n != 12 {
		s.t.Errorf("the invoice has %d lines, want 12", n)
	}
	return invoice
}

func (s *story) creditNotes(invoice *stripe.Invoice) {
	params := &stripe.CreditNoteParams{
		Invoice: stripe.String(invoice.ID), RefundAmount: stripe.Int64(700), CreditAmount: stripe.Int64(200), OutOfBandAmount: stripe.Int64(100),
		Reason: stripe.String("order_change"), Memo: stripe.String("sorry"), Lines: []*stripe.CreditNoteLineParams{
			{Type: stripe.String("invoice_line_item"), InvoiceLineItem: stripe.String(invoice.Lines.Data[1].ID), Quantity: stripe.Int64(1)},
		},
	}
	_, err := s.api.CreditNotes.Preview(&stripe.CreditNotePreviewParams{Invoice: stripe.String(invoice.ID), Amount: stripe.Int64(5), OutOfBandAmount: stripe.Int64(5)})
	s.must(err)
	preview := s.api.CreditNotes.PreviewLines(&stripe.CreditNotePreviewLinesParams{Invoice: stripe.String(invoice.ID), Amount: stripe.Int64(5), OutOfBandAmount: stripe.Int64(5)})
	for preview.Next() {
		if preview.CreditNoteLineItem().Amount != 5 {
			s.t.Errorf("the previewed line is of %d", preview.CreditNoteLineItem().Amount)
		}
	}
	s.must(preview.Err())
	params.AddExpand("refund")
	note, err := s.api.CreditNotes.New(params)
	s.must(err)
	if note.Type != "post_payment" || note.Refund.Amount != 700 || note.CustomerBalanceTransaction == nil || note.Total != 1000 {
		s.t.Errorf("the credit note is %+v", note)
	}
	_, err = s.api.CreditNotes.Update(note.ID, &stripe.CreditNoteParams{Memo: stripe.String("very sorry")})
	s.must(err)
	_, err = s.api.CreditNotes.Get(note.ID, nil)
	s.must(err)
	lines := s.api.CreditNotes.ListLines(&stripe.CreditNoteListLinesParams{CreditNote: stripe.String(note.ID)})
	for lines.Next() {
		if lines.CreditNoteLineItem().Quantity != 1 {
			s.t.Errorf("the line's quantity is %d", lines.CreditNoteLineItem().Quantity)
		}
	}
	s.must(lines.Err())
}

// unpaidInvoices ends an invoice in every way but payment.
func (s *story) unpaidInvoices(customer *stripe.Customer) {
	open := func() *stripe.Invoice {
		invoice, err := s.api.Invoices.New(&stripe.InvoiceParams{Customer: stripe.String(customer.ID), CollectionMethod: stripe.String("send_invoice"), DaysUntilDue: stripe.Int64(30)})
		s.must(err)
		_, err = s.api.InvoiceItems.New(&stripe.InvoiceItemParams{Customer: stripe.String(customer.ID), Invoice: stripe.String(invoice.ID), UnitAmount: stripe.Int64(300), Quantity: stripe.Int64(3), Currency: stripe.String("usd")})
		s.must(err)
		invoice, err = s.api.Invoices.SendInvoice(invoice.ID, nil)
		s.must(err)
		return invoice
	}
	invoice := open()
	note, err := s.api.CreditNotes.New(&stripe.CreditNoteParams{Invoice: stripe.String(invoice.ID), Lines: []*stripe.CreditNoteLineParams{
		{Type: stripe.String("custom_line_item"), Description: stripe.String("late"), Quantity: stripe.Int64(2), UnitAmount: stripe.Int64(10)},
	}})
	s.must(err)
	_, err = s.api.CreditNotes.VoidCreditNote(note.ID, nil)
	s.must(err)
	_, err = s.api.Invoices.VoidInvoice(invoice.ID, nil)
	s.must(err)
	_, err = s.api.Invoices.MarkUncollectible(open().ID, nil)
	s.must(err)
	_, err = s.api.Invoices.Pay(open().ID, &stripe.InvoicePayParams{PaidOutOfBand: stripe.Bool(true)})
	s.must(err)
	_, err = s.api.CreditNotes.New(&stripe.CreditNoteParams{Invoice: stripe.String(open().ID), Amount: stripe.Int64(900)})
	s.must(err)
	draft, err := s.api.Invoices.New(&stripe.InvoiceParams{Customer: stripe.String(customer.ID), AutoAdvance: stripe.Bool(true)})
	s.must(err)
	_, err = s.api.Invoices.Del(draft.ID, nil)
	s.must(err)
}

func (s *story) invoicedCheckout(customer *stripe.Customer, price *stripe.Price) {
	session, err := s.api.CheckoutSessions.New(&stripe.CheckoutSessionParams{
		Mode: stripe.String("payment"), Customer: stripe.String(customer.ID), SuccessURL: stripe.String("https://example.com/thanks"),
		LineItems:       []*stripe.CheckoutSessionLineItemParams{{Price: stripe.String(price.ID), Quantity: stripe.Int64(2)}},
		InvoiceCreation: &stripe.CheckoutSessionInvoiceCreationParams{Enabled: stripe.Bool(true), InvoiceData: &stripe.CheckoutSessionInvoiceCreationInvoiceDataParams{Footer: stripe.String("bye")}},
	})
	s.must(err)
	s.must(s.sim.PayCheckout(session.ID, "paid"))
	params := &stripe.CheckoutSessionParams{}
	params.AddExpand("invoice")
	params.AddExpand("payment_intent.invoice")
	session, err = s.api.CheckoutSessions.Get(session.ID, params)
	s.must(err)
	if session.Invoice.Total != 2000 || session.PaymentIntent.Invoice.ID != session.Invoice.ID || session.Invoice.PaymentIntent.ID != session.PaymentIntent.ID {
		s.t.Errorf("the session's invoice is %+v", session.Invoice)
	}
}

func (s *story) invoiceLists(customer *stripe.Customer) {
	small := stripe.ListParams{Limit: stripe.Int64(3)}
	count := func(name string, next func() bool, err func() error, least int) {
		n := 0
		for next() {
			n++
		}
		s.must(err())
		if n < least {
			s.t.Errorf("the list of %s has %d, want at least %d", name, n, least)
		}
	}
	invoices := s.api.Invoices.List(&stripe.InvoiceListParams{ListParams: small, Customer: stripe.String(customer.ID), CreatedRange: &stripe.RangeQueryParams{GreaterThan: 1}})
	count("invoices", invoices.Next, invoices.Err, 6)
	items := s.api.InvoiceItems.List(&stripe.InvoiceItemListParams{ListParams: small, Customer: stripe.String(customer.ID), Pending: stripe.Bool(false)})
	count("invoice items", items.Next, items.Err, 16)
	notes := s.api.CreditNotes.List(&stripe.CreditNoteListParams{ListParams: small, Customer: stripe.String(customer.ID)})
	count("credit notes", notes.Next, notes.Err, 3)
	balance := s.api.CustomerBalanceTransactions.List(&stripe.CustomerBalanceTransactionListParams{ListParams: small, Customer: stripe.String(customer.ID)})
	count("balance transactions", balance.Next, balance.Err, 4)
}

// TestAnUpcomingInvoiceHasNoID holds the one object that is answered without one.
func TestAnUpcomingInvoiceHasNoID(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	customer := s.customers()
	_, err := s.api.InvoiceItems.New(&stripe.InvoiceItemParams{Customer: stripe.String(customer.ID), Amount: stripe.Int64(70), Currency: stripe.String("usd")})
	s.must(err)
	upcoming, err := s.api.Invoices.Upcoming(&stripe.InvoiceUpcomingParams{Customer: stripe.String(customer.ID)})
	s.must(err)
	if upcoming.ID != "" || upcoming.Lines.Data[0].ID == "" {
		t.Errorf("the upcoming invoice is %+v", upcoming)
	}
}

package webhooks

// invoiceHandlers are for invoices. One that is voided or given up was not paid:
// it concerns us only when we have taken it for paid before.
var invoiceHandlers = map[string]handler{
	"invoice.paid":                 {lead: invoiceLead},
	"invoice.voided":               {lead: invoiceLead, known: true},
	"invoice.marked_uncollectible": {lead: invoiceLead, known: true},
}

// invoiceLead is the invoice, not its payment intent: one that is paid outside of
// Stripe keeps a payment intent that never will be.
func invoiceLead(object []byte) (string, error) {
	i, err := readIDs(object)
	return i.ID, err
}

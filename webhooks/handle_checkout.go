package webhooks

import "cmp"

// checkoutHandlers are for sessions that were paid at once, or later, or not at
// all. A session leads to its payment intent, or to itself when nothing had to be paid.
var checkoutHandlers = map[string]handler{
	"checkout.session.completed":               {lead: sessionLead},
	"checkout.session.async_payment_succeeded": {lead: sessionLead},
	"checkout.session.async_payment_failed":    {lead: sessionLead, known: true},
}

func sessionLead(object []byte) (string, error) {
	i, err := readIDs(object)
	return cmp.Or(i.PaymentIntent.ID, i.ID), err
}

package webhooks

// refundHandlers are for refunds, whose events carry a charge or a refund; both
// name the payment intent. One without has bought no credits. The names of later
// API versions are taken, too.
var refundHandlers = map[string]handler{
	"charge.refunded":       {lead: moneyBackLead},
	"charge.refund.updated": {lead: moneyBackLead},
	"refund.created":        {lead: moneyBackLead},
	"refund.updated":        {lead: moneyBackLead},
	"refund.failed":         {lead: moneyBackLead},
}

func moneyBackLead(object []byte) (string, error) {
	i, err := readIDs(object)
	return i.PaymentIntent.ID, err
}

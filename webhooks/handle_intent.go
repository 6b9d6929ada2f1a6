package webhooks

// intentHandlers are for payment intents. One that fails concerns us only when we
// have taken it for paid before: a buyer's card is refused every day.
var intentHandlers = map[string]handler{
	"payment_intent.succeeded":      {lead: intentLead},
	"payment_intent.payment_failed": {lead: intentLead, known: true},
	"payment_intent.canceled":       {lead: intentLead, known: true},
}

func intentLead(object []byte) (string, error) {
	i, err := readIDs(object)
	return i.ID, err
}

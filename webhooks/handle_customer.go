package webhooks

// customerHandlers are for customers. One that is deleted keeps its account: its
// refunds and disputes go on coming, and its credits are still there.
var customerHandlers = map[string]handler{
	"customer.deleted": {lead: nowhere},
}

// nowhere is for events that are right to come and change nothing.
func nowhere(object []byte) (string, error) {
	_, err := readIDs(object)
	return "", err
}

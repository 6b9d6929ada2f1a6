package webhooks

import (
	"maps"
	"slices"
)

// handler says what an event of one type leads to.
type handler struct {
	// lead gives the id of what Stripe is to be asked about; "" when the event
	// changes nothing here.
	lead func(object []byte) (string, error)
	// known: the event matters only for a payment that we have a record of.
	known bool
}

// handlers are all types of events that change something here. The webhook
// endpoint is made to listen to them, and the sweep looks for them.
var handlers = table()

func table() map[string]handler {
	all := map[string]handler{}
	for _, family := range []map[string]handler{
		checkoutHandlers, intentHandlers, refundHandlers, disputeHandlers, invoiceHandlers, creditNoteHandlers, customerHandlers,
	} {
		maps.Copy(all, family)
	}
	return all
}

// later are types that Stripe's API version 2023-10-16 does not know yet. They are
// handled when they come, and nothing can listen to them.
var later = []string{"refund.failed"}

// EventTypes lists the types of events that the webhook endpoint must listen to.
func EventTypes() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(handlers)), func(kind string) bool { return slices.Contains(later, kind) })
}

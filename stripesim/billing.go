package stripesim

import "math/big"

// invoiceDraft is what an invoice is made of.
type invoiceDraft struct {
	customer     string
	subscription string // "" for one that is made by hand
	reason       string // billing_reason: subscription_create, subscription_cycle, subscription_update, subscription_threshold, manual
	currency     string
	start, end   int64 // period_start, period_end
	lines        []billedItem
	advance      bool // auto_advance: it is finalized and paid by itself, an hour after it was made
	atOnce       bool // it is finalized and paid in the same moment, as the first one of a subscription
	unpaid       bool // with atOnce: it is finalized only, as with payment_behavior default_incomplete
	params       params
}

// billedItem is what a subscription's item contributes to an invoice. Its amount is
// computed from its quantity and price; that of a price with a billing meter is
// computed again when the invoice is finalized.
type billedItem struct {
	item        object // the subscription item
	price       object
	quantity    *big.Rat
	start, end  int64 // the time that is billed
	proration   bool
	amount      *big.Int // instead of what quantity and price give, as for a proration
	description string   // instead of what price and product give
}

package reconcile

import "time"

// Repairs, by the names that checks give them. Every one measures anew before it
// acts and is done once for each time that a finding opened.
const (
	repairResendUsage       = "resend_usage"       // send what Stripe lacks; args resend
	repairCancelUsage       = "cancel_usage"       // cancel meter events that Stripe has too much, within 24 hours; args cancelArgs
	repairPropose           = "propose"            // say what a person should make at Stripe; args proposalArgs
	repairFeedEvent         = "feed_event"         // put a missed event into the inbox; args {"event": "evt_…"}
	repairGrantCredits      = "grant_credits"      // settle a payment again, which grants what is missing; args paymentArgs
	repairTakeBack          = "take_back"          // the same, which takes back what was refunded or lost in a dispute; args paymentArgs
	repairRebuildBalance    = "rebuild_balance"    // bring an account's projections back to its journal; no args
	repairSettleReservation = "settle_reservation" // release or capture a reservation that is in doubt; args reservationArgs
)

// cancelArgs names the meter events that are too much at Stripe.
type cancelArgs struct {
	Account    string           `json:"account"`
	Meter      string           `json:"meter"`
	EventName  string           `json:"event_name"`
	Events     []meterEventArgs `json:"events"`
	Spans      []spanArgs       `json:"spans"`       // in which Stripe has too much: measured anew before anything is cancelled
	ReceivedAt time.Time        `json:"received_at"` // of the oldest, as far as is known: Stripe cancels for 24 hours from it
}

// meterEventArgs is one that Stripe has counted.
type meterEventArgs struct {
	Identifier string `json:"identifier"`
	Quantity   string `json:"quantity"`
}

// proposalArgs is what a person should make at Stripe, to the last unit. The auditor
// never makes it: invoices and credit notes are seen by customers.
type proposalArgs struct {
	Kind        string `json:"kind"` // credit_note or invoice_item
	Customer    string `json:"customer"`
	Invoice     string `json:"invoice,omitempty"` // that a credit note is for
	Amount      int64  `json:"amount"`            // minor units, positive
	Currency    string `json:"currency"`
	Description string `json:"description"` // for the customer
}

// paymentArgs names a payment object whose grants and clawbacks are brought to what
// Stripe says: a PaymentIntent, else a session, else an invoice.
type paymentArgs struct {
	Payment string `json:"payment"`
	Refund  string `json:"refund,omitempty"`  // for the reader
	Dispute string `json:"dispute,omitempty"` // for the reader
}

// reservationArgs ends one that is in doubt. Which of both is right only a
// person can know.
type reservationArgs struct {
	Reservation string `json:"reservation"`
	Account     string `json:"account"`
}

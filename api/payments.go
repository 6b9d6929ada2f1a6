package api

import "time"

// StripePayment is a payment at Stripe that buys credits, or that nobody could map.
type StripePayment struct {
	ID        string    `json:"id"` // the payment intent, else the session, else the invoice
	Session   string    `json:"session"`
	Customer  string    `json:"customer"`
	Account   *string   `json:"account"`
	Grant     *string   `json:"grant"`
	Credits   Decimal   `json:"credits"`
	Money     int64     `json:"money"` // minor units of currency
	Currency  string    `json:"currency"`
	Livemode  bool      `json:"livemode"`
	State     string    `json:"state"`
	Reason    string    `json:"reason"` // why it is parked
	Review    string    `json:"review"` // why somebody must look at it
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// PaymentApplyRequest is the body of POST /v1/stripe/payments/{id}/apply.
type PaymentApplyRequest struct {
	Account string  `json:"account,omitempty"`
	Credits Decimal `json:"credits,omitempty"`
	Reason  string  `json:"reason,omitempty"`
}

// BackfillRequest is the body of POST /v1/stripe/backfill.
type BackfillRequest struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	DryRun bool      `json:"dry_run,omitempty"`
}

// Backfill is what Stripe's list of events has and the inbox had not. Events are the
// first hundred of them.
type Backfill struct {
	From    time.Time      `json:"from"`
	To      time.Time      `json:"to"`
	DryRun  bool           `json:"dry_run"`
	Listed  int            `json:"listed"`
	Missing int            `json:"missing"`
	Events  []MissingEvent `json:"events"`
}

// MissingEvent is an event that no delivery had brought.
type MissingEvent struct {
	ID        string    `json:"id"`
	Type      string    `json:"type"`
	CreatedAt time.Time `json:"created_at"`
}

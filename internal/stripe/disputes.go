package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Dispute is a payment that the buyer's bank takes back, or only asks about.
// Money is in minor units of the payment's currency.
type Dispute struct {
	ID            string
	Charge        string
	PaymentIntent string // "" for a charge that has none
	Money         int64  // what is disputed
	Currency      string
	Status        string // needs_response, under_review, won or lost; warning_… for an inquiry
	Reason        string
	Refundable    bool      // the charge may still be refunded
	EvidenceDueAt time.Time // zero when no evidence is asked for
	Movements     []Movement
	Livemode      bool
	CreatedAt     time.Time
}

// Movement is a balance transaction: money that left our balance at Stripe
// (negative) or came back. Its currency is that of the balance, which need not be
// the payment's.
type Movement struct {
	ID        string
	Money     int64 // without the fee
	Fee       int64 // negative for one that comes back
	Currency  string
	Type      string // adjustment, for a dispute
	Category  string // dispute or dispute_reversal
	CreatedAt time.Time
}

// Open tells whether the dispute is undecided; an inquiry counts until it is closed.
func (d Dispute) Open() bool {
	switch d.Status {
	case "won", "lost", "warning_closed", "prevented":
		return false
	}
	return true
}

// Inquiry tells whether the bank only asks: no money has moved.
func (d Dispute) Inquiry() bool { return strings.HasPrefix(d.Status, "warning_") }

type wireDispute struct {
	ID            string    `json:"id"`
	Charge        reference `json:"charge"`
	PaymentIntent reference `json:"payment_intent"`
	Amount        int64     `json:"amount"`
	Currency      string    `json:"currency"`
	Status        string    `json:"status"`
	Reason        string    `json:"reason"`
	Refundable    bool      `json:"is_charge_refundable"`
	Livemode      bool      `json:"livemode"`
	Created       int64     `json:"created"`
	Evidence      struct {
		DueBy int64 `json:"due_by"`
	} `json:"evidence_details"`
	Movements []wireMovement `json:"balance_transactions"`
}

type wireMovement struct {
	ID       string `json:"id"`
	Amount   int64  `json:"amount"`
	Fee      int64  `json:"fee"`
	Currency string `json:"currency"`
	Type     string `json:"type"`
	Category string `json:"reporting_category"`
	Created  int64  `json:"created"`
}

func (w wireDispute) dispute() Dispute {
	d := Dispute{
		ID: w.ID, Charge: w.Charge.ID, PaymentIntent: w.PaymentIntent.ID, Money: w.Amount, Currency: w.Currency, Status: w.Status, Reason: w.Reason,
		Refundable: w.Refundable, Livemode: w.Livemode, CreatedAt: unix(w.Created),
	}
	if w.Evidence.DueBy > 0 {
		d.EvidenceDueAt = unix(w.Evidence.DueBy)
	}
	for _, m := range w.Movements {
		d.Movements = append(d.Movements, Movement{
			ID: m.ID, Money: m.Amount, Fee: m.Fee, Currency: m.Currency, Type: m.Type, Category: m.Category, CreatedAt: unix(m.Created),
		})
	}
	return d
}

// Dispute reads one dispute.
func (c *Client) Dispute(ctx context.Context, id string) (Dispute, error) {
	var w wireDispute
	err := c.get(ctx, "/v1/disputes/"+url.PathEscape(id), nil, &w)
	return w.dispute(), err
}

// DisputesOf gives all disputes of a payment, named by its payment intent (pi_…)
// or by its charge.
func (c *Client) DisputesOf(ctx context.Context, payment string) (disputes []Dispute, err error) {
	filter := "charge"
	if strings.HasPrefix(payment, "pi_") {
		filter = "payment_intent"
	}
	err = c.disputes(ctx, url.Values{filter: {payment}}, func(d Dispute) error {
		disputes = append(disputes, d)
		return nil
	})
	return disputes, err
}

// Disputes calls each with the disputes created within [from, to], newest first.
func (c *Client) Disputes(ctx context.Context, from, to time.Time, each func(Dispute) error) error {
	return c.disputes(ctx, created(from, to), each)
}

func (c *Client) disputes(ctx context.Context, query url.Values, each func(Dispute) error) error {
	return c.list(ctx, "/v1/disputes", query, func(raw json.RawMessage) error {
		var w wireDispute
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a dispute: %w", err)
		}
		return each(w.dispute())
	})
}

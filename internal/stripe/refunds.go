package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"time"
)

// Refund is money that went back, or is meant to. Money is in minor units.
type Refund struct {
	ID            string
	Charge        string
	PaymentIntent string // "" for a charge that has none
	Money         int64
	Currency      string
	Status        string // pending, requires_action, succeeded, failed or canceled
	FailureReason string // "" unless it failed
	CreatedAt     time.Time
}

type wireRefund struct {
	ID            string    `json:"id"`
	Charge        reference `json:"charge"`
	PaymentIntent reference `json:"payment_intent"`
	Amount        int64     `json:"amount"`
	Currency      string    `json:"currency"`
	Status        string    `json:"status"`
	FailureReason string    `json:"failure_reason"`
	Created       int64     `json:"created"`
}

func (w wireRefund) refund() Refund {
	return Refund{
		ID: w.ID, Charge: w.Charge.ID, PaymentIntent: w.PaymentIntent.ID, Money: w.Amount, Currency: w.Currency, Status: w.Status,
		FailureReason: w.FailureReason, CreatedAt: unix(w.Created),
	}
}

// Refund reads one refund.
func (c *Client) Refund(ctx context.Context, id string) (Refund, error) {
	var w wireRefund
	err := c.get(ctx, "/v1/refunds/"+url.PathEscape(id), nil, &w)
	return w.refund(), err
}

// RefundsOf gives all refunds of a payment.
func (c *Client) RefundsOf(ctx context.Context, paymentIntent string) (refunds []Refund, err error) {
	err = c.refunds(ctx, url.Values{"payment_intent": {paymentIntent}}, func(r Refund) error {
		refunds = append(refunds, r)
		return nil
	})
	return refunds, err
}

// Refunds calls each with the refunds created within [from, to], newest first. The
// times are those of the refund, not of the payment.
func (c *Client) Refunds(ctx context.Context, from, to time.Time, each func(Refund) error) error {
	return c.refunds(ctx, created(from, to), each)
}

func (c *Client) refunds(ctx context.Context, query url.Values, each func(Refund) error) error {
	return c.list(ctx, "/v1/refunds", query, func(raw json.RawMessage) error {
		var w wireRefund
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a refund: %w", err)
		}
		return each(w.refund())
	})
}

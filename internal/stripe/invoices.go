package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"time"
)

// Invoice is what a customer is asked to pay, and whether it was. Money is in
// minor units.
type Invoice struct {
	ID            string
	Customer      string
	Subscription  string // "" for an invoice of its own
	PaymentIntent string // "" when nothing was to be paid at Stripe
	Charge        string
	Status        string // draft, open, paid, void or uncollectible
	Paid          bool
	OutOfBand     bool // paid, somebody says, but not at Stripe
	BillingReason string
	Currency      string
	Total         int64 // after discounts, with tax
	AmountPaid    int64 // of it, what came in at Stripe
	Livemode      bool
	Metadata      map[string]string
	CreatedAt     time.Time
	FinalizedAt   time.Time // zero for a draft
	PaidAt        time.Time // zero when it is not paid
	Lines         []InvoiceLine
}

// InvoiceLine is one line of an invoice. Money is in minor units.
type InvoiceLine struct {
	ID               string
	Type             string // invoiceitem or subscription
	Money            int64
	Currency         string
	Quantity         int64
	Price            string
	Product          string
	Meter            string // of the price; "" when it bills none
	Metered          bool   // the price bills usage
	Proration        bool
	SubscriptionItem string
	From, To         time.Time // the period that it bills
	Metadata         map[string]string
	PriceMetadata    map[string]string
	ProductMetadata  map[string]string
}

type wireInvoice struct {
	ID            string            `json:"id"`
	Customer      reference         `json:"customer"`
	Subscription  reference         `json:"subscription"`
	PaymentIntent reference         `json:"payment_intent"`
	Charge        reference         `json:"charge"`
	Status        string            `json:"status"`
	Paid          bool              `json:"paid"`
	OutOfBand     bool              `json:"paid_out_of_band"`
	BillingReason string            `json:"billing_reason"`
	Currency      string            `json:"currency"`
	Total         int64             `json:"total"`
	AmountPaid    int64             `json:"amount_paid"`
	Livemode      bool              `json:"livemode"`
	Metadata      map[string]string `json:"metadata"`
	Created       int64             `json:"created"`
	Transitions   struct {
		FinalizedAt int64 `json:"finalized_at"`
		PaidAt      int64 `json:"paid_at"`
	} `json:"status_transitions"`
	Lines struct {
		HasMore bool              `json:"has_more"`
		Data    []wireInvoiceLine `json:"data"`
	} `json:"lines"`
}

type wireInvoiceLine struct {
	ID               string            `json:"id"`
	Type             string            `json:"type"`
	Amount           int64             `json:"amount"`
	Currency         string            `json:"currency"`
	Quantity         int64             `json:"quantity"`
	Proration        bool              `json:"proration"`
	SubscriptionItem reference         `json:"subscription_item"`
	Metadata         map[string]string `json:"metadata"`
	Period           struct {
		Start int64 `json:"start"`
		End   int64 `json:"end"`
	} `json:"period"`
	Price struct {
		ID        string            `json:"id"`
		Product   reference         `json:"product"`
		Metadata  map[string]string `json:"metadata"`
		Recurring struct {
			Meter     string `json:"meter"`
			UsageType string `json:"usage_type"`
		} `json:"recurring"`
	} `json:"price"`
}

func (w wireInvoiceLine) line() InvoiceLine {
	return InvoiceLine{
		ID: w.ID, Type: w.Type, Money: w.Amount, Currency: w.Currency, Quantity: w.Quantity, Price: w.Price.ID, Product: w.Price.Product.ID,
		Meter: w.Price.Recurring.Meter, Metered: w.Price.Recurring.UsageType == "metered", Proration: w.Proration, SubscriptionItem: w.SubscriptionItem.ID,
		From: unix(w.Period.Start), To: unix(w.Period.End), Metadata: w.Metadata, PriceMetadata: w.Price.Metadata, ProductMetadata: w.Price.Product.Metadata,
	}
}

func (w wireInvoice) invoice() Invoice {
	i := Invoice{
		ID: w.ID, Customer: w.Customer.ID, Subscription: w.Subscription.ID, PaymentIntent: w.PaymentIntent.ID, Charge: w.Charge.ID, Status: w.Status,
		Paid: w.Paid, OutOfBand: w.OutOfBand, BillingReason: w.BillingReason, Currency: w.Currency, Total: w.Total, AmountPaid: w.AmountPaid,
		Livemode: w.Livemode, Metadata: w.Metadata, CreatedAt: unix(w.Created),
	}
	if w.Transitions.FinalizedAt > 0 {
		i.FinalizedAt = unix(w.Transitions.FinalizedAt)
	}
	if w.Transitions.PaidAt > 0 {
		i.PaidAt = unix(w.Transitions.PaidAt)
	}
	for _, line := range w.Lines.Data {
		i.Lines = append(i.Lines, line.line())
	}
	return i
}

// Invoice reads an invoice with all its lines, prices and products.
func (c *Client) Invoice(ctx context.Context, id string) (Invoice, error) {
	var w wireInvoice
	path := "/v1/invoices/" + url.PathEscape(id)
	if err := c.get(ctx, path, url.Values{"expand[0]": {"lines.data.price.product"}}, &w); err != nil {
		return Invoice{}, err
	}
	i := w.invoice()
	if !w.Lines.HasMore {
		return i, nil
	}
	i.Lines = nil
	err := c.list(ctx, path+"/lines", url.Values{"expand[0]": {"data.price.product"}}, func(raw json.RawMessage) error {
		var line wireInvoiceLine
		err := json.Unmarshal(raw, &line)
		i.Lines = append(i.Lines, line.line())
		return err
	})
	return i, err
}

// Invoices calls each with the invoices created within [from, to], newest first.
// They carry at most ten lines, without their products: Invoice reads one whole.
func (c *Client) Invoices(ctx context.Context, from, to time.Time, each func(Invoice) error) error {
	return c.list(ctx, "/v1/invoices", created(from, to), func(raw json.RawMessage) error {
		var w wireInvoice
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read an invoice: %w", err)
		}
		return each(w.invoice())
	})
}

// SessionOfInvoice reads the checkout session that made an invoice; ok is false
// when there is none. Stripe's list knows no filter by invoice, so that all
// sessions of the customer are looked at: only where no payment intent leads there.
func (c *Client) SessionOfInvoice(ctx context.Context, customer, invoice string) (s Session, ok bool, err error) {
	var id string
	err = c.list(ctx, "/v1/checkout/sessions", url.Values{"customer": {customer}}, func(raw json.RawMessage) error {
		var w struct {
			ID      string    `json:"id"`
			Invoice reference `json:"invoice"`
		}
		err := json.Unmarshal(raw, &w)
		if w.Invoice.ID == invoice {
			id = w.ID
		}
		return err
	})
	if err != nil || id == "" {
		return Session{}, false, err
	}
	s, err = c.Session(ctx, id)
	return s, err == nil, err
}

// CreditNote takes back part of an invoice. Money is in minor units, and is the
// sum of what was refunded, credited to the customer's balance, and given back
// outside of Stripe.
type CreditNote struct {
	ID        string
	Invoice   string
	Customer  string
	Type      string // pre_payment or post_payment
	Status    string // issued or void
	Money     int64
	OutOfBand int64  // of it, what was given back outside of Stripe
	Refund    string // "" when none belongs to it; the refund is also one of the payment's refunds
	Balance   string // the transaction on the customer's balance; "" when there is none
	Currency  string
	Livemode  bool
	CreatedAt time.Time
	VoidedAt  time.Time // zero unless it is void
}

type wireCreditNote struct {
	ID        string    `json:"id"`
	Invoice   reference `json:"invoice"`
	Customer  reference `json:"customer"`
	Type      string    `json:"type"`
	Status    string    `json:"status"`
	Amount    int64     `json:"amount"`
	OutOfBand int64     `json:"out_of_band_amount"`
	Refund    reference `json:"refund"`
	Balance   reference `json:"customer_balance_transaction"`
	Currency  string    `json:"currency"`
	Livemode  bool      `json:"livemode"`
	Created   int64     `json:"created"`
	VoidedAt  int64     `json:"voided_at"`
}

func (w wireCreditNote) note() CreditNote {
	n := CreditNote{
		ID: w.ID, Invoice: w.Invoice.ID, Customer: w.Customer.ID, Type: w.Type, Status: w.Status, Money: w.Amount, OutOfBand: w.OutOfBand,
		Refund: w.Refund.ID, Balance: w.Balance.ID, Currency: w.Currency, Livemode: w.Livemode, CreatedAt: unix(w.Created),
	}
	if w.VoidedAt > 0 {
		n.VoidedAt = unix(w.VoidedAt)
	}
	return n
}

// CreditNote reads one credit note.
func (c *Client) CreditNote(ctx context.Context, id string) (CreditNote, error) {
	var w wireCreditNote
	err := c.get(ctx, "/v1/credit_notes/"+url.PathEscape(id), nil, &w)
	return w.note(), err
}

// CreditNotesOf gives all credit notes of an invoice.
func (c *Client) CreditNotesOf(ctx context.Context, invoice string) (notes []CreditNote, err error) {
	err = c.list(ctx, "/v1/credit_notes", url.Values{"invoice": {invoice}}, func(raw json.RawMessage) error {
		var w wireCreditNote
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a credit note: %w", err)
		}
		notes = append(notes, w.note())
		return nil
	})
	return notes, err
}

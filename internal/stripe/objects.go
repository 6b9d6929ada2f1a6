package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// reference is a member that holds an id, or the object where it was expanded.
type reference struct {
	ID       string            `json:"id"`
	Metadata map[string]string `json:"metadata"`
}

// UnmarshalJSON takes an id, an object or null.
func (r *reference) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '{' {
		type plain reference
		return json.Unmarshal(data, (*plain)(r))
	}
	return json.Unmarshal(data, &r.ID)
}

// Item is one line of a checkout session.
type Item struct {
	Price           string
	Product         string
	Quantity        int64
	PriceMetadata   map[string]string
	ProductMetadata map[string]string
}

// Session is a checkout session. Money is in minor units of the currency.
type Session struct {
	ID              string
	PaymentIntent   string // "" when nothing was to be paid
	Customer        string
	ClientReference string
	Status          string
	PaymentStatus   string
	Mode            string
	Money           int64
	Currency        string
	Livemode        bool
	Metadata        map[string]string
	CreatedAt       time.Time
	Items           []Item
}

type wireSession struct {
	ID                string            `json:"id"`
	PaymentIntent     reference         `json:"payment_intent"`
	Customer          reference         `json:"customer"`
	ClientReferenceID string            `json:"client_reference_id"`
	Status            string            `json:"status"`
	PaymentStatus     string            `json:"payment_status"`
	Mode              string            `json:"mode"`
	AmountTotal       int64             `json:"amount_total"`
	Currency          string            `json:"currency"`
	Livemode          bool              `json:"livemode"`
	Metadata          map[string]string `json:"metadata"`
	Created           int64             `json:"created"`
	LineItems         struct {
		HasMore bool       `json:"has_more"`
		Data    []wireItem `json:"data"`
	} `json:"line_items"`
}

type wireItem struct {
	Quantity int64 `json:"quantity"`
	Price    struct {
		ID       string            `json:"id"`
		Product  reference         `json:"product"`
		Metadata map[string]string `json:"metadata"`
	} `json:"price"`
}

func (w wireItem) item() Item {
	return Item{
		Price: w.Price.ID, Product: w.Price.Product.ID, Quantity: w.Quantity,
		PriceMetadata: w.Price.Metadata, ProductMetadata: w.Price.Product.Metadata,
	}
}

func (w wireSession) session() Session {
	s := Session{
		ID: w.ID, PaymentIntent: w.PaymentIntent.ID, Customer: w.Customer.ID, ClientReference: w.ClientReferenceID, Status: w.Status,
		PaymentStatus: w.PaymentStatus, Mode: w.Mode, Money: w.AmountTotal, Currency: w.Currency, Livemode: w.Livemode,
		Metadata: w.Metadata, CreatedAt: unix(w.Created),
	}
	for _, item := range w.LineItems.Data {
		s.Items = append(s.Items, item.item())
	}
	return s
}

// Session reads a checkout session with all its lines, prices and products.
func (c *Client) Session(ctx context.Context, id string) (Session, error) {
	var w wireSession
	query := url.Values{"expand[0]": {"line_items.data.price.product"}}
	if err := c.get(ctx, "/v1/checkout/sessions/"+url.PathEscape(id), query, &w); err != nil {
		return Session{}, err
	}
	s := w.session()
	if !w.LineItems.HasMore {
		return s, nil
	}
	s.Items = nil
	query = url.Values{"expand[0]": {"data.price.product"}}
	err := c.list(ctx, "/v1/checkout/sessions/"+url.PathEscape(id)+"/line_items", query, func(raw json.RawMessage) error {
		var item wireItem
		err := json.Unmarshal(raw, &item)
		s.Items = append(s.Items, item.item())
		return err
	})
	return s, err
}

// SessionOf reads the checkout session that a payment intent belongs to; ok is
// false when there is none.
func (c *Client) SessionOf(ctx context.Context, paymentIntent string) (s Session, ok bool, err error) {
	var id string
	err = c.list(ctx, "/v1/checkout/sessions", url.Values{"payment_intent": {paymentIntent}}, func(raw json.RawMessage) error {
		var w wireSession
		err := json.Unmarshal(raw, &w)
		id = w.ID
		return err
	})
	if err != nil || id == "" {
		return Session{}, false, err
	}
	s, err = c.Session(ctx, id)
	return s, err == nil, err
}

// Sessions calls each with the checkout sessions created within [from, to],
// newest first, without their lines.
func (c *Client) Sessions(ctx context.Context, from, to time.Time, each func(Session) error) error {
	return c.list(ctx, "/v1/checkout/sessions", created(from, to), func(raw json.RawMessage) error {
		var w wireSession
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a checkout session: %w", err)
		}
		return each(w.session())
	})
}

// PaymentIntent is a payment. Money is what was received, in minor units.
type PaymentIntent struct {
	ID        string
	Customer  string
	Money     int64
	Currency  string
	Status    string
	Invoice   string
	Livemode  bool
	Metadata  map[string]string
	CreatedAt time.Time
}

type wireIntent struct {
	ID             string            `json:"id"`
	Customer       reference         `json:"customer"`
	AmountReceived int64             `json:"amount_received"`
	Currency       string            `json:"currency"`
	Status         string            `json:"status"`
	Invoice        reference         `json:"invoice"`
	Livemode       bool              `json:"livemode"`
	Metadata       map[string]string `json:"metadata"`
	Created        int64             `json:"created"`
}

func (w wireIntent) intent() PaymentIntent {
	return PaymentIntent{
		ID: w.ID, Customer: w.Customer.ID, Money: w.AmountReceived, Currency: w.Currency, Status: w.Status, Invoice: w.Invoice.ID,
		Livemode: w.Livemode, Metadata: w.Metadata, CreatedAt: unix(w.Created),
	}
}

// PaymentIntent reads one payment.
func (c *Client) PaymentIntent(ctx context.Context, id string) (PaymentIntent, error) {
	var w wireIntent
	err := c.get(ctx, "/v1/payment_intents/"+url.PathEscape(id), nil, &w)
	return w.intent(), err
}

// PaymentIntents calls each with the payments created within [from, to], newest first.
func (c *Client) PaymentIntents(ctx context.Context, from, to time.Time, each func(PaymentIntent) error) error {
	return c.list(ctx, "/v1/payment_intents", created(from, to), func(raw json.RawMessage) error {
		var w wireIntent
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a payment intent: %w", err)
		}
		return each(w.intent())
	})
}

// Event is an event as Stripe renders it.
type Event struct {
	ID         string
	Type       string
	APIVersion string
	Livemode   bool
	CreatedAt  time.Time
	Payload    []byte
}

func readEvent(raw []byte) (Event, error) {
	var w struct {
		ID         string `json:"id"`
		Type       string `json:"type"`
		APIVersion string `json:"api_version"`
		Livemode   bool   `json:"livemode"`
		Created    int64  `json:"created"`
	}
	if err := json.Unmarshal(raw, &w); err != nil {
		return Event{}, fmt.Errorf("read an event: %w", err)
	}
	return Event{ID: w.ID, Type: w.Type, APIVersion: w.APIVersion, Livemode: w.Livemode, CreatedAt: unix(w.Created), Payload: raw}, nil
}

// Event reads one event; Stripe keeps them for 30 days.
func (c *Client) Event(ctx context.Context, id string) (Event, error) {
	var raw json.RawMessage
	if err := c.get(ctx, "/v1/events/"+url.PathEscape(id), nil, &raw); err != nil {
		return Event{}, err
	}
	return readEvent(raw)
}

// Events calls each with the events created within [from, to], newest first.
func (c *Client) Events(ctx context.Context, from, to time.Time, each func(Event) error) error {
	return c.list(ctx, "/v1/events", created(from, to), func(raw json.RawMessage) error {
		e, err := readEvent(raw)
		if err != nil {
			return err
		}
		return each(e)
	})
}

// created is the filter of lists by time. Stripe counts in whole seconds.
func created(from, to time.Time) url.Values {
	return url.Values{"created[gte]": {strconv.FormatInt(from.Unix(), 10)}, "created[lte]": {strconv.FormatInt(to.Unix(), 10)}}
}

func unix(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

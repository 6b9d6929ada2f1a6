package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"time"
)

// MeterSetup is a billing meter with how it reads its events.
type MeterSetup struct {
	Meter
	CustomerKey string // of the payload, names the customer
	ValueKey    string // of the payload, holds the quantity
	Formula     string // sum or count; newer ones are Stripe's word
}

// MeterSetups gives all billing meters with their configuration.
func (c *Client) MeterSetups(ctx context.Context) (meters []MeterSetup, err error) {
	err = c.list(ctx, "/v1/billing/meters", nil, func(raw json.RawMessage) error {
		var w struct {
			Meter
			CustomerMapping struct {
				Key string `json:"event_payload_key"`
			} `json:"customer_mapping"`
			ValueSettings struct {
				Key string `json:"event_payload_key"`
			} `json:"value_settings"`
			Aggregation struct {
				Formula string `json:"formula"`
			} `json:"default_aggregation"`
		}
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a billing meter: %w", err)
		}
		meters = append(meters, MeterSetup{Meter: w.Meter, CustomerKey: w.CustomerMapping.Key, ValueKey: w.ValueSettings.Key, Formula: w.Aggregation.Formula})
		return nil
	})
	return meters, err
}

// PriceSetup is a price with what it bills and whether it is still for sale.
type PriceSetup struct {
	ID        string
	Active    bool
	Livemode  bool
	UsageType string // metered or licensed; "" for a one-time price
	Meter     string // "" when it bills usage records, or none
}

// PriceSetup reads one price.
func (c *Client) PriceSetup(ctx context.Context, id string) (PriceSetup, error) {
	var w struct {
		ID        string `json:"id"`
		Active    bool   `json:"active"`
		Livemode  bool   `json:"livemode"`
		Recurring struct {
			Meter     string `json:"meter"`
			UsageType string `json:"usage_type"`
		} `json:"recurring"`
	}
	err := c.get(ctx, "/v1/prices/"+url.PathEscape(id), nil, &w)
	return PriceSetup{ID: w.ID, Active: w.Active, Livemode: w.Livemode, UsageType: w.Recurring.UsageType, Meter: w.Recurring.Meter}, err
}

// Customer is a customer, or what is left of one that was deleted.
type Customer struct {
	ID       string
	Deleted  bool
	Livemode bool
}

// Customer reads one customer. One that was deleted is still there, and says so.
func (c *Client) Customer(ctx context.Context, id string) (Customer, error) {
	var w struct {
		ID       string `json:"id"`
		Deleted  bool   `json:"deleted"`
		Livemode bool   `json:"livemode"`
	}
	err := c.get(ctx, "/v1/customers/"+url.PathEscape(id), nil, &w)
	return Customer{ID: w.ID, Deleted: w.Deleted, Livemode: w.Livemode}, err
}

// Undelivered calls each with the events created within [from, to] that Stripe has
// not delivered to every endpoint that listens to them, newest first.
func (c *Client) Undelivered(ctx context.Context, from, to time.Time, each func(Event) error) error {
	query := created(from, to)
	query.Set("delivery_success", "false")
	return c.list(ctx, "/v1/events", query, func(raw json.RawMessage) error {
		e, err := readEvent(raw)
		if err != nil {
			return err
		}
		return each(e)
	})
}

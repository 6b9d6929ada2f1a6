package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"time"
)

// SubscriptionItem is an item of one of a customer's subscriptions, with what is
// needed to report usage for it.
type SubscriptionItem struct {
	ID           string
	Subscription string
	Price        string
	Status       string // of the subscription
	UsageType    string // of the price: metered or licensed
	Aggregate    string // of the price: sum, max, last_during_period or last_ever
	Meter        string // of the price; "" for one that is billed by usage records
	Limited      bool   // billing thresholds: usage records can only be incremented
	PeriodStart  time.Time
	PeriodEnd    time.Time // Stripe's period is (start, end]
	CreatedAt    time.Time
}

// wireSubscription is a subscription as far as usage is concerned.
type wireSubscription struct {
	ID          string          `json:"id"`
	Status      string          `json:"status"`
	PeriodStart int64           `json:"current_period_start"`
	PeriodEnd   int64           `json:"current_period_end"`
	Thresholds  json.RawMessage `json:"billing_thresholds"`
	Items       struct {
		HasMore bool                   `json:"has_more"`
		Data    []wireSubscriptionItem `json:"data"`
	} `json:"items"`
}

type wireSubscriptionItem struct {
	ID         string          `json:"id"`
	Created    int64           `json:"created"`
	Thresholds json.RawMessage `json:"billing_thresholds"`
	Price      struct {
		ID        string `json:"id"`
		Recurring struct {
			UsageType string `json:"usage_type"`
			Aggregate string `json:"aggregate_usage"`
			Meter     string `json:"meter"`
		} `json:"recurring"`
	} `json:"price"`
}

// present tells an object from null and from nothing.
func present(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

func (s wireSubscription) item(i wireSubscriptionItem) SubscriptionItem {
	r := i.Price.Recurring
	return SubscriptionItem{
		ID: i.ID, Subscription: s.ID, Price: i.Price.ID, Status: s.Status, UsageType: r.UsageType, Aggregate: r.Aggregate, Meter: r.Meter,
		Limited: present(s.Thresholds) || present(i.Thresholds), PeriodStart: unix(s.PeriodStart), PeriodEnd: unix(s.PeriodEnd), CreatedAt: unix(i.Created),
	}
}

// SubscriptionItems gives the items of all subscriptions of a customer that have
// not ended.
func (c *Client) SubscriptionItems(ctx context.Context, customer string) (items []SubscriptionItem, err error) {
	// Stripe leaves out those that were cancelled, unless it is asked for them.
	err = c.list(ctx, "/v1/subscriptions", url.Values{"customer": {customer}}, func(raw json.RawMessage) error {
		var s wireSubscription
		if err := json.Unmarshal(raw, &s); err != nil {
			return fmt.Errorf("read a subscription: %w", err)
		}
		if !s.Items.HasMore {
			for _, i := range s.Items.Data {
				items = append(items, s.item(i))
			}
			return nil
		}
		return c.list(ctx, "/v1/subscription_items", url.Values{"subscription": {s.ID}}, func(raw json.RawMessage) error {
			var i wireSubscriptionItem
			if err := json.Unmarshal(raw, &i); err != nil {
				return fmt.Errorf("read a subscription item: %w", err)
			}
			items = append(items, s.item(i))
			return nil
		})
	})
	return items, err
}

package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
)

// Subscribers calls each with the customer of every subscription to a price that
// has not ended, as often as it has subscriptions.
func (c *Client) Subscribers(ctx context.Context, price string, each func(customer string)) error {
	return c.list(ctx, "/v1/subscriptions", url.Values{"price": {price}}, func(raw json.RawMessage) error {
		var w struct {
			Customer reference `json:"customer"`
		}
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a subscription: %w", err)
		}
		each(w.Customer.ID)
		return nil
	})
}

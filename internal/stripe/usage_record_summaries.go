package stripe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// UsageSummary is what Stripe has counted of a subscription item in one period.
type UsageSummary struct {
	Invoice  string    // that bills it; "" while there is none
	From, To time.Time // the period, (From, To]; zero where Stripe does not say
	Quantity int64     // whole units
}

// errEnough ends a list.
var errEnough = errors.New("enough was read")

// UsageSummaries gives a subscription item's periods that end after a time, the
// newest first, which is open and whose quantity may lag.
func (c *Client) UsageSummaries(ctx context.Context, item string, after time.Time) (summaries []UsageSummary, err error) {
	err = c.list(ctx, "/v1/subscription_items/"+url.PathEscape(item)+"/usage_record_summaries", nil, func(raw json.RawMessage) error {
		var w struct {
			Invoice reference `json:"invoice"`
			Period  struct {
				Start int64 `json:"start"`
				End   int64 `json:"end"`
			} `json:"period"`
			Total int64 `json:"total_usage"`
		}
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a summary of usage records: %w", err)
		}
		s := UsageSummary{Invoice: w.Invoice.ID, Quantity: w.Total}
		if w.Period.Start > 0 {
			s.From = unix(w.Period.Start)
		}
		if w.Period.End > 0 {
			if s.To = unix(w.Period.End); !s.To.After(after) {
				return errEnough
			}
		}
		summaries = append(summaries, s)
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return summaries, err
}

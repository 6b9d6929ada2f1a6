package stripe

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// UsageRecord is usage of one subscription item at one time.
type UsageRecord struct {
	Item      string
	Action    string // set replaces what is there for the timestamp, increment adds to it
	Quantity  int64  // whole units
	Timestamp time.Time
	Key       string // the idempotency key
}

// SendUsageRecord tells Stripe of usage. With the action set it may be called again
// at any age; with increment only with the same key, which Stripe remembers for at
// least 24 hours. RetryAfter is zero when Stripe did not say.
func (c *Client) SendUsageRecord(ctx context.Context, u UsageRecord) (v Verdict, retryAfter time.Duration, err error) {
	values := url.Values{
		"action": {u.Action}, "quantity": {strconv.FormatInt(u.Quantity, 10)}, "timestamp": {strconv.FormatInt(u.Timestamp.Unix(), 10)},
	}
	var answer one
	err = c.call(ctx, http.MethodPost, "/v1/subscription_items/"+url.PathEscape(u.Item)+"/usage_records", values, u.Key, &answer)
	v, retryAfter = judge(err)
	return v, retryAfter, err
}

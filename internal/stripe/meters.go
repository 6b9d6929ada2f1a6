package stripe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	stripego "github.com/stripe/stripe-go/v76"

	"tallystick/internal/credit"
)

// Verdict is what an answer to a write means.
type Verdict int

// The verdicts. The zero value is the careful one.
const (
	VerdictUnknown   Verdict = iota // it may have been executed
	VerdictDone                     // executed, now or before
	VerdictRejected                 // refused for good
	VerdictThrottled                // not executed, come back later
	VerdictRefused                  // the key is refused
)

// MeterEvent is usage of one customer in one bucket.
type MeterEvent struct {
	EventName  string
	Customer   string
	Identifier string
	Value      credit.Quantity
	Timestamp  time.Time
	Attempt    int // counts the tries from 1
}

// SendMeterEvent tells Stripe of usage. It may be called again with the same
// event: Stripe refuses a second one with the same identifier for at least 24
// hours, which counts as done. RetryAfter is zero when Stripe did not say.
//
// The identifier is the guard, not the idempotency key: under one key Stripe
// would replay a stored 500 for a day, so each try has a key of its own.
func (c *Client) SendMeterEvent(ctx context.Context, e MeterEvent) (v Verdict, retryAfter time.Duration, err error) {
	values := url.Values{
		"event_name": {e.EventName}, "identifier": {e.Identifier}, "timestamp": {strconv.FormatInt(e.Timestamp.Unix(), 10)},
		"payload[stripe_customer_id]": {e.Customer}, "payload[value]": {e.Value.String()},
	}
	var answer one
	err = c.call(ctx, http.MethodPost, "/v1/billing/meter_events", values, e.Identifier+"-"+strconv.Itoa(e.Attempt), &answer)
	v, retryAfter = judge(err)
	return v, retryAfter, err
}

// judge says what an error means. What Stripe did not plainly say is unknown.
func judge(err error) (Verdict, time.Duration) {
	if err == nil {
		return VerdictDone, 0
	}
	var e *stripego.Error
	if !errors.As(err, &e) {
		return VerdictUnknown, 0
	}
	switch {
	case e.HTTPStatusCode == http.StatusTooManyRequests:
		return VerdictThrottled, retryAfter(e)
	case e.HTTPStatusCode == http.StatusUnauthorized || e.HTTPStatusCode == http.StatusForbidden:
		return VerdictRefused, 0
	case e.HTTPStatusCode >= 500 || e.HTTPStatusCode == http.StatusConflict:
		return VerdictUnknown, 0
	case e.Type == stripego.ErrorTypeIdempotency:
		return VerdictUnknown, 0
	case e.HTTPStatusCode == http.StatusBadRequest && strings.Contains(e.Msg, "already exists with identifier"):
		// The one place where Stripe gives no code to go by (stripe-go has none either).
		return VerdictDone, 0
	case e.HTTPStatusCode >= 400 && shouldRetry(e) != "true":
		return VerdictRejected, 0
	}
	return VerdictUnknown, 0
}

// CancelMeterEvent takes an event back; Stripe does so within 24 hours of its receipt.
func (c *Client) CancelMeterEvent(ctx context.Context, eventName, identifier string) error {
	values := url.Values{"event_name": {eventName}, "type": {"cancel"}, "cancel[identifier]": {identifier}}
	var answer one
	return c.call(ctx, http.MethodPost, "/v1/billing/meter_event_adjustments", values, "cancel-"+identifier, &answer)
}

// Meter is a billing meter.
type Meter struct {
	ID        string `json:"id"`
	EventName string `json:"event_name"`
	Status    string `json:"status"`
	Livemode  bool   `json:"livemode"`
}

// Meters gives all billing meters.
func (c *Client) Meters(ctx context.Context) (meters []Meter, err error) {
	err = c.list(ctx, "/v1/billing/meters", nil, func(raw json.RawMessage) error {
		var m Meter
		err := json.Unmarshal(raw, &m)
		meters = append(meters, m)
		return err
	})
	return meters, err
}

// Total is what Stripe has counted over [From, To).
type Total struct {
	From     time.Time
	To       time.Time
	Quantity credit.Quantity
}

// Totals reads what Stripe has counted of one customer's usage, by the hour, or
// as one total for a window narrower than hours. From and to must be aligned to
// whole hours or, for one total, to whole minutes.
func (c *Client) Totals(ctx context.Context, meter, customer string, from, to time.Time, hourly bool) (totals []Total, err error) {
	query := url.Values{
		"customer": {customer}, "start_time": {strconv.FormatInt(from.Unix(), 10)}, "end_time": {strconv.FormatInt(to.Unix(), 10)},
	}
	if hourly {
		query.Set("value_grouping_window", "hour")
	}
	err = c.list(ctx, "/v1/billing/meters/"+url.PathEscape(meter)+"/event_summaries", query, func(raw json.RawMessage) error {
		var w struct {
			Start int64       `json:"start_time"`
			End   int64       `json:"end_time"`
			Value json.Number `json:"aggregated_value"`
		}
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a summary: %w", err)
		}
		quantity, err := exact(w.Value.String())
		totals = append(totals, Total{From: unix(w.Start), To: unix(w.End), Quantity: quantity})
		return err
	})
	return totals, err
}

// exact reads Stripe's number from its literal: stripe-go would make a float of
// it. What has more than six places is rounded to the nearest millionth.
func exact(literal string) (credit.Quantity, error) {
	r, ok := new(big.Rat).SetString(literal)
	if !ok {
		return 0, fmt.Errorf("stripe's total %q is no number", literal)
	}
	r.Mul(r, big.NewRat(1_000_000, 1))
	half := big.NewRat(1, 2)
	if r.Sign() < 0 {
		half.Neg(half)
	}
	r.Add(r, half)
	n := new(big.Int).Quo(r.Num(), r.Denom())
	if !n.IsInt64() {
		return 0, fmt.Errorf("stripe's total %q is out of range", literal)
	}
	return credit.Quantity(n.Int64()), nil
}

// Price is a price of a meter. UnitAmount is in minor units, as an exact decimal;
// it is "" for a price with tiers.
type Price struct {
	ID         string
	UnitAmount string
	Currency   string
}

// PricesOf gives the active prices that bill a meter.
func (c *Client) PricesOf(ctx context.Context, meter string) (prices []Price, err error) {
	query := url.Values{"active": {"true"}, "type": {"recurring"}, "recurring[meter]": {meter}}
	err = c.list(ctx, "/v1/prices", query, func(raw json.RawMessage) error {
		var w struct {
			ID         string `json:"id"`
			UnitAmount string `json:"unit_amount_decimal"`
			Currency   string `json:"currency"`
			Recurring  struct {
				Meter string `json:"meter"`
			} `json:"recurring"`
		}
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a price: %w", err)
		}
		if w.Recurring.Meter == meter {
			prices = append(prices, Price{ID: w.ID, UnitAmount: w.UnitAmount, Currency: w.Currency})
		}
		return nil
	})
	return prices, err
}

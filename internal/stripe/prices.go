package stripe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
)

// Tier is a step of a price. Amounts are exact decimals of minor units, "" for none.
type Tier struct {
	UpTo       int64 // the last unit of the tier; 0 for no end
	UnitAmount string
	FlatAmount string
}

// Tariff is a recurring price with all that says what a quantity costs.
type Tariff struct {
	ID         string
	Active     bool
	Currency   string
	Meter      string // "" for a price that is billed by usage records, or not by usage at all
	UsageType  string // metered or licensed
	Aggregate  string // sum, max, last_during_period or last_ever
	Interval   string // day, week, month or year
	Intervals  int    // how many make a period
	UnitAmount string // exact decimal of minor units; "" with tiers
	TiersMode  string // "", graduated or volume
	Tiers      []Tier
	PackageOf  int64 // UnitAmount is for so many units; 0 for one
	RoundUp    bool  // a package that was begun counts
}

type wireTariff struct {
	ID         string `json:"id"`
	Active     bool   `json:"active"`
	Currency   string `json:"currency"`
	UnitAmount string `json:"unit_amount_decimal"`
	TiersMode  string `json:"tiers_mode"`
	Tiers      []struct {
		UpTo       *int64 `json:"up_to"`
		UnitAmount string `json:"unit_amount_decimal"`
		FlatAmount string `json:"flat_amount_decimal"`
	} `json:"tiers"`
	Transform *struct {
		DivideBy int64  `json:"divide_by"`
		Round    string `json:"round"`
	} `json:"transform_quantity"`
	Recurring struct {
		Meter     string `json:"meter"`
		UsageType string `json:"usage_type"`
		Aggregate string `json:"aggregate_usage"`
		Interval  string `json:"interval"`
		Intervals int    `json:"interval_count"`
	} `json:"recurring"`
}

func (w wireTariff) tariff() Tariff {
	t := Tariff{
		ID: w.ID, Active: w.Active, Currency: w.Currency, Meter: w.Recurring.Meter, UsageType: w.Recurring.UsageType, Aggregate: w.Recurring.Aggregate,
		Interval: w.Recurring.Interval, Intervals: max(w.Recurring.Intervals, 1), UnitAmount: w.UnitAmount, TiersMode: w.TiersMode,
	}
	for _, tier := range w.Tiers {
		one := Tier{UnitAmount: tier.UnitAmount, FlatAmount: tier.FlatAmount}
		if tier.UpTo != nil {
			one.UpTo = *tier.UpTo
		}
		t.Tiers = append(t.Tiers, one)
	}
	if w.Transform != nil {
		t.PackageOf, t.RoundUp = w.Transform.DivideBy, w.Transform.Round == "up"
	}
	return t
}

// MeterTariffs gives the active prices that bill a meter, with their tiers.
func (c *Client) MeterTariffs(ctx context.Context, meter string) (tariffs []Tariff, err error) {
	query := url.Values{"active": {"true"}, "type": {"recurring"}, "recurring[meter]": {meter}, "expand[0]": {"data.tiers"}}
	err = c.list(ctx, "/v1/prices", query, func(raw json.RawMessage) error {
		var w wireTariff
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("read a price: %w", err)
		}
		if w.Recurring.Meter == meter {
			tariffs = append(tariffs, w.tariff())
		}
		return nil
	})
	return tariffs, err
}

// Tariff gives one price, active or not, with its tiers.
func (c *Client) Tariff(ctx context.Context, price string) (Tariff, error) {
	var w wireTariff
	if err := c.get(ctx, "/v1/prices/"+url.PathEscape(price), url.Values{"expand[0]": {"tiers"}}, &w); err != nil {
		return Tariff{}, err
	}
	return w.tariff(), nil
}

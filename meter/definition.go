package meter

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
)

var (
	errNoMeter    = &fault.Error{Kind: fault.KindNotFound, Code: "meter_not_found", Public: "there is no such meter; create it with PUT /v1/meters/{meter}"}
	errFixed      = &fault.Error{Kind: fault.KindConflict, Code: "aggregation_fixed", Public: "the aggregation of a meter is for good, because what was recorded was counted by it; make another meter"}
	errNotPriced  = &fault.Error{Kind: fault.KindUnprocessed, Code: "meter_not_priced", Public: "a meter that aggregates by max or last is measured, not charged; there is nothing to reserve"}
	errPriceBound = &fault.Error{Kind: fault.KindConflict, Code: "price_bound", Public: "another meter is bound to the price"}
	errPriceRange = &fault.Error{Kind: fault.KindUnprocessed, Code: "price_out_of_range", Public: "quantity times rate is more than can be counted; send a smaller quantity"}
)

// definition is a meter with the rates of its current version.
type definition struct {
	Meter          string        `db:"meter"`
	Unit           string        `db:"unit"`
	Aggregation    string        `db:"aggregation"`
	ValueField     string        `db:"value_field"`
	EventName      *string       `db:"stripe_event_name"`
	Price          *string       `db:"stripe_price"`
	Whole          bool          `db:"stripe_whole"`
	Revision       int           `db:"revision"` // rises with every change
	RateVersion    int           `db:"rate_version"`
	Latest         int           `db:"latest"` // version, where that of the rates was chosen
	CreditsPerUnit credit.Amount `db:"credits_per_unit"`
	RatesJSON      string        `db:"rates"`
	CreatedAt      time.Time     `db:"created_at"`
	UpdatedAt      time.Time     `db:"updated_at"`
	rates          []rate
}

// bound tells whether Stripe bills the meter's usage.
func (d *definition) bound() bool { return d.EventName != nil || d.Price != nil }

// gauge tells whether the meter is measured and not charged. What a highest or a
// latest value costs would depend on what else is recorded, late or voided, and
// could not be said when a usage is accepted.
func (d *definition) gauge() bool { return d.Aggregation == "max" || d.Aggregation == "last" }

// rate prices usage whose dimensions have all of match.
type rate struct {
	Match          map[string]string `json:"match"`
	CreditsPerUnit credit.Amount     `json:"credits_per_unit"`
}

// rate gives the credits per unit for usage with these dimensions: of the first
// rate that matches, else the meter's own.
func (d *definition) rate(dimensions map[string]string) credit.Amount {
	for _, r := range d.rates {
		if matches(r.Match, dimensions) {
			return r.CreditsPerUnit
		}
	}
	return d.CreditsPerUnit
}

func matches(match, dimensions map[string]string) bool {
	for name, value := range match {
		if got, ok := dimensions[name]; !ok || got != value {
			return false
		}
	}
	return true
}

func (d *definition) decode() error {
	if err := json.Unmarshal([]byte(d.RatesJSON), &d.rates); err != nil {
		return fmt.Errorf("read the rates of %s: %w", d.Meter, err)
	}
	return nil
}

func (d *definition) wire() api.Meter {
	m := api.Meter{
		Meter: d.Meter, Unit: d.Unit, Aggregation: d.Aggregation, ValueField: d.ValueField, CreditsPerUnit: api.Decimal(d.CreditsPerUnit.String()),
		Rates: []api.Rate{}, RateVersion: d.RateVersion, ETag: tag(d.Revision, d.UpdatedAt), CreatedAt: d.CreatedAt.UTC(), UpdatedAt: d.UpdatedAt.UTC(),
	}
	for _, r := range d.rates {
		m.Rates = append(m.Rates, api.Rate{Match: r.Match, CreditsPerUnit: api.Decimal(r.CreditsPerUnit.String())})
	}
	switch {
	case d.EventName != nil:
		m.Stripe = &api.StripeBinding{Kind: "meter", EventName: *d.EventName, Whole: d.Whole}
	case d.Price != nil:
		m.Stripe = &api.StripeBinding{Kind: "usage_record", Price: *d.Price}
	}
	return m
}

// sqlReadDefinitions relies on meters_pkey and meter_rates_pkey.
const sqlReadDefinitions = `
	SELECT m.meter, m.unit, m.aggregation, m.value_field, m.stripe_event_name, m.stripe_price, m.stripe_whole, m.revision, m.rate_version, r.credits_per_unit, r.rates, m.created_at, m.updated_at
	FROM meters m
	JOIN meter_rates r ON r.meter = m.meter AND r.version = m.rate_version
	WHERE m.meter = ANY ($1::text[])`

// readMeters reads what is in effect now.
func readMeters(ctx context.Context, tx *sqlx.Tx, names []string) (map[string]*definition, error) {
	var rows []*definition
	if err := tx.SelectContext(ctx, &rows, sqlReadDefinitions, pq.StringArray(names)); err != nil {
		return nil, fmt.Errorf("read meters: %w", err)
	}
	definitions := make(map[string]*definition, len(rows))
	for _, d := range rows {
		if err := d.decode(); err != nil {
			return nil, err
		}
		definitions[d.Meter] = d
	}
	return definitions, nil
}

// sqlReadDefinitionAt relies on meters_pkey and meter_rates_pkey.
const sqlReadDefinitionAt = `
	SELECT m.meter, m.unit, m.aggregation, m.value_field, m.stripe_event_name, m.stripe_price, m.stripe_whole, m.revision, m.rate_version AS latest, r.version AS rate_version, r.credits_per_unit, r.rates, m.created_at, m.updated_at
	FROM meters m
	JOIN meter_rates r ON r.meter = m.meter
	WHERE m.meter = $1 AND r.version = $2`

// readDefinitionAt gives a meter with the rates of one version of it.
func readDefinitionAt(ctx context.Context, tx *sqlx.Tx, meter string, version int) (*definition, error) {
	var d definition
	if err := tx.GetContext(ctx, &d, sqlReadDefinitionAt, meter, version); err != nil {
		return nil, fmt.Errorf("read version %d of meter %s: %w", version, meter, err)
	}
	return &d, d.decode()
}

package meter

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/web"
)

// Bounds of a meter.
const (
	unitMax  = 64
	ratesMax = 200
)

// Members of the data of a CloudEvent: what holds the quantity unless the meter
// says otherwise, and what holds the dimensions.
const (
	valueFieldDefault = "quantity"
	dimensionsField   = "dimensions"
)

var errMeterForm = &fault.Error{Kind: fault.KindUnprocessed, Code: "invalid_value", Public: "the meter's name in the path " + meterRule}

// validateMeter makes a definition of a request.
func validateMeter(name string, q api.MeterRequest) (*definition, error) {
	if !meterForm.MatchString(name) {
		return nil, errMeterForm
	}
	var p fault.Problems
	d := &definition{Meter: name, Unit: q.Unit, Aggregation: q.Aggregation, ValueField: cmp.Or(q.ValueField, valueFieldDefault), rates: []rate{}}
	if len(q.Unit) > unitMax {
		p.Addf("/unit", "must have at most %d bytes", unitMax)
	}
	switch q.Aggregation {
	case "":
		d.Aggregation = "sum"
	case "sum", "count", "max", "last":
	default:
		p.Addf("/aggregation", "must be sum, count, max or last")
	}
	if len(d.ValueField) > nameBytesMax || d.ValueField == dimensionsField {
		p.Addf("/value_field", "must have at most %d bytes, and not be %s", nameBytesMax, dimensionsField)
	}
	d.CreditsPerUnit = amount(&p, "/credits_per_unit", q.CreditsPerUnit)
	if q.CreditsPerUnit == "" {
		p.Addf("/credits_per_unit", "must be given; 0 for usage that is free")
	}
	if d.CreditsPerUnit < 0 {
		p.Addf("/credits_per_unit", "must not be negative")
	}
	if len(q.Rates) > ratesMax {
		p.Addf("/rates", "must list at most %d rates", ratesMax)
	}
	if d.gauge() && d.CreditsPerUnit > 0 {
		p.Addf("/credits_per_unit", "must be 0 for a meter that aggregates by %s: it is measured, not charged; charge what it comes to with a meter that sums", d.Aggregation)
	}
	if d.gauge() && len(q.Rates) > 0 {
		p.Addf("/rates", "must be empty for a meter that aggregates by %s: it is measured, not charged", d.Aggregation)
	}
	for i, r := range q.Rates {
		d.rates = append(d.rates, validateRate(&p, fmt.Sprintf("/rates/%d", i), r))
	}
	validateBinding(&p, d, q.Stripe)
	return d, p.Err(fault.ErrUnprocessed)
}

func validateRate(p *fault.Problems, pointer string, r api.Rate) rate {
	if len(r.Match) == 0 {
		p.Addf(pointer+"/match", "must name at least one dimension; credits_per_unit is the rate for all others")
	}
	checkTexts(p, pointer+"/match", r.Match, dimensionsMax, dimensionValueMax)
	if r.CreditsPerUnit == "" {
		p.Addf(pointer+"/credits_per_unit", "must be given")
	}
	price := amount(p, pointer+"/credits_per_unit", r.CreditsPerUnit)
	if price < 0 {
		p.Addf(pointer+"/credits_per_unit", "must not be negative")
	}
	return rate{Match: r.Match, CreditsPerUnit: price}
}

// validateBinding refuses what Stripe cannot do: usage is sent as sums, once per
// minute and account, and only sums agree with what Stripe makes of them.
func validateBinding(p *fault.Problems, d *definition, b *api.StripeBinding) {
	if b == nil {
		return
	}
	switch b.Kind {
	case "meter":
		if !eventNameForm.MatchString(b.EventName) {
			p.Addf("/stripe/event_name", "must be the event_name of a billing meter at Stripe, at most 100 characters")
		}
		if b.Price != "" {
			p.Addf("/stripe/price", "must not be given with kind meter")
		}
		d.EventName, d.Whole = &b.EventName, b.Whole
	case "usage_record":
		if !priceForm.MatchString(b.Price) {
			p.Addf("/stripe/price", "must be the id of a metered price at Stripe, such as price_…")
		}
		if b.EventName != "" {
			p.Addf("/stripe/event_name", "must not be given with kind usage_record")
		}
		if b.Whole {
			p.Addf("/stripe/whole", "must not be given with kind usage_record, which is whole in any case")
		}
		d.Price = &b.Price
	default:
		p.Addf("/stripe/kind", "must be meter or usage_record")
	}
	if d.gauge() {
		p.Addf("/aggregation", "must be sum or count for a meter bound to Stripe: usage is sent as sums per minute, so that Stripe's %s of them would not be ours", d.Aggregation)
	}
}

// sqlPutMeter relies on meters_pkey. The version is raised by the caller, under
// the row's lock.
const sqlPutMeter = `
	INSERT INTO meters AS m (meter, unit, aggregation, value_field, stripe_event_name, stripe_price, stripe_whole, stripe_bound_at, rate_version, created_at, updated_at)
	VALUES ($1, $2, $3, $7, $4, $8, $9, CASE WHEN $4::text IS NOT NULL OR $8::text IS NOT NULL THEN $6::timestamptz END, $5, $6, $6)
	ON CONFLICT (meter) DO UPDATE
	SET unit = excluded.unit, aggregation = excluded.aggregation, value_field = excluded.value_field, stripe_event_name = excluded.stripe_event_name,
		stripe_price = excluded.stripe_price, stripe_whole = excluded.stripe_whole,
		stripe_bound_at = CASE WHEN excluded.stripe_event_name IS NOT DISTINCT FROM m.stripe_event_name AND excluded.stripe_price IS NOT DISTINCT FROM m.stripe_price
			THEN m.stripe_bound_at ELSE excluded.stripe_bound_at END,
		rate_version = excluded.rate_version, revision = m.revision + 1, updated_at = excluded.updated_at`

// sqlLockMeter relies on meters_pkey.
const sqlLockMeter = `SELECT revision, updated_at FROM meters WHERE meter = $1 FOR UPDATE`

// sqlBoundToPrice relies on the index meters_price.
const sqlBoundToPrice = `SELECT meter FROM meters WHERE stripe_price = $1 AND meter <> $2`

// sqlInsertRates relies on meter_rates_pkey: a version is written once.
const sqlInsertRates = `
	INSERT INTO meter_rates (meter, version, credits_per_unit, rates, created_at) VALUES ($1, $2, $3, $4::jsonb, $5)`

// put makes the meter or changes it. Changed rates are a new version; usage
// recorded before keeps its own (M4).
func (d *definition) put(ctx context.Context, tx *sqlx.Tx, condition precondition, now time.Time) (created bool, err error) {
	var locked []definition
	if err := tx.SelectContext(ctx, &locked, sqlLockMeter, d.Meter); err != nil {
		return false, fmt.Errorf("lock meter %s: %w", d.Meter, err)
	}
	stands := ""
	for _, l := range locked {
		stands = tag(l.Revision, l.UpdatedAt)
	}
	if err := condition.holds(stands); err != nil {
		return false, err
	}
	rates, err := json.Marshal(d.rates)
	if err != nil {
		return false, fmt.Errorf("encode rates: %w", err)
	}
	d.Revision, d.RateVersion, d.CreatedAt, d.UpdatedAt = 1, 1, now, now
	changed := true
	if len(locked) > 0 {
		meters, err := readMeters(ctx, tx, []string{d.Meter})
		if err != nil {
			return false, err
		}
		old := meters[d.Meter]
		if old.Aggregation != d.Aggregation {
			return false, errFixed.Withf("the meter's aggregation is %s for good, because what was recorded was counted by it; make another meter", old.Aggregation)
		}
		d.CreatedAt, d.Revision, d.RateVersion = old.CreatedAt, old.Revision+1, old.RateVersion
		was, err := json.Marshal(old.rates)
		if err != nil {
			return false, fmt.Errorf("encode rates: %w", err)
		}
		if changed = old.CreditsPerUnit != d.CreditsPerUnit || string(was) != string(rates); changed {
			d.RateVersion++
		}
	}
	var others []string
	if err := tx.SelectContext(ctx, &others, sqlBoundToPrice, d.Price, d.Meter); err != nil {
		return false, fmt.Errorf("find who is bound to the price: %w", err)
	}
	if len(others) > 0 {
		return false, errPriceBound.Withf("the meter %s is bound to the price: the totals of both would overwrite each other at Stripe", others[0])
	}
	if _, err := tx.ExecContext(ctx, sqlPutMeter, d.Meter, d.Unit, d.Aggregation, d.EventName, d.RateVersion, now, d.ValueField, d.Price, d.Whole); err != nil {
		return false, fmt.Errorf("put meter %s: %w", d.Meter, err)
	}
	if !changed {
		return false, nil
	}
	_, err = tx.ExecContext(ctx, sqlInsertRates, d.Meter, d.RateVersion, d.CreditsPerUnit, string(rates), now)
	return len(locked) == 0, err
}

func (m *Meter) handlePutMeter(w http.ResponseWriter, r *http.Request) error {
	var q api.MeterRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	d, err := validateMeter(r.PathValue("meter"), q)
	if err != nil {
		return err
	}
	condition, err := preconditionOf(r)
	if err != nil {
		return err
	}
	var created bool
	put := func(tx *sqlx.Tx) (err error) {
		created, err = d.put(r.Context(), tx, condition, m.now().UTC().Truncate(time.Microsecond))
		return err
	}
	err = m.db.InTx(r.Context(), put)
	if pg.IsCode(err, pg.CodeUniqueViolation) {
		err = m.db.InTx(r.Context(), put) // somebody made it a moment before: now there is a row to lock
	}
	if err != nil {
		return err
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	return d.answer(w, status)
}

func (d *definition) answer(w http.ResponseWriter, status int) error {
	answer := d.wire()
	w.Header().Set("ETag", answer.ETag)
	return web.JSON(w, status, answer)
}

// sqlListMeters pages over meters_pkey.
const sqlListMeters = `
	SELECT m.meter, m.unit, m.aggregation, m.value_field, m.stripe_event_name, m.stripe_price, m.stripe_whole, m.revision, m.rate_version, r.credits_per_unit, r.rates, m.created_at, m.updated_at
	FROM meters m
	JOIN meter_rates r ON r.meter = m.meter AND r.version = m.rate_version
	WHERE m.meter > $1
	ORDER BY m.meter
	LIMIT $2`

func (m *Meter) handleListMeters(w http.ResponseWriter, r *http.Request) error {
	after := ""
	limit, err := web.Page(r, &after)
	if err != nil {
		return err
	}
	var rows []*definition
	err = m.db.Read(r.Context(), func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(r.Context(), &rows, sqlListMeters, after, limit+1)
	})
	if err != nil {
		return err
	}
	meters := make([]api.Meter, len(rows))
	for i, d := range rows {
		if err := d.decode(); err != nil {
			return err
		}
		meters[i] = d.wire()
	}
	return web.JSON(w, http.StatusOK, web.Paged(meters, limit, func(m api.Meter) any { return m.Meter }))
}

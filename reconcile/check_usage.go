package reconcile

import (
	"context"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// Bounds of usage.totals.
const (
	stuckAfter     = time.Hour           // a delivery that is under way longer than this is not under way
	stripeTakesFor = 35 * 24 * time.Hour // how old a meter event may be
	narrowCallsMax = 80
	evidenceMax    = 20
)

// pair is one account's usage of one meter that is billed at Stripe.
type pair struct {
	Account   string         `db:"account"`
	Meter     string         `db:"meter"`
	EventName string         `db:"stripe_event_name"`
	BoundAt   time.Time      `db:"stripe_bound_at"`
	Customers pq.StringArray `db:"customers"`
	meterID   string         // at Stripe
	price     *big.Rat       // minor units per unit; nil when not one flat price
	currency  string
}

// sqlPairs gives every account that Stripe can bill, with every bound meter: usage
// that only Stripe knows of shows, too.
const sqlPairs = `
	SELECT c.account, m.meter, m.stripe_event_name, m.stripe_bound_at, array_agg(c.customer ORDER BY c.position) AS customers
	FROM stripe_customers c CROSS JOIN meters m
	WHERE m.stripe_event_name IS NOT NULL AND ($1 = '' OR c.account = $1)
	GROUP BY c.part, c.account, m.meter, m.stripe_event_name, m.stripe_bound_at
	ORDER BY c.account, m.meter`

// sqlUsageByHour sums usage from its own rows, over the index usage_by_time, and
// from the hours that stay of archived months. A meter that counts counts rows.
// What was voided is none, whatever became of its correction.
const sqlUsageByHour = `
	SELECT u.account, u.meter, u.hour, sum(CASE WHEN m.aggregation = 'count' THEN 1000000 * u.usages ELSE u.quantity END) AS quantity
	FROM (
		SELECT account, meter, date_trunc('hour', occurred_at) AS hour, 1 AS usages, quantity, recorded_at AS since
		FROM usage
		WHERE occurred_at >= $1 AND occurred_at < $2 AND ($3 = '' OR account = $3)
			AND NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.part = usage.part AND v.account = usage.account AND v.usage_id = usage.usage_id)
		UNION ALL
		SELECT account, meter, hour, usages, quantity, first_recorded
		FROM usage_hours
		WHERE hour >= $1 AND hour < $2 AND ($3 = '' OR account = $3) AND NOT voided
	) u JOIN meters m ON m.meter = u.meter
	WHERE m.stripe_event_name IS NOT NULL AND u.since >= m.stripe_bound_at
	GROUP BY 1, 2, 3`

// sqlUnderWay sums deliveries that Stripe does not have yet, or may have. A
// negative one, which corrects others, may be held back until they are there:
// Stripe may be without it in any state.
const sqlUnderWay = `
	SELECT account, meter, date_trunc('hour', bucket) AS hour,
		coalesce(sum(quantity) FILTER (WHERE quantity > 0 AND state = 'pending'), 0) AS waiting,
		coalesce(sum(quantity) FILTER (WHERE quantity > 0 AND state IN ('sending', 'ambiguous')), 0) AS unknown,
		coalesce(-sum(quantity) FILTER (WHERE quantity < 0), 0) AS correcting
	FROM deliveries
	WHERE state IN ('pending', 'sending', 'ambiguous') AND created_at > $1 AND bucket >= $2 AND bucket < $3 AND ($4 = '' OR account = $4)
	GROUP BY 1, 2, 3`

// cell is one pair's usage in one span.
type cell struct {
	ours       credit.Quantity
	theirs     credit.Quantity
	waiting    credit.Quantity // surely not at Stripe yet
	unknown    credit.Quantity // may be at Stripe
	correcting credit.Quantity // is to be taken back, and may be at Stripe yet
}

// most and least are what Stripe can have by now if nothing is wrong (R4).
func (c cell) most() credit.Quantity  { return c.ours - c.waiting + c.correcting }
func (c cell) least() credit.Quantity { return c.ours - c.waiting - c.unknown }

// agrees tells whether what is under way explains the difference.
func (c cell) agrees() bool { return c.theirs <= c.most() && c.theirs >= c.least() }

// difference is what Stripe has beyond what it should have by now.
func (c cell) difference() int64 {
	if c.theirs > c.most() {
		return int64(c.theirs - c.most())
	}
	return int64(c.theirs) - int64(c.ours-c.waiting)
}

type cellKey struct {
	account, meter string
	hour           int64
}

// usageTotals is the check usage.totals.
func (r *Reconciler) usageTotals(ctx context.Context, s scope) (result, error) {
	out := result{}
	pairs, cells, err := r.readUsage(ctx, s)
	if err != nil {
		return out, err
	}
	pairs, err = r.atStripe(ctx, pairs)
	if err != nil {
		return out, err
	}
	for _, p := range pairs {
		theirs, err := r.hourlyTotals(ctx, p, s)
		if err != nil {
			return out, err
		}
		for hour := s.from; hour.Before(s.to); hour = hour.Add(time.Hour) {
			c := cells[cellKey{p.Account, p.Meter, hour.Unix()}]
			c.theirs = theirs[hour.Unix()]
			if c.ours == 0 && c.theirs == 0 && c.waiting == 0 && c.correcting == 0 {
				continue
			}
			out.compared++
			if c.agrees() {
				continue
			}
			d, ok, err := r.usageFinding(ctx, p, s, hour, c)
			if err != nil {
				return out, err
			}
			if ok {
				out.found = append(out.found, d)
			}
		}
	}
	return out, nil
}

// readUsage reads our side in one snapshot.
func (r *Reconciler) readUsage(ctx context.Context, s scope) (pairs []pair, cells map[cellKey]cell, err error) {
	var used []struct {
		Account  string          `db:"account"`
		Meter    string          `db:"meter"`
		Hour     time.Time       `db:"hour"`
		Quantity credit.Quantity `db:"quantity"`
	}
	var moving []struct {
		Account string          `db:"account"`
		Meter   string          `db:"meter"`
		Hour    time.Time       `db:"hour"`
		Waiting credit.Quantity `db:"waiting"`
		Unknown credit.Quantity `db:"unknown"`

		Correcting credit.Quantity `db:"correcting"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		pairs, used, moving = nil, nil, nil
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		if err := tx.SelectContext(ctx, &pairs, sqlPairs, s.account); err != nil {
			return err
		}
		if err := tx.SelectContext(ctx, &used, sqlUsageByHour, s.from, s.to, s.account); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &moving, sqlUnderWay, s.now.Add(-stuckAfter), s.from, s.to, s.account)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read usage: %w", err)
	}
	cells = make(map[cellKey]cell, len(used))
	for _, u := range used {
		cells[cellKey{u.Account, u.Meter, u.Hour.Unix()}] = cell{ours: u.Quantity}
	}
	for _, m := range moving {
		key := cellKey{m.Account, m.Meter, m.Hour.Unix()}
		c := cells[key]
		c.waiting, c.unknown, c.correcting = m.Waiting, m.Unknown, m.Correcting
		cells[key] = c
	}
	return pairs, cells, nil
}

// atStripe finds each pair's meter and price at Stripe. A meter that Stripe does
// not know has no totals: whatever we sent is missing there.
func (r *Reconciler) atStripe(ctx context.Context, pairs []pair) ([]pair, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	meters, err := r.Stripe.Meters(ctx)
	if err != nil {
		return nil, err
	}
	byName := map[string]stripe.Meter{}
	for _, m := range meters {
		if stands, ok := byName[m.EventName]; !ok || stands.Status != "active" {
			byName[m.EventName] = m
		}
	}
	prices := map[string][]stripe.Price{}
	for i := range pairs {
		p := &pairs[i]
		p.meterID = byName[p.EventName].ID
		if p.meterID == "" {
			continue
		}
		if _, read := prices[p.meterID]; !read {
			if prices[p.meterID], err = r.Stripe.PricesOf(ctx, p.meterID); err != nil {
				return nil, err
			}
		}
		if list := prices[p.meterID]; len(list) == 1 && list[0].UnitAmount != "" {
			if amount, ok := new(big.Rat).SetString(list[0].UnitAmount); ok {
				p.price, p.currency = amount, list[0].Currency
			}
		}
	}
	return pairs, nil
}

// hourlyTotals reads what Stripe has counted per hour, over all customers of the
// account. The last hour, when the window cuts it, is read as one total.
func (r *Reconciler) hourlyTotals(ctx context.Context, p pair, s scope) (map[int64]credit.Quantity, error) {
	totals := map[int64]credit.Quantity{}
	if p.meterID == "" {
		return totals, nil
	}
	last := s.to.Truncate(time.Hour)
	for _, customer := range p.Customers {
		if s.from.Before(last) {
			rows, err := r.Stripe.Totals(ctx, p.meterID, customer, s.from, last, true)
			if err != nil {
				return nil, err
			}
			for _, t := range rows {
				totals[t.From.Unix()] += t.Quantity
			}
		}
		if last.Before(s.to) {
			q, err := r.total(ctx, p, customer, last, s.to)
			if err != nil {
				return nil, err
			}
			totals[last.Unix()] += q
		}
	}
	return totals, nil
}

func (r *Reconciler) total(ctx context.Context, p pair, customer string, from, to time.Time) (sum credit.Quantity, err error) {
	rows, err := r.Stripe.Totals(ctx, p.meterID, customer, from, to, false)
	for _, t := range rows {
		sum += t.Quantity
	}
	return sum, err
}

// usageFinding narrows a difference down, finds its cause and prices it. It is ok
// to find none after all: what was under way may have arrived since.
func (r *Reconciler) usageFinding(ctx context.Context, p pair, s scope, hour time.Time, c cell) (disagreement, bool, error) {
	end := hour.Add(time.Hour)
	if s.to.Before(end) {
		end = s.to
	}
	spans, err := r.narrow(ctx, p, s, hour, end)
	if err != nil {
		return disagreement{}, false, err
	}
	if len(spans) == 0 {
		return disagreement{}, false, nil
	}
	var difference int64
	for _, sp := range spans {
		difference += sp.difference()
	}
	usages, err := r.suspects(ctx, p, spans)
	if err != nil {
		return disagreement{}, false, err
	}
	deadline := hour.Add(stripeTakesFor)
	d := disagreement{
		Subject: strings.Join([]string{p.Account, p.Meter, hour.Format("2006-01-02T15Z")}, "/"), Account: p.Account, HappenedAt: hour, Unit: p.Meter,
		Ours: c.ours.String(), Theirs: c.theirs.String(), Difference: signed(difference), Deadline: &deadline,
	}
	if p.price != nil {
		d.Money = worth(difference, p.price, p.currency)
	}
	explainUsage(&d, p, spans, difference)
	if slices.ContainsFunc(spans, func(sp span) bool { return sp.archived }) {
		d.Repair, d.RepairArgs, d.Safe = "", nil, false // Stripe takes nothing that old
	}
	d.Evidence = usageEvidence(p, spans, usages)
	return d, true, nil
}

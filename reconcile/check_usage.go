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

// sqlUsageByHour sums usage from its own rows, over the index usage_by_time. A
// meter that counts counts rows. What was voided is none, whatever became of its
// correction.
const sqlUsageByHour = `
	SELECT u.account, u.meter, date_trunc('hour', u.occurred_at) AS hour, sum(CASE WHEN m.aggregation = 'count' THEN 1000000 ELSE u.quantity END) AS quantity
	FROM usage u JOIN meters m ON m.meter = u.meter
	WHERE u.occurred_at >= $1 AND u.occurred_at < $2 AND m.stripe_event_name IS NOT NULL AND u.recorded_at >= m.stripe_bound_at AND ($3 = '' OR u.account = $3)
		AND NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id)
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
	d.Evidence = usageEvidence(p, spans, usages)
	return d, true, nil
}

// span is a stretch of buckets in which both sides differ.
type span struct {
	from, to time.Time
	cell
	deliveries []suspect
	late       credit.Quantity // voided when Stripe would take no correction any more
}

// suspect is a delivery within a span.
type suspect struct {
	Identifier string          `db:"identifier" json:"identifier"`
	Bucket     time.Time       `db:"bucket" json:"bucket"`
	State      string          `db:"state" json:"state"`
	Origin     string          `db:"origin" json:"origin"`
	Quantity   credit.Quantity `db:"quantity" json:"quantity"`
	Error      string          `db:"error" json:"error,omitempty"`
	CreatedAt  time.Time       `db:"created_at" json:"-"`
}

// narrow halves a span until it knows the buckets in which both sides differ, and
// gives up halving, not finding, when it has called Stripe often enough.
func (r *Reconciler) narrow(ctx context.Context, p pair, s scope, from, to time.Time) ([]span, error) {
	queue := []span{{from: from, to: to}}
	var found []span
	for calls := 0; len(queue) > 0; {
		sp := queue[0]
		queue = queue[1:]
		for _, customer := range p.Customers {
			if p.meterID == "" {
				break
			}
			q, err := r.total(ctx, p, customer, sp.from, sp.to)
			if err != nil {
				return nil, err
			}
			sp.theirs += q
			calls++
		}
		if err := r.ourSide(ctx, p, s, &sp); err != nil {
			return nil, err
		}
		buckets := int(sp.to.Sub(sp.from) / r.Bucket)
		if sp.agrees() {
			continue
		}
		if buckets <= 1 || calls >= narrowCallsMax {
			found = append(found, sp)
			continue
		}
		middle := sp.from.Add(time.Duration(buckets/2) * r.Bucket)
		queue = append(queue, span{from: sp.from, to: middle}, span{from: middle, to: sp.to})
	}
	slices.SortFunc(found, func(a, b span) int { return a.from.Compare(b.from) })
	return found, nil
}

// sqlUsageWithin relies on the index usage_by_account.
const sqlUsageWithin = `
	SELECT coalesce(sum(CASE WHEN m.aggregation = 'count' THEN 1000000 ELSE u.quantity END), 0)
	FROM usage u JOIN meters m ON m.meter = u.meter JOIN accounts a ON a.part = u.part AND a.account = u.account || ''
	WHERE a.account = $1 AND u.meter = $2 AND u.occurred_at >= $3 AND u.occurred_at < $4 AND u.recorded_at >= m.stripe_bound_at
		AND NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id)`

// sqlVoidedLate relies on the indexes usage_by_account and usage_voids_pkey.
const sqlVoidedLate = `
	SELECT coalesce(sum(CASE WHEN m.aggregation = 'count' THEN 1000000 ELSE u.quantity END), 0)
	FROM usage u JOIN meters m ON m.meter = u.meter JOIN accounts a ON a.part = u.part AND a.account = u.account || ''
	JOIN usage_voids v ON v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id
	WHERE a.account = $1 AND u.meter = $2 AND u.occurred_at >= $3 AND u.occurred_at < $4 AND u.recorded_at >= m.stripe_bound_at AND v.stripe = 'too_late'`

// sqlDeliveriesWithin reads what was staged for a stretch of buckets.
const sqlDeliveriesWithin = `
	SELECT d.identifier, d.bucket, d.state, d.origin, d.quantity, d.error, d.created_at
	FROM deliveries d JOIN accounts a ON a.part = d.part AND a.account = d.account
	WHERE a.account = $1 AND d.meter = $2 AND d.bucket >= $3 AND d.bucket < $4
	ORDER BY d.bucket, d.sequence`

func (r *Reconciler) ourSide(ctx context.Context, p pair, s scope, sp *span) error {
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		sp.deliveries = nil
		if err := tx.GetContext(ctx, &sp.ours, sqlUsageWithin, p.Account, p.Meter, sp.from, sp.to); err != nil {
			return err
		}
		if err := tx.GetContext(ctx, &sp.late, sqlVoidedLate, p.Account, p.Meter, sp.from, sp.to); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &sp.deliveries, sqlDeliveriesWithin, p.Account, p.Meter, sp.from, sp.to)
	})
	if err != nil {
		return fmt.Errorf("read usage of %s: %w", p.Account, err)
	}
	for _, d := range sp.deliveries {
		if !d.CreatedAt.After(s.now.Add(-stuckAfter)) {
			continue
		}
		switch {
		case d.State != "pending" && d.State != "sending" && d.State != "ambiguous": // is settled
		case d.Quantity < 0:
			sp.correcting -= d.Quantity
		case d.State == "pending":
			sp.waiting += d.Quantity
		default:
			sp.unknown += d.Quantity
		}
	}
	return nil
}

// sqlSuspects relies on the index usage_by_account.
const sqlSuspects = `
	SELECT u.usage_id
	FROM usage u JOIN accounts a ON a.part = u.part AND a.account = u.account || ''
	WHERE a.account = $1 AND u.meter = $2 AND u.occurred_at >= $3 AND u.occurred_at < $4
	ORDER BY u.occurred_at, u.usage_id
	LIMIT $5`

func (r *Reconciler) suspects(ctx context.Context, p pair, spans []span) (ids []string, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		ids = []string{}
		for _, sp := range spans {
			var some []string
			if err := tx.SelectContext(ctx, &some, sqlSuspects, p.Account, p.Meter, sp.from, sp.to, evidenceMax); err != nil {
				return err
			}
			ids = append(ids, some...)
		}
		return nil
	})
	return ids[:min(len(ids), evidenceMax)], err
}

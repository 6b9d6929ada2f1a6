package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// span is a stretch of buckets in which both sides differ.
type span struct {
	from, to time.Time
	cell
	deliveries []suspect
	late       credit.Quantity // voided when Stripe would take no correction any more
	archived   bool            // of our side some is left as whole hours only
}

// suspect is a delivery within a span.
type suspect struct {
	Identifier string          `db:"identifier" json:"identifier"`
	Bucket     time.Time       `db:"bucket" json:"bucket"`
	State      string          `db:"state" json:"state"`
	Origin     string          `db:"origin" json:"origin"`
	Quantity   credit.Quantity `db:"quantity" json:"quantity"`
	Error      string          `db:"error" json:"error,omitempty"`
	Customer   string          `db:"customer" json:"customer,omitempty"`
	ReplacedBy string          `db:"replaced_by" json:"replaced_by,omitempty"`
	CreatedAt  time.Time       `db:"created_at" json:"-"`

	DeliveredAt *time.Time `db:"delivered_at" json:"delivered_at,omitempty"`
}

// carryMost is the most that is carried from one delivery to the next.
const carryMost = 999_999

// narrow halves a span, whose sums are known, until it knows the buckets in which
// both sides differ. It gives up halving, not finding, when it has called Stripe
// often enough. Of the second half Stripe has what it has not of the first.
func (u *usageRun) narrow(ctx context.Context, p pair, whole span) ([]span, error) {
	queue := []span{whole}
	var found []span
	for calls := 0; len(queue) > 0; {
		sp := queue[0]
		queue = queue[1:]
		buckets := int(sp.to.Sub(sp.from) / u.Bucket)
		if sp.agrees() {
			continue
		}
		if buckets <= 1 || calls >= narrowCallsMax || sp.archived {
			found = append(found, sp)
			continue
		}
		middle := sp.from.Add(time.Duration(buckets/2) * u.Bucket)
		first, second := span{from: sp.from, to: middle}, span{from: middle, to: sp.to}
		if sp.theirs != 0 {
			q, err := u.totalOf(ctx, p, first.from, first.to)
			if errors.Is(err, stripe.ErrBudget) {
				found = append(found, sp)
				continue
			}
			if err != nil {
				return nil, err
			}
			first.theirs, second.theirs = q, sp.theirs-q
			calls += len(p.Customers)
		}
		for _, half := range []*span{&first, &second} {
			if err := u.ourSide(ctx, p, u.s, half); err != nil {
				return nil, err
			}
			queue = append(queue, *half)
		}
	}
	slices.SortFunc(found, func(a, b span) int { return a.from.Compare(b.from) })
	return found, nil
}

// sqlFormerCustomers lists the customers that deliveries went to and that are
// nobody's now, over deliveries_pkey: what they have counted was this account's.
const sqlFormerCustomers = `
	SELECT DISTINCT d.customer
	FROM deliveries d
	WHERE d.part = $1 AND d.account = $2 AND d.meter = $3 AND d.bucket >= $4 AND d.bucket < $5 AND d.customer <> ''
		AND NOT EXISTS (SELECT 1 FROM stripe_customers c WHERE c.customer = d.customer)
	ORDER BY 1`

// formerCustomers adds what customers have counted that the account had once.
func (u *usageRun) formerCustomers(ctx context.Context, p pair, sp span) (pair, span, error) {
	var former []string
	err := u.DB.Read(ctx, func(tx *sqlx.Tx) error {
		former = nil
		return tx.SelectContext(ctx, &former, sqlFormerCustomers, p.Part, p.Account, p.Meter, sp.from, sp.to)
	})
	if err != nil || len(former) == 0 {
		return p, sp, err
	}
	were := p
	were.Customers = former
	q, err := u.totalOf(ctx, were, sp.from, sp.to)
	if err != nil {
		return p, sp, err
	}
	sp.theirs += q
	p.Customers = append(slices.Clone(p.Customers), former...)
	return p, sp, nil
}

// sqlUsageWithin relies on the indexes usage_by_account and usage_hours_by_account.
// Of archived usage only whole hours count, and none within an hour.
const sqlUsageWithin = `
	SELECT coalesce(sum(CASE WHEN m.aggregation = 'count' THEN 1000000 * u.usages ELSE u.quantity END), 0) AS quantity,
		coalesce(bool_or(u.archived), false) AS archived
	FROM (
		SELECT u.meter, 1 AS usages, u.quantity, u.recorded_at AS since, false AS archived
		FROM usage u JOIN accounts a ON a.part = u.part AND a.account = u.account || ''
		WHERE a.account = $1 AND u.meter = $2 AND u.occurred_at >= $3 AND u.occurred_at < $4
			AND NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id)
		UNION ALL
		SELECT h.meter, h.usages, h.quantity, h.first_recorded, true
		FROM usage_hours h JOIN accounts a ON a.part = h.part AND a.account = h.account || ''
		WHERE a.account = $1 AND h.meter = $2 AND h.hour >= $3 AND h.hour <= $4::timestamptz - interval '1 hour' AND NOT h.voided
	) u JOIN meters m ON m.meter = u.meter
	WHERE u.since >= m.stripe_bound_at`

// sqlVoidedLate relies on the indexes usage_by_account and usage_voids_pkey.
const sqlVoidedLate = `
	SELECT coalesce(sum(CASE WHEN m.aggregation = 'count' THEN 1000000 ELSE u.quantity END), 0)
	FROM usage u JOIN meters m ON m.meter = u.meter JOIN accounts a ON a.part = u.part AND a.account = u.account || ''
	JOIN usage_voids v ON v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id
	WHERE a.account = $1 AND u.meter = $2 AND u.occurred_at >= $3 AND u.occurred_at < $4 AND u.recorded_at >= m.stripe_bound_at AND v.stripe = 'too_late'`

// sqlDeliveriesWithin reads what was staged for a stretch of buckets.
const sqlDeliveriesWithin = `
	SELECT d.identifier, d.bucket, d.state, d.origin, d.quantity, d.error, d.customer, d.replaced_by, d.created_at, d.delivered_at
	FROM deliveries d JOIN accounts a ON a.part = d.part AND a.account = d.account
	WHERE a.account = $1 AND d.meter = $2 AND d.bucket >= $3 AND d.bucket < $4
	ORDER BY d.bucket, d.sequence`

func (r *Reconciler) ourSide(ctx context.Context, p pair, s scope, sp *span) error {
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		sp.deliveries = nil
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
		if err := tx.QueryRowxContext(ctx, sqlUsageWithin, p.Account, p.Meter, sp.from, sp.to).Scan(&sp.ours, &sp.archived); err != nil {
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
	if p.Whole {
		sp.carry = carryMost
	}
	for _, d := range sp.deliveries {
		if d.DeliveredAt != nil && d.DeliveredAt.After(s.now.Add(-r.Settle)) && d.State == "delivered" {
			// Stripe took it a moment ago, and may not count it yet.
			if d.Quantity < 0 {
				sp.correcting -= d.Quantity
			} else {
				sp.unknown += d.Quantity
			}
			continue
		}
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
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
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

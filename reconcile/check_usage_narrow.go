package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
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
		if buckets <= 1 || calls >= narrowCallsMax || sp.archived {
			found = append(found, sp)
			continue
		}
		middle := sp.from.Add(time.Duration(buckets/2) * r.Bucket)
		queue = append(queue, span{from: sp.from, to: middle}, span{from: middle, to: sp.to})
	}
	slices.SortFunc(found, func(a, b span) int { return a.from.Compare(b.from) })
	return found, nil
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
	SELECT d.identifier, d.bucket, d.state, d.origin, d.quantity, d.error, d.created_at
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

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// Bounds of what a run reads of usage records.
const (
	recordItemsMax = 500             // subscription items in one run by schedule
	recordItems    = 100             // in one statement
	recordGrace    = 5 * time.Minute // in which Stripe may count a sum to the period before, or to the present one
)

// recordKey is where the reading of subscription items has stopped.
type recordKey struct {
	Part     int16  `db:"part" json:"part"`
	Account  string `db:"account" json:"account"`
	Customer string `db:"customer" json:"customer"`
	Price    string `db:"price" json:"price"`
	Item     string `db:"item" json:"item"`
}

// recordItem is a subscription item that a meter of ours reports usage records to.
type recordItem struct {
	recordKey
	Subscription string    `db:"subscription"`
	Meter        string    `db:"meter"`
	BoundAt      time.Time `db:"stripe_bound_at"`
	PeriodStart  time.Time `db:"period_start"`
	PeriodEnd    time.Time `db:"period_end"`
	State        string    `db:"state"`
}

// sqlRecordItems pages over subscription_items_pkey. Of an item that is gone only
// what it had in the window matters.
const sqlRecordItems = `
	SELECT i.part, i.account, i.customer, i.price, i.item, i.subscription, i.period_start, i.period_end, i.state, m.meter, m.stripe_bound_at
	FROM subscription_items i JOIN meters m ON m.stripe_price = i.price
	WHERE (i.part, i.account, i.customer, i.price, i.item) > ($1, $2, $3, $4, $5) AND ($6 = '' OR i.account = $6)
		AND (i.state = 'active' OR i.state = 'gone' AND i.period_end > $7)
	ORDER BY i.part, i.account, i.customer, i.price, i.item
	LIMIT $8`

func (r *Reconciler) recordItemsAfter(ctx context.Context, last recordKey, s scope, limit int) (items []recordItem, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		items = nil
		return tx.SelectContext(ctx, &items, sqlRecordItems, last.Part, last.Account, last.Customer, last.Price, last.Item, s.account, s.from, limit)
	})
	if err != nil {
		err = fmt.Errorf("read subscription items: %w", err)
	}
	return items, err
}

// recordPeriod is one period of an item, (from, to], as Stripe tells of it.
type recordPeriod struct {
	from, to time.Time // to is the present while the period has no end
	total    int64
	invoice  string // "" while nothing bills it
	over     bool
}

// recordPeriods gives the periods of an item that end within the window or after it.
func (u *usageRun) recordPeriods(ctx context.Context, item recordItem) ([]recordPeriod, error) {
	rows, err := u.Stripe.UsageSummaries(ctx, item.Item, u.s.from)
	if err != nil {
		return nil, err
	}
	periods := make([]recordPeriod, 0, len(rows))
	for i, row := range rows {
		p := recordPeriod{from: row.From, to: row.To, total: row.Quantity, invoice: row.Invoice}
		switch {
		case !p.from.IsZero():
		case i+1 < len(rows):
			p.from = rows[i+1].To // Stripe may leave the edges of the open period out
		default:
			p.from = item.PeriodStart
		}
		if p.to.IsZero() {
			p.to = item.PeriodEnd
		}
		p.over = u.s.now.After(p.to)
		periods = append(periods, p)
	}
	return periods, nil
}

// recordsSent is what was sent for one item and period, in whole units.
type recordsSent struct {
	Low         int64          `db:"low"`  // the least that Stripe may have of it
	High        int64          `db:"high"` // the most
	Set         bool           `db:"set"`  // totals of times of ours, which others can overwrite
	Identifiers pq.StringArray `db:"identifiers"`
}

// sqlRecordsSent reads deliveries_pkey. A set carries the sum of what was sent for
// its time, so that what all were for is their sum. What is under way, of unknown
// outcome, acknowledged a moment ago, or was sent so late that Stripe could count it
// to either of two periods, makes the difference between low and high.
const sqlRecordsSent = `
	SELECT coalesce(sum(CASE WHEN d.known THEN d.value ELSE least(d.value, 0) END), 0)::bigint AS low,
		coalesce(sum(CASE WHEN d.known THEN d.value ELSE greatest(d.value, 0) END), 0)::bigint AS high,
		coalesce(bool_or(d.action = 'set'), false) AS set,
		coalesce((array_agg(d.identifier ORDER BY d.stamp DESC, d.identifier))[1:$7], '{}') AS identifiers
	FROM (
		SELECT d.identifier, d.stamp, d.action, coalesce(d.sent_value, d.quantity / 1000000) AS value,
			d.state = 'delivered' AND d.delivered_at <= $6 AND d.stamp > $4
				AND NOT (d.stamp > $5::timestamptz - interval '5 minutes' AND coalesce(d.sent_at, d.delivered_at) >= $5) AS known
		FROM deliveries d
		WHERE d.part = $1 AND d.account = $2 AND d.backend = 'usage_record' AND d.subscription_item = $3
			AND d.meter = $8 AND d.bucket > $4::timestamptz - interval '1 hour' AND d.bucket <= $5
			AND d.stamp <= $5 AND (d.stamp > $4 OR d.stamp > $4::timestamptz - interval '5 minutes' AND coalesce(d.sent_at, d.delivered_at) >= $4)
			AND (d.state IN ('delivered', 'sending', 'ambiguous') OR d.state = 'needs_review' AND d.first_sent_at IS NOT NULL)
	) d`

func (u *usageRun) recordsSent(ctx context.Context, item recordItem, p recordPeriod) (sent recordsSent, err error) {
	err = u.DB.Read(ctx, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, &sent, sqlRecordsSent, item.Part, item.Account, item.Item, p.from, p.to, u.s.now.Add(-u.Settle), evidenceMax, item.Meter)
	})
	if err != nil {
		err = fmt.Errorf("read usage records of %s: %w", item.Account, err)
	}
	return sent, err
}

// unstaged is a bucket whose deliveries do not carry what was used in it.
type unstaged struct {
	Bucket time.Time       `db:"bucket" json:"bucket"`
	Used   credit.Quantity `db:"used" json:"used"`
	Staged credit.Quantity `db:"staged" json:"staged"`
}

// sqlUnstaged relies on usage_by_account and deliveries_pkey. Usage and its delivery
// are written in one transaction: at every moment they are the same. What another
// delivery has replaced does not count twice.
const sqlUnstaged = `
	SELECT b.bucket, sum(b.used)::bigint AS used, sum(b.staged)::bigint AS staged
	FROM (
		SELECT date_bin($6::bigint * interval '1 second', u.occurred_at, '2000-01-01T00:00:00Z') AS bucket,
			CASE WHEN m.aggregation = 'count' THEN 1000000 ELSE u.quantity END AS used, 0 AS staged
		FROM usage u JOIN meters m ON m.meter = u.meter
		WHERE (u.account || '') = $2 AND u.part = $1 AND u.meter = $3 AND u.occurred_at >= $4 AND u.occurred_at < $5 AND u.recorded_at >= m.stripe_bound_at
			AND NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id)
		UNION ALL
		SELECT d.bucket, 0, d.quantity
		FROM deliveries d
		WHERE d.part = $1 AND d.account = $2 AND d.meter = $3 AND d.bucket >= $4 AND d.bucket < $5 AND d.replaced_by = ''
	) b
	GROUP BY b.bucket
	HAVING sum(b.used) <> sum(b.staged)
	ORDER BY b.bucket`

// unstagedOf compares usage with what was staged for it, bucket by bucket.
func (r *Reconciler) unstagedOf(ctx context.Context, part int16, account, meter string, from, to time.Time) (rows []unstaged, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &rows, sqlUnstaged, part, account, meter, from, to, int64(r.Bucket/time.Second))
	})
	if err != nil {
		err = fmt.Errorf("read usage of %s: %w", account, err)
	}
	return rows, err
}

// tariff reads a price, once a run.
func (u *usageRun) tariff(ctx context.Context, price string) (*stripe.Tariff, error) {
	if t, ok := u.t.single[price]; ok {
		return t, nil
	}
	t, err := u.Stripe.Tariff(ctx, price)
	switch {
	case stripe.IsMissing(err):
		u.t.single[price] = nil
	case err != nil:
		return nil, err
	default:
		u.t.single[price] = &t
	}
	return u.t.single[price], nil
}

// sqlRecordMeter reads a catalog, and the account by its key.
const sqlRecordMeter = `
	SELECT a.part, m.stripe_bound_at FROM meters m, accounts a
	WHERE m.meter = $2 AND m.stripe_price IS NOT NULL AND a.account = $1`

// measureRecords finds what no delivery carries, of a meter that reports usage
// records; ok is false for any other meter.
func (r *Reconciler) measureRecords(ctx context.Context, args resend) (missing []Missing, ok bool, err error) {
	var rows []struct {
		Part    int16     `db:"part"`
		BoundAt time.Time `db:"stripe_bound_at"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlRecordMeter, args.Account, args.Meter)
	})
	if err != nil || len(rows) == 0 {
		return nil, false, err
	}
	for _, sp := range args.Spans {
		lacks, err := r.unstagedOf(ctx, rows[0].Part, args.Account, args.Meter, sp.From, sp.To)
		if err != nil {
			return nil, true, err
		}
		for _, one := range lacks {
			if one.Used > one.Staged {
				missing = append(missing, Missing{Bucket: one.Bucket.UTC(), Quantity: one.Used - one.Staged})
			}
		}
	}
	return missing, true, nil
}

// compareRecords compares usage records: by schedule a few hundred items, from where
// the last run stopped, else all that were asked for.
func (u *usageRun) compareRecords(ctx context.Context, last recordKey, limit int) (recordKey, error) {
	staged := map[string]bool{} // accounts and meters whose usage was compared with their deliveries
	for n := 0; n < limit; {
		items, err := u.recordItemsAfter(ctx, last, u.s, min(recordItems, limit-n))
		if err != nil {
			return last, err
		}
		if len(items) == 0 {
			return recordKey{Part: -1}, nil // round again
		}
		for _, item := range items {
			if err := u.compareItem(ctx, item, staged); errors.Is(err, stripe.ErrBudget) {
				u.out.note = "the budget of calls to Stripe was used up among the usage records: the rest waits for the next run"
				return last, nil
			} else if err != nil {
				return last, err
			}
			last = item.recordKey
			n++
		}
	}
	return last, nil
}

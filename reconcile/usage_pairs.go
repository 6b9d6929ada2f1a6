package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
)

// Bounds of what is held in memory at once.
const (
	pairsMax  = 20_000 // pairs chosen at once
	pairsRead = 500    // pairs whose hours are read at once
)

// How much of what agreed is read again.
const (
	rereadWithin = 6 * 24 * time.Hour // everything that agreed is read again once within so long
	rereadLeast  = 100                // pairs in each run
	rereadBack   = 35 * 24 * time.Hour
)

// pair is one account's usage of one meter that is billed at Stripe.
type pair struct {
	Part      int16          `db:"part"`
	Account   string         `db:"account"`
	Meter     string         `db:"meter"`
	EventName string         `db:"stripe_event_name"`
	BoundAt   time.Time      `db:"stripe_bound_at"`
	Customers pq.StringArray `db:"customers"`
	Whole     bool           `db:"stripe_whole"`
	From      time.Time      `db:"from_time"` // what of it is to be compared: [From, To)
	To        time.Time      `db:"to_time"`
	Ours      int64          `db:"ours"`      // over all of it, where that was asked for
	AgreedAt  *time.Time     `db:"agreed_at"` // when all of it agreed last; nil never
	meterID   string         // at Stripe; "" when there is none
}

// alike tells whether both sides have the same, but for what is carried.
func (p pair) alike(ours, theirs credit.Quantity) bool {
	c := cell{ours: ours, theirs: theirs}
	if p.Whole {
		c.carry = carryMost
	}
	return c.same()
}

func comparePairs(a, b pair) int {
	return cmp.Or(cmp.Compare(a.Part, b.Part), cmp.Compare(a.Account, b.Account), cmp.Compare(a.Meter, b.Meter))
}

// cell is one pair's usage in one span.
type cell struct {
	ours       credit.Quantity
	theirs     credit.Quantity
	waiting    credit.Quantity // surely not at Stripe yet
	unknown    credit.Quantity // may be at Stripe
	correcting credit.Quantity // is to be taken back, and may be at Stripe yet
	carry      credit.Quantity // less than a whole unit: Stripe is sent whole ones, and the rest with the next
}

// most and least are what Stripe can have by now if nothing is wrong (R4).
func (c cell) most() credit.Quantity  { return c.ours - c.waiting + c.correcting + c.carry }
func (c cell) least() credit.Quantity { return c.ours - c.waiting - c.unknown - c.carry }

// moving is what is under way in either direction.
func (c cell) moving() credit.Quantity { return c.waiting + c.unknown + c.correcting }

// same tells whether both sides have the same, but for what is carried.
func (c cell) same() bool { return max(c.ours-c.theirs, c.theirs-c.ours) <= c.carry }

// agrees tells whether what is under way explains the difference.
func (c cell) agrees() bool { return c.theirs <= c.most() && c.theirs >= c.least() }

// difference is what Stripe has beyond what it should have by now.
func (c cell) difference() int64 {
	if c.theirs > c.most() {
		return int64(c.theirs - (c.ours - c.waiting + c.correcting))
	}
	return int64(c.theirs) - int64(c.ours-c.waiting)
}

// sqlOpenPairs chooses what waits to be read at Stripe, the dearest first: changed
// quantity times a price that serves for order alone. It reads reconcile_pairs_waiting.
const sqlOpenPairs = `
	SELECT p.part, p.account, p.meter, m.stripe_event_name, m.stripe_bound_at, m.stripe_whole, p.agreed_at, p.open_from AS from_time, least(p.open_to, $1) AS to_time,
		(SELECT coalesce(array_agg(c.customer ORDER BY c.position), '{}') FROM stripe_customers c WHERE c.part = p.part AND c.account = p.account) AS customers
	FROM (
		SELECT p.part, p.account, p.meter, p.open_from, p.open_to, p.agreed_at, p.weight::numeric * coalesce(price.amount, 1) AS cost
		FROM reconcile_pairs p LEFT JOIN unnest($2::text[], $3::bigint[]) AS price (meter, amount) ON price.meter = p.meter
		WHERE p.open_from IS NOT NULL AND p.open_from < $1 AND (p.compared_at IS NULL OR p.compared_at < $4)
			AND EXISTS (SELECT 1 FROM stripe_customers c WHERE c.part = p.part AND c.account = p.account)
			AND EXISTS (SELECT 1 FROM meters m WHERE m.meter = p.meter AND m.stripe_event_name IS NOT NULL)
		ORDER BY cost DESC, p.part, p.account, p.meter
		LIMIT $5
	) p
	JOIN meters m ON m.meter = p.meter
	ORDER BY p.cost DESC, p.part, p.account, p.meter`

// sqlRereadPairs chooses what agreed and was not read for longest, over
// reconcile_pairs_by_reading, with our sum of all of it. What is open is compared
// anyway, but for what lies before it.
const sqlRereadPairs = `
	SELECT p.part, p.account, p.meter, m.stripe_event_name, m.stripe_bound_at, m.stripe_whole, p.first AS from_time, p.last AS to_time,
		(SELECT coalesce(sum(h.quantity), 0) FROM reconcile_hours h
			WHERE h.part = p.part AND h.account = p.account AND h.meter = p.meter AND h.hour >= p.first AND h.hour < p.last)::bigint AS ours,
		(SELECT coalesce(array_agg(c.customer ORDER BY c.position), '{}') FROM stripe_customers c WHERE c.part = p.part AND c.account = p.account) AS customers
	FROM (
		SELECT p.part, p.account, p.meter, greatest(date_trunc('hour', p.bound_at), $2::timestamptz) AS first, least(p.open_from, $1) AS last
		FROM reconcile_pairs p
		WHERE p.read_at IS NULL OR p.read_at < $3
		ORDER BY p.read_at NULLS FIRST, p.part, p.account, p.meter
		LIMIT $4
	) p
	JOIN meters m ON m.meter = p.meter AND m.stripe_event_name IS NOT NULL
	WHERE p.first < p.last`

// sqlCountPairs counts what may have to be read again.
const sqlCountPairs = `SELECT count(*) FROM reconcile_pairs`

// sqlPairHours streams sums in the order of their key, over reconcile_hours_pkey.
// The pair is a number: the rows are many.
const sqlPairHours = `
	SELECT p.n, extract(epoch FROM h.hour)::bigint, h.quantity
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[]) WITH ORDINALITY AS p (part, account, meter, first, last, n)
	JOIN reconcile_hours h ON h.part = p.part AND h.account = p.account AND h.meter = p.meter AND h.hour >= p.first AND h.hour < p.last
	WHERE h.quantity <> 0
	ORDER BY p.n, h.hour`

// sqlRawHours is sqlPairHours made of the rows themselves, over usage_by_account and
// usage_hours_by_account: for a window that somebody asked for.
const sqlRawHours = `
	SELECT p.n, extract(epoch FROM h.hour)::bigint, h.quantity
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[]) WITH ORDINALITY AS p (part, account, meter, first, last, n)
	JOIN meters m ON m.meter = p.meter
	CROSS JOIN LATERAL (
		SELECT u.hour, sum(CASE WHEN m.aggregation = 'count' THEN 1000000 * u.usages ELSE u.quantity END)::bigint AS quantity
		FROM (
			SELECT date_trunc('hour', u.occurred_at) AS hour, 1 AS usages, u.quantity
			FROM usage u
			WHERE (u.account || '') = p.account AND u.part = p.part AND u.meter = p.meter AND u.occurred_at >= p.first AND u.occurred_at < p.last
				AND u.recorded_at >= m.stripe_bound_at
				AND NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id)
			UNION ALL
			SELECT u.hour, u.usages, u.quantity
			FROM usage_hours u
			WHERE (u.account || '') = p.account AND u.part = p.part AND u.meter = p.meter AND u.hour >= p.first AND u.hour < p.last
				AND u.first_recorded >= m.stripe_bound_at AND NOT u.voided
		) u
		GROUP BY u.hour
	) h
	ORDER BY p.n, h.hour`

// sqlPairs gives every account that Stripe can bill, with every bound meter: usage
// that only Stripe knows of shows, too.
const sqlPairs = `
	SELECT c.part, c.account, m.meter, m.stripe_event_name, m.stripe_bound_at, m.stripe_whole, array_agg(c.customer ORDER BY c.position) AS customers
	FROM stripe_customers c CROSS JOIN meters m
	WHERE m.stripe_event_name IS NOT NULL AND ($1 = '' OR c.account = $1)
	GROUP BY c.part, c.account, m.meter, m.stripe_event_name, m.stripe_bound_at, m.stripe_whole
	ORDER BY c.part, c.account, m.meter`

// sqlPairsPage is a page of sqlPairs, over stripe_customers_by_account.
const sqlPairsPage = `
	SELECT c.part, c.account, m.meter, m.stripe_event_name, m.stripe_bound_at, m.stripe_whole, array_agg(c.customer ORDER BY c.position) AS customers
	FROM stripe_customers c CROSS JOIN meters m
	WHERE m.stripe_event_name IS NOT NULL AND ($1 = '' OR c.account = $1) AND (c.part, c.account, m.meter) > ($2, $3, $4)
	GROUP BY c.part, c.account, m.meter, m.stripe_event_name, m.stripe_bound_at, m.stripe_whole
	ORDER BY c.part, c.account, m.meter
	LIMIT $5`

// hoursOf streams our sums of pairs, in their order. Pairs that have none are
// passed over.
func (r *Reconciler) hoursOf(ctx context.Context, statement string, pairs []pair, each func(n int, hour int64, quantity credit.Quantity)) error {
	parts, accounts, meters := make(pg.Smallints, len(pairs)), make(pg.Texts, len(pairs)), make(pg.Texts, len(pairs))
	firsts, lasts := make(pg.Times, len(pairs)), make(pg.Times, len(pairs))
	for i, p := range pairs {
		parts[i], accounts[i], meters[i], firsts[i], lasts[i] = p.Part, p.Account, p.Meter, p.From, p.To
	}
	return r.DB.Read(ctx, func(tx *sqlx.Tx) (err error) {
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, statement, parts, accounts, meters, firsts, lasts)
		if err != nil {
			return fmt.Errorf("read usage by the hour: %w", err)
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		for rows.Next() {
			var n, hour, quantity int64
			if err := rows.Scan(&n, &hour, &quantity); err != nil {
				return fmt.Errorf("read usage by the hour: %w", err)
			}
			each(int(n)-1, hour, credit.Quantity(quantity))
		}
		return rows.Err()
	})
}

// openPairs chooses what waits to be read, the dearest first.
func (r *Reconciler) openPairs(ctx context.Context, s scope, t *tariffs, most int) (pairs []pair, err error) {
	meters, amounts := t.weights()
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		pairs = nil
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &pairs, sqlOpenPairs, s.to, meters, amounts, s.now, most)
	})
	if err != nil {
		return nil, fmt.Errorf("choose what to compare: %w", err)
	}
	return pairs, nil
}

// rereadPairs chooses what agreed and is read again: a share of everything that
// fits the time since the last run.
func (r *Reconciler) rereadPairs(ctx context.Context, s scope, since time.Time) (pairs []pair, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		pairs = nil
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		var all int64
		if err := tx.GetContext(ctx, &all, sqlCountPairs); err != nil {
			return err
		}
		share := int64(rereadLeast)
		if !since.IsZero() {
			share = max(share, min(all, all*int64(s.now.Sub(since)/time.Minute)/int64(rereadWithin/time.Minute)+1))
		}
		return tx.SelectContext(ctx, &pairs, sqlRereadPairs, s.to, s.now.Add(-rereadBack).Truncate(time.Hour), s.now, min(share, s.callsLeft()/4+1, pairsMax))
	})
	if err != nil {
		return nil, fmt.Errorf("choose what to read again: %w", err)
	}
	slices.SortFunc(pairs, comparePairs)
	return pairs, nil
}

// settled is what is left open of a pair that was compared.
type settled struct {
	pair
	openFrom, openTo time.Time // zero: all of it agrees
	whole            bool      // everything was read
	found            []disagreement
}

// sqlSettlePairs relies on reconcile_pairs_pkey. What lies behind the window, as the
// rest of an hour that it cuts, stays open. Nothing else opens pairs meanwhile: only
// this check does, and its runs do not overlap.
const sqlSettlePairs = `
	UPDATE reconcile_pairs p
	SET open_from = least(c.open_from, CASE WHEN p.open_to > c.last THEN greatest(p.open_from, c.last) END),
		open_to = greatest(c.open_to, CASE WHEN p.open_to > c.last THEN p.open_to END),
		weight = CASE WHEN c.open_from IS NULL THEN 0 ELSE p.weight END, compared_at = $8,
		agreed_at = CASE WHEN c.open_from IS NULL THEN $8 ELSE p.agreed_at END, read_at = CASE WHEN c.whole THEN $8 ELSE p.read_at END
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[], $7::boolean[])
		AS c (part, account, meter, open_from, open_to, last, whole)
	WHERE p.part = c.part AND p.account = c.account AND p.meter = c.meter`

// settle keeps what Stripe agreed with.
func (r *Reconciler) settle(ctx context.Context, s scope, list []settled) error {
	n := len(list)
	parts, accounts, meters := make(pg.Smallints, n), make(pg.Texts, n), make(pg.Texts, n)
	froms, tos, lasts, wholes := make(pg.Times, n), make(pg.Times, n), make(pg.Times, n), make(pq.BoolArray, n)
	for i, p := range list {
		parts[i], accounts[i], meters[i] = p.Part, p.Account, p.Meter
		froms[i], tos[i], lasts[i], wholes[i] = p.openFrom, p.openTo, p.To.Truncate(time.Hour), p.whole
	}
	return r.keepPairs(ctx, s, n, sqlSettlePairs, parts, accounts, meters, froms, tos, lasts, wholes, s.now)
}

// sqlReread relies on reconcile_pairs_pkey.
const sqlReread = `
	UPDATE reconcile_pairs p
	SET read_at = $6, open_from = CASE WHEN c.differs THEN least(p.open_from, c.first) ELSE p.open_from END,
		open_to = CASE WHEN c.differs THEN greatest(p.open_to, c.last) ELSE p.open_to END
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $7::boolean[]) AS c (part, account, meter, first, last, differs)
	WHERE p.part = c.part AND p.account = c.account AND p.meter = c.meter`

// keepReread notes that pairs were read again as a whole, and opens those that
// agree no more.
func (r *Reconciler) keepReread(ctx context.Context, s scope, list []pair, differs []bool) error {
	n := len(list)
	parts, accounts, meters := make(pg.Smallints, n), make(pg.Texts, n), make(pg.Texts, n)
	firsts, lasts := make(pg.Times, n), make(pg.Times, n)
	for i, p := range list {
		parts[i], accounts[i], meters[i], firsts[i], lasts[i] = p.Part, p.Account, p.Meter, p.From, p.To.Add(time.Hour-1).Truncate(time.Hour)
	}
	return r.keepPairs(ctx, s, n, sqlReread, parts, accounts, meters, firsts, lasts, s.now, pq.BoolArray(differs))
}

func (r *Reconciler) keepPairs(ctx context.Context, s scope, n int, statement string, args ...any) error {
	if n == 0 {
		return nil
	}
	return r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		if err := s.fence(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, statement, args...); err != nil {
			return fmt.Errorf("keep what was compared: %w", err)
		}
		return nil
	})
}

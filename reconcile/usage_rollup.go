package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

// Bounds of the auditor's own sums of usage.
const (
	rollupOverlap  = time.Hour      // usage may be committed so long after the time that it was recorded at
	rollupSlice    = 24 * time.Hour // how much recorded time one statement reads
	rollupWriteMax = 20_000         // hours written in one transaction
	pairBack       = 75 * 24 * time.Hour
)

// usageProgress is what usage.totals keeps between its runs.
type usageProgress struct {
	// Until is the time up to which recorded and voided usage is in the sums.
	Until time.Time `json:"until"`
	// Bound has the bindings that the sums were made with.
	Bound map[string]time.Time `json:"bound"`
	// RanAt is when the last run began; how much is read again is a share of the time since.
	RanAt time.Time `json:"ran_at"`
	// Records is where the reading of usage records goes on.
	Records recordKey `json:"records"`
}

// changedHour is an hour whose sum is no longer what was kept.
type changedHour struct {
	Part     int16     `db:"part"`
	Account  string    `db:"account"`
	Meter    string    `db:"meter"`
	Hour     time.Time `db:"hour"`
	Quantity int64     `db:"quantity"`
	Before   int64     `db:"before"`
}

// sqlBindings reads a catalog, whole.
const sqlBindings = `SELECT meter, stripe_bound_at FROM meters WHERE stripe_event_name IS NOT NULL`

// sqlFirstRecorded reads everything, once: for the first run.
const sqlFirstRecorded = `
	SELECT least((SELECT min(recorded_at) FROM usage), (SELECT min(first_recorded) FROM usage_hours))`

// sqlChangedHours sums those hours anew, wholly and from the rows themselves, that
// anything was recorded in or voided in since: over usage_by_recording and
// usage_voids_by_time, and then over usage_by_account and usage_hours_by_account.
// So are the hours of a meter that was bound anew, and those with a finding.
const sqlChangedHours = `
	WITH dirty AS MATERIALIZED (
		SELECT part, account, meter, date_trunc('hour', occurred_at) AS hour
		FROM usage
		WHERE recorded_at >= $1 AND recorded_at < $2
		UNION
		SELECT u.part, u.account, u.meter, date_trunc('hour', u.occurred_at)
		FROM usage_voids v JOIN usage u ON u.part = v.part AND u.account = v.account AND u.usage_id = v.usage_id
		WHERE v.voided_at >= $1 AND v.voided_at < $2
		UNION
		SELECT part, account, meter, hour
		FROM usage_hours
		WHERE first_recorded >= $1 AND first_recorded < $2 AND $3
		UNION
		SELECT part, account, meter, hour
		FROM reconcile_hours
		WHERE meter = ANY ($4::text[])
		UNION
		SELECT a.part, a.account, f.unit, date_trunc('hour', f.happened_at)
		FROM findings f JOIN accounts a ON a.account = f.account
		WHERE f.check_name = 'usage.totals' AND f.state <> 'resolved' AND $5
	)
	SELECT n.part, n.account, n.meter, n.hour, n.quantity, coalesce(h.quantity, 0) AS before
	FROM (
		SELECT d.part, d.account, d.meter, d.hour, ((
			SELECT coalesce(sum(CASE WHEN m.aggregation = 'count' THEN 1000000 ELSE u.quantity END), 0)
			FROM usage u
			WHERE (u.account || '') = d.account AND u.occurred_at >= d.hour AND u.occurred_at < d.hour + interval '1 hour'
				AND u.part = d.part AND u.meter = d.meter AND (m.stripe_bound_at IS NULL OR u.recorded_at >= m.stripe_bound_at)
				AND NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id)
		) + (
			SELECT coalesce(sum(CASE WHEN m.aggregation = 'count' THEN 1000000 * u.usages ELSE u.quantity END), 0)
			FROM usage_hours u
			WHERE (u.account || '') = d.account AND u.hour = d.hour AND u.part = d.part AND u.meter = d.meter AND NOT u.voided
				AND (m.stripe_bound_at IS NULL OR u.first_recorded >= m.stripe_bound_at)
		))::bigint AS quantity
		FROM dirty d JOIN meters m ON m.meter = d.meter
	) n
	LEFT JOIN reconcile_hours h ON h.part = n.part AND h.account = n.account AND h.meter = n.meter AND h.hour = n.hour
	WHERE n.quantity <> coalesce(h.quantity, 0)`

// sqlPutHours relies on reconcile_hours_pkey.
const sqlPutHours = `
	INSERT INTO reconcile_hours (part, account, meter, hour, quantity)
	SELECT c.part, c.account, c.meter, c.hour, c.quantity
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[]) AS c (part, account, meter, hour, quantity)
	ON CONFLICT (part, account, meter, hour) DO UPDATE SET quantity = excluded.quantity`

// sqlOpenHours relies on reconcile_pairs_pkey. least and greatest pass over NULL.
const sqlOpenHours = `
	UPDATE reconcile_pairs p
	SET open_from = least(p.open_from, c.first), open_to = greatest(p.open_to, c.last), weight = p.weight + c.weight
	FROM (
		SELECT part, account, meter, min(hour) AS first, max(hour) + interval '1 hour' AS last, sum(weight)::bigint AS weight
		FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[]) AS c (part, account, meter, hour, weight)
		GROUP BY part, account, meter
	) c
	WHERE p.part = c.part AND p.account = c.account AND p.meter = c.meter`

// sqlAddPairs adds the pairs that are new, and opens those whose meter was bound
// anew. Nothing of a new pair was ever read: all its hours are open, and the whole
// hours since the binding, in which Stripe may have counted what we never sent.
const sqlAddPairs = `
	INSERT INTO reconcile_pairs AS p (part, account, meter, bound_at, open_from, open_to, weight)
	SELECT n.part, n.account, n.meter, n.bound_at, CASE WHEN n.first < n.last THEN n.first END, CASE WHEN n.first < n.last THEN n.last END, n.weight
	FROM (
		SELECT c.part, c.account, m.meter, m.stripe_bound_at AS bound_at, h.weight,
			greatest(least(date_trunc('hour', m.stripe_bound_at), h.first), $1::timestamptz) AS first, greatest($2::timestamptz, h.last) AS last
		FROM (SELECT DISTINCT part, account FROM stripe_customers) c CROSS JOIN meters m
		LEFT JOIN reconcile_pairs stands ON stands.part = c.part AND stands.account = c.account AND stands.meter = m.meter
		CROSS JOIN LATERAL (
			SELECT min(h.hour) AS first, max(h.hour) + interval '1 hour' AS last, coalesce(sum(h.quantity), 0)::bigint AS weight
			FROM reconcile_hours h
			WHERE h.part = c.part AND h.account = c.account AND h.meter = m.meter
		) h
		WHERE m.stripe_event_name IS NOT NULL AND (stands.account IS NULL OR stands.bound_at <> m.stripe_bound_at)
	) n
	ON CONFLICT (part, account, meter) DO UPDATE
	SET bound_at = excluded.bound_at, open_from = excluded.open_from, open_to = excluded.open_to, weight = excluded.weight`

// sqlOpenFindings opens the hours that have a finding: whether it stands is asked
// every time. It relies on reconcile_pairs_pkey; findings are few.
const sqlOpenFindings = `
	UPDATE reconcile_pairs p
	SET open_from = least(p.open_from, f.first), open_to = greatest(p.open_to, f.last)
	FROM (
		SELECT a.part, a.account, f.unit AS meter, min(date_trunc('hour', f.happened_at)) AS first,
			max(date_trunc('hour', f.happened_at)) + interval '1 hour' AS last
		FROM findings f JOIN accounts a ON a.account = f.account
		WHERE f.check_name = 'usage.totals' AND f.state <> 'resolved'
		GROUP BY a.part, a.account, f.unit
	) f
	WHERE p.part = f.part AND p.account = f.account AND p.meter = f.meter`

// rollUp brings the auditor's own sums up to the present. Sums are absolute: a run
// that is killed in the middle leaves nothing that the next would count twice.
func (r *Reconciler) rollUp(ctx context.Context, s scope, p *usageProgress) error {
	bound, first, err := r.readBindings(ctx, p.Until.IsZero())
	if err != nil {
		return err
	}
	var rebound pg.Texts
	for meter, at := range bound {
		if before, ok := p.Bound[meter]; !ok || !before.Equal(at) {
			rebound = append(rebound, meter)
		}
	}
	begin := p.Until.Add(-rollupOverlap)
	fresh := p.Until.IsZero()
	if fresh {
		begin = first
	}
	for from := begin; !begin.IsZero() && from.Before(s.now); from = from.Add(rollupSlice) {
		to := from.Add(rollupSlice)
		last := !to.Before(s.now)
		if last {
			to = s.now.Add(rollupOverlap) // of a clock that is a little ahead
		}
		if err := r.rollUpSlice(ctx, s, from, to, fresh, rebound, last); err != nil {
			return err
		}
		rebound = nil
	}
	err = r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		if err := s.fence(ctx, tx); err != nil {
			return err
		}
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlAddPairs, s.now.Add(-pairBack).Truncate(time.Hour), s.now.Truncate(time.Hour)); err != nil {
			return fmt.Errorf("add pairs of account and meter: %w", err)
		}
		if _, err := tx.ExecContext(ctx, sqlOpenFindings); err != nil {
			return fmt.Errorf("open the hours of findings: %w", err)
		}
		p.Until, p.Bound = s.now, bound
		return s.saveTx(ctx, tx, p)
	})
	return err
}

func (r *Reconciler) readBindings(ctx context.Context, first bool) (bound map[string]time.Time, begin time.Time, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		var rows []struct {
			Meter string    `db:"meter"`
			At    time.Time `db:"stripe_bound_at"`
		}
		if err := tx.SelectContext(ctx, &rows, sqlBindings); err != nil {
			return err
		}
		bound = map[string]time.Time{}
		for _, row := range rows {
			bound[row.Meter] = row.At.UTC()
		}
		if !first {
			return nil
		}
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		var at *time.Time
		if err := tx.GetContext(ctx, &at, sqlFirstRecorded); err != nil || at == nil {
			return err
		}
		begin = at.UTC().Truncate(rollupSlice)
		return nil
	})
	if err != nil {
		err = fmt.Errorf("read the bindings of meters: %w", err)
	}
	return bound, begin, err
}

// rollUpSlice reads what has changed in one snapshot, and writes it as it comes:
// its memory is that of one transaction's rows.
func (r *Reconciler) rollUpSlice(ctx context.Context, s scope, from, to time.Time, archived bool, rebound pg.Texts, findings bool) error {
	return r.DB.Read(ctx, func(tx *sqlx.Tx) (err error) {
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		rows, err := tx.QueryxContext(ctx, sqlChangedHours, from, to, archived, rebound, findings)
		if err != nil {
			return fmt.Errorf("sum usage by the hour: %w", err)
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		batch := make([]changedHour, 0, 1024)
		for rows.Next() {
			var c changedHour
			if err := rows.Scan(&c.Part, &c.Account, &c.Meter, &c.Hour, &c.Quantity, &c.Before); err != nil {
				return fmt.Errorf("sum usage by the hour: %w", err)
			}
			if batch = append(batch, c); len(batch) < rollupWriteMax {
				continue
			}
			if err := r.keepHours(ctx, s, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("sum usage by the hour: %w", err)
		}
		return r.keepHours(ctx, s, batch)
	})
}

// keepHours keeps sums that have changed and opens their hours, in one
// transaction: a sum that Stripe has not been asked about is never taken for agreed.
func (r *Reconciler) keepHours(ctx context.Context, s scope, changed []changedHour) error {
	if len(changed) == 0 {
		return nil
	}
	n := len(changed)
	parts, accounts, meters := make(pg.Smallints, n), make(pg.Texts, n), make(pg.Texts, n)
	hours, quantities, weights := make(pg.Times, n), make(pg.Bigints, n), make(pg.Bigints, n)
	for i, c := range changed {
		parts[i], accounts[i], meters[i], hours[i], quantities[i] = c.Part, c.Account, c.Meter, c.Hour, c.Quantity
		weights[i] = max(c.Quantity-c.Before, c.Before-c.Quantity)
	}
	return r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		if err := s.fence(ctx, tx); err != nil {
			return err
		}
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlPutHours, parts, accounts, meters, hours, quantities); err != nil {
			return fmt.Errorf("keep sums by the hour: %w", err)
		}
		if _, err := tx.ExecContext(ctx, sqlOpenHours, parts, accounts, meters, hours, weights); err != nil {
			return fmt.Errorf("open hours: %w", err)
		}
		return nil
	})
}

package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
)

// holdLate is how long after its expiry a reservation may still be open: the
// sweeper ends it a moment after.
const holdLate = 15 * time.Minute

// sqlHoldMoves compares what is new in each journal about each reservation with
// the reservation's row, over transfers_pkey and reservations_pkey. A reservation
// ends in one transaction, so that its ending is never new in part. With since = 0
// the other direction is read, too: rows whose hold is not in the journal at all.
const sqlHoldMoves = `
	WITH k AS (
		SELECT * FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
	), moved AS (
		SELECT t.part, t.account, t.cause AS reservation_id, max(t.posted_at) AS at, count(*) FILTER (WHERE t.kind = 'hold') AS holds,
			count(*) FILTER (WHERE t.source = 'held') AS ends,
			coalesce(sum(t.amount) FILTER (WHERE t.kind = 'hold'), 0) AS held,
			coalesce(sum(t.amount) FILTER (WHERE t.kind = 'capture' AND t.source = 'held'), 0) AS captured,
			coalesce(sum(t.amount) FILTER (WHERE t.kind = 'unhold'), 0) AS returned,
			coalesce(sum(t.amount) FILTER (WHERE t.kind = 'expiry' AND t.source = 'held'), 0) AS expired
		FROM k
		JOIN transfers t ON t.part = k.part AND t.account = k.account AND t.version > k.since
		WHERE t.source = 'held' OR t.target = 'held'
		GROUP BY t.part, t.account, t.cause
	)
	SELECT m.account, m.reservation_id, m.at, m.holds, m.ends, m.held, m.captured, m.returned, m.expired,
		coalesce(r.state, '') AS state, coalesce(r.credits, 0) AS row_credits, coalesce(r.captured, 0) AS row_captured, coalesce(r.returned, 0) AS row_returned,
		coalesce(r.expired, 0) AS row_expired
	FROM moved m
	LEFT JOIN reservations r ON r.part = m.part AND r.account = m.account AND r.reservation_id = m.reservation_id
	WHERE r.state IS NULL OR (m.holds > 0 AND r.credits <> m.held) OR m.holds > 1
		OR (m.ends > 0 AND (r.captured, r.returned, r.expired) IS DISTINCT FROM (m.captured, m.returned, m.expired))
		OR (m.holds > 0 AND m.ends = 0 AND m.held > 0 AND r.state NOT IN ('open', 'in_doubt'))
	UNION ALL
	SELECT r.account, r.reservation_id, r.created_at, 0, 0, 0, 0, 0, 0, r.state, r.credits, r.captured, r.returned, r.expired
	FROM k
	JOIN reservations r ON r.part = k.part AND r.account = k.account
	WHERE k.since = 0 AND NOT EXISTS (
		SELECT FROM transfers t WHERE t.part = r.part AND t.account = r.account AND t.version = r.hold_version AND t.kind = 'hold' AND t.cause = r.reservation_id)
	ORDER BY 1, 2
	LIMIT 1000`

// holdMove is a reservation about which journal and row disagree.
type holdMove struct {
	Account     string        `db:"account"`
	Reservation string        `db:"reservation_id"`
	At          time.Time     `db:"at"`
	Holds       int64         `db:"holds"`
	Ends        int64         `db:"ends"`
	Held        credit.Amount `db:"held"` // by the journal, as are the next three
	Captured    credit.Amount `db:"captured"`
	Returned    credit.Amount `db:"returned"`
	Expired     credit.Amount `db:"expired"`
	State       string        `db:"state"` // of the row, as are the next four; "" without a row
	RowCredits  credit.Amount `db:"row_credits"`
	RowCaptured credit.Amount `db:"row_captured"`
	RowReturned credit.Amount `db:"row_returned"`
	RowExpired  credit.Amount `db:"row_expired"`
}

// sqlLiveHolds is what the reservations that have not ended hold, over
// reservations_live.
const sqlLiveHolds = `
	SELECT k.account, sum(r.credits) AS credits
	FROM unnest($1::smallint[], $2::text[]) AS k (part, account)
	JOIN reservations r ON r.part = k.part AND r.account = k.account AND r.state IN ('open', 'in_doubt')
	GROUP BY k.account`

// ledgerHolds is the check ledger.holds.
func (r *Reconciler) ledgerHolds(ctx context.Context, s scope) (result, error) {
	out, err := r.walk(ctx, s, walker{name: "ledger.holds", holds: true, look: r.lookAtHolds})
	if err != nil {
		return out, err
	}
	waiting, err := r.waitingHolds(ctx, s)
	out.found = append(out.found, waiting...)
	return out, err
}

func (r *Reconciler) lookAtHolds(ctx context.Context, tx *sqlx.Tx, _ scope, batch []watched) ([]verdict, error) {
	parts, accounts, since := keys(batch)
	var live []struct {
		Account string        `db:"account"`
		Credits credit.Amount `db:"credits"`
	}
	if err := tx.SelectContext(ctx, &live, sqlLiveHolds, parts, accounts); err != nil {
		return nil, fmt.Errorf("read what is held: %w", err)
	}
	at := positions(batch)
	drifted := make([]credit.Amount, len(batch))
	for i, a := range batch {
		drifted[i] = -a.Held
	}
	for _, l := range live {
		drifted[at[l.Account]] += l.Credits
	}
	for i := range drifted {
		if drifted[i] != 0 {
			since[i] = 0 // some reservation is wrong: find out which
		}
	}
	var moves []holdMove
	if err := tx.SelectContext(ctx, &moves, sqlHoldMoves, parts, accounts, since); err != nil {
		return nil, fmt.Errorf("compare reservations with the journal: %w", err)
	}
	verdicts := make([]verdict, len(batch))
	for _, m := range moves {
		d, err := r.holdFinding(ctx, m)
		if err != nil {
			return nil, err
		}
		v := &verdicts[at[m.Account]]
		v.found = append(v.found, d)
	}
	return verdicts, nil
}

// holdFinding is for a person: whether the reservation's work was done, no row says.
func (r *Reconciler) holdFinding(ctx context.Context, m holdMove) (disagreement, error) {
	stillHeld := m.Held - m.Captured - m.Returned - m.Expired
	if m.Holds == 0 {
		stillHeld = 0
	}
	off := m.RowCaptured - m.Captured
	if off == 0 {
		off = m.RowReturned + m.RowExpired - m.Returned - m.Expired
	}
	d := disagreement{
		Subject: "reservation/" + m.Account + "/" + m.Reservation, Account: m.Account, HappenedAt: m.At, Unit: "credits",
		Ours: m.row(), Theirs: m.journal(stillHeld), Cause: "reservation_changed_outside",
		Evidence: map[string]any{"reservation": m.Reservation, "state": m.State, "last_posted": m.At.UTC()},
	}
	d.Explanation = fmt.Sprintf("Reservation %s says %s, the journal says %s. The row was changed by hand or by another program; whether its work was done, no row says.", m.Reservation, d.Ours, d.Theirs)
	switch {
	case m.State == "":
		d.Cause, off = "reservation_missing", -stillHeld
		d.Explanation = fmt.Sprintf("The journal has %s for reservation %s, and its row is gone. tallystick deletes no reservation: nothing will end it, and what it holds stays held.", d.Theirs, m.Reservation)
	case m.Holds == 0 && m.Ends == 0:
		d.Cause, off = "reservation_unbacked", m.RowCredits
		d.Explanation = fmt.Sprintf("Reservation %s says that it holds %s credits, and no transfer of the journal holds them. The row was added by hand or by another program.", m.Reservation, m.RowCredits)
	case off == 0:
		off = m.RowCredits - m.Held
	}
	d.Difference = signed(-int64(off))
	return r.priced(ctx, d, off)
}

func (m holdMove) row() string {
	switch m.State {
	case "":
		return "no reservation"
	case "open", "in_doubt":
		return fmt.Sprintf("%s, %s held", m.State, m.RowCredits)
	}
	return fmt.Sprintf("%s, %s captured, %s returned", m.State, m.RowCaptured, m.RowReturned+m.RowExpired)
}

func (m holdMove) journal(stillHeld credit.Amount) string {
	if m.Ends == 0 {
		return stillHeld.String() + " held"
	}
	return fmt.Sprintf("%s captured, %s returned", m.Captured, m.Returned+m.Expired)
}

// sqlWaitingHolds relies on the indexes reservations_doubted and
// reservations_expiring.
const sqlWaitingHolds = `
	(SELECT r.account, r.reservation_id, r.state, r.credits, r.meter, r.reason, r.doubted_at AS since,
		a.in_doubt_action AS policy, r.doubted_at + make_interval(secs => a.in_doubt_seconds) AS settles_at
	FROM reservations r
	JOIN accounts a ON a.part = r.part AND a.account = r.account
	WHERE r.state = 'in_doubt' AND ($2 = '' OR r.account = $2)
	ORDER BY r.doubted_at
	LIMIT 1000)
	UNION ALL
	(SELECT r.account, r.reservation_id, r.state, r.credits, r.meter, r.reason, r.expires_at, NULL, NULL
	FROM reservations r
	WHERE r.state = 'open' AND r.expires_at <= $1 AND ($2 = '' OR r.account = $2)
	ORDER BY r.expires_at
	LIMIT 1000)`

// waitingHolds finds reservations that somebody has to end.
func (r *Reconciler) waitingHolds(ctx context.Context, s scope) (found []disagreement, err error) {
	var rows []struct {
		Account     string        `db:"account"`
		Reservation string        `db:"reservation_id"`
		State       string        `db:"state"`
		Credits     credit.Amount `db:"credits"`
		Meter       string        `db:"meter"`
		Reason      string        `db:"reason"`
		Since       time.Time     `db:"since"`
		Policy      *string       `db:"policy"`
		SettlesAt   *time.Time    `db:"settles_at"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlWaitingHolds, s.now.Add(-holdLate), s.account)
	})
	if err != nil {
		return nil, fmt.Errorf("look for reservations that wait: %w", err)
	}
	for _, w := range rows {
		d := disagreement{
			Subject: "waiting/" + w.Account + "/" + w.Reservation, Account: w.Account, HappenedAt: w.Since, Unit: "credits", Ours: w.Credits.String() + " held", Theirs: "unknown",
			Difference: "0", Evidence: map[string]any{"reservation": w.Reservation, "meter": w.Meter, "reason": w.Reason, "since": w.Since.UTC()},
		}
		if w.State == "open" {
			d.Theirs, d.Difference, d.Cause = "0 held", signed(-int64(w.Credits)), "hold_stuck"
			d.Explanation = fmt.Sprintf("Reservation %s expired at %s and still holds %s credits: the sweeper does not run, or fails on it.", w.Reservation, w.Since.UTC().Format(time.RFC3339), w.Credits)
		} else {
			d.Cause = "in_doubt"
			d.Explanation = fmt.Sprintf("What became of the work of reservation %s (%s) is not known since %s: %s. Its %s credits are held until somebody captures or releases them; ask the provider what was done.",
				w.Reservation, w.Meter, w.Since.UTC().Format(time.RFC3339), w.Reason, w.Credits)
			d.Repair, d.RepairArgs = repairSettleReservation, reservationArgs{Reservation: w.Reservation, Account: w.Account}
			if w.SettlesAt != nil {
				d.Deadline, d.Remains = w.SettlesAt, "an adjustment: the account's policy does then what it says ("+*w.Policy+")"
			}
		}
		if d, err = r.priced(ctx, d, w.Credits); err != nil {
			return nil, err
		}
		found = append(found, d)
	}
	return found, nil
}

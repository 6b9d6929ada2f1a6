package meter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/ledger"
)

// sweepMax bounds the reservations in one step of the sweeper.
const sweepMax = 100

// due is a reservation that time has come for.
type due struct {
	Part    int16     `db:"part"`
	Account string    `db:"account"`
	ID      string    `db:"reservation_id"`
	Since   time.Time `db:"since"`
}

// sqlDueReservations relies on the indexes reservations_expiring and
// reservations_doubted. It locks nothing: each is looked at again under its
// account's lock.
const sqlDueReservations = `
	(SELECT part, account, reservation_id, expires_at AS since
	FROM reservations WHERE state = 'open' AND expires_at <= $1
	ORDER BY expires_at LIMIT $2)
	UNION ALL
	(SELECT r.part, r.account, r.reservation_id, r.doubted_at + make_interval(secs => a.in_doubt_seconds) AS since
	FROM reservations r
	JOIN accounts a ON a.part = r.part AND a.account = r.account
	WHERE r.state = 'in_doubt' AND r.doubted_at + make_interval(secs => a.in_doubt_seconds) <= $1
	ORDER BY r.doubted_at LIMIT $2)`

// ReservationStep expires reservations that are due, and settles those in doubt
// as their accounts' policies say. It goes through the lanes as everybody does,
// and is harmless to run in several processes: what another has settled is left
// alone.
func (m *Meter) ReservationStep(ctx context.Context) (more bool, err error) {
	now := m.now()
	var rows []due
	err = m.db.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlDueReservations, now, sweepMax)
	})
	if err != nil {
		return false, fmt.Errorf("find due reservations: %w", err)
	}
	endings, jobs := make([]*ending, len(rows)), make([]*job, len(rows))
	var failed []error // one that cannot be settled stops no other
	for i, d := range rows {
		endings[i] = &ending{whose: whose{id: d.ID, account: d.Account, by: "system:in_doubt"}, on: ledger.Ref{Part: d.Part, Account: d.Account}, fn: settleDoubt}
		if jobs[i], err = m.enqueue(endings[i]); err != nil {
			failed = append(failed, err)
		}
	}
	settled := 0
	for i, j := range jobs {
		if j == nil {
			continue
		}
		err := j.wait(ctx)
		if err == nil {
			err = endings[i].refused
		}
		switch {
		case err == nil:
			settled++
		case fault.KindOf(err) != fault.KindConflict: // else somebody was quicker
			failed = append(failed, fmt.Errorf("settle reservation %s of %s: %w", rows[i].ID, rows[i].Account, err))
		}
	}
	return settled > 0 && len(rows) >= sweepMax, errors.Join(failed...)
}

// settleDoubt does what the account's policy says about a reservation in doubt.
func settleDoubt(ctx context.Context, e *ending) error {
	if e.row.State != stateInDoubt {
		return nil // expired just now, or settled by somebody
	}
	a, err := ledger.ReadAccount(ctx, e.tx, e.on)
	if err != nil {
		return err
	}
	if a.InDoubt == nil || e.row.DoubtedAt.Add(time.Duration(a.InDoubt.Seconds)*time.Second).After(e.now) {
		return nil // the policy has changed
	}
	if a.InDoubt.Action == actionRelease {
		return e.release(ctx)
	}
	return e.capture(ctx, e.row.whole())
}

// whole is the capture of all that was reserved, at the time of the doubt.
func (r *reservation) whole() capture {
	c := capture{measure: measure{quantity: r.Quantity}, occurredAt: *r.DoubtedAt}
	if r.Quantity == nil {
		c.credits = new(credit.Amount)
		*c.credits = r.Credits
	}
	c.fingerprint = captureFingerprint(c.measure, nil, nil)
	return c
}

package reconcile

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
)

// sqlHeldDrift compares what the journal moved into and out of each account's
// hold with the reservations that have not ended. It reads the whole journal,
// over transfers_pkey.
const sqlHeldDrift = `
	WITH journal AS (
		SELECT part, account, sum(amount) FILTER (WHERE target = 'held') AS held_in, sum(amount) FILTER (WHERE source = 'held') AS held_out, max(posted_at) AS last_posted
		FROM transfers
		WHERE ($1 = '' OR account = $1) AND (target = 'held' OR source = 'held')
		GROUP BY part, account
	), holding AS (
		SELECT part, account, sum(credits) AS credits, count(*) AS reservations, string_agg(reservation_id, ' ' ORDER BY created_at, reservation_id) AS ids, max(created_at) AS last_made
		FROM reservations
		WHERE state NOT IN ('captured', 'released', 'expired') AND ($1 = '' OR account = $1)
		GROUP BY part, account
	)
	SELECT a.account, coalesce(h.credits, 0) AS reserved, coalesce(h.reservations, 0) AS reservations, left(coalesce(h.ids, ''), 1000) AS ids,
		coalesce(j.held_in, 0) - coalesce(j.held_out, 0) AS journal_held, coalesce(j.last_posted, h.last_made, a.created_at) AS last_posted
	FROM accounts a
	LEFT JOIN journal j ON j.part = a.part AND j.account = a.account
	LEFT JOIN holding h ON h.part = a.part AND h.account = a.account
	WHERE ($1 = '' OR a.account = $1) AND coalesce(h.credits, 0) <> coalesce(j.held_in, 0) - coalesce(j.held_out, 0)
	ORDER BY a.account`

type heldDrift struct {
	Account      string        `db:"account"`
	Reserved     credit.Amount `db:"reserved"`
	Reservations int64         `db:"reservations"`
	IDs          string        `db:"ids"`
	JournalHeld  credit.Amount `db:"journal_held"`
	LastPosted   time.Time     `db:"last_posted"`
}

func readHeldDrift(ctx context.Context, tx *sqlx.Tx, account string) (rows []heldDrift, err error) {
	err = tx.SelectContext(ctx, &rows, sqlHeldDrift, account)
	return rows, err
}

// heldFinding is for a person: which reservation was changed, and whether its
// work was done, no row says.
func (r *Reconciler) heldFinding(ctx context.Context, h heldDrift) (disagreement, error) {
	drift := int64(h.Reserved - h.JournalHeld)
	price, currency, err := r.creditPrice(ctx, h.Account)
	if err != nil {
		return disagreement{}, err
	}
	d := disagreement{
		Subject: "held/" + h.Account, Account: h.Account, HappenedAt: h.LastPosted, Unit: "credits",
		Ours: h.Reserved.String() + " reserved", Theirs: h.JournalHeld.String() + " held", Difference: signed(-drift), Cause: "reservation_changed_outside",
		Explanation: fmt.Sprintf("The %d reservations that have not ended hold %s credits, the journal says that %s are held. "+
			"A reservation was changed by hand or by another program; tallystick verify names it.", h.Reservations, h.Reserved, h.JournalHeld),
		Evidence: map[string]any{"reservations": strings.Fields(h.IDs), "last_posted": h.LastPosted.UTC()},
	}
	if price != nil {
		d.Money = worth(drift, price, currency)
	}
	return d, nil
}

package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

// expireMax bounds the accounts that one step of the sweeper locks.
const expireMax = 100

// sqlDueAccounts relies on the index grants_expiring.
const sqlDueAccounts = `
	SELECT DISTINCT part, account FROM grants WHERE remaining > 0 AND expires_at <= $1 LIMIT $2`

// ExpireStep moves the remainders of due grants out of their accounts. An
// operation on an account does the same first; the sweeper is for accounts on
// which nothing happens. It is harmless to run in several processes.
func ExpireStep(ctx context.Context, db *pg.DB, now time.Time) (more bool, err error) {
	var rows []struct {
		Part    int16  `db:"part"`
		Account string `db:"account"`
	}
	err = db.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlDueAccounts, now, expireMax)
	})
	if err != nil || len(rows) == 0 {
		return false, err
	}
	refs := make([]Ref, len(rows))
	for i, r := range rows {
		refs[i] = Ref{Part: r.Part, Account: r.Account}
	}
	err = db.InTx(ctx, func(tx *sqlx.Tx) error {
		batch, err := Load(ctx, tx, refs)
		if err != nil {
			return err
		}
		for _, ref := range refs {
			if _, err := batch.Apply(ref, Operation{Kind: KindExpiry, At: now}); err != nil {
				return fmt.Errorf("expire grants of %s: %w", ref.Account, err)
			}
		}
		return batch.Save(ctx, tx)
	})
	return len(rows) == expireMax, err
}

// sqlRebuildAccount sums an account's books. It relies on transfers_pkey and on
// the account's lock, under which no transfer can be added.
const sqlRebuildAccount = `
	UPDATE accounts a
	SET available = j.available, held = j.held, debt = j.debt, version = j.version, chain = j.chain, updated_at = $3
	FROM (
		SELECT coalesce(sum(CASE WHEN target = 'available' THEN amount WHEN source = 'available' THEN -amount ELSE 0 END), 0) AS available,
			coalesce(sum(CASE WHEN target = 'held' THEN amount WHEN source = 'held' THEN -amount ELSE 0 END), 0) AS held,
			coalesce(sum(CASE WHEN source = 'debt' THEN amount WHEN target = 'debt' THEN -amount ELSE 0 END), 0) AS debt,
			coalesce(max(version), 0) AS version,
			coalesce((SELECT hash FROM transfers WHERE part = $1 AND account = $2 ORDER BY version DESC LIMIT 1), '') AS chain
		FROM transfers
		WHERE part = $1 AND account = $2
	) j
	WHERE a.part = $1 AND a.account = $2
		AND (a.available, a.held, a.debt, a.version, a.chain) IS DISTINCT FROM (j.available, j.held, j.debt, j.version, j.chain)`

// sqlRebuildGrants sums the changes that the transfers name for each grant.
const sqlRebuildGrants = `
	UPDATE grants g
	SET remaining = coalesce(j.remaining, 0)
	FROM grants o
	LEFT JOIN (
		SELECT c.grant_id, sum(c.change) AS remaining
		FROM transfers t CROSS JOIN LATERAL unnest(t.grant_ids, t.grant_amounts) AS c (grant_id, change)
		WHERE t.part = $1 AND t.account = $2
		GROUP BY c.grant_id
	) j ON j.grant_id = o.grant_id
	WHERE o.part = $1 AND o.account = $2 AND g.part = o.part AND g.account = o.account AND g.grant_id = o.grant_id
		AND g.remaining <> coalesce(j.remaining, 0)`

// Rebuild brings an account's projections (balance, grants' remainders) back to
// what the journal says, and tells whether anything differed. The journal itself
// is never changed.
func Rebuild(ctx context.Context, tx *sqlx.Tx, ref Ref, now time.Time) (changed bool, err error) {
	parts, accounts := columns([]Ref{ref})
	var locked []accountRow
	if err := tx.SelectContext(ctx, &locked, sqlLockAccounts, parts, accounts); err != nil {
		return false, fmt.Errorf("lock %s: %w", ref.Account, err)
	}
	if len(locked) == 0 {
		return false, ErrNoAccount
	}
	account, err := tx.ExecContext(ctx, sqlRebuildAccount, ref.Part, ref.Account, now)
	if err != nil {
		return false, fmt.Errorf("rebuild the balance of %s: %w", ref.Account, err)
	}
	grants, err := tx.ExecContext(ctx, sqlRebuildGrants, ref.Part, ref.Account)
	if err != nil {
		return false, fmt.Errorf("rebuild the grants of %s: %w", ref.Account, err)
	}
	a, _ := account.RowsAffected() // lib/pq always knows
	g, _ := grants.RowsAffected()
	return a+g > 0, nil
}

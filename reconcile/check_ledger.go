package reconcile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
)

// sqlBookSums adds up what is new in each account's journal, over transfers_pkey.
const sqlBookSums = `
	SELECT k.account, count(*) AS transfers, max(t.posted_at) AS last_posted,
		coalesce(sum(t.amount) FILTER (WHERE t.target = 'available'), 0) - coalesce(sum(t.amount) FILTER (WHERE t.source = 'available'), 0) AS available,
		coalesce(sum(t.amount) FILTER (WHERE t.target = 'held'), 0) - coalesce(sum(t.amount) FILTER (WHERE t.source = 'held'), 0) AS held,
		coalesce(sum(t.amount) FILTER (WHERE t.source = 'debt'), 0) - coalesce(sum(t.amount) FILTER (WHERE t.target = 'debt'), 0) AS debt
	FROM unnest($1::smallint[], $2::text[], $3::bigint[]) AS k (part, account, since)
	JOIN transfers t ON t.part = k.part AND t.account = k.account AND t.version > k.since
	GROUP BY k.account`

// bookSums are the sums of a part of a journal.
type bookSums struct {
	Account    string        `db:"account"`
	Transfers  int64         `db:"transfers"`
	LastPosted time.Time     `db:"last_posted"`
	Available  credit.Amount `db:"available"`
	Held       credit.Amount `db:"held"`
	Debt       credit.Amount `db:"debt"`
}

// ledgerBalances is the check ledger.balances.
func (r *Reconciler) ledgerBalances(ctx context.Context, s scope) (result, error) {
	return r.walk(ctx, s, walker{name: "ledger.balances", look: func(ctx context.Context, tx *sqlx.Tx, _ scope, batch []watched) ([]verdict, error) {
		var sums []bookSums
		parts, accounts, since := keys(batch)
		if err := tx.SelectContext(ctx, &sums, sqlBookSums, parts, accounts, since); err != nil {
			return nil, fmt.Errorf("add journals up: %w", err)
		}
		at := positions(batch)
		journal := make([]bookSums, len(batch))
		for _, b := range sums {
			journal[at[b.Account]] = b
		}
		verdicts := make([]verdict, len(batch))
		for i, a := range batch {
			b := journal[i]
			if !a.Whole {
				b.Available, b.Held, b.Debt = b.Available+a.SeenAvailable, b.Held+a.SeenHeld, b.Debt+a.SeenDebt
			}
			if a.Available == b.Available && a.Held == b.Held && a.Debt == b.Debt {
				continue
			}
			d, err := r.balanceFinding(ctx, a, b)
			if err != nil {
				return nil, err
			}
			verdicts[i].found = []disagreement{d}
		}
		return verdicts, nil
	}})
}

func (r *Reconciler) balanceFinding(ctx context.Context, a watched, b bookSums) (disagreement, error) {
	drift := a.Available - b.Available - (a.Debt - b.Debt)
	if drift == 0 {
		drift = a.Held - b.Held
	}
	at := b.LastPosted
	if at.IsZero() {
		at = a.CreatedAt
	}
	ours, journal := books(a.Available, a.Held, a.Debt), books(b.Available, b.Held, b.Debt)
	return r.priced(ctx, disagreement{
		Subject: "account/" + a.Account, Account: a.Account, HappenedAt: at, Unit: "credits", Ours: ours, Theirs: journal, Difference: signed(-int64(drift)),
		Cause: "balance_changed_outside",
		Explanation: fmt.Sprintf("The balance row says %s, the %d transfers of its journal add up to %s. Nothing in tallystick writes one without the other: "+
			"the row was changed by hand or by another program.", ours, a.Version, journal),
		Evidence: map[string]any{"transfers": a.Version, "last_posted": at.UTC()},
		Repair:   "rebuild_balance", RepairArgs: map[string]string{"account": a.Account}, Safe: true,
	}, drift)
}

func books(available, held, debt credit.Amount) string {
	text := available.String() + " available"
	if held != 0 {
		text += ", " + held.String() + " held"
	}
	if debt != 0 {
		text += ", " + debt.String() + " debt"
	}
	return text
}

// sqlCreditPrice prefers the account's own last purchase.
const sqlCreditPrice = `
	SELECT money, credits, currency FROM payments
	WHERE state = 'granted' AND money > 0 AND credits > 0
	ORDER BY (account = $1) DESC, created_at DESC, payment_id
	LIMIT 1`

// creditPrice is what one credit was bought for, in minor units: by the account,
// else by anybody; nil when none was ever sold.
func (r *Reconciler) creditPrice(ctx context.Context, account string) (*big.Rat, string, error) {
	var p struct {
		Money    int64         `db:"money"`
		Credits  credit.Amount `db:"credits"`
		Currency string        `db:"currency"`
	}
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &p, sqlCreditPrice, account) })
	if errors.Is(err, sql.ErrNoRows) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("find the price of a credit: %w", err)
	}
	price := new(big.Rat).SetFrac64(p.Money, int64(p.Credits))
	return price.Mul(price, big.NewRat(1_000_000, 1)), p.Currency, nil
}

// unhurried lifts the statement timeout: a whole journal takes its time.
func unhurried(ctx context.Context, tx *sqlx.Tx) error {
	_, err := tx.ExecContext(ctx, "SET LOCAL statement_timeout = 0")
	return err
}

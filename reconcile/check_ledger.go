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

// sqlBalanceDrift compares each account's books with its transfers. It reads the
// whole journal, over transfers_pkey.
const sqlBalanceDrift = `
	WITH journal AS (
		SELECT part, account, count(*) AS transfers, max(posted_at) AS last_posted,
			sum(amount) FILTER (WHERE target = 'available') AS available_in, sum(amount) FILTER (WHERE source = 'available') AS available_out,
			sum(amount) FILTER (WHERE target = 'held') AS held_in, sum(amount) FILTER (WHERE source = 'held') AS held_out,
			sum(amount) FILTER (WHERE target = 'debt') AS debt_in, sum(amount) FILTER (WHERE source = 'debt') AS debt_out
		FROM transfers
		WHERE $1 = '' OR account = $1
		GROUP BY part, account
	), compared AS (
		SELECT a.account, a.available, a.held, a.debt, a.updated_at, coalesce(j.transfers, 0) AS transfers, coalesce(j.last_posted, a.created_at) AS last_posted,
			coalesce(j.available_in, 0) - coalesce(j.available_out, 0) AS journal_available,
			coalesce(j.held_in, 0) - coalesce(j.held_out, 0) AS journal_held,
			coalesce(j.debt_out, 0) - coalesce(j.debt_in, 0) AS journal_debt
		FROM accounts a
		LEFT JOIN journal j ON j.part = a.part AND j.account = a.account
		WHERE $1 = '' OR a.account = $1
	)
	SELECT account, available, held, debt, transfers, last_posted, journal_available, journal_held, journal_debt
	FROM compared
	WHERE available <> journal_available OR held <> journal_held OR debt <> journal_debt
	ORDER BY account`

// sqlGrantDrift compares each grant's remainder with the changes that transfers name.
const sqlGrantDrift = `
	WITH journal AS (
		SELECT t.part, t.account, c.grant_id, sum(c.change) AS remaining
		FROM transfers t, unnest(t.grant_ids, t.grant_amounts) AS c (grant_id, change)
		WHERE $1 = '' OR t.account = $1
		GROUP BY t.part, t.account, c.grant_id
	)
	SELECT g.account, g.grant_id, g.remaining, coalesce(j.remaining, 0) AS journal_remaining, g.created_at
	FROM grants g
	LEFT JOIN journal j ON j.part = g.part AND j.account = g.account AND j.grant_id = g.grant_id
	WHERE ($1 = '' OR g.account = $1) AND g.remaining <> coalesce(j.remaining, 0)
	ORDER BY g.account, g.grant_id`

// sqlCountAccounts tells how much was compared.
const sqlCountAccounts = `SELECT (SELECT count(*) FROM accounts WHERE $1 = '' OR account = $1) +
	(SELECT count(*) FROM grants WHERE $1 = '' OR account = $1) +
	(SELECT count(*) FROM reservations WHERE state IN ('open', 'in_doubt') AND ($1 = '' OR account = $1))`

type balanceDrift struct {
	Account          string        `db:"account"`
	Available        credit.Amount `db:"available"`
	Held             credit.Amount `db:"held"`
	Debt             credit.Amount `db:"debt"`
	Transfers        int64         `db:"transfers"`
	LastPosted       time.Time     `db:"last_posted"`
	JournalAvailable credit.Amount `db:"journal_available"`
	JournalHeld      credit.Amount `db:"journal_held"`
	JournalDebt      credit.Amount `db:"journal_debt"`
}

type grantDrift struct {
	Account          string        `db:"account"`
	GrantID          string        `db:"grant_id"`
	Remaining        credit.Amount `db:"remaining"`
	JournalRemaining credit.Amount `db:"journal_remaining"`
	CreatedAt        time.Time     `db:"created_at"`
}

// ledgerBalances is the check ledger.balances.
func (r *Reconciler) ledgerBalances(ctx context.Context, s scope) (result, error) {
	out := result{timeless: true}
	var balances []balanceDrift
	var grants []grantDrift
	var held []heldDrift
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) (err error) {
		balances, grants = nil, nil
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		if err := tx.GetContext(ctx, &out.compared, sqlCountAccounts, s.account); err != nil {
			return err
		}
		if err := tx.SelectContext(ctx, &balances, sqlBalanceDrift, s.account); err != nil {
			return err
		}
		if err := tx.SelectContext(ctx, &grants, sqlGrantDrift, s.account); err != nil {
			return err
		}
		held, err = readHeldDrift(ctx, tx, s.account)
		return err
	})
	if err != nil {
		return out, fmt.Errorf("compare balances with the journal: %w", err)
	}
	drifted := map[string]bool{}
	for _, b := range balances {
		d, err := r.balanceFinding(ctx, b)
		if err != nil {
			return out, err
		}
		drifted[b.Account] = true
		out.found = append(out.found, d)
	}
	for _, g := range grants {
		if drifted[g.Account] {
			continue // one repair mends both: one finding
		}
		d, err := r.grantFinding(ctx, g)
		if err != nil {
			return out, err
		}
		out.found = append(out.found, d)
	}
	for _, h := range held {
		d, err := r.heldFinding(ctx, h)
		if err != nil {
			return out, err
		}
		out.found = append(out.found, d)
	}
	return out, nil
}

func (r *Reconciler) balanceFinding(ctx context.Context, b balanceDrift) (disagreement, error) {
	drift := int64(b.Available-b.JournalAvailable) - int64(b.Debt-b.JournalDebt)
	if drift == 0 {
		drift = int64(b.Held - b.JournalHeld)
	}
	price, currency, err := r.creditPrice(ctx, b.Account)
	if err != nil {
		return disagreement{}, err
	}
	d := disagreement{
		Subject: "account/" + b.Account, Account: b.Account, HappenedAt: b.LastPosted, Unit: "credits",
		Ours: books(b.Available, b.Held, b.Debt), Theirs: books(b.JournalAvailable, b.JournalHeld, b.JournalDebt), Difference: signed(-drift),
		Cause: "balance_changed_outside",
		Explanation: fmt.Sprintf("The balance row says %s, the %d transfers of its journal add up to %s. Nothing in tallystick writes one without the other: "+
			"the row was changed by hand or by another program.", books(b.Available, b.Held, b.Debt), b.Transfers, books(b.JournalAvailable, b.JournalHeld, b.JournalDebt)),
		Evidence: map[string]any{"transfers": b.Transfers, "last_posted": b.LastPosted.UTC()},
		Repair:   "rebuild_balance", RepairArgs: map[string]string{"account": b.Account}, Safe: true,
	}
	if price != nil {
		d.Money = worth(drift, price, currency)
	}
	return d, nil
}

func (r *Reconciler) grantFinding(ctx context.Context, g grantDrift) (disagreement, error) {
	drift := int64(g.Remaining - g.JournalRemaining)
	price, currency, err := r.creditPrice(ctx, g.Account)
	if err != nil {
		return disagreement{}, err
	}
	d := disagreement{
		Subject: "grant/" + g.Account + "/" + g.GrantID, Account: g.Account, HappenedAt: g.CreatedAt, Unit: "credits",
		Ours: g.Remaining.String(), Theirs: g.JournalRemaining.String(), Difference: signed(-drift), Cause: "grant_changed_outside",
		Explanation: fmt.Sprintf("Grant %s says that %s credits remain, the journal says %s. The row was changed by hand or by another program.", g.GrantID, g.Remaining, g.JournalRemaining),
		Evidence:    map[string]any{"grant": g.GrantID},
		Repair:      "rebuild_balance", RepairArgs: map[string]string{"account": g.Account}, Safe: true,
	}
	if price != nil {
		d.Money = worth(drift, price, currency)
	}
	return d, nil
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

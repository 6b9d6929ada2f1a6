package ledger

import (
	"bytes"
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

// brokenMax bounds the examples listed for one check.
const brokenMax = 20

// Check is the result of one invariant.
type Check struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Broken      int64    `json:"broken"`   // how many subjects break it
	Examples    []string `json:"examples"` // the first of them
}

// Report is the result of Verify.
type Report struct {
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks"`
}

// rule is an invariant as a query that gives one text per subject that breaks it.
type rule struct{ name, description, query string }

// Verify checks every invariant in one read-only snapshot. It changes nothing,
// and takes as long as the journal is large.
func Verify(ctx context.Context, db *pg.DB) (Report, error) {
	report := Report{OK: true}
	err := db.Read(ctx, func(tx *sqlx.Tx) error {
		report = Report{OK: true}
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "SET LOCAL statement_timeout = 0"); err != nil {
			return fmt.Errorf("lift the statement timeout: %w", err)
		}
		for _, r := range rules() {
			check, err := r.run(ctx, tx)
			if err != nil {
				return err
			}
			report.add(check)
		}
		check, err := verifyChain(ctx, tx)
		report.add(check)
		return err
	})
	return report, err
}

func (r *Report) add(c Check) {
	r.Checks = append(r.Checks, c)
	r.OK = r.OK && c.Broken == 0
}

func (r rule) run(ctx context.Context, tx *sqlx.Tx) (Check, error) {
	c := Check{Name: r.name, Description: r.description, Examples: []string{}}
	rows, err := tx.QueryxContext(ctx, r.query)
	if err != nil {
		return c, fmt.Errorf("verify %s: %w", r.name, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var subject string
		if err := rows.Scan(&subject); err != nil {
			return c, fmt.Errorf("verify %s: %w", r.name, err)
		}
		c.broken(subject)
	}
	return c, rows.Err()
}

func (c *Check) broken(subject string) {
	c.Broken++
	if len(c.Examples) < brokenMax {
		c.Examples = append(c.Examples, subject)
	}
}

// sqlChain reads the journal in the order of the chain, over transfers_pkey.
const sqlChain = `
	SELECT t.part, t.account, t.version, t.kind, t.amount, t.source, t.target, t.cause, t.grant_ids, t.grant_amounts, t.available_after,
		t.held_after, t.debt_after, t.actor, t.note, t.posted_at, t.hash, a.chain, a.version AS account_version
	FROM transfers t
	JOIN accounts a ON a.part = t.part AND a.account = t.account
	ORDER BY t.part, t.account, t.version`

// verifyChain recomputes every hash, one row in memory at a time.
func verifyChain(ctx context.Context, tx *sqlx.Tx) (Check, error) {
	c := Check{Name: "chain", Description: "each transfer's hash covers the one before it, and the account holds the last", Examples: []string{}}
	rows, err := tx.QueryxContext(ctx, sqlChain)
	if err != nil {
		return c, fmt.Errorf("verify chain: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var at Ref
	var previous []byte
	for rows.Next() {
		var r struct {
			Part    int16  `db:"part"`
			Account string `db:"account"`
			transferRecord
			Chain          []byte `db:"chain"`
			AccountVersion int64  `db:"account_version"`
		}
		if err := rows.StructScan(&r); err != nil {
			return c, fmt.Errorf("verify chain: %w", err)
		}
		if ref := (Ref{Part: r.Part, Account: r.Account}); ref != at {
			at, previous = ref, nil
		}
		t := r.transfer(at)
		if !bytes.Equal(chain(previous, &t), r.Hash) {
			c.broken(fmt.Sprintf("%s, transfer %d: the hash does not fit the row and the one before it", r.Account, r.Version))
		}
		if r.Version == r.AccountVersion && !bytes.Equal(r.Hash, r.Chain) {
			c.broken(fmt.Sprintf("%s: the account's chain is not the hash of its last transfer", r.Account))
		}
		previous = r.Hash
	}
	return c, rows.Err()
}

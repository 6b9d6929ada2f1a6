package ledger_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

// The designs below are wrong, and look right. Each reads a balance, compares it
// with the amount, and writes; none locks what it has read.

// sqlLatestRow locks the latest row of a journal. Who waits for it gets that row
// when the lock is free, and no longer the latest one.
const sqlLatestRow = `SELECT balance FROM wrong WHERE account = $1 ORDER BY id DESC LIMIT 1 FOR UPDATE`

// sqlSum adds the journal up: rows that others are about to insert are not in it.
const sqlSum = `SELECT sum(amount) FROM wrong WHERE account = $1`

// sqlUnlocked is a balance read without its lock.
const sqlUnlocked = `SELECT balance FROM wrong_balances WHERE account = $1`

func openWrong(t *testing.T, r race, credits credit.Amount) {
	t.Helper()
	owner := pgtest.Owner(t, r.DSN)
	pgtest.Exec(t, owner, `CREATE TABLE wrong (id bigserial PRIMARY KEY, account int, amount bigint, balance bigint);
		CREATE INDEX ON wrong (account, id);
		CREATE TABLE wrong_balances (account int PRIMARY KEY, balance bigint);
		GRANT ALL ON ALL TABLES IN SCHEMA public TO `+pg.ServiceRole+`;
		GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO `+pg.ServiceRole)
	for account := range r.Accounts {
		pgtest.Exec(t, owner, "INSERT INTO wrong (account, amount, balance) VALUES ($1, $2, $2)", account, int64(credits))
		pgtest.Exec(t, owner, "INSERT INTO wrong_balances (account, balance) VALUES ($1, $2)", account, int64(credits))
	}
}

// spendWrong spends one credit at a time after a look at the balance.
func spendWrong(look string) func(*pg.DB, race, *rand.Rand, string, int) (tally, error) {
	return func(db *pg.DB, r race, random *rand.Rand, _ string, n int) (told tally, err error) {
		for range n {
			account, spent := random.IntN(r.Accounts), false
			err := db.InTx(context.Background(), func(tx *sqlx.Tx) error {
				var there int64
				if err := tx.Get(&there, look, account); err != nil {
					return err
				}
				if spent = there >= 1; !spent {
					return nil
				}
				if _, err := tx.Exec("INSERT INTO wrong (account, amount, balance) VALUES ($1, -1, $2)", account, there-1); err != nil {
					return err
				}
				_, err := tx.Exec("UPDATE wrong_balances SET balance = $2 WHERE account = $1", account, there-1)
				return err
			})
			if err != nil {
				return told, err
			}
			if spent {
				told.Spent++
				told.Accepted++
			} else {
				told.Refused++
			}
		}
		return told, nil
	}
}

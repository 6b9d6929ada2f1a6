package pg_test

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

// keyed opens a database with one connection, as the lanes do.
func keyed(t *testing.T) (db, owner *pg.DB) {
	t.Helper()
	dsn := pgtest.DSN(t)
	return pgtest.Open(t, dsn, pg.Options{ConnectionsMax: 1, Keyed: true}), pgtest.Owner(t, dsn)
}

func number(t *testing.T, db *pg.DB, query string, args ...any) (int, error) {
	t.Helper()
	var n int
	err := db.InTx(t.Context(), func(tx *sqlx.Tx) error { return tx.GetContext(t.Context(), &n, query, args...) })
	return n, err
}

// prepared counts what the connection keeps. The count takes no arguments, so it
// is not among them.
func prepared(t *testing.T, db *pg.DB) int {
	t.Helper()
	n, err := number(t, db, "SELECT count(*) FROM pg_prepared_statements")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAKeyedConnectionPreparesOnceAndUpToABound(t *testing.T) {
	t.Parallel()
	db, _ := keyed(t)
	for i := range 100 {
		for range 3 {
			if got, err := number(t, db, fmt.Sprintf("SELECT $1::int + %d", i), 1000); err != nil || got != 1000+i {
				t.Fatalf("statement %d gave %d, %v", i, got, err)
			}
		}
		if got, want := prepared(t, db), min(i+1, 64); got != want {
			t.Fatalf("after %d statements %d are prepared, want %d", i+1, got, want)
		}
	}
}

func TestAMistakeInAPreparedStatementLeavesTheConnectionGood(t *testing.T) {
	t.Parallel()
	db, _ := keyed(t)
	for range 2 {
		if _, err := number(t, db, "SELECT $1::int FROM nowhere", 1); !pg.IsCode(err, pg.CodeUndefinedTable) {
			t.Errorf("an unknown table gave %v", err)
		}
		if _, err := number(t, db, "SELECT 1 / $1::int", 0); !pg.IsCode(err, "22012") {
			t.Errorf("a division by zero gave %v", err)
		}
		if got, err := number(t, db, "SELECT 1 / $1::int", 1); err != nil || got != 1 {
			t.Errorf("the same statement gave %d, %v", got, err)
		}
	}
}

// TestASchemaThatMovesOnCostsOneAttempt changes the type of a column under a
// prepared query: it fails once, and not until the connection is gone.
func TestASchemaThatMovesOnCostsOneAttempt(t *testing.T) {
	t.Parallel()
	db, owner := keyed(t)
	pgtest.Exec(t, owner, "CREATE TABLE moving (n int)")
	pgtest.Exec(t, owner, "GRANT SELECT ON moving TO "+pg.ServiceRole)
	pgtest.Exec(t, owner, "INSERT INTO moving VALUES (7)")
	const query = "SELECT n FROM moving WHERE n >= $1"
	if got, err := number(t, db, query, 1); err != nil || got != 7 {
		t.Fatalf("the query gave %d, %v", got, err)
	}
	pgtest.Exec(t, owner, "ALTER TABLE moving ALTER n TYPE bigint")
	if _, err := number(t, db, query, 1); !pg.IsCode(err, pg.CodeFeatureNotSupported) {
		t.Errorf("right after the change the query gave %v", err)
	}
	if got, err := number(t, db, query, 1); err != nil || got != 7 {
		t.Errorf("tried again the query gave %d, %v", got, err)
	}
}

// TestAKeyedConnectionDoesNotScan holds the plan against a table so small that a
// scan would be cheapest: the plan outlives its smallness.
func TestAKeyedConnectionDoesNotScan(t *testing.T) {
	t.Parallel()
	db, owner := keyed(t)
	pgtest.Exec(t, owner, "ANALYZE accounts")
	var lines []string
	err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		return tx.SelectContext(t.Context(), &lines, "EXPLAIN SELECT 1 FROM accounts a JOIN unnest('{1}'::smallint[], '{a}'::text[]) AS r (p, a) ON a.part = r.p AND a.account = r.a")
	})
	if err != nil || len(lines) == 0 {
		t.Fatal(err)
	}
	text := fmt.Sprint(lines)
	if !strings.Contains(text, "accounts_pkey") || strings.Contains(text, "Seq Scan") {
		t.Errorf("the plan is %s", text)
	}
}

// TestATransactionOnAKeyedConnectionIsBounded has Postgres keep silent for longer
// than a transaction may take, as a network would that swallows everything.
func TestATransactionOnAKeyedConnectionIsBounded(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.DSN(t), pg.Options{ConnectionsMax: 1, Keyed: true, TransactionMax: 500 * time.Millisecond})
	start := time.Now()
	if _, err := number(t, db, "SELECT 1 FROM pg_sleep($1)", 10); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("a transaction beyond its bound gave %v", err)
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("it took %v", took)
	}
	if got, err := number(t, db, "SELECT $1::int", 7); err != nil || got != 7 {
		t.Errorf("the transaction after it gave %d, %v", got, err)
	}
	time.Sleep(600 * time.Millisecond) // the bound is of a transaction, not of a connection
	if got, err := number(t, db, "SELECT $1::int", 8); err != nil || got != 8 {
		t.Errorf("a transaction on a connection older than the bound gave %d, %v", got, err)
	}
}

// TestAConnectionIsClosedLongAfterItsLastTransaction passes the deadline of one.
func TestAConnectionIsClosedLongAfterItsLastTransaction(t *testing.T) {
	t.Parallel()
	db := pgtest.Open(t, pgtest.DSN(t), pg.Options{Keyed: true, TransactionMax: 500 * time.Millisecond})
	if err := db.InTx(t.Context(), func(*sqlx.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond)
	if err := db.Close(); err != nil {
		t.Errorf("closed after its last transaction's time: %v", err)
	}
}

// TestATransactionOfOneStatement is committed when the statement was answered, undone
// when it was refused, and takes no second statement, which would be committed apart.
func TestATransactionOfOneStatement(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	pgtest.Exec(t, pgtest.Owner(t, dsn), "CREATE TABLE kept (n integer PRIMARY KEY); GRANT SELECT, INSERT ON kept TO tallystick_service")
	for name, keyed := range map[string]bool{"keyed": true, "ordinary": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.Open(t, dsn, pg.Options{ConnectionsMax: 1, Keyed: keyed})
			first := map[bool]int{true: 10, false: 20}[keyed]
			insert := func(n int) (got int, err error) {
				err = db.InStatement(t.Context(), &got, "INSERT INTO kept (n) VALUES ($1) RETURNING n", n)
				return got, err
			}
			if got, err := insert(first); err != nil || got != first {
				t.Fatalf("got %d, %v", got, err)
			}
			if _, err := insert(first); !pg.IsCode(err, pg.CodeUniqueViolation) {
				t.Errorf("the same row again: %v", err)
			}
			var none int
			if err := db.InStatement(t.Context(), &none, "SELECT n FROM kept WHERE n = $1", -1); !errors.Is(err, sql.ErrNoRows) {
				t.Errorf("no row: %v", err)
			}
			if err := db.InStatement(t.Context(), &none, "INSERT INTO kept (n) SELECT g FROM generate_series($1::integer, 0, -1) AS g RETURNING 1 / n", first+5); err == nil {
				t.Error("a statement that fails half way was answered")
			}
			if got, err := insert(first + 1); err != nil || got != first+1 {
				t.Errorf("after a refusal: got %d, %v", got, err)
			}
			// An ordinary transaction on the same connection is one again.
			err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
				for n := range 2 {
					if _, err := tx.ExecContext(t.Context(), "INSERT INTO kept (n) VALUES ($1)", first+2+n); err != nil {
						return err
					}
				}
				return errors.New("changed my mind")
			})
			if err == nil {
				t.Error("the error was lost")
			}
			var count int
			if err := db.Read(t.Context(), func(tx *sqlx.Tx) error {
				return tx.GetContext(t.Context(), &count, "SELECT count(*) FROM kept WHERE n BETWEEN $1 AND $1 + 9", first)
			}); err != nil || count != 2 {
				t.Errorf("%d rows are kept, want 2: %v", count, err)
			}
		})
	}
}

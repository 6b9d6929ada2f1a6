package pg_test

import (
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

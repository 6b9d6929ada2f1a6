package retention_test

import (
	"database/sql"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
	"tallystick/migrations"
)

// migrateTo brings an empty database to an old version of the schema.
func migrateTo(t *testing.T, dsn string, version int64) {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	p, err := goose.NewProvider(goose.DialectPostgres, db, migrations.FS)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(t.Context(), version); err != nil {
		t.Fatal(err)
	}
	// The ledger of today, which fills the database, finds the functions that it calls.
	text, err := fs.ReadFile(migrations.FS, "0008_round_trips.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(text), "-- +goose StatementBegin")[1:] {
		function, _, _ := strings.Cut(part, "-- +goose StatementEnd")
		if _, err := db.ExecContext(t.Context(), function); err != nil {
			t.Fatal(err)
		}
	}
}

// pending is how many migrations wait.
func pending(t *testing.T, dsn string) int {
	t.Helper()
	n, err := pg.Pending(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// rows are whole rows as texts.
func rows(t *testing.T, db *pg.DB, query string, args ...any) (lines []string) {
	t.Helper()
	err := db.Read(t.Context(), func(tx *sqlx.Tx) error {
		lines = nil
		return tx.SelectContext(t.Context(), &lines, query, args...)
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return lines
}

func wantRows(t *testing.T, db *pg.DB, query, want string, args ...any) {
	t.Helper()
	if got := strings.Join(rows(t, db, query, args...), " "); got != want {
		t.Errorf("%s gives %q, want %q", query, got, want)
	}
}

// wantSound fails the test when the ledger breaks an invariant.
func wantSound(t *testing.T, db *pg.DB) {
	t.Helper()
	for name, examples := range broken(t, db) {
		t.Errorf("verify: %s is broken: %q", name, examples)
	}
}

func broken(t *testing.T, db *pg.DB) map[string][]string {
	t.Helper()
	report, err := ledger.Verify(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, c := range report.Checks {
		if c.Broken > 0 {
			found[c.Name] = c.Examples
		}
	}
	return found
}

// recorded posts one usage as the old schema had it, 10 credits at once.
func recorded(t *testing.T, owner *pg.DB, ref ledger.Ref, id string, at time.Time) {
	t.Helper()
	err := owner.InTx(t.Context(), func(tx *sqlx.Tx) error {
		b, err := ledger.Load(t.Context(), tx, []ledger.Ref{ref})
		if err != nil {
			return err
		}
		transfers, err := b.Apply(ref, ledger.Operation{Kind: ledger.KindUsage, Cause: id, Amount: 10 * credit.Amount(1_000_000), Actor: "test", At: at})
		if err != nil {
			return err
		}
		if err := b.Save(t.Context(), tx); err != nil {
			return err
		}
		last := transfers[len(transfers)-1]
		_, err = tx.ExecContext(t.Context(), `
			INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
				transfer_version, available_after, held_after, debt_after)
			VALUES ($1, $2, $3, 'call', 1000000, 10000000, 1, 0, '{"model": "small"}', $4, $4, $5, $6, $7, $8, $9)`,
			ref.Part, ref.Account, id, at, make([]byte, 32), last.Version, last.After.Available, last.After.Held, last.After.Debt)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// account makes an account with credits and the meter call.
func account(t *testing.T, owner *pg.DB, name string, at time.Time) ledger.Ref {
	t.Helper()
	ref := ledger.RefOf(name)
	err := owner.InTx(t.Context(), func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(t.Context(), `INSERT INTO meters (meter, unit, aggregation, rate_version, created_at, updated_at) VALUES ('call', '', 'sum', 1, $1, $1) ON CONFLICT DO NOTHING`, at); err != nil {
			return err
		}
		if _, err := tx.ExecContext(t.Context(), `INSERT INTO meter_rates (meter, version, credits_per_unit, rates, created_at) VALUES ('call', 1, 10000000, '[]', $1) ON CONFLICT DO NOTHING`, at); err != nil {
			return err
		}
		if _, err := tx.ExecContext(t.Context(), `INSERT INTO accounts (part, account, name, overdraft, metadata, available, held, debt, version, chain, created_at, updated_at)
			VALUES ($1, $2, '', 0, '{}', 0, 0, 0, 0, '', $3, $3)`, ref.Part, ref.Account, at); err != nil {
			return err
		}
		b, err := ledger.Load(t.Context(), tx, []ledger.Ref{ref})
		if err != nil {
			return err
		}
		g := &ledger.Grant{ID: "grant-0001", Kind: ledger.KindGrant, Credits: 1_000_000_000, CreatedAt: at, Fingerprint: make([]byte, 32)}
		if _, err := b.Apply(ref, ledger.Operation{Kind: ledger.KindGrant, Cause: g.ID, Amount: g.Credits, Grant: g, At: at, Actor: "test"}); err != nil {
			return err
		}
		return b.Save(t.Context(), tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

const wholeUsage = `SELECT (u.part, u.account, u.usage_id, u.meter, u.quantity, u.credits, u.rate_version, u.staged, u.dimensions, u.occurred_at, u.recorded_at, u.fingerprint,
	u.transfer_version, u.available_after, u.held_after, u.debt_after)::text FROM usage u ORDER BY u.part, u.account, u.usage_id`

// TestAnOldDatabaseIsMovedIntoPartitions upgrades a database with usage in it.
func TestAnOldDatabaseIsMovedIntoPartitions(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Empty(t)
	migrateTo(t, dsn, 4)
	owner := pgtest.Owner(t, dsn)
	begin := time.Date(2025, 12, 1, 0, 0, 0, 0, time.UTC)
	for _, name := range []string{"acme", "globex"} {
		ref := account(t, owner, name, begin.AddDate(0, -1, 0))
		for i, at := range []time.Time{begin.Add(-time.Microsecond), begin, begin.AddDate(0, 1, 0).Add(-time.Microsecond), begin.AddDate(0, 1, 0), begin.AddDate(0, 3, 0)} {
			recorded(t, owner, ref, fmt.Sprintf("usage-%04d", i), at)
		}
	}
	before := rows(t, owner, wholeUsage)
	if _, err := pg.Migrate(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	if after := rows(t, owner, wholeUsage); len(before) != 10 || strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("the usage before\n%s\nand after\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	wantRows(t, owner, `SELECT tableoid::regclass || ':' || count(*) FROM usage GROUP BY tableoid ORDER BY tableoid::regclass::text`,
		"usage_2025_11:2 usage_2025_12:4 usage_2026_01:2 usage_2026_03:2")
	for ahead := range 3 { // also the months to come stand
		wantRows(t, owner, "SELECT to_regclass('usage_' || to_char(date_trunc('month', now()) + make_interval(months => $1), 'YYYY_MM')) IS NOT NULL", "true", ahead)
	}
	wantRows(t, owner, "SELECT conname FROM pg_constraint WHERE contype = 'f' AND (conrelid = 'transfers'::regclass OR conrelid IN (SELECT inhrelid FROM pg_inherits))", "")
	wantSound(t, owner)
}

// TestAnOldDatabaseWithAUsageChargedTwiceIsRefused upgrades one that verify finds
// broken: the guard cannot be made, and nothing is changed.
func TestAnOldDatabaseWithAUsageChargedTwiceIsRefused(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Empty(t)
	migrateTo(t, dsn, 4)
	owner := pgtest.Owner(t, dsn)
	ref := account(t, owner, "acme", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	recorded(t, owner, ref, "usage-0001", time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
	pgtest.Exec(t, owner, "INSERT INTO transfers SELECT part, account, version + 1, kind, amount, source, target, cause, grant_ids, grant_amounts, available_after, held_after, debt_after, actor, note, posted_at, hash FROM transfers WHERE kind = 'usage'")
	before := pending(t, dsn)
	if _, err := pg.Migrate(t.Context(), dsn); !pg.IsCode(err, pg.CodeUniqueViolation) {
		t.Errorf("the upgrade gave %v, want a unique violation", err)
	}
	wantRows(t, owner, "SELECT count(*) FROM usage", "1")
	if after := pending(t, dsn); after != before {
		t.Errorf("%d migrations are pending, before there were %d", after, before)
	}
}

package meter

import (
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

// planted fills the tables that a lookup goes through, without analyzing them:
// that is when another index looked as cheap, and led through everything that an
// account ever used.
func planted(t *testing.T, rows int) (dsn string, owner *pg.DB) {
	t.Helper()
	dsn = pgtest.DSN(t)
	owner = pgtest.Owner(t, dsn)
	pgtest.Exec(t, owner, "ALTER TABLE transfers SET (autovacuum_enabled = off)")
	pgtest.Exec(t, owner, `
		INSERT INTO transfers (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts, available_after, held_after, debt_after,
			actor, note, posted_at, hash)
		SELECT 1, 'hot', n, CASE WHEN n % 10 = 0 THEN 'capture' ELSE 'usage' END, 0, 'available', 'usage', 'planted-usage-' || n, '{}', '{}', 0, 0, 0,
			'', '', now() - make_interval(months => n % 3), decode(repeat('00', 32), 'hex')
		FROM generate_series(1, $1) AS n`, rows)
	for months := range 3 {
		pgtest.Exec(t, owner, "SELECT make_usage_partition(now() - make_interval(months => $1))", months)
	}
	pgtest.Exec(t, owner, `
		INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
			transfer_version, available_after, held_after, debt_after)
		SELECT part, account, cause, 'call', 1, 0, 1, 0, '{}', posted_at, posted_at, hash, version, 0, 0, 0
		FROM transfers`)
	return dsn, owner
}

// TestAUsageIsLookedUpByItsWholeKey plans the lookups over small and grown tables,
// before and after they are analyzed. The plan that a lane makes of a small table
// outlives its smallness; others are made anew each time.
func TestAUsageIsLookedUpByItsWholeKey(t *testing.T) {
	t.Parallel()
	values := strings.NewReplacer("$1", "'{1,1}'", "$2", "'{hot,hot}'", "$3", "'{planted-usage-7,planted-usage-x}'", "$4::text[]", "'{call}'::text[]", "$4", "'{8,9}'", "$5", "'{2026-03-01,2026-03-02}'")
	for _, rows := range []int{0, 1, 20_000} {
		dsn, owner := planted(t, rows)
		keyed, ordinary := pgtest.Open(t, dsn, pg.Options{Keyed: true}), pgtest.Open(t, dsn, pg.Options{})
		for _, analyzed := range []bool{false, true} {
			if analyzed {
				pgtest.Exec(t, owner, "ANALYZE transfers, usage")
			}
			for _, q := range []struct {
				name, statement, index string
				db                     *pg.DB
				rows                   int // at least
			}{
				{"usage and meters", sqlLookUp, "transfers_usage", keyed, 0},
				{"known usage, keyed", sqlKnownUsage, "using transfers_usage ", keyed, 0},
				{"known usage", sqlKnownUsage, "using transfers_usage ", ordinary, 20_000},
				{"known captures", sqlKnownCaptures, "using transfers_captures ", ordinary, 20_000},
				{"records, keyed", sqlReadRecords, "_pkey on usage_", keyed, 0},
				{"records", sqlReadRecords, "_pkey on usage_", ordinary, 20_000},
			} {
				if rows < q.rows {
					continue
				}
				var lines []string
				err := q.db.InTx(t.Context(), func(tx *sqlx.Tx) error {
					return tx.SelectContext(t.Context(), &lines, "EXPLAIN "+values.Replace(q.statement))
				})
				plan := strings.Join(lines, "\n")
				if err != nil || !strings.Contains(plan, q.index) || strings.Contains(plan, "transfers_pkey") || strings.Contains(plan, "occurred_at") {
					t.Errorf("%d rows (analyzed %v), %s: the plan does not go by the key: %v\n%s", rows, analyzed, q.name, err, plan)
				}
			}
		}
	}
}

// TestARecordIsReadFromOnePartition runs the lookup as a lane does and counts the
// partitions that it reads.
func TestARecordIsReadFromOnePartition(t *testing.T) {
	t.Parallel()
	dsn, _ := planted(t, 20_000)
	db := pgtest.Open(t, dsn, pg.Options{Keyed: true})
	var lines []string
	var at, version string
	err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		row := tx.QueryRowxContext(t.Context(), "SELECT recorded_at::text, transfer_version::text FROM usage WHERE usage_id = 'planted-usage-3'")
		if err := row.Scan(&at, &version); err != nil {
			return err
		}
		for _, step := range []string{"SET LOCAL plan_cache_mode = force_generic_plan", "PREPARE found AS " + sqlReadRecords} {
			if _, err := tx.ExecContext(t.Context(), step); err != nil {
				return err
			}
		}
		return tx.SelectContext(t.Context(), &lines, `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF)
			EXECUTE found ('{1}', '{hot}', '{planted-usage-3}', ARRAY[`+version+`], ARRAY['`+at+`'::timestamptz])`)
	})
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, line := range lines {
		if strings.Contains(line, "Scan using usage_") && !strings.Contains(line, "never executed") {
			read++
		}
	}
	if read != 1 {
		t.Errorf("%d partitions are read, want 1:\n%s", read, strings.Join(lines, "\n"))
	}
}

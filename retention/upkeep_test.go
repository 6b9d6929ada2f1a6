package retention_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/retention"
)

const partitionsOf = `SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage'::regclass AND inhrelid::regclass::text LIKE 'usage_20__\___' AND inhrelid::regclass::text < 'usage_2026_07' ORDER BY 1`

func TestUpkeepMakesTheMonthsAhead(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	owner, now := pgtest.Owner(t, dsn), time.Date(2026, 1, 31, 23, 59, 59, 0, time.UTC)
	u := retention.Upkeep{DB: pgtest.Open(t, dsn, pg.Options{}), Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)}
	for _, want := range []string{"usage_2026_01 usage_2026_02 usage_2026_03", "usage_2026_01 usage_2026_02 usage_2026_03 usage_2026_04"} {
		for range 2 {
			if _, err := u.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantRows(t, owner, partitionsOf, want)
		}
		now = now.Add(time.Second)
	}
}

func TestUpkeepInSeveralProcessesAtOnce(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	db, owner := pgtest.Open(t, dsn, pg.Options{LockTimeout: time.Minute}), pgtest.Owner(t, dsn)
	now := time.Date(2026, 1, 15, 0, 0, 0, 0, time.UTC)
	recorded(t, owner, account(t, owner, "acme", now.AddDate(0, -1, 0)), "usage-0001", now)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			u := retention.Upkeep{DB: db, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)}
			if _, err := u.Step(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantRows(t, owner, partitionsOf, "usage_2026_01 usage_2026_02 usage_2026_03")
	wantRows(t, owner, "SELECT tableoid::regclass FROM usage", "usage_2026_01")
	wantSound(t, owner)
}

// TestUsageWithoutAPartitionIsRecordedAndMovedLater is about the default.
func TestUsageWithoutAPartitionIsRecordedAndMovedLater(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	owner, early := pgtest.Owner(t, dsn), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ref := account(t, owner, "acme", early)
	recorded(t, owner, ref, "usage-0001", early)
	recorded(t, owner, ref, "usage-0002", time.Date(2026, 5, 31, 23, 59, 59, 999_999_000, time.UTC))
	before := rows(t, owner, wholeUsage)
	wantRows(t, owner, "SELECT count(*) FROM usage_default", "2")
	var log bytes.Buffer
	u := retention.Upkeep{DB: pgtest.Open(t, dsn, pg.Options{}), Now: func() time.Time { return early }, Logger: slog.New(slog.NewJSONHandler(&log, nil))}
	for range 2 {
		if _, err := u.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantRows(t, owner, "SELECT tableoid::regclass FROM usage ORDER BY recorded_at", "usage_2026_01 usage_2026_05")
	}
	if n := strings.Count(log.String(), "had no partition"); n != 1 || !strings.Contains(log.String(), `"month":"2026-05","usages":1`) {
		t.Errorf("the log tells of it %d times: %s", n, log.String())
	}
	if after := rows(t, owner, wholeUsage); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("moved, the usage is %q, was %q", after, before)
	}
	wantSound(t, owner)
}

func TestOnlyTheServiceMakesPartitionsAndOnlyThat(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	db, owner := pgtest.Open(t, dsn, pg.Options{}), pgtest.Owner(t, dsn)
	wantRows(t, owner, "SELECT has_function_privilege('public', 'make_usage_partition(timestamptz)', 'EXECUTE')", "false")
	wantRows(t, owner, "SELECT array_to_string(proconfig, ',') FROM pg_proc WHERE proname = 'make_usage_partition'", "TimeZone=UTC,search_path=public, pg_temp")
	if err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec("SELECT make_usage_partition('2026-01-01T00:00:00Z')")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"DELETE FROM usage_2026_01", "INSERT INTO usage_default SELECT * FROM usage", "DROP TABLE usage_2026_01", "ALTER TABLE usage DETACH PARTITION usage_2026_01",
		"TRUNCATE usage", "DELETE FROM usage", "INSERT INTO usage_hours SELECT * FROM usage_hours", "DELETE FROM usage_archives", "INSERT INTO usage_archives SELECT * FROM usage_archives",
	} {
		if err := db.InTx(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(statement); return err }); !pg.IsCode(err, pg.CodePrivilege) {
			t.Errorf("%s as the service: %v, want a refusal for lack of privilege", statement, err)
		}
	}
}

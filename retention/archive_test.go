package retention_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
	"tallystick/retention"
)

// now is when December and January can be archived, and February cannot.
var now = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)

// store is a database with usage of four months, and a directory for exports.
type store struct {
	t     *testing.T
	dsn   string
	owner *pg.DB
	dir   string
	refs  []ledger.Ref
}

func filled(t *testing.T) *store {
	t.Helper()
	dsn := pgtest.DSN(t)
	s := &store{t: t, dsn: dsn, owner: pgtest.Owner(t, dsn), dir: t.TempDir()}
	begin := time.Date(2025, 12, 1, 0, 0, 0, 0, time.UTC)
	for month := range 7 { // until June, which the upkeep makes in April
		pgtest.Exec(t, s.owner, "SELECT make_usage_partition($1)", begin.AddDate(0, month, 0))
	}
	for _, name := range []string{"acme", "globex"} {
		ref := account(t, s.owner, name, begin.AddDate(0, -1, 0))
		s.refs = append(s.refs, ref)
		for i, at := range []time.Time{
			begin, begin.Add(time.Minute), begin.AddDate(0, 1, 0).Add(-time.Microsecond), begin.AddDate(0, 1, 0), begin.AddDate(0, 1, 5), begin.AddDate(0, 2, 0), begin.AddDate(0, 3, 0),
		} {
			recorded(t, s.owner, ref, fmt.Sprintf("usage-%04d", i), at)
		}
	}
	return s
}

func (s *store) archiver() *retention.Archiver {
	return &retention.Archiver{DB: s.owner, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler), Dir: s.dir}
}

// run archives what is before a month, and tells what became of each.
func (s *store) run(a *retention.Archiver, before string) (string, error) {
	s.t.Helper()
	return s.runWith(s.t.Context(), a, before)
}

func (s *store) runWith(ctx context.Context, a *retention.Archiver, before string) (string, error) {
	s.t.Helper()
	month, err := retention.ParseBefore(before, now)
	if err != nil {
		s.t.Fatal(err)
	}
	var became []string
	err = a.Run(ctx, month, func(r retention.Archive) {
		became = append(became, fmt.Sprintf("%s %s %d/%s/%d", r.Month, r.State, r.Usages, r.Credits, r.Hours))
		if hash := s.hash(r.File); hash != r.SHA256 {
			s.t.Errorf("%s has the hash %s, said was %s", r.File, hash, r.SHA256)
		}
	})
	return strings.Join(became, "; "), err
}

func (s *store) must(a *retention.Archiver, before, want string) {
	s.t.Helper()
	if got, err := s.run(a, before); err != nil || got != want {
		s.t.Fatalf("archived %q, %v; want %q", got, err, want)
	}
}

func (s *store) hash(name string) string {
	s.t.Helper()
	content, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	hash := sha256.Sum256(content)
	return hex.EncodeToString(hash[:])
}

// lines reads an export as anybody would.
func (s *store) lines(name string) (found []map[string]any) {
	s.t.Helper()
	content, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	packed, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		s.t.Fatal(err)
	}
	for d := json.NewDecoder(packed); d.More(); {
		var line map[string]any
		if err := d.Decode(&line); err != nil {
			s.t.Fatal(err)
		}
		found = append(found, line)
	}
	return found
}

const (
	twoMonths = "2025-12 archived 6/60/4; 2026-01 archived 4/40/4"
	partOf    = "SELECT tableoid::regclass || ':' || count(*) FROM usage GROUP BY tableoid ORDER BY tableoid::regclass::text"
	allParts  = "usage_2025_12:6 usage_2026_01:4 usage_2026_02:2 usage_2026_03:2"
)

func TestAMonthBecomesAFileAndItsHours(t *testing.T) {
	t.Parallel()
	s := filled(t)
	want := rows(t, s.owner, "SELECT usage_id || ' ' || account || ' ' || transfer_version || ' ' || available_after FROM usage WHERE recorded_at < '2026-01-01' ORDER BY part, account, transfer_version")
	s.must(s.archiver(), "2026-02", twoMonths)
	wantRows(t, s.owner, partOf, "usage_2026_02:2 usage_2026_03:2")
	wantRows(t, s.owner, "SELECT to_regclass('usage_2025_12') IS NULL AND to_regclass('usage_2026_01') IS NULL", "true")
	wantRows(t, s.owner, "SELECT account || '|' || to_char(hour, 'MM-DD HH24') || '|' || meter || '|' || (dimensions ->> 'model') || '|' || usages || '|' || quantity || '|' || credits FROM usage_hours WHERE month = '2025-12-01' ORDER BY 1",
		"acme|12-01 00|call|small|2|2000000|20000000 acme|12-31 23|call|small|1|1000000|10000000 globex|12-01 00|call|small|2|2000000|20000000 globex|12-31 23|call|small|1|1000000|10000000")
	for i, line := range s.lines("usage-2025-12.ndjson.gz") {
		balance, _ := line["balance"].(map[string]any)
		available, _ := balance["available"].(string)
		if got := fmt.Sprintf("%s %s %v %s000000", line["id"], line["account"], balance["version"], available); got != want[i] {
			t.Errorf("line %d is %s, the row was %s", i+1, got, want[i])
		}
		if line["quantity"] != "1" || line["credits"] != "10" || fmt.Sprint(line["dimensions"]) != "map[model:small]" || line["recorded_at"] != line["occurred_at"] || line["fingerprint"] != strings.Repeat("00", 32) {
			t.Errorf("line %d is %v", i+1, line)
		}
	}
	if n := len(s.lines("usage-2025-12.ndjson.gz")); n != 6 {
		t.Errorf("the file has %d lines", n)
	}
	check := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = s.dir
	if out, err := check.CombinedOutput(); err != nil || strings.Count(string(out), ": OK") != 2 {
		t.Errorf("sha256sum says %v: %s", err, out)
	}
	wantSound(t, s.owner)
	s.must(s.archiver(), "2026-02", "") // again: nothing to do
	if _, err := pg.Migrate(t.Context(), s.dsn); err != nil {
		t.Error(err)
	}
}

func TestKeepExportsAndChangesNothing(t *testing.T) {
	t.Parallel()
	s := filled(t)
	a := s.archiver()
	a.Keep = true
	for range 2 {
		s.must(a, "2026-01", "2025-12 exported 6/60/0")
		wantRows(t, s.owner, partOf, allParts)
		wantRows(t, s.owner, "SELECT count(*) FROM usage_archives", "0")
	}
	was := s.hash("usage-2025-12.ndjson.gz")
	s.must(s.archiver(), "2026-01", "2025-12 archived 6/60/4")
	if is := s.hash("usage-2025-12.ndjson.gz"); is != was {
		t.Error("the file that was there was written anew")
	}
	wantSound(t, s.owner)
}

func TestAMonthIsArchivedFortyDaysAfterItsEnd(t *testing.T) {
	t.Parallel()
	edge := time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC).Add(40 * 24 * time.Hour)
	for _, tc := range []struct {
		before string
		now    time.Time
		ok     bool
	}{
		{"2026-02", edge.Add(-time.Microsecond), false},
		{"2026-02", edge, true},
		{"2026-01", edge.Add(-time.Microsecond), true},
		{"2026-03", edge, false},
		{"2026-02-01", edge, false},
		{"", edge, false},
		{"2026-13", edge, false},
		{"1999-01", edge, true},
	} {
		if _, err := retention.ParseBefore(tc.before, tc.now); (err == nil) != tc.ok {
			t.Errorf("before %q at %v: %v", tc.before, tc.now, err)
		}
	}
}

// TestAFileThatIsNotTheDatabasesIsRefused finds something else where the export
// should be: that of another database, or a file that was changed, cut or extended.
func TestAFileThatIsNotTheDatabasesIsRefused(t *testing.T) {
	t.Parallel()
	const name = "usage-2025-12.ndjson.gz"
	for what, change := range map[string]func(s *store, content []byte) []byte{
		"cut":   func(_ *store, content []byte) []byte { return content[:len(content)-9] },
		"empty": func(*store, []byte) []byte { return nil },
		"bent": func(_ *store, content []byte) []byte {
			content[len(content)/2] ^= 1
			return content
		},
		"extended": func(s *store, content []byte) []byte {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			if _, err := w.Write([]byte("{}\n")); err != nil {
				s.t.Fatal(err)
			}
			return append(content, errless(s.t, w, &b)...)
		},
		"another's": func(s *store, content []byte) []byte {
			pgtest.Exec(s.t, s.owner, "UPDATE usage SET dimensions = '{\"model\": \"large\"}' WHERE usage_id = 'usage-0002' AND account = 'globex'")
			return content
		},
		"shorter": func(s *store, content []byte) []byte {
			recorded(s.t, s.owner, s.refs[0], "usage-more", time.Date(2025, 12, 9, 0, 0, 0, 0, time.UTC))
			return content
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := filled(t)
			a := s.archiver()
			a.Keep = true
			s.must(a, "2026-01", "2025-12 exported 6/60/0")
			content, err := os.ReadFile(filepath.Join(s.dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(s.dir, name), change(s, content), 0o600); err != nil {
				t.Fatal(err)
			}
			was := s.hash(name)
			before := rows(t, s.owner, wholeUsage)
			var differ *retention.DifferError
			for _, keep := range []bool{true, false} {
				a.Keep = keep
				if _, err := s.run(a, "2026-01"); !errors.As(err, &differ) {
					t.Errorf("keep %v: %v, want a DifferError", keep, err)
				}
			}
			if s.hash(name) != was || strings.Join(rows(t, s.owner, wholeUsage), "\n") != strings.Join(before, "\n") {
				t.Error("something was changed")
			}
			wantRows(t, s.owner, "SELECT count(*) FROM usage_archives", "0")
		})
	}
}

func errless(t *testing.T, w *gzip.Writer, b *bytes.Buffer) []byte {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestAnArchiveThatIsStoppedAnywhereIsTakenUp stops it at each point at which it
// tells of progress, by its context or by a lost connection.
func TestAnArchiveThatIsStoppedAnywhereIsTakenUp(t *testing.T) {
	t.Parallel()
	for stop := range 8 {
		for _, how := range []string{"cancelled", "disconnected"} {
			t.Run(fmt.Sprintf("%s %d", how, stop), func(t *testing.T) {
				t.Parallel()
				s := filled(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				a, n, killer := s.archiver(), 0, pgtest.Owner(t, s.dsn)
				a.Progress = func(string, string, int64, int64) {
					if n++; n != stop+1 {
						return
					}
					if how == "cancelled" {
						cancel()
						return
					}
					pgtest.Exec(t, killer, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
				}
				became, err := s.runWith(ctx, a, "2026-02")
				if n <= stop {
					t.Fatalf("progress was told of %d times only", n)
				}
				if err == nil {
					t.Errorf("stopped, it archived %q", became)
				}
				wantSound(t, killer)
				wantRows(t, killer, "SELECT (SELECT count(*) FROM usage) + (SELECT coalesce(sum(usages), 0) FROM usage_hours)", "14")
				again := s.archiver()
				again.DB = killer
				rest, err := s.run(again, "2026-02")
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.TrimPrefix(strings.TrimSuffix(became+"; "+rest, "; "), "; "); got != twoMonths {
					t.Errorf("first %q, then %q, together not %q", became, rest, twoMonths)
				}
				wantSound(t, killer)
				wantRows(t, killer, partOf, "usage_2026_02:2 usage_2026_03:2")
				if left, err := filepath.Glob(filepath.Join(s.dir, "*.partial")); err != nil || len(left) > 0 {
					t.Errorf("left behind: %q, %v", left, err)
				}
			})
		}
	}
}

// TestUsageThatTheJournalDoesNotKnowIsNotArchived plants what verify would find,
// while it can still be looked into.
func TestUsageThatTheJournalDoesNotKnowIsNotArchived(t *testing.T) {
	t.Parallel()
	for _, statement := range []string{
		"DELETE FROM usage WHERE usage_id = 'usage-0001' AND account = 'acme'",
		"UPDATE usage SET credits = credits + 1 WHERE usage_id = 'usage-0001' AND account = 'acme'",
		"UPDATE usage SET account = 'nobody' WHERE usage_id = 'usage-0001' AND account = 'acme'",
		"UPDATE transfers SET posted_at = posted_at - interval '2 months' WHERE cause = 'usage-0001' AND account = 'acme'",
	} {
		t.Run(statement, func(t *testing.T) {
			t.Parallel()
			s := filled(t)
			pgtest.Exec(t, s.owner, statement)
			if _, err := s.run(s.archiver(), "2026-01"); err == nil || !strings.Contains(err.Error(), "disagree for acme") || !strings.Contains(err.Error(), "tallystick verify") {
				t.Errorf("it was archived: %v", err)
			}
			wantRows(t, s.owner, "SELECT (SELECT count(*) FROM usage_archives) + (SELECT count(*) FROM usage_hours)", "0")
		})
	}
}

// TestAnArchiveWaitsForReadersAndWritersPass has somebody read usage for longer
// than the archive asks for its lock.
func TestAnArchiveWaitsForReadersAndWritersPass(t *testing.T) {
	t.Parallel()
	s := filled(t)
	reading, let := make(chan struct{}), make(chan struct{})
	db, writer := pgtest.Open(t, s.dsn, pg.Options{}), pgtest.Owner(t, s.dsn)
	ended := make(chan error, 1)
	go func() {
		ended <- db.Read(t.Context(), func(tx *sqlx.Tx) error {
			if err := pg.Hold(t.Context(), tx, "usage"); err != nil {
				return err
			}
			var before, after int
			err := tx.GetContext(t.Context(), &before, "SELECT count(*) FROM usage")
			close(reading)
			<-let
			if err := errors.Join(err, tx.GetContext(t.Context(), &after, "SELECT count(*) FROM usage")); err != nil || before != 14 || after != 14 {
				return fmt.Errorf("the reader sees %d usages, then %d, error %v", before, after, err) //nolint:errorlint // it may be none
			}
			return nil
		})
	}()
	<-reading
	archived := make(chan string, 1)
	go func() {
		became, err := s.run(s.archiver(), "2026-01")
		archived <- fmt.Sprint(became, " ", err)
	}()
	waits := 0
	for deadline := time.Now().Add(30 * time.Second); waits == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) { // until it asks for the lock
		waits = len(rows(t, writer, "SELECT 'waits' FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE usage DETACH%'"))
	}
	if waits == 0 {
		t.Error("it does not wait for the reader")
	}
	recorded(t, writer, s.refs[0], "usage-while", now)
	close(let)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := <-archived; got != "2025-12 archived 6/60/4 <nil>" {
		t.Errorf("archived %q", got)
	}
	wantSound(t, s.owner)
}

// TestVerifyFindsEachPlantedDefectOfArchives plants them after an archive.
func TestVerifyFindsEachPlantedDefectOfArchives(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, statement, want string }{
		{"an hour lost", "DELETE FROM usage_hours WHERE hour = '2025-12-31T23:00:00Z' AND account = 'acme'", "archives archive_sums"},
		{"an hour raised", "UPDATE usage_hours SET credits = credits + 1 WHERE hour = '2025-12-31T23:00:00Z' AND account = 'acme'", "archives archive_sums"},
		{"an hour moved to another account", "UPDATE usage_hours SET account = 'globex', part = (SELECT part FROM accounts WHERE account = 'globex'), meter = 'other' WHERE hour = '2025-12-31T23:00:00Z' AND account = 'acme'", "archives"},
		{"quantity raised", "UPDATE usage_hours SET quantity = quantity + 1", "archive_sums"},
		{"staged invented", "UPDATE usage_hours SET staged = 5 WHERE hour = '2025-12-31T23:00:00Z'", "archive_sums deliveries"},
		{"the archive's sums changed", "UPDATE usage_archives SET quantity = quantity - 1", "archive_sums"},
		{"the archive forgotten", "ALTER TABLE usage_hours DROP CONSTRAINT usage_hours_archive; DELETE FROM usage_archives WHERE month = '2025-12-01'", "archives archive_sums usage"},
		{"usage beside the hours", "INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint, transfer_version, available_after, held_after, debt_after) SELECT part, account, 'usage-0001', meter, quantity, credits, rate_version, staged, dimensions, occurred_at, '2025-12-09', fingerprint, 3, 0, 0, 0 FROM usage WHERE usage_id = 'usage-0005' AND account = 'acme'", "archive_sums"},
		{"a transfer of the month lost", "DELETE FROM transfers WHERE cause = 'usage-0001'", "archives"},
		{"an archive invented", "INSERT INTO usage_archives SELECT '2026-02-01', '2026-03-01', usages, quantity, credits, staged, file, sha256, archived_at FROM usage_archives LIMIT 1", "archives archive_sums"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := filled(t)
			s.must(s.archiver(), "2026-02", twoMonths)
			wantSound(t, s.owner)
			pgtest.Exec(t, s.owner, tc.statement)
			found := broken(t, s.owner)
			for _, name := range strings.Fields(tc.want) {
				if len(found[name]) == 0 {
					t.Errorf("%s is not found broken: %v", name, found)
				}
			}
		})
	}
}

// TestUsageOfAnArchivedMonthIsToldOf is about a clock that was set back.
func TestUsageOfAnArchivedMonthIsToldOf(t *testing.T) {
	t.Parallel()
	s := filled(t)
	s.must(s.archiver(), "2026-01", "2025-12 archived 6/60/4")
	recorded(t, s.owner, s.refs[0], "usage-late", time.Date(2025, 12, 9, 0, 0, 0, 0, time.UTC))
	u := retention.Upkeep{DB: pgtest.Open(t, s.dsn, pg.Options{}), Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler)}
	if _, err := u.Step(t.Context()); err == nil || !strings.Contains(err.Error(), "1 usages were recorded in 2025-12, which was archived before") {
		t.Errorf("the upkeep says %v", err)
	}
	wantRows(t, s.owner, "SELECT count(*) FROM usage_default", "1")
}

// TestWhatTheHoursKeepApart is about dimensions and the binding at Stripe.
func TestWhatTheHoursKeepApart(t *testing.T) {
	t.Parallel()
	s := filled(t)
	pgtest.Exec(t, s.owner, `UPDATE usage SET dimensions = jsonb_build_object('model', CASE WHEN usage_id = 'usage-0001' THEN 'large' ELSE 'small' END, 'request_id', usage_id || account)`)
	pgtest.Exec(t, s.owner, "UPDATE meters SET stripe_event_name = 'calls', stripe_bound_at = '2026-01-01T00:00:01Z'")
	a := s.archiver()
	a.Forget = []string{"request_id", "unheard-of"}
	s.must(a, "2026-02", "2025-12 archived 6/60/6; 2026-01 archived 4/40/4")
	wantRows(t, s.owner, "SELECT to_char(hour, 'MM-DD HH24') || dimensions || usages || bound FROM usage_hours WHERE account = 'acme' ORDER BY hour, dimensions",
		`12-01 00{"model": "large"}1false 12-01 00{"model": "small"}1false 12-31 23{"model": "small"}1false 01-01 00{"model": "small"}1false 01-06 00{"model": "small"}1true`)
	if line := s.lines("usage-2025-12.ndjson.gz")[0]; fmt.Sprint(line["dimensions"]) != fmt.Sprintf("map[model:small request_id:usage-0000%s]", line["account"]) {
		t.Errorf("the file says %v", line)
	}
	wantSound(t, s.owner)
}

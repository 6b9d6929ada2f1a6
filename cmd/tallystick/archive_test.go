package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/clock"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/retention"
)

// oldUsage fills three months, the last of them 100 days ago, and gives the first.
func oldUsage(t *testing.T, owner *pg.DB, rows int) (first time.Time) {
	t.Helper()
	last := clock.Now().AddDate(0, 0, -100)
	first = time.Date(last.Year(), last.Month(), 1, 0, 0, 0, 0, time.UTC).AddDate(0, -2, 0)
	for month := range 3 {
		pgtest.Exec(t, owner, "SELECT make_usage_partition($1)", first.AddDate(0, month, 0))
	}
	pgtest.Exec(t, owner, `
		INSERT INTO transfers (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts, available_after, held_after, debt_after,
			actor, note, posted_at, hash)
		SELECT 1, 'hot', n, 'usage', 1000000, 'available', 'usage', 'planted-usage-' || n, '{}', '{}', 0, 0, 0, '', '',
			$2::timestamptz + make_interval(months => n % 3, mins => n / 3), decode(repeat('00', 32), 'hex')
		FROM generate_series(1, $1) AS n`, rows, first)
	pgtest.Exec(t, owner, `
		INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
			transfer_version, available_after, held_after, debt_after)
		SELECT part, account, cause, 'call', 1, amount, 1, 0, '{"model": "small"}', posted_at, posted_at, hash, version, 0, 0, 0
		FROM transfers`)
	return first
}

func number(t *testing.T, db *pg.DB, query string) (n int) {
	t.Helper()
	if err := db.Read(t.Context(), func(tx *sqlx.Tx) error { return tx.GetContext(t.Context(), &n, query) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUsageArchive(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	owner, dir := pgtest.Owner(t, dsn), filepath.Join(t.TempDir(), "made", "when missing")
	first := oldUsage(t, owner, 300)
	settings := []string{"DATABASE_URL=" + dsn}
	month := func(n int) string { return first.AddDate(0, n, 0).Format("2006-01") }
	for _, args := range [][]string{
		{},
		{"--before", month(1)},
		{"--out", dir},
		{"--before", "May", "--out", dir},
		{"--before", clock.Now().Format("2006-01"), "--out", dir},
		{"--before", month(1), "--out", dir, "--format", "csv"},
		{"--before", month(1), "--out", dir, "more"},
	} {
		if code, _, stderr := cli(t, settings, append([]string{"usage", "archive"}, args...)...); code != exitUsage || stderr == "" {
			t.Errorf("%q ended with %d: %s", args, code, stderr)
		}
	}
	if n := number(t, owner, "SELECT count(*) FROM usage"); n != 300 {
		t.Fatalf("mistakes left %d usages", n)
	}
	code, stdout, stderr := cli(t, settings, "--output", "json", "usage", "archive", "--before", month(2), "--out", dir)
	var archives []retention.Archive
	if err := json.Unmarshal([]byte(stdout), &archives); err != nil || code != exitFine || len(archives) != 2 || archives[1].Month != month(1) || archives[1].Credits != "100" {
		t.Fatalf("ended with %d, %v: %s%s", code, err, stdout, stderr)
	}
	for _, a := range archives {
		if _, err := os.Stat(filepath.Join(dir, a.File)); err != nil || a.Usages != 100 || a.State != "archived" || a.Hours != 2 {
			t.Errorf("archived %+v, %v", a, err)
		}
	}
	if n := number(t, owner, "SELECT count(*) FROM usage"); n != 100 {
		t.Errorf("%d usages are left", n)
	}
	if code, stdout, stderr := cli(t, settings, "usage", "archive", "--before", month(2), "--out", dir); code != exitFine || stdout != "" || !strings.Contains(stderr, "nothing to show") {
		t.Errorf("again it ended with %d: %s%s", code, stdout, stderr)
	}
	if code, _, stderr := cli(t, []string{"DATABASE_URL=postgres://nobody@127.0.0.1:1/none"}, "usage", "archive", "--before", month(1), "--out", dir); code != exitUnreachable {
		t.Errorf("without a database it ended with %d: %s", code, stderr)
	}
}

// TestUsageArchiveKilledAnywhereLosesNothing kills the process again and again, at
// random times, until one run gets through.
func TestUsageArchiveKilledAnywhereLosesNothing(t *testing.T) {
	t.Parallel()
	const rows = 60_000
	dsn := pgtest.DSN(t)
	owner, dir := pgtest.Owner(t, dsn), t.TempDir()
	first := oldUsage(t, owner, rows)
	killed := 0
	for run := 0; ; run++ {
		cmd := exec.CommandContext(context.Background(), os.Args[0], "usage", "archive", "--before", first.AddDate(0, 3, 0).Format("2006-01"), "--out", dir)
		cmd.Env = environment("DATABASE_URL=" + dsn)
		var log strings.Builder
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if run < 12 {
			time.Sleep(time.Duration(rand.IntN(100*(run+1))) * time.Millisecond)
			_ = cmd.Process.Kill() // it may have ended by itself
		}
		err := cmd.Wait()
		if n := number(t, owner, "SELECT (SELECT count(*) FROM usage) + (SELECT coalesce(sum(usages), 0) FROM usage_hours)"); n != rows {
			t.Fatalf("after run %d, which ended with %v, there are %d usages and sums of usages, want %d", run, err, n, rows)
		}
		if err == nil {
			break
		}
		if run >= 12 && !strings.Contains(log.String(), "lock") { // a killed run's backend may hold its lock for a moment
			t.Fatalf("run %d ended with %v: %s", run, err, log.String())
		}
		killed++
	}
	if killed == 0 {
		t.Error("no run was killed in time")
	}
	if n := number(t, owner, "SELECT (SELECT count(*) FROM usage) + 10 * (SELECT count(*) FROM usage_archives)"); n != 30 {
		t.Errorf("%d usages and ten times the archives, want 30", n)
	}
	check := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
	check.Dir = dir
	if out, err := check.CombinedOutput(); err != nil || strings.Count(string(out), ": OK") != 3 {
		t.Errorf("sha256sum says %v: %s", err, out)
	}
}

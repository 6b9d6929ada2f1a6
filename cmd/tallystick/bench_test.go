package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"tallystick/internal/bench"
)

func TestBenchMeasuresBesideItsYardsticks(t *testing.T) {
	t.Parallel()
	dir, profile := dataDir(t), filepath.Join(t.TempDir(), "profile")
	code, stdout, stderr := cli(t, nil, "bench", "--each", "200ms", "--only", "1 connection", "--data", dir, "--profile", profile, "--output", "json")
	if code != exitFine {
		t.Fatalf("bench ended with %d: %s", code, stderr)
	}
	var result bench.Result
	if err := json.Unmarshal([]byte(stdout), &result); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	if len(result.Rows) != 3 {
		t.Fatalf("%d rows, want no-op, pgbench and the server: %s", len(result.Rows), stdout)
	}
	for i, row := range result.Rows {
		if row.PerSecond <= 0 || row.P50 <= 0 || row.P99 < row.P50 || (i == 2) != (row.OfNoop > 0 && row.OfPgbench > 0) {
			t.Errorf("row %d makes no sense: %+v", i, row)
		}
	}
	if server := result.Rows[2]; server.RSS <= 0 || server.Allocations <= 0 {
		t.Errorf("what the server costs is missing: %+v", server)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("bench left %v behind, %v", left, err)
	}
	if info, err := os.Stat(profile); err != nil || info.Size() == 0 {
		t.Errorf("there is no profile: %v", err)
	}
}

func TestBenchRefusesADirectoryThatCannotBe(t *testing.T) {
	t.Parallel()
	if code, _, stderr := cli(t, nil, "bench", "--data", "/dev/null/x"); code == exitFine || stderr == "" {
		t.Errorf("bench in a directory that cannot be ended with %d: %q", code, stderr)
	}
}

func TestBenchMeasuresVoidsBesideUsage(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := cli(t, nil, "bench", "--each", "300ms", "--only", "voids beside", "--data", dataDir(t), "--output", "json")
	if code != exitFine {
		t.Fatalf("bench ended with %d: %s", code, stderr)
	}
	var result bench.Result
	if err := json.Unmarshal([]byte(stdout), &result); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	if len(result.Rows) != 1 || result.Rows[0].PerSecond <= 0 || result.Rows[0].P99 < result.Rows[0].P50 || result.Rows[0].P50 <= 0 {
		t.Errorf("the row makes no sense: %+v", result.Rows)
	}
}

package mutants

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tallystick/internal/app"
	"tallystick/internal/apptest"
	"tallystick/internal/pg/pgtest"
)

// Bounds of what a mutant may take.
const (
	startMax = 90 * time.Second
	stopMax  = 30 * time.Second
)

// root is the directory of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// build makes the program with a mutant in it and gives the path of the binary.
func build(t *testing.T, m mutant) string {
	t.Helper()
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for name, content := range m.apply(t) {
		planted := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(planted, content, 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[filepath.Join(root(t), name)] = planted
	}
	table, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), table, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "tallystick")
	c := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-ldflags", "-s -w", "-o", binary, "./cmd/tallystick")
	c.Dir = root(t)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build it: %v\n%s", err, out)
	}
	return binary
}

// start runs the binary over a fresh database and a simulator of its own. It ends
// with the test.
func start(t *testing.T, binary string) *apptest.App {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	c := exec.CommandContext(context.Background(), binary, "up", "--data", data, "--listen", "127.0.0.1:0")
	c.Env = append(os.Environ(), "DATABASE_URL="+pgtest.DSN(t), "TALLYSTICK_RECONCILE_SETTLE=1m", "TALLYSTICK_RECONCILE_SCHEDULES="+noSchedules(t),
		"TALLYSTICK_MAIL_DIGEST=off", "TALLYSTICK_MAIL_WEEKLY=off", "TALLYSTICK_LOG_LEVEL=warn", "TALLYSTICK_DATABASE_CONNECTIONS=8")
	var output bytes.Buffer
	c.Stdout, c.Stderr, c.WaitDelay = &output, &output, stopMax
	if err := c.Start(); err != nil {
		t.Fatalf("start it: %v", err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = c.Wait() }()
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		select {
		case <-ended:
		case <-time.After(stopMax):
			_ = c.Process.Kill()
			<-ended
			t.Error("it did not stop")
		}
		if t.Failed() {
			t.Logf("its output ends with\n%s", output.Bytes()[max(0, output.Len()-20_000):])
		}
	})
	return apptest.Attach(t, awaitInfo(t, data, ended))
}

// awaitInfo gives what the program says of itself as soon as it serves.
func awaitInfo(t *testing.T, data string, ended <-chan struct{}) app.Info {
	t.Helper()
	tick, deadline := time.NewTicker(20*time.Millisecond), time.After(startMax)
	defer tick.Stop()
	for {
		if info, err := app.ReadInfo(data); err == nil {
			return info
		}
		select {
		case <-ended:
			t.Fatal("it ended before it served")
		case <-deadline:
			t.Fatal("it did not start in time")
		case <-tick.C:
		}
	}
}

// noSchedules switches every check's schedule off: the story says when they run.
// Each check has a page of its name.
func noSchedules(t *testing.T) string {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join(root(t), "docs/checks/*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("the pages of the checks: %v", err)
	}
	var off []string
	for _, page := range pages {
		off = append(off, strings.TrimSuffix(filepath.Base(page), ".md")+"=off")
	}
	return strings.Join(off, "; ")
}

package pgdev_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tallystick/internal/pg/pgdev"
)

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func TestKillAndRestartKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	s := start(t, pgdev.Options{Dir: newDir(t)})
	execute(t, s, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (42)")
	backend, err := strconv.Atoi(value(t, s, "SELECT pg_backend_pid()"))
	if err != nil {
		t.Fatal(err)
	}
	postmaster := s.PID()
	for range 2 { // a second kill is harmless
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range []int{postmaster, backend} {
		until(t, "the killed process "+strconv.Itoa(pid)+" is gone", func() bool { return !alive(pid) })
	}
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after a kill")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := value(t, s, "SELECT n FROM kept"); got != "42" {
		t.Errorf("after a kill and a restart: %q, want 42", got)
	}
}

// TestPostmasterKilledAlone leaves a busy backend behind, which does not look
// whether its postmaster lives; Postgres refuses to start beside it.
func TestPostmasterKilledAlone(t *testing.T) {
	t.Parallel()
	s := start(t, pgdev.Options{Dir: newDir(t)})
	db := open(t, s)
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var backend int
	if err := conn.QueryRowContext(t.Context(), "SELECT pg_backend_pid()").Scan(&backend); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = conn.ExecContext(context.WithoutCancel(t.Context()), "DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")
	}()
	until(t, "the backend is busy", func() bool {
		return value(t, s, "SELECT state FROM pg_stat_activity WHERE pid = "+strconv.Itoa(backend)) == "active"
	})
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if !alive(backend) {
		t.Fatal("the busy backend ended by itself: this test shows nothing")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatalf("restart beside an orphan: %v", err)
	}
	if alive(backend) {
		t.Errorf("the orphan %d still runs beside the new server", backend)
	}
}

func TestStopThatMayNotTakeTime(t *testing.T) {
	t.Parallel()
	s := start(t, pgdev.Options{Dir: newDir(t)})
	execute(t, s, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (42)")
	postmaster := s.PID()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if alive(postmaster) {
		t.Error("the server still runs")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := value(t, s, "SELECT n FROM kept"); got != "42" {
		t.Errorf("after a hurried stop: %q, want 42", got)
	}
}

// spawnOwner runs a server under another process, and returns when it is ready.
func spawnOwner(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), binary)
	cmd.Env = append(os.Environ(), ownerDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the owner said %q, want ready", lines.Text())
	}
	return cmd
}

func postmasterOf(t *testing.T, dir string) int {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.SplitN(string(content), "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestServerEndsWithItsOwner(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	cmd := spawnOwner(t, dir)
	postmaster := postmasterOf(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the server of a killed owner ends", func() bool { return !alive(postmaster) })
}

func TestTakeOverFromAKilledOwner(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	cmd := spawnOwner(t, dir)
	want := "in use by process " + strconv.Itoa(cmd.Process.Pid)
	if _, err := pgdev.Start(t.Context(), pgdev.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("start while the owner lives: %v; want %q", err, want)
	}
	postmaster := postmasterOf(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its locks go with it, at once
	s := start(t, pgdev.Options{Dir: dir})
	if s.PID() == postmaster {
		t.Error("the old server was adopted")
	}
	if got := value(t, s, "SELECT 'reached'"); got != "reached" {
		t.Errorf("through the new server: %q", got)
	}
}

// TestHungServerOfAKilledOwner stops the postmaster, so that it cannot obey.
func TestHungServerOfAKilledOwner(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	cmd := spawnOwner(t, dir)
	postmaster := postmasterOf(t, dir)
	if err := syscall.Kill(postmaster, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	s, err := pgdev.Start(ctx, pgdev.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	if alive(postmaster) {
		t.Errorf("the hung server %d still runs", postmaster)
	}
}

// TestStalePidOfALivingStranger is a container's restart: the numbers begin
// again, and the one in the file belongs to another process of the same user.
func TestStalePidOfALivingStranger(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, pgdev.Options{Dir: dir})
	content, err := os.ReadFile(filepath.Join(s.Data(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	stranger := exec.CommandContext(t.Context(), "sleep", "600")
	info, err := os.Stat(s.Data())
	if err != nil {
		t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no owner of the data")
	}
	if os.Geteuid() == 0 {
		stranger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}}
	}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	_, rest, _ := strings.Cut(string(content), "\n")
	stale := strconv.Itoa(stranger.Process.Pid) + "\n" + rest
	if err := os.WriteFile(filepath.Join(s.Data(), "postmaster.pid"), []byte(stale), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Errorf("restart with a stale pid of somebody else's process: %v", err)
	}
	if !alive(stranger.Process.Pid) {
		t.Error("the stranger was killed")
	}
}

func TestServerThatCannotStartSaysWhy(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, pgdev.Options{Dir: dir})
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Data(), "postgresql.auto.conf"), []byte("no_such_setting = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := pgdev.Start(t.Context(), pgdev.Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "FATAL") || !strings.Contains(err.Error(), "postgres.log") {
		t.Errorf("start with a broken configuration: %v; want the server's own reason and where to read more", err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("waited for a server that had ended")
	}
}

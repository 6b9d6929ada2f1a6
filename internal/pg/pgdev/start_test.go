package pgdev_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tallystick/internal/pg/pgdev"
)

func TestSettings(t *testing.T) {
	t.Parallel()
	s := start(t, pgdev.Options{Dir: newDir(t)})
	for setting, want := range map[string]string{
		"listen_addresses": "", "data_checksums": "on", "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on",
		"server_encoding": "UTF8", "TimeZone": "UTC", "data_directory": s.Data(),
	} {
		if got := value(t, s, "SHOW "+setting); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}
	if got := value(t, s, "SELECT setting::bigint * 8192 BETWEEN 128 << 20 AND 1 << 30 FROM pg_settings WHERE name = 'shared_buffers'"); got != "t" && got != "true" {
		t.Errorf("shared_buffers within their bounds: %q", got)
	}
	if got := value(t, s, "SELECT datcollate FROM pg_database WHERE datname = current_database()"); got != "C" {
		t.Errorf("collation %q, want C", got)
	}
}

func TestVolatileIsFasterAndSaysSo(t *testing.T) {
	t.Parallel()
	s := start(t, pgdev.Options{Dir: newDir(t), Volatile: true})
	if got := value(t, s, "SHOW fsync"); got != "off" {
		t.Errorf("fsync = %q, want off", got)
	}
	if got := value(t, s, "SHOW shared_buffers"); got != "128MB" {
		t.Errorf("shared_buffers = %q, want the least", got)
	}
}

// TestNewThenExisting makes the cluster by initdb, without the cache of the other tests.
func TestNewThenExisting(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newDir(t), "made", "here")
	for run := range 2 {
		s, err := pgdev.Start(t.Context(), pgdev.Options{Dir: dir})
		if err != nil {
			t.Fatalf("start %d: %v", run, err)
		}
		t.Cleanup(func() { _ = s.Stop(context.Background()) })
		if run == 0 {
			execute(t, s, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (42)")
		} else if got := value(t, s, "SELECT n FROM kept"); got != "42" {
			t.Errorf("after a stop and a start: %q, want 42", got)
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Errorf("a second stop: %v", err)
		}
	}
}

func TestAddressServesPsql(t *testing.T) {
	t.Parallel()
	s := start(t, pgdev.Options{Dir: newDir(t)})
	bin, err := pgdev.FindBinaries("")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "psql"), "-XtAc", "SELECT current_user", s.DSN(pgdev.Database)).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != pgdev.User {
		t.Errorf("psql %s: %q, %v; want %q", s.DSN(pgdev.Database), got, err, pgdev.User)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	start(t, pgdev.Options{Dir: dir})
	for _, name := range []string{"socket", "data"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o700 {
			t.Errorf("mode of %s: %o, want 700: whoever reaches the socket is the database's superuser", name, got)
		}
	}
}

func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	a, b := start(t, pgdev.Options{Dir: newDir(t)}), start(t, pgdev.Options{Dir: newDir(t)})
	execute(t, a, "CREATE TABLE only_in_a ()")
	if got := value(t, b, "SELECT count(*) FROM pg_tables WHERE tablename = 'only_in_a'"); got != "0" {
		t.Errorf("tables of the one server seen in the other: %s", got)
	}
}

func TestSameDirectoryTwice(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	alias := filepath.Join(newDir(t), "alias")
	if err := os.Symlink(dir, alias); err != nil {
		t.Fatal(err)
	}
	s := start(t, pgdev.Options{Dir: dir})
	want := fmt.Sprintf("in use by process %d;", os.Getpid())
	for _, again := range []string{dir, alias} {
		if _, err := pgdev.Start(t.Context(), pgdev.Options{Dir: again}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a second start in %s: %v; want %q", again, err, want)
		}
	}
	if err := s.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a restart of a running server: %v; want %q", err, want)
	}
	if got := value(t, s, "SELECT 'alive'"); got != "alive" {
		t.Errorf("the first server after the refusals: %q", got)
	}
}

func TestLongAndOddPaths(t *testing.T) {
	t.Parallel()
	for _, name := range []string{strings.Repeat("long", 40), "comma, blank and 'quote'"} {
		t.Run(name[:5], func(t *testing.T) {
			t.Parallel()
			s := start(t, pgdev.Options{Dir: filepath.Join(newDir(t), name)})
			if got := value(t, s, "SELECT 'reached'"); got != "reached" {
				t.Errorf("through %s: %q", s.DSN(pgdev.Database), got)
			}
			socket := value(t, s, "SHOW unix_socket_directories")
			t.Cleanup(func() { _ = os.RemoveAll(socket) })
		})
	}
}

func TestHalfMadeDirectoryIsMadeAgain(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	half := filepath.Join(dir, "data.new-INTERRUPTED")
	for _, made := range []string{filepath.Join(half, "base"), filepath.Join(dir, "data")} {
		if err := os.MkdirAll(made, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	start(t, pgdev.Options{Dir: dir})
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what the interrupted initdb left is still there: %v", err)
	}
}

func TestForeignDirectoryIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	thesis := filepath.Join(dir, "data", "thesis.txt")
	if err := os.Mkdir(filepath.Dir(thesis), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(thesis, []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pgdev.Start(t.Context(), pgdev.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "no Postgres data directory") {
		t.Errorf("start on a directory with something else in it: %v", err)
	}
	if content, err := os.ReadFile(thesis); err != nil || string(content) != "years of work" {
		t.Errorf("the file that was there: %q, %v", content, err)
	}
}

func TestDataOfAnotherVersion(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, pgdev.Options{Dir: dir})
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Data(), "PG_VERSION"), []byte("8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := pgdev.Start(t.Context(), pgdev.Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "was made by Postgres 8") || !strings.Contains(err.Error(), "postgresql-8") {
		t.Errorf("start on data of Postgres 8: %v; want which version made it and what to install", err)
	}
}

func TestNoServerThere(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	if _, err := pgdev.Start(t.Context(), pgdev.Options{Dir: newDir(t), Bin: dir}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("start with binaries from an empty directory: %v; want its name", err)
	}
}

func TestDirectoryOutOfReach(t *testing.T) {
	t.Parallel()
	closed := filepath.Join(newDir(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(closed, "data")
	if os.Geteuid() != 0 {
		if err := os.Chmod(closed, 0o500); err != nil {
			t.Fatal(err)
		}
		if _, err := pgdev.Start(t.Context(), pgdev.Options{Dir: dir}); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), dir) {
			t.Errorf("start where we may not write: %v; want a refusal that names %s", err, dir)
		}
		return
	}
	if _, err := pgdev.Start(t.Context(), pgdev.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "chmod o+x "+closed) {
		t.Errorf("start as root below a directory that only root may enter: %v; want what to do about %s", err, closed)
	}
	if err := os.Chmod(closed, 0o711); err != nil { // what the message says
		t.Fatal(err)
	}
	start(t, pgdev.Options{Dir: dir})
}

// TestDirectoryOfAnOrdinaryUser is what happens to somebody who runs up once with
// sudo: the data stays his.
func TestDirectoryOfAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	uid := os.Geteuid()
	if uid == 0 {
		uid = 65534
		if err := os.Chown(dir, uid, uid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, pgdev.Options{Dir: dir})
	for _, name := range []string{"data", "socket", "postgres.log", "tallystick.lock"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != uid {
			t.Errorf("%s belongs to %d, want %d", filepath.Join(dir, name), stat.Uid, uid)
		}
	}
	if got := value(t, s, "SELECT 'reached'"); got != "reached" {
		t.Errorf("through %s: %q", s.DSN(pgdev.Database), got)
	}
}

func TestStartThatIsCancelledLeavesNothingRunning(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pgdev.Start(ctx, pgdev.Options{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled start: %v; want %v", err, context.Canceled)
	}
	start(t, pgdev.Options{Dir: dir})
}

func TestLogDoesNotGrowForever(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	path := filepath.Join(dir, "postgres.log")
	if err := os.WriteFile(path, make([]byte, 9<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, pgdev.Options{Dir: dir})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() >= 9<<20 {
		t.Errorf("the log still has %d bytes after a start", info.Size())
	}
	if _, err := os.Stat(path + ".old"); err != nil {
		t.Errorf("the old log: %v", err)
	}
}

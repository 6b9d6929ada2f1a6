package pgdev_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"tallystick/internal/pg/pgdev"
)

// ownerDir makes the test binary another process than a test run: one that
// starts a server in the directory, says so, and waits to be killed.
const ownerDir = "TALLYSTICK_PGDEV_TEST_OWNER_DIR"

// asUser marks the run of all these tests as an ordinary user.
const asUser = "TALLYSTICK_PGDEV_TEST_AS_USER"

func TestMain(m *testing.M) {
	dir := os.Getenv(ownerDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if _, err := pgdev.Start(context.Background(), pgdev.Options{Dir: dir, Cache: base()}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	select {}
}

// base is in memory where there is room: most of the time of a start is the copy
// of a thousand files.
var base = sync.OnceValue(func() string {
	const memory = "/dev/shm"
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err != nil || int64(fs.Bavail)*fs.Bsize < 1<<30 {
		return os.TempDir()
	}
	return memory
})

// newDir is a directory with a short path that an ordinary user may enter, which
// t.TempDir is not.
func newDir(t *testing.T) string {
	t.Helper()
	return newDirIn(t, base())
}

func newDirIn(t *testing.T, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "pgdev-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, o pgdev.Options) *pgdev.Server {
	t.Helper()
	if o.Cache == "" {
		o.Cache = base()
	}
	s, err := pgdev.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	return s
}

func open(t *testing.T, s *pgdev.Server) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", s.DSN(pgdev.Database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// execute runs statements on a connection of its own.
func execute(t *testing.T, s *pgdev.Server, statements ...string) {
	t.Helper()
	db := open(t, s)
	for _, statement := range statements {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// value is the one text that a query answers.
func value(t *testing.T, s *pgdev.Server, query string) string {
	t.Helper()
	var text string
	if err := open(t, s).QueryRowContext(t.Context(), query).Scan(&text); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return text
}

// until waits for what no event announces, within a bound.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestAsOrdinaryUser runs every other test of this package again as an
// ordinary user, when we are root: half of the rules differ.
func TestAsOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv(asUser) == "" {
			t.Log("we are an ordinary user: all the other tests are that run")
		}
		return
	}
	const nobody = 65534
	dir := newDirIn(t, os.TempDir()) // nothing can be executed in memory
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(dir, "pgdev.test") // the go command's own directory is closed to others
	// Another process writes it: a server that is started just now would inherit our
	// open file, and what is open for writing cannot be executed.
	if out, err := exec.CommandContext(t.Context(), "install", "-m", "0755", binary, mine).CombinedOutput(); err != nil {
		t.Fatalf("copy the tests: %v\n%s", err, out)
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), mine, "-test.timeout=5m")
	cmd.Dir = home
	cmd.Env = append(os.Environ(), asUser+"=1", "TMPDIR="+home, "HOME="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the tests as an ordinary user: %v\n%s", err, out)
	}
}

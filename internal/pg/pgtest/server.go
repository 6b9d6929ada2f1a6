package pgtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgdev"
)

// memoryBytesMin is the free space that makes a file system in memory worth
// using: in many containers /dev/shm has 64 MB, less than one cluster.
const memoryBytesMin = 1 << 30

// startMax bounds the start of the shared server, template included.
const startMax = 2 * time.Minute

// server is where the databases of one test process live.
type server struct {
	admin *sqlx.DB
	dsn   func(database string) string
	life  string // how long a database that is not dropped can be looked at
	err   error  // why there is none

	alive *os.File // closes with this process, which starts the clean-up; nil for a server that runs anyway
}

// shared is the server that all tests of this process use, made at first need.
var shared = sync.OnceValue(func() *server {
	ctx, cancel := context.WithTimeout(context.Background(), startMax)
	defer cancel()
	s := &server{}
	if address := os.Getenv("TALLYSTICK_TEST_DATABASE_URL"); address != "" {
		s.err = s.useExisting(ctx, address)
	} else {
		s.err = s.startOwn(ctx)
	}
	return s
})

// Server is a private server of this test alone, durable as in production, for
// tests that kill it. Its database is migrated.
func Server(t testing.TB) *pgdev.Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "tallystick-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := pgdev.Start(context.Background(), pgdev.Options{Dir: dir, Bin: os.Getenv("TALLYSTICK_TEST_PG_BIN"), Cache: base()})
	if err != nil {
		t.Fatalf("tests need Postgres: %v", err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	if _, err := pg.Migrate(context.Background(), s.DSN(pgdev.Database)); err != nil {
		t.Fatalf("migrate: %v", err)
	}
	return s
}

func (s *server) useExisting(ctx context.Context, address string) error {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return fmt.Errorf("TALLYSTICK_TEST_DATABASE_URL is no postgres:// URL")
	}
	s.dsn = func(database string) string {
		other := *u
		other.Path = "/" + database
		return other.String()
	}
	s.life = "kept: drop it when you have seen it"
	return s.connect(ctx, address)
}

// startOwn brings a private server up, in memory where the machine has enough.
func (s *server) startOwn(ctx context.Context) error {
	sweep(base())
	dir, err := os.MkdirTemp(base(), prefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return err
	}
	own, err := pgdev.Start(ctx, pgdev.Options{Dir: dir, Bin: os.Getenv("TALLYSTICK_TEST_PG_BIN"), Volatile: true, Cache: base()})
	if err != nil {
		_ = os.RemoveAll(dir)
		return err
	}
	s.alive, err = removeAfterUs(dir, own.PID())
	if err != nil {
		return err
	}
	s.dsn = own.DSN
	s.life = "gone with its process: set TALLYSTICK_TEST_DATABASE_URL to keep it"
	return s.connect(ctx, own.DSN("postgres"))
}

func (s *server) connect(ctx context.Context, address string) error {
	admin, err := sqlx.Open("postgres", address)
	if err != nil {
		return err
	}
	admin.SetMaxOpenConns(4)
	s.admin = admin
	return s.makeTemplate(ctx)
}

// makeTemplate migrates a database that every test's database is cloned from. Its
// name tells the migrations in it, so that a server that runs on keeps it for
// the next process. It gets its name when it is whole; the lock makes
// processes that start together wait for the first.
func (s *server) makeTemplate(ctx context.Context) error {
	conn, err := s.admin.Connx(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	const lock = 7_481_220 // any number that nobody else uses
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", lock); err != nil {
		return err
	}
	defer func() { _, _ = conn.ExecContext(ctx, "SELECT pg_advisory_unlock($1)", lock) }()
	name, err := template()
	if err != nil {
		return err
	}
	var exists bool
	if err := conn.GetContext(ctx, &exists, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name); err != nil || exists {
		return err
	}
	half := name + "_new"
	for _, statement := range []string{"DROP DATABASE IF EXISTS " + half, "CREATE DATABASE " + half} {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	if _, err := pg.Migrate(ctx, s.dsn(half)); err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, "ALTER DATABASE "+half+" RENAME TO "+name)
	return err
}

// clone makes a database with a name of its own, whichever processes share the server.
func (s *server) clone(ctx context.Context, from string) (string, error) {
	name := "tallystick_test_" + strings.ToLower(rand.Text()[:12])
	if _, err := s.admin.ExecContext(ctx, "CREATE DATABASE "+name+" TEMPLATE "+from); err != nil {
		return "", fmt.Errorf("create the test's database: %w", err)
	}
	return name, nil
}

func (s *server) drop(ctx context.Context, name string) error {
	_, err := s.admin.ExecContext(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
	return err
}

// prefix begins the name of every directory of a shared server; the process id
// of its test process follows.
const prefix = "tallystick-test-"

// base is where servers and the cached cluster live.
var base = sync.OnceValue(func() string {
	const memory = "/dev/shm"
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err != nil || int64(fs.Bavail)*fs.Bsize < memoryBytesMin {
		return os.TempDir()
	}
	return memory
})

// removeAfterUs starts a shell that waits until this process is gone, however
// it ended, and the server with it, and removes dir. A test process has no last
// word in which it could do so itself. The wait for the server is bounded,
// because an ended process that nobody inherits keeps its number. The file must
// stay open for as long as the directory is needed.
func removeAfterUs(dir string, postmaster int) (*os.File, error) {
	const script = `cat >/dev/null; n=0; while kill -0 "$1" 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done; rm -rf "$2"`
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", script, "sh", strconv.Itoa(postmaster), dir)
	cmd.Stdin = read
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C at the terminal is not for it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the shell that cleans up after the tests: %w", err)
	}
	return write, read.Close()
}

// sweep removes what test processes left behind whose clean-up was killed too.
func sweep(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, prefix+"*"))
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(strings.TrimPrefix(filepath.Base(dir), prefix), "%d", &pid); err != nil {
			continue
		}
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			_ = os.RemoveAll(dir)
		}
	}
}

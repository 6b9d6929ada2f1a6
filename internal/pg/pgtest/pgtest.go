// Package pgtest gives each test a Postgres database of its own: one private
// server per test process, and one database per test, cloned from a migrated
// template. A machine without Postgres fails the test; nothing is skipped.
package pgtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	_ "github.com/lib/pq" // the driver

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgdev"
)

// template is the migrated database that every test's database is cloned from.
const template = "tallystick_template"

// process is the one server that all tests of a process share.
var process struct {
	once   sync.Once
	server *pgdev.Server
	admin  *sqlx.DB
	err    error
	count  atomic.Int64
}

// New is a fresh, migrated database, opened as the service opens it.
func New(t testing.TB) *pg.DB {
	t.Helper()
	return Open(t, DSN(t), pg.Options{})
}

// Owner opens dsn with all rights, for planting what the service cannot do.
func Owner(t testing.TB, dsn string) *pg.DB {
	t.Helper()
	return Open(t, dsn, pg.Options{Owner: true, ConnectionsMax: 2})
}

// Open opens dsn and closes it with the test.
func Open(t testing.TB, dsn string, o pg.Options) *pg.DB {
	t.Helper()
	db, err := pg.Open(context.Background(), dsn, o)
	if err != nil {
		t.Fatalf("open %s: %v", dsn, err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// Exec runs one statement in a transaction of its own as the owner.
func Exec(t testing.TB, db *pg.DB, statement string, args ...any) {
	t.Helper()
	err := db.InTx(context.Background(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(statement, args...)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// DSN is the address, with the owner's rights, of a fresh, migrated database. It
// is dropped when the test passes and kept when it fails.
func DSN(t testing.TB) string {
	t.Helper()
	process.once.Do(start)
	if process.err != nil {
		t.Fatalf("tests need Postgres: %v", process.err)
	}
	name := fmt.Sprintf("test_%d", process.count.Add(1))
	if _, err := process.admin.Exec("CREATE DATABASE " + name + " TEMPLATE " + template); err != nil {
		t.Fatalf("create the test's database: %v", err)
	}
	dsn := process.server.DSN(name)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the database of this test was %s, until its process ended", dsn)
			return
		}
		_, _ = process.admin.Exec("DROP DATABASE " + name + " WITH (FORCE)")
	})
	return dsn
}

// Server is a private server of this test alone, durable as in production, for
// tests that kill it. Its database is migrated.
func Server(t testing.TB) *pgdev.Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "tallystick-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the server's user must enter it
		t.Fatal(err)
	}
	s, err := pgdev.Start(context.Background(), pgdev.Options{Dir: filepath.Join(dir, "pg")})
	if err != nil {
		t.Fatalf("tests need Postgres: %v", err)
	}
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	if _, err := pg.Migrate(context.Background(), s.DSN(pgdev.Database)); err != nil {
		t.Fatalf("migrate: %v", err)
	}
	return s
}

// start brings the shared server up in memory where the machine has /dev/shm.
func start() {
	base := "/dev/shm"
	if info, err := os.Stat(base); err != nil || !info.IsDir() {
		base = os.TempDir()
	}
	sweep(base)
	dir := filepath.Join(base, fmt.Sprintf("tallystick-test-%d", os.Getpid()))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	process.server, process.err = pgdev.Start(ctx, pgdev.Options{Dir: dir, Volatile: true})
	if process.err != nil {
		return
	}
	process.admin, process.err = sqlx.Open("postgres", process.server.DSN("postgres"))
	if process.err != nil {
		return
	}
	process.admin.SetMaxOpenConns(4)
	if _, process.err = process.admin.Exec("CREATE DATABASE " + template); process.err != nil {
		return
	}
	_, process.err = pg.Migrate(ctx, process.server.DSN(template))
}

// sweep removes what the servers of ended test processes left behind: a test
// process has no last word in which it could clean up.
func sweep(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, "tallystick-test-*"))
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(strings.TrimPrefix(filepath.Base(dir), "tallystick-test-"), "%d", &pid); err != nil {
			continue
		}
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			_ = os.RemoveAll(dir)
		}
	}
}

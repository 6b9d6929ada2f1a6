// Package pgtest gives each test a Postgres database of its own: one private
// server per test process, and one database per test, cloned from a migrated
// template. A machine without Postgres fails the test; nothing is skipped.
//
// Two variables change where the server comes from. TALLYSTICK_TEST_DATABASE_URL
// (a postgres:// URL of a role that may create databases and roles) uses a
// server that runs already, where a failed test's database can be looked at
// afterwards. TALLYSTICK_TEST_PG_BIN names the directory of the server binaries.
package pgtest

import (
	"context"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

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
	from, err := template()
	if err != nil {
		t.Fatal(err)
	}
	return fresh(t, from)
}

// Empty is like DSN without a schema.
func Empty(t testing.TB) string {
	t.Helper()
	return fresh(t, "template0")
}

func fresh(t testing.TB, from string) string {
	t.Helper()
	s := shared()
	if s.err != nil {
		t.Fatalf("tests need Postgres: %v", s.err)
	}
	name, err := s.clone(context.Background(), from)
	if err != nil {
		t.Fatal(err)
	}
	dsn := s.dsn(name)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the database of this test: %s (%s)", dsn, s.life)
			return
		}
		if err := s.drop(context.Background(), name); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return dsn
}

package pgtest_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgdev"
	"tallystick/internal/pg/pgtest"
)

// role makes a test play its second part, in a process of its own.
const role = "TALLYSTICK_PGTEST_ROLE"

// again runs one test in another process, with these variables and without those
// that say where the server is, and returns what it printed.
func again(t *testing.T, test string, env ...string) (string, error) {
	t.Helper()
	out, err := command(t, test, env...).CombinedOutput()
	return string(out), err
}

func command(t *testing.T, test string, env ...string) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.run=^"+test+"$", "-test.v")
	cmd.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, "TALLYSTICK_TEST_") })
	cmd.Env = append(append(cmd.Env, role+"=second"), env...)
	return cmd
}

func count(t *testing.T, db *pg.DB, query string) int {
	t.Helper()
	var n int
	if err := db.Read(t.Context(), func(tx *sqlx.Tx) error { return tx.GetContext(t.Context(), &n, query) }); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func TestEachTestHasItsOwnMigratedDatabase(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	mine, other := pgtest.Owner(t, dsn), pgtest.New(t)
	pgtest.Exec(t, mine, "CREATE TABLE mine ()")
	if n := count(t, mine, "SELECT count(*) FROM pg_tables WHERE tablename IN ('mine', 'accounts')"); n != 2 {
		t.Errorf("tables mine and accounts in my database: %d, want 2", n)
	}
	if n := count(t, other, "SELECT count(*) FROM pg_tables WHERE tablename IN ('mine', 'accounts')"); n != 1 {
		t.Errorf("tables mine and accounts in another database: %d, want 1", n)
	}
	if pending, err := pg.Pending(t.Context(), dsn); err != nil || pending != 0 {
		t.Errorf("migrations that are missing: %d, %v; want none", pending, err)
	}
	if n := count(t, other, "SELECT count(*) FROM pg_roles WHERE rolname = current_user AND rolname = '"+pg.ServiceRole+"'"); n != 1 {
		t.Errorf("New does not open as %s", pg.ServiceRole)
	}
}

func TestDatabaseIsDroppedWithItsTest(t *testing.T) {
	t.Parallel()
	watcher := pgtest.New(t)
	name := ""
	t.Run("inner", func(t *testing.T) {
		db := pgtest.New(t)
		if err := db.Read(t.Context(), func(tx *sqlx.Tx) error { return tx.GetContext(t.Context(), &name, "SELECT current_database()") }); err != nil {
			t.Fatal(err)
		}
		if n := count(t, watcher, "SELECT count(*) FROM pg_database WHERE datname = '"+name+"'"); n != 1 {
			t.Errorf("during the test: %d databases %s, want 1", n, name)
		}
	})
	if n := count(t, watcher, "SELECT count(*) FROM pg_database WHERE datname = '"+name+"'"); n != 0 {
		t.Errorf("after the test: %d databases %s, want none", n, name)
	}
}

// TestFailureKeepsTheDatabase fails on purpose in its second part, on a server
// that the first part gives.
func TestFailureKeepsTheDatabase(t *testing.T) {
	t.Parallel()
	if os.Getenv(role) != "" {
		pgtest.New(t)
		t.Fatal("on purpose")
	}
	server := pgtest.Server(t)
	for run := range 2 { // the second run finds the template of the first
		out, err := again(t, "TestFailureKeepsTheDatabase", "TALLYSTICK_TEST_DATABASE_URL="+server.DSN("postgres"))
		if err == nil {
			t.Fatalf("the second part passed:\n%s", out)
		}
		kept := regexp.MustCompile(`postgres://\S+`).FindString(out)
		if kept == "" {
			t.Fatalf("run %d: no address of the database in\n%s", run, out)
		}
		if n := count(t, pgtest.Owner(t, kept), "SELECT count(*) FROM accounts"); n != 0 {
			t.Errorf("accounts in %s: %d", kept, n)
		}
	}
	admin := pgtest.Owner(t, server.DSN("postgres"))
	for like, want := range map[string]int{`tallystick\_test\_%`: 2, `tallystick\_template\_%`: 1} {
		if n := count(t, admin, "SELECT count(*) FROM pg_database WHERE datname LIKE '"+like+"'"); n != want {
			t.Errorf("databases like %s: %d, want %d", like, n, want)
		}
	}
}

func TestWithoutPostgresTestsFail(t *testing.T) {
	t.Parallel()
	if os.Getenv(role) != "" {
		pgtest.New(t)
		return
	}
	for _, env := range []string{"TALLYSTICK_TEST_PG_BIN=/nonexistent", "TALLYSTICK_TEST_DATABASE_URL=host=nowhere"} {
		out, err := again(t, "TestWithoutPostgresTestsFail", env)
		if err == nil || !strings.Contains(out, "tests need Postgres: ") || strings.Contains(out, "SKIP") {
			t.Errorf("with %s: %v, want a failure that says why:\n%s", env, err, out)
		}
	}
}

// TestNothingStaysBehind ends and kills a test process, and waits until its
// server and its directory are gone.
func TestNothingStaysBehind(t *testing.T) {
	t.Parallel()
	if os.Getenv(role) != "" {
		var dir string
		err := pgtest.Owner(t, pgtest.DSN(t)).Read(t.Context(), func(tx *sqlx.Tx) error {
			return tx.GetContext(t.Context(), &dir, "SELECT setting FROM pg_settings WHERE name = 'unix_socket_directories'")
		})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("lives in " + filepath.Dir(dir))
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		return
	}
	for _, killed := range []bool{false, true} {
		cmd := command(t, "TestNothingStaysBehind")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		dir := livesIn(t, bufio.NewScanner(out))
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("while the tests run: %v", err)
		}
		if killed {
			_ = cmd.Process.Kill()
		} else {
			_ = in.Close()
		}
		_ = cmd.Wait()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("killed %v: %s is still there", killed, dir)
			}
		}
	}
}

func livesIn(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	for lines.Scan() {
		if dir, ok := strings.CutPrefix(lines.Text(), "lives in "); ok {
			return dir
		}
	}
	t.Fatal("the test process did not say where its server lives")
	return ""
}

func TestServerIsMigratedAndDurable(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	db, err := sql.Open("postgres", server.DSN(pgdev.Database))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var fsync string
	var tables int
	row := db.QueryRowContext(context.WithoutCancel(t.Context()), "SELECT current_setting('fsync'), count(*) FROM pg_tables WHERE tablename = 'accounts'")
	if err := row.Scan(&fsync, &tables); err != nil || fsync != "on" || tables != 1 {
		t.Errorf("fsync %q, tables named accounts %d, %v; want on and 1", fsync, tables, err)
	}
}

// Package pg is the door to Postgres. It opens the pool, runs transactions, and
// tells errors apart by SQLSTATE.
//
// A DB has no method that writes outside a transaction, on purpose: lib/pq
// reports a connection that closed cleanly after the server executed as
// ErrBadConn, and database/sql then runs an autocommit statement a second time
// (lib/pq issue 939). database/sql never repeats anything inside a transaction.
package pg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// ServiceRole is the role that the service runs as. It may not update or delete
// journal rows, which the role that owns the tables could.
const ServiceRole = "tallystick_service"

// attemptsMax bounds how often a transaction is run when Postgres asks for it
// to be repeated (deadlock, serialization failure).
const attemptsMax = 5

// Options bound the pool. Zero values take the defaults.
type Options struct {
	ConnectionsMax   int           // default 16
	StatementTimeout time.Duration // default 15 s, enforced by the server
	LockTimeout      time.Duration // default 5 s, enforced by the server
	TransactionMax   time.Duration // default 20 s, enforced on the socket of a Keyed pool
	ApplicationName  string        // default "tallystick"
	Owner            bool          // keep the role of the DSN instead of ServiceRole: for migrations and tests
	Keyed            bool          // for few short statements that find their rows by a key: kept prepared, never planned as a scan
}

// DB is a pool of connections to one database.
type DB struct {
	pool *sqlx.DB
	dsn  string
}

// Open makes a pool for the database at dsn (a postgres:// URL or lib/pq
// keywords). It connects once to find a mistake early; a database that is away
// is fault.ErrUnavailable, and the pool is returned all the same, because it
// recovers by itself when the database is back.
func Open(ctx context.Context, dsn string, o Options) (*DB, error) {
	full, err := withSettings(dsn, o)
	if err != nil {
		return nil, err
	}
	connector, err := pq.NewConnector(full)
	if err != nil {
		return nil, fmt.Errorf("read the database address: %w", err)
	}
	var from driver.Connector = connector
	if o.Keyed {
		from = newPreparing(connector, o.TransactionMax)
	}
	pool := sqlx.NewDb(sql.OpenDB(from), "postgres")
	connections := o.ConnectionsMax
	if connections == 0 {
		connections = 16
	}
	pool.SetMaxOpenConns(connections)
	pool.SetMaxIdleConns(connections)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	db := &DB{pool: pool, dsn: dsn}
	return db, db.Ping(ctx)
}

// withSettings adds what every connection of ours needs. The settings travel in
// the start-up packet, so that no statement has to be sent to make them hold.
func withSettings(dsn string, o Options) (string, error) {
	settings := map[string]string{
		"timezone":                            "UTC",
		"default_transaction_isolation":       "read committed",
		"statement_timeout":                   millis(o.StatementTimeout, 15*time.Second),
		"lock_timeout":                        millis(o.LockTimeout, 5*time.Second),
		"idle_in_transaction_session_timeout": millis(0, 60*time.Second),
		"application_name":                    "tallystick",
		"connect_timeout":                     "5",
		"binary_parameters":                   "yes",
	}
	if o.ApplicationName != "" {
		settings["application_name"] = o.ApplicationName
	}
	if !o.Owner {
		settings["role"] = ServiceRole
	}
	if o.Keyed {
		// A prepared plan outlives the small table that it was made for, and a scan
		// that was cheap then would be ruinous later: only loops over an index stay good.
		for _, method := range []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin"} {
			settings[method] = "off"
		}
		// Arrays of few elements look cheaper to Postgres than the generic plan's guess
		// of ten, so that it would plan each use anew, which costs more than the use.
		settings["plan_cache_mode"] = "force_generic_plan"
	}
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		keywords := dsn
		for name, value := range settings {
			keywords += fmt.Sprintf(" %s='%s'", name, value)
		}
		return keywords, nil
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return "", errors.New("the database address is no valid postgres:// URL") // the cause would repeat the password
	}
	query := u.Query()
	for name, value := range settings {
		query.Set(name, value)
	}
	u.RawQuery = query.Encode()
	return u.String(), nil
}

func millis(d, fallback time.Duration) string {
	if d == 0 {
		d = fallback
	}
	return fmt.Sprint(d.Milliseconds())
}

// DSN is the address that the pool was opened with, without our settings. It
// holds a password in production: never log it.
func (db *DB) DSN() string { return db.dsn }

// Close ends the pool after the statements under way. That a connection was lost
// before it could say goodbye, as when Postgres has ended first, is no error.
func (db *DB) Close() error {
	if err := db.pool.Close(); !isAway(err) {
		return err
	}
	return nil
}

// Stats is the pool's state, for metrics.
func (db *DB) Stats() sql.DBStats { return db.pool.Stats() }

// Ping tells whether the database answers; if not, the error is fault.ErrUnavailable.
func (db *DB) Ping(ctx context.Context) error {
	return db.Read(ctx, func(tx *sqlx.Tx) error {
		var one int
		return tx.GetContext(ctx, &one, "SELECT 1")
	})
}

// InTx runs fn in a READ COMMITTED transaction and commits it. When Postgres
// asks for a repeat (deadlock, serialization failure) fn runs again, a bounded
// number of times: it must not call anything foreign. An error of fn rolls
// back and is returned; a lost connection is fault.ErrUnavailable.
//
// A commit that fails is fault.ErrUnavailable too, and its outcome is unknown:
// only the row whose key was written in the same transaction can tell.
func (db *DB) InTx(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := db.once(ctx, nil, fn)
		if err == nil || !repeatable(err) || attempt == attemptsMax {
			return away(err)
		}
		if err := jitter(ctx, attempt); err != nil {
			return away(err)
		}
	}
}

// InStatement runs one statement, which answers one value, as a transaction: on a
// Keyed pool Postgres begins and commits it by itself, and nothing travels but the
// statement; elsewhere it is InTx. database/sql believes in a transaction all the
// same, so that it does not run the statement again when the connection is lost.
//
// Without an error the statement is committed. fault.ErrUnavailable is an unknown
// outcome, as of a commit; any other error means that nothing was done.
func (db *DB) InStatement(ctx context.Context, dest any, query string, args ...any) error {
	return db.InTx(context.WithValue(ctx, oneStatement{}, true), func(tx *sqlx.Tx) error {
		rows, err := tx.QueryxContext(ctx, query, args...)
		if err != nil {
			return err
		}
		if rows.Next() {
			err = rows.Scan(dest)
		} else if err = rows.Err(); err == nil {
			err = sql.ErrNoRows
		}
		return errors.Join(err, rows.Close()) //nolint:sqlclosecheck // its error counts: the statement is committed when its answer has been read to the end
	})
}

// Read runs fn in a read-only transaction on one snapshot.
func (db *DB) Read(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	return away(db.once(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}, fn))
}

// Hold keeps a table as it is until the transaction ends: nobody alters it, or
// lets go of a partition. It comes first in a Read, before the snapshot is taken:
// a partition that was let go of is gone for older snapshots, too, which do not
// see what was written in its place.
func Hold(ctx context.Context, tx *sqlx.Tx, table string) error {
	if _, err := tx.ExecContext(ctx, "LOCK TABLE "+pq.QuoteIdentifier(table)+" IN ACCESS SHARE MODE"); err != nil {
		return fmt.Errorf("hold the table %s: %w", table, err)
	}
	return nil
}

func (db *DB) once(ctx context.Context, o *sql.TxOptions, fn func(tx *sqlx.Tx) error) error {
	tx, err := db.pool.BeginTxx(ctx, o)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit this is a no-op; before it, the error is fn's
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit, outcome unknown: %w", err)
	}
	return nil
}

// jitter waits a few milliseconds, more after each attempt, so that the
// transactions that collided do not collide again.
func jitter(ctx context.Context, attempt int) error {
	wait := time.Duration(1+rand.IntN(10*attempt)) * time.Millisecond //nolint:gosec // a wait needs no secret randomness
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

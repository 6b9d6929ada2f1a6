package pg

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"time"

	"github.com/lib/pq"

	"tallystick/internal/clock"
)

// statementsMax bounds the statements that one connection keeps prepared.
const statementsMax = 64

// transactionMax bounds a transaction on a preparing connection, however the
// network fails, unless the options say otherwise.
const transactionMax = 20 * time.Second

// closeMax bounds the last message on a connection.
const (
	closeMax = 5 * time.Second
	// planMax is how long a plan is kept. One that was made for an empty table may be
	// to read all of it, and Postgres would not make another before the table has
	// been analyzed.
	planMax = 5 * time.Second
)

// preparing is a connector whose connections keep what they run prepared, so
// that Postgres reads and plans each statement once for a connection and not
// once for each use. That is most of what a short statement costs.
//
// They bound a transaction by a deadline of the socket. A context that can end
// would cost a goroutine for each statement, at both lib/pq and database/sql.
type preparing struct {
	*pq.Connector
	bound time.Duration // of a transaction
}

func newPreparing(c *pq.Connector, bound time.Duration) preparing {
	if bound == 0 {
		bound = transactionMax
	}
	c.Dialer(dialer{})
	return preparing{Connector: c, bound: bound}
}

// Connect makes a connection that prepares.
func (p preparing) Connect(ctx context.Context) (driver.Conn, error) {
	var socket net.Conn
	c, err := p.Connector.Connect(context.WithValue(ctx, socketKey{}, &socket))
	if err != nil {
		return nil, err
	}
	bare, ok := c.(bareConn)
	if !ok || socket == nil {
		return c, nil
	}
	return &preparingConn{bareConn: bare, socket: socket, bound: p.bound, statements: map[string]driver.Stmt{}, planned: clock.Tick()}, nil
}

// socketKey is where a dialer leaves the socket that it opened.
type socketKey struct{}

// dialer is lib/pq's own, but for showing the socket.
type dialer struct{ net.Dialer }

// Dial opens a socket.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address) //nolint:forbidigo // lib/pq asks so where it has no context
}

// DialTimeout opens a socket within a time.
func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	d.Timeout = timeout
	return d.Dial(network, address)
}

// DialContext opens a socket and leaves it in the context.
func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := d.Dialer.DialContext(ctx, network, address)
	if socket, ok := ctx.Value(socketKey{}).(*net.Conn); ok && err == nil {
		*socket = c
	}
	return c, err
}

// bareConn is what a connection of lib/pq can do.
type bareConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

// preparingConn is used by one goroutine at a time, as database/sql promises.
type preparingConn struct {
	bareConn
	socket     net.Conn
	bound      time.Duration
	statements map[string]driver.Stmt
	planned    clock.Instant // the oldest plan is not older
	lone       loneState
}

// oneStatement marks the context of a transaction that is one statement.
type oneStatement struct{}

// loneState tells how far a transaction of one statement is.
type loneState int

const (
	loneNot  loneState = iota // an ordinary transaction, or none
	loneOpen                  // its statement may come
	loneDone                  // it has come
)

var errSecond = errors.New("a transaction of one statement has had its statement")

// lone is a transaction of one statement. Postgres has committed it when the
// statement was answered, and rolled it back when it was refused.
type lone struct{ c *preparingConn }

// Commit has nothing left to do.
func (t lone) Commit() error {
	t.c.lone = loneNot
	return nil
}

// Rollback has nothing left to do.
func (t lone) Rollback() error { return t.Commit() }

// spend lets a transaction of one statement have one.
func (c *preparingConn) spend() error {
	switch c.lone {
	case loneOpen:
		c.lone = loneDone
	case loneDone:
		return errSecond
	case loneNot:
	}
	return nil
}

// BeginTx begins a transaction, which has to end within the bound.
func (c *preparingConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	if err := c.socket.SetDeadline(clock.Now().Add(c.bound)); err != nil {
		return nil, driver.ErrBadConn // the socket is closed; nothing was sent
	}
	if clock.Since(c.planned) > planMax {
		if _, err := c.bareConn.ExecContext(ctx, "DISCARD PLANS", nil); err != nil {
			return nil, err
		}
		c.planned = clock.Tick()
	}
	if ctx.Value(oneStatement{}) != nil {
		c.lone = loneOpen
		return lone{c}, nil
	}
	return c.bareConn.BeginTx(ctx, o)
}

// Close says goodbye to Postgres, whatever deadline the last transaction had: it
// may be long past.
func (c *preparingConn) Close() error {
	_ = c.socket.SetDeadline(clock.Now().Add(closeMax)) // a socket that is closed says so when it is closed again
	return c.bareConn.Close()
}

// statement gives the prepared statement of a text; nil for one that is run as
// it is: without arguments, or beyond the bound.
func (c *preparingConn) statement(ctx context.Context, query string, args []driver.NamedValue) (driver.Stmt, error) {
	if s, ok := c.statements[query]; ok || len(args) == 0 || len(c.statements) == statementsMax {
		return s, nil
	}
	s, err := c.PrepareContext(ctx, query)
	if err == nil {
		c.statements[query] = s
	}
	return s, err
}

// checked lets go of a statement whose plan the schema has left behind: it is
// prepared anew when the transaction is tried again.
func (c *preparingConn) checked(query string, err error) error {
	if IsCode(err, CodeFeatureNotSupported) {
		delete(c.statements, query)
	}
	return err
}

// QueryContext runs a query, prepared.
func (c *preparingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.spend(); err != nil {
		return nil, err
	}
	s, err := c.statement(ctx, query, args)
	if err != nil {
		return nil, err
	}
	if q, ok := s.(driver.StmtQueryContext); ok {
		rows, err := q.QueryContext(ctx, args)
		return rows, c.checked(query, err)
	}
	return c.bareConn.QueryContext(ctx, query, args)
}

// ExecContext runs a statement, prepared.
func (c *preparingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.spend(); err != nil {
		return nil, err
	}
	s, err := c.statement(ctx, query, args)
	if err != nil {
		return nil, err
	}
	if e, ok := s.(driver.StmtExecContext); ok {
		result, err := e.ExecContext(ctx, args)
		return result, c.checked(query, err)
	}
	return c.bareConn.ExecContext(ctx, query, args)
}

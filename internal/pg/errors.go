package pg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"

	"github.com/lib/pq"

	"tallystick/internal/fault"
)

// SQLSTATEs that the code branches on.
const (
	CodeUniqueViolation      = "23505"
	CodeCheckViolation       = "23514"
	CodeForeignKeyViolation  = "23503"
	CodeSerializationFailure = "40001"
	CodeDeadlock             = "40P01"
	CodeReadOnly             = "25006"
	CodeQueryCanceled        = "57014"
	CodeLockNotAvailable     = "55P03"
	CodeUndefinedTable       = "42P01"
	CodePrivilege            = "42501"
	CodeFeatureNotSupported  = "0A000" // also: a prepared query would give other columns now
)

// IsCode tells whether err is a Postgres error of one of these SQLSTATEs.
func IsCode(err error, codes ...string) bool {
	var e *pq.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, code := range codes {
		if string(e.Code) == code {
			return true
		}
	}
	return false
}

func repeatable(err error) bool {
	return IsCode(err, CodeSerializationFailure, CodeDeadlock)
}

// away turns an error that says "the database did not answer" into
// fault.ErrUnavailable with the cause kept, and leaves every other as it is.
func away(err error) error {
	if err == nil || errors.Is(err, fault.ErrUnavailable) || !isAway(err) {
		return err
	}
	return fault.ErrUnavailable.With(err)
}

func isAway(err error) bool {
	var e *pq.Error
	if errors.As(err, &e) {
		switch e.Code.Class() {
		case "08", "53", "57", "58": // connection, resources, operator intervention, system
			return true
		}
		return repeatable(err) || IsCode(err, CodeReadOnly, CodeLockNotAvailable)
	}
	var network net.Error
	return errors.As(err, &network) ||
		errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, sql.ErrConnDone) ||
		errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, context.Canceled) ||
		errors.Is(err, net.ErrClosed)
}

package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"tallystick/api"
)

// Error is a refusal by the server: nothing was changed. Code is stable, branch on
// it, or on the sentinels below with errors.Is.
type Error struct {
	Status    int                `json:"status"`
	Code      string             `json:"code"` // "" where what answered was not tallystick
	Detail    string             `json:"detail"`
	RequestID string             `json:"request_id"`
	Errors    []api.ProblemField `json:"errors"`

	// Of insufficient_credits.
	Available          api.Decimal `json:"available"`
	Held               api.Decimal `json:"held"`
	HeldByReservations bool        `json:"held_by_reservations"` // only holds stand in the way

	State string `json:"state"` // of reservation_closed

	retryAfter time.Duration
}

// Refusals to be told apart with errors.Is.
var (
	ErrInsufficientCredits = &Error{Code: "insufficient_credits"}
	ErrIdempotencyConflict = &Error{Code: "idempotency_conflict"}
	ErrReservationClosed   = &Error{Code: "reservation_closed"}
	ErrReservationInDoubt  = &Error{Code: "reservation_in_doubt"}
	ErrAccountNotFound     = &Error{Code: "account_not_found"}
	ErrMeterNotFound       = &Error{Code: "meter_not_found"}
	ErrNotFound            = &Error{Code: "reservation_not_found"}
	ErrUnauthorized        = &Error{Code: "unauthorized"}
	ErrForbidden           = &Error{Code: "forbidden"}
	ErrInvalid             = &Error{Code: "invalid_value"}
	ErrStale               = &Error{Code: "precondition_failed"} // somebody changed it since it was read
)

// Error says what went wrong and what to do next.
func (e *Error) Error() string {
	text := e.Detail
	for _, f := range e.Errors {
		text += fmt.Sprintf("; %s %s", f.Pointer, f.Message)
	}
	return fmt.Sprintf("tallystick: %s (%s, status %d, request %s)", text, e.Code, e.Status, e.RequestID)
}

// Is matches by Code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && e.Code != ""
}

// Temporary tells whether the same request may succeed later: the server asked to
// wait, has trouble of its own, or something between it and us answered.
func (e *Error) Temporary() bool {
	return e.Status >= http.StatusInternalServerError || e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout
}

// definite tells whether the server has refused what was said, for good. A key that
// is refused says nothing about the usage, and a proxy's 404 is not the server's.
func (e *Error) definite() bool {
	return e.Code != "" && !e.Temporary() && e.Status >= http.StatusBadRequest &&
		e.Status != http.StatusUnauthorized && e.Status != http.StatusForbidden
}

// problem makes an Error of an answer that is none of success.
func problem(status int, raw []byte) *Error {
	e := &Error{}
	if json.Unmarshal(raw, e) != nil || e.Code == "" {
		e = &Error{Detail: fmt.Sprintf("%d was answered by something that is not tallystick; is the address right?", status)}
	}
	e.Status = status
	return e
}

// ErrUnavailable says that tallystick could not be reached, or not in time. The
// outcome of a write is unknown: the same call with the same id finds out.
var ErrUnavailable = errors.New("tallystick is not available")

// unavailable is ErrUnavailable with what was seen last.
type unavailable struct{ cause error }

func (e *unavailable) Error() string   { return ErrUnavailable.Error() + ": " + e.cause.Error() }
func (e *unavailable) Unwrap() []error { return []error{ErrUnavailable, e.cause} }

// Errors of calls that are metered.
var (
	// ErrNoActual is for a call that succeeded and did not say what it used: it is in doubt.
	ErrNoActual = errors.New("the call succeeded and did not say what it used; its reservation is in doubt")
	// ErrCut is the cause of the doubt about a stream that was closed before its end.
	ErrCut = errors.New("the stream was closed before its end")
	// ErrSpoolFull refuses to make a call that could not be accounted for.
	ErrSpoolFull = errors.New("the spool is full")
)

// UnsettledError says that a call has been made and that tallystick does not know how
// it ended: it was away (ErrUnavailable), or it refused the ending (an *Error). Unless
// somebody settles it, the hold runs out. Body can be sent again as it is.
type UnsettledError struct {
	ID      string // of the reservation
	Account string
	Ending  string          // capture, release, doubt or usage
	Body    json.RawMessage // what was to be sent
	Err     error
}

// Error names the ending that did not get through.
func (e *UnsettledError) Error() string {
	return fmt.Sprintf("the %s for %s of %s is not booked: %v", e.Ending, e.ID, e.Account, e.Err)
}

// Unwrap gives why.
func (e *UnsettledError) Unwrap() error { return e.Err }

// ResultError is the refusal of one item of a batch, nil for one that is recorded.
func ResultError(r api.UsageResult) error {
	if r.Result != "refused" {
		return nil
	}
	var named struct {
		Status int `json:"status"`
	}
	_ = json.Unmarshal(r.Problem, &named) // what is no problem document has no status, and no code
	return problem(named.Status, r.Problem)
}

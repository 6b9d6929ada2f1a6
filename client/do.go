package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"tallystick/api"
	"tallystick/internal/credit"
)

// Reservation is what Do holds before the work: exactly one of Quantity and Credits.
type Reservation struct {
	// ID makes the call one call, however often it is tried: of all that reserve with
	// it, one is charged. "" makes one. A call with the id of one that has ended is
	// refused with ErrReservationClosed before the work is done.
	ID         string
	Account    string
	Meter      string
	Quantity   api.Decimal // of the meter's unit
	Credits    api.Decimal
	Dimensions map[string]string
	TTL        time.Duration // a minute by default, at most a day; extended while the work is done
}

// Actual is what the work has used: exactly one of Quantity and Credits, of which zero
// means that nothing was used. Dimensions left out are those of the reservation. Also
// is usage of other meters by the same work, recorded after the capture; ids and
// account that are left out come from the reservation.
type Actual struct {
	Quantity   api.Decimal
	Credits    api.Decimal
	Dimensions map[string]string
	Also       []api.UsageRequest
}

// State is how a metered call has ended.
type State string

// The states of an Outcome.
const (
	StateCaptured State = "captured"  // charged
	StateReleased State = "released"  // not charged
	StateInDoubt  State = "in_doubt"  // the hold stays until somebody decides
	StateSpooled  State = "spooled"   // the ending is on disk and will be sent
	StateUnknown  State = "unsettled" // the ending did not get through; see the error
)

// Outcome is how a metered call has ended.
type Outcome struct {
	ID    string // of the reservation
	State State
	Usage *api.Usage        // of StateCaptured
	Also  []api.UsageResult // of Actual.Also, in its order
}

// marked is an error about which the work itself says how it ended.
type marked struct {
	error
	used string
}

func (m *marked) Unwrap() error { return m.error }

const (
	usedNot     = "nothing"
	usedUnknown = "unknown"
)

// NotUsed marks an error after which nothing can have been used, whatever it looks
// like: the reservation is released.
func NotUsed(err error) error { return &marked{err, usedNot} }

// Unknown marks an error after which the work may or may not have been done: the
// reservation is in doubt.
func Unknown(err error) error { return &marked{err, usedUnknown} }

// Do reserves, calls work, and settles: what work says it has used is captured, with
// the error beside it passed on. Without a usage the error decides:
//
//   - in doubt after Unknown(err), an end of a context, a timeout, a connection that
//     broke, and a panic: the model may have done the work;
//   - released after NotUsed(err), a connection that was never made, and any other
//     error: it was refused.
//
// A timeout beside a usage is in doubt, too: the usage is that of a part. The
// reservation is extended while work runs. The settlement does not end with ctx, and
// is bounded by the client's patience.
//
// The error is the reservation's refusal (ErrInsufficientCredits, ErrUnavailable …;
// work was not called), or work's own, joined with an *UnsettledError where the
// settlement did not get through.
func (c *Client) Do(ctx context.Context, r Reservation, work func(ctx context.Context) (Actual, error)) (Outcome, error) {
	h, err := c.hold(ctx, r)
	if err != nil {
		return Outcome{}, err
	}
	returned := false
	defer func() { // also where work ends its goroutine, which no recover sees
		if !returned {
			if _, err := h.doubt(ctx, "the work ended by a panic"); err != nil {
				c.trouble(err)
			}
		}
	}()
	actual, workErr := work(ctx)
	returned = true
	out, err := h.settle(ctx, actual, workErr)
	if err == nil {
		return out, workErr // as it is: callers compare
	}
	return out, errors.Join(workErr, err)
}

// settle ends the hold as what work has said demands. Its error is that of the
// settlement alone.
func (h *hold) settle(ctx context.Context, actual Actual, workErr error) (Outcome, error) {
	used := usage(actual)
	switch {
	case workErr != nil && isUnknown(workErr):
		return h.doubt(ctx, reasonOf(actual, workErr))
	case workErr != nil && used == usedUnknown:
		return h.release(ctx)
	case used == usedUnknown:
		out, err := h.doubt(ctx, ErrNoActual.Error())
		return out, errors.Join(ErrNoActual, err)
	case used == usedNot && len(actual.Also) == 0:
		return h.release(ctx)
	}
	return h.capture(ctx, actual)
}

// usage tells whether an actual says that something was used, that nothing was, or
// does not say it. What is no number is for the server to refuse.
func usage(a Actual) string {
	text := a.Quantity + a.Credits
	if text == "" {
		if len(a.Also) > 0 {
			return usedNot
		}
		return usedUnknown
	}
	if n, err := credit.ParseAmount(string(text)); err == nil && n == 0 {
		return usedNot
	}
	return "something"
}

// isUnknown tells whether the work may have been done in spite of its error.
func isUnknown(err error) bool {
	var m *marked
	if errors.As(err, &m) {
		return m.used == usedUnknown
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return false // nothing was sent
	}
	var timeout interface{ Timeout() bool }
	var broken *net.OpError
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &broken) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrCut) ||
		(errors.As(err, &timeout) && timeout.Timeout())
}

// reasonMax is the longest reason of a doubt, in bytes.
const reasonMax = 1000

func reasonOf(actual Actual, err error) string {
	reason := err.Error()
	if used := actual.Quantity + actual.Credits; used != "" {
		reason = fmt.Sprintf("%s; %s counted until then", reason, used)
	}
	return cut(reason)
}

// cut makes any text a reason.
func cut(reason string) string {
	reason = strings.ReplaceAll(strings.ToValidUTF8(reason, "?"), "\x00", "?")
	if len(reason) > reasonMax {
		reason = strings.ToValidUTF8(reason[:reasonMax], "")
	}
	if reason == "" {
		reason = "no reason was given"
	}
	return reason
}

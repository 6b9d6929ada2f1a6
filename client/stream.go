package client

import (
	"context"
	"fmt"
	"sync"
)

// Stream is a reservation that stays open while an answer comes piece by piece. It is
// extended until End or Close. It is safe for concurrent use.
type Stream struct {
	h   *hold
	ctx context.Context // for the values in it: the settlement outlives its end

	mu      sync.Mutex
	counted int64
	actual  *Actual
	ended   bool
	out     Outcome
	err     error
}

// Stream reserves for an answer that comes as a stream:
//
//	s, err := c.Stream(ctx, reservation)
//	…
//	defer s.Close() // in doubt, if it was cut
//	for piece := range pieces { s.Count(1) … }
//	s.Used(client.Actual{Quantity: …}) // where the model says it itself
//	_, err = s.End(nil)
func (c *Client) Stream(ctx context.Context, r Reservation) (*Stream, error) {
	h, err := c.hold(ctx, r)
	if err != nil {
		return nil, err
	}
	return &Stream{h: h, ctx: ctx}, nil
}

// Count adds to what was counted so far: tokens, pieces, whatever the meter's unit is.
func (s *Stream) Count(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counted += n
}

// Used says what was used as the model itself has it; it goes before what was counted,
// and settles a stream that is cut afterwards.
func (s *Stream) Used(a Actual) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.actual = &a
}

// End settles. A stream that came to its end (nil) is charged as Used says, else as it
// was counted. One that ended with an error is charged as Used says; without that it
// is settled as Do settles an error, and in doubt once something was counted. The
// error is that of the settlement alone. A second End gives the first's outcome again.
func (s *Stream) End(streamErr error) (Outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return s.out, s.err
	}
	s.ended = true
	switch counted := (Actual{Quantity: Int(s.counted)}); {
	case s.actual != nil:
		s.out, s.err = s.h.settle(s.ctx, *s.actual, nil)
	case streamErr == nil:
		s.out, s.err = s.h.settle(s.ctx, counted, nil)
	case s.counted > 0:
		s.out, s.err = s.h.settle(s.ctx, counted, Unknown(streamErr))
	default:
		s.out, s.err = s.h.settle(s.ctx, Actual{}, streamErr)
	}
	return s.out, s.err
}

// Close ends a stream that was not ended: it was cut (ErrCut), and is in doubt unless
// Used has said what it took. Its error is that of the settlement.
func (s *Stream) Close() error {
	s.mu.Lock()
	ended := s.ended
	s.mu.Unlock()
	if ended {
		return nil
	}
	out, err := s.End(ErrCut)
	if out.State == StateUnknown {
		return fmt.Errorf("close the stream: %w", err)
	}
	return nil
}

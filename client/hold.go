package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"tallystick/api"
)

const ttlDefault = time.Minute

// hold is a reservation while the work for it is done. It is settled once, by one
// goroutine.
type hold struct {
	c         *Client
	ask       api.ReservationRequest
	ttl       time.Duration
	confirmed bool  // false: tallystick was away, and the work is done all the same
	room      int64 // kept free for the ending in the spool

	stopBeat func()
}

// hold reserves. With a spool, it succeeds while tallystick is away, too, as long as
// there is room for the ending.
func (c *Client) hold(ctx context.Context, r Reservation) (*hold, error) {
	h := &hold{c: c, ttl: r.TTL, stopBeat: func() {}}
	if h.ttl <= 0 {
		h.ttl = ttlDefault
	}
	h.ask = api.ReservationRequest{ID: r.ID, Account: r.Account, Meter: r.Meter, Dimensions: r.Dimensions, TTLSeconds: seconds(h.ttl)}
	if h.ask.ID == "" {
		h.ask.ID = NewID()
	}
	h.ask.Quantity, h.ask.Credits = said1(r.Quantity), said1(r.Credits)
	q := request{method: http.MethodPost, path: pathReservations, body: h.ask, patience: c.patience}
	if c.spool != nil {
		q.patience = min(c.patience, openPatienceMax)
	}
	replayed, err := c.send(ctx, q)
	if err == nil && replayed {
		// The answer is the first one again: whether the reservation still stands, an
		// extension tells, which needs no other scope.
		q.path, q.body = h.path("extend"), api.ExtendRequest{TTLSeconds: h.ask.TTLSeconds}
		_, err = c.send(ctx, q)
	}
	switch {
	case err == nil:
		h.confirmed = true
		h.beat(ctx)
		return h, nil
	case !c.spoolable(err), ctx.Err() != nil:
		return nil, err
	}
	if h.room, err = c.spool.promise(err); err != nil {
		return nil, err
	}
	return h, nil
}

// spoolable tells whether what met this error may go to the spool.
func (c *Client) spoolable(err error) bool { return c.spool != nil && errors.Is(err, ErrUnavailable) }

func said1(d api.Decimal) *api.Decimal {
	if d == "" {
		return nil
	}
	return &d
}

func (h *hold) path(verb string) string { return reservationPath(h.ask.Account, h.ask.ID, verb) }

// beatsPerTTL is how often a reservation is extended within its time, so that two
// beats may be lost.
const beatsPerTTL = 3

// beat extends the reservation until stopBeat, which waits for the last one.
func (h *hold) beat(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // work may go on after its context has ended
	var done sync.WaitGroup
	every := time.Duration(h.ask.TTLSeconds) * time.Second / beatsPerTTL
	done.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			_, err := h.c.send(ctx, request{method: http.MethodPost, path: h.path("extend"), body: api.ExtendRequest{TTLSeconds: h.ask.TTLSeconds}, patience: every})
			var refusal *Error
			if errors.As(err, &refusal) && refusal.definite() {
				return // it has ended, and the capture is booked all the same
			}
		}
	})
	h.stopBeat = func() { cancel(); done.Wait() }
}

// outcome of a hold that has got to a state.
func (h *hold) outcome(state State) Outcome { return Outcome{ID: h.ask.ID, State: state} }

// end sends an ending. The caller's context may have ended already, often it is why.
func (h *hold) end(ctx context.Context, verb string, body, answer any) (spooled bool, err error) {
	h.stopBeat()
	e := entry{ID: h.ask.ID, Account: h.ask.Account, Ending: verb, Path: h.path(verb)}
	if e.Body, err = json.Marshal(body); err != nil {
		return false, fmt.Errorf("encode the %s: %w", verb, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.c.patience)
	defer cancel()
	_, err = h.c.send(ctx, request{method: http.MethodPost, path: e.Path, body: e.Body, answer: answer})
	return h.c.settled(e, err)
}

// settled makes of the error of an ending what its caller learns: one that did not
// get through goes to the spool, where there is one, and a refused one to its dead
// letters, so that no usage vanishes.
func (c *Client) settled(e entry, err error) (spooled bool, _ error) {
	var refusal *Error
	errors.As(err, &refusal)
	switch {
	case err == nil:
		return false, nil
	case c.spoolable(err), c.spool != nil && refusal != nil && !refusal.definite():
		if err = c.spool.put(e, err); err == nil {
			return true, nil
		}
	case c.spool != nil && refusal != nil:
		if deadErr := c.spool.bury(e, refusal, c.now()); deadErr != nil {
			err = errors.Join(err, deadErr)
		}
	}
	return false, &UnsettledError{ID: e.ID, Account: e.Account, Ending: e.Ending, Body: e.Body, Err: err}
}

// done turns what an ending met into an outcome.
func (h *hold) done(state State, spooled bool, err error) (Outcome, error) {
	switch {
	case err != nil:
		return h.outcome(StateUnknown), err
	case spooled:
		return h.outcome(StateSpooled), nil
	}
	return h.outcome(state), nil
}

func (h *hold) release(ctx context.Context) (Outcome, error) {
	if !h.confirmed {
		h.c.spool.forget(h.room) // if it was made after all, it expires
		return h.outcome(StateReleased), nil
	}
	spooled, err := h.end(ctx, "release", api.ReleaseRequest{}, nil)
	return h.done(StateReleased, spooled, err)
}

func (h *hold) doubt(ctx context.Context, reason string) (Outcome, error) {
	if !h.confirmed {
		// Nothing is held for the doubt to keep. Somebody has to look at it.
		h.c.spool.forget(h.room)
		body, err := json.Marshal(api.DoubtRequest{Reason: cut(reason)})
		if err == nil {
			e := entry{ID: h.ask.ID, Account: h.ask.Account, Ending: "doubt", Path: h.path("doubt"), Body: body}
			err = h.c.spool.bury(e, &Error{Detail: "the call was made while tallystick was away, and its outcome is unknown: " + cut(reason)}, h.c.now())
		}
		return h.outcome(StateUnknown), err
	}
	spooled, err := h.end(ctx, "doubt", api.DoubtRequest{Reason: cut(reason)}, nil)
	return h.done(StateInDoubt, spooled, err)
}

// capture ends the hold with what was used, and then records the usage of other
// meters: what came back of the hold is there for it.
func (h *hold) capture(ctx context.Context, a Actual) (Outcome, error) {
	var out Outcome
	var err error
	switch {
	case usage(a) == usedNot:
		out, err = h.release(ctx)
	case !h.confirmed:
		out, err = h.spoolUsage(a)
	default:
		q := api.CaptureRequest{Quantity: said1(a.Quantity), Credits: said1(a.Credits), Dimensions: a.Dimensions}
		if h.c.spool != nil {
			at := h.c.now().UTC()
			q.OccurredAt = &at // it may be sent much later
		}
		var u api.Usage
		var spooled bool
		spooled, err = h.end(ctx, "capture", q, &u)
		out, err = h.done(StateCaptured, spooled, err)
		if out.State == StateCaptured {
			out.Usage = &u
		}
	}
	if len(a.Also) > 0 {
		var alsoErr error
		out.Also, alsoErr = h.c.recordAlso(ctx, h.also(a))
		err = errors.Join(err, alsoErr)
	}
	return out, err
}

// spoolUsage writes down what was used without a reservation that is known to stand.
// Should it stand after all, the replay lets it go first; or, for an actual in
// credits, which no usage can say, makes it first.
func (h *hold) spoolUsage(a Actual) (Outcome, error) {
	at := h.c.now().UTC()
	e := entry{ID: h.ask.ID, Account: h.ask.Account, Ending: "usage", Path: pathUsage, First: h.path("release")}
	var body any = api.UsageRequest{ID: h.ask.ID, Account: h.ask.Account, Meter: h.ask.Meter, Quantity: a.Quantity, OccurredAt: &at, Dimensions: h.dimensions(a)}
	if a.Credits != "" {
		first, err := json.Marshal(h.ask)
		if err != nil {
			return h.outcome(StateUnknown), fmt.Errorf("encode the reservation: %w", err)
		}
		e.Ending, e.Path, e.First, e.FirstBody = "capture", h.path("capture"), pathReservations, first
		body = api.CaptureRequest{Credits: &a.Credits, OccurredAt: &at, Dimensions: a.Dimensions}
	}
	encoded, err := json.Marshal(body)
	if err != nil {
		return h.outcome(StateUnknown), fmt.Errorf("encode the usage: %w", err)
	}
	e.Body = encoded
	h.c.spool.forget(h.room)
	if err := h.c.spool.put(e, ErrUnavailable); err != nil {
		return h.outcome(StateUnknown), &UnsettledError{ID: e.ID, Account: e.Account, Ending: e.Ending, Body: e.Body, Err: err}
	}
	return h.outcome(StateSpooled), nil
}

func (h *hold) dimensions(a Actual) map[string]string {
	if a.Dimensions != nil {
		return a.Dimensions
	}
	return h.ask.Dimensions
}

// also completes the usage of other meters.
func (h *hold) also(a Actual) []api.UsageRequest {
	usages := make([]api.UsageRequest, len(a.Also))
	for i, u := range a.Also {
		if u.Account == "" {
			u.Account = h.ask.Account
		}
		if u.ID == "" {
			u.ID = h.ask.ID + ":" + u.Meter
		}
		if u.Dimensions == nil {
			u.Dimensions = h.dimensions(a)
		}
		usages[i] = u
	}
	return usages
}

// recordAlso records usage that has happened. None of it is lost: what cannot be sent
// goes to the spool, what is refused to its dead letters, or both into the error.
func (c *Client) recordAlso(ctx context.Context, usages []api.UsageRequest) ([]api.UsageResult, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.patience)
	defer cancel()
	results, sendErr := c.recordBatch(ctx, usages)
	var errs []error
	for i, u := range usages {
		err := ResultError(results[i])
		if results[i].Result == "" {
			err = sendErr
		}
		if err == nil {
			continue
		}
		spooled, err := c.settled(usageEntry(u), err)
		if err != nil {
			errs = append(errs, err)
		}
		if spooled {
			results[i].Result = resultSpooled
		}
	}
	return results, errors.Join(errs...)
}

package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"tallystick/api"
)

// How the spool is sent.
const (
	replayBatch     = 200
	replayWaitFirst = 200 * time.Millisecond
	replayWaitMax   = 30 * time.Second
	kickedWait      = 20 * time.Millisecond
)

// replay sends what is in the spool.
type replay struct {
	c     *Client
	left  map[string][]entry // of segments that were read, what is not settled
	asked time.Duration      // the wait that the server asked for
	last  string             // trouble that was told, so that it is told once
}

// startReplay begins to send the spool, if there is one, until Close.
func (c *Client) startReplay() {
	if c.spool == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // it belongs to the client, which ends it
	c.stop = cancel
	r := &replay{c: c, left: map[string][]entry{}}
	c.done.Go(func() { r.run(ctx) })
}

// run passes over the spool when something was written to it, and after a growing
// wait while something is left.
func (r *replay) run(ctx context.Context) {
	wait := replayWaitFirst
	for {
		settled, err := r.pass(ctx)
		if ctx.Err() != nil {
			return
		}
		r.tell(err)
		if settled {
			wait = replayWaitFirst
		}
		if r.c.spool.Empty() {
			select {
			case <-ctx.Done():
				return
			case <-r.c.spool.wake:
			case <-r.c.spool.kick:
			}
			continue
		}
		if !r.wait(ctx, max(wait, r.asked)) {
			return
		}
		wait = min(2*wait, replayWaitMax)
	}
}

// wait waits, not beyond a Drain's request, and tells whether to go on.
func (r *replay) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-r.c.spool.kick:
		return pause(ctx, kickedWait) == nil // Drain asks again and again
	}
	return true
}

// tell reports trouble that waiting does not cure, once for each kind. That
// tallystick is away is what the spool is for.
func (r *replay) tell(err error) {
	if err == nil {
		r.last = ""
		return
	}
	var refusal *Error
	if errors.As(err, &refusal) && refusal.Code != "" && refusal.Temporary() {
		return
	}
	kind := err.Error()
	if refusal != nil {
		kind = fmt.Sprintf("%d %s", refusal.Status, refusal.Code)
	}
	if errors.Is(err, ErrUnavailable) || kind == r.last {
		return
	}
	r.last = kind
	r.c.trouble(fmt.Errorf("the spool in %s is not sent: %w", r.c.spool.dir, err))
}

// pass goes over all segments once and tells whether anything was settled. It ends
// early when the server is away; one entry that it cannot digest stops nothing else.
func (r *replay) pass(ctx context.Context) (settled bool, err error) {
	r.asked = 0
	segments, err := r.c.spool.waiting()
	if err != nil {
		return false, err
	}
	for _, g := range segments {
		left, known := r.left[g.name]
		if !known {
			if left, err = r.load(g); err != nil {
				return settled, err
			}
		}
		before := len(left)
		left, away, sendErr := r.send(ctx, left)
		err = errors.Join(err, sendErr)
		settled = settled || len(left) < before
		r.left[g.name] = left
		if len(left) == 0 {
			if dropErr := r.c.spool.drop(g); dropErr != nil {
				return settled, dropErr
			}
			delete(r.left, g.name)
		}
		if away {
			return settled, err
		}
	}
	return settled, err
}

// load reads a segment. Lines that cannot be read are no reason to lose their
// neighbours, and not lost either.
func (r *replay) load(g segment) ([]entry, error) {
	entries, broken, err := r.c.spool.read(g)
	if err != nil {
		return nil, err
	}
	for _, line := range broken {
		d := DeadLetter{At: r.c.now(), Line: line, Code: "unreadable", Detail: "a line of " + g.name + " has another checksum than it should"}
		if err := r.c.spool.buried(d); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// send tries entries once, plain usage many at a time, and gives those that are not
// settled, in their order.
func (r *replay) send(ctx context.Context, entries []entry) (left []entry, away bool, err error) {
	for len(entries) > 0 {
		n := 1
		for n < len(entries) && n < replayBatch && plain(entries[n-1]) && plain(entries[n]) {
			n++
		}
		errs := r.sendSome(ctx, entries[:n])
		for i, e := range entries[:n] {
			sendErr := r.settle(e, errs[i])
			if sendErr == nil {
				continue
			}
			left, err = append(left, e), sendErr
			away = away || isAway(sendErr)
		}
		entries = entries[n:]
		if away {
			return append(left, entries...), true, err
		}
	}
	return left, false, err
}

func plain(e entry) bool { return e.Path == pathUsage && e.First == "" }

// isAway tells whether the next request would fare no better.
func isAway(err error) bool {
	var refusal *Error
	return !errors.As(err, &refusal) || refusal.Status == http.StatusServiceUnavailable || refusal.Status == http.StatusTooManyRequests ||
		refusal.Status == http.StatusUnauthorized || refusal.Status == http.StatusForbidden
}

// settle makes an entry's error one that keeps it, or nil.
func (r *replay) settle(e entry, err error) error {
	var refusal *Error
	if !errors.As(err, &refusal) {
		return err
	}
	r.asked = max(r.asked, refusal.retryAfter)
	if refusal.definite() {
		return r.c.spool.bury(e, refusal, r.c.now())
	}
	return err
}

// sendSome sends one entry, or several plain ones in a batch.
func (r *replay) sendSome(ctx context.Context, entries []entry) []error {
	if len(entries) == 1 {
		return []error{r.one(ctx, entries[0])}
	}
	var q struct {
		Usage []json.RawMessage `json:"usage"`
	}
	for _, e := range entries {
		q.Usage = append(q.Usage, e.Body)
	}
	var answer api.UsageBatch
	err := r.post(ctx, pathUsage+"/batch", q, &answer)
	var refusal *Error
	switch {
	case err == nil && len(answer.Results) != len(entries):
		err = errors.New("a batch was answered with another number of results")
	case errors.As(err, &refusal) && refusal.definite(): // of the batch, and says nothing about its items
		errs := make([]error, len(entries))
		for i, e := range entries {
			errs[i] = r.one(ctx, e)
		}
		return errs
	}
	if err != nil {
		return slices.Repeat([]error{err}, len(entries))
	}
	errs := make([]error, len(entries))
	for i := range entries {
		errs[i] = ResultError(answer.Results[i])
	}
	return errs
}

func (r *replay) one(ctx context.Context, e entry) error {
	if e.First != "" {
		var body any = api.ReleaseRequest{}
		if e.FirstBody != nil {
			body = e.FirstBody
		}
		err := r.post(ctx, e.First, body, nil)
		var refusal *Error
		matters := e.FirstBody != nil || !errors.As(err, &refusal) || !refusal.definite()
		if err != nil && matters {
			return err
		}
	}
	return r.post(ctx, e.Path, e.Body, nil)
}

func (r *replay) post(ctx context.Context, path string, body, answer any) error {
	q := request{method: http.MethodPost, path: path, body: body, answer: answer}
	payload, err := q.payload()
	if err != nil {
		return err
	}
	var refusal *Error
	if _, err = r.c.try(ctx, q, payload); err != nil && !errors.As(err, &refusal) {
		return &unavailable{err}
	}
	return err
}

// Drain asks for the spool to be sent now and waits until it is empty, or for the
// context's end.
func (c *Client) Drain(ctx context.Context) error {
	for c.spool != nil && !c.spool.Empty() {
		select {
		case c.spool.kick <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("the spool in %s still has %d bytes: %w", c.spool.dir, c.spool.Bytes(), ctx.Err())
		}
	}
	return nil
}

package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
	"tallystick/internal/pg"
)

// Bounds of the intake.
const (
	intakeLanes = 2   // groups that are committed at once
	intakeMax   = 64  // events in a group: with bodies of their full size, 16 MiB
	intakeDepth = 512 // events that may wait; beyond it Stripe is told to come again
)

var errBusy = &fault.Error{Kind: fault.KindUnavailable, Code: "unavailable", Public: "more events are arriving than can be stored; they are sent again", RetryAfter: time.Second}

// arrival is an event on its way into the inbox.
type arrival struct {
	event  event
	source string
	fresh  bool
	err    error
	done   chan struct{}
}

// intake commits events in groups. It waits for nothing: a lone event is a group of
// one, and what arrives while a group is being committed is the next group. Each is
// answered after its own commit.
type intake struct {
	h *Webhooks

	mu      sync.Mutex
	waiting []*arrival
	busy    int
}

// put stores an event and tells whether it is new. When ctx ends first, the outcome
// is unknown to the caller.
func (i *intake) put(ctx context.Context, e event, source string) (fresh bool, err error) {
	a := &arrival{event: e, source: source, done: make(chan struct{})}
	if !i.enter(a) { //nolint:contextcheck // a group outlives any one caller
		return false, errBusy
	}
	select {
	case <-a.done:
		return a.fresh, a.err
	case <-ctx.Done():
		return false, fault.ErrUnavailable.With(ctx.Err())
	}
}

func (i *intake) enter(a *arrival) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.waiting) >= intakeDepth {
		return false
	}
	i.waiting = append(i.waiting, a)
	if i.busy < intakeLanes {
		i.busy++
		go i.run()
	}
	return true
}

// run commits groups until nobody waits.
func (i *intake) run() {
	for {
		group := i.take()
		if group == nil {
			return
		}
		i.commit(group)
	}
}

func (i *intake) take() []*arrival {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.waiting) == 0 {
		i.busy--
		return nil
	}
	n := min(len(i.waiting), intakeMax)
	group := slices.Clone(i.waiting[:n])
	i.waiting = slices.Delete(i.waiting, 0, n)
	return group
}

// commit stores a group and answers each of its members. What Postgres refuses for
// one member's sake is tried one by one.
func (i *intake) commit(group []*arrival) {
	err := i.try(group)
	if err != nil && len(group) > 1 && !errors.Is(err, fault.ErrUnavailable) {
		for _, a := range group {
			i.commit([]*arrival{a})
		}
		return
	}
	for _, a := range group {
		a.err = err
		close(a.done)
	}
}

func (i *intake) try(group []*arrival) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	ctx := context.Background() //nolint:forbidigo // a group outlives any one caller's context, and is bounded by the pool
	return i.h.store(ctx, group)
}

// sqlStore relies on stripe_events_pkey for W2. Rows are written in the order of
// the key, so that two groups with the same events cannot lock each other out.
const sqlStore = `
	INSERT INTO stripe_events (event_id, type, api_version, livemode, created_at, payload, source, received_at, state, attempts, next_try_at, error)
	SELECT event_id, type, api_version, livemode::boolean, created_at, payload, source, $9, state, 0, $9, error
	FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::bytea[], $7::text[], $8::text[], $10::text[])
		AS e (event_id, type, api_version, livemode, created_at, payload, source, state, error)
	ON CONFLICT (event_id) DO NOTHING
	RETURNING event_id`

// store keeps events that are not there yet, in one statement, and notes which
// were new. Of one event twice in a group the first is.
func (h *Webhooks) store(ctx context.Context, group []*arrival) error {
	ordered := slices.Clone(group)
	slices.SortStableFunc(ordered, func(a, b *arrival) int { return cmp.Compare(a.event.ID, b.event.ID) })
	ordered = slices.CompactFunc(ordered, func(a, b *arrival) bool { return a.event.ID == b.event.ID })
	n := len(ordered)
	ids, types, versions, modes := make(pg.Texts, n), make(pg.Texts, n), make(pg.Texts, n), make(pg.Texts, n)
	sources, states, reasons := make(pg.Texts, n), make(pg.Texts, n), make(pg.Texts, n)
	times, payloads := make(pg.Times, n), make(pg.Byteas, n)
	for at, a := range ordered {
		e := a.event
		ids[at], types[at], versions[at], modes[at] = e.ID, e.Type, e.APIVersion, fmt.Sprint(e.Livemode)
		times[at], payloads[at], sources[at] = e.CreatedAt, e.Payload, a.source
		states[at], reasons[at] = h.triage(e)
	}
	var stored []string
	err := h.inbox.InTx(ctx, func(tx *sqlx.Tx) error {
		stored = nil
		return tx.SelectContext(ctx, &stored, sqlStore, ids, types, versions, modes, times, payloads, sources, states, h.now(), reasons)
	})
	if err != nil {
		return fmt.Errorf("store %d events: %w", n, err)
	}
	fresh := make(map[string]bool, len(stored))
	for _, id := range stored {
		fresh[id] = true
	}
	for _, a := range ordered {
		a.fresh = fresh[a.event.ID]
	}
	return nil
}

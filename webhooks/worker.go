package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/web"
)

// Bounds of the worker.
const (
	claimMax    = 128
	readersMax  = 16 // payments that are read from Stripe at once
	lease       = 2 * time.Minute
	attemptsMax = 15 // about a day and a half of back-off, then somebody must look
	retryFirst  = 2 * time.Second
	retryMost   = 6 * time.Hour
	outageMost  = 10 * time.Minute
)

// sqlClaim relies on the index stripe_events_due. The order is that of arrival;
// nothing relies on it.
const sqlClaim = `
	SELECT event_id, type, api_version, livemode, created_at, payload, source, received_at, state, attempts, error, done_at
	FROM stripe_events
	WHERE state = 'pending' AND next_try_at <= $1
	ORDER BY next_try_at
	LIMIT $2
	FOR UPDATE SKIP LOCKED`

// sqlLease relies on stripe_events_pkey and on the locks of sqlClaim.
const sqlLease = `UPDATE stripe_events SET next_try_at = $2 WHERE event_id = ANY ($1::text[])`

// Step applies events that are due. It may run in several processes. Events that
// lead to the same payment are settled together, with one reading of it; payments
// are read side by side and settled in one transaction.
func (h *Webhooks) Step(ctx context.Context) (more bool, err error) {
	if h.circuit.open(h.now()) {
		return false, nil
	}
	claimed, err := h.claim(ctx)
	if err != nil {
		return false, fmt.Errorf("claim events: %w", err)
	}
	if len(claimed) == 0 {
		return false, nil
	}
	matters := h.lead(claimed)
	if err := h.readAll(ctx, matters); err != nil {
		return false, err
	}
	h.commit(ctx, joined(matters))
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	return len(claimed) == claimMax, h.conclude(ctx, matters)
}

func (h *Webhooks) claim(ctx context.Context) (claimed []eventRow, err error) {
	now := h.now()
	err = h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		claimed = nil
		if err := tx.SelectContext(ctx, &claimed, sqlClaim, now, claimMax); err != nil || len(claimed) == 0 {
			return err
		}
		_, err := tx.ExecContext(ctx, sqlLease, idsOf(claimed), now.Add(lease))
		return err
	})
	return claimed, err
}

func idsOf(events []eventRow) pq.StringArray {
	ids := make(pq.StringArray, len(events))
	for i, e := range events {
		ids[i] = e.ID
	}
	return ids
}

// lead sorts events by what they lead to. One that cannot be read is a matter of
// its own, and so are all together that lead nowhere.
func (h *Webhooks) lead(events []eventRow) (matters []*matter) {
	byLead := map[string]*matter{}
	for _, e := range events {
		lead, known, err := leadOf(e)
		if err != nil {
			matters = append(matters, &matter{events: []eventRow{e}, ask: err})
			continue
		}
		m := byLead[lead]
		if m == nil {
			m = &matter{lead: lead, by: "stripe:" + e.ID, known: true}
			byLead[lead] = m
			matters = append(matters, m)
		}
		m.known = m.known && known
		m.events = append(m.events, e)
	}
	return matters
}

// leadOf gives what an event leads to, and whether it matters only for a payment
// that we have a record of.
func leadOf(e eventRow) (lead string, known bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	handle, ok := handlers[e.Type]
	if !ok {
		return "", false, nil
	}
	object, err := dataObject(e.Payload)
	if err != nil {
		return "", false, err
	}
	lead, err = handle.lead(object)
	return lead, handle.known, err
}

// sqlSeenAll relies on payments_pkey.
const sqlSeenAll = `SELECT payment_id, state, updated_at FROM payments WHERE payment_id = ANY ($1::text[])`

// seenAll tells in which state our records are, before Stripe is asked.
func (h *Webhooks) seenAll(ctx context.Context, payments []string) (map[string]known, error) {
	var rows []struct {
		ID string `db:"payment_id"`
		known
	}
	err := h.db.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlSeenAll, pg.Texts(payments))
	})
	seen := make(map[string]known, len(rows))
	for _, r := range rows {
		seen[r.ID] = r.known
	}
	return seen, err
}

// readAll asks Stripe about all matters, a bounded number at a time.
func (h *Webhooks) readAll(ctx context.Context, matters []*matter) error {
	var leads []string
	for _, m := range matters {
		if m.lead != "" {
			leads = append(leads, m.lead)
		}
	}
	if len(leads) == 0 {
		return nil
	}
	seen, err := h.seenAll(ctx, leads)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, readersMax)
	asked := 0
	for _, m := range matters {
		if m.lead == "" || m.known && seen[m.lead].State == "" {
			continue
		}
		asked++
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			m.facts, m.ask = h.readOne(web.WithRequestID(ctx, m.events[0].ID), m.lead, seen[m.lead])
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	h.judge(matters, asked)
	return nil
}

func (h *Webhooks) readOne(ctx context.Context, lead string, seen known) (f *facts, err error) {
	defer func() {
		if p := recover(); p != nil {
			f, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return h.read(ctx, lead, seen)
}

// judge opens the circuit when Stripe answered nobody, and closes it when it
// answered somebody. While it answers others, not to answer is the fault of what
// was asked for: it uses tries, so that it ends some day and is seen.
func (h *Webhooks) judge(matters []*matter, asked int) {
	away := 0
	var refused, cause error
	for _, m := range matters {
		switch {
		case errors.Is(m.ask, errKeyRefused):
			refused = m.ask
		case errors.Is(m.ask, errStripeAway):
			away, cause = away+1, m.ask
		}
	}
	switch {
	case asked == 0:
	case refused != nil:
		h.circuit.trip(h.now(), refused, h.logger)
	case away == asked:
		h.circuit.trip(h.now(), cause, h.logger)
	default:
		h.circuit.reset(h.logger)
		for _, m := range matters {
			if errors.Is(m.ask, errStripeAway) {
				m.ask = fmt.Errorf("stripe answers, but not about this: %s", m.ask) //nolint:errorlint // it counts as an outage no more
			}
		}
	}
}

// joined puts together what leads to the same payment, and leaves out what could
// not be read.
func joined(matters []*matter) (apply []*matter) {
	byPayment := map[string]*matter{}
	for _, m := range matters {
		if m.ask != nil {
			continue
		}
		if m.facts != nil {
			if first := byPayment[m.facts.payment]; first != nil {
				first.events = append(first.events, m.events...)
				m.events = nil
				continue
			}
			byPayment[m.facts.payment] = m
		}
		apply = append(apply, m)
	}
	return apply
}

// commit settles matters and marks their events as done, in one transaction. What
// Postgres refuses for one member's sake is tried again one by one, so that it
// hurts no other.
func (h *Webhooks) commit(ctx context.Context, matters []*matter) {
	if len(matters) == 0 {
		return
	}
	err := h.try(ctx, matters)
	if err == nil {
		return
	}
	together := errors.Is(err, fault.ErrUnavailable) && !pg.IsCode(err, pg.CodeLockNotAvailable)
	if len(matters) > 1 && !together && ctx.Err() == nil {
		for _, m := range matters {
			h.commit(ctx, []*matter{m})
		}
		return
	}
	for _, m := range matters {
		m.err = err
	}
}

// sqlLockEvents relies on stripe_events_pkey; rows are locked in the order of the key.
const sqlLockEvents = `SELECT event_id, state FROM stripe_events WHERE event_id = ANY ($1::text[]) ORDER BY event_id FOR UPDATE`

// sqlDone relies on stripe_events_pkey.
const sqlDone = `UPDATE stripe_events SET state = 'done', attempts = attempts + 1, error = '', done_at = $2 WHERE event_id = ANY ($1::text[]) AND state = 'pending'`

func (h *Webhooks) try(ctx context.Context, matters []*matter) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		var rows []struct {
			ID    string `db:"event_id"`
			State string `db:"state"`
		}
		if err := tx.SelectContext(ctx, &rows, sqlLockEvents, allIDs(matters)); err != nil {
			return fmt.Errorf("lock events: %w", err)
		}
		pending := make(map[string]bool, len(rows))
		for _, r := range rows {
			pending[r.ID] = r.State == "pending"
		}
		var due []*matter
		for _, m := range matters { // what another worker was faster with, after our lease, is left alone
			if slices.ContainsFunc(m.events, func(e eventRow) bool { return pending[e.ID] }) {
				due = append(due, m)
			}
		}
		if err := h.settle(ctx, tx, due); err != nil {
			return err
		}
		due = slices.DeleteFunc(due, func(m *matter) bool { return m.err != nil })
		if _, err := tx.ExecContext(ctx, sqlDone, allIDs(due), h.now()); err != nil {
			return fmt.Errorf("mark events as done: %w", err)
		}
		return nil
	})
}

func allIDs(matters []*matter) pq.StringArray {
	ids := pq.StringArray{}
	for _, m := range matters {
		ids = append(ids, idsOf(m.events)...)
	}
	return ids
}

// conclude keeps what failed with its events. It is no error of the worker's: one
// bad event stops no other.
func (h *Webhooks) conclude(ctx context.Context, matters []*matter) error {
	var ids, states, reasons pg.Texts
	var attempts pg.Bigints
	var times pg.Times
	for _, m := range matters {
		cause := cmp.Or(m.ask, m.err)
		for _, e := range m.events {
			if cause == nil {
				h.logger.Info("event applied", slog.String("event", e.ID), slog.String("type", e.Type))
				continue
			}
			h.logger.Warn("an event could not be applied; it is tried again", slog.String("event", e.ID), slog.String("type", e.Type), slog.String("error", cause.Error()))
			state, tries, next := h.again(e, cause)
			ids, states, reasons = append(ids, e.ID), append(states, state), append(reasons, fault.Text(cause.Error()))
			attempts, times = append(attempts, int64(tries)), append(times, next)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, sqlFail, ids, states, attempts, times, reasons)
		return err
	})
}

// sqlFail relies on stripe_events_pkey.
const sqlFail = `
	UPDATE stripe_events e SET state = f.state, attempts = f.attempts, next_try_at = f.next_try_at, error = f.error
	FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[]) AS f (event_id, state, attempts, next_try_at, error)
	WHERE e.event_id = f.event_id AND e.state = 'pending'`

// again says when an event that failed is tried next. While a dependency is away
// the tries are not counted: an outage must not use them up. The longer it lasts,
// the longer an event waits.
func (h *Webhooks) again(e eventRow, cause error) (state string, attempts int, next time.Time) {
	attempts, now := e.Attempts, h.now()
	var wait time.Duration
	switch {
	case errors.Is(cause, errOvertaken):
		wait = retryFirst
	case fault.KindOf(cause) == fault.KindUnavailable:
		wait = min(max(now.Sub(e.ReceivedAt)/2, retryFirst), outageMost)
	default:
		attempts++
		wait = min(retryFirst<<min(attempts-1, 20), retryMost)
	}
	if attempts >= attemptsMax {
		return "failed", attempts, now.Add(wait)
	}
	return "pending", attempts, now.Add(wait)
}

package webhooks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// Bounds of the worker.
const (
	claimMax    = 16
	lease       = 2 * time.Minute
	attemptsMax = 15 // about a day and a half of back-off, then somebody must look
	retryFirst  = 2 * time.Second
	retryMost   = 6 * time.Hour
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

// Step applies events that are due. It may run in several processes.
func (h *Webhooks) Step(ctx context.Context) (more bool, err error) {
	now := h.now()
	var claimed []eventRow
	err = h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		claimed = nil
		if err := tx.SelectContext(ctx, &claimed, sqlClaim, now, claimMax); err != nil || len(claimed) == 0 {
			return err
		}
		ids := make(pq.StringArray, len(claimed))
		for i, e := range claimed {
			ids[i] = e.ID
		}
		_, err := tx.ExecContext(ctx, sqlLease, ids, now.Add(lease))
		return err
	})
	if err != nil {
		return false, fmt.Errorf("claim events: %w", err)
	}
	for _, e := range claimed {
		if err := h.process(web.WithRequestID(ctx, e.ID), e); err != nil {
			return false, err
		}
	}
	return len(claimed) == claimMax, nil
}

// process applies one event. Its failure is kept with it and is no error of the
// worker: one bad event stops no other.
func (h *Webhooks) process(ctx context.Context, e eventRow) error {
	err := h.apply(ctx, e)
	if err == nil {
		h.logger.Info("event applied", slog.String("event", e.ID), slog.String("type", e.Type))
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	h.logger.Warn("an event could not be applied; it is tried again", slog.String("event", e.ID), slog.String("type", e.Type), slog.String("error", err.Error()))
	return h.fail(ctx, e, err)
}

func (h *Webhooks) apply(ctx context.Context, e eventRow) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	handle := h.handlers[e.Type]
	if handle == nil {
		return h.finish(ctx, e, nil)
	}
	object, err := dataObject(e.Payload)
	if err != nil {
		return err
	}
	payment, err := handle(ctx, object)
	if err != nil {
		return err
	}
	if payment == "" {
		return h.finish(ctx, e, nil)
	}
	facts, err := h.read(ctx, payment)
	if err != nil {
		return err
	}
	return h.finish(ctx, e, facts)
}

// sqlLockEvent relies on stripe_events_pkey.
const sqlLockEvent = `SELECT state FROM stripe_events WHERE event_id = $1 FOR UPDATE`

// sqlDone relies on stripe_events_pkey.
const sqlDone = `UPDATE stripe_events SET state = 'done', attempts = attempts + 1, error = '', done_at = $2 WHERE event_id = $1`

// finish applies the facts and marks the event as done, in one transaction.
func (h *Webhooks) finish(ctx context.Context, e eventRow, f *facts) error {
	return h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		var state string
		if err := tx.GetContext(ctx, &state, sqlLockEvent, e.ID); err != nil {
			return fmt.Errorf("lock event %s: %w", e.ID, err)
		}
		if state != "pending" {
			return nil // another worker was faster, after our lease
		}
		if f != nil {
			if err := h.settle(ctx, tx, *f, "stripe:"+e.ID); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, sqlDone, e.ID, h.now())
		return err
	})
}

// sqlFail relies on stripe_events_pkey.
const sqlFail = `
	UPDATE stripe_events SET state = $2, attempts = $3, next_try_at = $4, error = $5 WHERE event_id = $1 AND state = 'pending'`

// fail keeps the failure with the event. While a dependency is away the tries
// are not counted: an outage must not use them up.
func (h *Webhooks) fail(ctx context.Context, e eventRow, cause error) error {
	state, attempts := "pending", e.Attempts+1
	if errors.Is(cause, fault.ErrUnavailable) {
		attempts = e.Attempts
	}
	if attempts >= attemptsMax {
		state = "failed"
	}
	wait := retryFirst << min(max(attempts-1, 0), 20)
	next := h.now().Add(min(wait, retryMost))
	return h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, sqlFail, e.ID, state, attempts, next, fault.Text(cause.Error()))
		return err
	})
}

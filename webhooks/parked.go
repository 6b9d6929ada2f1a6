package webhooks

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/jmoiron/sqlx"
)

// sqlParked relies on the index payments_parked.
const sqlParked = `SELECT payment_id FROM payments WHERE state = 'parked' AND updated_at <= $1 ORDER BY updated_at LIMIT $2`

// Bounds of looking at parked payments.
const (
	parkedMax  = 16
	parkedWait = time.Minute // how long one rests before it is looked at again
)

// ParkedStep looks again at payments that nobody could map: an account may have
// been made or a price given its metadata since. One that fails rests like the
// others and stops none of them.
func (h *Webhooks) ParkedStep(ctx context.Context) (more bool, err error) {
	var parked []string
	err = h.db.Read(ctx, func(tx *sqlx.Tx) error {
		parked = nil
		return tx.SelectContext(ctx, &parked, sqlParked, h.now().Add(-parkedWait), parkedMax)
	})
	if err != nil {
		return false, err
	}
	for _, payment := range parked {
		_, err := h.look(ctx, payment, "system:parked", func(*facts) {})
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err != nil {
			h.logger.Warn("a parked payment could not be looked at; it is tried again", slog.String("payment", payment), slog.String("error", err.Error()))
		}
		if err := h.rest(ctx, payment); err != nil {
			return false, err
		}
	}
	return len(parked) == parkedMax, nil
}

// look reads one payment from Stripe, lets the caller add what it knows better,
// and settles it. Without facts the payment is not paid, or none of ours.
func (h *Webhooks) look(ctx context.Context, payment, by string, amend func(*facts)) (m *matter, err error) {
	defer func() {
		if p := recover(); p != nil {
			m, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	seen, err := h.seen(ctx, payment)
	if err != nil {
		return nil, err
	}
	f, err := h.read(ctx, payment, seen)
	if err != nil || f == nil {
		return nil, err
	}
	amend(f)
	m = &matter{facts: f, by: by, note: f.note}
	err = h.db.InTx(ctx, func(tx *sqlx.Tx) error { return h.settle(ctx, tx, []*matter{m}) })
	if err == nil {
		err = m.err
	}
	return m, err
}

// Settle reads a payment from Stripe (a payment intent, a checkout session or an
// invoice) and brings our records of it to what Stripe says now: credits that were
// never granted, or not taken back. It tells whether there was anything to settle;
// by is the actor in the journal. Done again, it changes nothing.
func (h *Webhooks) Settle(ctx context.Context, payment, by string) (found bool, err error) {
	m, err := h.look(ctx, payment, by, func(*facts) {})
	return m != nil, err
}

// sqlRest relies on payments_pkey.
const sqlRest = `
	UPDATE payments SET updated_at = $2 WHERE payment_id = $1 AND state = 'parked' AND updated_at < $2`

// rest lets a payment that is still parked wait for its next look.
func (h *Webhooks) rest(ctx context.Context, payment string) error {
	return h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlRest, payment, h.now()); err != nil {
			return fmt.Errorf("let payment %s rest: %w", payment, err)
		}
		return nil
	})
}

package webhooks

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// Bounds of the sweep.
const (
	sweepName    = "events"
	sweepEvery   = 5 * time.Minute
	sweepOverlap = 30 * time.Minute    // listed late, or behind a page's end: seen by the next sweeps
	sweepBack    = 30 * 24 * time.Hour // Stripe keeps events for so long
	sweepSettle  = 2 * time.Minute     // what is newer is still on its way by itself
	sweepLease   = 10 * time.Minute    // renewed with every page
	backfillMax  = 100                 // missing events that an answer names
)

// sqlSweepRow relies on stripe_sweeps_pkey.
const sqlSweepRow = `
	INSERT INTO stripe_sweeps (sweep, swept_to, lease_epoch, lease_until, found, updated_at) VALUES ($1, NULL, 0, $2, 0, $2)
	ON CONFLICT (sweep) DO NOTHING`

// sqlSweepLease relies on stripe_sweeps_pkey: of several processes one gets it.
const sqlSweepLease = `
	UPDATE stripe_sweeps SET lease_epoch = lease_epoch + 1, lease_until = $3, updated_at = $2
	WHERE sweep = $1 AND lease_until <= $2
	RETURNING swept_to, lease_epoch`

// sqlSweepRenew relies on stripe_sweeps_pkey.
const sqlSweepRenew = `UPDATE stripe_sweeps SET lease_until = $3, updated_at = $4 WHERE sweep = $1 AND lease_epoch = $2`

// sqlSweepEnd relies on stripe_sweeps_pkey.
const sqlSweepEnd = `
	UPDATE stripe_sweeps SET swept_to = $3, found = found + $4, lease_until = $5, updated_at = $6
	WHERE sweep = $1 AND lease_epoch = $2`

var errSweepLost = errors.New("the sweep was taken over by another process")

// SweepStep lists Stripe's events into the inbox, from where the last sweep began
// less an overlap: at first as far back as Stripe keeps them. Events become
// listable late and share their seconds, so that no time alone is trusted; the
// inbox keeps each once. How far it came is written after all is stored. Of several
// processes one sweeps.
func (h *Webhooks) SweepStep(ctx context.Context) (more bool, err error) {
	now := h.now()
	var lease struct {
		SweptTo *time.Time `db:"swept_to"`
		Epoch   int64      `db:"lease_epoch"`
	}
	err = h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlSweepRow, sweepName, now); err != nil {
			return err
		}
		return tx.GetContext(ctx, &lease, sqlSweepLease, sweepName, now, now.Add(sweepLease))
	})
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil // another process has it, or it is not time yet
	}
	if err != nil {
		return false, fmt.Errorf("lease the sweep: %w", err)
	}
	from := now.Add(-sweepBack)
	if lease.SweptTo != nil {
		from = lease.SweptTo.Add(-sweepOverlap)
	}
	swept, err := h.sweep(ctx, from, now.Add(-sweepSettle), false, func() error { return h.renew(ctx, lease.Epoch) })
	if err != nil {
		return false, fmt.Errorf("sweep Stripe's events: %w", err)
	}
	if swept.missing > 0 {
		h.logger.Warn("the sweep found events that no delivery had brought", slog.Int("events", swept.missing), slog.String("one", swept.first[0].ID), slog.String("type", swept.first[0].Type))
	}
	err = h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, sqlSweepEnd, sweepName, lease.Epoch, now, swept.missing, now.Add(sweepEvery), h.now())
		return err
	})
	return false, err
}

func (h *Webhooks) renew(ctx context.Context, epoch int64) error {
	now := h.now()
	return h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		result, err := tx.ExecContext(ctx, sqlSweepRenew, sweepName, epoch, now.Add(sweepLease), now)
		if err != nil {
			return fmt.Errorf("renew the sweep's lease: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errSweepLost
		}
		return nil
	})
}

// swept is what a sweep has found.
type swept struct {
	listed  int
	missing int
	first   []stripe.Event // some of the missing, without their payloads
}

// sweep lists the events of the types that change something here and stores those
// that are missing, unless it is dry. Before each page it asks whether to go on.
func (h *Webhooks) sweep(ctx context.Context, from, to time.Time, dry bool, goOn func() error) (s swept, err error) {
	err = h.stripe.EventPages(ctx, EventTypes(), from, to, func(page []stripe.Event) error {
		if err := goOn(); err != nil {
			return err
		}
		missing, err := h.missing(ctx, page)
		if err != nil {
			return err
		}
		s.listed, s.missing = s.listed+len(page), s.missing+len(missing)
		for _, e := range missing[:min(len(missing), backfillMax-len(s.first))] {
			e.Payload = nil
			s.first = append(s.first, e)
		}
		if dry {
			return nil
		}
		for part := range slices.Chunk(missing, intakeMax) {
			group := make([]*arrival, len(part))
			for i, e := range part {
				group[i] = &arrival{event: listed(e), source: "sweep"}
			}
			if err := h.store(ctx, group); err != nil {
				return err
			}
		}
		return nil
	})
	return s, err
}

// sqlPresent relies on stripe_events_pkey.
const sqlPresent = `SELECT event_id FROM stripe_events WHERE event_id = ANY ($1::text[])`

// missing gives those of the events that are not in the inbox.
func (h *Webhooks) missing(ctx context.Context, events []stripe.Event) ([]stripe.Event, error) {
	ids := make(pg.Texts, len(events))
	for i, e := range events {
		ids[i] = e.ID
	}
	var present []string
	err := h.db.Read(ctx, func(tx *sqlx.Tx) error {
		present = nil
		return tx.SelectContext(ctx, &present, sqlPresent, ids)
	})
	if err != nil {
		return nil, fmt.Errorf("look events up: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(events), func(e stripe.Event) bool { return slices.Contains(present, e.ID) }), nil
}

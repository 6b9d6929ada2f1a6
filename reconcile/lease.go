package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
)

// errOvertaken says that a run took so long that another has taken its place.
var errOvertaken = errors.New("the run was taken over by another process")

// errBusy says that a check is being run.
var errBusy = &fault.Error{Kind: fault.KindConflict, Code: "check_running", Public: "the check is being run; its run tells how it ends"}

// sqlOpenCheck makes the row of a check that has none, over reconcile_checks_pkey.
const sqlOpenCheck = `
	INSERT INTO reconcile_checks (check_name, epoch, run_id, progress, spec, watched_since)
	VALUES ($1, 0, '', '{}', '', $2)
	ON CONFLICT (check_name) DO NOTHING`

// sqlLockCheck relies on reconcile_checks_pkey; its lock decides between processes.
const sqlLockCheck = `SELECT epoch, run_id, lease_until FROM reconcile_checks WHERE check_name = $1 FOR UPDATE`

// sqlTakeCheck relies on the lock of sqlLockCheck.
const sqlTakeCheck = `UPDATE reconcile_checks SET epoch = epoch + 1, run_id = $2, lease_until = $3 WHERE check_name = $1`

// sqlClaimRun relies on reconcile_runs_once for R3: the first to insert runs the
// slot; one that was abandoned, or that failed, is taken over.
const sqlClaimRun = `
	INSERT INTO reconcile_runs AS r (run_id, check_name, slot, cause, window_from, window_to, account, state, lease_until, compared, found, fresh,
		resolved, error, started_at, epoch)
	VALUES ($1, $2, $3, $4, $5, $6, $7, 'running', $8, 0, 0, 0, 0, '', $9, $10)
	ON CONFLICT (check_name, slot) DO UPDATE
	SET run_id = excluded.run_id, window_from = excluded.window_from, window_to = excluded.window_to, state = 'running',
		lease_until = excluded.lease_until, started_at = excluded.started_at, error = '', epoch = excluded.epoch
	WHERE r.state <> 'succeeded'
	RETURNING run_id`

// sqlAbandon ends what a process that died has left, over reconcile_runs_pkey.
const sqlAbandon = `
	UPDATE reconcile_runs SET state = 'failed', error = 'abandoned: its process died, or hung beyond its bound', finished_at = $2
	WHERE run_id = $1 AND state = 'running'`

// leaseRow is who runs a check.
type leaseRow struct {
	Epoch int64      `db:"epoch"`
	RunID string     `db:"run_id"`
	Until *time.Time `db:"lease_until"`
}

// claim takes the check and the slot, or tells that the slot was run, or, by
// errBusy, that the check is being run: two runs of one check never overlap.
func (r *Reconciler) claim(ctx context.Context, c check, s scope, cause string, slot time.Time) (run Run, ours bool, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return run, false, fmt.Errorf("name a run: %w", err)
	}
	run = Run{ID: "run_" + id.String(), Check: c.name, Slot: slot, Cause: cause, From: s.from, To: s.to, Account: s.account, State: "running", StartedAt: s.now, Totals: "{}"}
	err = r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		ours = false
		var held leaseRow
		if _, err := tx.ExecContext(ctx, sqlOpenCheck, c.name, s.now); err != nil {
			return err
		}
		if err := tx.GetContext(ctx, &held, sqlLockCheck, c.name); err != nil {
			return err
		}
		if held.Until != nil {
			if !s.now.After(*held.Until) {
				return errBusy.Withf("%s is being run by %s, until %s at the latest; try again then", c.name, held.RunID, held.Until.UTC().Format(time.RFC3339))
			}
			if _, err := tx.ExecContext(ctx, sqlAbandon, held.RunID, s.now); err != nil {
				return err
			}
		}
		run.Epoch = held.Epoch + 1
		var claimed []string
		err := tx.SelectContext(ctx, &claimed, sqlClaimRun, run.ID, run.Check, slot, cause, s.from, s.to, s.account, s.now.Add(lease), s.now, run.Epoch)
		if err != nil || len(claimed) == 0 {
			return err
		}
		ours = true
		_, err = tx.ExecContext(ctx, sqlTakeCheck, c.name, run.ID, s.now.Add(lease))
		return err
	})
	if err != nil && !errors.Is(err, errBusy) {
		err = fmt.Errorf("claim %s: %w", c.name, err)
	}
	return run, ours, err
}

// claimPatiently lets a request wait for a run under way; the schedule comes again
// by itself.
func (r *Reconciler) claimPatiently(ctx context.Context, c check, s scope, cause string, slot time.Time) (Run, bool, error) {
	for range busyWait / busyLook {
		run, ours, err := r.claim(ctx, c, s, cause, slot)
		if !errors.Is(err, errBusy) {
			return run, ours, err
		}
		if cause != "request" {
			return run, false, nil
		}
		select {
		case <-ctx.Done():
			return run, false, ctx.Err()
		case <-time.After(busyLook):
		}
	}
	return r.claim(ctx, c, s, cause, slot)
}

// fence refuses to write for a run that has ended, or whose check was taken over
// since, and keeps the check from being taken until the transaction has ended.
func fence(ctx context.Context, tx *sqlx.Tx, run Run) error {
	var held leaseRow
	if err := tx.GetContext(ctx, &held, sqlLockCheck, run.Check); err != nil {
		return fmt.Errorf("fence %s: %w", run.Check, err)
	}
	if held.Epoch != run.Epoch || held.RunID != run.ID || held.Until == nil {
		return errOvertaken
	}
	return nil
}

// sqlReleaseCheck relies on the lock of the fence.
const sqlReleaseCheck = `
	UPDATE reconcile_checks SET lease_until = NULL, last_success = CASE WHEN $3 THEN $2::timestamptz ELSE last_success END WHERE check_name = $1`

func release(ctx context.Context, tx *sqlx.Tx, check string, at time.Time, succeeded bool) error {
	if _, err := tx.ExecContext(ctx, sqlReleaseCheck, check, at, succeeded); err != nil {
		return fmt.Errorf("return the lease of %s: %w", check, err)
	}
	return nil
}

// sqlRenew relies on reconcile_checks_pkey; the epoch fences it.
const sqlRenew = `UPDATE reconcile_checks SET lease_until = $4 WHERE check_name = $1 AND run_id = $2 AND epoch = $3 AND lease_until IS NOT NULL`

// keepAlive extends the lease of a run until its context ends, which it does by
// itself after runMax: a hung run loses its lease even though its process lives.
// It calls off a run that was overtaken.
func (r *Reconciler) keepAlive(ctx context.Context, off context.CancelFunc, run Run) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticks := time.NewTicker(renewEvery)
		defer ticks.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
			var renewed int64
			err := r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
				result, err := tx.ExecContext(ctx, sqlRenew, run.Check, run.ID, run.Epoch, r.Now().Add(lease))
				if err != nil {
					return err
				}
				renewed, err = result.RowsAffected()
				return err
			})
			switch {
			case err == nil && renewed == 0:
				off()
			case err != nil && ctx.Err() == nil:
				r.Logger.Warn("the lease of a run was not extended", slog.String("run", run.ID), slog.String("error", err.Error()))
			}
		}
	}()
	return ended
}

// sqlProgress relies on reconcile_checks_pkey.
const sqlProgress = `SELECT progress FROM reconcile_checks WHERE check_name = $1`

func readProgress(ctx context.Context, tx *sqlx.Tx, check string) (string, error) {
	var kept []string
	if err := tx.SelectContext(ctx, &kept, sqlProgress, check); err != nil {
		return "", fmt.Errorf("read the progress of %s: %w", check, err)
	}
	if len(kept) == 0 || kept[0] == "{}" {
		return "", nil
	}
	return kept[0], nil
}

// sqlSaveProgress relies on reconcile_checks_pkey.
const sqlSaveProgress = `UPDATE reconcile_checks SET progress = $2::jsonb WHERE check_name = $1`

func saveProgress(ctx context.Context, tx *sqlx.Tx, check, text string) error {
	if _, err := tx.ExecContext(ctx, sqlSaveProgress, check, text); err != nil {
		return fmt.Errorf("keep the progress of %s: %w", check, err)
	}
	return nil
}

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
)

// runMax bounds one check's run; after it the run counts as abandoned.
const runMax = 30 * time.Minute

// Run is one execution of one check.
type Run struct {
	ID         string     `db:"run_id"`
	Check      string     `db:"check_name"`
	Slot       time.Time  `db:"slot"`
	Cause      string     `db:"cause"`
	From       time.Time  `db:"window_from"`
	To         time.Time  `db:"window_to"`
	Account    string     `db:"account"`
	State      string     `db:"state"`
	Compared   int64      `db:"compared"`
	Found      int        `db:"found"`
	Fresh      int        `db:"fresh"`
	Resolved   int        `db:"resolved"`
	Error      string     `db:"error"`
	StartedAt  time.Time  `db:"started_at"`
	FinishedAt *time.Time `db:"finished_at"`
	// Preview holds what a dry run found; it has no rows.
	Preview []Finding `db:"-"`
}

// RunNow runs checks because somebody asked for it, and mails what is new. An
// error is about the request; a check that fails says so in its Run.
func (r *Reconciler) RunNow(ctx context.Context, o Options) ([]Run, error) {
	s, err := r.scope(o)
	if err != nil {
		return nil, err
	}
	checks, err := r.selected(o.Checks)
	if err != nil {
		return nil, err
	}
	if o.DryRun {
		return r.preview(ctx, checks, s)
	}
	return r.runAll(ctx, checks, s, "request", s.now)
}

// RunSlot runs all checks for a scheduled time. What another process has run, or
// is running, is passed over.
func (r *Reconciler) RunSlot(ctx context.Context, slot time.Time) ([]Run, error) {
	s, err := r.scope(Options{})
	if err != nil {
		return nil, err
	}
	return r.runAll(ctx, r.checks, s, "schedule", slot)
}

func (r *Reconciler) runAll(ctx context.Context, checks []check, s scope, cause string, slot time.Time) ([]Run, error) {
	var runs []Run
	for _, c := range checks {
		run, ours, err := r.claim(ctx, c, s, cause, slot)
		if err != nil {
			return runs, err
		}
		if !ours {
			continue
		}
		if run, err = r.perform(ctx, c, s, run); err != nil {
			return runs, err
		}
		runs = append(runs, run)
	}
	if len(runs) == 0 {
		return runs, nil
	}
	if r.Policy == RepairSafe {
		if err := r.repairSafe(ctx); err != nil {
			return runs, err
		}
	}
	return runs, r.notify(ctx)
}

func (r *Reconciler) preview(ctx context.Context, checks []check, s scope) ([]Run, error) {
	var runs []Run
	for _, c := range checks {
		out, err := safely(ctx, c, s)
		run := Run{Check: c.name, From: s.from, To: s.to, Account: s.account, State: "succeeded", Compared: out.compared, Found: len(out.found), StartedAt: s.now}
		if err != nil {
			run.State, run.Error = "failed", err.Error()
		}
		for _, d := range out.found {
			f, err := d.finding(c.name, s.now)
			if err != nil {
				return nil, err
			}
			run.Preview = append(run.Preview, f)
		}
		runs = append(runs, run)
	}
	return runs, nil
}

// sqlClaimRun relies on reconcile_runs_once for R3: the first to insert runs the
// slot; one that was abandoned, or that failed, is taken over.
const sqlClaimRun = `
	INSERT INTO reconcile_runs AS r (run_id, check_name, slot, cause, window_from, window_to, account, state, lease_until, compared, found, fresh,
		resolved, error, started_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, 'running', $8, 0, 0, 0, 0, '', $9)
	ON CONFLICT (check_name, slot) DO UPDATE
	SET run_id = excluded.run_id, window_from = excluded.window_from, window_to = excluded.window_to, state = 'running',
		lease_until = excluded.lease_until, started_at = excluded.started_at, error = ''
	WHERE r.state = 'failed' OR (r.state = 'running' AND r.lease_until < excluded.started_at)
	RETURNING run_id`

func (r *Reconciler) claim(ctx context.Context, c check, s scope, cause string, slot time.Time) (Run, bool, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Run{}, false, fmt.Errorf("name a run: %w", err)
	}
	run := Run{ID: "run_" + id.String(), Check: c.name, Slot: slot, Cause: cause, From: s.from, To: s.to, Account: s.account, State: "running", StartedAt: s.now}
	var claimed []string
	err = r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		claimed = nil
		return tx.SelectContext(ctx, &claimed, sqlClaimRun, run.ID, run.Check, slot, cause, s.from, s.to, s.account, s.now.Add(runMax), s.now)
	})
	if err != nil {
		return run, false, fmt.Errorf("claim %s: %w", c.name, err)
	}
	return run, len(claimed) == 1, nil
}

// errOvertaken says that a run took so long that another has taken its place.
var errOvertaken = errors.New("the run was taken over by another process")

// sqlEndRun is fenced by the run's id: one that was taken over ends nothing.
const sqlEndRun = `
	UPDATE reconcile_runs
	SET state = $2, compared = $3, found = $4, fresh = $5, resolved = $6, error = $7, finished_at = $8
	WHERE run_id = $1 AND state = 'running'`

// perform runs one check and writes what it found, in one transaction with the
// end of the run.
func (r *Reconciler) perform(ctx context.Context, c check, s scope, run Run) (Run, error) {
	checkCtx, cancel := context.WithTimeout(ctx, runMax)
	defer cancel()
	out, err := safely(checkCtx, c, s)
	run.State = "succeeded"
	if err != nil {
		run.State, run.Error = "failed", fault.Text(err.Error())
	}
	run.Compared, run.Found = out.compared, len(out.found)
	end := r.Now()
	run.FinishedAt = &end
	failed := err
	err = r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		run.Fresh, run.Resolved = 0, 0
		if failed == nil {
			if err := r.record(ctx, tx, c.name, s, &run, out); err != nil {
				return err
			}
		}
		result, err := tx.ExecContext(ctx, sqlEndRun, run.ID, run.State, run.Compared, run.Found, run.Fresh, run.Resolved, run.Error, end)
		if err != nil {
			return fmt.Errorf("end the run: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.Join(errOvertaken, err)
		}
		return nil
	})
	level := slog.LevelInfo
	if failed != nil {
		level = slog.LevelError
	}
	r.Logger.Log(ctx, level, "check", slog.String("check", c.name), slog.String("run", run.ID), slog.String("state", run.State), slog.Int64("compared", run.Compared),
		slog.Int("found", run.Found), slog.Int("new", run.Fresh), slog.Int("resolved", run.Resolved), slog.String("error", run.Error))
	return run, err
}

// safely runs a check; its panic is its failure, not the process's.
func safely(ctx context.Context, c check, s scope) (out result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("check %s: panic: %v\n%s", c.name, p, debug.Stack())
		}
	}()
	out, err = c.run(ctx, s)
	if err != nil {
		err = fmt.Errorf("check %s: %w", c.name, err)
	}
	return out, err
}

var errNoRun = &fault.Error{Kind: fault.KindNotFound, Code: "run_not_found", Public: "there is no such run"}

// sqlReadRuns pages backwards over the index reconcile_runs_by_time.
const sqlReadRuns = `
	SELECT run_id, check_name, slot, cause, window_from, window_to, account, state, compared, found, fresh, resolved, error, started_at, finished_at
	FROM reconcile_runs
	WHERE (started_at, run_id) < ($1, $2) AND ($3 = '' OR check_name = $3) AND ($4 = '' OR run_id = $4)
	ORDER BY started_at DESC, run_id DESC
	LIMIT $5`

// Runs lists runs, newest first, those before the given one.
func (r *Reconciler) Runs(ctx context.Context, before time.Time, beforeID, check, id string, limit int) (runs []Run, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		runs = nil
		return tx.SelectContext(ctx, &runs, sqlReadRuns, before, beforeID, check, id, limit)
	})
	return runs, err
}

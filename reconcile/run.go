package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
	"tallystick/internal/stripe"
)

// Bounds of a run.
const (
	// runMax bounds one check's run; after it the run is fenced off.
	runMax = 30 * time.Minute
	// hangGrace is how long a check may take to heed that it is called off.
	hangGrace = 30 * time.Second
	// lease is how long a run holds its check without a sign of life. A process that
	// dies is replaced this soon.
	lease = 2 * time.Minute
	// renewEvery is how often a living run extends its lease, in real time.
	renewEvery = 20 * time.Second
	// busyWait bounds how long a request waits for a run under way of the same check.
	busyWait = time.Minute
	busyLook = 100 * time.Millisecond
)

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
	Calls      int64      `db:"calls"` // made to Stripe
	Note       string     `db:"note"`  // what was not read, and why
	Totals     string     `db:"totals"`
	Epoch      int64      `db:"epoch"`
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

// RunSlot runs checks for a scheduled time. What another process has run, or is
// running, is passed over.
func (r *Reconciler) RunSlot(ctx context.Context, slot time.Time, names ...string) ([]Run, error) {
	s, err := r.scope(Options{})
	if err != nil {
		return nil, err
	}
	checks, err := r.selected(names)
	if err != nil {
		return nil, err
	}
	return r.runAll(ctx, checks, s, "schedule", slot)
}

func (r *Reconciler) runAll(ctx context.Context, checks []check, s scope, cause string, slot time.Time) ([]Run, error) {
	var runs []Run
	var overtaken error
	for _, c := range checks {
		run, ours, err := r.claimPatiently(ctx, c, s, cause, slot)
		if err != nil {
			return runs, err
		}
		if !ours {
			continue
		}
		if run, err = r.perform(ctx, c, s, run); err != nil && !errors.Is(err, errOvertaken) {
			return runs, err
		}
		overtaken = errors.Join(overtaken, err)
		runs = append(runs, run)
	}
	if len(runs) == 0 {
		return runs, nil
	}
	if r.Policy == RepairSafe {
		if err := r.repairSafe(ctx); err != nil {
			return runs, errors.Join(overtaken, err)
		}
	}
	return runs, errors.Join(overtaken, r.notify(ctx))
}

func (r *Reconciler) preview(ctx context.Context, checks []check, s scope) ([]Run, error) {
	var runs []Run
	for _, c := range checks {
		run := Run{Check: c.name, From: s.from, To: s.to, Account: s.account, State: "succeeded", StartedAt: s.now}
		s.frame = &frame{r: r, run: run, budget: stripe.NewBudget(r.Calls)}
		err := r.DB.Read(ctx, func(tx *sqlx.Tx) (err error) {
			s.frame.progress, err = readProgress(ctx, tx, c.name)
			return err
		})
		if err != nil {
			return runs, err
		}
		out, err := safely(ctx, c, s)
		run.Compared, run.Found, run.Calls, run.Note = out.compared, len(out.found), s.frame.budget.Made(), out.note
		if err != nil {
			run.State, run.Error = "failed", err.Error()
		}
		if run.Totals, err = totalsOf(c.name, out.found); err != nil {
			return nil, err
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

// sqlEndRun relies on reconcile_runs_pkey, and on the fence before it.
const sqlEndRun = `
	UPDATE reconcile_runs
	SET state = $2, compared = $3, found = $4, fresh = $5, resolved = $6, error = $7, finished_at = $8, calls = $9, note = $10, totals = $11::jsonb
	WHERE run_id = $1 AND state = 'running'`

// perform runs one check and writes what it found, in one transaction with the
// end of the run and the return of its lease.
func (r *Reconciler) perform(ctx context.Context, c check, s scope, run Run) (Run, error) {
	s.frame = &frame{r: r, run: run, budget: stripe.NewBudget(r.Calls)}
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) (err error) {
		s.frame.progress, err = readProgress(ctx, tx, c.name)
		return err
	})
	var out result
	if err == nil {
		out, err = r.watched(ctx, c, s, run)
	}
	run.State = "succeeded"
	if err != nil {
		run.State, run.Error = "failed", fault.Text(err.Error())
	}
	run.Compared, run.Found, run.Calls, run.Note = out.compared, len(out.found), s.frame.budget.Made(), fault.Text(out.note)
	if run.Totals, err = totalsOf(c.name, out.found); err == nil {
		err = r.end(ctx, c, s, &run, out)
	}
	level := slog.LevelInfo
	if run.State == "failed" {
		level = slog.LevelError
	}
	r.Logger.Log(ctx, level, "check", slog.String("check", c.name), slog.String("run", run.ID), slog.String("state", run.State), slog.Int64("compared", run.Compared),
		slog.Int("found", run.Found), slog.Int("new", run.Fresh), slog.Int("resolved", run.Resolved), slog.Int64("calls", run.Calls), slog.String("error", run.Error))
	return run, err
}

// watched runs a check while its lease is kept alive. One that heeds neither its
// bound nor its context is left behind: it is fenced off, and its process goes on.
func (r *Reconciler) watched(ctx context.Context, c check, s scope, run Run) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, r.runMax)
	defer cancel()
	alive := r.keepAlive(ctx, cancel, run)
	type outcome struct {
		out result
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		out, err := safely(ctx, c, s)
		ended <- outcome{out, err}
	}()
	var o outcome
	select {
	case o = <-ended:
	case <-ctx.Done():
		select {
		case o = <-ended:
		case <-time.After(r.hangGrace):
			o.err = fmt.Errorf("check %s hangs: it did not end within %s of being called off", c.name, r.hangGrace)
		}
	}
	cancel()
	<-alive
	return o.out, o.err
}

// end writes the outcome of a run, unless it was overtaken.
func (r *Reconciler) end(ctx context.Context, c check, s scope, run *Run, out result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lease)
	defer cancel()
	at := r.Now()
	run.FinishedAt = &at
	succeeded := run.State == "succeeded"
	return r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		run.Fresh, run.Resolved = 0, 0
		if err := fence(ctx, tx, *run); err != nil {
			return err
		}
		if succeeded {
			if err := r.record(ctx, tx, c.name, s, run, out); err != nil {
				return err
			}
			if out.progress != nil {
				text, err := encode(out.progress)
				if err != nil {
					return err
				}
				if err := saveProgress(ctx, tx, c.name, text); err != nil {
					return err
				}
			}
		}
		_, err := tx.ExecContext(ctx, sqlEndRun, run.ID, run.State, run.Compared, run.Found, run.Fresh, run.Resolved, run.Error, at, run.Calls, run.Note, run.Totals)
		if err != nil {
			return fmt.Errorf("end the run: %w", err)
		}
		return release(ctx, tx, c.name, at, succeeded)
	})
}

// safely runs a check; its panic is its failure, not the process's.
func safely(ctx context.Context, c check, s scope) (out result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("check %s: panic: %v\n%s", c.name, p, debug.Stack())
		}
	}()
	if s.frame != nil {
		ctx = stripe.WithBudget(ctx, s.frame.budget)
	}
	out, err = c.run(ctx, s)
	seen := make(map[string]bool, len(out.found))
	for _, d := range out.found {
		if seen[d.Subject] {
			err = errors.Join(err, fmt.Errorf("it found %s twice", d.Subject))
		}
		seen[d.Subject] = true
	}
	if err != nil {
		err = fmt.Errorf("check %s: %w", c.name, err)
	}
	return out, err
}

var errNoRun = &fault.Error{Kind: fault.KindNotFound, Code: "run_not_found", Public: "there is no such run"}

// sqlReadRuns pages backwards over the index reconcile_runs_by_time.
const sqlReadRuns = `
	SELECT run_id, check_name, slot, cause, window_from, window_to, account, state, compared, found, fresh, resolved, calls, note, totals, epoch, error,
		started_at, finished_at
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

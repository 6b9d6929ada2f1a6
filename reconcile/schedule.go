package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/robfig/cron/v3"

	"tallystick/internal/config"
)

// Bounds of the schedule.
const (
	// wakeEvery is how often the schedule is looked at. Cron only wakes: which slot
	// is due is worked out from the injected clock, and the unique row of a slot
	// decides who runs it.
	wakeEvery = "@every 10s"
	// retryAfter is how long a check that failed is left alone: Stripe may be away.
	retryAfter = 5 * time.Minute
	// sideBySide is how many checks one process runs at a time, so that one that is
	// slow does not keep the others waiting.
	sideBySide = 2
	// startMax bounds how long the watch over silence waits for the first round.
	startMax = 10 * time.Minute
)

// lookbacks are how far back a latest slot is searched for, short first.
var lookbacks = []time.Duration{25 * time.Hour, 32 * 24 * time.Hour, 367 * 24 * time.Hour}

// specOf is the schedule of a check: its own by configuration, else its own by
// nature, else that of its kind; config.ScheduleOff for none.
func (r *Reconciler) specOf(c check) string {
	switch {
	case r.Schedules[c.name] != "":
		return r.Schedules[c.name]
	case c.spec != "":
		return c.spec
	case c.daily && r.Daily != "":
		return r.Daily
	}
	return r.Schedule
}

// planned is a check with its schedule.
type planned struct {
	check
	spec     string
	schedule cron.Schedule
}

// plan reads the schedules of all checks. A schedule of a check that does not
// exist is a mistake: the check that was meant would go by another one.
func (r *Reconciler) plan() ([]planned, error) {
	for name := range r.Schedules {
		if r.Describe(name) == "" {
			return nil, fmt.Errorf("TALLYSTICK_RECONCILE_SCHEDULES names %s, which is no check; tallystick reconcile list has them", name)
		}
	}
	var plan []planned
	for _, c := range r.checks {
		spec := r.specOf(c)
		if spec == config.ScheduleOff {
			continue
		}
		schedule, err := config.ParseSchedule(spec)
		if err != nil {
			return nil, fmt.Errorf("the schedule of %s %w", c.name, err)
		}
		plan = append(plan, planned{check: c, spec: spec, schedule: schedule})
	}
	return plan, nil
}

// Validate tells whether the schedules make sense, before anything starts.
func (r *Reconciler) Validate() error {
	if r.Schedule == "" {
		return nil
	}
	_, err := r.plan()
	return err
}

// Start runs the checks on schedule until ctx ends; the slot that was missed while
// no process ran is caught up at once. Without a schedule it returns at once.
func (r *Reconciler) Start(ctx context.Context) error {
	if r.Schedule == "" {
		return nil
	}
	plan, err := r.plan()
	if err != nil {
		return err
	}
	var watch, rest []planned
	for _, p := range plan {
		if p.name == silenceCheck {
			watch = append(watch, p)
		} else {
			rest = append(rest, p)
		}
	}
	caughtUp := make(chan struct{})
	first := sync.OnceFunc(func() { close(caughtUp) })
	begun := time.After(startMax)
	log := cronLog{r.Logger}
	// Recover is innermost: outside of SkipIfStillRunning a single panic would
	// keep the job from ever running again.
	c := cron.New(cron.WithLocation(time.UTC), cron.WithLogger(log), cron.WithChain(cron.SkipIfStillRunning(log), cron.Recover(log)))
	jobs := []func(){
		func() { r.wake(ctx, rest); first() },
		// The watch over silence has a waker of its own: a check that hangs must not
		// silence it. It waits for what is caught up at the start, which was silent
		// because nothing ran.
		func() {
			select {
			case <-caughtUp:
			case <-begun:
				first()
			default:
				return
			}
			r.wake(ctx, watch)
		},
	}
	for _, job := range jobs {
		if _, err := c.AddFunc(wakeEvery, job); err != nil {
			return fmt.Errorf("wake the schedule: %w", err)
		}
	}
	c.Start()
	<-ctx.Done()
	<-c.Stop().Done()
	return nil
}

// wake runs what is due.
func (r *Reconciler) wake(ctx context.Context, plan []planned) {
	due, err := r.due(ctx, plan)
	if err != nil {
		if ctx.Err() == nil {
			r.Logger.Error("the schedule was not read", slog.String("error", err.Error()))
		}
		return
	}
	places := make(chan struct{}, sideBySide)
	var wg sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(due)) {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if _, err := r.RunSlot(ctx, due[name], name); err != nil && ctx.Err() == nil {
				r.Logger.Error("a scheduled check did not end", slog.String("check", name), slog.Time("slot", due[name]), slog.String("error", err.Error()))
			}
		})
	}
	wg.Wait()
}

// sqlSlots gives how the latest slots of the checks stand, over reconcile_runs_once.
const sqlSlots = `
	SELECT check_name, slot, state, finished_at
	FROM reconcile_runs
	WHERE (check_name, slot) IN (SELECT * FROM unnest($1::text[], $2::timestamptz[]))`

// sqlWatch keeps since when success is expected, over reconcile_checks_pkey. The
// same schedule again changes nothing.
const sqlWatch = `
	INSERT INTO reconcile_checks AS c (check_name, epoch, run_id, progress, spec, watched_since)
	SELECT name, 0, '', '{}', spec, $3 FROM unnest($1::text[], $2::text[]) AS w (name, spec)
	ORDER BY name
	ON CONFLICT (check_name) DO UPDATE SET spec = excluded.spec, watched_since = excluded.watched_since
	WHERE c.spec <> excluded.spec`

// due gives the slots that are to be run now, by the names of their checks.
func (r *Reconciler) due(ctx context.Context, plan []planned) (map[string]time.Time, error) {
	now := r.Now()
	due := map[string]time.Time{}
	var names, specs, slots pq.StringArray
	for _, p := range plan {
		if slot, ok := latestSlot(p.schedule, now); ok {
			due[p.name] = slot
			names, specs, slots = append(names, p.name), append(specs, p.spec), append(slots, slot.Format(time.RFC3339))
		}
	}
	var stand []struct {
		Check    string     `db:"check_name"`
		Slot     time.Time  `db:"slot"`
		State    string     `db:"state"`
		Finished *time.Time `db:"finished_at"`
	}
	err := r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		stand = nil
		if _, err := tx.ExecContext(ctx, sqlWatch, names, specs, now); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &stand, sqlSlots, names, slots)
	})
	if err != nil {
		return nil, err
	}
	for _, s := range stand {
		if s.State == "succeeded" || (s.State == "failed" && s.Finished != nil && now.Before(s.Finished.Add(retryAfter))) {
			delete(due, s.Check)
		}
	}
	return due, nil
}

// latestSlot is the last scheduled time that is not in the future.
func latestSlot(schedule cron.Schedule, now time.Time) (slot time.Time, ok bool) {
	for _, back := range lookbacks {
		for t := schedule.Next(now.Add(-back)); !t.IsZero() && !t.After(now); t = schedule.Next(t) {
			slot, ok = t, true
		}
		if ok {
			return slot, true
		}
	}
	return slot, false
}

// cronLog passes cron's lines on: its wake-ups are of no interest, its errors are.
type cronLog struct{ l *slog.Logger }

// Info drops the line.
func (c cronLog) Info(string, ...any) {}

// Error logs the line.
func (c cronLog) Error(err error, text string, _ ...any) {
	c.l.Error("schedule", slog.String("line", text), slog.String("error", err.Error()))
}

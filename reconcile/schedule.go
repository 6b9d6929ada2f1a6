package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/robfig/cron/v3"
)

// wakeEvery is how often the schedule is looked at. Cron only wakes: which slot is
// due is worked out from the injected clock, and the unique row of a slot decides
// who runs it.
const wakeEvery = "@every 10s"

// lookbacks are how far back a latest slot is searched for, short first.
var lookbacks = []time.Duration{25 * time.Hour, 32 * 24 * time.Hour, 367 * 24 * time.Hour}

// Start runs the checks on schedule until ctx ends; the slot that was missed while
// no process ran is caught up at once. Without a schedule it returns at once.
func (r *Reconciler) Start(ctx context.Context) error {
	if r.Schedule == "" {
		return nil
	}
	schedule, err := cron.ParseStandard(r.Schedule) // checked by the configuration
	if err != nil {
		return fmt.Errorf("the schedule of the checks: %w", err)
	}
	wake := func() {
		slot, ok := latestSlot(schedule, r.Now())
		if !ok {
			return
		}
		if _, err := r.RunSlot(ctx, slot); err != nil && ctx.Err() == nil {
			r.Logger.Error("scheduled checks did not end", slog.Time("slot", slot), slog.String("error", err.Error()))
		}
	}
	log := cronLog{r.Logger}
	// Recover is innermost: outside of SkipIfStillRunning a single panic would
	// keep the job from ever running again.
	c := cron.New(cron.WithLocation(time.UTC), cron.WithLogger(log), cron.WithChain(cron.SkipIfStillRunning(log), cron.Recover(log)))
	if _, err := c.AddFunc(wakeEvery, wake); err != nil {
		return fmt.Errorf("wake the schedule: %w", err)
	}
	c.Start()
	<-ctx.Done()
	<-c.Stop().Done()
	return nil
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

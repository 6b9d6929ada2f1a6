package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/robfig/cron/v3"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

func TestLatestSlot(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ spec, now, want string }{
		{"7 * * * *", "2026-03-01T10:07:00Z", "2026-03-01T10:07:00Z"},
		{"7 * * * *", "2026-03-01T10:06:59Z", "2026-03-01T09:07:00Z"},
		{"0 3 * * *", "2026-03-29T02:30:00Z", "2026-03-28T03:00:00Z"}, // the night of the clock change in Europe
		{"30 2 * * *", "2026-03-29T02:30:00Z", "2026-03-29T02:30:00Z"},
		{"0 0 1 * *", "2026-03-31T23:59:59Z", "2026-03-01T00:00:00Z"},
		{"0 0 29 2 *", "2026-03-01T00:00:00Z", ""}, // two years ago is no slot to catch up
		{"0 0 1 1 *", "2026-12-31T00:00:00Z", "2026-01-01T00:00:00Z"},
	} {
		schedule, err := cron.ParseStandard(tc.spec)
		if err != nil {
			t.Fatal(err)
		}
		now, err := time.Parse(time.RFC3339, tc.now)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if slot, ok := latestSlot(schedule, now); ok {
			got = slot.Format(time.RFC3339)
		}
		if got != tc.want {
			t.Errorf("%s at %s: the latest slot is %q, want %q", tc.spec, tc.now, got, tc.want)
		}
	}
}

// silent stages nothing.
type silent struct{}

func (silent) StageMail(context.Context, *sqlx.Tx, string, Mail) error { return nil }

// counting makes a Reconciler whose only check counts its runs.
func counting(db *pg.DB, now func() time.Time, run func(ctx context.Context) error) *Reconciler {
	r := New(Config{DB: db, Now: now, Logger: slog.New(slog.DiscardHandler), Alerter: silent{}})
	r.checks = []check{{name: "counted", run: func(ctx context.Context, _ scope) (result, error) { return result{}, run(ctx) }}}
	return r
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// TestR3OneSlotIsRunOnce lets eight processes meet at one slot.
func TestR3OneSlotIsRunOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var mu sync.Mutex
	ran := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r := counting(db, func() time.Time { return noon }, func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				ran++
				return nil
			})
			if _, err := r.RunSlot(t.Context(), noon); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ran != 1 {
		t.Errorf("the slot was run %d times, want once", ran)
	}
}

// TestR3AHungRunIsFencedOff lets a run hang beyond its lease: another takes the
// slot, and what the first one says afterwards counts no more.
func TestR3AHungRunIsFencedOff(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	started, release := make(chan struct{}), make(chan struct{})
	hung := counting(db, func() time.Time { return noon }, func(context.Context) error {
		close(started)
		<-release
		return nil
	})
	ended := make(chan error, 1)
	go func() {
		_, err := hung.RunSlot(t.Context(), noon)
		ended <- err
	}()
	<-started
	for _, tc := range []struct {
		after time.Duration
		want  int
	}{{lease, 0}, {lease + time.Microsecond, 1}} {
		other := counting(db, func() time.Time { return noon.Add(tc.after) }, func(context.Context) error { return nil })
		runs, err := other.RunSlot(t.Context(), noon)
		if err != nil || len(runs) != tc.want {
			t.Errorf("%s after the start %d runs were made, %v; want %d", tc.after, len(runs), err, tc.want)
		}
	}
	close(release)
	if err := <-ended; !errors.Is(err, errOvertaken) {
		t.Errorf("the hung run ends with %v, want %v", err, errOvertaken)
	}
}

// TestAFailedSlotIsRunAgainAndAPanicIsAFailure keeps a broken check from being
// taken for a clean one.
func TestAFailedSlotIsRunAgainAndAPanicIsAFailure(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for i, tc := range []struct {
		check func(context.Context) error
		state string
	}{
		{func(context.Context) error { return &net.OpError{Op: "dial", Err: errors.New("away")} }, "failed"},
		{func(context.Context) error { panic("broken \xff\x00") }, "failed"},
		{func(context.Context) error { return nil }, "succeeded"},
	} {
		r := counting(db, func() time.Time { return noon }, tc.check)
		runs, err := r.RunSlot(t.Context(), noon)
		if err != nil || len(runs) != 1 || runs[0].State != tc.state {
			t.Errorf("run %d: %+v, %v; want it %s", i, runs, err, tc.state)
		}
	}
	r := counting(db, func() time.Time { return noon }, func(context.Context) error { return errors.New("run again") })
	if runs, err := r.RunSlot(t.Context(), noon); err != nil || len(runs) != 0 {
		t.Errorf("a slot that has succeeded was run again: %+v, %v", runs, err)
	}
}

// TestScheduleCatchesUpAtOnce starts after a slot was missed.
func TestScheduleCatchesUpAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan struct{}, 1)
	r := counting(db, func() time.Time { return noon }, func(context.Context) error {
		ran <- struct{}{}
		return nil
	})
	r.Schedule = "0 3 * * *"
	ended := make(chan error, 1)
	go func() { ended <- r.Start(ctx) }()
	select {
	case <-ran:
	case <-time.After(30 * time.Second):
		t.Error("the missed slot was not run")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	runs, err := r.Runs(t.Context(), noon.Add(time.Hour), "", "", "", 10)
	if err != nil || len(runs) != 1 || !runs[0].Slot.Equal(time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)) || runs[0].Cause != "schedule" {
		t.Errorf("the runs are %+v, %v", runs, err)
	}
}

package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

// framed makes a Reconciler with one check.
func framed(db *pg.DB, now time.Time, run func(ctx context.Context, s scope) (result, error)) *Reconciler {
	r := New(Config{DB: db, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler), Alerter: silent{}})
	r.checks = []check{{name: "counted", description: "a test", run: run}}
	return r
}

// TestACheckGoesOnWhereItStopped keeps progress through a run that fails, and not
// what a dry run does.
func TestACheckGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	type stand struct{ At int }
	var before stand
	step := func(fail error, saved, kept int) func(context.Context, scope) (result, error) {
		return func(ctx context.Context, s scope) (result, error) {
			before = stand{}
			if err := s.progress(&before); err != nil {
				return result{}, err
			}
			if err := s.save(ctx, stand{saved}); err != nil {
				return result{}, err
			}
			return result{progress: stand{kept}}, fail
		}
	}
	for i, tc := range []struct {
		fail        error
		dry         bool
		saved, kept int
		wantBefore  int
	}{{nil, true, 1, 2, 0}, {nil, false, 3, 4, 0}, {errors.New("killed in the middle"), false, 5, 6, 4}, {nil, true, 7, 8, 5}, {nil, false, 9, 10, 5}, {nil, false, 11, 12, 10}} {
		r := framed(db, noon.Add(time.Duration(i)*time.Hour), step(tc.fail, tc.saved, tc.kept))
		runs, err := r.RunNow(t.Context(), Options{DryRun: tc.dry})
		if err != nil || len(runs) != 1 || (runs[0].State == "failed") != (tc.fail != nil) {
			t.Errorf("run %d: %+v, %v", i, runs, err)
		}
		if before.At != tc.wantBefore {
			t.Errorf("run %d began at %d, want %d", i, before.At, tc.wantBefore)
		}
	}
}

// TestACheckKnowsWhatIsLeftOfItsBudget of calls to Stripe.
func TestACheckKnowsWhatIsLeftOfItsBudget(t *testing.T) {
	t.Parallel()
	var left int64
	r := framed(pgtest.New(t), noon, func(_ context.Context, s scope) (result, error) {
		left = s.callsLeft()
		return result{note: "all of it"}, nil
	})
	r.Calls = 123
	if runs, err := r.RunNow(t.Context(), Options{}); err != nil || len(runs) != 1 || runs[0].Note != "all of it" || left != 123 {
		t.Errorf("the runs are %+v, %v; left were %d calls, want 123", runs, err, left)
	}
	if n := (scope{}).callsLeft(); n != callsDefault {
		t.Errorf("without a frame there are %d calls, want %d", n, callsDefault)
	}
}

// TestR3NoWriteOfARunThatWasOvertaken lets a run wake up after another has taken its
// check: its fence refuses, whatever it would write.
func TestR3NoWriteOfARunThatWasOvertaken(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	started, overtaken := make(chan struct{}), make(chan struct{})
	var refused error
	old := framed(db, noon, func(ctx context.Context, s scope) (result, error) {
		close(started)
		<-overtaken
		refused = db.InTx(ctx, func(tx *sqlx.Tx) error { return s.fence(ctx, tx) })
		return result{}, errors.Join(refused, s.save(ctx, "too late"))
	})
	ended := make(chan error, 1)
	go func() {
		_, err := old.RunSlot(t.Context(), noon)
		ended <- err
	}()
	<-started
	next := framed(db, noon.Add(lease+time.Second), func(ctx context.Context, s scope) (result, error) {
		return result{}, db.InTx(ctx, func(tx *sqlx.Tx) error { return s.fence(ctx, tx) })
	})
	if runs, err := next.RunSlot(t.Context(), noon.Add(time.Minute)); err != nil || len(runs) != 1 || runs[0].State != "succeeded" {
		t.Errorf("the run that took over: %+v, %v", runs, err)
	}
	close(overtaken)
	if err := <-ended; !errors.Is(err, errOvertaken) || !errors.Is(refused, errOvertaken) {
		t.Errorf("the overtaken run ended with %v, its fence with %v", err, refused)
	}
}

// TestR3RunsOfOneCheckNeverOverlap holds for different slots, too; a request waits
// its turn.
func TestR3RunsOfOneCheckNeverOverlap(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	started, release := make(chan struct{}), make(chan struct{})
	slow := framed(db, noon, func(context.Context, scope) (result, error) {
		close(started)
		<-release
		return result{}, nil
	})
	ended := make(chan error, 1)
	go func() {
		_, err := slow.RunSlot(t.Context(), noon)
		ended <- err
	}()
	<-started
	quick := framed(db, noon.Add(time.Second), func(context.Context, scope) (result, error) { return result{}, nil })
	if runs, err := quick.RunSlot(t.Context(), noon.Add(time.Hour)); err != nil || len(runs) != 0 {
		t.Errorf("beside a run another was made: %+v, %v", runs, err)
	}
	asked := make(chan int, 1)
	go func() {
		runs, err := quick.RunNow(t.Context(), Options{})
		if err != nil {
			t.Error(err)
		}
		asked <- len(runs)
	}()
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := <-asked; n != 1 {
		t.Errorf("a request that waited made %d runs, want 1", n)
	}
}

// TestAHangIsLeftBehind has a check that heeds nothing: its run fails at its bound,
// its later writes are refused, and the process goes on.
func TestAHangIsLeftBehind(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	late := make(chan error, 1)
	release := make(chan struct{})
	r := framed(db, noon, func(_ context.Context, s scope) (result, error) {
		<-release
		late <- s.save(context.WithoutCancel(t.Context()), "too late")
		return result{}, nil
	})
	r.runMax, r.hangGrace = 50*time.Millisecond, 50*time.Millisecond
	runs, err := r.RunSlot(t.Context(), noon)
	if err != nil || len(runs) != 1 || runs[0].State != "failed" {
		t.Errorf("a run that hangs: %+v, %v", runs, err)
	}
	close(release)
	if err := <-late; !errors.Is(err, errOvertaken) {
		t.Errorf("a write after the end was answered %v, want %v", err, errOvertaken)
	}
}

// TestSilenceIsAFinding lets a check fail, and not run at all, for longer than it may.
func TestSilenceIsAFinding(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	now := noon
	var fails error
	r := New(Config{DB: db, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler), Alerter: silent{}, Schedule: "0 * * * *"})
	watch := r.checks[len(r.checks)-1]
	for _, c := range r.checks {
		if c.name == silenceCheck {
			watch = c
		}
	}
	r.checks = []check{
		{name: "hourly", description: "a test", run: func(context.Context, scope) (result, error) { return result{}, fails }},
		{name: "daily", description: "a test", spec: "0 0 * * *", run: func(context.Context, scope) (result, error) { return result{}, nil }},
		watch,
	}
	plan, err := r.plan()
	if err != nil {
		t.Fatal(err)
	}
	r.wake(t.Context(), plan)
	fails = errors.New("stripe is away")
	for _, step := range []struct {
		name string
		at   time.Duration
		wake bool
		want string
	}{
		{"in time", 59 * time.Minute, true, ""},
		{"late, within patience", 2 * time.Hour, true, ""},
		{"beyond patience", 2*time.Hour + time.Minute, true, "silence/hourly failing"},
		{"nobody has run it since", 20 * time.Hour, false, "silence/hourly not_run"},
		{"the daily one, too", 37 * time.Hour, false, "silence/daily not_run silence/hourly not_run"},
	} {
		now = noon.Add(step.at)
		if step.wake {
			r.wake(t.Context(), plan[:1])
		}
		out, err := watch.run(t.Context(), scope{now: now})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, d := range out.found {
			got += d.Subject + " " + d.Cause + " "
			f, err := d.finding(silenceCheck, now)
			if err != nil || f.Severity != "high" {
				t.Errorf("%s: the finding is %+v, %v", step.name, f, err)
			}
		}
		if got != step.want && got != step.want+" " {
			t.Errorf("%s: found %q, want %q", step.name, got, step.want)
		}
	}
	fails = nil
	r.wake(t.Context(), plan[:2])
	if out, err := watch.run(t.Context(), scope{now: now}); err != nil || len(out.found) > 0 {
		t.Errorf("after they succeeded: %+v, %v", out.found, err)
	}
}

// TestAFailedSlotRestsBeforeItIsTriedAgain keeps an outage from being hammered.
func TestAFailedSlotRestsBeforeItIsTriedAgain(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	now, ran := noon, 0
	r := framed(db, noon, func(context.Context, scope) (result, error) {
		ran++
		return result{}, errors.New("away")
	})
	r.Now, r.Schedule = func() time.Time { return now }, "0 * * * *"
	plan, err := r.plan()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		at   time.Duration
		want int
	}{{0, 1}, {retryAfter - time.Second, 1}, {retryAfter, 2}, {retryAfter + time.Second, 2}, {time.Hour, 3}} {
		now = noon.Add(step.at)
		r.wake(t.Context(), plan)
		if ran != step.want {
			t.Errorf("%s after the slot it had run %d times, want %d", step.at, ran, step.want)
		}
	}
}

func TestSchedulesOfChecks(t *testing.T) {
	t.Parallel()
	r := New(Config{Schedule: "7 * * * *", Daily: "23 4 * * *", Schedules: map[string]string{"ledger.balances": "off", "usage.totals": "*/5 * * * *"}})
	r.checks = append(r.checks, check{name: "dear", daily: true})
	plan, err := r.plan()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range plan {
		got[p.name] = p.spec
	}
	want := map[string]string{"usage.totals": "*/5 * * * *", "credits.payments": "7 * * * *", silenceCheck: silenceSpec, "dear": "23 4 * * *", "ledger.balances": ""}
	for name, spec := range want {
		if got[name] != spec {
			t.Errorf("%s runs at %q, want %q", name, got[name], spec)
		}
	}
	for _, wrong := range []map[string]string{{"nothing": "7 * * * *"}, {"usage.totals": "0 0 30 2 *"}, {"usage.totals": "TZ=UTC"}, {"usage.totals": "TZ=Mars/Olympus 0 0 * * *"}} {
		if err := New(Config{Schedule: "7 * * * *", Schedules: wrong}).Validate(); err == nil {
			t.Errorf("the schedules %v are taken", wrong)
		}
	}
}

// TestSeverityRisesAsTheDeadlineComesNear at the edges, and one beyond.
func TestSeverityRisesAsTheDeadlineComesNear(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		minor int64
		least string
		left  time.Duration
		want  string
	}{
		{99, "", nearDeadline + 1, "low"},
		{99, "", nearDeadline, "medium"},
		{99, "", nearestDeadline, "medium"},
		{100, "", nearDeadline + 1, "medium"},
		{100, "", nearDeadline, "high"},
		{100, "", nearestDeadline + 1, "high"},
		{100, "", nearestDeadline, "critical"},
		{100, "", 0, "high"},
		{100, "", -time.Hour, "high"},
		{10_000, "", nearestDeadline, "critical"},
		{1, "high", nearDeadline + 1, "high"},
		{100_000, "low", nearDeadline + 1, "critical"},
	} {
		deadline := noon.Add(tc.left)
		if got := grade(&money{amount: tc.minor, currency: "usd"}, tc.least, &deadline, 0, noon); got != tc.want {
			t.Errorf("%d, least %q, %s left: %s, want %s", tc.minor, tc.least, tc.left, got, tc.want)
		}
	}
}

package webhooks_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/apptest"
	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

// missed is a till whose deliveries are lost, with a clock that goes as the
// simulator's does.
func missed(t *testing.T) (*apptest.Shop, *till) {
	t.Helper()
	s, d := beside(t)
	d.at(s.Clock.Now())
	return s, d
}

// at sets the till's clock.
func (d *till) at(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = now
}

func (d *till) sweep() {
	d.t.Helper()
	if _, err := d.SweepStep(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	d.step()
}

// TestE09TheSweepFindsWhatFourDaysOfDarknessLost buys and refunds meanwhile.
func TestE09TheSweepFindsWhatFourDaysOfDarknessLost(t *testing.T) {
	t.Parallel()
	s, d := missed(t)
	h := &history{t: t, s: s}
	c := &scene{till: d, h: h, t: t, payment: s.Buy(s.Price)}
	s.Sim.Advance(2 * 24 * time.Hour)
	c.refunds("400")
	s.Buy(s.Price)
	s.Sim.Advance(2 * 24 * time.Hour)
	d.at(s.Sim.Now())
	d.has("acme", "0")
	d.sweep()
	d.has("acme", "160")
	for _, r := range d.rows() {
		if r.State != "done" || r.Source != "sweep" {
			t.Errorf("%s is %s from %s", r.ID, r.State, r.Source)
		}
	}
	d.verify()
}

// TestTheSweepWaitsItsTimeAndOverlaps loses an event that was listed late.
func TestTheSweepWaitsItsTimeAndOverlaps(t *testing.T) {
	t.Parallel()
	s, d := missed(t)
	asked := &spy{StripeReader: stripe.New(stripe.Config{Key: s.Info.StripeAPIKey, BaseURL: s.Info.StripeAPIBase})}
	d.config.Stripe = asked
	d.Webhooks = d.another()
	d.sweep()
	d.pass(5*time.Minute - time.Microsecond)
	d.sweep()
	if len(asked.from) != 1 {
		t.Fatalf("within five minutes Stripe was swept %d times", len(asked.from))
	}
	d.pass(time.Microsecond)
	d.sweep()
	if len(asked.from) != 2 {
		t.Fatalf("after five minutes Stripe was swept %d times", len(asked.from))
	}
	if first, second := asked.to[0].Sub(asked.from[0]), asked.from[1].Sub(asked.to[0]); first != 30*24*time.Hour-2*time.Minute || second != -28*time.Minute {
		t.Errorf("the first sweep is of %s, the second begins %s after the first's end; want 30 days and half an hour of overlap", first, second)
	}
}

// spy notes which windows are swept, and fails when it is told to.
type spy struct {
	webhooks.StripeReader
	from, to []time.Time
	broken   error
	during   func()
}

func (s *spy) EventPages(ctx context.Context, types []string, from, to time.Time, each func([]stripe.Event) error) error {
	s.from, s.to = append(s.from, from), append(s.to, to)
	err := s.StripeReader.EventPages(ctx, types, from, to, each)
	if s.during != nil {
		s.during()
	}
	return errors.Join(err, s.broken)
}

// TestASweepThatFailsIsMadeAgainFromTheSamePlace writes no cursor before all pages
// were stored.
func TestASweepThatFailsIsMadeAgainFromTheSamePlace(t *testing.T) {
	t.Parallel()
	s, d := missed(t)
	asked := &spy{StripeReader: stripe.New(stripe.Config{Key: s.Info.StripeAPIKey, BaseURL: s.Info.StripeAPIBase}), broken: errors.New("cut")}
	d.config.Stripe = asked
	d.Webhooks = d.another()
	if _, err := d.SweepStep(t.Context()); err == nil {
		t.Fatal("a sweep that failed says that all is well")
	}
	if n := d.count("SELECT count(*) FROM stripe_sweeps WHERE swept_to IS NOT NULL"); n != 0 {
		t.Error("a sweep that failed has moved the cursor")
	}
	asked.broken = nil
	d.pass(10 * time.Minute) // its lease
	d.sweep()
	if first := asked.to[0].Sub(asked.from[0]); asked.to[1].Sub(asked.from[1]) != first {
		t.Errorf("made again it is of %s, want %s", asked.to[1].Sub(asked.from[1]), first)
	}
}

// TestOneProcessSweepsAndWhoWasOvertakenWritesNothing lets a lease run out.
func TestOneProcessSweepsAndWhoWasOvertakenWritesNothing(t *testing.T) {
	t.Parallel()
	s, d := missed(t)
	s.Buy(s.Price)
	s.Sim.Advance(time.Hour)
	d.at(s.Sim.Now())
	slow := &spy{StripeReader: stripe.New(stripe.Config{Key: s.Info.StripeAPIKey, BaseURL: s.Info.StripeAPIBase})}
	d.config.Stripe = slow
	d.Webhooks = d.another()
	slow.during = func() {
		slow.during = nil
		d.sweep() // it is leased: nothing
		if len(slow.from) != 1 {
			t.Errorf("two sweep at once")
		}
		d.pass(10 * time.Minute)
		d.sweep() // the lease is over
	}
	before := d.clock()
	d.sweep()
	var swept []time.Time
	d.query(&swept, "SELECT swept_to FROM stripe_sweeps")
	if len(slow.from) != 2 || len(swept) != 1 || !swept[0].Equal(before.Add(10*time.Minute)) {
		t.Errorf("after %d sweeps the cursor is at %v, want that of the one that came second", len(slow.from), swept)
	}
	d.has("acme", "100")
}

// TestASweepSeesThroughPagesThatShift has more events than a page, while the list
// shifts and lags.
func TestASweepSeesThroughPagesThatShift(t *testing.T) {
	t.Parallel()
	s, d := missed(t)
	for range 60 {
		s.Buy(s.Price)
	}
	s.Sim.Advance(time.Hour)
	d.at(s.Sim.Now())
	s.Control("/_sim/faults", `{"rules": [{"method": "GET", "path": "/v1/events", "fault": "page_shift", "times": 3}]}`)
	d.sweep()
	s.Sim.Advance(10 * time.Minute)
	d.at(s.Sim.Now())
	d.sweep()
	d.has("acme", "6000")
	d.verify()
}

func TestBackfillSaysFirstAndStoresThen(t *testing.T) {
	t.Parallel()
	s, d := missed(t)
	s.Buy(s.Price)
	ask := func(dry bool) (b api.Backfill) {
		t.Helper()
		body := fmt.Sprintf(`{"from": %q, "to": %q, "dry_run": %t}`, s.Sim.Now().Add(-time.Hour).Format(time.RFC3339), s.Sim.Now().Add(time.Hour).Format(time.RFC3339), dry)
		w := d.send(http.MethodPost, "/v1/stripe/backfill", body, http.Header{"Content-Type": {"application/json"}})
		if err := json.Unmarshal(w.Body.Bytes(), &b); err != nil || w.Code != http.StatusOK {
			t.Fatalf("it was answered %d, %v: %s", w.Code, err, w.Body)
		}
		return b
	}
	if b := ask(true); b.Missing != 2 || len(b.Events) != 2 || len(d.rows()) != 0 {
		t.Errorf("dry it says %+v with %d events kept; want the two that count, and none kept", b, len(d.rows()))
	}
	if b := ask(false); b.Missing != 2 || b.Listed != 2 {
		t.Errorf("it says %+v", b)
	}
	if b := ask(false); b.Missing != 0 || b.Listed != 2 {
		t.Errorf("again it says %+v", b)
	}
	d.step()
	d.has("acme", "100")
}

// TestE08EventsOfConnectedAccountsAreKeptAndNotApplied has an event of a type that
// would pay.
func TestE08EventsOfConnectedAccountsAreKeptAndNotApplied(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	d.deliver(strings.Replace(paid("evt_1", "pi_1"), `"object": "event"`, `"object": "event", "account": "acct_other"`, 1))
	d.step()
	if got := d.one(); got.State != "flagged" || !strings.Contains(got.Error, "acct_other") {
		t.Errorf("it is %+v, want it flagged", got)
	}
	d.has("acme", "0")
}

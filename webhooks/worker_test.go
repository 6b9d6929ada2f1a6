package webhooks_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

// spoil makes the database refuse every payment, until mended.
func (d *till) spoil() {
	d.plant("ALTER TABLE payments ADD CONSTRAINT planted CHECK (false) NOT VALID")
}

func (d *till) mend() { d.plant("ALTER TABLE payments DROP CONSTRAINT planted") }

// TestAFailureIsKeptAndTriedAgainWithGrowingWaitsUntilTheBound tries at the end of
// each wait, and not a microsecond before it.
func TestAFailureIsKeptAndTriedAgainWithGrowingWaitsUntilTheBound(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	d.spoil()
	d.deliver(paid("evt_1", "pi_1"))
	d.step()
	for attempt := 1; attempt < 15; attempt++ {
		wait := min(2*time.Second<<(attempt-1), 6*time.Hour)
		got := d.one()
		if got.State != "pending" || got.Attempts != attempt || !strings.Contains(got.Error, "planted") || !got.NextTryAt.Equal(d.clock().Add(wait)) {
			t.Fatalf("after try %d it is %+v, want the next in %s", attempt, got, wait)
		}
		d.pass(wait - time.Microsecond)
		d.step()
		if again := d.one(); again.Attempts != attempt {
			t.Fatalf("it was tried again a microsecond before the wait of %s was over", wait)
		}
		d.pass(time.Microsecond)
		d.step()
	}
	if got := d.one(); got.State != "failed" || got.Attempts != 15 || !strings.Contains(got.Error, "planted") {
		t.Fatalf("after the last try it is %+v, want it failed", got)
	}
	d.mend()
	d.pass(1000 * time.Hour)
	d.step()
	d.has("acme", "0")
	if w := d.send(http.MethodPost, "/v1/stripe/events/evt_1/replay", "", nil); w.Code != http.StatusOK {
		t.Fatalf("the replay was answered %d: %s", w.Code, w.Body)
	}
	d.step()
	if got := d.one(); got.State != "done" || got.Error != "" || got.Attempts != 1 || got.DoneAt == nil {
		t.Errorf("after the replay it is %+v, want it done", got)
	}
	d.has("acme", "100")
}

func TestAnEventThatLeadsNowhereFailsVisiblyOrHasNothingToDo(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	cases := []struct{ body, state, reason string }{
		{strings.Replace(paid("evt_0", "pi_1"), `"data"`, `"date"`, 1), "pending", "carries no object"},
		{event("evt_1", "payment_intent.succeeded", `{}`), "pending", "carries no object"},
		{event("evt_2", "checkout.session.completed", `{"payment_intent": "pi_1"}`), "pending", "carries no object"},
		{event("evt_3", "payment_intent.succeeded", `"pi_1"`), "pending", "cannot unmarshal"},
		{event("evt_4", "payment_intent.succeeded", `{"id": 1}`), "pending", "cannot unmarshal"},
		{event("evt_5", "refund.updated", `{"id": "re_1", "payment_intent": null}`), "done", ""},
	}
	for _, tc := range cases {
		d.deliver(tc.body)
	}
	d.step()
	for i, got := range d.rows() {
		want := cases[i]
		if got.State != want.state || got.Attempts != 1 || !strings.Contains(got.Error, want.reason) || (want.reason == "") != (got.Error == "") {
			t.Errorf("%s is %s after %d tries: %q; want it %s because %q", got.Payload, got.State, got.Attempts, got.Error, want.state, want.reason)
		}
	}
	d.has("acme", "0")
}

// TestAPaymentThatStripeDoesNotHaveUsesUpTries is no outage: Stripe has answered.
func TestAPaymentThatStripeDoesNotHaveUsesUpTries(t *testing.T) {
	t.Parallel()
	_, d := beside(t)
	d.deliver(paid("evt_1", "pi_nowhere"))
	d.step()
	if got := d.one(); got.State != "pending" || got.Attempts != 1 || !strings.Contains(got.Error, "pi_nowhere") {
		t.Errorf("it is %+v, want one try used up", got)
	}
}

func TestAPanicStopsNoOtherEvent(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_bad")
	d.pays("pi_good")
	d.before = func(_ context.Context, payment string) error {
		if payment == "pi_bad" {
			panic("poisoned \x00\xff")
		}
		return nil
	}
	d.deliver(paid("evt_1", "pi_bad"), paid("evt_2", "pi_good"))
	d.step()
	rows := d.rows()
	if rows[0].State != "pending" || rows[0].Attempts != 1 || !strings.HasPrefix(rows[0].Error, "panic: poisoned") {
		t.Errorf("the event that panics is %+v", rows[0])
	}
	if rows[1].State != "done" {
		t.Errorf("the event behind it is %+v", rows[1])
	}
	d.has("acme", "100")
}

// TestPoisonedEventsStarveNoOther has more of them than a worker takes at once.
func TestPoisonedEventsStarveNoOther(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_good")
	for i := range 300 {
		d.deliver(event(fmt.Sprint("evt_bad_", i), "payment_intent.succeeded", `{}`))
	}
	d.deliver(paid("evt_good", "pi_good"))
	for i, want := range []bool{true, true, false} {
		if more, err := d.Step(t.Context()); err != nil || more != want {
			t.Errorf("step %d of 301 events says more: %v, %v; want %v", i, more, err, want)
		}
	}
	if state := d.state("evt_good"); state != "done" {
		t.Errorf("the good event is %s, want done", state)
	}
}

func TestAnOutageOfStripeUsesNoTriesUp(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	d.deliver(paid("evt_1", "pi_1"))
	asked := 0
	d.before = func(context.Context, string) error {
		asked++
		return errors.New("connection refused")
	}
	for range 40 {
		d.step()
		got := d.one()
		wait := min(max(d.clock().Sub(start)/2, 2*time.Second), 10*time.Minute)
		if got.State != "pending" || got.Attempts != 0 || !strings.Contains(got.Error, "connection refused") || !got.NextTryAt.Equal(d.clock().Add(wait)) {
			t.Fatalf("during the outage it is %+v, want the next try in %s", got, wait)
		}
		d.pass(max(wait, time.Minute)) // Stripe is left alone for up to a minute
	}
	if asked != 40 {
		t.Errorf("Stripe was asked %d times in 40 tries", asked)
	}
	d.before = func(context.Context, string) error { return nil }
	d.step()
	if got := d.one(); got.State != "done" || got.Error != "" {
		t.Errorf("after the outage it is %+v", got)
	}
	d.has("acme", "100")
}

func TestReplay(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	older := strings.Replace(paid("evt_older", "pi_1"), stripe.APIVersion, "2020-08-27", 1)
	d.deliver(older, paid("evt_done", "pi_1"), event("evt_ignored", "unheard.of", `{}`))
	d.step()
	replay := func(id string) int { return d.send(http.MethodPost, "/v1/stripe/events/"+id+"/replay", "", nil).Code }
	if status := replay("evt_nowhere"); status != http.StatusNotFound {
		t.Errorf("an unknown event was answered %d", status)
	}
	for _, id := range []string{"evt_older", "evt_done", "evt_ignored"} {
		for range 2 {
			if status := replay(id); status != http.StatusOK {
				t.Errorf("the replay of %s was answered %d", id, status)
			}
			d.step()
			if state := d.state(id); state != "done" {
				t.Errorf("after its replay %s is %s, want done", id, state)
			}
		}
	}
	d.has("acme", "100")
	d.refund("pi_1", "re_1", "succeeded", 250)
	replay("evt_done")
	d.step()
	d.has("acme", "75") // what Stripe says now, not what it said then
}

// TestTwoWorkersShareTheEvents lets two processes work on many payments with two
// events each. A payment is read once per event: nobody takes what another has.
func TestTwoWorkersShareTheEvents(t *testing.T) {
	t.Parallel()
	d := opened(t)
	for i := range 30 {
		id := fmt.Sprint("pi_", i)
		d.pays(id)
		d.deliver(paid("evt_a"+id, id), paid("evt_b"+id, id))
	}
	for range 10 { // of two workers on one payment one comes back after a wait
		var wg sync.WaitGroup
		for _, worker := range []*webhooks.Webhooks{d.Webhooks, d.another()} {
			wg.Go(func() {
				for more := true; more; {
					var err error
					if more, err = worker.Step(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		d.pass(10 * time.Second)
	}
	if n := d.count("SELECT count(*) FROM stripe_events WHERE state <> 'done'"); n > 0 {
		t.Errorf("%d events are not done", n)
	}
	if n, again := d.count("SELECT count(*) FROM grants"), d.count("SELECT count(*) FROM transfers"); n != 30 || again != 30 {
		t.Errorf("30 payments have %d grants in %d transfers", n, again)
	}
	d.has("acme", "3000")
}

// TestAClaimedEventIsNobodyElsesUntilItsLeaseIsOver lets a worker die while it
// reads from Stripe.
func TestAClaimedEventIsNobodyElsesUntilItsLeaseIsOver(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	d.deliver(paid("evt_1", "pi_1"))
	dying, die := context.WithCancel(t.Context())
	d.before = func(ctx context.Context, _ string) error {
		die()
		return ctx.Err()
	}
	if _, err := d.Step(dying); !errors.Is(err, context.Canceled) {
		t.Fatalf("a worker that is stopped says %v", err)
	}
	d.before = func(context.Context, string) error { return nil }
	other := d.another()
	for _, wait := range []time.Duration{0, 2*time.Minute - time.Microsecond} {
		d.pass(wait)
		if _, err := other.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := d.one(); got.State != "pending" || got.Attempts != 0 {
			t.Errorf("within the lease it is %+v", got)
		}
	}
	d.pass(time.Microsecond)
	if _, err := other.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := d.one(); got.State != "done" {
		t.Errorf("after the lease it is %+v", got)
	}
	d.has("acme", "100")
}

// TestASlowWorkerFindsItsEventDone stands still between reading and writing until
// its lease is over and another has applied the event.
func TestASlowWorkerFindsItsEventDone(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	d.deliver(paid("evt_1", "pi_1"))
	d.meanwhile(func() {
		d.pass(2 * time.Minute)
		if _, err := d.another().Step(t.Context()); err != nil {
			t.Error(err)
		}
	})
	d.step()
	if got := d.one(); got.State != "done" || got.Attempts != 1 || d.reads["pi_1"] != 2 {
		t.Errorf("it is %+v after %d reads, want it done once by the faster one", got, d.reads["pi_1"])
	}
	d.has("acme", "100")
}

// TestWhatASlowWorkerHasReadDoesNotUndoWhatIsNewer stands still between reading
// and writing while a refund fails and another worker takes notice of it.
func TestWhatASlowWorkerHasReadDoesNotUndoWhatIsNewer(t *testing.T) {
	t.Parallel()
	for name, known := range map[string]bool{"taken back before": true, "never taken back": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := opened(t)
			d.pays("pi_1")
			d.deliver(paid("evt_1", "pi_1"))
			d.step()
			d.refund("pi_1", "re_1", "succeeded", 1000)
			if known {
				d.deliver(refunded("evt_2", "pi_1"))
				d.step()
				d.has("acme", "0")
			}
			d.deliver(refunded("evt_3", "pi_1"))
			d.meanwhile(func() {
				d.refund("pi_1", "re_1", "failed", 0)
				d.deliver(event("evt_4", "charge.refund.updated", `{"id": "re_1", "payment_intent": "pi_1"}`))
				if _, err := d.another().Step(t.Context()); err != nil {
					t.Error(err)
				}
			})
			d.step()
			d.has("acme", "100")
			d.pass(2 * time.Second)
			d.step()
			d.has("acme", "100")
			for _, r := range d.rows() {
				if r.State != "done" || r.Attempts != 1 {
					t.Errorf("%s is %s after %d tries, want it done at the first that counts", r.ID, r.State, r.Attempts)
				}
			}
		})
	}
}

// TestTwoWorkersWithTheFirstEventsOfAPaymentGrantOnce stands still between reading
// and writing while another grants.
func TestTwoWorkersWithTheFirstEventsOfAPaymentGrantOnce(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	d.deliver(paid("evt_1", "pi_1"))
	d.meanwhile(func() {
		d.deliver(paid("evt_2", "pi_1"))
		if _, err := d.another().Step(t.Context()); err != nil {
			t.Error(err)
		}
	})
	d.step()
	for _, r := range d.rows() {
		if r.State != "done" || r.Attempts != 1 {
			t.Errorf("%s is %s after %d tries, want it done", r.ID, r.State, r.Attempts)
		}
	}
	d.has("acme", "100")
}

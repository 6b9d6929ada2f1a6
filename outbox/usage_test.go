package outbox_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/ledger"
	"tallystick/outbox"
)

const minute = time.Minute

func TestUsageIsSummedPerAccountMeterAndMinute(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme", "other")
	d.stage("acme", "call", 3, 0, 59*time.Second, 60*time.Second)
	d.stage("acme", "call", 4, 59999*time.Millisecond)
	d.stage("acme", "unbound", 5, 0)
	d.stage("other", "call", 6, 0)
	got := ""
	for _, r := range d.rows() {
		got += fmt.Sprintf("%s %s %s %s/%d\n", r.Account, r.Meter, r.Bucket.UTC().Format("15:04"), credit.Quantity(r.Quantity), r.Usages)
	}
	want := "acme call 12:00 10/3\nacme call 12:01 3/1\nacme unbound 12:00 5/1\nother call 12:00 6/1\n"
	if got != want {
		t.Errorf("staged are\n%s, want\n%s", got, want)
	}
}

// TestABucketClosesWhenTheClockPassesItAndTheSettleTime sends at the edge, and not
// just before it.
func TestABucketClosesWhenTheClockPassesItAndTheSettleTime(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	d.pass(70*time.Second - time.Microsecond)
	d.step()
	d.state("pending")
	d.pass(time.Microsecond)
	d.step()
	d.state("delivered")
	e := d.sent()[0]
	if e.Value != credit.Units(3) || !e.Timestamp.Equal(start) || e.EventName != "calls" || e.Customer != "cus_acme" || e.Attempt != 1 {
		t.Errorf("sent was %+v", e)
	}
}

// TestLateUsageOpensTheNextSequence never changes what was sent once.
func TestLateUsageOpensTheNextSequence(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	d.pass(2 * minute)
	d.answers(outbox.Result{Outcome: outbox.OutcomeThrottled, RetryAfter: time.Hour}, outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.step() // was sent, and is pending again
	d.stage("acme", "call", 4, 0)
	d.stage("acme", "call", 5, 0)
	rows := d.rows()
	if len(rows) != 2 || rows[0].Quantity != 3e6 || rows[1].Sequence != 1 || rows[1].Quantity != 9e6 || rows[0].Identifier == rows[1].Identifier {
		t.Fatalf("late usage gives %+v", rows)
	}
	d.pass(2 * time.Hour)
	d.step()
	d.stage("acme", "call", 6, 0)
	if rows := d.rows(); len(rows) != 3 || rows[2].Sequence != 2 {
		t.Errorf("later usage gives %+v", rows)
	}
}

func TestIdentifierIsMadeOfWhatNeverChanges(t *testing.T) {
	t.Parallel()
	base := outbox.Identifier("acme", "call", start, 0)
	if again := outbox.Identifier("acme", "call", start.In(time.FixedZone("x", 3600)), 0); again != base || len(base) > 100 {
		t.Errorf("the identifier is %q, then %q", base, again)
	}
	seen := map[string]bool{base: true}
	for _, other := range []string{
		outbox.Identifier("acme", "call", start, 1), outbox.Identifier("acme", "call", start.Add(minute), 0), outbox.Identifier("acme", "call2", start, 0),
		outbox.Identifier("acm", "ecall", start, 0), outbox.Identifier("acmecall", "", start, 0),
	} {
		if seen[other] {
			t.Errorf("two deliveries share the identifier %s", other)
		}
		seen[other] = true
	}
}

// TestWhatIsUnknownIsSentAgainAsItWas repeats identifier and content, with growing
// waits, until Stripe says that it has it.
func TestWhatIsUnknownIsSentAgainAsItWas(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	d.answers(outbox.Result{Reason: "timeout"}, outbox.Result{Reason: "500"}, outbox.Result{Reason: "cut"}, outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.pass(2 * minute)
	for i, wait := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second} {
		d.step()
		r := d.one()
		if got := r.NextTryAt.Sub(d.clock()); r.State != "ambiguous" || got < wait || got > wait+wait/4 {
			t.Fatalf("after try %d it is %+v, the next in %s, want %s and up to a quarter more", i+1, r, got, wait)
		}
		d.pass(r.NextTryAt.Sub(d.clock()) - time.Microsecond)
		d.step()
		d.pass(time.Microsecond)
	}
	d.step()
	d.state("delivered")
	events := d.sent()
	if len(events) != 4 {
		t.Fatalf("%d tries, want 4", len(events))
	}
	for i, e := range events {
		want := events[0]
		want.Attempt = i + 1
		if e != want {
			t.Errorf("try %d is %+v, want %+v", i+1, e, want)
		}
	}
}

// TestO3AfterTwentyThreeHoursAnUnknownOutcomeIsLeftToPeople is the rule at its
// edge: Stripe remembers identifiers for 24 hours.
func TestO3AfterTwentyThreeHoursAnUnknownOutcomeIsLeftToPeople(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		after time.Duration
		tries int
		state string
	}{
		{23*time.Hour - time.Microsecond, 2, "ambiguous"},
		{23 * time.Hour, 1, "needs_review"},
	} {
		d := opened(t, "acme")
		d.stage("acme", "call", 3, 0)
		d.answers(outbox.Result{Reason: "timeout"})
		d.pass(2 * minute)
		d.step()
		d.pass(tc.after)
		d.step()
		d.state(tc.state)
		if n := len(d.sent()); n != tc.tries {
			t.Errorf("%s after the first try there were %d tries, want %d", tc.after, n, tc.tries)
		}
		if tc.state == "needs_review" && d.one().Error == "" {
			t.Error("nobody is told why it waits")
		}
	}
}

// TestAnOldOneThatWasNeverSentIsSent keeps the rule from stopping what Stripe
// cannot have.
func TestAnOldOneThatWasNeverSentIsSent(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	d.answers(outbox.Result{Outcome: outbox.OutcomeThrottled}, outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.pass(2 * minute)
	d.step()
	d.pass(40 * time.Hour)
	d.step()
	d.state("delivered")
}

func TestThrottledWaitsAsLongAsStripeSays(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	d.answers(outbox.Result{Outcome: outbox.OutcomeThrottled, RetryAfter: 90 * time.Second, Reason: "429"}, outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.pass(2 * minute)
	d.step()
	d.state("pending")
	d.pass(90*time.Second - time.Microsecond)
	d.step()
	if n := len(d.sent()); n != 1 {
		t.Errorf("%d tries before Stripe's time, want 1", n)
	}
	d.pass(time.Microsecond)
	d.step()
	d.state("delivered")
}

// TestARefusedKeyOpensTheCircuit stops asking after the first refusal and tries
// again a minute later, with all that waits.
func TestARefusedKeyOpensTheCircuit(t *testing.T) {
	t.Parallel()
	d := opened(t, "a", "b", "c")
	for _, account := range []string{"a", "b", "c"} {
		d.stage(account, "call", 1, 0)
	}
	d.answers(outbox.Result{Outcome: outbox.OutcomeBlocked, Reason: "401"})
	d.pass(2 * minute)
	d.step()
	first := len(d.sent())
	d.pass(minute - time.Microsecond)
	d.step()
	if n := len(d.sent()); n != first || first > 3 {
		t.Errorf("%d calls with a refused key, then %d more", first, n-first)
	}
	d.answers(outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.pass(2 * minute)
	d.step()
	for _, r := range d.rows() {
		if r.State != "delivered" {
			t.Errorf("after the key was mended: %+v", r)
		}
	}
}

// TestOnePoisonedRowStopsNobodyElse rejects one account's usage for good.
func TestOnePoisonedRowStopsNobodyElse(t *testing.T) {
	t.Parallel()
	d := opened(t, "a", "bad", "c")
	for _, account := range []string{"a", "bad", "c"} {
		d.stage(account, "call", 1, 0, minute)
	}
	d.mu.Lock()
	d.answer = func(e outbox.MeterEvent) outbox.Result {
		if e.Customer == "cus_bad" {
			return outbox.Result{Outcome: outbox.OutcomeRejected, Reason: "no such customer \xff\x00"}
		}
		return outbox.Result{Outcome: outbox.OutcomeDelivered}
	}
	d.mu.Unlock()
	d.pass(3 * minute)
	d.step()
	for _, r := range d.rows() {
		want := "delivered"
		if r.Account == "bad" {
			want = "rejected"
		}
		if r.State != want || (r.Error != "") != (want == "rejected") {
			t.Errorf("%s is %s (%q), want %s", r.Account, r.State, r.Error, want)
		}
	}
	d.pass(time.Hour)
	d.step()
	if n := len(d.sent()); n != 6 {
		t.Errorf("%d calls, want 6: what is rejected is not tried again", n)
	}
}

// TestAnAccountWithoutACustomerWaitsAndGoes waits, says why, and goes when the
// account gets one.
func TestAnAccountWithoutACustomerWaitsAndGoes(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.account("acme")
	d.stage("acme", "call", 3, 0)
	d.pass(2 * minute)
	d.step()
	if r := d.one(); r.State != "pending" || r.Error != "the account has no Stripe customer" || r.Attempts != 0 {
		t.Errorf("it is %+v", r)
	}
	d.account("acme", "cus_1", "cus_2")
	d.pass(minute)
	d.step()
	if r := d.one(); r.State != "delivered" || r.Customer != "cus_1" || r.Error != "" {
		t.Errorf("with a customer it is %+v", r)
	}
}

// TestCustomerIsFixedByTheFirstTry sends to the customer that may have it already.
func TestCustomerIsFixedByTheFirstTry(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	d.answers(outbox.Result{Reason: "timeout"}, outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.pass(2 * minute)
	d.step()
	d.account("acme", "cus_new")
	d.pass(minute)
	d.step()
	if events := d.sent(); len(events) != 2 || events[1].Customer != "cus_acme" {
		t.Errorf("sent were %+v", events)
	}
}

// TestTwoWorkersNeverSendOneRowAtOnce lets two processes work on one queue.
func TestTwoWorkersNeverSendOneRowAtOnce(t *testing.T) {
	t.Parallel()
	accounts := make([]string, 40)
	for i := range accounts {
		accounts[i] = fmt.Sprintf("acct-%d", i)
	}
	d := opened(t, accounts...)
	for _, account := range accounts {
		d.stage(account, "call", 1, 0, minute, 2*minute)
	}
	d.pass(5 * minute)
	var wg sync.WaitGroup
	for _, o := range []*outbox.Outbox{d.Outbox, d.another(), d.another()} {
		wg.Go(func() {
			for range 3 {
				if _, err := o.UsageStep(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for _, e := range d.sent() {
		seen[e.Identifier]++
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
	if len(seen) != 120 {
		t.Errorf("%d deliveries were sent, want 120", len(seen))
	}
}

// TestALeaseThatRanOutIsTakenOver crashes a worker between sending and marking.
func TestALeaseThatRanOutIsTakenOver(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	d.pass(2 * minute)
	ctx, crash := context.WithCancel(t.Context())
	d.mu.Lock()
	d.answer = func(outbox.MeterEvent) outbox.Result {
		crash()
		runtime.Goexit() // the goroutine ends here: nothing is marked
		return outbox.Result{}
	}
	d.mu.Unlock()
	_, _ = d.UsageStep(ctx)
	d.state("sending")
	d.answers(outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.pass(2*minute - time.Microsecond)
	d.step()
	d.state("sending")
	d.pass(time.Microsecond)
	d.step()
	d.state("delivered")
	if events := d.sent(); len(events) != 2 || events[0].Identifier != events[1].Identifier {
		t.Errorf("sent were %+v", events)
	}
}

// TestWhatWasNotSentInTimeIsDueAtOnce lets the time of a lease pass while its first
// call is under way: nobody has asked for a pause before the others.
func TestWhatWasNotSentInTimeIsDueAtOnce(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0, minute, 2*minute)
	d.pass(5 * minute)
	d.mu.Lock()
	d.answer = func(e outbox.MeterEvent) outbox.Result {
		if e.Timestamp.Equal(start) {
			d.pass(minute + time.Microsecond)
		}
		return outbox.Result{Outcome: outbox.OutcomeDelivered}
	}
	d.mu.Unlock()
	if _, err := d.UsageStep(t.Context()); err != nil {
		t.Fatal(err)
	}
	rows := d.rows()
	if rows[0].State != "delivered" || rows[1].State != "pending" || rows[1].NextTryAt.After(d.clock()) || rows[2].NextTryAt.After(d.clock()) {
		t.Errorf("after half of the lease: %+v", rows)
	}
	d.step()
	for _, r := range d.rows() {
		if r.State != "delivered" {
			t.Errorf("it stays: %+v", r)
		}
	}
}

// TestAnAnswerAfterTheLeaseLeavesTheNextTryAlone: the first worker's call is answered
// while the second's, which has taken its place, is under way. Taken as pending, the
// delivery would be sent again at any age.
func TestAnAnswerAfterTheLeaseLeavesTheNextTryAlone(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		late outbox.Result
		want string
	}{
		{outbox.Result{Outcome: outbox.OutcomeThrottled, Reason: "429"}, "sending"},
		{outbox.Result{Outcome: outbox.OutcomeRejected, Reason: "400"}, "sending"},
		{outbox.Result{Outcome: outbox.OutcomeDelivered}, "delivered"},
	} {
		d := opened(t, "acme")
		d.stage("acme", "call", 3, 0)
		d.pass(2 * minute)
		second, taken, answered, over := d.another(), make(chan bool), make(chan bool), make(chan bool)
		d.mu.Lock()
		d.answer = func(e outbox.MeterEvent) outbox.Result {
			if e.Attempt == 2 {
				close(taken)
				<-answered
				return outbox.Result{Reason: "timeout"}
			}
			d.pass(2 * minute)
			go func() {
				defer close(over)
				if _, err := second.UsageStep(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			<-taken
			return tc.late
		}
		d.mu.Unlock()
		if _, err := d.UsageStep(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.state(tc.want)
		close(answered)
		<-over
		if tc.want == "sending" {
			d.state("ambiguous")
		} else {
			d.state("delivered")
		}
	}
}

// TestARepairIsADeliveryOfItsOwn is sent at once and never mixed with usage.
func TestARepairIsADeliveryOfItsOwn(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	var identifier string
	d.tx(func(tx *sqlx.Tx) (err error) {
		identifier, err = d.StageRepair(t.Context(), tx, d.clock(), outbox.Usage{
			Part: ledger.RefOf("acme").Part, Account: "acme", Meter: "call", OccurredAt: start, Quantity: credit.Units(5),
		})
		return err
	})
	d.stage("acme", "call", 4, 0)
	rows := d.rows()
	if len(rows) != 3 || rows[0].Quantity != 3e6 || rows[1].Origin != "repair" || rows[1].Quantity != 5e6 || rows[2].Origin != "usage" || rows[2].Quantity != 4e6 {
		t.Fatalf("the deliveries are %+v", rows)
	}
	d.step()
	if events := d.sent(); len(events) != 1 || events[0].Identifier != identifier {
		t.Errorf("sent at once were %+v, want %s", events, identifier)
	}
}

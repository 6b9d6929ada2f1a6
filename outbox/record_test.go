package outbox_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
	"tallystick/outbox"
)

// ledgerOf is what an item has at Stripe, by timestamp.
type ledgerOf map[string]map[int64]int64

func (l ledgerOf) total(item string) (sum int64) {
	for _, n := range l[item] {
		sum += n
	}
	return sum
}

// recorded makes a desk whose meter seat is bound to price_1, with one item for acme
// in a period from an hour ago to a day ahead. It takes what is sent.
func recorded(t *testing.T, accounts ...string) (*desk, ledgerOf, *[]outbox.Item) {
	t.Helper()
	d := opened(t, accounts...)
	pgtest.Exec(t, d.own, `INSERT INTO meters (meter, unit, aggregation, stripe_price, stripe_bound_at, rate_version, created_at, updated_at)
		VALUES ('seat', '', 'sum', 'price_1', $1, 1, $1, $1)`, start)
	items := &[]outbox.Item{{
		ID: "si_1", Subscription: "sub_1", Price: "price_1", PeriodStart: start.Add(-time.Hour), PeriodEnd: start.Add(24 * time.Hour), CreatedAt: start.Add(-time.Hour),
	}}
	d.items = func(string) ([]outbox.Item, error) { return *items, nil }
	stripe := ledgerOf{}
	d.record = func(u outbox.UsageRecord) outbox.Result {
		d.mu.Lock()
		defer d.mu.Unlock()
		if stripe[u.Item] == nil {
			stripe[u.Item] = map[int64]int64{}
		}
		if u.Action == "increment" {
			u.Quantity += stripe[u.Item][u.Timestamp.Unix()]
		}
		stripe[u.Item][u.Timestamp.Unix()] = u.Quantity
		return outbox.Result{Outcome: outbox.OutcomeDelivered}
	}
	return d, stripe, items
}

// stageMillionths stages parts of a unit.
func (d *desk) stageMillionths(account, meter string, millionths int64, at time.Duration) {
	d.t.Helper()
	d.tx(func(tx *sqlx.Tx) error {
		return d.StageUsage(d.t.Context(), tx, d.clock(), []outbox.Usage{{
			Part: ledger.RefOf(account).Part, Account: account, Meter: meter, OccurredAt: start.Add(at), Quantity: creditOf(millionths),
		}})
	})
}

func (d *desk) recordsSent() []outbox.UsageRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]outbox.UsageRecord(nil), d.records...)
}

// TestAUsageRecordSetsTheTotalOfItsBucket sends late usage as the bucket's new total.
func TestAUsageRecordSetsTheTotalOfItsBucket(t *testing.T) {
	t.Parallel()
	d, stripe, _ := recorded(t, "acme")
	d.stage("acme", "seat", 3, 0, 30*time.Second)
	d.pass(2 * minute)
	d.step()
	d.stage("acme", "seat", 4, 0) // late
	d.stage("acme", "seat", 2, minute)
	d.pass(2 * minute)
	d.step()
	if stripe.total("si_1") != 12 || stripe["si_1"][start.Unix()] != 10 || stripe["si_1"][start.Add(minute).Unix()] != 2 {
		t.Errorf("Stripe has %v, want 10 and 2", stripe)
	}
	sent := d.recordsSent()
	if len(sent) != 3 || sent[0].Action != "set" || sent[0].Quantity != 6 || !sent[0].Timestamp.Equal(start) || sent[0].Key == sent[1].Key {
		t.Errorf("sent were %+v", sent)
	}
	d.want("0 6/2 delivered; 1 4/1 delivered; 0 2/1 delivered; ")
}

// TestAnUnknownSetIsSentAgainAtAnyAge sends the total as it is by then: an older one
// would take away what came in between.
func TestAnUnknownSetIsSentAgainAtAnyAge(t *testing.T) {
	t.Parallel()
	d, stripe, items := recorded(t, "acme")
	(*items)[0].PeriodEnd = start.Add(30 * 24 * time.Hour)
	takes := d.record
	lost := func(u outbox.UsageRecord) outbox.Result {
		takes(u)
		return outbox.Result{Reason: "cut after it was executed"}
	}
	d.record = lost
	d.stage("acme", "seat", 5, 0)
	d.pass(2 * minute)
	d.step()
	d.state("ambiguous")
	d.record = takes
	d.stage("acme", "seat", 3, 0)
	d.pass(40 * time.Hour)
	d.step()
	d.want("0 5/1 delivered; 1 3/1 delivered; ")
	d.record = lost
	d.stage("acme", "seat", 1, 0)
	d.pass(2 * minute)
	d.step()
	d.record = takes
	d.stage("acme", "seat", 1, 0)
	d.pass(20 * minute)
	d.step()
	sent := d.recordsSent()
	for i, u := range sent[1:] {
		if u.Quantity < sent[i].Quantity {
			t.Errorf("%d was set after %d", u.Quantity, sent[i].Quantity)
		}
	}
	d.want("0 5/1 delivered; 1 3/1 delivered; 2 1/1 delivered; 3 1/1 delivered; ")
	if stripe.total("si_1") != 10 {
		t.Errorf("Stripe has %v, want 10", stripe)
	}
}

// TestTheRemainderIsCarried sends whole units and never more than ours, in usage
// records and, where the meter says so, in meter events.
func TestTheRemainderIsCarried(t *testing.T) {
	t.Parallel()
	d, stripe, _ := recorded(t, "acme")
	pgtest.Exec(t, d.own, "UPDATE meters SET stripe_whole = true WHERE meter = 'call'")
	want := []int64{0, 1, 1, 3, 3}
	for i, millionths := range []int64{400_000, 700_000, 800_000, 1_100_000, 999_999} {
		at := time.Duration(i) * minute
		d.stageMillionths("acme", "seat", millionths, at)
		d.stageMillionths("acme", "call", millionths, at)
		d.pass(2 * minute)
		d.step()
		events := int64(0)
		for _, e := range d.sent() {
			events += int64(e.Value)
		}
		if got := stripe.total("si_1"); got != want[i] || events != want[i]*1_000_000 {
			t.Errorf("after %d minutes the item has %d, the meter %d millionths; want %d", i+1, got, events, want[i])
		}
		d.pass(-minute)
	}
	for _, r := range d.rows() {
		if r.State != "delivered" {
			t.Errorf("it stays: %+v", r)
		}
	}
}

// TestAVoidLowersTheTotal takes usage back where it went, and what is less than a
// whole unit off what comes next.
func TestAVoidLowersTheTotal(t *testing.T) {
	t.Parallel()
	d, stripe, _ := recorded(t, "acme")
	d.stageMillionths("acme", "seat", 500_000, 0)
	d.stageMillionths("acme", "seat", 500_000, minute)
	d.pass(3 * minute)
	d.step()
	if stripe.total("si_1") != 1 {
		t.Fatalf("Stripe has %v, want 1", stripe)
	}
	d.takeBackMillionths("acme", "seat", 500_000, 0)
	d.pass(minute)
	d.step()
	if stripe.total("si_1") != 1 { // nothing of it is at its own minute: the next usage pays
		t.Fatalf("Stripe has %v, want 1 still", stripe)
	}
	d.stage("acme", "seat", 2, 2*minute)
	d.pass(2 * minute)
	d.step()
	if stripe.total("si_1") != 2 { // of 2.5
		t.Fatalf("Stripe has %v, want 2", stripe)
	}
	d.takeBackMillionths("acme", "seat", 2_000_000, 2*minute)
	d.pass(minute)
	d.step()
	if stripe.total("si_1") != 1 || stripe["si_1"][start.Add(2*minute).Unix()] != 0 {
		t.Errorf("Stripe has %v, want what cannot be lowered: 1", stripe)
	}
	for _, r := range d.rows() {
		if r.State != "delivered" {
			t.Errorf("it stays: %+v", r)
		}
	}
}

// TestWithoutAnItemItWaitsAndGoes waits, says why, and goes when there is one.
func TestWithoutAnItemItWaitsAndGoes(t *testing.T) {
	t.Parallel()
	d, stripe, items := recorded(t, "acme")
	item := (*items)[0]
	unfit := item
	unfit.Unfit = "max"
	*items = []outbox.Item{unfit, {ID: "si_other", Price: "price_2", PeriodStart: item.PeriodStart, PeriodEnd: item.PeriodEnd}}
	d.stage("acme", "seat", 3, 0)
	for _, want := range []string{"does not add usage records up", "has no subscription item"} {
		d.pass(2 * minute)
		d.step()
		if r := d.one(); r.State != "pending" || !strings.Contains(r.Error, want) || r.Attempts != 0 {
			t.Errorf("it is %+v, want %q", r, want)
		}
		*items = nil
	}
	*items = []outbox.Item{item}
	d.pass(2 * minute)
	d.step()
	d.state("delivered")
	if r := d.one(); r.Error != "" || stripe.total("si_1") != 3 {
		t.Errorf("with an item it is %+v, and Stripe has %v", r, stripe)
	}
}

// TestAnItemThatIsGoneIsFoundAgain swaps the item under a delivery: what was surely not
// executed goes to the new one, what may have been does not.
func TestAnItemThatIsGoneIsFoundAgain(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		before outbox.Result
		state  string
		has    int64
	}{
		{"surely not executed", outbox.Result{Outcome: outbox.OutcomeThrottled}, "delivered", 3},
		{"perhaps executed", outbox.Result{Reason: "timeout"}, "needs_review", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d, stripe, items := recorded(t, "acme")
			takes := d.record
			d.record = func(outbox.UsageRecord) outbox.Result { return tc.before }
			d.stage("acme", "seat", 3, 0)
			d.pass(2 * minute)
			d.step()
			swapped := (*items)[0]
			swapped.ID = "si_2"
			*items = []outbox.Item{swapped}
			d.record = func(u outbox.UsageRecord) outbox.Result {
				if u.Item == "si_1" {
					return outbox.Result{Outcome: outbox.OutcomeRejected, Reason: "no such item"}
				}
				return takes(u)
			}
			for range 3 {
				d.pass(minute)
				d.step()
			}
			d.state(tc.state)
			if stripe.total("si_2") != tc.has || len(stripe["si_1"]) > 0 {
				t.Errorf("Stripe has %v, want %d at the new item", stripe, tc.has)
			}
		})
	}
}

// TestPeriodsAreAfterTheirStartUpToTheirEnd looks at each edge of (start, end].
func TestPeriodsAreAfterTheirStartUpToTheirEnd(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		begins, ends time.Duration // of the period, after the start of the bucket
		stamp        time.Duration // -1: none
	}{
		{-time.Second, time.Hour, 0},
		{0, time.Hour, 59 * time.Second}, // the bucket's own time belongs to the period before
		{30 * time.Second, time.Hour, 59 * time.Second},
		{58 * time.Second, time.Hour, 59 * time.Second},
		{59 * time.Second, time.Hour, -1}, // nothing of the bucket that can be told is in it
		{-time.Hour, 0, 0},
		{-time.Hour, -time.Second, -1},
	} {
		d, _, items := recorded(t, "acme")
		(*items)[0].PeriodStart, (*items)[0].PeriodEnd = start.Add(tc.begins), start.Add(tc.ends)
		d.stage("acme", "seat", 3, 0)
		d.pass(10 * minute)
		d.step()
		sent := d.recordsSent()
		if (tc.stamp < 0) != (len(sent) == 0) || (len(sent) > 0 && !sent[0].Timestamp.Equal(start.Add(tc.stamp))) {
			t.Errorf("in the period from %s to %s of the bucket %+v was sent, want the stamp %s", tc.begins, tc.ends, sent, tc.stamp)
		}
		if r := d.one(); tc.begins == 59*time.Second && (r.State != "needs_review" || !strings.HasPrefix(r.Error, "period over")) {
			t.Errorf("of a period that is over it is %+v", r)
		}
	}
}

// TestD06UsageIsFlushedBeforeItsPeriodEnds closes the last bucket early, before all
// others, and not a moment sooner than that.
func TestD06UsageIsFlushedBeforeItsPeriodEnds(t *testing.T) {
	t.Parallel()
	d, stripe, items := recorded(t, "acme")
	(*items)[0].PeriodEnd = start.Add(5 * minute)
	d.stage("acme", "seat", 1, 0)
	d.pass(2 * minute)
	d.step() // the item is known from now on
	d.stage("acme", "seat", 3, 4*minute+10*time.Second)
	d.pass(2*minute + 30*time.Second - time.Microsecond)
	d.step()
	if got := stripe.total("si_1"); got != 1 {
		t.Errorf("half a minute and more before the end Stripe has %d, want 1", got)
	}
	d.pass(time.Microsecond)
	d.step()
	if got := stripe["si_1"][start.Add(4*minute).Unix()]; got != 3 {
		t.Errorf("half a minute before the end the last bucket has %d, want 3: %+v", got, d.rows())
	}
	d.stage("acme", "seat", 2, 4*minute+40*time.Second)
	d.pass(20 * time.Second)
	d.step()
	if got := stripe.total("si_1"); got != 6 {
		t.Errorf("just before the end Stripe has %d, want 6: %+v", got, d.rows())
	}
}

// TestUsageOfAPeriodThatIsOverIsTriedInItsGraceAndThenShown is refused for five
// minutes, and then handed to people with the reason.
func TestUsageOfAPeriodThatIsOverIsTriedInItsGraceAndThenShown(t *testing.T) {
	t.Parallel()
	d, _, items := recorded(t, "acme")
	(*items)[0].PeriodEnd = start.Add(time.Hour)
	d.stage("acme", "seat", 1, 0)
	d.record = func(outbox.UsageRecord) outbox.Result {
		return outbox.Result{Outcome: outbox.OutcomeRejected, Reason: "timestamp"}
	}
	(*items)[0].PeriodStart, (*items)[0].PeriodEnd = start.Add(90*time.Second), start.Add(24*time.Hour)
	d.pass(2 * minute)
	d.step()
	if r := d.one(); r.State != "pending" || r.Attempts != 1 || r.Error != "timestamp" {
		t.Errorf("within the grace it is %+v", r)
	}
	d.pass(5 * minute)
	d.step()
	if r := d.one(); r.State != "needs_review" || !strings.HasPrefix(r.Error, "period over") {
		t.Errorf("after the grace it is %+v", r)
	}
}

// TestWithThresholdsItIsIncrementedOnce sends an increment with one key for 23 hours,
// and then leaves it to people: nobody can tell whether Stripe counted it.
func TestWithThresholdsItIsIncrementedOnce(t *testing.T) {
	t.Parallel()
	d, stripe, items := recorded(t, "acme")
	(*items)[0].Limited, (*items)[0].PeriodEnd = true, start.Add(10*24*time.Hour)
	d.stage("acme", "seat", 3, 0)
	d.stage("acme", "seat", 4, minute)
	d.pass(3 * minute)
	d.step()
	if stripe.total("si_1") != 7 {
		t.Fatalf("Stripe has %v, want 7", stripe)
	}
	d.takeBackMillionths("acme", "seat", 3_000_000, 0) // Stripe takes nothing back: the next pays
	d.stage("acme", "seat", 5, 4*minute)
	d.pass(4 * minute)
	d.step()
	if stripe.total("si_1") != 9 {
		t.Errorf("Stripe has %v, want 9", stripe)
	}
	d.record = func(outbox.UsageRecord) outbox.Result { return outbox.Result{Reason: "timeout"} }
	d.stage("acme", "seat", 1, 10*minute)
	d.pass(5 * minute)
	before := len(d.recordsSent())
	for range 30 {
		d.step()
		d.pass(time.Hour)
	}
	sent := d.recordsSent()[before:]
	for _, u := range sent {
		if u != sent[0] || u.Action != "increment" || u.Quantity != 1 {
			t.Errorf("a try was %+v, the first %+v", u, sent[0])
		}
	}
	rows := d.rows()
	if last := rows[len(rows)-1]; len(sent) < 10 || last.State != "needs_review" {
		t.Errorf("after %d tries it is %+v", len(sent), last)
	}
}

// TestItemsThatCannotBeReadAreNotAskedForWithoutEnd bounds the reads, and loses nothing.
func TestItemsThatCannotBeReadAreNotAskedForWithoutEnd(t *testing.T) {
	t.Parallel()
	d, stripe, items := recorded(t, "acme")
	reads := 0
	d.items = func(string) ([]outbox.Item, error) {
		reads++
		return nil, errors.New("stripe is away")
	}
	for i := range 5 {
		d.stage("acme", "seat", 1, time.Duration(i)*minute)
	}
	d.pass(10 * minute)
	for range 3 {
		d.step()
	}
	if reads != 1 {
		t.Errorf("%d reads in one moment, want 1", reads)
	}
	d.items = func(string) ([]outbox.Item, error) { return *items, nil }
	d.pass(10 * minute)
	d.step()
	if stripe.total("si_1") != 5 {
		t.Errorf("Stripe has %v, want 5: %+v", stripe, d.rows())
	}
}

// TestARefusalThatIsNotOfTheItemIsFinal keeps a record that Stripe does not take.
func TestARefusalThatIsNotOfTheItemIsFinal(t *testing.T) {
	t.Parallel()
	d, _, _ := recorded(t, "acme")
	d.record = func(outbox.UsageRecord) outbox.Result {
		return outbox.Result{Outcome: outbox.OutcomeRejected, Reason: "no"}
	}
	d.stage("acme", "seat", 1, 0)
	d.pass(2 * minute)
	d.step()
	if r := d.one(); r.State != "rejected" || r.Error != "no" {
		t.Errorf("it is %+v", r)
	}
}

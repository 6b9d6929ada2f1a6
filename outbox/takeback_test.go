package outbox_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
	"tallystick/outbox"
)

// takeBack takes back usage that occurred and was recorded at times after the start.
func (d *desk) takeBack(account, meter string, quantity int64, occurred, recorded time.Duration) outbox.Taken {
	d.t.Helper()
	return d.takeBackQuantity(account, meter, credit.Units(quantity), occurred, recorded)
}

// takeBackMillionths takes back parts of a unit that were recorded as they occurred.
func (d *desk) takeBackMillionths(account, meter string, millionths int64, at time.Duration) {
	d.t.Helper()
	if taken := d.takeBackQuantity(account, meter, creditOf(millionths), at, at); taken.How != outbox.TakenCorrected {
		d.t.Fatalf("taken back is %+v", taken)
	}
}

func creditOf(millionths int64) credit.Quantity { return credit.Quantity(millionths) }

func (d *desk) takeBackQuantity(account, meter string, quantity credit.Quantity, occurred, recorded time.Duration) outbox.Taken {
	d.t.Helper()
	var taken outbox.Taken
	d.tx(func(tx *sqlx.Tx) (err error) {
		if _, err = ledger.Load(d.t.Context(), tx, []ledger.Ref{ledger.RefOf(account)}); err != nil {
			return err
		}
		taken, err = d.TakeBack(d.t.Context(), tx, d.clock(), outbox.Usage{
			Part: ledger.RefOf(account).Part, Account: account, Meter: meter, OccurredAt: start.Add(occurred), Quantity: quantity,
		}, start.Add(recorded))
		return err
	})
	return taken
}

// short is what deliveries there are, in short.
func (d *desk) short() (text string) {
	d.t.Helper()
	for _, r := range d.rows() {
		text += fmt.Sprintf("%d %s/%d %s; ", r.Sequence, credit.Quantity(r.Quantity), r.Usages, r.State)
	}
	return text
}

func (d *desk) want(want string) {
	d.t.Helper()
	if got := d.short(); got != want {
		d.t.Errorf("deliveries are\n%s, want\n%s", got, want)
	}
}

func (d *desk) wantTaken(got outbox.Taken, how string, quantity int64) {
	d.t.Helper()
	if got.How != how || got.Quantity != credit.Units(quantity) || (got.Identifier != "") != (quantity > 0) {
		d.t.Errorf("taken back is %+v, want %s of %d", got, how, quantity)
	}
}

func TestWhatWasNeverSentIsWithdrawn(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 3, 0)
	d.stage("acme", "call", 4, 0)
	d.wantTaken(d.takeBack("acme", "call", 8, 0, 0), outbox.TakenNoDelivery, 0) // more than it carries
	d.want("0 7/2 pending; ")
	d.wantTaken(d.takeBack("acme", "call", 3, 0, 0), outbox.TakenWithdrawn, 3)
	d.want("0 4/1 pending; ")
	d.wantTaken(d.takeBack("acme", "call", 4, 0, 0), outbox.TakenWithdrawn, 4)
	d.pass(2 * minute)
	d.step()
	d.want("0 0/0 delivered; ")
	if len(d.sent()) > 0 || d.one().Error == "" {
		t.Errorf("an empty delivery was sent, or does not say why not: %+v %+v", d.sent(), d.one())
	}
	d.wantTaken(d.takeBack("acme", "call", 1, minute, 0), outbox.TakenNoDelivery, 0)
	d.stage("acme", "call", 5, 0) // an empty delivery is closed like any other
	d.want("0 0/0 delivered; 1 5/1 pending; ")
}

// TestWhatWasSentIsCorrectedWhereItWent binds meter and account anew in between.
func TestWhatWasSentIsCorrectedWhereItWent(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 7, 0)
	d.pass(2 * minute)
	d.step()
	pgtest.Exec(t, d.own, "UPDATE meters SET stripe_event_name = 'other' WHERE meter = 'call'; UPDATE stripe_customers SET customer = 'cus_other'")
	d.wantTaken(d.takeBack("acme", "call", 2, 30*time.Second, 0), outbox.TakenCorrected, 2)
	d.wantTaken(d.takeBack("acme", "call", 1, 0, 0), outbox.TakenCorrected, 1)
	d.want("0 7/1 delivered; 1 -3/-2 pending; ")
	d.stage("acme", "call", 5, 0) // goes to the new customer: it must not join
	d.want("0 7/1 delivered; 1 -3/-2 pending; 2 5/1 pending; ")
	d.step() // at once
	d.want("0 7/1 delivered; 1 -3/-2 delivered; 2 5/1 pending; ")
	if e := d.sent()[1]; e.Value != -credit.Units(3) || !e.Timestamp.Equal(start) || e.EventName != "calls" || e.Customer != "cus_acme" {
		t.Errorf("the correction was %+v", e)
	}
	d.wantTaken(d.takeBack("acme", "call", 1, 0, 0), outbox.TakenCorrected, 1)
	d.want("0 7/1 delivered; 1 -3/-2 delivered; 2 5/1 pending; 3 -1/-1 pending; ")
	d.pass(minute)
	d.step()
	if e := d.sent(); e[2].EventName+e[3].EventName != "callsother" && e[2].EventName+e[3].EventName != "othercalls" {
		t.Errorf("sent were %+v", e)
	}
}

// TestACorrectionGoesWhereItsUsageWent has two deliveries of one bucket at two customers.
func TestACorrectionGoesWhereItsUsageWent(t *testing.T) {
	t.Parallel()
	for recorded, want := range map[time.Duration]string{0: "cus_acme", 2*minute - time.Microsecond: "cus_acme", 2 * minute: "cus_other", time.Hour: "cus_other"} {
		d := opened(t, "acme")
		d.stage("acme", "call", 7, 0)
		d.pass(2 * minute)
		d.step()
		pgtest.Exec(t, d.own, "UPDATE stripe_customers SET customer = 'cus_other'")
		d.stage("acme", "call", 5, 0)
		d.pass(minute)
		d.step()
		d.takeBack("acme", "call", 1, 0, recorded)
		d.step()
		if e := d.sent()[2]; e.Customer != want {
			t.Errorf("usage recorded after %s is corrected at %s, want %s", recorded, e.Customer, want)
		}
	}
}

// TestACorrectionWaitsForWhatItCorrects never takes from Stripe what it may not have.
func TestACorrectionWaitsForWhatItCorrects(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 7, 0)
	d.pass(2 * minute)
	d.answers(outbox.Result{Reason: "timeout"}, outbox.Result{Outcome: outbox.OutcomeRejected, Reason: "no"}, outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.step()
	d.wantTaken(d.takeBack("acme", "call", 7, 0, 0), outbox.TakenCorrected, 7)
	d.step()
	d.want("0 7/1 ambiguous; 1 -7/-1 pending; ")
	d.pass(time.Hour)
	d.step()
	d.want("0 7/1 rejected; 1 -7/-1 pending; ")
	d.stage("acme", "call", 6, 0) // covers less than is to be taken back
	d.pass(time.Hour)
	d.step()
	d.want("0 7/1 rejected; 1 -7/-1 pending; 2 6/1 delivered; ")
	d.stage("acme", "call", 1, 0) // covers it, to the last
	d.pass(time.Hour)
	d.step()
	d.pass(15 * time.Minute)
	d.step()
	d.want("0 7/1 rejected; 1 -7/-1 delivered; 2 6/1 delivered; 3 1/1 delivered; ")
}

func TestTwoCorrectionsAreNotCoveredByOneDelivery(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 5, 0)
	d.pass(2 * minute)
	d.step()
	d.answers(outbox.Result{Outcome: outbox.OutcomeThrottled, RetryAfter: time.Minute}, outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.takeBack("acme", "call", 3, 0, 0)
	d.step()
	d.takeBack("acme", "call", 3, 0, 0)
	d.want("0 5/1 delivered; 1 -3/-1 pending; 2 -3/-1 pending; ")
	d.pass(minute)
	d.step()
	d.step()
	d.want("0 5/1 delivered; 1 -3/-1 delivered; 2 -3/-1 pending; ")
}

// TestACorrectionOfWhatIsUnknownForGoodIsSent rather takes too much than leaves too
// much: what Stripe lacks, reconcile can send.
func TestACorrectionOfWhatIsUnknownForGoodIsSent(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 7, 0)
	d.pass(2 * minute)
	d.answers(outbox.Result{Reason: "timeout"}, outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.step()
	d.takeBack("acme", "call", 7, 0, 0)
	d.pass(24 * time.Hour)
	d.step()
	d.pass(15 * time.Minute)
	d.step()
	d.want("0 7/1 needs_review; 1 -7/-1 delivered; ")
}

// TestD05WhatStripeWouldRefuseForItsAgeIsNotStaged looks at the edge and one beyond.
func TestD05WhatStripeWouldRefuseForItsAgeIsNotStaged(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme", "other")
	d.stage("acme", "call", 7, 30*time.Second)
	d.pass(2 * minute)
	d.step()
	d.account("unbilled")
	d.stage("unbilled", "call", 7, 30*time.Second)
	d.pass(35*24*time.Hour - time.Hour - 2*minute - time.Microsecond)
	d.wantTaken(d.takeBack("acme", "call", 1, 30*time.Second, 0), outbox.TakenCorrected, 1)
	d.pass(time.Microsecond)
	d.wantTaken(d.takeBack("acme", "call", 1, 30*time.Second, 0), outbox.TakenTooLate, 0)
	d.wantTaken(d.takeBack("other", "call", 1, 30*time.Second, 0), outbox.TakenTooLate, 0)
	d.wantTaken(d.takeBack("unbilled", "call", 1, 30*time.Second, 0), outbox.TakenWithdrawn, 1) // never sent: no matter how old
	d.want("0 7/1 delivered; 1 -1/-1 pending; 0 6/0 pending; ")
}

// TestD13CorrectedUsageStripeHasNeverMoreThanWeAndInTheEndTheSame plays random
// stories of usage, voids, trouble and time. What Stripe has beyond ours is never
// more than the corrections that are under way, and never less than nothing.
func TestD13CorrectedUsageStripeHasNeverMoreThanWeAndInTheEndTheSame(t *testing.T) {
	t.Parallel()
	for range 4 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			playCorrections(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

// usageOf is usage that the story may take back.
type usageOf struct {
	account            string
	quantity           int64
	occurred, recorded time.Duration
}

func playCorrections(t *testing.T, random *rand.Rand) {
	t.Helper()
	d := opened(t, "a", "b")
	stripe := &remote{random: random, d: d, known: map[string]time.Time{}}
	d.answer = stripe.answer
	workers := []*outbox.Outbox{d.Outbox, d.another()}
	var ours credit.Quantity
	var usages []usageOf
	how := map[string]int{}
	check := func() {
		t.Helper()
		under := credit.Quantity(0)
		for _, r := range d.rows() {
			if r.Quantity < 0 && r.State != "delivered" {
				under -= credit.Quantity(r.Quantity)
			}
		}
		if stripe.total > ours+under || stripe.total < 0 {
			t.Fatalf("Stripe has %s, we have %s and %s to take back", stripe.total, ours, under)
		}
	}
	for range 150 {
		switch random.IntN(4) {
		case 0:
			now := d.clock().Sub(start)
			u := usageOf{[]string{"a", "b"}[random.IntN(2)], int64(1 + random.IntN(9)), now - time.Duration(random.IntN(300))*time.Second, now}
			d.stage(u.account, "call", u.quantity, u.occurred)
			usages, ours = append(usages, u), ours+credit.Units(u.quantity)
		case 1:
			if len(usages) == 0 {
				continue
			}
			i := random.IntN(len(usages))
			u := usages[i]
			usages = append(usages[:i], usages[i+1:]...)
			taken := d.takeBack(u.account, "call", u.quantity, u.occurred, u.recorded)
			ours -= taken.Quantity
			how[taken.How]++
		case 2:
			if _, err := workers[random.IntN(2)].UsageStep(t.Context()); err != nil {
				t.Fatal(err)
			}
		default:
			d.pass(time.Duration(random.IntN(300)) * time.Second)
		}
		check()
	}
	stripe.calm = true
	for range 40 {
		d.pass(11 * time.Minute)
		d.step()
		check()
	}
	if stripe.total != ours || how[outbox.TakenTooLate]+how[outbox.TakenNoDelivery] > 0 {
		t.Errorf("in the end Stripe has %s, we have %s, taken back were %v: %+v", stripe.total, ours, how, d.rows())
	}
	t.Logf("taken back were %v", how)
}

package outbox_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/ledger"
	"tallystick/outbox"
)

// settles runs the step that asks Stripe's totals.
func (d *desk) settles() {
	d.t.Helper()
	if _, err := d.SettleStep(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
}

// counts lets Stripe count so much in each minute.
func (d *desk) counts(units int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counted = func(eventName, customer string, from, to time.Time) (credit.Quantity, error) {
		if eventName != "calls" || customer != "cus_acme" || !from.Equal(start) || !to.Equal(start.Add(minute)) {
			return 0, errors.New("asked for something else")
		}
		return credit.Units(units), nil
	}
}

// unknown makes a delivery of 7 whose outcome stays unknown for 23 hours.
func unknown(t *testing.T) *desk {
	t.Helper()
	d := opened(t, "acme")
	d.stage("acme", "call", 7, 0)
	d.pass(2 * minute)
	d.answers(outbox.Result{Reason: "timeout"})
	d.step()
	d.pass(23 * time.Hour)
	d.step()
	d.state("needs_review")
	d.answers(outbox.Result{Outcome: outbox.OutcomeDelivered})
	return d
}

// TestD04StripesTotalSettlesWhatStayedUnknown has it delivered, lacking and neither.
func TestD04StripesTotalSettlesWhatStayedUnknown(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		units int64
		want  string
		sent  int
	}{
		{"Stripe has it", 7, "0 7/1 delivered; ", 1},
		{"Stripe lacks it", 0, "0 7/1 rejected; 1 7/0 delivered; ", 2},
		{"Stripe has something else", 3, "0 7/1 needs_review; ", 1},
		{"Stripe has it twice", 14, "0 7/1 needs_review; ", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := unknown(t)
			d.counts(tc.units)
			d.settles()
			d.step()
			d.want(tc.want)
			sent := d.sent()
			if len(sent) != tc.sent {
				t.Fatalf("sent were %+v", sent)
			}
			if last := sent[len(sent)-1]; tc.sent == 2 && (last.Identifier == sent[0].Identifier || last.Value != sent[0].Value || !last.Timestamp.Equal(start)) {
				t.Errorf("sent again was %+v, the first was %+v", last, sent[0])
			}
			if r := d.rows()[0]; (r.State == "delivered") != (r.Error == "") {
				t.Errorf("it says %q", r.Error)
			}
			before := len(d.sent())
			d.pass(time.Hour) // once settled it stays so, whatever Stripe counts now
			d.settles()
			d.step()
			if len(d.sent()) != before {
				t.Error("it was sent once more")
			}
		})
	}
}

// TestAReplacedDeliveryIsNeverSentAgain refuses by whoever asks.
func TestAReplacedDeliveryIsNeverSentAgain(t *testing.T) {
	t.Parallel()
	d := unknown(t)
	d.counts(0)
	d.settles()
	d.step()
	if _, err := d.Retry(d.rows()[0].Identifier); err == nil || !strings.Contains(err.Error(), "took its place") {
		t.Errorf("the retry says %v", err)
	}
	d.pass(time.Hour)
	d.step()
	if n := len(d.sent()); n != 2 {
		t.Errorf("%d were sent, want 2", n)
	}
}

// TestStripesTotalIsGivenTimeToSettle asks an hour after the last call, not before.
func TestStripesTotalIsGivenTimeToSettle(t *testing.T) {
	t.Parallel()
	d := unknown(t)
	d.stage("acme", "call", 2, 0) // late usage of the same minute, delivered just now
	d.pass(time.Minute)
	d.step()
	d.want("0 7/1 needs_review; 1 2/1 delivered; ")
	asked := 0
	d.counted = func(string, string, time.Time, time.Time) (credit.Quantity, error) {
		asked++
		return credit.Units(2), nil
	}
	d.pass(59*time.Minute + 59*time.Second)
	d.settles()
	if asked != 0 {
		t.Error("Stripe was asked before its total could hold what was just sent")
	}
	d.pass(16 * time.Minute)
	d.settles()
	d.step()
	d.want("0 7/1 rejected; 1 2/1 delivered; 2 7/0 delivered; ")
}

// TestANegativeOneIsSettledToo has a correction stay unknown.
func TestANegativeOneIsSettledToo(t *testing.T) {
	t.Parallel()
	for units, want := range map[int64]string{
		5: "0 7/1 delivered; 1 -2/-1 delivered; ", 7: "0 7/1 delivered; 1 -2/-1 rejected; 2 -2/0 delivered; ", 6: "0 7/1 delivered; 1 -2/-1 needs_review; ",
	} {
		d := opened(t, "acme")
		d.stage("acme", "call", 7, 0)
		d.pass(2 * minute)
		d.step()
		d.answers(outbox.Result{Reason: "timeout"})
		d.takeBack("acme", "call", 2, 0, 0)
		d.step()
		d.pass(23 * time.Hour)
		d.step()
		d.want("0 7/1 delivered; 1 -2/-1 needs_review; ")
		d.answers(outbox.Result{Outcome: outbox.OutcomeDelivered})
		d.counts(units)
		d.settles()
		d.pass(time.Minute)
		d.step()
		d.want(want)
	}
}

// TestAfterARepairStripesTotalSettlesNothing cannot tell the repair from what it
// repairs: sending again would bill it twice.
func TestAfterARepairStripesTotalSettlesNothing(t *testing.T) {
	t.Parallel()
	d := unknown(t)
	d.tx(func(tx *sqlx.Tx) error {
		_, err := d.StageRepair(t.Context(), tx, d.clock(), outbox.Usage{
			Part: ledger.RefOf("acme").Part, Account: "acme", Meter: "call", OccurredAt: start, Quantity: credit.Units(7),
		})
		return err
	})
	d.step()
	d.counts(7)
	d.pass(2 * time.Hour)
	d.settles()
	d.step()
	d.want("0 7/1 needs_review; 1 7/0 delivered; ")
	if r := d.rows()[0]; !strings.Contains(r.Error, "repair") {
		t.Errorf("it says %q", r.Error)
	}
}

// TestD05WhatStripeLacksAndIsTooOldIsShown is not sent to be refused.
func TestD05WhatStripeLacksAndIsTooOldIsShown(t *testing.T) {
	t.Parallel()
	d := unknown(t)
	d.counts(0)
	d.pass(34*24*time.Hour - 2*time.Minute)
	d.settles()
	d.step()
	d.want("0 7/1 needs_review; ")
	if r := d.one(); !strings.Contains(r.Error, "of that age") {
		t.Errorf("it says %q", r.Error)
	}
}

// TestAStripeThatDoesNotTellIsAskedAgain keeps the delivery as it is.
func TestAStripeThatDoesNotTellIsAskedAgain(t *testing.T) {
	t.Parallel()
	d := unknown(t)
	d.counted = func(string, string, time.Time, time.Time) (credit.Quantity, error) {
		return 0, errors.New("stripe is away")
	}
	d.settles()
	d.state("needs_review")
	d.counts(7)
	d.settles()
	d.state("needs_review") // not at once
	d.pass(15 * time.Minute)
	d.settles()
	d.state("delivered")
}

// TestD10ARefusedKeyIsMailedOnce by however many deliveries, tries and processes.
func TestD10ARefusedKeyIsMailedOnce(t *testing.T) {
	t.Parallel()
	d := opened(t, "a", "b", "c")
	d.alertTo = []string{"ops@example.com"}
	workers := []*outbox.Outbox{d.another(), d.another()}
	for _, account := range []string{"a", "b", "c"} {
		d.stage(account, "call", 1, 0)
	}
	d.answers(outbox.Result{Outcome: outbox.OutcomeBlocked, Reason: "401 Invalid API Key"})
	for range 5 {
		d.pass(2 * minute)
		for _, w := range workers {
			if _, err := w.UsageStep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		d.mailStep()
	}
	if len(d.mails) != 1 || !strings.Contains(d.mails[0].Text, "401 Invalid API Key") || d.mails[0].To[0] != "ops@example.com" {
		t.Errorf("mailed were %+v, want one", d.mails)
	}
	d.answers(outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.pass(2 * minute)
	d.step()
	for _, r := range d.rows() {
		if r.State != "delivered" {
			t.Errorf("lost: %+v", r)
		}
	}
}

// TestACorrectionThatWasReplacedCountsOnce lets another correction of the bucket go.
func TestACorrectionThatWasReplacedCountsOnce(t *testing.T) {
	t.Parallel()
	d := opened(t, "acme")
	d.stage("acme", "call", 7, 0)
	d.pass(2 * minute)
	d.step()
	d.answers(outbox.Result{Reason: "timeout"})
	d.takeBack("acme", "call", 4, 0, 0)
	d.step()
	d.pass(23 * time.Hour)
	d.step()
	d.answers(outbox.Result{Outcome: outbox.OutcomeDelivered})
	d.counts(7)
	d.settles()
	d.step()
	d.takeBack("acme", "call", 3, 0, 0)
	d.step()
	d.want("0 7/1 delivered; 1 -4/-1 rejected; 2 -4/0 delivered; 3 -3/-1 delivered; ")
}

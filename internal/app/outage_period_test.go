package app

import (
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/stripesim"
)

// TestD08AnOutageOverTheEndOfAPeriod begins ten minutes before the subscriptions'
// period ends and lasts 36 hours. Usage records of the period that is over are taken no
// more: exactly those need a person, and say so. All else is at Stripe in the end.
func TestD08AnOutageOverTheEndOfAPeriod(t *testing.T) {
	t.Parallel()
	c := newCampaign(t, 20260401, stripesim.Switches{})
	p := c.process()
	end := time.Date(2026, 4, 1, 12, 0, 17, 0, time.UTC)
	act := func(until, by time.Duration) {
		for c.clock.Now().Before(end.Add(until)) {
			c.stage()
			c.sim.Advance(by)
			c.works(p)
		}
	}
	c.sim.Advance(end.Add(-time.Hour).Sub(c.clock.Now()))
	act(-10*time.Minute, 2*time.Minute)
	if err := c.sim.AddFaults(&stripesim.Fault{Path: "/v1/**", Fault: "drop_before"}); err != nil {
		t.Fatal(err)
	}
	act(10*time.Minute, time.Minute)
	act(36*time.Hour, 2*time.Hour)
	c.sim.ClearFaults()
	for range 60 {
		c.sim.Advance(30 * time.Minute)
		c.works(p)
	}
	c.lacksOnlyThePeriod(end)
}

// works lets a process do all that is due.
func (c *campaign) works(p *process) {
	c.t.Helper()
	for more := true; more; {
		var err error
		if more, err = p.UsageStep(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := p.SettleStep(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

// lacksOnlyThePeriod compares both sides: Stripe lacks what needs review, which is all
// of the period that is over, and nothing else.
func (c *campaign) lacksOnlyThePeriod(end time.Time) {
	c.t.Helper()
	var open []struct {
		Account, Meter, State, Error string
		Bucket                       time.Time
		Lacking                      int64
	}
	var carried []struct {
		Account, Meter string
		Remainder      int64
	}
	err := c.db.Read(c.t.Context(), func(tx *sqlx.Tx) error {
		open, carried = nil, nil
		if err := tx.Select(&open, `SELECT account, meter, state, error, bucket, coalesce(sent_value * 1000000, quantity) AS lacking FROM deliveries
			WHERE state <> 'delivered' AND replaced_by = ''`); err != nil {
			return err
		}
		return tx.Select(&carried, `SELECT account, meter, remainder FROM delivery_carries`)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	rest := map[string]int64{}
	for _, d := range open {
		rest[d.Meter+" "+d.Account] += d.Lacking
		if d.Meter != "seat" || d.State != "needs_review" || d.Bucket.After(end) || d.Bucket.Before(end.Add(-15*time.Minute)) || !strings.Contains(d.Error, "period") {
			c.t.Errorf("in the end it is %+v", d)
		}
	}
	for _, r := range carried {
		rest[r.Meter+" "+r.Account] += r.Remainder
	}
	for key, b := range c.books {
		if want := big.NewRat(b.ours-rest[key], 1_000_000); b.theirs.Cmp(want) != 0 {
			c.t.Errorf("in the end Stripe has %s of %s, want %s", b.theirs.FloatString(6), key, want.FloatString(6))
		}
	}
	if len(open) == 0 {
		c.t.Error("nothing of the period was left: the outage tries nothing")
	}
	c.t.Logf("%d deliveries need a person", len(open))
}

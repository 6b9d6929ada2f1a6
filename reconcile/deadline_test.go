package reconcile_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/mail"
	"tallystick/stripesim"
)

// deliveriesOnly runs the check of deliveries, now.
const deliveriesOnly = `{"checks": ["usage.deliveries"]}`

// subscribed tells when acme's period of the meter at Stripe ends.
func (a *audited) subscribed() (end time.Time) {
	a.t.Helper()
	o := a.Stripe(http.MethodPost, "/v1/subscriptions", url.Values{"customer": {a.Customer}, "items[0][price]": {a.usagePrice()}})
	return time.Unix(int64(o["current_period_end"].(float64)), 0).Truncate(time.Minute)
}

// to moves the clock to a time.
func (a *audited) to(at time.Time) { a.Sim.Advance(at.Sub(a.Clock.Now())) }

// TestD06UsageThatLagsAtAPeriodsEndIsFoundAndMailed at the edges: a quarter of an hour
// of waiting, within the hour before the period ends, until its invoice is final.
func TestD06UsageThatLagsAtAPeriodsEndIsFoundAndMailed(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_MAIL_URGENT_TO": "oncall@example.com"})
	end := a.subscribed()
	a.to(end.Add(-80 * time.Minute))
	a.Use("usage-0002", 60)
	a.vandalise("UPDATE deliveries SET next_try_at = next_try_at + interval '1 year' WHERE state = 'pending'")
	a.to(end.Add(-66 * time.Minute))
	if found := a.runWith(deliveriesOnly); len(found) > 0 {
		t.Errorf("after 14 minutes found were %+v", found)
	}
	a.to(end.Add(-61 * time.Minute))
	if found := a.runWith(deliveriesOnly); len(found) > 0 {
		t.Errorf("61 minutes before the end found were %+v", found)
	}
	a.to(end.Add(-59 * time.Minute))
	a.near(a.runWith(deliveriesOnly), end.Add(time.Hour))
	if m := a.awaitMails(1)[0]; !strings.Contains(strings.Join(m.To, " "), "oncall@example.com") || !strings.Contains(m.Text, "1.20 USD") {
		t.Errorf("the mail to %q is %q:\n%s", m.To, m.Subject, m.Text)
	}
	a.to(end.Add(59 * time.Minute))
	a.near(a.runWith(deliveriesOnly), end.Add(time.Hour))
	a.to(end.Add(time.Hour + time.Minute))
	if found := a.runWith(deliveriesOnly); len(found) != 1 || found[0].Cause == "deadline_near" || found[0].Deadline.Before(end.Add(30*24*time.Hour)) {
		t.Errorf("when the invoice is final found are %+v", found)
	}
}

// near wants one finding about the deadline.
func (a *audited) near(found []api.Finding, deadline time.Time) {
	a.t.Helper()
	if len(found) != 1 {
		a.t.Fatalf("found are %+v", found)
	}
	f := found[0]
	if f.Cause != "deadline_near" || !f.Deadline.Equal(deadline) || f.Ours != "60" || f.MoneyAtRisk == nil || f.MoneyAtRisk.Text != "1.20 USD" || (f.Severity != "high" && f.Severity != "critical") {
		a.t.Errorf("found is %+v, want the deadline %s", f, deadline)
	}
}

// TestD06RecordsThatNobodyHasClaimedAreNear: the worker that would say by which back end
// they go has stood still.
func TestD06RecordsThatNobodyHasClaimedAreNear(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.vandalise(`INSERT INTO meters (meter, unit, aggregation, stripe_price, stripe_bound_at, rate_version, created_at, updated_at)
		SELECT 'record', unit, aggregation, 'price_x', stripe_bound_at, rate_version, created_at, updated_at FROM meters WHERE meter = 'call'`)
	a.vandalise(`INSERT INTO subscription_items SELECT part, account, $1, 'price_x', 'si_x', 'sub_x', 'active', false, $2::timestamptz - interval '1 month', $2::timestamptz + interval '30 minutes', $2, $2
		FROM accounts WHERE account = 'acme'`, a.Customer, a.Clock.Now())
	a.vandalise(`INSERT INTO deliveries (part, account, meter, bucket, sequence, quantity, usages, origin, state, event_name, customer, identifier,
		attempts, next_try_at, error, created_at, updated_at)
		SELECT part, account, 'record', bucket, 0, 2000000, 1, origin, 'pending', '', '', identifier || 'x', 0, next_try_at + interval '1 year', '',
		created_at - interval '20 minutes', updated_at FROM deliveries`)
	if found := a.runWith(deliveriesOnly); len(found) != 1 || found[0].Cause != "deadline_near" || found[0].Deadline.After(a.Clock.Now().Add(30*time.Minute)) {
		t.Errorf("found are %+v", found)
	}
}

// TestWhatWaitsForStripeIsFoundWithoutStripe: what it is worth cannot be said then.
func TestWhatWaitsForStripeIsFoundWithoutStripe(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.fault(stripesim.Fault{Path: "/v1/**", Fault: "error_503"})
	a.Use("usage-0002", 60)
	a.Sim.Advance(2 * time.Hour)
	if found := a.runWith(deliveriesOnly); len(found) != 1 || found[0].Check != "usage.deliveries" || found[0].MoneyAtRisk != nil || found[0].Ours != "60" {
		t.Errorf("found are %+v", found)
	}
}

// TestD05WhatStripeLacksIsToldAgainAfterAWeekAndAfterThirtyDays by time alone: no check
// looks so far back. Stripe takes nothing that is older than 35 days.
func TestD05WhatStripeLacksIsToldAgainAfterAWeekAndAfterThirtyDays(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_MAIL_COOLDOWN": "0s"})
	a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "lose", Times: 1})
	a.Use("usage-0002", 60)
	a.Pass(3 * time.Minute)
	f := a.one()
	told := func(n int, severity string) {
		t.Helper()
		got := a.awaitMails(n)
		if now := a.findings(""); len(got) != n || len(now) != 1 || now[0].Severity != severity {
			t.Errorf("there are %d mails, %q, and the finding is %+v; want %d, and %s", len(got), subjects(got), now, n, severity)
		}
	}
	told(1, "medium")
	a.to(f.HappenedAt.Add(7*24*time.Hour - time.Minute))
	a.quiet(1)
	told(1, "medium")
	a.to(f.HappenedAt.Add(7*24*time.Hour + time.Second))
	told(2, "high")
	a.to(f.HappenedAt.Add(30*24*time.Hour - time.Minute))
	a.quiet(2)
	told(2, "high")
	a.to(f.HappenedAt.Add(30*24*time.Hour + time.Second))
	told(3, "critical")
}

// quiet waits until the mails could have been more.
func (a *audited) quiet(n int) {
	a.t.Helper()
	if slept := time.Now().Add(time.Second); len(a.mails()) == n {
		a.Await("a second without a mail", func() bool { return len(a.mails()) > n || time.Now().After(slept) })
	}
}

// TestD09RefusedAfterItWasAcceptedIsNotCountedAsBilled plays each reason that Stripe
// finds out after its answer: it is told at once with the delivery's name, priced when
// the totals are compared, and sent again when a person has mended the reason.
func TestD09RefusedAfterItWasAcceptedIsNotCountedAsBilled(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"meter_event_customer_not_found", "meter_event_no_customer_defined", "archived_meter", "timestamp_too_far_in_past", "meter_event_invalid_value"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			a := open(t, map[string]string{"TALLYSTICK_MAIL_COOLDOWN": "0s"})
			if err := a.Sim.FailMeterEvents("calls", code, 1); err != nil {
				t.Fatal(err)
			}
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
			a.Pass(time.Minute)
			refused := a.latestDelivery()
			if refused.State != "delivered" {
				t.Fatalf("it was not accepted: %+v", refused)
			}
			found := a.runWith(`{"checks": ["usage.errors"]}`)
			if len(found) != 1 || found[0].Cause != "reported" || found[0].Account != "acme" || !strings.Contains(string(found[0].Evidence), refused.ID) || !strings.Contains(found[0].Explanation, code) {
				t.Fatalf("Stripe's report makes %+v", found)
			}
			a.awaitMails(1)
			f := a.one()
			if f.Cause != "refused_asynchronously" || f.Ours != "12" || f.Theirs != "7" || f.MoneyAtRisk == nil || f.MoneyAtRisk.Text != "0.10 USD" || !strings.Contains(string(f.Evidence), refused.ID) {
				t.Errorf("the totals make %+v", f)
			}
			if !slices.ContainsFunc(a.awaitMails(2), func(m mail.Caught) bool { return strings.Contains(m.Subject+m.Text, "0.10 USD") }) {
				t.Errorf("nobody is told what it is worth: %q", subjects(a.mails()))
			}
			a.repair(f)
			if got := a.counted(a.Clock.Now().Add(-48 * time.Hour)); got != 12 {
				t.Errorf("Stripe counts %v in the end, want 12", got)
			}
		})
	}
}

package reconcile_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/stripesim"
)

// defect is something that can go wrong, and what must be found of it.
type defect struct {
	name     string
	plant    func(a *audited)
	check    string
	ours     string
	theirs   string
	differs  string
	money    string // "" when no price is known
	repair   string // "" when a person must look
	safe     bool
	deadline bool
}

// defects has one entry per cause that the checks know; the name is the cause.
var defects = []defect{
	{
		"lost_at_stripe", func(a *audited) {
			a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "lose"})
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
		}, "usage.totals", "12", "7", "-5", "0.10 USD", "resend_usage", true, true,
	},
	{
		"never_staged", func(a *audited) {
			a.Use("usage-0002", 5)
			a.vandalise("DELETE FROM deliveries WHERE state = 'pending'")
		}, "usage.totals", "12", "7", "-5", "0.10 USD", "resend_usage", true, true,
	},
	{
		"rejected", func(a *audited) {
			a.Control("/_sim/switches", `{"meter_errors_sync": true}`)
			a.Stripe(http.MethodDelete, "/v1/customers/"+a.Customer, nil)
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
		}, "usage.totals", "12", "7", "-5", "0.10 USD", "", false, true,
	},
	{
		"outcome_unknown", func(a *audited) {
			a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "drop_before"})
			a.Use("usage-0002", 5)
			a.Sim.Advance(2 * time.Minute)
			a.Await("a try", func() bool { return a.deliveries("ambiguous") > 0 })
			a.Sim.Advance(2 * time.Hour)
		}, "usage.totals", "12", "7", "-5", "0.10 USD", "resend_usage", false, true,
	},
	{
		"not_sent", func(a *audited) {
			a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "unauthorized_401"})
			a.Use("usage-0002", 5)
			a.Sim.Advance(2 * time.Hour)
		}, "usage.totals", "12", "7", "-5", "0.10 USD", "", false, true,
	},
	{
		"sent_by_somebody_else", func(a *audited) {
			a.Stripe(http.MethodPost, "/v1/billing/meter_events", url.Values{
				"event_name": {"calls"}, "payload[stripe_customer_id]": {a.Customer}, "payload[value]": {"5"}, "identifier": {"foreign"},
			})
		}, "usage.totals", "7", "12", "+5", "0.10 USD", "", false, true,
	},
	{
		"sent_twice", func(a *audited) {
			a.vandalise(`INSERT INTO deliveries SELECT part, account, meter, bucket, sequence + 1, quantity, usages, origin, 'pending', '', '', identifier || 'x', 0, next_try_at,
				NULL, NULL, '', created_at, updated_at FROM deliveries`)
			a.Pass(3 * time.Minute)
		}, "usage.totals", "7", "14", "+7", "0.14 USD", "cancel_usage", false, true,
	},
	{
		"void_not_at_stripe", func(a *audited) {
			a.Use("usage-0002", 5)
			a.Pass(3 * time.Minute)
			a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "unauthorized_401"})
			a.void("usage-0002")
			a.Sim.Advance(2 * time.Hour)
		}, "usage.totals", "7", "12", "+5", "0.10 USD", "", false, true,
	},
	{
		"no_meter_at_stripe", func(a *audited) {
			a.Want(http.StatusCreated, http.MethodPut, "/v1/meters/other", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "nowhere"}}`, nil)
			a.Want(http.StatusCreated, http.MethodPost, "/v1/usage", `{"id": "usage-0002", "account": "acme", "meter": "other", "quantity": 5}`, nil)
			a.Pass(3 * time.Minute)
		}, "usage.totals", "5", "0", "-5", "0.50 USD", "", false, true, // what the credits have cost
	},
	{
		"webhook_missed", func(a *audited) {
			a.lose()
			a.Buy(a.Price)
			a.Settled()
		}, "credits.payments", "0", "100", "+100", "10.00 USD", "feed_event", true, false,
	},
	{
		"event_flagged", func(a *audited) {
			a.lose()
			payment := a.Buy(a.Price)
			a.receive(payment, `"livemode":false`, `"livemode":true`)
		}, "credits.payments", "0", "100", "+100", "10.00 USD", "feed_event", true, false,
	},
	{
		"event_not_applied", func(a *audited) {
			a.vandalise("ALTER TABLE payments ADD CONSTRAINT planted CHECK (false) NOT VALID")
			a.Buy(a.Price)
			a.Await("a try", func() bool { return a.errors() > 0 })
		}, "credits.payments", "0", "100", "+100", "10.00 USD", "feed_event", true, false,
	},
	{
		"no_event", func(a *audited) {
			a.lose()
			a.Buy(a.Price)
			a.Sim.Advance(32 * 24 * time.Hour) // Stripe lists events for 30 days
		}, "credits.payments", "0", "100", "+100", "10.00 USD", "", false, false,
	},
	{
		"parked", func(a *audited) {
			a.Buy(a.Pack(nil))
			a.Settled()
		}, "credits.payments", "0", "unknown", "0", "10.00 USD", "", false, false,
	},
	{
		"granted_twice", func(a *audited) {
			a.vandalise(`INSERT INTO grants SELECT part, account, grant_id || '-2', kind, credits, 0, priority, expires_at, reason, payment, fingerprint, transfer_version, created_at FROM grants`)
		}, "credits.payments", "200", "100", "-100", "10.00 USD", "", false, false,
	},
	{
		"wrong_account", func(a *audited) {
			a.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/other", `{}`, nil)
			intent := a.Make("/v1/payment_intents", url.Values{
				"amount": {"1000"}, "currency": {"usd"}, "customer": {a.Customer}, "metadata[account]": {"acme"}, "metadata[credits]": {"100"},
				"payment_method": {"pm_card_visa"}, "confirm": {"true"}, "return_url": {"https://example.com/thanks"},
			})
			a.Settled()
			a.Stripe(http.MethodPost, "/v1/payment_intents/"+intent, url.Values{"metadata[account]": {"other"}})
		}, "credits.payments", "100", "100", "0", "10.00 USD", "", false, false,
	},
	{
		"wrong_amount", func(a *audited) { a.vandalise("UPDATE grants SET credits = 150000000") },
		"credits.payments", "150", "100", "-50", "5.00 USD", "", false, false,
	},
	{
		"phantom_grant", func(a *audited) {
			a.vandalise(`INSERT INTO grants SELECT part, account, grant_id || '-2', kind, 30000000, 0, priority, expires_at, reason, 'pi_nobody_paid', fingerprint, transfer_version, created_at FROM grants`)
		}, "credits.payments", "30", "0", "-30", "3.00 USD", "", false, false,
	},
}

// allDefects has those of every check.
func allDefects() []defect {
	return slices.Concat(defects, ledgerDefects, moneyDefects, webhookDefects, usageDefects, recordDefects)
}

func TestEachPlantedDefectIsFoundAndNothingElse(t *testing.T) {
	t.Parallel()
	for _, d := range allDefects() {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			a := open(t, nil)
			d.plant(a)
			request := `{}`
			if d.name == "no_event" {
				request = fmt.Sprintf(`{"from": %q}`, a.Clock.Now().Add(-34*24*time.Hour).Format(time.RFC3339))
			}
			a.Sim.Advance(3 * time.Minute)
			found := d.planted(a.runWith(request))
			if len(found) != 1 {
				t.Fatalf("%d findings, want 1: %+v", len(found), found)
			}
			d.compare(t, found[0])
			if d.repair != "" && d.safe || d.repair == "cancel_usage" {
				a.Sim.ClearFaults()
				a.Control("/_sim/webhooks", `{"lose": 0}`)
				a.vandalise("ALTER TABLE payments DROP CONSTRAINT IF EXISTS planted")
				a.repair(found[0])
			}
		})
	}
}

// account is whom the finding is about: events and meters are nobody's.
func (d defect) account() string {
	if strings.HasPrefix(d.check, "webhooks.") || d.check == "usage.errors" || d.check == "stripe.catalog" && !strings.HasPrefix(d.name, "customer_") {
		return ""
	}
	if d.name == "account_missing" {
		return "other"
	}
	return "acme"
}

// beside are the findings of other checks that a defect brings with it: each tells
// of another thing that is wrong then, and of another thing to do.
var beside = map[string][]string{
	"no_meter_at_stripe":         {"meter_missing"},
	"rejected":                   {"customer_deleted"},
	"billed_to_deleted_customer": {"customer_deleted"},
	"customer_deleted":           {"billed_to_deleted_customer"},
	"archived_meter":             {"meter_inactive"},
	"deadline_near":              {"price_missing"},
}

// planted takes out of what was found what comes with the defect.
func (d defect) planted(found []api.Finding) []api.Finding {
	return slices.DeleteFunc(found, func(f api.Finding) bool { return slices.Contains(beside[d.name], f.Cause) })
}

// compare holds a finding against what was planted.
func (d defect) compare(t *testing.T, f api.Finding) {
	t.Helper()
	money := ""
	if f.MoneyAtRisk != nil {
		money = f.MoneyAtRisk.Text
	}
	for _, c := range []struct{ what, got, want string }{
		{"cause", f.Cause, d.name},
		{"check", f.Check, d.check},
		{"account", f.Account, d.account()},
		{"our side", f.Ours, d.ours},
		{"the other side", f.Theirs, d.theirs},
		{"difference", f.Difference, d.differs},
		{"money at risk", money, d.money},
		{"repair", f.Repair, d.repair},
		{"safe", fmt.Sprint(f.Safe), fmt.Sprint(d.safe)},
		{"deadline", fmt.Sprint(f.Deadline != nil), fmt.Sprint(d.deadline)},
		{"state", f.State, "open"},
	} {
		if c.got != c.want && (c.what != "our side" || c.want != "") && (c.what != "account" || d.name != "wrong_account") {
			t.Errorf("%s is %q, want %q: %s", c.what, c.got, c.want, f.Explanation)
		}
	}
	var evidence map[string]any
	if err := json.Unmarshal(f.Evidence, &evidence); err != nil || len(evidence) == 0 {
		t.Errorf("the evidence is %s, %v", f.Evidence, err)
	}
	if f.Explanation == "" || f.Subject == "" {
		t.Errorf("the finding explains nothing: %+v", f)
	}
}

// TestEveryCauseIsPlantedAndDescribed keeps code, tests and documents together.
func TestEveryCauseIsPlantedAndDescribed(t *testing.T) {
	t.Parallel()
	causes := causesInCode(t)
	for _, d := range allDefects() {
		if !slices.Contains(causes, d.name) {
			t.Errorf("%s is planted, but no check knows it", d.name)
		}
		if page := document(t, d.check); !strings.Contains(page, "`"+d.name+"`") {
			t.Errorf("docs/checks/%s.md does not describe %s", d.check, d.name)
		}
	}
	for _, cause := range causes {
		if alone := cause == "reported"; !alone && !slices.ContainsFunc(allDefects(), func(d defect) bool { return d.name == cause }) { // it has a test of its own
			t.Errorf("%s is never planted", cause)
		}
	}
}

// lose loses the webhooks that would grant a purchase.
func (a *audited) lose() {
	a.t.Helper()
	a.Control("/_sim/webhooks", `{"lose": {"types": ["checkout.session.completed", "payment_intent.succeeded"]}}`)
}

// deliveries counts those in a state.
func (a *audited) deliveries(state string) int {
	a.t.Helper()
	var list struct{ Data []any }
	a.Want(http.StatusOK, http.MethodGet, "/v1/deliveries?state="+state, nil, &list)
	return len(list.Data)
}

// errors counts events whose application has failed.
func (a *audited) errors() int {
	a.t.Helper()
	var list struct{ Data []api.StripeEvent }
	a.Want(http.StatusOK, http.MethodGet, "/v1/stripe/events?state=pending", nil, &list)
	n := 0
	for _, e := range list.Data {
		if e.Error != "" {
			n++
		}
	}
	return n
}

// receive posts the event of a payment as Stripe would, with a change in its text.
func (a *audited) receive(payment, from, to string) {
	a.t.Helper()
	for _, raw := range a.Events(payment) {
		if !strings.Contains(string(raw), `"checkout.session.completed"`) {
			continue
		}
		if r := a.Webhook(strings.ReplaceAll(string(raw), from, to)); r.Status != http.StatusOK {
			a.t.Fatalf("the webhook was answered %d: %s", r.Status, r.Body)
		}
		return
	}
	a.t.Fatalf("no event of %s at Stripe", payment)
}

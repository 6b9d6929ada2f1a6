package reconcile_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tallystick/api"
)

// seats has acme use seats, which a subscription item bills by usage records at 3
// cents each: 5 of them, which have arrived. It gives the item.
func (a *audited) seats() (item string) {
	a.t.Helper()
	price := a.Make("/v1/prices", url.Values{
		"product": {a.Make("/v1/products", url.Values{"name": {"seats"}})}, "currency": {"usd"}, "unit_amount": {"3"},
		"recurring[interval]": {"month"}, "recurring[usage_type]": {"metered"},
	})
	content, err := json.Marshal(a.Stripe(http.MethodPost, "/v1/subscriptions", url.Values{"customer": {a.Customer}, "items[0][price]": {price}}))
	if err != nil {
		a.t.Fatal(err)
	}
	var sub struct {
		Items struct{ Data []struct{ ID string } }
	}
	if err := json.Unmarshal(content, &sub); err != nil || len(sub.Items.Data) != 1 {
		a.t.Fatalf("the subscription is %s", content)
	}
	a.Want(http.StatusCreated, http.MethodPut, "/v1/meters/seat", `{"credits_per_unit": 0, "stripe": {"kind": "usage_record", "price": "`+price+`"}}`, nil)
	a.Pass(2 * time.Minute)
	a.seat("seat-00001", 5)
	a.Pass(3 * time.Minute)
	a.Pass(time.Minute)
	if found := a.run(); len(found) > 0 {
		a.t.Fatalf("clean usage records have findings: %+v", found)
	}
	return sub.Items.Data[0].ID
}

func (a *audited) seat(id string, quantity int) {
	a.t.Helper()
	a.Want(http.StatusCreated, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "seat", "quantity": %d}`, id, quantity), nil)
}

// seatStamp is the time that the latest usage record was set for.
func (a *audited) seatStamp() string {
	return a.scalar("SELECT extract(epoch FROM max(stamp))::bigint::text FROM deliveries WHERE meter = 'seat' AND state = 'delivered'")
}

// report sends a usage record past tallystick.
func (a *audited) report(item, action, stamp string, quantity int) {
	a.t.Helper()
	a.Stripe(http.MethodPost, "/v1/subscription_items/"+item+"/usage_records", url.Values{
		"action": {action}, "timestamp": {stamp}, "quantity": {fmt.Sprint(quantity)},
	})
}

// turn lets the billing period pass.
func (a *audited) turn() {
	a.t.Helper()
	a.Sim.Advance(31*24*time.Hour + 2*time.Hour)
	a.Pass(3 * time.Minute)
}

// recordDefects are those of usage records.
var recordDefects = []defect{
	{
		"never_staged", func(a *audited) {
			a.seats()
			a.seat("seat-00002", 4)
			a.vandalise("DELETE FROM deliveries WHERE meter = 'seat' AND state = 'pending'")
		}, "usage.totals", "4", "0", "-4", "0.12 USD", "resend_usage", true, true,
	},
	{
		"overwritten_by_set", func(a *audited) {
			item := a.seats()
			a.report(item, "set", a.seatStamp(), 2)
		}, "usage.totals", "5", "2", "-3", "0.09 USD", "", false, true,
	},
	{
		"sent_by_somebody_else", func(a *audited) {
			item := a.seats()
			a.report(item, "increment", "now", 1)
		}, "usage.totals", "5", "6", "+1", "0.03 USD", "", false, true,
	},
	{
		"sent_twice", func(a *audited) {
			a.seats()
			a.vandalise(`INSERT INTO deliveries SELECT part, account, meter, bucket, sequence + 1, quantity, usages, origin, 'pending', '', '', identifier || 'x', 0, next_try_at,
				NULL, NULL, '', created_at, updated_at, backend FROM deliveries WHERE meter = 'seat'`)
			a.Pass(3 * time.Minute)
		}, "usage.totals", "5", "10", "+5", "0.15 USD", "", false, true,
	},
}

// TestUsageRecordsOfAPeriodThatIsOver finds what was overwritten just before the
// period's end, and proposes the invoice item that makes it good.
func TestUsageRecordsOfAPeriodThatIsOver(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	item := a.seats()
	a.report(item, "set", a.seatStamp(), 2)
	a.turn()
	a.Sim.Advance(3 * time.Minute)
	found := a.runWith(`{"checks": ["usage.totals"]}`)
	if len(found) != 1 || found[0].Cause != "overwritten_by_set" || found[0].Difference != "-3" || found[0].Repair != "propose" || found[0].Safe {
		t.Fatalf("found were %+v", found)
	}
	var out api.Repair
	a.Want(http.StatusOK, http.MethodPost, "/v1/findings/"+found[0].ID+"/repair", `{"dry_run": true}`, &out)
	if !strings.Contains(out.Result, "an invoice item of 0.09 USD") {
		t.Errorf("the repair says %+v", out)
	}
	if want := "0.09 USD"; found[0].MoneyAtRisk == nil || found[0].MoneyAtRisk.Text != want {
		t.Errorf("the money is %+v, want %s", found[0].MoneyAtRisk, want)
	}
	// The next run says the same: nobody has billed it.
	if again := a.runWith(`{"checks": ["usage.totals"]}`); len(again) != 1 || again[0].ID != found[0].ID {
		t.Errorf("again found were %+v", again)
	}
}

// TestUsageRecordsThatAreRightHaveNoFinding has parts of units that are carried, voids,
// late usage, an outage, a new period, and edges that Stripe leaves out.
func TestUsageRecordsThatAreRightHaveNoFinding(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.seats()
	a.Control("/_sim/switches", `{"usage_open_period_null": true}`)
	clean := func(when string) {
		t.Helper()
		a.Sim.Advance(3 * time.Minute)
		if found := a.runWith(`{"checks": ["usage.totals"]}`); len(found) > 0 {
			t.Fatalf("%s: %+v", when, found)
		}
	}
	for i, quantity := range []string{"0.4", "0.7", "2.25"} {
		a.Want(http.StatusCreated, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "part-0000%d", "account": "acme", "meter": "seat", "quantity": %s}`, i, quantity), nil)
		clean("before it is sent")
		a.Pass(3 * time.Minute)
		clean("with a remainder")
	}
	a.void("seat-00001")
	clean("voided a moment ago")
	a.Pass(3 * time.Minute)
	clean("voided")
	a.seat("seat-00003", 3)
	a.turn()
	clean("in the next period")
	a.seat("seat-00004", 2)
	a.Pass(3 * time.Minute)
	clean("with usage in it")
}

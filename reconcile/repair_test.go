package reconcile_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/stripesim"
)

// found puts a finding into the database as a check would have written it.
func (a *audited) found(repair, args string) api.Finding {
	a.t.Helper()
	id := "fnd_" + repair
	a.vandalise(`INSERT INTO findings (finding_id, check_name, subject, account, happened_at, severity, ours, theirs, difference, unit, money, currency, cause, explanation,
		evidence, repair, repair_args, safe, state, times_open, first_seen, opened_at, last_seen, run_id)
		VALUES ($1, 'a.test', $1, 'acme', $2, 'low', '1', '2', '+1', 'call', 2, 'usd', 'planted', 'planted', '{}', $3, $4, true, 'open', 1, $2, $2, $2, '')`,
		id, a.Clock.Now(), repair, args)
	return api.Finding{ID: id}
}

func (a *audited) repaired(f api.Finding, body string) (out api.Repair) {
	a.t.Helper()
	a.Want(http.StatusOK, http.MethodPost, "/v1/findings/"+f.ID+"/repair", body, &out)
	return out
}

// forget undoes the audit row of a repair, as if the process had died just before.
func (a *audited) forget() { a.t.Helper(); a.vandalise("DELETE FROM repairs") }

// TestARepairGrantsWhatAPaymentHasBought, once, though its process dies in between.
func TestARepairGrantsWhatAPaymentHasBought(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.lose()
	payment := a.Buy(a.Price)
	a.Settled()
	f := a.found("grant_credits", fmt.Sprintf(`{"payment": %q}`, payment))
	before := a.Available("acme")
	if out := a.repaired(f, `{"dry_run": true}`); out.Done || !strings.Contains(out.Result, payment) || a.Available("acme") != before {
		t.Errorf("a dry run says %+v, the balance is %s, was %s", out, a.Available("acme"), before)
	}
	if out := a.repaired(f, `{}`); !out.Done || a.Available("acme") != "193" {
		t.Errorf("the repair says %+v, the balance is %s, want 193", out, a.Available("acme"))
	}
	a.forget()
	if out := a.repaired(f, `{}`); !out.Done || a.Available("acme") != "193" {
		t.Errorf("after a crash the repair says %+v, the balance is %s, want 193", out, a.Available("acme"))
	}
	if out := a.repaired(f, `{}`); out.Done || a.Available("acme") != "193" {
		t.Errorf("done again the repair says %+v, the balance is %s, want 193", out, a.Available("acme"))
	}
	a.wantHistory(f, "repaired repaired")
}

// TestARepairOfWhatIsNotPaidIsRefused and leaves no audit row.
func TestARepairOfWhatIsNotPaidIsRefused(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	intent := a.Make("/v1/payment_intents", map[string][]string{"amount": {"1000"}, "currency": {"usd"}, "customer": {a.Customer}})
	f := a.found("grant_credits", fmt.Sprintf(`{"payment": %q}`, intent))
	if r := a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{}`); r.Status != http.StatusConflict || r.Code() != "payment_not_paid" {
		t.Errorf("it was answered %d %s", r.Status, r.Body)
	}
	if n := a.scalar("SELECT count(*)::text FROM repairs"); n != "0" {
		t.Errorf("%s audit rows of what was not done", n)
	}
}

// TestARepairTakesBackWhatWasRefunded when the refund's events never came.
func TestARepairTakesBackWhatWasRefunded(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	payment := a.Buy(a.Price)
	a.Settled()
	a.lose()
	refund := a.Make("/v1/refunds", map[string][]string{"payment_intent": {payment}, "amount": {"250"}})
	a.Settled()
	f := a.found("take_back", fmt.Sprintf(`{"payment": %q, "refund": %q}`, payment, refund))
	for range 2 {
		if out := a.repaired(f, `{}`); !out.Done || a.Available("acme") != "168" {
			t.Errorf("the repair says %+v, the balance is %s, want 168", out, a.Available("acme"))
		}
		a.forget()
	}
}

// TestARepairSettlesAReservationInDoubt as a person chose, never by itself.
func TestARepairSettlesAReservationInDoubt(t *testing.T) {
	t.Parallel()
	for choice, want := range map[string]string{"release": "93", "capture": "83"} {
		t.Run(choice, func(t *testing.T) {
			t.Parallel()
			a := open(t, map[string]string{"TALLYSTICK_REPAIR": "safe"})
			a.Want(http.StatusCreated, http.MethodPost, "/v1/reservations", `{"id": "reservation-1", "account": "acme", "meter": "call", "quantity": 10, "ttl_seconds": 600}`, nil)
			a.Want(http.StatusOK, http.MethodPost, "/v1/reservations/reservation-1/doubt", `{"reason": "timeout"}`, nil)
			f := a.found("settle_reservation", `{"reservation": "reservation-1", "account": "acme"}`)
			a.runWith(`{"checks": ["ledger.balances"]}`) // by policy nothing happens, although the row says that it is safe
			if r := a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{}`); r.Status != 422 || r.Code() != "choice_needed" {
				t.Errorf("without a choice it was answered %d %s", r.Status, r.Body)
			}
			for range 2 {
				if out := a.repaired(f, fmt.Sprintf(`{"choice": %q}`, choice)); !out.Done || a.Available("acme") != want {
					t.Errorf("the repair says %+v, the balance is %s, want %s", out, a.Available("acme"), want)
				}
				a.forget()
			}
		})
	}
}

// TestARepairCancelsWhatStripeHasTooMuch, and nothing that is owed; two at once and
// one after a crash cancel once.
func TestARepairCancelsWhatStripeHasTooMuch(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	hour := a.Clock.Now().Truncate(time.Hour)
	a.Stripe(http.MethodPost, "/v1/billing/meter_events", map[string][]string{
		"event_name": {"calls"}, "identifier": {"foreign-1"}, "payload[stripe_customer_id]": {a.Customer}, "payload[value]": {"5"},
		"timestamp": {fmt.Sprint(a.Clock.Now().Unix())},
	})
	a.Sim.Advance(3 * time.Minute)
	args := func(received time.Time, quantity int) string {
		return fmt.Sprintf(`{"account": "acme", "meter": "call", "event_name": "calls", "events": [{"identifier": "foreign-1", "quantity": "%d"}],
			"spans": [{"from": %q, "to": %q}], "received_at": %q}`, quantity, hour.Format(time.RFC3339), hour.Add(time.Hour).Format(time.RFC3339), received.Format(time.RFC3339))
	}
	f := a.found("cancel_usage", args(a.Clock.Now().Add(-24*time.Hour), 5))
	for received, code := range map[time.Time]string{a.Clock.Now().Add(-24 * time.Hour): "too_late", a.Clock.Now(): "not_too_much"} {
		a.vandalise("UPDATE findings SET repair_args = $1 WHERE finding_id = $2", args(received, 6), f.ID)
		if r := a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{}`); r.Status != http.StatusConflict || r.Code() != code {
			t.Errorf("it was answered %d %s, want the code %s", r.Status, r.Body, code)
		}
	}
	a.vandalise("UPDATE findings SET repair_args = $1 WHERE finding_id = $2", args(a.Clock.Now(), 5), f.ID)
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range 4 {
		wg.Go(func() {
			r := a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{}`)
			mu.Lock()
			defer mu.Unlock()
			if strings.Contains(string(r.Body), `"done":true`) {
				done++
			}
		})
	}
	wg.Wait()
	a.Sim.Advance(time.Hour)
	if total := a.Sim.State().Meters[0].Total; total != "7" || done != 1 {
		t.Errorf("Stripe has counted %s after %d repairs, want 7 after 1", total, done)
	}
	a.forget()
	if r := a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{}`); r.Code() != "not_too_much" {
		t.Errorf("after a crash, measured anew, it was answered %d %s", r.Status, r.Body)
	}
}

// TestAProposalHasExactFiguresAndDoesNothing about what customers would see.
func TestAProposalHasExactFiguresAndDoesNothing(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	f := a.found("propose", `{"kind": "credit_note", "customer": "cus_1", "invoice": "in_1", "amount": 1234, "currency": "usd", "description": "5 calls too many"}`)
	out := a.repaired(f, `{}`)
	for _, want := range []string{"12.34 USD", "1234", "in_1", "cus_1", "5 calls too many"} {
		if !strings.Contains(out.Result, want) {
			t.Errorf("the proposal lacks %q: %s", want, out.Result)
		}
	}
	if out.Done {
		t.Error("a proposal is not done by making it")
	}
	a.wantHistory(f, "")
}

// TestARepairThatStripeRefusesIsNotDone and may be tried again.
func TestARepairThatStripeRefusesIsNotDone(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.lose()
	payment := a.Buy(a.Price)
	a.Settled()
	f := a.found("grant_credits", fmt.Sprintf(`{"payment": %q}`, payment))
	a.fault(stripesim.Fault{Method: http.MethodGet, Path: "/v1/payment_intents/*", Fault: "unauthorized_401", Times: 1})
	if r := a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{}`); r.Status < 500 {
		t.Errorf("without Stripe the repair was answered %d %s", r.Status, r.Body)
	}
	if out := a.repaired(f, `{}`); !out.Done {
		t.Errorf("tried again it says %+v", out)
	}
}

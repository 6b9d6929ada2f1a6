package stripesim_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// TestWhatFallsDueLateCountsFromItsTime wants the same end however the clock gets there.
func TestWhatFallsDueLateCountsFromItsTime(t *testing.T) {
	t.Parallel()
	ends := map[string]bool{}
	for _, steps := range [][]time.Duration{{12 * 24 * time.Hour}, {5 * 24 * time.Hour, 7 * 24 * time.Hour}} {
		u := newUser(t, stripesim.Options{Clock: &still{now: time.Unix(1_700_000_000, 0)}})
		u.make("/v1/payment_intents", "amount=1000&currency=usd&confirm=true&payment_method=pm_usBankAccount_dispute")
		for _, step := range steps {
			u.Advance(step)
		}
		dispute := u.must(http.MethodGet, "/v1/disputes", "")
		wants(t, dispute, "data.0.status", "needs_response", "data.0.created", "1700345600", "data.0.evidence_details.due_by", "1701123200")
		u.Advance(24 * time.Hour)
		closed := lastEvent(u, "charge.dispute.closed")
		wants(t, closed, "created", "1701123200")
		ends[at(closed, "created")] = true
	}
	if len(ends) != 1 {
		t.Errorf("the dispute ends at %v, as the clock was moved", ends)
	}
}

func TestAlarmsOfOneSecondRingInTheirTurnAfterARestart(t *testing.T) {
	t.Parallel()
	for range 8 { // kinds were read in any order
		dir := t.TempDir()
		open := func(t *testing.T) *user {
			t.Helper()
			return newUser(t, stripesim.Options{Clock: &still{now: time.Unix(1_700_000_000, 0)}, Dir: dir, Switches: stripesim.Switches{SettleSeconds: 3600}})
		}
		if !t.Run("before", func(t *testing.T) { // not side by side: the next simulator reads what this one leaves
			u := open(t)
			_, first := paid(u, "pm_card_pendingRefund")
			u.make("/v1/refunds", "charge="+first)
			u.make("/v1/payment_intents", "amount=1000&currency=usd&confirm=true&payment_method=pm_usBankAccount_dispute")
		}) {
			return
		}
		u := open(t)
		u.Advance(time.Hour)
		list := u.must(http.MethodGet, "/v1/events", "limit=100&types[]=charge.refund.updated&types[]=charge.dispute.created")
		wants(t, list, "data.0.type", "charge.dispute.created", "data.1.type", "charge.refund.updated", "data.0.created", at(list, "data.1.created"))
	}
}

// TestAMovedClockComesBackExactly moves the clock by what no float adds up, until the
// journal is written anew.
func TestAMovedClockComesBackExactly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := time.Unix(1_700_000_000, 0)
	server, err := stripesim.NewServer(stripesim.Options{Clock: &still{now: start}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	want := start
	for range 3000 {
		step := 2*time.Hour + 100_000_001*time.Nanosecond
		server.Advance(step)
		want = want.Add(step)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if server, err = stripesim.NewServer(stripesim.Options{Clock: &still{now: start}, Dir: dir}); err != nil {
			t.Fatal(err)
		}
		if now := server.Now(); !now.Equal(want) {
			t.Errorf("it is %v, and was %v", now, want)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// a journal of an older simulator says it in seconds
	name := filepath.Join(dir, "stripesim.jsonl")
	if err := os.WriteFile(name, []byte(`{"t":"clock","s":1.5}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if server, err = stripesim.NewServer(stripesim.Options{Clock: &still{now: start}, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if now := server.Now(); now.Sub(start) != 1500*time.Millisecond {
		t.Errorf("an older journal moves the clock by %v", now.Sub(start))
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAMethodThatWasSpentMeanwhileIsNotConfirmed(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	pm := u.make("/v1/payment_methods", "type=card&card[token]=tok_visa")
	waits := u.make("/v1/payment_intents", "amount=1000&currency=usd&payment_method="+pm)
	u.make("/v1/payment_intents", "amount=1000&currency=usd&confirm=true&payment_method="+pm)
	a := u.call(http.MethodPost, "/v1/payment_intents/"+waits+"/confirm", "")
	u.refused(a, 400, "invalid_request_error", "", "payment_method")
	if message := at(a.Body, "error.message"); !strings.Contains(message, "may not be used again") {
		t.Errorf("it says %q", message)
	}
	wants(t, u.must(http.MethodPost, "/v1/payment_intents/"+waits+"/confirm", "payment_method=pm_card_visa"), "status", "succeeded")
}

func TestEveryRefundThatCountsIsTold(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Switches: stripesim.Switches{KeepAmountRefunded: true}})
	_, charge := paid(u, "pm_card_visa")
	first := u.make("/v1/refunds", "charge="+charge+"&amount=400")
	if err := u.FailRefund(first, ""); err != nil {
		t.Fatal(err)
	}
	u.make("/v1/refunds", "charge="+charge+"&amount=400") // amount_refunded stays what it was
	list := u.must(http.MethodGet, "/v1/events", "type=charge.refunded")
	if data, _ := list["data"].([]any); len(data) != 2 {
		t.Errorf("two refunds raise %d times charge.refunded", len(data))
	}
}

func TestASettledRefundOfABankAccountIsOne(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Switches: stripesim.Switches{SettleSeconds: 60}})
	id := u.make("/v1/payment_intents", "amount=1000&currency=usd&confirm=true&payment_method=pm_usBankAccount_success")
	u.Advance(time.Minute)
	refund := u.make("/v1/refunds", "payment_intent="+id+"&metadata[sim_status]=requires_action")
	if err := u.EndRefund(refund, "succeeded"); err != nil {
		t.Fatal(err)
	}
	wants(t, u.must(http.MethodGet, "/v1/refunds/"+refund, "expand[]=balance_transaction"), "balance_transaction.type", "payment_refund")
}

func TestACardThatDeclinesToBeAttachedIsRemembered(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	customer := u.make("/v1/customers", "")
	for _, replayed := range []string{"", "true"} {
		a := u.call(http.MethodPost, "/v1/payment_methods/pm_card_chargeDeclined/attach", "customer="+customer, "Idempotency-Key", "k")
		if a.Status != http.StatusPaymentRequired || a.Header.Get("Idempotent-Replayed") != replayed {
			t.Errorf("answered %d, Idempotent-Replayed %q, want %q", a.Status, a.Header.Get("Idempotent-Replayed"), replayed)
		}
	}
}

func TestASessionWhoseTimeIsOverIsNotPaid(t *testing.T) {
	t.Parallel()
	clock := &still{now: time.Unix(1_700_000_000, 0)}
	u := newUser(t, stripesim.Options{Clock: clock})
	session := u.make("/v1/checkout/sessions", "mode=payment&success_url=https://example.com/&line_items[0][quantity]=1&line_items[0][price_data][currency]=usd&line_items[0][price_data][unit_amount]=1000&line_items[0][price_data][product_data][name]=a")
	clock.Advance(24 * time.Hour) // by itself, and nobody has called since
	if err := u.PayCheckout(session, "paid"); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("paying an expired session gives %v", err)
	}
	wants(t, u.must(http.MethodGet, "/v1/checkout/sessions/"+session, ""), "status", "expired", "payment_status", "unpaid")
}

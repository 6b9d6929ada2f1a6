package webhooks_test

import (
	"fmt"
	"testing"
	"time"

	"tallystick/internal/stripe"
)

// bought is a till at which acme has bought 100 credits for 10.00 USD.
func bought(t *testing.T) *till {
	t.Helper()
	d := opened(t)
	d.pays("pi_1")
	d.deliver(paid("evt_paid", "pi_1"))
	d.step()
	d.has("acme", "100")
	return d
}

// back brings news of a refund, several times.
func (d *till) back(id, status string, money int64) {
	d.t.Helper()
	d.refund("pi_1", id, status, money)
	for i, kind := range []string{"charge.refunded", "refund.created", "charge.refund.updated", "refund.updated", "refund.failed"} {
		d.deliver(event(fmt.Sprint("evt_", id, status, i), kind, `{"id": "x", "payment_intent": "pi_1"}`))
	}
	d.step()
}

// TestW4RefundsTakeBackInProportion goes through the lives of refunds; each step
// names the balance after it.
func TestW4RefundsTakeBackInProportion(t *testing.T) {
	t.Parallel()
	type step struct {
		id, status string
		money      int64
		want       string
	}
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"a full one takes exactly the grant", []step{{"re_1", "succeeded", 1000, "0"}}},
		{"one of a cent short leaves a share", []step{{"re_1", "succeeded", 999, "0.1"}}},
		{"a partial one", []step{{"re_1", "succeeded", 250, "75"}}},
		{"several partial ones end at nothing", []step{{"re_1", "succeeded", 333, "66.7"}, {"re_2", "succeeded", 333, "33.4"}, {"re_3", "succeeded", 334, "0"}}},
		{"more than was paid takes no more than was bought", []step{{"re_1", "succeeded", 900, "10"}, {"re_2", "succeeded", 900, "0"}}},
		{"one that is pending takes at once, and once", []step{{"re_1", "pending", 500, "50"}, {"re_1", "succeeded", 500, "50"}}},
		{"one that fails gives back", []step{{"re_1", "succeeded", 400, "60"}, {"re_1", "failed", 400, "100"}}},
		{"one that is canceled gives back", []step{{"re_1", "pending", 400, "60"}, {"re_1", "canceled", 400, "100"}}},
		{"one that needs the buyer takes nothing yet", []step{{"re_1", "requires_action", 400, "100"}, {"re_1", "succeeded", 400, "60"}}},
		{"one that failed before anybody knew", []step{{"re_1", "failed", 400, "100"}}},
		{"a full one again after one that failed", []step{{"re_1", "succeeded", 1000, "0"}, {"re_1", "failed", 1000, "100"}, {"re_2", "succeeded", 1000, "0"}}},
		{"the first of two fails", []step{{"re_1", "succeeded", 300, "70"}, {"re_2", "succeeded", 200, "50"}, {"re_1", "failed", 300, "80"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := bought(t)
			for _, s := range tc.steps {
				d.back(s.id, s.status, s.money)
				d.has("acme", s.want)
			}
		})
	}
}

// TestThirdsNeverAddUpToMoreThanWasBought refunds cent by cent what does not divide.
func TestThirdsNeverAddUpToMoreThanWasBought(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1", func(pi *stripe.PaymentIntent) { pi.Money, pi.Metadata = 7, credits("0.000010") })
	d.deliver(paid("evt_paid", "pi_1"))
	for i, want := range []string{"0.000009", "0.000007", "0.000006", "0.000004", "0.000003", "0.000001", "0"} {
		d.back(fmt.Sprint("re_", i), "succeeded", 1)
		d.has("acme", want)
	}
}

// TestAFailedRefundMakesRoomForItsSuccessor gets both pieces of news at once.
func TestAFailedRefundMakesRoomForItsSuccessor(t *testing.T) {
	t.Parallel()
	d := bought(t)
	d.back("re_1", "succeeded", 1000)
	d.refund("pi_1", "re_1", "failed", 0)
	d.back("re_2", "succeeded", 1000)
	d.has("acme", "0")
	if n := d.count("SELECT count(*) FROM transfers WHERE kind = 'refund_failed'"); n != 1 {
		t.Errorf("credits came back %d times, want once", n)
	}
	if n := d.count("SELECT count(*) FROM transfers WHERE debt_after <> 0"); n != 0 {
		t.Errorf("acme was in debt %d times on the way", n)
	}
}

func TestE10CreditsThatAreSpentBecomeDebtWhichTheNextPurchasePays(t *testing.T) {
	t.Parallel()
	d := bought(t)
	d.spend(70)
	d.back("re_1", "succeeded", 500)
	d.has("acme", "0 owing 20")
	d.back("re_2", "succeeded", 500)
	d.has("acme", "0 owing 70")
	d.back("re_2", "failed", 500)
	d.has("acme", "0 owing 20")
	d.pays("pi_2")
	d.deliver(paid("evt_2", "pi_2"))
	d.step()
	d.has("acme", "80")
}

// TestE03ARefundBeforeItsPurchaseEndsAsInOrder has the refund's event first, then
// the purchase's, then both again.
func TestE03ARefundBeforeItsPurchaseEndsAsInOrder(t *testing.T) {
	t.Parallel()
	for money, want := range map[int64]string{1000: "0", 250: "75"} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			d := opened(t)
			d.pays("pi_1")
			d.refund("pi_1", "re_1", "succeeded", money)
			for i := range 2 {
				d.deliver(refunded(fmt.Sprint("evt_refund_", i), "pi_1"))
				d.step()
				d.deliver(paid(fmt.Sprint("evt_paid_", i), "pi_1"))
				d.step()
				d.has("acme", want)
			}
			if n := d.count("SELECT count(*) FROM transfers"); n != 2 {
				t.Errorf("there are %d transfers, want a purchase and a refund", n)
			}
		})
	}
}

// TestARefundOfAParkedPaymentIsTakenBackWhenItIsGranted maps the payment after
// its refund.
func TestARefundOfAParkedPaymentIsTakenBackWhenItIsGranted(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1", func(pi *stripe.PaymentIntent) { pi.Customer = "cus_new" })
	d.deliver(paid("evt_1", "pi_1"))
	d.refund("pi_1", "re_1", "succeeded", 400)
	d.deliver(refunded("evt_2", "pi_1"))
	d.step()
	if got := d.payment("pi_1"); got.State != "parked" {
		t.Errorf("the payment is %+v", got)
	}
	d.account("new", "cus_new")
	d.pass(2 * time.Minute)
	d.parkedStep()
	d.has("new", "60")
}

// TestWhatAnAccountBoughtIsTakenBackFromItWhateverTheMappingIsNow moves the
// customer to another account between purchase and refund.
func TestWhatAnAccountBoughtIsTakenBackFromItWhateverTheMappingIsNow(t *testing.T) {
	t.Parallel()
	d := bought(t)
	d.account("acme")
	d.account("heir", "cus_acme")
	d.paysWith("pi_1", credits("7"))
	d.back("re_1", "succeeded", 1000)
	d.has("acme", "0")
	d.has("heir", "0")
}

package webhooks_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/stripe"
)

// call makes a call with a JSON body and reads its answer.
func (d *till) call(method, path, body string, answer any) int {
	d.t.Helper()
	w := d.send(method, path, body, http.Header{"Content-Type": {"application/json"}})
	if answer != nil && w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), answer); err != nil {
			d.t.Fatalf("%s: %v: %s", path, err, w.Body)
		}
	}
	return w.Code
}

func (d *till) parked(state string) []api.StripePayment {
	d.t.Helper()
	var list struct{ Data []api.StripePayment }
	if status := d.call(http.MethodGet, "/v1/stripe/payments?state="+state, "", &list); status != http.StatusOK {
		d.t.Fatalf("the list of %s was answered %d", state, status)
	}
	return list.Data
}

// TestAParkedPaymentIsMappedByAPerson knows neither account nor credits.
func TestAParkedPaymentIsMappedByAPerson(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1", func(pi *stripe.PaymentIntent) { pi.Customer, pi.Metadata = "cus_nobody", nil })
	d.deliver(paid("evt_1", "pi_1"))
	d.step()
	if p := d.parked("parked"); len(p) != 1 || p[0].ID != "pi_1" || p[0].Reason == "" || p[0].Account != nil || p[0].Money != 1000 {
		t.Fatalf("parked are %+v", p)
	}
	const apply = "/v1/stripe/payments/pi_1/apply"
	var p api.StripePayment
	if status := d.call(http.MethodPost, apply, `{}`, &p); status != http.StatusOK || p.State != "parked" {
		t.Errorf("by what Stripe says it is %d %+v, want it parked still", status, p)
	}
	for body, want := range map[string]int{
		`{"account": "acme", "credits": 5}`:               http.StatusUnprocessableEntity, // no reason
		`{"credits": 0, "reason": "x"}`:                   http.StatusUnprocessableEntity,
		`{"credits": "-1", "reason": "x"}`:                http.StatusUnprocessableEntity,
		`{"credits": "0.0000001", "reason": "x"}`:         http.StatusUnprocessableEntity,
		`{"reason": "` + strings.Repeat("x", 1001) + `"}`: http.StatusUnprocessableEntity,
		`{"acount": "acme"}`:                              http.StatusBadRequest,
	} {
		if status := d.call(http.MethodPost, apply, body, nil); status != want {
			t.Errorf("%s was answered %d, want %d", body, status, want)
		}
	}
	if status := d.call(http.MethodPost, apply, `{"account": "acme", "reason": "asked the buyer"}`, &p); status != http.StatusOK || p.State != "parked" {
		t.Errorf("with an account and no credits it is %d %+v, want it parked", status, p)
	}
	d.has("acme", "0")
	body := `{"account": "acme", "credits": "12.5", "reason": "asked the buyer"}`
	if status := d.call(http.MethodPost, apply, body, &p); status != http.StatusOK || p.State != "granted" || *p.Account != "acme" || p.Credits != "12.5" {
		t.Errorf("mapped it is %d %+v", status, p)
	}
	d.has("acme", "12.5")
	var transfers []struct{ Actor, Note string }
	d.query(&transfers, "SELECT actor, note FROM transfers")
	if len(transfers) != 1 || transfers[0].Actor != "key:test" || transfers[0].Note != "asked the buyer" {
		t.Errorf("the journal says %+v", transfers)
	}
	if status := d.call(http.MethodPost, apply, body, nil); status != http.StatusConflict {
		t.Errorf("mapped once more it was answered %d", status)
	}
	if status := d.call(http.MethodPost, apply, `{}`, &p); status != http.StatusOK || p.State != "granted" {
		t.Errorf("applied once more it is %d %+v", status, p)
	}
	d.refund("pi_1", "re_1", "succeeded", 1000)
	d.deliver(refunded("evt_2", "pi_1"))
	d.step()
	d.has("acme", "0")
	d.verify()
}

func TestWhatIsNotPaidIsNotApplied(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1", func(pi *stripe.PaymentIntent) { pi.Status = "processing" })
	if status := d.call(http.MethodPost, "/v1/stripe/payments/pi_1/apply", `{"account": "acme", "credits": 5, "reason": "x"}`, nil); status != http.StatusConflict {
		t.Errorf("it was answered %d", status)
	}
	d.has("acme", "0")
	_, d2 := beside(t)
	if status := d2.call(http.MethodPost, "/v1/stripe/payments/pi_nowhere/apply", `{}`, nil); status != http.StatusNotFound {
		t.Errorf("a payment that Stripe does not have was answered %d", status)
	}
}

// TestE12APaymentThatFailsAfterItSucceededIsSeen: Lago 5947 let it pass in silence.
func TestE12APaymentThatFailsAfterItSucceededIsSeen(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	d.deliver(paid("evt_1", "pi_1"))
	d.step()
	d.has("acme", "100")
	d.pays("pi_1", func(pi *stripe.PaymentIntent) { pi.Status = "requires_payment_method" })
	d.deliver(event("evt_2", "payment_intent.payment_failed", `{"id": "pi_1"}`))
	d.step()
	if p := d.parked("review"); len(p) != 1 || p[0].State != "granted" || !strings.Contains(p[0].Review, "requires_payment_method") {
		t.Errorf("to be reviewed are %+v", p)
	}
	d.has("acme", "100") // a person decides
	d.pass(time.Minute)
	d.pays("pi_1")
	d.deliver(event("evt_3", "payment_intent.succeeded", `{"id": "pi_1"}`))
	d.step()
	if p := d.parked("review"); len(p) != 0 {
		t.Errorf("paid again, to be reviewed are %+v", p)
	}
	d.has("acme", "100")
	d.verify()
}

// TestACardThatIsRefusedCostsNoReading: buyers' cards are refused every day.
func TestACardThatIsRefusedCostsNoReading(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1", func(pi *stripe.PaymentIntent) { pi.Status = "requires_payment_method" })
	d.deliver(event("evt_1", "payment_intent.payment_failed", `{"id": "pi_1"}`), event("evt_2", "invoice.voided", `{"id": "in_1"}`))
	d.step()
	if d.reads["pi_1"] != 0 || d.state("evt_1") != "done" || d.state("evt_2") != "done" {
		t.Errorf("it was read %d times; the events are %+v", d.reads["pi_1"], d.rows())
	}
}

// TestSettleRepairsOnePayment has lost all events of a purchase and its refund.
func TestSettleRepairsOnePayment(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	d.pays("pi_2", func(pi *stripe.PaymentIntent) { pi.Status = "processing" })
	d.refund("pi_1", "re_1", "succeeded", 250)
	for range 2 {
		if found, err := d.Settle(t.Context(), "pi_1", "operator:repair"); err != nil || !found {
			t.Errorf("settled: %t, %v", found, err)
		}
		d.has("acme", "75")
	}
	if found, err := d.Settle(t.Context(), "pi_2", "operator:repair"); err != nil || found {
		t.Errorf("what is not paid is settled: %t, %v", found, err)
	}
	if n := d.count("SELECT count(*) FROM transfers WHERE actor = 'operator:repair'"); n != 2 {
		t.Errorf("the repair made %d transfers, want 2", n)
	}
}

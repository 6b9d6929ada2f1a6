package webhooks_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

// session is a paid checkout session for one line, made of acme's payment pi_1.
func session(items ...stripe.Item) stripe.Session {
	return stripe.Session{
		ID: "cs_1", PaymentIntent: "pi_1", Customer: "cus_acme", Status: "complete", PaymentStatus: "paid", Mode: "payment", Money: 1000, Currency: "usd",
		Items: items, CreatedAt: start,
	}
}

func credits(n string) map[string]string { return map[string]string{"credits": n} }

// TestWhereTheCreditsAreSaid goes from the place that counts most to the one that
// counts least.
func TestWhereTheCreditsAreSaid(t *testing.T) {
	t.Parallel()
	price, product := credits("5"), credits("4")
	for _, tc := range []struct {
		name     string
		items    []stripe.Item
		session  map[string]string
		intent   map[string]string
		perMajor int64
		want     string
	}{
		{"price", []stripe.Item{{Quantity: 1, PriceMetadata: price, ProductMetadata: product}}, credits("3"), credits("2"), 1, "5"},
		{"product", []stripe.Item{{Quantity: 1, ProductMetadata: product}}, credits("3"), credits("2"), 1, "4"},
		{"session", []stripe.Item{{Quantity: 9}}, credits("3"), credits("2"), 1, "3"},
		{"payment intent", []stripe.Item{{Quantity: 9}}, nil, credits("2"), 1, "2"},
		{"configuration", []stripe.Item{{Quantity: 9}}, nil, nil, 7, "70"},
		{"an empty text says nothing", []stripe.Item{{Quantity: 1, PriceMetadata: credits(""), ProductMetadata: product}}, nil, nil, 0, "4"},
		{"price, times the quantity", []stripe.Item{{Quantity: 3, PriceMetadata: credits("0.333333")}}, nil, nil, 0, "0.999999"},
		{"product, times the quantity", []stripe.Item{{Quantity: 3, ProductMetadata: product}}, nil, nil, 0, "12"},
		{"session, whatever the quantity", []stripe.Item{{Quantity: 3}}, credits("3"), nil, 0, "3"},
		{"lines add up, other goods buy nothing", []stripe.Item{{Quantity: 2, PriceMetadata: price}, {Quantity: 7}, {Quantity: 1, ProductMetadata: product}}, credits("3"), nil, 1, "14"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := opened(t, func(c *webhooks.Config) { c.CreditsPerMajorUnit = tc.perMajor })
			d.paysWith("pi_1", tc.intent)
			s := session(tc.items...)
			s.Metadata = tc.session
			d.sells(s)
			d.deliver(paid("evt_1", "pi_1"))
			d.step()
			d.has("acme", tc.want)
		})
	}
}

func TestCreditsForMoneyFollowTheCurrency(t *testing.T) {
	t.Parallel()
	d := opened(t, func(c *webhooks.Config) { c.CreditsPerMajorUnit = 1 })
	for currency, want := range map[string]string{"usd": "123.45", "USD": "123.45", "jpy": "12345", "krw": "12345", "bhd": "12.345", "isk": "123.45", "ugx": "123.45"} {
		id := "pi_" + currency
		d.pays(id, func(pi *stripe.PaymentIntent) { pi.Metadata, pi.Money, pi.Currency = nil, 12345, currency })
		d.deliver(paid("evt_"+currency, id))
		d.step()
		if got := d.payment(id); got.State != "granted" || got.Credits.String() != want {
			t.Errorf("12345 of %s buy %s credits, want %s", currency, got.Credits, want)
		}
	}
	d.verify()
}

func TestExpiryAndPriorityOfAPurchase(t *testing.T) {
	t.Parallel()
	d := opened(t)
	for i, tc := range []struct{ days, priority, problem string }{
		{"0", "", `credits_expire_days "0"`},
		{"36501", "", `credits_expire_days "36501"`},
		{"1.5", "", `credits_expire_days "1.5"`},
		{"", "-1001", `credits_priority "-1001"`},
		{"", "1001", `credits_priority "1001"`},
		{"", "high", `credits_priority "high"`},
		{"1", "-1000", ""},
		{"36500", "1000", ""},
		{"", "", ""},
	} {
		id := fmt.Sprint("pi_", i)
		d.paysWith(id, map[string]string{"credits": "10", "credits_expire_days": tc.days, "credits_priority": tc.priority})
		d.deliver(paid(fmt.Sprint("evt_", i), id))
		d.step()
		if got := d.payment(id); !strings.Contains(got.Reason, tc.problem) || (got.State == "parked") != (tc.problem != "") {
			t.Errorf("the payment is %+v, want the problem %q", got, tc.problem)
		}
		var grants []struct {
			Priority  string
			ExpiresAt *time.Time `db:"expires_at"`
		}
		d.query(&grants, "SELECT priority::text AS priority, expires_at FROM grants WHERE payment = $1", id)
		if tc.problem != "" {
			if len(grants) > 0 {
				t.Errorf("with the problem %q there are grants: %+v", tc.problem, grants)
			}
			continue
		}
		days := ""
		if at := grants[0].ExpiresAt; at != nil {
			days = fmt.Sprint(int(at.Sub(start) / (24 * time.Hour)))
		}
		if len(grants) != 1 || days != tc.days || strings.TrimPrefix(grants[0].Priority, "0") != tc.priority {
			t.Errorf("%+v expires after %q days, want %q days and priority %q", grants, days, tc.days, tc.priority)
		}
	}
	d.has("acme", "30")
}

func TestWhomThePurchaseIsFor(t *testing.T) {
	t.Parallel()
	names := func(account string) map[string]string { return map[string]string{"credits": "1", "account": account} }
	for _, tc := range []struct {
		name, reference string
		session, intent map[string]string
		want            string
	}{
		{"the session's reference", "a", names("b"), names("c"), "a"},
		{"the session's metadata", "", names("b"), names("c"), "b"},
		{"the payment's metadata", "", credits("1"), names("c"), "c"},
		{"the customer", "", credits("1"), nil, "acme"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := opened(t)
			for _, account := range []string{"a", "b", "c"} {
				d.account(account)
			}
			d.paysWith("pi_1", tc.intent)
			s := session()
			s.ClientReference, s.Metadata = tc.reference, tc.session
			d.sells(s)
			d.deliver(paid("evt_1", "pi_1"))
			d.step()
			d.has(tc.want, "1")
			if got := d.payment("pi_1"); got.Account != tc.want || got.State != "granted" {
				t.Errorf("the payment is %+v", got)
			}
		})
	}
}

// TestWhatIsNoPurchaseLeavesNothing covers payments that are not paid, and those
// that pay for something else.
func TestWhatIsNoPurchaseLeavesNothing(t *testing.T) {
	t.Parallel()
	completed := event("evt_1", "checkout.session.completed", `{"id": "cs_1", "payment_intent": null}`)
	for name, tc := range map[string]struct {
		body   string
		change func(*stripe.Session, *stripe.PaymentIntent)
	}{
		"processing":      {paid("evt_1", "pi_1"), func(_ *stripe.Session, pi *stripe.PaymentIntent) { pi.Status = "processing" }},
		"canceled":        {paid("evt_1", "pi_1"), func(_ *stripe.Session, pi *stripe.PaymentIntent) { pi.Status = "canceled" }},
		"authorized only": {paid("evt_1", "pi_1"), func(_ *stripe.Session, pi *stripe.PaymentIntent) { pi.Status = "requires_capture" }},
		"an invoice's": {paid("evt_1", "pi_1"), func(s *stripe.Session, pi *stripe.PaymentIntent) {
			s.PaymentIntent, pi.Invoice, pi.Metadata = "pi_2", "in_1", nil
		}},
		"a subscription's":       {paid("evt_1", "pi_1"), func(s *stripe.Session, _ *stripe.PaymentIntent) { s.Mode = "subscription" }},
		"a session still open":   {completed, func(s *stripe.Session, _ *stripe.PaymentIntent) { s.PaymentIntent, s.Status = "", "open" }},
		"a session not paid":     {completed, func(s *stripe.Session, _ *stripe.PaymentIntent) { s.PaymentIntent, s.PaymentStatus = "", "unpaid" }},
		"a subscription's start": {completed, func(s *stripe.Session, _ *stripe.PaymentIntent) { s.PaymentIntent, s.Mode = "", "subscription" }},
		"a card kept for later":  {completed, func(s *stripe.Session, _ *stripe.PaymentIntent) { s.PaymentIntent, s.Mode, s.Money = "", "setup", 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := opened(t, func(c *webhooks.Config) { c.CreditsPerMajorUnit = 1 })
			s := session(stripe.Item{Quantity: 1, PriceMetadata: credits("5")})
			d.pays("pi_1", func(pi *stripe.PaymentIntent) { tc.change(&s, pi) })
			d.sells(s)
			d.invoices["in_1"] = stripe.Invoice{
				ID: "in_1", Customer: "cus_acme", PaymentIntent: "pi_1", Status: "paid", Paid: true, Total: 1000, Currency: "usd",
				Lines: []stripe.InvoiceLine{{Quantity: 1, Money: 1000}},
			}
			d.deliver(tc.body)
			d.step()
			if got := d.one(); got.State != "done" {
				t.Errorf("the event is %+v, want it done", got)
			}
			if n := d.count("SELECT count(*) FROM payments"); n != 0 {
				t.Errorf("%d payments are kept", n)
			}
			d.has("acme", "0")
		})
	}
}

// TestACheckoutThatMakesAnInvoiceIsAPurchase has a payment that names an invoice,
// as those of subscriptions do.
func TestACheckoutThatMakesAnInvoiceIsAPurchase(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1", func(pi *stripe.PaymentIntent) { pi.Invoice = "in_1" })
	d.sells(session(stripe.Item{Quantity: 1, PriceMetadata: credits("5")}))
	d.deliver(paid("evt_1", "pi_1"))
	d.step()
	d.has("acme", "5")
}

// TestASessionWithNothingToPayIsAPurchaseOfItsOwn has no payment intent to be
// keyed by.
func TestASessionWithNothingToPayIsAPurchaseOfItsOwn(t *testing.T) {
	t.Parallel()
	d := opened(t)
	s := session(stripe.Item{Quantity: 2, PriceMetadata: credits("5")})
	s.PaymentIntent, s.PaymentStatus, s.Money = "", "no_payment_required", 0
	d.sells(s)
	d.deliver(event("evt_1", "checkout.session.completed", `{"id": "cs_1", "payment_intent": null}`), event("evt_2", "checkout.session.completed", `{"id": "cs_1"}`))
	d.step()
	d.has("acme", "10")
	if got := d.payment("cs_1"); got.State != "granted" {
		t.Errorf("the payment is %+v", got)
	}
}

// parked are payments that nobody can map, and what maps them later.
var parked = []struct {
	name   string
	change func(*stripe.PaymentIntent)
	reason string
	mend   func(d *till)
}{
	{
		"nothing names an account", func(pi *stripe.PaymentIntent) { pi.Customer = "" },
		"nothing says which account it is for: set client_reference_id or metadata.account, or tie the Stripe customer to an account",
		func(d *till) { d.pays("pi_1", func(pi *stripe.PaymentIntent) { pi.Metadata["account"] = "acme" }) },
	},
	{
		"an unknown account", func(pi *stripe.PaymentIntent) { pi.Metadata["account"] = "new" },
		`it names the account "new", which does not exist`, func(d *till) { d.account("new") },
	},
	{
		"a customer of nobody's", func(pi *stripe.PaymentIntent) { pi.Customer = "cus_new" },
		"the Stripe customer cus_new is tied to no account", func(d *till) { d.account("new", "cus_new") },
	},
	{
		"no number of credits", func(pi *stripe.PaymentIntent) { delete(pi.Metadata, "credits") },
		"nothing says how many credits it buys: set metadata.credits on the price, the product, the session or the payment", mendPrice,
	},
	{"zero credits", func(pi *stripe.PaymentIntent) { pi.Metadata["credits"] = "0" }, "it buys no credits", mendPrice},
	{"negative credits", func(pi *stripe.PaymentIntent) { pi.Metadata["credits"] = "-5" }, "it buys no credits", mendPrice},
	{"credits in words", func(pi *stripe.PaymentIntent) { pi.Metadata["credits"] = "a hundred" }, `its metadata cannot be read: credits "a hundred"`, mendPrice},
	{"too many places", func(pi *stripe.PaymentIntent) { pi.Metadata["credits"] = "1.0000001" }, `its metadata cannot be read: credits "1.0000001"`, mendPrice},
}

func mendPrice(d *till) { d.pays("pi_1") }

func TestW5WhatCannotBeMappedIsParkedAndGrantedWhenItCan(t *testing.T) {
	t.Parallel()
	for _, tc := range parked {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := opened(t)
			d.pays("pi_1", tc.change)
			d.deliver(paid("evt_1", "pi_1"))
			d.step()
			if got := d.payment("pi_1"); got.State != "parked" || !strings.HasPrefix(got.Reason, tc.reason) || d.state("evt_1") != "done" {
				t.Errorf("the payment is %+v, want it parked because %q", got, tc.reason)
			}
			d.pass(time.Minute)
			d.parkedStep()
			if got := d.payment("pi_1"); got.State != "parked" || !strings.HasPrefix(got.Reason, tc.reason) {
				t.Errorf("after another look the payment is %+v", got)
			}
			d.has("acme", "0")
			tc.mend(d)
			d.pass(time.Minute - time.Microsecond)
			d.parkedStep()
			if got := d.payment("pi_1"); got.State != "parked" {
				t.Errorf("it was looked at again before a minute had passed: %+v", got)
			}
			d.pass(time.Microsecond)
			for range 3 {
				d.parkedStep()
				d.deliver(paid("evt_2", "pi_1"))
				d.step()
				d.pass(time.Minute)
			}
			got := d.payment("pi_1")
			if got.State != "granted" || got.Reason != "" {
				t.Fatalf("after it was mended the payment is %+v", got)
			}
			d.has(got.Account, "100")
		})
	}
}

// TestAPoisonedPaymentBlocksNoOtherParkedOne has more of them than are looked at
// in one go, older than the one that can be granted; they fail, panic, or are no
// longer paid.
func TestAPoisonedPaymentBlocksNoOtherParkedOne(t *testing.T) {
	t.Parallel()
	d := opened(t)
	for i := range 20 {
		id := fmt.Sprintf("pi_bad_%02d", i)
		d.paysWith(id, nil)
		d.deliver(paid("evt_"+id, id))
	}
	d.step()
	d.pass(time.Second)
	d.paysWith("pi_good", nil)
	d.deliver(paid("evt_good", "pi_good"))
	d.step()
	d.pays("pi_good")
	for i := range 20 {
		d.pays(fmt.Sprintf("pi_bad_%02d", i), func(pi *stripe.PaymentIntent) { pi.Status = "canceled" })
	}
	clear(d.reads)
	d.before = func(_ context.Context, payment string) error {
		switch {
		case strings.HasPrefix(payment, "pi_bad_0"):
			return errors.New("cannot be read")
		case strings.HasPrefix(payment, "pi_bad_10"):
			panic("poisoned")
		}
		return nil
	}
	d.pass(time.Minute)
	d.parkedStep()
	if got := d.payment("pi_good"); got.State != "granted" {
		t.Errorf("the payment behind the poisoned ones is %+v, want it granted", got)
	}
	d.has("acme", "100")
	d.parkedStep()
	for payment, n := range d.reads {
		if n != 1 {
			t.Errorf("%s was read %d times within a minute, want it to rest", payment, n)
		}
	}
	d.before = func(context.Context, string) error { return nil }
	d.pays("pi_bad_00")
	d.pass(time.Minute)
	d.parkedStep()
	d.has("acme", "200")
}

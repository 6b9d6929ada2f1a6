package stripesim

import (
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// billed is a server with a customer that has a subscription of a licensed, a
// metered and a meter's price.
type billed struct {
	*Server
	t                        *testing.T
	start, end               int64
	customer, sub            object
	licensed, usage, metered object
}

func newBilled(t *testing.T) *billed {
	t.Helper()
	s, err := NewServer(Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	b := &billed{Server: s, t: t, start: s.now() - 60, end: s.now() + 3600}
	put := func(kind string, o object) object {
		s.mu.Lock() // the server looks at what falls due all the while
		defer s.mu.Unlock()
		o["object"], o["id"] = kind, kind+"_1"
		if kind == "price" || kind == "subscription_item" {
			o["id"] = s.newID(kind)
		}
		s.store.put(kind, o)
		return o
	}
	b.customer = put("customer", object{"balance": int64(0), "invoice_prefix": "ACME"})
	b.sub = put("subscription", object{
		"customer": b.customer["id"], "status": "active", "currency": "usd", "metadata": object{"a": "b"}, "collection_method": "charge_automatically",
		"current_period_start": b.start, "current_period_end": b.end, "billing_cycle_anchor": b.start, "default_payment_method": "pm_card_visa",
	})
	put("product", object{"name": "Gold"})
	item := func(usage, meter, unit string) object {
		recurring := object{"interval": "month", "interval_count": int64(1), "usage_type": usage, "meter": nullWhenEmpty(meter)}
		price := put("price", object{"currency": "usd", "unit_amount_decimal": unit, "recurring": recurring, "product": "product_1"})
		return put("subscription_item", object{"subscription": b.sub["id"], "price": price["id"], "metadata": object{}})
	}
	meter := b.post("/v1/billing/meters", "display_name=calls&event_name=calls&default_aggregation[formula]=sum")
	b.licensed, b.usage, b.metered = item("licensed", "", "500"), item("metered", "", "2"), item("metered", meter, "0.5")
	return b
}

func (b *billed) items() []billedItem {
	of := func(item object, quantity int64) billedItem {
		return billedItem{item: item, price: b.store.get("price", text(item, "price")), quantity: big.NewRat(quantity, 1), start: b.start, end: b.end}
	}
	return []billedItem{of(b.licensed, 3), of(b.usage, 40), of(b.metered, 10)}
}

// use lets the customer use so much of the meter; it gives the lock away meanwhile.
func (b *billed) use(value string) {
	b.t.Helper()
	b.mu.Unlock()
	defer b.mu.Lock()
	b.post("/v1/billing/meter_events", "event_name=calls&payload[value]="+value+"&payload[stripe_customer_id]="+text(b.customer, "id"))
}

func (b *billed) post(path, form string) string {
	b.t.Helper()
	r := httptest.NewRequestWithContext(b.t.Context(), http.MethodPost, path, strings.NewReader(form))
	r.Header.Set("Authorization", "Bearer sk_test_x")
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	var o struct{ ID string }
	if err := json.Unmarshal(w.Body.Bytes(), &o); err != nil || w.Code != http.StatusOK {
		b.t.Fatalf("%s was answered %d %s", path, w.Code, w.Body)
	}
	return o.ID
}

func (b *billed) draft(d invoiceDraft) object {
	d.customer, d.subscription, d.start, d.end = text(b.customer, "id"), text(b.sub, "id"), b.start, b.end
	return b.draftInvoice(nil, d)
}

func (b *billed) want(o object, name string, want any) {
	b.t.Helper()
	if !equal(o[name], want) {
		b.t.Errorf("%s of %s is %v, want %v", name, text(o, "object"), o[name], want)
	}
}

// TestOnlyMetersCountUntilFinalization holds the difference between usage records,
// frozen when the draft is made, and meters.
func TestOnlyMetersCountUntilFinalization(t *testing.T) {
	t.Parallel()
	b := newBilled(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	inv := b.draft(invoiceDraft{reason: "subscription_cycle", lines: b.items(), advance: true})
	b.want(inv, "total", 1500+80+5)
	b.want(inv, "subscription_details", object{"metadata": object{"a": "b"}})
	b.want(inv, "next_payment_attempt", number(inv, "created")+3600)
	lines := linesOf(inv)
	if len(lines) != 3 || text(lines[0].(object), "subscription_item") != text(b.metered, "id") {
		t.Fatalf("the lines are %v", lines)
	}
	line := lines[2].(object)
	b.want(line, "description", "3 × Gold (at $5.00 / month)")
	b.want(line, "period", object{"start": b.start, "end": b.end})
	b.want(line, "type", "subscription")
	b.want(lines[0].(object), "description", "Gold (at $0.005 / month)")
	b.use("31.5")
	b.use("0.5")
	b.finalizeInvoice(nil, inv, false)
	b.want(inv, "total", 1500+80+16)
	meter := linesOf(inv)[0].(object)
	b.want(meter, "quantity", 32)
	b.want(meter, "amount", 16)
	b.want(meter, "id", lines[0].(object)["id"])
	b.use("100")
	b.want(inv, "total", 1596)
}

func TestUsageBelowNothingCostsNothing(t *testing.T) {
	t.Parallel()
	b := newBilled(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	inv := b.draft(invoiceDraft{reason: "subscription_cycle", lines: b.items()})
	b.use("-5")
	b.finalizeInvoice(nil, inv, false)
	b.want(linesOf(inv)[0].(object), "amount", 0)
	b.want(linesOf(inv)[0].(object), "quantity", 0)
	b.want(inv, "total", 1580)
}

func TestTheFirstInvoiceIsPaidAtOnce(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, method           string
		unpaid                 bool
		status, subscription   string
		attempts, intentStatus any
	}{
		{"paid", "pm_card_visa", false, "paid", "active", 1, "succeeded"},
		{"declined", "pm_card_chargeDeclined", false, "open", "incomplete", 1, "requires_payment_method"},
		{"default_incomplete", "pm_card_visa", true, "open", "incomplete", 0, "requires_payment_method"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			b := newBilled(t)
			b.mu.Lock()
			defer b.mu.Unlock()
			b.change("subscription", b.sub, object{"default_payment_method": row.method, "status": "incomplete"})
			inv := b.draft(invoiceDraft{reason: "subscription_create", lines: b.items()[:1], atOnce: true, advance: true, unpaid: row.unpaid})
			b.want(inv, "status", row.status)
			b.want(inv, "attempt_count", row.attempts)
			b.want(inv, "next_payment_attempt", nil)
			b.want(inv, "number", "ACME-0001")
			b.want(b.sub, "status", row.subscription)
			b.want(b.store.get("payment_intent", text(inv, "payment_intent")), "status", row.intentStatus)
		})
	}
}

func TestAnInvoiceOfNothingIsPaidWithoutACharge(t *testing.T) {
	t.Parallel()
	b := newBilled(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	inv := b.draft(invoiceDraft{reason: "subscription_create", atOnce: true})
	b.want(inv, "status", "paid")
	b.want(inv, "charge", nil)
	b.want(inv, "payment_intent", nil)
	b.want(b.customer, "currency", "usd")
}

// TestAnInvoiceThatIsSentIsNotChargedAtOnce: a subscription that is paid by invoice
// has a draft first, whatever its reason.
func TestAnInvoiceThatIsSentIsNotChargedAtOnce(t *testing.T) {
	t.Parallel()
	b := newBilled(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.change("subscription", b.sub, object{"collection_method": "send_invoice", "days_until_due": int64(2)})
	inv := b.draft(invoiceDraft{reason: "subscription_create", lines: b.items(), atOnce: true, advance: true})
	b.want(inv, "status", "draft")
	b.want(inv, "due_date", number(inv, "created")+2*86400)
	b.want(inv, "next_payment_attempt", nil)
}

func TestAnInvoiceTakesWhatWaitsForItsSubscription(t *testing.T) {
	t.Parallel()
	b := newBilled(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	wait := func(amount int64, subscription any) object {
		item := b.newInvoiceItem(b.customer["id"], object{"amount": amount, "currency": "usd", "unit_amount_decimal": nil})
		item["subscription"] = subscription
		b.store.put("invoiceitem", item)
		return item
	}
	mine, free, other := wait(-70, b.sub["id"]), wait(5, nil), wait(9, "sub_other")
	proration := b.items()[0]
	proration.proration, proration.amount, proration.description = true, big.NewInt(-33), "Unused time"
	inv := b.draft(invoiceDraft{reason: "subscription_update", lines: append(b.items()[:1], proration)})
	b.want(inv, "total", 1500-33-70+5)
	b.want(mine, "invoice", inv["id"])
	b.want(free, "invoice", inv["id"])
	b.want(other, "invoice", nil)
	line := linesOf(inv)[2].(object)
	b.want(line, "description", "Unused time")
	b.want(line, "proration", true)
	again := b.draft(invoiceDraft{reason: "subscription_cycle"})
	b.want(again, "total", 0)
}

func TestTheUpcomingInvoiceOfASubscription(t *testing.T) {
	t.Parallel()
	b := newBilled(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.licensed["quantity"] = int64(4)
	c := &call{s: b.Server, params: params{object{"customer": b.customer["id"]}}}
	inv, err := b.upcomingInvoice(c)
	if err != nil {
		t.Fatal(err)
	}
	b.want(inv, "total", 2000)
	b.want(inv, "subscription", b.sub["id"])
	b.want(inv, "created", b.end)
	b.want(inv, "next_payment_attempt", b.end+3600)
	b.want(child(linesOf(inv)[len(linesOf(inv))-1].(object), "period"), "start", b.end)
	b.change("subscription", b.sub, object{"status": "canceled"})
	if _, err := b.upcomingInvoice(c); err == nil || err.code != "invoice_upcoming_none" {
		t.Errorf("a cancelled subscription has an upcoming invoice: %v", err)
	}
}

func TestAnInvoiceOfADeletedCustomerStandsStill(t *testing.T) {
	t.Parallel()
	b := newBilled(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	inv := b.draft(invoiceDraft{reason: "subscription_cycle", lines: b.items(), advance: true})
	b.store.put("customer", object{"id": b.customer["id"], "object": "customer", "deleted": true})
	b.advanceInvoice(inv)
	b.want(inv, "status", "draft")
	b.finalizeInvoice(nil, inv, false)
	b.want(inv, "number", "ACME-0001")
}

func TestAHalfIsRoundedAwayFromZero(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{"0": 0, "1/2": 1, "0.4999": 0, "-1/2": -1, "-0.4999": 0, "7/2": 4, "-7/2": -4, "3": 3, "-3": -3} {
		r, _ := new(big.Rat).SetString(in)
		if got := nearestInt(r).Int64(); got != want {
			t.Errorf("%s becomes %d, want %d", in, got, want)
		}
	}
}

func TestMoneyIsWrittenAsStripeWritesIt(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ amount, currency, want string }{
		{"123", "usd", "$1.23"},
		{"-5", "gbp", "-£0.05"},
		{"1/2", "usd", "$0.005"},
		{"500", "jpy", "¥500"},
		{"1500", "kwd", "1.500 KWD"},
		{"100", "chf", "1.00 CHF"},
		{"0.25", "eur", "€0.0025"},
		{"100.5", "usd", "$1.005"},
	} {
		r, _ := new(big.Rat).SetString(row.amount)
		if got := moneyOf(r, row.currency); got != row.want {
			t.Errorf("%s %s is written %s, want %s", row.amount, row.currency, got, row.want)
		}
	}
}

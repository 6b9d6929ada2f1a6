package billingoracle

import (
	"fmt"
	"math/big"
	"net/url"
	"slices"
)

// nothing is what a call does that changes nothing the book knows of.
func nothing() map[string]any { return nil }

// nobody is a customer that never is.
const nobody = "cus_other"

// bogus tells a parameter that no endpoint has.
func bogus(e *entry) string {
	if e.has("bogus") || e.text("customer") == nobody {
		return "a parameter is unknown, or of nobody"
	}
	return ""
}

// firstOf gives the first reason of a refusal.
func firstOf(reasons ...string) string {
	for _, r := range reasons {
		if r != "" {
			return r
		}
	}
	return ""
}

// unless gives a reason where something does not hold.
func unless(holds bool, reason string) string {
	if holds {
		return ""
	}
	return reason
}

var catalogRules map[string]rule

func init() {
	catalogRules = map[string]rule{
		"POST products": func(_ *book, e *entry) (string, func() map[string]any) {
			return firstOf(bogus(e), unless(e.has("name"), "it has no name")), nothing
		},
		"POST prices":                              makePrice,
		"POST customers":                           makeCustomer,
		"POST customers/{}":                        changeCustomer,
		"POST payment_methods/{}/attach":           attachMethod,
		"POST test_helpers/test_clocks":            makeClock,
		"POST test_helpers/test_clocks/{}/advance": advanceClock,
		"POST billing/meters":                      makeMeter,
		"POST billing/meter_events":                meterEvent,
	}
}

func makePrice(b *book, e *entry) (string, func() map[string]any) {
	p := &price{
		currency: e.text("currency"), recurring: e.has("recurring[interval]"), unit: e.text("recurring[interval]"), count: 1,
		metered: e.text("recurring[usage_type]") == "metered", aggregate: e.text("recurring[aggregate_usage]"), meter: e.text("recurring[meter]"),
		each: rat(e.Form, "unit_amount"), volume: e.text("tiers_mode") == "volume", up: e.text("transform_quantity[round]") == "up",
	}
	if n := e.whole("recurring[interval_count]"); n != nil {
		p.count = int(n.Int64())
	}
	if p.legacy() && p.aggregate == "" {
		p.aggregate = "sum"
	}
	if n := e.whole("transform_quantity[divide_by]"); n != nil {
		p.divide = new(big.Rat).SetInt(n)
	}
	for i := 0; ; i++ {
		at := fmt.Sprintf("tiers[%d]", i)
		upTo := e.text(at + "[up_to]")
		if upTo == "" {
			break
		}
		t := tier{each: tierAmount(e.Form, at, "unit_amount"), flat: tierAmount(e.Form, at, "flat_amount")}
		t.upTo, _ = new(big.Rat).SetString(upTo) // "inf" is none
		p.tiers = append(p.tiers, t)
	}
	tiered := e.text("billing_scheme") == "tiered"
	refusal := firstOf(
		bogus(e), unless(e.has("currency"), "it has no currency"), unless(p.each.Sign() >= 0, "a unit costs less than nothing"),
		unless(tiered != (e.has("unit_amount") || e.has("unit_amount_decimal")), "a unit has no amount, or has tiers and one"),
		unless(!tiered || len(p.tiers) > 0 && p.tiers[len(p.tiers)-1].upTo == nil, "the last tier has an end"),
		unless(p.aggregate == "" || p.meter == "", "usage comes from a meter and from records"),
	)
	return refusal, func() map[string]any {
		p.id = word(e.answer, "id")
		b.prices[p.id] = p
		return map[string]any{"object": "price", "currency": p.currency, "type": map[bool]string{true: "recurring", false: "one_time"}[p.recurring]}
	}
}

func tierAmount(form url.Values, at, name string) *big.Rat {
	for _, full := range []string{at + "[" + name + "]", at + "[" + name + "_decimal]"} {
		if r, ok := new(big.Rat).SetString(form.Get(full)); ok {
			return r
		}
	}
	return new(big.Rat)
}

func makeCustomer(b *book, e *entry) (string, func() map[string]any) {
	clock := e.text("test_clock")
	sharing := 0
	for _, c := range b.customers {
		if clock != "" && c.clock == clock {
			sharing++
		}
	}
	_, stands := b.clocks[clock]
	refusal := firstOf(bogus(e), unless(clock == "" || stands, "there is no such clock"), unless(sharing < 3, "the clock has three customers"))
	return refusal, func() map[string]any {
		c := &customer{id: word(e.answer, "id"), clock: clock, balance: new(big.Int)}
		if name := e.text("payment_method"); name != "" {
			c.method = word(e.answer, "invoice_settings", "default_payment_method")
			b.methods[c.method], b.owners[c.method] = name, c.id
		}
		b.customers = append(b.customers, c)
		if n := e.whole("balance"); n != nil && n.Sign() != 0 {
			b.move(c, n, "initial", nil, nil)
		}
		return b.showCustomer(c)
	}
}

func (b *book) showCustomer(c *customer) map[string]any {
	want := map[string]any{"id": c.id, "balance": c.balance, "currency": nil, "invoice_settings": map[string]any{"default_payment_method": nil}}
	if c.currency != "" {
		want["currency"] = c.currency
	}
	if c.method != "" {
		want["invoice_settings"] = map[string]any{"default_payment_method": c.method}
	}
	return want
}

func changeCustomer(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.parts()[1])
	method := e.text("invoice_settings[default_payment_method]")
	refusal := firstOf(bogus(e), unless(c != nil, "there is no such customer"), unless(method == "" || c != nil && b.owners[method] == c.id, "it has no such payment method"))
	return refusal, func() map[string]any {
		if method != "" {
			c.method = method
		}
		if n := e.whole("balance"); n != nil && n.Cmp(c.balance) != 0 {
			b.move(c, new(big.Int).Sub(n, c.balance), "adjustment", nil, nil)
			b.reckonDrafts(c)
		}
		return b.showCustomer(c)
	}
}

func attachMethod(b *book, e *entry) (string, func() map[string]any) {
	return firstOf(bogus(e), unless(b.customer(e.text("customer")) != nil, "there is no such customer")), func() map[string]any {
		b.newest = word(e.answer, "id")
		b.methods[b.newest], b.owners[b.newest] = e.parts()[1], e.text("customer")
		return map[string]any{"customer": e.text("customer")}
	}
}

// pays tells whether a payment by a method succeeds.
func (b *book) pays(method string) bool {
	if name := b.methods[method]; name != "" {
		method = name
	}
	if method == "" {
		return !b.with.InvoicesNeedMethod
	}
	return method == "pm_card_visa"
}

func makeClock(b *book, e *entry) (string, func() map[string]any) {
	return firstOf(bogus(e), unless(e.seconds("frozen_time") > 0, "it has no time")), func() map[string]any {
		b.clocks[word(e.answer, "id")] = e.seconds("frozen_time")
		return map[string]any{"frozen_time": e.text2("frozen_time"), "status": "ready"}
	}
}

// text2 gives a parameter as a number to compare with.
func (e *entry) text2(name string) any { return e.whole(name) }

// advanceClock moves a test clock by two intervals of its shortest subscription at
// most, or by two years.
func advanceClock(b *book, e *entry) (string, func() map[string]any) {
	id := e.parts()[2]
	from, stands := b.clocks[id]
	to := e.seconds("frozen_time")
	latest, found := (&price{unit: "year", count: 1}).begins(from, 2), false
	for _, s := range b.subs {
		if s.of.clock != id || s.over() {
			continue
		}
		if at := s.items[0].price.begins(from, 2); !found || at < latest {
			latest, found = at, true
		}
	}
	refusal := firstOf(bogus(e), unless(stands, "there is no such clock"), unless(to > from, "time goes forward"), unless(to <= latest, "it is too far"))
	return refusal, func() map[string]any {
		b.clocks[id] = to
		b.pass(id, to)
		return map[string]any{"frozen_time": e.text2("frozen_time")}
	}
}

// meter is a billing meter and what it was told.
type meter struct {
	id     string
	counts bool // the formula is count
	events []meterEvents
}

type meterEvents struct {
	customer string
	at       int64
	value    *big.Rat
}

func makeMeter(b *book, e *entry) (string, func() map[string]any) {
	name := e.text("event_name")
	return firstOf(bogus(e), unless(name != "", "it has no name"), unless(b.meters[name] == nil, "another meter has the name")), func() map[string]any {
		b.meters[name] = &meter{id: word(e.answer, "id"), counts: e.text("default_aggregation[formula]") == "count"}
		return map[string]any{"event_name": name, "status": "active"}
	}
}

func meterEvent(b *book, e *entry) (string, func() map[string]any) {
	m, c := b.meters[e.text("event_name")], b.customer(e.text("payload[stripe_customer_id]"))
	value, number := new(big.Rat).SetString(e.text("payload[value]"))
	if m == nil { // it is accepted, and found to be nobody's later
		m, c = &meter{}, &customer{}
	}
	if c == nil || !number && !m.counts {
		return "there is no such customer, or no value", nothing
	}
	now := b.timeOf(c.clock)
	at := now
	if e.has("timestamp") {
		at = e.seconds("timestamp")
	}
	id := e.text("identifier")
	taken, known := b.seen[id]
	refusal := firstOf(
		bogus(e), unless(at >= now-35*day && at <= now+300, "the time is too far from the present"), unless(!known || b.now >= taken+day || id == "", "the identifier is known"),
	)
	return refusal, func() map[string]any {
		if m.counts {
			value = big.NewRat(1, 1)
		}
		b.seen[id] = b.now
		m.events = append(m.events, meterEvents{customer: c.id, at: at, value: value})
		return map[string]any{"timestamp": big.NewInt(at)}
	}
}

// metered is what a meter holds of a customer in [from, to), never less than nothing.
func (b *book) metered(id, customer string, from, to int64) *big.Rat {
	sum := new(big.Rat)
	for _, m := range b.meters {
		if m.id != id {
			continue
		}
		for _, ev := range m.events {
			if ev.customer == customer && ev.at >= from && ev.at < to {
				sum.Add(sum, ev.value)
			}
		}
	}
	if sum.Sign() < 0 {
		return new(big.Rat)
	}
	return sum
}

// move changes a customer's balance: below nothing is what it has to its credit.
func (b *book) move(c *customer, by *big.Int, kind string, inv *invoice, note any) {
	c.balance = new(big.Int).Add(c.balance, by)
	want := map[string]any{
		"amount": by, "ending_balance": c.balance, "type": kind, "credit_note": note, "created": big.NewInt(b.timeOf(c.clock)), "customer": c.id,
		"_invoice": inv,
	}
	c.moves = slices.Insert(c.moves, 0, want)
}

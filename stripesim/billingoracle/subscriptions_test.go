package billingoracle

import (
	"fmt"
	"math/big"
	"net/http"
	"slices"
)

var subscriptionRules map[string]rule

func init() {
	subscriptionRules = map[string]rule{
		"POST subscriptions":         makeSubscription,
		"POST subscriptions/{}":      changeSubscription,
		"DELETE subscriptions/{}":    cancelSubscription,
		"GET subscriptions/{}":       readSubscription,
		"POST subscription_items/{}": changeItem,
	}
}

// asked is an item as a call wants it.
type asked struct {
	price    *price
	quantity *big.Int
}

// askedItems reads the items of a new subscription, and says what is wrong with them.
func (b *book) askedItems(e *entry, c *customer) (items []asked, refusal string) {
	for i := 0; e.has(fmt.Sprintf("items[%d][price]", i)); i++ {
		at := fmt.Sprintf("items[%d]", i)
		p := b.prices[e.text(at+"[price]")]
		if p == nil || !p.recurring {
			return nil, "there is no such recurring price"
		}
		a := asked{price: p, quantity: big.NewInt(1)}
		if e.has(at + "[quantity]") {
			if p.metered {
				return nil, "usage makes the quantity"
			}
			if a.quantity = e.whole(at + "[quantity]"); a.quantity == nil || a.quantity.Sign() < 0 {
				return nil, "the quantity is no number"
			}
		}
		if p.metered {
			a.quantity = new(big.Int)
		}
		items = append(items, a)
		first := items[0].price
		if p.currency != first.currency || p.unit != first.unit || p.count != first.count {
			return nil, "currencies or intervals differ"
		}
		if slices.ContainsFunc(items[:i], func(other asked) bool { return other.price == p }) {
			return nil, "a price is there twice"
		}
	}
	if len(items) == 0 {
		return nil, "it has no items"
	}
	if c.currency != "" && items[0].price.currency != c.currency {
		return nil, "the customer pays in another currency"
	}
	return items, ""
}

// oneOf tells that a parameter is one of some words, or not sent.
func (e *entry) oneOf(name string, words ...string) string {
	return unless(!e.has(name) || slices.Contains(words, e.text(name)), name+" is none of the words")
}

func makeSubscription(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.text("customer"))
	if c == nil {
		return "there is no such customer", nothing
	}
	now := b.timeOf(c.clock)
	items, wrong := b.askedItems(e, c)
	running := 0
	for _, s := range b.subs {
		if s.of == c && !s.over() {
			running++
		}
	}
	days, trialEnd, anchor := e.whole("trial_period_days"), e.seconds("trial_end"), e.seconds("billing_cycle_anchor")
	sends := e.text("collection_method") == "send_invoice"
	refusal := firstOf(
		bogus(e), wrong, unless(c.clock == "" || running < 3, "three subscriptions run on the clock"),
		unless(!e.has("trial_period_days") || days != nil && days.Sign() > 0 && days.Int64() <= 730, "the trial is too long or none"),
		unless(!e.has("trial_end") || trialEnd > now && trialEnd <= now+730*day, "the trial ends in the past or too late"),
		unless(!e.has("trial_end") || !e.has("trial_period_days"), "the trial has two ends"),
		unless(!e.has("billing_cycle_anchor") || anchor > now, "the anchor is past"),
		e.oneOf("collection_method", "charge_automatically", "send_invoice"), unless(sends == e.has("days_until_due"), "days_until_due belongs to send_invoice"),
		e.oneOf("payment_behavior", "allow_incomplete", "default_incomplete", "error_if_incomplete"), e.oneOf("proration_behavior", "create_prorations", "none", "always_invoice"),
	)
	if refusal == "" && anchor > 0 {
		refusal = unless(anchor <= items[0].price.endAfter(now, now), "the anchor is later than the next natural date")
	}
	return refusal, func() map[string]any {
		s := &subscription{
			of: c, currency: items[0].price.currency, status: "incomplete", anchor: now, start: now, made: now, sends: sends, atEnd: e.text("cancel_at_period_end") == "true",
			days: e.whole("days_until_due"),
		}
		if days != nil {
			trialEnd = now + days.Int64()*day
		}
		s.end = items[0].price.endAfter(now, now)
		switch {
		case trialEnd > 0:
			s.status, s.trialEnd, s.anchor, s.end = "trialing", trialEnd, trialEnd, trialEnd
		case anchor > 0:
			s.anchor, s.end = anchor, anchor
		}
		if s.atEnd {
			s.canceled = now
		}
		for _, a := range items {
			b.addItem(s, a, now)
		}
		return b.firstInvoice(e, s, anchor > 0)
	}
}

func (b *book) addItem(s *subscription, a asked, now int64) {
	it := &item{sub: s, price: a.price, quantity: a.quantity, made: now, last: new(big.Int)}
	if a.price.legacy() {
		it.periods = []*period{{start: now}}
	}
	s.items = append(s.items, it)
}

// firstInvoice bills what is paid in advance, and leaves nothing of a subscription
// that insists on a payment which fails.
func (b *book) firstInvoice(e *entry, s *subscription, partial bool) map[string]any {
	behaviour := e.text("payment_behavior")
	due := b.firstLines(s, partial, e.text("proration_behavior"))
	inv := &invoice{of: s.of, sub: s, reason: "subscription_create", currency: s.currency, made: s.made, start: s.made, end: s.made, auto: true, sends: s.sends, lines: due}
	if behaviour == "error_if_incomplete" && !s.sends && s.status != "trialing" {
		trial := *inv
		trial.lines = append(slices.Clone(due), b.pendingLines(s.of, s, s.currency)...)
		b.reckon(&trial)
		if trial.dueAmount.Sign() > 0 && !b.pays(s.of.method) {
			b.expects = http.StatusPaymentRequired
			return nil
		}
	}
	s.of.subs++
	b.subs = append(b.subs, s)
	if s.sends && s.status == "incomplete" {
		s.status = "active"
	}
	b.open(inv, !s.sends)
	s.latest = inv
	if !s.sends {
		b.finalize(inv)
		if inv.status == "open" && behaviour != "default_incomplete" {
			b.collect(inv, "", true)
		}
	}
	s.of.currency = s.currency
	b.bindSubscription(s, e.answer)
	return b.showSubscription(s)
}

func (b *book) firstLines(s *subscription, partial bool, proration string) (lines []*line) {
	for _, it := range s.items {
		l := &line{kind: "subscription", item: it, quantity: new(big.Rat).SetInt(it.quantity), start: s.start, end: s.end, amount: new(big.Int)}
		switch {
		case it.price.metered:
			l.end = s.start
		case s.status == "trialing", partial && proration == "none":
		case partial:
			whole := it.price.cost(l.quantity)
			part := big.NewRat(s.end-s.start, s.end-it.price.begins(s.end, -1))
			l.amount, l.proration = nearest(whole.Mul(whole, part)), true
		default:
			l.amount = nearest(it.price.cost(l.quantity))
		}
		lines = append(lines, l)
	}
	return lines
}

// bindSubscription learns the ids that an answer gives.
func (b *book) bindSubscription(s *subscription, answer map[string]any) {
	if s.id = word(answer, "id"); s.id == "" {
		b.problem("a subscription without an id: %v", answer)
	}
	data := list(answer, "items", "data")
	for i, it := range s.items {
		if i < len(data) && it.id == "" {
			it.id = word(data[i], "id")
			b.items[it.id] = it
		}
	}
	b.bind(s.latest, word(answer, "latest_invoice"))
}

// at writes a time, null where there is none.
func at(unix int64) any {
	if unix == 0 {
		return nil
	}
	return big.NewInt(unix)
}

func (b *book) showSubscription(s *subscription) map[string]any {
	items := []map[string]any{}
	for _, it := range s.items {
		items = append(items, map[string]any{"id": it.id, "price": map[string]any{"id": it.price.id}, "created": at(it.made), "subscription": s.id})
		if !it.price.metered {
			items[len(items)-1]["quantity"] = it.quantity
		}
	}
	want := map[string]any{
		"id": s.id, "customer": s.of.id, "status": s.status, "currency": s.currency, "current_period_start": at(s.start), "current_period_end": at(s.end),
		"billing_cycle_anchor": at(s.anchor), "created": at(s.made), "start_date": at(s.made), "trial_start": nil, "trial_end": at(s.trialEnd), "canceled_at": at(s.canceled),
		"ended_at": at(s.ended), "cancel_at_period_end": s.atEnd, "cancel_at": nil, "latest_invoice": b.idOf(s.latest), "items": map[string]any{"data": items},
		"collection_method": map[bool]string{false: "charge_automatically", true: "send_invoice"}[s.sends], "days_until_due": s.days,
	}
	if s.trialEnd > 0 {
		want["trial_start"] = at(s.made)
	}
	if s.atEnd {
		want["cancel_at"] = at(s.end)
	}
	return want
}

func readSubscription(b *book, e *entry) (string, func() map[string]any) {
	s := b.subscription(e.parts()[1])
	return unless(s != nil, "there is no such subscription"), func() map[string]any {
		b.bind(s.latest, word(e.answer, "latest_invoice"))
		return b.showSubscription(s)
	}
}

// changeSubscription sets or takes back the end, or ends the trial.
func changeSubscription(b *book, e *entry) (string, func() map[string]any) {
	s := b.subscription(e.parts()[1])
	if s == nil {
		return "there is no such subscription", nothing
	}
	refusal := firstOf(
		bogus(e), unless(!s.over() || onlyMetadata(e), "it has ended"), unless(s.status != "incomplete" || onlyMetadata(e), "while it is incomplete it cannot be changed"),
		e.oneOf("trial_end", "now"),
	)
	return refusal, func() map[string]any {
		now := b.timeOf(s.of.clock)
		if e.text("trial_end") == "now" && s.status == "trialing" {
			b.endTrial(s, now)
		}
		switch e.text("cancel_at_period_end") {
		case "true":
			s.atEnd, s.canceled = true, now
		case "false":
			s.atEnd, s.canceled = false, 0
		}
		b.bind(s.latest, word(e.answer, "latest_invoice"))
		return b.showSubscription(s)
	}
}

func onlyMetadata(e *entry) bool {
	for name := range e.Form {
		if name != "metadata[k]" {
			return false
		}
	}
	return true
}

// endTrial begins the first period that is paid for, now.
func (b *book) endTrial(s *subscription, now int64) {
	lines := b.used(s, now)
	s.status, s.trialEnd, s.anchor = "active", now, now
	s.start, s.end = now, s.items[0].price.endAfter(now, now)
	lines = append(lines, b.advance(s)...)
	b.billNow(s, lines, now)
}

// billNow makes an invoice that is finalized and collected in the same moment.
func (b *book) billNow(s *subscription, lines []*line, now int64) {
	inv := &invoice{of: s.of, sub: s, reason: "subscription_update", currency: s.currency, made: now, start: s.start, end: now, auto: s.status != "unpaid", sends: s.sends, lines: lines}
	b.open(inv, !s.sends && inv.auto)
	s.latest = inv
	for _, it := range s.items {
		if len(lines) > 0 {
			b.turn(it, now, inv)
		}
	}
	if !s.sends && inv.auto {
		b.finalize(inv)
		if inv.status == "open" {
			b.collect(inv, "", true)
		}
	}
}

// changeItem gives a licensed item another quantity.
func changeItem(b *book, e *entry) (string, func() map[string]any) {
	it := b.items[e.parts()[1]]
	if it == nil {
		return "there is no such item", nothing
	}
	s, quantity := it.sub, e.whole("quantity")
	refusal := firstOf(
		bogus(e), unless(!s.over(), "it has ended"), unless(s.status != "incomplete", "while it is incomplete it cannot be changed"),
		unless(!it.price.metered, "usage makes the quantity"), unless(quantity != nil && quantity.Sign() >= 0, "the quantity is no number"),
		e.oneOf("proration_behavior", "create_prorations", "none", "always_invoice"),
	)
	return refusal, func() map[string]any {
		now := b.timeOf(s.of.clock)
		how := e.text("proration_behavior")
		if how != "none" && s.status != "trialing" && quantity.Cmp(it.quantity) != 0 {
			b.prorate(it, it.quantity, -1, now)
			b.prorate(it, quantity, 1, now)
		}
		it.quantity = quantity
		if how == "always_invoice" && len(b.pendingLines(s.of, s, s.currency)) > 0 { // an invoice of nothing is none
			b.billNow(s, nil, now)
		}
		return map[string]any{"id": it.id, "quantity": quantity}
	}
}

// prorate puts the rest of the period on the next invoice: what is given back, or
// what is to be paid.
func (b *book) prorate(it *item, quantity *big.Int, sign, now int64) {
	s := it.sub
	if it.price.metered || quantity.Sign() == 0 || now >= s.end {
		return
	}
	q := new(big.Rat).SetInt(quantity)
	part := it.price.cost(q)
	part.Mul(part, big.NewRat(sign*(s.end-now), s.end-s.start))
	b.pending = append(b.pending, &invoiceItem{of: s.of, sub: s, item: it, price: it.price, currency: s.currency, quantity: quantity, amount: nearest(part), start: now, end: s.end, proration: true, made: now})
}

func cancelSubscription(b *book, e *entry) (string, func() map[string]any) {
	s := b.subscription(e.parts()[1])
	if s == nil {
		return "there is no such subscription", nothing
	}
	return firstOf(bogus(e), unless(!s.over(), "it has ended")), func() map[string]any {
		now := b.timeOf(s.of.clock)
		s.canceled = now
		invoiced := e.text("invoice_now") == "true"
		if !invoiced { // prorations that wait are removed
			b.pending = slices.DeleteFunc(b.pending, func(i *invoiceItem) bool { return i.on == nil && i.sub == s && i.proration })
		}
		if e.text("prorate") == "true" && s.status != "trialing" && s.status != "incomplete" {
			for _, it := range s.items {
				b.prorate(it, it.quantity, -1, now)
			}
		}
		b.endSubscription(s, now, "subscription_update", invoiced)
		b.bind(s.latest, word(e.answer, "latest_invoice"))
		return b.showSubscription(s)
	}
}

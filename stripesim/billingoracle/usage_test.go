package billingoracle

import (
	"math/big"
	"slices"
)

var usageRules map[string]rule

func init() {
	usageRules = map[string]rule{
		"POST subscription_items/{}/usage_records":         takeUsage,
		"GET subscription_items/{}/usage_record_summaries": readSummaries,
	}
}

// lateness is how long, in seconds, usage of the period before is still taken, and
// from how long before its end.
const lateness = 300

// takeUsage: a period holds (start, end]. The present is always taken, and so is the
// first moment of a subscription; for sums, a clock that is a little slow is forgiven.
func takeUsage(b *book, e *entry) (string, func() map[string]any) {
	it := b.items[e.parts()[1]]
	if it == nil {
		return "there is no such item", nothing
	}
	now := b.timeOf(it.sub.of.clock)
	at, quantity := now, e.whole("quantity")
	if e.has("timestamp") && e.text("timestamp") != "now" {
		at = e.seconds("timestamp")
	}
	refusal := firstOf(
		bogus(e), unless(!it.sub.over(), "its subscription has ended"), unless(it.price.legacy(), "usage records do not make its quantity"),
		unless(quantity != nil && quantity.Sign() >= 0, "the quantity is no number"), e.oneOf("action", "increment", "set"), unless(at <= now, "it is of the future"),
	)
	if refusal != "" {
		return refusal, nothing
	}
	into, refusal := periodOf(it, at, now)
	return refusal, func() map[string]any {
		into.records = append(into.records, record{at: at, quantity: quantity, sets: e.text("action") == "set"})
		b.cells["usage "+it.price.aggregate]++
		if into.over {
			b.cells["late usage"]++
			b.countAgain(it, into)
		}
		return map[string]any{"object": "usage_record", "quantity": quantity, "timestamp": big.NewInt(at), "subscription_item": it.id}
	}
}

// periodOf says which period a usage record counts in.
func periodOf(it *item, at, now int64) (*period, string) {
	open := it.periods[len(it.periods)-1]
	first := len(it.periods) == 1
	if at > open.start || at == now || first && at == open.start {
		return open, ""
	}
	if first || it.price.aggregate != "sum" || now >= open.start+lateness || at <= open.start-lateness {
		return nil, "it is of a period that is over"
	}
	before := it.periods[len(it.periods)-2]
	if before.invoice != nil && before.invoice.status == "draft" {
		return before, ""
	}
	return open, ""
}

// countAgain bills late usage on the draft that still waits.
func (b *book) countAgain(it *item, p *period) {
	p.total = aggregated("sum", p.records, nil)
	for _, l := range p.invoice.lines {
		if l.kind == "subscription" && l.item == it {
			l.quantity = new(big.Rat).SetInt(p.total)
			l.amount = nearest(it.price.cost(l.quantity))
		}
	}
	b.reckon(p.invoice)
}

// usage is that of an item's open period.
func (it *item) usage() *big.Int {
	return aggregated(it.price.aggregate, it.periods[len(it.periods)-1].records, it.last)
}

// used are the lines of what was used up to a time. What is used during a trial
// costs nothing.
func (b *book) used(s *subscription, until int64) (lines []*line) {
	for _, it := range s.items {
		if !it.price.metered {
			continue
		}
		l := &line{kind: "subscription", item: it, start: max(s.start, it.made), end: until}
		if it.price.legacy() {
			l.start = it.periods[len(it.periods)-1].start
			l.quantity = new(big.Rat).SetInt(it.usage())
		} else {
			l.quantity = b.metered(it.price.meter, s.of.id, l.start, until)
		}
		if s.status == "trialing" {
			l.free = true
			if !it.price.legacy() {
				l.quantity, l.start = new(big.Rat), until
			}
		}
		l.amount = new(big.Int)
		if !l.free {
			l.amount = nearest(it.price.cost(l.quantity))
		}
		lines = append(lines, l)
	}
	return lines
}

// advance are the lines of what is paid before its time.
func (b *book) advance(s *subscription) (lines []*line) {
	for _, it := range s.items {
		if it.price.metered {
			continue
		}
		q := new(big.Rat).SetInt(it.quantity)
		lines = append(lines, &line{kind: "subscription", item: it, quantity: q, amount: nearest(it.price.cost(q)), start: s.start, end: s.end})
	}
	return lines
}

// turn freezes an item's usage and begins the next period.
func (b *book) turn(it *item, now int64, inv *invoice) {
	if !it.price.legacy() {
		return
	}
	b.freeze(it, now, inv)
	it.periods = append(it.periods, &period{start: now})
}

func (b *book) freeze(it *item, now int64, inv *invoice) {
	p := it.periods[len(it.periods)-1]
	p.total, p.end, p.invoice, p.over = it.usage(), now, inv, true
	if times, values := byTime(p.records); len(times) > 0 {
		it.last = values[slices.Max(times)]
	}
}

// subscriptionDue lets happen what has come to a subscription.
func (b *book) subscriptionDue(s *subscription, now int64) {
	switch {
	case s.status == "incomplete":
		s.status, s.ended, s.canceled = "incomplete_expired", now, now
		if s.latest.status == "open" {
			b.voidInvoice(s.latest)
		}
	case s.atEnd:
		b.endSubscription(s, now, "subscription_cycle", true)
	default:
		b.renew(s, now)
	}
}

// renew bills the period that is over together with what the next one costs.
func (b *book) renew(s *subscription, now int64) {
	from := s.start
	lines := b.used(s, now)
	if s.status == "trialing" {
		s.status = "active"
	}
	s.start, s.end = now, s.items[0].price.endAfter(s.anchor, now)
	lines = append(lines, b.advance(s)...)
	inv := &invoice{of: s.of, sub: s, reason: "subscription_cycle", currency: s.currency, made: now, start: from, end: now, auto: s.status != "unpaid", sends: s.sends, lines: lines}
	b.open(inv, false)
	for _, it := range s.items {
		b.turn(it, now, inv)
	}
	s.latest = inv
}

// endSubscription bills what was used, or forgets it. What stays unpaid is not
// collected any more.
func (b *book) endSubscription(s *subscription, now int64, reason string, billed bool) {
	lines := b.used(s, now)
	waits := slices.ContainsFunc(b.pending, func(i *invoiceItem) bool { return i.on == nil && i.sub == s })
	var inv *invoice
	if billed && s.status != "incomplete" && (len(lines) > 0 || waits) {
		inv = &invoice{of: s.of, sub: s, reason: reason, currency: s.currency, made: now, start: s.start, end: now, auto: s.status != "unpaid", sends: s.sends, lines: lines}
		b.open(inv, false)
		s.latest = inv
	}
	for _, it := range s.items {
		if !it.price.legacy() {
			continue
		}
		b.freeze(it, now, inv)
		if n := len(it.periods) - 1; it.periods[n].start == now && now != s.made { // a period of no time is none
			it.periods = it.periods[:n]
		}
	}
	for _, open := range b.invoices {
		if open.sub == s && open.status == "open" {
			open.auto, open.due, open.retry = false, 0, 0
		}
	}
	s.status, s.ended = "canceled", now
	if s.canceled == 0 {
		s.canceled = now
	}
}

func readSummaries(b *book, e *entry) (string, func() map[string]any) {
	it := b.items[e.parts()[1]]
	if it == nil {
		return "there is no such item", nothing
	}
	return firstOf(bogus(e), unless(it.price.legacy(), "usage records do not make its quantity")), func() map[string]any {
		want := []map[string]any{}
		for i, p := range slices.Backward(it.periods) {
			row := map[string]any{"subscription_item": it.id, "period": map[string]any{"start": at(p.start), "end": at(p.end)}, "total_usage": p.total, "invoice": nil}
			if !p.over {
				row["period"] = map[string]any{"start": at(p.start), "end": at(it.sub.end)}
				row["total_usage"] = it.usage()
			}
			if p.invoice != nil {
				b.bind(p.invoice, word(e.answer, "data", len(it.periods)-1-i, "invoice"))
				row["invoice"] = b.idOf(p.invoice)
			}
			want = append(want, row)
		}
		return b.page(e, want)
	}
}

// page is the beginning of a list.
func (b *book) page(e *entry, rows []map[string]any) map[string]any {
	limit := 10
	if n := e.whole("limit"); n != nil {
		limit = int(n.Int64())
	}
	return map[string]any{"data": rows[:min(limit, len(rows))], "has_more": len(rows) > limit}
}

package stripesim

import (
	"encoding/json"
	"math/big"
	"slices"
	"time"
)

// usageGrace is how long usage of the period before is still taken, in seconds,
// where the switch does not say otherwise.
const usageGrace = 300

// thresholdRest is the end of a period, in seconds, in which thresholds are not
// looked at: the invoice comes soon enough.
const thresholdRest = 24 * 3600

func (s *Server) routeUsage() {
	s.handle("POST /v1/subscription_items/{id}/usage_records", spec{"quantity": "int", "action": "string", "timestamp": "string"}, func(c *call) (object, *apiError) {
		item, err := s.find("subscription_item", c.target(), "subscription_item")
		if err == nil {
			err = c.require("quantity")
		}
		if err != nil {
			return nil, err
		}
		return s.onSubscription(text(item, "subscription"), "subscription_item", func(sub object) (object, *apiError) { return s.takeUsage(c, sub, item) })
	})
	s.handle("GET /v1/subscription_items/{id}/usage_record_summaries", listSpec(nil), func(c *call) (object, *apiError) {
		item, err := s.find("subscription_item", c.target(), "subscription_item")
		if err != nil {
			return nil, err
		}
		return s.usageSummaries(c, item)
	})
}

// logUsage keeps what happens to an item's usage.
func (s *Server) logUsage(r *usageRecord) {
	s.usage.take(r)
	raw, _ := json.Marshal(r) // plain values always encode
	s.store.log(entry{Type: "usage", Raw: raw})
}

// takeUsage accepts a usage record.
func (s *Server) takeUsage(c *call, sub, item object) (object, *apiError) {
	price := s.store.get("price", text(item, "price"))
	aggregate := text(child(price, "recurring"), "aggregate_usage")
	switch {
	case ended(sub):
		return nil, invalid("", "", "Cannot create the usage record because the subscription has been canceled.")
	case !isMetered(price):
		return nil, invalid("", "", "Cannot create a usage record for `%s` because its price is not metered: it has `usage_type=licensed`.", c.target())
	case !isLegacyMetered(price):
		return nil, invalid("", "", "Cannot create a usage record for `%s` because it is not on the legacy metered billing system. Call /v1/billing/meter_events instead.", c.target())
	case c.number("quantity") < 0:
		return nil, invalid("quantity", "parameter_invalid_integer", "This value must be greater than or equal to 0.")
	}
	if err := c.oneOf("action", "", "increment", "set"); err != nil {
		return nil, err
	}
	limited := child(item, "billing_thresholds") != nil || number(child(sub, "billing_thresholds"), "amount_gte") > 0
	if limited && c.text("action") == "set" {
		return nil, invalid("action", "", "Only `action=increment` is allowed for a subscription with billing thresholds.")
	}
	at, err := s.moment(c.params, "timestamp")
	if err != nil {
		return nil, err
	}
	if at == 0 {
		at = s.now()
	}
	late, err := s.usagePeriod(item, at, aggregate)
	if err != nil {
		return nil, err
	}
	s.logUsage(&usageRecord{Item: text(item, "id"), At: at, Quantity: c.number("quantity"), Sets: c.text("action") == "set", Late: late != nil, Received: s.clock.Now()})
	if late != nil {
		s.billLate(c, item, late)
	} else {
		s.crossThresholds(c, sub)
	}
	return object{
		"id": s.newID("mbur"), "object": "usage_record", "livemode": false, "quantity": c.number("quantity"), "subscription_item": item["id"], "timestamp": at,
	}, nil
}

// usagePeriod says which period a timestamp is in: the open one, which gives nil, or
// the one before, while that can still be billed. The present is always taken. A
// clock that is a little slow is forgiven for sums alone: in the first minutes of a
// period, usage of the last minutes of the period before is accepted, and where
// that one's invoice is finalized it counts in the open period.
func (s *Server) usagePeriod(item object, at int64, aggregate string) (late object, err *apiError) {
	now := s.now()
	if at > now+s.switches.UsageAheadSeconds {
		return nil, invalid("timestamp", "", "Cannot create the usage record with this timestamp because timestamps must not be in the future.")
	}
	summaries := s.store.shelf("usage_record_summary").with("subscription_item", text(item, "id"))
	start := number(child(summaries[len(summaries)-1], "period"), "start")
	first := len(summaries) == 1
	if at > start || (at == start && (first || at >= now)) {
		return nil, nil
	}
	grace := s.switches.GraceSeconds
	if grace == 0 {
		grace = usageGrace
	}
	if first || aggregate != "sum" || now >= start+grace || at <= start-grace {
		return nil, invalid("timestamp", "", "Cannot create the usage record with this timestamp because timestamps must be after the subscription's last invoice period (or current period start time).")
	}
	before := summaries[len(summaries)-2]
	if invoice := s.store.get("invoice", text(before, "invoice")); invoice != nil && text(invoice, "status") == "draft" {
		return before, nil
	}
	return nil, nil
}

// billLate adds usage that came late to the period before and to its invoice, which
// is still a draft.
func (s *Server) billLate(c *call, item, summary object) {
	total := sumOf(s.usage.of(text(item, "id")).previous)
	s.change("usage_record_summary", summary, object{"total_usage": json.Number(total.String())})
	invoice := s.store.get("invoice", text(summary, "invoice"))
	s.requantify(c, invoice, item, new(big.Rat).SetInt(total))
}

// requantify gives a line of a draft another quantity.
func (s *Server) requantify(c *call, invoice, item object, quantity *big.Rat) {
	lines := slices.Clone(linesOf(invoice))
	for i, raw := range lines {
		line := raw.(object)
		price := s.store.get("price", text(child(line, "price"), "id"))
		if text(line, "type") != "subscription" || text(line, "subscription_item") != text(item, "id") || !isLegacyMetered(price) {
			continue
		}
		fresh := s.view(line, nil)
		s.bill(fresh, price, quantity)
		lines[i] = fresh
	}
	s.updateInvoice(c, invoice, s.reckon(invoice, lines))
}

// openSummary is the summary of an item's open period; nil where it has none.
func (s *Server) openSummary(item object) object {
	summaries := s.store.shelf("usage_record_summary").with("subscription_item", text(item, "id"))
	if n := len(summaries); n > 0 && flag(summaries[n-1], "_open") {
		return summaries[n-1]
	}
	return nil
}

// openUsage begins a period of an item.
func (s *Server) openUsage(sub, item object, start int64) {
	s.store.put("usage_record_summary", object{
		"id": s.newID("sis"), "object": "usage_record_summary", "invoice": nil, "livemode": false, "period": object{"start": start, "end": sub["current_period_end"]},
		"subscription_item": item["id"], "total_usage": int64(0), "_open": true,
	})
}

// closeSummary freezes the usage of an item's open period.
func (s *Server) closeSummary(item object, end int64, invoice any) {
	open := s.openSummary(item)
	if open == nil {
		return
	}
	start := number(child(open, "period"), "start")
	total := s.meteredQuantity(item, start, end)
	s.change("usage_record_summary", open, object{
		"period": object{"start": start, "end": end}, "total_usage": json.Number(total.Num().String()), "invoice": invoice, "_open": false,
	})
}

// turnUsage ends the open period of all items and begins the next.
func (s *Server) turnUsage(sub object, at int64, invoice any) {
	for _, item := range s.itemsOf(sub) {
		open := s.openSummary(item)
		if open == nil || number(child(open, "period"), "start") == at {
			continue
		}
		s.closeSummary(item, at, invoice)
		s.logUsage(&usageRecord{Item: text(item, "id"), Does: "turn"})
		s.openUsage(sub, item, at)
	}
}

// closeUsage ends the usage of a subscription that is cancelled: what was not billed
// never will be.
func (s *Server) closeUsage(sub object) {
	now := s.now()
	for _, item := range s.itemsOf(sub) {
		open := s.openSummary(item)
		if open != nil && number(child(open, "period"), "start") == now && now != number(sub, "start_date") {
			s.store.delete("usage_record_summary", text(open, "id"))
			continue
		}
		s.closeSummary(item, now, nil)
	}
}

// clearUsage forgets all usage of an item.
func (s *Server) clearUsage(item object) {
	summaries := s.store.shelf("usage_record_summary").with("subscription_item", text(item, "id"))
	if len(summaries) == 0 {
		return
	}
	for _, summary := range summaries {
		s.store.delete("usage_record_summary", text(summary, "id"))
	}
	s.logUsage(&usageRecord{Item: text(item, "id"), Does: "clear"})
}

// visibleUsage is the open period's usage as reads see it, a little late.
func (s *Server) visibleUsage(item object) *big.Rat {
	u := s.usage.of(text(item, "id"))
	u.settle(s.clock.Now().Add(-time.Duration(s.switches.UsageLagSeconds) * time.Second))
	price := s.store.get("price", text(item, "price"))
	return new(big.Rat).SetInt(u.aggregate(text(child(price, "recurring"), "aggregate_usage")))
}

// meteredQuantity is the usage of a metered item: for a price with a meter what the
// meter holds of the customer in [start, end), never less than nothing; else what
// usage records make of the period (start, end] that begins at start.
func (s *Server) meteredQuantity(item object, start, end int64) *big.Rat {
	price := s.store.get("price", text(item, "price"))
	if meter := text(child(price, "recurring"), "meter"); meter != "" {
		sub := s.store.get("subscription", text(item, "subscription"))
		s.meters.settle(s.clock.Now())
		sum := s.meters.total(meterCustomer{meter, text(sub, "customer")}, start, end)
		if sum.Sign() < 0 {
			return new(big.Rat)
		}
		return sum
	}
	for _, summary := range s.store.shelf("usage_record_summary").with("subscription_item", text(item, "id")) {
		if number(child(summary, "period"), "start") != start {
			continue
		}
		if flag(summary, "_open") {
			u := s.usage.of(text(item, "id")).whole()
			return new(big.Rat).SetInt(u.aggregate(text(child(price, "recurring"), "aggregate_usage")))
		}
		return wholeNumber(summary["total_usage"])
	}
	return new(big.Rat)
}

// wholeNumber reads a number that may be longer than an int64.
func wholeNumber(v any) *big.Rat {
	if n, ok := v.(json.Number); ok {
		if r, ok := new(big.Rat).SetString(n.String()); ok {
			return r
		}
	}
	return new(big.Rat).SetInt64(number(object{"n": v}, "n"))
}

// usageSummaries lists an item's periods, the open one first.
func (s *Server) usageSummaries(c *call, item object) (object, *apiError) {
	price := s.store.get("price", text(item, "price"))
	if !isLegacyMetered(price) {
		return nil, invalid("", "", "Cannot list usage record summaries of `%s` because it is not on the legacy metered billing system.", text(item, "id"))
	}
	if open := s.openSummary(item); open != nil {
		sub := s.store.get("subscription", text(item, "subscription"))
		open["total_usage"] = json.Number(s.visibleUsage(item).Num().String())
		open["period"] = object{"start": number(child(open, "period"), "start"), "end": sub["current_period_end"]}
	}
	c.values["subscription_item"] = item["id"] // by which the list is indexed
	page, err := s.list(c, "usage_record_summary", func(o object) bool { return o["subscription_item"] == item["id"] })
	if err != nil {
		return nil, err
	}
	data := page["data"].([]any)
	for i, row := range data {
		shown := s.view(row.(object), nil)
		if flag(row.(object), "_open") && s.switches.UsageOpenPeriodNull {
			shown["period"] = object{"start": nil, "end": nil}
		}
		data[i] = shown
	}
	return page, nil
}

// crossThresholds cuts the period where usage, or what it costs, has grown to a
// threshold: an invoice before its time.
func (s *Server) crossThresholds(c *call, sub object) {
	now, end := s.now(), number(sub, "current_period_end")
	if text(sub, "status") == "trialing" || text(sub, "status") == "incomplete" || now > end-thresholdRest || !s.crossed(sub, now) {
		return
	}
	lines := s.meteredLines(sub, now)
	start, changes := number(sub, "current_period_start"), object{}
	if flag(child(sub, "billing_thresholds"), "reset_billing_cycle_anchor") {
		items := s.itemsOf(sub)
		next := cadenceOf(s.store.get("price", text(items[0], "price"))).next(now, now)
		for _, item := range items {
			s.prorate(c, sub, item, s.store.get("price", text(item, "price")), number(item, "quantity"), -1, now)
		}
		lines = append(s.advanceLines(sub, now, next), lines...)
		changes = object{"billing_cycle_anchor": now, "current_period_start": now, "current_period_end": next}
		if flag(sub, "cancel_at_period_end") {
			changes["cancel_at"] = next
		}
	}
	invoice := s.draftInvoice(c, invoiceDraft{
		customer: text(sub, "customer"), subscription: text(sub, "id"), reason: "subscription_threshold", currency: text(sub, "currency"),
		start: start, end: now, lines: lines, advance: s.advances(sub),
	})
	changes["latest_invoice"] = invoice["id"]
	previous := s.change("subscription", sub, changes)
	s.turnUsage(sub, now, invoice["id"])
	s.keepSubscription(sub)
	s.raise(c, "customer.subscription.updated", sub, previous)
}

func (s *Server) crossed(sub object, now int64) bool {
	amount := int64(0)
	for _, line := range s.meteredLines(sub, now) {
		if !isLegacyMetered(line.price) {
			continue
		}
		if most := number(child(line.item, "billing_thresholds"), "usage_gte"); most > 0 && line.quantity.Cmp(big.NewRat(most, 1)) >= 0 {
			return true
		}
		amount += s.priceAmount(line.price, line.quantity)
	}
	most := number(child(sub, "billing_thresholds"), "amount_gte")
	return most > 0 && amount >= most && amount > 0
}

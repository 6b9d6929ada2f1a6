package stripesim

import (
	"maps"
	"math/big"
	"time"
)

func dayOf(unix int64) string { return time.Unix(unix, 0).UTC().Format("02 Jan 2006") }

// nextMoment is when something happens to a subscription by itself; 0: nothing ever.
func (s *Server) nextMoment(sub object) int64 {
	if ended(sub) {
		return 0
	}
	if text(sub, "status") == "incomplete" {
		return number(sub, "created") + incompleteAge
	}
	next := number(sub, "current_period_end")
	earlier := func(at int64) {
		if at > 0 && at < next {
			next = at
		}
	}
	earlier(number(sub, "cancel_at"))
	earlier(number(child(sub, "pause_collection"), "resumes_at"))
	if text(sub, "status") == "trialing" && !flag(sub, "_noticed") {
		earlier(max(number(sub, "trial_end")-trialNotice, number(sub, "created")))
	}
	return next
}

// subscriptionDue lets happen what has come to a subscription at this time.
func (s *Server) subscriptionDue(sub object) {
	now := s.now()
	switch cancelAt := number(sub, "cancel_at"); {
	case text(sub, "status") == "incomplete":
		s.expireIncomplete(sub)
	case cancelAt > 0 && cancelAt <= now:
		s.endSubscription(nil, sub, true)
	case number(sub, "current_period_end") <= now:
		s.renew(sub)
	default:
		if resumes := number(child(sub, "pause_collection"), "resumes_at"); resumes > 0 && resumes <= now {
			s.raise(nil, "customer.subscription.updated", sub, s.change("subscription", sub, object{"pause_collection": nil}))
		}
		if text(sub, "status") == "trialing" && number(sub, "trial_end")-trialNotice <= now {
			s.noticeTrial(sub)
		}
	}
	s.keepSubscription(sub)
}

func (s *Server) noticeTrial(sub object) {
	if flag(sub, "_noticed") {
		return
	}
	sub["_noticed"] = true
	s.keepSubscription(sub)
	s.raise(nil, "customer.subscription.trial_will_end", sub, nil)
}

// expireIncomplete ends a subscription whose first invoice was not paid in time.
func (s *Server) expireIncomplete(sub object) {
	now := s.now()
	previous := s.change("subscription", sub, object{"status": "incomplete_expired", "ended_at": now, "canceled_at": now})
	if invoice := s.store.get("invoice", text(sub, "latest_invoice")); text(invoice, "status") == "open" {
		s.endUnpaid(nil, invoice, "void", "voided_at", "invoice.voided")
		s.cancelIntent(nil, text(invoice, "payment_intent"))
	}
	s.raise(nil, "customer.subscription.updated", sub, previous)
}

// advanceLines are the items that are billed before their time: the licensed ones.
func (s *Server) advanceLines(sub object, start, end int64) []billedItem {
	var lines []billedItem
	for _, item := range s.itemsOf(sub) {
		if price := s.store.get("price", text(item, "price")); !isMetered(price) {
			lines = append(lines, billedItem{item: item, price: price, quantity: licensedQuantity(item), start: start, end: end})
		}
	}
	return lines
}

// meteredLines are the items that are billed after their time, up to its end. Usage
// during a trial is shown and costs nothing.
func (s *Server) meteredLines(sub object, end int64) []billedItem {
	var lines []billedItem
	for _, item := range s.itemsOf(sub) {
		price := s.store.get("price", text(item, "price"))
		if !isMetered(price) {
			continue
		}
		start := s.usageStart(sub, item)
		line := billedItem{item: item, price: price, quantity: s.meteredQuantity(item, start, end), start: start, end: end}
		if text(sub, "status") == "trialing" {
			s.free(&line)
			if !isLegacyMetered(price) {
				line.start, line.quantity = end, new(big.Rat) // a meter is read once more when the invoice is finalized
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// usageStart is when the usage begins that the next invoice bills for an item.
func (s *Server) usageStart(sub, item object) int64 {
	if open := s.openSummary(item); open != nil {
		return number(child(open, "period"), "start")
	}
	return max(number(sub, "current_period_start"), number(item, "created"))
}

// renew ends a period: its usage is frozen and billed together with what the next
// period costs in advance.
func (s *Server) renew(sub object) {
	start, end := number(sub, "current_period_start"), number(sub, "current_period_end")
	lines := s.meteredLines(sub, end)
	next := end
	if items := s.itemsOf(sub); len(items) > 0 {
		next = cadenceOf(s.store.get("price", text(items[0], "price"))).next(number(sub, "billing_cycle_anchor"), end)
	}
	changes := object{"current_period_start": end, "current_period_end": next}
	if text(sub, "status") == "trialing" && number(sub, "trial_end") <= end {
		changes["status"] = "active"
	}
	if flag(sub, "cancel_at_period_end") {
		changes["cancel_at"] = next
	}
	previous := s.change("subscription", sub, changes)
	lines = append(s.advanceLines(sub, end, next), lines...)
	invoice := s.draftInvoice(nil, invoiceDraft{
		customer: text(sub, "customer"), subscription: text(sub, "id"), reason: "subscription_cycle", currency: text(sub, "currency"),
		start: start, end: end, lines: lines, advance: s.advances(sub),
	})
	s.turnUsage(sub, end, invoice["id"])
	for name, v := range s.change("subscription", sub, object{"latest_invoice": invoice["id"]}) {
		previous[name] = v
	}
	s.keepSubscription(sub)
	s.raise(nil, "customer.subscription.updated", sub, previous)
}

// endSubscription cancels a subscription now. What was used is billed or forgotten.
func (s *Server) endSubscription(c *call, sub object, billed bool) {
	now := s.now()
	lines := s.meteredLines(sub, now)
	if billed && text(sub, "status") != "incomplete" && (len(lines) > 0 || s.hasPending(sub)) {
		reason := "subscription_cycle"
		if c != nil {
			reason = "subscription_update"
		}
		invoice := s.draftInvoice(c, invoiceDraft{
			customer: text(sub, "customer"), subscription: text(sub, "id"), reason: reason, currency: text(sub, "currency"),
			start: number(sub, "current_period_start"), end: now, lines: lines, advance: s.advances(sub),
		})
		s.turnUsage(sub, now, invoice["id"])
		s.change("subscription", sub, object{"latest_invoice": invoice["id"]})
	}
	s.closeUsage(sub)
	s.stopCollection(c, sub)
	changes := object{"status": "canceled", "ended_at": now}
	if sub["canceled_at"] == nil {
		changes["canceled_at"] = now
	}
	s.change("subscription", sub, changes)
	s.keepSubscription(sub)
	s.raise(c, "customer.subscription.deleted", sub, nil)
}

// stopCollection leaves a cancelled subscription's invoices unpaid: Stripe tries no
// payment that its customer would no longer expect.
func (s *Server) stopCollection(c *call, sub object) {
	for _, inv := range s.store.shelf("invoice").with("customer", text(sub, "customer")) {
		if text(inv, "subscription") == text(sub, "id") && text(inv, "status") == "open" {
			s.setAlarm("invoice", inv, 0)
			s.updateInvoice(c, inv, object{"auto_advance": false, "next_payment_attempt": nil})
		}
	}
}

// dropProrations removes the prorations that wait for an invoice of a subscription,
// which will have none any more.
func (s *Server) dropProrations(c *call, sub object) {
	for _, o := range s.store.shelf("invoiceitem").with("customer", text(sub, "customer")) {
		if o["invoice"] == nil && text(o, "subscription") == text(sub, "id") && flag(o, "proration") {
			s.store.delete("invoiceitem", text(o, "id"))
			s.raise(c, "invoiceitem.deleted", o, nil)
		}
	}
}

// hasPending tells that prorations of a subscription wait for an invoice.
func (s *Server) hasPending(sub object) bool {
	for _, o := range s.store.shelf("invoiceitem").with("customer", text(sub, "customer")) {
		if o["invoice"] == nil && text(o, "subscription") == text(sub, "id") {
			return true
		}
	}
	return false
}

func (s *Server) cancelSubscription(c *call, sub object) (object, *apiError) {
	if ended(sub) {
		return nil, missing("subscription", c.target(), "id")
	}
	details := maps.Clone(child(sub, "cancellation_details"))
	details["reason"] = "cancellation_requested"
	if given := c.child("cancellation_details"); given.values != nil {
		for _, name := range []string{"comment", "feedback"} {
			if given.has(name) {
				details[name] = given.orNull(name)
			}
		}
	}
	s.change("subscription", sub, object{"cancellation_details": details, "canceled_at": s.now()})
	if !flag(c.values, "invoice_now") {
		s.dropProrations(c, sub)
	}
	if flag(c.values, "prorate") && text(sub, "status") != "trialing" && text(sub, "status") != "incomplete" {
		for _, item := range s.itemsOf(sub) {
			s.prorate(c, sub, item, s.store.get("price", text(item, "price")), number(item, "quantity"), -1, s.now())
		}
	}
	s.endSubscription(c, sub, flag(c.values, "invoice_now"))
	return sub, nil
}

// cancelAllOf cancels the subscriptions of a customer who is deleted.
func (s *Server) cancelAllOf(c *call, customer object) {
	for _, sub := range s.store.shelf("subscription").with("customer", text(customer, "id")) {
		if !ended(sub) {
			s.onClockOf(sub, func() { s.endSubscription(c, sub, false) })
		}
	}
}

// subscriptionPaid follows the payment of a subscription's invoice, or its failure.
// Only the latest invoice counts.
func (s *Server) subscriptionPaid(c *call, invoice object, paid bool) {
	sub := s.store.get("subscription", text(invoice, "subscription"))
	if sub == nil || ended(sub) {
		return
	}
	if latest := s.store.get("invoice", text(sub, "latest_invoice")); latest != nil && text(latest, "id") != text(invoice, "id") && number(latest, "created") > number(invoice, "created") {
		return
	}
	status := text(sub, "status")
	switch {
	case paid && (status == "incomplete" || status == "past_due" || status == "unpaid"):
		status = "active"
	case !paid && (status == "active" || status == "past_due"):
		status = s.afterFailure(invoice)
	default:
		return
	}
	if status == "canceled" {
		details := maps.Clone(child(sub, "cancellation_details"))
		details["reason"] = "payment_failed"
		s.change("subscription", sub, object{"cancellation_details": details})
		s.endSubscription(c, sub, false)
		return
	}
	previous := s.change("subscription", sub, object{"status": status})
	s.keepSubscription(sub)
	if len(previous) > 0 && !flag(sub, "_making") {
		s.raise(c, "customer.subscription.updated", sub, previous)
	}
}

// afterFailure is what becomes of a subscription whose invoice could not be paid:
// past_due while it is tried again, and then what the account's settings say.
func (s *Server) afterFailure(invoice object) string {
	last := number(invoice, "attempt_count") > 1 && invoice["next_payment_attempt"] == nil
	if last && s.switches.AfterLastTry != "" {
		return s.switches.AfterLastTry
	}
	return "past_due"
}

// upcomingItems is what the next invoice of a subscription would hold as of now.
func (s *Server) upcomingItems(sub object) []billedItem {
	if ended(sub) {
		return nil
	}
	end := number(sub, "current_period_end")
	lines := s.meteredLines(sub, end)
	for i, line := range lines {
		if open := s.openSummary(line.item); open != nil {
			lines[i].quantity = s.visibleUsage(line.item)
		}
	}
	items := s.itemsOf(sub)
	if len(items) == 0 || (number(sub, "cancel_at") > 0 && number(sub, "cancel_at") <= end) {
		return lines
	}
	next := cadenceOf(s.store.get("price", text(items[0], "price"))).next(number(sub, "billing_cycle_anchor"), end)
	return append(s.advanceLines(sub, end, next), lines...)
}

package stripesim

import (
	"maps"
	"math/big"
	"slices"
	"strconv"
)

// alive refuses to change what has ended.
func alive(sub object) *apiError {
	if ended(sub) {
		return invalid("", "", "A canceled subscription can only update its cancellation_details and metadata.")
	}
	return nil
}

// lateUpdates are what a subscription takes that is not paid for yet.
var lateUpdates = []string{"metadata", "cancellation_details", "expand", "default_payment_method", "default_source", "payment_settings", "off_session"}

// update is what a call changes of a subscription, checked.
type update struct {
	plans    []itemPlan
	changes  object
	restart  int64 // the period begins anew now and ends then; 0: it goes on
	free     bool  // the new period is a trial
	prorate  string
	prorated int64 // the time up to which what was paid is used
}

func (s *Server) updateSubscription(c *call, sub object) (object, *apiError) {
	for name := range c.values {
		if name != "metadata" && name != "cancellation_details" && name != "expand" {
			if err := alive(sub); err != nil {
				return nil, err
			}
		}
		if text(sub, "status") == "incomplete" && !slices.Contains(lateUpdates, name) {
			return nil, invalid(name, "", "This subscription is incomplete. Until its first invoice is paid only its metadata and its payment method can be updated.")
		}
	}
	u, err := s.planUpdate(c, sub)
	if err != nil {
		return nil, err
	}
	itemsBefore := s.view(s.itemList(sub), nil)["data"]
	old := maps.Clone(sub)
	if u.prorate != "none" && text(sub, "status") != "trialing" {
		s.prorateItems(c, sub, u)
	}
	var arrears []billedItem
	if u.restart != 0 {
		arrears = s.meteredLines(sub, s.now())
	}
	for _, plan := range u.plans {
		switch {
		case plan.deleted:
			s.dropItem(plan.item)
		case plan.item == nil:
			s.keepItem(c, sub, plan)
		default:
			s.changeItem(c, sub, plan)
		}
	}
	s.change("subscription", sub, u.changes)
	if u.restart != 0 {
		s.restart(c, sub, u, arrears)
	} else if u.prorate == "always_invoice" && c.has("items") && len(s.pendingItems(text(sub, "customer"), text(sub, "id"), text(sub, "currency"))) > 0 {
		s.billNow(c, sub, "subscription_update", nil)
	}
	s.keepSubscription(sub)
	previous := object{}
	for name, v := range old {
		if name[0] != '_' && !equal(v, sub[name]) {
			previous[name] = v
		}
	}
	if now := s.view(s.itemList(sub), nil)["data"]; !equal(itemsBefore, now) {
		previous["items"] = object{"data": itemsBefore}
	}
	if len(previous) > 0 {
		s.raise(c, "customer.subscription.updated", sub, previous)
	}
	return sub, nil
}

// planUpdate checks all that a call asks for, and changes nothing.
func (s *Server) planUpdate(c *call, sub object) (*update, *apiError) {
	u := &update{changes: object{}, prorate: c.text("proration_behavior"), prorated: s.now()}
	method := text(sub, "collection_method")
	if c.has("collection_method") {
		method = c.text("collection_method")
	}
	if err := collection(c.params, method, c.has("days_until_due") || sub["days_until_due"] != nil); err != nil {
		return nil, err
	}
	if c.has("proration_date") {
		u.prorated = c.number("proration_date")
		if u.prorated < number(sub, "current_period_start") || u.prorated > number(sub, "current_period_end") {
			return nil, invalid("proration_date", "", "Cannot specify `proration_date` outside of the subscription's current period.")
		}
	}
	var err *apiError
	if u.plans, err = s.planItems(c.params, sub); err != nil {
		return nil, err
	}
	if err := currencyAgrees(params{}, sub, text(u.plans[slices.IndexFunc(u.plans, func(p itemPlan) bool { return !p.deleted })].price, "currency")); err != nil {
		return nil, err
	}
	if err := s.planPeriod(c, sub, u); err != nil {
		return nil, err
	}
	if err := s.planEnd(c, sub, u); err != nil {
		return nil, err
	}
	return u, s.planMembers(c, sub, u)
}

// planPeriod finds out whether the period begins anew: with a trial that ends or
// begins, by wish, or because the new prices have another interval.
func (s *Server) planPeriod(c *call, sub object, u *update) *apiError {
	now := s.now()
	kept := u.plans[slices.IndexFunc(u.plans, func(p itemPlan) bool { return !p.deleted })]
	rhythm := cadenceOf(kept.price)
	current := s.itemsOf(sub)
	if err := c.oneOf("billing_cycle_anchor", "", "now", "unchanged"); err != nil {
		return err
	}
	changed := len(current) > 0 && cadenceOf(s.store.get("price", text(current[0], "price"))) != rhythm
	trialing := text(sub, "status") == "trialing"
	switch trialEnd := c.text("trial_end"); {
	case trialEnd == "now" && !trialing:
		// there is no trial to end
	case trialEnd == "now":
		u.changes["status"], u.changes["trial_end"] = "active", now
		changed = true
	case trialEnd != "":
		at, err := s.future(c.params, "trial_end")
		if err != nil {
			return err
		}
		if at > now+trialDaysMax*86400 {
			return invalid("trial_end", "", "Invalid timestamp: can be no more than two years in the future.")
		}
		if text(sub, "status") != "active" && !trialing {
			return invalid("trial_end", "", "Only a subscription that is active or trialing can be given a trial; this one is %s.", text(sub, "status"))
		}
		if !trialing {
			u.changes["trial_start"] = now
		}
		u.changes["status"], u.changes["trial_end"], u.changes["billing_cycle_anchor"], u.changes["_noticed"] = "trialing", at, at, false
		u.restart, u.free = at, true
		return nil
	}
	if trialing && u.changes["status"] == nil {
		return nil // what is changed during a trial waits for its end
	}
	if changed || c.text("billing_cycle_anchor") == "now" {
		u.changes["billing_cycle_anchor"] = now
		u.restart = rhythm.next(now, now)
	}
	return nil
}

// planEnd sets or takes back the end of a subscription.
func (s *Server) planEnd(c *call, sub object, u *update) *apiError {
	if c.has("cancel_at") && flag(c.values, "cancel_at_period_end") {
		return invalid("cancel_at", "", "You may only specify one of these parameters: cancel_at, cancel_at_period_end.")
	}
	details := maps.Clone(child(sub, "cancellation_details"))
	if given := c.child("cancellation_details"); given.values != nil {
		for _, name := range []string{"comment", "feedback"} {
			if given.has(name) {
				details[name] = given.orNull(name)
			}
		}
	}
	switch {
	case flag(c.values, "cancel_at_period_end"):
		end := number(sub, "current_period_end")
		if u.restart != 0 {
			end = u.restart
		}
		u.changes["cancel_at_period_end"], u.changes["cancel_at"], u.changes["canceled_at"] = true, end, s.now()
		details["reason"] = "cancellation_requested"
	case c.text("cancel_at") != "":
		at, err := s.future(c.params, "cancel_at")
		if err != nil {
			return err
		}
		u.changes["cancel_at_period_end"], u.changes["cancel_at"], u.changes["canceled_at"] = false, at, s.now()
		details["reason"] = "cancellation_requested"
	case c.has("cancel_at") || c.has("cancel_at_period_end"):
		if !ended(sub) {
			u.changes["cancel_at_period_end"], u.changes["cancel_at"], u.changes["canceled_at"] = false, nil, nil
			details["reason"] = nil
		}
	}
	u.changes["cancellation_details"] = details
	return nil
}

// planMembers takes over what is simply set.
func (s *Server) planMembers(c *call, sub object, u *update) *apiError {
	for _, name := range []string{"collection_method", "days_until_due"} {
		if c.has(name) {
			u.changes[name] = c.values[name]
		}
	}
	for _, name := range []string{"default_payment_method", "description"} {
		if c.has(name) {
			u.changes[name] = c.orNull(name)
		}
	}
	if c.has("metadata") {
		u.changes["metadata"] = mergeMetadata(child(sub, "metadata"), c.metadata())
	}
	if c.has("billing_thresholds") {
		u.changes["billing_thresholds"] = thresholds(c.params)
	}
	if c.has("payment_settings") {
		u.changes["payment_settings"] = paymentSettings(c.params)
	}
	if !c.has("pause_collection") {
		return nil
	}
	pause := c.child("pause_collection")
	if pause.values == nil {
		u.changes["pause_collection"] = nil
		return nil
	}
	if err := pause.oneOf("behavior", "keep_as_draft", "mark_uncollectible", "void"); err != nil {
		return invalid("pause_collection[behavior]", "", "Invalid pause_collection[behavior]: must be one of keep_as_draft, mark_uncollectible, or void")
	}
	o := object{"behavior": pause.text("behavior"), "resumes_at": nil}
	if pause.has("resumes_at") {
		if pause.number("resumes_at") <= s.now() {
			return invalid("pause_collection[resumes_at]", "", "Invalid timestamp: must be an integer Unix timestamp in the future.")
		}
		o["resumes_at"] = pause.number("resumes_at")
	}
	u.changes["pause_collection"] = o
	return nil
}

// restart begins a new period now and bills it at once.
func (s *Server) restart(c *call, sub object, u *update, arrears []billedItem) {
	now := s.now()
	changes := object{"current_period_start": now, "current_period_end": u.restart}
	if flag(sub, "cancel_at_period_end") {
		changes["cancel_at"] = u.restart
	}
	s.change("subscription", sub, changes)
	lines := s.advanceLines(sub, now, u.restart)
	for i := range lines {
		if u.free {
			s.free(&lines[i])
		}
	}
	for _, line := range arrears {
		if s.store.get("subscription_item", text(line.item, "id")) != nil {
			lines = append(lines, line)
		}
	}
	invoice := s.billNow(c, sub, "subscription_update", lines)
	s.turnUsage(sub, now, invoice["id"])
}

// billNow makes an invoice that is paid in the same moment, with the customer's
// pending invoice items on it.
func (s *Server) billNow(c *call, sub object, reason string, lines []billedItem) object {
	automatic := text(sub, "collection_method") == "charge_automatically"
	invoice := s.draftInvoice(c, invoiceDraft{
		customer: text(sub, "customer"), subscription: text(sub, "id"), reason: reason, currency: text(sub, "currency"),
		start: number(sub, "current_period_start"), end: s.now(), lines: lines, advance: s.advances(sub), atOnce: automatic && s.advances(sub),
	})
	s.change("subscription", sub, object{"latest_invoice": invoice["id"]})
	return invoice
}

// advances tells that a subscription's invoices are finalized by themselves: not
// while collection is paused or given up.
func (s *Server) advances(sub object) bool {
	return sub["pause_collection"] == nil && text(sub, "status") != "unpaid"
}

// prorateItems puts on the next invoice what was paid for and is not used, and what
// is used and not paid for. Metered items are paid for by usage anyhow.
func (s *Server) prorateItems(c *call, sub object, u *update) {
	if u.free || u.restart != 0 {
		// a new period is billed in full: only what was paid before is given back
		for _, item := range s.itemsOf(sub) {
			s.prorate(c, sub, item, s.store.get("price", text(item, "price")), number(item, "quantity"), -1, u.prorated)
		}
		return
	}
	for _, plan := range u.plans {
		var before object
		if plan.item != nil {
			before = s.store.get("price", text(plan.item, "price"))
		}
		same := before != nil && !plan.deleted && text(before, "id") == text(plan.price, "id") && number(plan.item, "quantity") == plan.quantity
		if same {
			continue
		}
		if before != nil {
			s.prorate(c, sub, plan.item, before, number(plan.item, "quantity"), -1, u.prorated)
		}
		if !plan.deleted {
			s.prorate(c, sub, plan.item, plan.price, plan.quantity, 1, u.prorated)
		}
	}
}

// prorate makes the invoice item for the rest of the period of one licensed item.
func (s *Server) prorate(c *call, sub, item, price object, quantity, sign, from int64) {
	start, end := number(sub, "current_period_start"), number(sub, "current_period_end")
	if isMetered(price) || quantity == 0 || end <= from {
		return
	}
	whole := s.exactAmount(price, big.NewRat(quantity, 1))
	amount := roundHalfUp(whole.Mul(whole, big.NewRat(sign*(end-from), max(end-start, 1))))
	what := map[int64]string{-1: "Unused time on ", 1: "Remaining time on "}[sign]
	if quantity != 1 {
		what += strconv.FormatInt(quantity, 10) + " × "
	}
	s.makeInvoiceItem(c, sub, item, price, billedItem{
		quantity: big.NewRat(quantity, 1), amount: big.NewInt(amount), start: from, end: end, proration: true,
		description: what + text(s.store.get("product", text(price, "product")), "name") + " after " + dayOf(from),
	})
}

// makeInvoiceItem makes what waits for the next invoice of a subscription.
func (s *Server) makeInvoiceItem(c *call, sub, item, price object, b billedItem) {
	amount, quantity := b.amount.Int64(), b.quantity.Num().Int64()
	if b.description == "" {
		b.description = text(s.store.get("product", text(price, "product")), "name")
	}
	o := s.newInvoiceItem(sub["customer"], object{
		"amount": amount, "currency": price["currency"], "description": b.description, "discountable": !b.proration, "period": object{"start": b.start, "end": b.end},
		"price": s.view(price, nil), "proration": b.proration, "quantity": quantity, "subscription": sub["id"], "test_clock": sub["test_clock"],
		"unit_amount": nil, "unit_amount_decimal": nil,
	})
	if each := big.NewRat(amount, max(quantity, 1)); each.IsInt() {
		o["unit_amount"], o["unit_amount_decimal"] = each.Num().Int64(), each.Num().String()
	} else {
		o["unit_amount_decimal"] = decimalText(each)
	}
	if item != nil {
		o["subscription_item"] = item["id"]
	}
	s.store.put("invoiceitem", o)
	s.raise(c, "invoiceitem.created", o, nil)
}

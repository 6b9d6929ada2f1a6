package stripesim

import (
	"math/big"
	"slices"
	"strconv"
)

// Bounds of subscriptions.
const (
	subscriptionItemsMax = 20
	trialDaysMax         = 730
	incompleteAge        = 23 * 3600     // a first invoice that stays unpaid so long ends its subscription
	trialNotice          = 3 * 24 * 3600 // customer.subscription.trial_will_end comes so long before
)

var priceDataParams = spec{
	"currency": "string", "product": "string", "unit_amount": "int", "unit_amount_decimal": "string", "tax_behavior": "string",
	"recurring": spec{"interval": "string", "interval_count": "int"},
}

var itemThresholdParams = spec{"usage_gte": "int"}

// subscriptionParams are those that both creation and update take.
var subscriptionParams = spec{
	"cancel_at": "string", "cancel_at_period_end": "bool", "collection_method": "string", "days_until_due": "int", "default_payment_method": "string",
	"description": "string", "metadata": "map", "payment_behavior": "string", "proration_behavior": "string", "off_session": "bool",
	"billing_cycle_anchor": "string", "trial_end": "string", "trial_from_plan": "bool",
	"billing_thresholds": spec{"amount_gte": "int", "reset_billing_cycle_anchor": "bool"},
	"payment_settings":   spec{"save_default_payment_method": "string", "payment_method_types": listOf{"string"}},
}

func (s *Server) routeSubscriptions() {
	s.agenda.do["subscription"] = s.subscriptionDue
	create := spec{
		"customer": "string", "currency": "string", "trial_period_days": "int",
		"items": listOf{spec{"price": "string", "price_data": priceDataParams, "quantity": "int", "metadata": "map", "billing_thresholds": itemThresholdParams}},
	}
	update := spec{
		"proration_date": "int", "cancellation_details": spec{"comment": "string", "feedback": "string"},
		"pause_collection": spec{"behavior": "string", "resumes_at": "int"},
		"items": listOf{spec{
			"id": "string", "price": "string", "price_data": priceDataParams, "quantity": "int", "metadata": "map", "billing_thresholds": itemThresholdParams,
			"deleted": "bool", "clear_usage": "bool",
		}},
	}
	for name, kind := range subscriptionParams {
		create[name], update[name] = kind, kind
	}
	s.handle("POST /v1/subscriptions", create, func(c *call) (object, *apiError) {
		return s.onCustomerClock(c, func(customer object) (object, *apiError) { return s.makeSubscription(c, c.params, customer, false) })
	})
	s.handle("GET /v1/subscriptions/{id}", nil, func(c *call) (object, *apiError) { return s.find("subscription", c.target(), "id") })
	s.handle("POST /v1/subscriptions/{id}", update, func(c *call) (object, *apiError) {
		return s.onSubscription(c.target(), "id", func(sub object) (object, *apiError) { return s.updateSubscription(c, sub) })
	})
	s.handle("DELETE /v1/subscriptions/{id}", spec{
		"invoice_now": "bool", "prorate": "bool", "cancellation_details": spec{"comment": "string", "feedback": "string"},
	}, func(c *call) (object, *apiError) {
		return s.onSubscription(c.target(), "id", func(sub object) (object, *apiError) { return s.cancelSubscription(c, sub) })
	})
	s.routeSubscriptionLists()
}

func (s *Server) routeSubscriptionLists() {
	filters := spec{
		"customer": "string", "price": "string", "status": "string", "collection_method": "string", "created": createdSpec,
		"current_period_start": createdSpec, "current_period_end": createdSpec, "test_clock": "string",
	}
	s.handle("GET /v1/subscriptions", listSpec(filters), func(c *call) (object, *apiError) {
		known := []string{"", "all", "ended", "incomplete", "incomplete_expired", "trialing", "active", "past_due", "canceled", "unpaid", "paused"}
		if err := c.oneOf("status", known...); err != nil {
			return nil, err
		}
		return s.list(c, "subscription", func(o object) bool { return s.subscriptionListed(c, o) })
	})
}

// onCustomerClock runs what makes something for the customer that a call names, at
// the time of the customer's clock.
func (s *Server) onCustomerClock(c *call, do func(customer object) (object, *apiError)) (object, *apiError) {
	if err := c.require("customer"); err != nil {
		return nil, err
	}
	customer, err := s.find("customer", c.text("customer"), "customer")
	if err == nil && flag(customer, "deleted") {
		err = missing("customer", c.text("customer"), "customer")
	}
	if err != nil {
		return nil, err
	}
	return s.onClock(customer, func() (object, *apiError) { return do(customer) })
}

// onSubscription runs what changes a subscription, at the time of its clock.
func (s *Server) onSubscription(id, param string, do func(sub object) (object, *apiError)) (object, *apiError) {
	sub, err := s.find("subscription", id, param)
	if err != nil {
		return nil, err
	}
	return s.onClock(sub, func() (object, *apiError) { return do(sub) })
}

func (s *Server) subscriptionListed(c *call, o object) bool {
	status := text(o, "status")
	switch asked := c.text("status"); asked {
	case "":
		if status == "canceled" {
			return false
		}
	case "all":
	case "ended":
		if !ended(o) {
			return false
		}
	default:
		if status != asked {
			return false
		}
	}
	for _, name := range []string{"customer", "collection_method", "test_clock"} {
		if c.has(name) && text(o, name) != c.text(name) {
			return false
		}
	}
	if text(o, "test_clock") != "" && !c.has("test_clock") && !c.has("customer") {
		return false // what lives on a test clock is shown only to those who ask for it
	}
	if c.has("price") && !slices.ContainsFunc(s.itemsOf(o), func(item object) bool { return text(item, "price") == c.text("price") }) {
		return false
	}
	return inRange(c, number(o, "created")) && within(c, "current_period_start", o) && within(c, "current_period_end", o)
}

// within is inRange for a member of its own name.
func within(c *call, name string, o object) bool {
	return inRange(&call{params: params{object{"created": c.values[name]}}}, number(o, name))
}

// ended tells that a subscription has come to its end.
func ended(sub object) bool {
	status := text(sub, "status")
	return status == "canceled" || status == "incomplete_expired"
}

// itemsOf gives the items of a subscription in the order of their making.
func (s *Server) itemsOf(sub object) []object {
	return s.store.shelf("subscription_item").with("subscription", text(sub, "id"))
}

// itemList is the list of items that a subscription shows.
func (s *Server) itemList(sub object) object {
	items := []any{}
	for _, item := range s.itemsOf(sub) {
		items = append(items, item)
	}
	return listObject("/v1/subscription_items?subscription="+text(sub, "id"), items, false)
}

// moment reads a time: seconds, "now", or nothing, which gives 0.
func (s *Server) moment(p params, name string) (int64, *apiError) {
	switch given := p.text(name); given {
	case "", "unchanged":
		return 0, nil
	case "now":
		return s.now(), nil
	default:
		n, err := strconv.ParseInt(given, 10, 64)
		if err != nil {
			return 0, invalid(name, "parameter_invalid_integer", "Invalid integer: %s", given)
		}
		return n, nil
	}
}

// future reads a time that must not have come yet.
func (s *Server) future(p params, name string) (int64, *apiError) {
	at, err := s.moment(p, name)
	if err == nil && at != 0 && at <= s.now() {
		err = invalid(name, "", "Invalid timestamp: must be an integer Unix timestamp in the future.")
	}
	return at, err
}

// terms are when a new subscription is billed.
type terms struct {
	start, end, anchor, trialEnd, cancelAt int64
}

func (s *Server) termsOf(p params, price object) (t terms, err *apiError) {
	t.start = s.now()
	if p.text("trial_end") != "now" {
		if t.trialEnd, err = s.future(p, "trial_end"); err != nil {
			return t, err
		}
	}
	if p.has("trial_period_days") {
		days := p.number("trial_period_days")
		switch {
		case p.has("trial_end"):
			return t, invalid("trial_period_days", "", "You may only specify one of these parameters: trial_end, trial_period_days.")
		case days < 1 || days > trialDaysMax:
			return t, invalid("trial_period_days", "parameter_invalid_integer", "This value must be between 1 and %d.", trialDaysMax)
		}
		t.trialEnd = t.start + days*86400
	}
	if t.trialEnd > t.start+trialDaysMax*86400 {
		return t, invalid("trial_end", "", "Invalid timestamp: can be no more than two years in the future.")
	}
	if t.cancelAt, err = s.future(p, "cancel_at"); err != nil {
		return t, err
	}
	if t.anchor, err = s.future(p, "billing_cycle_anchor"); err != nil {
		return t, err
	}
	rhythm := cadenceOf(price)
	first := max(t.start, t.trialEnd)
	if latest := rhythm.boundary(first, 1); t.anchor > latest {
		return t, invalid("billing_cycle_anchor", "", "billing_cycle_anchor cannot be later than next natural billing date (%d) for plan", latest)
	}
	switch {
	case t.trialEnd > 0:
		t.anchor, t.end = max(t.anchor, t.trialEnd), t.trialEnd
	case t.anchor > 0:
		t.end = t.anchor
	default:
		t.anchor, t.end = t.start, rhythm.next(t.start, t.start)
	}
	return t, nil
}

// collection checks how a subscription's invoices are to be paid.
func collection(p params, method string, due bool) *apiError {
	if method != "charge_automatically" && method != "send_invoice" {
		return invalid("collection_method", "", "Invalid collection_method: must be one of charge_automatically or send_invoice")
	}
	if method == "send_invoice" && !due {
		return invalid("days_until_due", "parameter_missing", "You must pass `days_until_due` when `collection_method` is `send_invoice`.")
	}
	if p.has("days_until_due") && (method == "charge_automatically" || p.number("days_until_due") < 0) {
		return invalid("days_until_due", "", "`days_until_due` takes a number that is not negative, and only with `collection_method=send_invoice`.")
	}
	if err := p.oneOf("proration_behavior", "", "create_prorations", "none", "always_invoice"); err != nil {
		return err
	}
	if t := p.child("billing_thresholds"); t.has("amount_gte") && t.number("amount_gte") < 1 {
		return invalid("billing_thresholds[amount_gte]", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
	}
	return p.oneOf("payment_behavior", "", "allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")
}

// thresholds gives billing thresholds as a subscription shows them.
func thresholds(p params) any {
	t := p.child("billing_thresholds")
	if t.values == nil {
		return nil
	}
	o := object{"amount_gte": nil, "reset_billing_cycle_anchor": nil}
	for name := range o {
		if t.has(name) {
			o[name] = t.values[name]
		}
	}
	return o
}

// makeSubscription makes a subscription with its items and its first invoice. One
// that is shown early is announced before its first invoice is paid, as checkout
// does it.
func (s *Server) makeSubscription(c *call, p params, customer object, early bool) (object, *apiError) {
	planned, err := s.planItems(p, nil)
	if err != nil {
		return nil, err
	}
	method := "charge_automatically"
	if p.has("collection_method") {
		method = p.text("collection_method")
	}
	if err := collection(p, method, p.has("days_until_due")); err != nil {
		return nil, err
	}
	if p.text("payment_behavior") == "pending_if_incomplete" {
		return nil, invalid("payment_behavior", "", "`pending_if_incomplete` is only for updates of a subscription.")
	}
	currency := text(planned[0].price, "currency")
	if err := currencyAgrees(p, customer, currency); err != nil {
		return nil, err
	}
	if err := s.clockHasRoom(customer); err != nil {
		return nil, err
	}
	t, err := s.termsOf(p, planned[0].price)
	if err != nil {
		return nil, err
	}
	sub := s.newSubscription(p, customer, t)
	sub["currency"], sub["collection_method"] = currency, method
	s.store.put("subscription", sub)
	for _, plan := range planned {
		s.keepItem(c, sub, plan)
	}
	if err := s.firstInvoice(c, p, sub, early); err != nil {
		return nil, err
	}
	if customer["currency"] == nil {
		s.raise(c, "customer.updated", customer, s.change("customer", customer, object{"currency": currency}))
	}
	return sub, nil
}

func currencyAgrees(p params, customer object, currency string) *apiError {
	if p.has("currency") && p.text("currency") != currency {
		return invalid("currency", "", "The price specified only supports `%s`. This doesn't match the expected currency: `%s`.", currency, p.text("currency"))
	}
	if had := text(customer, "currency"); had != "" && had != currency {
		return invalid("", "", "You cannot combine currencies on a single customer. This customer has had a subscription, coupon, or invoice item with currency %s", had)
	}
	return nil
}

func (s *Server) newSubscription(p params, customer object, t terms) object {
	sub := object{
		"id": s.newID("sub"), "object": "subscription", "created": s.now(), "livemode": false, "customer": customer["id"], "metadata": mergeMetadata(nil, p.metadata()),
		"status": "incomplete", "start_date": t.start, "current_period_start": t.start, "current_period_end": t.end, "billing_cycle_anchor": t.anchor,
		"cancel_at": nil, "cancel_at_period_end": false, "canceled_at": nil, "ended_at": nil, "trial_start": nil, "trial_end": nil,
		"cancellation_details": object{"comment": nil, "feedback": nil, "reason": nil}, "days_until_due": p.values["days_until_due"],
		"default_payment_method": p.orNull("default_payment_method"), "description": p.orNull("description"), "billing_thresholds": thresholds(p),
		"latest_invoice": nil, "pause_collection": nil, "test_clock": customer["test_clock"],
		"application": nil, "application_fee_percent": nil, "automatic_tax": object{"enabled": false, "liability": nil}, "billing_cycle_anchor_config": nil,
		"default_source": nil, "default_tax_rates": []any{}, "discount": nil, "discounts": []any{}, "next_pending_invoice_item_invoice": nil,
		"on_behalf_of": nil, "pending_invoice_item_interval": nil, "pending_setup_intent": nil, "pending_update": nil, "schedule": nil, "transfer_data": nil,
		"payment_settings": paymentSettings(p),
		"trial_settings":   object{"end_behavior": object{"missing_payment_method": "create_invoice"}},
	}
	if t.trialEnd > 0 {
		sub["status"], sub["trial_start"], sub["trial_end"] = "trialing", t.start, t.trialEnd
	}
	if t.cancelAt > 0 {
		sub["cancel_at"], sub["canceled_at"] = t.cancelAt, t.start
	}
	if flag(p.values, "cancel_at_period_end") {
		sub["cancel_at_period_end"], sub["cancel_at"], sub["canceled_at"] = true, t.end, t.start
	}
	if sub["canceled_at"] != nil {
		sub["cancellation_details"] = object{"comment": nil, "feedback": nil, "reason": "cancellation_requested"}
	}
	return sub
}

func paymentSettings(p params) object {
	given := p.child("payment_settings")
	o := object{"payment_method_options": nil, "payment_method_types": nil, "save_default_payment_method": "off"}
	if types := given.list("payment_method_types"); len(types) > 0 {
		o["payment_method_types"] = types
	}
	if save := given.text("save_default_payment_method"); save != "" {
		o["save_default_payment_method"] = save
	}
	return o
}

// firstInvoice bills a new subscription and announces it. Where the call insists on
// being paid, a subscription that is not paid is taken back.
func (s *Server) firstInvoice(c *call, p params, sub object, early bool) *apiError {
	automatic := text(sub, "collection_method") == "charge_automatically"
	had := s.store.get("customer", text(sub, "customer"))["currency"]
	if !automatic && text(sub, "status") == "incomplete" {
		sub["status"] = "active"
	}
	sub["_making"] = true // what the payment makes of its status is told here
	before := sub["status"]
	if early {
		s.keepSubscription(sub)
		s.raise(c, "customer.subscription.created", sub, nil)
	}
	for _, raw := range p.list("_once") {
		once := raw.(object)
		price := s.store.get("price", text(once, "price"))
		amount := s.priceAmount(price, licensedQuantity(once))
		s.makeInvoiceItem(c, sub, nil, price, billedItem{quantity: licensedQuantity(once), amount: big.NewInt(amount), start: s.now(), end: s.now()})
	}
	invoice := s.draftInvoice(c, invoiceDraft{
		customer: text(sub, "customer"), subscription: text(sub, "id"), reason: "subscription_create", currency: text(sub, "currency"),
		start: number(sub, "start_date"), end: number(sub, "start_date"), lines: s.firstLines(p, sub),
		advance: true, atOnce: automatic, unpaid: p.text("payment_behavior") == "default_incomplete",
	})
	delete(sub, "_making")
	paid := text(invoice, "status") == "paid"
	if p.text("payment_behavior") == "error_if_incomplete" && automatic && !paid && text(sub, "status") != "trialing" {
		s.takeBack(c, sub, invoice, had)
		return &apiError{status: 402, typ: "card_error", code: "card_declined", message: "Your card was declined.", stored: true, extra: object{"decline_code": "generic_decline"}}
	}
	previous := s.change("subscription", sub, object{"latest_invoice": invoice["id"]})
	s.keepSubscription(sub)
	if early {
		if before != sub["status"] {
			previous["status"] = before
		}
		s.raise(c, "customer.subscription.updated", sub, previous)
	} else {
		s.raise(c, "customer.subscription.created", sub, nil)
	}
	if number(sub, "trial_end") > 0 && number(sub, "trial_end") <= s.now()+trialNotice {
		s.noticeTrial(sub)
	}
	return nil
}

// firstLines are the first invoice's: what is paid in advance, nothing during a
// trial, and a part up to an anchor that comes before a whole period has passed.
func (s *Server) firstLines(p params, sub object) []billedItem {
	start, end, anchor := number(sub, "current_period_start"), number(sub, "current_period_end"), number(sub, "billing_cycle_anchor")
	var lines []billedItem
	for _, item := range s.itemsOf(sub) {
		price := s.store.get("price", text(item, "price"))
		line := billedItem{item: item, price: price, quantity: licensedQuantity(item), start: start, end: end}
		switch {
		case isMetered(price):
			line.amount, line.end = new(big.Int), start
		case text(sub, "status") == "trialing":
			s.free(&line)
		case end == anchor && p.text("proration_behavior") == "none":
			line.amount = new(big.Int)
		case end == anchor:
			part := s.exactAmount(price, line.quantity)
			part.Mul(part, big.NewRat(end-start, end-cadenceOf(price).before(anchor, anchor)))
			line.amount, line.proration = big.NewInt(roundHalfUp(part)), true
		}
		lines = append(lines, line)
	}
	return lines
}

// free makes a line that a trial covers.
func (s *Server) free(line *billedItem) {
	line.amount = new(big.Int)
	line.description = "Trial period for " + text(s.store.get("product", text(line.price, "product")), "name")
}

// keepSubscription keeps a subscription with the alarm for what happens to it next.
func (s *Server) keepSubscription(sub object) {
	s.setAlarm("subscription", sub, s.nextMoment(sub))
	s.store.put("subscription", sub)
}

package oracle

import (
	"strconv"
	"strings"
)

// checkoutRules are those of checkout sessions and of what buyers do with them.
var checkoutRules = []rule{
	{"POST /v1/checkout/sessions", sessionVerdict, func(o *oracle, e *entry) {
		total, currency := o.lineItems(e)
		members := map[string]any{
			"status": "open", "payment_status": "unpaid", "amount_total": total, "amount_subtotal": total, "currency": currency, "payment_intent": nil,
			"metadata": metadataOf(e.Form, nil), "expires_at": o.now.Unix() + 86400,
		}
		setTexts(e, members, true, "customer", "client_reference_id")
		if e.Form.Has("expires_at") {
			members["expires_at"] = e.number("expires_at")
		}
		t := o.make("checkout.session", e.id(), members)
		o.compare("the new session", t, e.answer)
	}},
	getRule("checkout.session", "/v1/checkout/sessions/"),
	{"POST /v1/checkout/sessions/{}/expire", func(o *oracle, e *entry) verdict {
		t := o.get("checkout.session", e.target("/v1/checkout/sessions/"))
		return accept(t != nil && t.text("status") == "open" && !e.bad(nil))
	}, func(o *oracle, e *entry) { o.expire(e, o.get("checkout.session", e.target("/v1/checkout/sessions/"))) }},
	listRule("checkout.session"),
	{control + " /v1/checkout/sessions/{}/pay", func(o *oracle, e *entry) verdict {
		t := o.get("checkout.session", e.target("/v1/checkout/sessions/"))
		if outcome := e.text("outcome"); t == nil || outcome == "nonsense" {
			return refused
		} else if strings.HasPrefix(outcome, "async_") {
			if t.is("_settled") {
				return either
			}
			return accept(t.text("status") == "complete" && t.text("payment_status") == "unpaid")
		}
		return accept(t.text("status") == "open")
	}, paid},
}

func sessionVerdict(o *oracle, e *entry) verdict {
	if e.bad([]string{"mode", "line_items"}, "expires_at") || e.text("mode") != "payment" {
		return refused
	}
	if c := e.text("customer"); c != "" && o.alive("customer", c) == nil {
		return refused
	}
	currency := ""
	for i := range items(e) {
		at := "line_items[" + strconv.Itoa(i) + "]"
		if q := e.text(at + "[quantity]"); q != "" {
			if n, err := strconv.ParseInt(q, 10, 64); err != nil || n < 1 {
				return refused
			}
		}
		price := o.get("price", e.text(at+"[price]"))
		if price == nil || !price.is("active") || price.text("type") != "one_time" || (currency != "" && currency != price.text("currency")) {
			return refused
		}
		currency = price.text("currency")
	}
	return accepted
}

// items counts the line items of a call.
func items(e *entry) int {
	n := 0
	for ; strings.Contains(inWords(e.Form), "line_items["+strconv.Itoa(n)+"]"); n++ {
	}
	return n
}

func (o *oracle) lineItems(e *entry) (total int64, currency string) {
	for i := range items(e) {
		at := "line_items[" + strconv.Itoa(i) + "]"
		price := o.get("price", e.text(at+"[price]"))
		quantity := int64(1)
		if e.Form.Has(at + "[quantity]") {
			quantity = e.number(at + "[quantity]")
		}
		total += price.number("unit_amount") * quantity
		currency = price.text("currency")
	}
	return total, currency
}

// expire ends an open session.
func (o *oracle) expire(e *entry, t *thing) {
	t.members["status"] = "expired"
	o.raised(e, "checkout.session.expired", t)
}

// fallDue lets sessions expire whose time has come.
func (o *oracle) fallDue() {
	now := o.now
	for _, t := range o.things["checkout.session"] {
		if due := t.number("expires_at"); t.text("status") == "open" && due <= now.Unix() {
			o.now = unixTime(due)
			o.expire(nil, t)
			o.now = now
		}
	}
}

// paid enters what a buyer has done. The log says with which intent and charge.
func paid(o *oracle, e *entry) {
	t, outcome := o.get("checkout.session", e.target("/v1/checkout/sessions/")), e.text("outcome")
	switch {
	case outcome == "expired":
		o.expire(e, t)
		return
	case strings.HasPrefix(outcome, "async_"):
		o.settled(e, t, outcome == "async_succeeded")
		return
	case t.number("amount_total") == 0:
		o.completed(e, t, "no_payment_required")
		return
	}
	intent := o.get("payment_intent", t.text("payment_intent"))
	if intent == nil {
		intent = o.newIntent(e, e.id(), map[string]any{
			"amount": t.number("amount_total"), "currency": t.text("currency"), "customer": t.members["customer"], "metadata": map[string]any{},
		})
		t.members["payment_intent"] = intent.id
	}
	switch outcome {
	case "card_declined":
		o.raised(e, "payment_intent.payment_failed", intent)
	case "unpaid":
		intent.members["status"] = "processing"
		o.raised(e, "payment_intent.processing", intent)
		o.completed(e, t, "unpaid")
	default:
		o.charged(e, intent, textOf(e.answer, "latest_charge"))
		o.completed(e, t, "paid")
	}
}

func (o *oracle) completed(e *entry, t *thing, payment string) {
	t.members["status"], t.members["payment_status"] = "complete", payment
	o.raised(e, "checkout.session.completed", t)
}

func (o *oracle) settled(e *entry, t *thing, succeeded bool) {
	intent := o.get("payment_intent", t.text("payment_intent"))
	t.members["_settled"] = true
	if !succeeded {
		intent.members["status"] = "requires_payment_method"
		o.raised(e, "payment_intent.payment_failed", intent)
		o.raised(e, "checkout.session.async_payment_failed", t)
		return
	}
	o.charged(e, intent, textOf(e.answer, "latest_charge"))
	t.members["payment_status"] = "paid"
	o.raised(e, "checkout.session.async_payment_succeeded", t)
}

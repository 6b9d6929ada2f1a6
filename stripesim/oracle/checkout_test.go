package oracle

import (
	"math/big"
	"net/url"
	"strconv"
	"strings"
)

// checkoutRules are those of checkout sessions and of what buyers do with them.
var checkoutRules = []rule{
	{"POST /v1/checkout/sessions", sessionVerdict, func(o *oracle, e *entry) {
		total, currency := o.lineItems(e)
		members := map[string]any{
			"mode": "payment", "status": "open", "payment_status": "unpaid", "amount_total": total, "amount_subtotal": total, "currency": currency, "payment_intent": nil,
			"metadata": metadataOf(e.Form, nil), "expires_at": o.now.Unix() + 86400, "payment_method_types": []any{"card"},
			"_metadata": metadataOf(below(e, "payment_intent_data"), nil), "_capture": e.text("payment_intent_data[capture_method]"),
		}
		setTexts(e, members, true, "customer", "client_reference_id")
		if e.Form.Has("expires_at") {
			members["expires_at"] = e.number("expires_at")
		}
		t := o.make("checkout.session", e.id(), members)
		o.plan(t, t.number("expires_at"), func() { o.expire(nil, t) })
		o.compare("the new session", t, e.answer)
	}},
	getRule("checkout.session", "/v1/checkout/sessions/"),
	{"POST /v1/checkout/sessions/{}/expire", func(o *oracle, e *entry) verdict {
		t := sessionOf(o, e)
		return accept(t != nil && t.text("status") == "open" && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.expire(e, sessionOf(o, e))
		o.compare("the expired session", sessionOf(o, e), e.answer)
	}},
	listRule("checkout.session"),
	{control + " /v1/checkout/sessions/{}/pay", func(o *oracle, e *entry) verdict {
		t := sessionOf(o, e)
		if t == nil {
			return refused
		}
		switch e.text("outcome") {
		case "async_succeeded", "async_failed":
			intent := t.of("payment_intent")
			return accept(t.text("status") == "complete" && t.text("payment_status") == "unpaid" && intent.text("status") == "processing")
		case "", "paid", "unpaid", "card_declined", "expired":
			return accept(t.text("status") == "open")
		}
		return refused
	}, paid},
}

func sessionOf(o *oracle, e *entry) *thing {
	return o.get("checkout.session", e.target("/v1/checkout/sessions/"))
}

// below gives the parameters under a name as if they were a call's own.
func below(e *entry, name string) url.Values {
	inner := url.Values{}
	for full, v := range e.Form {
		if rest, ok := strings.CutPrefix(full, name+"["); ok {
			head, tail, _ := strings.Cut(rest, "]")
			inner[head+tail] = v
		}
	}
	return inner
}

func sessionVerdict(o *oracle, e *entry) verdict {
	if e.bad([]string{"mode", "line_items", "success_url"}, "expires_at") || e.text("mode") != "payment" {
		return refused
	}
	if c := e.text("customer"); c != "" && (o.alive("customer", c) == nil || e.Form.Has("customer_email")) {
		return refused
	}
	if after := e.number("expires_at") - o.now.Unix(); e.Form.Has("expires_at") && (after < 1800 || after > 86400) {
		return refused
	}
	currency, total := "", new(big.Int)
	for i := range items(e) {
		at := "line_items[" + strconv.Itoa(i) + "]"
		quantity := int64(1)
		if q := e.text(at + "[quantity]"); q != "" {
			n, err := strconv.ParseInt(q, 10, 64)
			if err != nil || n < 1 || n > 999_999 {
				return refused
			}
			quantity = n
		}
		price := o.get("price", e.text(at+"[price]"))
		if price == nil || !price.is("active") || price.text("type") != "one_time" || (currency != "" && currency != price.text("currency")) {
			return refused
		}
		currency = price.text("currency")
		total.Add(total, new(big.Int).Mul(big.NewInt(price.number("unit_amount")), big.NewInt(quantity)))
	}
	return accept(total.Cmp(big.NewInt(99_999_999)) <= 0)
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

// expire ends an open session, and what its buyer had begun.
func (o *oracle) expire(e *entry, t *thing) {
	o.forget(t)
	t.members["status"] = "expired"
	if intent := t.of("payment_intent"); intent != nil && intent.text("status") == "requires_payment_method" {
		o.cancelled(e, intent, "automatic")
	}
	o.raised(e, "checkout.session.expired", t)
}

// paid enters what a buyer has done.
func paid(o *oracle, e *entry) {
	t, outcome := sessionOf(o, e), e.text("outcome")
	switch {
	case outcome == "expired":
		o.expire(e, t)
		return
	case strings.HasPrefix(outcome, "async_"):
		o.settled(e, t.of("payment_intent"), outcome == "async_succeeded")
		return
	case t.number("amount_total") == 0:
		o.completed(e, t, "no_payment_required")
		return
	}
	intent := t.of("payment_intent")
	if intent == nil {
		members := map[string]any{
			"amount": t.number("amount_total"), "currency": t.text("currency"), "customer": t.members["customer"], "metadata": t.members["_metadata"],
			"payment_method_types": t.members["payment_method_types"],
		}
		if how := t.text("_capture"); how != "" {
			members["capture_method"] = how
		}
		intent = o.newIntent(e, "", members)
		t.members["payment_intent"] = intent
	}
	by := func(name string) {
		method := o.newMethod("", name)
		intent.members["payment_method"] = method
		o.collect(e, intent, method)
	}
	switch outcome {
	case "card_declined":
		by("pm_card_chargeDeclined")
	case "unpaid":
		intent.members["payment_method_types"] = []any{"us_bank_account"}
		by("pm_usBankAccount_processing")
		o.completed(e, t, "unpaid")
	default:
		by("pm_card_visa")
		if intent.text("status") == "requires_capture" {
			o.completed(e, t, "unpaid") // until it is captured
			return
		}
		o.completed(e, t, "paid")
	}
}

func (o *oracle) completed(e *entry, t *thing, payment string) {
	o.forget(t)
	t.members["status"], t.members["payment_status"] = "complete", payment
	o.raised(e, "checkout.session.completed", t)
}

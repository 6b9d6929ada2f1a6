package oracle

import (
	"slices"
	"strings"
	"time"
)

// paymentRules are those of payment intents.
var paymentRules = []rule{
	{"POST /v1/payment_intents", newIntentVerdict, func(o *oracle, e *entry) {
		id := e.id()
		if e.Status != 200 {
			id = textOf(e.answer, "error", "payment_intent", "id")
		}
		method := o.methodUsed(e)
		members := map[string]any{
			"amount": e.number("amount"), "currency": strings.ToLower(e.text("currency")), "metadata": metadataOf(e.Form, nil),
			"payment_method_types": typesOf(e.text("currency")),
		}
		if e.text("capture_method") != "" {
			members["capture_method"] = e.text("capture_method")
		}
		setTexts(e, members, true, "customer", "description", "setup_future_usage")
		if method != nil {
			members["payment_method"], members["status"] = method, "requires_confirmation"
		}
		t := o.newIntent(e, id, members)
		if e.text("confirm") == "true" {
			o.attempt(e, t, method)
		}
		o.tried(e, t, method)
	}},
	getRule("payment_intent", "/v1/payment_intents/"),
	{"POST /v1/payment_intents/{}", changedIntentVerdict, changedIntent},
	{"POST /v1/payment_intents/{}/confirm", func(o *oracle, e *entry) verdict {
		t := intentOf(o, e)
		if t == nil || e.bad(nil) || !open(t) {
			return refused
		}
		if name := e.text("payment_method"); name != "" {
			return accept(o.payable(name, t))
		}
		method := t.of("payment_method")
		return accept(method != nil && o.payable(method.id, t))
	}, func(o *oracle, e *entry) {
		t := intentOf(o, e)
		method := o.methodUsed(e)
		if method == nil {
			method = t.of("payment_method")
		}
		setTexts(e, t.members, false, "setup_future_usage")
		o.attempt(e, t, method)
		o.tried(e, t, method)
	}},
	{"POST /v1/payment_intents/{}/capture", func(o *oracle, e *entry) verdict {
		t := intentOf(o, e)
		if t == nil || t.text("status") != "requires_capture" || e.bad(nil, "amount_to_capture") {
			return refused
		}
		amount := e.number("amount_to_capture")
		return accept(!e.Form.Has("amount_to_capture") || (amount >= 1 && amount <= t.number("amount")))
	}, captured},
	{"POST /v1/payment_intents/{}/cancel", func(o *oracle, e *entry) verdict {
		t := intentOf(o, e)
		return accept(t != nil && (open(t) || t.text("status") == "requires_capture") && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := intentOf(o, e)
		if charge := t.of("latest_charge"); t.text("status") == "requires_capture" {
			o.release(charge, nil)
			o.raised(e, "charge.refunded", charge)
		}
		var reason any
		if e.text("cancellation_reason") != "" {
			reason = e.text("cancellation_reason")
		}
		o.cancelled(e, t, reason)
		o.compare("the end", t, e.answer)
	}},
	listRule("payment_intent"),
	{control + " /v1/payment_intents/{}/authenticate", func(o *oracle, e *entry) verdict {
		t := intentOf(o, e)
		return accept(t != nil && t.text("status") == "requires_action" && slices.Contains(endings, e.text("outcome")))
	}, func(o *oracle, e *entry) {
		t := intentOf(o, e)
		method := t.of("payment_method")
		if e.text("outcome") == "succeeded" {
			o.collect(e, t, method)
			return
		}
		t.members["status"], t.members["payment_method"], t.members["next_action"] = "requires_payment_method", nil, nil
		t.members["last_payment_error"] = part{"code": "payment_intent_authentication_failure", "payment_method": method}
		o.raised(e, "payment_intent.payment_failed", t)
	}},
	{control + " /v1/payment_intents/{}/settle", func(o *oracle, e *entry) verdict {
		t := intentOf(o, e)
		return accept(t != nil && t.text("status") == "processing" && slices.Contains(endings, e.text("outcome")))
	}, func(o *oracle, e *entry) { o.settled(e, intentOf(o, e), e.text("outcome") == "succeeded") }},
}

// endings are those of what a buyer or a bank is asked.
var endings = []string{"succeeded", "failed"}

func intentOf(o *oracle, e *entry) *thing {
	return o.get("payment_intent", e.target("/v1/payment_intents/"))
}

// open tells whether an intent may still be confirmed.
func open(t *thing) bool {
	return slices.Contains([]string{"requires_payment_method", "requires_confirmation", "requires_action"}, t.text("status"))
}

// least is what Stripe takes at least, by currency.
var least = map[string]int64{"usd": 50, "eur": 50, "gbp": 30}

func takes(amount int64, currency string) bool {
	return amount >= max(1, least[strings.ToLower(currency)]) && amount <= 99_999_999
}

// typesOf are the kinds of payment methods that pay in a currency.
func typesOf(currency string) []any {
	if strings.EqualFold(currency, "usd") {
		return []any{"card", "us_bank_account"}
	}
	return []any{"card"}
}

func newIntentVerdict(o *oracle, e *entry) verdict {
	currency := e.text("currency")
	if e.bad([]string{"amount", "currency"}, "amount") || !takes(e.number("amount"), currency) {
		return refused
	}
	customer := e.text("customer")
	if customer != "" && o.alive("customer", customer) == nil {
		return refused
	}
	draft := &thing{members: map[string]any{"payment_method_types": typesOf(currency)}}
	setTexts(e, draft.members, true, "customer")
	if name := e.text("payment_method"); name != "" {
		return accept(o.payable(name, draft))
	}
	return accept(e.text("confirm") != "true")
}

// newIntent enters an intent, with the members that all have and those given. One
// without an id is learnt of later.
func (o *oracle) newIntent(e *entry, id string, given map[string]any) *thing {
	members := map[string]any{
		"status": "requires_payment_method", "latest_charge": nil, "amount_received": int64(0), "amount_capturable": int64(0), "payment_method": nil,
		"capture_method": "automatic", "payment_method_types": []any{"card"}, "canceled_at": nil, "cancellation_reason": nil, "last_payment_error": nil,
		"next_action": nil, "description": nil, "invoice": nil, "setup_future_usage": nil, "customer": nil,
	}
	for name, v := range given {
		members[name] = v
	}
	var t *thing
	if id == "" && (e == nil || e.Method == control) {
		t = o.born("payment_intent", "pi", members)
	} else {
		t = o.make("payment_intent", id, members)
	}
	o.raised(e, "payment_intent.created", t)
	return t
}

func changedIntentVerdict(o *oracle, e *entry) verdict {
	t := intentOf(o, e)
	if t == nil || e.bad(nil, "amount") {
		return refused
	}
	if e.Form.Has("amount") && (!open(t) || !takes(e.number("amount"), t.text("currency"))) {
		return refused
	}
	name := e.text("payment_method")
	return accept((!e.Form.Has("payment_method") || open(t)) && (name == "" || o.payable(name, t)))
}

// changedIntent enters an update of an intent, for which Stripe has no event.
func changedIntent(o *oracle, e *entry) {
	t := intentOf(o, e)
	if e.Form.Has("amount") {
		t.members["amount"] = e.number("amount")
	}
	if e.Form.Has("payment_method") {
		method := o.methodUsed(e)
		t.members["payment_method"], t.members["next_action"], t.members["status"] = ref(method), nil, "requires_confirmation"
		if method == nil {
			t.members["status"] = "requires_payment_method"
		}
	}
	o.updated(e, t, "", true, "description")
}

// tried holds the answer to a try to pay against what came of it.
func (o *oracle) tried(e *entry, t, method *thing) {
	if e.Status == 200 {
		if failure, failed := t.members["last_payment_error"].(part); failed && e.text("confirm") == "true" {
			o.problem("%s had to be declined with %v: %s", describe(e), failure, e.Body)
		}
		o.compare("the intent", t, e.answer)
		return
	}
	failure, _ := t.members["last_payment_error"].(part)
	answered, _ := e.answer["error"].(map[string]any)
	want := map[string]any{"type": "card_error", "code": failure["code"], "charge": t.members["latest_charge"], "payment_method": method}
	for _, wrong := range differences(want, answered) {
		o.problem("%s: the refusal's %s", describe(e), wrong)
	}
	inner, _ := answered["payment_intent"].(map[string]any)
	o.compare("the refused intent", t, inner)
}

// attempt enters a try to pay an intent: the buyer may have to authenticate first.
// e is nil, or of the control plane, where no buyer is there to be asked.
func (o *oracle) attempt(e *entry, t, method *thing) {
	t.members["payment_method"], t.members["next_action"] = method, nil
	acts := method.acts()
	switch must := acts.authenticate || (o.switches.AuthenticatePayments && !acts.bank); {
	case must && (e == nil || e.text("off_session") == "true"):
		o.declined(e, t, method, "authentication_required")
	case must:
		t.members["status"], t.members["next_action"] = "requires_action", part{"type": "use_stripe_sdk"}
		o.raised(e, "payment_intent.requires_action", t)
	default:
		o.collect(e, t, method)
	}
}

// collect enters what a payment method does when it is charged.
func (o *oracle) collect(e *entry, t, method *thing) {
	switch acts := method.acts(); {
	case acts.bank:
		o.processed(e, t, method)
	case acts.code != "":
		o.declined(e, t, method, acts.code)
	default:
		o.charged(e, t, method)
	}
}

// declined enters a charge that has failed: the intent needs another payment method.
func (o *oracle) declined(e *entry, t, method *thing, code string) {
	charge := o.newCharge(t, method, "failed", false)
	charge.members["failure_code"] = code
	o.raised(e, "charge.failed", charge)
	t.members["status"], t.members["payment_method"], t.members["next_action"] = "requires_payment_method", nil, nil
	t.members["latest_charge"], t.members["last_payment_error"] = charge, part{"code": code, "charge": charge, "payment_method": method}
	o.raised(e, "payment_intent.payment_failed", t)
}

// charged enters a payment that has succeeded, or is held until it is captured.
func (o *oracle) charged(e *entry, t, method *thing) {
	manual := t.text("capture_method") == "manual"
	charge := o.newCharge(t, method, "succeeded", !manual)
	o.raised(e, "charge.succeeded", charge)
	t.members["latest_charge"], t.members["last_payment_error"], t.members["next_action"] = charge, nil, nil
	if manual {
		t.members["status"], t.members["amount_capturable"] = "requires_capture", t.members["amount"]
		o.raised(e, "payment_intent.amount_capturable_updated", t)
		o.used(e, t, method)
		return
	}
	t.members["status"], t.members["amount_received"] = "succeeded", t.members["amount"]
	o.raised(e, "payment_intent.succeeded", t)
	o.used(e, t, method)
	o.aftermath(charge, method)
}

// processed enters a debit that has begun.
func (o *oracle) processed(e *entry, t, method *thing) {
	charge := o.newCharge(t, method, "pending", true)
	o.raised(e, "charge.pending", charge)
	if acts := method.acts(); !acts.stuck {
		o.plan(t, o.later(4*day), func() { o.settled(nil, t, acts.code == "") })
	}
	t.members["status"], t.members["latest_charge"], t.members["last_payment_error"] = "processing", charge, nil
	o.raised(e, "payment_intent.processing", t)
	o.used(e, t, method)
}

// settled enters how a debit has ended, and the session that it pays.
func (o *oracle) settled(e *entry, t *thing, succeeded bool) {
	o.forget(t)
	charge, method := t.of("latest_charge"), t.of("payment_method")
	sessions := o.with("checkout.session", "payment_intent", t)
	if !succeeded {
		code := method.acts().code
		if code == "" {
			code = "insufficient_funds"
		}
		amount := charge.number("amount")
		charge.members["failure_balance_transaction"] = o.move(money{
			kind: "payment_failure_refund", category: "charge_failure", source: charge, amount: -amount, fee: -o.feeOf(amount), bank: true,
		})
		charge.members["status"], charge.members["paid"], charge.members["failure_code"] = "failed", false, code
		o.raised(e, "charge.failed", charge)
		t.members["status"], t.members["payment_method"] = "requires_payment_method", nil
		t.members["last_payment_error"] = part{"code": code, "charge": charge, "payment_method": method}
		o.raised(e, "payment_intent.payment_failed", t)
		for _, session := range sessions {
			o.raised(e, "checkout.session.async_payment_failed", session)
		}
		return
	}
	charge.members["status"], charge.members["paid"] = "succeeded", true
	o.raised(e, "charge.succeeded", charge)
	t.members["status"], t.members["amount_received"] = "succeeded", t.members["amount"]
	o.raised(e, "payment_intent.succeeded", t)
	for _, session := range sessions {
		session.members["payment_status"] = "paid"
		o.raised(e, "checkout.session.async_payment_succeeded", session)
	}
	o.aftermath(charge, method)
}

// captured enters that held money was taken, all of it or a part.
func captured(o *oracle, e *entry) {
	t := intentOf(o, e)
	charge, amount := t.of("latest_charge"), t.number("amount_capturable")
	if e.Form.Has("amount_to_capture") {
		amount = e.number("amount_to_capture")
	}
	o.forget(charge)
	if rest := charge.number("amount") - amount; rest > 0 {
		o.givenBack(charge, rest, nil)
	}
	charge.members["captured"], charge.members["amount_captured"], charge.members["amount_refunded"] = true, amount, o.refunded(charge)
	charge.members["balance_transaction"] = o.earned(charge)
	o.raised(e, "charge.captured", charge)
	t.members["status"], t.members["amount_received"], t.members["amount_capturable"] = "succeeded", amount, int64(0)
	o.raised(e, "payment_intent.succeeded", t)
	for _, session := range o.with("checkout.session", "payment_intent", t) {
		session.members["payment_status"] = "paid"
	}
	o.aftermath(charge, t.of("payment_method"))
	o.compare("the capture", t, e.answer)
}

// cancelled enters the end of an intent.
func (o *oracle) cancelled(e *entry, t *thing, reason any) {
	t.members["status"], t.members["canceled_at"], t.members["cancellation_reason"] = "canceled", o.now.Unix(), reason
	t.members["amount_capturable"], t.members["next_action"] = int64(0), nil
	o.raised(e, "payment_intent.canceled", t)
}

// authorized is how long money is held that nobody captures.
const authorized = 7 * 24 * time.Hour

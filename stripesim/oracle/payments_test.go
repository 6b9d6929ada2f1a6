package oracle

import (
	"slices"
	"strings"
)

// paymentRules are those of payment intents and charges.
var paymentRules = []rule{
	{"POST /v1/payment_intents", func(o *oracle, e *entry) verdict {
		if e.bad([]string{"amount", "currency"}, "amount") || e.number("amount") <= 0 {
			return refused
		}
		switch c := e.text("customer"); {
		case c != "" && o.get("customer", c) == nil:
			return refused
		case c != "" && o.get("customer", c).deleted:
			return either
		}
		return accepted
	}, func(o *oracle, e *entry) {
		id, confirmed := e.id(), e.text("confirm") == "true"
		if e.Status != 200 {
			id = textOf(e.answer, "error", "payment_intent", "id")
		}
		members := map[string]any{
			"amount": e.number("amount"), "currency": strings.ToLower(e.text("currency")), "metadata": metadataOf(e.Form, nil),
			"capture_method": "automatic",
		}
		if e.text("capture_method") != "" {
			members["capture_method"] = e.text("capture_method")
		}
		setTexts(e, members, true, "customer")
		o.confirmed(e, o.newIntent(e, id, members), confirmed)
	}},
	getRule("payment_intent", "/v1/payment_intents/"),
	{"POST /v1/payment_intents/{}", func(o *oracle, e *entry) verdict {
		return accept(o.get("payment_intent", e.target("/v1/payment_intents/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.updated(e, o.get("payment_intent", e.target("/v1/payment_intents/")), "", true)
	}},
	{"POST /v1/payment_intents/{}/confirm", intentIn("requires_payment_method", "requires_confirmation", "requires_action"), func(o *oracle, e *entry) {
		o.confirmed(e, o.get("payment_intent", e.target("/v1/payment_intents/")), true)
	}},
	{"POST /v1/payment_intents/{}/capture", intentIn("requires_capture"), func(o *oracle, e *entry) {
		t := o.get("payment_intent", e.target("/v1/payment_intents/"))
		charge := o.get("charge", t.text("latest_charge"))
		charge.members["captured"], charge.members["amount_captured"] = true, charge.members["amount"]
		t.members["status"], t.members["amount_received"], t.members["amount_capturable"] = "succeeded", t.members["amount"], int64(0)
		o.raised(e, "charge.captured", charge)
		o.raised(e, "payment_intent.succeeded", t)
		o.compare("the capture", t, e.answer)
	}},
	{"POST /v1/payment_intents/{}/cancel", intentIn("requires_payment_method", "requires_confirmation", "requires_action", "requires_capture", "processing"), func(o *oracle, e *entry) {
		t := o.get("payment_intent", e.target("/v1/payment_intents/"))
		t.members["status"] = "canceled"
		o.raised(e, "payment_intent.canceled", t)
	}},
	listRule("payment_intent"),
	getRule("charge", "/v1/charges/"),
	{"POST /v1/charges/{}", func(o *oracle, e *entry) verdict {
		return accept(o.get("charge", e.target("/v1/charges/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.updated(e, o.get("charge", e.target("/v1/charges/")), "charge.updated", true, "description")
	}},
	listRule("charge"),
}

// intentIn accepts an intent that is in one of some states.
func intentIn(states ...string) func(*oracle, *entry) verdict {
	return func(o *oracle, e *entry) verdict {
		t := o.get("payment_intent", e.target("/v1/payment_intents/"))
		return accept(t != nil && slices.Contains(states, t.text("status")) && !e.bad(nil))
	}
}

func (o *oracle) newIntent(e *entry, id string, members map[string]any) *thing {
	members["status"], members["latest_charge"] = "requires_payment_method", nil
	members["amount_received"], members["amount_capturable"] = int64(0), int64(0)
	method, given := members["capture_method"]
	delete(members, "capture_method") // it says automatic while it is being made
	t := o.make("payment_intent", id, members)
	o.raised(e, "payment_intent.created", t)
	if given {
		members["capture_method"] = method
	}
	return t
}

// confirmed enters the try to pay an intent.
func (o *oracle) confirmed(e *entry, t *thing, yes bool) {
	switch {
	case !yes:
	case strings.Contains(e.text("payment_method"), "chargeDeclined"):
		if e.Status != 402 || textOf(e.answer, "error", "code") != "card_declined" {
			o.problem("%s had to be declined: %s", describe(e), e.Body)
		}
		o.raised(e, "payment_intent.payment_failed", t)
	case t.text("capture_method") == "manual":
		o.newCharge(e, t, textOf(e.answer, "latest_charge"), false)
		t.members["status"], t.members["amount_capturable"] = "requires_capture", t.members["amount"]
		o.raised(e, "payment_intent.amount_capturable_updated", t)
	default:
		o.charged(e, t, textOf(e.answer, "latest_charge"))
	}
	if e.Status == 200 {
		o.compare("the intent", t, e.answer)
	}
}

// charged enters a payment that has succeeded.
func (o *oracle) charged(e *entry, t *thing, charge string) {
	o.newCharge(e, t, charge, true)
	t.members["status"], t.members["amount_received"] = "succeeded", t.members["amount"]
	o.raised(e, "payment_intent.succeeded", t)
}

func (o *oracle) newCharge(e *entry, intent *thing, id string, captured bool) {
	members := map[string]any{
		"amount": intent.members["amount"], "amount_captured": int64(0), "amount_refunded": int64(0), "captured": captured, "refunded": false, "paid": true,
		"status": "succeeded", "payment_intent": intent.id, "customer": intent.members["customer"], "currency": intent.members["currency"],
		"metadata": metadataOf(nil, intent.members["metadata"]), "description": nil,
	}
	if captured {
		members["amount_captured"] = members["amount"]
	}
	intent.members["latest_charge"] = id
	o.raised(e, "charge.succeeded", o.make("charge", id, members))
}

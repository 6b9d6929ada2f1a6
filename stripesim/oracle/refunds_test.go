package oracle

import (
	"slices"
	"time"
)

// refundRules are those of refunds.
var refundRules = []rule{
	{"POST /v1/refunds", func(o *oracle, e *entry) verdict {
		charge := o.chargeOf(e)
		if e.bad(nil, "amount") || charge == nil || charge.text("status") != "succeeded" || !charge.is("captured") || o.chargedBack(charge) {
			return refused
		}
		left := charge.number("amount") - o.promised(charge)
		return accept(left > 0 && (!e.Form.Has("amount") || (e.number("amount") >= 1 && e.number("amount") <= left)))
	}, refundAsked},
	getRule("refund", "/v1/refunds/"),
	{"POST /v1/refunds/{}", func(o *oracle, e *entry) verdict { return accept(refundOf(o, e) != nil && !e.bad(nil)) }, func(o *oracle, e *entry) {
		t := refundOf(o, e)
		o.updated(e, t, "charge.refund.updated", true)
		if maybe := o.events[len(o.events)-1].maybe; o.switches.RefundEvents {
			o.raised(e, "refund.updated", t)
			o.events[len(o.events)-1].maybe = maybe
		}
	}},
	{"POST /v1/refunds/{}/cancel", func(o *oracle, e *entry) verdict { return o.refundIn(e, e.bad(nil), "pending", "requires_action") }, func(o *oracle, e *entry) {
		o.ended(e, refundOf(o, e), "canceled", nil)
		o.compare("the end", refundOf(o, e), e.answer)
	}},
	{"POST /v1/test_helpers/refunds/{}/expire", func(o *oracle, e *entry) verdict {
		t := o.get("refund", e.target("/v1/test_helpers/refunds/"))
		return accept(t != nil && t.text("status") == "requires_action" && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.ended(e, o.get("refund", e.target("/v1/test_helpers/refunds/")), "failed", "unknown")
	}},
	listRule("refund"),
	{control + " /v1/refunds/{}/fail", func(o *oracle, e *entry) verdict {
		t := refundOf(o, e)
		return o.refundIn(e, t != nil && t.is("_held"), "pending", "requires_action", "succeeded")
	}, func(o *oracle, e *entry) { o.ended(e, refundOf(o, e), "failed", "expired_or_canceled_card") }},
	{control + " /v1/refunds/{}/succeed", func(o *oracle, e *entry) verdict { return o.refundIn(e, false, "pending", "requires_action") }, func(o *oracle, e *entry) {
		o.succeeded(e, refundOf(o, e))
	}},
}

func refundOf(o *oracle, e *entry) *thing { return o.get("refund", e.target("/v1/refunds/")) }

// refundIn accepts what ends a refund that is in one of some states.
func (o *oracle) refundIn(e *entry, never bool, states ...string) verdict {
	t := refundOf(o, e)
	return accept(!never && t != nil && slices.Contains(states, t.text("status")))
}

// chargeOf finds the charge that a refund is asked for, nil when there is none.
func (o *oracle) chargeOf(e *entry) *thing {
	id, charge := e.text("payment_intent"), e.text("charge")
	switch intent := o.get("payment_intent", id); {
	case id == "":
		return o.get("charge", charge)
	case charge != "" || intent == nil:
		return nil
	default:
		return intent.of("latest_charge")
	}
}

// refundAsked enters a new refund.
func refundAsked(o *oracle, e *entry) {
	charge := o.chargeOf(e)
	acts := charge.of("payment_method").acts()
	amount := charge.number("amount") - o.promised(charge)
	if e.Form.Has("amount") {
		amount = e.number("amount")
	}
	status, told := "succeeded", e.text("metadata[sim_status]")
	switch {
	case told == "pending" || told == "requires_action":
		status = told
	case o.switches.RefundsPending || acts.bank || acts.refund == "pending":
		status = "pending"
	}
	members := map[string]any{
		"amount": amount, "charge": charge, "payment_intent": charge.members["payment_intent"], "currency": charge.members["currency"],
		"metadata": metadataOf(e.Form, nil), "status": status, "balance_transaction": nil, "failure_balance_transaction": nil, "failure_reason": nil,
	}
	setTexts(e, members, true, "reason")
	t := o.make("refund", e.id(), members)
	if status != "requires_action" {
		members["balance_transaction"] = o.sentBack(t, false)
	}
	switch {
	case status == "requires_action":
		o.plan(t, o.after(45*day), func() { o.ended(nil, t, "failed", "unknown") })
	case told != "" || o.switches.RefundsPending: // somebody tells how it ends
	case status == "pending":
		o.plan(t, o.later(5*day), func() { o.succeeded(nil, t) })
	case acts.refund == "failed":
		o.plan(t, o.later(7*day), func() { o.ended(nil, t, "failed", "expired_or_canceled_card") })
	}
	before := inWords(charge.members)
	if e.text("reason") == "fraudulent" {
		charge.members["fraud_details"] = map[string]any{"user_report": "fraudulent"}
	}
	o.refundsChanged(charge)
	if status == "succeeded" || inWords(charge.members) != before {
		o.raised(e, "charge.refunded", charge)
	}
	if o.switches.RefundEvents {
		o.raised(e, "refund.created", t)
	}
	o.compare("the refund", t, e.answer)
}

// refunded adds up the refunds of a charge that are in its amount_refunded.
func (o *oracle) refunded(charge *thing) int64 {
	states := []string{"succeeded"}
	if !o.switches.PendingRefundsUncounted {
		states = append(states, "pending", "requires_action")
	}
	return o.refundsIn(charge, states...)
}

// promised adds up the refunds of a charge that have moved money, or still may.
func (o *oracle) promised(charge *thing) int64 {
	return o.refundsIn(charge, "succeeded", "pending", "requires_action")
}

func (o *oracle) refundsIn(charge *thing, states ...string) (sum int64) {
	for _, t := range o.with("refund", "charge", charge) {
		if slices.Contains(states, t.text("status")) {
			sum += t.number("amount")
		}
	}
	return sum
}

func (o *oracle) refundsChanged(charge *thing) {
	sum := o.refunded(charge)
	charge.members["amount_refunded"], charge.members["refunded"] = sum, sum == charge.number("amount")
}

// toldOf raises the events of a refund that has changed.
func (o *oracle) toldOf(e *entry, t *thing) {
	o.raised(e, "charge.refund.updated", t)
	if o.switches.RefundEvents {
		o.raised(e, "refund.updated", t)
	}
}

// ended enters that a refund moves no money after all: what it took comes back.
func (o *oracle) ended(e *entry, t *thing, status string, reason any) {
	o.forget(t)
	if t.of("balance_transaction") != nil {
		t.members["failure_balance_transaction"] = o.sentBack(t, true)
	}
	t.members["status"], t.members["failure_reason"] = status, reason
	if !o.switches.KeepAmountRefunded {
		o.refundsChanged(t.of("charge"))
	}
	o.toldOf(e, t)
	if o.switches.RefundEvents && status == "failed" {
		o.raised(e, "refund.failed", t)
	}
}

// succeeded enters that a refund which was open has moved its money.
func (o *oracle) succeeded(e *entry, t *thing) {
	o.forget(t)
	t.members["status"] = "succeeded"
	if t.of("balance_transaction") == nil {
		t.members["balance_transaction"] = o.sentBack(t, false)
	}
	charge := t.of("charge")
	before := inWords(charge.members)
	o.refundsChanged(charge)
	if inWords(charge.members) != before {
		o.raised(e, "charge.refunded", charge)
	}
	o.toldOf(e, t)
}

// sentBack moves the money of a refund to the buyer, or back when it has failed.
func (o *oracle) sentBack(t *thing, failed bool) *thing {
	bank := t.of("charge").of("payment_method").acts().bank
	m := money{kind: "refund", category: "refund", source: t, amount: -t.number("amount"), bank: bank}
	if bank {
		m.kind = "payment_refund"
	}
	if failed {
		m.kind, m.category, m.amount = "refund_failure", "refund_failure", -m.amount
	}
	return o.move(m)
}

// waitsForMoney is how long the money of a payment is pending.
const waitsForMoney = 2 * 24 * time.Hour

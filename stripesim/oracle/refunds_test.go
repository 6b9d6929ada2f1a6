package oracle

// refundRules are those of refunds.
var refundRules = []rule{
	{"POST /v1/refunds", func(o *oracle, e *entry) verdict {
		charge := o.chargeOf(e)
		if e.bad(nil, "amount") || charge == nil {
			return refused
		}
		left := charge.number("amount_captured") - o.refunded(charge.id)
		return accept(left > 0 && (!e.Form.Has("amount") || (e.number("amount") >= 1 && e.number("amount") <= left)))
	}, func(o *oracle, e *entry) {
		charge := o.chargeOf(e)
		amount := charge.number("amount_captured") - o.refunded(charge.id)
		if e.Form.Has("amount") {
			amount = e.number("amount")
		}
		members := map[string]any{
			"amount": amount, "charge": charge.id, "payment_intent": charge.members["payment_intent"], "currency": charge.members["currency"],
			"metadata": metadataOf(e.Form, nil), "status": "succeeded",
		}
		setTexts(e, members, true, "reason")
		if e.text("metadata[sim_status]") == "pending" {
			members["status"] = "pending"
		}
		t := o.make("refund", e.id(), members)
		o.compare("the refund", t, e.answer)
		o.refundsChanged(charge)
		o.raised(e, "charge.refunded", charge)
		if o.switches.RefundEvents {
			o.raised(e, "refund.created", t)
		}
	}},
	getRule("refund", "/v1/refunds/"),
	{"POST /v1/refunds/{}", func(o *oracle, e *entry) verdict {
		return accept(o.get("refund", e.target("/v1/refunds/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.updated(e, o.get("refund", e.target("/v1/refunds/")), "charge.refund.updated", true)
	}},
	{"POST /v1/refunds/{}/cancel", func(o *oracle, e *entry) verdict {
		t := o.get("refund", e.target("/v1/refunds/"))
		return accept(t != nil && t.text("status") == "pending" && !e.bad(nil))
	}, func(o *oracle, e *entry) { o.ended(e, "canceled", "refund.updated") }},
	listRule("refund"),
	{control + " /v1/refunds/{}/fail", func(o *oracle, e *entry) verdict { return o.refundEnds(e, "pending", "succeeded") }, func(o *oracle, e *entry) {
		o.ended(e, "failed", "refund.failed")
	}},
	{control + " /v1/refunds/{}/succeed", func(o *oracle, e *entry) verdict { return o.refundEnds(e, "pending") }, func(o *oracle, e *entry) {
		t := o.get("refund", e.target("/v1/refunds/"))
		t.members["status"] = "succeeded"
		o.raised(e, "charge.refund.updated", t)
	}},
}

// refundEnds judges the end of a refund. What becomes of one that has ended is
// nobody's business but the person's who asks for it.
func (o *oracle) refundEnds(e *entry, states ...string) verdict {
	t := o.get("refund", e.target("/v1/refunds/"))
	if t == nil {
		return refused
	}
	for _, state := range states {
		if t.text("status") == state {
			return accepted
		}
	}
	return either
}

// chargeOf finds the charge that a refund is asked for, nil when there is none.
func (o *oracle) chargeOf(e *entry) *thing {
	if id := e.text("payment_intent"); id != "" {
		intent := o.get("payment_intent", id)
		if intent == nil {
			return nil
		}
		return o.get("charge", intent.text("latest_charge"))
	}
	return o.get("charge", e.text("charge"))
}

// refunded adds up the refunds of a charge that move money.
func (o *oracle) refunded(charge string) (sum int64) {
	for _, r := range o.with("refund", "charge", charge) {
		if s := r.text("status"); s == "succeeded" || s == "pending" {
			sum += r.number("amount")
		}
	}
	return sum
}

func (o *oracle) refundsChanged(charge *thing) {
	sum := o.refunded(charge.id)
	charge.members["amount_refunded"], charge.members["refunded"] = sum, sum == charge.number("amount")
}

// ended enters that a refund moves no money after all.
func (o *oracle) ended(e *entry, status, extra string) {
	t := o.get("refund", e.target("/v1/refunds/"))
	t.members["status"] = status
	if !o.switches.KeepAmountRefunded {
		o.refundsChanged(o.get("charge", t.text("charge")))
	}
	o.raised(e, "charge.refund.updated", t)
	if o.switches.RefundEvents {
		o.raised(e, extra, t)
	}
}

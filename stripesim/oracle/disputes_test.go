package oracle

import (
	"slices"
	"strings"
)

// disputeRules are those of disputes, and of what the buyer's bank does with them.
var disputeRules = []rule{
	getRule("dispute", "/v1/disputes/"),
	{"POST /v1/disputes/{}", func(o *oracle, e *entry) verdict {
		t := disputeOf(o, e)
		return accept(t != nil && !e.bad(nil) && (unanswered(t) || (evidence(e) == nil && !e.Form.Has("submit"))))
	}, disputeUpdated},
	{"POST /v1/disputes/{}/close", func(o *oracle, e *entry) verdict {
		t := disputeOf(o, e)
		return accept(t != nil && unanswered(t) && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := disputeOf(o, e)
		o.disputeClosed(e, t, map[string]string{"needs_response": "lost", "warning_needs_response": "warning_closed"}[t.text("status")])
		o.compare("the end", t, e.answer)
	}},
	listRule("dispute"),
	{control + " /v1/disputes", func(o *oracle, e *entry) verdict {
		charge := o.get("charge", e.text("charge"))
		if charge == nil || charge.text("status") != "succeeded" || !charge.is("captured") || e.text("reason") == "nonsense" || e.text("stage") == "nonsense" {
			return refused
		}
		amount := o.disputedAmount(e, charge)
		return accept(amount >= 1 && amount <= o.disputable(charge))
	}, func(o *oracle, e *entry) {
		charge, reason := o.get("charge", e.text("charge")), e.text("reason")
		if reason == "" {
			reason = "fraudulent"
		}
		t := o.disputed(charge, reason, e.text("stage") == "inquiry", o.disputedAmount(e, charge))
		o.compare("the dispute", t, e.answer)
	}},
	{control + " /v1/disputes/{}", func(o *oracle, e *entry) verdict {
		t, outcome := disputeOf(o, e), e.text("outcome")
		if t == nil {
			return refused
		}
		amount := e.number("amount")
		if partly := outcome == "partly_won"; partly != (amount != 0) || (partly && (amount < 1 || amount >= t.number("amount"))) {
			return refused
		}
		from := map[string]string{
			"opened": "warning_needs_response warning_under_review", "warning_closed": "warning_needs_response warning_under_review",
			"under_review": "needs_response warning_needs_response", "won": "needs_response under_review", "lost": "needs_response under_review",
			"partly_won": "needs_response under_review",
		}
		return accept(slices.Contains(strings.Fields(from[outcome]), t.text("status")))
	}, func(o *oracle, e *entry) {
		t := disputeOf(o, e)
		switch outcome := e.text("outcome"); outcome {
		case "opened":
			o.escalated(t)
		case "under_review":
			o.forget(t)
			t.members["status"] = reviewed[t.text("status")]
			t.members["evidence_details"] = t.members["evidence_details"].(part).but(part{"has_evidence": true, "submission_count": int64(1)})
			o.raised(nil, "charge.dispute.updated", t)
		case "won":
			o.reinstated(t, "won", t.number("amount"))
		case "partly_won":
			o.reinstated(t, "lost", e.number("amount"))
		default:
			o.disputeClosed(nil, t, outcome)
		}
		o.compare("the dispute", t, e.answer)
	}},
}

// reviewed is what becomes of an unanswered dispute that is answered.
var reviewed = map[string]string{"needs_response": "under_review", "warning_needs_response": "warning_under_review"}

func disputeOf(o *oracle, e *entry) *thing { return o.get("dispute", e.target("/v1/disputes/")) }

func unanswered(t *thing) bool { return reviewed[t.text("status")] != "" }

// evidence is what a call sends of it, nil for nothing.
func evidence(e *entry) part {
	var sent part
	for _, name := range []string{"uncategorized_text", "product_description"} {
		if v, given := e.Form["evidence["+name+"]"]; given {
			if sent == nil {
				sent = part{}
			}
			if sent[name] = any(v[0]); v[0] == "" {
				sent[name] = nil
			}
		}
	}
	return sent
}

// disputedAmount is what a control call disputes: all that is left, where it does
// not say.
func (o *oracle) disputedAmount(e *entry, charge *thing) int64 {
	if amount := e.number("amount"); amount != 0 {
		return amount
	}
	return min(o.disputable(charge), charge.number("amount")-o.refunded(charge))
}

// disputable is what of a charge nobody disputes, or disputed in vain.
func (o *oracle) disputable(charge *thing) int64 {
	left := charge.number("amount_captured")
	for _, t := range o.with("dispute", "charge", charge) {
		if t.text("status") != "won" && t.text("status") != "warning_closed" {
			left -= t.number("amount")
		}
	}
	return left
}

// chargedBack tells whether a dispute has the money of a charge.
func (o *oracle) chargedBack(charge *thing) bool {
	return slices.ContainsFunc(o.with("dispute", "charge", charge), func(t *thing) bool {
		return slices.Contains([]string{"needs_response", "under_review", "lost"}, t.text("status"))
	})
}

// aftermath enters the dispute that some test methods bring after a payment.
func (o *oracle) aftermath(charge, method *thing) {
	if acts := method.acts(); acts.dispute != "" && charge.is("captured") {
		o.disputed(charge, acts.dispute, acts.inquiry, charge.number("amount_captured"))
	}
}

// disputed enters a dispute, which takes the money at once unless it is an inquiry.
func (o *oracle) disputed(charge *thing, reason string, inquiry bool, amount int64) *thing {
	charge.members["disputed"] = true
	t := o.born("dispute", "dp", map[string]any{
		"amount": amount, "currency": charge.members["currency"], "charge": charge, "payment_intent": charge.members["payment_intent"], "reason": reason,
		"status": "warning_needs_response", "is_charge_refundable": true, "balance_transactions": []any{}, "metadata": map[string]any{},
		"evidence":         part{"uncategorized_text": nil, "product_description": nil},
		"evidence_details": part{"due_by": o.after(9 * day), "has_evidence": false, "past_due": false, "submission_count": int64(0)},
	})
	if inquiry {
		o.plan(t, o.after(120*day), func() { o.inquiryEnds(t) })
		o.raised(nil, "charge.dispute.created", t)
		return t
	}
	o.withdrawn(t)
	o.raised(nil, "charge.dispute.created", t)
	o.raised(nil, "charge.dispute.funds_withdrawn", t)
	o.refundsFail(charge)
	return t
}

func (o *oracle) withdrawn(t *thing) {
	m := money{kind: "adjustment", category: "dispute", source: t, amount: -t.number("amount")}
	if !o.switches.FeeFree {
		m.fee = 1500
	}
	t.members["balance_transactions"] = []any{o.move(m)}
	t.members["status"], t.members["is_charge_refundable"] = "needs_response", false
	t.members["evidence_details"] = t.members["evidence_details"].(part).but(part{"due_by": o.after(9 * day), "past_due": false})
	o.plan(t, o.after(9*day), func() {
		t.members["evidence_details"] = t.members["evidence_details"].(part).but(part{"past_due": true})
		o.disputeClosed(nil, t, "lost")
	})
}

// refundsFail ends the refunds of a charge that are still open, the newest first: the
// money is gone another way.
func (o *oracle) refundsFail(charge *thing) {
	for _, t := range slices.Backward(o.with("refund", "charge", charge)) {
		if s := t.text("status"); s == "pending" || s == "requires_action" {
			o.ended(nil, t, "failed", "charge_for_pending_refund_disputed")
		}
	}
}

// escalated enters that an inquiry has become a dispute.
func (o *oracle) escalated(t *thing) {
	o.withdrawn(t)
	o.raised(nil, "charge.dispute.updated", t)
	o.raised(nil, "charge.dispute.funds_withdrawn", t)
	o.refundsFail(t.of("charge"))
}

func (o *oracle) disputeClosed(e *entry, t *thing, status string) {
	o.forget(t)
	t.members["status"] = status
	o.raised(e, "charge.dispute.closed", t)
}

// reinstated enters that money comes back: all of it and the fee, or a part.
func (o *oracle) reinstated(t *thing, status string, amount int64) {
	o.forget(t)
	m := money{kind: "adjustment", category: "dispute_reversal", source: t, amount: amount}
	if status == "won" && !o.switches.FeeFree && !o.switches.KeepDisputeFee {
		m.fee = -1500
	}
	before, _ := t.members["balance_transactions"].([]any)
	t.members["balance_transactions"] = append(slices.Clone(before), o.move(m))
	t.members["status"], t.members["is_charge_refundable"] = status, status == "won"
	o.raised(nil, "charge.dispute.closed", t)
	o.raised(nil, "charge.dispute.funds_reinstated", t)
}

// inquiryEnds is what becomes of an inquiry in time: what the seller has sent says so.
func (o *oracle) inquiryEnds(t *thing) {
	if t.members["evidence"].(part)["uncategorized_text"] == any("escalate_inquiry_evidence") {
		o.escalated(t)
		return
	}
	o.disputeClosed(nil, t, "warning_closed")
}

// disputeUpdated enters what a seller sends to the bank. Sent for good, it is
// reviewed for a while.
func disputeUpdated(o *oracle, e *entry) {
	t := disputeOf(o, e)
	before := told(t.members["evidence"]) + told(t.members["evidence_details"])
	sent, details := evidence(e), t.members["evidence_details"].(part)
	t.members["evidence"] = t.members["evidence"].(part).but(sent)
	if has := sent != nil || details["has_evidence"] == true; unanswered(t) && (sent != nil || e.Form.Has("submit")) {
		details = details.but(part{"has_evidence": has})
		if has && e.text("submit") != "false" {
			inquiry := t.text("status") == "warning_needs_response"
			t.members["status"] = reviewed[t.text("status")]
			details["submission_count"] = details["submission_count"].(int64) + 1
			o.plan(t, o.later(60*day), func() {
				switch {
				case inquiry:
					o.inquiryEnds(t)
				case t.members["evidence"].(part)["uncategorized_text"] == any("winning_evidence"):
					o.reinstated(t, "won", t.number("amount"))
				default:
					o.disputeClosed(nil, t, "lost")
				}
			})
		}
		t.members["evidence_details"] = details
	}
	changed := told(t.members["evidence"])+told(t.members["evidence_details"]) != before
	o.updated(e, t, "charge.dispute.updated", true)
	if changed {
		o.events[len(o.events)-1].maybe = false
	}
}

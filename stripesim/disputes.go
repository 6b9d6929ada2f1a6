package stripesim

import "slices"

// Times of disputes, in seconds.
const (
	evidenceDue   = 9 * 24 * 3600   // how long the seller may send evidence
	inquiryCloses = 120 * 24 * 3600 // an inquiry that nobody escalates
	reviewTakes   = 60 * 24 * 3600  // of the bank, where the switch settle_seconds does not say
)

// evidenceNames are the members of a dispute's evidence.
var evidenceNames = []string{
	"access_activity_log", "billing_address", "cancellation_policy", "cancellation_policy_disclosure", "cancellation_rebuttal", "customer_communication",
	"customer_email_address", "customer_name", "customer_purchase_ip", "customer_signature", "duplicate_charge_documentation", "duplicate_charge_explanation",
	"duplicate_charge_id", "product_description", "receipt", "refund_policy", "refund_policy_disclosure", "refund_refusal_explanation", "service_date",
	"service_documentation", "shipping_address", "shipping_carrier", "shipping_date", "shipping_documentation", "shipping_tracking_number", "uncategorized_file",
	"uncategorized_text",
}

// evidenceMost bounds all texts of a dispute's evidence together.
const evidenceMost = 150000

// disputeReasons are Stripe's.
var disputeReasons = []string{
	"bank_cannot_process", "check_returned", "credit_not_processed", "customer_initiated", "debit_not_authorized", "duplicate", "fraudulent", "general",
	"incorrect_account_details", "insufficient_funds", "product_not_received", "product_unacceptable", "subscription_canceled", "unrecognized",
}

func (s *Server) routeDisputes() {
	s.agenda.do["dispute"] = func(o object) { s.disputeFallsDue(o) }
	s.handle("GET /v1/disputes/{id}", nil, func(c *call) (object, *apiError) { return s.find("dispute", c.target(), "dispute") })
	evidence := spec{}
	for _, name := range evidenceNames {
		evidence[name] = "string"
	}
	s.handle("POST /v1/disputes/{id}", spec{"evidence": evidence, "metadata": "map", "submit": "bool"}, func(c *call) (object, *apiError) { return s.updateDispute(c) })
	s.handle("POST /v1/disputes/{id}/close", nil, func(c *call) (object, *apiError) {
		o, err := s.find("dispute", c.target(), "dispute")
		if err != nil {
			return nil, err
		}
		switch text(o, "status") {
		case "needs_response":
			s.closeDispute(c, o, "lost")
		case "warning_needs_response":
			s.closeDispute(c, o, "warning_closed")
		default:
			return nil, invalid("", "", "This dispute is already closed or under review: it has a status of %s.", text(o, "status"))
		}
		return o, nil
	})
	filters := spec{"charge": "string", "payment_intent": "string", "created": createdSpec}
	s.handle("GET /v1/disputes", listSpec(filters), func(c *call) (object, *apiError) {
		return s.list(c, "dispute", func(o object) bool {
			return (!c.has("charge") || text(o, "charge") == c.text("charge")) &&
				(!c.has("payment_intent") || text(o, "payment_intent") == c.text("payment_intent")) && inRange(c, number(o, "created"))
		})
	})
}

// chargedBack tells whether a dispute holds a charge's money, or has taken it.
func (s *Server) chargedBack(charge string) bool {
	return slices.ContainsFunc(s.store.shelf("dispute").with("charge", charge), func(o object) bool {
		return slices.Contains([]string{"needs_response", "under_review", "lost"}, text(o, "status"))
	})
}

// disputable is how much of a charge may still be disputed.
func (s *Server) disputable(charge object) int64 {
	left := number(charge, "amount_captured")
	for _, o := range s.store.shelf("dispute").with("charge", text(charge, "id")) {
		if text(o, "status") != "won" && text(o, "status") != "warning_closed" {
			left -= number(o, "amount")
		}
	}
	return left
}

// openDispute makes a dispute of a charge: opened, which takes the money at once,
// or as an inquiry, which takes none.
func (s *Server) openDispute(charge object, reason, stage string, amount int64) object {
	pm := s.store.get("payment_method", text(charge, "payment_method"))
	evidence := object{}
	for _, name := range evidenceNames {
		evidence[name] = nil
	}
	for name, v := range map[string]any{"customer_email_address": child(charge, "billing_details")["email"], "customer_name": child(charge, "billing_details")["name"], "receipt": nil} {
		evidence[name] = v
	}
	o := object{
		"id": s.newID("dp"), "object": "dispute", "created": s.now(), "livemode": false, "amount": amount, "currency": charge["currency"], "charge": charge["id"],
		"payment_intent": charge["payment_intent"], "balance_transactions": []any{}, "evidence": evidence, "is_charge_refundable": true, "metadata": object{}, "reason": reason,
		"evidence_details": object{"due_by": s.now() + evidenceDue, "has_evidence": false, "past_due": false, "submission_count": int64(0)}, "status": "warning_needs_response",
	}
	if brand := text(child(pm, "card"), "brand"); brand != "" {
		o["payment_method_details"] = object{"type": "card", "card": object{"brand": brand, "network_reason_code": "83"}}
	}
	s.store.put("dispute", o)
	s.change("charge", charge, object{"disputed": true})
	if stage == "inquiry" {
		s.setAlarm("dispute", o, s.ownNow()+inquiryCloses)
		s.store.put("dispute", o)
		s.raise(nil, "charge.dispute.created", o, nil)
		return o
	}
	s.withdraw(o)
	s.raise(nil, "charge.dispute.created", o, nil)
	s.raise(nil, "charge.dispute.funds_withdrawn", o, nil)
	s.failDisputedRefunds(o)
	return o
}

// withdraw takes the disputed amount and the fee, and gives what the dispute was.
func (s *Server) withdraw(o object) (previous object) {
	txn := s.view(s.moveDispute(o, -number(o, "amount"), true), nil)
	s.setAlarm("dispute", o, s.ownNow()+evidenceDue)
	return s.change("dispute", o, object{
		"status": "needs_response", "is_charge_refundable": false, "balance_transactions": []any{txn},
		"evidence_details": laidOver(child(o, "evidence_details"), object{"due_by": s.now() + evidenceDue, "past_due": false}),
	})
}

// failDisputedRefunds ends refunds that are still pending when the money is
// withdrawn: it cannot be given back twice.
func (s *Server) failDisputedRefunds(dispute object) {
	for _, refund := range s.refundsOf(text(dispute, "charge")) {
		if unsettled(refund) {
			s.endRefund(nil, refund, "failed", "charge_for_pending_refund_disputed")
		}
	}
}

// escalate turns an inquiry into a dispute.
func (s *Server) escalate(o object) {
	previous := s.withdraw(o)
	s.raise(nil, "charge.dispute.updated", o, previous)
	s.raise(nil, "charge.dispute.funds_withdrawn", o, nil)
	s.failDisputedRefunds(o)
}

// closeDispute ends a dispute as lost, or an inquiry as warning_closed.
func (s *Server) closeDispute(c *call, o object, status string) {
	s.setAlarm("dispute", o, 0)
	previous := s.change("dispute", o, object{"status": status})
	s.raise(c, "charge.dispute.closed", o, previous)
}

// reinstate ends a dispute with money that comes back: won with all of it and the
// fee, partly won, which Stripe calls lost, with a part.
func (s *Server) reinstate(o object, status string, amount int64) {
	s.setAlarm("dispute", o, 0)
	txns, _ := o["balance_transactions"].([]any)
	back := s.view(s.moveDispute(o, amount, status == "won" && !s.switches.KeepDisputeFee), nil)
	previous := s.change("dispute", o, object{"status": status, "is_charge_refundable": status == "won", "balance_transactions": append(slices.Clone(txns), back)})
	s.raise(nil, "charge.dispute.closed", o, previous)
	s.raise(nil, "charge.dispute.funds_reinstated", o, nil)
}

// disputeFallsDue happens when nobody has sent evidence in time, when an inquiry
// has come to nothing, and when the bank has reviewed what was sent: Stripe's test
// mode lets the evidence itself say what comes of it.
func (s *Server) disputeFallsDue(o object) {
	switch text(o, "status") {
	case "needs_response":
		o["evidence_details"] = laidOver(child(o, "evidence_details"), object{"past_due": true})
		s.closeDispute(nil, o, "lost")
	case "warning_needs_response", "warning_under_review":
		if text(child(o, "evidence"), "uncategorized_text") == "escalate_inquiry_evidence" {
			s.escalate(o)
			return
		}
		s.closeDispute(nil, o, "warning_closed")
	case "under_review":
		if text(child(o, "evidence"), "uncategorized_text") == "winning_evidence" {
			s.reinstate(o, "won", number(o, "amount"))
			return
		}
		s.closeDispute(nil, o, "lost")
	}
}

func (s *Server) updateDispute(c *call) (object, *apiError) {
	o, err := s.find("dispute", c.target(), "dispute")
	if err != nil {
		return nil, err
	}
	changes, size, submit := object{}, 0, !c.has("submit") || flag(c.values, "submit")
	evidence := laidOver(child(o, "evidence"), nil)
	for name := range c.child("evidence").values {
		evidence[name] = c.child("evidence").orNull(name)
	}
	has := c.has("evidence") || flag(child(o, "evidence_details"), "has_evidence")
	for _, v := range evidence {
		if t, ok := v.(string); ok {
			size += len(t)
		}
	}
	open := text(o, "status") == "needs_response" || text(o, "status") == "warning_needs_response"
	switch {
	case (c.has("evidence") || c.has("submit")) && !open:
		return nil, invalid("", "", "The evidence of this dispute can no longer be changed: it has a status of %s.", text(o, "status"))
	case size > evidenceMost:
		return nil, invalid("evidence", "", "The combined character count of the evidence is limited to 150,000.")
	}
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(o, "metadata"), c.metadata())
	}
	if c.has("evidence") {
		changes["evidence"] = evidence
	}
	if open && (c.has("evidence") || c.has("submit")) {
		details := object{"has_evidence": has}
		if submit && has {
			changes["status"] = map[string]string{"needs_response": "under_review", "warning_needs_response": "warning_under_review"}[text(o, "status")]
			details["submission_count"] = number(child(o, "evidence_details"), "submission_count") + 1
			s.setAlarm("dispute", o, s.later(reviewTakes))
		}
		changes["evidence_details"] = laidOver(child(o, "evidence_details"), details)
	}
	if previous := s.change("dispute", o, changes); len(previous) > 0 {
		s.raise(c, "charge.dispute.updated", o, previous)
	}
	return o, nil
}

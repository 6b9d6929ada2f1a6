package stripesim

import (
	"slices"
	"strconv"
)

// Times of refunds, in seconds, where the switch settle_seconds does not say.
const (
	refundDays      = 5 * 24 * 3600
	refundFailsIn   = 7 * 24 * 3600
	refundActionFor = 45 * 24 * 3600
)

func (s *Server) routeRefunds() {
	s.agenda.do["refund"] = func(o object) { s.refundFallsDue(o) }
	create := spec{
		"charge": "string", "payment_intent": "string", "amount": "int", "reason": "string", "metadata": "map", "currency": "string",
		"refund_application_fee": "bool", "reverse_transfer": "bool", "instructions_email": "string",
	}
	s.handle("POST /v1/refunds", create, func(c *call) (object, *apiError) { return s.makeRefund(c) })
	s.handle("GET /v1/refunds/{id}", nil, func(c *call) (object, *apiError) { return s.find("refund", c.target(), "id") })
	s.handle("POST /v1/refunds/{id}", spec{"metadata": "map"}, func(c *call) (object, *apiError) {
		o, err := s.find("refund", c.target(), "id")
		if err != nil {
			return nil, err
		}
		previous := s.change("refund", o, object{"metadata": mergeMetadata(child(o, "metadata"), c.metadata())})
		if len(previous) > 0 {
			s.tellRefund(c, o, previous)
		}
		return o, nil
	})
	s.handle("POST /v1/refunds/{id}/cancel", nil, func(c *call) (object, *apiError) {
		o, err := s.find("refund", c.target(), "id")
		if err != nil {
			return nil, err
		}
		if !unsettled(o) {
			return nil, invalid("", "", "This refund (%s) cannot be canceled because it has a status of %s.", text(o, "id"), text(o, "status"))
		}
		s.endRefund(c, o, "canceled", nil)
		return o, nil
	})
	s.handle("POST /v1/test_helpers/refunds/{id}/expire", nil, func(c *call) (object, *apiError) {
		o, err := s.find("refund", c.target(), "refund")
		if err != nil {
			return nil, err
		}
		if text(o, "status") != "requires_action" {
			return nil, invalid("", "", "This refund (%s) cannot be expired because it has a status of %s. Only a refund with a status of requires_action can be expired.", text(o, "id"), text(o, "status"))
		}
		s.endRefund(c, o, "failed", "unknown")
		return o, nil
	})
	filters := spec{"charge": "string", "payment_intent": "string", "created": createdSpec}
	s.handle("GET /v1/refunds", listSpec(filters), func(c *call) (object, *apiError) {
		return s.list(c, "refund", func(o object) bool {
			return (!c.has("charge") || text(o, "charge") == c.text("charge")) &&
				(!c.has("payment_intent") || text(o, "payment_intent") == c.text("payment_intent")) && inRange(c, number(o, "created"))
		})
	})
}

// unsettled tells whether a refund's end is still open.
func unsettled(refund object) bool {
	return text(refund, "status") == "pending" || text(refund, "status") == "requires_action"
}

// refundsOf gives the refunds of a charge, newest first.
func (s *Server) refundsOf(charge string) []object {
	refunds := s.store.shelf("refund").with("charge", charge)
	slices.Reverse(refunds)
	return refunds
}

// refunded is what the refunds of a charge add up to as its amount_refunded, those
// that ended without moving money left out.
func (s *Server) refunded(charge string) (sum int64) {
	for _, r := range s.refundsOf(charge) {
		if st := text(r, "status"); st == "succeeded" || (unsettled(r) && !s.switches.PendingRefundsUncounted) {
			sum += number(r, "amount")
		}
	}
	return sum
}

// promised is what the refunds of a charge add up to, with all that may yet succeed.
func (s *Server) promised(charge string) (sum int64) {
	for _, r := range s.refundsOf(charge) {
		if st := text(r, "status"); st != "failed" && st != "canceled" {
			sum += number(r, "amount")
		}
	}
	return sum
}

func (s *Server) makeRefund(c *call) (object, *apiError) {
	charge, err := s.refundedCharge(c)
	if err == nil {
		err = c.mustBeOneOf("reason", "duplicate", "fraudulent", "requested_by_customer")
	}
	if err != nil {
		return nil, err
	}
	if c.has("amount") && c.number("amount") < 1 {
		return nil, invalid("amount", "parameter_invalid_integer", "Refund amount must be at least 1.")
	}
	return s.refundCharge(c, charge, c.number("amount"), c.orNull("reason"), c.metadata())
}

func (s *Server) refundedCharge(c *call) (object, *apiError) {
	id := c.text("charge")
	if pi := c.text("payment_intent"); pi != "" {
		if id != "" {
			return nil, invalid("", "", "You may only specify one of these parameters: payment_intent, charge.")
		}
		intent, err := s.find("payment_intent", pi, "payment_intent")
		if err != nil {
			return nil, err
		}
		charge := s.store.get("charge", text(intent, "latest_charge"))
		if charge == nil || text(charge, "status") != "succeeded" {
			return nil, invalid("payment_intent", "", "This PaymentIntent (%s) does not have a successful charge to refund.", pi)
		}
		return charge, nil
	}
	if id == "" {
		return nil, invalid("", "parameter_missing", "One of the following params should be provided for this request: payment_intent or charge.")
	}
	return s.find("charge", id, "charge")
}

// refundCharge gives an amount of a charge back, or all that is left of it for an
// amount of 0.
func (s *Server) refundCharge(c *call, charge object, amount int64, reason any, metadata object) (object, *apiError) {
	id := text(charge, "id")
	left := number(charge, "amount") - s.promised(id)
	if amount == 0 {
		amount = left
	}
	switch {
	case text(charge, "status") != "succeeded":
		return nil, invalid("", "charge_not_refundable", "Charge %s has a status of %s: only a charge that has succeeded can be refunded.", id, text(charge, "status"))
	case s.chargedBack(id):
		return nil, invalid("", "charge_disputed", "Charge %s has been charged back; cannot issue a refund.", id)
	case left == 0:
		return nil, invalid("", "charge_already_refunded", "Charge %s has already been refunded.", id)
	case amount < 1:
		return nil, invalid("amount", "parameter_invalid_integer", "Refund amount must be at least 1.")
	case amount > left:
		return nil, invalid("amount", "", "Refund amount (%d) is greater than unrefunded amount on charge (%d)", amount, left)
	case !flag(charge, "captured") && text(charge, "payment_intent") != "":
		return nil, invalid("", "charge_not_refundable", "Charge %s is not captured: cancel PaymentIntent %s instead.", id, text(charge, "payment_intent"))
	case !flag(charge, "captured") && amount < left:
		return nil, invalid("amount", "", "You cannot partially refund an uncaptured charge. Instead, capture the charge for an amount less than the original amount.")
	case !flag(charge, "captured"):
		refund, previous := s.releaseCharge(charge, reason)
		s.raise(c, "charge.refunded", charge, previous)
		return refund, nil
	}
	status := s.firstStatus(charge, metadata)
	o := s.keepRefund(charge, amount, reason, metadata, status, false)
	if status == "requires_action" {
		s.askForAccount(c, o)
	}
	changes := object{"amount_refunded": s.refunded(id), "refunded": s.refunded(id) == number(charge, "amount")}
	if reason == "fraudulent" {
		changes["fraud_details"] = laidOver(child(charge, "fraud_details"), object{"user_report": "fraudulent"})
	}
	// One event for each refund that counts, even where amount_refunded comes out as a
	// failed refund had left it.
	if previous := s.change("charge", charge, changes); len(previous) > 0 || status == "succeeded" {
		s.raise(c, "charge.refunded", charge, previous)
	}
	if s.switches.RefundEvents {
		s.raise(c, "refund.created", o, nil)
	}
	return o, nil
}

// firstStatus is how a refund begins: pending for a bank account, for a card whose
// refunds take a while, by a switch, and by the metadata sim_status.
func (s *Server) firstStatus(charge, metadata object) string {
	test := actsAs(s.store.get("payment_method", text(charge, "payment_method")))
	switch status := text(metadata, "sim_status"); {
	case status == "pending" || status == "requires_action":
		return status
	case s.switches.RefundsPending || test.bank() || test.refund == "pending":
		return "pending"
	}
	return "succeeded"
}

// keepRefund makes a refund. One of money that was only held moves nothing.
func (s *Server) keepRefund(charge object, amount int64, reason any, metadata object, status string, held bool) object {
	test := actsAs(s.store.get("payment_method", text(charge, "payment_method")))
	prefix, destination := "re", object{"card": object{"type": "refund"}, "type": "card"}
	switch {
	case test.bank():
		prefix, destination = "pyr", object{"type": "us_bank_transfer", "us_bank_transfer": object{"reference": nil, "reference_status": "pending"}}
	case held:
		destination = object{"card": object{"type": "reversal"}, "type": "card"}
	}
	o := object{
		"id": s.newID(prefix), "object": "refund", "created": s.now(), "amount": amount, "currency": charge["currency"], "charge": charge["id"],
		"payment_intent": charge["payment_intent"], "metadata": metadata, "reason": reason, "status": status, "balance_transaction": nil,
		"destination_details": destination, "receipt_number": nil, "source_transfer_reversal": nil, "transfer_reversal": nil, "_held": held,
	}
	if !held && status != "requires_action" {
		o["balance_transaction"] = s.moveRefund(o, test.bank(), false)["id"]
	}
	told := text(metadata, "sim_status") != "" || s.switches.RefundsPending
	switch {
	case held || told:
	case status == "pending":
		s.setAlarm("refund", o, s.later(refundDays))
	case test.refund == "failed":
		s.setAlarm("refund", o, s.later(refundFailsIn))
	}
	s.store.put("refund", o)
	return o
}

// askForAccount lets a refund wait for the buyer, whom Stripe asks by mail where
// the money is to go.
func (s *Server) askForAccount(c *call, refund object) {
	mail := c.text("instructions_email")
	if mail == "" {
		mail = "buyer@example.com"
	}
	expires := s.now() + refundActionFor
	s.setAlarm("refund", refund, s.ownNow()+refundActionFor)
	s.change("refund", refund, object{"instructions_email": mail, "next_action": object{
		"type": "display_details", "display_details": object{"email_sent": object{"email_sent_at": s.now(), "email_sent_to": mail}, "expires_at": expires},
	}})
}

// refundFallsDue is what happens to a refund by itself.
func (s *Server) refundFallsDue(refund object) {
	switch text(refund, "status") {
	case "pending":
		s.settleRefund(nil, refund)
	case "succeeded":
		s.endRefund(nil, refund, "failed", "expired_or_canceled_card")
	case "requires_action":
		s.endRefund(nil, refund, "failed", "unknown")
	}
}

// settleRefund lets a refund succeed that was pending.
func (s *Server) settleRefund(c *call, refund object) {
	s.setAlarm("refund", refund, 0)
	delete(refund, "next_action")
	changes := object{"status": "succeeded"}
	charge := s.store.get("charge", text(refund, "charge"))
	if refund["balance_transaction"] == nil {
		bank := actsAs(s.store.get("payment_method", text(charge, "payment_method"))).bank()
		changes["balance_transaction"] = s.moveRefund(refund, bank, false)["id"]
	}
	previous := s.change("refund", refund, changes)
	sum := s.refunded(text(charge, "id"))
	if before := s.change("charge", charge, object{"amount_refunded": sum, "refunded": sum == number(charge, "amount")}); len(before) > 0 {
		s.raise(c, "charge.refunded", charge, before)
	}
	s.tellRefund(c, refund, previous)
}

// tellRefund raises the event of a changed refund, and the newer one where the
// account has it.
func (s *Server) tellRefund(c *call, refund, previous object) {
	s.raise(c, "charge.refund.updated", refund, previous)
	if s.switches.RefundEvents {
		s.raise(c, "refund.updated", refund, previous)
	}
}

// endRefund lets a refund fail or be cancelled: the money is back with the seller.
func (s *Server) endRefund(c *call, o object, status string, reason any) {
	s.setAlarm("refund", o, 0)
	delete(o, "next_action")
	changes := object{"status": status}
	if status == "failed" {
		changes["failure_reason"] = reason
	}
	charge := s.store.get("charge", text(o, "charge"))
	if o["balance_transaction"] != nil {
		bank := actsAs(s.store.get("payment_method", text(charge, "payment_method"))).bank()
		changes["failure_balance_transaction"] = s.moveRefund(o, bank, true)["id"]
	}
	previous := s.change("refund", o, changes)
	for name := range previous {
		if previous[name] == nil {
			delete(previous, name) // what the refund did not have before
		}
	}
	if !s.switches.KeepAmountRefunded {
		sum := s.refunded(text(charge, "id"))
		s.change("charge", charge, object{"amount_refunded": sum, "refunded": sum == number(charge, "amount")})
	}
	s.tellRefund(c, o, previous)
	if s.switches.RefundEvents && status == "failed" {
		s.raise(c, "refund.failed", o, previous)
	}
}

// refundStateError says that a refund cannot be told to end so.
func refundStateError(refund object, status string) error {
	return invalid("", "", "refund %s has a status of %s and cannot become %s", strconv.Quote(text(refund, "id")), text(refund, "status"), status)
}

package stripesim

import "slices"

func (s *Server) routeRefunds() {
	create := spec{"charge": "string", "payment_intent": "string", "amount": "int", "reason": "string", "metadata": "map"}
	s.handle("POST /v1/refunds", create, func(c *call) (object, *apiError) { return s.makeRefund(c) })
	s.handle("GET /v1/refunds/{id}", nil, func(c *call) (object, *apiError) { return s.find("refund", c.target(), "id") })
	s.handle("POST /v1/refunds/{id}", spec{"metadata": "map"}, func(c *call) (object, *apiError) {
		o, err := s.find("refund", c.target(), "id")
		if err != nil {
			return nil, err
		}
		previous := s.change("refund", o, object{"metadata": mergeMetadata(child(o, "metadata"), c.metadata())})
		s.raise(c, "charge.refund.updated", o, previous)
		return o, nil
	})
	s.handle("POST /v1/refunds/{id}/cancel", nil, func(c *call) (object, *apiError) {
		o, err := s.find("refund", c.target(), "id")
		if err != nil {
			return nil, err
		}
		if text(o, "status") != "pending" && text(o, "status") != "requires_action" {
			return nil, invalid("", "", "This refund (%s) cannot be canceled because it has a status of %s.", text(o, "id"), text(o, "status"))
		}
		s.endRefund(c, o, "canceled", nil)
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

// refundsOf gives the refunds of a charge, newest first.
func (s *Server) refundsOf(charge string) []object {
	refunds := s.store.shelf("refund").with("charge", charge)
	slices.Reverse(refunds)
	return refunds
}

// refunded is what the refunds of a charge add up to, those that ended without
// moving money left out.
func (s *Server) refunded(charge string) (sum int64) {
	for _, r := range s.refundsOf(charge) {
		if st := text(r, "status"); st != "failed" && st != "canceled" {
			sum += number(r, "amount")
		}
	}
	return sum
}

func (s *Server) makeRefund(c *call) (object, *apiError) {
	charge, err := s.refundedCharge(c)
	if err != nil {
		return nil, err
	}
	id := text(charge, "id")
	left := number(charge, "amount_captured") - s.refunded(id)
	amount := left
	if c.has("amount") {
		amount = c.number("amount")
	}
	switch {
	case left == 0:
		return nil, invalid("", "charge_already_refunded", "Charge %s has already been refunded.", id)
	case amount < 1:
		return nil, invalid("amount", "parameter_invalid_integer", "Refund amount must be at least 1.")
	case amount > left:
		return nil, invalid("amount", "", "Refund amount (%d) is greater than unrefunded amount on charge (%d)", amount, left)
	}
	status := "succeeded"
	if v := text(child(c.values, "metadata"), "sim_status"); v == "pending" {
		status = v
	}
	o := object{
		"id": s.newID("re"), "object": "refund", "created": s.now(), "amount": amount, "currency": charge["currency"], "charge": id,
		"payment_intent": charge["payment_intent"], "metadata": c.metadata(), "reason": c.orNull("reason"), "status": status,
		"balance_transaction": s.newID("txn"), "destination_details": object{"card": object{"type": "refund"}, "type": "card"},
		"receipt_number": nil, "source_transfer_reversal": nil, "transfer_reversal": nil,
	}
	s.store.put("refund", o)
	previous := s.change("charge", charge, object{"amount_refunded": s.refunded(id), "refunded": s.refunded(id) == number(charge, "amount")})
	s.raise(c, "charge.refunded", charge, previous)
	if s.switches.RefundEvents {
		s.raise(c, "refund.created", o, nil)
	}
	return o, nil
}

func (s *Server) refundedCharge(c *call) (object, *apiError) {
	id := c.text("charge")
	if pi := c.text("payment_intent"); pi != "" {
		intent, err := s.find("payment_intent", pi, "payment_intent")
		if err != nil {
			return nil, err
		}
		if id = text(intent, "latest_charge"); id == "" {
			return nil, invalid("payment_intent", "", "This PaymentIntent (%s) does not have a successful charge to refund.", pi)
		}
	}
	if id == "" {
		return nil, invalid("", "parameter_missing", "One of the following params should be provided for this request: payment_intent or charge.")
	}
	return s.find("charge", id, "charge")
}

// endRefund lets a refund fail or be cancelled: the money is back with the seller.
func (s *Server) endRefund(c *call, o object, status string, reason any) {
	changes := object{"status": status}
	if status == "failed" {
		changes["failure_reason"] = reason
		changes["failure_balance_transaction"] = s.newID("txn")
	}
	previous := s.change("refund", o, changes)
	charge := s.store.get("charge", text(o, "charge"))
	if !s.switches.KeepAmountRefunded {
		sum := s.refunded(text(charge, "id"))
		s.change("charge", charge, object{"amount_refunded": sum, "refunded": sum == number(charge, "amount")})
	}
	s.raise(c, "charge.refund.updated", o, previous)
	if s.switches.RefundEvents {
		s.raise(c, "refund."+map[string]string{"failed": "failed", "canceled": "updated"}[status], o, previous)
	}
}

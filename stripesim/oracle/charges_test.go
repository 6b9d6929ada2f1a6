package oracle

// chargeRules are those of charges.
var chargeRules = []rule{
	getRule("charge", "/v1/charges/"),
	{"POST /v1/charges/{}", func(o *oracle, e *entry) verdict {
		return accept(o.get("charge", e.target("/v1/charges/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.updated(e, o.get("charge", e.target("/v1/charges/")), "charge.updated", true, "description")
	}},
	listRule("charge"),
}

// newCharge enters a charge of an intent, of which the answer says no more than the
// id, and that not always.
func (o *oracle) newCharge(intent, method *thing, status string, captured bool) *thing {
	prefix := "ch"
	if method.acts().bank {
		prefix = "py"
	}
	charge := o.born("charge", prefix, map[string]any{
		"amount": intent.members["amount"], "amount_captured": int64(0), "amount_refunded": int64(0), "captured": captured, "refunded": false,
		"paid": status == "succeeded", "status": status, "disputed": false, "payment_intent": intent, "customer": intent.members["customer"],
		"currency": intent.members["currency"], "metadata": metadataOf(nil, intent.members["metadata"]), "description": intent.members["description"],
		"payment_method": method, "failure_code": nil, "balance_transaction": nil, "failure_balance_transaction": nil, "fraud_details": map[string]any{},
		"invoice": intent.members["invoice"],
	})
	switch {
	case status == "failed":
	case captured:
		charge.members["amount_captured"] = charge.members["amount"]
		charge.members["balance_transaction"] = o.earned(charge)
	default:
		o.plan(charge, o.after(authorized), func() {
			o.release(charge, "expired_uncaptured_charge")
			o.raised(nil, "charge.expired", charge)
			o.cancelled(nil, intent, "automatic")
		})
	}
	return charge
}

// givenBack enters the refund of money that was only held: it moves none.
func (o *oracle) givenBack(charge *thing, amount int64, reason any) {
	prefix := "re"
	if charge.of("payment_method").acts().bank {
		prefix = "pyr"
	}
	o.born("refund", prefix, map[string]any{
		"amount": amount, "charge": charge, "payment_intent": charge.members["payment_intent"], "currency": charge.members["currency"],
		"metadata": map[string]any{}, "status": "succeeded", "reason": reason, "balance_transaction": nil, "failure_balance_transaction": nil,
		"failure_reason": nil, "_held": true,
	})
}

// release gives all of a held charge back.
func (o *oracle) release(charge *thing, reason any) {
	o.forget(charge)
	o.givenBack(charge, charge.number("amount"), reason)
	charge.members["amount_refunded"], charge.members["refunded"] = charge.members["amount"], true
}

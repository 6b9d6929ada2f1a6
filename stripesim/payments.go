package stripesim

import "strings"

var intentParams = spec{
	"amount": "int", "currency": "string", "customer": "string", "description": "string", "metadata": "map", "confirm": "bool",
	"payment_method": "string", "capture_method": "string", "receipt_email": "string", "payment_method_types": listOf{"string"},
	"automatic_payment_methods": spec{"enabled": "bool", "allow_redirects": "string"}, "setup_future_usage": "string", "off_session": "bool",
}

func (s *Server) routePayments() {
	s.handle("POST /v1/payment_intents", intentParams, func(c *call) (object, *apiError) {
		if err := c.require("amount", "currency"); err != nil {
			return nil, err
		}
		if c.number("amount") <= 0 {
			return nil, invalid("amount", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
		}
		if customer := c.text("customer"); customer != "" {
			if _, err := s.find("customer", customer, "customer"); err != nil {
				return nil, err
			}
		}
		pi := s.makeIntent(c, c.number("amount"), strings.ToLower(c.text("currency")), c.orNull("customer"), c.metadata())
		if c.has("capture_method") {
			s.change("payment_intent", pi, object{"capture_method": c.text("capture_method")})
		}
		if flag(c.values, "confirm") {
			return pi, s.confirm(c, pi, c.text("payment_method"))
		}
		return pi, nil
	})
	s.handle("GET /v1/payment_intents/{id}", spec{"client_secret": "string"}, func(c *call) (object, *apiError) {
		return s.find("payment_intent", c.target(), "intent")
	})
	s.handle("POST /v1/payment_intents/{id}", intentParams, func(c *call) (object, *apiError) {
		pi, err := s.find("payment_intent", c.target(), "intent")
		if err != nil {
			return nil, err
		}
		changes := object{}
		for _, name := range []string{"amount", "description", "customer", "receipt_email"} {
			if c.has(name) {
				changes[name] = c.values[name]
			}
		}
		if c.has("metadata") {
			changes["metadata"] = mergeMetadata(child(pi, "metadata"), c.metadata())
		}
		s.change("payment_intent", pi, changes) // raises no event: Stripe has no payment_intent.updated
		return pi, nil
	})
	s.routeIntentSteps()
	s.handle("GET /v1/payment_intents", listSpec(spec{"customer": "string", "created": createdSpec}), func(c *call) (object, *apiError) {
		return s.list(c, "payment_intent", func(o object) bool {
			return (!c.has("customer") || text(o, "customer") == c.text("customer")) && inRange(c, number(o, "created"))
		})
	})
	s.routeCharges()
}

// routeIntentSteps mounts what moves an intent from one state to the next.
func (s *Server) routeIntentSteps() {
	s.handle("POST /v1/payment_intents/{id}/confirm", spec{"payment_method": "string", "return_url": "string"}, func(c *call) (object, *apiError) {
		pi, err := s.find("payment_intent", c.target(), "intent")
		if err != nil {
			return nil, err
		}
		return pi, s.confirm(c, pi, c.text("payment_method"))
	})
	s.handle("POST /v1/payment_intents/{id}/capture", spec{"amount_to_capture": "int"}, func(c *call) (object, *apiError) {
		pi, err := s.find("payment_intent", c.target(), "intent")
		if err != nil {
			return nil, err
		}
		if text(pi, "status") != "requires_capture" {
			return nil, unexpectedState(pi, "captured")
		}
		charge := s.store.get("charge", text(pi, "latest_charge"))
		s.change("charge", charge, object{"captured": true, "amount_captured": number(pi, "amount")})
		s.change("payment_intent", pi, object{"status": "succeeded", "amount_received": number(pi, "amount"), "amount_capturable": int64(0)})
		s.raise(c, "charge.captured", charge, nil)
		s.raise(c, "payment_intent.succeeded", pi, nil)
		return pi, nil
	})
	s.handle("POST /v1/payment_intents/{id}/cancel", spec{"cancellation_reason": "string"}, func(c *call) (object, *apiError) {
		pi, err := s.find("payment_intent", c.target(), "intent")
		if err != nil {
			return nil, err
		}
		if st := text(pi, "status"); st == "succeeded" || st == "canceled" {
			return nil, unexpectedState(pi, "canceled")
		}
		s.change("payment_intent", pi, object{"status": "canceled", "canceled_at": s.now(), "cancellation_reason": c.orNull("cancellation_reason")})
		s.raise(c, "payment_intent.canceled", pi, nil)
		return pi, nil
	})
}

func (s *Server) routeCharges() {
	s.handle("GET /v1/charges/{id}", nil, func(c *call) (object, *apiError) { return s.find("charge", c.target(), "id") })
	s.handle("POST /v1/charges/{id}", spec{"metadata": "map", "description": "string", "receipt_email": "string"}, func(c *call) (object, *apiError) {
		return s.update(c, "charge")
	})
	s.handle("GET /v1/charges", listSpec(spec{"customer": "string", "payment_intent": "string", "created": createdSpec}), func(c *call) (object, *apiError) {
		return s.list(c, "charge", func(o object) bool {
			return (!c.has("customer") || text(o, "customer") == c.text("customer")) &&
				(!c.has("payment_intent") || text(o, "payment_intent") == c.text("payment_intent")) && inRange(c, number(o, "created"))
		})
	})
}

func unexpectedState(pi object, verb string) *apiError {
	return &apiError{
		status: 400, typ: "invalid_request_error", code: "payment_intent_unexpected_state",
		message: "This PaymentIntent could not be " + verb + " because it has a status of " + text(pi, "status") + ".",
	}
}

func (s *Server) makeIntent(c *call, amount int64, currency string, customer any, metadata object) object {
	id := s.newID("pi")
	pi := object{
		"id": id, "object": "payment_intent", "created": s.now(), "livemode": false, "amount": amount, "currency": currency, "customer": customer,
		"metadata": metadata, "status": "requires_payment_method", "amount_capturable": int64(0), "amount_details": object{"tip": object{}},
		"amount_received": int64(0), "application": nil, "application_fee_amount": nil, "automatic_payment_methods": nil, "canceled_at": nil,
		"cancellation_reason": nil, "capture_method": "automatic", "client_secret": id + "_secret_" + s.newID("x")[2:], "confirmation_method": "automatic",
		"description": nil, "invoice": nil, "last_payment_error": nil, "latest_charge": nil, "next_action": nil, "on_behalf_of": nil,
		"payment_method": nil, "payment_method_configuration_details": nil, "payment_method_options": object{}, "payment_method_types": []any{"card"},
		"processing": nil, "receipt_email": nil, "review": nil, "setup_future_usage": nil, "shipping": nil,
		"statement_descriptor": nil, "statement_descriptor_suffix": nil, "transfer_data": nil, "transfer_group": nil,
	}
	s.store.put("payment_intent", pi)
	s.raise(c, "payment_intent.created", pi, nil)
	return pi
}

// confirm charges the intent. The test payment methods of Stripe that decline do.
func (s *Server) confirm(c *call, pi object, method string) *apiError {
	switch text(pi, "status") {
	case "requires_payment_method", "requires_confirmation", "requires_action":
	default:
		return unexpectedState(pi, "confirmed")
	}
	if strings.Contains(method, "chargeDeclined") {
		return s.decline(c, pi)
	}
	if text(pi, "capture_method") == "manual" {
		charge := s.makeCharge(c, pi, false)
		s.change("payment_intent", pi, object{"status": "requires_capture", "latest_charge": charge["id"], "amount_capturable": number(pi, "amount")})
		s.raise(c, "payment_intent.amount_capturable_updated", pi, nil)
		return nil
	}
	s.succeed(c, pi)
	return nil
}

// succeed makes the charge and settles the intent.
func (s *Server) succeed(c *call, pi object) {
	charge := s.makeCharge(c, pi, true)
	s.change("payment_intent", pi, object{"status": "succeeded", "latest_charge": charge["id"], "amount_received": number(pi, "amount"), "payment_method": charge["payment_method"]})
	s.raise(c, "payment_intent.succeeded", pi, nil)
	s.settleInvoice(c, pi, true)
}

func (s *Server) decline(c *call, pi object) *apiError {
	failure := object{
		"type": "card_error", "code": "card_declined", "decline_code": "generic_decline", "message": "Your card was declined.",
		"doc_url": "https://stripe.com/docs/error-codes/card-declined",
	}
	s.change("payment_intent", pi, object{"last_payment_error": failure})
	s.raise(c, "payment_intent.payment_failed", pi, nil)
	s.settleInvoice(c, pi, false)
	return &apiError{
		status: 402, typ: "card_error", code: "card_declined", message: "Your card was declined.", stored: true,
		extra: object{"decline_code": "generic_decline", "payment_intent": s.view(pi, nil)},
	}
}

func (s *Server) makeCharge(c *call, pi object, captured bool) object {
	amountCaptured := int64(0)
	if captured {
		amountCaptured = number(pi, "amount")
	}
	metadata := object{}
	for k, v := range child(pi, "metadata") {
		metadata[k] = v // copied at this moment: later changes of the intent do not reach the charge
	}
	charge := object{
		"id": s.newID("ch"), "object": "charge", "created": s.now(), "livemode": false, "amount": number(pi, "amount"), "currency": pi["currency"],
		"amount_captured": amountCaptured, "amount_refunded": int64(0), "captured": captured, "paid": true, "refunded": false, "disputed": false,
		"status": "succeeded", "payment_intent": pi["id"], "customer": pi["customer"], "metadata": metadata, "application": nil, "application_fee": nil,
		"application_fee_amount": nil, "balance_transaction": s.newID("txn"), "calculated_statement_descriptor": nil, "description": nil,
		"billing_details": object{
			"address": object{"city": nil, "country": nil, "line1": nil, "line2": nil, "postal_code": nil, "state": nil},
			"email":   nil, "name": nil, "phone": nil,
		},
		"failure_balance_transaction": nil, "failure_code": nil, "failure_message": nil, "fraud_details": object{}, "invoice": nil, "on_behalf_of": nil,
		"outcome": nil, "payment_method": s.newID("pm"), "payment_method_details": nil, "receipt_email": nil, "receipt_number": nil, "receipt_url": nil,
		"review": nil, "shipping": nil, "source_transfer": nil, "statement_descriptor": nil, "statement_descriptor_suffix": nil,
		"transfer_data": nil, "transfer_group": nil,
	}
	s.store.put("charge", charge)
	s.raise(c, "charge.succeeded", charge, nil)
	return charge
}

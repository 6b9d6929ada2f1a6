package stripesim

import "strings"

var methodDataParams = spec{"type": "string", "billing_details": billingParams, "metadata": "map", "allow_redisplay": "string", "card": methodParams["card"], "us_bank_account": methodParams["us_bank_account"]}

var intentParams = spec{
	"amount": "int", "currency": "string", "customer": "string", "description": "string", "metadata": "map", "confirm": "bool",
	"payment_method": "string", "payment_method_data": methodDataParams, "capture_method": "string", "confirmation_method": "string", "receipt_email": "string", "payment_method_types": listOf{"string"},
	"automatic_payment_methods": spec{"enabled": "bool", "allow_redirects": "string"}, "setup_future_usage": "string", "off_session": "string",
	"return_url": "string", "error_on_requires_action": "bool", "shipping": shippingParams, "statement_descriptor": "string", "statement_descriptor_suffix": "string",
	"transfer_group": "string", "use_stripe_sdk": "bool",
}

// intentMembers are the members of an intent that a call sets plainly.
var intentMembers = []string{"description", "receipt_email", "setup_future_usage", "statement_descriptor", "statement_descriptor_suffix", "transfer_group", "capture_method", "confirmation_method"}

func (s *Server) routePayments() {
	s.agenda.do["payment_intent"] = func(o object) { s.settleIntent(nil, o, actsAs(s.methodOf(o)).code == "") }
	s.handle("POST /v1/payment_intents", intentParams, func(c *call) (object, *apiError) { return s.createIntent(c) })
	s.handle("GET /v1/payment_intents/{id}", spec{"client_secret": "string"}, func(c *call) (object, *apiError) {
		return s.find("payment_intent", c.target(), "intent")
	})
	s.handle("POST /v1/payment_intents/{id}", without(intentParams, "confirm", "off_session", "return_url", "error_on_requires_action", "use_stripe_sdk", "automatic_payment_methods", "confirmation_method"),
		func(c *call) (object, *apiError) { return s.updateIntent(c) })
	s.routeIntentSteps()
	s.handle("GET /v1/payment_intents", listSpec(spec{"customer": "string", "created": createdSpec}), func(c *call) (object, *apiError) {
		return s.list(c, "payment_intent", func(o object) bool {
			return (!c.has("customer") || text(o, "customer") == c.text("customer")) && inRange(c, number(o, "created"))
		})
	})
	s.routeMethods()
	s.routeCharges()
	s.routeDisputes()
	s.routeBalance()
	s.routePaymentControl()
}

// without is a spec that lacks some parameters.
func without(sp spec, names ...string) spec {
	less := spec{}
	for name, kind := range sp {
		less[name] = kind
	}
	for _, name := range names {
		delete(less, name)
	}
	return less
}

// routeIntentSteps mounts what moves an intent from one state to the next.
func (s *Server) routeIntentSteps() {
	confirm := spec{"client_secret": "string"}
	for _, name := range []string{
		"payment_method", "payment_method_data", "payment_method_types", "capture_method", "receipt_email", "setup_future_usage", "shipping", "off_session", "return_url",
		"error_on_requires_action", "use_stripe_sdk",
	} {
		confirm[name] = intentParams[name]
	}
	s.handle("POST /v1/payment_intents/{id}/confirm", confirm, func(c *call) (object, *apiError) { return s.confirmIntent(c) })
	capture := spec{"amount_to_capture": "int", "final_capture": "bool", "metadata": "map", "statement_descriptor": "string", "statement_descriptor_suffix": "string"}
	s.handle("POST /v1/payment_intents/{id}/capture", capture, func(c *call) (object, *apiError) { return s.captureIntent(c) })
	s.handle("POST /v1/payment_intents/{id}/cancel", spec{"cancellation_reason": "string"}, func(c *call) (object, *apiError) {
		pi, err := s.find("payment_intent", c.target(), "intent")
		if err == nil {
			err = c.mustBeOneOf("cancellation_reason", "duplicate", "fraudulent", "requested_by_customer", "abandoned")
		}
		if err != nil {
			return nil, err
		}
		switch status := text(pi, "status"); status {
		case "requires_payment_method", "requires_capture", "requires_confirmation", "requires_action":
		default:
			return nil, s.unexpectedState(pi, "You cannot cancel this PaymentIntent because it has a status of "+status+". Only a PaymentIntent with one of the following statuses may be canceled: requires_payment_method, requires_capture, requires_confirmation, requires_action, processing.")
		}
		if charge := s.store.get("charge", text(pi, "latest_charge")); text(pi, "status") == "requires_capture" {
			_, previous := s.releaseCharge(charge, nil)
			s.raise(c, "charge.refunded", charge, previous)
		}
		s.endIntent(c, pi, c.orNull("cancellation_reason"))
		return pi, nil
	})
}

// endIntent cancels an intent.
func (s *Server) endIntent(c *call, pi object, reason any) {
	s.change("payment_intent", pi, object{"status": "canceled", "canceled_at": s.now(), "cancellation_reason": reason, "amount_capturable": int64(0), "next_action": nil})
	s.raise(c, "payment_intent.canceled", pi, nil)
}

// unexpectedState refuses a step that an intent's state does not allow.
func (s *Server) unexpectedState(pi object, message string) *apiError {
	return &apiError{
		status: 400, typ: "invalid_request_error", code: "payment_intent_unexpected_state", message: message, extra: object{"payment_intent": s.view(pi, nil)},
	}
}

func (s *Server) keepIntent(c *call, pi object) {
	s.store.put("payment_intent", pi)
	s.raise(c, "payment_intent.created", pi, nil)
}

// draftIntent makes an intent that is kept by nobody yet.
func (s *Server) draftIntent(amount int64, currency string, customer any, metadata object) object {
	id := s.newID("pi")
	return object{
		"id": id, "object": "payment_intent", "created": s.now(), "livemode": false, "amount": amount, "currency": currency, "customer": customer,
		"metadata": metadata, "status": "requires_payment_method", "amount_capturable": int64(0), "amount_details": object{"tip": object{}},
		"amount_received": int64(0), "application": nil, "application_fee_amount": nil, "automatic_payment_methods": nil, "canceled_at": nil,
		"cancellation_reason": nil, "capture_method": "automatic", "client_secret": id + "_secret_" + s.newID("x")[2:], "confirmation_method": "automatic",
		"description": nil, "invoice": nil, "last_payment_error": nil, "latest_charge": nil, "next_action": nil, "on_behalf_of": nil,
		"payment_method": nil, "payment_method_configuration_details": nil, "payment_method_options": object{}, "payment_method_types": []any{"card"},
		"processing": nil, "receipt_email": nil, "review": nil, "setup_future_usage": nil, "shipping": nil,
		"statement_descriptor": nil, "statement_descriptor_suffix": nil, "transfer_data": nil, "transfer_group": nil,
	}
}

// checkIntent refuses parameters that both a new and a changed intent refuse.
func (s *Server) checkIntent(c *call) *apiError {
	if customer := c.text("customer"); customer != "" {
		if _, err := s.liveCustomer(customer, "customer"); err != nil {
			return err
		}
	}
	if err := c.mustBeOneOf("capture_method", "automatic", "automatic_async", "manual"); err != nil {
		return err
	}
	if err := c.mustBeOneOf("confirmation_method", "automatic", "manual"); err != nil {
		return err
	}
	if err := c.mustBeOneOf("off_session", "true", "false", "one_off", "recurring"); err != nil {
		return err
	}
	if c.text("setup_future_usage") == "" {
		return nil
	}
	return c.mustBeOneOf("setup_future_usage", "off_session", "on_session")
}

func (s *Server) createIntent(c *call) (object, *apiError) {
	if err := c.checkAmount(); err != nil {
		return nil, err
	}
	if err := s.checkIntent(c); err != nil {
		return nil, err
	}
	currency := strings.ToLower(c.text("currency"))
	automatic := c.child("automatic_payment_methods")
	if flag(automatic.values, "enabled") && c.has("payment_method_types") {
		return nil, invalid("", "", "You may only specify one of these parameters: automatic_payment_methods, payment_method_types.")
	}
	changes := object{"shipping": fullShipping(c.child("shipping").values)}
	switch {
	case c.has("payment_method_types"):
		changes["payment_method_types"] = c.list("payment_method_types")
	case !automatic.has("enabled") || flag(automatic.values, "enabled"):
		redirects := "always"
		if automatic.has("allow_redirects") {
			redirects = automatic.text("allow_redirects")
		}
		changes["automatic_payment_methods"] = object{"allow_redirects": redirects, "enabled": true}
		if currency == "usd" {
			changes["payment_method_types"] = []any{"card", "us_bank_account"}
		}
	}
	for _, name := range intentMembers {
		if c.has(name) {
			changes[name] = c.orNull(name)
		}
	}
	pi := laidOver(s.draftIntent(c.number("amount"), currency, c.orNull("customer"), c.metadata()), changes)
	pm, err := s.methodGiven(c, pi)
	if err != nil {
		return nil, err
	}
	if flag(c.values, "confirm") && pm == nil {
		return nil, missingMethod()
	}
	if pm != nil {
		s.keepMethod(pm)
		pi["payment_method"], pi["status"] = pm["id"], "requires_confirmation"
	}
	s.keepIntent(c, pi)
	if flag(c.values, "confirm") {
		return pi, s.attempt(c, pi, pm)
	}
	return pi, nil
}

func missingMethod() *apiError {
	return &apiError{
		status: 400, typ: "invalid_request_error", code: "payment_intent_unexpected_state",
		message: "You cannot confirm this PaymentIntent because it's missing a payment method. You can either update the PaymentIntent with a payment method and then confirm it again, or confirm it again directly with a payment method or ConfirmationToken.",
	}
}

// methodGiven gives the payment method that a call names or describes, nil when it
// does neither. It is not kept yet.
func (s *Server) methodGiven(c *call, pi object) (object, *apiError) {
	var pm object
	var err *apiError
	switch {
	case c.text("payment_method") != "":
		pm, err = s.lookMethod(c.text("payment_method"))
	case c.child("payment_method_data").values != nil:
		pm, err = s.draftMethod(c.child("payment_method_data"), "payment_method_data")
	}
	if pm == nil || err != nil {
		return nil, err
	}
	types, _ := pi["payment_method_types"].([]any)
	return pm, payable(pm, text(pi, "customer"), types)
}

func (s *Server) updateIntent(c *call) (object, *apiError) {
	pi, err := s.find("payment_intent", c.target(), "intent")
	if err == nil {
		err = s.checkIntent(c)
	}
	if err != nil {
		return nil, err
	}
	status := text(pi, "status")
	open := status == "requires_payment_method" || status == "requires_confirmation" || status == "requires_action"
	for _, name := range []string{"amount", "currency", "customer", "payment_method", "payment_method_data", "payment_method_types", "capture_method", "setup_future_usage"} {
		if c.has(name) && !open {
			e := s.unexpectedState(pi, "This PaymentIntent's "+name+" could not be updated because it has a status of "+status+". You may only update the "+name+" of a PaymentIntent with one of the following statuses: requires_payment_method, requires_confirmation, requires_action.")
			e.param = name
			return nil, e
		}
	}
	changes, err := s.intentChanges(c, pi)
	if err != nil {
		return nil, err
	}
	pm, err := s.methodGiven(c, laidOver(pi, changes))
	if err != nil {
		return nil, err
	}
	if c.has("payment_method") && pm == nil {
		changes["payment_method"], changes["status"] = nil, "requires_payment_method"
	}
	if pm != nil {
		s.keepMethod(pm)
		changes["payment_method"], changes["status"] = pm["id"], "requires_confirmation"
	}
	if _, moved := changes["status"]; moved {
		changes["next_action"] = nil
	}
	s.change("payment_intent", pi, changes) // raises no event: Stripe has no payment_intent.updated
	return pi, nil
}

// intentChanges are the plain members that an update of an intent changes.
func (s *Server) intentChanges(c *call, pi object) (object, *apiError) {
	changes := object{}
	currency := text(pi, "currency")
	if c.has("currency") {
		if err := checkCurrency(c.text("currency")); err != nil {
			return nil, err
		}
		currency = strings.ToLower(c.text("currency"))
		changes["currency"] = currency
	}
	if c.has("amount") {
		if err := amountInBounds(c.number("amount"), currency); err != nil {
			return nil, err
		}
		changes["amount"] = c.number("amount")
	}
	for _, name := range append([]string{"customer"}, intentMembers...) {
		if c.has(name) {
			changes[name] = c.orNull(name)
		}
	}
	if c.has("payment_method_types") {
		changes["payment_method_types"] = c.list("payment_method_types")
	}
	if c.has("shipping") {
		changes["shipping"] = fullShipping(c.child("shipping").values)
	}
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(pi, "metadata"), c.metadata())
	}
	return changes, nil
}

func (s *Server) captureIntent(c *call) (object, *apiError) {
	pi, err := s.find("payment_intent", c.target(), "intent")
	if err != nil {
		return nil, err
	}
	capturable, amount := number(pi, "amount_capturable"), number(pi, "amount_capturable")
	if c.has("amount_to_capture") {
		amount = c.number("amount_to_capture")
	}
	switch status := text(pi, "status"); {
	case status == "succeeded":
		return nil, s.unexpectedState(pi, "This PaymentIntent could not be captured because it has already been captured.")
	case status != "requires_capture":
		return nil, s.unexpectedState(pi, "This PaymentIntent could not be captured because it has a status of "+status+". Only a PaymentIntent with one of the following statuses may be captured: requires_capture.")
	case amount < 1:
		return nil, invalid("amount_to_capture", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
	case amount > capturable:
		return nil, invalid("amount_to_capture", "amount_too_large", "The amount to capture (%d) is greater than the capturable amount of the PaymentIntent (%d).", amount, capturable)
	}
	changes := object{"status": "succeeded", "amount_received": amount, "amount_capturable": int64(0)}
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(pi, "metadata"), c.metadata())
	}
	charge := s.store.get("charge", text(pi, "latest_charge"))
	s.captureCharge(c, charge, amount)
	s.change("payment_intent", pi, changes)
	s.raise(c, "payment_intent.succeeded", pi, nil)
	for _, session := range s.store.shelf("checkout.session").with("payment_intent", text(pi, "id")) {
		s.change("checkout.session", session, object{"payment_status": "paid"})
	}
	s.aftermath(charge, actsAs(s.methodOf(pi)))
	return pi, nil
}

package stripesim

import "strings"

// authorized is how long an uncaptured charge stands, in seconds.
const authorized = 7 * 24 * 3600

var shippingParams = spec{"address": addressParams, "carrier": "string", "name": "string", "phone": "string", "tracking_number": "string"}

var chargeParams = spec{
	"amount": "int", "currency": "string", "customer": "string", "source": "string", "capture": "bool", "description": "string", "metadata": "map",
	"receipt_email": "string", "statement_descriptor": "string", "statement_descriptor_suffix": "string", "transfer_group": "string", "shipping": shippingParams,
}

func (s *Server) routeCharges() {
	s.agenda.do["charge"] = func(o object) { s.expireCharge(o) }
	s.handle("POST /v1/charges", chargeParams, func(c *call) (object, *apiError) { return s.chargeDirectly(c) })
	s.handle("GET /v1/charges/{id}", nil, func(c *call) (object, *apiError) { return s.find("charge", c.target(), "id") })
	change := spec{
		"metadata": "map", "description": "string", "receipt_email": "string", "customer": "string", "transfer_group": "string", "shipping": shippingParams,
		"fraud_details": spec{"user_report": "string"},
	}
	s.handle("POST /v1/charges/{id}", change, func(c *call) (object, *apiError) { return s.updateCharge(c) })
	capture := spec{"amount": "int", "receipt_email": "string", "statement_descriptor": "string", "statement_descriptor_suffix": "string", "transfer_group": "string"}
	s.handle("POST /v1/charges/{id}/capture", capture, func(c *call) (object, *apiError) { return s.captureDirectly(c) })
	filters := spec{"customer": "string", "payment_intent": "string", "transfer_group": "string", "created": createdSpec}
	s.handle("GET /v1/charges", listSpec(filters), func(c *call) (object, *apiError) {
		return s.list(c, "charge", func(o object) bool {
			for _, name := range []string{"customer", "payment_intent", "transfer_group"} {
				if c.has(name) && text(o, name) != c.text(name) {
					return false
				}
			}
			return inRange(c, number(o, "created"))
		})
	})
}

// makeCharge tries to charge a payment method for an intent, or for a draft of the
// same members. The status is succeeded, pending (of a debit) or failed. It raises
// no event.
func (s *Server) makeCharge(from, pm object, status string, captured bool) object {
	test := actsAs(pm)
	amountCaptured := int64(0)
	if captured {
		amountCaptured = number(from, "amount")
	}
	prefix := "ch"
	if test.bank() {
		prefix = "py"
	}
	id := s.newID(prefix)
	charge := object{
		"id": id, "object": "charge", "created": s.now(), "livemode": false, "amount": number(from, "amount"), "currency": from["currency"],
		"amount_captured": amountCaptured, "amount_refunded": int64(0), "captured": captured, "paid": status == "succeeded", "refunded": false, "disputed": false,
		"status": status, "payment_intent": from["id"], "customer": from["customer"], "application": nil, "application_fee": nil,
		"metadata":               laidOver(child(from, "metadata"), nil), // copied at this moment: later changes of the intent do not reach the charge
		"application_fee_amount": nil, "balance_transaction": nil, "calculated_statement_descriptor": "STRIPESIM", "description": from["description"],
		"billing_details": pm["billing_details"], "failure_balance_transaction": nil, "failure_code": nil, "failure_message": nil, "fraud_details": object{},
		"invoice": from["invoice"], "on_behalf_of": nil, "outcome": outcome(test, status), "payment_method": pm["id"], "radar_options": object{}, "receipt_email": from["receipt_email"],
		"receipt_number": nil, "receipt_url": nil, "review": nil, "shipping": from["shipping"], "source_transfer": nil,
		"statement_descriptor": from["statement_descriptor"], "statement_descriptor_suffix": from["statement_descriptor_suffix"], "transfer_data": nil,
		"transfer_group": from["transfer_group"],
	}
	charge["payment_method_details"] = s.methodDetails(pm, charge)
	switch status {
	case "failed":
		charge["failure_code"], charge["failure_message"] = test.code, test.message
	default:
		charge["receipt_url"] = "https://pay.stripe.com/receipts/payment/" + id
		if captured {
			charge["balance_transaction"] = s.moveCharge(charge, test)["id"]
		} else {
			s.setAlarm("charge", charge, s.ownNow()+authorized)
		}
	}
	s.store.put("charge", charge)
	return charge
}

// outcome is what the network and Stripe's assessment of risk have said.
func outcome(test testMethod, status string) object {
	o := object{"network_status": "approved_by_network", "reason": nil, "risk_level": "normal", "risk_score": int64(12), "seller_message": "Payment complete.", "type": "authorized"}
	switch test.risk {
	case "elevated":
		o["risk_level"], o["risk_score"] = "elevated", int64(65)
	case "highest":
		o["risk_level"], o["risk_score"] = "highest", int64(90)
	}
	if test.bank() {
		o["risk_level"] = "not_assessed"
		delete(o, "risk_score")
	}
	if status == "failed" {
		o["network_status"], o["type"], o["seller_message"] = "declined_by_network", "issuer_declined", "The bank did not return any further details with this decline."
		o["reason"] = test.code
		if test.declineCode != "" {
			o["reason"] = test.declineCode
		}
		if test.blocked {
			o["network_status"], o["type"], o["reason"], o["seller_message"] = "not_sent_to_network", "blocked", "highest_risk_level", "Stripe blocked this payment as too risky."
		}
	}
	return o
}

// methodDetails is what a charge tells of its payment method.
func (s *Server) methodDetails(pm, charge object) object {
	if bank := child(pm, "us_bank_account"); bank != nil {
		return object{"type": "us_bank_account", "us_bank_account": object{
			"account_holder_type": bank["account_holder_type"], "account_type": bank["account_type"], "bank_name": bank["bank_name"],
			"fingerprint": bank["fingerprint"], "last4": bank["last4"], "payment_reference": nil, "routing_number": bank["routing_number"],
		}}
	}
	card := child(pm, "card")
	details := object{
		"amount_authorized": nil, "brand": card["brand"], "checks": card["checks"], "country": card["country"], "exp_month": card["exp_month"], "exp_year": card["exp_year"],
		"extended_authorization": object{"status": "disabled"}, "fingerprint": card["fingerprint"], "funding": card["funding"],
		"incremental_authorization": object{"status": "unavailable"}, "installments": nil, "last4": card["last4"], "mandate": nil,
		"multicapture": object{"status": "unavailable"}, "network": card["brand"], "network_token": object{"used": false},
		"overcapture": object{"maximum_amount_capturable": charge["amount"], "status": "unavailable"}, "three_d_secure": nil, "wallet": nil,
	}
	if text(charge, "status") != "failed" {
		details["amount_authorized"] = charge["amount"]
		if !flag(charge, "captured") {
			details["capture_before"] = s.now() + authorized
		}
	}
	return object{"type": "card", "card": details}
}

// chargeDirectly is the old way to pay: a charge without an intent.
func (s *Server) chargeDirectly(c *call) (object, *apiError) {
	if err := c.checkAmount(); err != nil {
		return nil, err
	}
	pm, err := s.sourceOf(c)
	if err != nil {
		return nil, err
	}
	s.keepMethod(pm)
	draft := object{"id": nil, "invoice": nil, "amount": c.number("amount"), "currency": strings.ToLower(c.text("currency")), "customer": c.orNull("customer"), "metadata": c.metadata()}
	for _, name := range []string{"description", "receipt_email", "statement_descriptor", "statement_descriptor_suffix", "transfer_group"} {
		draft[name] = c.orNull(name)
	}
	draft["shipping"] = fullShipping(c.child("shipping").values)
	test := actsAs(pm)
	if test.code != "" {
		charge := s.makeCharge(draft, pm, "failed", false)
		s.raise(c, "charge.failed", charge, nil)
		e := cardError(test.code, test.declineCode, "", test.message)
		e.extra["charge"] = charge["id"]
		return nil, e
	}
	charge := s.makeCharge(draft, pm, "succeeded", !c.has("capture") || flag(c.values, "capture"))
	s.raise(c, "charge.succeeded", charge, nil)
	s.aftermath(charge, test)
	return charge, nil
}

// sourceOf gives what a direct charge is paid by: the source, or that of its
// customer.
func (s *Server) sourceOf(c *call) (object, *apiError) {
	source := c.text("source")
	if c.text("customer") == "" {
		if source == "" {
			return nil, invalid("", "parameter_missing", "Must provide source or customer.")
		}
		if test, known := testMethodOf(source); !known || test.bank() || !strings.HasPrefix(source, "tok_") {
			return nil, missing("token", source, "source")
		}
		return s.newMethod("card", source), nil
	}
	customer, err := s.liveCustomer(c.text("customer"), "customer")
	if err != nil {
		return nil, err
	}
	if source == "" {
		source = s.defaultMethod(customer)
	}
	pm := s.store.get("payment_method", source)
	switch {
	case source == "":
		return nil, &apiError{status: 402, typ: "card_error", code: "missing", param: "card", message: "Cannot charge a customer that has no active card"}
	case pm == nil || text(pm, "customer") != text(customer, "id"):
		return nil, &apiError{status: 404, typ: "invalid_request_error", code: "missing", param: "card", message: "Customer " + text(customer, "id") + " does not have a linked source with ID " + source + "."}
	}
	return pm, nil
}

// checkAmount refuses amounts and currencies that Stripe does not take.
func (c *call) checkAmount() *apiError {
	if err := c.require("amount", "currency"); err != nil {
		return err
	}
	if err := checkCurrency(c.text("currency")); err != nil {
		return err
	}
	return amountInBounds(c.number("amount"), strings.ToLower(c.text("currency")))
}

func checkCurrency(currency string) *apiError {
	plain := len(currency) == 3
	for _, letter := range strings.ToLower(currency) {
		plain = plain && letter >= 'a' && letter <= 'z'
	}
	if !plain {
		return invalid("currency", "", "Invalid currency: %s. Stripe currently supports three-letter codes such as usd, eur, gbp.", currency)
	}
	return nil
}

// leastAmounts are Stripe's minima, where they are plain.
var leastAmounts = map[string]struct {
	amount int64
	text   string
}{"usd": {50, "$0.50"}, "eur": {50, "€0.50"}, "gbp": {30, "£0.30"}}

func amountInBounds(amount int64, currency string) *apiError {
	switch least := leastAmounts[currency]; {
	case amount < 1:
		return invalid("amount", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
	case amount < least.amount:
		return invalid("amount", "amount_too_small", "Amount must be at least %s %s", least.text, currency)
	case amount > 99999999:
		return invalid("amount", "amount_too_large", "Amount must be no more than 99999999 %s", currency)
	}
	return nil
}

// fullShipping is shipping with all members, nil where none was given.
func fullShipping(given object) any {
	if given == nil {
		return nil
	}
	full := object{"address": fullAddress(child(given, "address"))}
	for _, name := range []string{"carrier", "name", "phone", "tracking_number"} {
		full[name] = nil
		if v := text(given, name); v != "" {
			full[name] = v
		}
	}
	if full["name"] == nil {
		full["name"] = ""
	}
	return full
}

func (s *Server) updateCharge(c *call) (object, *apiError) {
	charge, err := s.find("charge", c.target(), "id")
	if err != nil {
		return nil, err
	}
	changes := object{}
	if customer := c.text("customer"); customer != "" {
		if _, err := s.liveCustomer(customer, "customer"); err != nil {
			return nil, err
		}
		if owner := text(charge, "customer"); owner != "" && owner != customer {
			return nil, invalid("customer", "", "The customer of a charge can only be set while it has none.")
		}
		changes["customer"] = customer
	}
	for _, name := range []string{"description", "receipt_email", "transfer_group"} {
		if c.has(name) {
			changes[name] = c.orNull(name)
		}
	}
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(charge, "metadata"), c.metadata())
	}
	if c.has("shipping") {
		changes["shipping"] = fullShipping(c.child("shipping").values)
	}
	if report := c.child("fraud_details"); report.has("user_report") {
		if err := report.mustBeOneOf("user_report", "fraudulent", "safe"); err != nil {
			err.param = "fraud_details[user_report]"
			return nil, err
		}
		changes["fraud_details"] = laidOver(child(charge, "fraud_details"), object{"user_report": report.text("user_report")})
	}
	if previous := s.change("charge", charge, changes); len(previous) > 0 {
		s.raise(c, "charge.updated", charge, previous)
	}
	return charge, nil
}

func (s *Server) captureDirectly(c *call) (object, *apiError) {
	charge, err := s.find("charge", c.target(), "id")
	if err != nil {
		return nil, err
	}
	id, amount := text(charge, "id"), number(charge, "amount")
	if c.has("amount") {
		amount = c.number("amount")
	}
	switch {
	case flag(charge, "captured"):
		return nil, invalid("", "charge_already_captured", "Charge %s has already been captured.", id)
	case text(charge, "status") == "failed":
		return nil, invalid("", "", "Charge %s has failed and cannot be captured.", id)
	case flag(charge, "refunded"):
		return nil, invalid("", "charge_expired_for_capture", "Charge %s has expired or has been refunded, and cannot be captured.", id)
	case text(charge, "payment_intent") != "":
		return nil, invalid("", "", "Charge %s was made by PaymentIntent %s: capture that instead.", id, text(charge, "payment_intent"))
	case amount < 1:
		return nil, invalid("amount", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
	case amount > number(charge, "amount"):
		return nil, invalid("amount", "amount_too_large", "The amount to capture (%d) is greater than the amount of the charge (%d).", amount, number(charge, "amount"))
	}
	s.captureCharge(c, charge, amount)
	return charge, nil
}

// captureCharge takes an amount of an authorized charge; the rest goes back to the
// buyer and counts as refunded.
func (s *Server) captureCharge(c *call, charge object, amount int64) {
	s.setAlarm("charge", charge, 0)
	if rest := number(charge, "amount") - amount; rest > 0 {
		s.keepRefund(charge, rest, nil, object{}, "succeeded", true)
	}
	changes := object{"captured": true, "amount_captured": amount, "amount_refunded": s.refunded(text(charge, "id"))}
	previous := s.change("charge", charge, changes)
	pm := s.store.get("payment_method", text(charge, "payment_method"))
	s.change("charge", charge, object{"balance_transaction": s.moveCharge(charge, actsAs(pm))["id"]})
	previous["balance_transaction"] = nil
	s.raise(c, "charge.captured", charge, previous)
}

// releaseCharge gives all of an uncaptured charge back.
func (s *Server) releaseCharge(charge object, reason any) (refund, previous object) {
	s.setAlarm("charge", charge, 0)
	refund = s.keepRefund(charge, number(charge, "amount"), reason, object{}, "succeeded", true)
	return refund, s.change("charge", charge, object{"amount_refunded": number(charge, "amount"), "refunded": true})
}

// expireCharge happens to a charge that nobody captured for seven days.
func (s *Server) expireCharge(charge object) {
	if flag(charge, "captured") || flag(charge, "refunded") {
		return
	}
	_, previous := s.releaseCharge(charge, "expired_uncaptured_charge")
	s.raise(nil, "charge.expired", charge, previous)
	if pi := s.store.get("payment_intent", text(charge, "payment_intent")); pi != nil && text(pi, "status") == "requires_capture" {
		s.endIntent(nil, pi, "automatic")
	}
}

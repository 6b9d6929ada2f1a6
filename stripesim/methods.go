package stripesim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

var addressParams = spec{"city": "string", "country": "string", "line1": "string", "line2": "string", "postal_code": "string", "state": "string"}

var billingParams = spec{"address": addressParams, "email": "string", "name": "string", "phone": "string"}

var methodParams = spec{
	"type": "string", "billing_details": billingParams, "metadata": "map", "allow_redisplay": "string",
	"card": spec{"token": "string", "number": "string", "exp_month": "int", "exp_year": "int", "cvc": "string", "networks": spec{"preferred": "string"}},
	"us_bank_account": spec{
		"account_holder_type": "string", "account_number": "string", "account_type": "string", "routing_number": "string", "financial_connections_account": "string",
	},
}

func (s *Server) routeMethods() {
	s.handle("POST /v1/payment_methods", methodParams, func(c *call) (object, *apiError) {
		pm, err := s.draftMethod(c.params, "")
		if err != nil {
			return nil, err
		}
		s.keepMethod(pm)
		return pm, nil
	})
	s.handle("GET /v1/payment_methods/{id}", nil, func(c *call) (object, *apiError) {
		pm, err := s.lookMethod(c.target())
		if err == nil {
			s.keepMethod(pm)
		}
		return pm, err
	})
	change := spec{
		"billing_details": billingParams, "metadata": "map", "allow_redisplay": "string", "card": spec{"exp_month": "int", "exp_year": "int", "networks": spec{"preferred": "string"}},
		"us_bank_account": spec{"account_holder_type": "string", "account_type": "string"},
	}
	s.handle("POST /v1/payment_methods/{id}", change, func(c *call) (object, *apiError) { return s.updateMethod(c) })
	s.handle("POST /v1/payment_methods/{id}/attach", spec{"customer": "string"}, func(c *call) (object, *apiError) { return s.attachMethod(c) })
	s.handle("POST /v1/payment_methods/{id}/detach", nil, func(c *call) (object, *apiError) {
		pm, err := s.find("payment_method", c.target(), "payment_method")
		if err != nil {
			return nil, err
		}
		if text(pm, "customer") == "" {
			return nil, invalid("", "", "The payment method you provided is not attached to a customer so detachment is impossible.")
		}
		s.detach(c, pm)
		return pm, nil
	})
	s.handle("GET /v1/payment_methods", listSpec(spec{"customer": "string", "type": "string"}), func(c *call) (object, *apiError) {
		return s.methodsOf(c, c.text("customer"))
	})
	s.handle("GET /v1/customers/{id}/payment_methods", listSpec(spec{"type": "string", "allow_redisplay": "string"}), func(c *call) (object, *apiError) {
		if _, err := s.liveCustomer(c.target(), "customer"); err != nil {
			return nil, err
		}
		return s.methodsOf(c, c.target())
	})
	s.handle("GET /v1/customers/{id}/payment_methods/{method}", nil, func(c *call) (object, *apiError) {
		if _, err := s.liveCustomer(c.target(), "customer"); err != nil {
			return nil, err
		}
		pm, err := s.find("payment_method", c.r.PathValue("method"), "payment_method")
		if err == nil && text(pm, "customer") != c.target() {
			return nil, missing("PaymentMethod", c.r.PathValue("method"), "payment_method")
		}
		return pm, err
	})
}

// methodsOf lists a customer's payment methods; without a customer there are none
// to see, as a payment method that is not attached is in no list of Stripe's.
func (s *Server) methodsOf(c *call, customer string) (object, *apiError) {
	if customer != "" {
		if _, err := s.liveCustomer(customer, "customer"); err != nil {
			return nil, err
		}
	}
	return s.list(c, "payment_method", func(pm object) bool {
		return text(pm, "customer") != "" && text(pm, "customer") == customer && (!c.has("type") || text(pm, "type") == c.text("type"))
	})
}

// draftMethod makes a payment method of parameters, to be kept by keepMethod.
// Messages name the parameters below prefix.
func (s *Server) draftMethod(p params, prefix string) (object, *apiError) {
	named := func(name string) string {
		if prefix == "" {
			return name
		}
		return prefix + "[" + name + "]"
	}
	if p.text("type") == "" {
		return nil, invalid(named("type"), "parameter_missing", "Missing required param: %s.", named("type"))
	}
	var name string
	var err *apiError
	switch p.text("type") {
	case "card":
		if p.child("card").values == nil {
			return nil, invalid(named("card"), "parameter_missing", "Missing required param: %s.", named("card"))
		}
		name, err = s.checkCard(p.child("card"))
	case "us_bank_account":
		name, err = checkBank(p.child("us_bank_account"), named("us_bank_account"))
	default:
		err = invalid(named("type"), "", "Invalid %s: this simulator knows card and us_bank_account, not %s", named("type"), p.text("type"))
	}
	if err != nil {
		return nil, err
	}
	pm := s.newMethod("pm", name)
	pm["metadata"] = p.metadata()
	setBilling(pm, p.child("billing_details"))
	if c := p.child("card"); c.has("exp_month") {
		shown, year := child(pm, "card"), c.number("exp_year")
		if year < 100 {
			year += int64(time.Unix(s.now(), 0).UTC().Year() / 100 * 100)
		}
		shown["exp_month"], shown["exp_year"] = c.number("exp_month"), year
	}
	return pm, nil
}

// checkBank gives the name of the test bank account with a number.
func checkBank(p params, prefix string) (string, *apiError) {
	for _, member := range []string{"account_holder_type", "account_number", "routing_number"} {
		if p.text(member) == "" {
			return "", invalid(prefix+"["+member+"]", "parameter_missing", "Missing required param: %s[%s].", prefix, member)
		}
	}
	if p.text("routing_number") != "110000000" {
		return "", invalid(prefix+"[routing_number]", "routing_number_invalid", "Invalid routing number: in test mode it is 110000000.")
	}
	name, known := testMethodNumbered(p.text("account_number"))
	if !known || !actsAs(object{"_acts": name}).bank() {
		return "", invalid(prefix+"[account_number]", "account_number_invalid", "You must use a test bank account number in test mode.")
	}
	return name, nil
}

// setBilling lays billing details that were given over those of a payment method.
func setBilling(pm object, given params) {
	billing := object{}
	for name, v := range child(pm, "billing_details") {
		billing[name] = v
	}
	for _, name := range []string{"email", "name", "phone"} {
		if given.has(name) {
			billing[name] = given.orNull(name)
		}
	}
	if address := given.child("address"); address.values != nil {
		billing["address"] = fullAddress(address.values)
	}
	pm["billing_details"] = billing
}

// fullAddress is an address with all members, null where nothing is known.
func fullAddress(given object) object {
	full := object{}
	for name := range addressParams {
		full[name] = nil
		if v := text(given, name); v != "" {
			full[name] = v
		}
	}
	return full
}

// newMethod makes a payment method that acts as one of Stripe's test methods.
func (s *Server) newMethod(prefix, name string) object {
	m := actsAs(object{"_acts": name})
	last4 := m.number[len(m.number)-4:]
	pm := object{
		"id": s.newID(prefix), "object": "payment_method", "created": s.now(), "livemode": false, "customer": nil, "metadata": object{}, "type": m.kind(),
		"billing_details": object{"address": fullAddress(nil), "email": nil, "name": nil, "phone": nil}, "radar_options": object{}, "_acts": name,
	}
	if m.bank() {
		pm["us_bank_account"] = object{
			"account_holder_type": "individual", "account_type": "checking", "bank_name": "STRIPE TEST BANK", "financial_connections_account": nil,
			"fingerprint": fingerprint(m), "last4": last4, "networks": object{"preferred": "ach", "supported": []any{"ach"}}, "routing_number": "110000000", "status_details": object{},
		}
		return pm
	}
	pm["card"] = object{
		"brand": m.brand, "checks": object{"address_line1_check": nil, "address_postal_code_check": nil, "cvc_check": "pass"}, "country": m.country, "display_brand": m.brand,
		"exp_month": int64(12), "exp_year": int64(time.Unix(s.now(), 0).UTC().Year() + 3), "fingerprint": fingerprint(m), "funding": m.funding, "generated_from": nil,
		"last4": last4, "networks": object{"available": []any{m.brand}, "preferred": nil}, "three_d_secure_usage": object{"supported": true}, "wallet": nil,
	}
	return pm
}

// fingerprint is the same for each use of one number.
func fingerprint(m testMethod) string { return fmt.Sprintf("sim%013s", m.number[len(m.number)-11:]) }

// lookMethod gives a payment method by its id, or a fresh one for the name of a
// test method, which keepMethod keeps.
func (s *Server) lookMethod(id string) (object, *apiError) {
	if pm := s.store.get("payment_method", id); pm != nil {
		return pm, nil
	}
	if _, known := testMethodOf(id); known {
		return s.newMethod("pm", id), nil
	}
	return nil, missing("PaymentMethod", id, "payment_method")
}

// keepMethod keeps a payment method that is new.
func (s *Server) keepMethod(pm object) {
	if s.store.get("payment_method", text(pm, "id")) == nil {
		s.store.put("payment_method", pm)
	}
}

func (s *Server) updateMethod(c *call) (object, *apiError) {
	pm, err := s.find("payment_method", c.target(), "payment_method")
	if err != nil {
		return nil, err
	}
	if text(pm, "customer") == "" {
		return nil, invalid("", "", "You must save this PaymentMethod to a customer before you can update it.")
	}
	changes := object{}
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(pm, "metadata"), c.metadata())
	}
	if c.has("billing_details") {
		changed := object{"billing_details": pm["billing_details"]}
		setBilling(changed, c.child("billing_details"))
		changes["billing_details"] = changed["billing_details"]
	}
	for _, kind := range []string{"card", "us_bank_account"} {
		given := c.child(kind)
		if given.values == nil || pm[kind] == nil {
			continue
		}
		inner := object{}
		for name, v := range child(pm, kind) {
			inner[name] = v
		}
		for _, name := range []string{"exp_month", "exp_year", "account_holder_type", "account_type"} {
			if given.has(name) {
				inner[name] = given.values[name]
			}
		}
		changes[kind] = inner
	}
	if previous := s.change("payment_method", pm, changes); len(previous) > 0 {
		s.raise(c, "payment_method.updated", pm, previous)
	}
	return pm, nil
}

func (s *Server) attachMethod(c *call) (object, *apiError) {
	if err := c.require("customer"); err != nil {
		return nil, err
	}
	customer, err := s.liveCustomer(c.text("customer"), "customer")
	if err != nil {
		return nil, err
	}
	pm, err := s.lookMethod(c.target())
	if err == nil {
		err = attachable(pm)
	}
	if err != nil {
		return nil, err
	}
	s.attach(c, pm, text(customer, "id"))
	return pm, nil
}

// attachable tells whether a payment method may be attached to a customer. Most
// cards that decline do so already then.
func attachable(pm object) *apiError {
	m := actsAs(pm)
	switch {
	case text(pm, "customer") != "":
		return invalid("", "", "The payment method you provided has already been attached to a customer.")
	case flag(pm, "_spent"):
		return invalid("", "", "This PaymentMethod was previously used without being attached to a Customer or was detached from a Customer, and may not be used again.")
	case m.code != "" && !m.chargedOnly:
		return cardError(m.code, m.declineCode, "", m.message)
	}
	return nil
}

func (s *Server) attach(c *call, pm object, customer string) {
	s.change("payment_method", pm, object{"customer": customer})
	s.raise(c, "payment_method.attached", pm, nil)
}

// detach takes a payment method from its customer, who no longer pays by it.
func (s *Server) detach(c *call, pm object) {
	customer := s.store.get("customer", text(pm, "customer"))
	if customer != nil && !flag(customer, "deleted") {
		changes := object{}
		if text(child(customer, "invoice_settings"), "default_payment_method") == text(pm, "id") {
			changes["invoice_settings"] = laidOver(child(customer, "invoice_settings"), object{"default_payment_method": nil})
		}
		if text(customer, "default_source") == text(pm, "id") {
			changes["default_source"] = nil
		}
		if previous := s.change("customer", customer, changes); len(previous) > 0 {
			s.raise(c, "customer.updated", customer, previous)
		}
	}
	previous := s.change("payment_method", pm, object{"customer": nil, "_spent": true})
	delete(previous, "_spent")
	s.raise(c, "payment_method.detached", pm, previous)
}

// payable tells whether a customer may pay by a payment method.
func payable(pm object, customer string, types []any) *apiError {
	switch owner := text(pm, "customer"); {
	case owner == "" && flag(pm, "_spent"):
		return invalid("payment_method", "", "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, shared with a connected account without Customer attachment, or was detached from a Customer. It may not be used again. To use a PaymentMethod multiple times, you must attach it to a Customer first.")
	case owner != "" && customer == "":
		return invalid("payment_method", "", "The payment method %s belongs to customer %s. Please include the Customer in the `customer` parameter on the PaymentIntent.", text(pm, "id"), owner)
	case owner != "" && owner != customer:
		return invalid("payment_method", "resource_missing", "The customer does not have a payment method with the ID %s. The payment method must be attached to the customer.", text(pm, "id"))
	}
	if !slices.Contains(types, any(text(pm, "type"))) {
		names := make([]string, len(types))
		for i, t := range types {
			names[i] = fmt.Sprint(t)
		}
		return invalid("payment_method", "payment_intent_incompatible_payment_method", "The PaymentMethod provided (%s) is not allowed for this PaymentIntent. Please attach a PaymentMethod of one of the following types: %s", text(pm, "type"), strings.Join(names, ", "))
	}
	return nil
}

// laidOver is an object with some members changed.
func laidOver(o, changes object) object {
	m := object{}
	for name, v := range o {
		m[name] = v
	}
	for name, v := range changes {
		m[name] = v
	}
	return m
}

// mustBeOneOf refuses a parameter that is none of the values it may have.
func (p params) mustBeOneOf(name string, allowed ...string) *apiError {
	if !p.has(name) || slices.Contains(allowed, p.text(name)) {
		return nil
	}
	last := len(allowed) - 1
	return invalid(name, "", "Invalid %s: must be one of %s, or %s", name, strings.Join(allowed[:last], ", "), allowed[last])
}

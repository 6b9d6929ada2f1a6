package stripesim

import "strings"

var customerParams = spec{
	"name": "string", "email": "string", "description": "string", "phone": "string", "metadata": "map", "invoice_prefix": "string", "next_invoice_sequence": "int",
	"address": addressParams, "shipping": shippingParams, "preferred_locales": listOf{"string"}, "tax_exempt": "string", "source": "string", "balance": "int",
	"tax": spec{"ip_address": "string", "validate_location": "string"},
	"invoice_settings": spec{
		"default_payment_method": "string", "footer": "string", "custom_fields": listOf{spec{"name": "string", "value": "string"}},
		"rendering_options": spec{"amount_tax_display": "string"},
	},
}

func (s *Server) routeCustomers() {
	create := without(customerParams)
	create["payment_method"], create["test_clock"] = "string", "string"
	change := without(customerParams)
	change["default_source"] = "string"
	s.handle("POST /v1/customers", create, func(c *call) (object, *apiError) {
		return s.onNamedClock(c, func() (object, *apiError) { return s.createCustomer(c) })
	})
	s.handle("GET /v1/customers/{id}", nil, func(c *call) (object, *apiError) {
		return s.find("customer", c.target(), "id")
	})
	s.handle("POST /v1/customers/{id}", change, func(c *call) (object, *apiError) { return s.updateCustomer(c) })
	s.handle("DELETE /v1/customers/{id}", nil, func(c *call) (object, *apiError) {
		o, err := s.liveCustomer(c.target(), "id")
		if err == nil {
			err = s.still(o)
		}
		if err != nil {
			return nil, err
		}
		for _, pm := range s.store.shelf("payment_method").with("customer", c.target()) {
			s.change("payment_method", pm, object{"customer": nil, "_spent": true})
		}
		s.cancelAllOf(c, o)
		s.raise(c, "customer.deleted", o, nil)
		gone := object{"id": o["id"], "object": "customer", "deleted": true}
		s.store.put("customer", gone)
		return gone, nil
	})
	s.handle("GET /v1/customers", listSpec(spec{"email": "string", "created": createdSpec, "test_clock": "string"}), func(c *call) (object, *apiError) {
		return s.list(c, "customer", func(o object) bool {
			return !flag(o, "deleted") && (!c.has("email") || text(o, "email") == c.text("email")) && inRange(c, number(o, "created")) &&
				text(o, "test_clock") == c.text("test_clock") // those of test clocks are in no list but their clock's
		})
	})
}

// liveCustomer gives a customer that is not deleted, or the error that there is none.
func (s *Server) liveCustomer(id, param string) (object, *apiError) {
	o, err := s.find("customer", id, param)
	if err == nil && flag(o, "deleted") {
		return nil, missing("customer", id, param)
	}
	return o, err
}

// defaultMethod is what a customer's invoices are paid by, "" for nothing.
func (s *Server) defaultMethod(customer object) string {
	if id := text(child(customer, "invoice_settings"), "default_payment_method"); id != "" {
		return id
	}
	return text(customer, "default_source")
}

// checkCustomer refuses parameters that both a new and a changed customer refuse.
func (s *Server) checkCustomer(c *call) *apiError {
	if email := c.text("email"); email != "" {
		name, host, ok := strings.Cut(email, "@")
		if !ok || name == "" || host == "" || strings.ContainsAny(email, " \t\n") {
			return invalid("email", "email_invalid", "Invalid email address: %s", email)
		}
	}
	if prefix := c.text("invoice_prefix"); c.has("invoice_prefix") && (len(prefix) < 3 || len(prefix) > 12 || strings.Trim(prefix, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "") {
		return invalid("invoice_prefix", "", "Invoice prefixes must be 3 to 12 uppercase letters or numbers.")
	}
	if c.text("tax_exempt") == "" {
		return nil
	}
	return c.mustBeOneOf("tax_exempt", "none", "exempt", "reverse")
}

// newMethodsOf gives the payment methods that a call brings for a customer, not
// yet kept: one to be attached, and one as a source that becomes the default.
func (s *Server) newMethodsOf(c *call) (pm, source object, err *apiError) {
	if id := c.text("payment_method"); id != "" {
		if pm, err = s.lookMethod(id); err == nil {
			err = attachable(pm)
		}
	}
	if id := c.text("source"); id != "" && err == nil {
		if test, known := testMethodOf(id); !known || test.bank() || !strings.HasPrefix(id, "tok_") {
			return nil, nil, missing("token", id, "source")
		}
		source = s.newMethod("card", id)
		err = attachable(source)
	}
	return pm, source, err
}

// newCustomer is a customer of whom nothing is known, kept by nobody yet.
func (s *Server) newCustomer() object {
	return object{
		"id": s.newID("cus"), "object": "customer", "created": s.now(), "livemode": false, "metadata": object{},
		"name": nil, "email": nil, "description": nil, "phone": nil, "address": nil, "balance": int64(0), "currency": nil, "default_source": nil, "delinquent": false, "discount": nil,
		"invoice_prefix": strings.ToUpper(s.newID("X")[2:10]), "next_invoice_sequence": int64(1),
		"invoice_settings":  object{"custom_fields": nil, "default_payment_method": nil, "footer": nil, "rendering_options": nil},
		"preferred_locales": []any{}, "shipping": nil, "tax_exempt": "none", "test_clock": nil,
	}
}

// makeCustomer makes a customer of plain members.
func (s *Server) makeCustomer(c *call, p params) object {
	o := laidOver(s.newCustomer(), p.values)
	s.store.put("customer", o)
	s.raise(c, "customer.created", o, nil)
	return o
}

func (s *Server) createCustomer(c *call) (object, *apiError) {
	if err := s.checkCustomer(c); err != nil {
		return nil, err
	}
	pm, source, err := s.newMethodsOf(c)
	if err != nil {
		return nil, err
	}
	o := s.newCustomer()
	o["metadata"], o["test_clock"] = c.metadata(), c.orNull("test_clock")
	changes, err := s.customerChanges(c, o, pm)
	if err != nil {
		return nil, err
	}
	delete(changes, "metadata")
	o = laidOver(o, changes)
	for _, method := range []object{pm, source} {
		if method != nil {
			s.change("payment_method", method, object{"customer": o["id"]})
		}
	}
	if source != nil {
		o["default_source"] = source["id"]
	}
	s.store.put("customer", o)
	s.raise(c, "customer.created", o, nil)
	s.setBalance(c, o, "initial")
	for _, method := range []object{pm, source} {
		if method != nil {
			s.raise(c, "payment_method.attached", method, nil)
		}
	}
	return o, nil
}

func (s *Server) updateCustomer(c *call) (object, *apiError) {
	o, err := s.liveCustomer(c.target(), "id")
	if err == nil {
		err = firstError(s.still(o), s.checkCustomer(c))
	}
	if err != nil {
		return nil, err
	}
	_, source, err := s.newMethodsOf(c)
	if err != nil {
		return nil, err
	}
	changes, err := s.customerChanges(c, o, nil)
	if err != nil {
		return nil, err
	}
	if id := c.text("default_source"); id != "" {
		if pm := s.store.get("payment_method", id); pm == nil || text(pm, "customer") != text(o, "id") {
			return nil, missing("source", id, "default_source")
		}
		changes["default_source"] = id
	}
	if source != nil {
		s.attach(c, source, text(o, "id"))
		changes["default_source"] = source["id"]
	}
	if previous := s.change("customer", o, changes); len(previous) > 0 {
		s.raise(c, "customer.updated", o, previous)
	}
	s.onClockOf(o, func() { s.setBalance(c, o, "adjustment") })
	return o, nil
}

// customerChanges are the members of a customer that a call sets. The payment
// method is one that the same call attaches.
func (s *Server) customerChanges(c *call, o, attached object) (object, *apiError) {
	changes := object{}
	for _, name := range []string{"name", "email", "description", "phone", "invoice_prefix", "next_invoice_sequence", "preferred_locales", "tax_exempt"} {
		if c.has(name) {
			changes[name] = c.orNull(name)
		}
	}
	if c.has("tax_exempt") && changes["tax_exempt"] == nil {
		changes["tax_exempt"] = "none"
	}
	if c.has("address") {
		changes["address"] = nil
		if address := c.child("address").values; address != nil {
			changes["address"] = fullAddress(laidOver(child(o, "address"), address))
		}
	}
	if c.has("shipping") {
		changes["shipping"] = fullShipping(c.child("shipping").values)
	}
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(o, "metadata"), c.metadata())
	}
	given := c.child("invoice_settings")
	if given.values == nil {
		return changes, nil
	}
	settings := laidOver(child(o, "invoice_settings"), nil)
	for _, name := range []string{"default_payment_method", "footer", "custom_fields", "rendering_options"} {
		if given.has(name) {
			settings[name] = given.orNull(name)
		}
	}
	if id := given.text("default_payment_method"); id != "" {
		pm := s.store.get("payment_method", id)
		if attached != nil && (id == c.text("payment_method") || id == text(attached, "id")) {
			pm = laidOver(attached, object{"customer": o["id"]})
		}
		if pm == nil || text(pm, "customer") != text(o, "id") {
			return nil, invalid("invoice_settings[default_payment_method]", "resource_missing", "No such PaymentMethod: '%s'; the payment method must be attached to the customer.", id)
		}
		settings["default_payment_method"] = pm["id"]
	}
	changes["invoice_settings"] = settings
	return changes, nil
}

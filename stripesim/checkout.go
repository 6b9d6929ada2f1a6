package stripesim

import "math/big"

var checkoutParams = spec{
	"mode": "string", "customer": "string", "customer_email": "string", "client_reference_id": "string", "metadata": "map", "success_url": "string",
	"cancel_url": "string", "expires_at": "int", "ui_mode": "string", "return_url": "string", "customer_creation": "string", "locale": "string",
	"allow_promotion_codes": "bool", "payment_method_types": listOf{"string"}, "submit_type": "string", "currency": "string",
	"payment_intent_data": spec{
		"metadata": "map", "description": "string", "receipt_email": "string", "capture_method": "string", "setup_future_usage": "string", "shipping": shippingParams,
		"statement_descriptor": "string", "statement_descriptor_suffix": "string", "transfer_group": "string",
	},
	"invoice_creation": invoiceCreationParams,
	"subscription_data": spec{
		"metadata": "map", "description": "string", "trial_period_days": "int", "trial_end": "string", "billing_cycle_anchor": "string", "proration_behavior": "string",
	},
	"after_expiration": spec{"recovery": spec{"enabled": "bool", "allow_promotion_codes": "bool"}}, "redirect_on_completion": "string",
	"billing_address_collection": "string", "phone_number_collection": spec{"enabled": "bool"}, "payment_method_collection": "string",
	"line_items": listOf{spec{
		"price": "string", "quantity": "int", "adjustable_quantity": spec{"enabled": "bool", "minimum": "int", "maximum": "int"},
		"price_data": spec{
			"currency": "string", "product": "string", "unit_amount": "int", "unit_amount_decimal": "string", "tax_behavior": "string",
			"recurring": recurringParams, "product_data": spec{"name": "string", "metadata": "map", "description": "string", "images": listOf{"string"}},
		},
	}},
}

func (s *Server) routeCheckout() {
	s.agenda.do["checkout.session"] = func(o object) { s.expireSession(nil, o) }
	s.handle("POST /v1/checkout/sessions", checkoutParams, func(c *call) (object, *apiError) { return s.makeSession(c) })
	s.handle("GET /v1/checkout/sessions/{id}", nil, func(c *call) (object, *apiError) {
		return s.find("checkout.session", c.target(), "session")
	})
	s.handle("POST /v1/checkout/sessions/{id}/expire", nil, func(c *call) (object, *apiError) {
		o, err := s.find("checkout.session", c.target(), "session")
		if err != nil {
			return nil, err
		}
		if text(o, "status") != "open" {
			return nil, invalid("", "", "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout Session has a status of %s.", text(o, "status"))
		}
		s.expireSession(c, o)
		return o, nil
	})
	s.handle("GET /v1/checkout/sessions/{id}/line_items", listSpec(nil), func(c *call) (object, *apiError) {
		o, err := s.find("checkout.session", c.target(), "session")
		if err != nil {
			return nil, err
		}
		items, _ := o["_line_items"].([]any)
		return page(c, c.r.URL.Path, "item", items)
	})
	filters := spec{
		"payment_intent": "string", "customer": "string", "status": "string", "created": createdSpec, "subscription": "string", "payment_link": "string",
		"customer_details": spec{"email": "string"},
	}
	s.handle("GET /v1/checkout/sessions", listSpec(filters), func(c *call) (object, *apiError) {
		return s.list(c, "checkout.session", func(o object) bool {
			for _, name := range []string{"payment_intent", "customer", "status", "subscription", "payment_link"} {
				if c.has(name) && text(o, name) != c.text(name) {
					return false
				}
			}
			if buyer := c.child("customer_details"); buyer.has("email") && text(child(o, "customer_details"), "email") != buyer.text("email") {
				return false
			}
			return inRange(c, number(o, "created"))
		})
	})
}

func (s *Server) makeSession(c *call) (object, *apiError) {
	mode := c.text("mode")
	if mode == "" {
		return nil, invalid("mode", "parameter_missing", "Missing required param: mode.")
	} else if mode != "payment" && mode != "subscription" {
		return nil, invalid("mode", "", "Invalid mode: this simulator takes payment and subscription, not %s", mode)
	}
	if err := s.checkSession(c); err != nil {
		return nil, err
	}
	lineItems := s.lineItems
	if mode == "subscription" {
		lineItems = s.recurringItems
	}
	items, total, currency, err := lineItems(c)
	if err != nil {
		return nil, err
	}
	id := s.newID("cs_test")
	o := object{
		"id": id, "object": "checkout.session", "created": s.now(), "livemode": false, "mode": mode, "status": "open", "payment_status": "unpaid",
		"amount_subtotal": total, "amount_total": total, "currency": currency, "customer": c.orNull("customer"), "metadata": c.metadata(),
		"client_reference_id": c.orNull("client_reference_id"), "payment_intent": nil, "expires_at": s.now() + 24*3600, "url": "https://checkout.stripe.com/c/pay/" + id,
		"success_url": c.orNull("success_url"), "cancel_url": c.orNull("cancel_url"), "customer_email": c.orNull("customer_email"), "customer_details": nil,
		"after_expiration": nil, "allow_promotion_codes": nil, "automatic_tax": object{"enabled": false, "liability": nil, "status": nil},
		"billing_address_collection": nil, "client_secret": nil, "consent": nil, "consent_collection": nil, "currency_conversion": nil,
		"custom_fields": []any{}, "custom_text": object{"after_submit": nil, "shipping_address": nil, "submit": nil, "terms_of_service_acceptance": nil},
		"customer_creation": "if_required", "invoice": nil, "invoice_creation": nil, "locale": nil, "payment_link": nil, "payment_method_collection": "if_required",
		"payment_method_configuration_details": nil, "payment_method_options": object{}, "payment_method_types": []any{"card"},
		"phone_number_collection": object{"enabled": false}, "recovered_from": nil, "setup_intent": nil, "shipping_address_collection": nil,
		"shipping_cost": nil, "shipping_details": nil, "shipping_options": []any{}, "submit_type": nil, "subscription": nil,
		"total_details": object{"amount_discount": int64(0), "amount_shipping": int64(0), "amount_tax": int64(0)}, "ui_mode": "hosted",
		"saved_payment_method_options": nil, "_line_items": items, "_intent_metadata": object{},
	}
	o["invoice_creation"] = invoiceCreation(c.params)
	if flag(child(o, "invoice_creation"), "enabled") {
		o["customer_creation"] = "always"
	}
	s.detailSession(c, o)
	if mode == "subscription" {
		s.forSubscription(c, o)
	}
	s.setAlarm("checkout.session", o, number(o, "expires_at"))
	s.store.put("checkout.session", o)
	return o, nil
}

// lineItems makes the items of a session and their sum. All are checked before a
// price is made for the first.
func (s *Server) lineItems(c *call) (items []any, total int64, currency string, err *apiError) {
	if len(c.list("line_items")) == 0 {
		return nil, 0, "", invalid("line_items", "parameter_missing", "Missing required param: line_items.")
	}
	if currency, err = s.checkItems(c); err != nil {
		return nil, 0, "", err
	}
	for _, raw := range c.list("line_items") {
		p := params{raw.(object)}
		price := s.store.get("price", p.text("price"))
		if data := p.child("price_data"); data.values != nil {
			if price, err = s.makePrice(c, data); err != nil {
				return nil, 0, "", err
			}
		}
		quantity := itemQuantity(p)
		amount := s.priceAmount(price, big.NewRat(quantity, 1))
		total += amount
		items = append(items, object{
			"id": s.newID("li"), "object": "item", "amount_discount": int64(0), "amount_subtotal": amount, "amount_tax": int64(0), "amount_total": amount,
			"currency": currency, "description": text(s.store.get("product", text(price, "product")), "name"), "price": s.view(price, nil), "quantity": quantity,
			"_adjustable": p.child("adjustable_quantity").values,
		})
	}
	return items, total, currency, nil
}

func (s *Server) expireSession(c *call, o object) {
	s.setAlarm("checkout.session", o, 0)
	s.recoverSession(o)
	s.change("checkout.session", o, object{"status": "expired", "url": nil})
	if pi := s.store.get("payment_intent", text(o, "payment_intent")); pi != nil && text(pi, "status") == "requires_payment_method" {
		s.endIntent(c, pi, "automatic")
	}
	s.raise(c, "checkout.session.expired", o, nil)
}

// PayCheckout plays what a buyer does with a session: paid, unpaid (a method that
// settles later), async_succeeded, async_failed, card_declined or expired.
func (s *Server) PayCheckout(session, outcome string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	o, err := s.find("checkout.session", session, "session")
	if err != nil {
		return err
	}
	if err := s.pay(nil, o, outcome); err != nil {
		return err
	}
	return nil
}

func (s *Server) pay(c *call, o object, outcome string) *apiError {
	switch outcome {
	case "async_succeeded", "async_failed":
		return s.settle(c, o, outcome == "async_succeeded")
	}
	if text(o, "status") != "open" {
		return invalid("", "", "The session has a status of %s: only an open one can be paid", text(o, "status"))
	}
	switch outcome {
	case "expired":
		s.expireSession(c, o)
		return nil
	case "", "paid", "unpaid", "card_declined":
	default:
		return invalid("outcome", "", "outcome must be paid, unpaid, async_succeeded, async_failed, card_declined or expired")
	}
	if text(o, "mode") == "subscription" {
		return s.subscribe(c, o, outcome)
	}
	if number(o, "amount_total") == 0 {
		s.adoptBuyer(c, o)
		s.complete(c, o, "no_payment_required")
		return nil
	}
	pi := s.sessionIntent(c, o)
	switch outcome {
	case "card_declined":
		s.payBy(c, pi, "pm_card_chargeDeclined")
	case "unpaid":
		s.change("payment_intent", pi, object{"payment_method_types": []any{"us_bank_account"}})
		s.payBy(c, pi, "pm_usBankAccount_processing") // the caller says how it ends
		s.complete(c, o, "unpaid")
	default:
		s.payBy(c, pi, "pm_card_visa")
		if text(pi, "status") == "requires_capture" {
			s.complete(c, o, "unpaid") // until it is captured
			return nil
		}
		s.complete(c, o, "paid")
	}
	return nil
}

// sessionIntent gives the session's intent and makes it at the first try to pay.
func (s *Server) sessionIntent(c *call, o object) object {
	if pi := s.store.get("payment_intent", text(o, "payment_intent")); pi != nil {
		return pi
	}
	metadata := object{}
	for k, v := range child(o, "_intent_metadata") {
		metadata[k] = v // the session's own metadata is not inherited
	}
	more := laidOver(child(o, "_intent"), object{"payment_method_types": o["payment_method_types"]})
	pi := s.makeIntent(c, number(o, "amount_total"), text(o, "currency"), s.adoptBuyer(c, o), metadata, more)
	s.change("checkout.session", o, object{"payment_intent": pi["id"]})
	return pi
}

func (s *Server) complete(c *call, o object, paymentStatus string) {
	s.setAlarm("checkout.session", o, 0)
	if paymentStatus != "unpaid" {
		s.invoiceSession(c, o)
	}
	s.change("checkout.session", o, object{
		"status": "complete", "payment_status": paymentStatus, "url": nil, "customer_details": s.buyer(o),
	})
	s.raise(c, "checkout.session.completed", o, nil)
}

// settle ends a payment by a method that takes days.
func (s *Server) settle(c *call, o object, succeeded bool) *apiError {
	if text(o, "status") != "complete" || text(o, "payment_status") != "unpaid" {
		return invalid("", "", "Only a session that is complete and unpaid settles later; this one is %s and %s", text(o, "status"), text(o, "payment_status"))
	}
	pi := s.store.get("payment_intent", text(o, "payment_intent"))
	if text(pi, "status") != "processing" {
		return invalid("", "", "Only a payment that is processing settles; that of the session has a status of %s", text(pi, "status"))
	}
	s.settleIntent(c, pi, succeeded)
	return nil
}

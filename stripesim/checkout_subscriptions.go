package stripesim

import "math/big"

// recurringItems makes the items of a session that begins a subscription, and what
// is paid at once. Prices without an interval go on the first invoice.
func (s *Server) recurringItems(c *call) (items []any, total int64, currency string, err *apiError) {
	if len(c.list("line_items")) == 0 {
		return nil, 0, "", invalid("line_items", "parameter_missing", "Missing required param: line_items.")
	}
	trial := c.child("subscription_data").has("trial_period_days") || c.child("subscription_data").has("trial_end")
	var plans []itemPlan
	for i, raw := range c.list("line_items") {
		at := "line_items[" + itoa(i) + "]"
		plan, err := s.sessionPlan(params{raw.(object)}, at)
		if err != nil {
			return nil, 0, "", err
		}
		plans = append(plans, plan)
		if currency = text(plans[0].price, "currency"); text(plan.price, "currency") != currency {
			return nil, 0, "", invalid("line_items", "", "All line items must have the same currency.")
		}
	}
	var recurring []itemPlan
	for _, plan := range plans {
		if text(plan.price, "type") == "recurring" {
			recurring = append(recurring, plan)
		}
	}
	if len(recurring) == 0 {
		return nil, 0, "", invalid("line_items", "", "You must provide at least one recurring price in `subscription` mode when using prices.")
	}
	if err := s.plansAgree(recurring); err != nil {
		return nil, 0, "", err
	}
	for i, plan := range plans {
		if plan.newPrice {
			plan.price["active"] = false
			if data := (params{c.list("line_items")[i].(object)}).child("price_data").child("product_data"); data.values != nil {
				plan.price["product"] = text(s.makeProduct(c, data), "id")
			}
			s.keepPrice(c, plan.price)
		}
		item := object{
			"id": s.newID("li"), "object": "item", "amount_discount": int64(0), "amount_subtotal": int64(0), "amount_tax": int64(0), "amount_total": int64(0),
			"currency": currency, "description": text(s.store.get("product", text(plan.price, "product")), "name"), "price": s.view(plan.price, nil), "quantity": nil,
		}
		if !isMetered(plan.price) {
			amount := s.priceAmount(plan.price, big.NewRat(plan.quantity, 1))
			item["quantity"] = plan.quantity
			if !trial || text(plan.price, "type") == "one_time" {
				item["amount_subtotal"], item["amount_total"] = amount, amount
				total += amount
			}
		}
		items = append(items, item)
	}
	return items, total, currency, nil
}

// sessionPlan checks one line item of a session that begins a subscription.
func (s *Server) sessionPlan(p params, at string) (plan itemPlan, err *apiError) {
	plan.quantity = 1
	if data := p.child("price_data"); data.values != nil {
		plan.newPrice = true
		if plan.price, err = s.newPrice(data); err != nil {
			return plan, err
		}
		if product := data.child("product_data"); product.values != nil && product.text("name") == "" {
			return plan, invalid(at+"[price_data][product_data][name]", "parameter_missing", "Missing required param: %s[price_data][product_data][name].", at)
		}
	} else if plan.price, err = s.find("price", p.text("price"), at+"[price]"); err != nil {
		return plan, err
	} else if !flag(plan.price, "active") {
		return plan, invalid(at+"[price]", "", "The price specified is inactive. This field only accepts active prices.")
	}
	if isMetered(plan.price) {
		if p.has("quantity") {
			return plan, invalid(at+"[quantity]", "", "Quantity should not be specified where usage_type is `metered`. Remove quantity from `%s`", at)
		}
		return plan, nil
	}
	if p.has("quantity") {
		plan.quantity = p.number("quantity")
	}
	if plan.quantity < 1 {
		return plan, invalid(at+"[quantity]", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
	}
	return plan, nil
}

// forSubscription makes a session of what was built for a payment one that begins
// a subscription.
func (s *Server) forSubscription(c *call, o object) {
	o["payment_method_collection"], o["customer_creation"] = "always", "always"
	if o["customer"] != nil {
		o["customer_creation"] = nil
	}
	wanted := object{}
	for name, v := range c.child("subscription_data").values {
		wanted[name] = v
	}
	o["_subscription"] = wanted
}

// subscribe plays what a buyer does with a session that begins a subscription.
func (s *Server) subscribe(c *call, o object, outcome string) *apiError {
	switch outcome {
	case "card_declined":
		return nil // the session stays open for another card, and nothing was begun
	case "unpaid":
		return invalid("outcome", "", "outcome must be paid, card_declined or expired for a session in subscription mode")
	}
	wanted := object{"items": []any{}, "_once": []any{}}
	for name, v := range child(o, "_subscription") {
		wanted[name] = v
	}
	lines, _ := o["_line_items"].([]any)
	for _, raw := range lines {
		line := raw.(object)
		item := object{"price": child(line, "price")["id"], "_session": true}
		if line["quantity"] != nil {
			item["quantity"] = line["quantity"]
		}
		list := "items"
		if text(child(line, "price"), "type") == "one_time" {
			list = "_once"
		}
		wanted[list] = append(wanted[list].([]any), item)
	}
	customer := s.store.get("customer", text(o, "customer"))
	made := customer == nil || flag(customer, "deleted")
	if made {
		s.change("checkout.session", o, object{"customer": nil, "customer_creation": "always"})
		s.adoptBuyer(c, o)
		customer = s.store.get("customer", text(o, "customer"))
	}
	sub, err := s.onClock(customer, func() (object, *apiError) { return s.makeSubscription(c, params{wanted}, customer, true) })
	if err != nil {
		if made {
			s.store.delete("customer", text(customer, "id"))
			s.change("checkout.session", o, object{"customer": nil})
		}
		return err
	}
	s.change("checkout.session", o, object{"customer": customer["id"], "subscription": sub["id"], "invoice": sub["latest_invoice"]})
	status := "paid"
	if number(o, "amount_total") == 0 {
		status = "no_payment_required"
	} else if text(sub, "status") == "incomplete" {
		status = "unpaid"
	}
	s.complete(c, o, status)
	return nil
}

package stripesim

import (
	"fmt"
	"math/big"
	"strings"
)

// How long a checkout session is open, in seconds.
const (
	sessionLeast  = 30 * 60
	sessionMost   = 24 * 3600
	recoverableIn = 30 * 24 * 3600
)

// checkSession refuses the parameters of a session that Stripe refuses.
func (s *Server) checkSession(c *call) *apiError {
	if customer := c.text("customer"); customer != "" {
		if _, err := s.liveCustomer(customer, "customer"); err != nil {
			return err
		}
		for _, other := range []string{"customer_email", "customer_creation"} {
			if c.has(other) {
				return invalid(other, "", "You may only specify one of these parameters: customer, %s.", other)
			}
		}
	}
	if err := c.mustBeOneOf("customer_creation", "always", "if_required"); err != nil {
		return err
	}
	if err := c.mustBeOneOf("ui_mode", "hosted", "embedded"); err != nil {
		return err
	}
	if err := c.mustBeOneOf("submit_type", "auto", "pay", "book", "donate"); err != nil {
		return err
	}
	if c.text("ui_mode") == "embedded" {
		if c.has("success_url") || c.has("cancel_url") {
			return invalid("success_url", "", "`success_url` and `cancel_url` are not supported with `ui_mode: embedded`: use `return_url`.")
		}
		if c.text("return_url") == "" && c.text("redirect_on_completion") != "never" {
			return invalid("return_url", "parameter_missing", "Missing required param: return_url.")
		}
	} else if c.text("success_url") == "" {
		return invalid("success_url", "parameter_missing", "Missing required param: success_url.")
	}
	if len(c.text("client_reference_id")) > 200 {
		return invalid("client_reference_id", "", "Invalid string: must be at most 200 characters")
	}
	if c.has("expires_at") {
		switch after := c.number("expires_at") - s.now(); {
		case after < sessionLeast:
			return invalid("expires_at", "", "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation.")
		case after > sessionMost:
			return invalid("expires_at", "", "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation.")
		}
	}
	err := c.child("payment_intent_data").mustBeOneOf("capture_method", "automatic", "automatic_async", "manual")
	if err != nil {
		err.param = "payment_intent_data[capture_method]"
	}
	return err
}

// checkItems refuses line items that Stripe refuses and gives their currency.
func (s *Server) checkItems(c *call) (currency string, err *apiError) {
	total := new(big.Int)
	for i, raw := range c.list("line_items") {
		p, name := params{raw.(object)}, fmt.Sprintf("line_items[%d]", i)
		price, err := s.itemPrice(p, name)
		if err != nil {
			return "", err
		}
		quantity := itemQuantity(p)
		adjust := p.child("adjustable_quantity")
		switch {
		case quantity < 1:
			return "", invalid(name+"[quantity]", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
		case quantity > 999999 || adjust.number("maximum") > 999999:
			return "", invalid(name+"[quantity]", "parameter_invalid_integer", "This value must be less than or equal to 999999.")
		case flag(adjust.values, "enabled") && (quantity < adjust.number("minimum") || (adjust.has("maximum") && quantity > adjust.number("maximum"))):
			return "", invalid(name+"[adjustable_quantity]", "", "The quantity (%d) must be between the minimum and the maximum.", quantity)
		case currency != "" && currency != text(price, "currency"):
			return "", invalid("line_items", "", "All line items must have the same currency.")
		}
		currency = text(price, "currency")
		total.Add(total, big.NewInt(itemAmount(price, quantity)))
	}
	if total.Cmp(big.NewInt(99999999)) > 0 {
		return "", invalid("line_items", "amount_too_large", "The Checkout Session's total amount due must be no more than 99999999 %s", currency)
	}
	return currency, nil
}

func itemQuantity(p params) int64 {
	if p.has("quantity") {
		return p.number("quantity")
	}
	return 1
}

// itemAmount is a price times a quantity, rounded half up to whole minor units.
func itemAmount(price object, quantity int64) int64 {
	unit, ok := new(big.Rat).SetString(text(price, "unit_amount_decimal"))
	if !ok {
		unit = new(big.Rat).SetInt64(number(price, "unit_amount"))
	}
	unit.Mul(unit, new(big.Rat).SetInt64(quantity))
	unit.Add(unit, big.NewRat(1, 2))
	return new(big.Int).Div(unit.Num(), unit.Denom()).Int64()
}

// itemPrice gives the price of a line item, or what a price of its price_data will
// be like.
func (s *Server) itemPrice(p params, name string) (object, *apiError) {
	data := p.child("price_data")
	if data.values == nil {
		price, err := s.find("price", p.text("price"), name+"[price]")
		if err == nil && !flag(price, "active") {
			err = invalid(name+"[price]", "", "The price specified is inactive. This field only accepts active prices.")
		}
		if err == nil && text(price, "type") == "recurring" {
			err = invalid(name+"[price]", "", "You specified `payment` mode but passed a recurring price. Either switch to `subscription` mode or use only one-time prices.")
		}
		return price, err
	}
	name += "[price_data]"
	amount, decimal, err := unitAmount(data)
	product := data.child("product_data")
	switch {
	case p.has("price"):
		return nil, invalid(name, "", "You may only specify one of these parameters: price, price_data.")
	case err != nil:
		err.param = name + "[" + err.param + "]"
		return nil, err
	case checkCurrency(data.text("currency")) != nil:
		return nil, invalid(name+"[currency]", "", "Invalid currency: %s. Stripe currently supports three-letter codes such as usd, eur, gbp.", data.text("currency"))
	case data.has("recurring"):
		return nil, invalid(name+"[recurring]", "", "You specified `payment` mode but passed a recurring price. Either switch to `subscription` mode or use only one-time prices.")
	case product.values != nil && product.text("name") == "":
		return nil, invalid(name+"[product_data][name]", "parameter_missing", "Missing required param: %s[product_data][name].", name)
	case product.values == nil:
		if _, err := s.find("product", data.text("product"), name+"[product]"); err != nil {
			return nil, err
		}
	}
	return object{"currency": strings.ToLower(data.text("currency")), "unit_amount": amount, "unit_amount_decimal": decimal}, nil
}

// detailSession sets the members of a new session that depend on its parameters.
func (s *Server) detailSession(c *call, o object) {
	for _, name := range []string{"submit_type", "locale", "allow_promotion_codes", "billing_address_collection", "payment_method_collection", "payment_method_types", "expires_at"} {
		if c.has(name) {
			o[name] = c.values[name]
		}
	}
	if c.text("customer") != "" {
		o["customer_creation"] = nil
	} else if c.has("customer_creation") {
		o["customer_creation"] = c.text("customer_creation")
	}
	if flag(c.child("phone_number_collection").values, "enabled") {
		o["phone_number_collection"] = object{"enabled": true}
	}
	if recovery := c.child("after_expiration").child("recovery"); flag(recovery.values, "enabled") {
		o["after_expiration"] = object{"recovery": object{"allow_promotion_codes": flag(recovery.values, "allow_promotion_codes"), "enabled": true, "expires_at": nil, "url": nil}}
	}
	if c.text("ui_mode") == "embedded" {
		o["ui_mode"], o["url"], o["client_secret"], o["redirect_on_completion"] = "embedded", nil, text(o, "id")+"_secret_"+s.newID("x")[2:], "always"
		if c.has("redirect_on_completion") {
			o["redirect_on_completion"] = c.text("redirect_on_completion")
		}
		if c.text("return_url") != "" {
			o["return_url"] = c.text("return_url")
		}
	}
	if c.text("customer") != "" || c.text("customer_email") != "" {
		o["customer_details"] = s.buyer(o)
	}
	data := c.child("payment_intent_data")
	intent := object{}
	for _, name := range []string{"description", "receipt_email", "capture_method", "setup_future_usage", "statement_descriptor", "statement_descriptor_suffix", "transfer_group"} {
		if data.has(name) {
			intent[name] = data.orNull(name)
		}
	}
	if data.has("shipping") {
		intent["shipping"] = fullShipping(data.child("shipping").values)
	}
	o["_intent_metadata"], o["_intent"] = data.metadata(), intent
}

// buyer is what a session knows of who pays: the customer, or the mail address that
// was given, or, once it is paid, that of an imagined buyer.
func (s *Server) buyer(o object) object {
	b := object{"address": nil, "email": nil, "name": nil, "phone": nil, "tax_exempt": "none", "tax_ids": nil}
	if customer := s.store.get("customer", text(o, "customer")); customer != nil {
		for _, name := range []string{"address", "email", "name", "phone"} {
			b[name] = customer[name]
		}
	}
	if email := text(o, "customer_email"); email != "" {
		b["email"] = email
	}
	if text(o, "status") == "open" && s.paysNow(o) {
		b["tax_ids"] = []any{}
		if b["email"] == nil {
			b["email"] = "buyer@example.com"
		}
	}
	return b
}

// paysNow tells whether a session is being completed rather than made.
func (s *Server) paysNow(o object) bool { return s.store.get("checkout.session", text(o, "id")) != nil }

// adoptBuyer makes the customer that a session was to make, and gives the session's
// customer.
func (s *Server) adoptBuyer(c *call, o object) any {
	if text(o, "customer") != "" || text(o, "customer_creation") != "always" {
		return o["customer"]
	}
	customer := s.newCustomer()
	for name, v := range s.buyer(o) {
		if name != "tax_ids" && name != "tax_exempt" {
			customer[name] = v
		}
	}
	s.store.put("customer", customer)
	s.raise(c, "customer.created", customer, nil)
	s.change("checkout.session", o, object{"customer": customer["id"]})
	return customer["id"]
}

// payBy tries to pay a session's intent by one of Stripe's test methods. A card
// that is declined is the customer's failure, which the caller asked for.
func (s *Server) payBy(c *call, pi object, test string) {
	pm := s.newMethod("pm", test)
	s.keepMethod(pm)
	s.change("payment_intent", pi, object{"payment_method": pm["id"]})
	_ = s.collect(c, pi, pm)
}

// recoverSession gives an expired session the address of its successor, where it
// was made to be recovered.
func (s *Server) recoverSession(o object) {
	recovery := child(child(o, "after_expiration"), "recovery")
	if !flag(recovery, "enabled") {
		return
	}
	o["after_expiration"] = object{"recovery": laidOver(recovery, object{
		"expires_at": s.now() + recoverableIn, "url": "https://buy.stripe.com/r/" + s.newID("live")[5:],
	})}
}

package stripesim

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// Bounds of invoice items.
const (
	invoiceLinesMax = 250
	itemAmountMax   = 999_999_999_999
)

var invoiceItemParams = spec{
	"amount": "int", "description": "string", "discountable": "bool", "metadata": "map", "period": spec{"start": "int", "end": "int"}, "price": "string",
	"price_data": spec{"currency": "string", "product": "string", "unit_amount": "int", "unit_amount_decimal": "string", "tax_behavior": "string"},
	"quantity":   "int", "unit_amount": "int", "unit_amount_decimal": "string",
}

func (s *Server) routeInvoiceItems() {
	create := maps.Clone(invoiceItemParams)
	maps.Copy(create, spec{"customer": "string", "currency": "string", "invoice": "string", "subscription": "string"})
	s.handle("POST /v1/invoiceitems", create, func(c *call) (item object, err *apiError) {
		customer, err := s.billedCustomer(c)
		if err != nil {
			return nil, err
		}
		s.onClockOf(customer, func() { item, err = s.createInvoiceItem(c, customer) })
		return item, err
	})
	s.handle("GET /v1/invoiceitems/{id}", nil, func(c *call) (object, *apiError) { return s.find("invoiceitem", c.target(), "id") })
	s.handle("POST /v1/invoiceitems/{id}", invoiceItemParams, func(c *call) (object, *apiError) {
		item, err := s.editableItem(c.target())
		if err != nil {
			return nil, err
		}
		s.onClockOf(item, func() { err = s.editInvoiceItem(c, item) })
		return item, err
	})
	s.handle("DELETE /v1/invoiceitems/{id}", nil, func(c *call) (object, *apiError) {
		item, err := s.editableItem(c.target())
		if err != nil {
			return nil, err
		}
		id := text(item, "id")
		s.onClockOf(item, func() {
			s.store.delete("invoiceitem", id)
			s.raise(c, "invoiceitem.deleted", item, nil)
			s.replaceLine(c, item, nil)
		})
		return object{"id": id, "object": "invoiceitem", "deleted": true}, nil
	})
	filters := spec{"customer": "string", "invoice": "string", "pending": "bool", "created": createdSpec}
	s.handle("GET /v1/invoiceitems", listSpec(filters), func(c *call) (object, *apiError) {
		return s.list(c, "invoiceitem", func(o object) bool {
			return (!c.has("customer") || text(o, "customer") == c.text("customer")) && (!c.has("invoice") || text(o, "invoice") == c.text("invoice")) &&
				(!c.has("pending") || flag(c.values, "pending") == (o["invoice"] == nil)) && inRange(c, number(o, "date"))
		})
	})
}

// editableItem gives an invoice item that no finalized invoice holds.
func (s *Server) editableItem(id string) (object, *apiError) {
	item, err := s.find("invoiceitem", id, "id")
	if err == nil {
		err = s.still(item)
	}
	if err != nil {
		return nil, err
	}
	if inv := s.store.get("invoice", text(item, "invoice")); inv != nil && text(inv, "status") != "draft" {
		return nil, invalid("", "invoice_not_editable", "This invoice item cannot be changed: the invoice that it is on is no longer editable.")
	}
	return item, nil
}

func (s *Server) createInvoiceItem(c *call, customer object) (object, *apiError) {
	currency := strings.ToLower(c.text("currency"))
	inv, err := s.draftForItem(c, customer)
	if err != nil {
		return nil, err
	}
	sub := s.store.get("subscription", c.text("subscription"))
	if id := c.text("subscription"); id != "" && (sub == nil || text(sub, "customer") != text(customer, "id")) {
		return nil, missing("subscription", id, "subscription")
	}
	owners := []object{inv, sub, customer}
	if err := checkItemAmount(c); err != nil {
		return nil, err
	}
	if !c.has("price") && !c.has("price_data") && currency == "" {
		if currency = firstCurrency(owners); currency == "" {
			return nil, invalid("currency", "parameter_missing", "Missing required param: currency.")
		}
	}
	for _, owner := range []object{inv, sub} {
		wanted := currency
		if price := s.store.get("price", c.text("price")); price != nil {
			wanted = text(price, "currency")
		}
		if data := c.child("price_data"); data.has("currency") {
			wanted = strings.ToLower(data.text("currency"))
		}
		if has := text(owner, "currency"); has != "" && wanted != has {
			return nil, invalid("currency", "", "The currency of the invoice item (%s) does not match that of its %s (%s).", wanted, text(owner, "object"), has)
		}
	}
	amounts, err := s.itemAmounts(c, currency, 1)
	if err != nil {
		return nil, err
	}
	item := s.newInvoiceItem(customer["id"], amounts)
	item["test_clock"] = customer["test_clock"]
	maps.Copy(item, itemMembers(c))
	item["subscription"] = c.orNull("subscription")
	s.adoptCurrency(text(customer, "id"), text(item, "currency"))
	if inv != nil {
		item["invoice"] = inv["id"]
	}
	s.store.put("invoiceitem", item)
	s.raise(c, "invoiceitem.created", item, nil)
	if inv != nil {
		lines := append(slices.Clone(linesOf(inv)), s.lineOfItem(text(inv, "id"), item))
		s.updateInvoice(c, inv, s.reckon(inv, lines))
	}
	return item, nil
}

func firstCurrency(owners []object) string {
	for _, o := range owners {
		if currency := text(o, "currency"); currency != "" {
			return currency
		}
	}
	return ""
}

// draftForItem gives the draft that a new item is for, nil for one that waits.
func (s *Server) draftForItem(c *call, customer object) (object, *apiError) {
	id := c.text("invoice")
	if id == "" {
		return nil, nil
	}
	inv := s.store.get("invoice", id)
	switch {
	case inv == nil || text(inv, "customer") != text(customer, "id"):
		return nil, missing("invoice", id, "invoice")
	case text(inv, "status") != "draft":
		return nil, invalid("invoice", "invoice_not_editable", "Invalid invoice: This invoice is no longer editable")
	case len(linesOf(inv)) >= invoiceLinesMax:
		return nil, invalid("invoice", "", "You can add a maximum of %d invoice items to an invoice.", invoiceLinesMax)
	}
	return inv, nil
}

// newInvoiceItem makes an item that waits for an invoice; it is not kept yet.
func (s *Server) newInvoiceItem(customer any, amounts object) object {
	item := object{
		"id": s.newID("ii"), "object": "invoiceitem", "customer": customer, "date": s.now(), "description": nil, "discountable": number(amounts, "amount") >= 0,
		"discounts": []any{}, "invoice": nil, "livemode": false, "metadata": object{}, "period": object{"start": s.now(), "end": s.now()}, "price": nil,
		"proration": false, "quantity": int64(1), "subscription": nil, "tax_rates": []any{}, "test_clock": nil,
	}
	maps.Copy(item, amounts)
	return item
}

// itemMembers are the members that parameters set in an item.
func itemMembers(c *call) object {
	members := object{}
	for _, name := range []string{"description", "discountable"} {
		if c.has(name) {
			members[name] = c.orNull(name)
		}
	}
	if c.has("metadata") {
		members["metadata"] = mergeMetadata(nil, c.metadata())
	}
	if period := c.child("period"); period.values != nil {
		members["period"] = object{"start": period.number("start"), "end": period.number("end")}
	}
	return members
}

// checkItemAmount refuses an item that says its amount in no way or in two.
func checkItemAmount(c *call) *apiError {
	var given []string
	for _, name := range []string{"amount", "price", "price_data", "unit_amount", "unit_amount_decimal"} {
		if c.has(name) {
			given = append(given, name)
		}
	}
	switch {
	case len(given) == 0:
		return invalid("amount", "parameter_missing", "Missing required param: amount.")
	case len(given) > 1:
		return invalid(given[1], "", "You may only specify one of these parameters: %s.", strings.Join(given, ", "))
	case c.has("amount") && c.has("quantity"):
		return invalid("quantity", "", "You may only specify one of these parameters: amount, quantity.")
	case c.has("quantity") && c.number("quantity") < 0:
		return invalid("quantity", "parameter_invalid_integer", "This value must be greater than or equal to 0.")
	}
	if period := c.child("period"); period.values != nil {
		for _, name := range []string{"start", "end"} {
			if !period.has(name) {
				return invalid("period["+name+"]", "parameter_missing", "Missing required param: period[%s].", name)
			}
		}
		if period.number("end") < period.number("start") {
			return invalid("period[end]", "", "The end of the period must not be before its start.")
		}
	}
	return nil
}

// itemAmounts computes what an item costs from whichever parameters say it.
func (s *Server) itemAmounts(c *call, currency string, quantity int64) (object, *apiError) {
	if c.has("quantity") {
		quantity = c.number("quantity")
	}
	if c.has("amount") {
		amount := c.number("amount")
		if amount > itemAmountMax || amount < -itemAmountMax {
			return nil, tooLarge(currency)
		}
		return object{
			"amount": amount, "currency": currency, "quantity": int64(1), "unit_amount": amount, "unit_amount_decimal": strconv.FormatInt(amount, 10), "price": nil,
		}, nil
	}
	if c.has("price") || c.has("price_data") {
		return s.priceAmounts(c, quantity)
	}
	unit, decimal, err := signedAmountOf(c.params, "unit_amount", "unit_amount")
	if err != nil {
		return nil, err
	}
	if timesTooLarge(decimal, quantity) {
		return nil, tooLarge(currency)
	}
	amount := unitTimes(decimal, quantity)
	return object{"amount": amount.Int64(), "currency": currency, "quantity": quantity, "unit_amount": unit, "unit_amount_decimal": decimal, "price": nil}, nil
}

func tooLarge(currency string) *apiError {
	return invalid("amount", "amount_too_large", "Amount must be no more than %s", money(itemAmountMax, currency))
}

// priceAmounts are an item's amounts by a price that stands or is made with it.
func (s *Server) priceAmounts(c *call, quantity int64) (object, *apiError) {
	if data := c.child("price_data"); data.values != nil {
		_, decimal, err := unitAmount(data)
		if err == nil && timesTooLarge(decimal, quantity) {
			err = tooLarge(strings.ToLower(data.text("currency")))
		}
		if err != nil {
			return nil, err
		}
		price, err := s.makePrice(c, data)
		if err != nil {
			return nil, err
		}
		return s.amountsBy(price, quantity), nil
	}
	price, err := s.find("price", c.text("price"), "price")
	switch {
	case err != nil:
		return nil, err
	case !flag(price, "active"):
		return nil, invalid("price", "", "The price specified is inactive. This field only accepts active prices.")
	case text(price, "type") == "recurring":
		return nil, invalid("price", "", "The price specified is set to `type=recurring` but this field only accepts prices with `type=one_time`.")
	case timesTooLarge(price["unit_amount_decimal"], quantity):
		return nil, tooLarge(text(price, "currency"))
	}
	return s.amountsBy(price, quantity), nil
}

// unitTimes is a decimal unit amount so many times, in minor units.
func unitTimes(decimal any, quantity int64) *big.Int {
	unit, ok := new(big.Rat).SetString(fmt.Sprint(decimal))
	if !ok {
		return new(big.Int) // a price in tiers has none
	}
	return nearestInt(unit.Mul(unit, big.NewRat(quantity, 1)))
}

func timesTooLarge(decimal any, quantity int64) bool {
	return unitTimes(decimal, quantity).CmpAbs(big.NewInt(itemAmountMax)) > 0
}

func (s *Server) amountsBy(price object, quantity int64) object {
	name := s.store.get("product", text(price, "product"))["name"]
	return object{
		"amount": s.priceAmount(price, big.NewRat(quantity, 1)), "currency": price["currency"], "quantity": quantity, "unit_amount": price["unit_amount"],
		"unit_amount_decimal": price["unit_amount_decimal"], "price": s.view(price, nil), "description": name,
	}
}

func (s *Server) editInvoiceItem(c *call, item object) *apiError {
	changes := object{}
	priced := c.has("amount") || c.has("price") || c.has("price_data") || c.has("unit_amount") || c.has("unit_amount_decimal")
	if priced {
		if err := checkItemAmount(c); err != nil {
			return err
		}
		if price := s.store.get("price", c.text("price")); price != nil && text(price, "currency") != text(item, "currency") {
			return invalid("price", "", "The currency of the price (%s) does not match that of the invoice item (%s).", text(price, "currency"), text(item, "currency"))
		}
		amounts, err := s.itemAmounts(c, text(item, "currency"), number(item, "quantity"))
		if err != nil {
			return err
		}
		changes = amounts
	} else if c.has("quantity") {
		quantity := c.number("quantity")
		switch {
		case quantity < 0:
			return invalid("quantity", "parameter_invalid_integer", "This value must be greater than or equal to 0.")
		case timesTooLarge(item["unit_amount_decimal"], quantity):
			return tooLarge(text(item, "currency"))
		}
		changes["quantity"], changes["amount"] = quantity, unitTimes(item["unit_amount_decimal"], quantity).Int64()
		if price := s.store.get("price", text(child(item, "price"), "id")); price != nil {
			changes["amount"] = s.priceAmount(price, big.NewRat(quantity, 1))
		}
	}
	maps.Copy(changes, itemMembers(c))
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(item, "metadata"), c.metadata())
	}
	s.change("invoiceitem", item, changes) // raises no event: this version of the API has no invoiceitem.updated
	s.replaceLine(c, item, item)
	return nil
}

// replaceLine puts the line of an item that has changed into its draft, or takes
// that of one that is gone out of it.
func (s *Server) replaceLine(c *call, item, now object) {
	inv := s.store.get("invoice", text(item, "invoice"))
	if inv == nil {
		return
	}
	lines := slices.Clone(linesOf(inv))
	at := slices.IndexFunc(lines, func(line any) bool { return text(line.(object), "invoice_item") == text(item, "id") })
	if at < 0 {
		return
	}
	if now == nil {
		lines = slices.Delete(lines, at, at+1)
	} else {
		line := s.lineOfItem(text(inv, "id"), now)
		line["id"] = lines[at].(object)["id"]
		lines[at] = line
	}
	s.updateInvoice(c, inv, s.reckon(inv, lines))
}

package stripesim

import (
	"fmt"
	"math/big"
	"strings"
)

// linesOf gives an invoice's or a credit note's lines.
func linesOf(o object) []any {
	lines, _ := child(o, "lines")["data"].([]any)
	return lines
}

// cutLines leaves of an answered list of lines what an object shows: the first ten.
func cutLines(list object) {
	if lines, _ := list["data"].([]any); len(lines) > 10 {
		list["data"], list["has_more"] = lines[:10], true
	}
}

// newLine makes a line with what every line has.
func (s *Server) newLine(invoice any, amount int64, currency string) object {
	return object{
		"id": s.newID("il"), "object": "line_item", "amount": amount, "amount_excluding_tax": amount, "currency": currency, "description": nil,
		"discount_amounts": []any{}, "discountable": true, "discounts": []any{}, "invoice": invoice, "livemode": false, "metadata": object{},
		"period": object{"start": s.now(), "end": s.now()}, "price": nil, "proration": false, "proration_details": object{"credited_items": nil},
		"quantity": nil, "subscription": nil, "tax_amounts": []any{}, "tax_rates": []any{}, "type": "invoiceitem", "unit_amount_excluding_tax": nil,
	}
}

// lineOfItem makes the line of an invoice item.
func (s *Server) lineOfItem(invoice string, item object) object {
	line := s.newLine(invoice, number(item, "amount"), text(item, "currency"))
	for _, name := range []string{"description", "discountable", "metadata", "period", "proration", "quantity", "subscription"} {
		line[name] = item[name]
	}
	line["unit_amount_excluding_tax"] = item["unit_amount_decimal"]
	if price := child(item, "price"); price != nil {
		line["price"] = s.view(price, nil)
	}
	if id := text(item, "id"); id != "" {
		line["invoice_item"] = id
	}
	if id := text(item, "subscription_item"); id != "" {
		line["subscription_item"] = id
	}
	return line
}

// lineOfSubscription makes the line of a subscription's item.
func (s *Server) lineOfSubscription(inv object, b billedItem) object {
	line := s.newLine(inv["id"], 0, text(b.price, "currency"))
	line["type"] = "subscription"
	line["price"] = s.view(b.price, nil)
	line["period"] = object{"start": b.start, "end": b.end}
	line["proration"] = b.proration
	line["subscription"] = inv["subscription"]
	line["subscription_item"] = text(b.item, "id")
	line["metadata"] = mergeMetadata(nil, child(b.item, "metadata"))
	line["unit_amount_excluding_tax"] = b.price["unit_amount_decimal"]
	s.bill(line, b.price, b.quantity)
	if b.amount != nil {
		line["amount"], line["amount_excluding_tax"] = b.amount.Int64(), b.amount.Int64()
	}
	if b.description != "" {
		line["description"] = b.description
	}
	return line
}

// bill sets what a line of a subscription takes from its quantity. Usage below
// nothing, which corrections can make, counts as nothing.
func (s *Server) bill(line, price object, quantity *big.Rat) {
	if quantity == nil || quantity.Sign() < 0 {
		quantity = new(big.Rat)
	}
	amount := s.priceAmount(price, quantity)
	line["amount"], line["amount_excluding_tax"] = amount, amount
	line["quantity"] = nearestInt(quantity).Int64()
	line["description"] = s.describe(price, number(line, "quantity"))
}

// meteredAgain gives an invoice's lines with those of billing meters computed once
// more: such usage counts until the invoice is finalized, that of older metered
// prices only until the period's end.
func (s *Server) meteredAgain(inv object) []any {
	lines := linesOf(inv)
	again := make([]any, len(lines))
	for i, raw := range lines {
		line := raw.(object)
		again[i] = line
		item := s.store.get("subscription_item", text(line, "subscription_item"))
		price := child(line, "price")
		if text(line, "type") != "subscription" || text(child(price, "recurring"), "meter") == "" || flag(line, "proration") || item == nil {
			continue
		}
		if stored := s.store.get("price", text(price, "id")); stored != nil {
			price = stored // with its tiers, which no line shows
		}
		period := child(line, "period")
		if number(period, "start") == number(period, "end") {
			continue // nothing is billed by it: of the first invoice, or of a trial
		}
		fresh := s.view(line, nil)
		s.bill(fresh, price, s.meteredQuantity(item, number(period, "start"), number(period, "end")))
		again[i] = fresh
	}
	return again
}

// describe is a line's text, in Stripe's words.
func (s *Server) describe(price object, quantity int64) string {
	name := text(s.store.get("product", text(price, "product")), "name")
	recurring := child(price, "recurring")
	every := text(recurring, "interval")
	if n := number(recurring, "interval_count"); n > 1 {
		every = fmt.Sprintf("%d %ss", n, every)
	}
	at := "Tier 1"
	if unit, ok := new(big.Rat).SetString(text(price, "unit_amount_decimal")); ok {
		at = moneyOf(unit, text(price, "currency"))
	}
	if text(recurring, "usage_type") == "metered" {
		return fmt.Sprintf("%s (at %s / %s)", name, at, every)
	}
	return fmt.Sprintf("%d × %s (at %s / %s)", quantity, name, at, every)
}

// minorDigits are the digits after the point of the currencies that do not have two.
var minorDigits = map[string]int{
	"bif": 0, "clp": 0, "djf": 0, "gnf": 0, "jpy": 0, "kmf": 0, "krw": 0, "mga": 0, "pyg": 0, "rwf": 0, "vnd": 0, "vuv": 0, "xaf": 0, "xof": 0, "xpf": 0,
	"bhd": 3, "jod": 3, "kwd": 3, "omr": 3, "tnd": 3,
}

// money writes minor units as Stripe's messages do.
func money(amount int64, currency string) string {
	return moneyOf(new(big.Rat).SetInt64(amount), currency)
}

func moneyOf(amount *big.Rat, currency string) string {
	digits, known := minorDigits[currency]
	if !known {
		digits = 2
	}
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits)), nil)
	major := new(big.Rat).Quo(amount, new(big.Rat).SetInt(scale))
	s := major.FloatString(digits)
	if !amount.IsInt() {
		whole, fraction, _ := strings.Cut(major.FloatString(14), ".")
		fraction = strings.TrimRight(fraction, "0")
		s = whole + "." + fraction + strings.Repeat("0", max(0, digits-len(fraction)))
	}
	sign := ""
	if rest, negative := strings.CutPrefix(s, "-"); negative {
		sign, s = "-", rest
	}
	if symbol := map[string]string{"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥"}[currency]; symbol != "" {
		return sign + symbol + s
	}
	return sign + s + " " + strings.ToUpper(currency)
}

package stripesim

import (
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

var tierParams = spec{
	"up_to": "string", "unit_amount": "int", "unit_amount_decimal": "string", "flat_amount": "int", "flat_amount_decimal": "string",
}

// Bounds of prices.
const (
	tiersMax = 100
	daysMax  = 3 * 366 // the longest interval is three years
)

// intervalDays is about how long an interval is, at most.
var intervalDays = map[string]int64{"day": 1, "week": 7, "month": 31, "year": 366}

func (s *Server) makePrice(c *call, p params) (object, *apiError) {
	o, err := s.newPrice(p)
	if err != nil {
		return nil, err
	}
	if data := p.child("product_data"); data.values != nil {
		if err := data.require("name"); err != nil {
			return nil, err
		}
		o["product"] = text(s.makeProduct(c, data), "id")
	}
	s.keepPrice(c, o)
	return o, nil
}

// newPrice checks and builds a price, and keeps nothing yet.
func (s *Server) newPrice(p params) (object, *apiError) {
	if err := p.require("currency"); err != nil {
		return nil, err
	}
	if p.child("product_data").values == nil {
		if _, err := s.find("product", p.text("product"), "product"); err != nil {
			return nil, err
		}
	}
	o := object{
		"id": s.newID("price"), "object": "price", "created": s.now(), "livemode": false, "active": !p.has("active") || flag(p.values, "active"),
		"billing_scheme": "per_unit", "currency": strings.ToLower(p.text("currency")), "custom_unit_amount": nil, "lookup_key": p.orNull("lookup_key"),
		"metadata": p.metadata(), "nickname": p.orNull("nickname"), "product": p.text("product"), "tax_behavior": "unspecified", "tiers_mode": nil,
		"transform_quantity": nil, "type": "one_time", "unit_amount": nil, "unit_amount_decimal": nil, "recurring": nil,
	}
	if p.has("tax_behavior") {
		if err := p.oneOf("tax_behavior", "exclusive", "inclusive", "unspecified"); err != nil {
			return nil, err
		}
		o["tax_behavior"] = p.text("tax_behavior")
	}
	if err := s.priceScheme(p, o); err != nil {
		return nil, err
	}
	if recurring := p.child("recurring"); recurring.values != nil {
		var err *apiError
		if o["recurring"], err = s.recurring(recurring); err != nil {
			return nil, err
		}
		o["type"] = "recurring"
	}
	if key := p.text("lookup_key"); key != "" && !flag(p.values, "transfer_lookup_key") && s.priceOfKey(key) != nil {
		return nil, lookupKeyTaken(key, s.priceOfKey(key))
	}
	return o, nil
}

func lookupKeyTaken(key string, price object) *apiError {
	return invalid("lookup_key", "resource_already_exists", "A price (`%s`) already uses that lookup key (`%s`).", text(price, "id"), key)
}

// priceOfKey gives the price that a lookup key names.
func (s *Server) priceOfKey(key string) object {
	for o := range s.store.shelf("price").all {
		if text(o, "lookup_key") == key {
			return o
		}
	}
	return nil
}

// keepPrice keeps a new price. Its lookup key leaves the price that had it before.
func (s *Server) keepPrice(c *call, o object) {
	s.transferKey(text(o, "lookup_key"), o)
	s.store.put("price", o)
	s.raise(c, "price.created", o, nil)
}

func (s *Server) transferKey(key string, to object) {
	if key == "" {
		return
	}
	if from := s.priceOfKey(key); from != nil && text(from, "id") != text(to, "id") {
		s.change("price", from, object{"lookup_key": nil})
	}
}

func (s *Server) updatePrice(c *call) (object, *apiError) {
	o, err := s.find("price", c.target(), "id")
	if err != nil {
		return nil, err
	}
	if key := c.text("lookup_key"); key != "" {
		holder := s.priceOfKey(key)
		if holder != nil && text(holder, "id") != text(o, "id") && !flag(c.values, "transfer_lookup_key") {
			return nil, lookupKeyTaken(key, holder)
		}
		s.transferKey(key, o)
	}
	delete(c.values, "transfer_lookup_key")
	return s.update(c, "price")
}

// priceScheme sets what a unit costs: one amount, or tiers.
func (s *Server) priceScheme(p params, o object) *apiError {
	if p.text("billing_scheme") == "tiered" {
		return priceTiers(p, o)
	}
	if err := p.oneOf("billing_scheme", "", "per_unit"); err != nil {
		return err
	}
	for _, name := range []string{"tiers", "tiers_mode"} {
		if p.has(name) {
			return invalid(name, "", "`%s` can only be set when `billing_scheme=tiered`.", name)
		}
	}
	var err *apiError
	if o["unit_amount"], o["unit_amount_decimal"], err = unitAmount(p); err != nil {
		return err
	}
	if transform := p.child("transform_quantity"); transform.values != nil {
		if transform.number("divide_by") < 1 {
			return invalid("transform_quantity[divide_by]", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
		}
		if round := transform.text("round"); round != "up" && round != "down" {
			return invalid("transform_quantity[round]", "", "Invalid transform_quantity[round]: must be one of down or up")
		}
		o["transform_quantity"] = object{"divide_by": transform.number("divide_by"), "round": transform.text("round")}
	}
	return nil
}

// unitAmount gives both forms of a price's amount; a fraction of a minor unit has
// only the decimal one.
func unitAmount(p params) (amount, decimal any, err *apiError) {
	if !p.has("unit_amount") && p.text("unit_amount_decimal") == "" {
		return nil, nil, invalid("unit_amount", "parameter_missing", "Prices require an `unit_amount` or `unit_amount_decimal` parameter to be set.")
	}
	return amountOf(p, "unit_amount", "unit_amount")
}

// amountOf reads an amount that is given whole or as a decimal, null where it is
// not given.
func amountOf(p params, name, full string) (amount, decimal any, err *apiError) {
	if p.has(name) && p.number(name) < 0 {
		return nil, nil, invalid(full, "parameter_invalid_integer", "This value must be greater than or equal to 0.")
	}
	if strings.HasPrefix(p.text(name+"_decimal"), "-") {
		return nil, nil, invalidDecimal(full, p.text(name+"_decimal"))
	}
	return signedAmountOf(p, name, full)
}

func invalidDecimal(full, given string) *apiError {
	return invalid(full+"_decimal", "", "Invalid decimal: %s; must contain at maximum twelve decimal places.", given)
}

// signedAmountOf is amountOf where an amount may be below zero.
func signedAmountOf(p params, name, full string) (amount, decimal any, err *apiError) {
	if p.has(name) && p.text(name+"_decimal") != "" {
		return nil, nil, invalid(full, "", "You may only specify one of these parameters: %s, %s_decimal.", name, name)
	}
	if p.has(name) {
		return p.number(name), strconv.FormatInt(p.number(name), 10), nil
	}
	given := p.text(name + "_decimal")
	if given == "" {
		return nil, nil, nil
	}
	value, ok := new(big.Rat).SetString(given)
	if !ok || !decimalForm.MatchString(given) {
		return nil, nil, invalidDecimal(full, given)
	}
	if value.IsInt() && value.Num().IsInt64() {
		return value.Num().Int64(), value.Num().String(), nil
	}
	return nil, given, nil
}

// priceTiers sets a price's tiers. They stay hidden until they are expanded.
func priceTiers(p params, o object) *apiError {
	if mode := p.text("tiers_mode"); mode != "graduated" && mode != "volume" {
		return invalid("tiers_mode", "", "Invalid tiers_mode: must be one of graduated or volume")
	}
	for _, name := range []string{"unit_amount", "unit_amount_decimal", "transform_quantity"} {
		if p.has(name) {
			return invalid(name, "", "`%s` cannot be set when `billing_scheme=tiered`.", name)
		}
	}
	list := p.list("tiers")
	if len(list) == 0 || len(list) > tiersMax {
		return invalid("tiers", "", "A price with `billing_scheme=tiered` takes between 1 and %d tiers.", tiersMax)
	}
	tiers := make([]any, len(list))
	below := int64(0)
	for i, raw := range list {
		tier, err := priceTier(params{raw.(object)}, "tiers["+itoa(i)+"]", below, i == len(list)-1)
		if err != nil {
			return err
		}
		below = number(tier, "up_to")
		tiers[i] = tier
	}
	o["billing_scheme"], o["tiers_mode"], o["_tiers"] = "tiered", p.text("tiers_mode"), tiers
	return nil
}

func priceTier(p params, name string, below int64, last bool) (object, *apiError) {
	tier := object{"up_to": nil}
	if upTo := p.text("up_to"); upTo == "inf" != last {
		return nil, invalid(name+"[up_to]", "", "The last tier, and only the last, must have `up_to` set to `inf`.")
	} else if !last {
		n, err := strconv.ParseInt(upTo, 10, 64)
		if err != nil || n <= below {
			return nil, invalid(name+"[up_to]", "parameter_invalid_integer", "Invalid up_to: %s; it must be an integer above that of the tier before.", upTo)
		}
		tier["up_to"] = n
	}
	for _, part := range []string{"unit_amount", "flat_amount"} {
		amount, decimal, err := amountOf(p, part, name+"["+part+"]")
		if err != nil {
			return nil, err
		}
		tier[part], tier[part+"_decimal"] = amount, decimal
	}
	if tier["unit_amount_decimal"] == nil && tier["flat_amount_decimal"] == nil {
		return nil, invalid(name, "", "Each tier must have at least one of `unit_amount` or `flat_amount` set.")
	}
	return tier, nil
}

func (s *Server) recurring(p params) (object, *apiError) {
	unit, count := p.text("interval"), int64(1)
	if unit == "" {
		return nil, invalid("recurring[interval]", "parameter_missing", "Missing required param: recurring[interval].")
	}
	if intervalDays[unit] == 0 {
		return nil, invalid("recurring[interval]", "", "Invalid recurring[interval]: must be one of month, year, week, or day")
	}
	if p.has("interval_count") {
		count = p.number("interval_count")
	}
	if count < 1 || count > daysMax/intervalDays[unit] {
		return nil, invalid("recurring[interval_count]", "", "Invalid recurring[interval_count]: an interval lasts from one day to three years.")
	}
	o := object{"aggregate_usage": nil, "interval": unit, "interval_count": count, "usage_type": "licensed", "meter": nil}
	if p.has("usage_type") {
		o["usage_type"] = p.text("usage_type")
	}
	if usage := text(o, "usage_type"); usage != "licensed" && usage != "metered" {
		return nil, invalid("recurring[usage_type]", "", "Invalid recurring[usage_type]: must be one of licensed or metered")
	}
	return o, s.recurringUsage(p, o)
}

// recurringUsage sets where the quantity of a metered price comes from: usage
// records with a way of aggregating them, or a billing meter.
func (s *Server) recurringUsage(p params, o object) *apiError {
	metered := text(o, "usage_type") == "metered"
	aggregate := p.text("aggregate_usage")
	switch meter := p.text("meter"); {
	case meter != "" && !metered:
		return invalid("recurring[meter]", "", "You can only set `recurring[meter]` with `recurring[usage_type]=metered`.")
	case meter != "" && aggregate != "":
		return invalid("recurring[aggregate_usage]", "", "You cannot set `recurring[aggregate_usage]` together with `recurring[meter]`: the meter says how usage is aggregated.")
	case meter != "":
		o["meter"] = meter
		_, err := s.find("billing.meter", meter, "recurring[meter]")
		return err
	case aggregate != "" && !metered:
		return invalid("recurring[aggregate_usage]", "", "You can only set `recurring[aggregate_usage]` with `recurring[usage_type]=metered`.")
	case !metered:
		return nil
	case aggregate == "":
		o["aggregate_usage"] = "sum"
	case !slices.Contains(aggregations, aggregate):
		return invalid("recurring[aggregate_usage]", "", "Invalid recurring[aggregate_usage]: must be one of sum, last_during_period, last_ever, or max")
	default:
		o["aggregate_usage"] = aggregate
	}
	return nil
}

// oneOf refuses a parameter whose value is none of those that are allowed.
func (p params) oneOf(name string, allowed ...string) *apiError {
	if slices.Contains(allowed, p.text(name)) {
		return nil
	}
	shown := slices.DeleteFunc(slices.Clone(allowed), func(v string) bool { return v == "" })
	return invalid(name, "", "Invalid %s: must be one of %s", name, strings.Join(shown, ", "))
}

// priceAmount is what a quantity costs, in minor units. It is computed exactly and
// rounded once, at the end, to the nearest whole minor unit, a half away from zero.
func (s *Server) priceAmount(price object, quantity *big.Rat) int64 {
	return roundHalfUp(s.exactAmount(price, quantity))
}

func (s *Server) exactAmount(price object, quantity *big.Rat) *big.Rat {
	if text(price, "billing_scheme") == "tiered" {
		return s.tieredAmount(price, quantity)
	}
	units := new(big.Rat).Set(quantity)
	if transform := child(price, "transform_quantity"); transform != nil {
		units.Quo(units, big.NewRat(max(number(transform, "divide_by"), 1), 1))
		whole, rest := new(big.Int).DivMod(units.Num(), units.Denom(), new(big.Int)) // downwards
		if rest.Sign() != 0 && text(transform, "round") == "up" {
			whole.Add(whole, big.NewInt(1))
		}
		units.SetInt(whole)
	}
	return units.Mul(units, decimalOf(price, "unit_amount"))
}

// tieredAmount goes up the tiers. By volume, the tier that holds the whole quantity
// prices all of it; graduated, each tier prices the units within it. The flat amount
// of the first tier is charged even when there is no usage.
func (s *Server) tieredAmount(price object, quantity *big.Rat) *big.Rat {
	sum, below := new(big.Rat), new(big.Rat)
	tiers, _ := price["_tiers"].([]any)
	if quantity.Sign() <= 0 && s.switches.ZeroUsageFree {
		return sum
	}
	for i, raw := range tiers {
		tier := raw.(object)
		last := tier["up_to"] == nil
		upTo := new(big.Rat).SetInt64(number(tier, "up_to"))
		if text(price, "tiers_mode") == "volume" {
			if last || quantity.Cmp(upTo) <= 0 {
				sum.Mul(quantity, decimalOf(tier, "unit_amount"))
				return sum.Add(sum, decimalOf(tier, "flat_amount"))
			}
			continue
		}
		if i > 0 && quantity.Cmp(below) <= 0 {
			break
		}
		within := new(big.Rat).Set(quantity)
		if !last && quantity.Cmp(upTo) > 0 {
			within.Set(upTo)
		}
		within.Sub(within, below)
		sum.Add(sum, within.Mul(within, decimalOf(tier, "unit_amount")))
		sum.Add(sum, decimalOf(tier, "flat_amount"))
		below = upTo
	}
	return sum
}

// decimalOf gives an amount from its exact form, 0 where it is not set.
func decimalOf(o object, name string) *big.Rat {
	if value, ok := new(big.Rat).SetString(text(o, name+"_decimal")); ok {
		return value
	}
	return new(big.Rat)
}

// decimalText is the shortest decimal of an amount, of at most twelve places.
func decimalText(r *big.Rat) string {
	return strings.TrimSuffix(strings.TrimRight(r.FloatString(12), "0"), ".")
}

// roundHalfUp rounds to the nearest whole number, a half away from zero, so that a
// credit undoes exactly the charge that it is for.
func roundHalfUp(r *big.Rat) int64 {
	whole := nearestInt(r)
	switch {
	case whole.IsInt64():
		return whole.Int64()
	case whole.Sign() < 0:
		return -math.MaxInt64
	}
	return math.MaxInt64
}

// nearestInt is roundHalfUp without an end.
func nearestInt(r *big.Rat) *big.Int {
	twice := new(big.Int).Mul(new(big.Int).Abs(r.Num()), big.NewInt(2))
	twice.Add(twice, r.Denom())
	whole := twice.Quo(twice, new(big.Int).Mul(r.Denom(), big.NewInt(2)))
	if r.Sign() < 0 {
		whole.Neg(whole)
	}
	return whole
}

package stripesim

import "math/big"

// share is part of whole of an amount, rounded half up.
func share(amount, part, whole int64) int64 {
	r := new(big.Rat).Mul(big.NewRat(amount, 1), big.NewRat(part, whole))
	return nearestInt(r).Int64()
}

// customCreditLine makes a line that is about no line of the invoice.
func (s *Server) customCreditLine(p params, at string) (object, *apiError) {
	for _, name := range []string{"description", "quantity"} {
		if !p.has(name) {
			return nil, invalid(at+"["+name+"]", "parameter_missing", "Missing required param: %s[%s].", at, name)
		}
	}
	unit, decimal, err := unitAmount(p)
	if err != nil {
		return nil, invalid(at+"[unit_amount]", "parameter_missing", "Missing required param: %s[unit_amount].", at)
	}
	quantity := p.number("quantity")
	amount := unitTimes(decimal, quantity)
	if quantity < 1 || amount.Sign() <= 0 || timesTooLarge(decimal, quantity) {
		return nil, invalid(at+"[quantity]", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
	}
	line := s.newCreditLine(amount.Int64())
	line["description"], line["quantity"], line["unit_amount"] = p.text("description"), quantity, unit
	line["unit_amount_decimal"], line["unit_amount_excluding_tax"] = decimal, decimal
	return line, nil
}

package stripesim

import "math/big"

func (s *Server) priceAmount(price object, quantity *big.Rat) int64 {
	unit, ok := new(big.Rat).SetString(text(price, "unit_amount_decimal"))
	if !ok {
		return 0
	}
	return nearestInt(unit.Mul(unit, quantity)).Int64()
}

func (s *Server) meteredQuantity(item object, start, end int64) *big.Rat {
	meter := text(child(child(item, "price"), "recurring"), "meter")
	subscription := s.store.get("subscription", text(item, "subscription"))
	return s.meters.total(meterCustomer{meter, text(subscription, "customer")}, start, end)
}

func (s *Server) upcomingItems(sub object) []billedItem {
	var all []billedItem
	items, _ := child(sub, "items")["data"].([]any)
	for _, raw := range items {
		item := raw.(object)
		all = append(all, billedItem{
			item: item, price: child(item, "price"), quantity: big.NewRat(number(item, "quantity"), 1),
			start: number(sub, "current_period_end"), end: 2*number(sub, "current_period_end") - number(sub, "current_period_start"),
		})
	}
	return all
}

func (s *Server) subscriptionPaid(c *call, invoice object, paid bool) {
	if sub := s.store.get("subscription", text(invoice, "subscription")); sub != nil {
		s.change("subscription", sub, object{"status": map[bool]string{true: "active", false: "past_due"}[paid]})
		s.raise(c, "customer.subscription.updated", sub, nil)
	}
}

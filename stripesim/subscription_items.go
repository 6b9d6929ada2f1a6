package stripesim

import (
	"math/big"
	"strings"
)

// itemPlan is an item as it is to become.
type itemPlan struct {
	item       object // as it stands; nil for a new one
	price      object // with newPrice it is not kept yet
	newPrice   bool
	quantity   int64
	metadata   any
	thresholds any
	deleted    bool
	clear      bool // its usage is forgotten
}

func isMetered(price object) bool { return text(child(price, "recurring"), "usage_type") == "metered" }

// isLegacyMetered tells a price that is billed by usage records.
func isLegacyMetered(price object) bool {
	return isMetered(price) && text(child(price, "recurring"), "meter") == ""
}

// itemQuantity is the quantity of a licensed item, 0 for a metered one.
func licensedQuantity(item object) *big.Rat { return big.NewRat(number(item, "quantity"), 1) }

// planItems checks what a call wants of a subscription's items; sub is nil for a new
// one. It gives the plans of all items, those that stay as they are included.
func (s *Server) planItems(p params, sub object) ([]itemPlan, *apiError) {
	var plans []itemPlan
	named := map[string]int{}
	for _, item := range s.itemsOf(sub) {
		named[text(item, "id")] = len(plans)
		plans = append(plans, itemPlan{
			item: item, price: s.store.get("price", text(item, "price")), quantity: number(item, "quantity"),
			metadata: item["metadata"], thresholds: item["billing_thresholds"],
		})
	}
	if sub == nil && len(p.list("items")) == 0 {
		return nil, invalid("items", "parameter_missing", "Missing required param: items.")
	}
	for i, raw := range p.list("items") {
		at := "items[" + itoa(i) + "]"
		given := params{raw.(object)}
		var plan *itemPlan
		if id := given.text("id"); id != "" {
			n, stands := named[id]
			if !stands {
				return nil, missing("subscription_item", id, at+"[id]")
			}
			plan = &plans[n]
		} else {
			plans = append(plans, itemPlan{quantity: 1, metadata: object{}})
			plan = &plans[len(plans)-1]
		}
		if err := s.planItem(given, at, plan); err != nil {
			return nil, err
		}
	}
	return plans, s.plansAgree(plans)
}

// planItem lays what a call gives of an item over its plan.
func (s *Server) planItem(p params, at string, plan *itemPlan) *apiError {
	if flag(p.values, "deleted") {
		plan.deleted, plan.clear = true, flag(p.values, "clear_usage")
		return usageCleared(plan, plan.clear, at+"[clear_usage]")
	}
	before := plan.price
	if err := s.planPrice(p, at, plan); err != nil {
		return err
	}
	if plan.item != nil && isLegacyMetered(before) && !isMetered(plan.price) {
		plan.clear = flag(p.values, "clear_usage")
		if err := usageCleared(&itemPlan{item: plan.item, price: before}, plan.clear, at+"[clear_usage]"); err != nil {
			return err
		}
	}
	if isMetered(plan.price) {
		if p.has("quantity") {
			return invalid(at+"[quantity]", "", "You cannot set the quantity for metered plans")
		}
		plan.quantity = 0
	} else if p.has("quantity") {
		if plan.quantity = p.number("quantity"); plan.quantity < 0 {
			return invalid(at+"[quantity]", "parameter_invalid_integer", "This value must be greater than or equal to 0.")
		}
	} else if plan.item != nil && isMetered(before) {
		plan.quantity = 1
	}
	if p.has("metadata") {
		old, _ := plan.metadata.(object)
		plan.metadata = mergeMetadata(old, p.metadata())
	}
	if t := p.child("billing_thresholds"); t.values != nil {
		if !isLegacyMetered(plan.price) || t.number("usage_gte") < 1 {
			return invalid(at+"[billing_thresholds][usage_gte]", "", "A usage threshold is at least 1, and only for items whose price has `usage_type=metered`.")
		}
		plan.thresholds = object{"usage_gte": t.number("usage_gte")}
	} else if p.has("billing_thresholds") {
		plan.thresholds = nil
	}
	return nil
}

func (s *Server) planPrice(p params, at string, plan *itemPlan) *apiError {
	if data := p.child("price_data"); data.values != nil {
		if data.child("recurring").values == nil {
			return invalid(at+"[price_data][recurring]", "parameter_missing", "Missing required param: %s[price_data][recurring].", at)
		}
		price, err := s.newPrice(data)
		if err != nil {
			if err.param != "" {
				head, rest, nested := strings.Cut(err.param, "[")
				err.param = at + "[price_data][" + head + "]"
				if nested {
					err.param += "[" + rest
				}
			}
			return err
		}
		plan.price, plan.newPrice = price, true
		return nil
	}
	id := p.text("price")
	if id == "" {
		if plan.item == nil {
			return invalid(at+"[price]", "parameter_missing", "Missing required param: %s[price].", at)
		}
		return nil
	}
	if plan.item != nil && text(plan.item, "price") == id {
		return nil // an inactive price may stay
	}
	price, err := s.find("price", id, at+"[price]")
	if err != nil {
		return err
	}
	if !flag(price, "active") && !p.has("_session") {
		return invalid(at+"[price]", "", "The price specified is inactive. This field only accepts active prices.")
	}
	if text(price, "type") != "recurring" {
		return invalid(at+"[price]", "", "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`.")
	}
	plan.price = price
	return nil
}

// usageCleared refuses to take an item away together with its usage unless the call
// says so.
func usageCleared(plan *itemPlan, cleared bool, param string) *apiError {
	metered := isLegacyMetered(plan.price)
	if metered && !cleared {
		return invalid(param, "", "When deleting the subscription item `%s`, all related usage records must be cleared too by setting clear_usage=true.", text(plan.item, "id"))
	}
	if cleared && !metered {
		return invalid(param, "", "`clear_usage` is allowed only when the current price's `usage_type` is `metered`.")
	}
	return nil
}

// plansAgree checks what must hold of all items together.
func (s *Server) plansAgree(plans []itemPlan) *apiError {
	count, seen := 0, map[string]bool{}
	var first object
	for _, plan := range plans {
		if plan.deleted {
			continue
		}
		if count++; count > subscriptionItemsMax {
			return invalid("items", "", "A subscription can have at most %d items.", subscriptionItemsMax)
		}
		if first == nil {
			first = plan.price
		}
		field := ""
		if text(plan.price, "currency") != text(first, "currency") {
			field = "currency"
		} else if cadenceOf(plan.price) != cadenceOf(first) {
			field = "interval"
		}
		if field != "" {
			return invalid("items", "", "Currency and interval fields must match across all plans on this subscription. Found mismatch in %s field.", field)
		}
		id := text(plan.price, "id")
		if seen[id] {
			return invalid("items", "", "Cannot add multiple subscription items with the same plan: %s", id)
		}
		seen[id] = true
	}
	if count == 0 {
		return invalid("items", "", "A subscription must have at least one active plan. If you'd like to cancel this subscription, please use the cancel endpoint.")
	}
	return nil
}

// keepItem makes the item of a plan.
func (s *Server) keepItem(c *call, sub object, plan itemPlan) {
	if plan.newPrice {
		plan.price["active"] = false // a price that was made for one item is not for others
		s.keepPrice(c, plan.price)
	}
	item := object{
		"id": s.newID("si"), "object": "subscription_item", "created": s.now(), "subscription": sub["id"], "price": plan.price["id"], "metadata": plan.metadata,
		"billing_thresholds": plan.thresholds, "discounts": []any{}, "tax_rates": []any{},
	}
	if !isMetered(plan.price) {
		item["quantity"] = plan.quantity
	}
	s.store.put("subscription_item", item)
	if isLegacyMetered(plan.price) {
		s.openUsage(sub, item, s.now())
	}
}

// changeItem brings an item that stands to its plan.
func (s *Server) changeItem(c *call, sub object, plan itemPlan) {
	before := s.store.get("price", text(plan.item, "price"))
	if plan.newPrice {
		plan.price["active"] = false
		s.keepPrice(c, plan.price)
	}
	changes := object{"price": plan.price["id"], "metadata": plan.metadata, "billing_thresholds": plan.thresholds}
	if isMetered(plan.price) {
		delete(plan.item, "quantity")
	} else {
		changes["quantity"] = plan.quantity
	}
	s.change("subscription_item", plan.item, changes)
	if plan.clear {
		s.clearUsage(plan.item)
	}
	if isLegacyMetered(plan.price) && !isLegacyMetered(before) {
		s.openUsage(sub, plan.item, s.now())
	}
}

func (s *Server) dropItem(item object) {
	s.clearUsage(item)
	s.store.delete("subscription_item", text(item, "id"))
}

func (s *Server) routeSubscriptionItems() {
	change := spec{
		"price": "string", "price_data": priceDataParams, "quantity": "int", "metadata": "map", "billing_thresholds": itemThresholdParams,
		"proration_behavior": "string", "proration_date": "int", "payment_behavior": "string", "off_session": "bool",
	}
	create := spec{"subscription": "string"}
	for name, kind := range change {
		create[name] = kind
	}
	s.handle("POST /v1/subscription_items", create, func(c *call) (object, *apiError) {
		if err := c.require("subscription"); err != nil {
			return nil, err
		}
		return s.viaSubscription(c, c.text("subscription"), "subscription", object{})
	})
	s.handle("GET /v1/subscription_items/{id}", nil, func(c *call) (object, *apiError) {
		return s.find("subscription_item", c.target(), "item")
	})
	s.handle("POST /v1/subscription_items/{id}", change, func(c *call) (object, *apiError) {
		item, err := s.find("subscription_item", c.target(), "item")
		if err != nil {
			return nil, err
		}
		return s.viaSubscription(c, text(item, "subscription"), "item", object{"id": c.target()})
	})
	s.handle("DELETE /v1/subscription_items/{id}", spec{"clear_usage": "bool", "proration_behavior": "string", "proration_date": "int"}, func(c *call) (object, *apiError) {
		item, err := s.find("subscription_item", c.target(), "item")
		if err != nil {
			return nil, err
		}
		if _, err := s.viaSubscription(c, text(item, "subscription"), "item", object{"id": c.target(), "deleted": true}); err != nil {
			return nil, err
		}
		return object{"id": c.target(), "object": "subscription_item", "deleted": true}, nil
	})
	s.handle("GET /v1/subscription_items", listSpec(spec{"subscription": "string"}), func(c *call) (object, *apiError) {
		if err := c.require("subscription"); err != nil {
			return nil, err
		}
		if _, err := s.find("subscription", c.text("subscription"), "subscription"); err != nil {
			return nil, err
		}
		return s.list(c, "subscription_item", func(o object) bool { return text(o, "subscription") == c.text("subscription") })
	})
}

// viaSubscription does to one item what an update of its subscription would do, and
// gives the item.
func (s *Server) viaSubscription(c *call, subscription, param string, item object) (object, *apiError) {
	change := object{}
	for name, v := range c.values {
		switch name {
		case "proration_behavior", "proration_date", "payment_behavior":
			change[name] = v
		case "expand", "subscription", "off_session":
		default:
			item[name] = v
		}
	}
	change["items"] = []any{item}
	return s.onSubscription(subscription, param, func(sub object) (object, *apiError) {
		if err := alive(sub); err != nil {
			return nil, err
		}
		asked := *c
		asked.params = params{change}
		if _, err := s.updateSubscription(&asked, sub); err != nil {
			if inner, nested := strings.CutPrefix(err.param, "items[0]["); nested {
				err.param = strings.Replace(inner, "]", "", 1)
			}
			return nil, err
		}
		if id := text(item, "id"); id != "" {
			return s.store.get("subscription_item", id), nil
		}
		items := s.itemsOf(sub)
		return items[len(items)-1], nil
	})
}

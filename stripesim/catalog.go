package stripesim

import (
	"regexp"
	"slices"
)

var productParams = spec{
	"id": "string", "name": "string", "description": "string", "active": "bool", "metadata": "map", "default_price": "string", "unit_label": "string",
	"statement_descriptor": "string", "tax_code": "string", "url": "string", "shippable": "bool", "images": listOf{"string"},
}

var recurringParams = spec{
	"interval": "string", "interval_count": "int", "usage_type": "string", "aggregate_usage": "string", "meter": "string", "trial_period_days": "int",
}

var priceParams = spec{
	"currency": "string", "product": "string", "unit_amount": "int", "unit_amount_decimal": "string", "active": "bool", "metadata": "map",
	"nickname": "string", "lookup_key": "string", "billing_scheme": "string", "tax_behavior": "string", "recurring": recurringParams,
	"tiers": listOf{tierParams}, "tiers_mode": "string", "transform_quantity": spec{"divide_by": "int", "round": "string"}, "transfer_lookup_key": "bool",
	"product_data": spec{"name": "string", "metadata": "map", "unit_label": "string", "id": "string", "active": "bool"},
}

var decimalForm = regexp.MustCompile(`^-?[0-9]+(\.[0-9]{1,12})?$`)

func (s *Server) routeCatalog() {
	s.handle("POST /v1/products", productParams, func(c *call) (object, *apiError) {
		if err := c.require("name"); err != nil {
			return nil, err
		}
		if err := s.freeProduct(c.params, "id"); err != nil {
			return nil, err
		}
		return s.makeProduct(c, c.params), nil
	})
	s.handle("GET /v1/products/{id}", nil, func(c *call) (object, *apiError) { return s.find("product", c.target(), "id") })
	s.handle("POST /v1/products/{id}", productParams, func(c *call) (object, *apiError) { return s.update(c, "product") })
	s.handle("GET /v1/products", listSpec(spec{"active": "bool", "created": createdSpec, "ids": listOf{"string"}}), func(c *call) (object, *apiError) {
		return s.list(c, "product", func(o object) bool {
			return (!c.has("active") || flag(o, "active") == flag(c.values, "active")) && inRange(c, number(o, "created"))
		})
	})
	s.handle("POST /v1/prices", priceParams, func(c *call) (object, *apiError) { return s.makePrice(c, c.params) })
	s.handle("GET /v1/prices/{id}", nil, func(c *call) (object, *apiError) { return s.find("price", c.target(), "id") })
	s.handle("POST /v1/prices/{id}", spec{"active": "bool", "metadata": "map", "nickname": "string", "lookup_key": "string", "tax_behavior": "string", "transfer_lookup_key": "bool"},
		func(c *call) (object, *apiError) { return s.updatePrice(c) })
	filters := spec{
		"active": "bool", "product": "string", "type": "string", "currency": "string", "created": createdSpec, "lookup_keys": listOf{"string"},
		"recurring": spec{"interval": "string", "usage_type": "string", "meter": "string"},
	}
	s.handle("GET /v1/prices", listSpec(filters), func(c *call) (object, *apiError) {
		return s.list(c, "price", func(o object) bool { return priceMatches(c, o) })
	})
}

func priceMatches(c *call, o object) bool {
	for _, name := range []string{"product", "type", "currency"} {
		if c.has(name) && text(o, name) != c.text(name) {
			return false
		}
	}
	recurring := child(o, "recurring")
	for _, name := range []string{"interval", "usage_type", "meter"} {
		if filter := c.child("recurring"); filter.has(name) && text(recurring, name) != filter.text(name) {
			return false
		}
	}
	if c.has("lookup_keys") && !slices.Contains(c.list("lookup_keys"), o["lookup_key"]) {
		return false
	}
	return (!c.has("active") || flag(o, "active") == flag(c.values, "active")) && inRange(c, number(o, "created"))
}

// freeProduct refuses an id that another product has.
func (s *Server) freeProduct(p params, name string) *apiError {
	if id := p.text("id"); id != "" && s.store.get("product", id) != nil {
		return invalid(name, "resource_already_exists", "Product already exists.")
	}
	return nil
}

func (s *Server) makeProduct(c *call, p params) object {
	id := p.text("id")
	if id == "" {
		id = s.newID("prod")
	}
	o := object{
		"id": id, "object": "product", "created": s.now(), "updated": s.now(), "livemode": false, "active": !p.has("active") || flag(p.values, "active"),
		"name": p.text("name"), "description": p.orNull("description"), "metadata": p.metadata(), "images": []any{}, "marketing_features": []any{},
		"default_price": p.orNull("default_price"), "package_dimensions": nil, "shippable": p.orNull("shippable"), "tax_code": p.orNull("tax_code"),
		"statement_descriptor": p.orNull("statement_descriptor"), "unit_label": p.orNull("unit_label"), "url": p.orNull("url"),
	}
	if images := p.list("images"); images != nil {
		o["images"] = images
	}
	s.store.put("product", o)
	s.raise(c, "product.created", o, nil)
	return o
}

// update changes the members that a call names, metadata by key.
func (s *Server) update(c *call, kind string) (object, *apiError) {
	o, err := s.find(kind, c.target(), "id")
	if err != nil {
		return nil, err
	}
	changes := object{}
	for name, v := range c.values {
		switch name {
		case "expand":
		case "metadata":
			changes[name] = mergeMetadata(child(o, name), c.metadata())
		default:
			changes[name] = v
		}
	}
	if _, ok := o["updated"]; ok {
		changes["updated"] = s.now()
	}
	previous := s.change(kind, o, changes)
	s.raise(c, kind+".updated", o, previous)
	return o, nil
}

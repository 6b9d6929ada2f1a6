package stripesim

import "maps"

var customerParams = spec{
	"name": "string", "email": "string", "description": "string", "phone": "string", "metadata": "map", "invoice_prefix": "string",
	"address":        spec{"city": "string", "country": "string", "line1": "string", "line2": "string", "postal_code": "string", "state": "string"},
	"payment_method": "string", "tax_exempt": "string",
}

func (s *Server) routeCustomers() {
	create := maps.Clone(customerParams)
	create["test_clock"] = "string"
	s.handle("POST /v1/customers", create, func(c *call) (object, *apiError) {
		return s.onNamedClock(c, func() (object, *apiError) { return s.makeCustomer(c, c.params), nil })
	})
	s.handle("GET /v1/customers/{id}", nil, func(c *call) (object, *apiError) {
		return s.find("customer", c.target(), "id")
	})
	s.handle("POST /v1/customers/{id}", customerParams, func(c *call) (object, *apiError) {
		o, err := s.find("customer", c.target(), "id")
		if err == nil && flag(o, "deleted") {
			err = missing("customer", c.target(), "id")
		}
		if err != nil {
			return nil, err
		}
		changes := object{}
		for _, name := range []string{"name", "email", "description", "phone", "address"} {
			if c.has(name) {
				changes[name] = c.orNull(name)
			}
		}
		if c.has("metadata") {
			changes["metadata"] = mergeMetadata(child(o, "metadata"), c.metadata())
		}
		previous := s.change("customer", o, changes)
		s.raise(c, "customer.updated", o, previous)
		return o, nil
	})
	s.handle("DELETE /v1/customers/{id}", nil, func(c *call) (object, *apiError) {
		o, err := s.find("customer", c.target(), "id")
		if err != nil || flag(o, "deleted") {
			return nil, missing("customer", c.target(), "id")
		}
		s.cancelAllOf(c, o)
		s.raise(c, "customer.deleted", o, nil)
		gone := object{"id": o["id"], "object": "customer", "deleted": true}
		s.store.put("customer", gone)
		return gone, nil
	})
	s.handle("GET /v1/customers", listSpec(spec{"email": "string", "created": createdSpec}), func(c *call) (object, *apiError) {
		return s.list(c, "customer", func(o object) bool {
			return !flag(o, "deleted") && (!c.has("email") || text(o, "email") == c.text("email")) && inRange(c, number(o, "created"))
		})
	})
}

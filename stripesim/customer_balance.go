package stripesim

import (
	"maps"
	"strings"
)

func (s *Server) routeCustomerBalance() {
	const path = "/v1/customers/{id}/balance_transactions"
	create := spec{"amount": "int", "currency": "string", "description": "string", "metadata": "map"}
	s.handle("POST "+path, create, func(c *call) (object, *apiError) {
		customer, err := s.liveCustomer(c.target(), "customer")
		if err == nil {
			err = s.still(customer)
		}
		if err != nil {
			return nil, err
		}
		if err := c.require("amount", "currency"); err != nil {
			return nil, err
		}
		currency := strings.ToLower(c.text("currency"))
		if has := text(customer, "currency"); has != "" && has != currency {
			return nil, invalid("currency", "", "The currency of the balance transaction (%s) must match the currency of the customer (%s).", currency, has)
		}
		var o object
		s.onClockOf(customer, func() {
			s.adoptCurrency(text(customer, "id"), currency)
			o = s.moveBalance(c, customer, c.number("amount"), object{
				"type": "adjustment", "description": c.orNull("description"), "metadata": mergeMetadata(nil, c.metadata()),
			})
		})
		return o, nil
	})
	s.handle("GET "+path+"/{transaction}", nil, s.balanceTransaction)
	s.handle("POST "+path+"/{transaction}", spec{"description": "string", "metadata": "map"}, func(c *call) (object, *apiError) {
		o, err := s.balanceTransaction(c)
		if err != nil {
			return nil, err
		}
		changes := object{}
		if c.has("description") {
			changes["description"] = c.orNull("description")
		}
		if c.has("metadata") {
			changes["metadata"] = mergeMetadata(child(o, "metadata"), c.metadata())
		}
		s.change("customer_balance_transaction", o, changes)
		return o, nil
	})
	s.handle("GET "+path, listSpec(nil), func(c *call) (object, *apiError) {
		if _, err := s.find("customer", c.target(), "customer"); err != nil {
			return nil, err
		}
		c.values["customer"] = c.target()
		return s.list(c, "customer_balance_transaction", func(o object) bool { return text(o, "customer") == c.target() })
	})
}

func (s *Server) balanceTransaction(c *call) (object, *apiError) {
	id := c.r.PathValue("transaction")
	o := s.store.get("customer_balance_transaction", id)
	if o == nil || text(o, "customer") != c.target() {
		return nil, missing("customer_balance_transaction", id, "id")
	}
	return o, nil
}

// moveBalance changes a customer's balance by an amount: less than nothing is what
// the customer has to its credit, more is what it owes.
func (s *Server) moveBalance(c *call, customer object, amount int64, members object) object {
	id, currency := text(customer, "id"), text(customer, "currency")
	if currency == "" {
		currency = "usd"
	}
	ending := number(customer, "balance") + amount
	o := object{
		"id": s.newID("cbtxn"), "object": "customer_balance_transaction", "amount": amount, "created": s.now(), "credit_note": nil, "currency": currency,
		"customer": id, "description": nil, "ending_balance": ending, "invoice": nil, "livemode": false, "metadata": object{}, "type": "adjustment",
	}
	maps.Copy(o, members)
	s.store.put("customer_balance_transaction", o)
	previous := s.change("customer", customer, object{"balance": ending})
	if len(previous) > 0 {
		s.raise(c, "customer.updated", customer, previous)
	}
	s.reckonDrafts(id)
	return o
}

// reckonDrafts lets a customer's drafts show its balance as it is now.
func (s *Server) reckonDrafts(customer string) {
	for _, inv := range s.store.shelf("invoice").with("customer", customer) {
		if text(inv, "status") == "draft" {
			s.change("invoice", inv, s.reckon(inv, linesOf(inv)))
		}
	}
}

// setBalance makes a customer's balance what a call to make or change the customer
// says; the kind is that of the transaction which is left behind.
func (s *Server) setBalance(c *call, customer object, kind string) {
	if !c.has("balance") {
		return
	}
	if by := c.number("balance") - number(customer, "balance"); by != 0 {
		s.moveBalance(c, customer, by, object{"type": kind})
	}
}

package stripesim

// takeBack leaves nothing of a subscription that insisted on a payment which failed,
// nor of its first invoice: what waited for an invoice waits again, and the
// customer's balance and currency are as they were.
func (s *Server) takeBack(c *call, sub, invoice object, currency any) {
	id := text(invoice, "id")
	s.cancelIntent(c, text(invoice, "payment_intent"))
	for _, kind := range []string{"payment_intent", "charge"} {
		if o := s.store.get(kind, text(invoice, kind)); o != nil {
			s.change(kind, o, object{"invoice": nil})
		}
	}
	for _, item := range s.store.shelf("invoiceitem").with("invoice", id) {
		s.change("invoiceitem", item, object{"invoice": nil})
	}
	customer := s.store.get("customer", text(invoice, "customer"))
	balance := number(customer, "balance")
	for _, moved := range s.store.shelf("customer_balance_transaction").with("customer", text(customer, "id")) {
		if text(moved, "invoice") == id {
			balance -= number(moved, "amount")
			s.store.delete("customer_balance_transaction", text(moved, "id"))
		}
	}
	s.store.delete("invoice", id)
	s.raise(c, "invoice.deleted", invoice, nil)
	s.raise(c, "customer.updated", customer, s.change("customer", customer, object{"balance": balance, "currency": currency}))
	s.reckonDrafts(text(customer, "id"))
	for _, item := range s.itemsOf(sub) {
		s.dropItem(item)
	}
	s.store.delete("subscription", text(sub, "id"))
}

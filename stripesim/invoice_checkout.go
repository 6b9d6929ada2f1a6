package stripesim

import "slices"

// invoiceCreationParams ask a session for an invoice of what was bought.
var invoiceCreationParams = spec{
	"enabled": "bool",
	"invoice_data": spec{
		"description": "string", "footer": "string", "metadata": "map", "custom_fields": listOf{spec{"name": "string", "value": "string"}},
	},
}

// invoiceCreation is a session's member of that name.
func invoiceCreation(p params) any {
	asked := p.child("invoice_creation")
	if asked.values == nil {
		return nil
	}
	data := asked.child("invoice_data")
	fields := data.values["custom_fields"]
	return object{"enabled": flag(asked.values, "enabled"), "invoice_data": object{
		"account_tax_ids": nil, "custom_fields": fields, "description": data.orNull("description"), "footer": data.orNull("footer"), "issuer": nil,
		"metadata": mergeMetadata(nil, data.metadata()), "rendering_options": nil,
	}}
}

// invoiceSession makes the invoice of a paid session that asked for one. It is paid
// by the session's own intent: one purchase that many events tell of.
func (s *Server) invoiceSession(c *call, o object) {
	creation := child(o, "invoice_creation")
	if !flag(creation, "enabled") || text(o, "invoice") != "" {
		return
	}
	data := child(creation, "invoice_data")
	d := invoiceDraft{
		customer: text(o, "customer"), reason: "manual", currency: text(o, "currency"), start: s.now(), end: s.now(), atOnce: true, prepaid: true,
		params: params{object{}},
	}
	for _, name := range []string{"description", "footer", "custom_fields", "metadata"} {
		if v := data[name]; v != nil {
			d.params.values[name] = v
		}
	}
	items, _ := o["_line_items"].([]any)
	for _, raw := range slices.Backward(items) {
		d.pending = append(d.pending, s.boughtItem(c, o, raw.(object)))
	}
	inv := s.draftInvoice(c, d)
	id := inv["id"]
	changes := object{"attempted": true}
	if pi := s.store.get("payment_intent", text(o, "payment_intent")); pi != nil {
		s.change("payment_intent", pi, object{"invoice": id})
		changes["payment_intent"], changes["charge"], changes["attempt_count"] = pi["id"], pi["latest_charge"], int64(1)
		if charge := s.store.get("charge", text(pi, "latest_charge")); charge != nil {
			s.change("charge", charge, object{"invoice": id})
		}
	}
	s.change("checkout.session", o, object{"invoice": id})
	s.markPaid(c, inv, changes)
}

// boughtItem is the invoice item of one item of a session. A buyer who is no
// customer has lines only: an item belongs to a customer.
func (s *Server) boughtItem(c *call, o, bought object) object {
	price := child(bought, "price")
	item := s.newInvoiceItem(o["customer"], object{
		"amount": number(bought, "amount_total"), "currency": bought["currency"], "quantity": bought["quantity"], "unit_amount": price["unit_amount"],
		"unit_amount_decimal": price["unit_amount_decimal"], "price": price, "description": bought["description"],
	})
	if text(o, "customer") == "" {
		delete(item, "id")
		return item
	}
	s.store.put("invoiceitem", item)
	s.raise(c, "invoiceitem.created", item, nil)
	return item
}

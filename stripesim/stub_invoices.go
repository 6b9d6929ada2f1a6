package stripesim

import (
	"maps"
	"math/big"
)

func (s *Server) draftInvoice(c *call, d invoiceDraft) object {
	lines := []any{}
	for _, item := range s.store.shelf("invoiceitem").with("customer", d.customer) {
		if item["invoice"] == nil {
			lines = append(lines, object{"id": s.newID("il"), "object": "line_item", "amount": number(item, "amount"), "type": "invoiceitem", "proration": item["proration"], "period": item["period"]})
		}
	}
	for _, b := range d.lines {
		line := object{"id": s.newID("il"), "object": "line_item", "type": "subscription", "subscription_item": b.item["id"], "price": s.view(b.price, nil), "proration": b.proration, "period": object{"start": b.start, "end": b.end}}
		s.bill(line, b.price, b.quantity)
		if b.amount != nil {
			line["amount"] = b.amount.Int64()
		}
		lines = append(lines, line)
	}
	inv := object{
		"id": s.newID("in"), "object": "invoice", "created": s.now(), "customer": d.customer, "subscription": d.subscription, "billing_reason": d.reason,
		"currency": d.currency, "period_start": d.start, "period_end": d.end, "auto_advance": d.advance, "status": "draft", "test_clock": s.store.get("customer", d.customer)["test_clock"],
		"amount_due": 0, "amount_paid": 0, "amount_remaining": 0, "amount_shipping": 0, "attempt_count": 0, "attempted": false, "automatic_tax": object{"enabled": false, "liability": nil, "status": nil},
		"collection_method": "charge_automatically", "default_tax_rates": []any{}, "discounts": []any{}, "issuer": object{"type": "self"}, "livemode": false, "paid": false,
		"paid_out_of_band": false, "payment_settings": object{"default_mandate": nil, "payment_method_options": nil, "payment_method_types": nil},
		"post_payment_credit_notes_amount": 0, "pre_payment_credit_notes_amount": 0, "starting_balance": 0,
		"status_transitions": object{"finalized_at": nil, "marked_uncollectible_at": nil, "paid_at": nil, "voided_at": nil}, "subtotal": 0, "total_tax_amounts": []any{},
	}
	for _, raw := range lines {
		for name, v := range (object{"currency": d.currency, "discountable": true, "discounts": []any{}, "livemode": false, "metadata": object{}}) {
			raw.(object)[name] = v
		}
	}
	maps.Copy(inv, s.reckon(inv, lines))
	for _, item := range s.store.shelf("invoiceitem").with("customer", d.customer) {
		if item["invoice"] == nil {
			s.change("invoiceitem", item, object{"invoice": inv["id"]})
		}
	}
	switch declined := text(s.store.get("customer", d.customer), "description") == "declines"; {
	case d.atOnce && number(inv, "total") > 0 && (d.unpaid || declined):
		inv["status"] = "open"
	case d.atOnce:
		inv["status"] = "paid"
	}
	s.store.put("invoice", inv)
	s.raise(c, "invoice.created", inv, nil)
	switch {
	case text(inv, "status") == "paid":
		s.raise(c, "invoice.paid", inv, nil)
		s.subscriptionPaid(c, inv, true)
	case text(inv, "status") == "open" && !d.unpaid:
		s.subscriptionPaid(c, inv, false)
	}
	return inv
}

func linesOf(o object) []any {
	lines, _ := child(o, "lines")["data"].([]any)
	return lines
}

func (s *Server) bill(line, price object, quantity *big.Rat) {
	line["quantity"], line["amount"] = roundHalfUp(quantity), s.priceAmount(price, quantity)
}

func (s *Server) reckon(inv object, lines []any) object {
	total := int64(0)
	for _, line := range lines {
		total += number(line.(object), "amount")
	}
	return object{"lines": listObject("/v1/invoices/"+text(inv, "id")+"/lines", lines, false), "total": total}
}

func (s *Server) updateInvoice(c *call, inv, changes object) {
	s.raise(c, "invoice.updated", inv, s.change("invoice", inv, changes))
}

func (s *Server) endUnpaid(c *call, inv object, status, moment, event string) {
	s.updateInvoice(c, inv, object{"status": status})
	s.raise(c, event, inv, nil)
}

func (s *Server) cancelIntent(*call, string) {}

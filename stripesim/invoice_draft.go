package stripesim

import (
	"maps"
	"slices"
	"strings"
)

// invoiceGrace is how long a draft waits before it is finalized by itself, in
// seconds, unless a switch says otherwise.
const invoiceGrace = 3600

// draftInvoice makes an invoice of a subscription's items and of the invoice items
// that wait for it. It runs at the time of the customer's clock.
func (s *Server) draftInvoice(c *call, d invoiceDraft) object {
	inv := s.newInvoice(d)
	id := text(inv, "id")
	if !d.prepaid {
		s.adoptCurrency(d.customer, text(inv, "currency"))
	}
	items := d.pending
	if d.reason != "manual" {
		items = s.pendingItems(d.customer, d.subscription, text(inv, "currency"))
	}
	lines := []any{}
	for _, item := range slices.Backward(items) {
		lines = append(lines, s.lineOfItem(id, item))
	}
	for _, b := range slices.Backward(d.lines) {
		lines = append(lines, s.lineOfSubscription(inv, b))
	}
	maps.Copy(inv, s.reckon(inv, lines))
	atOnce := d.atOnce && text(inv, "collection_method") == "charge_automatically"
	inv["_at_once"] = atOnce
	if flag(inv, "auto_advance") && !atOnce {
		s.scheduleDraft(inv)
	}
	s.store.put("invoice", inv)
	for _, item := range items {
		if s.store.get("invoiceitem", text(item, "id")) != nil {
			s.change("invoiceitem", item, object{"invoice": id})
		}
	}
	s.raise(c, "invoice.created", inv, nil)
	s.noteCreation(inv)
	if atOnce {
		s.finalizeInvoice(c, inv, !d.unpaid)
		if text(inv, "status") == "open" && !d.unpaid && !d.prepaid {
			s.collectInvoice(c, inv, "", true)
		}
	}
	return inv
}

// noteCreation remembers the event that told of an invoice, which must have been
// taken before it is finalized where the account waits for that.
func (s *Server) noteCreation(inv object) {
	order := s.store.shelf("event").order
	event := s.store.get("event", order[len(order)-1])
	changes := object{"_created_event": event["id"]}
	if number(event, "pending_webhooks") == 0 {
		changes["webhooks_delivered_at"] = s.now()
	}
	s.change("invoice", inv, changes)
}

// scheduleDraft lets a draft be finalized by itself when its time of grace is over.
func (s *Server) scheduleDraft(inv object) {
	at := number(inv, "created") + switched(s.switches.InvoiceGraceSeconds, invoiceGrace)
	at = max(at, s.now())
	s.setAlarm("invoice", inv, at)
	inv["next_payment_attempt"] = nil
	if text(inv, "collection_method") == "charge_automatically" {
		inv["next_payment_attempt"] = at
	}
}

// switched is a switch whose zero value stands for a default; a negative one is 0.
func switched(value, normally int64) int64 {
	if value == 0 {
		return normally
	}
	return max(value, 0)
}

// newInvoice makes an empty draft, which is not kept yet.
func (s *Server) newInvoice(d invoiceDraft) object {
	customer, sub := s.store.get("customer", d.customer), s.store.get("subscription", d.subscription)
	id := s.newID("in")
	inv := object{
		"id": id, "object": "invoice", "account_country": "US", "account_name": "Simulated", "account_tax_ids": nil, "amount_due": int64(0),
		"amount_paid": int64(0), "amount_remaining": int64(0), "amount_shipping": int64(0), "application": nil, "application_fee_amount": nil,
		"attempt_count": int64(0), "attempted": false, "auto_advance": d.advance, "automatic_tax": object{"enabled": false, "liability": nil, "status": nil},
		"billing_reason": d.reason, "charge": nil, "collection_method": "charge_automatically", "created": s.now(), "currency": s.invoiceCurrency(d, customer),
		"custom_fields": nil, "customer": nullWhenEmpty(d.customer), "customer_address": customer["address"], "customer_email": customer["email"],
		"customer_name": customer["name"], "customer_phone": customer["phone"], "customer_shipping": customer["shipping"],
		"customer_tax_exempt": customer["tax_exempt"], "customer_tax_ids": []any{}, "default_payment_method": nil, "default_source": nil,
		"default_tax_rates": []any{}, "description": nil, "discount": nil, "discounts": []any{}, "due_date": nil, "effective_at": nil, "ending_balance": nil,
		"footer": nil, "from_invoice": nil, "hosted_invoice_url": nil, "invoice_pdf": nil, "issuer": object{"type": "self"}, "last_finalization_error": nil,
		"latest_revision": nil, "lines": listObject("/v1/invoices/"+id+"/lines", nil, false), "livemode": false, "metadata": object{},
		"next_payment_attempt": nil, "number": nil, "on_behalf_of": nil, "paid": false, "paid_out_of_band": false, "payment_intent": nil,
		"payment_settings": object{"default_mandate": nil, "payment_method_options": nil, "payment_method_types": nil},
		"period_end":       d.end, "period_start": d.start, "post_payment_credit_notes_amount": int64(0), "pre_payment_credit_notes_amount": int64(0),
		"quote": nil, "receipt_number": nil, "rendering": nil, "shipping_cost": nil, "shipping_details": nil, "starting_balance": int64(0),
		"statement_descriptor": nil, "status": "draft",
		"status_transitions": object{"finalized_at": nil, "marked_uncollectible_at": nil, "paid_at": nil, "voided_at": nil},
		"subscription":       nullWhenEmpty(d.subscription), "subscription_details": nil, "subtotal": int64(0), "subtotal_excluding_tax": int64(0),
		"tax": nil, "test_clock": customer["test_clock"], "total": int64(0), "total_discount_amounts": []any{}, "total_excluding_tax": int64(0),
		"total_tax_amounts": []any{}, "transfer_data": nil, "webhooks_delivered_at": nil, "_prefix": customer["invoice_prefix"], "_prepaid": d.prepaid,
	}
	if sub != nil {
		inv["subscription_details"] = object{"metadata": maps.Clone(child(sub, "metadata"))}
		inv["description"] = sub["description"]
		if method := text(sub, "collection_method"); method != "" {
			inv["collection_method"] = method
		}
		if _, ok := sub["days_until_due"]; ok && text(inv, "collection_method") == "send_invoice" {
			inv["due_date"] = s.now() + number(sub, "days_until_due")*86400
		}
	}
	maps.Copy(inv, invoiceMembers(d.params, number(inv, "created")))
	return inv
}

// invoiceCurrency is that of the draft, of its lines, of its customer, else dollars.
func (s *Server) invoiceCurrency(d invoiceDraft, customer object) string {
	for _, b := range d.lines {
		if d.currency == "" {
			d.currency = text(b.price, "currency")
		}
	}
	for _, currency := range []string{strings.ToLower(d.currency), text(customer, "currency")} {
		if currency != "" {
			return currency
		}
	}
	return "usd"
}

// invoiceMembers are the members that parameters set in a draft.
func invoiceMembers(p params, created int64) object {
	members := object{}
	for _, name := range []string{
		"collection_method", "custom_fields", "default_payment_method", "description", "due_date", "effective_at", "footer", "number", "statement_descriptor",
	} {
		if p.has(name) {
			members[name] = p.orNull(name)
		}
	}
	if p.has("days_until_due") {
		members["due_date"] = created + p.number("days_until_due")*86400
	}
	if p.has("auto_advance") {
		members["auto_advance"] = flag(p.values, "auto_advance")
	}
	if p.has("metadata") {
		members["metadata"] = mergeMetadata(nil, p.metadata())
	}
	if fields, ok := members["custom_fields"].([]any); ok && len(fields) == 0 {
		members["custom_fields"] = nil
	}
	if settings := p.child("payment_settings"); settings.values != nil {
		members["payment_settings"] = object{"default_mandate": nil, "payment_method_options": nil, "payment_method_types": settings.values["payment_method_types"]}
	}
	return members
}

func nullWhenEmpty(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// minimumCharge is the least that a card can be charged, in minor units.
var minimumCharge = map[string]int64{
	"aed": 200, "aud": 50, "bgn": 100, "brl": 50, "cad": 50, "chf": 50, "czk": 1500, "dkk": 250, "eur": 50, "gbp": 30, "hkd": 400, "huf": 17500, "inr": 50,
	"jpy": 50, "mxn": 1000, "myr": 200, "nok": 300, "nzd": 50, "pln": 200, "ron": 200, "sek": 300, "sgd": 50, "thb": 1000, "usd": 50,
}

// reckon gives a draft's amounts as its lines and the customer's balance make them.
// What is too little to be charged is not due: it goes to the balance.
func (s *Server) reckon(inv object, lines []any) object {
	total := int64(0)
	for _, line := range lines {
		total += number(line.(object), "amount")
	}
	starting := int64(0)
	if customer := s.balanced(inv); customer != nil {
		starting = number(customer, "balance")
	}
	due, ending := max(0, total+starting), min(0, total+starting)
	if due > 0 && due < minimumCharge[text(inv, "currency")] && !flag(inv, "_prepaid") {
		due, ending = 0, due
	}
	return object{
		"lines": listObject("/v1/invoices/"+text(inv, "id")+"/lines", lines, false), "subtotal": total, "subtotal_excluding_tax": total, "total": total,
		"total_excluding_tax": total, "starting_balance": starting, "amount_due": due, "amount_remaining": due, "_ending_balance": ending,
	}
}

// balanced gives the customer whose balance applies to an invoice: nil when it is
// gone, thinks in another currency, or the invoice is paid already.
func (s *Server) balanced(inv object) object {
	customer := s.store.get("customer", text(inv, "customer"))
	if customer == nil || flag(customer, "deleted") || flag(inv, "_prepaid") {
		return nil
	}
	if currency := text(customer, "currency"); currency != "" && currency != text(inv, "currency") {
		return nil
	}
	return customer
}

// adoptCurrency gives a customer the currency of the first thing that it is billed for.
func (s *Server) adoptCurrency(id, currency string) {
	customer := s.store.get("customer", id)
	if customer != nil && !flag(customer, "deleted") && text(customer, "currency") == "" {
		s.change("customer", customer, object{"currency": currency})
	}
}

// pendingItems gives the invoice items of a customer that no invoice has taken, in
// the order of their making: those of a subscription, and those of none. For no
// subscription it gives all.
func (s *Server) pendingItems(customer, subscription, currency string) []object {
	if customer == "" {
		return nil
	}
	return slices.DeleteFunc(s.store.shelf("invoiceitem").with("customer", customer), func(item object) bool {
		of := text(item, "subscription")
		return item["invoice"] != nil || text(item, "currency") != currency || (subscription != "" && of != "" && of != subscription)
	})
}

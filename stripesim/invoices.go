package stripesim

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

var invoiceParams = spec{
	"auto_advance": "bool", "collection_method": "string", "custom_fields": listOf{spec{"name": "string", "value": "string"}}, "days_until_due": "int",
	"default_payment_method": "string", "description": "string", "due_date": "int", "effective_at": "int", "footer": "string", "metadata": "map", "number": "string",
	"payment_settings": spec{"payment_method_types": listOf{"string"}}, "statement_descriptor": "string",
}

func (s *Server) routeInvoices() {
	s.agenda.do["invoice"] = s.advanceInvoice
	create := maps.Clone(invoiceParams)
	maps.Copy(create, spec{"customer": "string", "subscription": "string", "currency": "string", "pending_invoice_items_behavior": "string"})
	s.handle("POST /v1/invoices", create, s.createInvoice)
	s.handle("GET /v1/invoices/{id}", nil, func(c *call) (object, *apiError) { return s.find("invoice", c.target(), "invoice") })
	s.handle("DELETE /v1/invoices/{id}", nil, s.deleteInvoice)
	s.handle("GET /v1/invoices/{id}/lines", listSpec(nil), func(c *call) (object, *apiError) {
		inv, err := s.find("invoice", c.target(), "invoice")
		if err != nil {
			return nil, err
		}
		return page(c, c.r.URL.Path, "line_item", linesOf(inv))
	})
	filters := spec{
		"customer": "string", "subscription": "string", "status": "string", "collection_method": "string", "created": createdSpec, "due_date": createdSpec,
	}
	s.handle("GET /v1/invoices", listSpec(filters), s.listInvoices)
	s.invoiceStep("", invoiceParams, s.editInvoice)
	s.invoiceStep("/finalize", spec{"auto_advance": "bool"}, s.finalizeOnDemand)
	pay := spec{"paid_out_of_band": "bool", "payment_method": "string", "source": "string", "forgive": "bool", "off_session": "bool", "mandate": "string"}
	s.invoiceStep("/pay", pay, s.payInvoice)
	s.invoiceStep("/send", nil, s.sendInvoice)
	s.invoiceStep("/void", nil, s.voidInvoice)
	s.invoiceStep("/mark_uncollectible", nil, s.giveUpInvoice)
	s.routeUpcoming()
	s.routeInvoiceItems()
	s.routeCustomerBalance()
	s.routeCreditNotes()
}

// invoiceStep mounts what moves or changes an invoice, at the time of its clock.
func (s *Server) invoiceStep(name string, sp spec, step func(c *call, inv object) *apiError) {
	s.handle("POST /v1/invoices/{id}"+name, sp, func(c *call) (object, *apiError) {
		inv, err := s.find("invoice", c.target(), "id")
		if err == nil {
			err = s.still(inv)
		}
		if err != nil {
			return nil, err
		}
		s.onClockOf(inv, func() { err = step(c, inv) })
		return inv, err
	})
}

// oneOf refuses a parameter that is not one of some words.
func oneOf(c *call, name string, words ...string) *apiError {
	if !c.has(name) || slices.Contains(words, c.text(name)) {
		return nil
	}
	last, comma := len(words)-1, ""
	if len(words) > 2 {
		comma = ","
	}
	return invalid(name, "", "Invalid %s: must be one of %s%s or %s", name, strings.Join(words[:last], ", "), comma, words[last])
}

func (s *Server) listInvoices(c *call) (object, *apiError) {
	if err := oneOf(c, "status", "draft", "open", "void", "paid", "uncollectible"); err != nil {
		return nil, err
	}
	if err := oneOf(c, "collection_method", "charge_automatically", "send_invoice"); err != nil {
		return nil, err
	}
	due := c.child("due_date")
	return s.list(c, "invoice", func(o object) bool {
		for _, name := range []string{"customer", "subscription", "status", "collection_method"} {
			if c.has(name) && text(o, name) != c.text(name) {
				return false
			}
		}
		if due.values != nil && o["due_date"] == nil {
			return false
		}
		return inRange(c, number(o, "created")) && spanHolds(due, number(o, "due_date"))
	})
}

// spanHolds tells whether a time passes a filter of gt, gte, lt and lte.
func spanHolds(r params, at int64) bool {
	return (!r.has("gt") || at > r.number("gt")) && (!r.has("gte") || at >= r.number("gte")) &&
		(!r.has("lt") || at < r.number("lt")) && (!r.has("lte") || at <= r.number("lte"))
}

// billedCustomer gives the customer that a call bills.
func (s *Server) billedCustomer(c *call) (object, *apiError) {
	if err := c.require("customer"); err != nil {
		return nil, err
	}
	customer := s.store.get("customer", c.text("customer"))
	if customer == nil || flag(customer, "deleted") {
		return nil, missing("customer", c.text("customer"), "customer")
	}
	return customer, s.still(customer)
}

// checkCollection refuses a way of collecting that does not fit its due date.
func checkCollection(c *call, method string, due bool) *apiError {
	if err := oneOf(c, "collection_method", "charge_automatically", "send_invoice"); err != nil {
		return err
	}
	switch given := c.has("due_date") || c.has("days_until_due"); {
	case c.has("due_date") && c.has("days_until_due"):
		return invalid("", "", "You may only specify one of these parameters: days_until_due, due_date.")
	case method == "send_invoice" && !given && !due:
		return invalid("", "", "If invoice collection method is 'send_invoice', you must specify 'due_date' or 'days_until_due'.")
	case method != "send_invoice" && given:
		return invalid("", "", "You can only specify 'due_date' or 'days_until_due' if invoice collection method is 'send_invoice'.")
	}
	return nil
}

func (s *Server) createInvoice(c *call) (object, *apiError) {
	customer, err := s.billedCustomer(c)
	if err != nil {
		return nil, err
	}
	sub := s.store.get("subscription", c.text("subscription"))
	if id := c.text("subscription"); id != "" && (sub == nil || text(sub, "customer") != text(customer, "id")) {
		return nil, missing("subscription", id, "subscription")
	}
	method := c.text("collection_method")
	if method == "" {
		method = text(sub, "collection_method")
	}
	if err := checkCollection(c, method, sub["days_until_due"] != nil); err != nil {
		return nil, err
	}
	if err := oneOf(c, "pending_invoice_items_behavior", "include", "exclude"); err != nil {
		return nil, err
	}
	d := invoiceDraft{
		customer: text(customer, "id"), subscription: c.text("subscription"), reason: "manual", currency: strings.ToLower(c.text("currency")), params: c.params,
	}
	if d.currency == "" {
		d.currency = text(sub, "currency")
	}
	if behaviour := c.text("pending_invoice_items_behavior"); behaviour == "include" || (behaviour == "" && sub != nil) {
		d.pending = s.pendingItems(d.customer, d.subscription, s.invoiceCurrency(d, customer))
		if sub != nil && len(d.pending) == 0 {
			return nil, invalid("subscription", "invoice_no_subscription_line_items", "Nothing to invoice for subscription")
		}
	}
	var inv object
	s.onClockOf(customer, func() {
		d.start, d.end = s.now(), s.now()
		inv = s.draftInvoice(c, d)
	})
	return inv, nil
}

// lateEdits are the parameters that a finalized invoice still takes.
var lateEdits = []string{"expand", "metadata", "auto_advance", "default_payment_method", "payment_settings"}

func (s *Server) editInvoice(c *call, inv object) *apiError {
	draft := text(inv, "status") == "draft"
	for _, name := range slices.Sorted(maps.Keys(c.values)) {
		if !draft && !slices.Contains(lateEdits, name) {
			return invalid(name, "", "Finalized invoices can't be updated in this way")
		}
	}
	method := c.text("collection_method")
	if method == "" {
		method = text(inv, "collection_method")
	}
	if err := checkCollection(c, method, inv["due_date"] != nil); err != nil {
		return err
	}
	changes := invoiceMembers(c.params, number(inv, "created"))
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(inv, "metadata"), c.metadata())
	}
	if method == "charge_automatically" {
		changes["due_date"] = nil
	}
	if _, changed := changes["auto_advance"]; changed && text(inv, "status") != "open" && !draft {
		delete(changes, "auto_advance") // it stays off
	}
	after := maps.Clone(inv)
	maps.Copy(after, changes)
	if c.has("auto_advance") || c.has("collection_method") {
		s.reschedule(inv, after, changes)
	}
	s.updateInvoice(c, inv, changes)
	return nil
}

// reschedule sets when an invoice moves by itself after its auto_advance has
// changed; after is what it will be.
func (s *Server) reschedule(inv, after, changes object) {
	s.setAlarm("invoice", inv, 0)
	changes["next_payment_attempt"] = nil
	if !flag(after, "auto_advance") {
		return
	}
	switch text(after, "status") {
	case "draft":
		s.scheduleDraft(after)
		s.setAlarm("invoice", inv, number(after, "_due"))
		changes["next_payment_attempt"] = after["next_payment_attempt"]
	case "open":
		if text(after, "collection_method") == "charge_automatically" {
			at := s.now() + switched(s.switches.InvoiceGraceSeconds, invoiceGrace)
			s.setAlarm("invoice", inv, at)
			changes["next_payment_attempt"] = at
		}
	}
}

func (s *Server) deleteInvoice(c *call) (object, *apiError) {
	inv, err := s.find("invoice", c.target(), "invoice")
	if err == nil {
		err = s.still(inv)
	}
	switch {
	case err != nil:
		return nil, err
	case text(inv, "status") != "draft":
		return nil, invalid("", "", "You can only delete draft invoices.")
	case text(inv, "subscription") != "" && text(inv, "billing_reason") != "manual":
		return nil, invalid("", "", "You can't delete invoices created by subscriptions.")
	}
	id := text(inv, "id")
	s.store.delete("invoice", id)
	s.onClockOf(inv, func() {
		for _, item := range s.store.shelf("invoiceitem").with("invoice", id) {
			s.store.delete("invoiceitem", text(item, "id"))
			s.raise(c, "invoiceitem.deleted", item, nil)
		}
		s.raise(c, "invoice.deleted", inv, nil)
	})
	return object{"id": id, "object": "invoice", "deleted": true}, nil
}

func (s *Server) finalizeOnDemand(c *call, inv object) *apiError {
	if text(inv, "status") != "draft" {
		return invalid("", "", "This invoice is already finalized, you can't re-finalize a non-draft invoice.")
	}
	if c.has("auto_advance") {
		s.change("invoice", inv, object{"auto_advance": flag(c.values, "auto_advance")})
	}
	s.finalizeInvoice(c, inv, false)
	if text(inv, "status") == "open" {
		changes := object{}
		s.reschedule(inv, inv, changes)
		s.change("invoice", inv, changes)
	}
	return nil
}

func (s *Server) payInvoice(c *call, inv object) *apiError {
	switch text(inv, "status") {
	case "paid":
		return invalid("", "", "Invoice is already paid")
	case "void":
		return invalid("", "", "Voided invoices cannot be paid.")
	case "draft":
		s.finalizeInvoice(c, inv, true)
	}
	if flag(inv, "paid") {
		return nil // by the customer's balance
	}
	if flag(c.values, "paid_out_of_band") {
		s.cancelIntent(c, text(inv, "payment_intent"))
		s.markPaid(c, inv, object{"paid_out_of_band": true})
		return nil
	}
	method := c.text("payment_method")
	if method == "" {
		method = c.text("source")
	}
	intent, paid := s.collectInvoice(c, inv, method, false)
	if paid || text(intent, "status") == "processing" {
		return nil
	}
	return s.unpaidError(intent)
}

// unpaidError says why an intent has not paid an invoice. The try has happened, so
// the answer belongs to the idempotency key.
func (s *Server) unpaidError(intent object) *apiError {
	failure := child(intent, "last_payment_error")
	e := &apiError{
		status: http.StatusPaymentRequired, typ: "card_error", code: text(failure, "code"), message: text(failure, "message"), stored: true,
		extra: object{"payment_intent": s.view(intent, nil)},
	}
	switch {
	case text(intent, "status") == "requires_action":
		e.code, e.message = "invoice_payment_intent_requires_action", "This payment requires additional user action before it can be completed successfully."
	case failure == nil:
		e = invalid("", "resource_missing", "This customer has no attached payment source or default payment method. Please consider adding a default payment method.")
		e.stored = true
	case failure["decline_code"] != nil:
		e.extra["decline_code"] = failure["decline_code"]
	}
	return e
}

func (s *Server) sendInvoice(c *call, inv object) *apiError {
	switch st := text(inv, "status"); {
	case text(inv, "collection_method") != "send_invoice":
		return invalid("", "", "You can only manually send an invoice if its collection method is 'send_invoice'.")
	case st == "draft":
		s.finalizeInvoice(c, inv, false)
	case st != "open":
		return invalid("", "", "This invoice cannot be sent right now. Please contact us via https://support.stripe.com/contact with details, so we can help.")
	}
	s.raise(c, "invoice.sent", inv, nil)
	return nil
}

func (s *Server) voidInvoice(c *call, inv object) *apiError {
	switch text(inv, "status") {
	case "open", "uncollectible":
	case "paid":
		return invalid("", "", "Invoices with `paid` payments cannot be voided.")
	default:
		return invalid("", "", "You can only pass in open invoices. This invoice isn't open.")
	}
	s.endUnpaid(c, inv, "void", "voided_at", "invoice.voided")
	return nil
}

func (s *Server) giveUpInvoice(c *call, inv object) *apiError {
	switch text(inv, "status") {
	case "open":
	case "uncollectible":
		return invalid("", "", "This invoice has already been marked uncollectible.")
	default:
		return invalid("", "", "You can only pass in open invoices. This invoice isn't open.")
	}
	s.endUnpaid(c, inv, "uncollectible", "marked_uncollectible_at", "invoice.marked_uncollectible")
	return nil
}

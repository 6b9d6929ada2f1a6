package stripesim

import (
	"fmt"
	"maps"
	"slices"
)

var creditNoteParams = spec{
	"invoice": "string", "amount": "int", "credit_amount": "int", "effective_at": "int", "memo": "string", "metadata": "map", "out_of_band_amount": "int",
	"reason": "string", "refund": "string", "refund_amount": "int",
	"lines": listOf{spec{
		"type": "string", "amount": "int", "description": "string", "invoice_line_item": "string", "quantity": "int", "unit_amount": "int",
		"unit_amount_decimal": "string",
	}},
}

func (s *Server) routeCreditNotes() {
	s.handle("POST /v1/credit_notes", creditNoteParams, func(c *call) (note object, err *apiError) {
		plan, err := s.planCreditNote(c)
		if err == nil {
			err = s.still(plan.invoice)
		}
		if err != nil {
			return nil, err
		}
		s.onClockOf(plan.invoice, func() { note, err = s.issueCreditNote(c, plan) })
		return note, err
	})
	s.handle("GET /v1/credit_notes/preview", creditNoteParams, s.previewCreditNote)
	s.handle("GET /v1/credit_notes/preview/lines", listSpec(creditNoteParams), func(c *call) (object, *apiError) {
		note, err := s.previewCreditNote(c)
		if err != nil {
			return nil, err
		}
		return page(c, c.r.URL.Path, "credit_note_line_item", linesOf(note))
	})
	s.handle("GET /v1/credit_notes/{id}", nil, func(c *call) (object, *apiError) { return s.find("credit_note", c.target(), "id") })
	s.handle("POST /v1/credit_notes/{id}", spec{"memo": "string", "metadata": "map"}, func(c *call) (object, *apiError) {
		note, err := s.changingNote(c)
		if err != nil {
			return nil, err
		}
		changes := object{}
		if c.has("memo") {
			changes["memo"] = c.orNull("memo")
		}
		if c.has("metadata") {
			changes["metadata"] = mergeMetadata(child(note, "metadata"), c.metadata())
		}
		s.onClockOf(s.store.get("invoice", text(note, "invoice")), func() {
			previous := s.change("credit_note", note, changes)
			s.raise(c, "credit_note.updated", note, previous)
		})
		return note, nil
	})
	s.handle("POST /v1/credit_notes/{id}/void", nil, s.voidCreditNote)
	s.handle("GET /v1/credit_notes/{id}/lines", listSpec(nil), func(c *call) (object, *apiError) {
		note, err := s.find("credit_note", c.target(), "id")
		if err != nil {
			return nil, err
		}
		return page(c, c.r.URL.Path, "credit_note_line_item", linesOf(note))
	})
	filters := spec{"customer": "string", "invoice": "string", "created": createdSpec}
	s.handle("GET /v1/credit_notes", listSpec(filters), func(c *call) (object, *apiError) {
		return s.list(c, "credit_note", func(o object) bool {
			return (!c.has("customer") || text(o, "customer") == c.text("customer")) && (!c.has("invoice") || text(o, "invoice") == c.text("invoice")) &&
				inRange(c, number(o, "created"))
		})
	})
}

// creditPlan is a credit note that may be issued.
type creditPlan struct {
	invoice   object
	lines     []any
	total     int64
	after     bool   // the invoice is paid: post_payment
	charge    object // that a refund is of
	refund    object // one that stands
	refunding int64  // a refund to make
	credit    int64  // to the customer's balance
	outOfBand int64
}

// planCreditNote checks all that a credit note must be.
func (s *Server) planCreditNote(c *call) (*creditPlan, *apiError) {
	if err := c.require("invoice"); err != nil {
		return nil, err
	}
	if err := oneOf(c, "reason", "duplicate", "fraudulent", "order_change", "product_unsatisfactory"); err != nil {
		return nil, err
	}
	inv, err := s.find("invoice", c.text("invoice"), "invoice")
	if err != nil {
		return nil, err
	}
	p := &creditPlan{invoice: inv, credit: c.number("credit_amount"), outOfBand: c.number("out_of_band_amount"), refunding: c.number("refund_amount")}
	switch text(inv, "status") {
	case "open", "uncollectible":
	case "paid":
		p.after = true
	default:
		return nil, invalid("invoice", "", "A credit note can only be created for an invoice that is open or paid. This invoice has a status of %s.", text(inv, "status"))
	}
	if err := s.creditLines(c, p); err != nil {
		return nil, err
	}
	if p.after {
		return p, s.checkAfterPayment(c, p)
	}
	return p, checkBeforePayment(c, p)
}

// checkBeforePayment wants no more credited than is still to be paid.
func checkBeforePayment(c *call, p *creditPlan) *apiError {
	for _, name := range []string{"credit_amount", "out_of_band_amount", "refund", "refund_amount"} {
		if c.has(name) {
			return invalid(name, "", "You can only specify `%s` for a credit note of an invoice that is paid.", name)
		}
	}
	if left := number(p.invoice, "amount_remaining"); p.total > left {
		return exceeds(p.total, left, p.invoice, "amount remaining on the invoice")
	}
	return nil
}

func exceeds(total, left int64, inv object, of string) *apiError {
	currency := text(inv, "currency")
	return invalid("amount", "", "The credit note amount (%s) is greater than the %s (%s).", money(total, currency), of, money(left, currency))
}

// checkAfterPayment wants the money of a note to go back in ways that add up to it.
func (s *Server) checkAfterPayment(c *call, p *creditPlan) *apiError {
	inv, currency := p.invoice, text(p.invoice, "currency")
	left := number(inv, "total") - number(inv, "pre_payment_credit_notes_amount") - number(inv, "post_payment_credit_notes_amount")
	if p.total > left {
		return exceeds(p.total, left, inv, "amount of the invoice that is not credited yet")
	}
	for name, amount := range map[string]int64{"credit_amount": p.credit, "out_of_band_amount": p.outOfBand, "refund_amount": p.refunding} {
		if amount < 0 {
			return invalid(name, "parameter_invalid_integer", "This value must be greater than or equal to 0.")
		}
	}
	refunded := p.refunding
	if c.has("refund") {
		if err := s.standingRefund(c, p); err != nil {
			return err
		}
		refunded = number(p.refund, "amount")
	}
	if sum := refunded + p.credit + p.outOfBand; sum != p.total {
		return invalid("", "", "The sum of credit amount, refund amount and out of band amount (%s) must equal the credit note amount (%s).", money(sum, currency), money(p.total, currency))
	}
	if p.refunding > 0 {
		p.charge = s.store.get("charge", text(inv, "charge"))
		if p.charge == nil {
			return invalid("refund_amount", "", "The invoice has no charge to refund: it was paid in another way.")
		}
		if left := number(p.charge, "amount_captured") - s.refunded(text(p.charge, "id")); p.refunding > left {
			return invalid("refund_amount", "", "Refund amount (%s) is greater than unrefunded amount on charge (%s)", money(p.refunding, currency), money(left, currency))
		}
	}
	if customer := s.balanced(inv); p.credit > 0 && customer == nil {
		return invalid("credit_amount", "", "The customer of the invoice has no balance in %s that could be credited.", currency)
	}
	return nil
}

// standingRefund takes a refund of the invoice's charge that no other note tells of.
func (s *Server) standingRefund(c *call, p *creditPlan) *apiError {
	if c.has("refund_amount") {
		return invalid("refund", "", "You may only specify one of these parameters: refund, refund_amount.")
	}
	refund, err := s.find("refund", c.text("refund"), "refund")
	if err != nil {
		return err
	}
	if text(refund, "charge") != text(p.invoice, "charge") {
		return invalid("refund", "", "The refund %s is not of the invoice's charge.", text(refund, "id"))
	}
	for _, other := range s.store.shelf("credit_note").with("invoice", text(p.invoice, "id")) {
		if text(other, "refund") == text(refund, "id") {
			return invalid("refund", "", "The refund %s is already linked to the credit note %s.", text(refund, "id"), text(other, "id"))
		}
	}
	p.refund = refund
	return nil
}

// newCreditNote makes a note that is not kept yet.
func (s *Server) newCreditNote(c *call, p *creditPlan) object {
	id, inv := s.newID("cn"), p.invoice
	kind := map[bool]string{false: "pre_payment", true: "post_payment"}[p.after]
	issued := len(s.store.shelf("credit_note").with("invoice", text(inv, "id")))
	o := object{
		"id": id, "object": "credit_note", "amount": p.total, "amount_shipping": int64(0), "created": s.now(), "currency": inv["currency"],
		"customer": inv["customer"], "customer_balance_transaction": nil, "discount_amount": int64(0), "discount_amounts": []any{}, "effective_at": s.now(),
		"invoice": inv["id"], "lines": listObject("/v1/credit_notes/"+id+"/lines", p.lines, false), "livemode": false, "memo": c.orNull("memo"),
		"metadata": mergeMetadata(nil, c.metadata()), "number": fmt.Sprintf("%s-CN-%02d", text(inv, "number"), issued+1), "out_of_band_amount": nil,
		"pdf": "https://pay.stripe.com/credit_notes/acct_simulated/test_" + id + "/pdf", "reason": c.orNull("reason"), "refund": nil, "shipping_cost": nil,
		"status": "issued", "subtotal": p.total, "subtotal_excluding_tax": p.total, "tax_amounts": []any{}, "total": p.total, "total_excluding_tax": p.total,
		"type": kind, "voided_at": nil,
	}
	if c.has("effective_at") {
		o["effective_at"] = c.number("effective_at")
	}
	if c.has("out_of_band_amount") {
		o["out_of_band_amount"] = p.outOfBand
	}
	if p.refund != nil {
		o["refund"] = p.refund["id"]
	}
	return o
}

func (s *Server) previewCreditNote(c *call) (note object, err *apiError) {
	plan, err := s.planCreditNote(c)
	if err != nil {
		return nil, err
	}
	s.onClockOf(plan.invoice, func() { note = s.newCreditNote(c, plan) })
	return note, nil
}

// issueCreditNote moves what the plan says. The refund comes first: it alone can
// still be refused.
func (s *Server) issueCreditNote(c *call, p *creditPlan) (object, *apiError) {
	note := s.newCreditNote(c, p)
	if p.refunding > 0 {
		var reason any
		if given := c.text("reason"); slices.Contains([]string{"duplicate", "fraudulent"}, given) {
			reason = given // the other reasons are none of a refund's
		}
		refund, err := s.refundCharge(c, p.charge, p.refunding, reason, object{})
		if err != nil {
			return nil, err
		}
		note["refund"] = refund["id"]
	}
	inv := p.invoice
	if p.credit > 0 {
		moved := s.moveBalance(c, s.balanced(inv), -p.credit, object{"type": "credit_note", "credit_note": note["id"], "invoice": inv["id"]})
		note["customer_balance_transaction"] = moved["id"]
	}
	s.store.put("credit_note", note)
	s.raise(c, "credit_note.created", note, nil)
	if p.after {
		s.updateInvoice(c, inv, object{"post_payment_credit_notes_amount": number(inv, "post_payment_credit_notes_amount") + p.total})
		return note, nil
	}
	s.creditInvoice(c, inv, p.total)
	return note, nil
}

// creditInvoice lowers what is due of an invoice; a negative amount raises it again.
// An invoice with nothing left is paid.
func (s *Server) creditInvoice(c *call, inv object, amount int64) {
	changes := object{
		"pre_payment_credit_notes_amount": number(inv, "pre_payment_credit_notes_amount") + amount,
		"amount_due":                      number(inv, "amount_due") - amount, "amount_remaining": number(inv, "amount_remaining") - amount,
	}
	left := number(changes, "amount_remaining")
	if left == 0 {
		s.cancelIntent(c, text(inv, "payment_intent"))
		s.markPaid(c, inv, changes)
		return
	}
	if pi := s.store.get("payment_intent", text(inv, "payment_intent")); pi != nil {
		s.change("payment_intent", pi, object{"amount": left})
	}
	s.updateInvoice(c, inv, changes)
}

// changingNote gives the credit note that a call changes.
func (s *Server) changingNote(c *call) (object, *apiError) {
	note, err := s.find("credit_note", c.target(), "id")
	if err == nil {
		err = s.still(s.store.get("invoice", text(note, "invoice")))
	}
	return note, err
}

// voidCreditNote takes a note back that has lowered an invoice which is still open.
// What has given money back cannot be undone.
func (s *Server) voidCreditNote(c *call) (object, *apiError) {
	note, err := s.changingNote(c)
	if err != nil {
		return nil, err
	}
	inv := s.store.get("invoice", text(note, "invoice"))
	switch {
	case text(note, "status") == "void":
		return nil, invalid("", "", "This credit note has already been voided.")
	case text(note, "type") != "pre_payment" || text(inv, "status") != "open":
		return nil, invalid("", "", "You can only void credit notes of open invoices. The invoice of this credit note isn't open.")
	}
	s.onClockOf(inv, func() {
		s.change("credit_note", note, object{"status": "void", "voided_at": s.now()})
		s.raise(c, "credit_note.voided", note, nil)
		s.creditInvoice(c, inv, -number(note, "total"))
	})
	return note, nil
}

// creditLines makes the lines of a note and their sum.
func (s *Server) creditLines(c *call, p *creditPlan) *apiError {
	lines := c.list("lines")
	switch {
	case c.has("amount") && len(lines) > 0:
		return invalid("lines", "", "You may only specify one of these parameters: amount, lines.")
	case !c.has("amount") && len(lines) == 0:
		return invalid("amount", "parameter_missing", "One of the following params should be provided for this request: amount or lines.")
	case c.has("amount"):
		p.total = c.number("amount")
		line := s.newCreditLine(p.total)
		line["description"] = "Credit"
		p.lines = []any{line}
	}
	credited := s.creditedLines(text(p.invoice, "id"))
	for i, raw := range lines {
		line, err := s.creditLine(params{raw.(object)}, p.invoice, fmt.Sprintf("lines[%d]", i), credited)
		if err != nil {
			return err
		}
		p.lines = append(p.lines, line)
		p.total += number(line, "amount")
	}
	if p.total < 1 {
		return invalid("amount", "parameter_invalid_integer", "This value must be greater than or equal to 1.")
	}
	return nil
}

func (s *Server) newCreditLine(amount int64) object {
	return object{
		"id": s.newID("cnli"), "object": "credit_note_line_item", "amount": amount, "amount_excluding_tax": amount, "description": nil, "discount_amount": int64(0),
		"discount_amounts": []any{}, "livemode": false, "quantity": int64(1), "tax_amounts": []any{}, "tax_rates": []any{}, "type": "custom_line_item",
		"unit_amount": amount, "unit_amount_decimal": fmt.Sprint(amount), "unit_amount_excluding_tax": fmt.Sprint(amount),
	}
}

// creditedLines sums what standing notes have credited of each line of an invoice.
func (s *Server) creditedLines(invoice string) map[string]int64 {
	sums := map[string]int64{}
	for _, note := range s.store.shelf("credit_note").with("invoice", invoice) {
		if text(note, "status") == "void" {
			continue
		}
		for _, line := range linesOf(note) {
			sums[text(line.(object), "invoice_line_item")] += number(line.(object), "amount")
		}
	}
	return sums
}

// creditLine makes one line: of a line of the invoice, or one of its own.
func (s *Server) creditLine(p params, inv object, at string, credited map[string]int64) (object, *apiError) {
	switch p.text("type") {
	case "custom_line_item":
		return s.customCreditLine(p, at)
	case "invoice_line_item":
	default:
		return nil, invalid(at+"[type]", "", "Invalid %s[type]: must be one of custom_line_item or invoice_line_item", at)
	}
	id := p.text("invoice_line_item")
	lines := linesOf(inv)
	i := slices.IndexFunc(lines, func(line any) bool { return text(line.(object), "id") == id })
	if i < 0 {
		return nil, missing("line item", id, at+"[invoice_line_item]")
	}
	of := lines[i].(object)
	amount := p.number("amount")
	switch {
	case p.has("amount") == p.has("quantity"):
		return nil, invalid(at+"[amount]", "", "You must specify exactly one of these parameters: amount, quantity.")
	case p.has("quantity"):
		n := number(of, "quantity")
		if p.number("quantity") < 1 || p.number("quantity") > n {
			return nil, invalid(at+"[quantity]", "", "The quantity to credit (%d) must be at least 1 and at most that of the invoice line item (%d).", p.number("quantity"), n)
		}
		amount = share(number(of, "amount"), p.number("quantity"), n)
	}
	left := number(of, "amount") - credited[id]
	if amount < 1 || amount > left {
		return nil, invalid(at+"[amount]", "", "The amount to credit (%s) must be positive and at most what is left of the invoice line item (%s).", money(amount, text(inv, "currency")), money(left, text(inv, "currency")))
	}
	credited[id] += amount
	line := s.newCreditLine(amount)
	maps.Copy(line, object{"type": "invoice_line_item", "invoice_line_item": id, "description": of["description"]})
	line["unit_amount"], line["unit_amount_decimal"] = nil, nil
	if p.has("quantity") {
		line["quantity"] = p.number("quantity")
		line["unit_amount_decimal"] = of["unit_amount_excluding_tax"]
		line["unit_amount_excluding_tax"] = of["unit_amount_excluding_tax"]
	} else {
		line["quantity"], line["unit_amount_excluding_tax"] = nil, nil
	}
	if p.has("description") {
		line["description"] = p.orNull("description")
	}
	return line, nil
}

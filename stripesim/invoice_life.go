package stripesim

import (
	"fmt"
	"maps"
)

// Bounds of what an invoice does by itself, unless switches say otherwise.
const (
	invoiceRetries   = 3
	invoiceRetryWait = 3 * 86400
	webhookWaitMax   = 72 * 3600 // how long an invoice waits for the webhook of its making
)

// advanceInvoice is what happens to an invoice when its time has come: a draft is
// finalized and collected or sent, an open one is tried again.
func (s *Server) advanceInvoice(inv object) {
	customer := s.store.get("customer", text(inv, "customer"))
	if !flag(inv, "auto_advance") || customer == nil || flag(customer, "deleted") {
		return
	}
	automatic := text(inv, "collection_method") == "charge_automatically"
	switch text(inv, "status") {
	case "draft":
		if s.waitsForWebhook(inv) {
			return
		}
		s.finalizeInvoice(nil, inv, automatic)
		switch {
		case text(inv, "status") != "open":
		case automatic:
			s.collectInvoice(nil, inv, "", true)
		default:
			s.raise(nil, "invoice.sent", inv, nil)
		}
	case "open":
		if automatic {
			s.collectInvoice(nil, inv, "", true)
		}
	}
}

// waitsForWebhook puts a draft off while nobody has taken the webhook of its making.
func (s *Server) waitsForWebhook(inv object) bool {
	event := s.store.get("event", text(inv, "_created_event"))
	if number(event, "pending_webhooks") == 0 && !flag(event, "_failed") {
		if inv["webhooks_delivered_at"] == nil {
			inv["webhooks_delivered_at"] = s.now()
		}
		return false
	}
	if !s.switches.InvoiceWaitsForWebhook || s.now() >= number(inv, "created")+webhookWaitMax {
		return false
	}
	s.setAlarm("invoice", inv, min(s.now()+invoiceGrace, number(inv, "created")+webhookWaitMax))
	return true
}

// updateInvoice changes an invoice and tells of it.
func (s *Server) updateInvoice(c *call, inv, changes object) {
	previous := s.view(s.change("invoice", inv, changes), nil)
	if len(previous) > 0 {
		s.raise(c, "invoice.updated", inv, previous)
	}
}

// finalizeInvoice makes an invoice of a draft: it has a number, its amounts stand,
// and the customer's balance is applied. One with nothing due is paid by that. The
// payment intent of one that is collected in the same moment is made by that.
func (s *Server) finalizeInvoice(c *call, inv object, collected bool) {
	changes := s.reckon(inv, s.meteredAgain(inv))
	customer := s.balanced(inv)
	starting, ending := number(changes, "starting_balance"), number(changes, "_ending_balance")
	transitions := maps.Clone(child(inv, "status_transitions"))
	transitions["finalized_at"] = s.now()
	id := text(inv, "id")
	maps.Copy(changes, object{
		"status": "open", "status_transitions": transitions, "ending_balance": ending, "next_payment_attempt": nil,
		"hosted_invoice_url": "https://invoice.stripe.com/i/acct_simulated/test_" + id,
		"invoice_pdf":        "https://pay.stripe.com/invoice/acct_simulated/test_" + id + "/pdf",
	})
	if customer == nil {
		changes["ending_balance"] = int64(0)
	}
	if inv["effective_at"] == nil {
		changes["effective_at"] = s.now()
	}
	if inv["number"] == nil {
		changes["number"] = s.invoiceNumber(inv)
	}
	s.setAlarm("invoice", inv, 0)
	previous := s.view(s.change("invoice", inv, changes), nil)
	if applied := min(ending, 0) - starting; customer != nil && applied != 0 {
		s.moveBalance(c, customer, applied, object{"type": "applied_to_invoice", "invoice": id})
	}
	if customer != nil && ending > 0 {
		s.moveBalance(c, customer, ending, object{"type": "invoice_too_small", "invoice": id})
	}
	due := number(inv, "amount_due")
	if due > 0 && !collected {
		s.change("invoice", inv, object{"payment_intent": s.invoiceIntent(c, inv, due)["id"]})
	}
	s.raise(c, "invoice.finalized", inv, nil)
	if !flag(inv, "_at_once") {
		s.raise(c, "invoice.updated", inv, previous)
	}
	if due == 0 && !flag(inv, "_prepaid") {
		s.markPaid(c, inv, object{"attempted": true})
	}
}

// invoiceNumber is the next one of the customer.
func (s *Server) invoiceNumber(inv object) string {
	customer := s.store.get("customer", text(inv, "customer"))
	next := number(customer, "next_invoice_sequence")
	if next == 0 {
		next = 1
	}
	if customer != nil && !flag(customer, "deleted") {
		s.change("customer", customer, object{"next_invoice_sequence": next + 1})
	}
	prefix := text(inv, "_prefix")
	if prefix == "" {
		prefix = text(inv, "id")[3:11]
	}
	return fmt.Sprintf("%s-%04d", prefix, next)
}

// collectInvoice tries to charge what is due. An automatic try counts for the schedule of
// retries, one on demand only when it is the first.
func (s *Server) collectInvoice(c *call, inv object, method string, automatic bool) (intent object, paid bool) {
	sub := s.store.get("subscription", text(inv, "subscription"))
	for _, choice := range []string{text(inv, "default_payment_method"), text(sub, "default_payment_method")} {
		if method == "" {
			method = choice
		}
	}
	before := text(inv, "payment_intent")
	inv["_collecting"] = true // what the intent does now is told here, not by settleInvoice
	intent, paid = s.chargeInvoice(c, inv, method)
	delete(inv, "_collecting")
	if before != "" && before != text(intent, "id") {
		s.cancelIntent(c, before)
	}
	changes := object{"payment_intent": intent["id"], "charge": intent["latest_charge"], "attempted": true}
	if automatic || number(inv, "attempt_count") == 0 {
		changes["attempt_count"] = number(inv, "attempt_count") + 1
	}
	switch {
	case paid:
		s.markPaid(c, inv, changes)
	case text(intent, "status") == "processing":
		s.updateInvoice(c, inv, changes)
	default:
		s.noteFailure(c, inv, intent, changes)
	}
	return intent, paid
}

// noteFailure tells that a payment failed, and plans the next one.
func (s *Server) noteFailure(c *call, inv, intent, changes object) {
	if _, counted := changes["attempt_count"]; counted {
		changes["next_payment_attempt"] = nil
		tries := switched(s.switches.InvoiceRetries, invoiceRetries)
		s.setAlarm("invoice", inv, 0)
		if flag(inv, "auto_advance") && text(inv, "billing_reason") != "subscription_create" && number(changes, "attempt_count") <= tries {
			at := s.now() + switched(s.switches.InvoiceRetrySeconds, invoiceRetryWait)
			s.setAlarm("invoice", inv, at)
			changes["next_payment_attempt"] = at
		}
	}
	s.updateInvoice(c, inv, changes)
	if text(intent, "status") == "requires_action" {
		s.raise(c, "invoice.payment_action_required", inv, nil)
	}
	s.raise(c, "invoice.payment_failed", inv, nil)
	if text(inv, "subscription") != "" {
		s.subscriptionPaid(c, inv, false)
	}
}

// settleInvoice takes what became of an invoice's payment intent when somebody else
// than collectInvoice has confirmed it: a customer on a page of Stripe's, or a bank at last.
func (s *Server) settleInvoice(c *call, pi object, paid bool) {
	inv := s.store.get("invoice", text(pi, "invoice"))
	if inv == nil || flag(inv, "_collecting") || flag(inv, "_prepaid") || text(inv, "payment_intent") != text(pi, "id") || flag(inv, "paid") {
		return
	}
	changes := object{"attempted": true, "charge": pi["latest_charge"], "attempt_count": max(1, number(inv, "attempt_count"))}
	if paid {
		s.markPaid(c, inv, changes)
		return
	}
	if number(inv, "attempt_count") > 0 {
		delete(changes, "attempt_count")
	}
	s.noteFailure(c, inv, pi, changes)
}

// markPaid ends an invoice well.
func (s *Server) markPaid(c *call, inv, changes object) {
	transitions := maps.Clone(child(inv, "status_transitions"))
	transitions["paid_at"] = s.now()
	due := number(inv, "amount_due")
	if _, lowered := changes["amount_due"]; lowered {
		due = number(changes, "amount_due")
	}
	maps.Copy(changes, object{
		"status": "paid", "paid": true, "amount_paid": due, "amount_remaining": int64(0), "status_transitions": transitions,
		"auto_advance": false, "next_payment_attempt": nil,
	})
	s.setAlarm("invoice", inv, 0)
	s.updateInvoice(c, inv, changes)
	s.raise(c, "invoice.paid", inv, nil)
	if !flag(inv, "paid_out_of_band") {
		s.raise(c, "invoice.payment_succeeded", inv, nil)
	}
	if text(inv, "subscription") != "" {
		s.subscriptionPaid(c, inv, true)
	}
}

// endUnpaid ends an invoice as void or uncollectible. A void one gives back what the
// customer's balance has paid of it.
func (s *Server) endUnpaid(c *call, inv object, status, moment, event string) {
	transitions := maps.Clone(child(inv, "status_transitions"))
	transitions[moment] = s.now()
	if status == "void" {
		s.cancelIntent(c, text(inv, "payment_intent"))
		applied := number(inv, "ending_balance") - number(inv, "starting_balance")
		if customer := s.balanced(inv); customer != nil && applied != 0 {
			s.moveBalance(c, customer, -applied, object{"type": "unapplied_from_invoice", "invoice": inv["id"]})
		}
	}
	s.setAlarm("invoice", inv, 0)
	s.updateInvoice(c, inv, object{"status": status, "status_transitions": transitions, "auto_advance": false, "next_payment_attempt": nil})
	s.raise(c, event, inv, nil)
}

// cancelIntent cancels the intent of an invoice that nobody will pay by it.
func (s *Server) cancelIntent(c *call, id string) {
	pi := s.store.get("payment_intent", id)
	if st := text(pi, "status"); pi == nil || st == "succeeded" || st == "canceled" {
		return
	}
	s.change("payment_intent", pi, object{"status": "canceled", "canceled_at": s.now(), "cancellation_reason": "void_invoice"})
	s.raise(c, "payment_intent.canceled", pi, nil)
}

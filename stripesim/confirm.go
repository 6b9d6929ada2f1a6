package stripesim

// debitDays is how long a debit of a bank account takes, in seconds, where the
// switch settle_seconds does not say.
const debitDays = 4 * 24 * 3600

func (s *Server) confirmIntent(c *call) (object, *apiError) {
	pi, err := s.find("payment_intent", c.target(), "intent")
	if err == nil {
		err = s.checkIntent(c)
	}
	if err != nil {
		return nil, err
	}
	switch status := text(pi, "status"); status {
	case "requires_payment_method", "requires_confirmation", "requires_action":
	case "succeeded":
		return nil, s.unexpectedState(pi, "You cannot confirm this PaymentIntent because it has already succeeded after being previously confirmed.")
	default:
		return nil, s.unexpectedState(pi, "You cannot confirm this PaymentIntent because it has a status of "+status+". Only a PaymentIntent with one of the following statuses may be confirmed: requires_confirmation, requires_action.")
	}
	if secret := c.text("client_secret"); secret != "" && secret != text(pi, "client_secret") {
		return nil, invalid("client_secret", "", "The client_secret provided does not match the client_secret associated with the PaymentIntent.")
	}
	changes, err := s.intentChanges(c, pi)
	if err != nil {
		return nil, err
	}
	pm, err := s.methodGiven(c, laidOver(pi, changes))
	if err != nil {
		return nil, err
	}
	if pm == nil {
		if pm = s.store.get("payment_method", text(pi, "payment_method")); pm != nil {
			types, _ := laidOver(pi, changes)["payment_method_types"].([]any)
			err = payable(pm, text(laidOver(pi, changes), "customer"), types) // it may have been spent, or detached, since it was given
		}
	}
	if err != nil {
		return nil, err
	}
	if pm == nil {
		e := missingMethod()
		e.extra = object{"payment_intent": s.view(pi, nil)}
		return nil, e
	}
	s.keepMethod(pm)
	s.change("payment_intent", pi, changes)
	return pi, s.attempt(c, pi, pm)
}

// methodOf gives the payment method of an intent, or an imagined card, for what is
// paid without one: a session's buyer has typed it in.
func (s *Server) methodOf(pi object) object {
	if pm := s.store.get("payment_method", text(pi, "payment_method")); pm != nil {
		return pm
	}
	pm := s.newMethod("pm", "pm_card_visa")
	s.store.put("payment_method", pm)
	s.change("payment_intent", pi, object{"payment_method": pm["id"]})
	return pm
}

// attempt tries to pay an intent by a payment method that is kept and payable. The
// error is the customer's: what has happened stays.
func (s *Server) attempt(c *call, pi, pm object) *apiError {
	test := actsAs(pm)
	s.change("payment_intent", pi, object{"payment_method": pm["id"], "next_action": nil})
	switch must := !flag(pi, "_authenticated") && (test.authenticate || (s.switches.AuthenticatePayments && !test.bank())); {
	case must && (c == nil || (c.text("off_session") != "" && c.text("off_session") != "false") || flag(c.values, "error_on_requires_action")):
		test.code, test.declineCode, test.message = "authentication_required", "authentication_required", authenticationNeeded
		return s.decline(c, pi, pm, test)
	case must:
		s.askForAuthentication(c, pi)
		return nil
	}
	return s.collect(c, pi, pm)
}

// askForAuthentication leaves an intent to the buyer, who must authenticate.
func (s *Server) askForAuthentication(c *call, pi object) {
	action := object{"type": "use_stripe_sdk", "use_stripe_sdk": object{"type": "three_d_secure_redirect", "stripe_js": "https://hooks.stripe.com/redirect/authenticate/" + text(pi, "id")}}
	if url := c.text("return_url"); url != "" {
		action = object{"type": "redirect_to_url", "redirect_to_url": object{"return_url": url, "url": "https://hooks.stripe.com/redirect/authenticate/" + text(pi, "id")}}
	}
	s.change("payment_intent", pi, object{"status": "requires_action", "next_action": action})
	s.raise(c, "payment_intent.requires_action", pi, nil)
}

// collect takes the money, now that nobody need be asked: by a card at once, by
// a bank account days later.
func (s *Server) collect(c *call, pi, pm object) *apiError {
	test := actsAs(pm)
	if test.bank() {
		s.process(c, pi, pm)
		return nil
	}
	if test.code != "" {
		return s.decline(c, pi, pm, test)
	}
	s.succeed(c, pi)
	return nil
}

// succeed makes the charge of an intent and settles it, or holds the money where
// the intent is to be captured.
func (s *Server) succeed(c *call, pi object) {
	pm := s.methodOf(pi)
	manual := text(pi, "capture_method") == "manual"
	charge := s.makeCharge(pi, pm, "succeeded", !manual)
	s.raise(c, "charge.succeeded", charge, nil)
	changes := object{"latest_charge": charge["id"], "last_payment_error": nil, "next_action": nil}
	if manual {
		changes["status"], changes["amount_capturable"] = "requires_capture", number(pi, "amount")
		s.change("payment_intent", pi, changes)
		s.raise(c, "payment_intent.amount_capturable_updated", pi, nil)
		s.keepForLater(c, pi, pm)
		return
	}
	changes["status"], changes["amount_received"] = "succeeded", number(pi, "amount")
	s.change("payment_intent", pi, changes)
	s.raise(c, "payment_intent.succeeded", pi, nil)
	s.keepForLater(c, pi, pm)
	s.settleInvoice(c, pi, true)
	s.aftermath(charge, actsAs(pm))
}

// keepForLater attaches a payment method that the customer may be charged by again.
// Any other that belongs to nobody is spent now.
func (s *Server) keepForLater(c *call, pi, pm object) {
	switch customer := text(pi, "customer"); {
	case text(pm, "customer") != "":
	case customer != "" && text(pi, "setup_future_usage") != "":
		s.attach(c, pm, customer)
	default:
		s.change("payment_method", pm, object{"_spent": true})
	}
}

// decline leaves a failed charge and an intent that needs another payment method.
func (s *Server) decline(c *call, pi, pm object, test testMethod) *apiError {
	draft := s.makeCharge(pi, pm, "failed", false)
	s.change("charge", draft, object{"failure_code": test.code, "failure_message": test.message, "outcome": outcome(test, "failed")})
	s.raise(c, "charge.failed", draft, nil)
	failure := failureOf(s, draft, pm, test)
	s.change("payment_intent", pi, object{"status": "requires_payment_method", "payment_method": nil, "latest_charge": draft["id"], "last_payment_error": failure, "next_action": nil})
	s.raise(c, "payment_intent.payment_failed", pi, nil)
	s.settleInvoice(c, pi, false)
	e := cardError(test.code, test.declineCode, "", test.message)
	e.extra["charge"], e.extra["payment_intent"], e.extra["payment_method"] = draft["id"], s.view(pi, nil), s.view(pm, nil)
	return e
}

// failureOf is the last_payment_error of an intent.
func failureOf(s *Server, charge, pm object, test testMethod) object {
	kind := "card_error"
	if test.bank() {
		kind = "invalid_request_error"
	}
	o := object{
		"type": kind, "code": test.code, "message": test.message, "charge": charge["id"], "payment_method": s.view(pm, nil),
		"doc_url": "https://stripe.com/docs/error-codes/" + test.code,
	}
	if test.declineCode != "" {
		o["decline_code"] = test.declineCode
	}
	return o
}

// process starts a debit of a bank account.
func (s *Server) process(c *call, pi, pm object) {
	charge := s.makeCharge(pi, pm, "pending", true)
	s.raise(c, "charge.pending", charge, nil)
	if !actsAs(pm).stuck {
		s.setAlarm("payment_intent", pi, s.later(debitDays))
	}
	s.change("payment_intent", pi, object{"status": "processing", "latest_charge": charge["id"], "last_payment_error": nil})
	s.raise(c, "payment_intent.processing", pi, nil)
	s.keepForLater(c, pi, pm)
}

// later is when something that takes a while is over.
func (s *Server) later(seconds int64) int64 {
	if s.switches.SettleSeconds > 0 {
		seconds = s.switches.SettleSeconds
	}
	return s.ownNow() + seconds
}

// settleIntent ends a debit, and with it the session that it pays.
func (s *Server) settleIntent(c *call, pi object, succeeded bool) {
	if text(pi, "status") != "processing" {
		return
	}
	s.setAlarm("payment_intent", pi, 0)
	pm, charge := s.methodOf(pi), s.store.get("charge", text(pi, "latest_charge"))
	sessions := s.store.shelf("checkout.session").with("payment_intent", text(pi, "id"))
	test := actsAs(pm)
	if !succeeded {
		s.failDebit(c, pi, pm, charge, test)
		for _, session := range sessions {
			s.raise(c, "checkout.session.async_payment_failed", session, nil)
		}
		s.settleInvoice(c, pi, false)
		return
	}
	previous := s.change("charge", charge, object{"status": "succeeded", "paid": true})
	s.raise(c, "charge.succeeded", charge, previous)
	s.change("payment_intent", pi, object{"status": "succeeded", "amount_received": number(pi, "amount")})
	s.raise(c, "payment_intent.succeeded", pi, nil)
	for _, session := range sessions {
		s.sessionPaid(c, session)
		s.raise(c, "checkout.session.async_payment_succeeded", session, nil)
	}
	s.settleInvoice(c, pi, true)
	s.aftermath(charge, test)
}

// failDebit takes back what a debit had put into the balance as pending.
func (s *Server) failDebit(c *call, pi, pm, charge object, test testMethod) {
	if test.code == "" {
		test.code, test.message = "insufficient_funds", testBanks["insufficientFunds"].message
	}
	back := s.move(movement{
		kind: "payment_failure_refund", category: "charge_failure", source: text(charge, "id"), amount: -number(charge, "amount"), fee: -s.paymentFee(number(charge, "amount")),
		currency: charge["currency"], description: "PAYMENT FAILURE", feeName: "Stripe processing fees", bank: true,
	})
	previous := s.change("charge", charge, object{
		"status": "failed", "paid": false, "failure_code": test.code, "failure_message": test.message, "failure_balance_transaction": back["id"], "outcome": outcome(test, "failed"),
	})
	s.raise(c, "charge.failed", charge, previous)
	s.change("payment_intent", pi, object{"status": "requires_payment_method", "payment_method": nil, "last_payment_error": failureOf(s, charge, pm, test)})
	s.raise(c, "payment_intent.payment_failed", pi, nil)
}

// aftermath is what a test payment method brings after a payment: a dispute.
func (s *Server) aftermath(charge object, test testMethod) {
	if test.dispute == "" || !flag(charge, "captured") {
		return
	}
	stage := "opened"
	if test.inquiry {
		stage = "inquiry"
	}
	s.openDispute(charge, test.dispute, stage, number(charge, "amount_captured"))
}

// authenticate3DS ends an intent's wait for the buyer.
func (s *Server) authenticate3DS(c *call, pi object, succeeded bool) *apiError {
	if text(pi, "status") != "requires_action" {
		return invalid("", "", "PaymentIntent %s has a status of %s: only one that requires_action waits for the buyer", text(pi, "id"), text(pi, "status"))
	}
	pm := s.methodOf(pi)
	if !succeeded {
		message := "The provided PaymentMethod has failed authentication. You can provide payment_method_data or a new PaymentMethod to attempt to fulfill this PaymentIntent again."
		s.change("payment_intent", pi, object{"status": "requires_payment_method", "payment_method": nil, "next_action": nil, "last_payment_error": object{
			"type": "invalid_request_error", "code": "payment_intent_authentication_failure", "message": message, "payment_method": s.view(pm, nil),
			"doc_url": "https://stripe.com/docs/error-codes/payment_intent_authentication_failure",
		}})
		s.raise(c, "payment_intent.payment_failed", pi, nil)
		s.settleInvoice(c, pi, false)
		return nil
	}
	if text(pi, "confirmation_method") == "manual" {
		s.change("payment_intent", pi, object{"status": "requires_confirmation", "next_action": nil, "_authenticated": true})
		return nil
	}
	_ = s.collect(c, pi, pm) // a card that is declined is the outcome then
	return nil
}

// chargeInvoice pays an invoice by a payment method, or by its customer's default
// one where none is given, and tells whether it was paid. The intent names the
// invoice and so does its charge. A customer without a payment method pays by an
// imagined card unless the switch invoices_need_method is on. Nothing is charged for
// an invoice of nothing, and there is no intent then.
func (s *Server) chargeInvoice(c *call, invoice object, method string) (intent object, paid bool) {
	amount := number(invoice, "amount_remaining")
	if amount <= 0 {
		return nil, true
	}
	pi := s.store.get("payment_intent", text(invoice, "payment_intent"))
	switch status := text(pi, "status"); status {
	case "succeeded":
		return pi, true
	case "processing", "requires_capture":
		return pi, false
	case "", "canceled":
		pi = s.invoiceIntent(c, invoice, amount)
	default:
		s.change("payment_intent", pi, object{"amount": amount})
	}
	customer := s.store.get("customer", text(invoice, "customer"))
	if method == "" && customer != nil {
		method = s.defaultMethod(customer)
	}
	pm, err := s.lookMethod(method)
	if err != nil && (method != "" || s.switches.InvoicesNeedMethod) {
		return pi, false
	}
	if pm == nil {
		pm = s.newMethod("pm", "pm_card_visa")
	}
	s.keepMethod(pm)
	_ = s.attempt(c, pi, pm) // how it went stands in the intent
	return pi, text(pi, "status") == "succeeded"
}

// invoiceIntent makes the intent that an invoice is to be paid by.
func (s *Server) invoiceIntent(c *call, invoice object, amount int64) object {
	return s.makeIntent(c, amount, text(invoice, "currency"), invoice["customer"], object{}, object{
		"invoice": invoice["id"], "description": invoiceDescription(invoice), "payment_method_types": []any{"card", "us_bank_account"},
	})
}

// invoiceDescription is what Stripe writes on the payment of an invoice.
func invoiceDescription(invoice object) any {
	switch text(invoice, "billing_reason") {
	case "subscription_create":
		return "Subscription creation"
	case "subscription_cycle", "subscription_update", "subscription_threshold":
		return "Subscription update"
	}
	return "Payment for Invoice"
}

package oracle

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

// moneySwitches chooses the switches about payments, refunds and disputes.
func (s *story) moneySwitches() {
	s.with.RefundEvents, s.with.KeepAmountRefunded = s.often(0.5), s.often(0.5)
	s.with.PendingRefundsUncounted, s.with.RefundsPending = s.often(0.5), s.often(0.25)
	s.with.FeeFree, s.with.KeepDisputeFee, s.with.AuthenticatePayments = s.often(0.2), s.often(0.5), s.often(0.1)
	s.with.SettleSeconds = one(s, int64(0), 0, 60, 3600, 86400)
}

// idOf gives the id of a thing. One that nobody has been told of is looked up first,
// as a careful client would.
func (s *story) idOf(t *thing) string {
	if t.id == "" && t.kind != methodKind {
		s.call(get, lists[t.kind].path, "limit", "100")
	}
	if t.id == "" {
		return t.kind + "_nobody"
	}
	return t.id
}

// anyIn picks an object, most often one in one of some states.
func (s *story) anyIn(kind string, states ...string) string {
	var all []*thing
	for _, state := range states {
		all = append(all, s.oracle.with(kind, "status", state)...)
	}
	if len(all) > 0 && s.often(0.8) {
		return s.idOf(all[s.random.IntN(len(all))])
	}
	return s.any(kind)
}

// take hands an object to a step, most often one in one of some states. While there is
// none, the step is left out, most often.
func (s *story) take(step func(id string), kind string, states ...string) {
	some := slices.ContainsFunc(states, func(state string) bool { return len(s.oracle.with(kind, "status", state)) > 0 })
	if some || s.often(0.2) {
		step(s.anyIn(kind, states...))
	}
}

// method picks something to pay by: a test method that is known by its name, or a
// payment method that somebody has made.
func (s *story) method() string {
	if all := s.oracle.things[methodKind]; len(all) > 0 && s.often(0.3) {
		return s.idOf(all[len(all)-1-s.random.IntN(min(len(all), 30))])
	}
	if s.often(0.5) {
		return "pm_card_visa"
	}
	return one(s, slices.Sorted(maps.Keys(testMethods))...)
}

// ofCustomer adds the customer of a payment method that has one, most often.
func (s *story) ofCustomer(pairs []string, method string) []string {
	if t := s.oracle.get(methodKind, method); t != nil && t.members["customer"] != nil && s.often(0.9) {
		return append(pairs, "customer", t.text("customer"))
	}
	return s.sometimes(pairs, "customer", s.any("customer"))
}

// intent picks one that no session owns: what a buyer's payment is in between is
// left to the session.
func (s *story) intent(states ...string) string {
	id := s.anyIn("payment_intent", states...)
	if t := s.oracle.get("payment_intent", id); t == nil || len(s.oracle.with("checkout.session", "payment_intent", t)) > 0 {
		return "pi_nobody"
	}
	return id
}

var customerSteps = []step{
	{6, func(s *story) {
		pairs := s.sometimes(nil, "name", s.word(), "email", one(s, "a@example.com", "b@example.com", "c@example.com"), "metadata[k]", s.word(), "phone", "1")
		if s.often(0.3) {
			method := s.method()
			pairs = s.sometimes(append(pairs, "payment_method", method), "invoice_settings[default_payment_method]", method)
		}
		s.call(post, "/v1/customers", pairs...)
	}},
	{5, func(s *story) {
		pairs := s.sometimes(nil, "name", s.word(), "email", "", "metadata[k]", one(s, "", s.word()), "metadata[l]", s.word(), "description", s.word())
		customer := s.any("customer")
		if owned := s.oracle.with(methodKind, "customer", customer); s.often(0.3) && len(owned) > 0 {
			pairs = append(pairs, "invoice_settings[default_payment_method]", one(s, s.idOf(owned[0]), s.idOf(owned[len(owned)-1]), s.any(methodKind), ""))
		}
		s.call(post, "/v1/customers/"+customer, pairs...)
	}},
	{1, func(s *story) { s.call(http.MethodDelete, "/v1/customers/"+s.any("customer")) }},
}

var methodSteps = []step{
	{4, func(s *story) {
		pairs := one(s,
			[]string{"type", "card", "card[token]", one(s, "tok_visa", "tok_chargeCustomerFail", "tok_chargeDeclined", "tok_nonsense")},
			[]string{"type", "card", "card[number]", one(s, "4242424242424242", "4000000000000259", "4242424242424241"), "card[exp_month]", "12", "card[exp_year]", "2030"},
			[]string{
				"type", "us_bank_account", "us_bank_account[account_number]", one(s, "000123456789", "000111111113", "1"),
				"us_bank_account[routing_number]", "110000000", "us_bank_account[account_holder_type]", "individual",
			})
		s.call(post, "/v1/payment_methods", s.sometimes(pairs, "metadata[k]", s.word(), "billing_details[email]", "a@example.com")...)
	}},
	{3, func(s *story) {
		s.call(post, "/v1/payment_methods/"+s.method()+"/attach", "customer", s.any("customer"))
	}},
	{1, func(s *story) { s.call(post, "/v1/payment_methods/"+s.owned()+"/detach") }},
	{1, func(s *story) {
		s.call(post, "/v1/payment_methods/"+s.owned(), s.sometimes(nil, "metadata[k]", s.word(), "billing_details[name]", s.word())...)
	}},
	{1, func(s *story) { s.call(get, "/v1/payment_methods/"+s.method()) }},
	{2, func(s *story) {
		s.call(get, "/v1/customers/"+s.any("customer")+"/payment_methods", s.sometimes(nil, "type", one(s, "card", "us_bank_account"), "limit", one(s, "1", "2", "0"))...)
	}},
}

// owned picks a payment method, most often one that a customer has.
func (s *story) owned() string {
	for _, t := range slices.Backward(s.oracle.things[methodKind]) {
		if t.members["customer"] != nil && s.often(0.3) {
			return s.idOf(t)
		}
	}
	return s.any(methodKind)
}

var sessionSteps = []step{
	{8, func(s *story) {
		now := s.clock.Now().Unix()
		pairs := s.sometimes([]string{"mode", "payment", "success_url", "https://example.com/", "line_items[0][price]", s.price(), "line_items[0][quantity]", one(s, "1", "1", "2", s.whole(9), s.whole(9), one(s, "0", "999999", "1000000"))},
			"customer", s.any("customer"), "client_reference_id", s.word(), "metadata[k]", "v", "payment_intent_data[metadata][k]", s.word(),
			"expires_at", strconv.FormatInt(one(s, now+1800+s.random.Int64N(84000), now+1800+s.random.Int64N(84000), now+1800, now+86400, one(s, now+1799, now+86401)), 10))
		if s.often(0.2) {
			pairs = append(pairs, "line_items[1][price]", s.price())
		}
		if s.often(0.15) {
			pairs = append(pairs, "payment_intent_data[capture_method]", "manual")
		}
		s.call(post, "/v1/checkout/sessions", pairs...)
	}},
	{8, func(s *story) {
		s.take(func(id string) {
			s.buyerDoes(id, one(s, "paid", "paid", "", "unpaid", "unpaid", "card_declined", "expired", "async_succeeded", "nonsense"))
		}, "checkout.session", "open")
	}},
	{3, func(s *story) {
		for _, t := range s.oracle.with("checkout.session", "payment_status", "unpaid") {
			if intent := t.of("payment_intent"); t.text("status") == "complete" && (intent.text("status") == "processing" || s.often(0.02)) {
				if s.buyerDoes(t.id, one(s, "async_succeeded", "async_failed", "paid")); s.often(0.5) {
					return
				}
			}
		}
	}},
	{1, func(s *story) {
		s.take(func(id string) { s.call(post, "/v1/checkout/sessions/"+id+"/expire") }, "checkout.session", "open")
	}},
}

// price picks one, most often one that can be sold.
func (s *story) price() string {
	all := slices.DeleteFunc(s.oracle.with("price", "type", "one_time"), func(t *thing) bool { return !t.is("active") })
	if len(all) > 0 && s.often(0.85) {
		return all[s.random.IntN(len(all))].id
	}
	return s.any("price")
}

var intentSteps = []step{
	{10, func(s *story) {
		pairs := s.sometimes([]string{"amount", one(s, s.whole(100), s.whole(5000), s.whole(5000), s.whole(9_999_999), one(s, "0", "-1", "49", "50", "99999999", "100000000")), "currency", one(s, "usd", "usd", "EUR", "jpy", "gbp")},
			"metadata[k]", s.word(), "capture_method", one(s, "manual", "automatic"), "setup_future_usage", "off_session", "description", s.word())
		if s.often(0.7) {
			method := s.method()
			pairs = s.sometimes(s.ofCustomer(append(pairs, "payment_method", method), method), "off_session", "true")
			if s.often(0.7) {
				pairs = append(pairs, "confirm", "true")
			}
		} else {
			pairs = s.sometimes(pairs, "customer", s.any("customer"), "confirm", one(s, "true", "false"))
		}
		s.call(post, "/v1/payment_intents", pairs...)
	}},
	{5, func(s *story) {
		id := s.intent("requires_payment_method", "requires_confirmation")
		if s.often(0.3) {
			s.call(post, "/v1/payment_intents/"+id+"/confirm")
			return
		}
		s.call(post, "/v1/payment_intents/"+id+"/confirm", s.sometimes([]string{"payment_method", s.method()}, "setup_future_usage", "on_session", "off_session", one(s, "true", "false"))...)
	}},
	{4, func(s *story) {
		s.take(func(id string) {
			amount := int64(100)
			if t := s.oracle.get("payment_intent", id); t != nil {
				amount = t.number("amount")
			}
			s.call(post, "/v1/payment_intents/"+id+"/capture", s.sometimes(nil, "amount_to_capture", one(s, s.whole(amount), s.whole(amount), strconv.FormatInt(amount, 10), strconv.FormatInt(amount+1, 10), "0"))...)
		}, "payment_intent", "requires_capture")
	}},
	{1, func(s *story) {
		s.call(post, "/v1/payment_intents/"+s.intent("requires_capture", "requires_action")+"/cancel", s.sometimes(nil, "cancellation_reason", "abandoned")...)
	}},
	{2, func(s *story) {
		s.call(post, "/v1/payment_intents/"+s.intent("requires_payment_method", "requires_confirmation"), s.sometimes(nil, "metadata[k]", s.word(), "amount", one(s, s.whole(5000), "49"), "payment_method", one(s, s.method(), ""), "description", s.word())...)
	}},
	{2, func(s *story) {
		s.take(func(id string) {
			s.bankDoes("payment_intents", id, "authenticate", "outcome", one(s, "succeeded", "succeeded", "failed", "nonsense"))
		}, "payment_intent", "requires_action")
	}},
	{1, func(s *story) {
		s.take(func(id string) {
			s.bankDoes("payment_intents", id, "settle", "outcome", one(s, "succeeded", "failed", "nonsense"))
		}, "payment_intent", "processing")
	}},
	{1, func(s *story) {
		s.call(post, "/v1/charges/"+s.any("charge"), s.sometimes(nil, "metadata[k]", s.word(), "description", s.word())...)
	}},
	{2, func(s *story) { s.call(get, "/v1/balance") }},
}

var refundSteps = []step{
	{12, refund},
	{2, func(s *story) { s.call(post, "/v1/refunds/"+s.any("refund"), "metadata[k]", s.word()) }},
	{2, func(s *story) {
		s.take(func(id string) { s.call(post, "/v1/refunds/"+id+"/cancel") }, "refund", "pending", "requires_action")
	}},
	{1, func(s *story) {
		s.take(func(id string) { s.call(post, "/v1/test_helpers/refunds/"+id+"/expire") }, "refund", "requires_action")
	}},
	{3, func(s *story) { s.bankDoes("refunds", s.any("refund"), "fail") }},
	{2, func(s *story) {
		s.take(func(id string) { s.bankDoes("refunds", id, "succeed") }, "refund", "pending", "requires_action")
	}},
}

func refund(s *story) {
	charge := s.anyIn("charge", "succeeded")
	if t := s.oracle.get("charge", charge); t != nil && (t.is("refunded") || !t.is("captured")) && s.often(0.7) {
		charge = s.anyIn("charge", "succeeded")
	}
	pairs := []string{"charge", charge}
	if t := s.oracle.get("charge", charge); t != nil {
		if intent := t.of("payment_intent"); intent != nil && s.often(0.5) {
			pairs = []string{"payment_intent", s.idOf(intent)}
		}
		if left := t.number("amount") - s.oracle.promised(t); s.often(0.7) {
			pairs = append(pairs, "amount", one(s, "1", s.whole(max(left, 1)), s.whole(max(left, 1)), strconv.FormatInt(left, 10), strconv.FormatInt(left+1, 10), "0", "-5"))
		}
	}
	pairs = s.sometimes(pairs, "reason", one(s, "requested_by_customer", "fraudulent"), "metadata[sim_status]", one(s, "pending", "pending", "requires_action", "else"), "metadata[k]", s.word())
	s.call(post, "/v1/refunds", pairs...)
}

var disputeSteps = []step{
	{3, func(s *story) {
		s.control("disputes", "charge", s.anyIn("charge", "succeeded"), "stage", one(s, "", "opened", "inquiry", "inquiry", "nonsense"),
			"reason", one(s, "", "", "general", "nonsense"), "amount", one(s, "0", "0", "0", s.whole(100), "-1"))
	}},
	{3, func(s *story) {
		s.take(func(id string) {
			pairs := []string{"outcome", one(s, "opened", "warning_closed", "under_review", "won", "lost", "nonsense")}
			if t := s.oracle.get("dispute", id); t != nil && s.often(0.3) {
				pairs = []string{"outcome", "partly_won", "amount", one(s, s.whole(t.number("amount")), s.whole(t.number("amount")), "0")}
			}
			s.control("disputes/"+id, pairs...)
		}, "dispute", "warning_needs_response", "warning_under_review", "needs_response", "under_review")
	}},
	{2, func(s *story) {
		s.call(post, "/v1/disputes/"+s.anyIn("dispute", "warning_needs_response", "needs_response"), s.sometimes(nil, "metadata[k]", s.word(),
			"evidence[uncategorized_text]", one(s, "winning_evidence", "losing_evidence", "escalate_inquiry_evidence", ""), "evidence[product_description]", s.word(), "submit", one(s, "true", "false"))...)
	}},
	{1, func(s *story) {
		s.take(func(id string) { s.call(post, "/v1/disputes/"+id+"/close") }, "dispute", "warning_needs_response", "needs_response")
	}},
}

// control plays a call of the control plane, whose body is of texts and of one
// number, the amount, and lets the oracle follow.
func (s *story) control(path string, pairs ...string) {
	at, form, body := s.clock.Now(), url.Values{}, ""
	for i := 0; i+1 < len(pairs); i += 2 {
		name, v := pairs[i], pairs[i+1]
		form.Set(name, v)
		if name != "amount" {
			v = strconv.Quote(v)
		}
		body += fmt.Sprintf(", %q: %s", name, v)
	}
	answer := s.ask(http.MethodPost, "/_sim/"+path, "{"+body[min(len(body), 2):]+"}")
	var failed error
	if answer["error"] != nil {
		failed = errors.New("refused")
	}
	e := controlled(at, "/v1/"+path, form, failed, s.with)
	e.answer = answer
	s.follow(e)
}

// bankDoes lets something happen to an object that no call of the seller's does.
func (s *story) bankDoes(kind, id, what string, pairs ...string) {
	s.control(kind+"/"+id+"/"+what, pairs...)
}

// buyerDoes plays an outcome of a session.
func (s *story) buyerDoes(session, outcome string) {
	s.bankDoes("checkout/sessions", session, "pay", "outcome", outcome)
}

package stripesim_test

// checkoutErrors are those of checkout sessions.
func checkoutErrors() []refusal {
	price := made("price", "/v1/prices", "currency=usd&unit_amount=100&product_data[name]=x")
	open := after(price, "session", "/v1/checkout/sessions", "mode=payment&line_items[0][price]=$price&success_url=https://example.com/")
	paid := func(u *user) map[string]string {
		all := open(u)
		if err := u.PayCheckout(all["session"], "paid"); err != nil {
			u.t.Fatal(err)
		}
		return all
	}
	items := "&success_url=https://example.com/&line_items[0][price]=$price"
	return append(missingErrors("checkout.session", "session", "GET /v1/checkout/sessions/cs_nobody", "POST /v1/checkout/sessions/cs_nobody/expire", "GET /v1/checkout/sessions/cs_nobody/line_items"),
		refusal{name: "a session without a mode", setUp: price, method: post, path: "/v1/checkout/sessions", form: items[1:], status: 400, kind: invalidRequest, code: "parameter_missing", param: "mode", message: "Missing required param: mode."},
		refusal{
			name: "a session without items", method: post, path: "/v1/checkout/sessions", form: "mode=payment&success_url=https://example.com/", status: 400, kind: invalidRequest,
			code: "parameter_missing", param: "line_items", message: "Missing required param: line_items.",
		},
		refusal{
			name: "a session of a customer that nobody is", setUp: price, method: post, path: "/v1/checkout/sessions", form: "mode=payment&customer=cus_nobody" + items, status: 400,
			kind: invalidRequest, code: "resource_missing", param: "customer", message: "No such customer: 'cus_nobody'",
		},
		refusal{
			name: "a session of a price that is none", method: post, path: "/v1/checkout/sessions", form: "mode=payment&line_items[0][price]=price_nobody&success_url=https://example.com/",
			status: 400, kind: invalidRequest, code: "resource_missing", param: "line_items[0][price]", message: "No such price: 'price_nobody'",
		},
		refusal{
			name: "a session of an inactive price", setUp: made("price", "/v1/prices", "currency=usd&unit_amount=100&product_data[name]=x&active=false"), method: post,
			path: "/v1/checkout/sessions", form: "mode=payment" + items, status: 400, kind: invalidRequest, param: "line_items[0][price]",
			message: "The price specified is inactive. This field only accepts active prices.",
		},
		refusal{
			name: "a payment of a recurring price", setUp: made("price", "/v1/prices", "currency=usd&unit_amount=100&product_data[name]=x&recurring[interval]=month"), method: post,
			path: "/v1/checkout/sessions", form: "mode=payment" + items, status: 400, kind: invalidRequest, param: "line_items[0][price]",
			message: "You specified `payment` mode but passed a recurring price. Either switch to `subscription` mode or use only one-time prices.",
		},
		refusal{
			name: "a session of nothing", setUp: price, method: post, path: "/v1/checkout/sessions", form: "mode=payment&line_items[0][quantity]=0" + items, status: 400,
			kind: invalidRequest, code: "parameter_invalid_integer", param: "line_items[0][quantity]", message: "This value must be greater than or equal to 1.",
		},
		refusal{
			name: "a paid session cannot expire", setUp: paid, method: post, path: "/v1/checkout/sessions/$session/expire", status: 400, kind: invalidRequest,
			message: "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout Session has a status of complete.",
		},
	)
}

// paymentErrors are those of payment intents and charges.
func paymentErrors() []refusal {
	open := made("intent", "/v1/payment_intents", "amount=500&currency=usd")
	rows := append(missingErrors("payment_intent", "intent", "GET /v1/payment_intents/pi_nobody", "POST /v1/payment_intents/pi_nobody", "POST /v1/payment_intents/pi_nobody/confirm",
		"POST /v1/payment_intents/pi_nobody/capture", "POST /v1/payment_intents/pi_nobody/cancel"), missingErrors("charge", "id", "GET /v1/charges/ch_nobody", "POST /v1/charges/ch_nobody")...)
	return append(rows,
		refusal{name: "an intent without an amount", method: post, path: "/v1/payment_intents", form: "currency=usd", status: 400, kind: invalidRequest, code: "parameter_missing", param: "amount", message: "Missing required param: amount."},
		refusal{name: "an intent without a currency", method: post, path: "/v1/payment_intents", form: "amount=5", status: 400, kind: invalidRequest, code: "parameter_missing", param: "currency", message: "Missing required param: currency."},
		refusal{
			name: "an intent of a customer that nobody is", method: post, path: "/v1/payment_intents", form: "amount=50&currency=usd&customer=cus_nobody", status: 400, kind: invalidRequest,
			code: "resource_missing", param: "customer", message: "No such customer: 'cus_nobody'",
		},
		refusal{
			name: "a card that declines", setUp: open, tries: true, method: post, path: "/v1/payment_intents/$intent/confirm", form: "payment_method=pm_card_chargeDeclined", status: 402,
			kind: "card_error", code: "card_declined", message: "Your card was declined.",
		},
		refusal{
			name: "a paid intent is not paid again", setUp: paidIntent, method: post, path: "/v1/payment_intents/$intent/confirm", form: "payment_method=pm_card_visa", status: 400,
			kind: invalidRequest, code: "payment_intent_unexpected_state", message: "You cannot confirm this PaymentIntent because it has already succeeded after being previously confirmed.",
		},
		refusal{
			name: "an intent that holds nothing is not captured", setUp: open, method: post, path: "/v1/payment_intents/$intent/capture", status: 400, kind: invalidRequest,
			code: "payment_intent_unexpected_state", message: "This PaymentIntent could not be captured because it has a status of requires_payment_method. Only a PaymentIntent with one of the following statuses may be captured: requires_capture.",
		},
		refusal{
			name: "a paid intent is not cancelled", setUp: paidIntent, method: post, path: "/v1/payment_intents/$intent/cancel", status: 400, kind: invalidRequest,
			code:    "payment_intent_unexpected_state",
			message: "You cannot cancel this PaymentIntent because it has a status of succeeded. Only a PaymentIntent with one of the following statuses may be canceled: requires_payment_method, requires_capture, requires_confirmation, requires_action, processing.",
		},
	)
}

// refundErrors are those of refunds.
func refundErrors() []refusal {
	whole := after(paidIntent, "refund", "/v1/refunds", "charge=$charge")
	return append(missingErrors("refund", "id", "GET /v1/refunds/re_nobody", "POST /v1/refunds/re_nobody", "POST /v1/refunds/re_nobody/cancel"),
		refusal{
			name: "a refund of nothing", method: post, path: "/v1/refunds", status: 400, kind: invalidRequest, code: "parameter_missing",
			message: "One of the following params should be provided for this request: payment_intent or charge.",
		},
		refusal{name: "a refund of no charge", method: post, path: "/v1/refunds", form: "charge=ch_nobody", status: 400, kind: invalidRequest, code: "resource_missing", param: "charge", message: "No such charge: 'ch_nobody'"},
		refusal{name: "a refund of no intent", method: post, path: "/v1/refunds", form: "payment_intent=pi_nobody", status: 400, kind: invalidRequest, code: "resource_missing", param: "payment_intent", message: "No such payment_intent: 'pi_nobody'"},
		refusal{
			name: "a refund of what was never paid", setUp: made("intent", "/v1/payment_intents", "amount=500&currency=usd"), method: post, path: "/v1/refunds", form: "payment_intent=$intent",
			status: 400, kind: invalidRequest, param: "payment_intent", message: "This PaymentIntent ($intent) does not have a successful charge to refund.",
		},
		refusal{
			name: "a refund of one more than was paid", setUp: paidIntent, method: post, path: "/v1/refunds", form: "charge=$charge&amount=1001", status: 400, kind: invalidRequest,
			param: "amount", message: "Refund amount (…",
		},
		refusal{
			name: "a refund of one more than is left", setUp: after(paidIntent, "refund", "/v1/refunds", "charge=$charge&amount=400"), method: post, path: "/v1/refunds",
			form: "charge=$charge&amount=601", status: 400, kind: invalidRequest, param: "amount", message: "Refund amount (…",
		},
		refusal{
			name: "a refund of zero", setUp: paidIntent, method: post, path: "/v1/refunds", form: "charge=$charge&amount=0", status: 400, kind: invalidRequest,
			code: "parameter_invalid_integer", param: "amount", message: "…",
		},
		refusal{
			name: "a refund of what went back already", setUp: whole, method: post, path: "/v1/refunds", form: "charge=$charge", status: 400, kind: invalidRequest,
			code: "charge_already_refunded", message: "Charge $charge has already been refunded.",
		},
		refusal{
			name: "a refund that has succeeded is not cancelled", setUp: whole, method: post, path: "/v1/refunds/$refund/cancel", status: 400, kind: invalidRequest,
			message: "This refund ($refund) cannot be canceled because it has a status of succeeded.",
		},
	)
}

package stripesim_test

import (
	"net/http"
	"slices"
	"strings"

	"tallystick/stripesim"
)

// billed is a customer with a draft of 700.
func billed(u *user) map[string]string {
	all := map[string]string{"customer": u.make("/v1/customers", "")}
	all["invoice"] = u.make("/v1/invoices", "customer="+all["customer"])
	all["line"] = u.make("/v1/invoiceitems", "amount=700&currency=usd&customer="+all["customer"]+"&invoice="+all["invoice"])
	return all
}

// invoiceErrors are those of invoices and their items.
func invoiceErrors() []refusal {
	const invoice = "POST /v1/invoices/$invoice"
	open := then(billed, post, "/v1/invoices/$invoice/finalize", "")
	other := after(billed, "price", "/v1/prices", "currency=eur&unit_amount=5&product_data[name]=x")
	loose := after(billed, "item", "/v1/invoiceitems", "amount=5&currency=usd&customer=$customer")
	unpaid := bad("nothing to pay with", open, invoice+"/pay", "", "resource_missing", "",
		"This customer has no attached payment source or default payment method. Please consider adding a default payment method.").under(stripesim.Switches{InvoicesNeedMethod: true})
	unpaid.tries = true
	return []refusal{
		unpaid,
		bad("an invoice of a subscription stays", plan("", "&collection_method=send_invoice&days_until_due=3"), "DELETE /v1/invoices/$invoice", "", "", "", "You can't delete invoices created by subscriptions."),
		bad("nothing to invoice for a subscription", plan("", ""), "POST /v1/invoices", "customer=$customer&subscription=$sub", "invoice_no_subscription_line_items", "subscription",
			"Nothing to invoice for subscription"),
		bad("an item's price of another currency", after(other, "item", "/v1/invoiceitems", "amount=5&currency=usd&customer=$customer"), "POST /v1/invoiceitems/$item", "price=$price", "", "price",
			"The currency of the price (eur) does not match that of the invoice item (usd)."),
		bad("an item's quantity below nothing", loose, "POST /v1/invoiceitems/$item", "unit_amount=5&quantity=-1", "parameter_invalid_integer", "quantity", "This value must be greater than or equal to 0."),
		bad("an item of a final invoice", then(billed, post, "/v1/invoices/$invoice/finalize", ""), "DELETE /v1/invoiceitems/$line", "", "invoice_not_editable", "",
			"This invoice item cannot be changed: the invoice that it is on is no longer editable."),
		bad("lines after nobody", billed, "GET /v1/invoices/$invoice/lines", "starting_after=il_nobody", "resource_missing", "starting_after", "No such line_item: 'il_nobody'"),
		bad("lines before nobody", billed, "GET /v1/invoices/$invoice/lines", "ending_before=il_nobody", "resource_missing", "ending_before", "No such line_item: 'il_nobody'"),
		bad("upcoming of a cancelled subscription", then(plan("", ""), http.MethodDelete, "/v1/subscriptions/$sub", ""), "GET /v1/invoices/upcoming", "customer=$customer&subscription=$sub",
			"invoice_upcoming_none", "", "No upcoming invoices for customer: $customer").not(404, invalidRequest),
	}
}

// creditErrors are those of credit notes and of the balances of customers.
func creditErrors() []refusal {
	open := then(billed, post, "/v1/invoices/$invoice/finalize", "")
	noted := after(open, "note", "/v1/credit_notes", "invoice=$invoice&amount=100")
	paid := then(open, post, "/v1/invoices/$invoice/pay", "paid_out_of_band=true")
	settled := after(paid, "note", "/v1/credit_notes", "invoice=$invoice&amount=100&credit_amount=100")
	void := "POST /v1/credit_notes/$note/void"
	rows := []refusal{
		bad("a note that is void", then(noted, post, "/v1/credit_notes/$note/void", ""), void, "", "", "", "This credit note has already been voided."),
		bad("a note of a paid invoice is not voided", settled, void, "", "", "", "You can only void credit notes of open invoices. The invoice of this credit note isn't open."),
		bad("a note of more than is left", noted, "POST /v1/credit_notes", "invoice=$invoice&amount=601", "", "amount", "The credit note amount ($$6.01) is greater than the amount remaining on the invoice ($$6.00)."),
		bad("a note of more than is left of what was paid", settled, "POST /v1/credit_notes", "invoice=$invoice&amount=601&credit_amount=601", "", "amount",
			"The credit note amount ($$6.01) is greater than the amount of the invoice that is not credited yet ($$6.00)."),
		bad("lines of a note after nobody", noted, "GET /v1/credit_notes/$note/lines", "starting_after=cnli_nobody", "resource_missing", "starting_after", "No such credit_note_line_item: 'cnli_nobody'"),
		bad("a balance of another currency", settled, "POST /v1/customers/$customer/balance_transactions", "amount=5&currency=eur", "", "currency",
			"The currency of the balance transaction (eur) must match the currency of the customer (usd)."),
	}
	return append(rows, missingErrors("credit_note", "id", "POST /v1/credit_notes/cn_nobody", "POST /v1/credit_notes/cn_nobody/void", "GET /v1/credit_notes/cn_nobody/lines")...)
}

// disputed is a payment under dispute, which has gone through outcomes.
func disputed(outcomes ...string) func(*user) map[string]string {
	return func(u *user) map[string]string {
		all := paidIntent(u)
		id, err := u.OpenDispute(stripesim.Dispute{Charge: all["charge"]})
		for _, outcome := range outcomes {
			if err == nil {
				err = u.ResolveDispute(id, outcome, 0)
			}
		}
		if err != nil {
			u.t.Fatal(err)
		}
		all["dispute"] = id
		return all
	}
}

// disputeErrors are those of disputes, of refunds that meet them, and of what moved
// the money.
func disputeErrors() []refusal {
	held := func(u *user) map[string]string {
		pi := u.must(post, "/v1/payment_intents", "amount=1000&currency=usd&confirm=true&payment_method=pm_card_visa&capture_method=manual")
		return map[string]string{"intent": idIn(pi), "charge": pi["latest_charge"].(string)}
	}
	back := "Charge $charge has been charged back; cannot issue a refund."
	rows := []refusal{
		bad("a refund of what is disputed", disputed(), "POST /v1/refunds", "charge=$charge&amount=5", "charge_disputed", "", back),
		bad("a refund of what is disputed, by its intent", disputed("under_review"), "POST /v1/refunds", "payment_intent=$intent", "charge_disputed", "", back),
		bad("a refund of what is lost", disputed("lost"), "POST /v1/refunds", "charge=$charge", "charge_disputed", "", back),
		bad("evidence of what is lost", disputed("lost"), "POST /v1/disputes/$dispute", "evidence[uncategorized_text]=x", "", "", "The evidence of this dispute can no longer be changed: it has a status of lost."),
		bad("evidence of what is won", disputed("won"), "POST /v1/disputes/$dispute", "evidence[uncategorized_text]=x", "", "", "The evidence of this dispute can no longer be changed: it has a status of won."),
		bad("what is lost is not closed again", disputed("lost"), "POST /v1/disputes/$dispute/close", "", "", "", "This dispute is already closed or under review: it has a status of lost."),
		bad("what is under review is not closed", disputed("under_review"), "POST /v1/disputes/$dispute/close", "", "", "", "This dispute is already closed or under review: it has a status of under_review."),
		bad("too much evidence", disputed(), "POST /v1/disputes/$dispute", "evidence[uncategorized_text]="+strings.Repeat("x", 75_001)+"&evidence[product_description]="+strings.Repeat("y", 75_000), "", "evidence",
			"The combined character count of the evidence is limited to 150,000."),
		bad("a refund of what is only held", held, "POST /v1/refunds", "charge=$charge&amount=5", "charge_not_refundable", "", "Charge $charge is not captured: cancel PaymentIntent $intent instead."),
		bad("a part of what is only held", made("charge", "/v1/charges", "amount=500&currency=usd&source=tok_visa&capture=false"), "POST /v1/refunds", "charge=$charge&amount=5", "", "amount",
			"You cannot partially refund an uncaptured charge. Instead, capture the charge for an amount less than the original amount."),
		bad("a charge of an intent is captured by it", held, "POST /v1/charges/$charge/capture", "", "", "", "Charge $charge was made by PaymentIntent $intent: capture that instead."),
		bad("a charge keeps its customer", after(func(u *user) map[string]string {
			all := paidIntent(u)
			all["customer"] = u.make("/v1/customers", "")
			u.must(post, "/v1/charges/"+all["charge"], "customer="+all["customer"])
			return all
		}, "other", "/v1/customers", ""), "POST /v1/charges/$charge", "customer=$other", "", "customer", "The customer of a charge can only be set while it has none."),
		bad("a refund that nobody waits for does not expire", after(paidIntent, "refund", "/v1/refunds", "charge=$charge"), "POST /v1/test_helpers/refunds/$refund/expire", "", "", "",
			"This refund ($refund) cannot be expired because it has a status of succeeded. Only a refund with a status of requires_action can be expired."),
		bad("transactions of no payout", paidIntent, "GET /v1/balance_transactions", "payout=po_nobody", "resource_missing", "payout", "No such payout: 'po_nobody'"),
	}
	return slices.Concat(rows, missingErrors("dispute", "dispute", "POST /v1/disputes/dp_nobody", "POST /v1/disputes/dp_nobody/close"), missingErrors("balance_transaction", "id", "GET /v1/balance_transactions/txn_nobody"))
}

// lateErrors are those of meter events that a switch lets be found out at once, and
// of adjustments.
func lateErrors() []refusal {
	at := func(name, form, code, message string) refusal {
		r := bad(name, tokens, "POST /v1/billing/meter_events", form, code, "payload", message).under(stripesim.Switches{MeterErrorsSync: true})
		r.answers = map[string]string{"Stripe-Should-Retry": "false"}
		return r
	}
	told := then(tokens, post, "/v1/billing/meter_events", "event_name=tokens&identifier=once&payload[stripe_customer_id]=$customer&payload[value]=1")
	off := then(tokens, post, "/v1/billing/meters/$meter/deactivate", "")
	archived := at("an event of a meter out of use", "event_name=tokens&payload[stripe_customer_id]=$customer&payload[value]=1", "archived_meter", "The meter of the meter event is inactive.")
	archived.setUp = off
	const adjust, none = "POST /v1/billing/meter_event_adjustments", "No meter event found within the last 24 hours with identifier once."
	return []refusal{
		archived,
		at("an event of no customer", "event_name=tokens&payload[value]=1", "meter_event_no_customer_defined", "The payload of the meter event names no customer."),
		at("an event of no value", "event_name=tokens&payload[stripe_customer_id]=$customer", "meter_event_value_not_found", "The payload of the meter event has no value."),
		at("an event of no meter", "event_name=nothing&payload[stripe_customer_id]=$customer&payload[value]=1", "no_meter", "There is no meter with the event name of the meter event."),
		bad("an adjustment of another kind", told, adjust, "event_name=tokens&type=raise&cancel[identifier]=once", "", "type", "Invalid type: must be cancel"),
		bad("an adjustment of no name", told, adjust, "type=cancel&cancel[identifier]=once", "parameter_missing", "event_name", "Missing required param: event_name."),
		bad("an adjustment by another name", told, adjust, "event_name=calls&type=cancel&cancel[identifier]=once", "resource_missing", "cancel[identifier]", none),
		bad("an adjustment a second after a day", func(u *user) map[string]string {
			all := told(u)
			u.Advance(86401e9)
			return all
		}, adjust, "event_name=tokens&type=cancel&cancel[identifier]=once", "resource_missing", "cancel[identifier]", none),
		bad("a second adjustment", then(told, post, "/v1/billing/meter_event_adjustments", "event_name=tokens&type=cancel&cancel[identifier]=once"), adjust,
			"event_name=tokens&type=cancel&cancel[identifier]=once", "", "cancel[identifier]", "The meter event with identifier once has already been canceled.").under(stripesim.Switches{RefuseSecondAdjustment: true}),
		bad("a meter that is out of use", off, "POST /v1/billing/meters/$meter/deactivate", "", "", "", "The meter is already inactive."),
	}
}

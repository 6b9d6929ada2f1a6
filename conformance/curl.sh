#!/bin/sh
# What a person types who tries the simulator with curl, and what has to come back.
# curl_test.go runs it with STRIPESIM_URL and STRIPESIM_KEY set.
set -eu

: "${STRIPESIM_URL:?say where the simulator listens}" "${STRIPESIM_KEY:?say which key it takes}"

# stripe calls the API as Stripe's documentation does.
stripe() {
	path=$1
	shift
	curl -sS "$STRIPESIM_URL/v1/$path" -u "$STRIPESIM_KEY:" "$@"
}

# sim calls the simulator's own plane.
sim() {
	path=$1
	shift
	curl -sS --fail-with-body "$STRIPESIM_URL/_sim/$path" "$@"
}

# field takes a member's text or number out of an answer; the first one of its name.
field() {
	sed -n "s/.*\"$1\" *: *\"\{0,1\}\([^\",}]*\).*/\1/p" | head -n 1
}

# own is field for an object's own id: that of Stripe's form with a prefix.
own() {
	grep -o "\"id\" *: *\"$1_[A-Za-z0-9_]*\"" | head -n 1 | sed "s/.*\"\($1_[A-Za-z0-9_]*\)\"/\1/"
}

want() {
	if [ "$2" != "$3" ]; then
		echo "$1: got '$2', want '$3'" >&2
		exit 1
	fi
	echo "ok: $1"
}

contains() {
	case $2 in
	*"$3"*) echo "ok: $1" ;;
	*) echo "$1: got '$2', want something with '$3'" >&2; exit 1 ;;
	esac
}

contains 'it says what it is' "$(curl -sS "$STRIPESIM_URL/")" 'a simulator of Stripe at API version 2023-10-16'

customer=$(stripe customers -d name='Jenny Rosen' -d email=jenny@example.com -d 'metadata[plan]=gold' | own cus)
price=$(stripe prices -d currency=usd -d unit_amount=2000 -d 'product_data[name]=Credits' | own price)
session=$(stripe checkout/sessions -d mode=payment -d "customer=$customer" -d "line_items[0][price]=$price" -d 'line_items[0][quantity]=2' \
	-d success_url=https://example.com/thanks | own cs_test)
sim "checkout/sessions/$session/pay" -d '{"outcome": "paid"}' >/dev/null
intent=$(stripe "checkout/sessions/$session" | field payment_intent)
want 'a session is paid' "$(stripe "checkout/sessions/$session" | field payment_status)" paid
want 'its payment has succeeded' "$(stripe "payment_intents/$intent" | field amount_received)" 4000
want 'a part is refunded' "$(stripe refunds -d "payment_intent=$intent" -d amount=1500 | field amount)" 1500
want 'the charge says so' "$(stripe charges -G -d "payment_intent=$intent" | field amount_refunded)" 1500
want 'more than the rest is not' "$(stripe refunds -d "payment_intent=$intent" -d amount=2501 -o /dev/null -w '%{http_code}')" 400

meter=$(stripe billing/meters -d display_name=Calls -d event_name=calls -d 'default_aggregation[formula]=sum' | own mtr_test)
now=$(sim clock | field now)
start=$((now / 3600 * 3600 - 3600))
for value in 5 7 11; do
	stripe billing/meter_events -d event_name=calls -d "identifier=call-$value" -d "timestamp=$start" -d "payload[stripe_customer_id]=$customer" -d "payload[value]=$value" >/dev/null
done
contains 'an identifier counts once' "$(stripe billing/meter_events -d event_name=calls -d identifier=call-5 -d "payload[stripe_customer_id]=$customer" -d 'payload[value]=5')" \
	'An event already exists with identifier call-5.'
want 'usage adds up' "$(stripe "billing/meters/$meter/event_summaries" -G -d "customer=$customer" -d "start_time=$start" -d "end_time=$((start + 3600))" -d value_grouping_window=hour |
	field aggregated_value)" 23

opened=$(sim clock | field now)
clock=$(stripe test_helpers/test_clocks -d "frozen_time=$opened" -d name=months | own clock)
subscriber=$(stripe customers -d name=Acme -d "test_clock=$clock" -d payment_method=pm_card_visa -d 'invoice_settings[default_payment_method]=pm_card_visa' | own cus)
calls=$(stripe prices -d currency=usd -d unit_amount_decimal=2.5 -d 'product_data[name]=Calls' -d 'recurring[interval]=week' -d 'recurring[usage_type]=metered' | own price)
subscription=$(stripe subscriptions -d "customer=$subscriber" -d "items[0][price]=$calls")
item=$(echo "$subscription" | own si)
subscription=$(echo "$subscription" | own sub)
want 'a subscription begins' "$(stripe "subscriptions/$subscription" | field current_period_start)" "$opened"
want 'usage is reported' "$(stripe "subscription_items/$item/usage_records" -d quantity=40 | field quantity)" 40
want 'and again' "$(stripe "subscription_items/$item/usage_records" -d quantity=2 -d timestamp=now -d action=increment | field quantity)" 2
contains 'not for a time before' "$(stripe "subscription_items/$item/usage_records" -d quantity=1 -d "timestamp=$((opened - 1))")" \
	"timestamps must be after the subscription's last invoice period (or current period start time)."
want 'usage of the period adds up' "$(stripe "subscription_items/$item/usage_record_summaries" | field total_usage)" 42
want 'the next invoice is known' "$(stripe invoices/upcoming -G -d "subscription=$subscription" | field amount_due)" 105
want 'a week and two hours pass' "$(stripe "test_helpers/test_clocks/$clock/advance" -d "frozen_time=$((opened + 7 * 86400 + 7200))" | field status)" advancing
want 'the clock has arrived' "$(stripe "test_helpers/test_clocks/$clock" | field status)" ready
invoice=$(stripe invoices -G -d "subscription=$subscription" -d limit=1 | own in)
want 'the week is paid' "$(stripe "invoices/$invoice" | field amount_paid)" 105
want 'a new period is open' "$(stripe "subscription_items/$item/usage_record_summaries" -G -d limit=1 | field total_usage)" 0
contains 'an item with usage stays' "$(stripe "subscription_items/$item" -X DELETE)" 'all related usage records must be cleared too by setting clear_usage=true'
want 'the clock goes, and all with it' "$(stripe "test_helpers/test_clocks/$clock" -X DELETE | field deleted)" true
want 'the subscription has ended' "$(stripe "subscriptions/$subscription" | field status)" canceled

intent=$(stripe payment_intents -d amount=3000 -d currency=usd -d confirm=true -d payment_method=pm_card_visa)
charge=$(echo "$intent" | field latest_charge)
dispute=$(sim disputes -d "{\"charge\": \"$charge\", \"reason\": \"fraudulent\"}" | own dp)
want 'a dispute waits for an answer' "$(stripe "disputes/$dispute" | field status)" needs_response
contains 'what is disputed is not refunded' "$(stripe refunds -d "charge=$charge")" "Charge $charge has been charged back; cannot issue a refund."
want 'the money is withdrawn' "$(stripe balance_transactions -G -d "source=$dispute" | field net)" -4500
stripe "disputes/$dispute" -d 'evidence[uncategorized_text]=It was delivered' -d submit=true >/dev/null
want 'the bank looks at it' "$(stripe "disputes/$dispute" | field status)" under_review
want 'and finds for us' "$(sim "disputes/$dispute" -d '{"outcome": "won"}' | field status)" won
contains 'the money comes back' "$(stripe events -G -d type=charge.dispute.funds_reinstated)" "$dispute"
want 'nothing is there for a wrong id' "$(stripe disputes/dp_nobody -o /dev/null -w '%{http_code}')" 404
want 'a wrong id in a parameter is a bad request' "$(stripe refunds -d charge=ch_nobody -o /dev/null -w '%{http_code}')" 400

first=$(stripe customers -H 'Idempotency-Key: one' -d name=once | own cus)
want 'a key executes once' "$(stripe customers -H 'Idempotency-Key: one' -d name=once | own cus)" "$first"
contains 'and says so' "$(stripe customers -i -H 'Idempotency-Key: one' -d name=once)" 'Idempotent-Replayed: true'
contains 'never for something else' "$(stripe customers -H 'Idempotency-Key: one' -d name=other)" idempotency_error
contains 'an unknown parameter is refused' "$(stripe customers -d colour=red)" 'Received unknown parameter: colour'
want 'without a key nobody comes in' "$(curl -sS -o /dev/null -w '%{http_code}' "$STRIPESIM_URL/v1/customers")" 401
contains 'nor by way of a wrong path' "$(stripe custmers)" 'Unrecognized request URL (GET: /v1/custmers).'

sim faults -d '{"rules": [{"path": "/v1/customers", "fault": "rate_limit", "times": 1, "retry_after": 3}]}' >/dev/null
contains 'a fault strikes once' "$(stripe customers -i)" 'Retry-After: 3'
want 'and then no more' "$(stripe customers -o /dev/null -w '%{http_code}')" 200
sim faults -X DELETE >/dev/null
sim clock -d '{"advance_seconds": 86401}' >/dev/null
want 'a day later the key is free' "$([ "$(stripe customers -H 'Idempotency-Key: one' -d name=once | own cus)" != "$first" ] && echo another)" another
want 'a customer is deleted' "$(stripe "customers/$customer" -X DELETE | field deleted)" true
contains 'events tell of it' "$(stripe events -G -d type=customer.deleted)" "$customer"

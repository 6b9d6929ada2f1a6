package stripesim_test

import (
	"net/http"
	"slices"
	"strings"

	"tallystick/stripesim"
)

// bad is a row that Stripe answers with 400.
func bad(name string, setUp func(*user) map[string]string, call, form, code, param, message string) refusal {
	method, path, _ := strings.Cut(call, " ")
	return refusal{name: name, setUp: setUp, method: method, path: path, form: form, status: http.StatusBadRequest, kind: invalidRequest, code: code, param: param, message: message}
}

// not gives a row another status, or type.
func (r refusal) not(status int, kind string) refusal {
	r.status, r.kind = status, kind
	return r
}

// under plays a row with switches.
func (r refusal) under(s stripesim.Switches) refusal {
	r.with = s
	return r
}

// plan is a subscription on a test clock with a licensed item and one that is billed
// by usage records; metered says more of its price, and form of the subscription.
func plan(metered, form string) func(*user) map[string]string {
	return func(u *user) map[string]string {
		all := map[string]string{"clock": u.make("/v1/test_helpers/test_clocks", "frozen_time="+number(errorTime)), "product": u.make("/v1/products", "name=Gold")}
		all["customer"] = u.make("/v1/customers", "payment_method=pm_card_visa&invoice_settings[default_payment_method]=pm_card_visa&test_clock="+all["clock"])
		monthly := "currency=usd&recurring[interval]=month&product=" + all["product"]
		all["price"] = u.make("/v1/prices", monthly+"&unit_amount=1000")
		all["metered"] = u.make("/v1/prices", monthly+"&unit_amount=2&recurring[usage_type]=metered"+metered)
		all["yearly"] = u.make("/v1/prices", "currency=usd&recurring[interval]=year&unit_amount=9000&product="+all["product"])
		sub := u.must(post, "/v1/subscriptions", "customer="+all["customer"]+"&items[0][price]="+all["price"]+"&items[1][price]="+all["metered"]+form)
		all["sub"], all["invoice"] = idIn(sub), sub["latest_invoice"].(string)
		all["licensed"], all["item"] = idIn(itemsIn(sub)[0]), idIn(itemsIn(sub)[1])
		return all
	}
}

// then does something more with what was made.
func then(first func(*user) map[string]string, method, path, form string) func(*user) map[string]string {
	return func(u *user) map[string]string {
		all := first(u)
		u.must(method, filled(all, path), filled(all, form))
		return all
	}
}

// monthEnd is when the first period of a plan ends.
const monthEnd = errorTime + 30*86400

// usageErrors are those of usage records, which hold all of what Stripe says of them.
func usageErrors() []refusal {
	const record, early = "POST /v1/subscription_items/$item/usage_records", "Cannot create the usage record with this timestamp because timestamps must be after the subscription's last invoice period (or current period start time)."
	const cleared = "When deleting the subscription item `$item`, all related usage records must be cleared too by setting clear_usage=true."
	sums, most := plan("", ""), plan("&recurring[aggregate_usage]=max", "")
	turned := func(p func(*user) map[string]string) func(*user) map[string]string {
		return then(p, post, "/v1/test_helpers/test_clocks/$clock/advance", "frozen_time="+number(monthEnd+60))
	}
	limited := plan("", "&billing_thresholds[amount_gte]=100000")
	gone := then(sums, http.MethodDelete, "/v1/subscriptions/$sub", "")
	used := then(sums, post, "/v1/subscription_items/$item/usage_records", "quantity=5")
	return []refusal{
		bad("usage of before the subscription", sums, record, "quantity=1&timestamp="+number(errorTime-1), "", "timestamp", early),
		bad("usage of the last period, too late", turned(sums), record, "quantity=1&timestamp="+number(monthEnd-300), "", "timestamp", early),
		bad("usage of the last period, for a maximum", turned(most), record, "quantity=1&timestamp="+number(monthEnd-1), "", "timestamp", early),
		bad("usage of the end of the last period, for a maximum", turned(most), record, "quantity=1&timestamp="+number(monthEnd), "", "timestamp", early),
		bad("usage of the future", sums, record, "quantity=1&timestamp="+number(errorTime+1), "", "timestamp", "Cannot create the usage record with this timestamp because timestamps must not be in the future."),
		bad("usage is not set with thresholds", limited, record, "quantity=1&action=set", "", "action", "Only `action=increment` is allowed for a subscription with billing thresholds."),
		bad("usage is not set with a threshold of its item", then(sums, post, "/v1/subscription_items/$item", "billing_thresholds[usage_gte]=500"), record, "quantity=1&action=set", "", "action",
			"Only `action=increment` is allowed for a subscription with billing thresholds."),
		bad("usage of what is cancelled", gone, record, "quantity=1", "", "", "Cannot create the usage record because the subscription has been canceled."),
		bad("usage of a licensed item", sums, "POST /v1/subscription_items/$licensed/usage_records", "quantity=1", "", "",
			"Cannot create a usage record for `$licensed` because its price is not metered: it has `usage_type=licensed`."),
		bad("usage records are not listed", sums, "GET /v1/subscription_items/$item/usage_records", "", "", "",
			"Unrecognized request URL (GET: /v1/subscription_items/$item/usage_records). Please see https://stripe.com/docs or we can help at https://support.stripe.com/.").not(404, invalidRequest),
		bad("summaries of a licensed item", sums, "GET /v1/subscription_items/$licensed/usage_record_summaries", "", "", "",
			"Cannot list usage record summaries of `$licensed` because it is not on the legacy metered billing system."),
		bad("a page of no summaries", sums, "GET /v1/subscription_items/$item/usage_record_summaries", "limit=0", "parameter_invalid_integer", "limit",
			"This value must be greater than or equal to 1 and less than or equal to 100 (sent: 0)"),
		bad("summaries after one of another item", sums, "GET /v1/subscription_items/$item/usage_record_summaries", "starting_after=sis_nobody", "resource_missing", "starting_after",
			"No such usage_record_summary: 'sis_nobody'"),
		bad("a metered item goes with its usage only", used, "DELETE /v1/subscription_items/$item", "", "", "clear_usage", cleared),
		bad("also where it has none", sums, "DELETE /v1/subscription_items/$item", "clear_usage=false", "", "clear_usage", cleared),
		bad("also by its subscription", used, "POST /v1/subscriptions/$sub", "items[0][id]=$item&items[0][deleted]=true", "", "items[0][clear_usage]", cleared),
		bad("also by another price", used, "POST /v1/subscriptions/$sub", "items[0][id]=$licensed&items[0][deleted]=true&items[1][id]=$item&items[1][price]=$price", "", "items[1][clear_usage]", cleared),
		bad("a licensed item has no usage to clear", sums, "DELETE /v1/subscription_items/$licensed", "clear_usage=true", "", "clear_usage",
			"`clear_usage` is allowed only when the current price's `usage_type` is `metered`."),
	}
}

// subscriptionErrors are those of subscriptions and their items.
func subscriptionErrors() []refusal {
	const sub = "POST /v1/subscriptions/$sub"
	stands := plan("", "")
	gone := then(stands, http.MethodDelete, "/v1/subscriptions/$sub", "")
	items := ""
	many := func(u *user) map[string]string {
		all := stands(u)
		for i := range 19 {
			all["p"+number(int64(i))] = u.make("/v1/prices", "currency=usd&unit_amount=1&recurring[interval]=month&product="+all["product"])
		}
		return all
	}
	for i := range 19 {
		items += "&items[" + number(int64(i)) + "][price]=$p" + number(int64(i))
	}
	full := func(u *user) map[string]string {
		all := stands(u)
		for range 2 {
			u.make("/v1/subscriptions", "customer="+all["customer"]+"&items[0][price]="+all["price"])
		}
		return all
	}
	rows := []refusal{
		bad("an item that is not of the subscription", stands, sub, "items[0][id]=si_nobody&items[0][quantity]=2", "resource_missing", "items[0][id]", "No such subscription_item: 'si_nobody'"),
		bad("21 items", many, sub, items[1:], "", "items", "A subscription can have at most 20 items."),
		bad("an item of another interval", stands, "POST /v1/subscription_items", "subscription=$sub&price=$yearly", "", "items",
			"Currency and interval fields must match across all plans on this subscription. Found mismatch in interval field."),
		bad("an item's price a second time", stands, "POST /v1/subscription_items", "subscription=$sub&price=$price", "", "items", "Cannot add multiple subscription items with the same plan: $price"),
		bad("a quantity of what is metered", stands, "POST /v1/subscription_items/$item", "quantity=2", "", "quantity", "You cannot set the quantity for metered plans"),
		bad("the last item stays", then(stands, http.MethodDelete, "/v1/subscription_items/$item", "clear_usage=true"), "DELETE /v1/subscription_items/$licensed", "", "", "items",
			"A subscription must have at least one active plan. If you'd like to cancel this subscription, please use the cancel endpoint."),
		bad("a proration of before the period", stands, sub, "items[0][id]=$licensed&items[0][quantity]=2&proration_date="+number(errorTime-1), "", "proration_date",
			"Cannot specify `proration_date` outside of the subscription's current period."),
		bad("a proration of after the period", stands, sub, "items[0][id]=$licensed&items[0][quantity]=2&proration_date="+number(monthEnd+1), "", "proration_date",
			"Cannot specify `proration_date` outside of the subscription's current period."),
		bad("a trial of more than two years", stands, sub, "trial_end="+number(errorTime+730*86400+1), "", "trial_end", "Invalid timestamp: can be no more than two years in the future."),
		bad("a first trial of more than two years", stands, "POST /v1/subscriptions", "customer=$customer&items[0][price]=$price&trial_end="+number(errorTime+730*86400+1), "", "trial_end",
			"Invalid timestamp: can be no more than two years in the future."),
		bad("an end that has come", stands, sub, "cancel_at="+number(errorTime), "", "cancel_at", "Invalid timestamp: must be an integer Unix timestamp in the future."),
		bad("two ends", stands, sub, "cancel_at_period_end=true&cancel_at="+number(errorTime+9), "", "cancel_at", "You may only specify one of these parameters: cancel_at, cancel_at_period_end."),
		bad("a pause of no kind", stands, sub, "pause_collection[behavior]=sleep", "", "pause_collection[behavior]", "Invalid pause_collection[behavior]: must be one of keep_as_draft, mark_uncollectible, or void"),
		bad("a pause that is over", stands, sub, "pause_collection[behavior]=void&pause_collection[resumes_at]="+number(errorTime), "", "pause_collection[resumes_at]",
			"Invalid timestamp: must be an integer Unix timestamp in the future."),
		bad("a change of what is cancelled", gone, sub, "items[0][id]=$licensed&items[0][quantity]=2", "", "", "A canceled subscription can only update its cancellation_details and metadata."),
		bad("an item for what is cancelled", gone, "POST /v1/subscription_items", "subscription=$sub&price=$yearly", "", "", "A canceled subscription can only update its cancellation_details and metadata."),
		bad("a second cancellation", gone, "DELETE /v1/subscriptions/$sub", "", "resource_missing", "id", "No such subscription: '$sub'").not(404, invalidRequest),
		bad("a fourth subscription on a clock", full, "POST /v1/subscriptions", "customer=$customer&items[0][price]=$price", "customer_max_subscriptions", "customer",
			"A customer on a test clock can have at most 3 subscriptions."),
	}
	return slices.Concat(rows, missingErrors("subscription", "id", "GET /v1/subscriptions/sub_nobody", "POST /v1/subscriptions/sub_nobody", "DELETE /v1/subscriptions/sub_nobody"),
		missingErrors("subscription_item", "item", "GET /v1/subscription_items/si_nobody", "POST /v1/subscription_items/si_nobody", "DELETE /v1/subscription_items/si_nobody"))
}

// clockErrors are those of test clocks.
func clockErrors() []refusal {
	const advance = "POST /v1/test_helpers/test_clocks/$clock/advance"
	stands := plan("", "")
	empty := made("clock", "/v1/test_helpers/test_clocks", "frozen_time="+number(errorTime))
	moving := then(stands, post, "/v1/test_helpers/test_clocks/$clock/advance", "frozen_time="+number(monthEnd+60))
	busy := func(name, call, form string) refusal {
		return bad(name, moving, call, form, "rate_limit", "", "Test clock advancement underway - cannot perform modifications: $clock").not(429, invalidRequest).under(stripesim.Switches{TestClockAdvanceMS: 3_600_000})
	}
	rows := []refusal{
		bad("a clock goes on, not back", stands, advance, "frozen_time="+number(errorTime-1), "", "frozen_time",
			"Test clocks can only be advanced forward in time: 1699999999 is not after the current frozen time 1700000000."),
		bad("nor does it stand", stands, advance, "frozen_time="+number(errorTime), "", "frozen_time",
			"Test clocks can only be advanced forward in time: 1700000000 is not after the current frozen time 1700000000."),
		bad("two months and a second", stands, advance, "frozen_time=1705270401", "", "frozen_time",
			"Test clocks can be advanced at most two intervals of its shortest subscription: 1705270401 is after 1705270400."),
		bad("two years and a second", empty, advance, "frozen_time=1763158401", "", "frozen_time",
			"Test clocks can be advanced at most two years, while it has no subscription: 1763158401 is after 1763158400."),
		bad("a fourth customer on a clock", func(u *user) map[string]string {
			all := empty(u)
			for range 3 {
				u.make("/v1/customers", "test_clock="+all["clock"])
			}
			return all
		}, "POST /v1/customers", "test_clock=$clock", "", "test_clock", "A test clock can have at most 3 customers: $clock has them already."),
		bad("a clock of no time", nil, "POST /v1/test_helpers/test_clocks", "name=x", "parameter_missing", "frozen_time", "Missing required param: frozen_time."),
		bad("a clock of a long name", nil, "POST /v1/test_helpers/test_clocks", "frozen_time=1&name="+strings.Repeat("n", 301), "parameter_invalid_string_length", "name",
			"Invalid string: must be at most 300 characters"),
		busy("a moving clock is not moved", advance, "frozen_time="+number(monthEnd+61)),
		busy("usage while the clock moves", "POST /v1/subscription_items/$item/usage_records", "quantity=1"),
		busy("an item while the clock moves", "DELETE /v1/subscription_items/$item", "clear_usage=true"),
		busy("an invoice while the clock moves", "POST /v1/invoices", "customer=$customer"),
		busy("a credit note while the clock moves", "POST /v1/credit_notes", "invoice=$invoice&amount=5&credit_amount=5"),
		busy("an edit of an invoice while the clock moves", "POST /v1/invoices/$invoice", "metadata[a]=b"),
		busy("an item of an invoice while the clock moves", "POST /v1/invoiceitems", "customer=$customer&amount=5&currency=usd"),
		busy("a change of a customer while the clock moves", "POST /v1/customers/$customer", "name=x"),
		busy("the end of a customer while the clock moves", "DELETE /v1/customers/$customer", ""),
		busy("a balance while the clock moves", "POST /v1/customers/$customer/balance_transactions", "amount=5&currency=usd"),
	}
	return append(rows, missingErrors("testclock", "test_clock", "GET /v1/test_helpers/test_clocks/clock_nobody", "DELETE /v1/test_helpers/test_clocks/clock_nobody")...)
}

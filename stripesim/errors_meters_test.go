package stripesim_test

import (
	"strings"

	"tallystick/stripesim"
)

// tokens is a meter with a customer whose usage it takes.
func tokens(u *user) map[string]string {
	return map[string]string{
		"customer": u.make("/v1/customers", ""),
		"meter":    u.make("/v1/billing/meters", "display_name=Tokens&event_name=tokens&default_aggregation[formula]=sum"),
	}
}

// meterErrors are those of meters.
func meterErrors() []refusal {
	return append(missingErrors("billing meter", "id", "GET /v1/billing/meters/mtr_nobody", "POST /v1/billing/meters/mtr_nobody", "POST /v1/billing/meters/mtr_nobody/deactivate",
		"POST /v1/billing/meters/mtr_nobody/reactivate"),
		refusal{
			name: "a meter without a name", method: post, path: "/v1/billing/meters", form: "event_name=x&default_aggregation[formula]=sum", status: 400, kind: invalidRequest,
			code: "parameter_missing", param: "display_name", message: "Missing required param: display_name.",
		},
		refusal{
			name: "a meter that takes the last", method: post, path: "/v1/billing/meters", form: "display_name=x&event_name=x&default_aggregation[formula]=last", status: 400,
			kind: invalidRequest, param: "default_aggregation[formula]", message: "Invalid default_aggregation[formula]: must be one of count or sum",
		},
		refusal{
			name: "a second meter for an event", setUp: tokens, method: post, path: "/v1/billing/meters", form: "display_name=x&event_name=tokens&default_aggregation[formula]=sum",
			status: 400, kind: invalidRequest, code: "resource_already_exists", param: "event_name", message: "An active meter with the event name `tokens` already exists.",
		},
		refusal{
			name: "a second meter by reactivation", setUp: func(u *user) map[string]string {
				all := tokens(u)
				u.must(post, "/v1/billing/meters/"+all["meter"]+"/deactivate", "")
				u.make("/v1/billing/meters", "display_name=x&event_name=tokens&default_aggregation[formula]=sum")
				return all
			},
			method: post, path: "/v1/billing/meters/$meter/reactivate", status: 400, kind: invalidRequest, code: "resource_already_exists", param: "event_name",
			message: "An active meter with the event name `tokens` already exists.",
		},
	)
}

// meterEventErrors are those of meter events and of their adjustments.
func meterEventErrors() []refusal {
	event, adjustment := "/v1/billing/meter_events", "/v1/billing/meter_event_adjustments"
	payload := "event_name=tokens&payload[stripe_customer_id]=$customer&payload[value]=1"
	told := func(u *user) map[string]string {
		all := tokens(u)
		u.must(post, event, "event_name=tokens&identifier=once&payload[stripe_customer_id]="+all["customer"]+"&payload[value]=1")
		return all
	}
	never := map[string]string{"Stripe-Should-Retry": "false"}
	return []refusal{
		{name: "an event without a name", method: post, path: event, form: "payload[value]=1", status: 400, kind: invalidRequest, code: "parameter_missing", param: "event_name", message: "Missing required param: event_name."},
		{name: "an event without a payload", method: post, path: event, form: "event_name=tokens", status: 400, kind: invalidRequest, code: "parameter_missing", param: "payload", message: "Missing required param: payload."},
		{
			name: "an event one second too old", setUp: tokens, method: post, path: event, form: payload + "&timestamp=" + number(errorTime-35*86400-1), status: 400, kind: invalidRequest,
			code: "timestamp_too_far_in_past", param: "timestamp", answers: never,
			message: "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to " + number(errorTime-35*86400) + ".",
		},
		{
			name: "an event one second too far ahead", setUp: tokens, method: post, path: event, form: payload + "&timestamp=" + number(errorTime+301), status: 400, kind: invalidRequest,
			code: "timestamp_in_future", param: "timestamp", answers: never, message: "The event timestamp cannot be more than 5 minutes in the future.",
		},
		{
			name: "an identifier of 101 letters", setUp: tokens, method: post, path: event, form: payload + "&identifier=" + strings.Repeat("i", 101), status: 400, kind: invalidRequest,
			param: "identifier", message: "Invalid string: iiiiiiiiiiiiiiiiiiii...; must be at most 100 characters",
		},
		{
			name: "an identifier that was used", setUp: told, method: post, path: event, form: payload + "&identifier=once", status: 400, kind: invalidRequest, param: "identifier",
			message: "An event already exists with identifier once.", answers: never,
		},
		{
			name: "a value that is no number", setUp: tokens, method: post, path: event, form: "event_name=tokens&payload[stripe_customer_id]=$customer&payload[value]=many", status: 400,
			kind: invalidRequest, code: "meter_event_invalid_value", param: "payload", message: "…", answers: never,
		},
		{
			name: "an unknown customer, at once", setUp: tokens, with: stripesim.Switches{MeterErrorsSync: true}, method: post, path: event,
			form: "event_name=tokens&payload[stripe_customer_id]=cus_nobody&payload[value]=1", status: 400, kind: invalidRequest, code: "meter_event_customer_not_found", param: "payload",
			message: "…", answers: never,
		},
		{
			name: "an adjustment of nothing", setUp: tokens, method: post, path: adjustment, form: "event_name=tokens&type=cancel", status: 400, kind: invalidRequest,
			code: "parameter_missing", param: "cancel[identifier]", message: "Missing required param: cancel[identifier].",
		},
		{
			name: "an adjustment of an event that nobody sent", setUp: tokens, method: post, path: adjustment, form: "event_name=tokens&type=cancel&cancel[identifier]=never", status: 400,
			kind: invalidRequest, code: "resource_missing", param: "cancel[identifier]", message: "No meter event found within the last 24 hours with identifier never.",
		},
	}
}

// summaryErrors are those of event summaries.
func summaryErrors() []refusal {
	path := "/v1/billing/meters/$meter/event_summaries"
	asks := func(name, form, code, param, message string) refusal {
		return refusal{name: name, setUp: tokens, method: get, path: path, form: form, status: 400, kind: invalidRequest, code: code, param: param, message: message}
	}
	return []refusal{
		asks("summaries of nobody", "start_time=0&end_time=60", "parameter_missing", "customer", "Missing required param: customer."),
		asks("summaries without an end", "customer=$customer&start_time=0", "parameter_missing", "end_time", "Missing required param: end_time."),
		asks("summaries from beside a minute", "customer=$customer&start_time=1&end_time=60", "", "start_time", "start_time and end_time must be aligned with the boundaries of a minute."),
		asks("summaries from beside an hour", "customer=$customer&start_time=60&end_time=3600&value_grouping_window=hour", "", "start_time", "start_time and end_time must be aligned with the boundaries of a hour."),
		asks("summaries from beside a day", "customer=$customer&start_time=3600&end_time=86400&value_grouping_window=day", "", "start_time", "start_time and end_time must be aligned with the boundaries of a day."),
		asks("summaries by the week", "customer=$customer&start_time=0&end_time=60&value_grouping_window=week", "", "value_grouping_window", "Invalid value_grouping_window: must be one of day or hour"),
		asks("summaries of no time", "customer=$customer&start_time=60&end_time=60", "", "end_time", "end_time must be after start_time."),
	}
}

// eventErrors are those of events and webhook endpoints.
func eventErrors() []refusal {
	many := strings.Repeat("&types[]=charge.refunded", 21)[1:]
	return append(append(missingErrors("event", "id", "GET /v1/events/evt_nobody"),
		missingErrors("webhook_endpoint", "id", "GET /v1/webhook_endpoints/we_nobody", "POST /v1/webhook_endpoints/we_nobody", "DELETE /v1/webhook_endpoints/we_nobody")...),
		refusal{
			name: "events of a type and of types", method: get, path: "/v1/events", form: "type=charge.refunded&types[]=customer.created", status: 400, kind: invalidRequest, param: "types",
			message: "You may not specify both `type` and `types`.",
		},
		refusal{name: "events of 21 types", method: get, path: "/v1/events", form: many, status: 400, kind: invalidRequest, param: "types", message: "You may specify at most 20 types."},
		refusal{
			name: "an event of 30 days ago", setUp: func(u *user) map[string]string {
				u.make("/v1/customers", "")
				page := u.must(get, "/v1/events", "")
				first, _ := page["data"].([]any)[0].(map[string]any)
				id, _ := first["id"].(string)
				u.Advance(30 * 86400e9)
				return map[string]string{"event": id}
			},
			method: get, path: "/v1/events/$event", status: 404, kind: invalidRequest, code: "resource_missing", param: "id", message: "No such event: '$event'",
		},
		refusal{name: "an endpoint without a URL", method: post, path: "/v1/webhook_endpoints", form: "enabled_events[]=*", status: 400, kind: invalidRequest, code: "parameter_missing", param: "url", message: "Missing required param: url."},
		refusal{name: "an endpoint without events", method: post, path: "/v1/webhook_endpoints", form: "url=https://example.com", status: 400, kind: invalidRequest, code: "parameter_missing", param: "enabled_events", message: "Missing required param: enabled_events."},
		refusal{name: "an endpoint without a scheme", method: post, path: "/v1/webhook_endpoints", form: "url=example.com&enabled_events[]=*", status: 400, kind: invalidRequest, code: "url_invalid", param: "url", message: "Invalid URL: An explicit scheme (such as https) must be provided."},
	)
}

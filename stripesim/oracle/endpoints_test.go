package oracle

import (
	"slices"
	"strings"
)

// endpointRules are those of webhook endpoints and of events.
var endpointRules = []rule{
	{"POST /v1/webhook_endpoints", func(o *oracle, e *entry) verdict {
		return accept(len(o.living("webhook_endpoint")) < 16 && !e.bad([]string{"url", "enabled_events"}) && strings.HasPrefix(e.text("url"), "http"))
	}, func(o *oracle, e *entry) {
		if !strings.HasPrefix(textOf(e.answer, "secret"), "whsec_") {
			o.problem("%s gives no secret: %s", describe(e), e.Body)
		}
		var kinds []any
		for _, name := range []string{"enabled_events[]", "enabled_events[0]", "enabled_events[1]"} {
			for _, v := range e.Form[name] {
				kinds = append(kinds, v)
			}
		}
		o.make("webhook_endpoint", e.id(), map[string]any{"url": e.text("url"), "status": "enabled", "enabled_events": kinds})
	}},
	{"GET /v1/webhook_endpoints/{}", getRule("webhook_endpoint", "/v1/webhook_endpoints/").verdict, func(o *oracle, e *entry) {
		o.compare("GET", o.get("webhook_endpoint", e.target("/v1/webhook_endpoints/")), e.answer)
		if _, shown := e.answer["secret"]; shown {
			o.problem("%s shows the secret", describe(e))
		}
	}},
	{"POST /v1/webhook_endpoints/{}", func(o *oracle, e *entry) verdict {
		return accept(o.alive("webhook_endpoint", e.target("/v1/webhook_endpoints/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := o.get("webhook_endpoint", e.target("/v1/webhook_endpoints/"))
		setTexts(e, t.members, false, "url")
		if v := e.text("disabled"); v != "" {
			t.members["status"] = map[bool]string{true: "disabled", false: "enabled"}[v == "true"]
		}
		if t.text("status") == "disabled" {
			o.unwanted(t)
		}
		o.compare("the update", t, e.answer)
	}},
	{"DELETE /v1/webhook_endpoints/{}", func(o *oracle, e *entry) verdict {
		return accept(o.alive("webhook_endpoint", e.target("/v1/webhook_endpoints/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := o.get("webhook_endpoint", e.target("/v1/webhook_endpoints/"))
		t.deleted = true
		o.unwanted(t)
	}},
	listRule("webhook_endpoint"),
	{"GET /v1/events", func(_ *oracle, e *entry) verdict {
		if e.bad(nil, "limit") || badLimit(e) || (e.Form.Has("type") && strings.Contains(inWords(formNames(e.Form)), "types[")) {
			return refused
		}
		if e.Form.Has("starting_after") || e.Form.Has("ending_before") {
			return either // the cursor may be too old by now
		}
		return accepted
	}, func(o *oracle, e *entry) {
		data, _ := e.answer["data"].([]any)
		for _, raw := range data {
			event, _ := raw.(map[string]any)
			if id := textOf(event, "id"); o.shown[id] == 0 {
				o.shown[id], o.showed = wholeOf(event["created"]), append(o.showed, id)
			}
			if created := wholeOf(event["created"]); o.now.Unix()-created >= eventsKept || created > o.now.Unix()-o.switches.EventLagSeconds {
				o.problem("%s shows an event of %d", describe(e), created)
			}
			if kind := e.text("type"); kind != "" && !matches(kind, textOf(event, "type")) {
				o.problem("%s shows a %s", describe(e), textOf(event, "type"))
			}
		}
	}},
	{"GET /v1/events/{}", func(o *oracle, e *entry) verdict {
		created, shown := o.shown[e.target("/v1/events/")]
		return accept(shown && o.now.Unix()-created < eventsKept && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		if id := e.target("/v1/events/"); e.id() != id || wholeOf(e.answer["created"]) != o.shown[id] {
			o.problem("%s gives another event than the list: %s", describe(e), e.Body)
		}
	}},
}

// eventsKept is how long events are listed, in seconds.
const eventsKept = 30 * 86400

// matches tells whether a pattern of event types, such as charge.*, takes one.
func matches(pattern, kind string) bool {
	if head, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(kind, head)
	}
	return pattern == kind
}

// wanting gives the endpoints that an event has to be sent to.
func (o *oracle) wanting(kind string) (all []*thing) {
	for _, t := range o.with("webhook_endpoint", "status", "enabled") {
		kinds, _ := t.members["enabled_events"].([]any)
		if !t.deleted && slices.ContainsFunc(kinds, func(pattern any) bool { return matches(inWords(pattern), kind) }) {
			all = append(all, t)
		}
	}
	return all
}

// unwanted enters that an endpoint is told nothing more, not even of what has happened.
func (o *oracle) unwanted(t *thing) {
	for i := range o.events {
		h := &o.events[i]
		h.pending = slices.DeleteFunc(h.pending, func(to *thing) bool { return to == t })
	}
}

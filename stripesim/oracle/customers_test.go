package oracle

import (
	"net/url"
	"strings"
)

// customerRules are those of customers, deleted ones included.
var customerRules = []rule{
	{"POST /v1/customers", func(_ *oracle, e *entry) verdict { return accept(!e.bad(nil)) }, func(o *oracle, e *entry) {
		members := map[string]any{"metadata": metadataOf(e.Form, nil)}
		setTexts(e, members, true, "name", "email", "description", "phone")
		o.raised(e, "customer.created", o.make("customer", e.id(), members))
	}},
	{"GET /v1/customers/{}", func(o *oracle, e *entry) verdict {
		return accept(o.get("customer", e.target("/v1/customers/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := o.get("customer", e.target("/v1/customers/"))
		if gone, _ := e.answer["deleted"].(bool); gone != t.deleted {
			o.problem("%s says deleted %t, want %t", describe(e), gone, t.deleted)
		}
		if !t.deleted {
			o.compare("GET", t, e.answer)
		}
	}},
	{"POST /v1/customers/{}", func(o *oracle, e *entry) verdict {
		return accept(o.alive("customer", e.target("/v1/customers/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.updated(e, o.get("customer", e.target("/v1/customers/")), "customer.updated", true, "name", "email", "description", "phone")
	}},
	{"DELETE /v1/customers/{}", func(o *oracle, e *entry) verdict {
		return accept(o.alive("customer", e.target("/v1/customers/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := o.get("customer", e.target("/v1/customers/"))
		o.raised(e, "customer.deleted", t)
		t.deleted = true
	}},
	listRule("customer"),
}

// setTexts sets the members that a call names; an empty text unsets. With all, those
// that it does not name become null.
func setTexts(e *entry, members map[string]any, all bool, names ...string) {
	for _, name := range names {
		switch v, given := e.Form[name]; {
		case given && v[0] != "":
			members[name] = v[0]
		case given || all:
			members[name] = nil
		}
	}
}

// metadataOf lays the metadata of a call over what was there.
func metadataOf(form url.Values, before any) map[string]any {
	after := map[string]any{}
	old, _ := before.(map[string]any)
	for k, v := range old {
		after[k] = v
	}
	for name, v := range form {
		if key, ok := strings.CutPrefix(name, "metadata["); ok {
			key = strings.TrimSuffix(key, "]")
			if after[key] = v[0]; v[0] == "" {
				delete(after, key)
			}
		}
	}
	return after
}

// updated enters an update of texts and metadata, which raises an event unless its
// name is "". One that changes nothing may raise it or not.
func (o *oracle) updated(e *entry, t *thing, event string, compare bool, names ...string) {
	before := inWords(t.members)
	setTexts(e, t.members, false, names...)
	t.members["metadata"] = metadataOf(e.Form, t.members["metadata"])
	if event != "" {
		o.raised(e, event, t)
		o.events[len(o.events)-1].maybe = inWords(t.members) == before
	}
	if compare {
		o.compare("the update", t, e.answer)
	}
}

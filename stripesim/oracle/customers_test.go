package oracle

import (
	"net/url"
	"strings"
)

// customerRules are those of customers, deleted ones included.
var customerRules = []rule{
	{"POST /v1/customers", func(o *oracle, e *entry) verdict {
		method, chosen := e.text("payment_method"), e.text("invoice_settings[default_payment_method]")
		return accept(!e.bad(nil) && (method == "" || o.attachable(method)) && (chosen == "" || chosen == method || (method != "" && o.attachRefused(e, method))))
	}, func(o *oracle, e *entry) {
		name := e.text("payment_method")
		if name != "" && o.attachRefused(e, name) {
			return
		}
		settings := part{"default_payment_method": nil}
		members := map[string]any{"metadata": metadataOf(e.Form, nil), "invoice_settings": settings}
		setTexts(e, members, true, "name", "email", "description", "phone")
		var method *thing
		if name != "" {
			method = o.methodNamed(name, "")
			method.members["customer"] = e.id()
			if e.text("invoice_settings[default_payment_method]") != "" {
				settings["default_payment_method"] = method
			}
		}
		t := o.make("customer", e.id(), members)
		o.raised(e, "customer.created", t)
		if method != nil {
			o.attached(e, method, t.id)
		}
		o.compare("the new customer", t, e.answer)
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
		t := o.alive("customer", e.target("/v1/customers/"))
		if t == nil || e.bad(nil) {
			return refused
		}
		method := o.get(methodKind, e.text("invoice_settings[default_payment_method]"))
		return accept(e.text("invoice_settings[default_payment_method]") == "" || (method != nil && method.members["customer"] == any(t.id)))
	}, func(o *oracle, e *entry) {
		t := o.get("customer", e.target("/v1/customers/"))
		before := told(t.members["invoice_settings"])
		if e.Form.Has("invoice_settings[default_payment_method]") {
			t.members["invoice_settings"] = part{"default_payment_method": ref(o.get(methodKind, e.text("invoice_settings[default_payment_method]")))}
		}
		defer func() {
			if told(t.members["invoice_settings"]) != before {
				o.events[len(o.events)-1].maybe = false
			}
		}()
		o.updated(e, o.get("customer", e.target("/v1/customers/")), "customer.updated", true, "name", "email", "description", "phone")
	}},
	{"DELETE /v1/customers/{}", func(o *oracle, e *entry) verdict {
		return accept(o.alive("customer", e.target("/v1/customers/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := o.get("customer", e.target("/v1/customers/"))
		for _, method := range o.with(methodKind, "customer", t.id) {
			method.members["customer"], method.members["_spent"] = nil, true
		}
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

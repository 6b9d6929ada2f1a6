package oracle

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

func unixTime(s int64) time.Time { return time.Unix(s, 0).UTC() }

func inWords(v any) string { return fmt.Sprint(v) }

func wholeOf(v any) int64 {
	n, _ := v.(json.Number)
	i, _ := n.Int64()
	return i
}

// listed says where the objects of a kind are listed, and by which members.
type listed struct {
	path    string
	filters []string
	timed   bool // it takes created
}

var lists = map[string]listed{
	"customer":         {"/v1/customers", []string{"email"}, true},
	"product":          {"/v1/products", []string{"active"}, true},
	"price":            {"/v1/prices", []string{"product", "active", "type", "currency"}, true},
	"checkout.session": {"/v1/checkout/sessions", []string{"customer", "payment_intent", "status"}, true},
	"payment_intent":   {"/v1/payment_intents", []string{"customer"}, true},
	"charge":           {"/v1/charges", []string{"customer", "payment_intent"}, true},
	"refund":           {"/v1/refunds", []string{"charge", "payment_intent"}, true},
	"dispute":          {"/v1/disputes", []string{"charge", "payment_intent"}, true},
	methodKind:         {"/v1/payment_methods", []string{"customer", "type"}, false},
	moneyKind:          {"/v1/balance_transactions", []string{"type", "source", "currency"}, true},
	"billing.meter":    {"/v1/billing/meters", []string{"status"}, false},
	"webhook_endpoint": {"/v1/webhook_endpoints", nil, false},
}

// getRule is that of reading one object.
func getRule(kind, prefix string) rule {
	return rule{"GET " + prefix + "{}", func(o *oracle, e *entry) verdict {
		return accept(o.alive(kind, e.target(prefix)) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) { o.compare("GET", o.get(kind, e.target(prefix)), e.answer) }}
}

// listRule is that of reading a page of a list.
func listRule(kind string) rule {
	return rule{"GET " + lists[kind].path, func(o *oracle, e *entry) verdict {
		if e.bad(nil, "limit", "created[gt]", "created[gte]", "created[lt]", "created[lte]") || badLimit(e) {
			return refused
		}
		for _, cursor := range []string{"starting_after", "ending_before"} {
			if id := e.text(cursor); id != "" && o.get(kind, id) == nil {
				return refused
			} else if id != "" && o.alive(kind, id) == nil {
				return either
			}
		}
		return accepted
	}, func(o *oracle, e *entry) { o.page(kind, e) }}
}

// page holds an answered page against all objects.
func (o *oracle) page(kind string, e *entry) {
	var passing []*thing
	after, before := e.text("starting_after"), e.text("ending_before")
	reached := after == ""
	for _, t := range slices.Backward(o.things[kind]) {
		if t.id == before && before != "" {
			break
		}
		if reached && !t.deleted && passes(e, kind, t) {
			passing = append(passing, t)
		}
		reached = reached || t.id == after
	}
	limit := 10
	if e.Form.Has("limit") {
		limit = int(e.number("limit"))
	}
	more := len(passing) > limit
	if more && before != "" {
		passing = passing[len(passing)-limit:] // those that follow the cursor
	} else if more {
		passing = passing[:limit]
	}
	data, _ := e.answer["data"].([]any)
	var want, got []string
	for _, t := range passing {
		want = append(want, t.id)
	}
	for i, raw := range data {
		object, _ := raw.(map[string]any)
		got = append(got, textOf(object, "id"))
		if i < len(passing) && passing[i].isNamed(got[i]) {
			want[i] = got[i]
		}
		if i < len(passing) && passing[i].id == got[i] {
			o.compare("the list", passing[i], object)
		}
	}
	if !slices.Equal(want, got) || (e.answer["has_more"] == true) != more {
		o.problem("%s gives %v more %v, want %v more %t", describe(e), got, e.answer["has_more"], want, more)
	}
}

// passes tells whether an object passes the filters of a call.
func passes(e *entry, kind string, t *thing) bool {
	for _, name := range lists[kind].filters {
		if e.Form.Has(name) && e.text(name) != shown(t.members[name]) {
			return false
		}
	}
	if kind == methodKind && t.members["customer"] == nil {
		return false // such a list shows those of a customer alone
	}
	created := t.number("created")
	for name, holds := range map[string]func(limit int64) bool{
		"created[gt]": func(n int64) bool { return created > n }, "created[gte]": func(n int64) bool { return created >= n },
		"created[lt]": func(n int64) bool { return created < n }, "created[lte]": func(n int64) bool { return created <= n },
	} {
		if e.Form.Has(name) && !holds(e.number(name)) {
			return false
		}
	}
	return true
}

// compare holds an object that was answered against what the oracle knows of it.
func (o *oracle) compare(where string, t *thing, got map[string]any) {
	for _, wrong := range differences(t.members, got) {
		o.problem("%s: %s %s: %s", where, t.kind, t.id, wrong)
	}
}

func differences(want, got map[string]any) (wrong []string) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, g := want[name], got[name]
		if strings.HasPrefix(name, "_") {
			continue
		}
		same := alike(w, g)
		if inner, ok := g.(map[string]any); ok && !same && textOf(inner, "id") != "" {
			same = w == inner["id"] // it is expanded
		}
		if !same {
			wrong = append(wrong, fmt.Sprintf("%s is %v, want %s", name, g, told(w)))
		}
	}
	return wrong
}

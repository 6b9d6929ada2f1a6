package oracle

import "strings"

// catalogRules are those of products and prices.
var catalogRules = []rule{
	{"POST /v1/products", func(o *oracle, e *entry) verdict {
		return accept(!e.bad([]string{"name"}) && o.get("product", e.text("id")) == nil)
	}, func(o *oracle, e *entry) {
		if id := e.text("id"); id != "" && id != e.id() {
			o.problem("%s was to be called %s: %s", describe(e), id, e.Body)
		}
		members := map[string]any{"name": e.text("name"), "active": e.text("active") != "false", "metadata": metadataOf(e.Form, nil)}
		setTexts(e, members, true, "description")
		o.raised(e, "product.created", o.make("product", e.id(), members))
	}},
	getRule("product", "/v1/products/"),
	{"POST /v1/products/{}", func(o *oracle, e *entry) verdict {
		return accept(o.get("product", e.target("/v1/products/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.updatedActive(e, o.get("product", e.target("/v1/products/")), "product.updated", "name", "description")
	}},
	listRule("product"),

	{"POST /v1/prices", priceVerdict, func(o *oracle, e *entry) { o.newPrice(e, e.id(), textOf(e.answer, "product")) }},
	getRule("price", "/v1/prices/"),
	{"POST /v1/prices/{}", func(o *oracle, e *entry) verdict {
		return accept(o.get("price", e.target("/v1/prices/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.updatedActive(e, o.get("price", e.target("/v1/prices/")), "price.updated", "nickname")
	}},
	listRule("price"),
}

// updatedActive is updated for what can be put out of use.
func (o *oracle) updatedActive(e *entry, t *thing, event string, names ...string) {
	before := t.is("active")
	if v := e.text("active"); v != "" {
		t.members["active"] = v == "true"
	}
	o.updated(e, t, event, true, names...)
	if t.is("active") != before {
		o.events[len(o.events)-1].maybe = false
	}
}

func priceVerdict(o *oracle, e *entry) verdict {
	if e.bad([]string{"currency"}, "unit_amount", "recurring[interval_count]") {
		return refused
	}
	amount := e.text("unit_amount")
	if amount == "" {
		amount = e.text("unit_amount_decimal")
	}
	switch {
	case decimal(amount) == nil:
		return refused
	case e.text("product_data[name]") == "" && o.get("product", e.text("product")) == nil:
		return refused
	case e.Form.Has("recurring[meter]") && (o.get("billing.meter", e.text("recurring[meter]")) == nil || e.text("recurring[usage_type]") != "metered"):
		return refused
	case strings.Contains(inWords(e.Form), "recurring[") && !e.Form.Has("recurring[interval]"):
		return refused
	}
	return accepted
}

// newPrice enters a price, and the product that was made with it.
func (o *oracle) newPrice(e *entry, id, product string) {
	if made := e.text("product_data[name]"); made != "" {
		members := map[string]any{"name": made, "active": true, "metadata": map[string]any{}, "description": nil}
		o.raised(e, "product.created", o.make("product", product, members))
	}
	members := map[string]any{
		"active": e.text("active") != "false", "currency": strings.ToLower(e.text("currency")), "product": product, "metadata": metadataOf(e.Form, nil),
		"type": "one_time", "unit_amount": nil,
	}
	setTexts(e, members, true, "nickname")
	if e.Form.Has("recurring[interval]") {
		members["type"] = "recurring"
	}
	amount := e.text("unit_amount")
	if amount == "" {
		amount = e.text("unit_amount_decimal")
	}
	if v := decimal(amount); v.IsInt() {
		members["unit_amount"] = v.Num().Int64()
	}
	t := o.make("price", id, members)
	o.raised(e, "price.created", t)
	o.compare("the new price", t, e.answer)
}

package oracle

import (
	"maps"
	"net/url"
	"slices"
	"strings"
)

// methodKind is the kind of payment methods.
const methodKind = "payment_method"

// acting is what a payment method of Stripe's page on testing does.
type acting struct {
	bank         bool
	code         string // of the failure of a charge; "" where none fails
	attaches     bool   // although a charge fails
	dispute      string // the reason of the dispute that follows a payment
	inquiry      bool   // which is one
	refund       string // pending: it takes a while; failed: later
	available    bool   // at once
	authenticate bool
	stuck        bool // a debit that waits to be told how it ends
}

// testMethods are those of the stories, by the name that ends pm_ and what is
// written for a token.
var testMethods = map[string]acting{
	"pm_card_visa":                      {},
	"pm_card_mastercard":                {},
	"pm_card_chargeDeclined":            {code: "card_declined"},
	"pm_card_chargeCustomerFail":        {code: "card_declined", attaches: true},
	"pm_card_chargeDeclinedExpiredCard": {code: "expired_card"},
	"pm_card_createDispute":             {dispute: "fraudulent"},
	"pm_card_createDisputeInquiry":      {dispute: "fraudulent", inquiry: true},
	"pm_card_pendingRefund":             {refund: "pending"},
	"pm_card_refundFail":                {refund: "failed"},
	"pm_card_bypassPending":             {available: true},
	"pm_card_authenticationRequired":    {authenticate: true},
	"pm_usBankAccount_success":          {bank: true},
	"pm_usBankAccount_accountClosed":    {bank: true, code: "account_closed", attaches: true},
	"pm_usBankAccount_dispute":          {bank: true, dispute: "bank_cannot_process"},
	"pm_usBankAccount_processing":       {bank: true, stuck: true},
}

// numbers are those of test cards and test bank accounts, by the name of the method.
var numbers = map[string]string{
	"4242424242424242": "pm_card_visa", "4000000000000341": "pm_card_chargeCustomerFail", "4000000000000259": "pm_card_createDispute",
	"000123456789": "pm_usBankAccount_success", "000111111113": "pm_usBankAccount_accountClosed",
}

func (t *thing) acts() acting { return testMethods[t.text("_acts")] }

// methodRules are those of payment methods.
var methodRules = []rule{
	{"POST /v1/payment_methods", func(o *oracle, e *entry) verdict {
		kind := e.text("type")
		if e.bad([]string{"type"}) || (kind != "card" && kind != "us_bank_account") {
			return refused
		}
		if kind == "us_bank_account" {
			return accept(typedIn(e) != "" && e.text("us_bank_account[account_holder_type]") != "" && e.text("us_bank_account[routing_number]") == "110000000")
		}
		if e.Form.Has("card[token]") {
			return accept(typedIn(e) != "")
		}
		return accept(e.text("card[number]") != "" && e.Form.Has("card[exp_month]") && e.Form.Has("card[exp_year]"))
	}, func(o *oracle, e *entry) {
		if name := typedIn(e); (name == "") != (e.Status == 402) {
			o.problem("%s is of a card that acts as %q: %s", describe(e), name, e.Body)
		} else if name != "" {
			t := o.newMethod(e.id(), name)
			t.members["metadata"] = metadataOf(e.Form, nil)
			t.members["billing_details"] = t.members["billing_details"].(part).but(billing(e))
			o.compare("the new one", t, e.answer)
		}
	}},
	{"GET /v1/payment_methods/{}", func(o *oracle, e *entry) verdict {
		return accept(o.knowsMethod(e.target("/v1/payment_methods/")) && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		o.compare("GET", o.methodNamed(e.target("/v1/payment_methods/"), e.id()), e.answer)
	}},
	{"POST /v1/payment_methods/{}", func(o *oracle, e *entry) verdict {
		t := methodOf(o, e)
		return accept(t != nil && t.members["customer"] != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := methodOf(o, e)
		before := told(t.members["billing_details"])
		t.members["billing_details"] = t.members["billing_details"].(part).but(billing(e))
		o.updated(e, t, "payment_method.updated", true)
		if told(t.members["billing_details"]) != before {
			o.events[len(o.events)-1].maybe = false
		}
	}},
	{"POST /v1/payment_methods/{}/attach", func(o *oracle, e *entry) verdict {
		return accept(!e.bad([]string{"customer"}) && o.alive("customer", e.text("customer")) != nil && o.attachable(e.target("/v1/payment_methods/")))
	}, func(o *oracle, e *entry) {
		name := e.target("/v1/payment_methods/")
		if o.attachRefused(e, name) {
			return
		}
		t := o.methodNamed(name, e.id())
		o.attached(e, t, e.text("customer"))
		o.compare("the attached one", t, e.answer)
	}},
	{"POST /v1/payment_methods/{}/detach", func(o *oracle, e *entry) verdict {
		t := methodOf(o, e)
		return accept(t != nil && t.members["customer"] != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := methodOf(o, e)
		if customer := o.alive("customer", t.text("customer")); customer != nil && customer.members["invoice_settings"].(part)["default_payment_method"] == any(t) {
			customer.members["invoice_settings"] = part{"default_payment_method": nil}
			o.raised(e, "customer.updated", customer)
		}
		t.members["customer"], t.members["_spent"] = nil, true
		o.raised(e, "payment_method.detached", t)
		o.compare("the detached one", t, e.answer)
	}},
	{"GET /v1/payment_methods", func(o *oracle, e *entry) verdict {
		if customer := e.text("customer"); customer != "" && o.alive("customer", customer) == nil {
			return refused
		}
		return listRule(methodKind).verdict(o, e)
	}, func(o *oracle, e *entry) { o.page(methodKind, owned(e, e.text("customer"))) }},
	{"GET /v1/customers/{}/payment_methods", func(o *oracle, e *entry) verdict {
		if o.alive("customer", e.target("/v1/customers/")) == nil {
			return refused
		}
		return listRule(methodKind).verdict(o, e)
	}, func(o *oracle, e *entry) { o.page(methodKind, owned(e, e.target("/v1/customers/"))) }},
}

func methodOf(o *oracle, e *entry) *thing {
	return o.get(methodKind, e.target("/v1/payment_methods/"))
}

// owned is a call for the list of one customer's payment methods; nobody's is empty.
func owned(e *entry, customer string) *entry {
	asked := *e
	asked.Form = maps.Clone(e.Form)
	if asked.Form == nil {
		asked.Form = url.Values{}
	}
	asked.Form.Set("customer", customer)
	return &asked
}

// typedIn is the name of the test method whose number or token a call gives, "" for
// a number or a token of none.
func typedIn(e *entry) string {
	if e.text("type") == "us_bank_account" {
		name := numbers[e.text("us_bank_account[account_number]")]
		if !testMethods[name].bank {
			return ""
		}
		return name
	}
	if token, given := strings.CutPrefix(e.text("card[token]"), "tok_"); given {
		if _, known := testMethods["pm_card_"+token]; known {
			return "pm_card_" + token
		}
		return ""
	}
	if name := numbers[e.text("card[number]")]; !testMethods[name].bank {
		return name
	}
	return ""
}

// billing are the billing details that a call gives.
func billing(e *entry) part {
	given := map[string]any{}
	for _, name := range []string{"email", "name", "phone"} {
		if v, ok := e.Form["billing_details["+name+"]"]; ok && v[0] != "" {
			given[name] = v[0]
		} else if ok {
			given[name] = nil
		}
	}
	return given
}

// newMethod enters a payment method that acts as one of Stripe's test methods; one
// without an id is learnt of later.
func (o *oracle) newMethod(id, name string) *thing {
	kind := "card"
	if testMethods[name].bank {
		kind = "us_bank_account"
	}
	members := map[string]any{
		"type": kind, "customer": nil, "metadata": map[string]any{}, "billing_details": part{"email": nil, "name": nil, "phone": nil}, "_acts": name, "_spent": false,
	}
	if id == "" {
		return o.born(methodKind, "pm", members)
	}
	return o.make(methodKind, id, members)
}

// knowsMethod tells whether a name or an id is that of a payment method.
func (o *oracle) knowsMethod(name string) bool {
	_, test := testMethods[name]
	return test || o.get(methodKind, name) != nil
}

// methodNamed gives a payment method by its id, or by the name of a test method,
// which makes one of the id that the answer tells, "" where it tells none.
func (o *oracle) methodNamed(name, id string) *thing {
	if t := o.get(methodKind, name); t != nil {
		return t
	}
	return o.newMethod(id, name)
}

// methodUsed gives the payment method that a call names, nil where it names none.
func (o *oracle) methodUsed(e *entry) *thing {
	if name := e.text("payment_method"); name != "" {
		return o.methodNamed(name, "")
	}
	return nil
}

// payable tells whether an intent's customer may pay by a payment method.
func (o *oracle) payable(name string, intent *thing) bool {
	if !o.knowsMethod(name) {
		return false
	}
	t := o.get(methodKind, name)
	if t == nil {
		t = (&oracle{ids: map[string]*thing{}, things: map[string][]*thing{}}).newMethod("", name)
	}
	types, _ := intent.members["payment_method_types"].([]any)
	owner := t.members["customer"]
	switch {
	case owner == nil && t.is("_spent"), owner != nil && owner != intent.members["customer"]:
		return false
	}
	return slices.Contains(types, t.members["type"])
}

// attachable tells whether a customer may keep a payment method, as far as the card
// itself does not decline.
func (o *oracle) attachable(name string) bool {
	t := o.get(methodKind, name)
	return o.knowsMethod(name) && (t == nil || (t.members["customer"] == nil && !t.is("_spent")))
}

// attachRefused tells whether a card declines to be attached, as most do that
// decline to be charged, and wants the answer to say so.
func (o *oracle) attachRefused(e *entry, name string) bool {
	acts := testMethods[name]
	if t := o.get(methodKind, name); t != nil {
		acts = t.acts()
	}
	declines := acts.code != "" && !acts.attaches
	if declines != (e.Status == 402) || (declines && textOf(e.answer, "error", "code") != acts.code) {
		o.problem("%s: %s declines to be attached %t: %s", describe(e), name, declines, e.Body)
	}
	return declines
}

func (o *oracle) attached(e *entry, t *thing, customer string) {
	t.members["customer"] = customer
	o.raised(e, "payment_method.attached", t)
}

// used enters that an intent has charged a payment method: it is the customer's from
// now on, where the intent says so; else nobody's who may use it again.
func (o *oracle) used(e *entry, intent, t *thing) {
	switch {
	case t.members["customer"] != nil:
	case intent.members["customer"] != nil && intent.members["setup_future_usage"] != nil:
		o.attached(e, t, intent.text("customer"))
	default:
		t.members["_spent"] = true
	}
}

// auditMethods compares the payment methods that each customer has.
func (o *oracle) auditMethods(r reader) {
	for _, customer := range o.living("customer") {
		want := o.with(methodKind, "customer", customer.id)
		slices.Reverse(want)
		got := o.whole(r, "/v1/payment_methods", url.Values{"customer": {customer.id}})
		if len(got) != len(want) {
			o.problem("customer %s has %d payment methods, want %d", customer.id, len(got), len(want))
			continue
		}
		for i := range want {
			if !want[i].isNamed(textOf(got[i], "id")) {
				o.problem("payment method %d of %s is %s, want %s", i, customer.id, textOf(got[i], "id"), want[i].id)
			}
			o.compare("in the end", want[i], got[i])
		}
	}
}

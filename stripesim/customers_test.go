package stripesim_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestCustomersRefuseWhatStripeRefuses(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	id := u.make("/v1/customers", "name=Acme&email=a@example.com")
	gone := u.make("/v1/customers", "payment_method=pm_card_visa")
	u.must(http.MethodDelete, "/v1/customers/"+gone, "")
	before := u.State().Counts
	for _, tc := range []struct {
		method, path, form string
		status             int
		kind, code, param  string
	}{
		{"POST", "", "email=nobody", 400, "invalid_request_error", "email_invalid", "email"},
		{"POST", "", "email=@example.com", 400, "invalid_request_error", "email_invalid", "email"},
		{"POST", "", "invoice_prefix=ab", 400, "invalid_request_error", "", "invoice_prefix"},
		{"POST", "", "invoice_prefix=abc", 400, "invalid_request_error", "", "invoice_prefix"},
		{"POST", "", "tax_exempt=never", 400, "invalid_request_error", "", "tax_exempt"},
		{"POST", "", "test_clock=clock_nobody", 400, "invalid_request_error", "resource_missing", "test_clock"},
		{"POST", "", "payment_method=pm_nobody", 400, "invalid_request_error", "resource_missing", "payment_method"},
		{"POST", "", "payment_method=pm_card_chargeDeclined", 402, "card_error", "card_declined", ""},
		{"POST", "", "source=tok_nobody", 400, "invalid_request_error", "resource_missing", "source"},
		{"POST", "", "source=tok_chargeDeclinedExpiredCard", 402, "card_error", "expired_card", ""},
		{"POST", "", "colour=red", 400, "invalid_request_error", "parameter_unknown", "colour"},
		{"POST", "/" + id, "invoice_settings[default_payment_method]=pm_card_visa", 400, "invalid_request_error", "resource_missing", "invoice_settings[default_payment_method]"},
		{"POST", "/" + id, "default_source=card_nobody", 400, "invalid_request_error", "resource_missing", "default_source"},
		{"POST", "/" + id, "test_clock=clock_nobody", 400, "invalid_request_error", "parameter_unknown", "test_clock"},
		{"POST", "/" + gone, "name=Back", 404, "invalid_request_error", "resource_missing", "id"},
		{"DELETE", "/" + gone, "", 404, "invalid_request_error", "resource_missing", "id"},
		{"GET", "/" + gone + "/payment_methods", "", 404, "invalid_request_error", "resource_missing", "customer"},
		{"GET", "/cus_nobody", "", 404, "invalid_request_error", "resource_missing", "id"},
	} {
		u.refused(u.call(tc.method, "/v1/customers"+tc.path, tc.form), tc.status, tc.kind, tc.code, tc.param)
	}
	if after := u.State().Counts; fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("refused calls have made something: %v, then %v", before, after)
	}
	o := u.must(http.MethodGet, "/v1/customers/"+gone, "")
	wants(t, o, "deleted", "true", "object", "customer")
	if len(o) != 3 {
		t.Errorf("a deleted customer is %v", o)
	}
}

func TestCustomersChange(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	oldest := u.make("/v1/customers", "")
	o := u.must(http.MethodPost, "/v1/customers", "name=Acme&email=a@example.com&payment_method=pm_card_visa&invoice_settings[default_payment_method]=pm_card_visa&metadata[a]=b&tax_exempt=reverse&preferred_locales[]=de")
	id, card := at(o, "id"), at(o, "invoice_settings.default_payment_method")
	if !strings.HasPrefix(card, "pm_") || card == "pm_card_visa" {
		t.Errorf("the default payment method is %s", card)
	}
	wants(t, o, "balance", "0", "tax_exempt", "reverse", "preferred_locales.0", "de", "next_invoice_sequence", "1", "test_clock", "<nil>")
	u.must(http.MethodPost, "/v1/customers/"+id, "name=Acme")
	u.must(http.MethodPost, "/v1/customers/"+id, "name=Better&metadata[a]=&metadata[c]=d&address[city]=Graz&shipping[name]=Dock&shipping[address][city]=Linz&email=")
	e := lastEvent(u, "customer.updated")
	wants(t, e, "data.previous_attributes.name", "Acme", "data.previous_attributes.email", "a@example.com", "data.object.email", "<nil>", "data.object.metadata.c", "d", "data.object.metadata.a", "<none>",
		"data.object.address.city", "Graz", "data.object.address.line1", "<nil>", "data.object.shipping.name", "Dock")
	sequence(t, happened(u, o), "customer.created customer.updated") // a call that changes nothing raises none
	token := u.must(http.MethodPost, "/v1/customers/"+id, "source=tok_mastercard")
	if !strings.HasPrefix(at(token, "default_source"), "card_") {
		t.Errorf("the default source is %s", at(token, "default_source"))
	}
	wants(t, u.must(http.MethodGet, "/v1/customers/"+id, "expand[]=default_source&expand[]=invoice_settings.default_payment_method"), "default_source.card.brand", "mastercard", "invoice_settings.default_payment_method.id", card)
	u.must(http.MethodPost, "/v1/payment_methods/"+card+"/detach", "")
	wants(t, u.must(http.MethodGet, "/v1/customers/"+id, ""), "invoice_settings.default_payment_method", "<nil>")
	other := u.make("/v1/customers", "email=b@example.com")
	u.must(http.MethodDelete, "/v1/customers/"+id, "")
	later := u.make("/v1/customers", "email=b@example.com")
	list := u.must(http.MethodGet, "/v1/customers", "created[gte]=1")
	wants(t, list, "data.0.id", later, "data.1.id", other, "data.2.id", oldest, "data.3", "<none>") // one that is deleted is left out
	wants(t, u.must(http.MethodGet, "/v1/customers", "email=B@example.com"), "data.0", "<none>")
	wants(t, u.must(http.MethodGet, "/v1/customers", "email=b@example.com&limit=1&starting_after="+later), "data.0.id", other, "has_more", "false")
	wants(t, u.must(http.MethodGet, "/v1/payment_methods", "customer="+other), "data.0", "<none>")
}

func TestPaymentMethodsRefuse(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	customer := u.make("/v1/customers", "")
	other := u.make("/v1/customers", "")
	attached := u.make("/v1/payment_methods/pm_card_visa/attach", "customer="+customer)
	detached := u.make("/v1/payment_methods/pm_card_visa/attach", "customer="+customer)
	u.must(http.MethodPost, "/v1/payment_methods/"+detached+"/detach", "")
	number := "&card[exp_month]=1&card[exp_year]=2055&card[number]="
	for _, tc := range []struct {
		path, form        string
		status            int
		kind, code, param string
	}{
		{"", "", 400, "invalid_request_error", "parameter_missing", "type"},
		{"", "type=card", 400, "invalid_request_error", "parameter_missing", "card"},
		{"", "type=giropay", 400, "invalid_request_error", "", "type"},
		{"", "type=card&card[exp_month]=1&card[exp_year]=2055", 400, "invalid_request_error", "parameter_missing", "card[number]"},
		{"", "type=card&card[token]=tok_nobody", 400, "invalid_request_error", "resource_missing", "card[token]"},
		{"", "type=card" + number + "4242424242424241", 402, "card_error", "incorrect_number", "number"},
		{"", "type=card" + number + "4111111111111111", 402, "card_error", "card_declined", ""},
		{"", "type=card&card[number]=4242424242424242&card[exp_month]=13&card[exp_year]=2055", 402, "card_error", "invalid_expiry_month", "exp_month"},
		{"", "type=card&card[number]=4242424242424242&card[exp_month]=1&card[exp_year]=2019", 402, "card_error", "invalid_expiry_year", "exp_year"},
		{"", "type=us_bank_account&us_bank_account[account_number]=000123456789&us_bank_account[account_holder_type]=company", 400, "invalid_request_error", "parameter_missing", "us_bank_account[routing_number]"},
		{"", "type=us_bank_account&us_bank_account[account_number]=1&us_bank_account[account_holder_type]=company&us_bank_account[routing_number]=110000000", 400, "invalid_request_error", "account_number_invalid", "us_bank_account[account_number]"},
		{"/pm_card_visa/attach", "", 400, "invalid_request_error", "parameter_missing", "customer"},
		{"/pm_nobody/attach", "customer=" + customer, 404, "invalid_request_error", "resource_missing", "payment_method"},
		{"/pm_card_visa/attach", "customer=cus_nobody", 400, "invalid_request_error", "resource_missing", "customer"},
		{"/" + attached + "/attach", "customer=" + other, 400, "invalid_request_error", "", ""},
		{"/" + detached + "/attach", "customer=" + customer, 400, "invalid_request_error", "", ""},
		{"/" + detached + "/detach", "", 400, "invalid_request_error", "", ""},
		{"/" + detached, "metadata[a]=b", 400, "invalid_request_error", "", ""},
		{"/pm_card_chargeDeclinedStolenCard/attach", "customer=" + customer, 402, "card_error", "card_declined", ""},
	} {
		u.refused(u.call(http.MethodPost, "/v1/payment_methods"+tc.path, tc.form), tc.status, tc.kind, tc.code, tc.param)
	}
	u.refused(u.call(http.MethodGet, "/v1/customers/"+other+"/payment_methods/"+attached, ""), 404, "invalid_request_error", "resource_missing", "payment_method")
}

func TestPaymentMethodsAreTheCustomers(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	customer := u.make("/v1/customers", "")
	made := u.must(http.MethodPost, "/v1/payment_methods", "type=card&card[number]=4000000000000341&card[exp_month]=7&card[exp_year]=55&billing_details[email]=a@example.com&metadata[a]=b")
	wants(t, made, "card.last4", "0341", "card.exp_month", "7", "card.exp_year", "2055", "billing_details.email", "a@example.com", "billing_details.name", "<nil>", "customer", "<nil>")
	u.must(http.MethodPost, "/v1/payment_methods/"+at(made, "id")+"/attach", "customer="+customer)
	bank := u.make("/v1/payment_methods", "type=us_bank_account&us_bank_account[account_number]=000123456789&us_bank_account[account_holder_type]=company&us_bank_account[routing_number]=110000000")
	u.must(http.MethodPost, "/v1/payment_methods/"+bank+"/attach", "customer="+customer)
	u.must(http.MethodPost, "/v1/payment_methods/"+at(made, "id"), "card[exp_month]=8&billing_details[name]=Alice")
	wants(t, lastEvent(u, "payment_method.updated"), "data.object.card.exp_month", "8", "data.object.billing_details.email", "a@example.com")
	wants(t, u.must(http.MethodGet, "/v1/customers/"+customer+"/payment_methods", "type=card"), "data.0.id", at(made, "id"), "data.1", "<none>")
	wants(t, u.must(http.MethodGet, "/v1/payment_methods", "customer="+customer), "data.0.id", bank, "data.1.id", at(made, "id"))
	wants(t, u.must(http.MethodGet, "/v1/payment_methods", ""), "data.0", "<none>")
	form := "amount=1000&currency=usd&confirm=true&customer=" + customer + "&payment_method="
	u.refused(u.call(http.MethodPost, "/v1/payment_intents", form+at(made, "id")), 402, "card_error", "card_declined", "")
	u.must(http.MethodPost, "/v1/payment_intents", form+bank)
	kept := u.must(http.MethodPost, "/v1/payment_intents", form+"pm_card_visa&setup_future_usage=off_session")
	u.must(http.MethodPost, "/v1/payment_intents", form+at(kept, "payment_method"))
	wants(t, lastEvent(u, "payment_method.attached"), "data.object.id", at(kept, "payment_method"), "data.object.customer", customer)
	u.must(http.MethodPost, "/v1/payment_methods/"+bank+"/detach", "")
	wants(t, lastEvent(u, "payment_method.detached"), "data.previous_attributes.customer", customer, "data.object.customer", "<nil>")
	u.refused(u.call(http.MethodPost, "/v1/payment_intents", form+bank), 400, "invalid_request_error", "", "payment_method")
}

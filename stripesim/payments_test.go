package stripesim_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// at reads a member of an answer by a path such as error.code, as text.
func at(o map[string]any, path string) string {
	var v any = o
	for name := range strings.SplitSeq(path, ".") {
		switch inner := v.(type) {
		case map[string]any:
			member, known := inner[name]
			if !known {
				return "<none>"
			}
			v = member
		case []any:
			n := 0
			if _, err := fmt.Sscan(name, &n); err != nil || n >= len(inner) {
				return "<none>"
			}
			v = inner[n]
		default:
			return "<none>"
		}
	}
	return fmt.Sprint(v)
}

// wants checks members of an answer: path, value, …
func wants(t *testing.T, o map[string]any, pairs ...string) {
	t.Helper()
	for i := 0; i+1 < len(pairs); i += 2 {
		if got := at(o, pairs[i]); got != pairs[i+1] {
			raw, _ := json.Marshal(o)
			t.Errorf("%s is %q, want %q, in %s", pairs[i], got, pairs[i+1], raw)
		}
	}
}

// happened gives the types of the events about an object, and about what names it as
// its intent or charge, oldest first.
func happened(u *user, o map[string]any) []string {
	u.t.Helper()
	var types []string
	list, _ := u.must(http.MethodGet, "/v1/events", "limit=100")["data"].([]any)
	for _, e := range list {
		event, _ := e.(map[string]any)
		if at(event, "data.object.id") == at(o, "id") || at(event, "data.object.payment_intent") == at(o, "id") || at(event, "data.object.charge") == at(o, "id") {
			types = append(types, at(event, "type"))
		}
	}
	slices.Reverse(types)
	return types
}

// lastEvent gives the newest event of a type.
func lastEvent(u *user, kind string) map[string]any {
	u.t.Helper()
	list, _ := u.must(http.MethodGet, "/v1/events", "limit=1&type="+kind)["data"].([]any)
	if len(list) == 0 {
		u.t.Fatalf("no event of type %s", kind)
	}
	return list[0].(map[string]any)
}

func sequence(t *testing.T, got []string, want string) {
	t.Helper()
	if strings.Join(got, " ") != want {
		t.Errorf("the events are\n\t%s, want\n\t%s", strings.Join(got, " "), want)
	}
}

// paid gives an intent of 1000 cents that is paid, with its charge.
func paid(u *user, method string) (intent map[string]any, charge string) {
	u.t.Helper()
	intent = u.must(http.MethodPost, "/v1/payment_intents", "amount=1000&currency=usd&confirm=true&payment_method="+method)
	return intent, at(intent, "latest_charge")
}

func TestIntentsRefuseWhatStripeRefuses(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	open := u.make("/v1/payment_intents", "amount=1000&currency=usd")
	done, _ := paid(u, "pm_card_visa")
	alice := u.make("/v1/customers", "name=Alice")
	hers := u.make("/v1/payment_methods/pm_card_visa/attach", "customer="+alice)
	bob := u.make("/v1/customers", "name=Bob")
	gone := u.make("/v1/customers", "name=Gone")
	u.must(http.MethodDelete, "/v1/customers/"+gone, "")
	spent := at(done, "payment_method")
	before := u.State().Counts
	for _, tc := range []struct {
		path, form        string
		status            int
		kind, code, param string
		message           string
	}{
		{"", "currency=usd", 400, "invalid_request_error", "parameter_missing", "amount", "Missing required param: amount."},
		{"", "amount=1000", 400, "invalid_request_error", "parameter_missing", "currency", "Missing required param: currency."},
		{"", "amount=0&currency=usd", 400, "invalid_request_error", "parameter_invalid_integer", "amount", "greater than or equal to 1"},
		{"", "amount=49&currency=usd", 400, "invalid_request_error", "amount_too_small", "amount", "Amount must be at least $0.50 usd"},
		{"", "amount=100000000&currency=usd", 400, "invalid_request_error", "amount_too_large", "amount", "no more than"},
		{"", "amount=1000&currency=dollars", 400, "invalid_request_error", "", "currency", "Invalid currency: dollars"},
		{"", "amount=1000&currency=usd&colour=red", 400, "invalid_request_error", "parameter_unknown", "colour", "Received unknown parameter: colour"},
		{"", "amount=1000&currency=usd&customer=cus_nobody", 400, "invalid_request_error", "resource_missing", "customer", "No such customer: 'cus_nobody'"},
		{"", "amount=1000&currency=usd&customer=" + gone, 400, "invalid_request_error", "resource_missing", "customer", "No such customer"},
		{"", "amount=1000&currency=usd&payment_method=pm_nobody", 400, "invalid_request_error", "resource_missing", "payment_method", "No such PaymentMethod: 'pm_nobody'"},
		{"", "amount=1000&currency=usd&capture_method=never", 400, "invalid_request_error", "", "capture_method", "must be one of automatic, automatic_async, or manual"},
		{"", "amount=1000&currency=usd&confirm=true", 400, "invalid_request_error", "payment_intent_unexpected_state", "", "missing a payment method"},
		{"", "amount=1000&currency=usd&payment_method=" + hers, 400, "invalid_request_error", "", "payment_method", "Please include the Customer"},
		{"", "amount=1000&currency=usd&customer=" + bob + "&payment_method=" + hers, 400, "invalid_request_error", "resource_missing", "payment_method", "does not have a payment method with the ID"},
		{"", "amount=1000&currency=usd&confirm=true&payment_method=" + spent, 400, "invalid_request_error", "", "payment_method", "may not be used again"},
		{"", "amount=1000&currency=usd&payment_method_types[]=card&payment_method=pm_usBankAccount_success", 400, "invalid_request_error", "payment_intent_incompatible_payment_method", "payment_method", "one of the following types: card"},
		{"", "amount=1000&currency=usd&payment_method_types[]=card&automatic_payment_methods[enabled]=true", 400, "invalid_request_error", "", "", "only specify one of"},
		{"/pi_nobody/confirm", "", 404, "invalid_request_error", "resource_missing", "intent", "No such payment_intent: 'pi_nobody'"},
		{"/" + open + "/confirm", "", 400, "invalid_request_error", "payment_intent_unexpected_state", "", "missing a payment method"},
		{"/" + open + "/confirm", "payment_method=pm_card_visa&client_secret=wrong", 400, "invalid_request_error", "", "client_secret", "does not match"},
		{"/" + open + "/capture", "", 400, "invalid_request_error", "payment_intent_unexpected_state", "", "may be captured: requires_capture"},
		{"/" + open + "/cancel", "cancellation_reason=bored", 400, "invalid_request_error", "", "cancellation_reason", "must be one of"},
		{"/" + open, "amount=49", 400, "invalid_request_error", "amount_too_small", "amount", "at least"},
		{"/" + at(done, "id") + "/confirm", "payment_method=pm_card_visa", 400, "invalid_request_error", "payment_intent_unexpected_state", "", "already succeeded"},
		{"/" + at(done, "id") + "/capture", "", 400, "invalid_request_error", "payment_intent_unexpected_state", "", "already been captured"},
		{"/" + at(done, "id") + "/cancel", "", 400, "invalid_request_error", "payment_intent_unexpected_state", "", "has a status of succeeded"},
		{"/" + at(done, "id"), "amount=2000", 400, "invalid_request_error", "payment_intent_unexpected_state", "amount", "could not be updated because it has a status of succeeded"},
	} {
		a := u.call(http.MethodPost, "/v1/payment_intents"+tc.path, tc.form)
		u.refused(a, tc.status, tc.kind, tc.code, tc.param)
		if message := at(a.Body, "error.message"); !strings.Contains(message, tc.message) {
			t.Errorf("%s %s says %q, want %q", tc.path, tc.form, message, tc.message)
		}
	}
	if after := u.State().Counts; fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("refused calls have made something: %v, then %v", before, after)
	}
	a := u.call(http.MethodPost, "/v1/payment_intents/"+at(done, "id")+"/cancel", "")
	wants(t, a.Body, "error.payment_intent.id", at(done, "id"), "error.payment_intent.status", "succeeded")
}

func TestIntentsGoThroughTheirStates(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	pi := u.must(http.MethodPost, "/v1/payment_intents", "amount=1000&currency=USD&metadata[a]=b&description=credits")
	wants(t, pi, "status", "requires_payment_method", "currency", "usd", "automatic_payment_methods.enabled", "true", "latest_charge", "<nil>")
	path := "/v1/payment_intents/" + at(pi, "id")
	pi = u.must(http.MethodPost, path, "payment_method=pm_card_visa&amount=1100")
	wants(t, pi, "status", "requires_confirmation", "amount", "1100")
	wants(t, u.must(http.MethodPost, path, "payment_method="), "status", "requires_payment_method", "payment_method", "<nil>")
	pi = u.must(http.MethodPost, path+"/confirm", "payment_method=pm_card_mastercard")
	wants(t, pi, "status", "succeeded", "amount_received", "1100")
	u.must(http.MethodPost, path, "metadata[a]=c")
	charge := u.must(http.MethodGet, "/v1/charges/"+at(pi, "latest_charge"), "expand[]=balance_transaction")
	wants(t, charge, "metadata.a", "b", "description", "credits", "paid", "true", "captured", "true", "amount_captured", "1100", "payment_method_details.card.brand", "mastercard",
		"outcome.type", "authorized", "balance_transaction.type", "charge", "balance_transaction.fee", "62", "balance_transaction.net", "1038", "balance_transaction.status", "pending")
	sequence(t, happened(u, pi), "payment_intent.created charge.succeeded payment_intent.succeeded")
}

func TestADeclinedCardLeavesAFailedCharge(t *testing.T) {
	t.Parallel()
	for method, want := range map[string][3]string{ // code, decline_code, outcome
		"pm_card_chargeDeclined":                       {"card_declined", "generic_decline", "issuer_declined"},
		"pm_card_visa_chargeDeclinedInsufficientFunds": {"card_declined", "insufficient_funds", "issuer_declined"},
		"pm_card_chargeDeclinedExpiredCard":            {"expired_card", "expired_card", "issuer_declined"},
		"pm_card_radarBlock":                           {"card_declined", "fraudulent", "blocked"},
	} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			u := newUser(t)
			form, key := "amount=1000&currency=usd&confirm=true&payment_method="+method, []string{"Idempotency-Key", "k1"}
			a := u.call(http.MethodPost, "/v1/payment_intents", form, key...)
			u.refused(a, 402, "card_error", want[0], "")
			wants(t, a.Body, "error.decline_code", want[1], "error.payment_intent.status", "requires_payment_method", "error.payment_intent.last_payment_error.decline_code", want[1],
				"error.payment_intent.latest_charge", at(a.Body, "error.charge"), "error.payment_method.type", "card")
			again := u.call(http.MethodPost, "/v1/payment_intents", form, key...)
			if again.Raw != a.Raw || again.Header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("the key answers %s", again.Raw)
			}
			charge := u.must(http.MethodGet, "/v1/charges/"+at(a.Body, "error.charge"), "")
			wants(t, charge, "status", "failed", "paid", "false", "captured", "false", "failure_code", want[0], "outcome.type", want[2], "balance_transaction", "<nil>")
			intent := at(charge, "payment_intent")
			sequence(t, happened(u, map[string]any{"id": intent}), "payment_intent.created charge.failed payment_intent.payment_failed")
			u.refused(u.call(http.MethodPost, "/v1/refunds", "payment_intent="+intent), 400, "invalid_request_error", "", "payment_intent")
			u.refused(u.call(http.MethodPost, "/v1/refunds", "charge="+at(charge, "id")), 400, "invalid_request_error", "charge_not_refundable", "")
			wants(t, u.must(http.MethodPost, "/v1/payment_intents/"+intent+"/confirm", "payment_method=pm_card_visa"), "status", "succeeded", "last_payment_error", "<nil>")
			wants(t, u.must(http.MethodGet, "/v1/charges", "payment_intent="+intent), "data.0.status", "succeeded", "data.1.status", "failed", "data.2", "<none>")
		})
	}
}

func TestABuyerAuthenticates(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Switches: stripesim.Switches{AuthenticatePayments: true}})
	form := "amount=1000&currency=usd&confirm=true&payment_method=pm_card_visa"
	for _, extra := range []string{"&off_session=true", "&error_on_requires_action=true"} {
		a := u.call(http.MethodPost, "/v1/payment_intents", form+extra)
		u.refused(a, 402, "card_error", "authentication_required", "")
	}
	pi := u.must(http.MethodPost, "/v1/payment_intents", form+"&return_url=https://example.com")
	wants(t, pi, "status", "requires_action", "next_action.type", "redirect_to_url", "next_action.redirect_to_url.return_url", "https://example.com", "latest_charge", "<nil>")
	control := "/_sim/payment_intents/" + at(pi, "id") + "/authenticate"
	if a := u.call(http.MethodPost, control, `{"outcome":"perhaps"}`); a.Status != 400 || !strings.Contains(a.Raw, "succeeded, failed") {
		t.Errorf("an unknown outcome is answered %d %s", a.Status, a.Raw)
	}
	wants(t, u.must(http.MethodPost, control, `{"outcome":"failed"}`), "status", "requires_payment_method", "last_payment_error.code", "payment_intent_authentication_failure")
	if a := u.call(http.MethodPost, control, `{"outcome":"succeeded"}`); a.Status != 400 {
		t.Errorf("authentication without being asked is answered %d %s", a.Status, a.Raw)
	}
	u.must(http.MethodPost, "/v1/payment_intents/"+at(pi, "id")+"/confirm", "payment_method=pm_card_visa")
	wants(t, u.must(http.MethodPost, control, `{"outcome":"succeeded"}`), "status", "succeeded", "next_action", "<nil>")
	sequence(t, happened(u, pi), "payment_intent.created payment_intent.requires_action payment_intent.payment_failed payment_intent.requires_action charge.succeeded payment_intent.succeeded")
	by := u.must(http.MethodPost, "/v1/payment_intents", form+"&confirmation_method=manual")
	path := "/v1/payment_intents/" + at(by, "id")
	wants(t, u.must(http.MethodPost, "/_sim"+strings.TrimPrefix(path, "/v1")+"/authenticate", `{"outcome":"succeeded"}`), "status", "requires_confirmation")
	wants(t, u.must(http.MethodPost, path+"/confirm", ""), "status", "succeeded")
}

func TestCaptureTakesAllOrPart(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	held := func() string {
		pi, _ := paid(u, "pm_card_visa&capture_method=manual")
		wants(t, pi, "status", "requires_capture", "amount_capturable", "1000", "amount_received", "0")
		return at(pi, "id")
	}
	id := held()
	u.refused(u.call(http.MethodPost, "/v1/payment_intents/"+id+"/capture", "amount_to_capture=1001"), 400, "invalid_request_error", "amount_too_large", "amount_to_capture")
	u.refused(u.call(http.MethodPost, "/v1/payment_intents/"+id+"/capture", "amount_to_capture=0"), 400, "invalid_request_error", "parameter_invalid_integer", "amount_to_capture")
	u.refused(u.call(http.MethodPost, "/v1/refunds", "payment_intent="+id), 400, "invalid_request_error", "charge_not_refundable", "")
	pi := u.must(http.MethodPost, "/v1/payment_intents/"+id+"/capture", "amount_to_capture=400")
	wants(t, pi, "status", "succeeded", "amount_received", "400", "amount_capturable", "0")
	charge := u.must(http.MethodGet, "/v1/charges/"+at(pi, "latest_charge"), "expand[]=refunds&expand[]=balance_transaction")
	wants(t, charge, "captured", "true", "amount_captured", "400", "amount_refunded", "600", "refunded", "false", "refunds.data.0.amount", "600",
		"refunds.data.0.balance_transaction", "<nil>", "balance_transaction.amount", "400")
	sequence(t, happened(u, pi), "payment_intent.created charge.succeeded payment_intent.amount_capturable_updated charge.captured payment_intent.succeeded")
	u.refused(u.call(http.MethodPost, "/v1/refunds", "payment_intent="+id+"&amount=401"), 400, "invalid_request_error", "", "amount")
	u.must(http.MethodPost, "/v1/refunds", "payment_intent="+id)
	wants(t, u.must(http.MethodGet, "/v1/charges/"+at(charge, "id"), ""), "amount_refunded", "1000", "refunded", "true")

	dropped := u.must(http.MethodPost, "/v1/payment_intents/"+held()+"/cancel", "cancellation_reason=abandoned")
	wants(t, dropped, "status", "canceled", "cancellation_reason", "abandoned", "amount_capturable", "0")
	wants(t, u.must(http.MethodGet, "/v1/charges/"+at(dropped, "latest_charge"), ""), "refunded", "true", "captured", "false", "amount_refunded", "1000")

	if err := u.FailRefund(at(u.must(http.MethodGet, "/v1/refunds", "payment_intent="+at(dropped, "id")), "data.0.id"), ""); err == nil {
		t.Error("the release of money that was only held fails")
	}

	forgotten := held()
	u.Advance(7*24*time.Hour - time.Minute)
	wants(t, u.must(http.MethodGet, "/v1/payment_intents/"+forgotten, ""), "status", "requires_capture")
	u.Advance(2 * time.Minute)
	wants(t, u.must(http.MethodGet, "/v1/payment_intents/"+forgotten, ""), "status", "canceled", "cancellation_reason", "automatic")
	wants(t, lastEvent(u, "charge.expired"), "data.object.refunded", "true", "request.id", "<nil>")
}

func TestDebitsSettleLater(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	pi, id := paid(u, "pm_usBankAccount_success")
	wants(t, pi, "status", "processing", "amount_received", "0")
	charge := u.must(http.MethodGet, "/v1/charges/"+id, "expand[]=balance_transaction")
	wants(t, charge, "status", "pending", "paid", "false", "balance_transaction.type", "payment", "balance_transaction.status", "pending")
	if !strings.HasPrefix(id, "py_") {
		t.Errorf("the debit is called %s", id)
	}
	u.refused(u.call(http.MethodPost, "/v1/payment_intents/"+at(pi, "id")+"/cancel", ""), 400, "invalid_request_error", "payment_intent_unexpected_state", "")
	bad, badCharge := paid(u, "pm_usBankAccount_accountClosed")
	stuck, _ := paid(u, "pm_usBankAccount_processing")
	u.Advance(4*24*time.Hour - time.Minute)
	wants(t, u.must(http.MethodGet, "/v1/payment_intents/"+at(pi, "id"), ""), "status", "processing")
	u.Advance(2 * time.Minute)
	wants(t, u.must(http.MethodGet, "/v1/payment_intents/"+at(pi, "id"), ""), "status", "succeeded", "amount_received", "1000")
	wants(t, u.must(http.MethodGet, "/v1/payment_intents/"+at(bad, "id"), ""), "status", "requires_payment_method", "last_payment_error.code", "account_closed")
	charge = u.must(http.MethodGet, "/v1/charges/"+badCharge, "expand[]=failure_balance_transaction")
	wants(t, charge, "status", "failed", "failure_code", "account_closed", "failure_balance_transaction.amount", "-1000", "failure_balance_transaction.net", "-941",
		"failure_balance_transaction.type", "payment_failure_refund")
	wants(t, u.must(http.MethodGet, "/v1/payment_intents/"+at(stuck, "id"), ""), "status", "processing")
	wants(t, u.must(http.MethodPost, "/_sim/payment_intents/"+at(stuck, "id")+"/settle", `{"outcome":"failed"}`), "status", "requires_payment_method")
	if a := u.call(http.MethodPost, "/_sim/payment_intents/"+at(stuck, "id")+"/settle", `{"outcome":"failed"}`); a.Status != 400 {
		t.Errorf("what is settled settles again: %d %s", a.Status, a.Raw)
	}
	sequence(t, happened(u, pi), "payment_intent.created charge.pending payment_intent.processing charge.succeeded payment_intent.succeeded")
	sequence(t, happened(u, bad), "payment_intent.created charge.pending payment_intent.processing charge.failed payment_intent.payment_failed")
}

func TestOldCharges(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	rich := u.make("/v1/customers", "source=tok_visa")
	poor := u.make("/v1/customers", "")
	for _, tc := range []struct {
		form              string
		status            int
		kind, code, param string
	}{
		{"currency=usd&source=tok_visa", 400, "invalid_request_error", "parameter_missing", "amount"},
		{"amount=1000&currency=usd", 400, "invalid_request_error", "parameter_missing", ""},
		{"amount=1000&currency=usd&source=tok_nobody", 400, "invalid_request_error", "resource_missing", "source"},
		{"amount=1000&currency=usd&customer=" + poor, 402, "card_error", "missing", "card"},
		{"amount=1000&currency=usd&customer=" + rich + "&source=card_nobody", 404, "invalid_request_error", "missing", "card"},
		{"amount=1000&currency=usd&source=tok_chargeDeclined", 402, "card_error", "card_declined", ""},
	} {
		u.refused(u.call(http.MethodPost, "/v1/charges", tc.form), tc.status, tc.kind, tc.code, tc.param)
	}
	wants(t, u.must(http.MethodPost, "/v1/charges", "amount=1000&currency=usd&customer="+rich), "status", "succeeded", "payment_intent", "<nil>", "customer", rich)
	held := u.make("/v1/charges", "amount=1000&currency=usd&source=tok_visa&capture=false")
	u.refused(u.call(http.MethodPost, "/v1/refunds", "charge="+held+"&amount=1"), 400, "invalid_request_error", "", "amount")
	u.refused(u.call(http.MethodPost, "/v1/charges/"+held+"/capture", "amount=1001"), 400, "invalid_request_error", "amount_too_large", "amount")
	wants(t, u.must(http.MethodPost, "/v1/charges/"+held+"/capture", "amount=1000"), "captured", "true", "amount_refunded", "0")
	u.refused(u.call(http.MethodPost, "/v1/charges/"+held+"/capture", ""), 400, "invalid_request_error", "charge_already_captured", "")
	released := u.make("/v1/charges", "amount=1000&currency=usd&source=tok_visa&capture=false")
	wants(t, u.must(http.MethodPost, "/v1/refunds", "charge="+released), "amount", "1000", "balance_transaction", "<nil>")
	u.refused(u.call(http.MethodPost, "/v1/charges/"+released+"/capture", ""), 400, "invalid_request_error", "charge_expired_for_capture", "")
	u.must(http.MethodPost, "/v1/charges/"+held, "description=changed&fraud_details[user_report]=safe")
	wants(t, lastEvent(u, "charge.updated"), "data.previous_attributes.description", "<nil>", "data.object.description", "changed", "data.object.fraud_details.user_report", "safe")
	u.refused(u.call(http.MethodPost, "/v1/charges/"+held, "fraud_details[user_report]=odd"), 400, "invalid_request_error", "", "fraud_details[user_report]")
}

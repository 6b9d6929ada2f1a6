package stripesim_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

func TestRefundsRefuseWhatStripeRefuses(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	pi, charge := paid(u, "pm_card_visa")
	id := at(pi, "id")
	for _, tc := range []struct {
		form              string
		status            int
		code, param, text string
	}{
		{"", 400, "parameter_missing", "", "payment_intent or charge"},
		{"charge=ch_nobody", 400, "resource_missing", "charge", "No such charge: 'ch_nobody'"},
		{"payment_intent=pi_nobody", 400, "resource_missing", "payment_intent", "No such payment_intent"},
		{"charge=" + charge + "&payment_intent=" + id, 400, "", "", "only specify one of"},
		{"charge=" + charge + "&amount=0", 400, "parameter_invalid_integer", "amount", "at least 1"},
		{"charge=" + charge + "&amount=-1", 400, "parameter_invalid_integer", "amount", "at least 1"},
		{"charge=" + charge + "&amount=1001", 400, "", "amount", "greater than unrefunded amount on charge"},
		{"charge=" + charge + "&reason=bored", 400, "", "reason", "must be one of duplicate, fraudulent, or requested_by_customer"},
		{"charge=" + charge + "&colour=red", 400, "parameter_unknown", "colour", "unknown parameter"},
	} {
		a := u.call(http.MethodPost, "/v1/refunds", tc.form)
		u.refused(a, tc.status, "invalid_request_error", tc.code, tc.param)
		if message := at(a.Body, "error.message"); !strings.Contains(message, tc.text) {
			t.Errorf("%q says %q, want %q", tc.form, message, tc.text)
		}
	}
	if got := u.State().Counts["refund"]; got != 0 {
		t.Errorf("refused calls have made %d refunds", got)
	}
	refund := u.make("/v1/refunds", "charge="+charge)
	u.refused(u.call(http.MethodPost, "/v1/refunds", "charge="+charge+"&amount=1"), 400, "invalid_request_error", "charge_already_refunded", "")
	u.refused(u.call(http.MethodPost, "/v1/refunds/"+refund+"/cancel", ""), 400, "invalid_request_error", "", "")
	u.refused(u.call(http.MethodPost, "/v1/test_helpers/refunds/"+refund+"/expire", ""), 400, "invalid_request_error", "", "")
	u.refused(u.call(http.MethodPost, "/v1/test_helpers/refunds/re_nobody/expire", ""), 404, "invalid_request_error", "resource_missing", "refund")
	for path, body := range map[string]string{"/fail": `{"reason":"bored"}`, "/succeed": ``} {
		if a := u.call(http.MethodPost, "/_sim/refunds/"+refund+path, body); a.Status != http.StatusBadRequest {
			t.Errorf("%s %s is answered %d %s", path, body, a.Status, a.Raw)
		}
	}
}

func TestRefundsAddUp(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	pi, charge := paid(u, "pm_card_visa")
	first := u.must(http.MethodPost, "/v1/refunds", "payment_intent="+at(pi, "id")+"&amount=300&reason=fraudulent&metadata[a]=b&refund_application_fee=false&reverse_transfer=false&expand[]=balance_transaction")
	wants(t, first, "status", "succeeded", "charge", charge, "payment_intent", at(pi, "id"), "balance_transaction.type", "refund", "balance_transaction.amount", "-300",
		"balance_transaction.fee", "0", "balance_transaction.net", "-300", "balance_transaction.source", at(first, "id"))
	e := lastEvent(u, "charge.refunded")
	wants(t, e, "data.object.amount_refunded", "300", "data.object.refunded", "false", "data.previous_attributes.amount_refunded", "0", "data.object.refunds", "<none>",
		"data.object.fraud_details.user_report", "fraudulent")
	u.must(http.MethodPost, "/v1/refunds", "charge="+charge)
	wants(t, lastEvent(u, "charge.refunded"), "data.object.amount_refunded", "1000", "data.object.refunded", "true", "data.previous_attributes.amount_refunded", "300")
	u.must(http.MethodPost, "/_sim/refunds/"+at(first, "id")+"/fail", `{"reason":"lost_or_stolen_card"}`)
	e = lastEvent(u, "charge.refund.updated")
	wants(t, e, "data.object.status", "failed", "data.object.failure_reason", "lost_or_stolen_card", "data.previous_attributes.status", "succeeded")
	back := u.must(http.MethodGet, "/v1/balance_transactions/"+at(e, "data.object.failure_balance_transaction"), "")
	wants(t, back, "type", "refund_failure", "amount", "300", "fee", "0")
	wants(t, u.must(http.MethodGet, "/v1/charges/"+charge, ""), "amount_refunded", "700", "refunded", "false")
	wants(t, u.must(http.MethodPost, "/v1/refunds", "charge="+charge), "amount", "300")
	list := u.must(http.MethodGet, "/v1/refunds", "charge="+charge+"&limit=2")
	wants(t, list, "data.0.amount", "300", "data.1.amount", "700", "has_more", "true")
	wants(t, u.must(http.MethodGet, "/v1/refunds", "payment_intent="+at(pi, "id")+"&starting_after="+at(list, "data.1.id")), "data.0.id", at(first, "id"), "has_more", "false")
	sequence(t, happened(u, map[string]any{"id": charge}), "charge.succeeded charge.refunded charge.refunded charge.refund.updated charge.refunded")
	if a := u.call(http.MethodPost, "/_sim/refunds/"+at(first, "id")+"/fail", ""); a.Status != http.StatusBadRequest {
		t.Errorf("a refund fails twice: %d %s", a.Status, a.Raw)
	}
}

func TestRefundSwitches(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name               string
		switches           stripesim.Switches
		pending, succeeded string // amount_refunded
		failed             string // after a failure of one that succeeded
		events             string
	}{
		{"as it is", stripesim.Switches{}, "400", "400", "0", "charge.succeeded charge.refunded charge.refund.updated charge.refund.updated"},
		{"with refund events", stripesim.Switches{RefundEvents: true}, "400", "400", "0", "charge.succeeded charge.refunded refund.created charge.refund.updated refund.updated charge.refund.updated refund.updated refund.failed"},
		{"amount kept", stripesim.Switches{KeepAmountRefunded: true}, "400", "400", "400", "charge.succeeded charge.refunded charge.refund.updated charge.refund.updated"},
		{"pending not counted", stripesim.Switches{PendingRefundsUncounted: true}, "0", "400", "0", "charge.succeeded charge.refunded charge.refund.updated charge.refund.updated"},
		{"all pending", stripesim.Switches{RefundsPending: true, PendingRefundsUncounted: true, RefundEvents: true}, "0", "400", "0", "charge.succeeded refund.created charge.refunded charge.refund.updated refund.updated charge.refund.updated refund.updated refund.failed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := newUser(t, stripesim.Options{Switches: tc.switches})
			_, charge := paid(u, "pm_card_visa")
			form := "charge=" + charge + "&amount=400"
			if !tc.switches.RefundsPending {
				form += "&metadata[sim_status]=pending"
			}
			refund := u.must(http.MethodPost, "/v1/refunds", form)
			wants(t, refund, "status", "pending")
			u.refused(u.call(http.MethodPost, "/v1/refunds", "charge="+charge+"&amount=601"), 400, "invalid_request_error", "", "amount")
			wants(t, u.must(http.MethodGet, "/v1/charges/"+charge, ""), "amount_refunded", tc.pending)
			u.Advance(29 * 24 * time.Hour)
			wants(t, u.must(http.MethodGet, "/v1/refunds/"+at(refund, "id"), ""), "status", "pending") // it waits to be told
			wants(t, u.must(http.MethodPost, "/_sim/refunds/"+at(refund, "id")+"/succeed", ""), "status", "succeeded")
			wants(t, u.must(http.MethodGet, "/v1/charges/"+charge, ""), "amount_refunded", tc.succeeded)
			if err := u.EndRefund(at(refund, "id"), "failed"); err != nil {
				t.Fatal(err)
			}
			wants(t, u.must(http.MethodGet, "/v1/charges/"+charge, ""), "amount_refunded", tc.failed)
			sequence(t, happened(u, map[string]any{"id": charge}), tc.events)
		})
	}
}

func TestRefundsEndByThemselves(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Switches: stripesim.Switches{SettleSeconds: 3600}})
	refund := func(method, extra string) string {
		_, charge := paid(u, method)
		if method == "pm_usBankAccount_success" {
			u.Advance(time.Hour)
		}
		return u.make("/v1/refunds", "charge="+charge+extra)
	}
	status := func(id, want string) {
		t.Helper()
		wants(t, u.must(http.MethodGet, "/v1/refunds/"+id, ""), "status", want)
	}
	late, fails, plain := refund("pm_card_pendingRefund", ""), refund("pm_card_refundFail", ""), refund("pm_card_visa", "")
	debit := refund("pm_usBankAccount_success", "")
	asking := refund("pm_card_visa", "&metadata[sim_status]=requires_action&instructions_email=a@example.com")
	cancelled := refund("pm_card_pendingRefund", "")
	wants(t, u.must(http.MethodGet, "/v1/refunds/"+asking, ""), "status", "requires_action", "next_action.display_details.email_sent.email_sent_to", "a@example.com", "balance_transaction", "<nil>")
	status(debit, "pending")
	if !strings.HasPrefix(debit, "pyr_") {
		t.Errorf("the refund of a debit is called %s", debit)
	}
	gone := u.must(http.MethodPost, "/v1/refunds/"+cancelled+"/cancel", "")
	wants(t, gone, "status", "canceled", "failure_reason", "<none>")
	u.Advance(time.Hour + time.Second)
	status(late, "succeeded")
	status(fails, "failed")
	status(plain, "succeeded")
	status(debit, "succeeded")
	status(cancelled, "canceled")
	u.Advance(44 * 24 * time.Hour)
	status(asking, "requires_action")
	u.Advance(24 * time.Hour)
	status(asking, "failed")
	expired := refund("pm_card_visa", "&metadata[sim_status]=requires_action")
	wants(t, u.must(http.MethodPost, "/v1/test_helpers/refunds/"+expired+"/expire", ""), "status", "failed", "next_action", "<none>")
	settled := refund("pm_card_visa", "&metadata[sim_status]=requires_action")
	wants(t, u.must(http.MethodPost, "/_sim/refunds/"+settled+"/succeed", ""), "status", "succeeded")
}

package stripesim_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

func TestDisputesRefuse(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	_, charge := paid(u, "pm_card_visa")
	_, held := paid(u, "pm_card_visa&capture_method=manual")
	for body, want := range map[string]string{
		`{"charge":"ch_nobody"}`:                                "No such charge",
		`{"charge":"` + charge + `","reason":"bored"}`:          "it is one of bank_cannot_process",
		`{"charge":"` + charge + `","stage":"lost"}`:            "it is one of inquiry, opened",
		`{"charge":"` + charge + `","amount":1001}`:             "there is 1000 left",
		`{"charge":"` + charge + `","amount":-1}`:               "there is 1000 left",
		`{"charge":"` + held + `"}`:                             "only money that was taken can be disputed",
		`{"charge":"` + charge + `","colour":"red"}`:            "colour",
		`{"charge":"` + charge + `","stage":"opened","amount":`: "the body is not as",
	} {
		if a := u.call(http.MethodPost, "/_sim/disputes", body); a.Status < 400 || !strings.Contains(a.Raw, want) {
			t.Errorf("%s is answered %d %s, want %q", body, a.Status, a.Raw, want)
		}
	}
	id, err := u.OpenDispute(stripesim.Dispute{Charge: charge})
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		`{"outcome":"perhaps"}`:                    "it is one of opened, under_review",
		`{"outcome":"opened"}`:                     "opened takes one of warning_needs_response",
		`{"outcome":"partly_won"}`:                 "from 1 to 999",
		`{"outcome":"partly_won","amount":1000}`:   "from 1 to 999",
		`{"outcome":"won","amount":5}`:             "won takes no amount",
		`{"outcome":"warning_closed","amount":0}`:  "takes one of warning_needs_response",
		`{"outcome":"under_review","colour":true}`: "colour",
	} {
		if a := u.call(http.MethodPost, "/_sim/disputes/"+id, body); a.Status != 400 || !strings.Contains(a.Raw, want) {
			t.Errorf("%s is answered %d %s, want %q", body, a.Status, a.Raw, want)
		}
	}
	u.refused(u.call(http.MethodPost, "/v1/refunds", "charge="+charge), 400, "invalid_request_error", "charge_disputed", "")
	u.refused(u.call(http.MethodGet, "/v1/disputes/dp_nobody", ""), 404, "invalid_request_error", "resource_missing", "dispute")
	u.refused(u.call(http.MethodPost, "/v1/disputes/"+id, "evidence[colour]=red"), 400, "invalid_request_error", "parameter_unknown", "evidence[colour]")
	u.refused(u.call(http.MethodPost, "/v1/disputes/"+id, "evidence[uncategorized_text]="+strings.Repeat("x", 150001)), 400, "invalid_request_error", "", "evidence")
	wants(t, u.must(http.MethodPost, "/v1/disputes/"+id+"/close", ""), "status", "lost")
	u.refused(u.call(http.MethodPost, "/v1/disputes/"+id+"/close", ""), 400, "invalid_request_error", "", "")
	u.refused(u.call(http.MethodPost, "/v1/disputes/"+id, "evidence[receipt]=file_1"), 400, "invalid_request_error", "", "")
	u.refused(u.call(http.MethodPost, "/v1/refunds", "charge="+charge), 400, "invalid_request_error", "charge_disputed", "")
	if _, err := u.OpenDispute(stripesim.Dispute{Charge: charge}); err == nil {
		t.Error("what is lost is disputed again")
	}
}

func TestDisputesMoveMoney(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		stage    string
		outcomes []string
		amount   int64 // of partly_won
		switches stripesim.Switches
		status   string
		net      []string // of the dispute's balance transactions
		events   string
	}{
		{"won", "", []string{"won"}, 0, stripesim.Switches{}, "won", []string{"-2500", "2500"}, "created funds_withdrawn closed funds_reinstated"},
		{"won after review", "opened", []string{"under_review", "won"}, 0, stripesim.Switches{}, "won", []string{"-2500", "2500"}, "created funds_withdrawn updated closed funds_reinstated"},
		{"won, fee kept", "", []string{"won"}, 0, stripesim.Switches{KeepDisputeFee: true}, "won", []string{"-2500", "1000"}, "created funds_withdrawn closed funds_reinstated"},
		{"won, free", "", []string{"won"}, 0, stripesim.Switches{FeeFree: true}, "won", []string{"-1000", "1000"}, "created funds_withdrawn closed funds_reinstated"},
		{"lost", "", []string{"lost"}, 0, stripesim.Switches{}, "lost", []string{"-2500"}, "created funds_withdrawn closed"},
		{"partly won", "", []string{"partly_won"}, 400, stripesim.Switches{}, "lost", []string{"-2500", "400"}, "created funds_withdrawn closed funds_reinstated"},
		{"an inquiry that ends", "inquiry", []string{"warning_closed"}, 0, stripesim.Switches{}, "warning_closed", nil, "created closed"},
		{"an inquiry under review", "inquiry", []string{"under_review", "warning_closed"}, 0, stripesim.Switches{}, "warning_closed", nil, "created updated closed"},
		{"an inquiry that escalates", "inquiry", []string{"opened", "lost"}, 0, stripesim.Switches{}, "lost", []string{"-2500"}, "created updated funds_withdrawn closed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			u := newUser(t, stripesim.Options{Switches: tc.switches})
			pi, charge := paid(u, "pm_card_visa")
			o := u.must(http.MethodPost, "/_sim/disputes", fmt.Sprintf(`{"charge":%q,"stage":%q,"reason":"duplicate"}`, charge, tc.stage))
			wants(t, o, "amount", "1000", "reason", "duplicate", "payment_intent", at(pi, "id"), "is_charge_refundable", fmt.Sprint(tc.stage == "inquiry"))
			for _, outcome := range tc.outcomes {
				amount := int64(0)
				if outcome == "partly_won" {
					amount = tc.amount
				}
				u.must(http.MethodPost, "/_sim/disputes/"+at(o, "id"), fmt.Sprintf(`{"outcome":%q,"amount":%d}`, outcome, amount))
			}
			o = u.must(http.MethodGet, "/v1/disputes/"+at(o, "id"), "")
			wants(t, o, "status", tc.status)
			wants(t, u.must(http.MethodGet, "/v1/charges/"+charge, ""), "disputed", "true", "amount_refunded", "0")
			txns, _ := o["balance_transactions"].([]any)
			if len(txns) != len(tc.net) {
				t.Fatalf("%d balance transactions, want %d: %v", len(txns), len(tc.net), txns)
			}
			for i, net := range tc.net {
				wants(t, txns[i].(map[string]any), "net", net, "source", at(o, "id"), "type", "adjustment")
			}
			var events []string
			for _, kind := range happened(u, map[string]any{"id": charge}) {
				if short, ok := strings.CutPrefix(kind, "charge.dispute."); ok {
					events = append(events, short)
				}
			}
			sequence(t, events, tc.events)
			wants(t, lastEvent(u, "charge.dispute.closed"), "data.object.status", tc.status)
		})
	}
}

func TestDisputesAndRefundsMeet(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	_, charge := paid(u, "pm_card_visa")
	u.make("/v1/refunds", "charge="+charge+"&amount=300")
	pending := u.make("/v1/refunds", "charge="+charge+"&amount=200&metadata[sim_status]=pending")
	id, err := u.OpenDispute(stripesim.Dispute{Charge: charge, Stage: "inquiry"})
	if err != nil {
		t.Fatal(err)
	}
	u.make("/v1/refunds", "charge="+charge+"&amount=100") // an inquiry may be settled so
	wants(t, u.must(http.MethodGet, "/v1/refunds/"+pending, ""), "status", "pending")
	if err := u.ResolveDispute(id, "opened", 0); err != nil {
		t.Fatal(err)
	}
	wants(t, u.must(http.MethodGet, "/v1/disputes/"+id, ""), "amount", "500", "status", "needs_response")
	wants(t, u.must(http.MethodGet, "/v1/refunds/"+pending, ""), "status", "failed", "failure_reason", "charge_for_pending_refund_disputed")
	wants(t, u.must(http.MethodGet, "/v1/charges/"+charge, ""), "amount_refunded", "400")
	if err := u.ResolveDispute(id, "won", 0); err != nil {
		t.Fatal(err)
	}
	wants(t, u.must(http.MethodPost, "/v1/refunds", "charge="+charge), "amount", "600") // what is won may be given back
	wants(t, u.must(http.MethodGet, "/v1/disputes", "charge="+charge), "data.0.id", id, "data.1", "<none>")
}

func TestEvidenceDecides(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Switches: stripesim.Switches{SettleSeconds: 3600}})
	for text, want := range map[string][2]string{ // of a dispute, of an inquiry
		"winning_evidence":          {"won", "warning_closed"},
		"losing_evidence":           {"lost", "warning_closed"},
		"escalate_inquiry_evidence": {"lost", "needs_response"},
	} {
		for i, method := range []string{"pm_card_createDispute", "pm_card_createDisputeInquiry"} {
			_, charge := paid(u, method)
			o := u.must(http.MethodGet, "/v1/disputes", "charge="+charge)
			id, status := at(o, "data.0.id"), []string{"", "warning_"}[i]
			wants(t, o, "data.0.status", status+"needs_response", "data.0.evidence_details.has_evidence", "false")
			u.must(http.MethodPost, "/v1/disputes/"+id, "submit=false&evidence[customer_name]=Alice")
			wants(t, u.must(http.MethodGet, "/v1/disputes/"+id, ""), "status", status+"needs_response", "evidence.customer_name", "Alice", "evidence_details.has_evidence", "true", "evidence_details.submission_count", "0")
			u.must(http.MethodPost, "/v1/disputes/"+id, "evidence[uncategorized_text]="+text)
			wants(t, u.must(http.MethodGet, "/v1/disputes/"+id, ""), "status", status+"under_review", "evidence.customer_name", "Alice", "evidence_details.submission_count", "1")
			wants(t, lastEvent(u, "charge.dispute.updated"), "data.previous_attributes.status", status+"needs_response")
			u.must(http.MethodPost, "/v1/disputes/"+id, "metadata[a]=b")
			u.Advance(time.Hour + time.Second)
			wants(t, u.must(http.MethodGet, "/v1/disputes/"+id, ""), "status", want[i], "metadata.a", "b")
		}
	}
	_, charge := paid(u, "pm_card_createDispute")
	_, asked := paid(u, "pm_card_createDisputeInquiry")
	u.Advance(9*24*time.Hour + time.Minute)
	wants(t, u.must(http.MethodGet, "/v1/disputes", "charge="+charge), "data.0.status", "lost", "data.0.evidence_details.past_due", "true")
	wants(t, u.must(http.MethodGet, "/v1/disputes", "charge="+asked), "data.0.status", "warning_needs_response")
	u.Advance(112 * 24 * time.Hour)
	wants(t, u.must(http.MethodGet, "/v1/disputes", "charge="+asked), "data.0.status", "warning_closed")
}

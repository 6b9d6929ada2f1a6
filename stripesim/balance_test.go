package stripesim_test

import (
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"testing"
	"time"

	"tallystick/stripesim"
)

func TestFeesAreExact(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for amount, fee := range map[string]string{
		"50": "31", "51": "31", "52": "32", "500": "45", "1000": "59", "1017": "59", "1018": "60", "99999999": "2900030", // 2.9 % of 500 is 14.5: up
	} {
		charge := u.must(http.MethodPost, "/v1/charges", "currency=usd&source=tok_visa&expand[]=balance_transaction&amount="+amount)
		wants(t, charge, "balance_transaction.fee", fee, "balance_transaction.fee_details.0.amount", fee, "balance_transaction.fee_details.0.type", "stripe_fee")
	}
	u.must(http.MethodPost, "/_sim/switches", `{"fee_free":true}`)
	charge := u.must(http.MethodPost, "/v1/charges", "currency=usd&source=tok_visa&expand[]=balance_transaction&amount=1000")
	wants(t, charge, "balance_transaction.fee", "0", "balance_transaction.net", "1000", "balance_transaction.fee_details.0", "<none>")
}

func TestMoneyBecomesAvailable(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	wants(t, u.must(http.MethodGet, "/v1/balance", ""), "available.0.amount", "0", "available.0.currency", "usd", "pending.0.amount", "0")
	u.must(http.MethodPost, "/v1/charges", "currency=usd&source=tok_visa&amount=1000")
	u.must(http.MethodPost, "/v1/charges", "currency=usd&source=tok_bypassPending&amount=2000")
	u.must(http.MethodPost, "/v1/charges", "currency=eur&source=tok_visa&amount=3000")
	wants(t, u.must(http.MethodGet, "/v1/balance", ""), "available.0.currency", "eur", "available.0.amount", "0", "available.1.amount", "1912", "pending.0.amount", "2883", "pending.1.amount", "941", "pending.1.source_types.card", "941")
	u.Advance(2*24*time.Hour + time.Second)
	wants(t, u.must(http.MethodGet, "/v1/balance", ""), "available.0.amount", "2883", "available.1.amount", "2853", "pending.1.amount", "0")
	list := u.must(http.MethodGet, "/v1/balance_transactions", "currency=usd&type=charge&limit=1")
	wants(t, list, "data.0.amount", "2000", "data.0.status", "available", "has_more", "true")
	wants(t, u.must(http.MethodGet, "/v1/balance_transactions", "source="+at(list, "data.0.source")+"&expand[]=data.source"), "data.0.source.object", "charge", "data.1", "<none>")
	wants(t, u.must(http.MethodGet, "/v1/balance_transactions", "type=refund"), "data.0", "<none>")
	u.refused(u.call(http.MethodGet, "/v1/balance_transactions", "payout=po_1"), 400, "invalid_request_error", "resource_missing", "payout")
	u.refused(u.call(http.MethodGet, "/v1/balance_transactions/txn_nobody", ""), 404, "invalid_request_error", "resource_missing", "id")
}

// TestTheBooksAgree plays payments, refunds, failures and disputes at random, and
// computes from the objects alone what the charges and the balance must say.
func TestTheBooksAgree(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			u := newUser(t, stripesim.Options{Seed: seed})
			random := mathrand.New(mathrand.NewPCG(seed, 1))
			methods := []string{"pm_card_visa", "pm_card_refundFail", "pm_card_pendingRefund", "pm_card_createDispute", "pm_card_createDisputeInquiry", "pm_usBankAccount_success", "pm_usBankAccount_noAccount", "pm_card_chargeDeclined"}
			refused := 0
			do := func(path, form string) {
				if a := u.call(http.MethodPost, path, form); a.Status != http.StatusOK {
					refused++
				}
			}
			some := func(kind string) string {
				list, _ := u.must(http.MethodGet, "/v1/"+kind, "limit=100")["data"].([]any)
				if len(list) == 0 {
					return "none"
				}
				return at(list[random.IntN(len(list))].(map[string]any), "id")
			}
			for range 120 {
				switch random.IntN(8) {
				case 0, 1:
					do("/v1/payment_intents", fmt.Sprintf("currency=usd&confirm=true&amount=%d&payment_method=%s", 50+random.IntN(5000), methods[random.IntN(len(methods))]))
				case 2, 3:
					do("/v1/refunds", fmt.Sprintf("charge=%s&amount=%d", some("charges"), 1+random.IntN(1500)))
				case 4:
					do("/_sim/refunds/"+some("refunds")+[]string{"/fail", "/succeed"}[random.IntN(2)], "")
				case 5:
					do("/_sim/disputes", fmt.Sprintf(`{"charge":%q,"stage":%q}`, some("charges"), []string{"inquiry", "opened"}[random.IntN(2)]))
				case 6:
					do("/_sim/disputes/"+some("disputes"), fmt.Sprintf(`{"outcome":%q}`, []string{"opened", "under_review", "won", "lost", "warning_closed"}[random.IntN(5)]))
				case 7:
					u.Advance(time.Duration(random.IntN(40)) * time.Hour)
				}
			}
			if refused == 0 || refused > 100 {
				t.Errorf("%d of 120 steps were refused: the mix shows nothing", refused)
			}
			books(t, u)
		})
	}
}

// books holds charges and balance against refunds, disputes and charges.
func books(t *testing.T, u *user) {
	t.Helper()
	all := func(kind string) []map[string]any {
		var objects []map[string]any
		after := ""
		for {
			page := u.must(http.MethodGet, "/v1/"+kind, "limit=100"+after)
			list, _ := page["data"].([]any)
			for _, o := range list {
				objects = append(objects, o.(map[string]any))
			}
			if page["has_more"] != true {
				return objects
			}
			after = "&starting_after=" + at(objects[len(objects)-1], "id")
		}
	}
	amount := func(o map[string]any, name string) int64 {
		n, _ := o[name].(json.Number)
		v, _ := n.Int64()
		return v
	}
	var net int64
	given := map[string]int64{}
	for _, o := range all("refunds") {
		if s := at(o, "status"); s == "succeeded" || s == "pending" {
			given[at(o, "charge")] += amount(o, "amount")
			net -= amount(o, "amount")
		}
	}
	for _, o := range all("charges") {
		if id := at(o, "id"); amount(o, "amount_refunded") != given[id] || o["refunded"] != (given[id] > 0 && given[id] == amount(o, "amount")) || given[id] > amount(o, "amount") {
			t.Errorf("charge %s says %d refunded, its refunds %d", id, amount(o, "amount_refunded"), given[id])
		}
		if at(o, "status") != "failed" {
			fee := (amount(o, "amount_captured")*29+500)/1000 + 30
			net += amount(o, "amount") - fee // what was not captured stands among the refunds
		}
	}
	for _, o := range all("disputes") {
		switch at(o, "status") {
		case "needs_response", "under_review", "lost":
			net -= amount(o, "amount") + 1500
		}
	}
	balance := u.must(http.MethodGet, "/v1/balance", "")
	var has int64
	for _, status := range []string{"available", "pending"} {
		list, _ := balance[status].([]any)
		for _, o := range list {
			has += amount(o.(map[string]any), "amount")
		}
	}
	if has != net {
		t.Errorf("the balance is %d, the objects say %d", has, net)
	}
}

// TestPaymentsSurviveARestart ends the simulator between all that takes a while and
// its end.
func TestPaymentsSurviveARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := func(t *testing.T) *user {
		t.Helper()
		return newUser(t, stripesim.Options{Dir: dir, Switches: stripesim.Switches{SettleSeconds: 3600}})
	}
	var debit, held, refund, dispute, customer, action string
	t.Run("before", func(t *testing.T) { //nolint:paralleltest // the second reads what this one leaves
		u := start(t)
		customer = u.make("/v1/customers", "payment_method=pm_card_mastercard&invoice_settings[default_payment_method]=pm_card_mastercard")
		o, _ := paid(u, "pm_usBankAccount_success")
		debit = at(o, "id")
		o, _ = paid(u, "pm_card_visa&capture_method=manual")
		held = at(o, "id")
		_, charge := paid(u, "pm_card_pendingRefund")
		refund = u.make("/v1/refunds", "charge="+charge+"&amount=400")
		_, charge = paid(u, "pm_card_createDispute")
		dispute = at(u.must(http.MethodGet, "/v1/disputes", "charge="+charge), "data.0.id")
		o, _ = paid(u, "pm_card_authenticationRequired")
		action = at(o, "id")
	})
	t.Run("after", func(t *testing.T) { //nolint:paralleltest // see above
		u := start(t)
		wants(t, u.must(http.MethodGet, "/v1/payment_intents/"+debit, ""), "status", "processing")
		u.must(http.MethodPost, "/v1/disputes/"+dispute, "evidence[uncategorized_text]=winning_evidence")
		u.Advance(time.Hour + time.Second)
		wants(t, u.must(http.MethodGet, "/v1/payment_intents/"+debit, ""), "status", "succeeded")
		wants(t, u.must(http.MethodGet, "/v1/refunds/"+refund, ""), "status", "succeeded")
		wants(t, u.must(http.MethodGet, "/v1/disputes/"+dispute, ""), "status", "won", "balance_transactions.0.net", "-2500", "balance_transactions.1.net", "2500")
		wants(t, u.must(http.MethodPost, "/v1/payment_intents/"+held+"/capture", "amount_to_capture=300"), "amount_received", "300")
		wants(t, u.must(http.MethodPost, "/_sim/payment_intents/"+action+"/authenticate", `{"outcome":"succeeded"}`), "status", "succeeded")
		wants(t, u.must(http.MethodGet, "/v1/customers/"+customer+"/payment_methods", ""), "data.0.card.brand", "mastercard")
		books(t, u)
	})
}

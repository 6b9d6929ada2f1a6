package reconcile_test

import (
	"fmt"
	"net/http"
	"net/url"
)

// payment is the one that bought the first pack.
func (a *audited) payment() string {
	a.t.Helper()
	list, _ := a.Stripe(http.MethodGet, "/v1/payment_intents?limit=1", nil)["data"].([]any)
	pi, _ := list[0].(map[string]any)
	return fmt.Sprint(pi["id"])
}

// refund gives back 5.00 of the 10.00 USD.
func (a *audited) refund() (id string) {
	a.t.Helper()
	return a.Make("/v1/refunds", url.Values{"payment_intent": {a.payment()}, "amount": {"500"}})
}

// dispute opens one about all of the 10.00 USD.
func (a *audited) dispute() (id string) {
	a.t.Helper()
	a.Control("/_sim/disputes", fmt.Sprintf(`{"charge": %q, "reason": "fraudulent", "stage": "opened"}`, a.Stripe(http.MethodGet, "/v1/payment_intents/"+a.payment(), nil)["latest_charge"]))
	list, _ := a.Stripe(http.MethodGet, "/v1/disputes", nil)["data"].([]any)
	d, _ := list[0].(map[string]any)
	return fmt.Sprint(d["id"])
}

// deaf loses every webhook about money that goes back.
func (a *audited) deaf() {
	a.t.Helper()
	a.Control("/_sim/webhooks", `{"lose": {"types": ["charge.refunded", "charge.refund.updated", "refund.created", "refund.updated", "charge.dispute.created",
		"charge.dispute.updated", "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated", "charge.dispute.closed"]}}`)
}

// moneyDefects has one entry per cause of the checks of money that went back.
var moneyDefects = []defect{
	{
		"refund_missed", func(a *audited) { a.deaf(); a.refund() },
		"credits.refunds", "0", "50", "+50", "5.00 USD", "take_back", true, false,
	},
	{
		"refund_took_too_little", func(a *audited) {
			a.vandalise("UPDATE payments SET money = 2000")
			a.refund()
			a.Settled()
		}, "credits.refunds", "25", "50", "+25", "2.50 USD", "take_back", false, false,
	},
	{
		"refund_took_too_much", func(a *audited) {
			a.vandalise("UPDATE payments SET money = 800")
			a.refund()
			a.Settled()
		}, "credits.refunds", "62.5", "50", "-12.5", "1.25 USD", "take_back", false, false,
	},
	{
		"refund_failed", func(a *audited) {
			id := a.refund()
			a.Settled()
			a.deaf()
			a.Control("/_sim/refunds/"+id+"/fail", `{"reason": "expired_or_canceled_card"}`)
		}, "credits.refunds", "50", "0", "-50", "5.00 USD", "take_back", true, false,
	},
	{
		"dispute_missed", func(a *audited) { a.deaf(); a.dispute() },
		"credits.disputes", "0", "100", "+100", "10.00 USD", "take_back", true, true,
	},
	{
		"dispute_took_too_little", func(a *audited) {
			a.vandalise("UPDATE payments SET money = 2000")
			a.dispute()
			a.Settled()
		}, "credits.disputes", "50", "100", "+50", "5.00 USD", "take_back", false, true,
	},
	{
		"dispute_took_too_much", func(a *audited) {
			id := a.dispute()
			a.Settled()
			a.deaf()
			a.Control("/_sim/disputes/"+id, `{"outcome": "partly_won", "amount": 400}`)
		}, "credits.disputes", "100", "60", "-40", "4.00 USD", "take_back", true, false,
	},
	{
		"dispute_not_given_back", func(a *audited) {
			id := a.dispute()
			a.Settled()
			a.deaf()
			a.Control("/_sim/disputes/"+id, `{"outcome": "won"}`)
		}, "credits.disputes", "100", "0", "-100", "10.00 USD", "take_back", true, false,
	},
	{
		"payment_failed", func(a *audited) {
			intent := a.Make("/v1/payment_intents", url.Values{"amount": {"1000"}, "currency": {"usd"}})
			a.vandalise(`INSERT INTO grants SELECT part, account, grant_id || '-2', kind, 30000000, 0, priority, expires_at, reason, $1, fingerprint, transfer_version, created_at FROM grants`, intent)
		}, "credits.payments", "30", "0", "-30", "3.00 USD", "", false, false,
	},
}

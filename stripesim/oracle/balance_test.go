package oracle

import (
	"maps"
	"slices"
)

// moneyKind is the kind of balance transactions.
const moneyKind = "balance_transaction"

// balanceRules are those of balance transactions and of what they add up to.
var balanceRules = []rule{
	getRule(moneyKind, "/v1/balance_transactions/"),
	listRule(moneyKind),
	{"GET /v1/balance", func(_ *oracle, e *entry) verdict { return accept(!e.bad(nil)) }, func(o *oracle, e *entry) {
		for _, wrong := range differences(o.balance(), e.answer) {
			o.problem("the balance's %s", wrong)
		}
	}},
}

// money is what a balance transaction moves.
type money struct {
	kind, category string
	source         *thing
	amount, fee    int64 // below zero for what goes, and for a fee that comes back
	waits          bool  // it is pending for two days
	bank           bool
}

// move enters a balance transaction, whose currency is its source's.
func (o *oracle) move(m money) *thing {
	t := o.born(moneyKind, "txn", map[string]any{
		"type": m.kind, "reporting_category": m.category, "source": m.source, "amount": m.amount, "fee": m.fee, "net": m.amount - m.fee,
		"currency": m.source.members["currency"], "status": "available", "available_on": o.now.Unix(), "fee_details": []any{}, "_bank": m.bank,
	})
	if m.fee != 0 {
		t.members["fee_details"] = []any{part{"amount": m.fee, "currency": t.members["currency"], "type": "stripe_fee"}}
	}
	if m.waits {
		t.members["status"], t.members["available_on"] = "pending", o.after(waitsForMoney)
		o.plan(t, o.after(waitsForMoney), func() { t.members["status"] = "available" })
	}
	return t
}

// feeOf is what a payment costs: 2.9 % of it, to the nearest minor unit, and 30.
func (o *oracle) feeOf(amount int64) int64 {
	if o.switches.FeeFree {
		return 0
	}
	return (amount*29+500)/1000 + 30
}

// earned moves what was captured of a charge to the account.
func (o *oracle) earned(charge *thing) *thing {
	acts, amount := charge.of("payment_method").acts(), charge.number("amount_captured")
	kind := "charge"
	if acts.bank {
		kind = "payment"
	}
	return o.move(money{kind: kind, category: "charge", source: charge, amount: amount, fee: o.feeOf(amount), waits: !acts.available, bank: acts.bank})
}

// balance is what all balance transactions add up to, by status and currency.
func (o *oracle) balance() map[string]any {
	sums := map[string]map[bool]map[string]int64{}
	for _, status := range []string{"available", "pending"} {
		sums[status] = map[bool]map[string]int64{true: {}, false: {}}
	}
	currencies := map[string]bool{}
	for _, t := range o.things[moneyKind] {
		currencies[t.text("currency")] = true
		sums[t.text("status")][t.is("_bank")][t.text("currency")] += t.number("net")
	}
	if len(currencies) == 0 {
		currencies["usd"] = true
	}
	all := map[string]any{"object": "balance", "livemode": false}
	for status, by := range sums {
		var amounts []any
		for _, currency := range slices.Sorted(maps.Keys(currencies)) {
			sources := part{"card": by[false][currency]}
			if n := by[true][currency]; n != 0 {
				sources["bank_account"] = n
			}
			amounts = append(amounts, part{"amount": by[false][currency] + by[true][currency], "currency": currency, "source_types": sources})
		}
		all[status] = amounts
	}
	return all
}

// auditBalance wants that what the simulator lists adds up to what it says it has,
// and that every charge, refund and dispute moved what it says.
func (o *oracle) auditBalance(r reader) {
	sums, moved := map[string]int64{}, map[string]int64{}
	for _, txn := range o.whole(r, "/v1/balance_transactions", nil) {
		net := wholeOf(txn["amount"]) - wholeOf(txn["fee"])
		if net != wholeOf(txn["net"]) {
			o.problem("balance transaction %s nets %v, want %d", textOf(txn, "id"), txn["net"], net)
		}
		sums[textOf(txn, "status")+" "+textOf(txn, "currency")] += net
		moved[textOf(txn, "source")] += wholeOf(txn["amount"])
	}
	balance := r.get("/v1/balance", nil)
	for _, wrong := range differences(o.balance(), balance) {
		o.problem("in the end the balance's %s", wrong)
	}
	for _, status := range []string{"available", "pending"} {
		amounts, _ := balance[status].([]any)
		for _, raw := range amounts {
			amount, _ := raw.(map[string]any)
			if name := status + " " + textOf(amount, "currency"); wholeOf(amount["amount"]) != sums[name] {
				o.problem("the balance says %v of %s, and its transactions add up to %d", amount["amount"], name, sums[name])
			}
		}
	}
	o.auditMoved(moved)
}

// auditMoved wants the amounts that balance transactions have moved, fees apart.
func (o *oracle) auditMoved(moved map[string]int64) {
	check := func(t *thing, want int64) {
		if moved[t.id] != want {
			o.problem("the %s %s has moved %d, want %d", t.kind, t.id, moved[t.id], want)
		}
	}
	for _, t := range o.things["charge"] {
		if t.text("status") == "failed" {
			check(t, 0)
		} else {
			check(t, t.number("amount_captured"))
		}
	}
	for _, t := range o.things["refund"] {
		if s := t.text("status"); t.is("_held") || s == "requires_action" || s == "failed" || s == "canceled" {
			check(t, 0)
		} else {
			check(t, -t.number("amount"))
		}
	}
	for _, t := range o.things["dispute"] {
		switch t.text("status") {
		case "needs_response", "under_review":
			check(t, -t.number("amount"))
		case "lost": // a part may have come back
			if m := moved[t.id]; m >= 0 || m < -t.number("amount") {
				o.problem("the dispute %s was lost and has moved %d", t.id, m)
			}
		default:
			check(t, 0)
		}
	}
}

package stripesim

import (
	"maps"
	"slices"
)

// availableAfter is how long the money of a payment is pending, in seconds.
const availableAfter = 2 * 24 * 3600

// disputeFee is what a dispute costs, in minor units.
const disputeFee = 1500

func (s *Server) routeBalance() {
	s.agenda.do["balance_transaction"] = func(o object) { s.change("balance_transaction", o, object{"status": "available"}) }
	s.handle("GET /v1/balance_transactions/{id}", nil, func(c *call) (object, *apiError) {
		return s.find("balance_transaction", c.target(), "id")
	})
	filters := spec{"type": "string", "source": "string", "created": createdSpec, "currency": "string", "payout": "string"}
	s.handle("GET /v1/balance_transactions", listSpec(filters), func(c *call) (object, *apiError) {
		if c.has("payout") {
			return nil, missing("payout", c.text("payout"), "payout")
		}
		return s.list(c, "balance_transaction", func(o object) bool {
			for _, name := range []string{"type", "source", "currency"} {
				if c.has(name) && text(o, name) != c.text(name) {
					return false
				}
			}
			return inRange(c, number(o, "created"))
		})
	})
	s.handle("GET /v1/balance", nil, func(*call) (object, *apiError) { return s.balance(), nil })
}

// paymentFee is what a payment costs: 2.9 % of it, rounded half up to whole minor
// units, and 30 minor units.
func (s *Server) paymentFee(amount int64) int64 {
	if s.switches.FeeFree {
		return 0
	}
	return amount/1000*29 + (amount%1000*29+500)/1000 + 30
}

// movement is money that comes or goes.
type movement struct {
	kind, category string // type and reporting_category
	source         string // the id of the charge, refund or dispute
	amount         int64  // negative for what goes
	fee            int64  // negative for one that comes back
	currency       any
	description    any
	feeName        string // description of the fee
	waits          bool   // it is pending for two days
	bank           bool   // by a bank account, not a card
}

// move keeps a balance transaction of a movement.
func (s *Server) move(m movement) object {
	fees := []any{}
	if m.fee != 0 {
		fees = append(fees, object{"amount": m.fee, "application": nil, "currency": m.currency, "description": m.feeName, "type": "stripe_fee"})
	}
	o := object{
		"id": s.newID("txn"), "object": "balance_transaction", "created": s.now(), "available_on": s.now(), "status": "available", "amount": m.amount, "currency": m.currency,
		"description": m.description, "exchange_rate": nil, "fee": m.fee, "fee_details": fees, "net": m.amount - m.fee, "reporting_category": m.category,
		"source": m.source, "type": m.kind, "_bank": m.bank,
	}
	if m.waits {
		o["status"], o["available_on"] = "pending", s.now()+availableAfter
		s.setAlarm("balance_transaction", o, s.now()+availableAfter)
	}
	s.store.put("balance_transaction", o)
	return o
}

// moveCharge moves the money that was captured of a charge to the account.
func (s *Server) moveCharge(charge object, test testMethod) object {
	kind, amount := "charge", number(charge, "amount_captured")
	if test.bank() {
		kind = "payment"
	}
	return s.move(movement{
		kind: kind, category: "charge", source: text(charge, "id"), amount: amount, fee: s.paymentFee(amount), currency: charge["currency"],
		description: charge["description"], feeName: "Stripe processing fees", waits: !test.available, bank: test.bank(),
	})
}

// moveRefund moves money back to the buyer, and with failed to the account again.
// Stripe keeps the fee of the payment.
func (s *Server) moveRefund(refund object, bank, failed bool) object {
	m := movement{kind: "refund", category: "refund", source: text(refund, "id"), amount: -number(refund, "amount"), currency: refund["currency"], description: "REFUND FOR CHARGE", bank: bank}
	if bank {
		m.kind, m.description = "payment_refund", "REFUND FOR PAYMENT"
	}
	if failed {
		m.kind, m.category, m.amount, m.description = "refund_failure", "refund_failure", -m.amount, "REFUND FAILURE"
	}
	return s.move(m)
}

// moveDispute takes a disputed amount from the account, or gives part of it back,
// with the fee or without.
func (s *Server) moveDispute(dispute object, amount int64, withFee bool) object {
	m := movement{
		kind: "adjustment", category: "dispute", source: text(dispute, "id"), amount: amount, currency: dispute["currency"],
		description: "Chargeback withdrawal for " + text(dispute, "charge"), feeName: "Dispute fee",
	}
	if withFee && !s.switches.FeeFree {
		m.fee = disputeFee
	}
	if amount > 0 {
		m.category, m.fee, m.description = "dispute_reversal", -m.fee, "Chargeback reversal for "+text(dispute, "charge")
	}
	return s.move(m)
}

// balance adds up all balance transactions.
func (s *Server) balance() object {
	type purse struct{ card, bank int64 }
	sums := map[string]map[string]*purse{"available": {}, "pending": {}}
	currencies := map[string]bool{}
	for o := range s.store.shelf("balance_transaction").all {
		currency := text(o, "currency")
		currencies[currency] = true
		purses := sums[text(o, "status")]
		if purses[currency] == nil {
			purses[currency] = &purse{}
		}
		if flag(o, "_bank") {
			purses[currency].bank += number(o, "net")
		} else {
			purses[currency].card += number(o, "net")
		}
	}
	if len(currencies) == 0 {
		currencies["usd"] = true
	}
	b := object{"object": "balance", "livemode": false}
	for status, purses := range sums {
		amounts := []any{}
		for _, currency := range slices.Sorted(maps.Keys(currencies)) {
			p := purses[currency]
			if p == nil {
				p = &purse{}
			}
			by := object{"card": p.card}
			if p.bank != 0 {
				by["bank_account"] = p.bank
			}
			amounts = append(amounts, object{"amount": p.card + p.bank, "currency": currency, "source_types": by})
		}
		b[status] = amounts
	}
	return b
}

package webhooks

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
	"tallystick/ledger"
)

// moneyBack is one thing by which money of a payment goes back.
type moneyBack struct {
	id    string // of the refund, the dispute or the credit note
	kind  string // as in clawbacks
	money int64  // in the payment's currency, what is gone at present
	at    time.Time
}

// Kinds of clawbacks.
const (
	backRefund     = "refund"
	backDispute    = "dispute"
	backCreditNote = "credit_note"
)

// kindOrder is what counts first of what happened in the same second: a dispute is
// of what a refund has left.
var kindOrder = []string{backRefund, backCreditNote, backDispute}

// taking and giving are the ledger's kinds for a clawback. What a credit note gives
// back is a refund that did not go by Stripe.
func taking(kind string) ledger.Kind {
	if kind == backDispute {
		return ledger.KindDispute
	}
	return ledger.KindRefund
}

func giving(kind string) ledger.Kind {
	if kind == backDispute {
		return ledger.KindDisputeWon
	}
	return ledger.KindRefundFailed
}

// returnsOf lists what has gone back, things of the past that came back included.
func returnsOf(refunds []stripe.Refund, disputes []stripe.Dispute, notes []stripe.CreditNote) ([]moneyBack, error) {
	var all []moneyBack
	amounts := map[string]int64{}
	for _, r := range refunds {
		amounts[r.ID] = r.Money
		back := moneyBack{id: r.ID, kind: backRefund, at: r.CreatedAt}
		if r.Status == "succeeded" || r.Status == "pending" {
			back.money = r.Money
		}
		all = append(all, back)
	}
	for _, d := range disputes {
		money, err := withdrawn(d)
		if err != nil {
			return nil, err
		}
		all = append(all, moneyBack{id: d.ID, kind: backDispute, money: money, at: d.CreatedAt})
	}
	for _, n := range notes {
		// The part that is a refund is one of the refunds: it counts there.
		back := moneyBack{id: n.ID, kind: backCreditNote, at: n.CreatedAt}
		if n.Status != "void" {
			back.money = max(n.Money-amounts[n.Refund], 0)
		}
		if back.money > 0 || n.Status == "void" {
			all = append(all, back)
		}
	}
	return all, nil
}

// withdrawn is how much of the disputed money is gone at present. What Stripe moved
// is in the currency of the balance, and so may be another amount: of what is
// disputed, the share counts that has not come back.
func withdrawn(d stripe.Dispute) (int64, error) {
	var taken, back int64
	for _, m := range d.Movements {
		if m.Money < 0 {
			taken -= m.Money
		} else {
			back += m.Money
		}
	}
	if taken == 0 || back >= taken {
		return 0, nil
	}
	money, err := credit.Scale(d.Money, taken-back, taken)
	if err != nil {
		return 0, fmt.Errorf("share out dispute %s: %w", d.ID, err)
	}
	return money, nil
}

// clawback is what one return is to take back.
type clawback struct {
	moneyBack
	credits credit.Amount
}

// clawbacks divides what returns take back. The sum over the returns so far is in
// proportion to the money so far, so that rounding never adds up: a full return
// takes exactly what was bought, in however many parts it comes, and refunds and
// disputes together never take more.
func clawbacks(returns []moneyBack, bought credit.Amount, paid int64) ([]clawback, error) {
	returns = slices.Clone(returns)
	slices.SortFunc(returns, func(a, b moneyBack) int {
		return cmp.Or(a.at.Compare(b.at), slices.Index(kindOrder, a.kind)-slices.Index(kindOrder, b.kind), strings.Compare(a.id, b.id))
	})
	var taken credit.Amount
	var money int64
	targets := make([]clawback, 0, len(returns))
	for _, r := range returns {
		money = min(money+r.money, paid) // more than was paid takes no more than was bought
		sum, err := credit.Scale(int64(bought), money, max(paid, 1))
		if err != nil {
			return nil, fmt.Errorf("share out %s: %w", r.id, err)
		}
		targets = append(targets, clawback{moneyBack: r, credits: credit.Amount(sum) - taken})
		taken = credit.Amount(sum)
	}
	return targets, nil
}

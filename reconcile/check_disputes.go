package reconcile

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tallystick/internal/stripe"
)

// disputesBack is how far back disputes are compared: they take months to be
// decided.
const disputesBack = 150 * 24 * time.Hour

// creditsDisputes is the check credits.disputes: what must be taken back for
// disputes, with what the journal has taken.
func (r *Reconciler) creditsDisputes(ctx context.Context, s scope) (result, error) {
	out := result{timeless: !s.asked || s.account != ""}
	listed, searched := map[string]bool{}, 0
	from := s.from
	if !s.asked {
		from = s.now.Add(-disputesBack)
	}
	err := r.Stripe.Disputes(ctx, from, s.to, func(d stripe.Dispute) error {
		listed[d.PaymentIntent] = true
		return nil
	})
	if err != nil {
		return out, err
	}
	err = r.compareReturns(ctx, s, &out, listed, func(p sold, b returned) error {
		if returnKind(b.id) != returnKind("dp_") {
			return nil
		}
		d := p.disputeFinding(b, s.now)
		out.found = append(out.found, d)
		return r.why(ctx, s, &out.found[len(out.found)-1], p.Payment, b.id, &searched)
	})
	return out, err
}

func (p sold) disputeFinding(b returned, now time.Time) disagreement {
	d := p.returnFinding(b, "dispute")
	d.RepairArgs = paymentArgs{Payment: p.Payment, Dispute: b.id}
	if b.due.After(now) && strings.HasSuffix(b.status, "needs_response") {
		d.Deadline, d.Remains = &b.due, "the bank's decision without your evidence"
	}
	gone := money{amount: b.money, currency: p.Currency}.String()
	switch {
	case b.money == 0 && b.status != "":
		d.Cause = "dispute_not_given_back"
		d.Explanation = fmt.Sprintf("No money of payment %[2]s is gone by dispute %[1]s (%[3]s), and %[4]s credits are taken for it.", b.id, p.Payment, b.status, b.taken)
	case b.taken == 0:
		d.Cause = "dispute_missed"
		d.Explanation = fmt.Sprintf("%s of payment %s were withdrawn by dispute %s (%s), and none of its credits were taken: %s credits can still be spent, or were.", gone, p.Payment, b.id, b.status, b.must)
	case b.taken < b.must:
		d.Cause = "dispute_took_too_little"
		d.Explanation = fmt.Sprintf("%s of payment %s are gone by dispute %s (%s), which are %s credits, and only %s are taken.", gone, p.Payment, b.id, b.status, b.must, b.taken)
	case b.status == "":
		d.Cause, d.Repair, d.Safe = "dispute_took_too_much", "", false
		d.Explanation = fmt.Sprintf("%s credits of payment %s were taken back for %s, and Stripe has no such dispute. Give them back by an adjustment.", b.taken, p.Payment, b.id)
	default:
		d.Cause = "dispute_took_too_much"
		d.Explanation = fmt.Sprintf("%s of payment %s are gone by dispute %s (%s), which are %s credits, and %s are taken: part of the money came back, and its credits did not.", gone, p.Payment, b.id, b.status, b.must, b.taken)
	}
	return d
}

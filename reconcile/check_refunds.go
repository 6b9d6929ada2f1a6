package reconcile

import (
	"context"
	"fmt"
	"time"

	"tallystick/internal/stripe"
)

// creditsRefunds is the check credits.refunds: what must be taken back for refunds
// and credit notes, with what the journal has taken.
func (r *Reconciler) creditsRefunds(ctx context.Context, s scope) (result, error) {
	out := result{timeless: !s.asked || s.account != ""}
	listed, searched := map[string]bool{}, 0
	err := r.Stripe.Refunds(ctx, r.returnsFrom(s), s.to, func(f stripe.Refund) error {
		listed[f.PaymentIntent] = true
		return nil
	})
	if err != nil {
		return out, err
	}
	err = r.compareReturns(ctx, s, &out, listed, func(p sold, b returned) error {
		if returnKind(b.id) == returnKind("dp_") {
			return nil
		}
		d := p.refundFinding(b)
		out.found = append(out.found, d)
		return r.why(ctx, s, &out.found[len(out.found)-1], p.Payment, b.id, &searched)
	})
	return out, err
}

func (p sold) refundFinding(b returned) disagreement {
	d := p.returnFinding(b, "refund")
	d.RepairArgs = paymentArgs{Payment: p.Payment, Refund: b.id}
	gone := money{amount: b.money, currency: p.Currency}.String()
	switch {
	case b.money == 0 && b.taken > 0 && b.status != "":
		d.Cause = "refund_failed"
		d.Explanation = fmt.Sprintf("Refund %s of payment %s is %s: no money went back, and %s credits are still taken for it.", b.id, p.Payment, b.status, b.taken)
	case b.taken == 0:
		d.Cause = "refund_missed"
		d.Explanation = fmt.Sprintf("%s of payment %s went back by %s, and none of its credits: %s credits can still be spent, or were.", gone, p.Payment, b.id, b.must)
	case b.taken < b.must:
		d.Cause = "refund_took_too_little"
		d.Explanation = fmt.Sprintf("%s of payment %s went back by %s, which are %s credits, and only %s were taken.", gone, p.Payment, b.id, b.must, b.taken)
	case b.status == "":
		d.Cause, d.Repair, d.Safe = "refund_took_too_much", "", false
		d.Explanation = fmt.Sprintf("%s credits of payment %s were taken back for %s, and Stripe has no such refund. Give them back by an adjustment.", b.taken, p.Payment, b.id)
	default:
		d.Cause = "refund_took_too_much"
		d.Explanation = fmt.Sprintf("%s of payment %s went back by %s, which are %s credits, and %s were taken.", gone, p.Payment, b.id, b.must, b.taken)
	}
	return d
}

// eventsAbout finds the events that match, in Stripe's list and in the inbox,
// oldest first.
func (r *Reconciler) eventsAbout(ctx context.Context, from, to time.Time, match func(kind string, a about) bool) (events []eventState, err error) {
	err = r.Stripe.Events(ctx, from, to, func(e stripe.Event) error {
		a, err := aboutOf(e.Payload)
		if err != nil {
			return fmt.Errorf("event %s: %w", e.ID, err)
		}
		if match(e.Type, a) {
			events = append([]eventState{{ID: e.ID, Type: e.Type, CreatedAt: e.CreatedAt}}, events...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return events, r.fates(ctx, events)
}

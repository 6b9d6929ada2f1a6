package reconcile

import (
	"context"
	"log/slog"
	"slices"

	"tallystick/internal/stripe"
)

// moves tells whether the deliveries are on their way, so that waiting alone is no
// trouble yet.
func (t trouble) moves() bool {
	return t.State == "pending" || t.State == "sending" || t.State == "ambiguous"
}

// findDeadline sets until when deliveries that are on their way must be at Stripe, where
// their period ends within the hour, or has ended and its invoice is a draft still.
// Usage records are taken until the period ends, meter events until the invoice is
// final.
func (u *usageRun) findDeadline(ctx context.Context, t *trouble) {
	if !t.moves() {
		return
	}
	soon := u.s.now.Add(endsSoon)
	if t.EventName == "" {
		if t.PeriodEnd != nil && t.PeriodEnd.Before(soon) {
			t.Until = t.PeriodEnd
		}
		return
	}
	b := u.billingOfTrouble(ctx, *t)
	if until := b.to.Add(finalizesAfter); !b.from.IsZero() && b.to.Before(soon) && until.After(u.s.now) {
		t.PeriodEnd, t.Until = &b.to, &until
	}
}

// billingOfTrouble is what bills the deliveries, as far as Stripe can be asked: that it
// is away must not hide what waits for it.
func (u *usageRun) billingOfTrouble(ctx context.Context, t trouble) billing {
	p := pair{Customers: slices.Clone(t.Customers), EventName: t.EventName, meterID: u.t.meterID(t.EventName)}
	if p.meterID == "" {
		return billing{}
	}
	b, err := u.billingOf(ctx, p, t.Bucket)
	if err != nil {
		u.t = u.withoutStripe(ctx, err)
		return billing{}
	}
	return b
}

// flat prices a quantity; nil when the price is not known or not flat.
func (b billing) flat(quantity int64) *money {
	if b.price == nil || len(b.price.Tiers) > 0 || b.price.PackageOf > 0 {
		return nil
	}
	return worth(quantity, decimal(b.price.UnitAmount), b.price.Currency)
}

// withoutStripe goes on without knowing prices and periods. Stripe is not asked again in
// this run.
func (u *usageRun) withoutStripe(ctx context.Context, err error) *tariffs {
	u.Logger.WarnContext(ctx, "Stripe cannot be asked what waiting usage is worth and when it is billed", slog.String("error", err.Error()))
	return &tariffs{meters: map[string]stripe.Meter{}, prices: map[string][]stripe.Tariff{}, items: map[string][]stripe.SubscriptionItem{}}
}

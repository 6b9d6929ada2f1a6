package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
)

// Bounds of usage.deliveries.
const (
	forgetsAfter = 24 * time.Hour   // Stripe may forget an identifier then
	endsSoon     = time.Hour        // a period that ends so soon is a deadline
	slowAfter    = 15 * time.Minute // what waits so long may miss it
)

// trouble is deliveries of one account and meter that do not get on for one reason.
type trouble struct {
	Account     string          `db:"account"`
	Meter       string          `db:"meter"`
	State       string          `db:"state"`
	Backend     string          `db:"backend"`
	Count       int64           `db:"count"`
	Quantity    credit.Quantity `db:"quantity"`
	Bucket      time.Time       `db:"bucket"` // the oldest
	Since       time.Time       `db:"since"`
	FirstSent   *time.Time      `db:"first_sent_at"`
	PeriodEnd   *time.Time      `db:"period_end"`
	Until       *time.Time      `db:"-"` // when usage of the period that ends is billed no more
	Error       string          `db:"error"`
	Identifiers pq.StringArray  `db:"identifiers"`
	Customers   pq.StringArray  `db:"customers"`
	EventName   string          `db:"event_name"`
}

// sqlTroubles reads deliveries_due, deliveries_review and deliveries_rejected. Hours
// in which usage.totals has found a difference are its own: one thing is told once.
// What has no customer or no meter to go to is told by usage.unbilled.
const sqlTroubles = `
	SELECT d.account, d.meter, d.state, d.backend, count(*) AS count, sum(d.quantity)::bigint AS quantity, min(d.bucket) AS bucket, min(d.created_at) AS since,
		min(d.first_sent_at) AS first_sent_at, min(i.period_end) AS period_end, max(d.error) AS error, coalesce(max(m.stripe_event_name), '') AS event_name,
		(array_agg(d.identifier ORDER BY d.bucket, d.sequence))[1:20] AS identifiers,
		(SELECT array_agg(c.customer ORDER BY c.position) FROM stripe_customers c WHERE c.part = d.part AND c.account = d.account) AS customers
	FROM (
		SELECT * FROM deliveries WHERE state IN ('pending', 'sending', 'ambiguous') AND created_at <= $2
		UNION ALL
		SELECT * FROM deliveries WHERE state = 'needs_review'
		UNION ALL
		SELECT * FROM deliveries WHERE state = 'rejected' AND replaced_by = '' AND bucket >= $3
	) d
	JOIN meters m ON m.meter = d.meter
	LEFT JOIN LATERAL (
		SELECT min(i.period_end) AS period_end FROM subscription_items i
		WHERE i.part = d.part AND i.account = d.account AND i.price = m.stripe_price AND i.state = 'active' AND i.period_end > $1
	) i ON m.stripe_price IS NOT NULL AND (d.backend = 'usage_record' OR d.event_name || d.price = '')
	WHERE ($4 = '' OR d.account = $4) AND (d.created_at <= $5 OR d.state IN ('needs_review', 'rejected') OR i.period_end <= $6 OR m.stripe_event_name IS NOT NULL)
		AND EXISTS (SELECT 1 FROM stripe_customers c WHERE c.part = d.part AND c.account = d.account)
		AND (m.stripe_event_name IS NOT NULL OR m.stripe_price IS NOT NULL)
		AND NOT EXISTS (SELECT 1 FROM findings f WHERE d.backend = 'meter_event' AND f.check_name = 'usage.totals' AND f.state <> 'resolved' AND f.account = d.account AND f.unit = d.meter
			AND f.happened_at >= date_trunc('hour', d.bucket) AND f.happened_at < date_trunc('hour', d.bucket) + interval '1 hour')
	GROUP BY d.part, d.account, d.meter, d.state, d.backend
	ORDER BY d.part, d.account, d.meter, d.state`

// usageDeliveries is the check usage.deliveries: it looks at the present.
func (r *Reconciler) usageDeliveries(ctx context.Context, s scope) (result, error) {
	out := result{timeless: true}
	var troubles []trouble
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		troubles = nil
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &troubles, sqlTroubles, s.now, s.now.Add(-slowAfter), s.now.Add(-pairBack), s.account, s.now.Add(-stuckAfter), s.now.Add(endsSoon))
	})
	if err != nil {
		return out, fmt.Errorf("read deliveries: %w", err)
	}
	if len(troubles) == 0 {
		return out, nil
	}
	u := &usageRun{Reconciler: r, s: s}
	if u.t, err = r.readTariffs(ctx); err != nil {
		u.t = u.withoutStripe(ctx, err)
	}
	for _, one := range troubles {
		out.compared += one.Count
		u.findDeadline(ctx, &one)
		if one.moves() && one.Until == nil && one.Since.After(s.now.Add(-stuckAfter)) {
			continue
		}
		out.found = append(out.found, u.troubleFinding(ctx, one))
	}
	return out, nil
}

func (u *usageRun) troubleFinding(ctx context.Context, t trouble) disagreement {
	deadline := t.Bucket.Add(stripeTakesFor)
	switch {
	case t.Until != nil:
		deadline = *t.Until
	case t.PeriodEnd != nil:
		deadline = *t.PeriodEnd
	}
	d := disagreement{
		Account: t.Account, HappenedAt: t.Bucket, Unit: t.Meter, Ours: t.Quantity.String(), Theirs: "unknown", Effect: effectAtRisk, Deadline: &deadline,
		Remains:  "an invoice item on the customer's next invoice",
		Evidence: map[string]any{"deliveries": t.Identifiers, "count": t.Count, "state": t.State, "error": t.Error, "stripe_customers": t.Customers},
	}
	what := fmt.Sprintf("%d deliveries of %s (%s)", t.Count, t.Meter, t.Quantity)
	switch {
	case t.State == "rejected":
		d.Cause = "rejected"
		d.Theirs, d.Effect = "0", effectLeaked
		d.Explanation = fmt.Sprintf("Stripe has refused %s: %s. Mend that, then retry them.", what, t.Error)
	case t.State == "needs_review":
		d.Cause = "needs_review"
		d.Explanation = fmt.Sprintf("What became of %s is unknown, and sending them again could bill them twice: %s", what, t.Error)
	case t.Until != nil:
		d.Cause = "deadline_near"
		d.Least = "high"
		d.Explanation = fmt.Sprintf("%s are not at Stripe for sure, the oldest since %s, and the period that they belong to ends at %s: what Stripe has not got by %s is not on its invoice. %s",
			what, t.Since.UTC().Format(time.RFC3339), t.PeriodEnd.UTC().Format(time.RFC3339), t.Until.UTC().Format(time.RFC3339), t.Error)
	case t.State == "pending":
		d.Cause = "not_sent"
		d.Explanation = fmt.Sprintf("%s wait to be sent, the oldest since %s: %s", what, t.Since.UTC().Format(time.RFC3339), t.Error)
	default:
		d.Cause = "outcome_unknown"
		d.Explanation = fmt.Sprintf("What became of %s is unknown, of the oldest since %s: %s", what, t.Since.UTC().Format(time.RFC3339), t.Error)
		if t.FirstSent != nil && t.Backend == "meter_event" {
			if end := t.FirstSent.Add(forgetsAfter); end.Before(deadline) {
				deadline = end
				d.Remains = "what Stripe's totals say: it may have forgotten the identifiers, so that sending again could bill twice"
			}
		}
	}
	d.Subject = strings.Join([]string{t.Account, t.Meter, d.Cause}, "/")
	d.Money = u.billingOfTrouble(ctx, t).flat(int64(t.Quantity))
	return d
}

// worthAt prices a quantity by a flat price; nil when the price is not known or not
// flat.
func (u *usageRun) worthAt(ctx context.Context, customers []string, eventName string, at time.Time, quantity int64) (*money, error) {
	p := pair{Customers: slices.Clone(customers), EventName: eventName, meterID: u.t.meterID(eventName)}
	if p.meterID == "" {
		return nil, nil //nolint:nilnil // nothing at Stripe has a price
	}
	b, err := u.billingOf(ctx, p, at)
	return b.flat(quantity), err
}

package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
)

func usageEvidence(p pair, spans []span, usages []string) map[string]any {
	type minute struct {
		From       time.Time       `json:"from"`
		To         time.Time       `json:"to"`
		Ours       credit.Quantity `json:"ours"`
		Theirs     credit.Quantity `json:"theirs"`
		Deliveries []suspect       `json:"deliveries"`
	}
	minutes := []minute{}
	for _, sp := range spans[:min(len(spans), evidenceMax)] {
		minutes = append(minutes, minute{sp.from, sp.to, sp.ours, sp.theirs, sp.deliveries})
	}
	return map[string]any{
		"stripe_meter": p.meterID, "event_name": p.EventName, "stripe_customers": p.Customers, "minutes": minutes, "usage": usages,
	}
}

// trail is what the deliveries of the spans tell about a difference.
type trail struct {
	ours, theirs credit.Quantity
	staged       credit.Quantity // in deliveries, but for those that others took the place of
	delivered    credit.Quantity // that Stripe acknowledged
	astray       credit.Quantity // of it, what went to customers that are not the account's
	voided       credit.Quantity // of which Stripe has no correction
	states       map[string]int
	first        *time.Time // when Stripe acknowledged the first, and
	last         *time.Time // when anything of it changed last
}

func follow(p pair, spans []span) trail {
	t := trail{states: map[string]int{}}
	for _, sp := range spans {
		t.ours, t.theirs, t.voided = t.ours+sp.ours, t.theirs+sp.theirs, t.voided+sp.late
		for _, d := range sp.deliveries {
			if d.ReplacedBy == "" {
				t.staged += d.Quantity
			}
			switch {
			case d.Quantity >= 0:
				t.states[d.State]++
			case d.State != "delivered":
				t.voided -= d.Quantity
			}
			if d.State != "delivered" {
				continue
			}
			t.delivered += d.Quantity
			if d.Customer != "" && !slices.Contains(p.Customers, d.Customer) {
				t.astray += d.Quantity
			}
			if d.DeliveredAt != nil && (t.first == nil || d.DeliveredAt.Before(*t.first)) {
				t.first = d.DeliveredAt
			}
			if d.DeliveredAt != nil && (t.last == nil || d.DeliveredAt.After(*t.last)) {
				t.last = d.DeliveredAt
			}
		}
	}
	return t
}

// agreedBefore tells whether Stripe had all of it once.
func (t trail) agreedBefore(p pair) bool {
	return p.AgreedAt != nil && t.last != nil && t.delivered == t.ours && t.last.Before(*p.AgreedAt)
}

// explain finds the most likely cause, and what can be done about it.
func (u *usageRun) explain(ctx context.Context, d *disagreement, p pair, spans []span, difference int64) error {
	t := follow(p, spans)
	if difference > 0 {
		return u.explainSurplus(ctx, d, p, spans, t, difference)
	}
	return u.explainLack(ctx, d, p, spans, t, difference)
}

// dropped tells whether what Stripe lacks in each span is some of the deliveries that
// it acknowledged, each as a whole.
func dropped(spans []span) bool {
	for _, sp := range spans {
		sums := map[int64]bool{0: true} // of all choices of deliveries
		for _, d := range sp.deliveries {
			if d.State != "delivered" || len(sums) > 1<<12 {
				continue
			}
			for _, sum := range slices.Collect(maps.Keys(sums)) {
				sums[sum+int64(d.Quantity)] = true
			}
		}
		if !sums[-sp.difference()] {
			return false
		}
	}
	return true
}

// sqlStray finds what other accounts' deliveries have told of these customers, over
// deliveries_by_bucket.
const sqlStray = `
	SELECT d.identifier, d.account, d.quantity
	FROM deliveries d
	WHERE d.bucket >= $1 AND d.bucket < $2 AND d.state = 'delivered' AND d.customer = ANY ($3::text[]) AND d.account <> $4 AND d.event_name = $5
	ORDER BY d.identifier LIMIT $6`

// stray is usage of another account.
type stray struct {
	Identifier string          `db:"identifier" json:"identifier"`
	Account    string          `db:"account" json:"account"`
	Quantity   credit.Quantity `db:"quantity" json:"quantity"`
}

func (u *usageRun) explainSurplus(ctx context.Context, d *disagreement, p pair, spans []span, t trail, difference int64) error {
	amount := credit.Quantity(difference).String()
	var strays []stray
	err := u.DB.Read(ctx, func(tx *sqlx.Tx) error {
		strays = nil
		for _, sp := range spans {
			var some []stray
			if err := tx.SelectContext(ctx, &some, sqlStray, sp.from, sp.to, p.Customers, p.Account, p.EventName, evidenceMax); err != nil {
				return err
			}
			strays = append(strays, some...)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for deliveries of others: %w", err)
	}
	switch {
	case difference <= int64(t.voided):
		d.Cause = "void_not_at_stripe"
		d.Explanation = fmt.Sprintf("Stripe still counts %s of %s that was voided: it was voided when Stripe would take no correction of that age any more, or the "+
			"deliveries say why the correction is not there. Once it is on a finalized invoice, a credit note gives the money back.", amount, p.Meter)
	case len(strays) > 0:
		d.Cause = "wrong_customer"
		d.Explanation = fmt.Sprintf("Stripe has counted %s of %s for this customer that another account (%s) has used: its deliveries went to this customer.",
			amount, p.Meter, strays[0].Account)
		if evidence, ok := d.Evidence.(map[string]any); ok {
			evidence["deliveries_of_others"] = strays
		}
	case t.staged > t.ours:
		d.Cause = "sent_twice"
		d.Explanation = fmt.Sprintf("Stripe has counted %s of %s more than was used: usage was sent under two identifiers.", amount, p.Meter)
		if args, ok := u.cancels(p, spans); ok {
			d.Repair, d.RepairArgs = repairCancelUsage, args
		}
	case int64(t.theirs-t.delivered) >= difference:
		d.Cause = "sent_by_somebody_else"
		d.Explanation = fmt.Sprintf("Stripe has counted %s of %s more than was used, and more than tallystick ever sent: another program or person sends meter events for this customer.", amount, p.Meter)
	default:
		u.unknown(d, p, amount)
	}
	return nil
}

// cancels finds the deliveries that are exactly what Stripe has too much in each span,
// the latest first; false when there are none that it would still cancel.
func (u *usageRun) cancels(p pair, spans []span) (cancelArgs, bool) {
	args := cancelArgs{Account: p.Account, Meter: p.Meter, EventName: p.EventName, Spans: spanList(spans)}
	for _, sp := range spans {
		left := credit.Quantity(sp.difference())
		for _, d := range slices.Backward(sp.deliveries) {
			if d.State != "delivered" || d.Quantity <= 0 || d.Quantity > left || d.DeliveredAt == nil || !u.s.now.Before(d.DeliveredAt.Add(cancelWithin)) {
				continue
			}
			left -= d.Quantity
			args.Events = append(args.Events, meterEventArgs{Identifier: d.Identifier, Quantity: d.Quantity.String()})
			if args.ReceivedAt.IsZero() || d.DeliveredAt.Before(args.ReceivedAt) {
				args.ReceivedAt = d.DeliveredAt.UTC()
			}
		}
		if left != 0 {
			return cancelArgs{}, false
		}
	}
	return args, len(args.Events) > 0 && !p.Whole // of what is sent whole, the deliveries do not say how much it was
}

func (u *usageRun) unknown(d *disagreement, p pair, amount string) {
	d.Cause = "unknown"
	d.Explanation = fmt.Sprintf("The sides differ by %s of %s, and neither usage nor deliveries say why: look at the minutes listed, on both sides.", amount, p.Meter)
}

func (u *usageRun) explainLack(ctx context.Context, d *disagreement, p pair, spans []span, t trail, difference int64) error {
	amount := credit.Quantity(-difference).String()
	unknown := t.states["ambiguous"] + t.states["sending"] + t.states["needs_review"]
	reports, err := u.reportsAbout(ctx, p, spans, t)
	if err != nil {
		return err
	}
	resends := false
	switch {
	case p.meterID == "":
		d.Cause = "no_meter_at_stripe"
		d.Explanation = fmt.Sprintf("Stripe has no billing meter with the event name %s: create it there, or bind the meter to another.", p.EventName)
	case t.staged < t.ours:
		d.Cause = "never_staged"
		d.Explanation = fmt.Sprintf("Stripe lacks %s of %s: the usage is recorded, but no delivery carries it. Its row was deleted or never written.", amount, p.Meter)
		resends = true
	case t.states["rejected"] > 0:
		d.Cause = "rejected"
		d.Explanation = fmt.Sprintf("Stripe refused usage of %s; the deliveries say why. Mend that, then send them again.", p.Meter)
	case t.astray > 0:
		d.Cause = "wrong_customer"
		d.Explanation = fmt.Sprintf("Stripe lacks %s of %s of this account: it was sent for a customer that is not this account's.", amount, p.Meter)
	case len(reports) > 0:
		d.Cause = "refused_asynchronously"
		d.Explanation = fmt.Sprintf("Stripe took usage of %s and dropped it afterwards: %s (%s). Mend that, then send what is missing again.", p.Meter, reports[0].Message, reports[0].Code)
		if evidence, ok := d.Evidence.(map[string]any); ok {
			evidence["error_reports"] = reports
		}
		resends = true
	case unknown > 0:
		d.Cause = "outcome_unknown"
		d.Explanation = fmt.Sprintf("Stripe lacks %s of %s, and what became of a delivery is unknown.", amount, p.Meter)
		resends = true
	case t.states["pending"] > 0:
		d.Cause = "not_sent"
		d.Explanation = fmt.Sprintf("Usage of %s waits to be sent for more than %s; the deliveries say why.", p.Meter, stuckAfter)
	case t.agreedBefore(p):
		d.Cause = "cancelled_at_stripe"
		d.Explanation = fmt.Sprintf("Stripe had all of it at %s, and lacks %s of %s now: somebody has cancelled meter events there.", p.AgreedAt.UTC().Format(time.RFC3339), amount, p.Meter)
	case dropped(spans):
		d.Cause = "lost_at_stripe"
		d.Explanation = fmt.Sprintf("Stripe lacks %s of %s although it acknowledged the deliveries: it dropped them afterwards.", amount, p.Meter)
		resends = true
	default:
		u.unknown(d, p, amount)
	}
	if resends {
		// What Stripe refused it would refuse again: a person mends the cause first.
		d.Repair, d.Safe = "resend_usage", unknown == 0 && len(reports) == 0
		d.RepairArgs = resend{Account: p.Account, Meter: p.Meter, Spans: spanList(spans)}
	}
	return nil
}

// cancelWithin is how long Stripe cancels an event for, from its receipt.
const cancelWithin = 24 * time.Hour

// finalizesAfter is how long Stripe lets an invoice be a draft, unless the account
// has set it otherwise: meter prices take in what comes until then.
const finalizesAfter = time.Hour

// limit says by when a difference is mended best, and what remains then.
func (u *usageRun) limit(d *disagreement, b billing, spans []span, difference int64) {
	deadline := spans[0].from.Add(stripeTakesFor)
	d.Remains = "an invoice item on the customer's next invoice: Stripe takes no meter event that old"
	if difference > 0 {
		d.Remains = "a credit note on the customer's invoice: Stripe takes no correction that old"
	}
	if end := b.to.Add(finalizesAfter); !b.from.IsZero() && end.Before(deadline) && u.s.now.Before(end) {
		deadline = end
		d.Remains = "an invoice item on the customer's next invoice: the invoice of this period is final"
		if difference > 0 {
			d.Remains = "a credit note on the invoice of this period, which is final"
		}
	}
	for _, sp := range spans {
		for _, delivery := range sp.deliveries {
			if difference <= 0 || delivery.DeliveredAt == nil {
				continue
			}
			if end := delivery.DeliveredAt.Add(cancelWithin); u.s.now.Before(end) && end.Before(deadline) {
				deadline = end
				d.Remains = "usage of less than nothing that corrects it until the invoice is final, a credit note afterwards: Stripe cancels an event for 24 hours"
			}
		}
	}
	d.Deadline = &deadline
}

// pairOff makes one finding of two of a pair that are the same quantity in opposite
// directions: it was counted at another time than it was used. Within one period
// that moves no money.
func pairOff(found []disagreement, periodOf map[string]time.Time) []disagreement {
	for i := range found {
		for j := range found {
			a, b := &found[i], &found[j]
			if a.Difference == "" || a.Difference[0] != '-' || b.Difference != "+"+a.Difference[1:] {
				continue
			}
			a.Cause = "wrong_period"
			a.Repair, a.RepairArgs, a.Safe = "", nil, false
			a.Explanation = fmt.Sprintf("%s of %s was used at %s and counted by Stripe at %s: it was sent with another time.", a.Difference[1:], a.Unit,
				a.HappenedAt.Format(time.RFC3339), b.HappenedAt.Format(time.RFC3339))
			if a.Money != nil && periodOf[a.Subject].Equal(periodOf[b.Subject]) {
				a.Money, a.Effect = &money{amount: 0, currency: a.Money.currency}, effectAtRisk
			}
			if evidence, ok := a.Evidence.(map[string]any); ok {
				evidence["counted_at"] = b.Evidence
			}
			return pairOff(slices.Delete(slices.Clone(found), j, j+1), periodOf)
		}
	}
	return found
}

// resend says what to send again; how much is measured when it is done.
type resend struct {
	Account string     `json:"account"`
	Meter   string     `json:"meter"`
	Spans   []spanArgs `json:"spans"`
}

type spanArgs struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

func spanList(spans []span) []spanArgs {
	list := make([]spanArgs, len(spans))
	for i, sp := range spans {
		list[i] = spanArgs{sp.from, sp.to}
	}
	slices.SortFunc(list, func(a, b spanArgs) int { return cmp.Compare(a.From.Unix(), b.From.Unix()) })
	return list
}

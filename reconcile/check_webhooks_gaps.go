package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// Bounds of webhooks.gaps.
const (
	eventsKept    = 30 * 24 * time.Hour // how long Stripe lists events
	gapsOverlap   = time.Hour           // events become listable late, and many share a second
	gapsStep      = 6 * time.Hour       // how much of the list is read before the progress is kept
	gapsMissedMax = 500                 // missing events that are followed one by one
)

// boughtBy are the types that grant a purchase. Whether one is missing shows in the
// payment itself, which credits.payments compares, with its money.
var boughtBy = []string{"checkout.session.completed", "checkout.session.async_payment_succeeded", "payment_intent.succeeded", "invoice.paid"}

// backBy are the types that tell of money that goes back: credits.refunds and
// credits.disputes compare what they tell of.
var backBy = []string{
	"charge.refunded", "charge.refund.updated", "refund.created", "refund.updated", "refund.failed",
	"charge.dispute.created", "charge.dispute.updated", "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated", "charge.dispute.closed",
}

// besides are the other types that change something here.
var besides = []string{"credit_note.created", "credit_note.updated", "credit_note.voided", "customer.deleted"}

// failing are types that matter only for a payment whose credits were granted.
var failing = []string{"checkout.session.async_payment_failed", "payment_intent.payment_failed", "payment_intent.canceled", "invoice.voided", "invoice.marked_uncollectible"}

// relevantTypes are all types that change something here.
func relevantTypes() []string { return slices.Concat(boughtBy, backBy, besides, failing) }

// missed is an event of Stripe's list that is not in the inbox.
type missed struct {
	Type      string    `json:"type"`
	CreatedAt time.Time `json:"created_at"`
	Object    string    `json:"object"`            // the payment's session or intent
	Payment   string    `json:"payment,omitempty"` // where the object names one
}

// gapsProgress is what webhooks.gaps keeps.
type gapsProgress struct {
	ListedTo time.Time         `json:"listed_to"`
	Missed   map[string]missed `json:"missed"`
}

// sqlInInbox relies on stripe_events_pkey.
const sqlInInbox = `SELECT event_id FROM stripe_events WHERE event_id = ANY ($1::text[])`

// sqlGranted tells which payments have their credits, over payments_pkey and, for
// sessions, payments_by_time.
const sqlGranted = `
	SELECT payment_id, session_id FROM payments
	WHERE state = 'granted' AND (payment_id = ANY ($1::text[]) OR (session_id = ANY ($1::text[]) AND session_id <> ''))`

// webhooksGaps is the check webhooks.gaps.
func (r *Reconciler) webhooksGaps(ctx context.Context, s scope) (result, error) {
	out := result{timeless: true}
	if s.account != "" {
		out.covered = coversNothing // an event belongs to no account before it is applied
		return out, nil
	}
	var p gapsProgress
	if err := s.progress(&p); err != nil {
		return out, err
	}
	if p.Missed == nil {
		p.Missed = map[string]missed{}
	}
	oldest, until := s.now.Add(-eventsKept), s.now.Add(-r.Settle)
	from := p.ListedTo.Add(-gapsOverlap)
	if from.Before(oldest) {
		from = oldest
	}
	if s.asked {
		from, until, out.timeless = s.from, s.to, false
		p.Missed = map[string]missed{}
	}
	for from.Before(until) {
		to := from.Add(gapsStep)
		if to.After(until) {
			to = until
		}
		n, err := r.listGaps(ctx, from, to, p.Missed)
		out.compared += n
		if errors.Is(err, stripe.ErrBudget) {
			out.note = fmt.Sprintf("Stripe's events from %s on wait for the next run: the budget of calls was used up", from.UTC().Format(time.RFC3339))
			break
		}
		if err != nil {
			return out, err
		}
		from, p.ListedTo = to, to
		if !s.asked {
			if err := s.save(ctx, p); err != nil {
				return out, err
			}
		}
	}
	if err := r.settleGaps(ctx, s, p.Missed); err != nil {
		return out, err
	}
	for id, m := range p.Missed {
		if m.CreatedAt.Before(oldest) {
			delete(p.Missed, id) // Stripe has it no more: what it told of is the other checks' to find
		}
	}
	if out.found = gapFindings(p.Missed); !s.asked {
		out.progress = p
	}
	if len(p.Missed) > gapsMissedMax {
		out.note = fmt.Sprintf("%d events are missing, the oldest %d of them are listed", len(p.Missed), gapsMissedMax)
	}
	return out, nil
}

func coversNothing(string, string, time.Time) bool { return false }

// listGaps adds the events of a stretch of Stripe's list that are not in the inbox.
func (r *Reconciler) listGaps(ctx context.Context, from, to time.Time, gaps map[string]missed) (listed int64, err error) {
	relevant := relevantTypes()
	err = r.Stripe.Events(ctx, from, to, func(e stripe.Event) error {
		if !slices.Contains(relevant, e.Type) {
			return nil
		}
		listed++
		m, err := readMissed(e)
		gaps[e.ID] = m
		return err
	})
	return listed, err
}

func readMissed(e stripe.Event) (missed, error) {
	a, err := aboutOf(e.Payload)
	return missed{Type: e.Type, CreatedAt: e.CreatedAt, Object: a.ID, Payment: a.PaymentIntent}, err
}

// settleGaps takes out what has arrived, what has had its effect all the same, and
// what another check tells of with its money.
func (r *Reconciler) settleGaps(ctx context.Context, s scope, gaps map[string]missed) error {
	ids, objects := pg.Texts(slices.Sorted(maps.Keys(gaps))), pg.Texts{}
	for _, m := range gaps {
		objects = append(objects, m.Object, m.Payment)
	}
	var arrived []string
	var granted []struct {
		Payment string `db:"payment_id"`
		Session string `db:"session_id"`
	}
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		arrived, granted = nil, nil
		if err := tx.SelectContext(ctx, &arrived, sqlInInbox, ids); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &granted, sqlGranted, objects)
	})
	if err != nil {
		return fmt.Errorf("look events up: %w", err)
	}
	for _, id := range arrived {
		delete(gaps, id)
	}
	done := map[string]bool{}
	for _, g := range granted {
		done[g.Payment], done[g.Session] = true, true
	}
	for id, m := range gaps {
		isDone := done[m.Object] || m.Payment != "" && done[m.Payment]
		if slices.Contains(backBy, m.Type) || slices.Contains(failing, m.Type) && !isDone ||
			slices.Contains(boughtBy, m.Type) && (isDone || !m.CreatedAt.Before(s.from)) {
			delete(gaps, id)
		}
	}
	return nil
}

func gapFindings(gaps map[string]missed) (found []disagreement) {
	ids := slices.SortedFunc(maps.Keys(gaps), func(a, b string) int { return gaps[a].CreatedAt.Compare(gaps[b].CreatedAt) })
	for _, id := range ids[:min(len(ids), gapsMissedMax)] {
		m := gaps[id]
		gone := m.CreatedAt.Add(eventsKept)
		found = append(found, disagreement{
			Subject: "event/" + id, HappenedAt: m.CreatedAt, Unit: "events", Ours: "0", Theirs: "1", Difference: "+1", Cause: "event_missed",
			Explanation: fmt.Sprintf("Stripe's event %s (%s, about %s) never arrived, and nothing else has done what it calls for.", id, m.Type, m.Object),
			Evidence:    map[string]any{"event": id, "type": m.Type, "object": m.Object, "created_at": m.CreatedAt.UTC()},
			Deadline:    &gone, Remains: "to look the object up at Stripe and do by hand what its event called for",
			Repair: repairFeedEvent, RepairArgs: map[string]string{"event": id}, Safe: true,
		})
	}
	return found
}

package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
)

// cancelsFor is how long after its receipt Stripe cancels a meter event.
const cancelsFor = 24 * time.Hour

// Refusals of what a repair would do.
var (
	errChoice  = &fault.Error{Kind: fault.KindUnprocessed, Code: "choice_needed", Public: "say whether to release or to capture the reservation: choice must be release or capture; nobody but you can know whether the work was done"}
	errUnpaid  = &fault.Error{Kind: fault.KindConflict, Code: "payment_not_paid", Public: "Stripe says that the payment is not paid, or it is none of ours: there is nothing to grant or to take back"}
	errTooLate = &fault.Error{Kind: fault.KindConflict, Code: "too_late", Public: "Stripe cancels meter events for 24 hours after their receipt, which are over; what remains is a credit note on the invoice"}
	errExcess  = &fault.Error{Kind: fault.KindConflict, Code: "not_too_much", Public: "Stripe has less too much than these events are: cancelling them would take what is owed; run the check again"}
)

// args reads the arguments of a finding's repair.
func (f Finding) args(dst any) error {
	if err := json.Unmarshal([]byte(f.RepairArgs), dst); err != nil {
		return fmt.Errorf("read the repair of %s: %w", f.ID, err)
	}
	return nil
}

// plan says what a repair would do.
func (f Finding) plan() string {
	switch f.Repair {
	case repairResendUsage:
		return fmt.Sprintf("would measure anew what Stripe lacks of %s for %s, and send that much under new identifiers", f.Unit, f.Account)
	case repairCancelUsage:
		var a cancelArgs
		if f.args(&a) == nil {
			return fmt.Sprintf("would measure anew what Stripe has too much of %s for %s, and cancel %s there: %s", a.Meter, a.Account,
				plural(len(a.Events), "meter event", "meter events"), strings.Join(identifiersOf(a.Events), ", "))
		}
	case repairPropose:
		if text, err := f.proposal(); err == nil {
			return "would " + text
		}
	case repairFeedEvent:
		return "would read the missed event from Stripe and put it into the inbox, from where it is applied like any other"
	case repairGrantCredits, repairTakeBack:
		var a paymentArgs
		if f.args(&a) == nil {
			return fmt.Sprintf("would read payment %s from Stripe again and bring its credits to what Stripe says: granted once, and taken back what was refunded or lost in a dispute", a.Payment)
		}
	case repairRebuildBalance:
		return fmt.Sprintf("would set the balance of %s to what its journal says", f.Account)
	case repairSettleReservation:
		var a reservationArgs
		if f.args(&a) == nil {
			return fmt.Sprintf("would end reservation %s of %s: --choice release gives the credits back, --choice capture books all that was reserved as used", a.Reservation, a.Account)
		}
	}
	return "would do " + f.Repair
}

func identifiersOf(events []meterEventArgs) []string {
	ids := make([]string, len(events))
	for i, e := range events {
		ids[i] = e.Identifier
	}
	return ids
}

// proposal says what a person should make at Stripe, with exact figures. tallystick
// never makes it: customers see invoices and credit notes.
func (f Finding) proposal() (string, error) {
	var p proposalArgs
	if err := f.args(&p); err != nil {
		return "", err
	}
	amount := money{amount: p.Amount, currency: p.Currency}.String()
	switch p.Kind {
	case "credit_note":
		return fmt.Sprintf("make a credit note of %s (%d in minor units) on invoice %s of customer %s, with the description %q; then resolve this finding", amount, p.Amount, p.Invoice,
			p.Customer, p.Description), nil
	case "invoice_item":
		return fmt.Sprintf("make an invoice item of %s (%d in minor units) for customer %s, with the description %q, for the next invoice; then resolve this finding", amount, p.Amount,
			p.Customer, p.Description), nil
	}
	return "", fmt.Errorf("finding %s proposes %q, which is neither credit_note nor invoice_item", f.ID, p.Kind)
}

// actBefore does the part of a repair that has its effect outside of the audit row's
// transaction, and says what it did. Each can be done again without harm.
func (r *Reconciler) actBefore(ctx context.Context, f Finding, actor, choice string) (string, error) {
	switch f.Repair {
	case repairFeedEvent:
		var a struct {
			Event string `json:"event"`
		}
		if err := f.args(&a); err != nil {
			return "", err
		}
		return "the missed event " + a.Event + " is in the inbox", r.Repairer.FeedEvent(ctx, a.Event)
	case repairGrantCredits, repairTakeBack:
		var a paymentArgs
		if err := f.args(&a); err != nil {
			return "", err
		}
		found, err := r.Repairer.SettlePayment(ctx, a.Payment, actor)
		if err == nil && !found {
			err = errUnpaid
		}
		return "payment " + a.Payment + " was settled again", err
	case repairSettleReservation:
		var a reservationArgs
		if err := f.args(&a); err != nil {
			return "", err
		}
		if choice != "release" && choice != "capture" {
			return "", errChoice
		}
		state, err := r.Repairer.SettleReservation(ctx, a.Account, a.Reservation, choice, actor)
		return "reservation " + a.Reservation + " is " + state, err
	case repairCancelUsage:
		return r.cancel(ctx, f)
	}
	return "", nil
}

// cancel takes meter events back at Stripe that are too much there, after it has
// measured that they still are.
func (r *Reconciler) cancel(ctx context.Context, f Finding) (string, error) {
	var a cancelArgs
	if err := f.args(&a); err != nil {
		return "", err
	}
	if !r.Now().Before(a.ReceivedAt.Add(cancelsFor)) {
		return "", errTooLate
	}
	sum := credit.Quantity(0)
	for _, e := range a.Events {
		q, err := credit.ParseQuantity(e.Quantity)
		if err == nil {
			sum, err = sum.Add(q)
		}
		if err != nil {
			return "", fmt.Errorf("read the repair of %s: %w", f.ID, err)
		}
	}
	excess, err := r.excess(ctx, a)
	if err != nil {
		return "", err
	}
	if sum > excess {
		return "", errExcess.Withf("Stripe has %s too much now, these events are %s: cancelling them would take what is owed; run the check again", max(excess, 0), sum)
	}
	for _, e := range a.Events {
		if err := r.Repairer.CancelUsage(ctx, a.EventName, e.Identifier); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s of %s is cancelled at Stripe: %s", sum, a.Meter, strings.Join(identifiersOf(a.Events), ", ")), nil
}

// excess is what Stripe has beyond all that we have, sent or not.
func (r *Reconciler) excess(ctx context.Context, a cancelArgs) (excess credit.Quantity, err error) {
	pairs, err := r.pairsOf(ctx, a.Account, a.Meter)
	if err != nil {
		return 0, err
	}
	for _, p := range pairs {
		for _, sp := range a.Spans {
			one := span{from: sp.From, to: sp.To}
			if err := r.ourSide(ctx, p, scope{now: r.Now()}, &one); err != nil {
				return 0, err
			}
			for _, customer := range p.Customers {
				q, err := r.total(ctx, p, customer, sp.From, sp.To)
				if err != nil {
					return 0, err
				}
				one.theirs += q
			}
			excess += one.theirs - one.ours
		}
	}
	return excess, nil
}

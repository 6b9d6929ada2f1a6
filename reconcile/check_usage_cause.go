package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"tallystick/internal/credit"
)

func usageEvidence(p pair, spans []span, usages []string) any {
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

// explainUsage finds the most likely cause in the state of the deliveries, and
// what can be done about it.
func explainUsage(d *disagreement, p pair, spans []span, difference int64) {
	var ours, staged, voided credit.Quantity // voided: of which Stripe has no correction
	states := map[string]int{}
	for _, sp := range spans {
		ours += sp.ours
		voided += sp.late
		for _, delivery := range sp.deliveries {
			staged += delivery.Quantity
			if delivery.Quantity >= 0 {
				states[delivery.State]++
			} else if delivery.State != "delivered" {
				voided -= delivery.Quantity
			}
		}
	}
	amount := signed(max(difference, -difference))[1:]
	if difference > 0 && difference <= int64(voided) {
		d.Cause = "void_not_at_stripe"
		d.Explanation = fmt.Sprintf("Stripe still counts %s of %s that was voided: it was voided when Stripe would take no correction of that age any more, or the "+
			"deliveries say why the correction is not there. Once it is on a finalized invoice, a credit note gives the money back.", amount, p.Meter)
		return
	}
	if difference > 0 {
		d.Cause = "sent_by_somebody_else"
		d.Explanation = fmt.Sprintf("Stripe has counted %s of %s more than was used, and more than tallystick ever sent: another program or person sends meter events for this customer.", amount, p.Meter)
		if staged > ours {
			d.Cause = "sent_twice"
			d.Explanation = fmt.Sprintf("Stripe has counted %s of %s more than was used: usage was sent under two identifiers.", amount, p.Meter)
		}
		return
	}
	unknown := states["ambiguous"] + states["sending"] + states["needs_review"]
	switch {
	case p.meterID == "":
		d.Cause = "no_meter_at_stripe"
		d.Explanation = fmt.Sprintf("Stripe has no billing meter with the event name %s: create it there, or bind the meter to another.", p.EventName)
		return
	case staged < ours:
		d.Cause = "never_staged"
		d.Explanation = fmt.Sprintf("Stripe lacks %s of %s: the usage is recorded, but no delivery carries it. Its row was deleted or never written.", amount, p.Meter)
	case states["rejected"] > 0:
		d.Cause = "rejected"
		d.Explanation = fmt.Sprintf("Stripe refused usage of %s; the deliveries say why. Mend that, then send them again.", p.Meter)
		return
	case unknown > 0:
		d.Cause = "outcome_unknown"
		d.Explanation = fmt.Sprintf("Stripe lacks %s of %s, and what became of a delivery is unknown.", amount, p.Meter)
	case states["pending"] > 0:
		d.Cause = "not_sent"
		d.Explanation = fmt.Sprintf("Usage of %s waits to be sent for more than %s; the deliveries say why.", p.Meter, stuckAfter)
		return
	default:
		d.Cause = "lost_at_stripe"
		d.Explanation = fmt.Sprintf("Stripe lacks %s of %s although it acknowledged the deliveries: it dropped them afterwards.", amount, p.Meter)
	}
	d.Repair, d.Safe = "resend_usage", unknown == 0
	d.RepairArgs = resend{Account: p.Account, Meter: p.Meter, Spans: spanList(spans)}
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

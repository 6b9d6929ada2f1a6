package reconcile

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
)

// recordMark begins the last part of the subject of a finding about usage records.
const recordMark = "record:"

// stagedAt comes before the hour of one that is about deliveries alone.
const stagedAt = "-in-"

// isRecord tells whether a finding of usage.totals is about usage records.
func isRecord(subject string) bool {
	return strings.HasPrefix(subject[strings.LastIndexByte(subject, '/')+1:], recordMark)
}

// compareItem compares what Stripe has of a subscription item with what was sent to
// it, and once for each account and meter what was used with what was staged.
func (u *usageRun) compareItem(ctx context.Context, item recordItem, staged map[string]bool) error {
	periods, err := u.recordPeriods(ctx, item)
	if stripe.IsMissing(err) {
		return nil // deleted, and its usage with it: what is to be sent now waits, which usage.deliveries tells
	}
	if err != nil {
		return err
	}
	for _, p := range periods {
		if err := u.compareRecordPeriod(ctx, item, p); err != nil {
			return err
		}
	}
	key := item.Account + "/" + item.Meter
	if staged[key] || item.State != "active" || len(periods) == 0 {
		return nil
	}
	staged[key] = true
	return u.compareStaged(ctx, item, periods)
}

// compareRecordPeriod holds Stripe's total of a period against what was sent for it.
func (u *usageRun) compareRecordPeriod(ctx context.Context, item recordItem, p recordPeriod) error {
	sent, err := u.recordsSent(ctx, item, p)
	if err != nil {
		return err
	}
	subject := strings.Join([]string{item.Account, item.Meter, recordMark + item.Item + "@" + p.from.Format("2006-01-02T15:04:05Z")}, "/")
	u.records[subject] = p.from
	u.out.compared++
	if p.total >= sent.Low && p.total <= sent.High {
		return nil
	}
	ours := sent.High
	if p.total < sent.Low {
		ours = sent.Low
	}
	difference := p.total - ours
	d := disagreement{
		Subject: subject, Account: item.Account, HappenedAt: p.from, Unit: item.Meter,
		Ours: whole(ours).String(), Theirs: whole(p.total).String(), Difference: signed(int64(whole(difference))),
		Evidence: map[string]any{
			"subscription_item": item.Item, "subscription": item.Subscription, "customer": item.Customer, "invoice": p.invoice,
			"period_start": p.from, "period_end": p.to, "deliveries": sent.Identifiers,
		},
	}
	switch {
	case difference > 0:
		d.Cause = "sent_by_somebody_else"
		d.Explanation = fmt.Sprintf("Stripe has %d of %s more at the subscription item %s than tallystick ever sent: another program or person reports usage for it.", difference, item.Meter, item.Item)
	case sent.Set:
		d.Cause = "overwritten_by_set"
		d.Explanation = fmt.Sprintf("Stripe has %d of %s less at the subscription item %s than it acknowledged: what was set for one of our times was set again to less, by somebody else or by a call "+
			"that hung at Stripe and was overtaken.", -difference, item.Meter, item.Item)
	default:
		d.Cause = "unknown"
		d.Explanation = fmt.Sprintf("Stripe has %d of %s less at the subscription item %s than it acknowledged, and the deliveries do not say why.", -difference, item.Meter, item.Item)
	}
	err = u.finishRecord(ctx, &d, item, p, int64(whole(difference)))
	u.out.found = append(u.out.found, d)
	return err
}

// whole makes a quantity of whole units.
func whole(units int64) credit.Quantity { return credit.Quantity(units * 1_000_000) }

// compareStaged holds usage of the window against its deliveries, which are to carry
// exactly what was used in each hour.
func (u *usageRun) compareStaged(ctx context.Context, item recordItem, periods []recordPeriod) error {
	from := u.s.from
	if bound := item.BoundAt.Truncate(u.Bucket).Add(u.Bucket); bound.After(from) {
		from = bound
	}
	u.records[strings.Join([]string{item.Account, item.Meter, recordMark + "staged"}, "/")] = from
	u.out.compared++
	rows, err := u.unstagedOf(ctx, item.Part, item.Account, item.Meter, from, u.s.now.Add(recordGrace).Truncate(u.Bucket))
	for len(rows) > 0 && err == nil {
		n := 1
		for n < len(rows) && rows[n].Bucket.Truncate(time.Hour).Equal(rows[0].Bucket.Truncate(time.Hour)) {
			n++
		}
		err = u.stagedFinding(ctx, item, periods, rows[:n])
		rows = rows[n:]
	}
	return err
}

// stagedFinding is about one hour, in whose buckets deliveries carry something else
// than was used.
func (u *usageRun) stagedFinding(ctx context.Context, item recordItem, periods []recordPeriod, rows []unstaged) error {
	var used, staged credit.Quantity
	spans := make([]span, len(rows))
	for i, row := range rows {
		used, staged = used+row.Used, staged+row.Staged
		spans[i] = span{from: row.Bucket.UTC(), to: row.Bucket.UTC().Add(u.Bucket)}
	}
	if used == staged {
		return nil // in one minute too much, in another too little: nobody is billed another sum
	}
	hour := spans[0].from.Truncate(time.Hour)
	p := periods[0]
	for _, earlier := range periods[1:] {
		if !spans[0].from.After(earlier.to) {
			p = earlier
		}
	}
	d := disagreement{
		Subject: strings.Join([]string{item.Account, item.Meter, recordMark + "staged" + stagedAt + hour.Format("2006-01-02T15Z")}, "/"), Account: item.Account, Unit: item.Meter,
		HappenedAt: spans[0].from, Ours: used.String(), Theirs: staged.String(), Difference: signed(int64(staged - used)),
		Evidence: map[string]any{"subscription_item": item.Item, "customer": item.Customer, "buckets": rows[:min(len(rows), evidenceMax)]},
	}
	if err := u.finishRecord(ctx, &d, item, p, int64(staged-used)); err != nil {
		return err
	}
	if staged < used {
		d.Cause = "never_staged"
		d.Explanation = fmt.Sprintf("%s of %s is recorded as used and no delivery carries it: its row was deleted or never written.", used-staged, item.Meter)
		if !p.over {
			d.Repair, d.Safe, d.RepairArgs = repairResendUsage, true, resend{Account: item.Account, Meter: item.Meter, Spans: spanList(spans)}
		}
	} else {
		d.Cause = "sent_twice"
		d.Explanation = fmt.Sprintf("Deliveries carry %s of %s more than was used.", staged-used, item.Meter)
	}
	u.out.found = append(u.out.found, d)
	return nil
}

// finishRecord prices a difference, in millionths, and says what can be done and by when.
func (u *usageRun) finishRecord(ctx context.Context, d *disagreement, item recordItem, p recordPeriod, difference int64) error {
	price, err := u.tariff(ctx, item.Price)
	if err != nil {
		return err
	}
	if price != nil {
		if total := int64(whole(p.total)); len(price.Tiers) > 0 || price.PackageOf > 0 {
			d.Money = apart(*price, total, total-difference)
		} else {
			d.Money = worth(difference, decimal(price.UnitAmount), price.Currency)
		}
	}
	if !p.over {
		end := p.to
		d.Deadline, d.Remains = &end, "an invoice item on the customer's next invoice: Stripe takes no usage record for a period that is over"
		if difference > 0 {
			d.Remains = "a credit note on the invoice of this period: Stripe takes no usage record for a period that is over"
		}
	} else {
		d.propose(item.Customer, p.invoice, fmt.Sprintf("%s from %s to %s", item.Meter, p.from.Format(time.DateOnly), p.to.Format(time.DateOnly)), difference)
	}
	return nil
}

// propose says which invoice item or credit note makes a difference of usage good, to
// the last unit. Without money that is known there is nothing to propose.
func (d *disagreement) propose(customer, invoice, description string, difference int64) {
	if d.Money == nil || d.Money.amount == 0 {
		return
	}
	args := proposalArgs{Kind: "invoice_item", Customer: customer, Amount: d.Money.amount, Currency: d.Money.currency, Description: "Usage of " + description + ", billed later"}
	if difference > 0 {
		if invoice == "" {
			return
		}
		args.Kind, args.Invoice, args.Description = "credit_note", invoice, "Usage of "+description+", billed too much"
	}
	d.Repair, d.RepairArgs, d.Safe = repairPropose, args, false
}

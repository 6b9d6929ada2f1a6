package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/mail"
	"tallystick/internal/stripe"
	"tallystick/ledger"
	"tallystick/meter"
	"tallystick/outbox"
	"tallystick/reconcile"
	"tallystick/webhooks"
)

// usageSender hands the outbox's usage to Stripe.
type usageSender struct{ client *stripe.Client }

var outcomes = map[stripe.Verdict]outbox.Outcome{
	stripe.VerdictUnknown:   outbox.OutcomeAmbiguous,
	stripe.VerdictDone:      outbox.OutcomeDelivered,
	stripe.VerdictRejected:  outbox.OutcomeRejected,
	stripe.VerdictThrottled: outbox.OutcomeThrottled,
	stripe.VerdictRefused:   outbox.OutcomeBlocked,
}

// SendMeterEvent is outbox.UsageSender.
func (s usageSender) SendMeterEvent(ctx context.Context, e outbox.MeterEvent) outbox.Result {
	return resultOf(s.client.SendMeterEvent(ctx, stripe.MeterEvent(e)))
}

// SendUsageRecord is outbox.UsageSender.
func (s usageSender) SendUsageRecord(ctx context.Context, u outbox.UsageRecord) outbox.Result {
	return resultOf(s.client.SendUsageRecord(ctx, stripe.UsageRecord(u)))
}

func resultOf(verdict stripe.Verdict, wait time.Duration, err error) outbox.Result {
	result := outbox.Result{Outcome: outcomes[verdict], RetryAfter: wait}
	if err != nil && result.Outcome != outbox.OutcomeDelivered {
		result.Reason = err.Error()
	}
	return result
}

// usageReader reads for the outbox what Stripe knows of usage.
type usageReader struct {
	client *stripe.Client

	mu     sync.Mutex
	meters map[string]string // ids by event name
}

// Items is outbox.UsageReader.
func (r *usageReader) Items(ctx context.Context, customer string) ([]outbox.Item, error) {
	found, err := r.client.SubscriptionItems(ctx, customer)
	if err != nil {
		return nil, err
	}
	items := make([]outbox.Item, len(found))
	for n, i := range found {
		items[n] = outbox.Item{
			ID: i.ID, Subscription: i.Subscription, Price: i.Price, Limited: i.Limited, PeriodStart: i.PeriodStart, PeriodEnd: i.PeriodEnd, CreatedAt: i.CreatedAt,
		}
		if i.UsageType != "metered" || i.Aggregate != "sum" || i.Meter != "" {
			items[n].Unfit = "its price is " + i.UsageType + " " + i.Aggregate + " " + i.Meter
		}
	}
	return items, nil
}

// Counted is outbox.UsageReader.
func (r *usageReader) Counted(ctx context.Context, eventName, customer string, from, to time.Time) (total credit.Quantity, err error) {
	id, err := r.meter(ctx, eventName)
	if err != nil {
		return 0, err
	}
	totals, err := r.client.Totals(ctx, id, customer, from, to, false)
	if err != nil {
		return 0, err
	}
	for _, t := range totals {
		if total, err = total.Add(t.Quantity); err != nil {
			return 0, err
		}
	}
	return total, nil
}

// meter finds the billing meter of an event name; an active one before others.
func (r *usageReader) meter(ctx context.Context, eventName string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id, ok := r.meters[eventName]; ok {
		return id, nil
	}
	found, err := r.client.Meters(ctx)
	if err != nil {
		return "", err
	}
	r.meters = map[string]string{}
	for _, m := range found {
		if _, ok := r.meters[m.EventName]; !ok || m.Status == "active" {
			r.meters[m.EventName] = m.ID
		}
	}
	if id, ok := r.meters[eventName]; ok {
		return id, nil
	}
	return "", fmt.Errorf("stripe has no billing meter with the event name %s", eventName)
}

// alerter turns the auditor's mails into mails of the outbox.
type alerter struct {
	to     []string
	urgent []string // mailed, too, about what is urgent
	now    func() time.Time
	domain string
}

// StageMail is reconcile.Alerter.
func (a alerter) StageMail(ctx context.Context, tx *sqlx.Tx, id string, m reconcile.Mail) error {
	to := slices.Clone(a.to)
	if m.Urgent {
		to = append(to, a.urgent...)
	}
	slices.Sort(to)
	if to = slices.Compact(to); len(to) == 0 {
		return nil // up without a recipient: findings are seen, nobody is mailed
	}
	message := mail.Message{ID: a.messageID(id), To: to, Subject: m.Subject, Text: m.Text, HTML: m.HTML}
	if m.ReplyTo != "" {
		message.InReplyTo = a.messageID(m.ReplyTo)
	}
	if m.CSV != nil {
		message.Attachments = []mail.Attachment{{Name: "findings.csv", ContentType: "text/csv", Content: m.CSV}}
	}
	return outbox.StageMail(ctx, tx, a.now(), id, message)
}

// messageID is the same for the same cause, so that a thread holds together and a
// mail that was sent twice is one.
func (a alerter) messageID(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:16]) + "@" + a.domain
}

// repairer lets the packages that own the data mend it.
type repairer struct {
	outbox   *outbox.Outbox
	webhooks *webhooks.Webhooks
	meter    *meter.Meter
	stripe   *stripe.Client
	now      func() time.Time
}

// ResendUsage is reconcile.Repairer.
func (r repairer) ResendUsage(ctx context.Context, tx *sqlx.Tx, account, meter string, missing []reconcile.Missing) ([]string, error) {
	ref := ledger.RefOf(account)
	identifiers := make([]string, 0, len(missing))
	for _, m := range missing {
		id, err := r.outbox.StageRepair(ctx, tx, r.now(), outbox.Usage{Part: ref.Part, Account: account, Meter: meter, OccurredAt: m.Bucket, Quantity: m.Quantity})
		if err != nil {
			return nil, err
		}
		identifiers = append(identifiers, id)
	}
	return identifiers, nil
}

// FeedEvent is reconcile.Repairer.
func (r repairer) FeedEvent(ctx context.Context, event string) error {
	_, err := r.webhooks.Feed(ctx, event)
	return err
}

// SettlePayment is reconcile.Repairer.
func (r repairer) SettlePayment(ctx context.Context, payment, actor string) (bool, error) {
	return r.webhooks.Settle(ctx, payment, actor)
}

// SettleReservation is reconcile.Repairer.
func (r repairer) SettleReservation(ctx context.Context, account, reservation, choice, actor string) (string, error) {
	return r.meter.SettleDoubt(ctx, account, reservation, choice == "capture", actor)
}

// CancelUsage is reconcile.Repairer.
func (r repairer) CancelUsage(ctx context.Context, eventName, identifier string) error {
	return r.stripe.CancelMeterEvent(ctx, eventName, identifier)
}

// RebuildBalance is reconcile.Repairer.
func (r repairer) RebuildBalance(ctx context.Context, tx *sqlx.Tx, account string) error {
	_, err := ledger.Rebuild(ctx, tx, ledger.RefOf(account), r.now())
	return err
}

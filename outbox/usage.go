package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
)

// Bounds of the delivery of usage.
const (
	claimMax     = 200              // deliveries taken at once
	lease        = 2 * time.Minute  // how long they are ours
	ambiguousAge = 23 * time.Hour   // Stripe remembers identifiers for 24 hours
	customerWait = time.Minute      // until an account without a customer is looked at again
	blockedWait  = time.Minute      // until a refused key is tried again
	retryFirst   = 2 * time.Second  // after the first ambiguous answer
	retryMost    = 10 * time.Minute // after many
	throttleWait = 2 * time.Second  // when Stripe does not say how long
)

// delivery is a row that a step has claimed.
type delivery struct {
	Part        int16           `db:"part"`
	Account     string          `db:"account"`
	Meter       string          `db:"meter"`
	Bucket      time.Time       `db:"bucket"`
	Sequence    int             `db:"sequence"`
	Quantity    credit.Quantity `db:"quantity"`
	State       string          `db:"state"` // before it was claimed
	EventName   string          `db:"event_name"`
	Customer    string          `db:"customer"`
	Identifier  string          `db:"identifier"`
	Attempts    int             `db:"attempts"`
	FirstSentAt *time.Time      `db:"first_sent_at"`
	reason      string          // why it stays where it is
	nextTryAt   time.Time
}

// sqlClaim relies on the index deliveries_due. Rows that another worker holds are
// passed over, and so is an account's meter while one of its deliveries is with
// Stripe: Stripe takes one call at a time per customer and meter. Event name and
// customer are looked up until the first send fixes them. A negative delivery,
// which corrects others of its bucket, waits until Stripe has them, or may have
// them for good: one that was rejected must not be taken back from what others
// have sent.
const sqlClaim = `
	SELECT d.part, d.account, d.meter, d.bucket, d.sequence, d.quantity, d.state, d.identifier, d.attempts, d.first_sent_at,
		CASE WHEN d.event_name <> '' THEN d.event_name ELSE coalesce((SELECT m.stripe_event_name FROM meters m WHERE m.meter = d.meter), '') END AS event_name,
		CASE WHEN d.customer <> '' THEN d.customer ELSE coalesce((SELECT c.customer FROM stripe_customers c
			WHERE c.part = d.part AND c.account = d.account ORDER BY c.position LIMIT 1), '') END AS customer
	FROM deliveries d
	WHERE d.state IN ('pending', 'sending', 'ambiguous') AND d.next_try_at <= $1
		AND NOT EXISTS (SELECT 1 FROM deliveries s WHERE s.part = d.part AND s.account = d.account AND s.meter = d.meter
			AND s.state = 'sending' AND s.next_try_at > $1)
		AND (d.quantity >= 0 OR d.quantity + (SELECT coalesce(sum(e.quantity), 0) FROM deliveries e
			WHERE e.part = d.part AND e.account = d.account AND e.meter = d.meter AND e.bucket = d.bucket AND e.sequence <> d.sequence
			AND (e.state IN ('delivered', 'needs_review') OR (e.quantity < 0 AND (e.state IN ('sending', 'ambiguous') OR e.sequence < d.sequence)))) >= 0)
	ORDER BY d.next_try_at
	LIMIT $2
	FOR UPDATE OF d SKIP LOCKED`

// UsageStep sends what is due to Stripe. It may run in several processes.
func (o *Outbox) UsageStep(ctx context.Context) (more bool, err error) {
	now := o.now()
	if o.circuit(now) {
		return false, nil
	}
	var claimed []delivery
	err = o.db.InTx(ctx, func(tx *sqlx.Tx) error {
		claimed = nil
		if err := tx.SelectContext(ctx, &claimed, sqlClaim, now, claimMax); err != nil {
			return fmt.Errorf("claim deliveries: %w", err)
		}
		for i := range claimed {
			claimed[i].claim(now)
		}
		return saveClaims(ctx, tx, now, claimed)
	})
	if err != nil {
		return false, err
	}
	more = len(claimed) == claimMax
	return more, o.sendAll(ctx, groups(claimed))
}

// claim decides what happens to a due delivery: it is sent, or it stays and says why.
func (d *delivery) claim(now time.Time) {
	switch {
	case d.Quantity == 0 && d.FirstSentAt == nil:
		d.State, d.reason = "delivered", "all of its usage was voided before it was sent: there is nothing to send"
	case d.EventName == "":
		d.reason, d.nextTryAt = "the meter is not bound to a billing meter at Stripe", now.Add(customerWait)
	case d.Customer == "":
		d.reason, d.nextTryAt = "the account has no Stripe customer", now.Add(customerWait)
	case d.State != "pending" && d.FirstSentAt != nil && now.Sub(*d.FirstSentAt) >= ambiguousAge:
		// Stripe may have it and may have forgotten the identifier: sending it
		// again could bill it twice. Its totals must decide.
		d.State, d.reason = "needs_review", "the outcome was unknown for 23 hours; reconcile tells whether Stripe has it"
	default:
		d.nextTryAt = now.Add(lease)
	}
}

func (d *delivery) sends() bool { return d.reason == "" }

// sqlSaveClaims relies on deliveries_pkey and on the locks of sqlClaim. From the
// first send on, event name, customer and quantity stay as they are.
const sqlSaveClaims = `
	UPDATE deliveries d
	SET state = CASE WHEN c.sends THEN 'sending' ELSE c.state END, attempts = d.attempts + CASE WHEN c.sends THEN 1 ELSE 0 END,
		first_sent_at = CASE WHEN c.sends THEN coalesce(d.first_sent_at, $8) ELSE d.first_sent_at END,
		delivered_at = CASE WHEN NOT c.sends AND c.state = 'delivered' THEN $8 ELSE d.delivered_at END,
		event_name = CASE WHEN c.sends THEN c.event_name ELSE d.event_name END, customer = CASE WHEN c.sends THEN c.customer ELSE d.customer END,
		next_try_at = coalesce(c.next_try_at, d.next_try_at), error = CASE WHEN c.sends THEN d.error ELSE c.reason END, updated_at = $8
	FROM unnest($1::text[], $2::boolean[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[], $9::smallint[])
		AS c (identifier, sends, state, event_name, customer, next_try_at, reason, part)
	WHERE d.part = c.part AND d.identifier = c.identifier`

func saveClaims(ctx context.Context, tx *sqlx.Tx, now time.Time, claimed []delivery) error {
	if len(claimed) == 0 {
		return nil
	}
	var parts pq.Int64Array
	var identifiers, states, events, customers, reasons pq.StringArray
	var sends pq.BoolArray
	times := make([]*string, 0, len(claimed))
	for _, d := range claimed {
		parts, identifiers, states = append(parts, int64(d.Part)), append(identifiers, d.Identifier), append(states, d.State)
		events, customers = append(events, d.EventName), append(customers, d.Customer)
		reasons, sends = append(reasons, d.reason), append(sends, d.sends())
		times = append(times, timeText(d.nextTryAt))
	}
	_, err := tx.ExecContext(ctx, sqlSaveClaims, identifiers, sends, states, events, customers, pq.Array(times), reasons, now, parts)
	if err != nil {
		return fmt.Errorf("mark claimed deliveries: %w", err)
	}
	return nil
}

func timeText(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	text := t.Format(time.RFC3339Nano)
	return &text
}

// groups sorts what is to be sent by customer and meter: Stripe takes one call at
// a time for each pair.
func groups(claimed []delivery) [][]delivery {
	at := map[[2]string]int{}
	var all [][]delivery
	for _, d := range claimed {
		if !d.sends() {
			continue
		}
		key := [2]string{d.Customer, d.EventName}
		i, ok := at[key]
		if !ok {
			i = len(all)
			at[key] = i
			all = append(all, nil)
		}
		all[i] = append(all[i], d)
	}
	return all
}

// sendAll sends the groups side by side, and each group's deliveries in turn.
func (o *Outbox) sendAll(ctx context.Context, all [][]delivery) error {
	queue := make(chan []delivery, len(all))
	for _, group := range all {
		queue <- group
	}
	close(queue)
	var wg sync.WaitGroup
	errs := make([]error, min(o.sends, len(all)))
	for i := range errs {
		wg.Go(func() {
			for group := range queue {
				if err := o.sendGroup(ctx, group); err != nil {
					errs[i] = err
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// sendGroup sends deliveries one after the other and marks them together. What is
// left when the context ends is marked as not sent.
func (o *Outbox) sendGroup(ctx context.Context, group []delivery) error {
	results := make([]Result, len(group))
	for i, d := range group {
		results[i] = o.send(ctx, d)
	}
	// The answers are in: they are worth more than the context's end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	return o.mark(ctx, group, results)
}

func (o *Outbox) send(ctx context.Context, d delivery) Result {
	if o.circuit(o.now()) {
		return Result{Outcome: OutcomeBlocked, Reason: "Stripe refuses the API key"}
	}
	if err := o.limiter.Wait(ctx); err != nil {
		return Result{Outcome: OutcomeThrottled, Reason: "stopped before it was sent"}
	}
	result := o.usage.SendMeterEvent(ctx, MeterEvent{
		EventName: d.EventName, Customer: d.Customer, Identifier: d.Identifier, Value: d.Quantity, Timestamp: d.Bucket, Attempt: d.Attempts + 1,
	})
	switch result.Outcome {
	case OutcomeBlocked:
		o.block(o.now(), result.Reason)
	case OutcomeDelivered:
		o.unblock()
	default: // says nothing about the key
	}
	o.logger.Debug("delivery", slog.String("identifier", d.Identifier), slog.String("account", d.Account), slog.String("meter", d.Meter),
		slog.Int("outcome", int(result.Outcome)), slog.String("reason", result.Reason))
	return result
}

// sqlMark relies on deliveries_pkey. A delivery that somebody else has settled in
// the meantime, after our lease, stays settled.
const sqlMark = `
	UPDATE deliveries d
	SET state = r.state, next_try_at = r.next_try_at, delivered_at = CASE WHEN r.state = 'delivered' THEN $5::timestamptz END, error = r.error, updated_at = $5
	FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $6::smallint[]) AS r (identifier, state, next_try_at, error, part)
	WHERE d.part = r.part AND d.identifier = r.identifier AND d.state = 'sending'`

func (o *Outbox) mark(ctx context.Context, group []delivery, results []Result) error {
	now := o.now()
	var parts pq.Int64Array
	var identifiers, states, times, reasons pq.StringArray
	for i, d := range group {
		state, wait := d.after(results[i])
		parts, identifiers, states = append(parts, int64(d.Part)), append(identifiers, d.Identifier), append(states, state)
		times = append(times, now.Add(wait).Format(time.RFC3339Nano))
		reasons = append(reasons, fault.Text(results[i].Reason))
		if results[i].Outcome == OutcomeRejected {
			o.logger.Error("Stripe rejects usage: it is not billed", slog.String("identifier", d.Identifier), slog.String("account", d.Account),
				slog.String("meter", d.Meter), slog.String("reason", results[i].Reason))
		}
	}
	return o.db.InTx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlMark, identifiers, states, times, reasons, now, parts); err != nil {
			return fmt.Errorf("mark deliveries: %w", err)
		}
		return nil
	})
}

// after gives the state that follows a result, and when to try again. A call that
// was not executed leaves the delivery as unknown as it was before.
func (d *delivery) after(r Result) (state string, wait time.Duration) {
	before := d.State
	if before == "sending" { // a lease that ran out: whoever held it may have sent
		before = "ambiguous"
	}
	switch r.Outcome {
	case OutcomeDelivered:
		return "delivered", 0
	case OutcomeRejected:
		return "rejected", 0
	case OutcomeThrottled:
		return before, max(r.RetryAfter, throttleWait)
	case OutcomeBlocked:
		return before, blockedWait
	case OutcomeAmbiguous:
	}
	return "ambiguous", backoff(d.Attempts+1, retryFirst, retryMost)
}

package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
)

// Waits after what went wrong.
const (
	blockedWait  = time.Minute      // until a refused key is tried again
	retryFirst   = 2 * time.Second  // after the first ambiguous answer
	retryMost    = 10 * time.Minute // after many
	throttleWait = 2 * time.Second  // when Stripe does not say how long
	markTime     = 15 * time.Second // for keeping what was answered, also when the process stops
)

// UsageStep sends what is due to Stripe. It may run in several processes, and
// several times at once in one.
func (o *Outbox) UsageStep(ctx context.Context) (more bool, err error) {
	now := o.Now()
	if o.circuit(now) {
		return false, nil
	}
	var claimed []delivery
	var wanted map[customer]bool
	err = o.DB.InTx(ctx, func(tx *sqlx.Tx) (err error) {
		claimed, wanted, err = o.claim(ctx, tx, now)
		return err
	})
	if err != nil {
		return false, err
	}
	o.lookUp(ctx, wanted)
	return len(claimed) == claimMax || len(wanted) > 0, o.sendAll(ctx, groups(claimed))
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
		key := [2]string{d.Customer, d.EventName + d.Item}
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

// answer is a result of one delivery.
type answer struct {
	delivery
	Result
}

// sendAll sends the groups side by side, and each group's deliveries in turn. What
// has been answered in the meantime is marked together, as lanes commit.
func (o *Outbox) sendAll(ctx context.Context, all [][]delivery) error {
	queue := make(chan []delivery, len(all))
	sends := 0
	for _, group := range all {
		queue <- group
		sends += len(group)
	}
	close(queue)
	answers := make(chan answer, sends)
	var wg sync.WaitGroup
	for range min(o.Sends, len(all)) {
		wg.Go(func() {
			for group := range queue {
				for _, d := range group {
					answers <- answer{d, o.send(ctx, d)}
				}
			}
		})
	}
	go func() {
		wg.Wait()
		close(answers)
	}()
	var errs []error
	for a := range answers {
		batch := []answer{a}
		for len(batch) < claimMax && len(answers) > 0 {
			batch = append(batch, <-answers)
		}
		if err := o.mark(ctx, batch); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// send makes the call. What is left when the context ends, or when half of the lease
// is over and another worker might take it, is not sent.
func (o *Outbox) send(ctx context.Context, d delivery) Result {
	limiter := o.events
	if d.Backend == backendRecord {
		limiter = o.calls
	}
	if err := limiter.Wait(ctx); err != nil {
		return Result{Outcome: outcomeUnsent, Reason: "stopped before it was sent"}
	}
	switch now := o.Now(); {
	case o.circuit(now):
		return Result{Outcome: OutcomeBlocked, Reason: "Stripe refuses the API key"}
	case now.After(d.leased.Add(-lease / 2)):
		return Result{Outcome: outcomeUnsent, Reason: "its turn did not come in time"}
	}
	var result Result
	if d.Backend == backendRecord {
		result = o.sendRecord(ctx, d)
	} else {
		result = o.Usage.SendMeterEvent(ctx, MeterEvent{
			EventName: d.EventName, Customer: d.Customer, Identifier: d.Identifier, Value: credit.Quantity(*d.SentValue), Timestamp: *d.Stamp, Attempt: d.Attempts + 1,
		})
	}
	switch result.Outcome {
	case OutcomeBlocked:
		o.block(context.WithoutCancel(ctx), o.Now(), result.Reason)
	case OutcomeDelivered:
		o.unblock()
	default: // says nothing about the key
	}
	o.Logger.Debug("delivery", slog.String("identifier", d.Identifier), slog.String("account", d.Account), slog.String("meter", d.Meter),
		slog.Int("outcome", int(result.Outcome)), slog.String("reason", result.Reason))
	return result
}

// sendRecord sends a usage record. A total may be sent again with a new key, under
// which Stripe does not replay an error of its own; an increment never.
func (o *Outbox) sendRecord(ctx context.Context, d delivery) Result {
	u := UsageRecord{Item: d.Item, Action: d.Action, Quantity: *d.SentValue, Timestamp: *d.Stamp, Key: d.Identifier}
	if d.Action == "set" {
		u.Quantity, u.Key = d.total, d.Identifier+"-"+strconv.Itoa(d.Attempts+1)
	}
	result := o.Usage.SendUsageRecord(ctx, u)
	if result.Outcome == OutcomeRejected {
		return o.reconsider(ctx, d, result)
	}
	return result
}

// savedAnswer is what is kept of an answer.
type savedAnswer struct {
	Part       int16     `json:"part"`
	Identifier string    `json:"identifier"`
	Attempts   int       `json:"attempts"` // the try that was answered
	State      string    `json:"state"`
	Moved      bool      `json:"moved"`
	NextTryAt  time.Time `json:"next_try_at"`
	Error      string    `json:"error"`
}

// sqlMark relies on deliveries_identifier. A delivery that somebody else has settled
// in the meantime, after our lease, stays settled, and of one that somebody else is
// sending only that it arrived is news: what they hear comes later and knows more. One
// whose item is gone, and which was never executed there, is free to find another.
const sqlMark = `
	UPDATE deliveries d
	SET state = r.state, next_try_at = r.next_try_at, delivered_at = CASE WHEN r.state = 'delivered' THEN $2::timestamptz END, error = r.error, updated_at = $2,
		subscription_item = CASE WHEN r.moved THEN '' ELSE d.subscription_item END, action = CASE WHEN r.moved THEN '' ELSE d.action END,
		stamp = CASE WHEN r.moved THEN NULL ELSE d.stamp END
	FROM jsonb_to_recordset($1::jsonb) AS r (part smallint, identifier text, attempts integer, state text, moved boolean, next_try_at timestamptz, error text)
	WHERE d.part = r.part AND d.identifier = r.identifier AND d.state = 'sending' AND (d.attempts = r.attempts OR r.state = 'delivered')`

// mark keeps answers: they are worth more than the context's end.
func (o *Outbox) mark(ctx context.Context, answers []answer) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTime)
	defer cancel()
	now := o.Now()
	saved := make([]savedAnswer, len(answers))
	for i, a := range answers {
		state, wait := a.after(a.Result)
		saved[i] = savedAnswer{
			Part: a.Part, Identifier: a.Identifier, Attempts: a.Attempts + 1, State: state, Moved: a.Outcome == outcomeMoved && state == "pending",
			NextTryAt: now.Add(wait), Error: fault.Text(a.Reason),
		}
		if state == "rejected" || state == "needs_review" {
			o.Logger.Error("Stripe rejects usage: it is not billed", slog.String("identifier", a.Identifier), slog.String("account", a.Account),
				slog.String("meter", a.Meter), slog.String("reason", a.Reason))
		}
	}
	rows, err := json.Marshal(saved)
	if err != nil {
		return fmt.Errorf("encode answers: %w", err)
	}
	return o.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlMark, string(rows), now); err != nil {
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
	case outcomeUnsent: // nobody asked for a pause
		return before, 0
	case OutcomeBlocked:
		return before, blockedWait
	case outcomeOver:
		return "needs_review", 0
	case outcomeMoved:
		if before == "ambiguous" { // it may have counted before the item went
			return "needs_review", 0
		}
		return before, 0
	case OutcomeAmbiguous:
	}
	return "ambiguous", jitter(backoff(d.Attempts+1, retryFirst, retryMost))
}

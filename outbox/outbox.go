// Package outbox keeps messages that were staged in the transaction that caused
// them, and delivers them: usage to Stripe, mail to people.
//
// A message is claimed in one transaction, sent outside of any, and marked in
// another. Whatever happens in between, it is sent again: at least once, with
// the same identifier and content each time, so that the other side can tell.
//
//	O1  An identifier stands for one content for good; a delivery that was sent once never changes.
//	O2  Σ staged quantity, less what was taken back = Σ quantity of deliveries, at every commit.
//	O3  A meter event whose outcome is unknown is not sent again once Stripe may have forgotten its identifier, unless
//	    Stripe's own total says that it is missing.
//	O4  Of one account and meter, one worker at a time has calls under way, one after the other.
//	O5  Where Stripe takes whole units, Σ sent = ⌊Σ fixed⌋ per customer and meter; the remainder is carried.
//
// Not promised: order, and mail exactly once. After an answer that was lost, a
// mail server may get the same mail twice, with the same Message-ID.
package outbox

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	"golang.org/x/time/rate"

	"tallystick/internal/credit"
	"tallystick/internal/mail"
	"tallystick/internal/pg"
)

// Outcome is what became of one call to Stripe.
type Outcome int

// The outcomes. The zero value is the careful one.
const (
	OutcomeAmbiguous Outcome = iota // it may have been executed
	OutcomeDelivered                // Stripe has it, now or from before
	OutcomeRejected                 // Stripe will never take it as it is
	OutcomeThrottled                // it was not executed; come back later
	OutcomeBlocked                  // the key was refused: nothing will go through until that is mended
	outcomeUnsent                   // there was no time left to call: it is due still
	outcomeOver                     // refused, because the period it belongs to is over
	outcomeMoved                    // refused, because its subscription item is gone
)

// Result is an outcome with what Stripe said.
type Result struct {
	Outcome    Outcome
	RetryAfter time.Duration // when throttled, if Stripe said
	Reason     string        // for people; empty when delivered
}

// MeterEvent is usage as a billing meter of Stripe's takes it.
type MeterEvent struct {
	EventName  string
	Customer   string
	Identifier string
	Value      credit.Quantity
	Timestamp  time.Time
	Attempt    int // counts the tries from 1
}

// UsageRecord is usage as a subscription item with a legacy metered price takes it.
type UsageRecord struct {
	Item      string
	Action    string // set or increment
	Quantity  int64  // whole units; with set, all that the item has at the timestamp
	Timestamp time.Time
	Key       string // the idempotency key
}

// Item is a subscription item that takes usage records.
type Item struct {
	ID           string
	Subscription string
	Price        string
	Unfit        string // why usage records do not add up there; "" when they do
	Limited      bool   // Stripe takes increments only
	PeriodStart  time.Time
	PeriodEnd    time.Time // Stripe's period is (start, end]
	CreatedAt    time.Time
}

// UsageSender hands usage to Stripe.
type UsageSender interface {
	SendMeterEvent(ctx context.Context, e MeterEvent) Result
	SendUsageRecord(ctx context.Context, u UsageRecord) Result
}

// UsageReader reads from Stripe what is needed to hand it usage.
type UsageReader interface {
	// Items gives the items of a customer's subscriptions that have not ended.
	Items(ctx context.Context, customer string) ([]Item, error)
	// Counted gives what Stripe has counted of a customer's meter events with
	// timestamps in [from, to), which are whole minutes.
	Counted(ctx context.Context, eventName, customer string, from, to time.Time) (credit.Quantity, error)
}

// MailSender hands a mail to a mail server. A *mail.PermanentError is final.
type MailSender interface {
	Send(ctx context.Context, m mail.Message) error
}

// Config is what an Outbox needs.
type Config struct {
	DB        *pg.DB
	Now       func() time.Time
	Usage     UsageSender
	Reader    UsageReader
	Mail      MailSender
	Logger    *slog.Logger
	Bucket    time.Duration // usage is summed over this span; default one minute
	Settle    time.Duration // how long after its end a bucket stays open
	Rate      int           // most calls a second to Stripe, meter events left out; default 80
	MeterRate int           // most meter events a second; default 940
	Sends     int           // most calls at once in one step; default 64
	AlertTo   []string      // who is mailed when Stripe refuses the key
	Domain    string        // of the Message-IDs of those mails
}

// Outbox stages and delivers.
type Outbox struct {
	Config
	calls  *rate.Limiter // of everything but meter events
	events *rate.Limiter

	mu      sync.Mutex
	blocked bool                 // Stripe refuses our key
	until   time.Time            // and is not asked again before then
	looked  map[string]time.Time // when a customer's items were read
}

// New makes an Outbox; its steps are driven by the caller.
func New(c Config) *Outbox {
	if c.Bucket == 0 {
		c.Bucket = time.Minute
	}
	c.Rate, c.MeterRate, c.Sends = cmp.Or(c.Rate, 80), cmp.Or(c.MeterRate, 940), cmp.Or(c.Sends, 64)
	// Stripe counts by the second: what the bursts allow on top must fit, too.
	return &Outbox{
		Config: c, looked: map[string]time.Time{},
		calls: rate.NewLimiter(rate.Limit(c.Rate), max(1, c.Rate/20)), events: rate.NewLimiter(rate.Limit(c.MeterRate), max(1, c.MeterRate/20)),
	}
}

// circuit tells whether Stripe is to be left alone for now.
func (o *Outbox) circuit(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.blocked && now.Before(o.until)
}

// block opens the circuit and says so once, not once per delivery.
func (o *Outbox) block(ctx context.Context, now time.Time, reason string) {
	o.mu.Lock()
	before := o.blocked
	o.blocked, o.until = true, now.Add(blockedWait)
	o.mu.Unlock()
	if before {
		return
	}
	o.Logger.Error("Stripe refuses the API key: deliveries wait until it is mended", slog.String("reason", reason))
	if err := o.alert(ctx, now, reason); err != nil {
		o.Logger.Error("the alert of a refused key was not staged", slog.String("error", err.Error()))
	}
}

// alert mails that Stripe refuses the key: once a day, by however many processes.
func (o *Outbox) alert(ctx context.Context, now time.Time, reason string) error {
	if len(o.AlertTo) == 0 {
		return nil
	}
	id := "stripe-key-refused-" + now.UTC().Format(time.DateOnly)
	m := mail.Message{
		ID: id + "@" + o.Domain, To: o.AlertTo, Subject: "[tallystick] Stripe refuses the API key: usage waits",
		Text: "Stripe refuses our API key since " + now.UTC().Format(time.RFC3339) + ". Usage is kept and waits; nothing is lost, but nothing is billed.\n\n" +
			"Replace STRIPE_API_KEY or mend its permissions (docs/stripe.md lists them), and restart. The key is tried again every minute.\n\nStripe said: " + reason + "\n",
	}
	return o.DB.InTx(ctx, func(tx *sqlx.Tx) error { return StageMail(ctx, tx, now, id, m) })
}

func (o *Outbox) unblock() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.blocked {
		o.Logger.Info("Stripe takes the API key again: deliveries go on")
	}
	o.blocked = false
}

// backoff is the wait after the nth failed try: it doubles from first up to most.
func backoff(attempts int, first, most time.Duration) time.Duration {
	wait := first
	for range attempts - 1 {
		if wait *= 2; wait >= most {
			return most
		}
	}
	return wait
}

// jitter lengthens a wait by up to a quarter: what failed together does not come
// back together.
func jitter(wait time.Duration) time.Duration {
	return wait + rand.N(wait/4+1) //nolint:gosec // spreads load, guards nothing
}

// Package outbox keeps messages that were staged in the transaction that caused
// them, and delivers them: usage to Stripe, mail to people.
//
// A message is claimed in one transaction, sent outside of any, and marked in
// another. Whatever happens in between, it is sent again: at least once, with
// the same identifier and content each time, so that the other side can tell.
//
//	O1  An identifier stands for one content for good; a delivery that was sent once never changes.
//	O2  Σ staged quantity, less what was taken back = Σ quantity of deliveries, at every commit.
//	O3  A delivery whose outcome is unknown is not sent again once Stripe may have forgotten its identifier.
//
// Not promised: order, and mail exactly once. After an answer that was lost, a
// mail server may get the same mail twice, with the same Message-ID.
package outbox

import (
	"context"
	"log/slog"
	"sync"
	"time"

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
)

// Result is an outcome with what Stripe said.
type Result struct {
	Outcome    Outcome
	RetryAfter time.Duration // when throttled, if Stripe said
	Reason     string        // for people; empty when delivered
}

// MeterEvent is usage as Stripe takes it.
type MeterEvent struct {
	EventName  string
	Customer   string
	Identifier string
	Value      credit.Quantity
	Timestamp  time.Time
	Attempt    int // counts the tries from 1
}

// UsageSender hands usage to Stripe.
type UsageSender interface {
	SendMeterEvent(ctx context.Context, e MeterEvent) Result
}

// MailSender hands a mail to a mail server. A *mail.PermanentError is final.
type MailSender interface {
	Send(ctx context.Context, m mail.Message) error
}

// Config is what an Outbox needs.
type Config struct {
	DB     *pg.DB
	Now    func() time.Time
	Usage  UsageSender
	Mail   MailSender
	Logger *slog.Logger
	Bucket time.Duration // usage is summed over this span; default one minute
	Settle time.Duration // how long after its end a bucket stays open
	Rate   int           // most calls a second to Stripe; default 80
	Sends  int           // most calls at once; default 8
}

// Outbox stages and delivers.
type Outbox struct {
	db      *pg.DB
	now     func() time.Time
	usage   UsageSender
	mail    MailSender
	logger  *slog.Logger
	bucket  time.Duration
	settle  time.Duration
	sends   int
	limiter *rate.Limiter

	mu      sync.Mutex
	blocked bool      // Stripe refuses our key
	until   time.Time // and is not asked again before then
}

// New makes an Outbox; its steps are driven by the caller.
func New(c Config) *Outbox {
	if c.Bucket == 0 {
		c.Bucket = time.Minute
	}
	if c.Rate == 0 {
		c.Rate = 80
	}
	if c.Sends == 0 {
		c.Sends = 8
	}
	return &Outbox{
		db: c.DB, now: c.Now, usage: c.Usage, mail: c.Mail, logger: c.Logger, bucket: c.Bucket, settle: c.Settle, sends: c.Sends,
		limiter: rate.NewLimiter(rate.Limit(c.Rate), max(1, c.Rate/10)),
	}
}

// circuit tells whether Stripe is to be left alone for now.
func (o *Outbox) circuit(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.blocked && now.Before(o.until)
}

// block opens the circuit and says so once, not once per delivery.
func (o *Outbox) block(now time.Time, reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.blocked {
		o.logger.Error("Stripe refuses the API key: deliveries wait until it is mended", slog.String("reason", reason))
	}
	o.blocked, o.until = true, now.Add(blockedWait)
}

func (o *Outbox) unblock() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.blocked {
		o.logger.Info("Stripe takes the API key again: deliveries go on")
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

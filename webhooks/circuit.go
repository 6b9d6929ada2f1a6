package webhooks

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"tallystick/internal/fault"
	"tallystick/internal/stripe"
)

// How long Stripe is left alone after it answered nobody; each time in a row twice
// as long.
const (
	circuitFirst = time.Second
	circuitMost  = time.Minute
)

// What keeps Stripe from being asked. Neither is the fault of an event.
var (
	errStripeAway = &fault.Error{Kind: fault.KindUnavailable, Code: "stripe_away", Public: "Stripe does not answer; what it was to be asked is asked again by itself"}
	errKeyRefused = &fault.Error{Kind: fault.KindUnavailable, Code: "stripe_key_refused", Public: "Stripe refuses the API key, or the key lacks a permission; see docs/stripe.md"}
)

// away tells an outage of Stripe, and a refused key, from Stripe's plain answers.
func away(err error) error {
	switch {
	case err == nil || stripe.IsPlainRefusal(err):
		return err
	case stripe.IsRefused(err):
		return errKeyRefused.With(err)
	}
	return errStripeAway.With(err)
}

// circuit keeps the worker from Stripe while Stripe answers nobody.
type circuit struct {
	mu       sync.Mutex
	failures int
	until    time.Time
	refused  bool
}

func (c *circuit) open(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.until)
}

// trip opens the circuit. A refused key is told once, as an error; an outage, which
// passes, as a warning.
func (c *circuit) trip(now time.Time, cause error, logger *slog.Logger) {
	c.mu.Lock()
	defer c.mu.Unlock()
	refused := errors.Is(cause, errKeyRefused)
	switch {
	case refused && !c.refused:
		logger.Error("Stripe refuses the API key: no event is applied until that is mended", slog.String("error", cause.Error()))
	case !refused && c.failures == 0:
		logger.Warn("Stripe does not answer: events wait", slog.String("error", cause.Error()))
	}
	c.refused = refused
	c.until = now.Add(min(circuitFirst<<min(c.failures, 10), circuitMost))
	c.failures++
}

func (c *circuit) reset(logger *slog.Logger) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failures > 0 {
		logger.Info("Stripe answers again", slog.Int("failures", c.failures))
	}
	c.failures, c.until, c.refused = 0, time.Time{}, false
}

package webhooks

import (
	"context"
	"log/slog"
	"time"

	"tallystick/internal/pg"
	"tallystick/internal/stripe"
	"tallystick/internal/web"
)

// StripeReader is what handlers read from Stripe.
type StripeReader interface {
	Session(ctx context.Context, id string) (stripe.Session, error)
	SessionOf(ctx context.Context, paymentIntent string) (s stripe.Session, ok bool, err error)
	PaymentIntent(ctx context.Context, id string) (stripe.PaymentIntent, error)
	RefundsOf(ctx context.Context, paymentIntent string) ([]stripe.Refund, error)
	Event(ctx context.Context, id string) (stripe.Event, error)
}

// Config is what a Webhooks needs.
type Config struct {
	DB                  *pg.DB
	Now                 func() time.Time
	Stripe              StripeReader
	Logger              *slog.Logger
	Secrets             []string // none: every delivery is refused
	Livemode            bool     // the mode of the API key; events of the other are kept and not applied
	CreditsPerMajorUnit int64    // whole credits per major unit of money; 0: none
}

// Webhooks is the inbox and its worker.
type Webhooks struct {
	db       *pg.DB
	now      func() time.Time
	stripe   StripeReader
	logger   *slog.Logger
	secrets  []string
	livemode bool
	perMajor int64
	handlers map[string]handler
}

// handler finds out which payment an event is about; "" for none of ours.
type handler func(ctx context.Context, object []byte) (payment string, err error)

// New makes a Webhooks; its steps are driven by the caller.
func New(c Config) *Webhooks {
	h := &Webhooks{
		db: c.DB, now: c.Now, stripe: c.Stripe, logger: c.Logger, secrets: c.Secrets, livemode: c.Livemode, perMajor: c.CreditsPerMajorUnit,
	}
	h.handlers = map[string]handler{
		"checkout.session.completed":               sessionPayment,
		"checkout.session.async_payment_succeeded": sessionPayment,
		"checkout.session.async_payment_failed":    sessionPayment,
		"payment_intent.succeeded":                 intentPayment,
		"charge.refunded":                          refundPayment,
		"charge.refund.updated":                    refundPayment,
		"refund.created":                           refundPayment,
		"refund.updated":                           refundPayment,
		"refund.failed":                            refundPayment,
	}
	return h
}

// Routes lists what this package serves.
func (h *Webhooks) Routes() []web.Route {
	return []web.Route{
		{Method: "POST", Pattern: "/webhooks/stripe", Handler: h.handleReceive},
		{Method: "GET", Pattern: "/v1/stripe/events", Scope: "read", Handler: h.handleList},
		{Method: "POST", Pattern: "/v1/stripe/events/{id}/replay", Scope: "admin", Handler: h.handleReplay},
	}
}

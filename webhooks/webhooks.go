package webhooks

import (
	"context"
	"log/slog"
	"time"

	"tallystick/internal/pg"
	"tallystick/internal/stripe"
	"tallystick/internal/web"
)

// StripeReader is what handlers and the sweep read from Stripe.
type StripeReader interface {
	Session(ctx context.Context, id string) (stripe.Session, error)
	SessionOf(ctx context.Context, paymentIntent string) (s stripe.Session, ok bool, err error)
	SessionOfInvoice(ctx context.Context, customer, invoice string) (s stripe.Session, ok bool, err error)
	PaymentIntent(ctx context.Context, id string) (stripe.PaymentIntent, error)
	Invoice(ctx context.Context, id string) (stripe.Invoice, error)
	RefundsOf(ctx context.Context, paymentIntent string) ([]stripe.Refund, error)
	DisputesOf(ctx context.Context, payment string) ([]stripe.Dispute, error)
	CreditNotesOf(ctx context.Context, invoice string) ([]stripe.CreditNote, error)
	Event(ctx context.Context, id string) (stripe.Event, error)
	EventPages(ctx context.Context, types []string, from, to time.Time, each func([]stripe.Event) error) error
}

// Config is what a Webhooks needs.
type Config struct {
	DB                  *pg.DB
	Inbox               *pg.DB // a pool of the receiver's own, so that no work of others keeps Stripe waiting; nil: DB
	Now                 func() time.Time
	Stripe              StripeReader
	Logger              *slog.Logger
	Secrets             []string                         // none: every delivery is refused
	Livemode            bool                             // the mode of the API key; events of the other are kept and not applied
	Actor               func(ctx context.Context) string // who makes a request, for the journal
	CreditsPerMajorUnit int64                            // whole credits per major unit of money; 0: none
}

// Webhooks is the inbox and its worker.
type Webhooks struct {
	db       *pg.DB
	inbox    *pg.DB
	now      func() time.Time
	stripe   StripeReader
	logger   *slog.Logger
	secrets  []string
	livemode bool
	perMajor int64
	actor    func(ctx context.Context) string
	intake   *intake
	circuit  circuit
}

// New makes a Webhooks; its steps are driven by the caller.
func New(c Config) *Webhooks {
	h := &Webhooks{
		db: c.DB, inbox: c.Inbox, now: c.Now, stripe: c.Stripe, logger: c.Logger, secrets: c.Secrets, livemode: c.Livemode, perMajor: c.CreditsPerMajorUnit, actor: c.Actor,
	}
	if h.inbox == nil {
		h.inbox = c.DB
	}
	h.intake = &intake{h: h}
	return h
}

// Routes lists what this package serves.
func (h *Webhooks) Routes() []web.Route {
	return []web.Route{
		{Method: "POST", Pattern: "/webhooks/stripe", Handler: h.handleReceive},
		{Method: "GET", Pattern: "/v1/stripe/events", Scope: "read", Handler: h.handleList},
		{Method: "POST", Pattern: "/v1/stripe/events/{id}/replay", Scope: "admin", Handler: h.handleReplay},
		{Method: "POST", Pattern: "/v1/stripe/backfill", Scope: "admin", Handler: h.handleBackfill},
		{Method: "GET", Pattern: "/v1/stripe/payments", Scope: "read", Handler: h.handlePayments},
		{Method: "POST", Pattern: "/v1/stripe/payments/{id}/apply", Scope: "admin", Handler: h.handleApply},
	}
}

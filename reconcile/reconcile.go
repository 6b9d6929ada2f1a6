package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// StripeReader is what the auditor reads from Stripe.
type StripeReader interface {
	Meters(ctx context.Context) ([]stripe.Meter, error)
	Totals(ctx context.Context, meter, customer string, from, to time.Time, hourly bool) ([]stripe.Total, error)
	MeterTariffs(ctx context.Context, meter string) ([]stripe.Tariff, error)
	Tariff(ctx context.Context, price string) (stripe.Tariff, error)
	SubscriptionItems(ctx context.Context, customer string) ([]stripe.SubscriptionItem, error)
	UsageSummaries(ctx context.Context, item string, after time.Time) ([]stripe.UsageSummary, error)
	Subscribers(ctx context.Context, price string, each func(customer string)) error
	Sessions(ctx context.Context, from, to time.Time, each func(stripe.Session) error) error
	Session(ctx context.Context, id string) (stripe.Session, error)
	PaymentIntents(ctx context.Context, from, to time.Time, each func(stripe.PaymentIntent) error) error
	PaymentIntent(ctx context.Context, id string) (stripe.PaymentIntent, error)
	Events(ctx context.Context, from, to time.Time, each func(stripe.Event) error) error
	Refunds(ctx context.Context, from, to time.Time, each func(stripe.Refund) error) error
	RefundsOf(ctx context.Context, paymentIntent string) ([]stripe.Refund, error)
	Disputes(ctx context.Context, from, to time.Time, each func(stripe.Dispute) error) error
	DisputesOf(ctx context.Context, payment string) ([]stripe.Dispute, error)
	Invoices(ctx context.Context, from, to time.Time, each func(stripe.Invoice) error) error
	Invoice(ctx context.Context, id string) (stripe.Invoice, error)
	CreditNotesOf(ctx context.Context, invoice string) ([]stripe.CreditNote, error)
	Undelivered(ctx context.Context, from, to time.Time, each func(stripe.Event) error) error
	Endpoints(ctx context.Context) ([]stripe.Endpoint, error)
	MeterSetups(ctx context.Context) ([]stripe.MeterSetup, error)
	PriceSetup(ctx context.Context, id string) (stripe.PriceSetup, error)
	Customer(ctx context.Context, id string) (stripe.Customer, error)
}

// Mail is what people are told.
type Mail struct {
	Subject    string
	ReplyTo    string // id of the mail that began the thread, as it was staged; "" begins one
	Urgent     bool   // also for those who are woken for what is high or critical
	Text, HTML string
	CSV        []byte // the findings; nil for none
}

// Alerter stages a mail in a transaction. The id names the cause: staged twice,
// it is sent once.
type Alerter interface {
	StageMail(ctx context.Context, tx *sqlx.Tx, id string, m Mail) error
}

// Missing is a quantity that Stripe lacks in one bucket.
type Missing struct {
	Bucket   time.Time       `json:"bucket"`
	Quantity credit.Quantity `json:"quantity"`
}

// Repairer does what a repair calls for, in the packages that own the data.
type Repairer interface {
	// ResendUsage stages what Stripe lacks and gives the identifiers.
	ResendUsage(ctx context.Context, tx *sqlx.Tx, account, meter string, missing []Missing) ([]string, error)
	// FeedEvent puts a missed event into the inbox.
	FeedEvent(ctx context.Context, event string) error
	// SettlePayment reads a payment from Stripe again and brings its grant and what was
	// taken back to what Stripe says; it tells whether there was anything to settle.
	// Done again it changes nothing.
	SettlePayment(ctx context.Context, payment, actor string) (found bool, err error)
	// SettleReservation ends one that is in doubt, by release or capture, and gives
	// the state in which it is then. One that has ended stays as it is.
	SettleReservation(ctx context.Context, account, reservation, choice, actor string) (state string, err error)
	// CancelUsage takes a meter event back at Stripe. Done again it changes nothing.
	CancelUsage(ctx context.Context, eventName, identifier string) error
	// RebuildBalance brings an account's projections back to its journal.
	RebuildBalance(ctx context.Context, tx *sqlx.Tx, account string) error
}

// archivedAfter is how old usage is at least that was archived, less a day.
const archivedAfter = 39 * 24 * time.Hour

// Policies of repair.
const (
	RepairOff  = "off"
	RepairAsk  = "ask"
	RepairSafe = "safe"
)

// Config is what a Reconciler needs.
type Config struct {
	DB             *pg.DB
	Now            func() time.Time
	Stripe         StripeReader
	Alerter        Alerter
	Repairer       Repairer
	Logger         *slog.Logger
	Schedule       string            // of cheap checks: five cron fields, UTC; "" runs on request only
	Daily          string            // of dear checks; "" is Schedule
	Schedules      map[string]string // of single checks, by name
	Settle         time.Duration     // how far behind the present a window ends
	Lookback       time.Duration     // how long a window is
	Bucket         time.Duration     // of the deliveries to Stripe
	Policy         string
	PublicURL      string        // for links in mails
	FindingPath    string        // of the page about a finding, its id left out; "" is the API's
	Livemode       bool          // of the Stripe account, for links to its dashboard
	PerMajorUnit   int64         // whole credits per major unit of money; 0: none
	Cooldown       time.Duration // least time between two mails that are not urgent
	Digest, Weekly string        // when the reports are mailed, five cron fields, UTC; "" or off for never
	Webhook        Webhook
	Calls          int64 // most calls to Stripe that one run of one check makes; 0: callsDefault
}

// callsDefault keeps a run within about two minutes of what Stripe allows.
const callsDefault = 10_000

// Reconciler runs the checks.
type Reconciler struct {
	Config
	checks []check
	poster *http.Client // of webhooks

	runMax, hangGrace time.Duration // bounds of a run, shortened by tests
}

// New makes a Reconciler.
func New(c Config) *Reconciler {
	if c.Bucket == 0 {
		c.Bucket = time.Minute
	}
	if c.Lookback == 0 {
		c.Lookback = 72 * time.Hour
	}
	if c.FindingPath == "" {
		c.FindingPath = "/v1/findings/"
	}
	if c.Calls == 0 {
		c.Calls = callsDefault
	}
	r := &Reconciler{Config: c, poster: c.Webhook.client(), runMax: runMax, hangGrace: hangGrace}
	r.checks = []check{
		{name: "usage.totals", description: "our usage with what Stripe has counted, per customer, meter and hour", run: r.usageTotals},
		{name: "usage.deliveries", description: "deliveries of usage that do not get to Stripe, or too late", run: r.usageDeliveries},
		{name: "usage.unbilled", description: "usage that no customer, subscription or price at Stripe would bill", run: r.usageUnbilled, daily: true},
		{name: "usage.errors", description: "what Stripe reports of meter events that it dropped after it had taken them", run: r.usageErrors},
		{name: "credits.payments", description: "every paid purchase of credits at Stripe with exactly one purchase grant", run: r.creditsPayments},
		{name: "credits.refunds", description: "money that was refunded or credited with the credits taken back for it", run: r.creditsRefunds},
		{name: "credits.disputes", description: "money that disputes withdrew or gave back with the credits taken back for it", run: r.creditsDisputes},
		{name: "ledger.balances", description: "what each account has with its journal", run: r.ledgerBalances},
		{name: "ledger.usage", description: "each usage with exactly one transfer, at the price of its rate", run: r.ledgerUsage},
		{name: "ledger.holds", description: "reservations with what the journal holds; stuck ones and those in doubt", run: r.ledgerHolds},
		{name: "ledger.grants", description: "what remains of each grant with the journal, and that it has expired in time", run: r.ledgerGrants},
		{name: "ledger.chain", description: "the chain of hashes over each account's journal, recomputed", run: r.ledgerChain},
		{name: "webhooks.gaps", description: "Stripe's list of events with those that arrived", run: r.webhooksGaps},
		{name: "webhooks.failures", description: "events that arrived and were not applied", run: r.webhooksFailures},
		{name: "webhooks.endpoint", description: "the webhook endpoint at Stripe with what this system needs, and its failing deliveries", run: r.webhooksEndpoint},
		{name: "stripe.catalog", description: "the meters, prices and customers at Stripe that we point at exist, are active and fit", run: r.stripeCatalog},
		{name: silenceCheck, description: "every check with its schedule: one that has not succeeded in its time is a finding", run: r.silence, spec: silenceSpec},
	}
	return r
}

// CheckNames lists the checks.
func (r *Reconciler) CheckNames() []string {
	names := make([]string, len(r.checks))
	for i, c := range r.checks {
		names[i] = c.name
	}
	return names
}

// Describe gives the description of a check.
func (r *Reconciler) Describe(name string) string {
	for _, c := range r.checks {
		if c.name == name {
			return c.description
		}
	}
	return ""
}

// Options narrow a run that was asked for; zero values take everything.
type Options struct {
	Checks   []string
	From, To time.Time
	Account  string
	DryRun   bool // compare and report, write nothing
}

// errUnknownCheck is a mistake in a request.
var errUnknownCheck = &fault.Error{Kind: fault.KindUnprocessed, Code: "unknown_check", Public: "there is no such check"}

// scope works the window out. Its edges lie on buckets, because Stripe knows of
// usage by its bucket; and it ends where Stripe has had time to count.
func (r *Reconciler) scope(o Options) (scope, error) {
	now := r.Now()
	s := scope{from: o.From.UTC(), to: o.To.UTC(), account: o.Account, now: now, dry: o.DryRun, asked: o.Account != "" || !o.From.IsZero() || !o.To.IsZero()}
	if o.To.IsZero() {
		s.to = now.Add(-r.Settle)
	}
	s.to = s.to.Truncate(r.Bucket)
	if s.to.Before(now.Add(-archivedAfter)) {
		s.to = s.to.Truncate(time.Hour) // of usage that old only hours may be left
	}
	if o.From.IsZero() {
		s.from = s.to.Add(-r.Lookback)
	}
	s.from = s.from.Truncate(time.Hour)
	if !s.from.Before(s.to) {
		var p fault.Problems
		p.Addf("/from", "must be before to, which ends %s behind the present by default", r.Settle)
		return s, p.Err(fault.ErrUnprocessed)
	}
	return s, nil
}

func (r *Reconciler) selected(names []string) ([]check, error) {
	if len(names) == 0 {
		return r.checks, nil
	}
	var chosen []check
	for _, name := range names {
		i := slices.IndexFunc(r.checks, func(c check) bool { return c.name == name })
		if i < 0 {
			return nil, errUnknownCheck.Withf("there is no check %q; there are %s", name, strings.Join(r.CheckNames(), ", "))
		}
		chosen = append(chosen, r.checks[i])
	}
	return chosen, nil
}

func encode(v any) (string, error) {
	if v == nil {
		return "{}", nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode evidence: %w", err)
	}
	return string(b), nil
}

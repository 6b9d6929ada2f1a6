// Package app puts the program together out of its parts, in plain Go: an App is
// a value that a test can start and stop.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"tallystick/internal/config"
	"tallystick/internal/fault"
	"tallystick/internal/loop"
	"tallystick/internal/mail"
	"tallystick/internal/pg"
	"tallystick/internal/stripe"
	"tallystick/internal/web"
	"tallystick/ledger"
	"tallystick/meter"
	"tallystick/outbox"
	"tallystick/reconcile"
	"tallystick/retention"
	"tallystick/webhooks"
)

// Bounds of the HTTP server and of stopping.
const (
	headerTime  = 5 * time.Second
	readTime    = 30 * time.Second
	idleTime    = 2 * time.Minute
	headerMax   = 16 << 10
	drainTime   = 25 * time.Second
	expireEvery = 5 * time.Second
	upkeepEvery = time.Hour
	parkedEvery = 15 * time.Second
	sweepLook   = 30 * time.Second
	settleEvery = 30 * time.Second

	alertsEvery   = 10 * time.Second
	webhooksEvery = 2 * time.Second

	reservationsEvery = time.Second
	defaultIdle       = 200 * time.Millisecond
)

// Options are what an App is made of.
type Options struct {
	Config   config.Config
	Now      func() time.Time
	Logger   *slog.Logger
	Schedule bool          // run the checks on schedule
	Idle     time.Duration // how long a worker waits when there is nothing to do
}

// App is the running program: API, webhooks, workers, checks.
type App struct {
	DB        *pg.DB
	Meter     *meter.Meter
	Outbox    *outbox.Outbox
	Webhooks  *webhooks.Webhooks
	Reconcile *reconcile.Reconciler

	keyed    *pg.DB
	inbox    *pg.DB // of the webhook receiver alone
	options  Options
	logger   *slog.Logger
	registry *prometheus.Registry
	handler  http.Handler
}

// ErrSchema says that the database is not at this binary's schema.
var ErrSchema = errors.New("the database lacks migrations; run: tallystick migrate")

// New wires an App to its database, which must be migrated. It starts the
// metering lanes; everything else starts with Run.
func New(ctx context.Context, o Options) (*App, error) {
	c := o.Config
	lanes := min(meter.LanesDefault(), c.DatabaseMax/2) // of the connections, for the lanes
	db, err := pg.Open(ctx, c.DatabaseURL.Reveal(), pg.Options{ConnectionsMax: c.DatabaseMax - lanes - inboxConnections(c.DatabaseMax)})
	if err != nil {
		return nil, errors.Join(err, closeDB(db))
	}
	pending, err := pg.Pending(ctx, c.DatabaseURL.Reveal())
	if err == nil && pending > 0 {
		err = ErrSchema
	}
	if err != nil {
		return nil, errors.Join(err, closeDB(db))
	}
	if o.Idle == 0 {
		o.Idle = defaultIdle
	}
	keyed, err := pg.Open(ctx, c.DatabaseURL.Reveal(), pg.Options{ConnectionsMax: lanes, Keyed: true})
	if err != nil {
		return nil, errors.Join(err, closeDB(db), closeDB(keyed))
	}
	inbox, err := pg.Open(ctx, c.DatabaseURL.Reveal(), pg.Options{ConnectionsMax: inboxConnections(c.DatabaseMax), Keyed: true})
	if err != nil {
		return nil, errors.Join(err, closeDB(db), closeDB(keyed), closeDB(inbox))
	}
	a := &App{DB: db, keyed: keyed, inbox: inbox, options: o, logger: o.Logger, registry: prometheus.NewRegistry()}
	sender, err := mail.NewSender(c.SMTPURL.Reveal(), c.MailFrom, o.Now)
	if err != nil {
		return nil, errors.Join(err, closeDB(db), closeDB(keyed), closeDB(inbox))
	}
	client := stripe.New(stripe.Config{Key: c.StripeAPIKey.Reveal(), BaseURL: c.StripeAPIBase, Logger: o.Logger})
	a.wire(c, client, sender)
	if err := a.Reconcile.Validate(); err != nil {
		return nil, errors.Join(&config.MistakeError{Mistakes: []string{err.Error()}}, a.Close())
	}
	return a, nil
}

// inboxConnections is how many of the connections are the webhook receiver's own:
// however busy the others are, an event is stored.
func inboxConnections(all int) int { return max(1, min(2, all/8)) }

func closeDB(db *pg.DB) error {
	if db == nil {
		return nil
	}
	return db.Close()
}

// wire makes the parts, in the order in which they import each other.
func (a *App) wire(c config.Config, client *stripe.Client, sender *mail.Sender) {
	now, logger := a.options.Now, a.logger
	a.Outbox = outbox.New(outbox.Config{
		DB: a.DB, Now: now, Usage: usageSender{client}, Reader: &usageReader{client: client}, Mail: sender, Logger: logger, Bucket: c.UsageBucket, Settle: c.UsageSettle,
		Rate: c.StripeRate, MeterRate: c.MeterRate, AlertTo: c.MailTo, Domain: domainOf(c.MailFrom),
	})
	a.Meter = meter.New(meter.Config{
		DB: a.DB, Keyed: a.keyed, Now: now, Stager: a.Outbox, Logger: logger,
		Failures: c.AuthFailures, Proxies: c.Proxies(), Registry: a.registry,
	})
	secrets := make([]string, len(c.StripeWebhookSecrets))
	for i, s := range c.StripeWebhookSecrets {
		secrets[i] = s.Reveal()
	}
	a.Webhooks = webhooks.New(webhooks.Config{
		DB: a.DB, Now: now, Stripe: client, Logger: logger, Secrets: secrets, CreditsPerMajorUnit: c.CreditsPerUnit,
		Livemode: strings.Contains(c.StripeAPIKey.Reveal(), "_live_"), Inbox: a.inbox, Actor: meter.Actor,
	})
	schedule := ""
	if a.options.Schedule {
		schedule = c.ReconcileSchedule
	}
	publicURL := c.PublicURL
	if publicURL == "" {
		publicURL = "http://" + c.Listen
	}
	a.Reconcile = reconcile.New(reconcile.Config{
		DB: a.DB, Now: now, Stripe: client, Logger: logger, Schedule: schedule, Settle: c.ReconcileSettle, Lookback: c.ReconcileLookback,
		Bucket: c.UsageBucket, Policy: c.Repair, PublicURL: publicURL, PerMajorUnit: c.CreditsPerUnit,
		Cooldown: c.MailCooldown, Digest: c.MailDigest, Weekly: c.MailWeekly, Webhook: webhook(c),
		Daily: c.ReconcileDaily, Schedules: c.Schedules(), Calls: int64(c.ReconcileCalls), Livemode: strings.Contains(c.StripeAPIKey.Reveal(), "_live_"),
		Alerter:  alerter{to: c.MailTo, urgent: c.MailUrgentTo, now: now, domain: domainOf(c.MailFrom)},
		Repairer: repairer{outbox: a.Outbox, webhooks: a.Webhooks, meter: a.Meter, stripe: client, now: now},
	})
	a.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newGauges(a))
	a.handler = a.routes(web.NewServer(logger, a.registry))
}

// webhook is where alerts are posted, if anywhere.
func webhook(c config.Config) reconcile.Webhook {
	w := reconcile.Webhook{URL: c.AlertWebhookURL, Private: c.AlertWebhookPrivate}
	for _, s := range c.AlertWebhookSecrets {
		w.Secrets = append(w.Secrets, s.Reveal())
	}
	return w
}

func domainOf(address string) string {
	if _, domain, ok := strings.Cut(strings.TrimSuffix(address, ">"), "@"); ok {
		return domain
	}
	return "localhost"
}

// Close ends an App that was never Run.
func (a *App) Close() error {
	a.Meter.Close()
	return errors.Join(a.DB.Close(), a.keyed.Close(), a.inbox.Close())
}

// Handler serves everything, for tests and for Run.
func (a *App) Handler() http.Handler { return a.handler }

// Run serves on the listener and runs the workers until ctx ends; then it stops
// taking requests, answers those it has, and returns.
func (a *App) Run(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: a.handler, ReadHeaderTimeout: headerTime, ReadTimeout: readTime, IdleTimeout: idleTime, MaxHeaderBytes: headerMax,
		ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelWarn),
	}
	workers, stopWorkers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorkers()
	var wg sync.WaitGroup
	a.work(workers, &wg)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		err = server.Shutdown(drain)
		cancel()
	}
	a.Meter.Close()
	stopWorkers()
	wg.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("serve: %w", err)
	}
	return errors.Join(err, a.DB.Close(), a.keyed.Close(), a.inbox.Close())
}

// sweep looks for events that were missed, where the checks run on schedule, too.
func (a *App) sweep(ctx context.Context) (more bool, err error) {
	if !a.options.Schedule {
		return false, nil
	}
	return a.Webhooks.SweepStep(ctx)
}

// work starts the background workers.
func (a *App) work(ctx context.Context, wg *sync.WaitGroup) {
	idle := a.options.Idle
	upkeep := retention.Upkeep{DB: a.DB, Now: a.options.Now, Logger: a.logger}
	for _, w := range []struct {
		name string
		idle time.Duration
		step loop.Step
	}{
		{"deliveries", idle, a.Outbox.UsageStep},
		{"more deliveries", idle, a.Outbox.UsageStep}, // one slow call holds up one of them
		{"settled deliveries", settleEvery, a.Outbox.SettleStep},
		{"mails", idle, a.Outbox.MailStep},
		{"events", idle, a.Webhooks.Step},
		{"alerts", alertsEvery, a.Reconcile.AlertStep},
		{"alert webhooks", webhooksEvery, a.Reconcile.WebhookStep},
		{"parked payments", parkedEvery, a.Webhooks.ParkedStep},
		{"missed events", sweepLook, a.sweep},
		{"reservations", reservationsEvery, a.Meter.ReservationStep},
		{"expiry", expireEvery, func(ctx context.Context) (bool, error) { return ledger.ExpireStep(ctx, a.DB, a.options.Now()) }},
		{"partitions", upkeepEvery, upkeep.Step},
	} {
		wg.Go(func() {
			loop.Run(ctx, w.idle, w.step, func(err error) {
				level := slog.LevelError
				if errors.Is(err, fault.ErrUnavailable) {
					level = slog.LevelWarn
				}
				a.logger.Log(ctx, level, "a worker's step failed; it is tried again", slog.String("worker", w.name), slog.String("error", err.Error()))
			})
		})
	}
	wg.Go(func() {
		if err := a.Reconcile.Start(ctx); err != nil {
			a.logger.Error("the schedule did not start", slog.String("error", err.Error()))
		}
	})
}

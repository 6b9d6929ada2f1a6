package app

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"tallystick/api"
	"tallystick/internal/clock"
	"tallystick/internal/config"
	"tallystick/internal/mail"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgdev"
	"tallystick/meter"
	"tallystick/stripesim"
)

// Info is what a client needs to use what Up has started; it is written to
// up.json in the data directory, readable by its owner only.
type Info struct {
	URL           string `json:"url"`
	APIKey        string `json:"api_key"`
	WebhookSecret string `json:"webhook_secret"`
	StripeAPIBase string `json:"stripe_api_base"`
	StripeAPIKey  string `json:"stripe_api_key"`
	MailURL       string `json:"mail_url"`
	DatabaseURL   string `json:"database_url"`
	PID           int    `json:"pid"`
}

// UpOptions say what to start.
type UpOptions struct {
	Config   config.Config
	Data     string // directory of everything that is embedded
	Logger   *slog.Logger
	Schedule bool
	Note     func(format string, args ...any) // progress, for people
}

// Up is everything on one machine: the App and, where the configuration names
// none, a private Postgres, the Stripe simulator and a mail catcher. They share one
// clock, so that moving the simulator's time moves the whole.
type Up struct {
	Info    Info
	App     *App
	Sim     *stripesim.Server // nil with a real Stripe
	Catcher *mail.Catcher     // nil with a real mail server
	Clock   *clock.Virtual
	Config  config.Config

	options  UpOptions
	postgres *pgdev.Server
	listener net.Listener
	stop     context.CancelFunc
	ended    chan error
	closers  []func() error
}

// infoFile is the name of the file that Info is kept in.
const infoFile = "up.json"

// ReadInfo reads what an Up over this data directory has written.
func ReadInfo(data string) (Info, error) {
	var i Info
	content, err := os.ReadFile(filepath.Join(data, infoFile))
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(content, &i); err != nil {
		return i, fmt.Errorf("%s is damaged: %w", filepath.Join(data, infoFile), err)
	}
	return i, nil
}

// StartUp starts everything and returns when it serves. What it started ends with
// Close.
func StartUp(ctx context.Context, o UpOptions) (*Up, error) {
	u := &Up{options: o, Config: o.Config, Clock: &clock.Virtual{}}
	if err := u.start(ctx); err != nil {
		return nil, errors.Join(err, u.Close(context.WithoutCancel(ctx)))
	}
	return u, nil
}

func (u *Up) start(ctx context.Context) error {
	if err := os.MkdirAll(u.options.Data, 0o755); err != nil { //nolint:gosec // the database's own user must reach its directory below
		return fmt.Errorf("make the data directory: %w", err)
	}
	before, err := ReadInfo(u.options.Data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if u.listener, err = listen(ctx, u.Config.Listen); err != nil {
		return err
	}
	u.closers = append(u.closers, func() error { _ = u.listener.Close(); return nil }) // closed by the server already, most of the time
	u.Info.URL = "http://" + u.listener.Addr().String()
	u.Config.Listen = u.listener.Addr().String()
	for _, part := range []func(context.Context, Info) error{u.startPostgres, u.startStripe, u.startMail, u.startApp, u.ensureKey} {
		if err := part(ctx, before); err != nil {
			return err
		}
	}
	u.Info.PID = os.Getpid()
	return u.writeInfo()
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	var l net.ListenConfig
	listener, err := l.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w; choose another address with --listen", address, err)
	}
	return listener, nil
}

// listenAgain prefers the address that was used before, so that what points there
// stays right; any free port of loopback will do else.
func listenAgain(ctx context.Context, before string) (net.Listener, error) {
	if b, err := url.Parse(before); err == nil && b.Host != "" {
		if l, err := listen(ctx, b.Host); err == nil {
			return l, nil
		}
	}
	return listen(ctx, "127.0.0.1:0")
}

func (u *Up) startPostgres(ctx context.Context, _ Info) error {
	if u.Config.DatabaseURL == "" {
		dir, err := postgresDir(u.options.Data)
		if err != nil {
			return err
		}
		u.options.Note("starting a private Postgres in %s", dir)
		if u.postgres, err = pgdev.Start(ctx, pgdev.Options{Dir: dir}); err != nil {
			return err
		}
		u.closers = append(u.closers, func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return u.postgres.Stop(ctx)
		})
		u.Config.DatabaseURL = config.Secret(u.postgres.DSN(pgdev.Database))
	}
	u.Info.DatabaseURL = u.Config.DatabaseURL.Reveal()
	applied, err := pg.Migrate(ctx, u.Info.DatabaseURL)
	if len(applied) > 0 {
		u.options.Note("applied %d migrations", len(applied))
	}
	return err
}

// postgresDir is where the private Postgres lives: in the data directory, unless
// we are root and the directory is closed to the ordinary user whom Postgres must
// run as. Then it is in /var/lib, and the data directory remembers where.
func postgresDir(data string) (string, error) {
	data, err := filepath.Abs(data)
	if err != nil {
		return "", fmt.Errorf("find the data directory: %w", err)
	}
	dir := filepath.Join(data, "postgres")
	pointer := filepath.Join(data, "postgres.location")
	if kept, err := os.ReadFile(pointer); err == nil {
		return string(kept), nil
	}
	if os.Geteuid() != 0 || openToAll(data) {
		return dir, nil
	}
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	dir = filepath.Join("/var/lib/tallystick", hex.EncodeToString(random[:]))
	if err := os.WriteFile(pointer, []byte(dir), 0o600); err != nil {
		return "", fmt.Errorf("remember where Postgres lives: %w", err)
	}
	return dir, nil
}

// openToAll tells whether anybody may pass through dir and all above it.
func openToAll(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// simKey is the key of the embedded simulator, which guards nothing.
const simKey = "sk_test_tallystick_simulator"

func (u *Up) startStripe(ctx context.Context, before Info) error {
	if u.Config.StripeAPIKey != "" {
		u.Info.StripeAPIBase, u.Info.StripeAPIKey = u.Config.StripeAPIBase, u.Config.StripeAPIKey.Reveal()
		if len(u.Config.StripeWebhookSecrets) > 0 {
			u.Info.WebhookSecret = u.Config.StripeWebhookSecrets[0].Reveal()
		}
		return nil
	}
	sim, err := stripesim.NewServer(stripesim.Options{Clock: u.Clock, Dir: filepath.Join(u.options.Data, "stripe"), Logger: u.options.Logger}) //nolint:contextcheck // it lives until its Close
	if err != nil {
		return err
	}
	u.Sim = sim
	listener, err := listenAgain(ctx, before.StripeAPIBase)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: sim, ReadHeaderTimeout: headerTime}
	go func() { _ = server.Serve(listener) }()
	u.closers = append(u.closers, sim.Close, server.Close)
	u.Config.StripeAPIBase, u.Config.StripeAPIKey = "http://"+listener.Addr().String(), simKey
	u.Info.StripeAPIBase, u.Info.StripeAPIKey = u.Config.StripeAPIBase, simKey
	secret, err := sim.EnsureEndpoint(u.Info.URL + "/webhooks/stripe")
	u.Info.WebhookSecret = secret
	u.Config.StripeWebhookSecrets = []config.Secret{config.Secret(secret)}
	u.options.Note("started the Stripe simulator on %s", u.Info.StripeAPIBase)
	return err
}

func (u *Up) startMail(ctx context.Context, before Info) error {
	if u.Config.SMTPURL != "" {
		return nil
	}
	receive, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		return err
	}
	if u.Catcher, err = mail.NewCatcher(receive, filepath.Join(u.options.Data, "mail")); err != nil {
		return err
	}
	show, err := listenAgain(ctx, before.MailURL)
	if err != nil {
		return err
	}
	pages, stop := context.WithCancel(context.WithoutCancel(ctx))
	go func() { _ = u.Catcher.Serve(pages, show) }()
	u.closers = append(u.closers, u.Catcher.Close, func() error { stop(); return nil })
	u.Config.SMTPURL = config.Secret(u.Catcher.Address())
	if len(u.Config.MailTo) == 0 {
		u.Config.MailTo = []string{"billing@example.com"}
	}
	u.Info.MailURL = "http://" + show.Addr().String()
	u.options.Note("catching mails on %s", u.Info.MailURL)
	return nil
}

func (u *Up) startApp(ctx context.Context, _ Info) error {
	a, err := New(ctx, Options{Config: u.Config, Now: u.Clock.Now, Logger: u.options.Logger, Schedule: u.options.Schedule})
	if err != nil {
		return err
	}
	u.App = a
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	u.stop, u.ended = stop, make(chan error, 1)
	go func() { u.ended <- a.Run(run, u.listener) }()
	return nil
}

// ensureKey keeps the API key of an earlier start as long as it works.
func (u *Up) ensureKey(ctx context.Context, before Info) error {
	if before.APIKey != "" && u.App.Meter.Works(ctx, before.APIKey, meter.ScopeAdmin) {
		u.Info.APIKey = before.APIKey
		return nil
	}
	key, err := u.App.Meter.CreateKey(ctx, api.KeyRequest{Name: "made by up", Scopes: []string{meter.ScopeUsage, meter.ScopeRead, meter.ScopeAdmin}})
	u.Info.APIKey = key.Secret
	return err
}

// writeInfo replaces up.json in one step, so that a reader never sees half of it.
func (u *Up) writeInfo() error {
	var content bytes.Buffer
	e := json.NewEncoder(&content)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false) // people and shell scripts read it, too
	if err := e.Encode(u.Info); err != nil {
		return err
	}
	path := filepath.Join(u.options.Data, infoFile)
	if err := os.WriteFile(path+".new", content.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(path+".new", path)
}

// Wait returns when ctx ends, or with an error when a part has ended by itself.
func (u *Up) Wait(ctx context.Context) error {
	var gone <-chan struct{}
	if u.postgres != nil {
		gone = u.postgres.Done()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-u.ended:
			u.ended <- nil
			return errors.Join(errors.New("the server has ended"), err)
		case <-gone:
			if ctx.Err() != nil {
				return nil // the terminal's interrupt went to both of us
			}
			u.options.Logger.Error("the private Postgres has ended; it is started again")
			if err := u.postgres.Restart(ctx); err != nil {
				return err
			}
			gone = u.postgres.Done()
		}
	}
}

// Close ends everything in the reverse order of its start.
func (u *Up) Close(context.Context) error {
	var errs []error
	if u.stop != nil {
		u.stop()
		errs = append(errs, <-u.ended)
	}
	for i := len(u.closers) - 1; i >= 0; i-- {
		errs = append(errs, u.closers[i]())
	}
	u.closers, u.stop = nil, nil
	return errors.Join(errs...)
}

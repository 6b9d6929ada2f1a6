package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/spf13/cobra"

	"tallystick/internal/app"
	"tallystick/internal/config"
)

// settleEmbedded is how far behind the present a window ends where the embedded
// simulator is compared with: it counts at once.
const settleEmbedded = "1m"

func (p *program) upCommand() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use:   "up",
		Short: "Run everything on embedded defaults: private Postgres, Stripe simulator, mail catcher",
		Long: "Run everything. Without DATABASE_URL a private Postgres is started, without STRIPE_API_KEY the Stripe simulator, without\n" +
			"TALLYSTICK_SMTP_URL a mail catcher. Addresses and keys are printed and written to up.json in the data directory.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			u, err := p.startUp(c.Context(), listen, true)
			if err != nil {
				return err
			}
			p.greet(u)
			err = u.Wait(c.Context())
			p.note("stopping")
			return errors.Join(err, u.Close(context.WithoutCancel(c.Context())))
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "address of the HTTP server (default 127.0.0.1:8321)")
	return c
}

// startUp starts everything embedded over the data directory.
func (p *program) startUp(ctx context.Context, listen string, schedule bool) (*app.Up, error) {
	flags := map[string]string{"TALLYSTICK_LISTEN": listen}
	if p.env("STRIPE_API_KEY") == "" && p.env("TALLYSTICK_RECONCILE_SETTLE") == "" {
		flags["TALLYSTICK_RECONCILE_SETTLE"] = settleEmbedded
	}
	c, mistakes := p.load(flags)
	if err := config.Err(mistakes); err != nil {
		return nil, err
	}
	dir, err := p.dataDir()
	if err != nil {
		return nil, err
	}
	level := c.LogLevel
	if p.quiet && level < slog.LevelWarn {
		level = slog.LevelWarn
	}
	return app.StartUp(ctx, app.UpOptions{Config: c, Data: dir, Logger: p.logger(level), Schedule: schedule, Note: p.note})
}

// greet says where everything is.
func (p *program) greet(u *app.Up) {
	p.print("tallystick is up")
	p.print("  API and docs  %s/docs", u.Info.URL)
	p.print("  API key       %s", u.Info.APIKey)
	p.print("  Stripe        %s", u.Info.StripeAPIBase)
	if u.Info.MailURL != "" {
		p.print("  mails         %s", u.Info.MailURL)
	}
	dir, _ := p.dataDir() // it was found at the start
	p.print("  all of it in  %s/up.json", dir)
}

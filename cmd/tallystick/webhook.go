package main

import (
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"tallystick/internal/config"
	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

func (p *program) webhookCommand() *cobra.Command {
	c := &cobra.Command{Use: "webhook", Short: "Set up the webhook endpoint at Stripe", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(p.webhookSetupCommand())
	return c
}

func (p *program) webhookSetupCommand() *cobra.Command {
	var to string
	var dry bool
	c := &cobra.Command{
		Use:   "setup --url https://HOST",
		Short: "Create or repair the endpoint at Stripe; the secret of a new one is shown once",
		Long: `Create the webhook endpoint with API version ` + stripe.APIVersion + ` and exactly the event types that are
handled, or repair one that is disabled or listens to others. Nothing is deleted: an endpoint of
another API version is left, a new one is made beside it, and both secrets must be configured
(STRIPE_WEBHOOK_SECRET, comma-separated) until the old one is deleted in Stripe's dashboard.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			address, err := endpointURL(to)
			if err != nil {
				return err
			}
			client, err := p.stripeClient()
			if err != nil {
				return err
			}
			r, err := webhooks.Setup(c.Context(), client, address, dry)
			if err != nil {
				return &exitError{code: exitUnreachable, err: err}
			}
			return p.showSetup(r, dry)
		},
	}
	c.Flags().StringVar(&to, "url", "", "where this server can be reached from the internet; /webhooks/stripe is added where there is no path")
	c.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, do nothing")
	return c
}

// endpointURL is where Stripe is to send events to.
func endpointURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", usageError("--url must be an address such as https://billing.example.com, not %q", text)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/webhooks/stripe"
	}
	return u.String(), nil
}

// stripeClient talks to Stripe by the configured key, else to the simulator of up.
func (p *program) stripeClient() (*stripe.Client, error) {
	c, mistakes := p.load(nil)
	if err := config.Err(mistakes); err != nil {
		return nil, err
	}
	if c.StripeAPIKey != "" {
		return stripe.New(stripe.Config{Key: c.StripeAPIKey.Reveal(), BaseURL: c.StripeAPIBase}), nil
	}
	i, err := p.info()
	if err != nil || i.StripeAPIKey == "" {
		return nil, usageError("no Stripe account is known: set STRIPE_API_KEY, or name the --data directory of a running `tallystick up`")
	}
	return stripe.New(stripe.Config{Key: i.StripeAPIKey, BaseURL: i.StripeAPIBase}), nil
}

func (p *program) showSetup(r webhooks.SetupResult, dry bool) error {
	err := p.rows([]string{"action", "endpoint", "url", "why", "secret"}, [][]string{{r.Action, r.Endpoint, r.URL, strings.Join(r.Reasons, "; "), r.Secret}}, nil, r)
	switch {
	case dry:
		p.note("nothing was done")
	case r.Secret != "":
		p.note("the secret is shown this once: set STRIPE_WEBHOOK_SECRET to it, beside the one of an endpoint that is still there")
	}
	if len(r.Surplus) > 0 {
		p.note("delete these in Stripe's dashboard once the server knows the secret of the one above: %s", strings.Join(r.Surplus, ", "))
	}
	return err
}

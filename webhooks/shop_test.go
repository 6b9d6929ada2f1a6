package webhooks_test

import (
	"testing"

	"tallystick/internal/apptest"
	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

// beside opens a shop whose simulator keeps its webhooks to itself, and a till that
// reads from that simulator and gets what the test delivers.
func beside(t *testing.T) (*apptest.Shop, *till) {
	t.Helper()
	s := apptest.OpenShop(t, apptest.Options{})
	s.Control("/_sim/webhooks", `{"pause": true}`)
	return s, reading(t, s)
}

// reading makes another till that reads from a shop's simulator.
func reading(t *testing.T, s *apptest.Shop) *till {
	t.Helper()
	d := opened(t, func(c *webhooks.Config) {
		c.Stripe = stripe.New(stripe.Config{Key: s.Info.StripeAPIKey, BaseURL: s.Info.StripeAPIBase})
	})
	d.account("acme", s.Customer)
	return d
}

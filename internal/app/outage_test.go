package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tallystick/internal/apptest"
	"tallystick/internal/pg/pgdev"
	"tallystick/internal/pg/pgtest"
	"tallystick/stripesim"
)

// available is an account's balance.
func available(t *testing.T, a *apptest.App, account string) string {
	t.Helper()
	r := a.Want(http.StatusOK, http.MethodGet, "/v1/accounts/"+account, nil, nil)
	return between(string(r.Body), `"available":"`, `"`)
}

// sell makes a price of 100 credits for 10 USD, and a customer for acme.
func sell(a *apptest.App) (customer, price string) {
	product := fmt.Sprint(a.Stripe(http.MethodPost, "/v1/products", url.Values{"name": {"credits"}})["id"])
	price = fmt.Sprint(a.Stripe(http.MethodPost, "/v1/prices", url.Values{
		"product": {product}, "currency": {"usd"}, "unit_amount": {"1000"}, "metadata[credits]": {"100"},
	})["id"])
	return fmt.Sprint(a.Stripe(http.MethodPost, "/v1/customers", url.Values{"name": {"acme"}})["id"]), price
}

// buy pays one checkout.
func buy(t *testing.T, a *apptest.App, customer, price string) {
	t.Helper()
	session := a.Stripe(http.MethodPost, "/v1/checkout/sessions", url.Values{
		"mode": {"payment"}, "customer": {customer}, "client_reference_id": {"acme"}, "success_url": {"https://example.com/thanks"},
		"line_items[0][price]": {price}, "line_items[0][quantity]": {"1"},
	})
	if err := a.Sim.PayCheckout(fmt.Sprint(session["id"]), "paid"); err != nil {
		t.Fatal(err)
	}
}

func TestPostgresAwayIsSaidPlainlyAndNothingIsAcknowledged(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	a := apptest.Start(t, apptest.Options{DatabaseURL: server.DSN(pgdev.Database)})
	a.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`, nil)
	a.Want(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1}`, nil)
	a.Want(http.StatusCreated, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 10}`, nil)
	customer, price := sell(a)
	usage := `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 3}`

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, call := range []struct{ method, path, body string }{
		{http.MethodPost, "/v1/usage", usage},
		{http.MethodGet, "/v1/accounts/acme", ""},
		{http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0002", "credits": 10}`},
		{http.MethodPost, "/v1/reconcile/runs", `{}`},
		{http.MethodGet, "/readyz", ""},
	} {
		r := a.Call(call.method, call.path, call.body)
		if r.Status != http.StatusServiceUnavailable || r.Code() != "unavailable" || r.Header.Get("Retry-After") == "" || strings.Contains(string(r.Body), "dial") {
			t.Errorf("%s %s without Postgres was answered %d %v: %s", call.method, call.path, r.Status, r.Header, r.Body)
		}
	}
	a.Want(http.StatusOK, http.MethodGet, "/healthz", nil, nil)
	delivered := a.Sim.State().Webhooks.Delivered
	buy(t, a, customer, price)
	a.Await("the simulator to be refused", func() bool { return a.Sim.State().Webhooks.Failed > 0 })
	if now := a.Sim.State().Webhooks.Delivered; now != delivered {
		t.Errorf("%d webhooks were acknowledged without a database", now-delivered)
	}

	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Await("the server to be ready again", func() bool { return a.Call(http.MethodGet, "/readyz", nil).Status == http.StatusOK })
	if r := a.Want(http.StatusCreated, http.MethodPost, "/v1/usage", usage, nil); r.Header.Get("Idempotent-Replayed") != "" {
		t.Error("usage that was refused with 503 had been recorded")
	}
	a.Pass(2 * time.Hour) // Stripe sends again
	if got := available(t, a, "acme"); got != "107" {
		t.Errorf("acme holds %s, want 107: 10 granted, 3 spent, 100 bought during the outage", got)
	}
	verified(t, a)
}

func TestStripeAwayMeteringGoesOnAndDeliveriesCatchUp(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"drop_before", "error_503", "error_502_html", "drop_after", "error_500_after", "rate_limit", "unauthorized_401"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			stripeAway(t, fault)
		})
	}
}

func stripeAway(t *testing.T, fault string) {
	t.Helper()
	a := apptest.Start(t, apptest.Options{})
	customer, _ := sell(a)
	meter := fmt.Sprint(a.Stripe(http.MethodPost, "/v1/billing/meters", url.Values{
		"display_name": {"calls"}, "event_name": {"calls"}, "default_aggregation[formula]": {"sum"},
	})["id"])
	a.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{"stripe_customers": ["`+customer+`"]}`, nil)
	a.Want(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "calls"}}`, nil)
	a.Want(http.StatusCreated, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 100}`, nil)

	if err := a.Sim.AddFaults(&stripesim.Fault{Path: "/v1/*/*", Fault: fault}); err != nil {
		t.Fatal(err)
	}
	for hour := range 3 {
		for i := range 5 {
			a.Want(http.StatusCreated, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%d-%04d", "account": "acme", "meter": "call", "quantity": 2}`, hour, i), nil)
		}
		before := a.Sim.State().Requests
		a.Sim.Advance(time.Hour)
		a.Await("a try to deliver", func() bool { return a.Sim.State().Requests > before })
	}
	var delivered struct{ Data []any }
	if a.Want(http.StatusOK, http.MethodGet, "/v1/deliveries?state=delivered", nil, &delivered); len(delivered.Data) > 0 {
		t.Errorf("%d deliveries count as delivered while Stripe is away", len(delivered.Data))
	}

	a.Sim.ClearFaults()
	a.Await("everything to be delivered", func() bool {
		a.Sim.Advance(10 * time.Minute) // the waits between tries have grown
		var page struct{ Data []any }
		a.Want(http.StatusOK, http.MethodGet, "/v1/deliveries?state=delivered", nil, &page)
		return len(page.Data) >= 3
	})
	a.Settled()
	o := a.Stripe(http.MethodGet, fmt.Sprintf("/v1/billing/meters/%s/event_summaries?customer=%s&start_time=%d&end_time=%d", meter, customer,
		a.Clock.Now().Add(-48*time.Hour).Truncate(time.Hour).Unix(), a.Clock.Now().Add(time.Hour).Truncate(time.Hour).Unix()), nil)
	content, err := json.Marshal(o["data"])
	if err != nil || !strings.Contains(string(content), `"aggregated_value":30,`) {
		t.Errorf("Stripe's total is not 30: %s, %v", content, err)
	}
	verified(t, a)
}

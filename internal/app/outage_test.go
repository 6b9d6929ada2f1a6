package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/internal/apptest"
	"tallystick/internal/pg/pgdev"
	"tallystick/internal/pg/pgtest"
	"tallystick/stripesim"
)

func TestPostgresAwayIsSaidPlainlyAndNothingIsAcknowledged(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	a := apptest.OpenShop(t, apptest.Options{DatabaseURL: server.DSN(pgdev.Database)})
	a.Grant("grant-0001", 10)
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
	event := `{"specversion": "1.0", "id": "1", "source": "/shop", "type": "call", "subject": "acme", "data": {"quantity": 3}}`
	for media, body := range map[string]string{"application/cloudevents+json": event, "application/cloudevents-batch+json": "[" + event + "]"} {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.Info.URL+"/v1/events", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q.Header = http.Header{"Authorization": {"Bearer " + a.Info.APIKey}, "Content-Type": {media}}
		if r := a.Do(q); r.Status != http.StatusServiceUnavailable || r.Code() != "unavailable" || r.Header.Get("Retry-After") == "" {
			t.Errorf("%s without Postgres was answered %d %v: %s", media, r.Status, r.Header, r.Body)
		}
	}
	a.Want(http.StatusOK, http.MethodGet, "/healthz", nil, nil)
	delivered := a.Sim.State().Webhooks.Delivered
	a.Buy(a.Price)
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
	if got := a.Available("acme"); got != "107" {
		t.Errorf("acme holds %s, want 107: 10 granted, 3 spent, 100 bought during the outage", got)
	}
	verified(t, a.App)
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
	a := apptest.OpenShop(t, apptest.Options{})
	a.Grant("grant-0001", 100)

	if err := a.Sim.AddFaults(&stripesim.Fault{Path: "/v1/*/*", Fault: fault}); err != nil {
		t.Fatal(err)
	}
	for hour := range 3 {
		for i := range 5 {
			a.Use(fmt.Sprintf("usage-%d-%04d", hour, i), 2)
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
	o := a.Stripe(http.MethodGet, fmt.Sprintf("/v1/billing/meters/%s/event_summaries?customer=%s&start_time=%d&end_time=%d", a.MeterID, a.Customer,
		a.Clock.Now().Add(-30*24*time.Hour).Truncate(time.Hour).Unix(), a.Clock.Now().Add(time.Hour).Truncate(time.Hour).Unix()), nil)
	content, err := json.Marshal(o["data"])
	if err != nil || !strings.Contains(string(content), `"aggregated_value":30,`) {
		t.Errorf("Stripe's total is not 30: %s, %v", content, err)
	}
	verified(t, a.App)
}

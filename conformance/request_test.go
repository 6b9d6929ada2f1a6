package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-mock/embedded"
	"github.com/stripe/stripe-mock/server"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
	"tallystick/stripesim"
)

// pinned is the version of stripe-mock whose document is that of API 2023-10-16.
// It has no billing meters yet.
const pinned = "v0.183.0"

// mock is stripe-mock in this process: it knows no state, and refuses parameters
// that Stripe's document does not have.
func mock(t *testing.T, document []byte, strictVersion bool) http.Handler {
	t.Helper()
	spec, err := server.LoadSpec(document, "")
	if err != nil {
		t.Fatal(err)
	}
	fixtures, err := server.LoadFixtures(embedded.OpenAPIFixtures, "")
	if err != nil {
		t.Fatal(err)
	}
	stub, err := server.NewStubServer(fixtures, spec, strictVersion, false)
	if err != nil {
		t.Fatal(err)
	}
	return http.HandlerFunc(stub.HandleRequest)
}

// pinnedDocument is the document of the other version, from the module cache.
func pinnedDocument(t *testing.T) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "github.com/stripe/stripe-mock@"+pinned)
	cmd.Dir = t.TempDir() // outside of any module: go.mod is not asked
	out, err := cmd.Output()
	var module struct{ Dir, Error string }
	if err != nil || json.Unmarshal(out, &module) != nil {
		t.Fatalf("download stripe-mock %s: %v %s", pinned, err, out)
	}
	content, err := os.ReadFile(filepath.Join(module.Dir, "embedded", "openapi", "spec3.json"))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// tee answers by the simulator and shows each request to mocks, too.
type tee struct {
	t         *testing.T
	simulator http.Handler
	mocks     map[string]http.Handler
	knows     func(name, method, path string) bool
	calls     map[string]int
}

func (w *tee) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Error(err)
	}
	again := func() *http.Request {
		q := r.Clone(context.WithoutCancel(r.Context()))
		q.Body = io.NopCloser(bytes.NewReader(body))
		return q
	}
	for name, m := range w.mocks {
		if !w.knows(name, r.Method, r.URL.Path) {
			continue
		}
		answer := httptest.NewRecorder()
		m.ServeHTTP(answer, again())
		w.calls[name]++
		if answer.Code >= http.StatusBadRequest {
			w.t.Errorf("stripe-mock %s answers %d to %s %s?%s with %s: %s", name, answer.Code, r.Method, r.URL.Path, r.URL.RawQuery, body, answer.Body)
		}
	}
	w.simulator.ServeHTTP(out, again())
}

// TestOurRequestsAreThoseThatStripeTakes makes every call that our client can make
// and shows it to stripe-mock of both versions.
func TestOurRequestsAreThoseThatStripeTakes(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	old := pinnedDocument(t)
	w := &tee{t: t, simulator: sim.Server, calls: map[string]int{}, mocks: map[string]http.Handler{
		"v0.185.0": mock(t, embedded.OpenAPISpec, false), pinned: mock(t, old, true),
	}}
	w.knows = func(name, _, path string) bool {
		return name != pinned || !strings.HasPrefix(path, "/v1/billing/")
	}
	listener := httptest.NewServer(w)
	t.Cleanup(listener.Close)
	played := playCalls(t, sim)
	callEverything(t, stripe.New(stripe.Config{Key: sim.Key, BaseURL: listener.URL, Logger: slog.New(slog.DiscardHandler)}), played)
	if w.calls["v0.185.0"] < 12 || w.calls[pinned] < 8 {
		t.Errorf("too few requests were shown: %v", w.calls)
	}
	t.Logf("requests shown: %v", w.calls)
}

// played names the objects that the calls are about.
type played struct{ session, meter, customer string }

// playCalls puts into the simulator what the calls ask for.
func playCalls(t *testing.T, sim *stripesim.Sim) played {
	t.Helper()
	post := func(path string, form url.Values) string {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, sim.URL+path, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth(sim.Key, "")
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		var o struct{ ID string }
		if err := json.NewDecoder(response.Body).Decode(&o); err != nil || o.ID == "" {
			t.Fatalf("%s was answered %d, %v", path, response.StatusCode, err)
		}
		return o.ID
	}
	p := played{customer: post("/v1/customers", nil)}
	product := post("/v1/products", url.Values{"name": {"Credits"}})
	price := post("/v1/prices", url.Values{"product": {product}, "currency": {"usd"}, "unit_amount": {"100"}})
	p.session = post("/v1/checkout/sessions", url.Values{"mode": {"payment"}, "line_items[0][price]": {price}, "success_url": {"https://example.com/thanks"}})
	if err := sim.PayCheckout(p.session, "paid"); err != nil {
		t.Fatal(err)
	}
	p.meter = post("/v1/billing/meters", url.Values{"display_name": {"calls"}, "event_name": {"calls"}, "default_aggregation[formula]": {"sum"}})
	return p
}

func callEverything(t *testing.T, c *stripe.Client, p played) {
	t.Helper()
	ctx := t.Context()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	from, to := time.Now().Add(-48*time.Hour).Truncate(time.Hour), time.Now().Add(time.Hour).Truncate(time.Hour)
	check("ping", c.Ping(ctx))
	session, err := c.Session(ctx, p.session)
	check("session", err)
	_, ok, err := c.SessionOf(ctx, session.PaymentIntent)
	if check("session of", err); !ok {
		t.Error("the session of a payment is not found")
	}
	_, err = c.PaymentIntent(ctx, session.PaymentIntent)
	check("payment intent", err)
	_, err = c.RefundsOf(ctx, session.PaymentIntent)
	check("refunds", err)
	check("sessions", c.Sessions(ctx, from, to, func(stripe.Session) error { return nil }))
	check("payment intents", c.PaymentIntents(ctx, from, to, func(stripe.PaymentIntent) error { return nil }))
	event := ""
	check("events", c.Events(ctx, from, to, func(e stripe.Event) error { event = e.ID; return nil }))
	_, err = c.Event(ctx, event)
	check("event", err)
	_, _, err = c.SendMeterEvent(ctx, stripe.MeterEvent{
		EventName: "calls", Customer: p.customer, Identifier: "ts_1", Value: credit.Units(3), Timestamp: time.Now().Add(-time.Minute), Attempt: 1,
	})
	check("meter event", err)
	check("cancel", c.CancelMeterEvent(ctx, "calls", "ts_1"))
	meters, err := c.Meters(ctx)
	if check("meters", err); len(meters) != 1 {
		t.Errorf("%d meters, want 1", len(meters))
	}
	for _, hourly := range []bool{false, true} {
		_, err = c.Totals(ctx, p.meter, p.customer, from, to, hourly)
		check("totals", err)
	}
	_, err = c.PricesOf(ctx, p.meter)
	check("prices", err)
}

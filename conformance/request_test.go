package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	stripego "github.com/stripe/stripe-go/v76"
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
	documents map[string]*regexp.Regexp // the paths that each mock's document has
	shown     map[string]int            // by the name of the mock
	unknown   map[string]bool           // what a document does not have: its name and the path
	cursors   int                       // requests for a further page
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
	if r.URL.Query().Has("starting_after") {
		w.cursors++
	}
	for name, m := range w.mocks {
		if !w.documents[name].MatchString(r.Method + " " + r.URL.Path) {
			w.unknown[name+" "+r.URL.Path] = true
			continue
		}
		answer := httptest.NewRecorder()
		m.ServeHTTP(answer, again())
		w.shown[name]++
		if answer.Code >= http.StatusBadRequest {
			w.t.Errorf("stripe-mock %s answers %d to %s %s?%s with %s: %s", name, answer.Code, r.Method, r.URL.Path, r.URL.RawQuery, body, answer.Body)
		}
	}
	w.simulator.ServeHTTP(out, again())
}

// pathsOf makes a pattern of all methods and paths of a document.
func pathsOf(t *testing.T, document []byte) *regexp.Regexp {
	t.Helper()
	var d struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(document, &d); err != nil || len(d.Paths) < 300 {
		t.Fatalf("the document has %d paths, %v", len(d.Paths), err)
	}
	member := regexp.MustCompile(`\\\{[^}]*\\\}`) // as QuoteMeta leaves it
	var all []string
	for path, methods := range d.Paths {
		for method := range methods {
			all = append(all, strings.ToUpper(method)+" "+member.ReplaceAllString(regexp.QuoteMeta(path), "[^/]+"))
		}
	}
	return regexp.MustCompile("^(?:" + strings.Join(all, "|") + ")$")
}

// TestOurRequestsAreThoseThatStripeTakes makes every call that our client can make
// and shows it to stripe-mock of both versions. Only billing meters are unknown to
// the older one.
func TestOurRequestsAreThoseThatStripeTakes(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	old := pinnedDocument(t)
	const young = "v0.185.0"
	w := &tee{
		t: t, simulator: sim.Server, shown: map[string]int{}, unknown: map[string]bool{},
		mocks:     map[string]http.Handler{young: mock(t, embedded.OpenAPISpec, false), pinned: mock(t, old, true)},
		documents: map[string]*regexp.Regexp{young: pathsOf(t, embedded.OpenAPISpec), pinned: pathsOf(t, old)},
	}
	listener := httptest.NewServer(w)
	t.Cleanup(listener.Close)
	p := playCalls(t, sim)
	calls := everyCall(t, stripe.New(stripe.Config{Key: sim.Key, BaseURL: listener.URL, Logger: slog.New(slog.DiscardHandler)}), p)
	client := reflect.TypeFor[*stripe.Client]()
	for i := range client.NumMethod() {
		name := client.Method(i).Name
		before := w.shown[young]
		if call := calls[name]; call == nil {
			t.Errorf("%s is never called", name)
		} else if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if w.shown[young] == before {
			t.Errorf("%s has shown nothing", name)
		}
	}
	for path := range w.unknown {
		if !strings.HasPrefix(path, pinned+" /v1/billing/") {
			t.Errorf("unknown is %s", path)
		}
	}
	if w.shown[young] < 18 || w.shown[pinned] < 12 || w.cursors < 2 {
		t.Errorf("too few requests were shown: %v, %d of them with a cursor", w.shown, w.cursors)
	}
	t.Logf("requests shown: %v, %d of them with a cursor", w.shown, w.cursors)
}

// TestWhatIsMissingIsSeenByOurClient tells what is not there from what cannot be
// asked, by the path or by a parameter.
func TestWhatIsMissingIsSeenByOurClient(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t, stripesim.Options{Switches: stripesim.Switches{SummariesNeedCustomer: true}})
	p := playCalls(t, sim)
	c, ctx := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL, Logger: slog.New(slog.DiscardHandler)}), t.Context()
	hour := time.Now().Truncate(time.Hour)
	totals := func(meter, customer string, to time.Time) error {
		_, err := c.Totals(ctx, meter, customer, hour, to, false)
		return err
	}
	_, session := c.Session(ctx, "cs_nobody")
	_, intent := c.PaymentIntent(ctx, "pi_nobody")
	_, event := c.Event(ctx, "evt_nobody")
	for what, row := range map[string]struct {
		err     error
		status  int
		missing bool
	}{
		"a session": {session, http.StatusNotFound, true}, "an intent": {intent, http.StatusNotFound, true}, "an event": {event, http.StatusNotFound, true},
		"a meter": {totals("mtr_nobody", p.customer, hour.Add(time.Hour)), http.StatusNotFound, true}, "a customer": {totals(p.meter, "cus_nobody", hour.Add(time.Hour)), http.StatusBadRequest, true},
		"an event to cancel": {c.CancelMeterEvent(ctx, "calls", "never"), http.StatusBadRequest, true}, "no time": {totals(p.meter, p.customer, hour), http.StatusBadRequest, false},
	} {
		var e *stripego.Error
		if !errors.As(row.err, &e) || e.HTTPStatusCode != row.status || stripe.IsMissing(row.err) != row.missing {
			t.Errorf("%s gives %v, want the status %d, missing %t", what, row.err, row.status, row.missing)
		}
	}
}

// played names the objects that the calls are about.
type played struct{ session, intent, meter, customer, price string }

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
	p.price = post("/v1/prices", url.Values{
		"product": {product}, "currency": {"usd"}, "unit_amount": {"1"}, "recurring[interval]": {"month"}, "recurring[usage_type]": {"metered"},
	})
	post("/v1/subscriptions", url.Values{"customer": {p.customer}, "items[0][price]": {p.price}})
	price := post("/v1/prices", url.Values{"product": {product}, "currency": {"usd"}, "unit_amount": {"100"}})
	p.session = post("/v1/checkout/sessions", url.Values{"mode": {"payment"}, "line_items[0][price]": {price}, "success_url": {"https://example.com/thanks"}})
	if err := sim.PayCheckout(p.session, "paid"); err != nil {
		t.Fatal(err)
	}
	for range 101 { // more than a page
		post("/v1/payment_intents", url.Values{"amount": {"100"}, "currency": {"usd"}})
	}
	paid, err := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL, Logger: slog.New(slog.DiscardHandler)}).Session(t.Context(), p.session)
	if err != nil || paid.PaymentIntent == "" {
		t.Fatalf("the session is %+v, %v", paid, err)
	}
	p.intent = paid.PaymentIntent
	p.meter = post("/v1/billing/meters", url.Values{"display_name": {"calls"}, "event_name": {"calls"}, "default_aggregation[formula]": {"sum"}})
	return p
}

// everyCall gives a call for each method of our client.
func everyCall(t *testing.T, c *stripe.Client, p played) map[string]func() error {
	t.Helper()
	ctx, event := t.Context(), ""
	from, to := time.Now().Add(-48*time.Hour).Truncate(time.Hour), time.Now().Add(time.Hour).Truncate(time.Hour)
	usage := stripe.MeterEvent{EventName: "calls", Customer: p.customer, Identifier: "ts_1", Value: credit.Units(3), Timestamp: time.Now().Add(-time.Minute), Attempt: 1}
	send := func() error { _, _, err := c.SendMeterEvent(ctx, usage); return err }
	events := func() error {
		return c.Events(ctx, from, to, func(e stripe.Event) error { event = e.ID; return nil })
	}
	calls := moneyCalls(t, c, p)
	maps.Copy(calls, catalogCalls(t, c, p))
	maps.Copy(calls, map[string]func() error{
		"Ping": func() error { return c.Ping(ctx) },
		"Session": func() error {
			s, err := c.Session(ctx, p.session)
			if err == nil && s.PaymentIntent != p.intent {
				return fmt.Errorf("the session is of %q, not of %q", s.PaymentIntent, p.intent)
			}
			return err
		},
		"SessionOf": func() error {
			s, ok, err := c.SessionOf(ctx, p.intent)
			if err == nil && (!ok || s.ID != p.session) {
				return errors.New("the session of a payment is not found")
			}
			return err
		},
		"Sessions":       func() error { return c.Sessions(ctx, from, to, func(stripe.Session) error { return nil }) },
		"PaymentIntent":  func() error { _, err := c.PaymentIntent(ctx, p.intent); return err },
		"PaymentIntents": func() error { return c.PaymentIntents(ctx, from, to, func(stripe.PaymentIntent) error { return nil }) },
		"RefundsOf":      func() error { _, err := c.RefundsOf(ctx, p.intent); return err },
		"Events":         events,
		"Event": func() error {
			if err := events(); err != nil {
				return err
			}
			_, err := c.Event(ctx, event)
			return err
		},
		"SendMeterEvent": send,
		"CancelMeterEvent": func() error {
			usage.Identifier = "ts_2"
			if err := send(); err != nil {
				return err
			}
			return c.CancelMeterEvent(ctx, "calls", "ts_2")
		},
		"Meters": func() error {
			meters, err := c.Meters(ctx)
			if err == nil && len(meters) != 1 {
				return fmt.Errorf("%d meters, want 1", len(meters))
			}
			return err
		},
		"Totals": func() error {
			_, whole := c.Totals(ctx, p.meter, p.customer, from, to, false)
			_, hourly := c.Totals(ctx, p.meter, p.customer, from, to, true)
			return errors.Join(whole, hourly)
		},
		"PricesOf": func() error { _, err := c.PricesOf(ctx, p.meter); return err },
	})
	return calls
}

// shown is for a call about what is not there: that it was asked is all that matters.
func shown(err error) error {
	if stripe.IsMissing(err) {
		return nil
	}
	return err
}

// moneyCalls are those about payments and what became of them.
func moneyCalls(t *testing.T, c *stripe.Client, p played) map[string]func() error {
	t.Helper()
	ctx := t.Context()
	from, to := time.Now().Add(-48*time.Hour).Truncate(time.Hour), time.Now().Add(time.Hour).Truncate(time.Hour)
	return map[string]func() error{
		"Refund":        func() error { _, err := c.Refund(ctx, "re_nobody"); return shown(err) },
		"Refunds":       func() error { return c.Refunds(ctx, from, to, func(stripe.Refund) error { return nil }) },
		"Dispute":       func() error { _, err := c.Dispute(ctx, "dp_nobody"); return shown(err) },
		"Disputes":      func() error { return c.Disputes(ctx, from, to, func(stripe.Dispute) error { return nil }) },
		"DisputesOf":    func() error { _, err := c.DisputesOf(ctx, p.intent); return err },
		"CreditNote":    func() error { _, err := c.CreditNote(ctx, "cn_nobody"); return shown(err) },
		"CreditNotesOf": func() error { _, err := c.CreditNotesOf(ctx, "in_nobody"); return shown(err) },
		"Invoice":       func() error { _, err := c.Invoice(ctx, "in_nobody"); return shown(err) },
		"Invoices":      func() error { return c.Invoices(ctx, from, to, func(stripe.Invoice) error { return nil }) },
		"SessionOfInvoice": func() error {
			_, _, err := c.SessionOfInvoice(ctx, p.customer, "in_nobody")
			return shown(err)
		},
		"EventPages": func() error {
			return c.EventPages(ctx, []string{"payment_intent.succeeded", "charge.refunded"}, from, to, func([]stripe.Event) error { return nil })
		},
		"Undelivered": func() error { return c.Undelivered(ctx, from, to, func(stripe.Event) error { return nil }) },
	}
}

// catalogCalls are those about customers, prices, subscriptions and endpoints.
func catalogCalls(t *testing.T, c *stripe.Client, p played) map[string]func() error {
	t.Helper()
	ctx := t.Context()
	item := func() (string, error) {
		items, err := c.SubscriptionItems(ctx, p.customer)
		if err == nil && len(items) != 1 {
			err = fmt.Errorf("%d subscription items, want 1", len(items))
		}
		if err != nil {
			return "", err
		}
		return items[0].ID, nil
	}
	create := func() (stripe.Endpoint, error) {
		return c.CreateEndpoint(ctx, "https://example.com/webhooks/stripe", []string{"charge.refunded"}, "create-1")
	}
	return map[string]func() error{
		"Customer":          func() error { _, err := c.Customer(ctx, p.customer); return err },
		"MeterSetups":       func() error { _, err := c.MeterSetups(ctx); return err },
		"MeterTariffs":      func() error { _, err := c.MeterTariffs(ctx, p.meter); return err },
		"PriceSetup":        func() error { _, err := c.PriceSetup(ctx, p.price); return err },
		"Tariff":            func() error { _, err := c.Tariff(ctx, p.price); return err },
		"Subscribers":       func() error { return c.Subscribers(ctx, p.price, func(string) {}) },
		"SubscriptionItems": func() error { _, err := item(); return err },
		"UsageSummaries": func() error {
			of, err := item()
			if err == nil {
				_, err = c.UsageSummaries(ctx, of, time.Time{})
			}
			return err
		},
		"SendUsageRecord": func() error {
			of, err := item()
			if err == nil {
				_, _, err = c.SendUsageRecord(ctx, stripe.UsageRecord{Item: of, Action: "set", Quantity: 3, Timestamp: time.Now(), Key: "record-1"})
			}
			return err
		},
		"Endpoints":      func() error { _, err := c.Endpoints(ctx); return err },
		"CreateEndpoint": func() error { _, err := create(); return err },
		"UpdateEndpoint": func() error {
			e, err := create()
			if err == nil {
				_, err = c.UpdateEndpoint(ctx, e.ID, []string{"charge.refunded", "invoice.paid"}, "update-1")
			}
			return err
		},
	}
}

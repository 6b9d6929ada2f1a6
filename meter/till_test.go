package meter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"tallystick/api"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/internal/web"
	"tallystick/ledger"
	"tallystick/meter"
	"tallystick/outbox"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// patient waits for the locks that tests hold longer than a service would, because
// a busy machine takes its time between taking and releasing them.
var patient = pg.Options{LockTimeout: time.Minute, StatementTimeout: time.Minute}

// till is a Meter over a database of its own, served over HTTP, with a clock that
// stands still unless a test moves it.
type till struct {
	*meter.Meter
	t   *testing.T
	dsn string
	own *pg.DB // with all rights
	url string
	key string

	clock *clock
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// opened is a till with the account acme, which has so many credits, and the
// meter call at one credit each, bound to Stripe.
func opened(t *testing.T, credits int) *till {
	t.Helper()
	dsn := pgtest.DSN(t)
	c := &till{t: t, dsn: dsn, own: pgtest.Owner(t, dsn), clock: &clock{now: start}}
	c.serve(pgtest.Open(t, dsn, patient))
	key, err := c.CreateKey(t.Context(), api.KeyRequest{Name: "test", Scopes: []string{meter.ScopeAdmin}})
	if err != nil {
		t.Fatal(err)
	}
	c.key = key.Secret
	c.want(201, http.MethodPut, "/v1/accounts/acme", `{}`)
	c.want(201, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "calls"}}`)
	if credits > 0 {
		c.want(201, http.MethodPost, "/v1/accounts/acme/grants", fmt.Sprintf(`{"id": "grant-0000", "credits": %d}`, credits))
	}
	return c
}

// beside is a second process over the same database.
func (c *till) beside() *till { return c.through(c.dsn) }

// through is a second process that reaches the same database by another address.
func (c *till) through(dsn string) *till {
	c.t.Helper()
	other := &till{t: c.t, dsn: c.dsn, own: c.own, key: c.key, clock: c.clock}
	other.serve(pgtest.Open(c.t, dsn, patient))
	return other
}

func (c *till) serve(db *pg.DB) { c.serveFrom(db, patient, meter.LanesDefault()) }

// serveFrom bounds the waits of the lanes, and says how many there are.
func (c *till) serveFrom(db *pg.DB, bounds pg.Options, lanes int) {
	c.t.Helper()
	logger := slog.New(slog.DiscardHandler)
	bounds.Keyed = true
	keyed := pgtest.Open(c.t, db.DSN(), bounds)
	c.Meter = meter.New(meter.Config{DB: db, Keyed: keyed, Lanes: lanes, Now: c.clock.Now, Logger: logger, Stager: outbox.New(outbox.Config{DB: db, Now: c.clock.Now, Logger: logger})})
	server, mux := web.NewServer(logger, prometheus.NewRegistry()), http.NewServeMux()
	for _, r := range c.Routes() {
		pattern := r.Method + " " + r.Pattern
		mux.Handle(pattern, server.Handle(pattern, c.Authorize(r.Scope, r.Handler)))
	}
	h := httptest.NewServer(mux)
	c.url = h.URL
	c.t.Cleanup(func() {
		c.Close() // first: what still waits in a lane is answered
		h.Close()
	})
}

// answer is an answer of the API, read whole.
type answer struct {
	status   int
	header   http.Header
	body     string
	code     string // of a problem document
	replayed bool
}

// client keeps as many connections as a storm of requests needs.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}}

func (c *till) call(method, path, body string, header ...string) answer {
	c.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, c.url+path, bytes.NewReader([]byte(body)))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := client.Do(r)
	if err != nil {
		c.t.Errorf("%s %s: %v", method, path, err)
		return answer{}
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Errorf("%s %s: %v", method, path, err)
	}
	var problem struct{ Code string }
	_ = json.Unmarshal(content, &problem) // no JSON has no code
	return answer{
		status: response.StatusCode, header: response.Header, body: string(content), code: problem.Code,
		replayed: response.Header.Get("Idempotent-Replayed") == "true",
	}
}

func (c *till) want(status int, method, path, body string, header ...string) answer {
	c.t.Helper()
	a := c.call(method, path, body, header...)
	if a.status != status {
		c.t.Fatalf("%s %s with %.300s was answered %d, want %d: %s", method, path, body, a.status, status, a.body)
	}
	return a
}

func usageOf(id string, quantity int) string {
	return fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "call", "quantity": %d}`, id, quantity)
}

// use sends usage of acme's and gives whatever the answer is.
func (c *till) use(id string, quantity int) answer {
	c.t.Helper()
	return c.call(http.MethodPost, "/v1/usage", usageOf(id, quantity))
}

// available is acme's balance.
func (c *till) available() string {
	c.t.Helper()
	var a api.Account
	read(c.t, c.want(200, http.MethodGet, "/v1/accounts/acme", ""), &a)
	return string(a.Balance.Available)
}

func read(t *testing.T, a answer, dst any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), dst); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

func (c *till) count(query string) int {
	c.t.Helper()
	var n int
	if err := c.own.Read(c.t.Context(), func(tx *sqlx.Tx) error { return tx.GetContext(c.t.Context(), &n, query) }); err != nil {
		c.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// verified fails the test when the ledger breaks an invariant.
func (c *till) verified() {
	c.t.Helper()
	report, err := ledger.Verify(c.t.Context(), c.own)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, check := range report.Checks {
		if check.Broken > 0 {
			c.t.Errorf("verify: %s is broken: %q", check.Name, check.Examples)
		}
	}
}

// await waits until done is true, or fails the test after a while.
func (c *till) await(what string, done func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("waited too long for %s", what)
		}
	}
}

// hold runs a statement that takes locks, and keeps them until release is called.
func (c *till) hold(statement string, args ...any) (release func()) {
	c.t.Helper()
	held, let, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- c.own.InTx(context.Background(), func(tx *sqlx.Tx) error {
			if _, err := tx.Exec(statement, args...); err != nil {
				return err
			}
			close(held)
			<-let
			return nil
		})
	}()
	select {
	case <-held:
	case err := <-ended:
		c.t.Fatalf("%s: %v", statement, err)
	}
	release = sync.OnceFunc(func() {
		close(let)
		if err := <-ended; err != nil {
			c.t.Errorf("%s: %v", statement, err)
		}
	})
	c.t.Cleanup(release)
	return release
}

// stopped stops acme's lane at the account's lock: usage that is sent from now on
// is one group, which goes on at release. The usage that stops it has the id
// usage-stop and its answer is sent when it comes.
func (c *till) stopped() (first <-chan answer, release func()) {
	c.t.Helper()
	release = c.hold("SELECT 1 FROM accounts WHERE account = 'acme' FOR UPDATE")
	answers := make(chan answer, 1)
	go func() { answers <- c.use("usage-stop", 1) }()
	c.blocked(1)
	return answers, release
}

// blocked waits until so many statements wait for a lock.
func (c *till) blocked(n int) {
	c.t.Helper()
	c.await("a statement to wait for the lock", func() bool {
		return c.count("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == n
	})
}

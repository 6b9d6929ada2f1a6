// Package apptest starts the whole program for a test: the App over a database of
// its own, the Stripe simulator and a mail catcher, on one clock.
package apptest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/app"
	"tallystick/internal/config"
	"tallystick/internal/pg/pgtest"
)

// Options change what Start starts.
type Options struct {
	DatabaseURL string            // "" clones a fresh database
	Data        string            // "" uses a temporary directory
	Settings    map[string]string // by their names in the environment
	Schedule    bool
	Log         io.Writer // nil drops the log
}

// App is a running program with helpers that fail the test.
type App struct {
	*app.Up
	t testing.TB
}

// Start starts everything and ends it with the test.
func Start(t testing.TB, o Options) *App {
	t.Helper()
	if o.DatabaseURL == "" {
		o.DatabaseURL = pgtest.DSN(t)
	}
	if o.Data == "" {
		o.Data = filepath.Join(t.TempDir(), "data")
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	flags := map[string]string{"DATABASE_URL": o.DatabaseURL, "TALLYSTICK_LISTEN": "127.0.0.1:0", "TALLYSTICK_RECONCILE_SETTLE": "1m"}
	for _, report := range []string{"TALLYSTICK_MAIL_DIGEST", "TALLYSTICK_MAIL_WEEKLY"} {
		flags[report] = "off" // which mails a test gets is no matter of the time of day
	}
	for name, value := range o.Settings {
		flags[name] = value
	}
	c, mistakes := config.Load(config.Sources{Flags: flags})
	if err := config.Err(mistakes); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewJSONHandler(o.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	u, err := app.StartUp(context.Background(), app.UpOptions{Config: c, Data: o.Data, Logger: logger, Schedule: o.Schedule, Note: func(string, ...any) {}})
	if err != nil {
		t.Fatalf("start the app: %v", err)
	}
	t.Cleanup(func() {
		if err := u.Close(context.Background()); err != nil {
			t.Errorf("stop the app: %v", err)
		}
	})
	return &App{Up: u, t: t}
}

// Attach gives the helpers for a program that runs in a process of its own. Of what
// Up holds only Info is there: neither the clock nor the simulator, which are moved
// over HTTP.
func Attach(t testing.TB, info app.Info) *App {
	t.Helper()
	return &App{Up: &app.Up{Info: info}, t: t}
}

// Response is an answer of the API, read whole.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Code is the code of a problem document, "" for another answer.
func (r Response) Code() string {
	var p struct {
		Code string `json:"code"`
	}
	_ = json.Unmarshal(r.Body, &p) // no JSON has no code
	return p.Code
}

// Call sends a request with the admin key. A string body is sent as it is, any
// other as JSON.
func (a *App) Call(method, path string, body any) Response {
	a.t.Helper()
	return a.CallAs(a.Info.APIKey, method, path, body)
}

// CallAs sends a request with another key.
func (a *App) CallAs(key, method, path string, body any) Response {
	a.t.Helper()
	var payload []byte
	switch b := body.(type) {
	case nil:
	case string:
		payload = []byte(b)
	default:
		var err error
		if payload, err = json.Marshal(b); err != nil {
			a.t.Fatal(err)
		}
	}
	r, err := http.NewRequestWithContext(context.Background(), method, a.Info.URL+path, bytes.NewReader(payload))
	if err != nil {
		a.t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if payload != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return a.Do(r)
}

// noRedirect shows redirects as they are answered.
var noRedirect = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{MaxIdleConnsPerHost: 128},
}

// Do sends a request as it is.
func (a *App) Do(r *http.Request) Response {
	a.t.Helper()
	response, err := noRedirect.Do(r)
	if err != nil {
		a.t.Fatalf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	return Response{Status: response.StatusCode, Header: response.Header, Body: body}
}

// Want calls and fails the test unless the status is as wanted; the answer is
// read into dst, where there is one.
func (a *App) Want(status int, method, path string, body, dst any) Response {
	a.t.Helper()
	r := a.Call(method, path, body)
	if r.Status != status {
		a.t.Fatalf("%s %s with %v was answered %d, want %d: %s", method, path, body, r.Status, status, r.Body)
	}
	if dst != nil {
		if err := json.Unmarshal(r.Body, dst); err != nil {
			a.t.Fatalf("%s %s: %v in %s", method, path, err, r.Body)
		}
	}
	return r
}

// Stripe makes a form-encoded call to the simulator and gives the object.
func (a *App) Stripe(method, path string, values url.Values) map[string]any {
	a.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, a.Info.StripeAPIBase+path, strings.NewReader(values.Encode()))
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.Info.StripeAPIKey)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response := a.Do(r)
	var o map[string]any
	if err := json.Unmarshal(response.Body, &o); err != nil || response.Status != http.StatusOK {
		a.t.Fatalf("%s %s at the simulator was answered %d: %s", method, path, response.Status, response.Body)
	}
	return o
}

// Await waits until done is true, or fails the test after a while.
func (a *App) Await(what string, done func() bool) {
	a.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			a.t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Settled waits until no webhook, event or delivery that is due is under way.
func (a *App) Settled() {
	a.t.Helper()
	if err := a.Sim.Drain(context.Background()); err != nil {
		a.t.Fatal(err)
	}
	a.Await("events and deliveries to settle", func() bool {
		var events struct{ Data []any }
		a.Want(http.StatusOK, "GET", "/v1/stripe/events?state=pending&limit=1", nil, &events)
		if len(events.Data) > 0 {
			return false
		}
		// In the order in which a delivery moves, and the first state again: one that moved on
		// between two looks is seen at the second.
		for _, state := range []string{"pending", "sending", "ambiguous", "pending"} {
			if a.underWay(state) {
				return false
			}
		}
		return true
	})
}

// soon is a wait that the running clock ends by itself: what was tried and goes on
// after it is under way.
const soon = 10 * time.Second

// underWay tells whether a delivery of a state moves on by itself. What is pending
// does where it is due, or was tried and is about to be.
func (a *App) underWay(state string) bool {
	a.t.Helper()
	for cursor := ""; ; {
		var page struct {
			Data []api.Delivery `json:"data"`
			Next string         `json:"next_cursor"`
		}
		a.Want(http.StatusOK, "GET", "/v1/deliveries?limit=500&state="+state+cursor, nil, &page)
		for _, d := range page.Data {
			due := a.Clock.Now()
			if d.Attempts > 0 {
				due = due.Add(soon)
			}
			if state != "pending" || !d.NextTryAt.After(due) {
				return true
			}
		}
		if page.Next == "" {
			return false
		}
		cursor = "&cursor=" + url.QueryEscape(page.Next)
	}
}

// Pass moves the one clock and waits until what fell due has been done.
func (a *App) Pass(d time.Duration) {
	a.t.Helper()
	a.Sim.Advance(d)
	a.Settled()
}

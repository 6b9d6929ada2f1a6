package stripe_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var event = stripe.MeterEvent{
	EventName: "calls", Customer: "cus_1", Identifier: "tally-0001", Value: credit.Units(3), Timestamp: start, Attempt: 1,
}

// seen is a request as it arrived.
type seen struct {
	method, path, body string
	header             http.Header
}

// double is a Stripe that answers by script and remembers what it was asked.
type double struct {
	*stripe.Client
	url string

	mu       sync.Mutex
	requests []seen
}

// doubled answers every request with h, which gets the number of the request.
func doubled(t *testing.T, timeout time.Duration, h func(n int, w http.ResponseWriter, r *http.Request)) *double {
	t.Helper()
	d := &double{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what is cut off is seen as it came
		d.mu.Lock()
		d.requests = append(d.requests, seen{method: r.Method, path: r.URL.RequestURI(), body: string(body), header: r.Header})
		n := len(d.requests)
		d.mu.Unlock()
		h(n, w, r)
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.Start()
	t.Cleanup(server.Close)
	d.url = server.URL
	d.Client = stripe.New(stripe.Config{Key: "sk_test_canary", BaseURL: server.URL, Timeout: timeout})
	return d
}

func (d *double) asked() []seen {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]seen(nil), d.requests...)
}

// says answers with a status, a body and headers.
func says(status int, body string, header ...string) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// errorOf is an error in Stripe's form.
func errorOf(kind, code, message string) string {
	return `{"error": {"type": "` + kind + `", "code": "` + code + `", "message": "` + message + `"}}`
}

// hangsUp cuts the connection, after so much of an answer.
func hangsUp(part string) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, _ *http.Request) {
		connection, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(connection, part)
		_ = connection.Close()
	}
}

const (
	bodyMax  = 8 << 20
	refused  = "invalid_request_error"
	twice    = "An event already exists with identifier tally-0001."
	noResult = `{"object": "billing.meter_event"}`
)

// padded is a JSON object of so many bytes.
func padded(size int) string {
	const head, tail = `{"id": "evt_1", "pad": "`, `"}`
	return head + strings.Repeat("x", size-len(head)-len(tail)) + tail
}

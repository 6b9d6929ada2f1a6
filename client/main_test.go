package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/client"
	"tallystick/internal/apptest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("CLIENT_TEST_SPOOL"); dir != "" {
		os.Exit(worker(dir, os.Getenv("CLIENT_TEST_URL"), os.Getenv("CLIENT_TEST_KEY")))
	}
	os.Exit(m.Run())
}

// shop is a running program with the account acme, a hundred credits of it, the
// meters out at one credit, in at half a credit and cached at a tenth.
type shop struct {
	*apptest.App
	t       *testing.T
	gate    *gate
	account string
}

func open(t *testing.T) *shop {
	t.Helper()
	s := &shop{App: apptest.Start(t, apptest.Options{}), t: t, account: "acme"}
	s.gate = newGate(t, s.Info.URL)
	s.opened()
	for meter, rate := range map[string]string{"out": "1", "in": "0.5", "cached": "0.1"} {
		s.Want(201, http.MethodPut, "/v1/meters/"+meter, `{"credits_per_unit": "`+rate+`"}`, nil)
	}
	return s
}

func (s *shop) opened() {
	s.t.Helper()
	s.Want(201, http.MethodPut, "/v1/accounts/"+s.account, `{}`, nil)
	s.Want(201, http.MethodPost, "/v1/accounts/"+s.account+"/grants", `{"id": "opening-grant", "credits": 100}`, nil)
}

var accounts atomic.Int64

// other is the same program with another account in acme's place, for a part of a test.
func (s *shop) other(t *testing.T) *shop {
	t.Helper()
	o := &shop{App: s.App, t: t, gate: s.gate, account: fmt.Sprintf("acme-%d", accounts.Add(1))}
	o.opened()
	return o
}

// client makes a client that reaches the program through the gate.
func (s *shop) client(options ...client.Option) *client.Client {
	s.t.Helper()
	c, err := client.New(s.gate.url, s.Info.APIKey, append([]client.Option{client.WithClock(s.Clock.Now)}, options...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return c
}

// holds fails the test unless acme has so much, and so much of it held.
func (s *shop) holds(available, held string) {
	s.t.Helper()
	var a api.Account
	s.Want(200, http.MethodGet, "/v1/accounts/"+s.account, nil, &a)
	if string(a.Balance.Available) != available || string(a.Balance.Held) != held {
		s.t.Errorf("%s has %s and %s held, want %s and %s", s.account, a.Balance.Available, a.Balance.Held, available, held)
	}
}

// state fails the test unless a reservation of acme's is in a state.
func (s *shop) state(id, want string) api.Reservation {
	s.t.Helper()
	var r api.Reservation
	s.Want(200, http.MethodGet, "/v1/reservations/"+url.PathEscape(id)+"?account="+s.account, nil, &r)
	if r.State != want {
		s.t.Errorf("reservation %s is %s, want %s", id, r.State, want)
	}
	return r
}

// charges counts acme's charges by the id of their cause.
func (s *shop) charges() map[string]int {
	s.t.Helper()
	charges := map[string]int{}
	for cursor := ""; ; {
		var page struct {
			Data []api.Transfer
			Next *string `json:"next_cursor"`
		}
		s.Want(200, http.MethodGet, "/v1/accounts/"+s.account+"/transfers?limit=500"+cursor, nil, &page)
		for _, transfer := range page.Data {
			if transfer.Kind == "usage" || transfer.Kind == "capture" {
				charges[transfer.Cause]++
			}
		}
		if page.Next == nil {
			return charges
		}
		cursor = "&cursor=" + url.QueryEscape(*page.Next)
	}
}

// gate is a proxy in front of the program that can be told to fail.
type gate struct {
	url   string
	seen  atomic.Int64 // requests that came
	mu    sync.Mutex
	plan  []fault // for the next requests that match
	shut  bool
	proxy *httputil.ReverseProxy
}

// fault is what the gate does to one request.
type fault struct {
	path       string // part of it; "" matches all
	executed   bool   // the program gets the request, and the answer is cut
	status     int    // answered in place of the program; 0 cuts
	retryAfter string
	half       bool // the head of the answer arrives, and half of its body
	html       bool
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{proxy: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: g}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	g.url = "http://" + listener.Addr().String()
	return g
}

func (g *gate) next(faults ...fault) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.plan = append(g.plan, faults...)
}

func (g *gate) close(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
}

// left is how many faults have not met their request.
func (g *gate) left() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.plan)
}

func (g *gate) take(path string) (f fault, found bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return fault{}, true
	}
	if len(g.plan) == 0 || !strings.Contains(path, g.plan[0].path) {
		return fault{}, false
	}
	f, g.plan = g.plan[0], g.plan[1:]
	return f, true
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.seen.Add(1)
	f, found := g.take(r.URL.Path)
	if !found {
		g.proxy.ServeHTTP(w, r)
		return
	}
	if f.status != 0 {
		if f.retryAfter != "" {
			w.Header().Set("Retry-After", f.retryAfter)
		}
		if f.html {
			w.WriteHeader(f.status)
			_, _ = io.WriteString(w, "<html>a proxy's page</html>")
			return
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(f.status)
		_, _ = io.WriteString(w, `{"code": "overloaded", "detail": "wait"}`)
		return
	}
	if f.executed || f.half {
		answer := &answer{header: http.Header{}}
		g.proxy.ServeHTTP(answer, r)
		if f.half {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "100000")
			w.WriteHeader(answer.status)
			_, _ = w.Write(answer.body.Bytes()[:answer.body.Len()/2])
		}
	}
	panic(http.ErrAbortHandler) // cuts the connection
}

// answer keeps what the program has answered.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// refusal gives the refusal in an error.
func refusal(t *testing.T, err error) *client.Error {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is no refusal by the server", err)
	}
	return e
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

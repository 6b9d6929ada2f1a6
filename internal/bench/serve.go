package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tallystick/api"
	"tallystick/internal/app"
	"tallystick/internal/clock"
	"tallystick/internal/config"
	"tallystick/meter"
)

// headerTime bounds how long a request's head may take.
const headerTime = 5 * time.Second

// Serve is the child's half of a measurement: the real App, on loopback, until
// stdin ends. Nothing is sent to Stripe: buckets stay open longer than a run.
func Serve(ctx context.Context, databaseURL, profile string, stdin io.Reader, stdout io.Writer, logger *slog.Logger) (err error) {
	c, mistakes := config.Load(config.Sources{Flags: map[string]string{
		"DATABASE_URL": databaseURL, "TALLYSTICK_LISTEN": "127.0.0.1:0", "TALLYSTICK_USAGE_BUCKET": "1h", "TALLYSTICK_USAGE_SETTLE": "1h",
		"STRIPE_API_KEY": "sk_test_bench", "STRIPE_API_BASE": "http://127.0.0.1:9", "TALLYSTICK_SMTP_URL": "smtp://127.0.0.1:9",
	}})
	if err := config.Err(mistakes); err != nil {
		return err
	}
	a, err := app.New(ctx, app.Options{Config: c, Now: clock.Now, Logger: logger})
	if err != nil {
		return err
	}
	key, err := a.Meter.CreateKey(ctx, api.KeyRequest{Name: "bench", Scopes: []string{meter.ScopeUsage, meter.ScopeRead, meter.ScopeAdmin}})
	if err != nil {
		return err
	}
	listener, err := announce(ctx, stdout, key.Secret)
	if err != nil {
		return err
	}
	stop, err := startProfile(profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	return a.Run(untilEnd(ctx, stdin), listener)
}

// ServeNoop is the yardstick of HTTP: it decodes what the API decodes and gives
// a like answer, and does nothing else.
func ServeNoop(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector())
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("POST /v1/usage", noop)
	listener, err := announce(ctx, stdout, "none")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerTime}
	go func() {
		<-untilEnd(ctx, stdin).Done()
		_ = server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func noop(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var q api.UsageRequest
	if err == nil {
		err = json.Unmarshal(body, &q)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	now := clock.Now()
	answer, err := json.Marshal(api.Usage{
		ID: q.ID, Account: q.Account, Meter: q.Meter, Quantity: q.Quantity, OccurredAt: now, Dimensions: q.Dimensions,
		Credits: "0.000001", RateVersion: 1, RecordedAt: now, Balance: api.Balance{Available: "999999.5", Held: "0", Debt: "0", Version: 1},
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(answer) // the client may be gone
}

// announce listens on loopback and tells the parent where.
func announce(ctx context.Context, stdout io.Writer, key string) (net.Listener, error) {
	var l net.ListenConfig
	listener, err := l.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	return listener, json.NewEncoder(stdout).Encode(ready{URL: "http://" + listener.Addr().String(), Key: key})
}

// untilEnd gives a context that ends with ctx or with the input.
func untilEnd(ctx context.Context, stdin io.Reader) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, stdin) // its end is all that matters
		cancel()
	}()
	return ctx
}

func startProfile(path string) (stop func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	file, err := os.Create(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return file.Close()
	}, nil
}

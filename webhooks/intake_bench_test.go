package webhooks_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/lib/pq" // the plain receiver's driver

	"tallystick/internal/apptest"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgdev"
	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

const (
	benchConnections = 64
	benchBody        = 6 << 10
)

// onDisk is a migrated Postgres of its own on a real disk, with fsync on: what a
// commit costs is what is measured.
func onDisk(b *testing.B) (dsn string) {
	b.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "tallystick-bench-") //nolint:usetesting // the temporary directory of tests may be memory
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	server, err := pgdev.Start(b.Context(), pgdev.Options{Dir: filepath.Join(dir, "postgres")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = server.Stop(context.WithoutCancel(b.Context())) })
	dsn = server.DSN(pgdev.Database)
	if _, err := pg.Migrate(b.Context(), dsn); err != nil {
		b.Fatal(err)
	}
	return dsn
}

// BenchmarkIntake compares our receiver with a plain one (signature, one INSERT in
// autocommit, 200), over HTTP at 64 connections, on the same Postgres, in turns.
func BenchmarkIntake(b *testing.B) {
	dsn := onDisk(b)
	for _, round := range []string{"1", "2"} {
		b.Run("plain/"+round, func(b *testing.B) { deliverMany(b, plainReceiver(b, dsn)) })
		b.Run("grouped/"+round, func(b *testing.B) { deliverMany(b, ourReceiver(b, dsn)) })
	}
}

func ourReceiver(b *testing.B, dsn string) http.Handler {
	b.Helper()
	open := func(o pg.Options) *pg.DB {
		db, err := pg.Open(b.Context(), dsn, o)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = db.Close() })
		return db
	}
	return routes(webhooks.New(webhooks.Config{
		DB: open(pg.Options{}), Inbox: open(pg.Options{ConnectionsMax: 2, Keyed: true}), Now: time.Now, Stripe: newBook(),
		Logger: slog.New(slog.DiscardHandler), Secrets: []string{secret},
	}))
}

// plainReceiver is what one writes first.
func plainReceiver(b *testing.B, dsn string) http.Handler {
	b.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		b.Fatal(err)
	}
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	b.Cleanup(func() { _ = db.Close() })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		payload, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 256<<10))
		if err != nil || stripe.VerifySignature(payload, r.Header.Get("Stripe-Signature"), []string{secret}, time.Now()) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		var e struct {
			ID         string
			Type       string
			APIVersion string `json:"api_version"`
			Livemode   bool
			Created    int64
		}
		if err := json.Unmarshal(payload, &e); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, err = db.ExecContext(r.Context(), `
			INSERT INTO stripe_events (event_id, type, api_version, livemode, created_at, payload, source, received_at, state, attempts, next_try_at, error)
			VALUES ($1, $2, $3, $4, $5, $6, 'webhook', now(), 'pending', 0, now(), '') ON CONFLICT (event_id) DO NOTHING`,
			e.ID, e.Type, e.APIVersion, e.Livemode, time.Unix(e.Created, 0), payload)
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusOK)
	})
}

var benchEvents atomic.Int64

// deliverMany sends b.N events of 6 KB over 64 connections.
func deliverMany(b *testing.B, handler http.Handler) {
	b.Helper()
	server := httptest.NewServer(handler)
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: benchConnections}}
	type delivery struct{ body, signature string }
	deliveries := make([]delivery, b.N)
	for i := range deliveries {
		body := event(fmt.Sprintf("evt_%d", benchEvents.Add(1)), "payment_intent.succeeded", `{"id": "pi_1", "pad": "PAD"}`)
		body = strings.Replace(body, "PAD", strings.Repeat("x", benchBody-len(body)), 1)
		deliveries[i] = delivery{body, apptest.Sign(body, secret, time.Now())}
	}
	var next atomic.Int64
	took := make([]time.Duration, b.N)
	var wg sync.WaitGroup
	b.ResetTimer()
	for range benchConnections {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < b.N; i = int(next.Add(1)) - 1 {
				began := time.Now()
				r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, server.URL+"/webhooks/stripe", strings.NewReader(deliveries[i].body))
				if err != nil {
					b.Error(err)
					return
				}
				r.Header.Set("Stripe-Signature", deliveries[i].signature)
				answer, err := client.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				_ = answer.Body.Close()
				if answer.StatusCode != http.StatusOK {
					b.Errorf("a delivery was answered %d", answer.StatusCode)
				}
				took[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

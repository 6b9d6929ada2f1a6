package app

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/loop"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/internal/stripe"
	"tallystick/outbox"
	"tallystick/stripesim"
)

var (
	benchDeliveries = flag.Int("deliveries", 10_000, "backlog of BenchmarkDeliveries; 1000000 is what the target speaks of")
	benchCustomers  = flag.Int("customers", 1000, "accounts among which the backlog of BenchmarkDeliveries is spread")
)

// A backlog of so many accounts with a customer each, and so many minutes each.
const (
	benchAccounts = `INSERT INTO accounts (part, account, name, overdraft, metadata, available, held, debt, version, chain, created_at, updated_at)
		SELECT n % 256, 'acct-' || n, '', 0, '{}', 0, 0, 0, 0, '', $2, $2 FROM generate_series(0, $1::int - 1) n`
	benchTied    = `INSERT INTO stripe_customers (customer, part, account, position) SELECT 'cus_' || n, n % 256, 'acct-' || n, 0 FROM generate_series(0, $1::int - 1) n`
	benchBacklog = `INSERT INTO deliveries (part, account, meter, bucket, sequence, quantity, usages, origin, state, event_name, customer, identifier, attempts, next_try_at, error,
			created_at, updated_at)
		SELECT (n % $2::int) % 256, 'acct-' || n % $2::int, 'call', date_trunc('minute', $3::timestamptz) - make_interval(mins => n / $2::int + 2), 0, 1000000, 1, 'usage', 'pending', '', '',
			'bench-' || n, 0, $3::timestamptz - make_interval(mins => n / $2::int), '', $3, $3
		FROM generate_series(0, $1::int - 1) n`
)

// BenchmarkDeliveries drains a backlog through the real client into a simulator that
// enforces Stripe's limits: 1000 meter events a second, and one call at a time per
// customer and meter. It fails when a call is refused for them.
func BenchmarkDeliveries(b *testing.B) {
	dsn := pgtest.DSN(b)
	owner, db := pgtest.Owner(b, dsn), pgtest.Open(b, dsn, pg.Options{})
	refused, taken := atomic.Int64{}, atomic.Int64{}
	sim := stripesim.New(b, stripesim.Options{Switches: stripesim.Switches{MeterEventsPerSecond: 1000}, Observe: func(q stripesim.Request) {
		switch {
		case q.Status == http.StatusTooManyRequests:
			refused.Add(1)
		case q.Executed && strings.HasSuffix(q.Path, "/meter_events"):
			taken.Add(1)
		}
	}})
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, sim.URL+"/v1/billing/meters", strings.NewReader(url.Values{
		"display_name": {"calls"}, "event_name": {"calls"}, "default_aggregation[formula]": {"sum"},
	}.Encode()))
	if err != nil {
		b.Fatal(err)
	}
	r.Header = http.Header{"Authorization": {"Bearer " + sim.Key}, "Content-Type": {"application/x-www-form-urlencoded"}}
	response, err := http.DefaultClient.Do(r)
	if err != nil || response.StatusCode != http.StatusOK {
		b.Fatalf("the meter was not made: %v", err)
	}
	_ = response.Body.Close()
	now := sim.Now()
	pgtest.Exec(b, owner, `INSERT INTO meters (meter, unit, aggregation, stripe_event_name, stripe_bound_at, rate_version, created_at, updated_at)
		VALUES ('call', '', 'sum', 'calls', $1, 1, $1, $1)`, now)
	pgtest.Exec(b, owner, benchAccounts, *benchCustomers, now)
	pgtest.Exec(b, owner, benchTied, *benchCustomers)
	const chunk = 100_000 // one statement must end before its time is over
	for from := 0; from < *benchDeliveries; from += chunk {
		pgtest.Exec(b, owner, strings.Replace(benchBacklog, "generate_series(0, $1::int - 1)", fmt.Sprintf("generate_series(%d, least($1::int, %d) - 1)", from, from+chunk), 1),
			*benchDeliveries, *benchCustomers, now)
	}
	pgtest.Exec(b, owner, "ANALYZE deliveries")
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	o := outbox.New(outbox.Config{DB: db, Now: sim.Now, Usage: usageSender{client}, Logger: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	b.ResetTimer()
	for range 2 {
		wg.Go(func() { loop.Run(ctx, defaultIdle, o.UsageStep, func(err error) { b.Error(err) }) })
	}
	most, samples := uint64(0), []uint64{}
	for begun := time.Now(); taken.Load() < int64(*benchDeliveries) && !b.Failed(); time.Sleep(100 * time.Millisecond) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if most = max(most, m.HeapAlloc); len(samples) < int(time.Since(begun)/(10*time.Second)) {
			samples = append(samples, m.HeapAlloc>>20)
			b.Logf("%s: %d delivered, heap %d MiB", time.Since(begun).Round(time.Second), taken.Load(), m.HeapAlloc>>20)
		}
	}
	b.StopTimer()
	stop()
	wg.Wait()
	var left int
	if err := db.Read(b.Context(), func(tx *sqlx.Tx) error {
		return tx.Get(&left, "SELECT count(*) FROM deliveries WHERE state <> 'delivered'")
	}); err != nil || left > 0 || refused.Load() > 0 {
		b.Errorf("%d of %d are left, %d calls were refused for Stripe's limits, %v", left, *benchDeliveries, refused.Load(), err)
	}
	b.ReportMetric(float64(*benchDeliveries)/b.Elapsed().Seconds(), "deliveries/s")
	b.ReportMetric(float64(refused.Load()), "refused")
	b.ReportMetric(float64(most>>20), "MiB-heap")
}

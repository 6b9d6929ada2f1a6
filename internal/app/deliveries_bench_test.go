package app

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/clock"
	"tallystick/internal/loop"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/internal/stripe"
	"tallystick/outbox"
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

// simulator starts tallystick sim as a process of its own, which refuses more than
// 1000 meter events a second as Stripe does, and gives its address.
func simulator(b *testing.B) (url string) {
	b.Helper()
	program := filepath.Join(b.TempDir(), "tallystick")
	build := exec.CommandContext(b.Context(), "go", "build", "-o", program, "tallystick/cmd/tallystick")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build the simulator: %v\n%s", err, out)
	}
	sim := exec.CommandContext(b.Context(), program, "sim", "--listen", "127.0.0.1:0", "--switches", `{"meter_events_per_second": 1000}`)
	says, err := sim.StdoutPipe()
	if err == nil {
		err = sim.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = sim.Process.Kill() // it is gone already when the context is over
		_ = sim.Wait()
	})
	line, err := bufio.NewReader(says).ReadString('\n')
	url = regexp.MustCompile(`http://[0-9.:]+`).FindString(line)
	if err != nil || url == "" {
		b.Fatalf("the simulator says %q, %v", line, err)
	}
	return url
}

// counting counts what Stripe answers.
type counting struct {
	usageSender
	taken, refused atomic.Int64
}

// SendMeterEvent is outbox.UsageSender.
func (c *counting) SendMeterEvent(ctx context.Context, e outbox.MeterEvent) outbox.Result {
	result := c.usageSender.SendMeterEvent(ctx, e)
	switch result.Outcome {
	case outbox.OutcomeDelivered:
		c.taken.Add(1)
	case outbox.OutcomeThrottled:
		c.refused.Add(1)
	default: // left over in the end
	}
	return result
}

// resident is the memory that this process holds: the outbox's, its client's and the
// test's, and neither Postgres' nor the simulator's.
func resident(b *testing.B) (mib int64) {
	b.Helper()
	content, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Sscanf(regexp.MustCompile(`VmRSS:\s+\d+`).FindString(string(content)), "VmRSS: %d", &mib); err != nil {
		b.Fatal(err)
	}
	return mib >> 10
}

const benchKey = "sk_test_bench"

// BenchmarkDeliveries drains a backlog through the real client into a simulator that
// enforces Stripe's limits: 1000 meter events a second, and one call at a time per
// customer and meter. It fails when a call is refused for them.
func BenchmarkDeliveries(b *testing.B) {
	dsn := pgtest.DSN(b)
	owner, db := pgtest.Owner(b, dsn), pgtest.Open(b, dsn, pg.Options{})
	sim := simulator(b)
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, sim+"/v1/billing/meters", strings.NewReader(url.Values{
		"display_name": {"calls"}, "event_name": {"calls"}, "default_aggregation[formula]": {"sum"},
	}.Encode()))
	if err != nil {
		b.Fatal(err)
	}
	r.Header = http.Header{"Authorization": {"Bearer " + benchKey}, "Content-Type": {"application/x-www-form-urlencoded"}}
	response, err := http.DefaultClient.Do(r)
	if err != nil || response.StatusCode != http.StatusOK {
		b.Fatalf("the meter was not made: %v", err)
	}
	_ = response.Body.Close()
	now := clock.Now()
	backlog(b, owner, now)
	sender := &counting{usageSender: usageSender{stripe.New(stripe.Config{Key: benchKey, BaseURL: sim})}}
	o := outbox.New(outbox.Config{DB: db, Now: clock.Now, Usage: sender, Logger: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	begin := resident(b)
	b.ResetTimer()
	for range 2 {
		wg.Go(func() { loop.Run(ctx, defaultIdle, o.UsageStep, func(err error) { b.Error(err) }) })
	}
	most, samples := begin, 0
	for begun := time.Now(); sender.taken.Load() < int64(*benchDeliveries) && !b.Failed(); time.Sleep(100 * time.Millisecond) {
		now := resident(b)
		if most = max(most, now); samples < int(time.Since(begun)/(10*time.Second)) {
			samples++
			b.Logf("%s: %d delivered, %d MiB resident", time.Since(begun).Round(time.Second), sender.taken.Load(), now)
		}
	}
	b.StopTimer()
	end := resident(b)
	b.Logf("from %d to %d MiB resident, %d at most; %d calls were refused", begin, end, most, sender.refused.Load())
	stop()
	wg.Wait()
	var left int
	if err := db.Read(b.Context(), func(tx *sqlx.Tx) error {
		return tx.Get(&left, "SELECT count(*) FROM deliveries WHERE state <> 'delivered'")
	}); err != nil || left > 0 || sender.refused.Load() > 0 {
		b.Errorf("%d of %d are left, %d calls were refused for Stripe's limits, %v", left, *benchDeliveries, sender.refused.Load(), err)
	}
	b.ReportMetric(float64(*benchDeliveries)/b.Elapsed().Seconds(), "deliveries/s")
	b.ReportMetric(float64(sender.refused.Load()), "refused")
	b.ReportMetric(float64(begin), "MiB-begin")
	b.ReportMetric(float64(most), "MiB-most")
	b.ReportMetric(float64(end), "MiB-end")
}

// backlog stages what is to be delivered.
func backlog(b *testing.B, owner *pg.DB, now time.Time) {
	b.Helper()
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
}

package reconcile

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/internal/stripe"
)

var benchHours = flag.Int("hours", 1_000_000, "how many hourly sums the benchmark of usage.totals compares")

const (
	benchMeters  = 3
	benchPerPair = 33 // hours of one account and meter
)

var benchNow = time.Date(2026, 3, 20, 12, 0, 0, 0, time.UTC)

// counted is a Stripe that has counted what the benchmark has stored, in no time.
type counted struct {
	StripeReader
	calls   atomic.Int64
	changed atomic.Bool // every hundredth account has one unit more in each hour
}

func (c *counted) Meters(context.Context) (meters []stripe.Meter, err error) {
	for m := range benchMeters {
		meters = append(meters, stripe.Meter{ID: "mtr_" + strconv.Itoa(m), EventName: "event" + strconv.Itoa(m), Status: "active"})
	}
	return meters, nil
}

func (c *counted) MeterTariffs(_ context.Context, meter string) ([]stripe.Tariff, error) {
	return []stripe.Tariff{{ID: "price_" + meter, Meter: meter, UnitAmount: "2", Currency: "usd"}}, nil
}

// Totals counts a call for each page of a hundred rows, as Stripe would.
func (c *counted) Totals(_ context.Context, _, customer string, from, to time.Time, hourly bool) (totals []stripe.Total, err error) {
	c.calls.Add(1)
	n, err := strconv.Atoi(strings.TrimPrefix(customer, "cus_"))
	if err != nil {
		return nil, err
	}
	more := int64(0)
	if c.changed.Load() && n%100 == 7 {
		more = 1
	}
	sum := credit.Quantity(0)
	for j := range benchPerPair {
		hour := benchNow.Add(-time.Duration(j+1) * 7 * time.Hour)
		if hour.Before(from) || !hour.Before(to) {
			continue
		}
		q := credit.Units(int64(n%50+j+1) + more)
		sum += q
		if hourly {
			totals = append(totals, stripe.Total{From: hour, To: hour.Add(time.Hour), Quantity: q})
		}
	}
	if !hourly {
		return []stripe.Total{{From: from, To: to, Quantity: sum}}, nil
	}
	return totals, nil
}

// benchStore makes accounts, customers, meters and their sums by the hour.
func benchStore(b *testing.B, dsn string, accounts int) {
	b.Helper()
	owner := pgtest.Open(b, dsn, pg.Options{Owner: true, StatementTimeout: time.Hour})
	for _, statement := range []string{
		`INSERT INTO meters (meter, unit, aggregation, stripe_event_name, stripe_bound_at, rate_version, created_at, updated_at)
			SELECT 'meter' || m, '', 'sum', 'event' || m, '2026-01-01', 1, '2026-01-01', '2026-01-01' FROM generate_series(0, %[2]d - 1) AS m`,
		`INSERT INTO accounts (part, account, name, overdraft, metadata, available, held, debt, version, chain, created_at, updated_at)
			SELECT i %% 256, 'account-' || i, '', 0, '{}', 0, 0, 0, 0, '', '2026-01-01', '2026-01-01' FROM generate_series(0, %[1]d - 1) AS i`,
		`INSERT INTO stripe_customers (customer, part, account, position)
			SELECT 'cus_' || i, i %% 256, 'account-' || i, 0 FROM generate_series(0, %[1]d - 1) AS i`,
		`INSERT INTO reconcile_hours (part, account, meter, hour, quantity)
			SELECT i %% 256, 'account-' || i, 'meter' || m, timestamptz '2026-03-20 12:00Z' - make_interval(hours => (j + 1) * 7), 1000000 * (i %% 50 + j + 1)
			FROM generate_series(0, %[1]d - 1) AS i, generate_series(0, %[2]d - 1) AS m, generate_series(0, %[3]d - 1) AS j`,
		`ANALYZE`,
	} {
		pgtest.Exec(b, owner, fmt.Sprintf(statement+" -- %[1]d %[2]d %[3]d", accounts, benchMeters, benchPerPair))
	}
}

// benchRun runs the check and gives how many calls it has made.
func benchRun(b *testing.B, r *Reconciler, c *counted) (calls int64, took time.Duration) {
	b.Helper()
	c.calls.Store(0)
	b.StartTimer()
	before := b.Elapsed()
	runs, err := r.RunNow(b.Context(), Options{Checks: []string{"usage.totals"}})
	took = b.Elapsed() - before
	b.StopTimer()
	if err != nil || len(runs) != 1 || runs[0].State != "succeeded" || runs[0].Found != 0 || runs[0].Note != "" {
		b.Fatalf("the run ended with %+v, %v", runs, err)
	}
	return c.calls.Load(), took
}

// BenchmarkUsageTotals compares -hours hourly sums of a third of a hundredth as many
// accounts with a Stripe that answers at once, and again after one in a hundred has
// changed.
func BenchmarkUsageTotals(b *testing.B) {
	b.StopTimer()
	accounts := max(*benchHours/benchMeters/benchPerPair, 100)
	for range b.N {
		dsn := pgtest.DSN(b)
		benchStore(b, dsn, accounts)
		c := &counted{}
		now := benchNow
		r := New(Config{
			DB: pgtest.Open(b, dsn, pg.Options{}), Now: func() time.Time { return now }, Stripe: c,
			Logger: slog.New(slog.DiscardHandler), Calls: 1 << 40,
		})
		first, took := benchRun(b, r, c)
		changeHundredth(b, r)
		c.changed.Store(true)
		now = now.Add(time.Hour)
		second, again := benchRun(b, r, c)
		if (second-rereadLeast)*50 > first { // a few are read again in every run, however few there are
			b.Errorf("after 1 %% has changed %d calls were made, of %d at first: more than 2 %%", second, first)
		}
		b.ReportMetric(float64(accounts*benchMeters*benchPerPair)/took.Seconds(), "hours/s")
		b.ReportMetric(took.Seconds(), "s-first")
		b.ReportMetric(again.Seconds(), "s-second")
		b.ReportMetric(float64(first), "calls-first")
		b.ReportMetric(float64(second), "calls-second")
		b.ReportMetric(peakMB(b), "MB-peak")
	}
}

// changeHundredth gives every hundredth account one unit more in each hour.
func changeHundredth(b *testing.B, r *Reconciler) {
	b.Helper()
	var changed []changedHour
	err := r.DB.Read(b.Context(), func(tx *sqlx.Tx) error {
		return tx.SelectContext(b.Context(), &changed, `
			SELECT part, account, meter, hour, quantity + 1000000 AS quantity, quantity AS before
			FROM reconcile_hours WHERE account LIKE 'account-%07' OR account = 'account-7'`)
	})
	if err == nil {
		err = r.keepHours(b.Context(), scope{}, changed)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// peakMB is the most memory that this process had, ever.
func peakMB(b *testing.B) float64 {
	b.Helper()
	content, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	b.Fatal("the kernel does not say how much memory there was")
	return 0
}

// Package bench measures the metering API and prints what it reached beside
// what the same machine reaches without it, in the same run.
//
// The server, the no-op handler and Postgres are processes of their own; the
// generator is this one and speaks to both with the ordinary client of net/http.
// Postgres is private, on disk, with fsync and synchronous_commit on. Machines
// differ and are busy with other things: only ratios of one run mean anything.
//
// Yardsticks. The no-op handler decodes the same JSON and answers a like one: it
// is the limit of HTTP here. pgbench on the same cluster, with statements
// prepared, runs the naive design (lock the balance, insert the usage, update the
// balance, commit) and the bare write (INSERT … SELECT unnest of the same rows
// into a table with nothing but its key).
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgdev"
)

// Options say how to measure.
type Options struct {
	Program string        // path of this program, which is started again as the server and as the no-op handler
	Environ []string      // of the processes that are started; it configures nothing of theirs
	Data    string        // directory on a real disk, made when missing; a fresh one is made in it and removed
	Each    time.Duration // how long each row is measured
	Only    string        // part of the names of the rows to measure; "" measures all
	Profile string        // file for a CPU profile of the server; "" writes none
	Rows    int64         // usages in the tables for the rows that compare few with many; 0 leaves those out
	Note    func(format string, args ...any)

	// Progress shows how far long work is; nil shows nothing.
	Progress func(what string, done, total int64)
}

// Row is one line of the result.
type Row struct {
	Name        string        `json:"name"`
	Connections int           `json:"connections"`
	PerSecond   int64         `json:"per_second"` // usages, or rows
	P50         time.Duration `json:"p50_ns"`     // of one request
	P99         time.Duration `json:"p99_ns"`
	OfNoop      int64         `json:"percent_of_noop,omitempty"`
	OfPgbench   int64         `json:"percent_of_pgbench,omitempty"`
	OfFew       int64         `json:"percent_of_few_rows,omitempty"` // of the rate with few usages in the tables
	RSS         int64         `json:"rss_bytes,omitempty"`           // of the server, at its highest
	CPU         time.Duration `json:"cpu_ns,omitempty"`              // of the server, for one usage
	Allocations int64         `json:"allocations,omitempty"`         // of the server, for one usage
	Database    time.Duration `json:"database_ns,omitempty"`         // CPU of Postgres, for one usage
}

// Result is everything that was measured, and under which load of the machine.
type Result struct {
	LoadBefore string `json:"load_before"`
	LoadAfter  string `json:"load_after"`
	Rows       []Row  `json:"rows"`
}

// bench is a measurement under way.
type bench struct {
	options  Options
	dir      string
	postgres *pgdev.Server
	server   *child
	noop     *child
	load     *generator
	result   Result
}

// Run measures everything and clears up behind itself. A row that fails is an
// error and is missing from the result; the others are measured all the same.
func Run(ctx context.Context, o Options) (result Result, err error) {
	if err := os.MkdirAll(o.Data, 0o755); err != nil { //nolint:gosec // Postgres's own user must pass
		return result, fmt.Errorf("make the directory for measurements: %w", err)
	}
	dir, err := os.MkdirTemp(o.Data, "tallystick-bench-")
	if err != nil {
		return result, fmt.Errorf("make a directory for the measurement: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // Postgres's own user must pass
		return result, err
	}
	b := &bench{options: o, dir: dir}
	b.result.LoadBefore = loadAverage()
	defer func() { err = errors.Join(err, b.end(context.WithoutCancel(ctx))) }()
	if err := b.start(ctx); err != nil {
		return result, err
	}
	for _, s := range scenarios {
		if !strings.Contains(s.name, o.Only) {
			continue
		}
		if failure := b.measure(ctx, s); failure != nil {
			err = errors.Join(err, fmt.Errorf("measure %s: %w", s.name, failure))
		}
	}
	if strings.Contains(voidsRow, o.Only) {
		if failure := b.measureVoids(ctx); failure != nil {
			err = errors.Join(err, fmt.Errorf("measure %s: %w", voidsRow, failure))
		}
	}
	if o.Rows > 0 {
		if failure := b.measureRows(ctx); failure != nil {
			err = errors.Join(err, fmt.Errorf("measure with many rows: %w", failure))
		}
	}
	b.result.LoadAfter = loadAverage()
	return b.result, err
}

func (b *bench) start(ctx context.Context) (err error) {
	b.options.Note("starting Postgres in %s", b.dir)
	if b.postgres, err = pgdev.Start(ctx, pgdev.Options{Dir: filepath.Join(b.dir, "postgres")}); err != nil {
		return err
	}
	dsn := b.postgres.DSN(pgdev.Database)
	if _, err := pg.Migrate(ctx, dsn); err != nil {
		return err
	}
	if b.server, err = startChild(ctx, b.options, filepath.Join(b.dir, "server.log"), "server", dsn, b.options.Profile); err != nil {
		return err
	}
	if b.noop, err = startChild(ctx, b.options, filepath.Join(b.dir, "noop.log"), "noop", "", ""); err != nil {
		return err
	}
	b.load = newGenerator()
	b.options.Note("making %d accounts", accounts)
	if err := b.load.prepare(ctx, b.server); err != nil {
		return err
	}
	return b.preparePgbench(ctx)
}

func (b *bench) end(ctx context.Context) error {
	var errs []error
	for _, c := range []*child{b.server, b.noop} {
		if c != nil {
			errs = append(errs, c.stop())
		}
	}
	if b.postgres != nil {
		errs = append(errs, b.postgres.Stop(ctx))
	}
	return errors.Join(errs...)
}

// scenario is one row with its yardsticks.
type scenario struct {
	name     string
	shape    shape
	conns    int
	noop     bool
	pgbench  string // name of the script; "" for none
	pgClient int
}

// The names say who is measured; each stands right behind its yardsticks, so that
// what else the machine does weighs on all of them alike.
var scenarios = []scenario{
	{"hot account, 1 connection", shape{accounts: 1, batch: 1}, 1, true, "naive-hot", 1},
	{"hot account, 64 connections", shape{accounts: 1, batch: 1}, 64, true, "naive-hot", 64},
	{"hot account, 256 connections", shape{accounts: 1, batch: 1}, 256, true, "", 0},
	{"hot account, reserve and capture, 64 connections", shape{accounts: 1, batch: 1, reserved: true}, 64, false, "", 0},
	{"1000 accounts, 64 connections", shape{accounts: accounts, batch: 1}, 64, true, "naive-many", 64},
	{"hot account, meter bound to Stripe, 64 connections", shape{accounts: 1, batch: 1, bound: true}, 64, true, "", 0},
	{"batches of 100, 8 connections", shape{accounts: 1, batch: 100}, 8, false, "bare-100", 8},
	{"batches of 1000, 2 connections", shape{accounts: 1, batch: 1000}, 2, false, "bare-1000", 2},
}

// measure measures a scenario's yardsticks and then the scenario.
func (b *bench) measure(ctx context.Context, s scenario) error {
	b.options.Note("measuring %s", s.name)
	var noop, pgbench int64
	if s.noop {
		row, err := b.observe(ctx, b.noop, s)
		if err != nil {
			return err
		}
		noop, row.Name = row.PerSecond, "  no-op handler"
		b.result.Rows = append(b.result.Rows, row)
	}
	if s.pgbench != "" {
		row, err := b.pgbench(ctx, s)
		if err != nil {
			return err
		}
		pgbench = row.PerSecond
		b.result.Rows = append(b.result.Rows, row)
	}
	row, err := b.observe(ctx, b.server, s)
	if err != nil {
		return err
	}
	row.Name, row.OfNoop, row.OfPgbench = s.name, percent(row.PerSecond, noop), percent(row.PerSecond, pgbench)
	b.result.Rows = append(b.result.Rows, row)
	return nil
}

func percent(n, of int64) int64 {
	if of == 0 {
		return 0
	}
	return 100 * n / of
}

// observe loads one process and measures what it cost.
func (b *bench) observe(ctx context.Context, c *child, s scenario) (Row, error) {
	if _, err := b.load.run(ctx, c, s.shape, s.conns, b.options.Each/4); err != nil { // connections, caches, plans
		return Row{}, err
	}
	c.forgetPeak()
	before, err := c.cost(ctx)
	if err != nil {
		return Row{}, err
	}
	databaseBefore := cpuOfTree(b.postgres.PID())
	m, err := b.load.run(ctx, c, s.shape, s.conns, b.options.Each)
	if err != nil {
		return Row{}, err
	}
	database := cpuOfTree(b.postgres.PID()) - databaseBefore
	after, err := c.cost(ctx)
	if err != nil {
		return Row{}, err
	}
	row := Row{Connections: s.conns, PerSecond: m.perSecond(), P50: m.percentile(50), P99: m.percentile(99), RSS: after.rss}
	if m.usages > 0 {
		row.CPU = (after.cpu - before.cpu) / time.Duration(m.usages)
		row.Allocations = (after.mallocs - before.mallocs) / m.usages
	}
	if c != b.noop && m.usages > 0 {
		row.Database = database / time.Duration(m.usages)
	}
	return row, nil
}

func loadAverage() string {
	content, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(content))[:3], " ")
}

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"tallystick/internal/bench"
)

func (p *program) benchCommand() *cobra.Command {
	o := bench.Options{Note: p.note, Environ: p.environ}
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure the metering API on this machine, beside what it reaches without it",
		Long: "Measure the metering API over HTTP and durable Postgres, each row right behind its yardsticks: a handler that does nothing but decode and\n" +
			"answer, and pgbench on the same cluster. Only ratios of one run mean anything.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if o.Program, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if p.data != "" {
				o.Data = p.data
			}
			stop := func() {}
			if terminal(p.stderr) && !p.quiet {
				o.Progress, stop = phaseBar(p.stderr)
			}
			result, err := bench.Run(c.Context(), o)
			stop()
			if len(result.Rows) == 0 {
				return err
			}
			return errors.Join(err, p.benchRows(result))
		},
	}
	c.Flags().DurationVar(&o.Each, "each", 3*time.Second, "how long each row is measured")
	c.Flags().StringVar(&o.Only, "only", "", "measure only rows whose names hold this text")
	c.Flags().StringVar(&o.Profile, "profile", "", "write a CPU profile of the server to this file")
	c.Flags().Int64Var(&o.Rows, "rows", 0, "also compare the hot account with so many usages in the tables and with few; 10000000 take minutes and 10 GB of disk")
	o.Data = "/var/tmp" // on disk by convention, where /tmp may be memory
	c.AddCommand(p.benchChildCommand("server"), p.benchChildCommand("noop"))
	return c
}

// benchChildCommand is what bench starts; it ends with its standard input.
func (p *program) benchChildCommand(role string) *cobra.Command {
	var profile string
	c := &cobra.Command{
		Use: role, Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if role == "noop" {
				return bench.ServeNoop(c.Context(), p.stdin, p.stdout)
			}
			return bench.Serve(c.Context(), p.env("DATABASE_URL"), profile, p.stdin, p.stdout, p.logger(slog.LevelInfo))
		},
	}
	c.Flags().StringVar(&profile, "profile", "", "file for a CPU profile")
	return c
}

func (p *program) benchRows(r bench.Result) error {
	header := []string{"measured", "connections", "per second", "p50", "p99", "% of no-op", "% of pgbench", "% of few rows", "RSS MB", "CPU/usage", "allocations/usage", "Postgres CPU/usage"}
	lines := make([][]string, 0, len(r.Rows))
	for _, row := range r.Rows {
		lines = append(lines, []string{
			row.Name, strconv.Itoa(row.Connections), strconv.FormatInt(row.PerSecond, 10), short(row.P50), short(row.P99),
			unlessZero(row.OfNoop), unlessZero(row.OfPgbench), unlessZero(row.OfFew), unlessZero(row.RSS >> 20), short(row.CPU), unlessZero(row.Allocations), short(row.Database),
		})
	}
	p.note("load average before %s, after %s", r.LoadBefore, r.LoadAfter)
	return p.rows(header, lines, nil, r)
}

func short(d time.Duration) string {
	switch {
	case d == 0:
		return ""
	case d < time.Millisecond:
		return d.Round(100 * time.Nanosecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}

func unlessZero(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

package main

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/app"
	"tallystick/internal/clock"
	"tallystick/internal/config"
	"tallystick/reconcile"
)

type runAnswer struct {
	Data []api.Run `json:"data"`
}

func (p *program) reconcileCommand() *cobra.Command {
	c := &cobra.Command{Use: "reconcile", Short: "Compare our records with Stripe's", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(p.reconcileRunCommand(), p.reconcileListCommand())
	return c
}

func (p *program) reconcileListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the checks",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r := reconcile.New(reconcile.Config{})
			var lines [][]string
			for _, name := range r.CheckNames() {
				lines = append(lines, []string{name, r.Describe(name)})
			}
			return p.rows([]string{"check", "compares"}, lines, nil, lines)
		},
	}
}

func (p *program) reconcileRunCommand() *cobra.Command {
	var q api.RunRequest
	var from, to string
	c := &cobra.Command{
		Use:   "run",
		Short: "Run checks now; exit 1 when something is found",
		Long:  "Run checks now, in the server that up has started or --url names; without one, in this process over DATABASE_URL.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if q.From, err = timeFlag("--from", from); err != nil {
				return err
			}
			if q.To, err = timeFlag("--to", to); err != nil {
				return err
			}
			answer, raw, err := p.runChecks(c.Context(), q)
			if err != nil {
				return err
			}
			return p.showRuns(answer, raw)
		},
	}
	f := c.Flags()
	f.StringSliceVar(&q.Checks, "check", nil, "checks to run, separated by commas (default: all)")
	f.StringVar(&from, "from", "", "begin of the window, such as 2026-01-31T00:00:00Z")
	f.StringVar(&to, "to", "", "end of the window")
	f.StringVar(&q.Account, "account", "", "only this account")
	f.BoolVar(&q.DryRun, "dry-run", false, "compare and report, write nothing")
	return c
}

func timeFlag(name, text string) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usageError("%s must be a time such as 2026-01-31T00:00:00Z, not %q", name, text)
	}
	return &t, nil
}

func (p *program) runChecks(ctx context.Context, q api.RunRequest) (answer runAnswer, raw []byte, err error) {
	server, err := p.client()
	if errors.Is(err, errNoServer) && p.env("DATABASE_URL") != "" {
		answer, err = p.runChecksHere(ctx, q)
		return answer, nil, err
	}
	if err != nil {
		return answer, nil, err
	}
	raw, err = server.call(ctx, http.MethodPost, "/v1/reconcile/runs", q, &answer)
	return answer, raw, err
}

// runChecksHere runs the checks without a server, over the configured database.
func (p *program) runChecksHere(ctx context.Context, q api.RunRequest) (answer runAnswer, err error) {
	c, mistakes := p.load(nil)
	if err := config.Err(append(mistakes, c.Serve()...)); err != nil {
		return answer, err
	}
	a, err := app.New(ctx, app.Options{Config: c, Now: clock.Now, Logger: p.logger(c.LogLevel)})
	if err != nil {
		return answer, err
	}
	defer func() { _ = a.Close() }()
	o := reconcile.Options{Checks: q.Checks, Account: q.Account, DryRun: q.DryRun}
	if q.From != nil {
		o.From = *q.From
	}
	if q.To != nil {
		o.To = *q.To
	}
	runs, err := a.Reconcile.RunNow(ctx, o)
	for _, run := range runs {
		answer.Data = append(answer.Data, run.Wire())
	}
	return answer, err
}

func (p *program) showRuns(answer runAnswer, raw []byte) error {
	var lines [][]string
	code := exitFine
	for _, r := range answer.Data {
		lines = append(lines, []string{
			r.Check, r.State, r.From.Format(time.RFC3339), r.To.Format(time.RFC3339), strconv.FormatInt(r.Compared, 10), strconv.Itoa(r.Found),
			strconv.Itoa(r.New), strconv.Itoa(r.Resolved), r.Error,
		})
		if r.Found > 0 {
			code = max(code, exitFindings)
		}
		if r.State == "failed" {
			code = exitUnreachable
		}
	}
	if err := p.rows([]string{"check", "state", "from", "to", "compared", "found", "new", "resolved", "error"}, lines, raw, answer); err != nil {
		return err
	}
	if code == exitFindings {
		p.note("see: tallystick findings list")
	}
	if code != exitFine {
		return &exitError{code: code}
	}
	return nil
}

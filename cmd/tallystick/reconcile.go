package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

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
	c.AddCommand(p.reconcileRunCommand(), p.reconcileListCommand(), p.reconcileShowCommand())
	return c
}

func (p *program) reconcileListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the checks, when they run, and when they last succeeded",
		Long:  "List the checks, when they run, and when they last succeeded, as the running server says. Without a server the checks alone.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var answer struct {
				Data []api.Check `json:"data"`
			}
			server, err := p.client()
			var raw []byte
			switch {
			case errors.Is(err, errNoServer):
				r := reconcile.New(reconcile.Config{})
				for _, name := range r.CheckNames() {
					answer.Data = append(answer.Data, api.Check{Name: name, Description: r.Describe(name)})
				}
			case err != nil:
				return err
			default:
				if raw, err = server.call(c.Context(), http.MethodGet, "/v1/reconcile/checks", nil, &answer); err != nil {
					return err
				}
			}
			lines := make([][]string, len(answer.Data))
			for i, k := range answer.Data {
				state := k.LastState
				if k.Silent {
					state = "silent"
				}
				lines[i] = []string{k.Name, k.Description, k.Schedule, timeText(k.LastSuccess), state}
			}
			return p.rows([]string{"check", "compares", "schedule (UTC)", "last success", "state"}, lines, raw, answer)
		},
	}
}

func (p *program) reconcileShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show RUN",
		Short: "Show one run",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var r api.Run
			raw, err := server.call(c.Context(), http.MethodGet, "/v1/reconcile/runs/"+url.PathEscape(args[0]), nil, &r)
			if err != nil {
				return err
			}
			return p.rows([]string{"", r.ID}, [][]string{
				{"check", r.Check},
				{"by", r.Trigger},
				{"state", r.State},
				{"window", r.From.Format(time.RFC3339) + " to " + r.To.Format(time.RFC3339)},
				{"account", r.Account},
				{"compared", strconv.FormatInt(r.Compared, 10)},
				{"found", strconv.Itoa(r.Found)},
				{"new", strconv.Itoa(r.New)},
				{"resolved", strconv.Itoa(r.Resolved)},
				{"leaked", sums(r.Totals.Leaked)},
				{"overbilled", sums(r.Totals.Overbilled)},
				{"at risk", sums(r.Totals.AtRisk)},
				{"calls to Stripe", strconv.FormatInt(r.Calls, 10)},
				{"not read", r.Note},
				{"error", r.Error},
				{"started", r.StartedAt.Format(time.RFC3339)},
				{"finished", timeText(r.FinishedAt)},
			}, raw, r)
		},
	}
}

func sums(all []api.Money) string {
	texts := make([]string, len(all))
	for i, m := range all {
		texts[i] = m.Text
	}
	return strings.Join(texts, ", ")
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

// firstLine leaves the stack of a panic to reconcile show.
func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
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
	ended := p.showProgress(ctx, q, func(ctx context.Context) (page runAnswer, err error) {
		_, err = server.call(ctx, http.MethodGet, "/v1/reconcile/runs?limit=100", nil, &page)
		return page, err
	})
	defer ended()
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
	ended := p.showProgress(ctx, q, func(ctx context.Context) (page runAnswer, err error) {
		runs, err := a.Reconcile.Runs(ctx, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), "", "", "", 100)
		for _, run := range runs {
			page.Data = append(page.Data, run.Wire())
		}
		return page, err
	})
	defer ended()
	runs, err := a.Reconcile.RunNow(ctx, o)
	for _, run := range runs {
		shown := run.Wire()
		for _, f := range run.Preview {
			shown.Preview = append(shown.Preview, a.Reconcile.Wire(f))
		}
		answer.Data = append(answer.Data, shown)
	}
	return answer, err
}

// showProgress shows on a terminal which of the checks have ended, until the
// returned function is called; elsewhere nothing. A dry run leaves no runs to count.
func (p *program) showProgress(ctx context.Context, q api.RunRequest, runs func(context.Context) (runAnswer, error)) (ended func()) {
	file, ok := p.stderr.(*os.File)
	if !ok || p.quiet || q.DryRun || !term.IsTerminal(int(file.Fd())) {
		return func() {}
	}
	checks := q.Checks
	if len(checks) == 0 {
		checks = reconcile.New(reconcile.Config{}).CheckNames()
	}
	bar := progressbar.NewOptions(len(checks), progressbar.OptionSetWriter(file), progressbar.OptionSetWidth(20), progressbar.OptionClearOnFinish())
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		known := map[string]bool{} // runs of before
		for first := true; ; first = false {
			page, err := runs(ctx)
			finished := 0
			for _, r := range page.Data {
				switch {
				case first && r.State != "running":
					known[r.ID] = true
				case known[r.ID] || !slices.Contains(checks, r.Check):
				case r.State == "running":
					bar.Describe(r.Check)
				default:
					finished++
				}
			}
			if err == nil {
				_ = bar.Set(min(finished, len(checks))) // it only shows
			}
			select {
			case <-ctx.Done():
				_ = bar.Clear()
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
	}()
	return func() { stop(); <-done }
}

func (p *program) showRuns(answer runAnswer, raw []byte) error {
	var lines [][]string
	code := exitFine
	var previews []api.Finding
	for _, r := range answer.Data {
		lines = append(lines, []string{
			r.Check, r.State, r.From.Format(time.RFC3339), r.To.Format(time.RFC3339), strconv.FormatInt(r.Compared, 10), strconv.Itoa(r.Found),
			strconv.Itoa(r.New), strconv.Itoa(r.Resolved), strconv.FormatInt(r.Calls, 10), r.Note, firstLine(r.Error),
		})
		previews = append(previews, r.Preview...)
		if r.Found > 0 {
			code = max(code, exitFindings)
		}
		if r.State == "failed" {
			code = exitUnreachable
		}
	}
	if err := p.rows([]string{"check", "state", "from", "to", "compared", "found", "new", "resolved", "calls", "not read", "error"}, lines, raw, answer); err != nil {
		return err
	}
	if len(previews) > 0 && p.output == "table" {
		lines := make([][]string, len(previews))
		for i, f := range previews {
			lines[i] = findingLine(f)[1:]
		}
		if err := p.rows(findingHeader[1:], lines, nil, nil); err != nil {
			return err
		}
	} else if code == exitFindings {
		p.note("see: tallystick findings list")
	}
	if code != exitFine {
		return &exitError{code: code}
	}
	return nil
}

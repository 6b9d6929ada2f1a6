package main

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/clock"
	"tallystick/internal/web"
)

func (p *program) findingsCommand() *cobra.Command {
	c := &cobra.Command{Use: "findings", Short: "Show and repair what the checks have found", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(p.findingsListCommand(), p.findingsShowCommand(), p.findingsAckCommand(), p.findingsSnoozeCommand(), p.findingsResolveCommand(), p.findingsRepairCommand())
	return c
}

var findingHeader = []string{"finding", "check", "severity", "money at risk", "effect", "subject", "ours", "theirs", "difference", "cause", "deadline", "state", "last seen"}

func findingLine(f api.Finding) []string {
	return []string{
		f.ID, f.Check, f.Severity, moneyText(f.MoneyAtRisk), f.Effect, f.Subject, f.Ours, f.Theirs, f.Difference, f.Cause, timeText(f.Deadline), f.State,
		f.LastSeen.Format(time.RFC3339),
	}
}

func moneyText(m *api.Money) string {
	if m == nil {
		return "unknown"
	}
	return m.Text
}

func timeText(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Format(time.RFC3339)
}

func (p *program) findingsListCommand() *cobra.Command {
	filters := map[string]*string{}
	c := &cobra.Command{
		Use:   "list",
		Short: "List findings that are not resolved",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			query := url.Values{"limit": {"500"}}
			for name, value := range filters {
				if *value != "" {
					query.Set(name, *value)
				}
			}
			all, err := p.allFindings(c.Context(), query)
			if err != nil {
				return err
			}
			lines := make([][]string, len(all))
			for i, f := range all {
				lines[i] = findingLine(f)
			}
			return p.rows(findingHeader, lines, nil, web.List[api.Finding]{Data: all})
		},
	}
	for name, usage := range map[string]string{
		"state": "open, acknowledged, snoozed, resolved or all", "check": "only this check", "account": "only this account", "cause": "only this cause",
		"severity": "this one and those above: low, medium, high or critical", "effect": "leaked, overbilled or at_risk",
	} {
		filters[name] = c.Flags().String(name, "", usage)
	}
	return c
}

// allFindings walks all pages of a list.
func (p *program) allFindings(ctx context.Context, query url.Values) ([]api.Finding, error) {
	server, err := p.client()
	if err != nil {
		return nil, err
	}
	all := []api.Finding{}
	for {
		var page web.List[api.Finding]
		if _, err := server.call(ctx, http.MethodGet, "/v1/findings?"+query.Encode(), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if page.NextCursor == nil {
			return all, nil
		}
		query.Set("cursor", *page.NextCursor)
	}
}

func (p *program) findingsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show FINDING",
		Short: "Show one finding with its evidence and its history",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return p.onFinding(c, http.MethodGet, args[0], "", nil)
		},
	}
}

// onFinding makes a call about one finding and shows it.
func (p *program) onFinding(c *cobra.Command, method, id, action string, body any) error {
	server, err := p.client()
	if err != nil {
		return err
	}
	var f api.Finding
	raw, err := server.call(c.Context(), method, "/v1/findings/"+url.PathEscape(id)+action, body, &f)
	if err != nil {
		return err
	}
	lines := [][]string{
		{"check", f.Check},
		{"subject", f.Subject},
		{"account", f.Account},
		{"money at risk", moneyText(f.MoneyAtRisk)},
		{"effect", f.Effect},
		{"severity", f.Severity},
		{"ours", f.Ours},
		{"theirs", f.Theirs},
		{"difference", f.Difference + " " + f.Unit},
		{"cause", f.Cause},
		{"explanation", f.Explanation},
		{"deadline", timeText(f.Deadline)},
		{"what then remains", f.Remains},
		{"state", f.State},
		{"snoozed until", timeText(f.SnoozedUntil)},
		{"repair", f.Repair},
		{"at Stripe", f.StripeURL},
		{"first seen", f.FirstSeen.Format(time.RFC3339)},
		{"last seen", f.LastSeen.Format(time.RFC3339)},
		{"evidence", string(f.Evidence)},
	}
	for _, e := range f.History {
		lines = append(lines, []string{e.At.Format(time.RFC3339), e.Action + " by " + e.Actor + ": " + e.Detail})
	}
	return p.rows([]string{"", f.ID}, lines, raw, f)
}

func (p *program) findingsAckCommand() *cobra.Command {
	var q api.AcknowledgeRequest
	c := &cobra.Command{
		Use:   "ack FINDING",
		Short: "Say that somebody deals with a finding: it is mailed again only when its severity rises",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return p.onFinding(c, http.MethodPost, args[0], "/acknowledge", q)
		},
	}
	c.Flags().StringVar(&q.Note, "note", "", "for the finding's history")
	return c
}

func (p *program) findingsSnoozeCommand() *cobra.Command {
	var q api.SnoozeRequest
	var until string
	var span time.Duration
	c := &cobra.Command{
		Use:   "snooze FINDING",
		Short: "Keep a finding quiet until a time, at most 90 days ahead; then it is open and mailed again",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if (until == "") == (span == 0) {
				return usageError("name either --until or --for")
			}
			t, err := timeFlag("--until", until)
			if err != nil {
				return err
			}
			if t != nil {
				q.Until = *t
			} else {
				q.Until = clock.Now().Add(span)
			}
			return p.onFinding(c, http.MethodPost, args[0], "/snooze", q)
		},
	}
	c.Flags().StringVar(&until, "until", "", "a time such as 2026-01-31T00:00:00Z")
	c.Flags().DurationVar(&span, "for", 0, "a span from now, such as 24h")
	c.Flags().StringVar(&q.Note, "note", "", "for the finding's history")
	return c
}

func (p *program) findingsResolveCommand() *cobra.Command {
	var q api.ResolveRequest
	c := &cobra.Command{
		Use:   "resolve FINDING --reason TEXT",
		Short: "Accept a finding as it is; it reopens when it grows, changes or comes back",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return p.onFinding(c, http.MethodPost, args[0], "/resolve", q)
		},
	}
	c.Flags().StringVar(&q.Reason, "reason", "", "why, for the finding's history")
	return c
}

func (p *program) findingsRepairCommand() *cobra.Command {
	var q api.RepairRequest
	c := &cobra.Command{
		Use:   "repair FINDING",
		Short: "Repair what a finding is about; done again, it changes nothing",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var out api.Repair
			raw, err := server.call(c.Context(), http.MethodPost, "/v1/findings/"+url.PathEscape(args[0])+"/repair", q, &out)
			if err != nil {
				return err
			}
			return p.rows([]string{"finding", "repair", "result"}, [][]string{{out.Finding, out.Action, out.Result}}, raw, out)
		},
	}
	c.Flags().BoolVar(&q.DryRun, "dry-run", false, "say what would be done, do nothing")
	c.Flags().StringVar(&q.Choice, "choice", "", "release or capture, for a reservation that is in doubt")
	return c
}

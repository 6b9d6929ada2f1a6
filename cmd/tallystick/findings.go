package main

import (
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/web"
)

func (p *program) findingsCommand() *cobra.Command {
	c := &cobra.Command{Use: "findings", Short: "Show and repair what the checks have found", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(p.findingsListCommand(), p.findingsShowCommand(), p.findingsRepairCommand())
	return c
}

func (p *program) findingsListCommand() *cobra.Command {
	query := url.Values{}
	var state, check, account string
	c := &cobra.Command{
		Use:   "list",
		Short: "List findings that are not resolved",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			query.Set("limit", "500")
			for name, value := range map[string]string{"state": state, "check": check, "account": account} {
				if value != "" {
					query.Set(name, value)
				}
			}
			var answer web.List[api.Finding]
			raw, err := server.call(c.Context(), http.MethodGet, "/v1/findings?"+query.Encode(), nil, &answer)
			if err != nil {
				return err
			}
			var lines [][]string
			for _, f := range answer.Data {
				money := "unknown"
				if f.MoneyAtRisk != nil {
					money = f.MoneyAtRisk.Text
				}
				lines = append(lines, []string{f.ID, f.Check, f.Severity, money, f.Subject, f.Ours, f.Theirs, f.Difference, f.Cause, f.State, f.LastSeen.Format(time.RFC3339)})
			}
			return p.rows([]string{"finding", "check", "severity", "money at risk", "subject", "ours", "theirs", "difference", "cause", "state", "last seen"}, lines, raw, answer)
		},
	}
	c.Flags().StringVar(&state, "state", "", "open, acknowledged, snoozed, resolved or all")
	c.Flags().StringVar(&check, "check", "", "only this check")
	c.Flags().StringVar(&account, "account", "", "only this account")
	return c
}

func (p *program) findingsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show FINDING",
		Short: "Show one finding with its evidence",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var f api.Finding
			raw, err := server.call(c.Context(), http.MethodGet, "/v1/findings/"+url.PathEscape(args[0]), nil, &f)
			if err != nil {
				return err
			}
			money, deadline := "unknown", ""
			if f.MoneyAtRisk != nil {
				money = f.MoneyAtRisk.Text
			}
			if f.Deadline != nil {
				deadline = f.Deadline.Format(time.RFC3339)
			}
			return p.rows([]string{"", f.ID}, [][]string{
				{"check", f.Check},
				{"subject", f.Subject},
				{"account", f.Account},
				{"money at risk", money},
				{"severity", f.Severity},
				{"ours", f.Ours},
				{"Theirs", f.Theirs},
				{"difference", f.Difference + " " + f.Unit},
				{"cause", f.Cause},
				{"explanation", f.Explanation},
				{"deadline", deadline},
				{"state", f.State},
				{"repair", f.Repair},
				{"first seen", f.FirstSeen.Format(time.RFC3339)},
				{"last seen", f.LastSeen.Format(time.RFC3339)},
				{"evidence", string(f.Evidence)},
			}, raw, f)
		},
	}
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
	return c
}

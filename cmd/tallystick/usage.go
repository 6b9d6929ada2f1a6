package main

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"tallystick/api"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func (p *program) usageCommand() *cobra.Command {
	c := &cobra.Command{Use: "usage", Short: "Record usage and show totals", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(p.usageRecordCommand(), p.usageTotalsCommand(), p.usageArchiveCommand())
	return c
}

func (p *program) usageRecordCommand() *cobra.Command {
	var q api.UsageRequest
	var at string
	c := &cobra.Command{
		Use:   "record ACCOUNT METER QUANTITY",
		Short: "Record one usage, once per --id",
		Args:  cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			q.Account, q.Meter, q.Quantity = args[0], args[1], api.Decimal(args[2])
			if q.OccurredAt, err = timeFlag("--at", at); err != nil {
				return err
			}
			if q.ID == "" {
				q.ID = "cli-" + uuid.NewString()
			}
			var u api.Usage
			raw, err := server.call(c.Context(), http.MethodPost, "/v1/usage", q, &u)
			if err != nil {
				return err
			}
			return p.rows([]string{"usage", "account", "meter", "quantity", "credits", "available"},
				[][]string{{u.ID, u.Account, u.Meter, string(u.Quantity), string(u.Credits), string(u.Balance.Available)}}, raw, u)
		},
	}
	c.Flags().StringVar(&q.ID, "id", "", "id of the usage; the same id is charged once (default: a new one)")
	c.Flags().StringVar(&at, "at", "", "when it happened (default: now)")
	c.Flags().StringToStringVar(&q.Dimensions, "dimension", nil, "dimensions such as model=small")
	return c
}

func (p *program) usageTotalsCommand() *cobra.Command {
	var from, to, meter, group string
	c := &cobra.Command{
		Use:     "totals ACCOUNT",
		Aliases: []string{"list"},
		Short:   "Show what an account has used, the last 30 days by default",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			query := url.Values{}
			for name, value := range map[string]string{"from": from, "to": to, "meter": meter, "group_by": group} {
				if value != "" {
					query.Set(name, value)
				}
			}
			var answer api.UsageTotals
			raw, err := server.call(c.Context(), http.MethodGet, "/v1/accounts/"+url.PathEscape(args[0])+"/usage?"+query.Encode(), nil, &answer)
			if err != nil {
				return err
			}
			var lines [][]string
			for _, t := range answer.Data {
				at, dimensions := "", ""
				if t.From != nil {
					at = t.From.Format(time.RFC3339)
				}
				for name, value := range t.Group {
					dimensions += name + "=" + value + " "
				}
				lines = append(lines, []string{at, t.Meter, dimensions, string(t.Quantity), string(t.Credits), itoa(t.Count)})
			}
			return p.rows([]string{"from", "meter", "dimensions", "quantity", "credits", "usages"}, lines, raw, answer)
		},
	}
	f := c.Flags()
	f.StringVar(&from, "from", "", "begin, such as 2026-01-31T00:00:00Z")
	f.StringVar(&to, "to", "", "end")
	f.StringVar(&meter, "meter", "", "only this meter")
	f.StringVar(&group, "group-by", "", "hour, day, meter or names of dimensions, separated by commas")
	return c
}

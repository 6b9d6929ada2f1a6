package main

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"tallystick/api"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func (p *program) usageCommand() *cobra.Command {
	c := &cobra.Command{Use: "usage", Short: "Record usage, show it and take it back", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(p.usageRecordCommand(), p.usageTotalsCommand(), p.usageShowCommand(), p.usageVoidCommand(), p.usageImportCommand(), p.usageArchiveCommand())
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

func (p *program) usageShowCommand() *cobra.Command {
	var account string
	c := &cobra.Command{
		Use:   "show ID --account ACCOUNT",
		Short: "Show one usage: its price, the grants that it came out of, whether it was voided",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var u api.UsageDetail
			path := "/v1/usage/" + url.PathEscape(args[0]) + "?account=" + url.QueryEscape(account)
			raw, err := server.call(c.Context(), http.MethodGet, path, nil, &u)
			if err != nil {
				return err
			}
			grants := make([]string, len(u.Grants))
			for i, g := range u.Grants {
				grants[i] = g.ID + "=" + string(g.Credits)
			}
			voided, reason := "", ""
			if u.Void != nil {
				voided, reason = u.Void.VoidedAt.Format("2006-01-02 15:04:05 UTC"), u.Void.Reason
			}
			return p.rows([]string{"usage", "account", "meter", "quantity", "rate", "version", "credits", "grants", "voided", "reason"}, [][]string{{
				u.ID, u.Account, u.Meter, string(u.Quantity), string(u.CreditsPerUnit), strconv.Itoa(u.RateVersion), string(u.Credits),
				strings.Join(grants, " "), voided, reason,
			}}, raw, u)
		},
	}
	c.Flags().StringVar(&account, "account", "", "whose usage it is")
	return c
}

func (p *program) usageVoidCommand() *cobra.Command {
	var q api.VoidRequest
	c := &cobra.Command{
		Use:   "void ID --account ACCOUNT --reason REASON",
		Short: "Take usage back that should not have been charged; doing it again changes nothing",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var v api.UsageVoid
			raw, err := server.call(c.Context(), http.MethodPost, "/v1/usage/"+url.PathEscape(args[0])+"/void", q, &v)
			if err != nil {
				return err
			}
			return p.rows([]string{"usage", "account", "meter", "credits", "returned", "expired", "available", "stripe"},
				[][]string{{v.Usage, v.Account, v.Meter, string(v.Credits), string(v.Returned), string(v.Expired), string(v.Balance.Available), v.Stripe}}, raw, v)
		},
	}
	c.Flags().StringVar(&q.Account, "account", "", "whose usage it is")
	c.Flags().StringVar(&q.Reason, "reason", "", "why, for the statement")
	return c
}

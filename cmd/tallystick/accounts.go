package main

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/web"
)

var accountHeader = []string{"account", "name", "available", "held", "debt", "version", "stripe customers"}

func accountLine(a api.Account) []string {
	return []string{
		a.Account, a.Name, string(a.Balance.Available), string(a.Balance.Held), string(a.Balance.Debt), itoa(a.Balance.Version), strings.Join(a.StripeCustomers, " "),
	}
}

func (p *program) accountsCommand() *cobra.Command {
	c := &cobra.Command{Use: "accounts", Short: "Make, change and show accounts", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(p.accountsListCommand(), p.accountsShowCommand(), p.accountsPutCommand())
	c.AddCommand(p.accountsTokenCommand(), p.accountsTokensCommand(), p.accountsRevokeTokenCommand())
	return c
}

func (p *program) accountsListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all accounts",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			all := []api.Account{}
			var lines [][]string
			for path := "/v1/accounts?limit=500"; path != ""; {
				var page web.List[api.Account]
				if _, err := server.call(c.Context(), http.MethodGet, path, nil, &page); err != nil {
					return err
				}
				all = append(all, page.Data...)
				path = ""
				if page.NextCursor != nil {
					path = "/v1/accounts?limit=500&cursor=" + url.QueryEscape(*page.NextCursor)
				}
			}
			for _, a := range all {
				lines = append(lines, accountLine(a))
			}
			return p.rows(accountHeader, lines, nil, all)
		},
	}
}

func (p *program) accountsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show ACCOUNT",
		Aliases: []string{"get"},
		Short:   "Show one account with its balance",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var a api.Account
			raw, err := server.call(c.Context(), http.MethodGet, "/v1/accounts/"+url.PathEscape(args[0]), nil, &a)
			if err != nil {
				return err
			}
			return p.rows(accountHeader, [][]string{accountLine(a)}, raw, a)
		},
	}
}

func (p *program) accountsPutCommand() *cobra.Command {
	var q api.AccountRequest
	var overdraft, low, doubt string
	var doubtAfter time.Duration
	c := &cobra.Command{
		Use:   "put ACCOUNT",
		Short: "Make an account, or replace what is said about it",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			q.Overdraft = api.Decimal(overdraft)
			if low != "" {
				d := api.Decimal(low)
				q.LowBalance = &d
			}
			if doubt != "" || doubtAfter != 0 {
				q.InDoubtAfter = &api.InDoubtAfter{Action: doubt, Seconds: int(doubtAfter / time.Second)}
			}
			var a api.Account
			raw, err := server.call(c.Context(), http.MethodPut, "/v1/accounts/"+url.PathEscape(args[0]), q, &a)
			if err != nil {
				return err
			}
			return p.rows(accountHeader, [][]string{accountLine(a)}, raw, a)
		},
	}
	f := c.Flags()
	f.StringVar(&doubt, "in-doubt", "", "what becomes of a reservation that stays in doubt: release or capture (default: nothing)")
	f.DurationVar(&doubtAfter, "in-doubt-after", 0, "after which time, such as 1h")
	f.StringVar(&q.Name, "name", "", "name for people")
	f.StringSliceVar(&q.StripeCustomers, "customer", nil, "Stripe customers, separated by commas; usage goes to the first")
	f.StringVar(&overdraft, "overdraft", "", "credits that may be spent beyond the balance")
	f.StringVar(&low, "low-balance", "", "below it the account counts as low")
	return c
}

func (p *program) grantsCommand() *cobra.Command {
	c := &cobra.Command{Use: "grants", Short: "Give credits and show open grants", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(p.grantsCreateCommand(), p.grantsListCommand())
	return c
}

func (p *program) grantsCreateCommand() *cobra.Command {
	var q api.GrantRequest
	var expires string
	c := &cobra.Command{
		Use:   "create ACCOUNT CREDITS",
		Short: "Give credits to an account, once per --id",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			q.Credits = api.Decimal(args[1])
			if q.ExpiresAt, err = timeFlag("--expires", expires); err != nil {
				return err
			}
			if q.ID == "" {
				q.ID = "cli-" + uuid.NewString()
			}
			var g api.Grant
			raw, err := server.call(c.Context(), http.MethodPost, "/v1/accounts/"+url.PathEscape(args[0])+"/grants", q, &g)
			if err != nil {
				return err
			}
			return p.rows([]string{"grant", "account", "credits", "available"}, [][]string{{g.ID, g.Account, string(g.Credits), string(g.Balance.Available)}}, raw, g)
		},
	}
	f := c.Flags()
	f.StringVar(&q.ID, "id", "", "id of the grant; the same id is granted once (default: a new one)")
	f.StringVar(&q.Reason, "reason", "", "why")
	f.StringVar(&expires, "expires", "", "when the rest is lost, such as 2027-01-01T00:00:00Z")
	f.IntVar(&q.Priority, "priority", 0, "lower is spent first")
	return c
}

func (p *program) grantsListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list ACCOUNT",
		Short: "List the open grants of an account in the order of spending",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var a api.Account
			if _, err := server.call(c.Context(), http.MethodGet, "/v1/accounts/"+url.PathEscape(args[0]), nil, &a); err != nil {
				return err
			}
			var lines [][]string
			for _, g := range a.Grants {
				expires := "never"
				if g.ExpiresAt != nil {
					expires = g.ExpiresAt.Format("2006-01-02 15:04 UTC")
				}
				lines = append(lines, []string{g.ID, g.Kind, string(g.Credits), string(g.Remaining), itoa(int64(g.Priority)), expires, g.Reason})
			}
			return p.rows([]string{"grant", "kind", "credits", "remaining", "priority", "expires", "reason"}, lines, nil, a.Grants)
		},
	}
}

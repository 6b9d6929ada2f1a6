package main

import (
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/web"
)

var tokenHeader = []string{"token", "account", "name", "created", "expires", "revoked", "secret"}

func tokenLine(t api.Token) []string {
	revoked := ""
	if t.RevokedAt != nil {
		revoked = t.RevokedAt.Format(time.RFC3339)
	}
	return []string{t.ID, t.Account, t.Name, t.CreatedAt.Format(time.RFC3339), t.ExpiresAt.Format(time.RFC3339), revoked, t.Secret}
}

func tokensPath(account string) string { return "/v1/accounts/" + url.PathEscape(account) + "/tokens" }

func (p *program) accountsTokenCommand() *cobra.Command {
	var q api.TokenRequest
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "token ACCOUNT",
		Short: "Make a token with which the account's owner reads it, and nothing else; it is shown this once",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if ttl%time.Second != 0 {
				return usageError("--ttl must be in whole seconds, such as 1h or 90s")
			}
			server, err := p.client()
			if err != nil {
				return err
			}
			q.TTLSeconds = int(ttl / time.Second)
			var token api.Token
			raw, err := server.call(c.Context(), http.MethodPost, tokensPath(args[0]), q, &token)
			if err != nil {
				return err
			}
			return p.rows(tokenHeader, [][]string{tokenLine(token)}, raw, token)
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token works, at most 24h")
	c.Flags().StringVar(&q.Name, "name", "", "what it is for")
	return c
}

func (p *program) accountsTokensCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tokens ACCOUNT",
		Short: "List the tokens of an account, without secrets",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			all := []api.Token{}
			var lines [][]string
			for path := tokensPath(args[0]) + "?limit=500"; path != ""; {
				var page web.List[api.Token]
				if _, err := server.call(c.Context(), http.MethodGet, path, nil, &page); err != nil {
					return err
				}
				all = append(all, page.Data...)
				path = ""
				if page.NextCursor != nil {
					path = tokensPath(args[0]) + "?limit=500&cursor=" + url.QueryEscape(*page.NextCursor)
				}
			}
			for _, t := range all {
				lines = append(lines, tokenLine(t))
			}
			return p.rows(tokenHeader, lines, nil, all)
		},
	}
}

func (p *program) accountsRevokeTokenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke-token ACCOUNT TOKEN",
		Short: "End a token of an account",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			server, err := p.client()
			if err != nil {
				return err
			}
			var token api.Token
			raw, err := server.call(c.Context(), http.MethodDelete, tokensPath(args[0])+"/"+url.PathEscape(args[1]), nil, &token)
			if err != nil {
				return err
			}
			return p.rows(tokenHeader, [][]string{tokenLine(token)}, raw, token)
		},
	}
}

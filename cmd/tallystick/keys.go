package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/clock"
	"tallystick/internal/pg"
	"tallystick/internal/web"
	"tallystick/meter"
)

var keyHeader = []string{"key", "name", "scopes", "created", "expires", "revoked", "secret"}

func keyLine(k api.Key) []string {
	text := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return t.Format(time.RFC3339)
	}
	return []string{k.ID, k.Name, strings.Join(k.Scopes, " "), k.CreatedAt.Format(time.RFC3339), text(k.ExpiresAt), text(k.RevokedAt), k.Secret}
}

func (p *program) keysCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "keys", Short: "Make, list and revoke API keys", Args: cobra.NoArgs,
		Long: "Make, list and revoke API keys, through a running server; where none is known, directly in DATABASE_URL, which is how the first key of an installation is made.",
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(p.keysCreateCommand(), p.keysListCommand(), p.keysRevokeCommand())
	return c
}

// direct runs do on the database where no server is known.
func (p *program) direct(ctx context.Context, do func(m *meter.Meter) error) error {
	dsn, err := p.database()
	if err != nil {
		return err
	}
	db, err := pg.Open(ctx, dsn, pg.Options{ConnectionsMax: 4})
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	m := meter.New(meter.Config{DB: db, Now: clock.Now, Logger: slog.New(slog.DiscardHandler), Lanes: 1})
	defer m.Close()
	return do(m)
}

func (p *program) keysCreateCommand() *cobra.Command {
	var q api.KeyRequest
	var expires string
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a key; its secret is shown this once",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			q.Name = args[0]
			var err error
			if q.ExpiresAt, err = timeFlag("--expires", expires); err != nil {
				return err
			}
			var key api.Key
			server, err := p.client()
			if errors.Is(err, errNoServer) {
				err = p.direct(c.Context(), func(m *meter.Meter) (err error) {
					key, err = m.CreateKey(c.Context(), q)
					return err
				})
			} else if err == nil {
				_, err = server.call(c.Context(), http.MethodPost, "/v1/keys", q, &key)
			}
			if err != nil {
				return err
			}
			return p.rows(keyHeader, [][]string{keyLine(key)}, nil, key)
		},
	}
	c.Flags().StringSliceVar(&q.Scopes, "scope", []string{"usage", "read"}, "usage, read, admin")
	c.Flags().StringVar(&expires, "expires", "", "when the key ends, such as 2027-01-01T00:00:00Z")
	return c
}

func (p *program) keysListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List keys, without secrets",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var keys []api.Key
			server, err := p.client()
			if errors.Is(err, errNoServer) {
				err = p.direct(c.Context(), func(m *meter.Meter) (err error) {
					keys, err = m.ListKeys(c.Context(), "", 500)
					return err
				})
			} else if err == nil {
				var page web.List[api.Key]
				_, err = server.call(c.Context(), http.MethodGet, "/v1/keys?limit=500", nil, &page)
				keys = page.Data
			}
			if err != nil {
				return err
			}
			var lines [][]string
			for _, k := range keys {
				lines = append(lines, keyLine(k))
			}
			return p.rows(keyHeader, lines, nil, keys)
		},
	}
}

func (p *program) keysRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke KEY",
		Short: "End a key",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var key api.Key
			server, err := p.client()
			if errors.Is(err, errNoServer) {
				err = p.direct(c.Context(), func(m *meter.Meter) (err error) {
					key, err = m.RevokeKey(c.Context(), args[0])
					return err
				})
			} else if err == nil {
				_, err = server.call(c.Context(), http.MethodDelete, "/v1/keys/"+url.PathEscape(args[0]), nil, &key)
			}
			if err != nil {
				return err
			}
			return p.rows(keyHeader, [][]string{keyLine(key)}, nil, key)
		},
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tallystick/api"
	"tallystick/internal/clock"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/web"
	"tallystick/meter"
)

var keyHeader = []string{"key", "name", "scopes", "rate", "created", "expires", "revoked", "rotated", "old secret until", "secret"}

func keyLine(k api.Key) []string {
	text := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return t.Format(time.RFC3339)
	}
	limit := ""
	if k.RateLimit != nil {
		limit = fmt.Sprintf("%d/s, %d at once", k.RateLimit.PerSecond, k.RateLimit.Burst)
	}
	return []string{
		k.ID, k.Name, strings.Join(k.Scopes, " "), limit, k.CreatedAt.Format(time.RFC3339), text(k.ExpiresAt), text(k.RevokedAt), text(k.RotatedAt),
		text(k.PreviousExpiresAt), k.Secret,
	}
}

func (p *program) keysCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "keys", Short: "Make, list, rotate, limit and revoke API keys", Args: cobra.NoArgs,
		Long: "Make, list, rotate, limit and revoke API keys, through a running server; where none is known, directly in DATABASE_URL, which is how the first key of an installation is made.",
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(p.keysCreateCommand(), p.keysListCommand(), p.keysRotateCommand(), p.keysLimitCommand(), p.keysRevokeCommand())
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
	err = do(m)
	if refusals := []fault.Kind{fault.KindUnprocessed, fault.KindNotFound, fault.KindConflict}; slices.Contains(refusals, fault.KindOf(err)) {
		return &exitError{code: exitUsage, err: err} // as a server's refusal ends
	}
	return err
}

func (p *program) keysCreateCommand() *cobra.Command {
	var q api.KeyRequest
	var expires string
	var perSecond, burst int
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
			if c.Flags().Changed("rate") || c.Flags().Changed("burst") {
				q.RateLimit = rateLimit(perSecond, burst)
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
	rateFlags(c, &perSecond, &burst)
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

// changeKey runs a change of a key through the server, or directly where none is known.
func (p *program) changeKey(ctx context.Context, method, path string, body any, directly func(m *meter.Meter) (api.Key, error)) error {
	var key api.Key
	server, err := p.client()
	if errors.Is(err, errNoServer) {
		err = p.direct(ctx, func(m *meter.Meter) (err error) {
			key, err = directly(m)
			return err
		})
	} else if err == nil {
		_, err = server.call(ctx, method, path, body, &key)
	}
	if err != nil {
		return err
	}
	return p.rows(keyHeader, [][]string{keyLine(key)}, nil, key)
}

func (p *program) keysRotateCommand() *cobra.Command {
	var overlap time.Duration
	c := &cobra.Command{
		Use:   "rotate KEY",
		Short: "Give a key a new secret, shown this once; the old one works for the overlap",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if overlap%time.Second != 0 {
				return usageError("--overlap must be in whole seconds, such as 24h or 90s")
			}
			seconds := int(overlap / time.Second)
			q := api.RotateRequest{OverlapSeconds: &seconds}
			return p.changeKey(c.Context(), http.MethodPost, "/v1/keys/"+url.PathEscape(args[0])+"/rotate", q, func(m *meter.Meter) (api.Key, error) {
				return m.RotateKey(c.Context(), args[0], q)
			})
		},
	}
	c.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "how long the old secret works, at most 168h; 0 ends every older secret at once")
	return c
}

func (p *program) keysLimitCommand() *cobra.Command {
	var perSecond, burst int
	var none bool
	c := &cobra.Command{
		Use:   "limit KEY",
		Short: "Limit the requests of a key, or lift its limit with --none",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			path := "/v1/keys/" + url.PathEscape(args[0]) + "/rate_limit"
			limited := c.Flags().Changed("rate") || c.Flags().Changed("burst")
			if none == limited {
				return usageError("say either --rate (and --burst) or --none")
			}
			if none {
				return p.changeKey(c.Context(), http.MethodDelete, path, nil, func(m *meter.Meter) (api.Key, error) { return m.LimitKey(c.Context(), args[0], nil) })
			}
			q := rateLimit(perSecond, burst)
			return p.changeKey(c.Context(), http.MethodPut, path, q, func(m *meter.Meter) (api.Key, error) { return m.LimitKey(c.Context(), args[0], q) })
		},
	}
	rateFlags(c, &perSecond, &burst)
	c.Flags().BoolVar(&none, "none", false, "no limit any more")
	return c
}

func rateFlags(c *cobra.Command, perSecond, burst *int) {
	c.Flags().IntVar(perSecond, "rate", 0, "requests per second and process (default: no limit)")
	c.Flags().IntVar(burst, "burst", 0, "requests at once after a pause (default: as many as --rate)")
}

// rateLimit is what the flags say; what is out of bounds is for the server to say.
func rateLimit(perSecond, burst int) *api.RateLimit {
	if burst == 0 {
		burst = perSecond
	}
	return &api.RateLimit{PerSecond: perSecond, Burst: burst}
}

func (p *program) keysRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke KEY",
		Short: "End a key",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return p.changeKey(c.Context(), http.MethodDelete, "/v1/keys/"+url.PathEscape(args[0]), nil, func(m *meter.Meter) (api.Key, error) {
				return m.RevokeKey(c.Context(), args[0])
			})
		},
	}
}

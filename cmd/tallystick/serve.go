package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"tallystick/internal/app"
	"tallystick/internal/clock"
	"tallystick/internal/config"
	"tallystick/internal/pg"
)

func (p *program) serveCommand() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run in production: nothing embedded, refuses to start on a bad configuration",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, mistakes := p.load(map[string]string{"TALLYSTICK_LISTEN": listen})
			if err := config.Err(append(mistakes, conf.Serve()...)); err != nil {
				return err
			}
			return p.serve(c.Context(), conf)
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "address of the HTTP server (default 127.0.0.1:8321)")
	return c
}

func (p *program) serve(ctx context.Context, c config.Config) error {
	logger := p.logger(c.LogLevel)
	a, err := app.New(ctx, app.Options{Config: c, Now: clock.Now, Logger: logger, Schedule: true})
	if errors.Is(err, app.ErrSchema) {
		return usageError("%w", err)
	}
	if err != nil {
		return err
	}
	var l net.ListenConfig
	listener, err := l.Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return errors.Join(usageError("listen on %s: %w", c.Listen, err), a.Close())
	}
	logger.Info("serving", "address", listener.Addr().String(), "version", version())
	return a.Run(ctx, listener)
}

func (p *program) migrateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database to this binary's schema",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dsn, err := p.database()
			if err != nil {
				return err
			}
			applied, err := pg.Migrate(c.Context(), dsn)
			if err != nil {
				return fmt.Errorf("%w; the role needs to own the database and to be allowed to create roles", err)
			}
			for _, m := range applied {
				p.print("applied %s", m.Name)
			}
			if len(applied) == 0 {
				p.print("nothing to do: the schema is up to date")
			}
			return nil
		},
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"tallystick/internal/config"
	"tallystick/stripesim"
)

func (p *program) simCommand() *cobra.Command {
	var listen string
	var seed uint64
	c := &cobra.Command{
		Use:   "sim",
		Short: "Run the Stripe simulator alone; with --data it keeps its state",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, mistakes := p.load(nil)
			if err := config.Err(mistakes); err != nil {
				return err
			}
			sim, err := stripesim.NewServer(stripesim.Options{Dir: p.data, Seed: seed, Logger: p.logger(conf.LogLevel)})
			if err != nil {
				return err
			}
			return errors.Join(p.serveSim(c.Context(), sim, listen), sim.Close())
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:12111", "address to listen on")
	c.Flags().Uint64Var(&seed, "seed", 0, "seed of ids and of faults with a probability")
	return c
}

func (p *program) serveSim(ctx context.Context, sim *stripesim.Server, address string) error {
	var l net.ListenConfig
	listener, err := l.Listen(ctx, "tcp", address)
	if err != nil {
		return usageError("listen on %s: %w", address, err)
	}
	server := &http.Server{Handler: sim, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	p.print("the Stripe simulator listens on http://%s; use any key that begins with sk_test_", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

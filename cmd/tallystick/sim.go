package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tallystick/internal/config"
	"tallystick/stripesim"
)

// simOptions are the flags of the simulator.
type simOptions struct {
	listen   string
	seed     uint64
	switches string
	faults   string
	webhook  string
}

func (p *program) simCommand() *cobra.Command {
	var o simOptions
	c := &cobra.Command{
		Use:   "sim",
		Short: "Run the Stripe simulator alone; with --data it keeps its state",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf, mistakes := p.load(nil)
			if err := config.Err(mistakes); err != nil {
				return err
			}
			sim, err := stripesim.NewServer(stripesim.Options{Dir: p.data, Seed: o.seed, Logger: p.logger(conf.LogLevel)})
			if err != nil {
				return err
			}
			if err := p.setSim(sim, o); err != nil {
				return errors.Join(err, sim.Close())
			}
			return errors.Join(p.serveSim(c.Context(), sim, o.listen), sim.Close())
		},
	}
	c.Flags().StringVar(&o.listen, "listen", "127.0.0.1:12111", "address to listen on")
	c.Flags().Uint64Var(&o.seed, "seed", 0, "seed of ids and of rules with a probability")
	c.Flags().StringVar(&o.switches, "switches", "", "what Stripe leaves open, as JSON such as {\"meter_lag_seconds\": 60}")
	c.Flags().StringVar(&o.faults, "faults", "", "file of fault rules, as JSON such as {\"rules\": [{\"fault\": \"drop_after\", \"probability\": 0.1}]}")
	c.Flags().StringVar(&o.webhook, "webhook", "", "URL that is sent all events; its secret is printed")
	return c
}

// setSim sets a simulator up as the flags say. What was kept from an earlier run
// stays where a flag says nothing.
func (p *program) setSim(sim *stripesim.Server, o simOptions) error {
	if o.switches != "" {
		switches := sim.State().Switches
		if err := strictJSON([]byte(o.switches), &switches); err != nil {
			return usageError("--switches: %w", err)
		}
		if err := sim.SetSwitches(switches); err != nil {
			return usageError("--switches: %w", err)
		}
	}
	if o.faults != "" {
		content, err := os.ReadFile(o.faults)
		if err != nil {
			return usageError("--faults: %w", err)
		}
		var q struct {
			Rules []*stripesim.Fault `json:"rules"`
		}
		if err := strictJSON(content, &q); err != nil {
			return usageError("--faults: %s: %w", o.faults, err)
		}
		sim.ClearFaults()
		if err := sim.AddFaults(q.Rules...); err != nil {
			return usageError("--faults: %s: %w", o.faults, err)
		}
	}
	if o.webhook != "" {
		secret, err := sim.EnsureEndpoint(o.webhook)
		if err != nil {
			return usageError("--webhook: %w", err)
		}
		p.print("events go to %s, signed with the secret %s", o.webhook, secret)
	}
	return nil
}

// strictJSON refuses members that dst does not know: a misspelt one would do nothing.
func strictJSON(content []byte, dst any) error {
	d := json.NewDecoder(bytes.NewReader(content))
	d.DisallowUnknownFields()
	return d.Decode(dst)
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

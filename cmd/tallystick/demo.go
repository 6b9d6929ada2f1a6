package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"tallystick/internal/demo"
)

func (p *program) demoCommand() *cobra.Command {
	var listen string
	var exit bool
	var seed uint64
	c := &cobra.Command{
		Use:   "demo",
		Short: "Play a day in the life: purchases, usage, things that go wrong, what finds them and what mends them",
		Long: "Play a day in the life on embedded defaults: purchases, usage with retries and races, a timeout, a missed webhook, a lost delivery,\n" +
			"a refund; compare both halves, show the findings with their worth and the mail, repair what is safe, compare again.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.demo(c.Context(), listen, seed, exit) },
	}
	c.Flags().StringVar(&listen, "listen", "", "address of the HTTP server (default: any free port of loopback)")
	c.Flags().BoolVar(&exit, "exit", false, "end afterwards; exit 1 unless exactly the planted defects were found")
	c.Flags().Uint64Var(&seed, "seed", 1, "seed of the story")
	return c
}

func (p *program) demo(ctx context.Context, listen string, seed uint64, exit bool) (err error) {
	if p.data == "" {
		// A story needs an empty stage: each run has its own, unless one is named.
		stage, err := os.MkdirTemp("", "tallystick-demo-")
		if err != nil {
			return err
		}
		if err := os.Chmod(stage, 0o755); err != nil { //nolint:gosec // Postgres's own user must pass
			return err
		}
		p.data = filepath.Join(stage, "data")
		defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	}
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	quiet := p.quiet
	p.quiet = true // the log and the parts' own notes would drown the story
	u, err := p.startUp(ctx, listen, false)
	p.quiet = quiet
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.Close(context.WithoutCancel(ctx))) }()
	tell := p.print
	if p.output == "json" {
		tell = func(string, ...any) {}
	}
	result, err := demo.Play(ctx, u, demo.Options{Seed: seed, Tell: tell})
	if err != nil {
		return err
	}
	if p.output == "json" {
		if err := json.NewEncoder(p.stdout).Encode(result); err != nil {
			return err
		}
	}
	if !exit {
		p.greet(u)
		p.print("look around; Ctrl-C ends it")
		err = u.Wait(ctx)
	}
	if !result.OK {
		return errors.Join(err, &exitError{code: exitFindings, err: errors.New("what was found is not what was planted")})
	}
	return err
}

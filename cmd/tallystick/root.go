package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"tallystick/internal/app"
	"tallystick/internal/config"
	"tallystick/internal/fault"
)

// Exit codes.
const (
	exitFine        = 0
	exitFindings    = 1 // findings, broken invariants, or a failure of our own
	exitUsage       = 2 // usage or configuration
	exitUnreachable = 3
)

// exitError ends the program with a code. A nil err was reported already.
type exitError struct {
	code int
	err  error
}

// Error gives the text of the cause.
func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

// Unwrap gives the cause.
func (e *exitError) Unwrap() error { return e.err }

func usageError(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// program is what all commands share.
type program struct {
	environ []string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer

	data   string
	file   string
	output string
	quiet  bool
	url    string
	apiKey string
}

// run is the whole program, for main and for tests.
func run(ctx context.Context, args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{environ: environ, stdin: stdin, stdout: stdout, stderr: stderr}
	root := p.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitFine
	}
	if text := err.Error(); text != "" {
		_, _ = fmt.Fprintln(stderr, "tallystick: "+text)
	}
	return codeOf(err)
}

func codeOf(err error) int {
	var e *exitError
	var mistakes *config.MistakeError
	var network net.Error
	var refused *url.Error
	switch {
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &mistakes):
		return exitUsage
	case errors.Is(err, fault.ErrUnavailable), errors.As(err, &network), errors.As(err, &refused):
		return exitUnreachable
	}
	return exitFindings
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "tallystick",
		Short:         "Meter usage against prepaid credits, and prove that it matches Stripe",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError("%w; see: %s --help", err, c.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVar(&p.data, "data", p.env("TALLYSTICK_DATA"), "directory of what up and demo embed (default: the user's state directory)")
	flags.StringVar(&p.file, "config", "", "file of NAME=value settings, weaker than the environment")
	flags.StringVar(&p.output, "output", "table", "table, json or csv")
	flags.BoolVarP(&p.quiet, "quiet", "q", false, "print results only")
	flags.StringVar(&p.url, "url", p.env("TALLYSTICK_URL"), "address of a running server (default: the one that up has started)")
	flags.StringVar(&p.apiKey, "api-key", p.env("TALLYSTICK_API_KEY"), "API key for --url")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if p.output != "table" && p.output != "json" && p.output != "csv" {
			return usageError("--output must be table, json or csv, not %q", p.output)
		}
		return nil
	}
	root.AddCommand(
		p.upCommand(), p.demoCommand(), p.serveCommand(), p.simCommand(), p.migrateCommand(), p.verifyCommand(), p.reconcileCommand(),
		p.findingsCommand(), p.eventsCommand(), p.webhookCommand(), p.accountsCommand(), p.grantsCommand(), p.usageCommand(), p.reservationsCommand(), p.keysCommand(), p.benchCommand(), p.configCommand(), p.versionCommand(),
	)
	wrapArgs(root)
	return root
}

// wrapArgs makes every complaint about arguments a usage error.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError("%w; see: %s --help", err, c.CommandPath())
			}
			return nil
		}
	}
	for _, child := range c.Commands() {
		wrapArgs(child)
	}
}

func (p *program) env(name string) string {
	for _, entry := range p.environ {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

// note prints progress for people, on stderr.
func (p *program) note(format string, args ...any) {
	if !p.quiet {
		_, _ = fmt.Fprintf(p.stderr, format+"\n", args...)
	}
}

// print writes a line of the result.
func (p *program) print(format string, args ...any) {
	_, _ = fmt.Fprintf(p.stdout, format+"\n", args...)
}

// load reads the configuration; flags go by the names of the environment.
func (p *program) load(flags map[string]string) (config.Config, []string) {
	return config.Load(config.Sources{Flags: flags, Environ: p.environ, File: p.file})
}

// logger writes JSON lines at the configured level to stderr.
func (p *program) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(p.stderr, &slog.HandlerOptions{Level: level}))
}

// dataDir is where embedded things live: named, else the state directory of the
// user, else of the machine when we are root (Postgres, which does not run as
// root, could not enter root's home).
func (p *program) dataDir() (string, error) {
	if p.data != "" {
		return p.data, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/tallystick", nil
	}
	if state := p.env("XDG_STATE_HOME"); state != "" {
		return filepath.Join(state, "tallystick"), nil
	}
	home := p.env("HOME")
	if home == "" {
		return "", usageError("there is no HOME; name a directory with --data")
	}
	return filepath.Join(home, ".local", "state", "tallystick"), nil
}

// info is what a running up has written, if there is one.
func (p *program) info() (app.Info, error) {
	dir, err := p.dataDir()
	if err != nil {
		return app.Info{}, err
	}
	return app.ReadInfo(dir)
}

// database is the address of the database: configured, else that of up.
func (p *program) database() (string, error) {
	c, mistakes := p.load(nil)
	if err := config.Err(mistakes); err != nil {
		return "", err
	}
	if c.DatabaseURL != "" {
		return c.DatabaseURL.Reveal(), nil
	}
	i, err := p.info()
	if err != nil || i.DatabaseURL == "" {
		return "", usageError("no database is known: set DATABASE_URL, or name the --data directory of a running `tallystick up`")
	}
	return i.DatabaseURL, nil
}

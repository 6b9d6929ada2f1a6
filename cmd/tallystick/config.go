package main

import (
	"runtime/debug"

	"github.com/spf13/cobra"

	"tallystick/internal/config"
)

// stamp is set by the linker to the version that was built.
var stamp string

// version is what was built, or what the Go toolchain knows of it.
func version() string {
	if stamp != "" {
		return stamp
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if p.output == "json" {
				return p.json(nil, map[string]string{"version": version()})
			}
			p.print("tallystick %s", version())
			return nil
		},
	}
}

func (p *program) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check and show the configuration", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(&cobra.Command{
		Use:   "check",
		Short: "Report every mistake that would keep serve from starting; exit 2 when there is one",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conf, mistakes := p.load(nil)
			if err := config.Err(append(mistakes, conf.Serve()...)); err != nil {
				return err
			}
			p.print("the configuration is complete")
			return nil
		},
	}, &cobra.Command{
		Use:   "show",
		Short: "Show every setting, its value and what it means; secrets are not shown",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conf, mistakes := p.load(nil)
			var lines [][]string
			values := conf.Values()
			shown := map[string]string{}
			for i, s := range config.Reference() {
				lines = append(lines, []string{s.Name, values[i], s.Default, s.Doc})
				shown[s.Name] = values[i]
			}
			if err := p.rows([]string{"setting", "value", "default", "meaning"}, lines, nil, shown); err != nil {
				return err
			}
			return config.Err(mistakes)
		},
	})
	return c
}

package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tallystick/internal/pg"
	"tallystick/ledger"
)

func (p *program) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Check every invariant of the database, read-only; exit 1 when one is broken",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dsn, err := p.database()
			if err != nil {
				return err
			}
			db, err := pg.Open(c.Context(), dsn, pg.Options{ConnectionsMax: 2, ApplicationName: "tallystick verify"})
			if err != nil {
				return err
			}
			defer func() { _ = db.Close() }()
			report, err := ledger.Verify(c.Context(), db)
			if err != nil {
				return err
			}
			var lines [][]string
			for _, check := range report.Checks {
				state := "ok"
				if check.Broken > 0 {
					state = "BROKEN " + strconv.FormatInt(check.Broken, 10)
				}
				lines = append(lines, []string{check.Name, state, check.Description, strings.Join(check.Examples, "\n")})
			}
			if err := p.rows([]string{"check", "state", "what must hold", "examples"}, lines, nil, report); err != nil {
				return err
			}
			if !report.OK {
				return &exitError{code: exitFindings}
			}
			return nil
		},
	}
}

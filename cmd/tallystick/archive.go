package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"tallystick/internal/clock"
	"tallystick/internal/pg"
	"tallystick/retention"
)

const usageArchiveLong = `Export every month before the named one, compare each file with the database, and replace the month's rows by hourly sums, which stay for good. The ids
of the usage stay refused. A month can be archived 40 days after its end. The command may be interrupted and run again; run twice, it finds nothing to do.

It talks to the database, not to a server, as the role that owns the tables. What is exported, and how it is read back: docs/retention.md.`

func (p *program) usageArchiveCommand() *cobra.Command {
	var before, out, format string
	var keep bool
	var forget []string
	c := &cobra.Command{
		Use:   "archive --before MONTH --out DIRECTORY",
		Short: "Export old usage to files and let its rows go; hourly sums stay",
		Long:  usageArchiveLong,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			month, err := retention.ParseBefore(before, clock.Now())
			if err != nil {
				return usageError("--before: %w", err)
			}
			if format != "ndjson.gz" {
				return usageError("--format must be ndjson.gz, not %q", format)
			}
			if out == "" {
				return usageError("name the directory of the files with --out")
			}
			conf, _ := p.load(nil)
			dsn, err := p.database()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(out, 0o700); err != nil {
				return usageError("%w", err)
			}
			db, err := pg.Open(c.Context(), dsn, pg.Options{ConnectionsMax: 2, ApplicationName: "tallystick archive", Owner: true})
			if err != nil {
				return errors.Join(err, closeDB(db))
			}
			a := &retention.Archiver{DB: db, Now: clock.Now, Logger: p.logger(conf.LogLevel), Dir: filepath.Clean(out), Keep: keep, Forget: forget}
			return errors.Join(p.archive(c, a, month), db.Close())
		},
	}
	f := c.Flags()
	f.StringVar(&before, "before", "", "archive the months before this one, such as 2026-05")
	f.StringVar(&out, "out", "", "directory of the files and of SHA256SUMS; made when it is missing")
	f.StringVar(&format, "format", "ndjson.gz", "of the files: one JSON object per usage and line, gzip")
	f.BoolVar(&keep, "keep", false, "export and compare only; change nothing in the database")
	f.StringSliceVar(&forget, "forget", nil, "dimensions that the hourly sums do not keep, such as request_id; the files have all")
	return c
}

func closeDB(db *pg.DB) error {
	if db == nil {
		return nil
	}
	return db.Close()
}

// archive runs the archiver and shows what became of each month, also of those
// before one that failed.
func (p *program) archive(c *cobra.Command, a *retention.Archiver, before time.Time) error {
	stop := func() {}
	if terminal(p.stderr) && !p.quiet {
		var show func(what string, done, total int64)
		show, stop = phaseBar(p.stderr)
		a.Progress = func(month, phase string, done, total int64) { show(month+" "+phase, done, total) }
	}
	archives, lines := []retention.Archive{}, [][]string{}
	err := a.Run(c.Context(), before, func(r retention.Archive) {
		archives = append(archives, r)
		lines = append(lines, []string{r.Month, r.State, itoa(r.Usages), r.Credits, itoa(r.Hours), r.File, r.SHA256})
	})
	stop()
	if err == nil || len(archives) > 0 {
		err = errors.Join(p.rows([]string{"month", "state", "usages", "credits", "hourly sums", "file", "sha256"}, lines, nil, archives), err)
	}
	return err
}

// terminal tells whether somebody looks at w.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// phaseBar draws one bar for each phase of long work; stop ends the line of the last.
func phaseBar(w io.Writer) (show func(name string, done, total int64), stop func()) {
	var drawn *progressbar.ProgressBar
	var what string
	stop = func() {
		if drawn != nil && !drawn.IsFinished() {
			_ = drawn.Exit() // a bar that cannot be drawn hurts nothing
		}
	}
	return func(name string, done, total int64) {
		if total == 0 {
			return
		}
		if name != what {
			stop()
			what = name
			drawn = progressbar.NewOptions64(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(name), progressbar.OptionShowCount(),
				progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionOnCompletion(func() { _, _ = io.WriteString(w, "\n") }))
		}
		_ = drawn.Set64(done)
	}, stop
}

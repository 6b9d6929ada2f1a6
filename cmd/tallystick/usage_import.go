package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tallystick/internal/importer"
)

func (p *program) usageImportCommand() *cobra.Command {
	o := importer.Options{Parallel: importer.ParallelDefault, Batch: importer.BatchDefault, Patience: importer.PatienceDefault}
	c := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Record a file of usage, one JSON object a line; goes on where it was interrupted",
		Long: `Record a file of usage. Each line is a JSON object as POST /v1/usage takes it, with an
id, or a CloudEvent with --cloudevents; blank lines are passed over, and a file whose
name ends in .gz is decompressed. Each line is recorded once however often the import is
interrupted and run again: FILE.tallystick-import notes how far it has come.

Ends with 0 when all lines are recorded, 1 when some are rejected or it was stopped, 2 when
it cannot go on as it was called, 3 when the server does not take usage for --patience.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if o.Parallel < 1 || o.Parallel > importer.ParallelMax {
				return usageError("--parallel must be 1 to %d", importer.ParallelMax)
			}
			if o.Batch < 1 || o.Batch > importer.BatchMax {
				return usageError("--batch must be 1 to %d", importer.BatchMax)
			}
			if o.Patience < time.Second {
				return usageError("--patience must be at least 1s")
			}
			server, err := p.client()
			if err != nil {
				return err
			}
			o.URL, o.Key, o.Path, o.Input = server.url, server.key, args[0], p.stdin
			bar := p.progress()
			o.Progress = bar.show
			o.Note = func(format string, args ...any) {
				bar.clear()
				p.note(format, args...)
			}
			s, err := importer.Run(c.Context(), o)
			bar.clear()
			return p.imported(o, s, err)
		},
	}
	f := c.Flags()
	f.BoolVar(&o.CloudEvents, "cloudevents", false, "lines are CloudEvents in their JSON format")
	f.IntVar(&o.Parallel, "parallel", o.Parallel, "requests under way at a time; 1 keeps the order of the file")
	f.IntVar(&o.Batch, "batch", o.Batch, "lines in a request, up to 1000")
	f.StringVar(&o.Rejects, "rejects", "", "file for the lines that are refused, with the reasons")
	f.BoolVar(&o.Restart, "restart", false, "begin again, whatever an earlier import has noted")
	f.DurationVar(&o.Patience, "patience", o.Patience, "how long to go on trying while the server takes no usage")
	return c
}

// imported prints what became of an import and makes the exit code of it.
func (p *program) imported(o importer.Options, s importer.Summary, err error) error {
	var use *importer.UseError
	again := "run the same command again to go on"
	if o.Path == "-" {
		again = "feed the same lines again to go on; those that are recorded are not charged twice"
	}
	switch {
	case errors.As(err, &use):
		return &exitError{code: exitUsage, err: err}
	case errors.Is(err, importer.ErrUnreachable):
		return &exitError{code: exitUnreachable, err: fmt.Errorf("%w; %d lines are done with; %s", err, s.Recorded+s.Replayed+s.Rejected, again)}
	case errors.Is(err, importer.ErrStopped):
		return &exitError{code: exitFindings, err: fmt.Errorf("%w: %d lines are done with; %s", err, s.Recorded+s.Replayed+s.Rejected, again)}
	case err != nil: // of a file: a full disk is nobody unreachable
		return &exitError{code: exitFindings, err: err}
	}
	if err := p.rows([]string{"recorded", "replayed", "rejected"}, [][]string{{itoa(s.Recorded), itoa(s.Replayed), itoa(s.Rejected)}}, nil, s); err != nil {
		return err
	}
	if s.Rejected == 0 {
		return nil
	}
	where := "import again with --rejects FILE to keep them with the reasons"
	if o.Rejects != "" {
		where = o.Rejects + " holds them with the reasons"
	}
	return &exitError{code: exitFindings, err: fmt.Errorf("%d lines are rejected; %s", s.Rejected, where)}
}

// importBar shows progress on a terminal; elsewhere nothing.
type importBar struct {
	to  io.Writer
	bar *progressbar.ProgressBar
}

func (p *program) progress() *importBar {
	file, ok := p.stderr.(*os.File)
	if !ok || p.quiet || !term.IsTerminal(int(file.Fd())) {
		return &importBar{}
	}
	return &importBar{to: file}
}

func (b *importBar) show(g importer.Progress) {
	if b.to == nil {
		return
	}
	if b.bar == nil {
		size := g.Size
		if size == 0 {
			size = -1 // unknown: it turns instead
		}
		b.bar = progressbar.NewOptions64(size, progressbar.OptionSetWriter(b.to), progressbar.OptionShowBytes(true), progressbar.OptionSetWidth(20),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	b.bar.Describe(fmt.Sprintf("%d recorded, %d replayed, %d rejected", g.Recorded, g.Replayed, g.Rejected))
	_ = b.bar.Set64(g.Bytes) // it only shows
}

func (b *importBar) clear() {
	if b.bar != nil {
		_ = b.bar.Clear()
	}
}

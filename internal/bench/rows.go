package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgdev"
)

const (
	rowsFew    = 10_000 // usages in the small database
	rowsRounds = 3      // of measuring the small and the large one in turn; each one's median counts
)

// filled is a database with usage in it, and the server that works on it.
type filled struct {
	server *child
	n      int64 // usages
}

// measureRows measures the hot account with few and with many usages in the
// tables: two databases and two servers, in turn, so that what else the machine
// does weighs on both alike.
func (b *bench) measureRows(ctx context.Context) (err error) {
	both := [2]filled{{n: rowsFew}, {n: b.options.Rows}}
	defer func() {
		for _, f := range both {
			if f.server != nil {
				err = errors.Join(err, f.server.stop())
			}
		}
	}()
	for i := range both {
		if both[i].server, err = b.serveFilled(ctx, both[i].n); err != nil {
			return err
		}
	}
	for ids, scattered := range map[string]bool{"ids in order": false, "scattered ids": true} {
		if err := b.compare(ctx, both, ids, shape{accounts: 1, batch: 1, scattered: scattered}); err != nil {
			return err
		}
	}
	return nil
}

// compare measures both under one load. Ids in order find the end of each index in
// memory; scattered ones touch a page of their own.
func (b *bench) compare(ctx context.Context, both [2]filled, ids string, s shape) error {
	var rows [2][]Row
	for round := range rowsRounds {
		for i, f := range both {
			b.options.Note("measuring hot account with %d usages in the tables, %s, round %d of %d", f.n, ids, round+1, rowsRounds)
			row, err := b.observe(ctx, f.server, scenario{shape: s, conns: 64})
			if err != nil {
				return err
			}
			row.Name = fmt.Sprintf("hot account, %d usages in the tables, %s", f.n, ids)
			rows[i] = append(rows[i], row)
		}
	}
	few, many := median(rows[0]), median(rows[1])
	many.OfFew = percent(many.PerSecond, few.PerSecond)
	b.result.Rows = append(b.result.Rows, few, many)
	return nil
}

// serveFilled makes a database with n usages in it, and starts a server on it.
func (b *bench) serveFilled(ctx context.Context, n int64) (server *child, err error) {
	name := fmt.Sprintf("rows_%d", n)
	b.options.Note("writing %d usages into database %s", n, name)
	dsn := b.postgres.DSN(name)
	if err := postgresTool(ctx, "createdb", "--maintenance-db="+b.postgres.DSN(pgdev.Database), name); err != nil {
		return nil, err
	}
	if _, err := pg.Migrate(ctx, dsn); err != nil {
		return nil, err
	}
	if server, err = startChild(ctx, b.options, filepath.Join(b.dir, name+".log"), "server", dsn, ""); err != nil {
		return nil, err
	}
	if err = b.load.prepare(ctx, server); err == nil {
		err = fill(ctx, dsn, n, fillChunk, b.options.progress(name))
	}
	return server, err
}

// progress gives a reporter of what is done of a long piece of work.
func (o Options) progress(what string) func(done, total int64) {
	return func(done, total int64) {
		if o.Progress != nil {
			o.Progress(what, done, total)
		}
	}
}

// median is the row in the middle of several of the same thing.
func median(rows []Row) Row {
	sorted := slices.SortedFunc(slices.Values(rows), func(a, b Row) int { return cmp.Compare(a.PerSecond, b.PerSecond) })
	return sorted[len(sorted)/2]
}

// postgresTool runs one of Postgres's own programs.
func postgresTool(ctx context.Context, name string, arguments ...string) error {
	bin, err := pgdev.FindBinaries("")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, name), arguments...).CombinedOutput() //nolint:gosec // as it says
	if err != nil {
		return fmt.Errorf("%s: %w: %.1000s", name, err, out)
	}
	return nil
}

package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgdev"
)

// Tables of the yardsticks: a balance and usage as somebody would make them at
// first, and the rows of ours with nothing but their key.
const (
	naiveBalance = `CREATE TABLE naive_balance (account text PRIMARY KEY, available bigint NOT NULL CHECK (available >= 0))`
	naiveUsage   = `
		CREATE TABLE naive_usage (account text NOT NULL, usage_id text NOT NULL, meter text NOT NULL, quantity bigint NOT NULL, credits bigint NOT NULL,
			dimensions jsonb NOT NULL, occurred_at timestamptz NOT NULL, PRIMARY KEY (account, usage_id))`
	naiveFill = `INSERT INTO naive_balance (account, available) SELECT 'bench-account-' || n, 1000000000000000 FROM generate_series(0, 999) AS n`
	bareUsage = `CREATE TABLE bare_usage (LIKE usage, PRIMARY KEY (part, account, usage_id))`
)

// naive is the script of a first design. %s is how the account is chosen.
const naive = `%s
\set id random(1, 9000000000000000)
BEGIN;
SELECT available FROM naive_balance WHERE account = 'bench-account-' || :n FOR UPDATE;
INSERT INTO naive_usage (account, usage_id, meter, quantity, credits, dimensions, occurred_at)
	VALUES ('bench-account-' || :n, 'bench-usage-' || :id, 'llm.output_tokens', 500000000, 500, '{"model":"large","region":"eu"}', now());
UPDATE naive_balance SET available = available - 500 WHERE account = 'bench-account-' || :n;
COMMIT;
`

func (b *bench) preparePgbench(ctx context.Context) error {
	db, err := pg.Open(ctx, b.postgres.DSN(pgdev.Database), pg.Options{ConnectionsMax: 1, Owner: true})
	if err != nil {
		return err
	}
	err = db.InTx(ctx, func(tx *sqlx.Tx) error {
		for _, statement := range []string{naiveBalance, naiveUsage, naiveFill, bareUsage} {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make the tables of the yardsticks: %w", err)
	}
	scripts := map[string]string{
		"naive-hot": fmt.Sprintf(naive, `\set n 0`), "naive-many": fmt.Sprintf(naive, `\set n random(0, 999)`),
		"bare-100": bareScript(100), "bare-1000": bareScript(1000),
	}
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(b.dir, name+".sql"), []byte(script), 0o600); err != nil {
			return err
		}
	}
	return db.Close()
}

// bareScript writes n rows as usage has them, as arrays, as our own statement
// takes them. The ids of the rows carry a number drawn for each run.
func bareScript(n int) string {
	columns := []struct{ kind, value string }{
		{"smallint", "7"},
		{"text", "bench-account-0"},
		{"text", "bench-usage-%d"},
		{"text", "llm.output_tokens"},
		{"bigint", "500000000"},
		{"bigint", "500"},
		{"integer", "1"},
		{"bigint", "0"},
		{"text", `"{\"model\":\"large\",\"region\":\"eu\"}"`},
		{"timestamptz", `"2026-01-31T00:00:00.123456Z"`},
		{"timestamptz", `"2026-01-31T00:00:00.123456Z"`},
		{"bytea", `"\\x` + strings.Repeat("a5", 32) + `"`},
		{"bigint", "%d"},
		{"bigint", "999999999999"},
		{"bigint", "0"},
		{"bigint", "0"},
	}
	arrays := make([]string, len(columns))
	for i, c := range columns {
		cells := make([]string, n)
		for row := range cells {
			cells[row] = strings.ReplaceAll(c.value, "%d", strconv.Itoa(row))
		}
		arrays[i] = "'{" + strings.Join(cells, ",") + "}'::" + c.kind + "[]"
	}
	return `\set id random(1, 9000000000000000)
INSERT INTO bare_usage SELECT a, b, c || '-' || :id, d, e, f, g, h, i::jsonb, j, k, l, m, n, o, p FROM unnest(` +
		strings.Join(arrays, ", ") + ") AS u (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p);\n"
}

// pgbench runs a script for a while. A rate counts rows. Of the latencies only
// those of the transactions in pgbench's own log are known, so they are read there.
func (b *bench) pgbench(ctx context.Context, s scenario) (Row, error) {
	bin, err := pgdev.FindBinaries("")
	if err != nil {
		return Row{}, err
	}
	mode, each := "prepared", 1
	if s.shape.batch > 1 {
		mode, each = "simple", s.shape.batch // the rows are part of the text
	}
	logs := filepath.Join(b.dir, "log-"+s.pgbench+"-"+strconv.Itoa(s.pgClient))
	seconds := max(1, int(b.options.Each/time.Second))
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "pgbench"), "--no-vacuum", "--protocol="+mode, "--client="+strconv.Itoa(s.pgClient), //nolint:gosec // Postgres's own tool
		"--jobs="+strconv.Itoa(min(2, s.pgClient)), "--time="+strconv.Itoa(seconds), "--log", "--log-prefix="+logs, "--file="+filepath.Join(b.dir, s.pgbench+".sql"),
		b.postgres.DSN(pgdev.Database))
	cmd.Dir = b.dir
	databaseBefore := cpuOfTree(b.postgres.PID())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return Row{}, fmt.Errorf("%w: %.1000s", err, out)
	}
	select { // its backends end a moment after it, and are counted when they have
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
	}
	m := &measurement{took: time.Duration(seconds) * time.Second}
	if m.each, err = latencies(logs); err != nil {
		return Row{}, err
	}
	m.usages = int64(len(m.each) * each)
	row := Row{Name: "  pgbench, " + s.pgbench, Connections: s.pgClient, PerSecond: m.perSecond(), P50: m.percentile(50), P99: m.percentile(99)}
	if m.usages > 0 {
		row.Database = (cpuOfTree(b.postgres.PID()) - databaseBefore) / time.Duration(m.usages)
	}
	return row, nil
}

// latencies reads the third field of each line of pgbench's logs, in microseconds.
func latencies(prefix string) ([]time.Duration, error) {
	files, err := filepath.Glob(prefix + ".*")
	if err != nil {
		return nil, err
	}
	var each []time.Duration
	for _, name := range files {
		file, err := os.Open(filepath.Clean(name))
		if err != nil {
			return nil, err
		}
		for scanner := bufio.NewScanner(file); scanner.Scan(); {
			if fields := strings.Fields(scanner.Text()); len(fields) > 2 {
				n, err := strconv.Atoi(fields[2])
				if err != nil {
					return nil, fmt.Errorf("read %s: %w", name, err)
				}
				each = append(each, time.Duration(n)*time.Microsecond)
			}
		}
		if err := file.Close(); err != nil {
			return nil, err
		}
	}
	slices.Sort(each)
	return each, nil
}

package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/clock"
	"tallystick/internal/pg"
)

// Bounds of a filling.
const (
	fillChunk  = 100_000 // usages in one transaction, but in tests
	fillMonths = 6       // over which they are spread, with the present one
)

// Functions of the session that fills: a text as the hash of a transfer takes it,
// and the chain over rows (package ledger's documentation defines both).
const (
	fillField = `
		CREATE FUNCTION pg_temp.field(value text) RETURNS bytea IMMUTABLE LANGUAGE sql
		RETURN int8send(octet_length(convert_to(value, 'UTF8'))::bigint) || convert_to(value, 'UTF8')`
	fillLink      = `CREATE FUNCTION pg_temp.link(hash bytea, fields bytea) RETURNS bytea IMMUTABLE LANGUAGE sql RETURN sha256(hash || fields)`
	fillChain     = `CREATE AGGREGATE pg_temp.chain(bytea) (SFUNC = pg_temp.link, STYPE = bytea, INITCOND = '')`
	fillPartition = `SELECT make_usage_partition(date_trunc('month', $1::timestamptz, 'UTC') - make_interval(months => n)) FROM generate_series(0, $2::integer) AS n`
)

// Statements of a chunk. Every second usage is the hot account's, the others go
// round 999 more; ids are scattered, as those that programs draw are; what is
// posted rises with the number, from the begin of the first month to now.
const (
	fillTable = `
		CREATE TEMPORARY TABLE chunk (
			part smallint, account text, version bigint, usage_id text, credits bigint, available bigint, posted_at timestamptz, hash bytea
		) ON COMMIT DROP`
	fillRows = `
		INSERT INTO chunk
		SELECT part, account, version, usage_id, credits, available, posted_at,
			pg_temp.chain(before || pg_temp.field(part::text) || pg_temp.field(account) || pg_temp.field(version::text) ||
				pg_temp.field('usage') || pg_temp.field(credits::text) || pg_temp.field('available') || pg_temp.field('usage') || pg_temp.field(usage_id) ||
				pg_temp.field('1') || pg_temp.field('bench-grant') || pg_temp.field((-credits)::text) ||
				pg_temp.field(available::text) || pg_temp.field('0') || pg_temp.field('0') || pg_temp.field('system:bench') || pg_temp.field('') ||
				pg_temp.field(to_char(posted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))) OVER (PARTITION BY part, account ORDER BY version)
		FROM (
			SELECT a.part, a.account, a.version + row_number() OVER w AS version, 'bench-usage-' || left(md5(n::text), 24) AS usage_id, 1 + n % 1000 AS credits,
				a.available - (sum(1 + n % 1000) OVER w)::bigint AS available, first + ($4::timestamptz - first) * (n::float8 / $3::bigint) AS posted_at,
				CASE WHEN row_number() OVER w = 1 THEN a.chain ELSE '' END AS before
			FROM (SELECT date_trunc('month', $4::timestamptz, 'UTC') - make_interval(months => $5::integer) AS first) f
			CROSS JOIN generate_series($1::bigint, $2::bigint) AS n
			JOIN accounts a ON a.account = 'bench-account-' || CASE WHEN n % 2 = 0 THEN 0 ELSE 1 + n / 2 % 999 END
			WINDOW w AS (PARTITION BY a.part, a.account ORDER BY n)
		) r`
	fillTransfers = `
		INSERT INTO transfers (part, account, version, kind, amount, source, target, cause, grant_ids, grant_amounts, available_after, held_after, debt_after,
			actor, note, posted_at, hash)
		SELECT part, account, version, 'usage', credits, 'available', 'usage', usage_id, ARRAY['bench-grant'], ARRAY[-credits], available, 0, 0,
			'system:bench', '', posted_at, hash
		FROM chunk ORDER BY posted_at`
	fillUsage = `
		INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
			transfer_version, available_after, held_after, debt_after)
		SELECT part, account, usage_id, 'llm.output_tokens', credits * 1000000, credits, 1, 0, '{"model":"large","region":"eu"}', posted_at - interval '1 second', posted_at, hash,
			version, available, 0, 0
		FROM chunk ORDER BY posted_at`
	fillLast   = `SELECT DISTINCT ON (part, account) part, account, version, available, hash FROM chunk ORDER BY part, account, version DESC`
	fillGrants = `
		UPDATE grants g SET remaining = l.available FROM (` + fillLast + `) l
		WHERE g.part = l.part AND g.account = l.account AND g.grant_id = 'bench-grant'`
	fillAccounts = `
		UPDATE accounts a SET available = l.available, version = l.version, chain = l.hash FROM (` + fillLast + `) l
		WHERE a.part = l.part AND a.account = l.account`
)

// fill writes n usages with their transfers into a database that prepare has
// readied and nobody has used yet, so that every rule of verify holds afterwards.
func fill(ctx context.Context, dsn string, n, chunk int64, progress func(done, total int64)) error {
	db, err := pg.Open(ctx, dsn, pg.Options{ConnectionsMax: 1, Owner: true})
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	now := clock.Now().UTC().Truncate(time.Microsecond)
	err = db.InTx(ctx, func(tx *sqlx.Tx) error {
		for _, statement := range []string{fillField, fillLink, fillChain} {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, fillPartition, now, fillMonths-1)
		return err
	})
	for first := int64(1); err == nil && first <= n; first += chunk {
		last := min(first+chunk-1, n)
		err = db.InTx(ctx, func(tx *sqlx.Tx) error { return fillOne(ctx, tx, first, last, n, now) })
		progress(last, n)
	}
	if err != nil {
		return fmt.Errorf("fill the tables: %w", err)
	}
	return settle(ctx, dsn)
}

// fillOne writes the usages from first to last of n.
func fillOne(ctx context.Context, tx *sqlx.Tx, first, last, n int64, now time.Time) error {
	for _, s := range []struct {
		sql       string
		arguments []any
	}{
		{"SET LOCAL statement_timeout = 0", nil},
		{"SET LOCAL synchronous_commit = off", nil}, // settle brings it to the disk
		{fillTable, nil},
		{fillRows, []any{first, last, n, now, fillMonths - 1}},
		{fillTransfers, nil},
		{fillUsage, nil},
		{fillGrants, nil},
		{fillAccounts, nil},
	} {
		if _, err := tx.ExecContext(ctx, s.sql, s.arguments...); err != nil {
			return err
		}
	}
	return nil
}

// settle does what autovacuum and the checkpointer would have done of tables that
// filled up over months, so that no measurement pays for it.
func settle(ctx context.Context, dsn string) error {
	if err := postgresTool(ctx, "vacuumdb", "--analyze", "--quiet", "--dbname="+dsn); err != nil {
		return err
	}
	return postgresTool(ctx, "psql", "--no-psqlrc", "--quiet", "--command=CHECKPOINT", dsn)
}

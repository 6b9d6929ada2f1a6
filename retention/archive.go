package retention

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/pg"
)

// closedFor is how long ago a month must have ended. Usage may come 35 days late,
// Stripe takes it for as long, and the auditor still looks at it.
const closedFor = 40 * 24 * time.Hour

// Bounds of waiting for the lock that lets a partition go. Usage that is being
// recorded waits behind whoever waits for it, so it is asked for briefly and often.
const (
	detachWait  = 250 * time.Millisecond
	detachTries = 120
	detachPause = 2 * time.Second
)

// Archiver exports old months of usage and lets their rows go.
type Archiver struct {
	DB       *pg.DB // opened as the owner of the tables
	Now      func() time.Time
	Logger   *slog.Logger
	Dir      string                                       // of the exports; it must exist
	Keep     bool                                         // export and compare only, change nothing in the database
	Forget   []string                                     // dimensions that the hours do not keep
	Progress func(month, phase string, done, total int64) // may be nil
}

// Archive is what became of one month.
type Archive struct {
	Month   string `json:"month"`
	State   string `json:"state"` // "archived", or "exported" and nothing else
	Usages  int64  `json:"usages"`
	Credits string `json:"credits"` // charged for them, exact decimal
	Hours   int64  `json:"hours"`   // rows of sums that stay
	File    string `json:"file"`
	SHA256  string `json:"sha256"`
}

// month is a UTC month of recorded_at.
type month struct {
	from, until time.Time
	usages      int64
}

// String is the form 2006-01.
func (m month) String() string { return m.from.Format(monthForm) }

func (m month) file() string { return "usage-" + m.String() + ".ndjson.gz" }

// table is the name of the partition.
func (m month) table() string { return "usage_" + m.from.Format("2006_01") }

// ParseBefore reads the month before which is archived, and refuses one whose
// predecessor has not been over for 40 days.
func ParseBefore(text string, now time.Time) (time.Time, error) {
	before, err := time.Parse(monthForm, text)
	if err != nil {
		return before, fmt.Errorf("%q is no month such as 2026-05", text)
	}
	latest := now.UTC().Add(-closedFor)
	latest = time.Date(latest.Year(), latest.Month(), 1, 0, 0, 0, 0, time.UTC)
	if before.After(latest) {
		return before, fmt.Errorf("usage of the month before %s may still arrive, be sent to Stripe, or be compared with it; a month is archived 40 days after its end: "+
			"at present everything before %s can be", text, latest.Format(monthForm))
	}
	return before, nil
}

// sqlPartitions reads the catalog: partitions of months by their names.
const sqlPartitions = `
	SELECT to_date(substr(c.relname, 7), 'YYYY_MM')::timestamptz AS month
	FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
	WHERE i.inhparent = 'usage'::regclass AND c.relname ~ '^usage_[0-9]{4}_[0-9]{2}$'
	ORDER BY 1`

// sqlCountUsage reads one partition.
const sqlCountUsage = `SELECT count(*) FROM usage WHERE recorded_at >= $1 AND recorded_at < $2`

// months lists what stands in the database of the months before a time.
func (a *Archiver) months(ctx context.Context, before time.Time) (found []month, err error) {
	err = a.DB.Read(ctx, func(tx *sqlx.Tx) error {
		found = nil
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		var starts []time.Time
		if err := tx.SelectContext(ctx, &starts, sqlPartitions); err != nil {
			return err
		}
		for _, s := range starts {
			m := month{from: s.UTC(), until: s.UTC().AddDate(0, 1, 0)}
			if m.until.After(before) {
				break
			}
			if err := tx.GetContext(ctx, &m.usages, sqlCountUsage, m.from, m.until); err != nil {
				return err
			}
			found = append(found, m)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the months of usage: %w", err)
	}
	return found, nil
}

// Run archives every month before a time that ParseBefore gave, the oldest first,
// and tells done of each as soon as it is. It may be stopped and run again at any
// point: a month is in the database as a whole or as its hours, never both, and
// its file is whole before that changes. Run twice, it finds nothing to do.
func (a *Archiver) Run(ctx context.Context, before time.Time, done func(Archive)) error {
	upkeep := Upkeep{DB: a.DB, Now: a.Now, Logger: a.Logger} // what the default has caught belongs to its month
	if _, err := upkeep.Step(ctx); err != nil {
		return err
	}
	if info, err := os.Stat(a.Dir); err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("%s is no directory", a.Dir), err)
	}
	months, err := a.months(ctx, before)
	if err != nil {
		return err
	}
	for _, m := range months {
		archive, err := a.one(ctx, m)
		if err != nil {
			return fmt.Errorf("archive %s: %w", m, err)
		}
		done(archive)
	}
	return nil
}

// one exports a month and, unless it is to be kept, lets its rows go.
func (a *Archiver) one(ctx context.Context, m month) (Archive, error) {
	result := Archive{Month: m.String(), State: "exported", File: m.file()}
	var s sums
	err := a.DB.Read(ctx, func(tx *sqlx.Tx) error {
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		if err := a.export(ctx, tx, m); err != nil || !a.Keep {
			return err
		}
		var err error
		s, err = a.compare(ctx, tx, m)
		return err
	})
	if err == nil && !a.Keep {
		result.State = "archived"
		err = a.DB.InTx(ctx, func(tx *sqlx.Tx) (err error) {
			s, result.Hours, err = a.letGo(ctx, tx, m)
			return err
		})
	}
	result.Usages, result.Credits, result.SHA256 = s.usages, decimal(&s.credits), hex.EncodeToString(s.sha256)
	return result, err
}

// sqlInsertArchive relies on usage_archives_pkey: a month is archived once.
const sqlInsertArchive = `
	INSERT INTO usage_archives (month, until, usages, quantity, credits, staged, file, sha256, archived_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`

// sqlInsertHours reads one partition. Whether usage came after its meter was bound
// is kept apart, because the auditor counts only that; and so is what was voided,
// which was charged, but counts for nobody.
const sqlInsertHours = `
	INSERT INTO usage_hours (part, account, month, hour, meter, dimensions_key, bound, voided, dimensions, usages, quantity, credits, staged, withdrawn,
		highest, latest, latest_at, latest_version, first_recorded, last_recorded)
	SELECT part, account, $1, hour, meter, sha256(convert_to(dimensions::text, 'UTF8')), bound, voided, dimensions, count(*), sum(quantity), sum(credits), sum(staged), sum(withdrawn),
		max(quantity), (array_agg(quantity ORDER BY occurred_at DESC, transfer_version DESC))[1], max(occurred_at),
		(array_agg(transfer_version ORDER BY occurred_at DESC, transfer_version DESC))[1], min(recorded_at), max(recorded_at)
	FROM (
		SELECT u.part, u.account, date_trunc('hour', u.occurred_at, 'UTC') AS hour, u.meter, u.dimensions - $3::text[] AS dimensions,
			coalesce(u.recorded_at >= m.stripe_bound_at, false) AS bound, v.usage_id IS NOT NULL AS voided, u.quantity, u.credits, u.staged,
			coalesce(v.staged, 0) AS withdrawn, u.occurred_at, u.transfer_version, u.recorded_at
		FROM usage u
		LEFT JOIN meters m ON m.meter = u.meter
		LEFT JOIN usage_voids v ON v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id
		WHERE u.recorded_at >= $1 AND u.recorded_at < $2
	) u
	GROUP BY part, account, hour, meter, dimensions, bound, voided`

// sqlSumHours sums what was just written.
const sqlSumHours = `
	SELECT coalesce(sum(usages), 0)::text AS usages, coalesce(sum(quantity), 0)::text AS quantity, coalesce(sum(credits), 0)::text AS credits, coalesce(sum(staged), 0)::text AS staged
	FROM usage_hours WHERE month = $1`

// sqlDisagreeing finds accounts whose usage of the month is not what their journal
// says. Afterwards only the sums could be compared.
const sqlDisagreeing = `
	SELECT coalesce(h.account, t.account)
	FROM (SELECT part, account, sum(usages) AS usages, sum(credits) AS credits FROM usage_hours WHERE month = $1 GROUP BY part, account) h
	FULL JOIN (
		SELECT part, account, sum(amount) AS credits,
			count(*) FILTER (WHERE kind = 'usage') + count(DISTINCT cause) FILTER (WHERE kind = 'capture') AS usages
		FROM transfers
		WHERE kind IN ('usage', 'capture') AND posted_at >= $1 AND posted_at < $2
		GROUP BY part, account
	) t ON t.part = h.part AND t.account = h.account
	WHERE (h.usages, h.credits) IS DISTINCT FROM (t.usages, t.credits)
	ORDER BY 1 LIMIT 5`

// letGo swaps the rows of a month for its hours, in one transaction: the partition
// is closed to writers, compared with the file, summed, and dropped.
func (a *Archiver) letGo(ctx context.Context, tx *sqlx.Tx, m month) (s sums, hours int64, err error) {
	if err := unhurried(ctx, tx); err != nil {
		return s, 0, err
	}
	table := pq.QuoteIdentifier(m.table())
	if _, err := tx.ExecContext(ctx, "LOCK TABLE "+table+" IN SHARE MODE"); err != nil {
		return s, 0, fmt.Errorf("close the month to writers: %w", err)
	}
	if _, err := tx.ExecContext(ctx, "LOCK TABLE usage_voids IN SHARE MODE"); err != nil {
		return s, 0, fmt.Errorf("let nobody void meanwhile: %w", err)
	}
	if s, err = a.compare(ctx, tx, m); err != nil {
		return s, 0, err
	}
	_, err = tx.ExecContext(ctx, sqlInsertArchive, m.from, m.until, s.usages, s.quantity.String(), s.credits.String(), s.staged.String(), m.file(), s.sha256, a.Now())
	if err != nil {
		return s, 0, fmt.Errorf("note the archive: %w", err)
	}
	inserted, err := tx.ExecContext(ctx, sqlInsertHours, m.from, m.until, pq.Array(append([]string{}, a.Forget...)))
	if err != nil {
		return s, 0, fmt.Errorf("write the hours: %w", err)
	}
	if hours, err = inserted.RowsAffected(); err != nil {
		return s, 0, err
	}
	if err := m.check(ctx, tx, &s); err != nil {
		return s, 0, err
	}
	return s, hours, a.drop(ctx, tx, table)
}

// check holds the hours against the file and against the journal.
func (m month) check(ctx context.Context, tx *sqlx.Tx, s *sums) error {
	var stay struct {
		Usages   string `db:"usages"`
		Quantity string `db:"quantity"`
		Credits  string `db:"credits"`
		Staged   string `db:"staged"`
	}
	if err := tx.GetContext(ctx, &stay, sqlSumHours, m.from); err != nil {
		return fmt.Errorf("sum the hours: %w", err)
	}
	if stay.Usages != fmt.Sprint(s.usages) || stay.Quantity != s.quantity.String() || stay.Credits != s.credits.String() || stay.Staged != s.staged.String() {
		return fmt.Errorf("the hours hold %+v (millionths), the file %d, %s, %s, %s; nothing was archived", stay, s.usages, &s.quantity, &s.credits, &s.staged)
	}
	var accounts []string
	if err := tx.SelectContext(ctx, &accounts, sqlDisagreeing, m.from, m.until); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("compare with the journal: %w", err)
	}
	if len(accounts) > 0 {
		return fmt.Errorf("usage and journal disagree for %s; nothing was archived; run: tallystick verify", strings.Join(accounts, ", "))
	}
	return nil
}

// drop detaches the partition and drops it. Detaching needs a moment in which
// nobody reads or writes usage; what was done before is kept while it waits for it.
func (a *Archiver) drop(ctx context.Context, tx *sqlx.Tx, table string) error {
	for try := 1; ; try++ {
		for _, step := range []string{"SAVEPOINT detach", fmt.Sprintf("SET LOCAL lock_timeout = %d", detachWait.Milliseconds())} {
			if _, err := tx.ExecContext(ctx, step); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, "ALTER TABLE usage DETACH PARTITION "+table)
		if err == nil {
			break
		}
		if !pg.IsCode(err, pg.CodeLockNotAvailable) || try == detachTries {
			return fmt.Errorf("detach the partition: %w", err)
		}
		if _, err := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT detach"); err != nil {
			return err
		}
		if err := pause(ctx, detachPause); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "DROP TABLE "+table); err != nil {
		return fmt.Errorf("drop the partition: %w", err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// unhurried lifts the statement timeout: a whole month takes its time.
func unhurried(ctx context.Context, tx *sqlx.Tx) error {
	_, err := tx.ExecContext(ctx, "SET LOCAL statement_timeout = 0")
	return err
}

// sums are those of a month over all accounts and meters, in millionths. They may
// be larger than any one account's.
type sums struct {
	usages                    int64
	quantity, credits, staged big.Int
	sha256                    []byte // of the file
}

func (s *sums) add(u *usage) {
	s.usages++
	var n big.Int
	s.quantity.Add(&s.quantity, n.SetInt64(int64(u.Quantity)))
	s.credits.Add(&s.credits, n.SetInt64(int64(u.Credits)))
	s.staged.Add(&s.staged, n.SetInt64(int64(u.Staged)))
}

// decimal writes millionths as the shortest exact decimal.
func decimal(n *big.Int) string {
	text := new(big.Rat).SetFrac(n, big.NewInt(1_000_000)).FloatString(6)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// progressEvery bounds how often progress is told of, in rows.
const progressEvery = 1000

// progress gives a function to be called once for each row.
func (a *Archiver) progress(m month, phase string) (step func()) {
	if a.Progress == nil {
		return func() {}
	}
	n := int64(0)
	a.Progress(m.String(), phase, 0, m.usages)
	return func() {
		if n++; n%progressEvery == 0 || n == m.usages {
			a.Progress(m.String(), phase, n, m.usages)
		}
	}
}

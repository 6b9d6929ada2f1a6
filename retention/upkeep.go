package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

// Bounds of the upkeep.
const (
	monthsAhead = 2  // beside the month under way
	straysMax   = 24 // months that one step fetches out of the default partition
)

// Upkeep makes partitions before usage needs them. It runs as the service.
type Upkeep struct {
	DB     *pg.DB
	Now    func() time.Time
	Logger *slog.Logger
}

// sqlMakePartition takes a short lock on the default partition, and only when
// there is something to make.
const sqlMakePartition = `SELECT make_usage_partition($1)`

// sqlStrays relies on usage_default being empty, or nearly so.
const sqlStrays = `SELECT date_trunc('month', recorded_at, 'UTC') AS month, count(*) AS usages FROM usage_default GROUP BY 1 ORDER BY 1 LIMIT $1`

// stray is a month whose usage was caught by the default partition.
type stray struct {
	Month  time.Time `db:"month"`
	Usages int64     `db:"usages"`
}

// Step makes the partitions of this month and the next two, and moves what the
// default partition has caught to where it belongs. It is harmless to run in
// several processes. Usage that belongs to an archived month is an error: only a
// clock that was set back by months can have recorded it.
func (u *Upkeep) Step(ctx context.Context) (more bool, err error) {
	now := u.Now().UTC()
	first := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	for ahead := range monthsAhead + 1 {
		if _, err := u.partition(ctx, first.AddDate(0, ahead, 0)); err != nil {
			return false, err
		}
	}
	var strays []stray
	err = u.DB.Read(ctx, func(tx *sqlx.Tx) error {
		strays = nil
		return tx.SelectContext(ctx, &strays, sqlStrays, straysMax)
	})
	if err != nil {
		return false, fmt.Errorf("look into the default partition of usage: %w", err)
	}
	var failed []error
	for _, s := range strays {
		switch moved, err := u.partition(ctx, s.Month.UTC()); {
		case err != nil:
			failed = append(failed, err)
		case moved:
			u.Logger.Warn("usage had no partition and was moved to a new one", slog.String("month", s.Month.UTC().Format(monthForm)), slog.Int64("usages", s.Usages))
		default:
			failed = append(failed, fmt.Errorf("%d usages were recorded in %s, which was archived before: was the clock set back?", s.Usages, s.Month.UTC().Format(monthForm)))
		}
	}
	return false, errors.Join(failed...)
}

// monthForm is how months are written.
const monthForm = "2006-01"

func (u *Upkeep) partition(ctx context.Context, month time.Time) (made bool, err error) {
	err = u.DB.InTx(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &made, sqlMakePartition, month) })
	if err != nil {
		return false, fmt.Errorf("make the partition of usage for %s: %w", month.Format(monthForm), err)
	}
	return made, nil
}

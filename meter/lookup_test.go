package meter

import (
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

// TestAUsageIsLookedUpByItsWholeKey plans the lookup over a table that grew and
// has not been analyzed, which is when another index looked as cheap: it led
// through everything that an account ever used.
func TestAUsageIsLookedUpByItsWholeKey(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	owner := pgtest.Owner(t, dsn)
	pgtest.Exec(t, owner, "ALTER TABLE usage SET (autovacuum_enabled = off)")
	pgtest.Exec(t, owner, "ALTER TABLE usage DROP CONSTRAINT usage_transfer, DROP CONSTRAINT usage_rate")
	pgtest.Exec(t, owner, `
		INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
			transfer_version, available_after, held_after, debt_after)
		SELECT 1, 'hot', 'planted-usage-' || n, 'call', 1, 0, 1, 0, '{}', now(), now(), decode(repeat('00', 32), 'hex'), n, 0, 0, 0
		FROM generate_series(1, 20000) AS n`)
	for name, db := range map[string]*pg.DB{"ordinary": pgtest.Open(t, dsn, pg.Options{}), "keyed": pgtest.Open(t, dsn, pg.Options{Keyed: true})} {
		query := strings.NewReplacer("$1", "'{1,1}'", "$2", "'{hot,hot}'", "$3", "'{planted-usage-7,planted-usage-x}'").Replace(sqlReadRecords)
		var lines []string
		err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
			return tx.SelectContext(t.Context(), &lines, "EXPLAIN "+query)
		})
		if plan := strings.Join(lines, "\n"); err != nil || !strings.Contains(plan, "usage_pkey") {
			t.Errorf("%s: the plan does not go by the key: %v\n%s", name, err, plan)
		}
	}
}

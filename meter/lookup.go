package meter

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/ledger"
)

// catalog keeps the meters that were read last. Nothing is taken from it before
// the revision that stands in the database has been seen to be the same.
type catalog struct {
	mu     sync.Mutex
	meters map[string]*definition
}

// catalogMax bounds the meters that are kept; beyond it all are read anew.
const catalogMax = 10_000

// current gives the meters whose revisions these are, and the names of those
// that have to be read.
func (c *catalog) current(revisions map[string]int) (meters map[string]*definition, missing []string) {
	meters = make(map[string]*definition, len(revisions))
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, revision := range revisions {
		if d := c.meters[name]; d != nil && d.Revision == revision {
			meters[name] = d
		} else {
			missing = append(missing, name)
		}
	}
	return meters, missing
}

// all gives the meters of these names as they were read last; nil when one of them
// never was.
func (c *catalog) all(names map[string]bool) map[string]*definition {
	meters := make(map[string]*definition, len(names))
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range names {
		if meters[name] = c.meters[name]; meters[name] == nil {
			return nil
		}
	}
	return meters
}

func (c *catalog) put(meters map[string]*definition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.meters == nil || len(c.meters)+len(meters) > catalogMax {
		c.meters = map[string]*definition{}
	}
	maps.Copy(c.meters, meters)
}

// sqlLookUp relies on transfers_usage and meters_pkey. The limit, which changes
// nothing, keeps Postgres from joining the other way round: over an empty table
// it would plan to read the index whole.
const sqlLookUp = `
	SELECT k.part, k.account, k.usage_id AS name, 0 AS revision
	FROM unnest($1::smallint[], $2::text[], $3::text[]) AS k (part, account, usage_id)
	CROSS JOIN LATERAL (
		SELECT FROM transfers t
		WHERE t.part = k.part AND (t.account || '') = k.account AND t.cause = k.usage_id AND t.kind = 'usage'
		LIMIT 1
	) t
	UNION ALL
	SELECT -1, '', m.meter, m.revision
	FROM meters m
	WHERE m.meter = ANY ($4::text[])`

// lookUpUsages finds usages that were recorded before, and the meters named. It runs
// after the accounts are locked: whoever recorded the same id a moment ago has
// committed. Nearly always it is one statement: few usages are known, and
// meters seldom change.
func (m *Meter) lookUpUsages(ctx context.Context, tx *sqlx.Tx, usages []usageKey, meterNames []string) (map[usageKey]*record, map[string]*definition, error) {
	parts, accounts, ids := keyColumns(usages)
	var rows []struct {
		Part     int16  `db:"part"`
		Account  string `db:"account"`
		Name     string `db:"name"`
		Revision int    `db:"revision"`
	}
	if err := tx.SelectContext(ctx, &rows, sqlLookUp, parts, accounts, ids, pg.Texts(meterNames)); err != nil {
		return nil, nil, fmt.Errorf("look usage up: %w", err)
	}
	revisions := make(map[string]int, len(meterNames))
	var stands []usageKey
	for _, r := range rows {
		if r.Part < 0 {
			revisions[r.Name] = r.Revision
		} else {
			stands = append(stands, usageKey{ledger.Ref{Part: r.Part, Account: r.Account}, r.Name})
		}
	}
	known := make(map[usageKey]*record, len(usages))
	if len(stands) > 0 {
		var err error
		if known, err = readRecords(ctx, tx, stands); err != nil {
			return nil, nil, err
		}
	}
	meters, missing := m.catalog.current(revisions)
	if len(missing) > 0 {
		read, err := readMeters(ctx, tx, missing)
		if err != nil {
			return nil, nil, err
		}
		m.catalog.put(read)
		maps.Copy(meters, read)
	}
	return known, meters, nil
}

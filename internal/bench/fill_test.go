package bench

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/apptest"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
)

// What is written in bulk must be what the API would have written: every rule of
// verify holds, hash chain and all, and the API goes on from there.
func TestFilledTablesKeepEveryInvariant(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	a := apptest.Start(t, apptest.Options{DatabaseURL: dsn})
	load := newGenerator()
	server := &child{url: a.Info.URL, key: a.Info.APIKey}
	if err := load.prepare(t.Context(), server); err != nil {
		t.Fatal(err)
	}
	const n, chunk = 5500, 5000 // a chunk that begins where another has ended
	var shown []int64
	if err := fill(t.Context(), dsn, n, chunk, func(done, _ int64) { shown = append(shown, done) }); err != nil {
		t.Fatal(err)
	}
	if len(shown) != 2 || shown[0] != chunk || shown[1] != n {
		t.Errorf("progress was %v", shown)
	}
	if err := load.send(t.Context(), server, shape{accounts: 1, batch: 1, scattered: true}); err != nil {
		t.Error(err)
	}
	db := pgtest.Open(t, dsn, pg.Options{})
	report, err := ledger.Verify(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Checks {
		if c.Broken > 0 {
			t.Errorf("%s is broken %d times: %v", c.Name, c.Broken, c.Examples[:1])
		}
	}
	var rows, hot, months int64
	err = db.Read(t.Context(), func(tx *sqlx.Tx) error {
		return tx.QueryRowxContext(t.Context(), `
			SELECT count(*), count(*) FILTER (WHERE account = 'bench-account-0'), count(DISTINCT date_trunc('month', recorded_at, 'UTC')) FROM usage`).Scan(&rows, &hot, &months)
	})
	if err != nil || rows != n+1 || hot != n/2+1 || months != fillMonths {
		t.Errorf("%d usages, %d of the hot account, in %d months, %v", rows, hot, months, err)
	}
}

func TestScatteredIDsAreDifferent(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for n := range int64(1000) {
		var q api.UsageRequest
		if err := json.Unmarshal(appendUsage(nil, shape{accounts: 1, scattered: true}, n), &q); err != nil {
			t.Fatal(err)
		}
		seen[strings.TrimPrefix(q.ID, "bench-usage-")[:2]] = true
	}
	if len(seen) < 200 {
		t.Errorf("a thousand ids begin in %d ways, of 256", len(seen))
	}
}

func TestTheMedianIsTheMiddle(t *testing.T) {
	t.Parallel()
	if r := median([]Row{{PerSecond: 9}, {PerSecond: 1}, {PerSecond: 5}}); r.PerSecond != 5 {
		t.Errorf("the median is %d", r.PerSecond)
	}
}

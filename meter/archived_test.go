package meter_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

// partitioned makes the partitions of the months from March on.
func (c *till) partitioned(months int) {
	c.t.Helper()
	for n := range months {
		pgtest.Exec(c.t, c.own, "SELECT make_usage_partition($1)", start.AddDate(0, n, 0))
	}
}

// letGo does to March what an archive does, but for the hours.
func (c *till) letGo() {
	c.t.Helper()
	pgtest.Exec(c.t, c.own, "DROP TABLE usage_2026_03")
	pgtest.Exec(c.t, c.own, `INSERT INTO usage_archives (month, until, usages, quantity, credits, staged, file, sha256, archived_at)
		VALUES ('2026-03-01T00:00:00Z', '2026-04-01T00:00:00Z', 0, 0, 0, 0, '', decode(repeat('00', 32), 'hex'), now())`)
}

// TestC04AnIdIsRefusedOrRepeatedHoweverOldItIs sends the same usage again while its
// record stands, in whichever partition, and after it was archived.
func TestC04AnIdIsRefusedOrRepeatedHoweverOldItIs(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.partitioned(2) // from May on the default takes it
	first := map[string]answer{}
	for month := range 3 {
		id := fmt.Sprintf("usage-%04d", month)
		first[id] = c.use(id, 2)
		c.clock.pass(31 * 24 * time.Hour)
	}
	for id, was := range first {
		if a := c.use(id, 2); a.status != 201 || !a.replayed || a.body != was.body {
			t.Errorf("%s again was answered %d: %s", id, a.status, a.body)
		}
		if a := c.use(id, 3); a.status != 422 || a.code != "idempotency_conflict" {
			t.Errorf("%s with other content was answered %d: %s", id, a.status, a.body)
		}
	}
	c.verified()
	c.letGo()
	for quantity := range 2 {
		a := c.use("usage-0000", 2+quantity)
		if a.status != 409 || a.code != "already_recorded" || a.replayed || !strings.Contains(a.body, `"recorded_at":"2026-03-01T12:00:00Z"`) {
			t.Errorf("an archived usage was answered %d: %s", a.status, a.body)
		}
	}
	old := fmt.Sprintf(`{"id": "usage-0000", "account": "acme", "meter": "call", "quantity": 2, "occurred_at": %q}`, start.Format(time.RFC3339))
	if a := c.call(http.MethodPost, "/v1/usage", old); a.status != 409 || a.code != "already_recorded" {
		t.Errorf("at its old time it was answered %d: %s", a.status, a.body)
	}
	var batch api.UsageBatch
	read(t, c.want(200, http.MethodPost, "/v1/usage/batch", `{"usage": [`+usageOf("usage-0000", 2)+`, `+usageOf("usage-0001", 2)+`, `+usageOf("usage-0009", 1)+`]}`), &batch)
	results := []string{}
	for _, r := range batch.Results {
		results = append(results, r.Result)
	}
	if got := strings.Join(results, " "); got != "refused replayed recorded" || !strings.Contains(string(batch.Results[0].Problem), `"already_recorded"`) {
		t.Errorf("among others it is %s: %s", got, batch.Results[0].Problem)
	}
	if got := c.available(); got != "93" {
		t.Errorf("acme holds %s, want 93: 100 less three usages of 2 and one of 1", got)
	}
}

// TestC13ACaptureIsRepeatedOrRefusedHoweverOldItIs does the same with captures: one
// out of the hold, one beyond it, one after the reservation had expired.
func TestC13ACaptureIsRepeatedOrRefusedHoweverOldItIs(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.partitioned(1)
	first := map[string]answer{}
	for _, id := range []string{"resv-exact", "resv-beyond", "resv-late"} {
		c.reserved(id, 5)
	}
	first["resv-exact"] = c.on("resv-exact", "capture", `{"quantity": 5}`)
	first["resv-beyond"] = c.on("resv-beyond", "capture", `{"quantity": 7}`)
	c.clock.pass(48 * time.Hour)
	first["resv-late"] = c.on("resv-late", "capture", `{"quantity": 4}`)
	c.clock.pass(60 * 24 * time.Hour)
	body := map[string]string{"resv-exact": `{"quantity": 5}`, "resv-beyond": `{"quantity": 7}`, "resv-late": `{"quantity": 4}`}
	for id, was := range first {
		if a := c.on(id, "capture", body[id]); was.status != 201 || a.status != 201 || !a.replayed || a.body != was.body {
			t.Errorf("%s was answered %d, again %d: %s", id, was.status, a.status, a.body)
		}
	}
	c.verified()
	c.letGo()
	for id := range first {
		if a := c.on(id, "capture", body[id]); a.status != 409 || a.code != "already_recorded" || !strings.Contains(a.body, `"recorded_at":"2026-03-0`) {
			t.Errorf("the archived capture of %s was answered %d: %s", id, a.status, a.body)
		}
		if a := c.on(id, "capture", `{"quantity": 1}`); a.status != 409 || a.code != "reservation_closed" {
			t.Errorf("another capture of %s was answered %d: %s", id, a.status, a.body)
		}
	}
	c.wantBooks("84/0/0")
}

// TestAUsageWhoseRecordIsGoneIsNotChargedAgain deletes records by hand.
func TestAUsageWhoseRecordIsGoneIsNotChargedAgain(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.use("usage-0001", 2)
	c.reserved("resv-0001", 5)
	c.want(201, http.MethodPost, "/v1/reservations/resv-0001/capture", `{"quantity": 5}`)
	pgtest.Exec(t, c.own, "DELETE FROM usage")
	if a := c.use("usage-0001", 2); a.status != 500 || a.code != "invariant_broken" {
		t.Errorf("answered %d: %s", a.status, a.body)
	}
	if a := c.on("resv-0001", "capture", `{"quantity": 5}`); a.status != 500 || a.code != "invariant_broken" {
		t.Errorf("answered %d: %s", a.status, a.body)
	}
	c.wantBooks("93/0/0")
}

// TestM1TheJournalItselfRefusesASecondCharge plants the transfer of a usage that
// the lookup does not see, because it is committed by a hand that takes no locks.
func TestM1TheJournalItselfRefusesASecondCharge(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.use("usage-0001", 2)
	again := `INSERT INTO transfers SELECT part, account, version + 1, kind, amount, source, target, cause, grant_ids, grant_amounts, available_after, held_after, debt_after, actor, note, posted_at, hash
		FROM transfers WHERE kind = 'usage'`
	err := exec(c.own, again)
	if err == nil || !strings.Contains(err.Error(), "transfers_usage") {
		t.Errorf("a second transfer of the usage gave %v", err)
	}
	c.verified()
}

func exec(db *pg.DB, statement string) error {
	return db.InTx(context.Background(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(statement)
		return err
	})
}

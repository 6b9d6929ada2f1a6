package meter_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
	"tallystick/retention"
)

// partitioned makes the partitions of the months from March on.
func (c *till) partitioned(months int) {
	c.t.Helper()
	for n := range months {
		pgtest.Exec(c.t, c.own, "SELECT make_usage_partition($1)", start.AddDate(0, n, 0))
	}
}

// letGo archives March.
func (c *till) letGo() {
	c.t.Helper()
	a := retention.Archiver{DB: c.own, Now: c.clock.Now, Logger: slog.New(slog.DiscardHandler), Dir: c.t.TempDir()}
	months := []string{}
	if err := a.Run(c.t.Context(), start.AddDate(0, 1, -start.Day()+1).Truncate(24*time.Hour), func(r retention.Archive) { months = append(months, r.Month+" "+r.State) }); err != nil {
		c.t.Fatal(err)
	}
	if got := strings.Join(months, ", "); got != "2026-03 archived" {
		c.t.Fatalf("archived %q", got)
	}
	c.verified()
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
	c.verified()
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
	c.clock.pass(80 * 24 * time.Hour)
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
	c.verified()
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

// totals gives what the totals of acme's say, one text for each line.
func (c *till) totals(query string) string {
	c.t.Helper()
	var totals api.UsageTotals
	read(c.t, c.want(200, http.MethodGet, "/v1/accounts/acme/usage?from=2026-02-01T00:00:00Z&to=2026-06-01T00:00:00Z"+query, ""), &totals)
	lines := []string{}
	for _, l := range totals.Data {
		text := l.Meter
		if l.From != nil {
			text += " " + l.From.Format("01-02T15")
		}
		if l.Group != nil {
			text += fmt.Sprint(" ", l.Group)
		}
		lines = append(lines, fmt.Sprintf("%s %s/%s/%d", text, l.Quantity, l.Credits, l.Count))
	}
	return strings.Join(lines, "; ")
}

// TestTotalsAreTheSameAfterAnArchive asks for everything that can be asked.
func TestTotalsAreTheSameAfterAnArchive(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	c.partitioned(2)
	c.want(201, http.MethodPut, "/v1/meters/token", `{"credits_per_unit": "0.000001", "aggregation": "count"}`)
	c.want(201, http.MethodPut, "/v1/meters/peak", `{"credits_per_unit": 0, "aggregation": "max"}`)
	c.want(201, http.MethodPut, "/v1/meters/seats", `{"credits_per_unit": 0, "aggregation": "last"}`)
	void := func(status int, id string) string {
		return c.want(status, http.MethodPost, "/v1/usage/"+id+"/void", `{"account": "acme", "reason": "never happened"}`).body
	}
	for i := range 40 {
		when := c.clock.Now().Add(-time.Duration(i%5) * 25 * time.Minute)
		use := func(id, meter string, quantity int, at time.Time, model string) {
			c.want(201, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%04d-%s", "account": "acme", "meter": %q, "quantity": "%d.5", "occurred_at": %q, "dimensions": {"model": %q, "region": "x"}}`,
				i, id, meter, quantity, at.Format(time.RFC3339), model))
		}
		models := []string{"", "small", "größer"}
		charged := []string{"call", "token"}[i%2]
		use(charged, charged, 1+i%3, when, models[i%3])
		for k, size := range []int{3, 5, 4, 2} { // neither the first nor the last is the highest, and they arrive out of order
			at := when.Truncate(time.Hour).Add(-time.Duration([]int{40, 50, 30, 35}[k]) * time.Minute)
			use(fmt.Sprintf("peak-%d", k), "peak", size+i%4, at, models[k%2])
			use(fmt.Sprintf("seats-%d", k), "seats", size+i%4, at, models[k%2])
		}
		if i == 6 { // Stripe may still be told
			for _, id := range []string{"usage-0002-call", "usage-0003-token", "usage-0003-peak-1", "usage-0004-seats-2"} {
				void(201, id)
			}
		}
		c.clock.pass(23 * time.Hour) // into April
	}
	c.clock.pass(60 * 24 * time.Hour)
	queries := []string{"", "&group_by=hour", "&group_by=day,meter", "&group_by=model", "&group_by=hour,meter,model,region,other", "&meter=token&group_by=day"}
	before := map[string]string{}
	for _, q := range queries {
		before[q] = c.totals(q)
	}
	c.letGo()
	if n := c.count("SELECT count(*) FROM usage_hours"); n == 0 || c.count("SELECT count(*) FROM usage") == 0 {
		t.Fatalf("%d hours, and the usage of April: nothing is left to compare", n)
	}
	for _, q := range queries {
		if got := c.totals(q); got != before[q] || len(got) < 10 {
			t.Errorf("%q gave\n%s\nand gives\n%s", q, before[q], got)
		}
	}
	if n := c.count("SELECT count(*) FROM usage_hours WHERE voided"); n != 4 {
		t.Errorf("%d hours of voided usage, want 4", n)
	}
	for _, id := range []string{"usage-0002-call", "usage-0006-call"} { // voided before, and not
		if body := void(409, id); !strings.Contains(body, "already_recorded") {
			t.Errorf("the void of archived usage was answered %s", body)
		}
	}
	c.verified()
}

// TestTotalsAreWholeWhileAMonthIsLetGo asks for totals that have to wait for the
// partition, which is gone when they may go on.
func TestTotalsAreWholeWhileAMonthIsLetGo(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.partitioned(1)
	c.use("usage-0001", 2)
	want := c.totals("")
	release := c.hold(`LOCK TABLE usage IN ACCESS EXCLUSIVE MODE;
		INSERT INTO usage_archives (month, until, usages, quantity, credits, staged, file, sha256, archived_at)
			VALUES ('2026-03-01T00:00:00Z', '2026-04-01T00:00:00Z', 1, 2000000, 2000000, 2000000, '', decode(repeat('00', 32), 'hex'), now());
		INSERT INTO usage_hours (part, account, month, hour, meter, dimensions_key, bound, voided, dimensions, usages, quantity, credits, staged, withdrawn,
				highest, latest, latest_at, latest_version, first_recorded, last_recorded)
			SELECT part, account, '2026-03-01T00:00:00Z', '2026-03-01T12:00:00Z', meter, fingerprint, true, false, dimensions, 1, quantity, credits, staged, 0,
				quantity, quantity, occurred_at, transfer_version, recorded_at, recorded_at FROM usage;
		DROP TABLE usage_2026_03`)
	got := make(chan string, 1)
	go func() { got <- c.totals("") }()
	sound, db := make(chan ledger.Report, 1), pgtest.Open(t, c.dsn, patient)
	go func() {
		report, err := ledger.Verify(context.Background(), db)
		if err != nil {
			t.Error(err)
		}
		sound <- report
	}()
	c.blocked(2)
	release()
	if got := <-got; got != want || !strings.Contains(want, "2/2/1") {
		t.Errorf("the totals were %q, and are %q", want, got)
	}
	if report := <-sound; !report.OK {
		t.Errorf("verify found %+v", report.Checks)
	}
}

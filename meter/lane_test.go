package meter_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/pg/pgtest"
	"tallystick/meter"
	"tallystick/outbox"
)

// queued sends each usage with a request of its own, waits until all are in the
// lane, in this order, and gives their answers when they come.
func (c *till) queued(bodies ...string) func() []answer {
	c.t.Helper()
	answers := make([]answer, len(bodies))
	var wg sync.WaitGroup
	waiting := c.Depth()
	for i, body := range bodies {
		wg.Go(func() { answers[i] = c.call(http.MethodPost, "/v1/usage", body) })
		c.await("the usage to be in its lane", func() bool { return c.Depth() == waiting+i+1 })
	}
	return func() []answer {
		wg.Wait()
		return answers
	}
}

func TestUsageThatArrivesDuringACommitIsCommittedAsOneGroup(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	_, release := c.stopped()
	bodies := make([]string, 40)
	for i := range bodies {
		bodies[i] = usageOf(fmt.Sprintf("usage-%04d", i), 1)
	}
	answers := c.queued(bodies...)
	release()
	for i, a := range answers() {
		var u api.Usage
		read(t, a, &u)
		if want := fmt.Sprint(1000 - 2 - i); a.status != 201 || string(u.Balance.Available) != want {
			t.Errorf("usage %d was answered %d with the balance %s, want 201 and %s", i, a.status, u.Balance.Available, want)
		}
	}
	if n := c.count("SELECT count(DISTINCT xmin::text) FROM usage WHERE usage_id <> 'usage-stop'"); n != 1 {
		t.Errorf("40 usages were committed in %d transactions, want 1", n)
	}
	c.verified()
}

// TestOneBadUsageOfAGroupHurtsNoNeighbour mixes what is refused by rule with what
// Postgres refuses, which fails the group's transaction.
func TestOneBadUsageOfAGroupHurtsNoNeighbour(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	pgtest.Exec(t, c.own, "ALTER TABLE usage ADD CONSTRAINT planted CHECK (quantity <> 3000000)")
	first, release := c.stopped()
	answers := c.queued(
		usageOf("usage-0001", 2),
		usageOf("usage-0002", 3), // Postgres refuses it
		usageOf("usage-0003", 50),
		`{"id": "usage-0004", "account": "acme", "meter": "nothing", "quantity": 1}`,
		usageOf("usage-0005", 4),
	)
	release()
	if a := <-first; a.status != 201 {
		t.Errorf("the usage before was answered %d: %s", a.status, a.body)
	}
	for i, want := range []string{"201 ", "500 internal", "402 insufficient_credits", "404 meter_not_found", "201 "} {
		if a := answers()[i]; fmt.Sprint(a.status, " ", a.code) != want || a.replayed {
			t.Errorf("usage %d was answered %d %s, want %s: %s", i+1, a.status, a.code, want, a.body)
		}
	}
	if got := c.available(); got != "3" {
		t.Errorf("acme holds %s, want 3: only what was recorded is charged", got)
	}
	pgtest.Exec(t, c.own, "ALTER TABLE usage DROP CONSTRAINT planted")
	if a := c.use("usage-0002", 3); a.status != 201 || a.replayed {
		t.Errorf("once Postgres takes it, the bad one is answered %d: %s", a.status, a.body)
	}
	c.verified()
}

func TestTheSameIDTwiceWithinOneGroup(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	_, release := c.stopped()
	answers := c.queued(usageOf("usage-0001", 2), usageOf("usage-0001", 2), usageOf("usage-0001", 3), usageOf("usage-0002", 1))
	release()
	got := answers()
	if got[0].status != 201 || got[0].replayed {
		t.Errorf("the first was answered %d (replayed %v): %s", got[0].status, got[0].replayed, got[0].body)
	}
	if got[1].status != 201 || !got[1].replayed || got[1].body != got[0].body {
		t.Errorf("the same again was answered %d (replayed %v): %s", got[1].status, got[1].replayed, got[1].body)
	}
	if got[2].status != 422 || got[2].code != "idempotency_conflict" {
		t.Errorf("the same id with other content was answered %d: %s", got[2].status, got[2].body)
	}
	if got[3].status != 201 {
		t.Errorf("the neighbour was answered %d: %s", got[3].status, got[3].body)
	}
	if n := c.count("SELECT count(DISTINCT xmin::text) FROM usage WHERE usage_id <> 'usage-stop'"); n != 1 {
		t.Errorf("the group fell apart into %d transactions", n)
	}
	if got := c.available(); got != "6" {
		t.Errorf("acme holds %s, want 6: ten less one, two and one", got)
	}
	c.verified()
}

func TestABatchAnswersEachItemInOrder(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(201, http.MethodPut, "/v1/accounts/other", `{"overdraft": 5}`)
	items := []string{
		usageOf("usage-0001", 4), usageOf("usage-0001", 4), usageOf("usage-0001", 5), usageOf("bad", 1), usageOf("usage-0002", 7),
		`{"id": "usage-0001", "account": "other", "meter": "call", "quantity": "0.5"}`, // an id is an account's own
		usageOf("usage-0003", 6),
	}
	var batch api.UsageBatch
	read(t, c.want(200, http.MethodPost, "/v1/usage/batch", `{"usage": [`+strings.Join(items, ",")+`]}`), &batch)
	for i, want := range []string{"recorded", "replayed", "idempotency_conflict", "invalid_value", "insufficient_credits", "recorded", "recorded"} {
		got := batch.Results[i].Result
		if got == "refused" {
			var problem api.Problem
			if err := json.Unmarshal(batch.Results[i].Problem, &problem); err != nil {
				t.Fatal(err)
			}
			got = problem.Code
		}
		if got != want || (batch.Results[i].Usage == nil) != (batch.Results[i].Problem != nil) {
			t.Errorf("item %d is %s, want %s", i, got, want)
		}
	}
	if got := c.available(); got != "0" {
		t.Errorf("acme holds %s, want 0", got)
	}
	c.verified()
}

func TestBoundsOfABatch(t *testing.T) {
	t.Parallel()
	c := opened(t, 2000)
	for n, status := range map[int]int{0: 422, 1: 200, 1000: 200, 1001: 422} {
		items := make([]string, n)
		for i := range items {
			items[i] = usageOf(fmt.Sprintf("usage-%04d-%04d", n, i), 1)
		}
		if a := c.call(http.MethodPost, "/v1/usage/batch", `{"usage": [`+strings.Join(items, ",")+`]}`); a.status != status || strings.Count(a.body, `"refused"`) > 0 {
			t.Errorf("a batch of %d was answered %d, want %d: %.300s", n, a.status, status, a.body)
		}
	}
	if n := c.count("SELECT count(*) FROM usage"); n != 1001 {
		t.Errorf("%d usages were recorded, want 1001", n)
	}
}

// TestOverloadIsRefusedAndNothingOfItRecorded fills a lane that stands still to
// its bound of 2048 and goes one beyond.
func TestOverloadIsRefusedAndNothingOfItRecorded(t *testing.T) {
	t.Parallel()
	c := opened(t, 10_000)
	first, release := c.stopped()
	batch := func(name string, n int) string {
		items := make([]string, n)
		for i := range items {
			items[i] = usageOf(fmt.Sprintf("usage-%s-%04d", name, i), 1)
		}
		return `{"usage": [` + strings.Join(items, ",") + `]}`
	}
	var wg sync.WaitGroup
	answers := make([]answer, 3)
	for i, n := range []int{1000, 1000, 48} {
		wg.Go(func() { answers[i] = c.call(http.MethodPost, "/v1/usage/batch", batch(fmt.Sprint(i), n)) })
	}
	c.await("the lane to be full", func() bool { return c.Depth() == 2048 })
	beyond := c.use("usage-beyond", 1)
	if beyond.status != 429 || beyond.code != "overloaded" || beyond.header.Get("Retry-After") == "" {
		t.Errorf("one beyond the bound was answered %d, Retry-After %q: %s", beyond.status, beyond.header.Get("Retry-After"), beyond.body)
	}
	if a := c.want(200, http.MethodPost, "/v1/usage/batch", batch("beyond", 2)); strings.Count(a.body, `"overloaded"`) != 2 {
		t.Errorf("a batch beyond the bound was answered %s", a.body)
	}
	release()
	wg.Wait()
	for i, a := range append(answers, <-first) {
		if a.status/100 != 2 || strings.Contains(a.body, `"refused"`) {
			t.Errorf("request %d, which fitted in, was answered %d: %.300s", i, a.status, a.body)
		}
	}
	if n := c.count("SELECT count(*) FROM usage"); n != 2049 {
		t.Errorf("%d usages were recorded, want 2049", n)
	}
	if a := c.use("usage-beyond", 1); a.status != 201 || a.replayed {
		t.Errorf("sent again, the refused usage was answered %d (replayed %v)", a.status, a.replayed)
	}
	c.verified()
}

func TestCloseAnswersWhatWaitsAndRefusesTheRest(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	first, release := c.stopped()
	bodies := make([]string, 30)
	for i := range bodies {
		bodies[i] = usageOf(fmt.Sprintf("usage-%04d", i), 1)
	}
	answers := c.queued(bodies...)
	closed := make(chan struct{})
	go func() {
		c.Close()
		close(closed)
	}()
	n := 0
	c.await("usage to be refused", func() bool {
		n++
		refused, id := make(chan answer, 1), fmt.Sprintf("usage-late-%04d", n)
		go func() { refused <- c.use(id, 1) }()
		c.await("an answer or a place in the lane", func() bool { return len(refused) == 1 || c.Depth() >= len(bodies)+n })
		if len(refused) == 0 {
			return false // it was in time
		}
		a := <-refused
		if a.status != 503 || a.code != "unavailable" || a.header.Get("Retry-After") == "" {
			t.Errorf("while closing, usage was answered %d: %s", a.status, a.body)
		}
		return true
	})
	release()
	for i, a := range append(answers(), <-first) {
		if a.status != 201 {
			t.Errorf("usage %d, accepted before the end, was answered %d: %s", i, a.status, a.body)
		}
	}
	<-closed
	c.Close()                                                               // twice is harmless
	if got := c.count("SELECT count(*) FROM usage"); got != len(bodies)+n { // usage-stop, and all late ones but the last
		t.Errorf("%d usages were recorded, want %d", got, len(bodies)+n)
	}
	c.verified()
}

// TestCloseInAStormLosesNothingAcknowledged closes while callers are anywhere on
// their way into the lanes: each of them must be answered, and rightly.
func TestCloseInAStormLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	for range 2 {
		c := opened(t, 100_000)
		var acknowledged, refused atomic.Int64
		var wg sync.WaitGroup
		for caller := range 16 {
			wg.Go(func() {
				for i := 0; ; i++ {
					a := c.use(fmt.Sprintf("usage-%02d-%05d", caller, i), 1)
					if a.status == 201 {
						acknowledged.Add(1)
						continue
					}
					if a.status != 503 {
						t.Errorf("a caller was answered %d: %s", a.status, a.body)
					}
					refused.Add(1)
					return
				}
			})
		}
		c.await("the storm to rage", func() bool { return acknowledged.Load() > 50 })
		c.Close()
		wg.Wait()
		if n := c.count("SELECT count(*) FROM usage"); int64(n) != acknowledged.Load() || refused.Load() != 16 {
			t.Errorf("%d usages were recorded, %d acknowledged, %d callers refused", n, acknowledged.Load(), refused.Load())
		}
		c.verified()
	}
}

func TestTwoProcessesWithTheSameID(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	other := c.beside()
	for i := range 20 {
		id := fmt.Sprintf("usage-%04d", i)
		var answers [2]answer
		var wg sync.WaitGroup
		for j, process := range []*till{c, other} {
			wg.Go(func() { answers[j] = process.use(id, 2) })
		}
		wg.Wait()
		if answers[0].status != 201 || answers[0].body != answers[1].body || answers[0].replayed == answers[1].replayed {
			t.Errorf("%s was answered\n%d %v %s and\n%d %v %s", id, answers[0].status, answers[0].replayed, answers[0].body, answers[1].status, answers[1].replayed, answers[1].body)
		}
	}
	if got := c.available(); got != "60" {
		t.Errorf("acme holds %s, want 60", got)
	}
	c.verified()
}

func TestTwoProcessesWithTheLastCredit(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	other := c.beside()
	for i := range 20 {
		c.want(201, http.MethodPost, "/v1/accounts/acme/grants", fmt.Sprintf(`{"id": "grant-%04d", "credits": 1}`, i+1))
		var recorded, refused atomic.Int64
		var wg sync.WaitGroup
		for j, process := range []*till{c, other} {
			wg.Go(func() {
				switch a := process.use(fmt.Sprintf("usage-%04d-%d", i, j), 1); {
				case a.status == 201:
					recorded.Add(1)
				case a.status == 402 && a.code == "insufficient_credits":
					refused.Add(1)
				default:
					t.Errorf("answered %d: %s", a.status, a.body)
				}
			})
		}
		wg.Wait()
		if recorded.Load() != 1 || refused.Load() != 1 {
			t.Fatalf("of two for the last credit %d were recorded and %d refused", recorded.Load(), refused.Load())
		}
	}
	c.verified()
}

// cursed panics when it is to stage usage of one account.
type cursed struct{ meter.Stager }

func (c cursed) StageUsage(ctx context.Context, tx *sqlx.Tx, now time.Time, usages []outbox.Usage) error {
	for _, u := range usages {
		if u.Account == "cursed" {
			panic("the outbox is out of its mind")
		}
	}
	return c.Stager.StageUsage(ctx, tx, now, usages)
}

// TestA15APanicInALaneHurtsNobodyElse sends usage of two accounts in one batch, of
// which one makes the group panic.
func TestA15APanicInALaneHurtsNobodyElse(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/accounts/cursed", `{"overdraft": 10}`)
	other := &till{t: t, dsn: c.dsn, own: c.own, key: c.key, clock: c.clock}
	other.serve(pgtest.Open(t, c.dsn, patient), func(m *meter.Config) { m.Stager, m.Lanes = cursed{m.Stager}, 1 })
	const batch = `{"usage": [{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 1},
		{"id": "usage-0002", "account": "cursed", "meter": "call", "quantity": 1}, {"id": "usage-0003", "account": "acme", "meter": "call", "quantity": 1}]}`
	for _, want := range []string{"recorded", "replayed"} {
		var b api.UsageBatch
		read(t, other.want(200, http.MethodPost, "/v1/usage/batch", batch), &b)
		if got := []string{b.Results[0].Result, b.Results[1].Result, b.Results[2].Result}; !slices.Equal(got, []string{want, "refused", want}) {
			t.Errorf("the batch became %v", got)
		}
		if problem := string(b.Results[1].Problem); !strings.Contains(problem, `"internal"`) || strings.Contains(problem, "mind") {
			t.Errorf("the usage that panicked was refused with %s", problem)
		}
	}
	other.want(500, http.MethodPost, "/v1/usage", `{"id": "usage-0002", "account": "cursed", "meter": "call", "quantity": 1}`)
	if got := c.available(); got != "98" {
		t.Errorf("acme holds %s, want 98", got)
	}
	c.want(201, http.MethodPost, "/v1/usage", `{"id": "usage-0002", "account": "cursed", "meter": "call", "quantity": 1}`) // nothing of it had stayed
	c.verified()
}

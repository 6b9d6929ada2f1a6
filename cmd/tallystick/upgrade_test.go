package main

import (
	"flag"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

var (
	older  = flag.String("older", "", "the program of an older version, which serves while the schema moves to this one's; by default this one does, and the schema moves on as a later version may move it")
	phased = flag.Int("phase", 150, "operations in each phase of an upgrade under load")
)

// expansions are what a migration may do while an older version serves: it adds.
var expansions = []string{
	"ALTER TABLE accounts ADD COLUMN later integer NOT NULL DEFAULT 1",
	"ALTER TABLE transfers ADD COLUMN later text NOT NULL DEFAULT ''",
	"ALTER TABLE usage ADD COLUMN later bigint",
	"ALTER TABLE meters ADD COLUMN later boolean NOT NULL DEFAULT false",
	"ALTER TABLE reservations ADD COLUMN later timestamptz, ADD CONSTRAINT reservations_later CHECK (later IS NULL OR later > created_at) NOT VALID",
	"ALTER TABLE grants ADD COLUMN later jsonb NOT NULL DEFAULT '{}'",
	"CREATE INDEX reservations_later ON reservations (part, later) WHERE later IS NOT NULL",
	"CREATE TABLE later (part smallint NOT NULL, id text NOT NULL, CONSTRAINT later_pkey PRIMARY KEY (part, id))",
}

// upgrade is clients of two versions at once.
type upgrade struct {
	t         *testing.T
	mu        sync.Mutex
	serving   []*process
	done      map[string]int // operations by kind
	charged   int            // by all operations that are done
	unsettled int            // answers 503 or none: the same id was sent again
	count     atomic.Int64
}

// to picks a process, another at each attempt.
func (u *upgrade) to(n int) *process {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.serving[n%len(u.serving)]
}

func (u *upgrade) serve(processes ...*process) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.serving = processes
}

// send repeats a request, now here and now there, until it has an answer. One that
// is neither what was wanted nor "unknown" is what an upgrade must not cost.
func (u *upgrade) send(n, want int, method, path, body string) {
	for attempt := range 200 {
		p := u.to(n + attempt)
		status, answer, err := p.call(method, path, body)
		if err == nil && status == want {
			return
		}
		if err == nil && status != http.StatusServiceUnavailable {
			u.t.Errorf("%s %s was answered %d: %s", method, path, status, answer)
			return
		}
		u.mu.Lock()
		u.unsettled++
		u.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
	u.t.Errorf("%s %s has no answer after 200 attempts", method, path)
}

// operate does one operation of the kind that is n's turn.
func (u *upgrade) operate(n int) {
	id := fmt.Sprintf("operation-%06d", n)
	usage := func(suffix string) string {
		return fmt.Sprintf(`{"id": "%s%s", "account": "acme", "meter": "call", "quantity": 2}`, id, suffix)
	}
	var kind string
	var charged int
	switch n % 5 {
	case 0:
		kind, charged = "usage", 2
		u.send(n, 201, http.MethodPost, "/v1/usage", usage(""))
	case 1:
		kind, charged = "batch", 4
		u.send(n, 200, http.MethodPost, "/v1/usage/batch", `{"usage": [`+usage("-a")+`, `+usage("-b")+`]}`)
	case 2:
		kind, charged = "reservation", 1
		u.send(n, 201, http.MethodPost, "/v1/reservations", strings.Replace(usage(""), "}", `, "ttl_seconds": 600}`, 1))
		u.send(n+1, 201, http.MethodPost, "/v1/reservations/"+id+"/capture?account=acme", `{"quantity": 1}`)
	case 3:
		kind = "void"
		u.send(n, 201, http.MethodPost, "/v1/usage", usage(""))
		u.send(n+1, 201, http.MethodPost, "/v1/usage/"+id+"/void", `{"account": "acme", "reason": "a mistake"}`)
	default:
		kind, charged = "grant and account", -3
		u.send(n, 201, http.MethodPost, "/v1/accounts/acme/grants", fmt.Sprintf(`{"id": %q, "credits": 3}`, id))
		u.send(n, 200, http.MethodPut, "/v1/accounts/acme", fmt.Sprintf(`{"name": %q}`, id))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done[kind]++
	u.charged += charged
}

// phase waits until so many more operations are done.
func (u *upgrade) phase(what string) {
	u.t.Helper()
	from := u.count.Load()
	for deadline := time.Now().Add(10 * time.Minute); u.count.Load() < from+int64(*phased); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) || u.t.Failed() {
			u.t.Fatalf("%d operations %s, want %d; %d attempts had 503 or no answer", u.count.Load()-from, what, *phased, u.unsettled)
		}
	}
}

// TestA17TwoVersionsServeWhileTheSchemaMovesOn has one version serve under load, the
// schema move on, the next version join it, and the first one leave. Every operation
// gets its one answer; 503 says that the same id is to be sent again, and is the only
// other answer there is.
func TestA17TwoVersionsServeWhileTheSchemaMovesOn(t *testing.T) {
	t.Parallel()
	program, dsn := *older, pgtest.Empty(t)
	if program == "" {
		program = thisProgram()
	}
	setting := "DATABASE_URL=" + dsn
	before := upOf(t, program, dataDir(t), setting)
	before.must(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1}`)
	before.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`)
	before.must(http.StatusCreated, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 1000000}`)
	u := &upgrade{t: t, done: map[string]int{}}
	u.serve(before)
	stop := make(chan struct{})
	var senders sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		senders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					u.operate(int(next.Add(1)))
					u.count.Add(1)
				}
			}
		})
	}
	u.phase("of one version")
	if *older == "" {
		u.expand(dsn)
		u.phase("of one version over the schema of the next")
	}
	after := up(t, dataDir(t), setting) // migrates first
	u.serve(before, after)
	u.phase("of two versions")
	u.serve(after)
	before.stop()
	u.phase("of the next version")
	close(stop)
	senders.Wait()
	after.stop()
	t.Logf("%v operations, %d attempts without an answer or with 503", u.done, u.unsettled)
	if len(u.done) != 5 {
		t.Errorf("not all kinds of operations were done: %v", u.done)
	}
	u.settled(dsn)
}

// expand moves the schema on, each step a transaction that gives up a lock it does
// not get at once, and tries again, as our migrations are run.
func (u *upgrade) expand(dsn string) {
	u.t.Helper()
	db := pgtest.Owner(u.t, dsn)
	for _, step := range expansions {
		await(u.t, step, func() bool {
			err := db.InTx(u.t.Context(), func(tx *sqlx.Tx) error {
				_, err := tx.ExecContext(u.t.Context(), step)
				return err
			})
			if err != nil && !pg.IsCode(err, pg.CodeLockNotAvailable) {
				u.t.Fatalf("%s: %v", step, err)
			}
			return err == nil
		})
	}
}

// settled compares the balance with what was charged, and verifies.
func (u *upgrade) settled(dsn string) {
	u.t.Helper()
	var available int
	db := pgtest.Owner(u.t, dsn)
	err := db.Read(u.t.Context(), func(tx *sqlx.Tx) error {
		return tx.Get(&available, "SELECT available / 1000000 FROM accounts WHERE account = 'acme' AND held = 0 AND debt = 0")
	})
	if err != nil || available != 1_000_000-u.charged {
		u.t.Errorf("acme has %d, %v, want %d", available, err, 1_000_000-u.charged)
	}
	if code, out, errs := cli(u.t, []string{"DATABASE_URL=" + dsn}, "verify"); code != exitFine {
		u.t.Errorf("verify ends with %d:\n%s%s", code, out, errs)
	}
}

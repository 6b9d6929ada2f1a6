package meter_test

import (
	"errors"
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
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
)

// TestC05TwoHundredReservesForElevenCredits come from three processes.
func TestC05TwoHundredReservesForElevenCredits(t *testing.T) {
	t.Parallel()
	c := opened(t, 11)
	tills := []*till{c, c.beside(), c.beside()}
	var held, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			switch a := tills[i%3].reserve(fmt.Sprintf("resv-%04d", i), 1); {
			case a.status == 201 && !a.replayed:
				held.Add(1)
			case a.status == 402 && a.code == "insufficient_credits":
				refused.Add(1)
			default:
				t.Errorf("answered %d: %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	if held.Load() != 11 || refused.Load() != 189 {
		t.Errorf("%d held and %d refused, want 11 and 189", held.Load(), refused.Load())
	}
	c.wantBooks("0/11/0")
	c.verified()
}

// TestC01TheSameReservationAHundredTimes has one effect and equal answers.
func TestC01TheSameReservationAHundredTimes(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	tills := []*till{c, c.beside()}
	bodies := make([]string, 100)
	var fresh atomic.Int64
	var wg sync.WaitGroup
	for i := range bodies {
		wg.Go(func() {
			a := tills[i%2].reserve("resv-0001", 7)
			bodies[i] = fmt.Sprint(a.status, a.body)
			if !a.replayed {
				fresh.Add(1)
			}
		})
	}
	wg.Wait()
	if n := len(slices.Compact(slices.Sorted(slices.Values(bodies)))); n != 1 || fresh.Load() != 1 {
		t.Errorf("%d different answers and %d that were no replays, want 1 and 1: %s", n, fresh.Load(), bodies[0])
	}
	c.wantBooks("93/7/0")
	c.verified()
}

// TestC06CaptureReleaseAndExpiryRace lets three processes end one reservation at
// once, 50 times: one ending wins, and the others are told which.
func TestC06CaptureReleaseAndExpiryRace(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	other, sweeper := c.beside(), c.beside()
	available, won := 1000, map[string]int{}
	for i := range 50 {
		id := fmt.Sprintf("resv-%04d", i)
		c.reserved(id, 5)
		if i%3 > 0 { // every third time nothing is due: capture and release have the race to themselves
			c.clock.pass(10 * time.Minute)
		}
		var captured, released answer
		var wg sync.WaitGroup
		steps := []func(){
			func() { captured = c.on(id, "capture", `{"quantity": 3}`) },
			func() { released = other.on(id, "release", "") },
			func() {
				if _, err := sweeper.ReservationStep(t.Context()); err != nil {
					t.Error(err)
				}
			},
		}
		for n := range steps {
			wg.Go(steps[(n+i)%3])
		}
		wg.Wait()
		r := c.reservation(id)
		won[r.State]++
		got := fmt.Sprintf("%s: capture %d %s, release %d %s", r.State, captured.status, captured.code, released.status, released.code)
		switch got {
		case "captured: capture 201 , release 409 reservation_closed", "expired: capture 201 , release 409 reservation_closed":
			available -= 3
		case "released: capture 409 reservation_closed, release 200 ":
		default:
			t.Errorf("%s ended as %s", id, got)
		}
		if due := i%3 > 0; due != (r.State == "expired") {
			t.Errorf("%s was due: %v, and ended as %s", id, due, r.State)
		}
	}
	c.wantBooks(fmt.Sprintf("%d/0/0", available))
	c.verified()
	t.Logf("endings: %v", won)
}

// TestC06EachReservationIsEndedOnce lets all calls storm over a few reservations
// while the clock runs over their ends.
func TestC06EachReservationIsEndedOnce(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	tills := []*till{c, c.beside()}
	for i := range 10 {
		c.reserved(fmt.Sprintf("resv-%04d", i), 5)
	}
	bodies := map[string]string{"capture": `{"quantity": 4}`, "release": "", "extend": `{"ttl_seconds": 1}`, "doubt": `{"reason": "x"}`}
	var wg sync.WaitGroup
	for i := range 10 {
		for name, body := range bodies {
			for _, through := range tills {
				wg.Go(func() {
					if a := through.on(fmt.Sprintf("resv-%04d", i), name, body); a.status != 200 && a.status != 201 && a.status != 409 {
						t.Errorf("%s was answered %d: %s", name, a.status, a.body)
					}
				})
			}
		}
		wg.Go(func() {
			c.clock.pass(90 * time.Second)
			if _, err := tills[i%2].ReservationStep(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c.verified()
}

// TestP2AnUnknownCommitOfAReservationIsSettledByItsRow cuts the connection at
// COMMIT of each call in each way.
func TestP2AnUnknownCommitOfAReservationIsSettledByItsRow(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	w := wired(t, c.dsn)
	cutting := c.through(w.dsn)
	for i, at := range commits() {
		id := fmt.Sprintf("resv-%04d", i)
		for _, call := range []struct{ path, body string }{
			{"", reserveOf(id, 3)},
			{"/" + id + "/extend", `{"ttl_seconds": 900}`},
			{"/" + id + "/doubt", `{"reason": "timeout"}`},
			{"/" + id + "/capture", `{"quantity": 2}`},
			{"", reserveOf(id+"-b", 3)},
			{"/" + id + "-b/release", ""},
		} {
			w.plan(at)
			a := cutting.call(http.MethodPost, "/v1/reservations"+call.path, call.body)
			if w.left() != 0 {
				t.Fatalf("%v: no connection was cut at %s", at, call.path)
			}
			again := c.call(http.MethodPost, "/v1/reservations"+call.path, call.body)
			if a.status > 201 || a.status == 0 || again.body != a.body {
				t.Errorf("%v: %s was answered %d %s, sent again %d %s", at, call.path, a.status, a.body, again.status, again.body)
			}
		}
	}
	c.wantBooks(fmt.Sprintf("%d/0/0", 100-2*len(commits())))
	if n, want := c.count("SELECT count(*) FROM transfers WHERE kind = 'hold'"), 2*len(commits()); n != want {
		t.Errorf("%d holds, want %d", n, want)
	}
	c.verified()
}

// TestSweepersAreHarmlessTogether lets four processes sweep the same many.
func TestSweepersAreHarmlessTogether(t *testing.T) {
	t.Parallel()
	c := opened(t, 200)
	for i := range 120 { // more than one step takes
		c.reserved(fmt.Sprintf("resv-%04d", i), 1)
	}
	c.clock.pass(time.Hour)
	var wg sync.WaitGroup
	for _, through := range []*till{c, c.beside(), c.beside(), c.beside()} {
		wg.Go(through.stepped)
	}
	wg.Wait()
	c.stepped()
	c.wantBooks("200/0/0")
	if n := c.count("SELECT count(*) FROM transfers WHERE kind = 'unhold'"); n != 120 {
		t.Errorf("%d returns of 120 holds", n)
	}
	c.verified()
}

// TestABusyAccountStopsNoOther holds one account's lock for longer than anybody
// waits for it. Both accounts are in one lane.
func TestABusyAccountStopsNoOther(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(201, http.MethodPut, "/v1/accounts/idle", `{"overdraft": 10}`)
	c.reserved("resv-0001", 1)
	c.want(201, http.MethodPost, "/v1/reservations", `{"id": "resv-0002", "account": "idle", "meter": "call", "quantity": 1, "ttl_seconds": 600}`)
	hasty := &till{t: t, dsn: c.dsn, own: c.own, key: c.key, clock: c.clock}
	hasty.serveFrom(pgtest.Open(t, c.dsn, patient), pg.Options{LockTimeout: 300 * time.Millisecond}, 1)
	release := c.hold("SELECT 1 FROM accounts WHERE account = 'acme' FOR UPDATE")
	c.clock.pass(10 * time.Minute)
	if _, err := hasty.ReservationStep(t.Context()); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("the busy account's reservation: %v, want unavailable", err)
	}
	if busy, idle := c.reservation("resv-0001").State, c.reservation("resv-0002").State; busy != "open" || idle != "expired" {
		t.Errorf("the busy account's reservation is %s and the other's %s", busy, idle)
	}
	release()
	hasty.stepped()
	if got := c.reservation("resv-0001").State; got != "expired" {
		t.Errorf("the overdue reservation is %s", got)
	}
	c.verified()
}

// TestAReservationThatCannotBeSettledStopsNoOther plants one.
func TestAReservationThatCannotBeSettledStopsNoOther(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.reserved("resv-0001", 1)
	c.reserved("resv-0002", 1)
	pgtest.Exec(t, c.own, "ALTER TABLE reservations ADD CONSTRAINT planted CHECK (reservation_id <> 'resv-0001' OR state = 'open')")
	c.clock.pass(time.Hour)
	if _, err := c.ReservationStep(t.Context()); err == nil {
		t.Error("a reservation that cannot be settled is not told of")
	}
	if a, b := c.reservation("resv-0001").State, c.reservation("resv-0002").State; a != "open" || b != "expired" {
		t.Errorf("the one is %s, the other %s", a, b)
	}
	c.verified()
	pgtest.Exec(t, c.own, "ALTER TABLE reservations DROP CONSTRAINT planted")
	c.stepped()
	c.wantBooks("10/0/0")
}

// TestC13ACaptureIsWholeOrNotAtAll plants a failure of its last statement.
func TestC13ACaptureIsWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.reserved("resv-0001", 5)
	pgtest.Exec(t, c.own, "ALTER TABLE reservations ADD CONSTRAINT planted CHECK (state = 'open')")
	c.want(500, http.MethodPost, "/v1/reservations/resv-0001/capture", `{"quantity": 2}`)
	c.wantBooks("5/5/0")
	if n := c.count("SELECT (SELECT count(*) FROM usage) + (SELECT count(*) FROM deliveries)"); n != 0 {
		t.Errorf("%d rows of a capture that failed", n)
	}
	c.verified()
	pgtest.Exec(t, c.own, "ALTER TABLE reservations DROP CONSTRAINT planted")
	if a := c.on("resv-0001", "capture", `{"quantity": 2}`); a.status != 201 || a.replayed {
		t.Errorf("answered %d (replayed %v): %s", a.status, a.replayed, a.body)
	}
	c.verified()
}

// TestVerifyFindsEachPlantedDefectOfReservations is about L10 and L11.
func TestVerifyFindsEachPlantedDefectOfReservations(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, statement, want string }{
		{"ended by hand", "UPDATE reservations SET state = 'released', returned = 3, end_version = hold_version, ended_at = now() WHERE reservation_id = 'resv-open'", "held holds"},
		{"reopened by hand", "UPDATE reservations SET state = 'open', captured = 0, returned = 0, end_version = NULL, ended_at = NULL, usage_id = NULL, capture_fingerprint = NULL WHERE reservation_id = 'resv-done'", "held holds captures"},
		{"more held", "UPDATE reservations SET credits = credits + 1 WHERE reservation_id = 'resv-open'", "held holds"},
		{"deleted", "DELETE FROM reservations WHERE reservation_id = 'resv-free'", "holds"},
		{"invented", "INSERT INTO reservations SELECT part, account, 'resv-more', meter, quantity, dimensions, rate_version, 0, '{}', '{}', 60, fingerprint, hold_version, created_at, 'open', expires_at, '', NULL, 0, 0, 0, NULL, NULL, NULL, NULL FROM reservations WHERE reservation_id = 'resv-open'", "holds"},
		{"usage lost", "DELETE FROM usage", "captures"},
		{"usage changed", "UPDATE usage SET credits = credits + 1", "usage"},
		{"usage of another time", "UPDATE usage SET recorded_at = recorded_at + interval '1 microsecond'", "usage"},
		{"held at a rate that never was", "UPDATE reservations SET rate_version = 9 WHERE reservation_id = 'resv-open'", "rates"},
		{"ended by nothing", "UPDATE reservations SET end_version = 9999 WHERE reservation_id = 'resv-done'", "holds"},
		{"usage at a rate that never was", "UPDATE usage SET rate_version = 9", "rates"},
		{"transfer lost", "DELETE FROM transfers WHERE kind = 'capture'", "usage"},
		{"capture forgotten", "UPDATE reservations SET state = 'released', captured = 0, returned = credits, usage_id = NULL, capture_fingerprint = NULL WHERE reservation_id = 'resv-done'", "captures"},
		{"parts shifted", "UPDATE reservations SET captured = captured - 1, returned = returned + 1 WHERE reservation_id = 'resv-done'", "holds"},
		{"held by the account", "UPDATE accounts SET held = held + 1", "held"},
		{"a home invented", "INSERT INTO grants SELECT part, account, 'reservation:resv-free', kind, 5, 0, 0, NULL, '', NULL, fingerprint, transfer_version, created_at FROM grants LIMIT 1", "grant_transfers"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := opened(t, 20)
			c.reserved("resv-open", 3)
			c.reserved("resv-done", 4)
			c.want(201, http.MethodPost, "/v1/reservations/resv-done/capture", `{"quantity": 2}`)
			c.reserved("resv-free", 5)
			c.want(200, http.MethodPost, "/v1/reservations/resv-free/release", "")
			c.verified()
			pgtest.Exec(t, c.own, "SET LOCAL session_replication_role = replica; ALTER TABLE reservations DROP CONSTRAINT reservations_life; "+tc.statement)
			report, err := ledger.Verify(t.Context(), c.own)
			if err != nil {
				t.Fatal(err)
			}
			found := map[string]bool{}
			for _, check := range report.Checks {
				found[check.Name] = check.Broken > 0
			}
			for _, name := range []string{"held", "holds", "captures", "usage", "rates", "grant_transfers"} {
				if wanted := slices.Contains(strings.Fields(tc.want), name); wanted && !found[name] {
					t.Errorf("%s is not found broken: %v", name, found)
				}
			}
		})
	}
}

// TestWhatWasReservedCannotBeRewritten is about the privileges of the service.
func TestWhatWasReservedCannotBeRewritten(t *testing.T) {
	t.Parallel()
	c := opened(t, 20)
	c.reserved("resv-0001", 3)
	db := pgtest.Open(t, c.dsn, patient)
	for _, statement := range []string{"UPDATE reservations SET credits = 1", "UPDATE reservations SET hold_version = 1", "DELETE FROM reservations"} {
		if err := db.InTx(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(statement); return err }); err == nil {
			t.Errorf("the service may run %s", statement)
		}
	}
	var r api.Reservation
	read(t, c.want(200, http.MethodGet, "/v1/reservations/resv-0001", ""), &r)
}

// TestThePolicyThatHoldsIsTheOneUnderTheLock changes it while the sweeper waits.
func TestThePolicyThatHoldsIsTheOneUnderTheLock(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(200, http.MethodPut, "/v1/accounts/acme", `{"in_doubt_after": {"action": "release", "seconds": 60}}`)
	c.reserved("resv-0001", 1)
	c.want(200, http.MethodPost, "/v1/reservations/resv-0001/doubt", `{"reason": "timeout"}`)
	c.clock.pass(10 * time.Minute)
	release := c.hold("UPDATE accounts SET in_doubt_seconds = 7200 WHERE account = 'acme'")
	done := make(chan struct{})
	go func() { c.stepped(); close(done) }()
	c.blocked(1)
	release()
	<-done
	if got := c.reservation("resv-0001").State; got != "in_doubt" {
		t.Errorf("by a policy that no longer holds the reservation is %s", got)
	}
	c.verified()
}

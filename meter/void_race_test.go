package meter_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"tallystick/ledger"
)

// TestP2AVoidWithAnUnknownCommitIsSettledByItsKey cuts the connection at COMMIT,
// before or after Postgres executed it: the caller gets the one true answer.
func TestP2AVoidWithAnUnknownCommitIsSettledByItsKey(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	w := wired(t, c.dsn)
	cutting := c.through(w.dsn)
	for i, at := range commits() {
		id := fmt.Sprintf("usage-%04d", i)
		c.use(id, 3)
		w.plan(at)
		a := cutting.void(id, "a mistake")
		if w.left() != 0 {
			t.Fatalf("%v: no connection was cut", at)
		}
		if a.status != 201 || a.replayed != at.executed {
			t.Errorf("%v: answered %d (replayed %v): %s", at, a.status, a.replayed, a.body)
		}
		if again := c.void(id, "a mistake"); again.body != a.body || !again.replayed {
			t.Errorf("%v: answered %s, sent again %s", at, a.body, again.body)
		}
		if n := c.count("SELECT count(*) FROM transfers WHERE kind = 'void'"); n != i+1 || c.available() != "100" {
			t.Errorf("%v: %d voids in all and %s available, want %d and 100", at, n, c.available(), i+1)
		}
	}
	c.verified()
}

// TestP1NoCutAnywhereVoidsTwice cuts at each message of a void's transaction in turn.
func TestP1NoCutAnywhereVoidsTwice(t *testing.T) {
	t.Parallel()
	c := opened(t, 10_000)
	w := wired(t, c.dsn)
	cutting := c.through(w.dsn)
	sent := 0
	for _, kind := range []cut{{reset: true}, {executed: true}, {executed: true, half: true}} {
		for at := 0; ; at++ {
			id := fmt.Sprintf("usage-%04d", sent)
			c.use(id, 3)
			sent++
			kind.skip = at
			w.plan(kind)
			a := cutting.void(id, "a mistake")
			beyond := w.left() > 0
			w.plan()
			if a.status == 503 || a.status == 401 { // the key was asked for over the wire, too
				a = cutting.void(id, "a mistake")
			}
			if a.status != 201 {
				t.Fatalf("%v: answered %d: %s", kind, a.status, a.body)
			}
			if n := c.count("SELECT count(*) FROM transfers WHERE kind = 'void'"); n != sent {
				t.Fatalf("%v: %d transfers for %d voids", kind, n, sent)
			}
			if beyond {
				break // there is no such message: all have been cut at
			}
		}
	}
	if sent < 3*15 {
		t.Errorf("only %d cuts: the messages of a transaction were not all seen", sent)
	}
	if c.available() != "10000" || c.count("SELECT sum(quantity)::bigint FROM deliveries") != 0 {
		t.Errorf("%s are available, want all: %d voids", c.available(), sent)
	}
	c.verified()
}

// TestVoidsRacingUsageReservationsAndEachOther runs over two processes: in the end
// what stands is what is charged and staged.
func TestVoidsRacingUsageReservationsAndEachOther(t *testing.T) {
	t.Parallel()
	c := opened(t, 40)
	processes := []*till{c, c.beside()}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			p := processes[i%2]
			for j := range 6 {
				id := fmt.Sprintf("usage-%02d-%02d", i, j)
				if a := p.use(id, 2); a.status != 201 && a.status != 402 {
					t.Errorf("usage was answered %d: %s", a.status, a.body)
				}
				resv := fmt.Sprintf("resv-%02d-%02d", i, j)
				body := fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "call", "quantity": 2, "ttl_seconds": 60}`, resv)
				if p.call(http.MethodPost, "/v1/reservations", body).status == 201 {
					p.want(201, http.MethodPost, "/v1/reservations/"+resv+"/capture?account=acme", `{"quantity": 3}`)
				}
				for _, voided := range []string{id, fmt.Sprintf("usage-%02d-%02d", (i+1)%12, j), "reservation@" + resv} {
					if a := processes[j%2].void(voided, "r"); a.status != 201 && a.code != "usage_not_found" {
						t.Errorf("the void of %s was answered %d: %s", voided, a.status, a.body)
					}
				}
			}
		})
	}
	wg.Wait()
	standing := c.count(`SELECT coalesce(sum(u.credits), 0)::bigint FROM usage u WHERE NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.usage_id = u.usage_id)`)
	has := c.count("SELECT available + held - debt FROM accounts")
	staged := c.count("SELECT coalesce(sum(quantity), 0)::bigint FROM deliveries")
	if has != 40_000_000-standing || staged != standing {
		t.Errorf("the account has %d, %d are charged and %d staged (millionths)", has, standing, staged)
	}
	c.verified()
}

// TestVerifyFindsWhatWasTakenBackFromStripeAndIsNot plants rows that say so.
func TestVerifyFindsWhatWasTakenBackFromStripeAndIsNot(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.use("usage-0001", 3)
	c.use("usage-0002", 4)
	c.voided("usage-0001")
	c.verified()
	for _, statement := range []string{
		"UPDATE usage_voids SET staged = 2000000", "UPDATE deliveries SET quantity = quantity + 3000000", "UPDATE usage_voids SET staged = 0",
	} {
		c.exec(statement)
		report, err := ledger.Verify(t.Context(), c.own)
		if err != nil {
			t.Fatal(err)
		}
		found := ""
		for _, check := range report.Checks {
			if check.Broken > 0 {
				found += check.Name + " "
			}
		}
		if want := !strings.HasSuffix(statement, "= 0"); (found == "deliveries ") != want || (found == "") == want {
			t.Errorf("after %q Verify finds %q broken", statement, found)
		}
	}
}

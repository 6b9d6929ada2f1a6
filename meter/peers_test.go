package meter_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
)

// What others have had wrong in the field, named by whoever had it.

// TestFormance364UnderLoadEachAnswerIsItsOwn asks for many usages at once: each is
// answered with its own id, whole, and no two at one version.
func TestFormance364UnderLoadEachAnswerIsItsOwn(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	tills := []*till{c, c.beside()}
	versions := make([]int64, 300)
	var wg sync.WaitGroup
	for i := range versions {
		wg.Go(func() {
			id := fmt.Sprintf("usage-%04d", i)
			a := tills[i%2].use(id, 1)
			if !strings.Contains(a.body, `"id":"`+id+`"`) || a.status != 201 || a.replayed {
				t.Errorf("%s was answered %d (replayed %v) %q", id, a.status, a.replayed, a.body)
				return
			}
			var u api.Usage
			read(t, a, &u)
			versions[i] = u.Balance.Version
		})
	}
	wg.Wait()
	slices.Sort(versions)
	for i, v := range versions {
		if v != int64(i)+2 {
			t.Fatalf("usage %d has version %d, want %d: versions go up by one, behind the grant's", i, v, i+2)
		}
	}
	c.verified()
}

// TestC03Formance1638AnIDIsOfItsAccountAndKind uses one id for everything.
func TestC03Formance1638AnIDIsOfItsAccountAndKind(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(201, http.MethodPut, "/v1/accounts/other", `{}`)
	const id = "same-id-0001"
	for _, account := range []string{"acme", "other"} {
		for _, call := range []struct{ path, body string }{
			{"/v1/accounts/" + account + "/grants", `{"id": %q, "credits": 10}`},
			{"/v1/accounts/" + account + "/adjustments", `{"id": %q, "credits": 1, "reason": "r"}`},
			{"/v1/usage", `{"id": %q, "meter": "call", "quantity": 2, "account": "` + account + `"}`},
			{"/v1/reservations", `{"id": %q, "meter": "call", "quantity": 3, "ttl_seconds": 60, "account": "` + account + `"}`},
		} {
			body := fmt.Sprintf(call.body, id)
			if a := c.want(201, http.MethodPost, call.path, body); a.replayed {
				t.Errorf("%s of %s counts as a repeat: %s", call.path, account, a.body)
			}
			if a := c.want(201, http.MethodPost, call.path, body); !a.replayed {
				t.Errorf("%s of %s again is no repeat: %s", call.path, account, a.body)
			}
		}
	}
	c.wantBooks("16/3/0")
	c.verified()
}

// TestBlnk181WhatIsHeldCannotBeSpent in any way.
func TestBlnk181WhatIsHeldCannotBeSpent(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.reserved("resv-0001", 6)
	for _, call := range []struct{ path, body string }{
		{"/v1/usage", usageOf("usage-0001", 5)},
		{"/v1/reservations", reserveOf("resv-0002", 5)},
		{adjustments, `{"id": "adjust-01", "credits": -5, "reason": "r"}`},
	} {
		if a := c.want(402, http.MethodPost, call.path, call.body); a.code != "insufficient_credits" {
			t.Errorf("%s was answered %s", call.path, a.body)
		}
	}
	c.want(201, http.MethodPost, "/v1/usage", usageOf("usage-0002", 4)) // to the last
	c.wantBooks("0/6/0")
	c.verified()
}

// TestC08Blnk182ARefusedHoldCannotBeCaptured nor ended otherwise.
func TestC08Blnk182ARefusedHoldCannotBeCaptured(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(402, http.MethodPost, "/v1/reservations", reserveOf("resv-0001", 11))
	for call, body := range map[string]string{"capture": `{"quantity": 1}`, "release": "", "extend": `{"ttl_seconds": 60}`, "doubt": `{"reason": "x"}`} {
		if a := c.on("resv-0001", call, body); a.status != 404 {
			t.Errorf("%s of a hold that was refused was answered %d: %s", call, a.status, a.body)
		}
	}
	c.wantBooks("10/0/0")
	if a := c.reserve("resv-0001", 10); a.status != 201 || a.replayed { // a refusal leaves no trace
		t.Errorf("answered %d: %s", a.status, a.body)
	}
	c.verified()
}

// TestC08BlnkPR43AHoldIsGivenBackOnce however often, and never after its capture.
func TestC08BlnkPR43AHoldIsGivenBackOnce(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	tills := []*till{c, c.beside()}
	c.reserved("resv-0001", 6)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if a := tills[i%2].on("resv-0001", "release", ""); a.status != 200 {
				t.Errorf("answered %d: %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	c.wantBooks("10/0/0")
	if a := c.on("resv-0001", "capture", `{"quantity": 1}`); a.status != 409 || a.code != "reservation_closed" {
		t.Errorf("capture after release was answered %d: %s", a.status, a.body)
	}
	c.reserved("resv-0002", 6)
	c.want(201, http.MethodPost, "/v1/reservations/resv-0002/capture", `{"quantity": 6}`)
	if a := c.on("resv-0002", "release", ""); a.status != 409 || a.code != "reservation_closed" {
		t.Errorf("release after capture was answered %d: %s", a.status, a.body)
	}
	c.wantBooks("4/0/0")
	c.verified()
}

// TestLago5870ATopUpSentOftenIsOne, whichever process takes it.
func TestLago5870ATopUpSentOftenIsOne(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	tills := []*till{c, c.beside()}
	bodies := make([]string, 40)
	var wg sync.WaitGroup
	for i := range bodies {
		wg.Go(func() {
			bodies[i] = tills[i%2].call(http.MethodPost, grants, `{"id": "top-up-01", "credits": 100}`).body
		})
	}
	wg.Wait()
	if got := slices.Compact(slices.Sorted(slices.Values(bodies))); len(got) != 1 {
		t.Errorf("%d different answers: %q", len(got), got)
	}
	c.wantBooks("100/0/0")
	c.verified()
}

// TestB07FiveBells402ADeadlockIsNoWantOfCredits makes a usage's transaction the
// victim of a deadlock: it is run again, and nobody is told that credits lack.
func TestB07FiveBells402ADeadlockIsNoWantOfCredits(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	locked, cross, ended := make(chan error), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- c.own.InTx(context.Background(), func(tx *sqlx.Tx) error {
			// The other side must be the one that finds the deadlock, and ends for it.
			_, err := tx.Exec("SET LOCAL deadlock_timeout = '10min'")
			if err == nil {
				_, err = tx.Exec("SELECT 1 FROM grants WHERE account = 'acme' FOR UPDATE")
			}
			locked <- err
			if err != nil {
				return err
			}
			<-cross
			_, err = tx.Exec("SELECT 1 FROM accounts WHERE account = 'acme' FOR UPDATE")
			return err
		})
	}()
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	first := make(chan answer, 1)
	go func() { first <- c.use("usage-0001", 10) }()
	c.blocked(1) // it has the account, and wants the grant
	close(cross)
	if a := <-first; a.status != 201 || a.replayed {
		t.Errorf("the victim of a deadlock was answered %d: %s", a.status, a.body)
	}
	if err := <-ended; err != nil {
		t.Errorf("the other side: %v", err)
	}
	if n := c.count("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"); n != 1 {
		t.Errorf("%d deadlocks, want 1", n)
	}
	c.wantBooks("0/0/0")
	c.verified()
}

// TestG07TextIsOnlyText puts what SQL would mind into every text there is.
func TestG07TextIsOnlyText(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	for i, text := range []string{`'; DROP TABLE accounts; --`, `\'; SELECT 1`, `$1`, `%s %d`, `{"a"}`, `{",",NULL}`, `"`, "\u2028", `E'\\x00'`, "line\nbreak", "🦊"} {
		quoted := fmt.Sprintf("%q", text)
		quoted = strings.NewReplacer(`\U0001f98a`, "🦊").Replace(quoted)
		for _, call := range []struct {
			method, path, body string
			status             int
		}{
			{http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%04d", "account": "acme", "meter": "call", "quantity": 1, "dimensions": {%s: %s}}`, i, quoted, quoted), 201},
			{http.MethodPost, grants, fmt.Sprintf(`{"id": "grant-1%03d", "credits": 1, "reason": %s}`, i, quoted), 201},
			{http.MethodPost, adjustments, fmt.Sprintf(`{"id": "adjust-%03d", "credits": 1, "reason": %s}`, i, quoted), 201},
			{http.MethodPut, "/v1/accounts/acme", fmt.Sprintf(`{"name": %s, "metadata": {%s: %s}}`, quoted, quoted, quoted), 200},
			{http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": %s, "account": %s, "meter": %s, "quantity": 1}`, quoted, quoted, quoted), 422},
		} {
			c.want(call.status, call.method, call.path, call.body)
		}
		var a api.Account
		read(t, c.want(200, http.MethodGet, "/v1/accounts/acme", ""), &a)
		if a.Name != text || a.Metadata[text] != text {
			t.Errorf("%q came back as %q and %v", text, a.Name, a.Metadata)
		}
	}
	c.verified()
}

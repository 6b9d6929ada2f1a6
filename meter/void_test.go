package meter_test

import (
	"context"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"tallystick/api"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/meter"
)

func voidOf(account, reason string) string {
	return fmt.Sprintf(`{"account": %q, "reason": %q}`, account, reason)
}

// void voids acme's usage and gives whatever the answer is.
func (c *till) void(id, reason string) answer {
	c.t.Helper()
	return c.call(http.MethodPost, "/v1/usage/"+id+"/void", voidOf("acme", reason))
}

// voided voids acme's usage.
func (c *till) voided(id string) api.UsageVoid {
	c.t.Helper()
	a := c.void(id, "a mistake")
	if a.status != 201 {
		c.t.Fatalf("the void of %s was answered %d: %s", id, a.status, a.body)
	}
	var v api.UsageVoid
	read(c.t, a, &v)
	return v
}

func (c *till) detail(id string) api.UsageDetail {
	c.t.Helper()
	var d api.UsageDetail
	read(c.t, c.want(200, http.MethodGet, "/v1/usage/"+id+"?account=acme", ""), &d)
	return d
}

// exec runs a statement past everything.
func (c *till) exec(statement string, args ...any) {
	c.t.Helper()
	pgtest.Exec(c.t, c.own, statement, args...)
}

func grantsOf(changes []api.GrantChange) (text string) {
	for _, g := range changes {
		text += fmt.Sprintf("%s %s; ", g.ID, g.Credits)
	}
	return text
}

func TestRefusalsOfAVoidChangeNothing(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/accounts/other", `{}`)
	c.want(201, http.MethodPost, "/v1/usage", usageOf("usage-0001", 7))
	for _, tc := range []struct {
		name, path, body, code string
		status                 int
	}{
		{"no reason", "usage-0001", `{"account": "acme"}`, "invalid_value", 422},
		{"a reason too long", "usage-0001", voidOf("acme", strings.Repeat("r", 1001)), "invalid_value", 422},
		{"no account", "usage-0001", `{"reason": "r"}`, "invalid_value", 422},
		{"a member too many", "usage-0001", `{"account": "acme", "reason": "r", "id": "x"}`, "invalid_request", 400},
		{"no such account", "usage-0001", voidOf("nobody", "r"), "account_not_found", 404},
		{"no such usage", "usage-0009", voidOf("acme", "r"), "usage_not_found", 404},
		{"of another account", "usage-0001", voidOf("other", "r"), "usage_not_found", 404},
		{"no capture", "reservation@usage-0001", voidOf("acme", "r"), "usage_not_found", 404},
		{"no id", "u", voidOf("acme", "r"), "usage_not_found", 404},
	} {
		if a := c.call(http.MethodPost, "/v1/usage/"+tc.path+"/void", tc.body); a.status != tc.status || a.code != tc.code {
			t.Errorf("%s was answered %d %s, want %d %s: %s", tc.name, a.status, a.code, tc.status, tc.code, a.body)
		}
	}
	for _, scope := range []string{meter.ScopeUsage, meter.ScopeRead} {
		key, err := c.CreateKey(t.Context(), api.KeyRequest{Name: "k", Scopes: []string{scope}})
		if err != nil {
			t.Fatal(err)
		}
		if a := c.call(http.MethodPost, "/v1/usage/usage-0001/void", voidOf("acme", "r"), "Authorization", "Bearer "+key.Secret); a.status != 403 {
			t.Errorf("G03 with the scope %s it was answered %d", scope, a.status)
		}
	}
	if n := c.count("SELECT count(*) FROM usage_voids"); n != 0 || c.available() != "93" {
		t.Errorf("%d voids and %s available, want none and 93", n, c.available())
	}
	for path, status := range map[string]int{
		"/v1/usage/usage-0001": 400, "/v1/usage/usage-0001?account=nobody": 404, "/v1/usage/usage-0001?account=other": 404, "/v1/usage/usage-0009?account=acme": 404,
	} {
		c.want(status, http.MethodGet, path, "")
	}
}

// TestC02AVoidTakesUsageBackOnce voids usage of two grants, and sends everything again.
func TestC02AVoidTakesUsageBackOnce(t *testing.T) {
	t.Parallel()
	c := opened(t, 5)
	c.want(201, http.MethodPost, grants, `{"id": "grant-0001", "credits": 5, "priority": 1}`)
	first := c.want(201, http.MethodPost, "/v1/usage", usageOf("usage-0001", 7))
	c.use("usage-0002", 1)
	if d := c.detail("usage-0001"); grantsOf(d.Grants) != "grant-0000 5; grant-0001 2; " || d.Void != nil || d.CreditsPerUnit != "1" || d.RateVersion != 1 {
		t.Errorf("the usage is %+v", d)
	}
	c.clock.pass(time.Minute)
	a := c.void("usage-0001", "a mistake")
	var v api.UsageVoid
	read(t, a, &v)
	if a.status != 201 || a.replayed || v.Credits != "7" || v.Returned != "7" || v.Expired != "0" || v.Quantity != "7" || v.Meter != "call" ||
		v.Balance.Available != "9" || v.Balance.Version != 5 || v.Stripe != "withdrawn" || v.Delivery == nil || !v.VoidedAt.Equal(start.Add(time.Minute)) || !strings.HasPrefix(v.Actor, "key:") {
		t.Errorf("the void was answered %d %+v", a.status, v)
	}
	c.clock.pass(time.Minute)
	c.use("usage-0003", 1)
	if again := c.void("usage-0001", "a mistake"); again.status != 201 || !again.replayed || again.body != a.body {
		t.Errorf("the void again was answered %d:\n%s, first\n%s", again.status, again.body, a.body)
	}
	if other := c.void("usage-0001", "another"); other.status != 422 || other.code != "idempotency_conflict" {
		t.Errorf("with another reason it was answered %d: %s", other.status, other.body)
	}
	if again := c.use("usage-0001", 7); again.status != 201 || !again.replayed || again.body != first.body {
		t.Errorf("the usage again was answered %d: %s", again.status, again.body)
	}
	if other := c.use("usage-0001", 8); other.status != 422 {
		t.Errorf("the usage with other content was answered %d: %s", other.status, other.body)
	}
	if d := c.detail("usage-0001"); d.Void == nil || d.Void.Reason != "a mistake" || grantsOf(d.Grants) != "grant-0000 5; grant-0001 2; " || d.Credits != "7" {
		t.Errorf("the usage is %+v", d)
	}
	if c.available() != "8" {
		t.Errorf("%s are available, want 8", c.available())
	}
	var page statement
	read(t, c.want(200, http.MethodGet, transfers+"?limit=2", ""), &page)
	if line := page.Data[1]; line.Kind != "void" || line.Credits != "7" || line.Cause != "usage-0001" || line.Note != "a mistake" || grantsOf(line.Grants) != "grant-0000 5; grant-0001 2; " {
		t.Errorf("the statement says %+v", line)
	}
	c.clock.pass(time.Minute)
	var sums api.UsageTotals
	read(t, c.want(200, http.MethodGet, totals, ""), &sums)
	if len(sums.Data) != 1 || sums.Data[0].Quantity != "2" || sums.Data[0].Credits != "2" || sums.Data[0].Count != 2 {
		t.Errorf("the totals are %+v, want the two that stand", sums.Data)
	}
	c.verified()
}

func TestAHundredVoidsAtOnceHaveOneEffect(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	other := c.beside()
	c.use("usage-0001", 7)
	answers := make([]answer, 100)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			answers[i] = []*till{c, other}[i%2].void("usage-0001", "a mistake")
			if i%10 == 0 {
				c.use("usage-0001", 7)
			}
		})
	}
	wg.Wait()
	fresh := 0
	for _, a := range answers {
		if a.status != 201 || a.body != answers[0].body {
			t.Fatalf("answered %d: %s, another %s", a.status, a.body, answers[0].body)
		}
		if !a.replayed {
			fresh++
		}
	}
	if fresh != 1 || c.available() != "100" {
		t.Errorf("%d were no replays and %s are available, want 1 and 100", fresh, c.available())
	}
	c.verified()
}

// TestVoidsOfCaptures voids usage that came out of a hold, the balance and debt.
func TestVoidsOfCaptures(t *testing.T) {
	t.Parallel()
	reserve := func(c *till, quantity int) {
		c.want(201, http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": "resv-0001", "account": "acme", "meter": "call", "quantity": %d, "ttl_seconds": 60}`, quantity))
	}
	capture := func(c *till, quantity int) {
		c.want(201, http.MethodPost, "/v1/reservations/resv-0001/capture", fmt.Sprintf(`{"quantity": %d}`, quantity))
	}
	for _, tc := range []struct {
		name    string
		play    func(c *till)
		grants  string
		balance string // after the void: available/held/debt
		version int64
	}{
		{"all of the hold", func(c *till) { reserve(c, 7); capture(c, 7) }, "grant-0000 5; grant-0001 2; ", "10/0/0", 5},
		{"the front of the hold", func(c *till) { reserve(c, 7); capture(c, 6) }, "grant-0000 5; grant-0001 1; ", "10/0/0", 6},
		{"less than one grant", func(c *till) { reserve(c, 7); capture(c, 4) }, "grant-0000 4; ", "10/0/0", 6},
		{"more than the hold", func(c *till) { reserve(c, 3); capture(c, 4) }, "grant-0000 4; ", "10/0/0", 6},
		{"more than there is", func(c *till) { reserve(c, 8); capture(c, 13) }, "grant-0000 5; grant-0001 5; ", "10/0/0", 8},
		{"after the expiry", func(c *till) { reserve(c, 8); c.clock.pass(time.Hour); capture(c, 12) }, "grant-0000 5; grant-0001 5; ", "10/0/0", 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := opened(t, 5)
			c.want(201, http.MethodPost, grants, `{"id": "grant-0001", "credits": 5, "priority": 1}`)
			tc.play(c)
			if d := c.detail("reservation@resv-0001"); grantsOf(d.Grants) != tc.grants {
				t.Errorf("the capture took %s, want %s", grantsOf(d.Grants), tc.grants)
			}
			v := c.voided("reservation@resv-0001")
			if got := fmt.Sprintf("%s/%s/%s", v.Balance.Available, v.Balance.Held, v.Balance.Debt); got != tc.balance || v.Balance.Version != tc.version || v.Returned != v.Credits {
				t.Errorf("the balance is %s at %d, want %s at %d; %+v", got, v.Balance.Version, tc.balance, tc.version, v)
			}
			if again := c.void("reservation@resv-0001", "a mistake"); !again.replayed || !strings.Contains(again.body, fmt.Sprintf(`"version":%d`, tc.version)) {
				t.Errorf("again it was answered %s", again.body)
			}
			c.want(409, http.MethodPost, "/v1/reservations/resv-0001/capture", `{"quantity": 1}`)
			c.verified()
		})
	}
}

// TestWhatAVoidTellsStripe looks at each way in which Stripe may have been told.
func TestWhatAVoidTellsStripe(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/meters/unbound", `{"credits_per_unit": 1}`)
	c.want(201, http.MethodPost, "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "unbound", "quantity": 3}`)
	for i := 2; i <= 4; i++ {
		c.use(fmt.Sprintf("usage-%04d", i), i)
	}
	sum := func() int { return c.count("SELECT (coalesce(sum(quantity), 0) / 1000000)::bigint FROM deliveries") }
	for _, step := range []struct {
		before   func()
		id, want string
		sum      int
	}{
		{func() {}, "usage-0001", "not_billed", 9},
		{func() {}, "usage-0002", "withdrawn", 7},
		{func() {
			c.exec("UPDATE deliveries SET state = 'delivered', first_sent_at = $1, event_name = 'calls'", start)
		}, "usage-0003", "corrected", 4},
		{func() { c.clock.pass(35 * 24 * time.Hour) }, "usage-0004", "too_late", 4},
	} {
		step.before()
		v := c.voided(step.id)
		if v.Stripe != step.want || sum() != step.sum || (v.Delivery != nil) != (step.want == "withdrawn" || step.want == "corrected") {
			t.Errorf("%s: Stripe is told %s (%v) and %d are staged, want %s and %d", step.id, v.Stripe, v.Delivery, sum(), step.want, step.sum)
		}
		c.verified()
	}
	c.use("usage-0005", 5)
	c.exec("DELETE FROM deliveries")
	if v := c.voided("usage-0005"); v.Stripe != "no_delivery" {
		t.Errorf("without a delivery Stripe is told %s", v.Stripe)
	}
	if c.available() != "100" {
		t.Errorf("%s are available, want all 100", c.available())
	}
}

// TestAVoidAfterItsGrantsAreDue gives back what has not expired by then.
func TestAVoidAfterItsGrantsAreDue(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	c.want(201, http.MethodPost, grants, fmt.Sprintf(`{"id": "grant-0001", "credits": 5, "expires_at": %q}`, start.Add(time.Hour).Format(time.RFC3339)))
	c.want(201, http.MethodPost, grants, `{"id": "grant-0002", "credits": 5}`)
	c.use("usage-0001", 7)
	c.use("usage-0002", 1)
	c.clock.pass(time.Hour)
	if v := c.voided("usage-0001"); v.Returned != "2" || v.Expired != "5" || v.Balance.Available != "4" {
		t.Errorf("the void was answered %+v", v)
	}
	if a := c.void("usage-0001", "a mistake"); !a.replayed || !strings.Contains(a.body, `"expired":"5"`) {
		t.Errorf("again it was answered %s", a.body)
	}
	c.verified()
}

// TestARefundedGrantTakesNoVoidedCredits keeps the place of what the refund took.
func TestARefundedGrantTakesNoVoidedCredits(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.use("usage-0001", 6)
	c.exec(`INSERT INTO clawbacks SELECT part, account, 're_1', 'pi_1', grant_id, 100, 10000000, 'taken', $1, $1 FROM grants`, start)
	if v := c.voided("usage-0001"); v.Returned != "6" || v.Balance.Available != "10" {
		t.Errorf("the void was answered %+v", v)
	}
	if n := c.count("SELECT remaining / 1000000 FROM grants WHERE grant_id = 'void@usage-0001'"); n != 6 {
		t.Errorf("the grant of the void's own has %d, want 6", n)
	}
	c.exec("DELETE FROM clawbacks") // it has no transfer in the journal
	c.verified()
}

// TestTheServiceCannotChangeAVoid proves the journal's privileges.
func TestTheServiceCannotChangeAVoid(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.use("usage-0001", 6)
	c.voided("usage-0001")
	db := pgtest.Open(t, c.dsn, patient)
	for _, statement := range []string{"UPDATE usage_voids SET reason = 'x'", "DELETE FROM usage_voids"} {
		err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
			_, err := tx.ExecContext(t.Context(), statement)
			return err
		})
		if !pg.IsCode(err, "42501") {
			t.Errorf("%s: %v, want no privilege", statement, err)
		}
	}
}

// book is what the API must hold of one account, added up by hand: no grant
// expires, so that what is left is what was given less what stands charged.
type book struct {
	given, charged *big.Rat
	stand          map[string]*big.Rat // usages that stand, with their quantities
	charges        map[string]*big.Rat
	gone           map[string]string // voided usages, with the first answer
	live           []string          // reservations
}

// TestUsagesAndVoidsAgreeWithTheNaiveBook draws usages, reservations, captures and
// voids, over two processes.
func TestUsagesAndVoidsAgreeWithTheNaiveBook(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	processes := []*till{c, c.beside()}
	accounts := 0
	outcomes := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		accounts++
		account := fmt.Sprintf("book-%04d", accounts)
		c.want(201, http.MethodPut, "/v1/accounts/"+account, fmt.Sprintf(`{"overdraft": %q}`, rapid.SampledFrom([]string{"0", "2"}).Draw(rt, "overdraft")))
		b := &book{given: new(big.Rat), charged: new(big.Rat), stand: map[string]*big.Rat{}, charges: map[string]*big.Rat{}, gone: map[string]string{}}
		for i := range 12 {
			b.step(rt, processes[rapid.IntRange(0, 1).Draw(rt, "process")], account, i, outcomes)
			b.check(rt, c, account)
		}
		if sum := rat(rt, fmt.Sprint(c.count("SELECT coalesce(sum(quantity), 0) FROM deliveries WHERE account = '"+account+"'"))); sum.Cmp(b.standing(1_000_000)) != 0 {
			rt.Fatalf("staged are %s millionths, want %s", sum, b.standing(1_000_000))
		}
	})
	c.verified()
	t.Logf("%d accounts, outcomes %v", accounts, outcomes)
	for _, outcome := range []string{"void fresh", "void again", "use fresh", "use 402", "capture fresh"} {
		if outcomes[outcome] == 0 {
			t.Errorf("the outcome %q never came about", outcome)
		}
	}
}

func (b *book) standing(factor int64) *big.Rat {
	sum := new(big.Rat)
	for _, q := range b.stand {
		sum.Add(sum, q)
	}
	return sum.Mul(sum, big.NewRat(factor, 1))
}

func (b *book) step(rt *rapid.T, c *till, account string, i int, outcomes map[string]int) {
	quantity := rapid.SampledFrom([]string{"0.5", "1", "1.000001", "3"}).Draw(rt, "quantity")
	switch rapid.SampledFrom([]string{"grant", "use", "use", "reserve", "capture", "void", "void", "void again", "sent"}).Draw(rt, "what") {
	case "grant":
		c.want(201, http.MethodPost, "/v1/accounts/"+account+"/grants", fmt.Sprintf(`{"id": "grant-%04d", "credits": %s}`, i, quantity))
		b.given.Add(b.given, rat(rt, quantity))
	case "use":
		id := fmt.Sprintf("usage-%04d", i)
		a := c.call(http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": %s}`, id, account, quantity))
		outcomes[outcome("use", a)]++
		b.note(rt, c, a)
	case "reserve":
		id := fmt.Sprintf("resv-%04d", i)
		a := c.call(http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": %s, "ttl_seconds": 60}`, id, account, quantity))
		if a.status == 201 {
			b.live = append(b.live, id)
		}
	case "capture":
		if len(b.live) > 0 {
			a := c.want(201, http.MethodPost, "/v1/reservations/"+b.live[0]+"/capture?account="+account, `{"quantity": `+quantity+`}`)
			b.live = b.live[1:]
			outcomes[outcome("capture", a)]++
			b.note(rt, c, a)
		}
	case "void":
		for id := range b.stand {
			a := c.want(201, http.MethodPost, "/v1/usage/"+id+"/void", voidOf(account, "r"))
			outcomes[outcome("void", a)]++
			b.charged.Sub(b.charged, b.charges[id])
			b.gone[id] = a.body
			delete(b.stand, id)
			return
		}
	case "void again":
		for id, first := range b.gone {
			a := c.want(201, http.MethodPost, "/v1/usage/"+id+"/void", voidOf(account, "r"))
			outcomes[outcome("void", a)]++
			if a.body != first || !a.replayed {
				rt.Fatalf("the void again was answered %s, first %s", a.body, first)
			}
		}
	case "sent": // as a worker would
		c.exec("UPDATE deliveries SET state = 'delivered', first_sent_at = $2, event_name = 'calls' WHERE account = $1 AND state = 'pending'", account, start)
	}
}

// note keeps usage that was recorded.
func (b *book) note(rt *rapid.T, c *till, a answer) {
	if a.status != 201 {
		return
	}
	var u api.Usage
	read(c.t, a, &u)
	b.stand[u.ID], b.charges[u.ID] = rat(rt, string(u.Quantity)), rat(rt, string(u.Credits))
	b.charged.Add(b.charged, b.charges[u.ID])
}

func (b *book) check(rt *rapid.T, c *till, account string) {
	var a api.Account
	read(c.t, c.want(200, http.MethodGet, "/v1/accounts/"+account, ""), &a)
	has := new(big.Rat).Add(rat(rt, string(a.Balance.Available)), rat(rt, string(a.Balance.Held)))
	has.Sub(has, rat(rt, string(a.Balance.Debt)))
	if want := new(big.Rat).Sub(b.given, b.charged); has.Cmp(want) != 0 {
		rt.Fatalf("the account has %s, want %s: %+v", has.FloatString(6), want.FloatString(6), a.Balance)
	}
	var sums api.UsageTotals
	read(c.t, c.want(200, http.MethodGet, "/v1/accounts/"+account+"/usage?to=2030-01-01T00:00:00Z&from=2026-01-01T00:00:00Z", ""), &sums)
	total, count := "0", int64(0)
	if len(sums.Data) > 0 {
		total, count = string(sums.Data[0].Quantity), sums.Data[0].Count
	}
	if rat(rt, total).Cmp(b.standing(1)) != 0 || int(count) != len(b.stand) {
		rt.Fatalf("the totals are %s of %d, want %s of %d", total, count, b.standing(1).FloatString(6), len(b.stand))
	}
}

// TestAVoidDoesNotEndWithItsCaller voids for a caller that has gone: whether it
// was done must not stay unknown.
func TestAVoidDoesNotEndWithItsCaller(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.use("usage-0001", 6)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, again, err := c.VoidUsage(ctx, "usage-0001", api.VoidRequest{Account: "acme", Reason: "r"}, "test"); err != nil || again {
		t.Errorf("with a caller that is gone: again %t, %v", again, err)
	}
	if c.available() != "10" {
		t.Errorf("%s are available, want 10", c.available())
	}
}

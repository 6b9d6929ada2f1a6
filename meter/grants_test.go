package meter_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/ledger"
)

const (
	grants      = "/v1/accounts/acme/grants"
	adjustments = "/v1/accounts/acme/adjustments"
)

func TestGrantAndAdjustmentRefusals(t *testing.T) {
	t.Parallel()
	c := opened(t, 5)
	for _, tc := range []struct {
		path, body, code string
		status           int
	}{
		{grants, `{"id": "short", "credits": 1}`, "invalid_value", 422},
		{grants, `{"credits": 1}`, "invalid_value", 422},
		{grants, `{"id": "grant-0001", "credits": 0}`, "invalid_value", 422},
		{grants, `{"id": "grant-0001", "credits": -1}`, "invalid_value", 422},
		{grants, `{"id": "grant-0001", "credits": "1000000000.000001"}`, "invalid_value", 422},
		{grants, `{"id": "grant-0001"}`, "invalid_value", 422},
		{grants, `{"id": "grant-0001", "credits": 1, "priority": 1001}`, "invalid_value", 422},
		{grants, `{"id": "grant-0001", "credits": 1, "priority": -1001}`, "invalid_value", 422},
		{grants, `{"id": "grant-0001", "credits": 1, "expires_at": "2026-03-01T12:00:00Z"}`, "invalid_value", 422},
		{grants, `{"id": "grant-0001", "credits": 1, "expires_at": "9999-12-31T23:59:59-01:00"}`, "invalid_value", 422}, // the year 10000 in UTC
		{grants, `{"id": "grant-0001", "credits": 1, "reason": "` + strings.Repeat("r", 1001) + `"}`, "invalid_value", 422},
		{"/v1/accounts/nobody/grants", `{"id": "grant-0001", "credits": 1}`, "account_not_found", 404},
		{adjustments, `{"id": "adjust-0001", "credits": 1}`, "invalid_value", 422},
		{adjustments, `{"id": "adjust-0001", "credits": 0, "reason": "r"}`, "invalid_value", 422},
		{adjustments, `{"id": "adjust-0001", "credits": "-5.000001", "reason": "r"}`, "insufficient_credits", 402},
		{"/v1/accounts/nobody/adjustments", `{"id": "adjust-0001", "credits": 1, "reason": "r"}`, "account_not_found", 404},
	} {
		if a := c.call(http.MethodPost, tc.path, tc.body); a.status != tc.status || a.code != tc.code {
			t.Errorf("%s with %.100s was answered %d %s, want %d %s", tc.path, tc.body, a.status, a.code, tc.status, tc.code)
		}
	}
	if n := c.count("SELECT count(*) FROM transfers"); n != 1 {
		t.Errorf("refusals left %d transfers, want the one before them", n)
	}
	for _, edge := range []string{
		`{"id": "grant-0001", "credits": 1000000000, "priority": 1000}`,
		`{"id": "grant-0002", "credits": "0.000001", "priority": -1000}`,
		`{"id": "grant-0003", "credits": 1, "expires_at": "2026-03-01T12:00:00.000001Z"}`,
		`{"id": "grant-0004", "credits": 1, "expires_at": "9999-12-31T23:59:59Z"}`,
		`{"id": "grant-0005", "credits": 1, "reason": "` + strings.Repeat("r", 1000) + `"}`,
	} {
		c.want(201, http.MethodPost, grants, edge)
	}
	c.want(201, http.MethodPost, adjustments, `{"id": "adjust-0001", "credits": -5, "reason": "r"}`)
	c.verified()
}

func TestGrantsAndAdjustmentsHappenOncePerID(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	for _, tc := range []struct {
		path, first string
		others      []string
	}{
		{
			grants, `{"id": "same-id-0001", "credits": 7, "reason": "r", "priority": 1, "expires_at": "2026-04-01T00:00:00Z"}`,
			[]string{
				`{"id": "same-id-0001", "credits": 8, "reason": "r", "priority": 1, "expires_at": "2026-04-01T00:00:00Z"}`,
				`{"id": "same-id-0001", "credits": 7, "reason": "", "priority": 1, "expires_at": "2026-04-01T00:00:00Z"}`,
				`{"id": "same-id-0001", "credits": 7, "reason": "r", "expires_at": "2026-04-01T00:00:00Z"}`,
				`{"id": "same-id-0001", "credits": 7, "reason": "r", "priority": 1, "expires_at": "2026-04-01T00:00:01Z"}`,
				`{"id": "same-id-0001", "credits": 7, "reason": "r", "priority": 1}`,
			},
		},
		{ // a grant's id is no adjustment's
			adjustments, `{"id": "same-id-0001", "credits": -3, "reason": "r"}`,
			[]string{`{"id": "same-id-0001", "credits": 3, "reason": "r"}`, `{"id": "same-id-0001", "credits": -3, "reason": "s"}`},
		},
		{adjustments, `{"id": "same-id-0002", "credits": "2.5", "reason": "r"}`, []string{`{"id": "same-id-0002", "credits": "2.4", "reason": "r"}`}},
	} {
		first := c.want(201, http.MethodPost, tc.path, tc.first)
		for _, other := range tc.others {
			if a := c.call(http.MethodPost, tc.path, other); a.status != 422 || a.code != "idempotency_conflict" {
				t.Errorf("%s after %s was answered %d %s", other, tc.first, a.status, a.code)
			}
		}
		c.clock.pass(time.Minute)
		c.use("usage-"+first.header.Get("X-Request-Id"), 1) // the first answer states the balance of then
		if a := c.call(http.MethodPost, tc.path, tc.first); a.status != 201 || !a.replayed || a.body != first.body || first.replayed {
			t.Errorf("%s was answered\n%s\nand again %d\n%s", tc.first, first.body, a.status, a.body)
		}
	}
	if got := c.available(); got != "3.5" {
		t.Errorf("acme holds %s, want 3.5: seven less three and three, and two and a half", got)
	}
	c.verified()
}

// TestAGrantIsRepeatedAfterItHasExpired sends it late again: a refusal would say
// that nothing was given.
func TestAGrantIsRepeatedAfterItHasExpired(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	body := `{"id": "grant-0001", "credits": 7, "expires_at": "2026-03-01T13:00:00Z"}`
	first := c.want(201, http.MethodPost, grants, body)
	c.clock.pass(time.Hour)
	if a := c.call(http.MethodPost, grants, `{"id": "grant-0002", "credits": 7, "expires_at": "2026-03-01T13:00:00Z"}`); a.status != 422 || a.code != "invalid_value" {
		t.Errorf("a new grant that has expired was answered %d: %s", a.status, a.body)
	}
	if a := c.call(http.MethodPost, grants, body); a.status != 201 || !a.replayed || a.body != first.body {
		t.Errorf("the repeat was answered %d: %s", a.status, a.body)
	}
	if a := c.use("usage-0001", 1); a.status != 402 {
		t.Errorf("expired credits were spent: %d %s", a.status, a.body)
	}
}

func TestTheSameGrantFromTwoProcessesAtOnce(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	processes := []*till{c, c.beside()}
	answers := make([]answer, 20)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			answers[i] = processes[i%2].call(http.MethodPost, grants, `{"credits": 7}`, "Idempotency-Key", "grant-0001")
		})
	}
	wg.Wait()
	fresh := 0
	for _, a := range answers {
		if a.status != 201 || a.body != answers[0].body {
			t.Errorf("answered %d %s and %s", a.status, a.body, answers[0].body)
		}
		if !a.replayed {
			fresh++
		}
	}
	if fresh != 1 || c.available() != "7" {
		t.Errorf("%d answers were no repeats, want 1; acme holds %s, want 7", fresh, c.available())
	}
	c.verified()
}

// TestNewCreditsPayDebtFirst makes a debt as a refund does. Two transfers come of
// one grant, and the answer is the balance after both, again and again.
func TestNewCreditsPayDebtFirst(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	c.want(201, http.MethodPost, "/v1/usage", usageOf("usage-0001", 8))
	ref := ledger.RefOf("acme")
	err := c.own.InTx(t.Context(), func(tx *sqlx.Tx) error {
		batch, err := ledger.Load(t.Context(), tx, []ledger.Ref{ref})
		if err != nil {
			return err
		}
		g, err := batch.Grant(t.Context(), tx, ref, "grant-0000")
		if err != nil {
			return err
		}
		if _, err := batch.Apply(ref, ledger.Operation{Kind: ledger.KindRefund, Cause: "re_1", Amount: g.Credits, Grant: g, At: start}); err != nil {
			return err
		}
		return batch.Save(t.Context(), tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{grants: `{"id": "grant-0001", "credits": 9}`, adjustments: `{"id": "adjust-0001", "credits": 5, "reason": "r"}`} {
		first := c.want(201, http.MethodPost, path, want)
		if again := c.want(201, http.MethodPost, path, want); again.body != first.body || !again.replayed {
			t.Errorf("%s was answered\n%s\nand again\n%s", want, first.body, again.body)
		}
	}
	if got := c.available(); got != "6" {
		t.Errorf("acme holds %s, want 6: fourteen less the debt of eight", got)
	}
	c.verified()
}

// TestNewCreditsPayWhatIsOverdrawn answers with the balance after all of it.
func TestNewCreditsPayWhatIsOverdrawn(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	c.clock.pass(time.Second) // an account of this very moment would be called new
	c.want(200, http.MethodPut, "/v1/accounts/acme", `{"overdraft": 5}`)
	if a := c.use("usage-0001", 6); a.status != 402 {
		t.Errorf("one beyond the overdraft was answered %d: %s", a.status, a.body)
	}
	c.want(201, http.MethodPost, "/v1/usage", usageOf("usage-0001", 5))
	c.want(409, http.MethodPut, "/v1/accounts/acme", `{"overdraft": "4.999999"}`)
	var g api.Grant
	read(t, c.want(201, http.MethodPost, grants, `{"id": "grant-0001", "credits": 7}`), &g)
	if g.Balance.Available != "2" {
		t.Errorf("the balance after the grant is %s, want 2", g.Balance.Available)
	}
	c.want(200, http.MethodPut, "/v1/accounts/acme", `{}`)
	c.verified()
}

// TestAGrantsAnswerIsNotThatOfWhatComesBehind has a grant's own expiry, and a usage
// with the grant's id, right behind the grant.
func TestAGrantsAnswerIsNotThatOfWhatComesBehind(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	grant := func(id, more string) answer {
		return c.want(201, http.MethodPost, grants, fmt.Sprintf(`{"id": %q, "credits": 5%s}`, id, more))
	}
	first := grant("grant-0001", "")
	c.want(201, http.MethodPost, "/v1/usage", usageOf("grant-0001", 2))
	if again := grant("grant-0001", ""); again.body != first.body || !again.replayed {
		t.Errorf("behind it stands usage of the same id: answered %s, first %s", again.body, first.body)
	}
	expires := `, "expires_at": "2026-03-01T13:00:00Z"`
	first = grant("grant-0002", expires)
	c.clock.pass(time.Hour)
	grant("grant-0003", "") // before which the other expires
	if again := grant("grant-0002", expires); again.body != first.body || !again.replayed {
		t.Errorf("behind it stands its expiry: answered %s, first %s", again.body, first.body)
	}
	c.verified()
}

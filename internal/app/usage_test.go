package app_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/apptest"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
)

// vandalise runs a statement as the database's owner, past everything.
func vandalise(t *testing.T, a *apptest.App, statement string, args ...any) {
	t.Helper()
	pgtest.Exec(t, pgtest.Owner(t, a.Info.DatabaseURL), statement, args...)
}

// verified fails the test when an invariant is broken.
func verified(t *testing.T, a *apptest.App) {
	t.Helper()
	report, err := ledger.Verify(context.Background(), a.App.DB)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Checks {
		if c.Broken > 0 {
			t.Errorf("verify: %s is broken: %q", c.Name, c.Examples)
		}
	}
}

func shop(t *testing.T, credits string) *apptest.App {
	t.Helper()
	a := apptest.Start(t, apptest.Options{})
	a.Want(201, "PUT", "/v1/accounts/acme", `{}`, nil)
	a.Want(201, "PUT", "/v1/meters/call", `{"credits_per_unit": 1}`, nil)
	if credits != "0" {
		a.Want(201, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": `+credits+`}`, nil)
	}
	return a
}

func TestTheSameUsageAHundredTimesInParallelHasOneEffectAndEqualAnswers(t *testing.T) {
	t.Parallel()
	a := shop(t, "1000")
	bodies := make([]string, 100)
	var fresh atomic.Int64
	var wg sync.WaitGroup
	for i := range bodies {
		wg.Go(func() {
			r := a.Call(http.MethodPost, "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 7}`)
			bodies[i] = fmt.Sprint(r.Status, string(r.Body))
			if r.Header.Get("Idempotent-Replayed") == "" {
				fresh.Add(1)
			}
		})
	}
	wg.Wait()
	for _, b := range bodies {
		if b != bodies[0] {
			t.Fatalf("two answers differ:\n%s\n%s", bodies[0], b)
		}
	}
	if fresh.Load() != 1 || !strings.HasPrefix(bodies[0], "201") {
		t.Errorf("%d answers were not replays, want 1; the answer is %s", fresh.Load(), bodies[0])
	}
	if r := a.Want(200, "GET", "/v1/accounts/acme", nil, nil); !strings.Contains(string(r.Body), `"available":"993"`) {
		t.Errorf("the account was not charged once: %s", r.Body)
	}
	verified(t, a)
}

func TestTwoHundredRequestsForTheLastCreditOneIsAccepted(t *testing.T) {
	t.Parallel()
	a := shop(t, "1")
	var accepted, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			switch r := a.Call(http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-%04d", "account": "acme", "meter": "call", "quantity": 1}`, i)); {
			case r.Status == http.StatusCreated:
				accepted.Add(1)
			case r.Status == http.StatusPaymentRequired && r.Code() == "insufficient_credits":
				refused.Add(1)
			default:
				t.Errorf("answered %d: %s", r.Status, r.Body)
			}
		})
	}
	wg.Wait()
	if accepted.Load() != 1 || refused.Load() != 199 {
		t.Errorf("%d accepted and %d refused, want 1 and 199", accepted.Load(), refused.Load())
	}
	verified(t, a)
}

func TestARefusalLeavesNoTrace(t *testing.T) {
	t.Parallel()
	a := shop(t, "0")
	body := `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 3}`
	a.Want(402, http.MethodPost, "/v1/usage", body, nil)
	a.Want(201, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 3}`, nil)
	if r := a.Want(201, http.MethodPost, "/v1/usage", body, nil); r.Header.Get("Idempotent-Replayed") != "" {
		t.Error("a refused usage was replayed")
	}
	verified(t, a)
}

func TestUsageRefusals(t *testing.T) {
	t.Parallel()
	a := shop(t, "1000")
	usage := func(quantity string) string {
		return `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": ` + quantity + `}`
	}
	for _, tc := range []struct {
		name, body, code string
		status           int
	}{
		{"G04 negative", usage("-1"), "invalid_value", 422},
		{"G04 zero", usage("0"), "invalid_value", 422},
		{"G04 2^63", usage("9223372036854775808"), "invalid_value", 422},
		{"G04 exponent", usage("1e3"), "invalid_value", 422},
		{"G04 exponent in text", usage(`"1e3"`), "invalid_value", 422},
		{"G04 huge exponent", usage("1e400"), "invalid_value", 422},
		{"G04 NaN", usage(`"NaN"`), "invalid_value", 422},
		{"G04 seven places", usage("0.0000001"), "invalid_value", 422},
		{"G04 plus", usage(`"+1"`), "invalid_value", 422},
		{"G04 unicode digits", usage(`"１"`), "invalid_value", 422},
		{"G04 null", usage("null"), "invalid_value", 422},
		{"G04 object", usage("{}"), "invalid_value", 422},
		{"G05 unknown member", `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 1, "qty": 1}`, "invalid_request", 400},
		{"G05 duplicate member", `{"id": "usage-0001", "account": "acme", "account": "acme", "meter": "call", "quantity": 1}`, "invalid_request", 400},
		{"G05 not JSON", `{`, "invalid_request", 400},
		{"G05 two documents", usage("1") + usage("1"), "invalid_request", 400},
		{"G05 deep", strings.Repeat("[", 100000), "invalid_request", 400},
		{"G05 invalid UTF-8", "{\"id\": \"usage-00\xff\"}", "invalid_request", 400},
		{"G05 NUL", `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 1, "dimensions": {"a": "\u0000"}}`, "invalid_request", 400},
		{"G08 short id", `{"id": "u", "account": "acme", "meter": "call", "quantity": 1}`, "invalid_value", 422},
		{"old", `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 1, "occurred_at": "2020-01-01T00:00:00Z"}`, "invalid_value", 422},
		{"ahead", `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 1, "occurred_at": "2120-01-01T00:00:00Z"}`, "invalid_value", 422},
		{"account", `{"id": "usage-0001", "account": "nobody", "meter": "call", "quantity": 1}`, "account_not_found", 404},
		{"meter", `{"id": "usage-0001", "account": "acme", "meter": "nothing", "quantity": 1}`, "meter_not_found", 404},
		{"G06 too large", `{"id": "` + strings.Repeat("x", 1<<20) + `"}`, "body_too_large", 413},
	} {
		if r := a.Call(http.MethodPost, "/v1/usage", tc.body); r.Status != tc.status || r.Code() != tc.code {
			t.Errorf("%s: answered %d %s, want %d %s: %.300s", tc.name, r.Status, r.Code(), tc.status, tc.code, r.Body)
		}
	}
	all := a.Call(http.MethodPost, "/v1/usage", `{"id": "u", "account": "", "meter": "?", "quantity": -1}`)
	if strings.Count(string(all.Body), `"pointer"`) != 4 {
		t.Errorf("four mistakes were not reported at once: %s", all.Body)
	}
	if r := a.Want(200, "GET", "/v1/accounts/acme", nil, nil); !strings.Contains(string(r.Body), `"available":"1000"`) {
		t.Errorf("a refused request changed the balance: %s", r.Body)
	}
}

func TestG08IdempotencyKeyHeaderStandsForTheID(t *testing.T) {
	t.Parallel()
	a := shop(t, "10")
	send := func(key, body string) apptest.Response {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.Info.URL+"/v1/usage", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+a.Info.APIKey)
		r.Header.Set("Idempotency-Key", key)
		return a.Do(r)
	}
	body := `{"account": "acme", "meter": "call", "quantity": 1}`
	first, again := send(`"usage-0001"`, body), send("usage-0001", body)
	if first.Status != 201 || string(first.Body) != string(again.Body) || again.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("first %d %s, again %d %s", first.Status, first.Body, again.Status, again.Body)
	}
	for _, key := range []string{"short", strings.Repeat("x", 10000), "emoji-😀-key", ""} {
		if r := send(key, body); r.Status != 422 {
			t.Errorf("Idempotency-Key %.20q was answered %d: %s", key, r.Status, r.Body)
		}
	}
	if r := send("usage-0002", `{"id": "usage-0003", "account": "acme", "meter": "call", "quantity": 1}`); r.Status != 422 {
		t.Errorf("a header and a body that differ were answered %d", r.Status)
	}
}

func TestRatesByDimensionAndVersion(t *testing.T) {
	t.Parallel()
	a := shop(t, "1000")
	a.Want(201, "PUT", "/v1/meters/tokens", `{"credits_per_unit": "0.5", "rates": [{"match": {"model": "l"}, "credits_per_unit": 2}]}`, nil)
	use := func(id, model string) string {
		r := a.Want(201, http.MethodPost, "/v1/usage", `{"id": "`+id+`", "account": "acme", "meter": "tokens", "quantity": 3, "dimensions": {"model": "`+model+`"}}`, nil)
		return between(string(r.Body), `"credits":"`, `"`) + "@" + between(string(r.Body), `"rate_version":`, ",")
	}
	for _, tc := range []struct{ id, model, want string }{{"usage-0001", "s", "1.5@1"}, {"usage-0002", "l", "6@1"}} {
		if got := use(tc.id, tc.model); got != tc.want {
			t.Errorf("model %s was charged %s, want %s", tc.model, got, tc.want)
		}
	}
	a.Want(200, "PUT", "/v1/meters/tokens", `{"credits_per_unit": "1"}`, nil)
	a.Want(200, "PUT", "/v1/meters/tokens", `{"credits_per_unit": "1", "unit": "token"}`, nil) // no new version
	if got := use("usage-0003", "l"); got != "3@2" {
		t.Errorf("after the change model l was charged %s, want 3@2", got)
	}
	if got := use("usage-0001", "s"); got != "1.5@1" {
		t.Errorf("usage from before the change is replayed as %s, want 1.5@1", got)
	}
}

func TestKeysAndScopes(t *testing.T) {
	t.Parallel()
	a := shop(t, "1000")
	key := func(scopes string) (secret, id string) {
		r := a.Want(201, http.MethodPost, "/v1/keys", `{"name": "k", "scopes": [`+scopes+`]}`, nil)
		return between(string(r.Body), `"secret":"`, `"`), between(string(r.Body), `"id":"`, `"`)
	}
	usageKey, id := key(`"usage"`)
	readKey, _ := key(`"read"`)
	body := `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 1}`
	for _, tc := range []struct {
		name, key, method, path, body string
		want                          int
	}{
		{"G01 none", "", http.MethodPost, "/v1/usage", body, 401},
		{"G01 wrong", usageKey + "0", http.MethodPost, "/v1/usage", body, 401},
		{"G01 nonsense", "sk_test_1", http.MethodPost, "/v1/usage", body, 401},
		{"G03 read records", readKey, http.MethodPost, "/v1/usage", body, 403},
		{"G03 usage grants", usageKey, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0009", "credits": 1}`, 403},
		{"G03 usage reads", usageKey, "GET", "/v1/accounts/acme", "", 403},
		{"G03 read makes keys", readKey, http.MethodPost, "/v1/keys", `{}`, 403},
		{"usage records", usageKey, http.MethodPost, "/v1/usage", body, 201},
		{"read reads", readKey, "GET", "/v1/accounts/acme", "", 200},
	} {
		if r := a.CallAs(tc.key, tc.method, tc.path, tc.body); r.Status != tc.want {
			t.Errorf("%s: answered %d, want %d: %s", tc.name, r.Status, tc.want, r.Body)
		}
	}
	a.Want(200, "DELETE", "/v1/keys/"+id, nil, nil)
	if r := a.CallAs(usageKey, http.MethodPost, "/v1/usage", body); r.Status != 401 {
		t.Errorf("a revoked key was answered %d", r.Status)
	}
	for _, route := range a.App.Table() {
		if route.Scope == "" {
			continue
		}
		path := strings.NewReplacer("{account}", "acme", "{meter}", "call", "{id}", "x").Replace(route.Pattern)
		if r := a.CallAs("", route.Method, path, "{}"); r.Status != 401 {
			t.Errorf("%s %s without a key was answered %d", route.Method, path, r.Status)
		}
	}
}

// TestExpiredKeyIsRefused moves the one clock over the key's end.
func TestExpiredKeyIsRefused(t *testing.T) {
	t.Parallel()
	a := shop(t, "0")
	r := a.Want(201, http.MethodPost, "/v1/keys", fmt.Sprintf(`{"name": "k", "scopes": ["read"], "expires_at": "%s"}`, a.Clock.Now().Add(3600e9).Format("2006-01-02T15:04:05Z07:00")), nil)
	secret := between(string(r.Body), `"secret":"`, `"`)
	if r := a.CallAs(secret, "GET", "/v1/accounts", nil); r.Status != 200 {
		t.Errorf("before its end the key was answered %d", r.Status)
	}
	a.Sim.Advance(3601e9)
	if r := a.CallAs(secret, "GET", "/v1/accounts", nil); r.Status != 401 {
		t.Errorf("after its end the key was answered %d", r.Status)
	}
}

// TestC13AClaimWithoutAChargeIsImpossible plants a failure of the last
// statement and makes sure that the key was not claimed without the charge.
func TestC13AClaimWithoutAChargeIsImpossible(t *testing.T) {
	t.Parallel()
	a := shop(t, "10")
	vandalise(t, a, "ALTER TABLE usage ADD CONSTRAINT planted CHECK (quantity <> 3000000)")
	body := `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 3}`
	a.Want(500, http.MethodPost, "/v1/usage", body, nil)
	batch := `{"usage": [` + body + `, {"id": "usage-0002", "account": "acme", "meter": "call", "quantity": 2}]}`
	if r := a.Want(200, http.MethodPost, "/v1/usage/batch", batch, nil); strings.Count(string(r.Body), `"recorded"`) != 1 {
		t.Errorf("a bad neighbour hurt the good one: %s", r.Body)
	}
	vandalise(t, a, "ALTER TABLE usage DROP CONSTRAINT planted")
	if r := a.Want(201, http.MethodPost, "/v1/usage", body, nil); r.Header.Get("Idempotent-Replayed") != "" {
		t.Error("a usage that failed was replayed")
	}
	verified(t, a)
	_ = a.App.DB.Read(t.Context(), func(tx *sqlx.Tx) error { return pgCount(t, tx, "SELECT count(*) FROM usage", 2) })
}

func pgCount(t *testing.T, tx *sqlx.Tx, query string, want int) error {
	t.Helper()
	var n int
	if err := tx.Get(&n, query); err != nil {
		t.Error(err)
	}
	if n != want {
		t.Errorf("%s gives %d, want %d", query, n, want)
	}
	return nil
}

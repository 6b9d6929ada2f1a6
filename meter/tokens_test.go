package meter_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/ledger"
)

// token makes a token of an account for an hour.
func (c *till) token(account string) api.Token {
	c.t.Helper()
	var token api.Token
	read(c.t, c.want(201, http.MethodPost, "/v1/accounts/"+account+"/tokens", `{"name": "page", "ttl_seconds": 3600}`), &token)
	return token
}

// neighbours is a till with two accounts that have the same things: usage-0001,
// and the reservations resv-both, and resv-acme or resv-other.
func neighbours(t *testing.T) *till {
	t.Helper()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/accounts/other", `{"overdraft": 100}`)
	for _, account := range []string{"acme", "other"} {
		c.want(201, http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": "usage-0001", "account": %q, "meter": "call", "quantity": 3}`, account))
		for _, id := range []string{"resv-both", "resv-" + account} {
			c.want(201, http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": 2, "ttl_seconds": 3600}`, id, account))
		}
	}
	return c
}

// TestG02ATokenReadsItsOwnAccount compares what it is told with what a key is told.
func TestG02ATokenReadsItsOwnAccount(t *testing.T) {
	t.Parallel()
	c := neighbours(t)
	token := c.token("acme")
	if token.Account != "acme" || token.Name != "page" || !strings.HasPrefix(token.Secret, "tat_"+token.ID+"_") || !token.ExpiresAt.Equal(start.Add(time.Hour)) {
		t.Errorf("the token is %+v", token)
	}
	mine := c.as(token.Secret)
	for path, asKey := range map[string]string{
		"/v1/accounts/acme":                                  "/v1/accounts/acme",
		"/v1/accounts/acme/transfers":                        "/v1/accounts/acme/transfers",
		"/v1/accounts/acme/transfers?limit=1":                "/v1/accounts/acme/transfers?limit=1",
		"/v1/accounts/acme/usage?group_by=day":               "/v1/accounts/acme/usage?group_by=day",
		"/v1/reservations":                                   "/v1/reservations?account=acme",
		"/v1/reservations?state=open&limit=1":                "/v1/reservations?account=acme&state=open&limit=1",
		"/v1/reservations?account=":                          "/v1/reservations?account=acme",
		"/v1/reservations/resv-acme":                         "/v1/reservations/resv-acme",
		"/v1/reservations/resv-both":                         "/v1/reservations/resv-both?account=acme",
		"/v1/reservations/resv-both?account=acme":            "/v1/reservations/resv-both?account=acme",
		"/v1/reservations?cursor=" + cursor(`{"Part": -1}`):  "/v1/reservations?account=acme",
		"/v1/accounts/acme/usage?account=other":              "/v1/accounts/acme/usage",
		"/v1/accounts/acme/transfers?account=other&limit=10": "/v1/accounts/acme/transfers?limit=10",
	} {
		got, want := mine.want(200, http.MethodGet, path, ""), c.want(200, http.MethodGet, asKey, "")
		want.body = operators.ReplaceAllString(want.body, `"$1":$2$3`)
		if got.body != want.body || !strings.Contains(got.body, "acme") && !strings.Contains(path, "usage") && !strings.Contains(path, "transfers") {
			t.Errorf("%s: a token was told\n%s\nwant\n%s", path, got.body, want.body)
		}
	}
	if a := mine.call(http.MethodGet, "/v1/accounts/acme/transfers", "", "Accept", "text/csv"); a.status != 200 || !strings.HasPrefix(a.body, "version,") {
		t.Errorf("the statement as CSV was answered %d: %s", a.status, a.body)
	}
}

// operators are the members that a token is not told.
var operators = regexp.MustCompile(`"(actor|note|reason)":(")[^"]*(")`)

// TestATokenIsNotToldWhatIsTheOperators looks for texts that are kept with an account.
func TestATokenIsNotToldWhatIsTheOperators(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	c.want(200, http.MethodPut, "/v1/accounts/acme", `{"name": "Acme", "stripe_customers": ["cus_secret"], "low_balance": 77, "metadata": {"plan": "secret"}, "in_doubt_after": {"action": "release", "seconds": 77}}`)
	c.want(201, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 10, "reason": "secret"}`)
	c.want(201, http.MethodPost, "/v1/accounts/acme/adjustments", `{"id": "adjust-0001", "credits": -1, "reason": "secret"}`)
	mine := c.as(c.token("acme").Secret)
	for _, path := range []string{"/v1/accounts/acme", "/v1/accounts/acme/transfers"} {
		key, token := c.want(200, http.MethodGet, path, ""), mine.want(200, http.MethodGet, path, "")
		if !strings.Contains(key.body, "secret") {
			t.Errorf("%s: the operator is not told: %s", path, key.body)
		}
		for _, text := range []string{"secret", "key:", `"77"`, ":77"} {
			if strings.Contains(token.body, text) {
				t.Errorf("%s tells a token %q: %s", path, text, token.body)
			}
		}
	}
	if csv := mine.call(http.MethodGet, "/v1/accounts/acme/transfers", "", "Accept", "text/csv"); strings.Contains(csv.body, "secret") || strings.Contains(csv.body, "key:") {
		t.Errorf("the statement as CSV tells a token: %s", csv.body)
	}
}

// TestG02AnotherAccountLooksLikeNone lets a token of acme look for the account
// that is there and for one that is not: the answers must not differ.
func TestG02AnotherAccountLooksLikeNone(t *testing.T) {
	t.Parallel()
	c := neighbours(t)
	mine := c.as(c.token("acme").Secret)
	ask := func(path string) string {
		a := mine.call(http.MethodGet, path, "", "X-Request-Id", "same")
		if strings.Contains(a.body, "other") {
			t.Errorf("%s tells of the other account: %s", path, a.body)
		}
		return fmt.Sprint(a.status, " ", a.code, " ", a.body)
	}
	for _, tc := range []struct{ path, want string }{
		{"/v1/accounts/%s", "404 account_not_found"},
		{"/v1/accounts/%s/transfers", "404 account_not_found"},
		{"/v1/accounts/%s/transfers?limit=0", "404 account_not_found"},
		{"/v1/accounts/%s/usage", "404 account_not_found"},
		{"/v1/reservations?account=%s", "404 account_not_found"},
		{"/v1/reservations?account=acme&account=%s", "404 account_not_found"},
		{"/v1/reservations/resv-%s", "404 reservation_not_found"},
		{"/v1/reservations/resv-both?account=%s", "404 reservation_not_found"},
		{"/v1/reservations/resv-acme?account=%s", "404 reservation_not_found"},
		{"/v1/accounts/%s/tokens", "403 forbidden"},
	} {
		there, none := ask(fmt.Sprintf(tc.path, "other")), ask(fmt.Sprintf(tc.path, "nobody"))
		if there != none || !strings.HasPrefix(there, tc.want) {
			t.Errorf("%s: of an account that is there it was told\n%s\nof one that is not\n%s\nwant %s", tc.path, there, none, tc.want)
		}
	}
	// A cursor that points into the other account is no way in.
	for _, part := range []int{-1, 0, 128, 255} {
		a := mine.want(200, http.MethodGet, "/v1/reservations?cursor="+cursor(fmt.Sprintf(`{"Part": %d, "Account": "", "ID": ""}`, part)), "")
		if strings.Contains(a.body, "other") {
			t.Errorf("a cursor showed the other account's: %s", a.body)
		}
	}
}

func TestATokenEndsWithItsTimeAndWhenItIsRevoked(t *testing.T) {
	t.Parallel()
	c := neighbours(t)
	other := c.beside()
	token, lasting := c.token("acme"), c.token("acme")
	c.want(200, http.MethodDelete, "/v1/accounts/acme/tokens/"+token.ID, "")
	for _, process := range []*till{c, other} { // without a wait
		if status := process.reads(token.Secret); status != 401 {
			t.Errorf("a revoked token was answered %d", status)
		}
		if status := process.reads(lasting.Secret); status != 200 {
			t.Errorf("the token beside it was answered %d", status)
		}
	}
	c.clock.pass(time.Minute)
	if a := c.want(200, http.MethodDelete, "/v1/accounts/acme/tokens/"+token.ID, ""); !strings.Contains(a.body, `"revoked_at":"2026-03-01T12:00:00Z"`) {
		t.Errorf("revoking twice moved the end: %s", a.body)
	}
	twin := "" // its tokens stand beside acme's
	for i := 0; twin == "" || ledger.RefOf(twin).Part != ledger.RefOf("acme").Part; i++ {
		twin = fmt.Sprint("twin", i)
	}
	c.want(201, http.MethodPut, "/v1/accounts/"+twin, `{}`)
	for path, want := range map[string]string{
		"acme/tokens/nothing": "404 token_not_found", "other/tokens/" + lasting.ID: "404 token_not_found", twin + "/tokens/" + lasting.ID: "404 token_not_found",
		"nobody/tokens/" + lasting.ID: "404 account_not_found",
	} {
		if a := c.call(http.MethodDelete, "/v1/accounts/"+path, ""); fmt.Sprint(a.status, " ", a.code) != want {
			t.Errorf("DELETE %s was answered %d %s, want %s", path, a.status, a.code, want)
		}
	}
	c.clock.pass(59*time.Minute - time.Microsecond)
	if status := c.reads(lasting.Secret); status != 200 {
		t.Errorf("before its end the token was answered %d", status)
	}
	c.clock.pass(time.Microsecond)
	if status := c.reads(lasting.Secret); status != 401 {
		t.Errorf("at its end the token was answered %d", status)
	}
}

func TestRefusalsOfTokens(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	for _, tc := range []struct{ account, body, want string }{
		{"acme", `{}`, "422 invalid_value"},
		{"acme", `{"ttl_seconds": 0}`, "422 invalid_value"},
		{"acme", `{"ttl_seconds": -1}`, "422 invalid_value"},
		{"acme", `{"ttl_seconds": 86401}`, "422 invalid_value"},
		{"acme", `{"ttl_seconds": 9223372036854775807}`, "422 invalid_value"},
		{"acme", `{"ttl_seconds": 60, "name": "` + strings.Repeat("n", 201) + `"}`, "422 invalid_value"},
		{"acme", `{"ttl_seconds": 60, "scopes": ["admin"]}`, "400 invalid_request"},
		{"nobody", `{"ttl_seconds": 60}`, "404 account_not_found"},
		{"no%20body", `{"ttl_seconds": 60}`, "404 account_not_found"},
	} {
		if a := c.call(http.MethodPost, "/v1/accounts/"+tc.account+"/tokens", tc.body); fmt.Sprint(a.status, " ", a.code) != tc.want {
			t.Errorf("%s for %s was answered %d %s, want %s", tc.body, tc.account, a.status, a.body, tc.want)
		}
	}
	c.want(404, http.MethodGet, "/v1/accounts/nobody/tokens", "")
	if n := c.count("SELECT count(*) FROM account_tokens"); n != 0 {
		t.Errorf("%d tokens were made", n)
	}
	c.want(201, http.MethodPost, "/v1/accounts/acme/tokens", `{"ttl_seconds": 86400, "name": "`+strings.Repeat("n", 200)+`"}`)
	c.want(201, http.MethodPost, "/v1/accounts/acme/tokens", `{"ttl_seconds": 1}`)
}

func TestTokensArePagedWithoutSecretsAndForgottenAfterAWeek(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	var ids []string
	for range 5 { // two of them end at the same time
		ids = append(ids, c.token("acme").ID)
		if len(ids) != 2 {
			c.clock.pass(time.Second)
		}
	}
	var seen []string
	for path := "?limit=2"; path != ""; {
		a := c.want(200, http.MethodGet, "/v1/accounts/acme/tokens"+path, "")
		if strings.Contains(a.body, "secret") || strings.Contains(a.body, "tat_") {
			t.Errorf("the list shows a secret: %s", a.body)
		}
		var page struct {
			Data       []api.Token `json:"data"`
			NextCursor *string     `json:"next_cursor"`
		}
		read(t, a, &page)
		for _, token := range page.Data {
			seen = append(seen, token.ID)
		}
		path = ""
		if page.NextCursor != nil {
			path = "?limit=2&cursor=" + *page.NextCursor
		}
	}
	if len(seen) != 5 || seen[0] != ids[4] || seen[4] != ids[0] {
		t.Errorf("the list is %v, want %v, newest first", seen, ids)
	}
	c.clock.pass(time.Hour + 7*24*time.Hour - 5*time.Second) // the first one ended a week and some ago
	c.token("acme")
	if n := c.count("SELECT count(*) FROM account_tokens"); n != 6 {
		t.Errorf("%d tokens are kept, want 6: none is a week over", n)
	}
	c.clock.pass(time.Minute)
	c.token("acme")
	if n := c.count("SELECT count(*) FROM account_tokens"); n != 2 {
		t.Errorf("%d tokens are kept, want the last 2", n)
	}
}

func TestAnAccountHasAtMostAThousandTokens(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	last := c.token("acme")
	err := c.own.InTx(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(t.Context(), `
			INSERT INTO account_tokens (part, token_id, account, name, secret_hash, created_at, expires_at)
			SELECT part, token_id || n, account, '', secret_hash, created_at, expires_at FROM account_tokens, generate_series(1, 998) AS n`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.token("acme") // the thousandth
	if a := c.call(http.MethodPost, "/v1/accounts/acme/tokens", `{"ttl_seconds": 60}`); a.status != 409 || a.code != "too_many_tokens" {
		t.Errorf("one too many was answered %d: %s", a.status, a.body)
	}
	c.want(200, http.MethodDelete, "/v1/accounts/acme/tokens/"+last.ID, "")
	c.token("acme")
}

// TestG09TokensOfAnAccountShareALimit spends with two tokens what all may send.
func TestG09TokensOfAnAccountShareALimit(t *testing.T) {
	t.Parallel()
	c := neighbours(t)
	a, b := c.token("acme").Secret, c.token("acme").Secret
	for i := range 100 {
		if status := c.reads([]string{a, b}[i%2]); status != 200 {
			t.Fatalf("request %d was answered %d", i, status)
		}
	}
	if x := c.as(b).call(http.MethodGet, "/v1/accounts/acme", ""); x.status != 429 || x.code != "rate_limited" || x.header.Get("Retry-After") != "1" {
		t.Errorf("beyond the limit the answer was %d: %s", x.status, x.body)
	}
	if x := c.as(c.token("other").Secret).call(http.MethodGet, "/v1/accounts/other", ""); x.status != 200 {
		t.Errorf("another account was answered %d: %s", x.status, x.body)
	}
	c.clock.pass(time.Second)
	for i := range 11 {
		if status := c.reads(a); (status == 200) != (i < 10) {
			t.Errorf("request %d a second later was answered %d", i, status)
		}
	}
}

package app_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/apptest"
	"tallystick/internal/web"
)

// open are the routes that ask for no key. A new one is a decision, made here.
var open = []string{
	"GET /healthz", "GET /readyz", "GET /metrics", "GET /openapi.yaml", "GET /docs", "GET /docs/", "GET /{$}",
	"POST /webhooks/stripe", // which verifies Stripe's signature
}

// stage is an app with two accounts that have one of everything, and the callers
// that may not do this or that.
type stage struct {
	*apptest.App
	t       *testing.T
	callers map[string]string // to secrets
	ids     map[string]string // what stands for {id}, by the beginning of the route
}

func staged(t *testing.T) *stage {
	t.Helper()
	s := &stage{App: apptest.Start(t, apptest.Options{Settings: map[string]string{"TALLYSTICK_AUTH_FAILURES": "1000000"}}), t: t}
	s.Want(201, "PUT", "/v1/meters/call", `{"credits_per_unit": 1}`, nil)
	for _, account := range []string{"acme", "other"} {
		s.Want(201, "PUT", "/v1/accounts/"+account, `{"name": "x"}`, nil)
		s.Want(201, "POST", "/v1/accounts/"+account+"/grants", `{"id": "grant-0001", "credits": 100}`, nil)
		s.Want(201, "POST", "/v1/usage", `{"id": "usage-0001", "account": "`+account+`", "meter": "call", "quantity": 1}`, nil)
		s.Want(201, "POST", "/v1/reservations", `{"id": "resv-`+account+`", "account": "`+account+`", "meter": "call", "quantity": 1, "ttl_seconds": 3600}`, nil)
	}
	s.callers = map[string]string{
		"no key": "", "nonsense": "nonsense", "a wrong secret": s.Info.APIKey[:len(s.Info.APIKey)-1] + "x",
		"scope usage": s.key("usage", "").Secret, "scope read": s.key("read", "").Secret, "scopes usage and read": s.key(`usage", "read`, "").Secret,
		"another account's token": s.token("other"), "the account's token": s.token("acme"),
	}
	revoked, victim, expiring := s.key("admin", ""), s.key("usage", ""), s.key("admin", fmt.Sprintf(`, "expires_at": %q`, s.Clock.Now().Add(5e9).Format("2006-01-02T15:04:05.999999Z07:00")))
	s.Want(200, "DELETE", "/v1/keys/"+revoked.ID, nil, nil)
	s.callers["revoked"], s.callers["expired"] = revoked.Secret, expiring.Secret
	token := between(string(s.Want(200, "GET", "/v1/accounts/acme/tokens", nil, nil).Body), `"id":"`, `"`)
	s.ids = map[string]string{"/v1/reservations/": "resv-acme", "/v1/keys/": victim.ID, "/v1/accounts/": token}
	s.Sim.Advance(5e9)
	s.Settled()
	return s
}

func (s *stage) key(scopes, more string) (key api.Key) {
	s.t.Helper()
	s.Want(201, "POST", "/v1/keys", `{"name": "k", "scopes": ["`+scopes+`"]`+more+`}`, &key)
	return key
}

func (s *stage) token(account string) string {
	s.t.Helper()
	var token api.Token
	s.Want(201, "POST", "/v1/accounts/"+account+"/tokens", `{"ttl_seconds": 3600}`, &token)
	return token.Secret
}

// path fills a route in: about acme, and what acme has.
func (s *stage) path(route web.Route) string {
	id := "x"
	for prefix, of := range s.ids {
		if strings.HasPrefix(route.Pattern, prefix) {
			id = of
		}
	}
	path := strings.NewReplacer("{account}", "acme", "{meter}", "call", "{id}", id).Replace(route.Pattern)
	if route.Method+" "+route.Pattern == "GET /v1/reservations" {
		path += "?account=acme" // otherwise a token lists its own
	}
	return path
}

// bodies are requests that would be carried out, if they were let in.
var bodies = map[string]string{
	"PUT /v1/accounts/{account}":              `{"name": "stolen", "overdraft": 1000}`,
	"POST /v1/accounts/{account}/grants":      `{"id": "grant-0009", "credits": 1000}`,
	"POST /v1/accounts/{account}/adjustments": `{"id": "adjust-009", "credits": 1000, "reason": "r"}`,
	"POST /v1/accounts/{account}/tokens":      `{"ttl_seconds": 60}`,
	"PUT /v1/meters/{meter}":                  `{"credits_per_unit": 0}`,
	"POST /v1/usage":                          `{"id": "usage-0009", "account": "acme", "meter": "call", "quantity": 1}`,
	"POST /v1/usage/batch":                    `{"usage": [{"id": "usage-0008", "account": "acme", "meter": "call", "quantity": 1}]}`,
	"POST /v1/reservations":                   `{"id": "resv-0009", "account": "acme", "meter": "call", "quantity": 1, "ttl_seconds": 60}`,
	"POST /v1/reservations/{id}/capture":      `{"quantity": 1}`,
	"POST /v1/reservations/{id}/extend":       `{"ttl_seconds": 7200}`,
	"POST /v1/reservations/{id}/doubt":        `{"reason": "r"}`,
	"POST /v1/keys":                           `{"name": "stolen", "scopes": ["admin"]}`,
	"PUT /v1/keys/{id}/rate_limit":            `{"per_second": 1, "burst": 1}`,
}

// allowed tells what a caller may do; the rest must be refused.
func allowed(caller string, route web.Route) bool {
	switch caller {
	case "scope usage", "scope read":
		return route.Scope == strings.TrimPrefix(caller, "scope ")
	case "scopes usage and read":
		return route.Scope == "usage" || route.Scope == "read"
	case "the account's token":
		return route.Own
	}
	return false
}

// TestG02G03NobodyGetsFurtherThanTheirRights sends every route of the table for
// every caller that may not call it. Whatever is refused changes no row at all.
func TestG02G03NobodyGetsFurtherThanTheirRights(t *testing.T) {
	t.Parallel()
	s := staged(t)
	before := s.contents()
	statuses, tried := map[int]int{}, 0
	for _, route := range s.App.App.Table() {
		name := route.Method + " " + route.Pattern
		if (route.Scope == "") != slices.Contains(open, name) {
			t.Errorf("%s has the scope %q: either it asks for one, or the list of open routes names it", name, route.Scope)
		}
		if route.Scope == "" {
			continue
		}
		for caller, secret := range s.callers {
			if allowed(caller, route) {
				continue
			}
			r := s.CallAs(secret, route.Method, s.path(route), bodies[name])
			statuses[r.Status]++
			tried++
			if want := s.want(caller, route); r.Status != want {
				t.Errorf("%s: %s was answered %d, want %d: %s", caller, name, r.Status, want, r.Body)
			}
			if strings.Contains(string(r.Body), `"balance"`) || r.Code() == "" {
				t.Errorf("%s: %s was told something: %s", caller, name, r.Body)
			}
			if after := s.contents(); after != before {
				t.Fatalf("%s: %s changed something, although it was answered %d\nbefore %s\nafter  %s", caller, name, r.Status, before, after)
			}
		}
	}
	if tried < 200 || statuses[401] == 0 || statuses[403] == 0 || statuses[404] == 0 {
		t.Errorf("%d calls were tried and answered %v: the matrix is not whole", tried, statuses)
	}
	t.Logf("%d calls, answered %v", tried, statuses)
}

// want is the one status that a caller who may not call a route must get.
func (s *stage) want(caller string, route web.Route) int {
	switch {
	case !strings.Contains(caller, "scope") && !strings.Contains(caller, "token"):
		return http.StatusUnauthorized
	case caller == "another account's token" && route.Own:
		return http.StatusNotFound
	}
	return http.StatusForbidden
}

// TestG02WhoMayReadReads makes sure that the matrix refuses what is refused for
// the caller's sake, not because the calls were wrong.
func TestG02WhoMayReadReads(t *testing.T) {
	t.Parallel()
	s := staged(t)
	own := 0
	for _, route := range s.App.App.Table() {
		if !route.Own {
			continue
		}
		own++
		for _, caller := range []string{"the account's token", "scope read"} {
			if r := s.CallAs(s.callers[caller], route.Method, s.path(route), nil); r.Status != 200 || !strings.Contains(string(r.Body), `{`) {
				t.Errorf("%s: %s %s was answered %d: %s", caller, route.Method, route.Pattern, r.Status, r.Body)
			}
			if r := s.CallAs(s.callers[caller], http.MethodHead, s.path(route), nil); r.Status != 200 {
				t.Errorf("%s: HEAD %s was answered %d", caller, route.Pattern, r.Status)
			}
		}
		if route.Method != http.MethodGet || route.Scope != "read" {
			t.Errorf("%s %s with scope %s is open to tokens, which may only read", route.Method, route.Pattern, route.Scope)
		}
	}
	if own != 5 {
		t.Errorf("%d routes are open to an account's token, want 5", own)
	}
	for caller, secret := range s.callers {
		for _, path := range []string{"/healthz", "/readyz"} {
			if r := s.CallAs(secret, "GET", path, nil); r.Status != 200 {
				t.Errorf("%s: %s was answered %d", caller, path, r.Status)
			}
		}
	}
}

// tablesQuery lists what the service keeps; partitions are read by way of their table.
const tablesQuery = `
	SELECT relname FROM pg_class
	WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'goose_db_version'
	ORDER BY relname`

// contents is a digest of every table.
func (s *stage) contents() string {
	s.t.Helper()
	var digests []string
	err := s.App.App.DB.Read(s.t.Context(), func(tx *sqlx.Tx) error {
		digests = nil
		var tables []string
		if err := tx.SelectContext(s.t.Context(), &tables, tablesQuery); err != nil {
			return err
		}
		for _, table := range tables {
			var digest string
			query := fmt.Sprintf(`SELECT count(*) || ':' || coalesce(left(md5(string_agg(t::text, '|' ORDER BY t::text)), 8), '') FROM %q AS t`, table)
			if err := tx.GetContext(s.t.Context(), &digest, query); err != nil {
				return err
			}
			digests = append(digests, table+" "+digest)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Join(digests, ", ")
}

// TestG09ExhaustedAddressesKeepHealthAndReadiness sends more failures than an
// address may: what has no key goes on.
func TestG09ExhaustedAddressesKeepHealthAndReadiness(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{Settings: map[string]string{"TALLYSTICK_AUTH_FAILURES": "1"}})
	for i, want := range []int{401, 429} {
		if r := a.CallAs("tsk_x_y", "GET", "/v1/accounts", nil); r.Status != want {
			t.Errorf("failure %d was answered %d, want %d: %s", i, r.Status, want, r.Body)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.yaml"} {
		if r := a.CallAs("tsk_x_y", "GET", path, nil); r.Status != 200 {
			t.Errorf("%s was answered %d", path, r.Status)
		}
	}
	if r := a.CallAs("", "GET", "/metrics", nil); !strings.Contains(string(r.Body), `tallystick_refusals_total{code="too_many_failures"} 1`) {
		t.Error("the refusal is not in the metrics")
	}
	a.Want(200, "GET", "/v1/accounts", nil, nil)
}

package app_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"tallystick/api"
	"tallystick/internal/apptest"
)

func document(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.Document)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestRoutesAreThoseOfTheDocument(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{})
	served := map[string]bool{}
	for _, r := range a.App.Table() {
		if r.Pattern != "/{$}" { // a convenience, not part of the API
			served[r.Method+" "+r.Pattern] = true
		}
	}
	documented := map[string]bool{}
	for path, item := range document(t).Paths.Map() {
		for method := range item.Operations() {
			documented[method+" "+path] = true
		}
	}
	for route := range served {
		if !documented[route] {
			t.Errorf("%s is served but not in openapi.yaml", route)
		}
	}
	for route := range documented {
		if !served[route] {
			t.Errorf("%s is in openapi.yaml but not served", route)
		}
	}
}

// checker validates every answer against the document and notes what was seen.
type checker struct {
	t      *testing.T
	a      *apptest.App
	router routers.Router
	seen   map[string]map[int]bool
}

func newChecker(t *testing.T, a *apptest.App) *checker {
	t.Helper()
	router, err := gorillamux.NewRouter(document(t))
	if err != nil {
		t.Fatal(err)
	}
	return &checker{t: t, a: a, router: router, seen: map[string]map[int]bool{}}
}

// call sends a request and fails the test unless its status is as wanted and the
// answer is as the document says.
func (c *checker) call(status int, key, method, path, body string, header http.Header) apptest.Response {
	c.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, c.a.Info.URL+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	maps.Copy(r.Header, header)
	response := c.a.Do(r)
	if response.Status != status {
		c.t.Errorf("%s %s was answered %d, want %d: %s", method, path, response.Status, status, response.Body)
		return response
	}
	c.check(r, response)
	return response
}

func (c *checker) check(r *http.Request, response apptest.Response) {
	c.t.Helper()
	relative := r.Clone(r.Context())
	relative.URL = &url.URL{Path: r.URL.Path, RawQuery: r.URL.RawQuery}
	route, params, err := c.router.FindRoute(relative)
	if err != nil {
		c.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		return
	}
	if media := response.Header.Get("Content-Type"); !strings.Contains(media, "json") {
		c.note(r.Method+" "+route.Path, response.Status)
		return // pages and files have no schema
	}
	err = openapi3filter.ValidateResponse(context.Background(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: relative, PathParams: params, Route: route},
		Status:                 response.Status, Header: response.Header, Body: io.NopCloser(bytes.NewReader(response.Body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true},
	})
	if err != nil {
		c.t.Errorf("%s %s answered %d: %v", r.Method, r.URL.Path, response.Status, err)
	}
	c.note(r.Method+" "+route.Path, response.Status)
}

func (c *checker) note(operation string, status int) {
	if c.seen[operation] == nil {
		c.seen[operation] = map[int]bool{}
	}
	c.seen[operation][status] = true
}

func TestEveryRouteAnswersAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{})
	c := newChecker(t, a)
	key := a.Info.APIKey
	send := func(status int, method, path, body string) apptest.Response {
		t.Helper()
		return c.call(status, key, method, path, body, nil)
	}
	metering(send)
	reservations(send)
	keys(send, c)
	events(c)
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/openapi.yaml", "/docs/"} {
		c.call(200, "", "GET", path, "", nil)
	}
	c.call(302, "", "GET", "/docs", "", nil)
	stripeRoutes(t, a, c)
	operations := 0
	for path, item := range document(t).Paths.Map() {
		for method, operation := range item.Operations() {
			operations++
			if len(c.seen[method+" "+path]) == 0 {
				t.Errorf("%s %s was never called", method, path)
			}
			success := slices.ContainsFunc(slices.Collect(maps.Keys(operation.Responses.Map())), func(s string) bool { return s[0] < '4' })
			if !success {
				t.Errorf("%s %s documents no success", method, path)
			}
		}
	}
	t.Logf("%d operations driven", operations)
}

func between(s, before, after string) string {
	_, s, _ = strings.Cut(s, before)
	s, _, _ = strings.Cut(s, after)
	return s
}

// metering drives accounts, meters, usage, grants and adjustments.
func metering(send func(status int, method, path, body string) apptest.Response) {
	send(201, "PUT", "/v1/accounts/acme", `{"name": "Acme", "stripe_customers": ["cus_1"], "overdraft": 0.5, "low_balance": "10", "metadata": {"plan": "x"}}`)
	send(200, "PUT", "/v1/accounts/acme", `{"name": "Acme", "stripe_customers": ["cus_1"]}`)
	send(409, "PUT", "/v1/accounts/other", `{"stripe_customers": ["cus_1"]}`)
	send(422, "PUT", "/v1/accounts/acme", `{"overdraft": "1e3", "stripe_customers": ["x"]}`)
	send(400, "PUT", "/v1/accounts/acme", `{"nonsense": 1}`)
	send(201, "PUT", "/v1/meters/llm.tokens", `{"unit": "token", "credits_per_unit": "0.5", "rates": [{"match": {"model": "l"}, "credits_per_unit": 2}], "stripe": {"kind": "meter", "event_name": "tokens"}}`)
	send(200, "PUT", "/v1/meters/llm.tokens", `{"unit": "token", "credits_per_unit": "0.25"}`)
	send(422, "PUT", "/v1/meters/llm.tokens", `{"credits_per_unit": "x", "aggregation": "avg"}`)
	send(201, "PUT", "/v1/meters/free", `{"credits_per_unit": 0}`)
	send(409, "PUT", "/v1/meters/free", `{"credits_per_unit": 0, "aggregation": "count"}`)
	send(200, "GET", "/v1/meters?limit=1", "")
	send(200, "GET", "/v1/meters/llm.tokens", "")
	send(404, "GET", "/v1/meters/nothing", "")
	send(200, "GET", "/v1/meters/llm.tokens/rates?limit=1", "")
	send(400, "GET", "/v1/meters/llm.tokens/rates?limit=0", "")
	send(404, "GET", "/v1/meters/nothing/rates", "")
	send(201, "POST", "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 100, "reason": "hello", "expires_at": "2100-01-01T00:00:00Z"}`)
	send(201, "POST", "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": "100", "reason": "hello", "expires_at": "2100-01-01T00:00:00Z"}`)
	send(422, "POST", "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": "101"}`)
	send(404, "POST", "/v1/accounts/nobody/grants", `{"id": "grant-0001", "credits": "101"}`)
	send(201, "POST", "/v1/accounts/acme/adjustments", `{"id": "adjust-01", "credits": "-10", "reason": "mistake"}`)
	send(201, "POST", "/v1/accounts/acme/adjustments", `{"id": "adjust-02", "credits": "5", "reason": "mistake"}`)
	send(402, "POST", "/v1/accounts/acme/adjustments", `{"id": "adjust-03", "credits": "-1000", "reason": "mistake"}`)
	send(201, "POST", "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "llm.tokens", "quantity": 4, "dimensions": {"model": "s"}}`)
	send(201, "POST", "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "llm.tokens", "quantity": "4", "dimensions": {"model": "s"}}`)
	send(422, "POST", "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "llm.tokens", "quantity": 5}`)
	send(402, "POST", "/v1/usage", `{"id": "usage-0002", "account": "acme", "meter": "llm.tokens", "quantity": 5000}`)
	send(404, "POST", "/v1/usage", `{"id": "usage-0002", "account": "acme", "meter": "nothing", "quantity": 1}`)
	send(200, "POST", "/v1/usage/batch", `{"usage": [{"id": "usage-0001", "account": "acme", "meter": "llm.tokens", "quantity": 4, "dimensions": {"model": "s"}},
		{"id": "usage-0003", "account": "acme", "meter": "free", "quantity": 1}, {"id": "x", "account": "acme", "meter": "free", "quantity": -1}]}`)
	send(422, "POST", "/v1/usage/batch", `{"usage": []}`)
	send(200, "GET", "/v1/usage/usage-0001?account=acme", "")
	send(404, "GET", "/v1/usage/usage-0009?account=acme", "")
	send(400, "GET", "/v1/usage/usage-0001", "")
	send(201, "POST", "/v1/usage/usage-0001/void", `{"account": "acme", "reason": "sent by a test"}`)
	send(201, "POST", "/v1/usage/usage-0001/void", `{"account": "acme", "reason": "sent by a test"}`)
	send(422, "POST", "/v1/usage/usage-0001/void", `{"account": "acme", "reason": "another"}`)
	send(422, "POST", "/v1/usage/usage-0001/void", `{"account": "acme"}`)
	send(404, "POST", "/v1/usage/usage-0009/void", `{"account": "acme", "reason": "sent by a test"}`)
	send(400, "POST", "/v1/usage/usage-0001/void", `{"nonsense": 1}`)
	send(200, "GET", "/v1/usage/usage-0001?account=acme", "")
	send(200, "GET", "/v1/accounts?limit=1", "")
	send(200, "GET", "/v1/accounts/acme", "")
	send(404, "GET", "/v1/accounts/nobody", "")
	send(200, "GET", "/v1/accounts/acme/transfers?limit=2", "")
	send(400, "GET", "/v1/accounts/acme/transfers?limit=501&from=yesterday", "")
	send(200, "GET", "/v1/accounts/acme/usage?group_by=hour,meter,model", "")
	send(400, "GET", "/v1/accounts/acme/usage?group_by=hour,day", "")
}

// reservations drives holds and their endings.
func reservations(send func(status int, method, path, body string) apptest.Response) {
	send(200, "PUT", "/v1/accounts/acme", `{"stripe_customers": ["cus_1"], "in_doubt_after": {"action": "release", "seconds": 60}}`)
	send(422, "PUT", "/v1/accounts/acme", `{"in_doubt_after": {"action": "wait", "seconds": 0}}`)
	body := `"account": "acme", "meter": "llm.tokens", "ttl_seconds": 600`
	send(201, "POST", "/v1/reservations", `{"id": "resv-0001", "quantity": 8, `+body+`}`)
	send(201, "POST", "/v1/reservations", `{"id": "resv-0001", "quantity": 8, `+body+`}`)
	send(422, "POST", "/v1/reservations", `{"id": "resv-0001", "quantity": 9, `+body+`}`)
	send(422, "POST", "/v1/reservations", `{"id": "resv-0002", `+body+`}`)
	send(402, "POST", "/v1/reservations", `{"id": "resv-0002", "credits": 5000, `+body+`}`)
	send(404, "POST", "/v1/reservations", `{"id": "resv-0002", "credits": 1, "account": "acme", "meter": "nothing", "ttl_seconds": 600}`)
	send(400, "POST", "/v1/reservations", `{"nonsense": 1}`)
	send(201, "POST", "/v1/reservations", `{"id": "resv-0002", "credits": 5, `+body+`}`)
	send(200, "GET", "/v1/reservations/resv-0002?account=acme", "")
	send(404, "GET", "/v1/reservations/resv-0009", "")
	send(200, "POST", "/v1/reservations/resv-0001/extend", `{"ttl_seconds": 1200}`)
	send(422, "POST", "/v1/reservations/resv-0001/extend", `{"ttl_seconds": 0}`)
	send(200, "POST", "/v1/reservations/resv-0001/doubt", `{"reason": "timeout"}`)
	send(422, "POST", "/v1/reservations/resv-0001/doubt", `{"reason": "another"}`)
	send(409, "POST", "/v1/reservations/resv-0001/extend", `{"ttl_seconds": 60}`)
	send(201, "POST", "/v1/reservations/resv-0001/capture", `{"quantity": 6, "dimensions": {"model": "s"}}`)
	send(201, "POST", "/v1/reservations/resv-0001/capture", `{"quantity": 6, "dimensions": {"model": "s"}}`)
	send(409, "POST", "/v1/reservations/resv-0001/release", "")
	send(422, "POST", "/v1/reservations/resv-0002/capture", `{}`)
	send(404, "POST", "/v1/reservations/resv-0009/capture", `{"credits": 1}`)
	send(200, "POST", "/v1/reservations/resv-0002/release", `{}`)
	send(409, "POST", "/v1/reservations/resv-0002/capture", `{"credits": 1}`)
	send(200, "GET", "/v1/reservations?account=acme&state=captured&limit=1", "")
	send(200, "GET", "/v1/reservations?state=open", "")
	send(400, "GET", "/v1/reservations?state=gone", "")
}

// keys drives keys and the tokens of accounts.
func keys(send func(status int, method, path, body string) apptest.Response, c *checker) {
	made := send(201, "POST", "/v1/keys", `{"name": "x", "scopes": ["read"], "rate_limit": {"per_second": 1, "burst": 1}}`)
	id, secret := between(string(made.Body), `"id":"`, `"`), between(string(made.Body), `"secret":"`, `"`)
	c.call(200, secret, "GET", "/v1/meters", "", nil)
	c.call(429, secret, "GET", "/v1/meters", "", nil)
	send(200, "PUT", "/v1/keys/"+id+"/rate_limit", `{"per_second": 10, "burst": 100}`)
	send(422, "PUT", "/v1/keys/"+id+"/rate_limit", `{"per_second": 0, "burst": 0}`)
	send(200, "DELETE", "/v1/keys/"+id+"/rate_limit", "")
	send(404, "DELETE", "/v1/keys/nobody/rate_limit", "")
	c.call(403, secret, "GET", "/v1/keys", "", nil)
	send(200, "GET", "/v1/keys", "")
	send(200, "POST", "/v1/keys/"+id+"/rotate", `{"overlap_seconds": 60}`)
	send(409, "POST", "/v1/keys/"+id+"/rotate", "")
	send(422, "POST", "/v1/keys/"+id+"/rotate", `{"overlap_seconds": -1}`)
	send(200, "DELETE", "/v1/keys/"+id, "")
	send(404, "DELETE", "/v1/keys/nobody", "")
	c.call(401, secret, "GET", "/v1/keys", "", nil)
	made = send(201, "POST", "/v1/accounts/acme/tokens", `{"name": "page", "ttl_seconds": 3600}`)
	id, secret = between(string(made.Body), `"id":"`, `"`), between(string(made.Body), `"secret":"`, `"`)
	send(422, "POST", "/v1/accounts/acme/tokens", `{"ttl_seconds": 86401}`)
	send(404, "POST", "/v1/accounts/nobody/tokens", `{"ttl_seconds": 60}`)
	for _, path := range []string{"/v1/accounts/acme", "/v1/accounts/acme/transfers", "/v1/accounts/acme/usage", "/v1/reservations", "/v1/reservations/resv-0001"} {
		c.call(200, secret, "GET", path, "", nil)
	}
	c.call(404, secret, "GET", "/v1/accounts/other", "", nil)
	c.call(403, secret, "GET", "/v1/accounts", "", nil)
	send(200, "GET", "/v1/accounts/acme/tokens?limit=1", "")
	send(200, "DELETE", "/v1/accounts/acme/tokens/"+id, "")
	send(404, "DELETE", "/v1/accounts/acme/tokens/nothing", "")
	c.call(401, secret, "GET", "/v1/accounts/acme", "", nil)
}

// events drives CloudEvents in all modes.
func events(c *checker) {
	c.t.Helper()
	post := func(status int, media, body string, attributes http.Header) {
		c.t.Helper()
		header := http.Header{"Content-Type": {media}}
		maps.Copy(header, attributes)
		c.call(status, c.a.Info.APIKey, "POST", "/v1/events", body, header)
	}
	const one, many = "application/cloudevents+json", "application/cloudevents-batch+json"
	event := `{"specversion": "1.0", "id": "1", "source": "/llm", "type": "llm.tokens", "subject": "acme", "data": {"quantity": 4, "dimensions": {"model": "s"}}}`
	post(201, one, event, nil)
	post(201, one, event, nil)
	post(200, many, "["+event+`, {}, 7]`, nil)
	attributes := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"/llm"}, "Ce-Type": {"llm.tokens"}, "Ce-Subject": {"acme"}}
	post(201, "application/json", `{"quantity": 4, "dimensions": {"model": "s"}}`, attributes)
	post(422, "application/json", `{"quantity": 4}`, attributes)
	post(422, one, `{}`, nil)
	post(402, one, strings.ReplaceAll(strings.ReplaceAll(event, `"1"`, `"2"`), "4", "5000"), nil)
	post(404, one, strings.ReplaceAll(event, "acme", "nobody"), nil)
	post(400, many, `{}`, nil)
	post(415, "text/plain", `x`, nil)
	c.call(401, "tsk_x", "POST", "/v1/events", event, http.Header{"Content-Type": {one}})
}

// stripeRoutes drives the inbox, deliveries, runs and findings.
func stripeRoutes(t *testing.T, a *apptest.App, c *checker) {
	t.Helper()
	key := a.Info.APIKey
	a.Stripe("POST", "/v1/customers", url.Values{"name": {"x"}}) // raises an event
	a.Settled()
	events := c.call(200, key, "GET", "/v1/stripe/events", "", nil)
	id := between(string(events.Body), `"id":"`, `"`)
	c.call(200, key, "GET", "/v1/stripe/events?id="+id, "", nil)
	c.call(200, key, "POST", "/v1/stripe/events/"+id+"/replay", "", nil)
	c.call(404, key, "POST", "/v1/stripe/events/evt_0/replay", "", nil)
	c.call(200, key, "POST", "/v1/stripe/backfill", `{"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "dry_run": true}`, nil)
	c.call(422, key, "POST", "/v1/stripe/backfill", `{"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}`, nil)
	c.call(200, key, "GET", "/v1/stripe/payments?state=parked", "", nil)
	c.call(400, key, "GET", "/v1/stripe/payments?state=lost", "", nil)
	c.call(404, key, "POST", "/v1/stripe/payments/pi_nowhere/apply", `{}`, nil)
	c.call(422, key, "POST", "/v1/stripe/payments/pi_nowhere/apply", `{"account": "acme"}`, nil)
	c.call(400, "", "POST", "/webhooks/stripe", `{}`, http.Header{"Stripe-Signature": {"t=1,v1=00"}})
	a.Want(201, "PUT", "/v1/meters/bound", `{"credits_per_unit": 0, "stripe": {"kind": "meter", "event_name": "nobody_knows"}}`, nil)
	a.Want(201, "POST", "/v1/usage", `{"id": "usage-0009", "account": "acme", "meter": "bound", "quantity": 3}`, nil)
	deliveries := c.call(200, key, "GET", "/v1/deliveries", "", nil)
	delivery := between(string(deliveries.Body), `"id":"`, `"`)
	c.call(200, key, "POST", "/v1/deliveries/"+delivery+"/retry", "", nil)
	c.call(404, key, "POST", "/v1/deliveries/ts_0/retry", "", nil)
	a.Sim.Advance(2 * 3600 * 1e9)
	c.call(201, key, "POST", "/v1/reconcile/runs", "", nil)
	c.call(201, key, "POST", "/v1/reconcile/runs", `{"checks": ["ledger.balances"], "dry_run": true}`, nil)
	c.call(422, key, "POST", "/v1/reconcile/runs", `{"checks": ["nothing"]}`, nil)
	runs := c.call(200, key, "GET", "/v1/reconcile/runs?limit=1", "", nil)
	c.call(200, key, "GET", "/v1/reconcile/runs/"+between(string(runs.Body), `"id":"`, `"`), "", nil)
	c.call(404, key, "GET", "/v1/reconcile/runs/run_0", "", nil)
	findings := c.call(200, key, "GET", "/v1/findings", "", nil)
	finding := between(string(findings.Body), `"id":"`, `"`)
	if finding == "" {
		t.Fatalf("usage that Stripe has no meter for was not found: %s", findings.Body)
	}
	c.call(200, key, "GET", "/v1/findings/"+finding, "", nil)
	c.call(404, key, "GET", "/v1/findings/fnd_0", "", nil)
	c.call(409, key, "POST", "/v1/findings/"+finding+"/repair", `{"dry_run": true}`, nil)
	c.call(200, key, "GET", "/v1/reconcile/checks", "", nil)
	c.call(200, key, "POST", "/v1/findings/"+finding+"/acknowledge", "", nil)
	c.call(200, key, "POST", "/v1/findings/"+finding+"/snooze", fmt.Sprintf(`{"until": %q}`, a.Clock.Now().Add(time.Hour).Format(time.RFC3339)), nil)
	c.call(422, key, "POST", "/v1/findings/"+finding+"/resolve", `{"reason": ""}`, nil)
	c.call(200, key, "POST", "/v1/findings/"+finding+"/resolve", `{"reason": "a test"}`, nil)
	c.call(409, key, "POST", "/v1/findings/"+finding+"/acknowledge", `{"note": "late"}`, nil)
	c.call(200, key, "GET", "/v1/findings/"+finding, "", nil)
	a.Want(200, "PUT", "/v1/accounts/acme", `{"overdraft": "1000"}`, nil)
}

// TestRepairRouteAnswersAsTheDocumentSays is apart because it needs a drift.
func TestRepairRouteAnswersAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{})
	c := newChecker(t, a)
	a.Want(201, "PUT", "/v1/accounts/acme", `{}`, nil)
	vandalise(t, a, "UPDATE accounts SET available = 5000000")
	a.Want(201, "POST", "/v1/reconcile/runs", `{"checks": ["ledger.balances"]}`, nil)
	findings := a.Want(200, "GET", "/v1/findings", nil, nil)
	path := "/v1/findings/" + between(string(findings.Body), `"id":"`, `"`) + "/repair"
	c.call(200, a.Info.APIKey, "POST", path, `{"dry_run": true}`, nil)
	if r := c.call(200, a.Info.APIKey, "POST", path, "", nil); !strings.Contains(string(r.Body), `"done":true`) {
		t.Errorf("the repair was not done: %s", r.Body)
	}
	if r := c.call(200, a.Info.APIKey, "POST", path, "", nil); !strings.Contains(string(r.Body), `"done":false`) {
		t.Errorf("the repair was done twice: %s", r.Body)
	}
}

func TestUnknownRoutesAndMethodsAreProblems(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{})
	if r := a.Call("GET", "/v1/nothing", nil); r.Status != 404 || r.Code() != "route_not_found" {
		t.Errorf("an unknown route was answered %d %s", r.Status, r.Body)
	}
	for _, tc := range []struct{ method, path, allow string }{
		{"DELETE", "/v1/usage", "POST"}, {"DELETE", "/v1/usage/batch", "POST"}, {"DELETE", "/v1/usage/usage-0001", "GET, HEAD"}, {"PURGE", "/v1/usage/x/void", "POST"},
	} {
		if r := a.Call(tc.method, tc.path, nil); r.Status != 405 || r.Header.Get("Allow") != tc.allow {
			t.Errorf("%s %s was answered %d, Allow %q, want %q", tc.method, tc.path, r.Status, r.Header.Get("Allow"), tc.allow)
		}
	}
}

package app_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"tallystick/internal/apptest"
)

const page, stranger = "https://app.example.com", "https://evil.example.com"

// fetch sends a request as a browser does for a page of an origin; with asks, the
// question that it asks before.
func fetch(t *testing.T, a *apptest.App, origin, method, path, asks, key string) apptest.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, a.Info.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", origin)
	if asks != "" {
		r.Header.Set("Access-Control-Request-Method", asks)
		r.Header.Set("Access-Control-Request-Headers", "authorization")
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	return a.Do(r)
}

func TestPagesOfAllowedOriginsReadWithTokensAndNothingElse(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{Settings: map[string]string{"TALLYSTICK_ALLOWED_ORIGINS": page + ",https://other.example.com"}})
	a.Want(201, "PUT", "/v1/accounts/acme", `{}`, nil)
	token := between(string(a.Want(201, "POST", "/v1/accounts/acme/tokens", `{"ttl_seconds": 60}`, nil).Body), `"secret":"`, `"`)
	allowed := func(r apptest.Response) string { return r.Header.Get("Access-Control-Allow-Origin") }
	for _, route := range a.App.Table() {
		path := strings.NewReplacer("{account}", "acme", "{id}", "resv-0001", "{meter}", "m", "{$}", "").Replace(route.Pattern)
		asked := fetch(t, a, page, http.MethodOptions, path, route.Method, "")
		if got := allowed(asked); (got == page) != route.Own || (got == "") == route.Own {
			t.Errorf("%s %s: the browser's question was answered %d, allowed %q", route.Method, path, asked.Status, got)
		}
		if route.Own && (asked.Status != http.StatusNoContent || !strings.EqualFold(asked.Header.Get("Access-Control-Allow-Headers"), "authorization")) {
			t.Errorf("%s: the browser's question was answered %d %v", path, asked.Status, asked.Header)
		}
		if got := allowed(fetch(t, a, stranger, http.MethodOptions, path, route.Method, "")); got != "" {
			t.Errorf("%s: a stranger's page is allowed %q", path, got)
		}
		if route.Method == http.MethodGet && route.Scope != "" {
			if got := allowed(fetch(t, a, page, http.MethodGet, path, "", token)); (got == page) != route.Own {
				t.Errorf("%s: the answer allows %q", path, got)
			}
		}
	}
	for _, tc := range []struct {
		origin, key, want string
		status            int
	}{{page, token, page, 200}, {page, "", page, 401}, {stranger, token, "", 200}, {page + ".evil.example", token, "", 200}, {"null", token, "", 200}} {
		r := fetch(t, a, tc.origin, http.MethodGet, "/v1/accounts/acme", "", tc.key)
		if r.Status != tc.status || allowed(r) != tc.want || r.Header.Get("Access-Control-Allow-Credentials") != "" || r.Header.Get("Vary") != "Origin" {
			t.Errorf("%s was answered %d %v, want %d and %q", tc.origin, r.Status, r.Header, tc.status, tc.want)
		}
	}
	for _, asks := range []string{http.MethodPost, http.MethodDelete, http.MethodPut} {
		if got := allowed(fetch(t, a, page, http.MethodOptions, "/v1/reservations", asks, "")); got != "" {
			t.Errorf("a page may send %s: %q", asks, got)
		}
	}
	if r := fetch(t, a, page, http.MethodOptions, "/v1/accounts/acme", "", ""); r.Status != http.StatusNoContent {
		t.Errorf("OPTIONS was answered %d", r.Status)
	}
}

func TestNoOriginIsAllowedByDefault(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{})
	a.Want(201, "PUT", "/v1/accounts/acme", `{}`, nil)
	asked := fetch(t, a, page, http.MethodOptions, "/v1/accounts/acme", http.MethodGet, "")
	read := fetch(t, a, page, http.MethodGet, "/v1/accounts/acme", "", a.Info.APIKey)
	if asked.Status != http.StatusMethodNotAllowed || read.Status != 200 {
		t.Errorf("answered %d and %d, want 405 and 200", asked.Status, read.Status)
	}
	for _, r := range []apptest.Response{asked, read} {
		for name := range r.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("an answer has the header %s", name)
			}
		}
	}
}

package stripesim_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"tallystick/stripesim"
)

// user calls a simulator over HTTP, as curl would.
type user struct {
	*stripesim.Sim
	t testing.TB
}

func newUser(t testing.TB, o ...stripesim.Options) *user {
	return &user{Sim: stripesim.New(t, o...), t: t}
}

// reply is an answer, read whole.
type reply struct {
	Status int
	Header http.Header
	Raw    string
	Body   map[string]any // numbers are json.Number
}

// call sends one request; form is written as k=v pairs joined by &, unescaped but for what url.ParseQuery needs. header is name, value, …
func (u *user) call(method, path, form string, header ...string) reply {
	u.t.Helper()
	values, err := url.ParseQuery(form)
	if err != nil {
		u.t.Fatal(err)
	}
	target, body := u.URL+path, io.Reader(nil)
	if method == http.MethodPost && !strings.HasPrefix(path, "/_sim/") {
		body = strings.NewReader(values.Encode())
	} else if strings.HasPrefix(path, "/_sim/") {
		body = strings.NewReader(form)
	} else if form != "" {
		target += "?" + values.Encode()
	}
	r, err := http.NewRequestWithContext(u.t.Context(), method, target, body)
	if err != nil {
		u.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+u.Key)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		u.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		u.t.Fatal(err)
	}
	a := reply{Status: response.StatusCode, Header: response.Header, Raw: string(raw)}
	d := json.NewDecoder(strings.NewReader(a.Raw))
	d.UseNumber()
	_ = d.Decode(&a.Body) // what is no JSON has no members
	return a
}

// must is call for what has to succeed.
func (u *user) must(method, path, form string, header ...string) map[string]any {
	u.t.Helper()
	a := u.call(method, path, form, header...)
	if a.Status != http.StatusOK {
		u.t.Fatalf("%s %s %s was answered %d: %s", method, path, form, a.Status, a.Raw)
	}
	return a.Body
}

// make posts and gives the id of what was made.
func (u *user) make(path, form string) string {
	u.t.Helper()
	id, _ := u.must(http.MethodPost, path, form)["id"].(string)
	return id
}

// refused wants an error of a status, type, code and param.
func (u *user) refused(a reply, status int, kind, code, param string) {
	u.t.Helper()
	e, _ := a.Body["error"].(map[string]any)
	text := func(name string) string { v, _ := e[name].(string); return v }
	if a.Status != status || text("type") != kind || text("code") != code || text("param") != param || text("message") == "" {
		u.t.Errorf("answered %d %s, want %d of type %q, code %q, param %q", a.Status, a.Raw, status, kind, code, param)
	}
}

package meter_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"tallystick/api"
)

// putIf sends a PUT with If-Match, and gives the answer and its ETag.
func (c *till) putIf(path, ifMatch, body string) (a answer, etag string) {
	c.t.Helper()
	a = c.call(http.MethodPut, path, body, "If-Match", ifMatch)
	return a, tagOf(c.t, a)
}

// tagOf reads the ETag of an answer, which is the same in header and body.
func tagOf(t *testing.T, a answer) string {
	t.Helper()
	var body struct{ ETag string }
	read(t, a, &body)
	if body.ETag != a.header.Get("ETag") {
		t.Errorf("ETag is %s in the header and %s in the body", a.header.Get("ETag"), body.ETag)
	}
	return body.ETag
}

// catalogued are the two things that are put whole, with a body that differs by n.
var catalogued = []struct {
	path string
	body func(n int) string
	said func(c *till) string // what stands that body sets
}{
	{"/v1/accounts/acme", func(n int) string { return fmt.Sprintf(`{"name": "name %d"}`, n) }, func(c *till) string {
		var a api.Account
		read(c.t, c.want(200, http.MethodGet, "/v1/accounts/acme", ""), &a)
		return a.Name
	}},
	{"/v1/meters/call", func(n int) string { return fmt.Sprintf(`{"credits_per_unit": 1, "unit": "name %d"}`, n) }, func(c *till) string {
		var m api.Meter
		read(c.t, c.want(200, http.MethodGet, "/v1/meters/call", ""), &m)
		return m.Unit
	}},
}

// etag reads the ETag of something.
func (c *till) etag(path string) string {
	c.t.Helper()
	return tagOf(c.t, c.want(200, http.MethodGet, path, ""))
}

func TestC14AStaleETagChangesNothing(t *testing.T) {
	t.Parallel()
	for _, k := range catalogued {
		c := opened(t, 10)
		read := c.etag(k.path)
		a, written := c.putIf(k.path, read, k.body(1))
		if a.status != 200 || written == read || written != c.etag(k.path) {
			t.Fatalf("%s: a fresh ETag is answered %d; the ETag was %s, is %s, and reads %s", k.path, a.status, read, written, c.etag(k.path))
		}
		for _, stale := range []string{read, "W/" + written, `"other"`, read + `, "other"`} {
			if a, _ := c.putIf(k.path, stale, k.body(2)); a.status != 412 || a.code != "precondition_failed" {
				t.Errorf("%s: If-Match %s is answered %d %s", k.path, stale, a.status, a.code)
			}
		}
		if k.said(c) != "name 1" || c.etag(k.path) != written {
			t.Errorf("%s: a stale ETag has made it %q, %s", k.path, k.said(c), c.etag(k.path))
		}
		for n, fresh := range []string{written, "*", `"other", *`} {
			if a, _ := c.putIf(k.path, fresh, k.body(3+n)); a.status != 200 {
				t.Errorf("%s: If-Match %s is answered %d %s", k.path, fresh, a.status, a.code)
			}
		}
		if a, _ := c.putIf(k.path, `"other", `+c.etag(k.path), k.body(6)); a.status != 200 {
			t.Errorf("%s: one ETag of two is answered %d %s", k.path, a.status, a.code)
		}
		for _, malformed := range []string{"", "abc", `"`, `"a"b"`, `"a",`, "W/"} {
			if a, _ := c.putIf(k.path, malformed, k.body(9)); a.status != 400 || a.code != "invalid_request" {
				t.Errorf("%s: If-Match %s is answered %d %s", k.path, malformed, a.status, a.code)
			}
		}
	}
}

func TestC14WhatIsNotThereMatchesNothing(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	for path, body := range map[string]string{"/v1/accounts/nobody": `{}`, "/v1/meters/nothing": `{"credits_per_unit": 1}`} {
		for _, tag := range []string{"*", `"0-0"`, `""`} {
			if a, _ := c.putIf(path, tag, body); a.status != 412 {
				t.Errorf("%s with If-Match %s is answered %d", path, tag, a.status)
			}
		}
		c.want(404, http.MethodGet, path, "")
	}
}

// The ETag is of what PUT sets: usage between reading and writing is no change of it.
func TestC14TheBalanceIsNoPartOfTheETag(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	read := c.etag("/v1/accounts/acme")
	c.want(201, http.MethodPost, "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 1}`)
	if a, _ := c.putIf("/v1/accounts/acme", read, `{"name": "x"}`); a.status != 200 {
		t.Errorf("usage made the ETag stale: %d %s", a.status, a.code)
	}
}

func TestC14OfWritersWithOneETagOneWins(t *testing.T) {
	t.Parallel()
	const rounds, writers = 10, 8
	for _, k := range catalogued {
		c := opened(t, 0)
		for round := range rounds {
			read := c.etag(k.path)
			var won sync.Map
			var wg sync.WaitGroup
			for n := range writers {
				wg.Go(func() {
					switch a, _ := c.putIf(k.path, read, k.body(100*round+n)); {
					case a.status == 200:
						won.Store(n, fmt.Sprintf("name %d", 100*round+n))
					case a.status != 412:
						t.Errorf("%s is answered %d %s", k.path, a.status, a.code)
					}
				})
			}
			wg.Wait()
			var winners []any
			won.Range(func(_, name any) bool { winners = append(winners, name); return true })
			if len(winners) != 1 || winners[0] != k.said(c) {
				t.Fatalf("%s: %v won, and it is %q", k.path, winners, k.said(c))
			}
		}
	}
}

// Whoever sends no header changes it as ever, and makes what others read stale.
func TestC14WithoutTheHeaderTheLastWriteStands(t *testing.T) {
	t.Parallel()
	for _, k := range catalogued {
		c := opened(t, 0)
		read := c.etag(k.path)
		c.want(200, http.MethodPut, k.path, k.body(1))
		c.want(200, http.MethodPut, k.path, k.body(1)) // the same again is a change, too
		if a, _ := c.putIf(k.path, read, k.body(2)); a.status != 412 {
			t.Errorf("%s: a stale ETag is answered %d", k.path, a.status)
		}
	}
}

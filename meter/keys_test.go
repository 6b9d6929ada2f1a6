package meter_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/meter"
)

// as is the same process for another caller.
func (c *till) as(secret string) *till {
	other := *c
	other.key = secret
	return &other
}

// made is a key with these scopes and this limit, "" for none.
func (c *till) made(limit string, scopes ...string) api.Key {
	c.t.Helper()
	body := `{"name": "k", "scopes": ["` + strings.Join(scopes, `","`) + `"]`
	if limit != "" {
		body += `, "rate_limit": ` + limit
	}
	var key api.Key
	read(c.t, c.want(201, http.MethodPost, "/v1/keys", body+"}"), &key)
	return key
}

func (c *till) rotate(id, body string) api.Key {
	c.t.Helper()
	var key api.Key
	read(c.t, c.want(200, http.MethodPost, "/v1/keys/"+id+"/rotate", body), &key)
	return key
}

// reads gives the status of a read with a secret.
func (c *till) reads(secret string) int {
	c.t.Helper()
	return c.as(secret).call(http.MethodGet, "/v1/accounts/acme", "").status
}

func TestARotatedKeyKeepsItsOldSecretForTheOverlap(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	other := c.beside()
	for _, tc := range []struct {
		body    string
		overlap time.Duration
	}{
		{"", 24 * time.Hour},
		{"{}", 24 * time.Hour},
		{`{"overlap_seconds": 1}`, time.Second},
		{`{"overlap_seconds": 604800}`, 7 * 24 * time.Hour},
	} {
		old := c.made("", meter.ScopeRead)
		if old.RotatedAt != nil || old.PreviousExpiresAt != nil {
			t.Errorf("a new key was rotated: %+v", old)
		}
		if other.reads(old.Secret) != 200 { // it is in the other process's cache from now on
			t.Fatal("the key does not work")
		}
		rotated := c.rotate(old.ID, tc.body)
		end := c.clock.Now().Add(tc.overlap)
		if rotated.ID != old.ID || rotated.Secret == old.Secret || !strings.HasPrefix(rotated.Secret, "tsk_"+old.ID+"_") ||
			rotated.RotatedAt == nil || !rotated.RotatedAt.Equal(c.clock.Now()) || rotated.PreviousExpiresAt == nil || !rotated.PreviousExpiresAt.Equal(end) {
			t.Errorf("%s: the key was rotated to %+v", tc.body, rotated)
		}
		for _, process := range []*till{c, other} { // the new secret works everywhere at once
			if process.reads(rotated.Secret) != 200 || process.reads(old.Secret) != 200 {
				t.Errorf("%s: one of both secrets does not work during the overlap", tc.body)
			}
		}
		c.clock.pass(tc.overlap - time.Microsecond)
		if c.reads(old.Secret) != 200 {
			t.Errorf("%s: the old secret ended before its time", tc.body)
		}
		c.clock.pass(time.Microsecond)
		if c.reads(old.Secret) != 401 || c.reads(rotated.Secret) != 200 {
			t.Errorf("%s: after the overlap it is not the new secret alone that works", tc.body)
		}
		if list := c.want(200, http.MethodGet, "/v1/keys?limit=500", "").body; strings.Contains(list, fmt.Sprintf(`"previous_expires_at":"%s"`, end.Format(time.RFC3339))) {
			t.Errorf("%s: the list shows the end of a secret that has ended: %s", tc.body, list)
		}
	}
	if n := c.count("SELECT count(*) FROM api_keys WHERE previous_hash IS NOT NULL AND length(previous_hash) = 32 AND previous_hash <> secret_hash"); n != 4 {
		t.Errorf("%d keys have two hashes, want 4", n)
	}
}

func TestAtMostTwoSecretsOfAKeyWork(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	first := c.made("", meter.ScopeRead)
	second := c.rotate(first.ID, `{"overlap_seconds": 60}`)
	refused := c.call(http.MethodPost, "/v1/keys/"+first.ID+"/rotate", `{"overlap_seconds": 60}`)
	if refused.status != 409 || refused.code != "rotation_under_way" || !strings.Contains(refused.body, `"previous_expires_at":"2026-03-01T12:01:00Z"`) {
		t.Errorf("a rotation within the overlap was answered %d: %s", refused.status, refused.body)
	}
	if c.reads(first.Secret) != 200 || c.reads(second.Secret) != 200 {
		t.Error("the refused rotation changed something")
	}
	third := c.rotate(first.ID, `{"overlap_seconds": 0}`)
	if c.reads(first.Secret) != 401 || c.reads(second.Secret) != 401 || c.reads(third.Secret) != 200 || third.PreviousExpiresAt != nil {
		t.Error("a rotation without overlap does not end every older secret at once")
	}
	c.rotate(first.ID, `{"overlap_seconds": 60}`)
	c.clock.pass(time.Minute)
	c.rotate(first.ID, `{"overlap_seconds": 60}`) // the overlap is over: the next may begin
	if c.reads(third.Secret) != 401 {
		t.Error("the last secret but one works")
	}
}

// TestManyRotateAtOnce lets one through: of two secrets that are shown, neither
// may end the other unasked. All of them are under way before the first may go on.
func TestManyRotateAtOnce(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	key := c.made("", meter.ScopeRead)
	release := c.hold("SELECT 1 FROM api_keys WHERE key_id = $1 FOR UPDATE", key.ID)
	answers := make(chan answer, 4)
	for range cap(answers) {
		go func() { answers <- c.call(http.MethodPost, "/v1/keys/"+key.ID+"/rotate", "") }()
	}
	c.blocked(cap(answers))
	release()
	rotated := 0
	for range cap(answers) {
		a := <-answers
		if a.status == 200 {
			rotated++
		} else if a.status != 409 || a.code != "rotation_under_way" {
			t.Errorf("answered %d: %s", a.status, a.body)
		}
	}
	if rotated != 1 || c.reads(key.Secret) != 200 {
		t.Errorf("%d rotations were carried out, want 1, and the old secret to work", rotated)
	}
}

func TestRefusalsOfRotationsAndLimits(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	key, revoked := c.made("", meter.ScopeRead), c.made("", meter.ScopeRead)
	c.want(200, http.MethodDelete, "/v1/keys/"+revoked.ID, "")
	var expired api.Key
	read(t, c.want(201, http.MethodPost, "/v1/keys", `{"name": "e", "scopes": ["read"], "expires_at": "2026-03-01T12:00:01Z"}`), &expired)
	c.clock.pass(time.Second)
	for _, tc := range []struct{ method, path, body, want string }{
		{"POST", key.ID + "/rotate", `{"overlap_seconds": -1}`, "422 invalid_value"},
		{"POST", key.ID + "/rotate", `{"overlap_seconds": 604801}`, "422 invalid_value"},
		{"POST", key.ID + "/rotate", `{"overlap": 1}`, "400 invalid_request"},
		{"POST", revoked.ID + "/rotate", ``, "409 key_ended"},
		{"POST", expired.ID + "/rotate", `{"overlap_seconds": 0}`, "409 key_ended"},
		{"POST", "nobody/rotate", ``, "404 key_not_found"},
		{"POST", "no%20body/rotate", ``, "404 key_not_found"},
		{"PUT", key.ID + "/rate_limit", `{}`, "422 invalid_value"},
		{"PUT", key.ID + "/rate_limit", `{"per_second": 0, "burst": 1}`, "422 invalid_value"},
		{"PUT", key.ID + "/rate_limit", `{"per_second": 1, "burst": 0}`, "422 invalid_value"},
		{"PUT", key.ID + "/rate_limit", `{"per_second": 100001, "burst": 1}`, "422 invalid_value"},
		{"PUT", key.ID + "/rate_limit", `{"per_second": 1, "burst": 100001}`, "422 invalid_value"},
		{"PUT", key.ID + "/rate_limit", `{"per_second": 1.5, "burst": 1}`, "400 invalid_request"},
		{"PUT", "nobody/rate_limit", `{"per_second": 1, "burst": 1}`, "404 key_not_found"},
		{"DELETE", "nobody/rate_limit", ``, "404 key_not_found"},
	} {
		if a := c.call(tc.method, "/v1/keys/"+tc.path, tc.body); fmt.Sprint(a.status, " ", a.code) != tc.want {
			t.Errorf("%s %s with %s was answered %d, want %s: %s", tc.method, tc.path, tc.body, a.status, tc.want, a.body)
		}
	}
	if a := c.call(http.MethodPost, "/v1/keys", `{"name": "k", "scopes": ["read"], "rate_limit": {"per_second": 0, "burst": -1}}`); a.status != 422 ||
		!strings.Contains(a.body, `"/rate_limit/per_second"`) || !strings.Contains(a.body, `"/rate_limit/burst"`) {
		t.Errorf("a key with a limit of nothing was answered %d: %s", a.status, a.body)
	}
	if n := c.count("SELECT count(*) FROM api_keys WHERE rotated_at IS NOT NULL OR rate_per_second IS NOT NULL"); n != 0 {
		t.Errorf("the refusals changed %d keys", n)
	}
	c.want(200, http.MethodPut, "/v1/keys/"+key.ID+"/rate_limit", `{"per_second": 100000, "burst": 100000}`)
	c.want(200, http.MethodPost, "/v1/keys/"+key.ID+"/rotate", `{"overlap_seconds": 604800}`)
}

// TestG09AKeysRateLimit counts requests on a clock that stands still, so that
// every figure is exact.
func TestG09AKeysRateLimit(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	key := c.made(`{"per_second": 2, "burst": 3}`, meter.ScopeRead)
	if key.RateLimit == nil || *key.RateLimit != (api.RateLimit{PerSecond: 2, Burst: 3}) {
		t.Errorf("the key has the limit %+v", key.RateLimit)
	}
	limited := c.as(key.Secret)
	passes := func(want int) {
		t.Helper()
		for n := 0; ; n++ {
			a := limited.call(http.MethodGet, "/v1/accounts/acme", "")
			if a.status == 200 && n < want {
				continue
			}
			if a.status != 429 || a.code != "rate_limited" || a.header.Get("Retry-After") != "1" || n != want {
				t.Errorf("after %d requests, want %d, the answer was %d with Retry-After %q: %s", n, want, a.status, a.header.Get("Retry-After"), a.body)
			}
			return
		}
	}
	passes(3)
	c.clock.pass(499 * time.Millisecond)
	passes(0)
	c.clock.pass(time.Millisecond)
	passes(1)
	c.clock.pass(time.Hour)
	passes(3)
	if a := limited.use("usage-0001", 1); a.status != 429 { // before the scope is looked at
		t.Errorf("a call beyond rate and scope was answered %d: %s", a.status, a.body)
	}
	if c.reads(c.key) != 200 {
		t.Error("another key is limited, too")
	}
	other := c.beside().as(key.Secret)
	if other.call(http.MethodGet, "/v1/accounts/acme", "").status != 200 {
		t.Error("another process does not count for itself")
	}
	c.want(200, http.MethodPut, "/v1/keys/"+key.ID+"/rate_limit", `{"per_second": 10, "burst": 20}`)
	passes(0)
	c.clock.pass(time.Second)
	passes(10)
	c.want(200, http.MethodPut, "/v1/keys/"+key.ID+"/rate_limit", `{"per_second": 1, "burst": 1}`)
	c.clock.pass(time.Hour)
	passes(1)
	if a := c.want(200, http.MethodDelete, "/v1/keys/"+key.ID+"/rate_limit", ""); !strings.Contains(a.body, `"rate_limit":null`) {
		t.Errorf("the limit was not lifted: %s", a.body)
	}
	for range 50 {
		limited.want(200, http.MethodGet, "/v1/accounts/acme", "")
	}
}

func TestG09ItemsOfABatchCountAsRequests(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	limited := c.as(c.made(`{"per_second": 2, "burst": 10}`, meter.ScopeUsage).Secret)
	batch := func(first, n int) answer {
		var items []string
		for i := range n {
			items = append(items, usageOf(fmt.Sprintf("usage-%04d", first+i), 1))
		}
		return limited.call(http.MethodPost, "/v1/usage/batch", `{"usage": [`+strings.Join(items, ",")+`]}`)
	}
	if a := batch(0, 11); a.status != 422 || a.code != "batch_over_burst" || a.header.Get("Retry-After") != "" {
		t.Errorf("a batch that could never pass was answered %d: %s", a.status, a.body)
	}
	c.clock.pass(time.Minute)
	if a := batch(0, 10); a.status != 200 {
		t.Errorf("a batch as large as the burst was answered %d: %s", a.status, a.body)
	}
	c.clock.pass(time.Second)
	if a := batch(10, 2); a.status != 200 {
		t.Errorf("two items a second later were answered %d: %s", a.status, a.body)
	}
	c.clock.pass(time.Second)
	a := batch(12, 6) // two requests have come back; the call itself takes one of them
	if a.status != 429 || a.code != "rate_limited" || a.header.Get("Retry-After") != "3" {
		t.Errorf("a batch beyond the rate was answered %d with Retry-After %q: %s", a.status, a.header.Get("Retry-After"), a.body)
	}
	if n := c.count("SELECT count(*) FROM usage"); n != 12 {
		t.Errorf("%d usages are recorded, want 12", n)
	}
	c.clock.pass(3 * time.Second) // as it was told to
	if a := batch(12, 6); a.status != 200 {
		t.Errorf("after the wait that was asked for the answer was %d: %s", a.status, a.body)
	}
}

func TestG09TheRateIsExactUnderContention(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	limited := c.as(c.made(`{"per_second": 1, "burst": 25}`, meter.ScopeRead).Secret)
	var wg sync.WaitGroup
	var passed, refused atomic.Int32
	for range 10 {
		wg.Go(func() {
			for range 10 {
				switch limited.call(http.MethodGet, "/v1/accounts/acme", "").status {
				case 200:
					passed.Add(1)
				case 429:
					refused.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Load() != 25 || refused.Load() != 75 {
		t.Errorf("%d passed and %d were refused, want 25 and 75", passed.Load(), refused.Load())
	}
}

package meter_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"tallystick/meter"
)

// few is a process that takes so many failures per address and minute, from
// callers whose addresses a proxy on this machine says.
func few(failures int) func(*meter.Config) {
	return func(c *meter.Config) {
		c.Failures, c.Proxies = failures, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
}

func (c *till) from(address, secret string) answer {
	c.t.Helper()
	return c.as(secret).call(http.MethodGet, "/v1/accounts/acme", "", "X-Forwarded-For", address)
}

// TestG01EveryUnusableKeyGetsTheSameAnswer compares the answers whole, but for the
// id of the request.
func TestG01EveryUnusableKeyGetsTheSameAnswer(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	revoked, rotated, good := c.made("", meter.ScopeAdmin), c.made("", meter.ScopeAdmin), c.made("", meter.ScopeAdmin)
	c.want(200, http.MethodDelete, "/v1/keys/"+revoked.ID, "")
	c.rotate(rotated.ID, `{"overlap_seconds": 0}`)
	expired := between(c.want(201, http.MethodPost, "/v1/keys", `{"name": "e", "scopes": ["admin"], "expires_at": "2026-03-01T12:00:01Z"}`).body, `"secret":"`, `"`)
	token := between(c.want(201, http.MethodPost, "/v1/accounts/acme/tokens", `{"ttl_seconds": 1}`).body, `"secret":"`, `"`)
	ended := c.want(201, http.MethodPost, "/v1/accounts/acme/tokens", `{"ttl_seconds": 60}`).body
	c.want(200, http.MethodDelete, "/v1/accounts/acme/tokens/"+between(ended, `"id":"`, `"`), "")
	live := c.token("acme").Secret
	c.clock.pass(time.Second)
	secrets := map[string]string{
		"no key": "", "nonsense": "nonsense", "another's": "sk_test_1", "too long": "tsk_a_" + strings.Repeat("0", 200), "no secret": "tsk_" + good.ID,
		"an empty secret": "tsk_" + good.ID + "_", "unknown": "tsk_000000000000_" + strings.Repeat("0", 64), "wrong": good.Secret[:len(good.Secret)-1] + "x",
		"longer": good.Secret + "0", "in capitals": strings.ToUpper(good.Secret), "revoked": revoked.Secret, "rotated": rotated.Secret, "expired": expired,
		"an expired token": token, "a revoked token": between(ended, `"secret":"`, `"`), "a wrong token": live[:len(live)-1] + "x",
		"an unknown token": "tat_0000000000000000_" + strings.Repeat("0", 64), "a token without id": "tat__0", "a short token": "tat_00_00",
	}
	var want answer
	for range 2 { // also from the cache
		for name, secret := range secrets {
			a := c.as(secret).call(http.MethodGet, "/v1/accounts/acme", "", "X-Request-Id", "same")
			a.header.Del("Date")
			if want.status == 0 {
				want = a
			}
			if a.status != 401 || a.code != "unauthorized" || a.body != want.body || fmt.Sprint(a.header) != fmt.Sprint(want.header) {
				t.Errorf("%s: answered %d %s\n%v\nwant\n%s\n%v", name, a.status, a.body, a.header, want.body, want.header)
			}
		}
	}
	for _, header := range []string{"", good.Secret, "bearer " + good.Secret, "Basic " + good.Secret, "Bearer", "Bearer  " + good.Secret} {
		if a := c.call(http.MethodGet, "/v1/accounts/acme", "", "Authorization", header); a.status != 401 {
			t.Errorf("Authorization: %.12q was answered %d", header, a.status)
		}
	}
}

// TestG01AWrongSecretIsLookedUpWhetherItsKeyIsKnownOrNot is about the time of an
// answer: it would tell a known id from an unknown one if only one of them were
// looked up. With the table locked, whoever asks the database waits.
func TestG01AWrongSecretIsLookedUpWhetherItsKeyIsKnownOrNot(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	key := c.made("", meter.ScopeRead)
	if c.reads(key.Secret) != 200 { // the key is in the cache
		t.Fatal("the key does not work")
	}
	release := c.hold("LOCK TABLE api_keys")
	answers := make(chan int, 2)
	for _, id := range []string{key.ID, "000000000000"} {
		go func() { answers <- c.reads("tsk_" + id + "_" + strings.Repeat("0", 64)) }()
	}
	c.blocked(2)
	release()
	for range cap(answers) {
		if status := <-answers; status != 401 {
			t.Errorf("a wrong secret was answered %d", status)
		}
	}
}

// TestAKeyInUseAsksNoDatabase locks the table of keys: what is in the cache goes on.
func TestAKeyInUseAsksNoDatabase(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	key := c.made("", meter.ScopeRead)
	for range 5 { // a busy machine may take longer than the cache trusts a key
		c.reads(key.Secret)
		release := c.hold("LOCK TABLE api_keys")
		status := make(chan int, 1)
		go func() { status <- c.reads(key.Secret) }()
		select {
		case got := <-status:
			if got != 200 {
				t.Errorf("the key in use was answered %d", got)
			}
			return
		case <-time.After(3 * time.Second):
			release()
			<-status
		}
	}
	t.Error("a key in use is looked up")
}

func TestG09FailedAuthenticationsAreLimitedPerAddress(t *testing.T) {
	t.Parallel()
	first := opened(t, 0)
	registry := prometheus.NewRegistry()
	c := first.beside(few(6), func(c *meter.Config) { c.Registry = registry })
	key, fresh := c.made("", meter.ScopeRead), c.made("", meter.ScopeRead)
	bad := "tsk_000000000000_" + strings.Repeat("0", 64)
	for i := range 6 {
		if a := c.from("192.0.2.1", []string{bad, "", "tat_0_0"}[i%3]); a.status != 401 {
			t.Fatalf("failure %d was answered %d", i, a.status)
		}
	}
	for _, secret := range []string{bad, "", "tat_0_0", "tat_0000000000000000_0", "tsk_" + key.ID + "_0"} {
		if a := c.from("192.0.2.1", secret); a.status != 429 || a.code != "too_many_failures" || a.header.Get("Retry-After") != "10" {
			t.Errorf("a failure beyond the limit was answered %d with Retry-After %q: %s", a.status, a.header.Get("Retry-After"), a.body)
		}
	}
	for name, secret := range map[string]string{"in use": key.Secret, "not seen before": fresh.Secret} {
		if a := c.from("192.0.2.1", secret); a.status != 200 {
			t.Errorf("a good key, %s, that shares the address was answered %d: %s", name, a.status, a.body)
		}
	}
	if a := c.from("192.0.2.2", bad); a.status != 401 {
		t.Errorf("another address was answered %d", a.status)
	}
	c.clock.pass(10*time.Second - time.Millisecond)
	if a := c.from("192.0.2.1", bad); a.status != 429 {
		t.Errorf("before its time a failure was answered %d", a.status)
	}
	c.clock.pass(time.Millisecond)
	if a, b := c.from("192.0.2.1", bad), c.from("192.0.2.1", bad); a.status != 401 || b.status != 429 {
		t.Errorf("after ten seconds the failures were answered %d and %d, want one more 401", a.status, b.status)
	}
	if a := c.as(key.Secret).use("usage-0001", 1); a.status != 403 {
		t.Errorf("answered %d", a.status)
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "tallystick_refusals_total" {
		t.Fatalf("the metrics are %v, %v", families, err)
	}
	got := map[string]int{}
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = int(m.GetCounter().GetValue())
	}
	want := map[string]int{"unauthorized": 8, "too_many_failures": 7, "forbidden": 1, "rate_limited": 0, "batch_over_burst": 0}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("refusals are counted as (-want +got):\n%s", diff)
	}
}

// TestG09WhoSaysNothingOfItselfIsLimitedToo: without trust in a proxy all that it
// passes on share its address.
func TestG09WhoSaysNothingOfItselfIsLimitedToo(t *testing.T) {
	t.Parallel()
	c := opened(t, 0).beside(func(c *meter.Config) { c.Failures = 2 })
	for i, want := range []int{401, 401, 429, 429} {
		if a := c.from(fmt.Sprintf("192.0.2.%d", i), "tsk_x_y"); a.status != want {
			t.Errorf("failure %d was answered %d, want %d", i, a.status, want)
		}
	}
}

// TestG09ALimiterThatCannotDecideLetsNobodyIn stops the database, so that the
// suspects' queue fills: the refusals go on at once, and the good keys in use, too.
func TestG09ALimiterThatCannotDecideLetsNobodyIn(t *testing.T) {
	t.Parallel()
	c := opened(t, 0).beside(few(1))
	key := c.made("", meter.ScopeRead)
	bad := "tsk_" + key.ID + "_" + strings.Repeat("0", 64)
	c.from("192.0.2.1", bad)
	release := c.hold("LOCK TABLE api_keys")
	answers := make(chan answer, 100)
	var wg sync.WaitGroup
	for range cap(answers) {
		wg.Go(func() { answers <- c.from("192.0.2.1", bad) })
	}
	for range cap(answers) - 64 { // the others stand in the queue
		if a := <-answers; a.status != 429 {
			t.Errorf("beyond the queue a failure was answered %d", a.status)
		}
	}
	c.blocked(1)
	time.Sleep(100 * time.Millisecond) // for a second one, were it let through
	if n := c.count("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"); n != 1 {
		t.Errorf("%d suspects are at the database at a time, want 1", n)
	}
	release()
	wg.Wait()
	close(answers)
	for a := range answers {
		if a.status != 429 {
			t.Errorf("after the queue a failure was answered %d", a.status)
		}
	}
	if a := c.from("192.0.2.1", key.Secret); a.status != 200 {
		t.Errorf("afterwards a good key was answered %d: %s", a.status, a.body)
	}
}

func between(s, before, after string) string {
	_, s, _ = strings.Cut(s, before)
	s, _, _ = strings.Cut(s, after)
	return s
}

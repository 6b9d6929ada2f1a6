package stripesim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tallystick/stripesim"
)

// strike makes a customer by POST under a fault, on a connection of its own.
func (u *user) strike(f stripesim.Fault, header ...string) (reply, error) {
	u.t.Helper()
	f.Method = http.MethodPost
	if err := u.AddFaults(&f); err != nil {
		u.t.Fatal(err)
	}
	defer u.ClearFaults()
	r, err := http.NewRequestWithContext(u.t.Context(), http.MethodPost, u.URL+"/v1/customers", strings.NewReader("name=a"))
	if err != nil {
		u.t.Fatal(err)
	}
	r.SetBasicAuth(u.Key, "")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return answerOf(response.StatusCode, response.Header, body), err
}

// TestEachFault strikes a call once with each, and looks at what the client sees
// and whether the call was executed.
func TestEachFault(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, tc := range []struct {
		fault    stripesim.Fault
		status   int
		executed bool
		code     string
	}{
		{stripesim.Fault{Fault: "error_500_before"}, 500, false, ""},
		{stripesim.Fault{Fault: "error_500_after"}, 500, true, ""},
		{stripesim.Fault{Fault: "error_502_html"}, 502, false, ""},
		{stripesim.Fault{Fault: "error_502_after"}, 502, true, ""},
		{stripesim.Fault{Fault: "error_503"}, 503, false, ""},
		{stripesim.Fault{Fault: "error_503_after"}, 503, true, ""},
		{stripesim.Fault{Fault: "rate_limit"}, 429, false, "rate_limit"},
		{stripesim.Fault{Fault: "lock_timeout"}, 429, false, "lock_timeout"},
		{stripesim.Fault{Fault: "conflict_409"}, 409, false, "idempotency_key_in_use"},
		{stripesim.Fault{Fault: "key_mismatch_400"}, 400, false, ""},
		{stripesim.Fault{Fault: "identifier_exists_400"}, 400, false, ""},
		{stripesim.Fault{Fault: "unauthorized_401"}, 401, false, "api_key_expired"},
		{stripesim.Fault{Fault: "forbidden_403"}, 403, false, ""},
		{stripesim.Fault{Fault: "redirect_302"}, 302, false, ""},
		{stripesim.Fault{Fault: "malformed_json"}, 200, true, ""},
		{stripesim.Fault{Fault: "wrong_content_type"}, 200, true, ""},
		{stripesim.Fault{Fault: "oversized_body", Bytes: 1 << 20}, 200, true, ""},
		{stripesim.Fault{Fault: "empty_200"}, 200, true, ""},
		{stripesim.Fault{Fault: "slow", DelayMS: 30}, 200, true, ""},
		{stripesim.Fault{Fault: "slow_after", DelayMS: 30}, 200, true, ""},
		{stripesim.Fault{Fault: "slow_body", DelayMS: 32}, 200, true, ""},
		{stripesim.Fault{Fault: "page_shift"}, 200, true, ""},
		{stripesim.Fault{Fault: "lose"}, 200, true, ""},
		{stripesim.Fault{Fault: "drop_before"}, 0, false, ""},
		{stripesim.Fault{Fault: "drop_after"}, 0, true, ""},
		{stripesim.Fault{Fault: "reset_before"}, 0, false, ""},
		{stripesim.Fault{Fault: "reset_after"}, 0, true, ""},
		{stripesim.Fault{Fault: "cut_body"}, 0, true, ""},
	} {
		name := tc.fault.Fault
		seen[name] = true
		u := newUser(t)
		a, err := u.strike(tc.fault)
		if executed := u.State().Counts["customer"] == 1; executed != tc.executed {
			t.Errorf("%s: the call was executed: %v, want %v", name, executed, tc.executed)
		}
		if tc.status == 0 {
			if err == nil {
				t.Errorf("%s is answered %d %s", name, a.Status, a.Raw)
			}
			continue
		}
		if err != nil || a.Status != tc.status {
			t.Errorf("%s is answered %d %s, %v", name, a.Status, a.Raw, err)
			continue
		}
		if got := member(a.Body, "error", "code"); tc.code != "" && got != tc.code {
			t.Errorf("%s has the code %v", name, got)
		}
		looksAs(t, name, a)
	}
	for _, name := range stripesim.FaultNames {
		if !seen[name] {
			t.Errorf("%s is not shown", name)
		}
	}
}

// looksAs checks what is peculiar to some faults.
func looksAs(t *testing.T, name string, a reply) {
	t.Helper()
	kind, reason := a.Header.Get("Content-Type"), a.Header.Get("Stripe-Rate-Limited-Reason")
	good := true
	switch name {
	case "error_502_html", "error_502_after":
		good = kind == "text/html" && strings.Contains(a.Raw, "502 Bad Gateway")
	case "rate_limit":
		good = reason == "global-rate" && a.Header.Get("Retry-After") == "" && a.Header.Get("Stripe-Should-Retry") == ""
	case "lock_timeout":
		good = reason == ""
	case "key_mismatch_400":
		good = member(a.Body, "error", "type") == "idempotency_error"
	case "identifier_exists_400":
		good = strings.Contains(a.Raw, "An event already exists with identifier") && a.Header.Get("Stripe-Should-Retry") == "false"
	case "malformed_json":
		good = a.Body == nil && a.Raw != ""
	case "wrong_content_type":
		good = strings.HasPrefix(kind, "text/html") && a.Body["object"] == "customer"
	case "oversized_body":
		good = len(a.Raw) > 1<<20 && a.Body["object"] == "customer"
	case "empty_200":
		good = a.Raw == ""
	case "slow", "slow_after", "slow_body":
		good = a.Body["object"] == "customer"
	}
	if !good {
		t.Errorf("%s looks as %d %v %.200s", name, a.Status, a.Header, a.Raw)
	}
}

// TestTheEndOfAConnection is plain or a reset, as the fault says.
func TestTheEndOfAConnection(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for fault, reset := range map[string]bool{"drop_before": false, "drop_after": false, "reset_before": true, "reset_after": true} {
		_, err := u.strike(stripesim.Fault{Fault: fault})
		if got := errors.Is(err, syscall.ECONNRESET); err == nil || got != reset {
			t.Errorf("%s ends with %v", fault, err)
		}
	}
	a, err := u.strike(stripesim.Fault{Fault: "cut_body"})
	if whole, _ := strconv.Atoi(a.Header.Get("Content-Length")); a.Raw == "" || len(a.Raw) >= whole || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("cut_body gives %d bytes of %d, %v", len(a.Raw), whole, err)
	}
}

// TestADroppedCallIsFoundByItsKey retries what was executed and never answered.
func TestADroppedCallIsFoundByItsKey(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"drop_after", "reset_after", "cut_body", "error_502_after", "error_503_after", "malformed_json", "empty_200"} {
		u := newUser(t)
		_, _ = u.strike(stripesim.Fault{Fault: fault, Times: 1}, key("k")...)
		a := u.call("POST", "/v1/customers", "name=a", key("k")...)
		if a.Status != 200 || a.Header.Get("Idempotent-Replayed") != "true" || u.State().Counts["customer"] != 1 {
			t.Errorf("after %s the key gives %d %v", fault, a.Status, a.Header)
		}
	}
}

// TestHintsAboutARetry puts the headers on that a rule names.
func TestHintsAboutARetry(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, retry := range []bool{true, false} {
		for _, fault := range []string{"rate_limit", "error_500_before", "error_500_after", "error_502_html", "error_503", "lock_timeout"} {
			a, err := u.strike(stripesim.Fault{Fault: fault, RetryAfter: 7, ShouldRetry: &retry, Reason: "resource-specific"})
			if err != nil || a.Header.Get("Retry-After") != "7" || a.Header.Get("Stripe-Should-Retry") != fmt.Sprint(retry) {
				t.Errorf("%s answers %v, %v", fault, a.Header, err)
			}
			if got := a.Header.Get("Stripe-Rate-Limited-Reason"); fault == "rate_limit" && got != "resource-specific" {
				t.Errorf("the reason is %q", got)
			}
		}
	}
}

// TestRulesSayWhen checks methods, paths, times, every, windows and probabilities.
func TestRulesSayWhen(t *testing.T) {
	t.Parallel()
	clock := &still{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	u := newUser(t, stripesim.Options{Clock: clock})
	half := 0.5
	count := func(f stripesim.Fault, calls int, path string) (pattern string) {
		t.Helper()
		u.ClearFaults()
		f.Fault = "error_503"
		if err := u.AddFaults(&f); err != nil {
			t.Fatal(err)
		}
		for range calls {
			pattern += map[bool]string{true: "x", false: "."}[u.call("GET", path, "").Status == 503]
		}
		if got := u.Faults()[0].Hits; got != strings.Count(pattern, "x") {
			t.Errorf("the rule counts %d hits of %s", got, pattern)
		}
		return pattern
	}
	now := clock.Now().Unix()
	for _, tc := range []struct {
		fault stripesim.Fault
		path  string
		want  string
	}{
		{stripesim.Fault{}, "/v1/customers", "xxxx"},
		{stripesim.Fault{Method: "POST"}, "/v1/customers", "...."},
		{stripesim.Fault{Path: "/v1/customers"}, "/v1/customers", "xxxx"},
		{stripesim.Fault{Path: "/v1/*"}, "/v1/customers", "xxxx"},
		{stripesim.Fault{Path: "/v1/*"}, "/v1/customers/cus_1", "...."},
		{stripesim.Fault{Path: "/v1/**"}, "/v1/customers/cus_1", "xxxx"},
		{stripesim.Fault{Times: 2}, "/v1/customers", "xx.."},
		{stripesim.Fault{Every: 2}, "/v1/customers", ".x.x"},
		{stripesim.Fault{Every: 2, Times: 1}, "/v1/customers", ".x.."},
		{stripesim.Fault{From: now}, "/v1/customers", "xxxx"},
		{stripesim.Fault{From: now + 1}, "/v1/customers", "...."},
		{stripesim.Fault{Until: now}, "/v1/customers", "...."},
		{stripesim.Fault{Until: now + 1}, "/v1/customers", "xxxx"},
	} {
		if got := count(tc.fault, 4, tc.path); got != tc.want {
			t.Errorf("%+v strikes %s, want %s", tc.fault, got, tc.want)
		}
	}
	one, same, other := count(stripesim.Fault{Probability: &half, Seed: 1}, 40, "/v1/customers"), count(stripesim.Fault{Probability: &half, Seed: 1}, 40, "/v1/customers"), count(stripesim.Fault{Probability: &half, Seed: 2}, 40, "/v1/customers")
	if one != same || one == other || strings.Count(one, "x") < 8 || strings.Count(one, "x") > 32 {
		t.Errorf("half of the calls by seed 1: %s and %s, by seed 2: %s", one, same, other)
	}
}

// TestAnOutageOf36Hours begins and ends by the simulator's clock.
func TestAnOutageOf36Hours(t *testing.T) {
	t.Parallel()
	clock := &still{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	u := newUser(t, stripesim.Options{Clock: clock})
	from := clock.Now().Unix() + 3600
	if err := u.AddFaults(&stripesim.Fault{Path: "/v1/**", Fault: "error_503", From: from, Until: from + 36*3600}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		advance time.Duration
		status  int
	}{{3599 * time.Second, 200}, {time.Second, 503}, {36*time.Hour - time.Second, 503}, {time.Second, 200}} {
		u.Advance(step.advance)
		if a := u.call("GET", "/v1/customers", ""); a.Status != step.status {
			t.Errorf("after %v: %d, want %d", step.advance, a.Status, step.status)
		}
	}
}

// TestASlowCallIsExecutedWhenTheClientHasGivenUp times out, and is done all the same.
func TestASlowCallIsExecutedWhenTheClientHasGivenUp(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	if err := u.AddFaults(&stripesim.Fault{Fault: "slow", Times: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.URL+"/v1/customers", strings.NewReader("name=a"))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(u.Key, "")
	r.Header.Set("Idempotency-Key", "k")
	response, err := http.DefaultClient.Do(r)
	if err == nil {
		_ = response.Body.Close()
		t.Fatal("a call that waits for 30 seconds is answered")
	}
	for u.State().Counts["customer"] == 0 {
		time.Sleep(time.Millisecond)
	}
	if a := u.call("POST", "/v1/customers", "name=a", key("k")...); a.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("the retry is answered %d with %v", a.Status, a.Header)
	}
}

// TestAPageThatHasMoved shows one object twice and loses none.
func TestAPageThatHasMoved(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for range 5 {
		u.make("/v1/customers", "")
	}
	if err := u.AddFaults(&stripesim.Fault{Fault: "page_shift"}); err != nil {
		t.Fatal(err)
	}
	seen, cursor, pages := map[string]int{}, "", 0
	for more := true; more && pages < 10; pages++ {
		query := "limit=2"
		if cursor != "" {
			query += "&starting_after=" + cursor
		}
		page := u.must("GET", "/v1/customers", query)
		data, _ := page["data"].([]any)
		for _, o := range data {
			cursor = o.(map[string]any)["id"].(string)
			seen[cursor]++
		}
		more, _ = page["has_more"].(bool)
	}
	twice := 0
	for _, n := range seen {
		twice += n - 1
	}
	if len(seen) != 5 || twice == 0 || pages == 10 {
		t.Errorf("%d pages show %v", pages, seen)
	}
}

// TestListsLag keeps what is new out of a list, and answers it by its id.
func TestListsLag(t *testing.T) {
	t.Parallel()
	clock := &still{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	u := newUser(t, stripesim.Options{Clock: clock, Switches: stripesim.Switches{ListLagSeconds: map[string]int64{"customer": 30, "*": 10}}})
	customer := u.make("/v1/customers", "")
	product := u.make("/v1/products", "name=a")
	listed := func(path string) int {
		data, _ := u.must("GET", path, "")["data"].([]any)
		return len(data)
	}
	for _, step := range []struct {
		advance             time.Duration
		customers, products int
	}{{0, 0, 0}, {9 * time.Second, 0, 0}, {time.Second, 0, 1}, {19 * time.Second, 0, 1}, {time.Second, 1, 1}} {
		u.Advance(step.advance)
		if c, p := listed("/v1/customers"), listed("/v1/products"); c != step.customers || p != step.products {
			t.Errorf("after %v more: %d customers and %d products are listed, want %d and %d", step.advance, c, p, step.customers, step.products)
		}
		u.must("GET", "/v1/customers/"+customer, "")
		u.must("GET", "/v1/products/"+product, "")
	}
}

// TestTheClockIsSkewed for those who read the Date header.
func TestTheClockIsSkewed(t *testing.T) {
	t.Parallel()
	clock := &still{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	for skew, want := range map[int64]string{0: "Sun, 01 Mar 2026 12:00:00 GMT", -600: "Sun, 01 Mar 2026 11:50:00 GMT", 600: "Sun, 01 Mar 2026 12:10:00 GMT"} {
		u := newUser(t, stripesim.Options{Clock: clock, Switches: stripesim.Switches{ClockSkewSeconds: skew}})
		if got := u.call("GET", "/v1/customers", "").Header.Get("Date"); got != want {
			t.Errorf("by %d seconds: %s, want %s", skew, got, want)
		}
	}
}

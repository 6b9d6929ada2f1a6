package stripesim_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/stripesim"
)

// answerOf is an answer whose body was read.
func answerOf(status int, header http.Header, raw []byte) reply {
	a := reply{Status: status, Header: header, Raw: string(raw)}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	_ = d.Decode(&a.Body) // what is no JSON has no members
	return a
}

func key(k string) []string { return []string{"Idempotency-Key", k} }

// TestAKeyGivesTheSameAnswerAgain is the table of idempotency keys, row by row.
func TestAKeyGivesTheSameAnswerAgain(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	first := u.call("POST", "/v1/customers", "name=a&email=a@example.com", key("k1")...)
	again := u.call("POST", "/v1/customers", "email=a@example.com&name=a", key("k1")...)
	if again.Raw != first.Raw || again.Status != 200 || again.Header.Get("Idempotent-Replayed") != "true" || first.Header.Get("Idempotent-Replayed") != "" {
		t.Errorf("the first answer is %s with %v, the second %s with %v", first.Raw, first.Header, again.Raw, again.Header)
	}
	if again.Header.Get("Idempotency-Key") != "k1" || again.Header.Get("Request-Id") == first.Header.Get("Request-Id") {
		t.Errorf("the second answer has the headers %v", again.Header)
	}
	u.refused(u.call("POST", "/v1/customers", "name=b&email=a@example.com", key("k1")...), 400, "idempotency_error", "", "")
	u.refused(u.call("POST", "/v1/products", "name=a&email=a@example.com", key("k1")...), 400, "idempotency_error", "", "")
	u.refused(u.call("POST", "/v1/customers", "colour=red", key("k1")...), 400, "idempotency_error", "", "")
	if got := u.State().Counts["customer"]; got != 1 {
		t.Errorf("%d customers, want 1", got)
	}
	u.must("POST", "/v1/customers", "name=b", key(strings.Repeat("k", 255))...)
	u.must("GET", "/v1/customers", "", key("k1")...)
	id, _ := first.Body["id"].(string)
	u.must("DELETE", "/v1/customers/"+id, "", key("k1")...)
	if a := u.call("DELETE", "/v1/customers/"+id, "", key("k1")...); a.Status != 404 || a.Header.Get("Idempotent-Replayed") != "" {
		t.Errorf("a second deletion is answered %d with %v", a.Status, a.Header)
	}
}

// TestWhatNeverBeganIsNotRemembered frees the key after every such refusal.
func TestWhatNeverBeganIsNotRemembered(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	add := func(f stripesim.Fault) {
		t.Helper()
		f.Times = 1
		if err := u.AddFaults(&f); err != nil {
			t.Fatal(err)
		}
	}
	for name, refuse := range map[string]func(k string) (reply, int){
		"validation": func(k string) (reply, int) { return u.call("POST", "/v1/customers", "colour=red", key(k)...), 400 },
		"401": func(k string) (reply, int) {
			return u.call("POST", "/v1/customers", "", "Authorization", "Bearer no", "Idempotency-Key", k), 401
		},
		"version": func(k string) (reply, int) {
			return u.call("POST", "/v1/customers", "", "Stripe-Version", "2020-08-27", "Idempotency-Key", k), 400
		},
		"expand":        func(k string) (reply, int) { return u.call("POST", "/v1/customers", "expand[]=x", key(k)...), 400 },
		"nothing there": func(k string) (reply, int) { return u.call("POST", "/v1/customers/cus_nobody", "", key(k)...), 404 },
	} {
		if a, status := refuse("k " + name); a.Status != status {
			t.Errorf("%s is answered %d %s", name, a.Status, a.Raw)
		}
		if a := u.call("POST", "/v1/customers", "name="+name, key("k "+name)...); a.Status != 200 || a.Header.Get("Idempotent-Replayed") != "" {
			t.Errorf("after %s the key gives %d %s", name, a.Status, a.Raw)
		}
	}
	for fault, status := range map[string]int{"rate_limit": 429, "lock_timeout": 429, "conflict_409": 409, "error_500_before": 500, "error_503": 503, "unauthorized_401": 401} {
		add(stripesim.Fault{Fault: fault})
		if a := u.call("POST", "/v1/customers", "", key(fault)...); a.Status != status {
			t.Errorf("%s is answered %d", fault, a.Status)
		}
		if a := u.call("POST", "/v1/customers", "", key(fault)...); a.Status != 200 || a.Header.Get("Idempotent-Replayed") != "" {
			t.Errorf("after %s the key gives %d %s", fault, a.Status, a.Raw)
		}
	}
}

// TestAStoredFailureIsReplayed executes, fails, and stays failed.
func TestAStoredFailureIsReplayed(t *testing.T) {
	t.Parallel()
	for _, v2 := range []bool{false, true} {
		u := newUser(t, stripesim.Options{Switches: stripesim.Switches{V2Semantics: v2}})
		if err := u.AddFaults(&stripesim.Fault{Fault: "error_500_after", Method: "POST", Times: 1}); err != nil {
			t.Fatal(err)
		}
		u.refused(u.call("POST", "/v1/customers", "", key("k")...), 500, "api_error", "", "")
		if got := u.State().Counts["customer"]; got != 1 {
			t.Fatalf("%d customers, want 1", got)
		}
		again := u.call("POST", "/v1/customers", "", key("k")...)
		if want := map[bool]int{false: 500, true: 200}[v2]; again.Status != want || again.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("v2 %v: the retry is answered %d with %v", v2, again.Status, again.Header)
		}
		if got := u.State().Counts["customer"]; got != 1 {
			t.Errorf("v2 %v: %d customers after the retry, want 1", v2, got)
		}
		intent := u.make("/v1/payment_intents", "amount=500&currency=usd")
		confirm := func() reply {
			return u.call("POST", "/v1/payment_intents/"+intent+"/confirm", "payment_method=pm_card_chargeDeclined", key("declined")...)
		}
		first, second := confirm(), confirm()
		if first.Status != 402 || second.Status != 402 || (second.Header.Get("Idempotent-Replayed") == "true") == v2 {
			t.Errorf("v2 %v: a declined card is answered %d, then %d with %v", v2, first.Status, second.Status, second.Header)
		}
	}
}

// TestAKeyInFlightIsAConflict sends the same call while the first one is slow.
func TestAKeyInFlightIsAConflict(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	if err := u.AddFaults(&stripesim.Fault{Fault: "slow", DelayMS: 1500, Times: 1}); err != nil {
		t.Fatal(err)
	}
	var first reply
	var wait sync.WaitGroup
	wait.Go(func() { first = u.call("POST", "/v1/customers", "name=a", key("k")...) })
	for u.State().Requests == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(150 * time.Millisecond) // until it holds its key
	u.refused(u.call("POST", "/v1/customers", "name=a", key("k")...), 409, invalidRequest, "idempotency_key_in_use", "")
	u.refused(u.call("POST", "/v1/customers", "name=b", key("k")...), 400, "idempotency_error", "", "")
	wait.Wait()
	again := u.call("POST", "/v1/customers", "name=a", key("k")...)
	if first.Status != 200 || again.Raw != first.Raw || u.State().Counts["customer"] != 1 {
		t.Errorf("the slow call is answered %d, the one after it %s", first.Status, again.Raw)
	}
}

// TestKeysAreForgotten at the edge and one beyond.
func TestKeysAreForgotten(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		switches   stripesim.Switches
		kept, gone time.Duration
	}{
		{stripesim.Switches{}, 24*time.Hour - 5*time.Second, 10 * time.Second},
		{stripesim.Switches{MemoryExtraSeconds: 3600}, 24*time.Hour - 5*time.Second, time.Hour + 10*time.Second},
		{stripesim.Switches{V2Semantics: true}, 30*24*time.Hour - 5*time.Second, 10 * time.Second},
	} {
		u := newUser(t, stripesim.Options{Switches: tc.switches})
		keyed := func() string { return u.must("POST", "/v1/customers", "", key("k")...)["id"].(string) }
		first := keyed()
		u.Advance(tc.kept)
		if got := keyed(); got != first {
			t.Errorf("after %v the key has made another customer", tc.kept)
		}
		u.Advance(tc.gone)
		if got := keyed(); got == first {
			t.Errorf("after %v more the key is still remembered", tc.gone)
		}
	}
}

package meter_test

import (
	"fmt"
	"net/http"
	"testing"
)

// commits are the ways in which a connection can die at COMMIT.
func commits() []cut {
	return []cut{
		{statement: "COMMIT"},
		{statement: "COMMIT", reset: true},
		{statement: "COMMIT", executed: true},
		{statement: "COMMIT", executed: true, reset: true},
		{statement: "COMMIT", executed: true, half: true},
	}
}

// TestP2AnUnknownCommitIsSettledByTheKey cuts the connection once at COMMIT,
// before or after Postgres executed it: the caller gets the one true answer.
func TestP2AnUnknownCommitIsSettledByTheKey(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	w := wired(t, c.dsn)
	cutting := c.through(w.dsn)
	for i, at := range commits() {
		id := fmt.Sprintf("usage-%04d", i)
		w.plan(at)
		a := cutting.use(id, 3)
		if w.left() != 0 {
			t.Fatalf("%v: no connection was cut", at)
		}
		if a.status != 201 {
			t.Errorf("%v: answered %d: %s", at, a.status, a.body)
		}
		if a.replayed != at.executed {
			t.Errorf("%v: replayed is %v: what was committed is found, and only that", at, a.replayed)
		}
		again := c.use(id, 3)
		if again.status != 201 || again.body != a.body || !again.replayed {
			t.Errorf("%v: answered %s, sent again %d %s", at, a.body, again.status, again.body)
		}
		if n, want := c.count("SELECT count(*) FROM transfers WHERE kind = 'usage'"), i+1; n != want {
			t.Errorf("%v: %d charges in all, want %d", at, n, want)
		}
	}
	if got := c.available(); got != "85" {
		t.Errorf("acme holds %s, want 85: five usages of three", got)
	}
	c.verified()
}

// TestP2TwiceUnknownIsSaidAndTheSameIDFindsOut cuts the second try, too.
func TestP2TwiceUnknownIsSaidAndTheSameIDFindsOut(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	w := wired(t, c.dsn)
	cutting := c.through(w.dsn)
	for i, at := range commits() {
		id := fmt.Sprintf("usage-%04d", i)
		w.plan(at, cut{statement: "COMMIT"})
		if a := cutting.use(id, 3); a.status != 503 || a.code != "unavailable" || a.header.Get("Retry-After") == "" {
			t.Errorf("%v, and again: answered %d: %s", at, a.status, a.body)
		}
		if w.left() != 0 {
			t.Fatalf("%v: not every connection was cut", at)
		}
		if a := cutting.use(id, 3); a.status != 201 || a.replayed != at.executed {
			t.Errorf("%v, and again: sent again %d (replayed %v): %s", at, a.status, a.replayed, a.body)
		}
	}
	if got := c.available(); got != "85" {
		t.Errorf("acme holds %s, want 85: five usages of three", got)
	}
	c.verified()
}

// TestP2AGroupWhoseCommitIsUnknownKeepsEachAnswer has what must not be mixed up
// in one group: a charge, its repeat, a conflict and a refusal.
func TestP2AGroupWhoseCommitIsUnknownKeepsEachAnswer(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	w := wired(t, c.dsn)
	cutting := c.through(w.dsn)
	first, release := cutting.stopped()
	answers := cutting.queued(usageOf("usage-0001", 4), usageOf("usage-0001", 4), usageOf("usage-0001", 5), usageOf("usage-0002", 9), usageOf("usage-0003", 5))
	w.plan(cut{statement: "COMMIT", skip: 1, executed: true})
	release()
	if a := <-first; a.status != 201 || a.replayed {
		t.Errorf("the usage before was answered %d: %s", a.status, a.body)
	}
	for i, want := range []string{"201 ", "201 ", "422 idempotency_conflict", "402 insufficient_credits", "201 "} {
		if a := answers()[i]; fmt.Sprint(a.status, " ", a.code) != want {
			t.Errorf("usage %d was answered %d %s, want %s", i+1, a.status, a.code, want)
		}
	}
	if w.left() != 0 {
		t.Error("no connection was cut")
	}
	if got := c.available(); got != "0" {
		t.Errorf("acme holds %s, want 0", got)
	}
	c.verified()
}

// TestP2GrantsAndAdjustmentsWithAnUnknownCommit are answered 503, because nothing
// but the id tells; the id does.
func TestP2GrantsAndAdjustmentsWithAnUnknownCommit(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	w := wired(t, c.dsn)
	cutting := c.through(w.dsn)
	for _, kind := range []string{"grants", "adjustments"} {
		for i, at := range commits() {
			path, body := "/v1/accounts/acme/"+kind, fmt.Sprintf(`{"id": "%s-%04d", "credits": 7, "reason": "r"}`, kind, i)
			w.plan(at)
			if a := cutting.call(http.MethodPost, path, body); a.status != 503 || a.code != "unavailable" {
				t.Errorf("%s %v: answered %d: %s", kind, at, a.status, a.body)
			}
			if w.left() != 0 {
				t.Fatalf("%s %v: no connection was cut", kind, at)
			}
			if a := cutting.want(201, http.MethodPost, path, body); a.replayed != at.executed {
				t.Errorf("%s %v: sent again, replayed is %v: %s", kind, at, a.replayed, a.body)
			}
		}
	}
	if got := c.available(); got != "70" {
		t.Errorf("acme holds %s, want 70: ten times seven", got)
	}
	c.verified()
}

// TestP1NoCutAnywhereChargesTwice cuts at each message of a usage's transaction in
// turn. Outside a transaction database/sql would run a statement again here. What
// the lane remembers makes the transaction shorter, down to one statement for
// usage that is not staged for Stripe.
func TestP1NoCutAnywhereChargesTwice(t *testing.T) {
	t.Parallel()
	for name, of := range map[string]struct {
		meter      string
		remembered bool
		messages   int // at least, of a transaction
	}{
		"as it comes":          {"call", false, 9},
		"remembered":           {"call", true, 9},
		"remembered, unbilled": {"plain", true, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := opened(t, 10_000)
			c.want(201, http.MethodPut, "/v1/meters/plain", `{"credits_per_unit": 1}`)
			w := wired(t, c.dsn)
			cutting := c.through(w.dsn)
			use := func() answer {
				id := fmt.Sprintf("usage-%04d", c.count("SELECT count(*) FROM transfers WHERE kind = 'usage'"))
				body := fmt.Sprintf(`{"id": %q, "account": "acme", "meter": %q, "quantity": 3}`, id, of.meter)
				a := cutting.call(http.MethodPost, "/v1/usage", body)
				if a.status == 503 {
					a = cutting.call(http.MethodPost, "/v1/usage", body)
				}
				return a
			}
			sent := 0
			for _, kind := range []cut{{reset: true}, {executed: true}, {executed: true, half: true}} {
				for at := 0; ; at++ {
					if sent++; of.remembered {
						use()
						sent++
					}
					kind.skip = at
					w.plan(kind)
					a := use()
					beyond := w.left() > 0
					w.plan()
					if a.status != 201 {
						t.Fatalf("%v: answered %d: %s", kind, a.status, a.body)
					}
					if n := c.count("SELECT count(*) FROM transfers WHERE kind = 'usage'"); n != sent {
						t.Fatalf("%v: %d charges for %d usages", kind, n, sent)
					}
					if !beyond {
						continue
					}
					if at < of.messages || of.remembered && at > 2*of.messages {
						t.Errorf("%v: a transaction of %d messages", kind, at)
					}
					break // there is no such message: all have been cut at
				}
			}
			c.verified()
		})
	}
}

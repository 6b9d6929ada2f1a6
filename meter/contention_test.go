package meter_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/pg/pgtest"
)

var spends = flag.Int("spends", 6_000, "how many operations race in the test of contention")

// race is what each process of a race does.
type race struct {
	DSN, Key string
	Seed     uint64
	Accounts int
	Clients  int // of each process
	Spends   int // of each process
}

// tally is what a process's clients were told.
type tally struct {
	Spent, Held, Accepted, Refused int
	Took                           time.Duration // from the start of the race
}

// racer is a client of one process: all that it knows is what it was told.
type racer struct {
	*till
	random *rand.Rand
	name   string
	count  int
	open   []racerHold
	told   tally
}

type racerHold struct {
	id     string
	amount int
}

func (c *racer) id() string {
	c.count++
	return fmt.Sprintf("%s-%06d", c.name, c.count)
}

// step sends one request of any kind for any of the accounts.
func (c *racer) step(accounts int) {
	account, amount := fmt.Sprintf("racer-%d", c.random.IntN(accounts)), 1+c.random.IntN(2)
	item := func() string {
		return fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": %d}`, c.id(), account, amount)
	}
	what := c.random.IntN(6)
	switch {
	case what == 0:
		items := make([]string, 20)
		for i := range items {
			items[i] = item()
		}
		var b api.UsageBatch
		a := c.call(http.MethodPost, "/v1/usage/batch", `{"usage": [`+strings.Join(items, ",")+`]}`)
		if err := json.Unmarshal([]byte(a.body), &b); err != nil || a.status != 200 || len(b.Results) != len(items) {
			c.t.Errorf("a batch was answered %d: %s", a.status, a.body)
		}
		for _, r := range b.Results {
			c.note(r.Result == "recorded", strings.Contains(string(r.Problem), `"insufficient_credits"`), amount, string(r.Problem))
		}
	case what <= 2:
		a := c.call(http.MethodPost, "/v1/usage", item())
		c.note(a.status == 201, a.code == "insufficient_credits", amount, a.body)
	case what == 3 || len(c.open) == 0:
		id := c.id()
		a := c.call(http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": %d, "ttl_seconds": 600}`, id, account, amount))
		c.note(a.status == 201, a.code == "insufficient_credits", 0, a.body)
		if a.status == 201 {
			c.open = append(c.open, racerHold{id, amount})
			c.told.Held += amount
		}
	default:
		h := c.open[0]
		c.open, c.told.Held = c.open[1:], c.told.Held-h.amount
		if what == 4 {
			a := c.on(h.id, "release", "")
			c.note(a.status == 200, false, 0, a.body)
			return
		}
		used := 1 + c.random.IntN(3) // 3 is beyond the hold
		a := c.on(h.id, "capture", fmt.Sprintf(`{"quantity": %d}`, used))
		c.note(a.status == 201, false, used, a.body)
	}
}

func (c *racer) note(accepted, refused bool, spent int, body string) {
	switch {
	case accepted:
		c.told.Accepted++
		c.told.Spent += spent
	case refused:
		c.told.Refused++
	default:
		c.t.Errorf("%s was answered %s", c.name, body)
	}
}

func (r race) run(t *testing.T, number int) (all tally) {
	t.Helper()
	through := (&till{t: t, dsn: r.DSN, key: r.Key, clock: &clock{now: start}}).beside()
	pgtest.Ready()
	began := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for client := range r.Clients {
		wg.Go(func() {
			c := &racer{till: through, random: rand.New(rand.NewPCG(r.Seed, uint64(number*1000+client))), name: fmt.Sprintf("race-%d-%d", number, client)}
			for c.told.Accepted+c.told.Refused < r.Spends/r.Clients {
				c.step(r.Accounts)
			}
			mu.Lock()
			defer mu.Unlock()
			all.Spent, all.Held = all.Spent+c.told.Spent, all.Held+c.told.Held
			all.Accepted, all.Refused = all.Accepted+c.told.Accepted, all.Refused+c.told.Refused
		})
	}
	wg.Wait()
	all.Took = time.Since(began)
	return all
}

// TestT4LanesOfSeveralProcessesNeverOverspend lets clients of three processes race
// over HTTP for what a few accounts hold. -spends says for how long.
func TestT4LanesOfSeveralProcessesNeverOverspend(t *testing.T) {
	var r race
	if number, is := pgtest.Part(t, &r); is {
		pgtest.Report(t, r.run(t, number))
		return
	}
	t.Parallel()
	const processes, accounts = 3, 4
	c := opened(t, 0)
	granted := *spends / 2
	for account := range accounts {
		c.want(201, http.MethodPut, fmt.Sprintf("/v1/accounts/racer-%d", account), `{}`)
		for i := range 4 { // several grants, so that they run out at different times
			c.want(201, http.MethodPost, fmt.Sprintf("/v1/accounts/racer-%d/grants", account), fmt.Sprintf(`{"id": "grant-%04d", "credits": "%d"}`, i, granted/accounts/4))
		}
	}
	granted = granted / accounts / 4 * accounts * 4
	seed := uint64(time.Now().UnixNano())
	var told tally
	for _, report := range pgtest.Together(t, processes, race{DSN: c.dsn, Key: c.key, Seed: seed, Accounts: accounts, Clients: 8, Spends: *spends / processes}) {
		var one tally
		if err := json.Unmarshal(report, &one); err != nil {
			t.Fatal(err)
		}
		told.Spent, told.Held = told.Spent+one.Spent, told.Held+one.Held
		told.Accepted, told.Refused = told.Accepted+one.Accepted, told.Refused+one.Refused
		told.Took = max(told.Took, one.Took)
	}
	operations := told.Accepted + told.Refused
	t.Logf("seed %d: %d operations over HTTP of 24 clients in %d processes on %d accounts, %d a second: %+v", seed, operations, processes, accounts,
		int64(operations)*int64(time.Second)/int64(told.Took), told)
	const unit = 1_000_000
	left := c.count("SELECT sum(available + held - debt) FROM accounts") / unit
	if held := c.count("SELECT sum(held) FROM accounts") / unit; told.Spent+left != granted || held != told.Held {
		t.Errorf("of %d granted, clients were told %+v, and there is left %d, %d of it held", granted, told, left, held)
	}
	if told.Refused < told.Accepted/10 {
		t.Errorf("there was no race for the last credits: %+v", told)
	}
	c.verified()
}

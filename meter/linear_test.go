package meter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"tallystick/api"
)

var historyOps = flag.Int("history", 2_000, "how many operations the histories have that are checked for linearizability")

// asked is what a client asked for.
type asked struct {
	what    string // use, reserve, capture, release, grant, read
	account int
	id      string // of the reservation
	amount  int
}

// told is what a client was told: of an unknown outcome, nothing.
type told struct {
	unknown  bool
	refused  bool // for want of credits
	balance  api.Balance
	replayed bool
}

// credits is an account of the sequential model. What is held is written as a
// sorted list, so that two states are equal when they look the same.
type credits struct {
	available, held int
	version         int64
	holds           string
}

func (s credits) holding(id string) (amount int, found bool) {
	for _, h := range strings.Fields(s.holds) {
		if name, n, _ := strings.Cut(h, "="); name == id {
			_, err := fmt.Sscan(n, &amount)
			return amount, err == nil
		}
	}
	return 0, false
}

func (s credits) with(id string, amount int) credits {
	list := append(strings.Fields(s.holds), fmt.Sprintf("%s=%d", id, amount))
	slices.Sort(list)
	s.holds, s.held = strings.Join(list, " "), s.held+amount
	return s
}

func (s credits) without(id string) credits {
	amount, _ := s.holding(id)
	list := slices.DeleteFunc(strings.Fields(s.holds), func(h string) bool { return strings.HasPrefix(h, id+"=") })
	s.holds, s.held = strings.Join(list, " "), s.held-amount
	return s
}

// after is the state that a request leads to, if it is accepted.
func (s credits) after(q asked) (next credits, accepted bool) {
	next = s
	switch q.what {
	case "grant":
		next.available, next.version = s.available+q.amount, s.version+1
	case "use":
		next.available, next.version = s.available-q.amount, s.version+1
	case "reserve":
		next = s.with(q.id, q.amount)
		next.available, next.version = s.available-q.amount, s.version+1
	case "release", "capture": // of no more than is held
		held, found := s.holding(q.id)
		if !found {
			return s, false
		}
		next = s.without(q.id)
		used := 0
		if q.what == "capture" {
			used = q.amount
			next.version++
		}
		if used < held {
			next.version++ // what is left over goes back by a transfer of its own
		}
		next.available += held - used
	}
	return next, next.available >= 0
}

// steps are the states that may follow.
func (s credits) steps(q asked, a told) []any {
	next, accepted := s.after(q)
	switch {
	case a.unknown && accepted:
		return []any{s, next}
	case a.unknown:
		return []any{s}
	case a.refused && !accepted:
		return []any{s}
	case a.refused || !accepted || !next.is(a.balance):
		return nil
	}
	return []any{next}
}

func (s credits) is(b api.Balance) bool {
	return string(b.Available) == fmt.Sprint(s.available) && string(b.Held) == fmt.Sprint(s.held) && b.Version == s.version && b.Debt == "0"
}

// sequential is the model that histories are held against, one account at a time.
func sequential() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{credits{}} },
		Step: func(state, input, output any) []any { return state.(credits).steps(input.(asked), output.(told)) },
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			var parts [][]porcupine.Operation
			for _, o := range history {
				for len(parts) <= o.Input.(asked).account {
					parts = append(parts, nil)
				}
				parts[o.Input.(asked).account] = append(parts[o.Input.(asked).account], o)
			}
			return parts
		},
	}
	return m.ToModel()
}

// historian is a client whose requests and answers are written down.
type historian struct {
	tills   []*till
	number  int
	random  *rand.Rand
	began   time.Time
	patient bool // sends the same id until it knows; the others give up
	count   int
	open    map[int][]asked // reservations that are known to stand, by account
	history []porcupine.Operation
}

const historyAccounts = 8

func (h *historian) step(faults bool) {
	q := asked{account: h.random.IntN(historyAccounts), amount: 1 + h.random.IntN(3)}
	q.what = []string{"use", "use", "use", "reserve", "reserve", "capture", "release", "grant", "read"}[h.random.IntN(9)]
	if q.what == "grant" && h.random.IntN(3) > 0 {
		q.what = "use" // or credits would never run out
	}
	if q.what == "grant" {
		q.amount *= 12
	}
	h.count++
	id := fmt.Sprintf("op-%02d-%06d", h.number, h.count)
	q.id = id
	if q.what == "capture" || q.what == "release" {
		open := h.open[q.account]
		if len(open) == 0 {
			return
		}
		i := h.random.IntN(len(open))
		q.id, q.amount = open[i].id, min(q.amount, open[i].amount)
		h.open[q.account] = slices.Delete(open, i, i+1)
	}
	method, path, body := q.request(id)
	call := time.Since(h.began).Nanoseconds()
	a, known := h.send(method, path, body, faults)
	o := porcupine.Operation{ClientId: h.number, Input: q, Call: call, Return: time.Since(h.began).Nanoseconds(), Output: a}
	if !known {
		o.Return, o.Output = math.MaxInt64, told{unknown: true} // it may still happen, at any time
		if q.what == "read" {
			return // a read that nobody saw says nothing
		}
	}
	if q.what == "reserve" && known && !a.refused {
		h.open[q.account] = append(h.open[q.account], q)
	}
	h.history = append(h.history, o)
}

func (q asked) request(id string) (method, path, body string) {
	account := fmt.Sprintf("linear-%d", q.account)
	switch q.what {
	case "use":
		return http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": %d}`, id, account, q.amount)
	case "reserve":
		return http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": %d, "ttl_seconds": 600}`, id, account, q.amount)
	case "capture":
		return http.MethodPost, "/v1/reservations/" + q.id + "/capture", fmt.Sprintf(`{"quantity": %d}`, q.amount)
	case "release":
		return http.MethodPost, "/v1/reservations/" + q.id + "/release", ""
	case "grant":
		return http.MethodPost, "/v1/accounts/" + account + "/grants", fmt.Sprintf(`{"id": %q, "credits": %d}`, id, q.amount)
	}
	return http.MethodGet, "/v1/accounts/" + account, ""
}

// send sends a request to any process until its outcome is known, or once where
// the client gives up. Some answers are not waited for.
func (h *historian) send(method, path, body string, faults bool) (told, bool) {
	tries := 0
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); tries++ {
		hurried := faults && h.random.IntN(50) == 0
		a, known := h.once(h.tills[h.random.IntN(len(h.tills))], method, path, body, hurried)
		if known || !h.patient {
			return a, known && (tries == 0 || !a.refused) // a try before the refused one may still be under way
		}
	}
	h.tills[0].t.Errorf("%s %s never got to a known outcome", path, body)
	return told{}, false
}

func (h *historian) once(c *till, method, path, body string, hurried bool) (told, bool) {
	ctx := context.Background()
	if hurried {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(h.random.IntN(8_000))*time.Microsecond)
		defer cancel()
	}
	r, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader([]byte(body)))
	if err != nil {
		c.t.Error(err)
		return told{}, false
	}
	r.Header.Set("Authorization", "Bearer "+c.key)
	response, err := client.Do(r)
	if err != nil {
		return told{}, false
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return told{}, false
	}
	var answer struct {
		Code    string
		Balance api.Balance
	}
	switch err := json.Unmarshal(content, &answer); {
	case response.StatusCode == http.StatusServiceUnavailable:
		return told{}, false
	case response.StatusCode == http.StatusPaymentRequired && answer.Code == "insufficient_credits":
		return told{refused: true}, true
	case response.StatusCode > 201 || err != nil:
		c.t.Errorf("%s %s was answered %d: %s", path, body, response.StatusCode, content)
	}
	return told{balance: answer.Balance, replayed: response.Header.Get("Idempotent-Replayed") == "true"}, true
}

// chronicle lets clients work on a few accounts, and gives the history of what
// they asked and were told.
func chronicle(t *testing.T, seed uint64, n int, faults bool) (history []porcupine.Operation) {
	t.Helper()
	c := opened(t, 0)
	for i := range historyAccounts {
		c.want(201, http.MethodPut, fmt.Sprintf("/v1/accounts/linear-%d", i), `{}`)
	}
	tills := []*till{c, c.beside()}
	var w *wire
	if faults {
		w = wired(t, c.dsn)
		tills = append(tills, c.through(w.dsn), c.through(w.dsn))
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var done atomic.Int64
	began := time.Now()
	for number := range 8 {
		h := &historian{tills: tills, number: number, random: rand.New(rand.NewPCG(seed, uint64(number))), began: began, patient: number%2 == 0, open: map[int][]asked{}}
		wg.Go(func() {
			for done.Add(1) <= int64(n) {
				if faults && h.random.IntN(20) == 0 {
					w.cutAnywhere(h.random)
				}
				h.step(faults)
			}
			mu.Lock()
			defer mu.Unlock()
			history = append(history, h.history...)
		})
	}
	wg.Wait()
	if faults {
		w.plan()
	}
	c.verified()
	return history
}

// cutAnywhere plans cuts at random messages of the next transactions that write.
func (w *wire) cutAnywhere(random *rand.Rand) {
	var cuts []cut
	for range 1 + random.IntN(3) {
		c := cut{skip: random.IntN(6), executed: random.IntN(2) == 0, half: random.IntN(2) == 0, reset: random.IntN(2) == 0}
		if random.IntN(2) == 0 {
			c.statement, c.skip = "COMMIT", 0
		}
		cuts = append(cuts, c)
	}
	w.plan(cuts...)
}

// TestT5HistoriesAreLinearizable holds what concurrent clients of several processes
// were told against a sequential account: once without faults, and once while
// connections to Postgres are cut anywhere and clients hang up. A history with a
// lie in it must be found out. -history says how long they are.
func TestT5HistoriesAreLinearizable(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, faults := range []bool{false, true} { //nolint:paralleltest // one after the other: each takes many connections
		for played := 0; played < *historyOps/2; played += 1_000 {
			seed++
			// A test of its own, so that its connections end with it.
			t.Run(fmt.Sprintf("faults %v, seed %d", faults, seed), func(t *testing.T) { linearizable(t, seed, faults) })
		}
	}
}

func linearizable(t *testing.T, seed uint64, faults bool) {
	t.Helper()
	history := chronicle(t, seed, min(*historyOps/2, 1_000), faults)
	counts := map[string]int{}
	for _, o := range history {
		a := o.Output.(told)
		counts[o.Input.(asked).what]++
		for name, is := range map[string]bool{"unknown": a.unknown, "refused": a.refused, "replayed": a.replayed} {
			if is {
				counts[name]++
			}
		}
	}
	t.Logf("%d operations, %v", len(history), counts)
	if got := porcupine.CheckOperationsTimeout(sequential(), history, time.Minute); got != porcupine.Ok {
		t.Fatalf("a history of %d operations is %s", len(history), got)
	}
	if faults != (counts["unknown"] > 0) || faults != (counts["replayed"] > 0) || counts["refused"] == 0 {
		t.Errorf("the outcomes are %v", counts)
	}
	for name, lie := range lies {
		found := lied(history, rand.New(rand.NewPCG(seed, 7)), lie)
		if found == nil {
			if !faults { // with faults no account may have been spared
				t.Errorf("there was nothing to lie about: %s", name)
			}
		} else if got := porcupine.CheckOperationsTimeout(sequential(), found, time.Minute); got != porcupine.Illegal {
			t.Errorf("with %s the history is %s", name, got)
		}
	}
}

// lies are changes of one operation that make a history impossible.
var lies = map[string]func(q asked, a told) (told, bool){
	"one credit too many": func(_ asked, a told) (told, bool) {
		var n int
		_, err := fmt.Sscan(string(a.balance.Available), &n)
		a.balance.Available = api.Decimal(fmt.Sprint(n + 1))
		return a, err == nil && !a.unknown && !a.refused
	},
	"a version seen twice": func(q asked, a told) (told, bool) {
		a.balance.Version--
		return a, !a.unknown && !a.refused && q.what != "read" && a.balance.Version > 0
	},
	"a charge that was refused": func(q asked, a told) (told, bool) {
		return told{refused: true}, !a.unknown && !a.refused && q.what == "use" && len(a.balance.Available) > 1 // there was plenty
	},
	"a hold forgotten": func(_ asked, a told) (told, bool) {
		held := a.balance.Held
		a.balance.Held = "0"
		return a, !a.unknown && !a.refused && held != "0"
	},
}

// lied puts a lie into the history of an account of which all is known: something
// unknown may be an excuse for it. An account's history is enough: one that is
// impossible makes the whole so.
func lied(history []porcupine.Operation, random *rand.Rand, lie func(asked, told) (told, bool)) []porcupine.Operation {
	for _, part := range sequential().Partition(history) {
		if slices.ContainsFunc(part, func(o porcupine.Operation) bool { return o.Output.(told).unknown }) {
			continue
		}
		for _, i := range random.Perm(len(part)) {
			if a, is := lie(part[i].Input.(asked), part[i].Output.(told)); is {
				changed := slices.Clone(part)
				changed[i].Output = a
				return changed
			}
		}
	}
	return nil
}

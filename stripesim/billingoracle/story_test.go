package billingoracle

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/stripesim"
)

// apiKey is the simulator's.
const apiKey = "sk_test_billing"

// began is when every story begins: before a short month, late in the day.
var began = time.Date(2024, time.January, 30, 23, 58, 7, 0, time.UTC)

// clock stands still unless it is told to go on.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now is the story's time.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the time forward.
func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// story plays calls that a seed has chosen, with faults, and lets the book follow.
type story struct {
	t      testing.TB
	sim    *stripesim.Server
	clock  *clock
	random *rand.Rand
	book   *book
	log    []entry
	keeps  bool // the log
	heard  []stripesim.Request
	past   []sent // calls with a key
	keys   int
	tests  bool // its customers live on test clocks
	names  int
}

// sent is a call as it went out.
type sent struct {
	method, path, key string
	form              url.Values
}

func newStory(t testing.TB, seed uint64) *story {
	t.Helper()
	s := &story{t: t, random: rand.New(rand.NewPCG(seed, 0xb111)), clock: &clock{now: began}}
	with := stripesim.Switches{
		InvoicesNeedMethod: s.often(0.5), InvoiceGraceSeconds: one(s, int64(0), 0, 0, 600, 7200), InvoiceRetries: one(s, int64(0), 0, 1, 2),
		InvoiceRetrySeconds: one(s, int64(0), 0, 100_000), AfterLastTry: one(s, "", "canceled", "unpaid"),
	}
	s.tests = s.often(0.4)
	s.book = newBook(with)
	var err error
	s.sim, err = stripesim.NewServer(stripesim.Options{
		Clock: s.clock, APIKey: apiKey, Seed: seed, Switches: with, Observe: func(q stripesim.Request) { s.heard = append(s.heard, q) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.sim.Close(); err != nil {
			t.Error(err)
		}
		*s = story{} // package testing keeps this function, and with it all that it reaches
	})
	s.ask("/_sim/webhooks", `{"pause": true}`) // nobody listens
	return s
}

// often is true with a probability.
func (s *story) often(probability float64) bool { return s.random.Float64() < probability }

// one picks one of some values.
func one[T any](s *story, values ...T) T { return values[s.random.IntN(len(values))] }

// ask calls the control plane, which no fault strikes.
func (s *story) ask(path, body string) {
	w := httptest.NewRecorder()
	s.sim.ServeHTTP(w, httptest.NewRequestWithContext(s.t.Context(), http.MethodPost, path, strings.NewReader(body)))
	if w.Code != http.StatusOK {
		s.t.Fatalf("%s %s was answered %d %s", path, body, w.Code, w.Body)
	}
}

// follow hands a line of the log to the book.
func (s *story) follow(e entry) {
	s.book.take(e)
	if s.keeps {
		s.log = append(s.log, e)
	}
}

// wait lets the simulator's own clock go on.
func (s *story) wait(seconds int64) {
	s.sim.Advance(time.Duration(seconds) * time.Second)
	s.follow(entry{Request: stripesim.Request{At: s.clock.Now()}, moved: true})
}

// send makes one call and gives the status that the caller sees, 0 for a connection
// that was cut.
func (s *story) send(c sent) int {
	target, content := c.path, ""
	if c.method == http.MethodPost {
		content = c.form.Encode()
	} else if len(c.form) > 0 {
		target += "?" + c.form.Encode()
	}
	r := httptest.NewRequestWithContext(s.t.Context(), c.method, target, strings.NewReader(content))
	r.Header.Set("Authorization", "Bearer "+apiKey)
	if c.key != "" {
		r.Header.Set("Idempotency-Key", c.key)
	}
	w := httptest.NewRecorder()
	cut := s.serve(w, r)
	if len(s.heard) != 1 {
		s.t.Fatalf("%s %s was observed %d times", c.method, c.path, len(s.heard))
	}
	q := s.heard[0]
	s.heard = s.heard[:0]
	if !cut && q.Fault == "" && (w.Code != q.Status || w.Body.String() != string(q.Body)) {
		s.book.problem("the caller of %s got %d %s, and the log says %d %s", q.ID, w.Code, w.Body, q.Status, q.Body)
	}
	s.follow(newEntry(q))
	if cut {
		return 0
	}
	return w.Code
}

func (s *story) serve(w http.ResponseWriter, r *http.Request) (cut bool) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			cut = true
		}
	}()
	s.sim.ServeHTTP(w, r)
	return false
}

// call sends a call as a careful client does: what may have failed is tried again
// under the same key. Now and then an old call comes again, or its key for another.
func (s *story) call(method, path string, pairs ...string) {
	c := sent{method: method, path: "/v1/" + path, form: url.Values{}}
	for i := 0; i+1 < len(pairs); i += 2 {
		c.form.Set(pairs[i], pairs[i+1])
	}
	if s.often(0.02) {
		c.form.Set("bogus", "1")
	}
	if method == http.MethodPost && s.often(0.9) {
		s.keys++
		c.key = "key-" + strconv.Itoa(s.keys)
	}
	for tries := 0; tries < 4; tries++ {
		status := s.send(c)
		if status != 0 && status != http.StatusTooManyRequests && status != http.StatusInternalServerError {
			break
		}
		if c.key == "" && method == http.MethodPost && s.often(0.7) {
			break // it may have happened: only the careless try again
		}
	}
	if c.key != "" {
		s.past = append(s.past, c)
	}
	if len(s.past) > 0 && s.often(0.03) {
		again := one(s, s.past...)
		if s.often(0.2) {
			again.form = url.Values{"customer": {nobody}}
		}
		s.send(again)
	}
	for _, i := range s.book.pending {
		if i.id == "" { // a proration, whose id no answer gives
			s.read("invoiceitems", "customer", i.of.id, "limit", "100")
		}
	}
}

// read asks for a list or an object, until the answer has come through.
func (s *story) read(path string, pairs ...string) {
	c := sent{method: http.MethodGet, path: "/v1/" + path, form: url.Values{}}
	for i := 0; i+1 < len(pairs); i += 2 {
		c.form.Set(pairs[i], pairs[i+1])
	}
	for range 20 {
		if s.send(c) == http.StatusOK {
			break
		}
	}
}

// invoicesEnough ends a story in which subscriptions of days live for decades: both
// sides look through all of their invoices again and again.
const invoicesEnough = 1500

// play makes so many steps, with faults of changing kinds, and looks at everything
// in the end.
func (s *story) play(steps int) {
	s.furnish()
	if len(s.book.customers) == 0 {
		s.book.problem("no customer could be made")
		return
	}
	for i := range steps {
		if i%100 == 0 {
			s.changeFaults()
		}
		s.step()
		if len(s.book.problems) > 20 {
			return
		}
		if len(s.book.invoices) > invoicesEnough {
			break
		}
	}
	s.sim.ClearFaults()
	s.audit()
}

// changeFaults lets other calls go wrong in other ways.
func (s *story) changeFaults() {
	s.sim.ClearFaults()
	if s.often(0.2) {
		return
	}
	for range 2 {
		p := one(s, 0.01, 0.05, 0.2)
		err := s.sim.AddFaults(&stripesim.Fault{
			Fault: one(s, "drop_before", "drop_after", "error_500_after", "rate_limit"), Path: "/v1/**", Method: one(s, "", http.MethodPost), Probability: &p, Seed: s.random.Uint64(),
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// audit reads all that there is.
func (s *story) audit() {
	b := s.book
	for _, c := range b.customers {
		s.read("customers/" + c.id)
		s.read("subscriptions", "customer", c.id, "status", "all", "limit", "100")
		s.read("invoiceitems", "customer", c.id, "limit", "100")
		s.read("credit_notes", "customer", c.id, "limit", "100")
		s.readInvoices(c)
		s.read("customers/"+c.id+"/balance_transactions", "limit", "100")
	}
	for _, sub := range b.subs {
		s.read("subscriptions/" + sub.id)
		for _, it := range sub.items {
			if it.price.legacy() {
				s.read("subscription_items/"+it.id+"/usage_record_summaries", "limit", "100")
			}
		}
	}
	b.count(s.sim.State().Counts)
}

// readInvoices reads all pages of a customer's invoices.
func (s *story) readInvoices(c *customer) {
	after := ""
	for {
		pairs := []string{"customer", c.id, "limit", "100"}
		if after != "" {
			pairs = append(pairs, "starting_after", after)
		}
		s.read("invoices", pairs...)
		rows := newest(s.book.invoices, func(inv *invoice) bool { return inv.of == c })
		rest := rows
		for i, inv := range rows {
			if after != "" && inv.id == after {
				rest = rows[i+1:]
			}
		}
		for _, inv := range rest[:min(100, len(rest))] {
			if len(inv.lines) > 10 && inv.id != "" {
				s.read("invoices/"+inv.id+"/lines", "limit", "100")
			}
		}
		if len(rest) <= 100 || rest[99].id == "" {
			return
		}
		after = rest[99].id
	}
}

// report tells the differences, and how to see them again.
func (s *story) report(seed uint64) {
	s.t.Helper()
	for i, p := range s.book.problems {
		if i == 5 {
			s.t.Errorf("and %d more", len(s.book.problems)-i)
			break
		}
		s.t.Errorf("seed %d: %s", seed, p)
	}
}

package oracle

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// key is the simulator's API key.
const key = "sk_test_oracle"

// sent is a call as it went out.
type sent struct {
	method, path string
	form         url.Values
	key          string
}

// story plays calls that a seed has chosen, with faults, and lets the oracle follow.
type story struct {
	t      testing.TB
	sim    *stripesim.Server
	clock  *clock
	random *rand.Rand
	oracle *oracle
	log    []entry
	keeps  bool                // the log
	heard  []stripesim.Request // seen since the last call
	past   []sent              // with a key
	keys   int
	calls  int
	with   stripesim.Switches
	seed   uint64
	dir    string // where the simulator keeps its state; "" for nowhere
}

func newStory(t testing.TB, seed uint64) *story {
	t.Helper()
	s := &story{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 0x0fac1e)), oracle: newOracle()}
	s.with = stripesim.Switches{
		MeterErrorsSync: s.often(0.5), MeterEventsRaised: s.often(0.3),
		MeterLagSeconds: one(s, int64(0), 0, 1, 30, 600), EventLagSeconds: one(s, int64(0), 0, 5, 60), MemoryExtraSeconds: one(s, int64(0), 0, 0, 3600, 86400),
	}
	s.moneySwitches()
	if s.often(0.3) {
		s.dir = t.TempDir()
	}
	s.start()
	t.Cleanup(func() {
		if err := s.sim.Close(); err != nil {
			t.Error(err)
		}
		*s = story{} // package testing keeps this function, and with it all that it reaches
	})
	return s
}

// start starts the simulator. One with a directory moves its new clock on to where
// the old one stood.
func (s *story) start() {
	var err error
	s.clock = &clock{now: began}
	s.sim, err = stripesim.NewServer(stripesim.Options{
		Clock: s.clock, APIKey: key, Seed: s.seed, Switches: s.with, Dir: s.dir, Observe: func(q stripesim.Request) { s.heard = append(s.heard, q) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.ask(http.MethodPost, "/_sim/webhooks", `{"pause": true}`) // nobody listens
}

// restart ends the simulator and starts it again from what it has kept.
func (s *story) restart() {
	if s.dir == "" {
		return
	}
	before := s.clock.Now()
	if err := s.sim.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.start()
	if now := s.clock.Now(); !now.Equal(before) {
		s.oracle.problem("after a restart it is %v, and was %v", now, before)
	}
	s.oracle.cells["restart"]++
}

// often is true with a probability.
func (s *story) often(probability float64) bool { return s.random.Float64() < probability }

// one picks one of some values.
func one[T any](s *story, values ...T) T { return values[s.random.IntN(len(values))] }

// any picks an object of a kind, a deleted or unknown one now and then; "" while
// there is none.
func (s *story) any(kind string) string {
	all := s.oracle.things[kind]
	if len(all) == 0 || s.often(0.02) {
		return kind + "_nobody"
	}
	if s.often(0.5) { // one of the newest: things happen to an object while it is young
		all = all[max(0, len(all)-8):]
	}
	return s.idOf(all[s.random.IntN(len(all))])
}

// ask calls the control plane, which no fault strikes.
func (s *story) ask(method, path, body string) map[string]any {
	w := httptest.NewRecorder()
	s.sim.ServeHTTP(w, httptest.NewRequestWithContext(s.t.Context(), method, path, strings.NewReader(body)))
	answer, err := read(w.Body.Bytes())
	if err != nil {
		s.t.Fatalf("%s %s was answered %d %s", method, path, w.Code, w.Body)
	}
	return answer
}

// follow hands to the oracle what was heard, after the entries that come first.
func (s *story) follow(first ...entry) {
	for _, q := range s.heard {
		first = append(first, newEntry(q, s.with))
	}
	s.heard = s.heard[:0]
	for _, e := range first {
		s.oracle.take(e)
		if s.keeps {
			if e.Method != control {
				e.answer = nil // read again when it is needed: a page is large
			}
			s.log = append(s.log, e)
		}
	}
}

// send makes one call and tells what the caller sees; status 0 is a cut connection.
func (s *story) send(c sent, token string) (status int, body []byte) {
	s.calls++
	target := c.path
	var content string
	if c.method == http.MethodPost {
		content = c.form.Encode()
	} else if len(c.form) > 0 {
		target += "?" + c.form.Encode()
	}
	r := httptest.NewRequestWithContext(s.t.Context(), c.method, target, strings.NewReader(content))
	r.Header.Set("Authorization", "Bearer "+token)
	if c.key != "" {
		r.Header.Set("Idempotency-Key", c.key)
	}
	w := httptest.NewRecorder()
	cut := func() (cut bool) {
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
	}()
	if len(s.heard) != 1 {
		s.t.Fatalf("%s %s was observed %d times", c.method, c.path, len(s.heard))
	}
	q := s.heard[0]
	s.follow()
	if cut {
		return 0, nil
	}
	if q.Fault == "" && (w.Code != q.Status || w.Body.String() != string(q.Body) || w.Header().Get("Request-Id") != q.ID) {
		s.oracle.problem("the caller of %s got %d %s, and the log says %d %s", q.ID, w.Code, w.Body, q.Status, q.Body)
	}
	return w.Code, w.Body.Bytes()
}

// call sends a call as a careful client does, now and then as a careless one: tries
// again what may have failed, under the same key, and sometimes much later.
func (s *story) call(method, path string, pairs ...string) {
	c := sent{method: method, path: path, form: url.Values{}}
	for i := 0; i+1 < len(pairs); i += 2 {
		c.form.Add(pairs[i], pairs[i+1])
	}
	if s.often(0.1) {
		s.spoil(&c)
	}
	if s.often(0.8) {
		s.keys++
		c.key = "key-" + strconv.Itoa(s.keys)
		switch {
		case len(s.past) > 0 && s.often(0.03):
			c.key = s.past[s.random.IntN(len(s.past))].key
		case s.often(0.002):
			c.key = strings.Repeat("k", one(s, 255, 256))
		}
	}
	token := key
	if s.often(0.01) {
		token = one(s, "sk_test_another", "", "pk_test_1")
	}
	for range 6 {
		status, _ := s.send(c, token)
		if status == http.StatusOK || (status >= 400 && status < 409) || s.often(0.2) {
			break
		}
		s.pass(time.Duration(s.random.IntN(20_000)) * time.Millisecond)
		if s.often(0.01) {
			s.pass(23*time.Hour + time.Duration(s.random.IntN(7200))*time.Second)
		}
	}
	if c.key != "" {
		s.past = append(s.past, c)
	}
}

// spoil makes a call wrong, or at least another one.
func (s *story) spoil(c *sent) {
	names := formNames(c.form)
	slices.Sort(names)
	switch {
	case s.often(0.3) || len(names) == 0:
		c.form.Set("bogus"+one(s, "", "[a]", "[0][b]"), "1")
	case s.often(0.5):
		c.form.Del(names[s.random.IntN(len(names))])
	default:
		for _, name := range names {
			if slices.Contains([]string{"amount", "unit_amount", "timestamp", "limit", "expires_at"}, name) {
				c.form.Set(name, one(s, "1x", "0x10", "9223372036854775808", "1.5", " "))
			}
		}
	}
}

// again repeats an earlier call as it was.
func (s *story) again() {
	if len(s.past) == 0 {
		return
	}
	recent := s.past
	if s.often(0.7) {
		recent = recent[max(0, len(recent)-20):]
	}
	s.send(recent[s.random.IntN(len(recent))], key)
}

// pass lets time go by.
func (s *story) pass(d time.Duration) {
	s.sim.Advance(d)
	s.follow(controlled(s.clock.Now(), "/clock", nil, nil, s.with))
}

// faults changes the rules of what goes wrong.
func (s *story) faults() {
	s.sim.ClearFaults()
	if s.often(0.4) {
		return // calm
	}
	for range 1 + s.random.IntN(4) {
		p := s.random.Float64() * 0.4
		name := one(s, slices.Concat(struckBefore, struckAfter)...)
		f := &stripesim.Fault{Fault: name, Probability: &p, Seed: s.random.Uint64(), DelayMS: 1}
		if name == "lose" || s.often(0.2) {
			f.Path = one(s, "/v1/billing/meter_events", "/v1/refunds", "/v1/payment_intents/*/confirm")
		}
		if s.often(0.2) {
			f.Method, f.Times = one(s, http.MethodGet, http.MethodPost), 1+s.random.IntN(20)
		}
		if strings.HasPrefix(name, "slow") {
			f.Times = 3
		}
		if err := s.sim.AddFaults(f); err != nil {
			s.t.Fatal(err)
		}
	}
}

// play makes calls until there were enough, and closes with the audit.
func (s *story) play(calls int) {
	total := 0
	for _, step := range steps {
		total += step.weight
	}
	for s.calls < calls && len(s.oracle.problems) == 0 {
		if s.often(0.3) {
			s.pass(time.Duration(s.random.IntN(1500)) * time.Millisecond)
		}
		switch {
		case s.often(0.005):
			s.faults()
		case s.often(0.01):
			s.pass(one(s, time.Minute, 10*time.Minute, time.Hour, 6*time.Hour))
		case s.often(0.002):
			s.pass(one(s, 24*time.Hour, 24*time.Hour-time.Second, 3*24*time.Hour, 8*24*time.Hour))
		case s.often(0.0005):
			s.restart()
		case s.often(0.05):
			s.again()
		default:
			n := s.random.IntN(total)
			for _, step := range steps {
				if n -= step.weight; n < 0 {
					step.take(s)
					break
				}
			}
		}
	}
	s.restart()
	s.calm()
	s.oracle.audit(s)
}

// calm ends the faults and waits until nothing lags any more.
func (s *story) calm() {
	s.sim.ClearFaults()
	s.pass(time.Hour)
}

// get is reader's.
func (s *story) get(path string, query url.Values) map[string]any {
	status, body := s.send(sent{method: http.MethodGet, path: path, form: query}, key)
	answer, err := read(body)
	if err != nil || status != http.StatusOK {
		s.oracle.problem("%s?%s was answered %d %s", path, query.Encode(), status, body)
	}
	return answer
}

// state is reader's.
func (s *story) state() stripesim.State { return s.sim.State() }

// report fails the test with the differences, the first ones first.
func (s *story) report(seed uint64) {
	s.t.Helper()
	for i, problem := range s.oracle.problems {
		if i == 20 {
			s.t.Errorf("… and %d more", len(s.oracle.problems)-i)
			return
		}
		s.t.Errorf("seed %d, %d calls: %s", seed, s.calls, problem)
	}
}

package meter_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tallystick/api"
)

var apiSteps = flag.Int("api-steps", 2_000, "how many random calls the API is held against the naive bank for")

// story is one account of the API and of the bank, side by side.
type story struct {
	*bank
	c       *till
	through []*till
	account string
	scale   int
	cells   map[string]int
	steps   int
}

// want holds an answer against what the bank says, and counts the outcome.
func (s *story) want(t *rapid.T, name string, a answer, status int, code string) {
	if a.status != status || a.code != code {
		t.Fatalf("%s was answered %d %s, want %d %s: %s", name, a.status, a.code, status, code, a.body)
	}
	outcome := fmt.Sprint(status)
	if code != "" {
		outcome = code
	}
	if a.replayed {
		outcome = "again"
	}
	s.cells[name+": "+outcome]++
}

func (s *story) send(t *rapid.T, path, body string) answer {
	c := s.through[rapid.IntRange(0, len(s.through)-1).Draw(t, "process")]
	return c.call(http.MethodPost, path, body)
}

// known answers for what was said before under this id; false: it is new.
func (s *story) known(t *rapid.T, name, id, content string, a answer, status int) bool {
	first, known := s.said[name+id]
	switch {
	case !known:
		return false
	case first.content != content:
		s.want(t, name, a, 422, "idempotency_conflict")
	default:
		s.want(t, name, a, status, "")
		if !a.replayed || a.body != first.answer {
			t.Fatalf("%s %s again was answered (replayed %v) %s, first %s", name, id, a.replayed, a.body, first.answer)
		}
	}
	return true
}

func (s *story) accepted(t *rapid.T, name, id, content string, a answer) {
	if a.replayed {
		t.Fatalf("%s %s was new, and answered as a repeat: %s", name, id, a.body)
	}
	s.said[name+id] = sentence{content, a.body}
}

func (s *story) amount(t *rapid.T, most int) int {
	return s.scale * rapid.IntRange(1, most).Draw(t, "amount")
}

func (s *story) usage(t *rapid.T) {
	id, q := s.id(t, "usage", 12), s.amount(t, 30)
	if first, is := s.again(t, "usage", id); is {
		q = number(t, first)
	}
	content := fmt.Sprint(q)
	a := s.send(t, "/v1/usage", s.item(id, q))
	switch {
	case s.known(t, "usage", id, content, a, 201):
	case s.available() < q:
		s.want(t, "usage", a, 402, "insufficient_credits")
	default:
		s.want(t, "usage", a, 201, "")
		s.accepted(t, "usage", id, content, a)
		s.owe(q)
	}
}

func (s *story) item(id string, q int) string {
	return fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": %d}`, id, s.account, q)
}

func (s *story) id(t *rapid.T, prefix string, most int) string {
	return fmt.Sprintf("%s-%04d", prefix, rapid.IntRange(0, most).Draw(t, prefix))
}

// batch has a few usages, often the same one twice.
func (s *story) batch(t *rapid.T) {
	var ids []string
	var amounts []int
	var items []string
	for range rapid.IntRange(1, 4).Draw(t, "items") {
		ids, amounts = append(ids, s.id(t, "usage", 12)), append(amounts, s.amount(t, 20))
		items = append(items, s.item(ids[len(ids)-1], amounts[len(ids)-1]))
	}
	a := s.send(t, "/v1/usage/batch", `{"usage": [`+strings.Join(items, ", ")+`]}`)
	var got struct {
		Results []struct {
			Result  string
			Problem struct{ Code string }
			Usage   json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || len(got.Results) != len(ids) {
		t.Fatalf("a batch was answered %d %s", a.status, a.body)
	}
	for i, id := range ids {
		content, r := fmt.Sprint(amounts[i]), got.Results[i]
		first, known := s.said["usage"+id]
		want := "recorded"
		switch {
		case known && first.content != content:
			want = "refused idempotency_conflict"
		case known:
			want = "replayed"
		case s.available() < amounts[i]:
			want = "refused insufficient_credits"
		default:
			s.owe(amounts[i])
			s.said["usage"+id] = sentence{content, string(r.Usage) + "\n"}
		}
		if got := strings.TrimSpace(r.Result + " " + r.Problem.Code); got != want || (want == "replayed" && string(r.Usage)+"\n" != first.answer) {
			t.Fatalf("item %d of %s is %s %s, want %s, first answer %s", i, items, got, r.Usage, want, first.answer)
		}
		s.cells["batch: "+strings.ReplaceAll(want, " ", "_")]++
	}
}

func (s *story) grant(t *rapid.T) {
	id, n := s.id(t, "grant", 7), s.amount(t, 60)
	var expires *time.Time
	body := fmt.Sprintf(`{"id": %q, "credits": %d`, id, n)
	if k := rapid.IntRange(-2, 8).Draw(t, "expires"); k >= 0 {
		at := start.Add(time.Duration(k) * 5 * time.Hour)
		expires = &at
		body += fmt.Sprintf(`, "expires_at": %q`, at.Format(time.RFC3339))
	}
	if first, is := s.again(t, "grant", id); is {
		body = first
	}
	a := s.send(t, "/v1/accounts/"+s.account+"/grants", body+"}")
	switch {
	case s.known(t, "grant", id, body, a, 201):
	case expires != nil && !expires.After(s.now):
		s.want(t, "grant", a, 422, "invalid_value")
	default:
		s.want(t, "grant", a, 201, "")
		s.accepted(t, "grant", id, body, a)
		s.give(id, n, expires)
	}
}

func (s *story) adjust(t *rapid.T) {
	id, n := s.id(t, "adjust", 9), s.scale*rapid.IntRange(-25, 15).Draw(t, "by")
	if first, is := s.again(t, "adjustment", id); is {
		n = number(t, first)
	}
	content := fmt.Sprint(n)
	a := s.send(t, "/v1/accounts/"+s.account+"/adjustments", fmt.Sprintf(`{"id": %q, "credits": %d, "reason": "r"}`, id, n))
	switch {
	case n == 0:
		s.want(t, "adjustment", a, 422, "invalid_value")
	case s.known(t, "adjustment", id, content, a, 201):
	case n < 0 && s.available() < -n:
		s.want(t, "adjustment", a, 402, "insufficient_credits")
	default:
		s.want(t, "adjustment", a, 201, "")
		s.accepted(t, "adjustment", id, content, a)
		if n > 0 {
			s.give("adjustment:"+id, n, nil)
		} else {
			s.owe(-n)
		}
	}
}

// resv draws a reservation's id. Times to live differ, so that no two end at once.
func (s *story) resv(t *rapid.T) (id string, ttl int) {
	n := rapid.IntRange(0, 9).Draw(t, "resv")
	return fmt.Sprintf("resv-%04d", n), 3000 + 7*n
}

// again tells whether what an id said before is to be said again as it was.
func (s *story) again(t *rapid.T, name, id string) (content string, is bool) {
	first, known := s.said[name+id]
	return first.content, known && rapid.Bool().Draw(t, "again")
}

// number reads a content that is one.
func number(t *rapid.T, content string) (n int) {
	if _, err := fmt.Sscan(content, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// stands draws a reservation that stands, if there is one, and now and then any.
func (s *story) stands(t *rapid.T) (id string, ttl int) {
	id, ttl = s.resv(t)
	for range 10 {
		if s.holds[id] != nil {
			break
		}
		id, ttl = s.resv(t)
	}
	return id, ttl
}

func (s *story) reserve(t *rapid.T) {
	id, ttl := s.resv(t)
	q := s.amount(t, 30)
	if first, is := s.again(t, "reserve", id); is {
		q = number(t, first)
	}
	content := fmt.Sprint(q)
	a := s.send(t, "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "quantity": %d, "ttl_seconds": %d}`, id, s.account, q, ttl))
	switch {
	case s.known(t, "reserve", id, content, a, 201):
	case s.available() < q:
		s.want(t, "reserve", a, 402, "insufficient_credits")
	default:
		s.want(t, "reserve", a, 201, "")
		s.accepted(t, "reserve", id, content, a)
		s.goOff()
		s.holds[id] = &bankHold{state: "open", parts: s.take(q), expires: s.now.Add(time.Duration(ttl) * time.Second)}
	}
}

// on is a call on a reservation. One that is due expires first. It gives nil when
// there is none.
func (s *story) on(t *rapid.T, name, id, body string) (answer, *bankHold) {
	a := s.send(t, "/v1/reservations/"+id+"/"+name+"?account="+s.account, body)
	h := s.holds[id]
	switch {
	case h == nil:
		s.want(t, name, a, 404, "reservation_not_found")
	case h.state == "open" && !h.expires.After(s.now):
		s.end(h, "expired", 0)
	}
	return a, h
}

func (s *story) capture(t *rapid.T) {
	id, _ := s.stands(t)
	q := s.amount(t, 40)
	if first, is := s.again(t, "capture", id); is {
		q = number(t, first)
	}
	content := fmt.Sprint(q)
	a, h := s.on(t, "capture", id, fmt.Sprintf(`{"quantity": %d}`, q))
	if h == nil {
		return
	}
	if first, captured := s.said["capture"+id]; captured && first.content != content {
		s.want(t, "capture", a, 409, "reservation_closed")
		return
	}
	switch {
	case s.known(t, "capture", id, content, a, 201):
	case h.state == "released":
		s.want(t, "capture", a, 409, "reservation_closed")
	default:
		s.want(t, "capture", a, 201, "")
		s.accepted(t, "capture", id, content, a)
		if h.state == "expired" {
			s.cells["capture: late"]++
			s.owe(q)
			return
		}
		s.end(h, "captured", q)
		s.owe(max(q-total(h.parts), 0))
	}
}

func (s *story) release(t *rapid.T) {
	id, _ := s.stands(t)
	a, h := s.on(t, "release", id, "")
	switch {
	case h == nil:
	case s.known(t, "release", id, "", a, 200):
	case h.state == "captured" || h.state == "expired":
		s.want(t, "release", a, 409, "reservation_closed")
	default:
		s.want(t, "release", a, 200, "")
		s.accepted(t, "release", id, "", a)
		s.end(h, "released", 0)
	}
}

func (s *story) extend(t *rapid.T) {
	id, ttl := s.stands(t)
	a, h := s.on(t, "extend", id, fmt.Sprintf(`{"ttl_seconds": %d}`, ttl))
	switch {
	case h == nil:
	case h.state == "in_doubt":
		s.want(t, "extend", a, 409, "reservation_in_doubt")
	case h.state != "open":
		s.want(t, "extend", a, 409, "reservation_closed")
	default:
		s.want(t, "extend", a, 200, "")
		if until := s.now.Add(time.Duration(ttl) * time.Second); until.After(h.expires) {
			h.expires = until
		}
	}
}

func (s *story) doubt(t *rapid.T) {
	id, _ := s.stands(t)
	reason := rapid.SampledFrom([]string{"timeout", "crash"}).Draw(t, "reason")
	a, h := s.on(t, "doubt", id, fmt.Sprintf(`{"reason": %q}`, reason))
	switch {
	case h == nil:
	case h.state == "in_doubt":
		if !s.known(t, "doubt", id, reason, a, 200) {
			t.Fatalf("%s is in doubt, and nobody said so", id)
		}
	case h.state != "open":
		s.want(t, "doubt", a, 409, "reservation_closed")
	default:
		s.want(t, "doubt", a, 200, "")
		s.accepted(t, "doubt", id, reason, a)
		h.state, h.reason = "in_doubt", reason
	}
}

func (s *story) clock(t *rapid.T) {
	minutes := rapid.IntRange(-20, 200).Draw(t, "minutes")
	s.c.clock.pass(time.Duration(minutes) * time.Minute)
	s.now = s.c.clock.Now()
	s.cells[fmt.Sprint("clock: ", map[bool]string{true: "back", false: "on"}[minutes < 0])]++
}

// sweep expires what is due, in the order in which it fell due; sometimes an hour later.
func (s *story) sweep(t *rapid.T) {
	if rapid.Bool().Draw(t, "an hour later") {
		s.c.clock.pass(time.Hour)
		s.now = s.c.clock.Now()
	}
	s.c.stepped()
	var due []*bankHold
	for _, h := range s.holds {
		if h.state == "open" && !h.expires.After(s.now) {
			due = append(due, h)
		}
	}
	slices.SortFunc(due, func(a, b *bankHold) int { return a.expires.Compare(b.expires) })
	for _, h := range due {
		s.end(h, "expired", 0)
		s.cells["sweep: expired"]++
	}
}

// check holds the account with its grants and reservations against the bank.
func (s *story) check(t *rapid.T) {
	s.steps++
	var a api.Account
	read(s.c.t, s.c.want(200, http.MethodGet, "/v1/accounts/"+s.account, ""), &a)
	want, sum := map[string]string{}, 0
	for _, p := range s.purses {
		if sum += p.left; p.left > 0 {
			want[p.id] = fmt.Sprint(p.left)
		}
	}
	got := map[string]string{}
	for _, g := range a.Grants {
		got[g.ID] = string(g.Remaining)
	}
	balance := fmt.Sprintf("%s/%s/%s", a.Balance.Available, a.Balance.Held, a.Balance.Debt)
	if books := fmt.Sprintf("%d/%d/%d", sum, s.held(), s.debt); balance != books || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("the account has %s (available/held/debt) in %v, the bank %s in %v", balance, got, books, want)
	}
}

// cellsWanted are the outcomes that each call must meet with.
var cellsWanted = map[string]string{
	"usage":      "201 again idempotency_conflict insufficient_credits",
	"grant":      "201 again idempotency_conflict invalid_value",
	"adjustment": "201 again idempotency_conflict insufficient_credits invalid_value",
	"reserve":    "201 again idempotency_conflict insufficient_credits",
	"capture":    "201 again late reservation_closed reservation_not_found",
	"release":    "200 again reservation_closed reservation_not_found",
	"extend":     "200 reservation_in_doubt reservation_closed reservation_not_found",
	"doubt":      "200 again idempotency_conflict reservation_closed reservation_not_found",
	"clock":      "on back",
	"batch":      "recorded replayed refused_idempotency_conflict refused_insufficient_credits",
	"sweep":      "expired",
}

// missing are the outcomes that no call has met with.
func missing(cells map[string]int) (none []string) {
	for name, outcomes := range cellsWanted {
		for _, outcome := range strings.Fields(outcomes) {
			if cell := name + ": " + outcome; cells[cell] == 0 {
				none = append(none, cell)
			}
		}
	}
	return none
}

// TestT2TheAPIAgreesWithTheNaiveBank plays random calls, through two processes, with
// few ids, so that most come again, and with a clock that runs over the ends of
// grants and reservations and sometimes back. -api-steps says how many.
func TestT2TheAPIAgreesWithTheNaiveBank(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	through, cells := []*till{c, c.beside()}, map[string]int{}
	n, steps := 0, 0
	for (steps < *apiSteps || (len(missing(cells)) > 0 && steps < 5**apiSteps)) && !t.Failed() {
		rapid.Check(t, func(rt *rapid.T) {
			n++
			b := &bank{now: c.clock.Now(), holds: map[string]*bankHold{}, said: map[string]sentence{}}
			s := &story{bank: b, c: c, through: through, account: fmt.Sprintf("story-%d", n), cells: cells}
			s.scale = rapid.SampledFrom([]int{1, 1, 1000, 10_000_000}).Draw(rt, "scale")
			c.clock.pass(start.Sub(b.now)) // each story begins at the same time
			b.now = start
			c.want(201, http.MethodPut, "/v1/accounts/"+s.account, `{}`)
			rt.Repeat(map[string]func(*rapid.T){
				"usage": s.usage, "batch": s.batch, "grant": s.grant, "grant more": s.grant, "adjust": s.adjust, "reserve": s.reserve, "reserve more": s.reserve,
				"capture": s.capture, "release": s.release, "extend": s.extend, "doubt": s.doubt, "clock": s.clock, "sweep": s.sweep, "": s.check,
			})
			steps += s.steps
		})
	}
	t.Logf("%d accounts, %d steps, %d cells: %v", n, steps, len(cells), cells)
	if cells := missing(cells); len(cells) > 0 {
		t.Errorf("it never came to %q", cells)
	}
	c.verified()
}

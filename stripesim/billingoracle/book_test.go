// Package billingoracle recomputes what the simulator of Stripe should bill, from
// the raw log of the calls that it took: subscriptions, usage, invoices, balances
// and credit notes. It is naive on purpose: it keeps everything, looks through all
// of it, shares no code with the simulator, and takes its rules from Stripe's
// documentation.
package billingoracle

import (
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"

	"tallystick/stripesim"
)

// customer is somebody who is billed.
type customer struct {
	id, clock, currency string
	balance             *big.Int
	moves               []map[string]any // balance transactions, the oldest first
	method              string           // the default payment method's id; "" for none
	subs                int              // ever made, for the story
}

// item is one of a subscription.
type item struct {
	id       string
	sub      *subscription
	price    *price
	quantity *big.Int
	made     int64
	periods  []*period // of usage records, the oldest first; the last one is open
	last     *big.Int  // the last usage of all periods that are over
}

// period is a time of usage.
type period struct {
	start, end int64
	records    []record
	total      *big.Int // once it is over
	invoice    *invoice
	over       bool
}

type subscription struct {
	id       string
	of       *customer
	items    []*item
	currency string
	status   string
	anchor   int64
	start    int64 // of the current period
	end      int64
	made     int64
	trialEnd int64 // 0: none
	canceled int64 // canceled_at
	ended    int64
	atEnd    bool // cancel_at_period_end
	sends    bool // collection_method send_invoice
	days     *big.Int
	latest   *invoice
}

func (s *subscription) over() bool {
	return s.status == "canceled" || s.status == "incomplete_expired"
}

// next is when something happens to it by itself.
func (s *subscription) next() int64 {
	switch {
	case s.over():
		return 0
	case s.status == "incomplete":
		return s.made + 23*3600
	}
	return s.end
}

// key is an idempotency key's first use.
type key struct {
	at     int64
	asked  string
	status int
	body   string
	struck bool // a fault has put a 500 into the answer's place
}

// rule judges a call: why it must be refused, or what it does and is answered with.
type rule func(b *book, e *entry) (refusal string, do func() map[string]any)

// book is the recomputation.
type book struct {
	now       int64 // of the simulator's clock
	clocks    map[string]int64
	prices    map[string]*price
	customers []*customer
	subs      []*subscription
	items     map[string]*item
	invoices  []*invoice
	byID      map[string]*invoice
	pending   []*invoiceItem // all there are, the oldest first
	notes     []*note
	methods   map[string]string // payment methods: their name, by id
	owners    map[string]string // their customers
	newest    string            // of them
	meters    map[string]*meter // by event name
	seen      map[string]int64  // identifiers of meter events, with the time of their taking
	keys      map[string]*key
	with      stripesim.Switches
	problems  []string
	cells     map[string]int
	expects   int   // the status of the answer to this call, where it is not 200
	ringing   int64 // the time of what happens by itself; 0: a call makes it happen
}

func newBook(with stripesim.Switches) *book {
	return &book{
		with: with, clocks: map[string]int64{}, prices: map[string]*price{}, items: map[string]*item{}, byID: map[string]*invoice{}, methods: map[string]string{}, owners: map[string]string{},
		meters: map[string]*meter{}, seen: map[string]int64{}, keys: map[string]*key{}, cells: map[string]int{},
	}
}

func (b *book) problem(format string, args ...any) {
	b.problems = append(b.problems, fmt.Sprintf(format, args...))
}

// rules are the endpoints; {} stands for an id.
var rules = sync.OnceValue(func() map[string]rule {
	all := map[string]rule{}
	for _, topic := range []map[string]rule{catalogRules, subscriptionRules, usageRules, invoiceRules, itemRules, noteRules, listRules} {
		maps.Copy(all, topic)
	}
	return all
})

// ruleOf finds the endpoint of a call.
func ruleOf(e *entry) (name string, r rule) {
	parts := e.parts()
	for mask := range 1 << len(parts) {
		wild := slices.Clone(parts)
		for i := range wild {
			if mask&(1<<i) != 0 {
				wild[i] = "{}"
			}
		}
		name = e.Method + " " + strings.Join(wild, "/")
		if r := rules()[name]; r != nil {
			return name, r
		}
	}
	return "", nil
}

// take enters one line of the log.
func (b *book) take(e entry) {
	b.now = e.At.Unix()
	b.pass("", b.now)
	if e.moved || b.answeredByKey(&e) {
		return
	}
	name, r := ruleOf(&e)
	if r == nil {
		b.problem("there is no rule for %s", describe(&e))
		return
	}
	refusal, do := r(b, &e)
	b.cells[name+map[bool]string{true: " executed", false: " refused"}[e.Executed]]++
	switch {
	case e.Executed && refusal != "":
		b.problem("%s was executed, and had to be refused: %s: %.300s", describe(&e), refusal, e.Body)
	case !e.Executed && refusal == "":
		b.problem("%s was refused, and had to be executed: %.300s", describe(&e), e.Body)
	case e.Executed:
		b.expects = http.StatusOK
		want := do()
		if b.expects != e.Status && (b.expects == http.StatusOK || e.Status == http.StatusOK) {
			b.problem("%s was answered %d %.300s, want %d", describe(&e), e.Status, e.Body, b.expects)
		} else if b.expects == http.StatusOK {
			for _, d := range differences(want, e.answer, "") {
				b.problem("%s: %s", describe(&e), d)
			}
		}
	}
}

// struckBefore are the faults that keep a call from its endpoint.
var struckBefore = []string{"drop_before", "rate_limit"}

// answeredByKey judges what never reached its endpoint: calls that a fault struck,
// and those that their idempotency key answered.
func (b *book) answeredByKey(e *entry) bool {
	if e.Fault != "" {
		b.cells["fault "+e.Fault]++
	}
	if slices.Contains(struckBefore, e.Fault) {
		if e.Executed || e.Status != 0 {
			b.problem("%s was struck before its endpoint and says executed %t, %d", describe(e), e.Executed, e.Status)
		}
		return true
	}
	if e.Key == "" || e.Method != http.MethodPost {
		return false
	}
	asked, use := e.Path+"?"+e.Form.Encode(), b.keys[e.Key]
	if use == nil || b.now >= use.at+day {
		if e.Replayed {
			b.problem("%s is a replay of nothing", describe(e))
		}
		if e.Executed {
			b.keys[e.Key] = &key{at: b.now, asked: asked, status: e.Status, body: string(e.Body), struck: e.Fault == "error_500_after"}
		}
		return false
	}
	b.cells["key again"]++
	switch {
	case e.Executed:
		b.problem("%s was executed, and its key was used %d seconds ago for %s", describe(e), b.now-use.at, use.asked)
	case asked != use.asked:
		if word(e.answer, "error", "type") != "idempotency_error" {
			b.problem("%s: the key belongs to %s, and it is answered %s", describe(e), use.asked, e.Body)
		}
	case use.struck && e.Status == http.StatusInternalServerError && e.Replayed:
	case !e.Replayed || e.Status != use.status || string(e.Body) != use.body:
		b.problem("%s is answered %d %.200s, and was answered %d %.200s", describe(e), e.Status, e.Body, use.status, use.body)
	}
	return true
}

// timeOf is the time on a customer's clock, or that of what happens by itself.
func (b *book) timeOf(clock string) int64 {
	if b.ringing != 0 {
		return b.ringing
	}
	if clock == "" {
		return b.now
	}
	return b.clocks[clock]
}

// pass lets happen what is due on a clock, the earliest first.
func (b *book) pass(clock string, until int64) {
	for {
		at, what := until+1, func(int64) {}
		for _, s := range b.subs {
			if next := s.next(); s.of.clock == clock && next > 0 && next < at {
				at, what = next, func(t int64) { b.subscriptionDue(s, t) }
			}
		}
		for _, inv := range b.invoices {
			if inv.of.clock == clock && inv.due > 0 && inv.due < at {
				at, what = inv.due, func(int64) { b.invoiceDue(inv) }
			}
		}
		if at > until {
			return
		}
		b.ringing = at
		what(at)
		b.ringing = 0
	}
}

func (b *book) customer(id string) *customer {
	for _, c := range b.customers {
		if c.id == id {
			return c
		}
	}
	return nil
}

func (b *book) subscription(id string) *subscription {
	for _, s := range b.subs {
		if s.id == id {
			return s
		}
	}
	return nil
}

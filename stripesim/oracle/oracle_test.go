// Package oracle recomputes what the simulator of Stripe should hold, from the raw
// log of the calls that it took, and compares. It is naive on purpose: it keeps
// everything, looks through all of it, and shares no code with the simulator.
package oracle

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"tallystick/stripesim"
)

// verdict says what has to become of a call that reached its endpoint.
type verdict int

const (
	accepted verdict = iota
	refused
	either // Stripe does not say
)

func accept(yes bool) verdict {
	if yes {
		return accepted
	}
	return refused
}

// rule is what the oracle knows of an endpoint.
type rule struct {
	call    string // method and path; {} stands for one id
	verdict func(*oracle, *entry) verdict
	effect  func(*oracle, *entry) // of a call that was executed
}

// thing is an object as the oracle believes it to be: the members that it knows of.
type thing struct {
	kind    string
	id      string
	members map[string]any
	deleted bool
	in      *oracle
}

func (t *thing) text(name string) string { v, _ := t.members[name].(string); return v }

func (t *thing) number(name string) int64 { v, _ := t.members[name].(int64); return v }

func (t *thing) is(name string) bool { v, _ := t.members[name].(bool); return v }

// happening is an event that had to be raised.
type happening struct {
	kind    string
	request string // the call that caused it, "" for none
	key     string
	created int64
	of      *thing
	members map[string]any // of the object, at that moment
	pending []*thing       // endpoints that it has to be sent to
	maybe   bool           // nothing has changed: Stripe does not say whether it is raised
}

// oracle is the recomputation.
type oracle struct {
	rules    map[string]rule
	ids      map[string]*thing   // by kind and id
	things   map[string][]*thing // by kind, in the order of their making
	events   []happening
	keys     map[string]*keyUse
	seen     map[string]bool  // request ids
	shown    map[string]int64 // events that were listed, with their time
	showed   []string         // the same, in that order
	usage    usage
	alarms   []alarm // what happens by itself, in the order of its planning
	problems []string
	now      time.Time
	switches stripesim.Switches
	cells    map[string]int // how often an endpoint had an outcome
}

func newOracle() *oracle {
	o := &oracle{
		rules: map[string]rule{}, ids: map[string]*thing{}, things: map[string][]*thing{}, keys: map[string]*keyUse{}, seen: map[string]bool{}, shown: map[string]int64{},
		cells: map[string]int{}, usage: newUsage(),
	}
	for _, topic := range [][]rule{customerRules, catalogRules, checkoutRules, paymentRules, methodRules, chargeRules, refundRules, disputeRules, balanceRules, meterRules, endpointRules} {
		for _, r := range topic {
			o.rules[r.call] = r
		}
	}
	return o
}

// problem notes a difference.
func (o *oracle) problem(format string, args ...any) {
	o.problems = append(o.problems, fmt.Sprintf(format, args...))
}

// make enters a new object.
func (o *oracle) make(kind, id string, members map[string]any) *thing {
	t := &thing{kind: kind, id: id, members: members, in: o}
	if _, stands := members["created"]; !stands {
		members["created"] = o.now.Unix()
	}
	members["id"] = id
	if id == "" || o.ids[kind+" "+id] != nil {
		o.problem("a new %s has the id %q, which is empty or taken", kind, id)
	}
	o.ids[kind+" "+id] = t
	o.things[kind] = append(o.things[kind], t)
	return t
}

// get finds an object, nil when there is none.
func (o *oracle) get(kind, id string) *thing { return o.ids[kind+" "+id] }

// alive is get without deleted objects.
func (o *oracle) alive(kind, id string) *thing {
	if t := o.get(kind, id); t != nil && !t.deleted {
		return t
	}
	return nil
}

// with lists the objects of a kind with a member.
func (o *oracle) with(kind, member string, value any) (found []*thing) {
	for _, t := range o.things[kind] {
		if t.members[member] == value {
			found = append(found, t)
		}
	}
	return found
}

// raised notes that an event had to be raised; e is nil for what happens by itself.
func (o *oracle) raised(e *entry, kind string, t *thing) {
	h := happening{kind: kind, created: o.now.Unix(), of: t, members: maps.Clone(t.members), pending: o.wanting(kind)}
	if e != nil && e.Method != control {
		h.request = e.ID
		h.key = e.Key
	}
	o.events = append(o.events, h)
	o.cells["event "+kind]++
}

// ruleOf finds the endpoint of a call.
func (o *oracle) ruleOf(e *entry) (rule, bool) {
	if r, ok := o.rules[e.Method+" "+e.Path]; ok {
		return r, true
	}
	parts := strings.Split(e.Path, "/")
	for i := 3; i < len(parts); i++ {
		wild := slices.Clone(parts)
		wild[i] = "{}"
		if r, ok := o.rules[e.Method+" "+strings.Join(wild, "/")]; ok {
			return r, true
		}
	}
	return rule{}, false
}

// take enters one line of the log.
func (o *oracle) take(e entry) {
	o.now, o.switches = e.At, e.switches
	o.fallDue()
	if e.Method == control && e.Path == "/clock" {
		return
	}
	if e.Method != control && o.notOfTheEndpoint(&e) {
		return
	}
	r, known := o.ruleOf(&e)
	if !known {
		o.problem("the oracle has no rule for %s %s", e.Method, e.Path)
		return
	}
	want := r.verdict(o, &e)
	switch {
	case e.Executed && want == refused:
		o.problem("%s was executed, and had to be refused: %s", describe(&e), e.Body)
	case !e.Executed && want == accepted:
		o.problem("%s was refused, and had to be executed: %s", describe(&e), e.Body)
	}
	o.cells[r.call+" "+map[bool]string{true: "executed", false: "refused"}[e.Executed]]++
	if e.Executed && want != refused { // what could not be has no place in the model
		r.effect(o, &e)
	}
}

// notOfTheEndpoint judges calls whose endpoint never ran: those that a fault struck,
// those that the idempotency key answered, and those without authority.
func (o *oracle) notOfTheEndpoint(e *entry) bool {
	if e.ID == "" || o.seen[e.ID] {
		o.problem("the request id %q is empty or was used before", e.ID)
	}
	o.seen[e.ID] = true
	if slices.Contains(struckBefore, e.Fault) {
		o.cells["fault "+e.Fault]++
		if e.Executed || e.Status != 0 {
			o.problem("%s was struck by %s and still got an answer of %d", describe(e), e.Fault, e.Status)
		}
		return true
	}
	if e.Fault != "" {
		o.cells["fault "+e.Fault]++
	}
	if e.Executed != (e.Status == http.StatusOK || e.Status == http.StatusPaymentRequired) && !e.Replayed {
		o.problem("%s says executed %t with the status %d", describe(e), e.Executed, e.Status)
	}
	if e.Status == http.StatusUnauthorized {
		return true
	}
	return o.answeredByKey(e)
}

// keyUse is the first use of an idempotency key that was executed.
type keyUse struct {
	at      time.Time
	sure    time.Time // until then the key is remembered
	longest time.Time // from then on it is forgotten
	asked   string
	status  int
	body    []byte
	struck  bool // a fault has put a 500 into the answer's place
}

// answeredByKey judges a call by its idempotency key, and tells whether the key has
// answered it.
func (o *oracle) answeredByKey(e *entry) bool {
	if e.Key == "" || e.Method != http.MethodPost {
		if e.Replayed {
			o.problem("%s is a replay without a key", describe(e))
		}
		return false
	}
	if len(e.Key) > 255 {
		if e.Executed || e.Status != http.StatusBadRequest {
			o.problem("%s with a key of %d characters was answered %d", describe(e), len(e.Key), e.Status)
		}
		return true
	}
	asked := e.Method + " " + e.Path + "?" + e.Form.Encode()
	use := o.keys[e.Key]
	if use != nil && (o.now.Before(use.sure) || (o.now.Before(use.longest) && !e.Executed)) {
		return o.answeredAgain(e, use, asked)
	}
	if e.Replayed || textOf(e.answer, "error", "type") == "idempotency_error" {
		o.problem("%s: the key is free, and it was answered %d %s", describe(e), e.Status, e.Body)
	}
	if e.Executed {
		extra := time.Duration(o.switches.MemoryExtraSeconds) * time.Second
		o.keys[e.Key] = &keyUse{
			at: o.now, sure: o.now.Add(24 * time.Hour), longest: o.now.Add(24*time.Hour + extra + time.Second), asked: asked, status: e.Status, body: e.Body,
			struck: e.Fault == "error_500_after",
		}
		if extra == 0 {
			o.keys[e.Key].longest = o.keys[e.Key].sure
		}
	}
	return false
}

// answeredAgain judges a call whose key was used less than a day ago.
func (o *oracle) answeredAgain(e *entry, use *keyUse, asked string) bool {
	if !o.now.Before(use.sure) && !e.Replayed && textOf(e.answer, "error", "type") != "idempotency_error" {
		return false // it may be forgotten by now
	}
	o.cells["key used again"]++
	switch {
	case e.Executed:
		o.problem("%s was executed, %v after its key was used for %s", describe(e), o.now.Sub(use.at), use.asked)
	case asked != use.asked:
		if e.Status != http.StatusBadRequest || textOf(e.answer, "error", "type") != "idempotency_error" {
			o.problem("%s: the key belongs to other parameters, and it was answered %d %s", describe(e), e.Status, e.Body)
		}
	case use.struck: // the first replay shows what the fault has left: the 500, or what a refusal had said
		if !e.Replayed || (e.Status != http.StatusInternalServerError && !bytes.Equal(e.Body, use.body)) {
			o.problem("%s: a stored failure is answered %d %s", describe(e), e.Status, e.Body)
		}
		use.struck, use.status, use.body = false, e.Status, e.Body
	case !e.Replayed || e.Status != use.status || !bytes.Equal(e.Body, use.body):
		o.problem("%s is no replay of what was answered first: %d %s instead of %d %s", describe(e), e.Status, e.Body, use.status, use.body)
	}
	return true
}

func describe(e *entry) string {
	s := fmt.Sprintf("%s %s %s %s %s", e.At.Format(time.RFC3339Nano), e.ID, e.Method, e.Path, e.Form.Encode())
	if e.Key != "" {
		s += " key " + e.Key[:min(20, len(e.Key))]
	}
	if e.Fault != "" {
		s += " struck by " + e.Fault
	}
	return s
}

package oracle

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// born enters an object that came to be without an answer that names it: its id is
// learnt when the simulator first shows it in the place where it has to be.
func (o *oracle) born(kind, prefix string, members map[string]any) *thing {
	members["created"], members["_prefix"] = o.now.Unix(), prefix
	t := &thing{kind: kind, members: members, in: o}
	o.things[kind] = append(o.things[kind], t)
	return t
}

// isNamed tells whether an id is that of a thing, and learns it where none is known.
func (t *thing) isNamed(id string) bool {
	if t.id == "" && strings.HasPrefix(id, t.text("_prefix")+"_") && t.in.ids[t.kind+" "+id] == nil {
		t.id = id
		t.in.ids[t.kind+" "+id] = t
	}
	return t.id == id && id != ""
}

// part is an object within an object, of which only these members are known.
type part map[string]any

// but is a part with some members changed; the part itself stays, as events show it.
func (p part) but(changes part) part {
	all := part{}
	for _, some := range []part{p, changes} {
		for name, v := range some {
			all[name] = v
		}
	}
	return all
}

// ref is a member that names a thing, null for none.
func ref(t *thing) any {
	if t == nil {
		return nil
	}
	return t
}

// of gives the thing that a member names, nil for none.
func (t *thing) of(name string) *thing { v, _ := t.members[name].(*thing); return v }

// shown is a member as a filter names it.
func shown(member any) string {
	if t, ok := member.(*thing); ok {
		return t.id
	}
	return strings.TrimPrefix(inWords(member), "<nil>")
}

// told is a member as a difference tells it.
func told(member any) string {
	if t, ok := member.(*thing); ok {
		return fmt.Sprintf("the %s %q", t.kind, t.id)
	}
	return inWords(member)
}

// alike holds an answered member against what the oracle knows of it.
func alike(want, got any) bool {
	switch w := want.(type) {
	case int64:
		return got == json.Number(inWords(w))
	case *thing:
		if object, ok := got.(map[string]any); ok {
			return w.isNamed(textOf(object, "id"))
		}
		id, _ := got.(string)
		return w.isNamed(id)
	case part:
		object, ok := got.(map[string]any)
		return ok && len(differences(w, object)) == 0
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(w) {
			return false
		}
		for i := range w {
			if !alike(w[i], list[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(want, got)
}

// alarm is what happens to a thing by itself at a time.
type alarm struct {
	at   int64
	of   *thing
	ring func()
}

// plan lets something happen to a thing at a time, instead of what was planned for
// it before.
func (o *oracle) plan(t *thing, at int64, ring func()) {
	o.forget(t)
	o.alarms = append(o.alarms, alarm{at, t, ring})
}

// forget takes back what was planned for a thing.
func (o *oracle) forget(t *thing) {
	for i := range o.alarms {
		if o.alarms[i].of == t {
			o.alarms = append(o.alarms[:i], o.alarms[i+1:]...)
			return
		}
	}
}

// fallDue lets happen what is due, each at its own time: what was planned first
// comes first within a second.
func (o *oracle) fallDue() {
	now := o.now
	for {
		next := -1
		for i, a := range o.alarms {
			if a.at <= now.Unix() && (next < 0 || a.at < o.alarms[next].at) {
				next = i
			}
		}
		if next < 0 {
			o.now = now
			return
		}
		due := o.alarms[next]
		o.alarms = append(o.alarms[:next], o.alarms[next+1:]...)
		o.now = unixTime(due.at)
		due.ring()
	}
}

// later is the time after a while, which the switch settle_seconds may shorten.
func (o *oracle) later(while time.Duration) int64 {
	if short := o.switches.SettleSeconds; short > 0 {
		return o.now.Unix() + short
	}
	return o.now.Unix() + int64(while/time.Second)
}

const day = 24 * time.Hour

// after is a time that no switch shortens.
func (o *oracle) after(while time.Duration) int64 { return o.now.Unix() + int64(while/time.Second) }

package stripesim

import (
	"container/heap"
	"time"
)

// alarm is the time at which something happens to an object by itself: a session
// expires, a period ends, an invoice is finalized.
type alarm struct {
	at   int64 // Unix seconds
	turn int64 // of the alarms of one second: in the order of their setting
	kind string
	id   string
}

// alarms is a heap, the next one first.
type alarms []alarm

// Len is heap.Interface.
func (a alarms) Len() int { return len(a) }

// Less is heap.Interface.
func (a alarms) Less(i, j int) bool {
	return a[i].at < a[j].at || (a[i].at == a[j].at && a[i].turn < a[j].turn)
}

// Swap is heap.Interface.
func (a alarms) Swap(i, j int) { a[i], a[j] = a[j], a[i] }

// Push is heap.Interface.
func (a *alarms) Push(x any) { *a = append(*a, x.(alarm)) }

// Pop is heap.Interface.
func (a *alarms) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

// agenda is what happens by itself, on each clock: "" is the simulator's own, the
// others are test clocks, by id.
type agenda struct {
	clocks map[string]*alarms
	turn   int64
	do     map[string]func(object) // by kind: what happens to an object when its time has come
}

func newAgenda() agenda {
	return agenda{clocks: map[string]*alarms{}, do: map[string]func(object){}}
}

// setAlarm lets the kind's action happen to an object at a time, in Unix seconds,
// on the clock that the object belongs to; it takes the place of the object's alarm
// before. The caller keeps the object (store.put, or change with a member more).
// 0 sets none.
func (s *Server) setAlarm(kind string, o object, at int64) {
	if at == 0 {
		delete(o, "_due")
		return
	}
	s.agenda.turn++
	o["_due"], o["_turn"] = at, s.agenda.turn
	s.agenda.enter(kind, o)
}

func (a *agenda) enter(kind string, o object) {
	clock := text(o, "test_clock")
	if a.clocks[clock] == nil {
		a.clocks[clock] = &alarms{}
	}
	heap.Push(a.clocks[clock], alarm{at: number(o, "_due"), turn: number(o, "_turn"), kind: kind, id: text(o, "id")})
}

// ownNow is the time of the simulator's own clock, whatever a test clock says: what
// happens by itself, and late, is counted on from when it was due.
func (s *Server) ownNow() int64 { return s.eventTime() }

// wakeUp enters the alarms of all objects that were read from the journal, in the
// turn that they had before: those of one second ring as if nothing had ended.
func (s *Server) wakeUp() {
	for kind, sh := range s.store.kinds {
		for o := range sh.all {
			if number(o, "_due") > 0 {
				s.agenda.turn = max(s.agenda.turn, number(o, "_turn"))
				s.agenda.enter(kind, o)
			}
		}
	}
}

// happen lets everything happen that is due on the simulator's own clock, each at
// its own time: an event that is raised meanwhile carries that time.
func (s *Server) happen() {
	s.happenUntil("", s.clock.Now().Unix())
	s.meters.settle(s.clock.Now())
	s.finishClocks()
	s.forget()
}

// happenUntil is happen for one clock and a time of its own.
func (s *Server) happenUntil(clock string, until int64) {
	due := s.agenda.clocks[clock]
	for due != nil && due.Len() > 0 && (*due)[0].at <= until {
		a := heap.Pop(due).(alarm)
		o := s.store.get(a.kind, a.id)
		if o == nil || number(o, "_due") != a.at {
			continue // gone, or put off
		}
		delete(o, "_due")
		if clock == "" {
			s.meters.settle(time.Unix(a.at, 0)) // an invoice bills the usage that counts at its time
		}
		s.on(clock, a.at, func() { s.agenda.do[a.kind](o) })
		if s.store.get(a.kind, a.id) != nil {
			s.store.put(a.kind, o) // without the alarm that has rung
		}
	}
}

// at runs do with the simulator's time standing still at a time of the past or of
// a test clock.
func (s *Server) at(unix int64, do func()) {
	before := s.standing
	s.standing = unix
	do()
	s.standing = before
}

// onClockOf runs do at the time of the test clock that an object belongs to, or at
// the simulator's own.
func (s *Server) onClockOf(o object, do func()) {
	clock := s.store.get("test_helpers.test_clock", text(o, "test_clock"))
	if clock == nil {
		do()
		return
	}
	s.on(text(clock, "id"), number(clock, "frozen_time"), do)
}

// on is at for the time of a clock: a test clock, or "" for the simulator's own.
func (s *Server) on(clock string, unix int64, do func()) {
	before := s.testing
	s.testing = clock != ""
	s.at(unix, do)
	s.testing = before
}

// forgetEvery is how often, in seconds, what is too old is looked for.
const forgetEvery = 600

// forget drops what Stripe would have forgotten: events after 30 days,
// idempotency keys after theirs.
func (s *Server) forget() {
	now := s.clock.Now()
	if now.Unix() < s.forgotten+forgetEvery {
		return
	}
	s.forgotten = now.Unix()
	s.forgetKeys(now)
	var old []string
	for e := range s.store.shelf("event").all {
		if now.Sub(time.Unix(number(e, "created"), 0)) < eventAge {
			break
		}
		old = append(old, text(e, "id"))
	}
	for _, id := range old {
		s.store.delete("event", id)
	}
}

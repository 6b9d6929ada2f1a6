package stripesim

import (
	"container/heap"
	"math/big"
	"slices"
	"time"
)

// meterBook keeps accepted meter events as exact sums by customer, meter and
// second. Single events are kept only while Stripe remembers their identifiers:
// so long may they be cancelled, and so long is a second one refused.
type meterBook struct {
	series   map[meterCustomer]*series
	known    map[string]int64 // identifier: its event's place in events
	events   eventLog
	turns    turns // what is to enter the sums, or to leave them, later
	turned   int64 // how many were set
	accepted int64
	lost     int64
	canceled int64
	lagging  int
	names    map[string]*meterInfo // by event name; nil: to be read from the objects again
	open     map[string]object     // error reports that still take errors, by meter; nil: the same
	failNext []*meterFailure
}

// meterCustomer names a series.
type meterCustomer struct{ meter, customer string }

// meterEvent is one event while it is remembered. Times are Unix nanoseconds.
type meterEvent struct {
	identifier string
	series     *series // nil: it never counts
	at         int64   // Unix seconds: the time of the usage
	value      decimal
	received   int64
	until      int64 // then the identifier is forgotten
	state      eventState
	leaving    bool // a cancellation is under way
}

type eventState uint8

const (
	stateLagging  eventState = iota // accepted, not yet in the sums
	stateCounted                    // in the sums
	stateCanceled                   // taken back
	stateInvalid                    // answered as accepted, and never counted
)

// eventLog keeps events in the order of their receipt, the oldest dropped first.
type eventLog struct {
	chunks [][]meterEvent
	first  int64 // the place of the first event of the first chunk
	head   int64 // the place of the oldest that is still kept
	next   int64
}

const logChunk = 1024

func (l *eventLog) push(e meterEvent) int64 {
	if n := len(l.chunks); n == 0 || len(l.chunks[n-1]) == logChunk {
		l.chunks = append(l.chunks, make([]meterEvent, 0, logChunk))
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, e)
	l.next++
	return l.next - 1
}

// at gives an event, nil when it was dropped.
func (l *eventLog) at(place int64) *meterEvent {
	if place < l.head || place >= l.next {
		return nil
	}
	return &l.chunks[(place-l.first)/logChunk][(place-l.first)%logChunk]
}

// drop forgets the oldest one.
func (l *eventLog) drop() {
	*l.at(l.head) = meterEvent{} // its identifier is free for the collector now
	if l.head++; l.head == l.first+logChunk {
		l.chunks = slices.Delete(l.chunks, 0, 1)
		l.first = l.head
	}
}

// turn is an event that enters the sums at a time, or leaves them.
type turn struct {
	at     int64 // Unix nanoseconds
	order  int64 // of the turns of one moment: in the order of their setting
	place  int64
	leaves bool
}

// turns is a heap, the next one first.
type turns []turn

// Len is heap.Interface.
func (t turns) Len() int { return len(t) }

// Less is heap.Interface.
func (t turns) Less(i, j int) bool {
	return t[i].at < t[j].at || (t[i].at == t[j].at && t[i].order < t[j].order)
}

// Swap is heap.Interface.
func (t turns) Swap(i, j int) { t[i], t[j] = t[j], t[i] }

// Push is heap.Interface.
func (t *turns) Push(x any) { *t = append(*t, x.(turn)) }

// Pop is heap.Interface.
func (t *turns) Pop() any {
	last := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return last
}

func newMeterBook() meterBook {
	return meterBook{series: map[meterCustomer]*series{}, known: map[string]int64{}}
}

// remembered gives the event of an identifier, nil when there was none or it is
// forgotten.
func (b *meterBook) remembered(identifier string, now int64) *meterEvent {
	place, ok := b.known[identifier]
	if !ok {
		return nil
	}
	if e := b.events.at(place); e.until > now {
		return e
	}
	return nil
}

// fits tells whether a series can take a value without ever leaving the range of
// a decimal, whatever of it is cancelled.
func (b *meterBook) fits(key meterCustomer, value decimal) bool {
	s := b.series[key]
	if s == nil {
		return true
	}
	_, ok := s.weight.plus(value.magnitude())
	return ok
}

// take enters a record into the book: an event, or that one leaves it again.
func (b *meterBook) take(r *meterRecord) {
	if r.Leaves != "" {
		b.leave(r)
		return
	}
	e := meterEvent{identifier: r.Identifier, at: r.At, received: r.Received, until: r.Until, state: stateInvalid}
	b.accepted++
	if r.Lost {
		b.lost++
	} else {
		e.value, _ = parseDecimal(r.Value) // it was read when it was accepted
		e.series, e.state = b.seriesOf(r), stateLagging
		e.series.weight, _ = e.series.weight.plus(e.value.magnitude())
		b.lagging++
	}
	place := b.events.push(e)
	b.known[r.Identifier] = place
	switch {
	case r.Lost:
	case r.Counts <= r.Received:
		b.count(place)
	default:
		b.put(turn{at: r.Counts, place: place})
	}
}

func (b *meterBook) put(t turn) {
	b.turned++
	t.order = b.turned
	heap.Push(&b.turns, t)
}

func (b *meterBook) seriesOf(r *meterRecord) *series {
	key := meterCustomer{r.Meter, r.Customer}
	s := b.series[key]
	if s == nil {
		s = &series{key: key, window: r.Window, last: r.Last}
		b.series[key] = s
	}
	return s
}

// leave lets the event of a record go from the sums, at once or later.
func (b *meterBook) leave(r *meterRecord) {
	place, ok := b.known[r.Identifier]
	e := b.events.at(place)
	if !ok || e.leaving || e.state == stateCanceled || e.state == stateInvalid {
		return
	}
	if r.Leaves == leavesInvalid {
		b.uncount(place, stateInvalid)
		b.lost++
		return
	}
	b.canceled++
	if r.Counts <= r.Received {
		b.uncount(place, stateCanceled)
		return
	}
	e.leaving = true
	b.put(turn{at: r.Counts, place: place, leaves: true})
}

func (b *meterBook) count(place int64) {
	e := b.events.at(place)
	if e.state == stateLagging {
		b.lagging--
		e.state = stateCounted
		e.series.enter(place, e.at, e.value)
	}
}

func (b *meterBook) uncount(place int64, state eventState) {
	e := b.events.at(place)
	switch e.state {
	case stateLagging:
		b.lagging--
	case stateCounted:
		e.series.leave(place, e.at, e.value)
	case stateCanceled, stateInvalid:
		return
	}
	e.state, e.leaving = state, false
}

// settle lets the sums take in what has lagged until a time, and forgets
// identifiers that Stripe would have forgotten.
func (b *meterBook) settle(now time.Time) {
	until := now.UnixNano()
	for len(b.turns) > 0 && b.turns[0].at <= until {
		t := heap.Pop(&b.turns).(turn)
		if t.leaves {
			b.uncount(t.place, stateCanceled)
		} else {
			b.count(t.place)
		}
	}
	for {
		e := b.events.at(b.events.head)
		if e == nil || e.until > until || e.leaving || e.state == stateLagging {
			return
		}
		if e.state == stateCounted {
			e.series.settle(b.events.head, e.at)
		}
		if b.known[e.identifier] == b.events.head { // else it is used again
			delete(b.known, e.identifier)
		}
		b.events.drop()
	}
}

// total sums a customer's usage over [from, to), in Unix seconds. It is that of
// the last settle.
func (b *meterBook) total(key meterCustomer, from, to int64) *big.Rat {
	if s := b.series[key]; s != nil {
		sum, _ := s.sum(from, to)
		return sum.rat()
	}
	return new(big.Rat)
}

package stripesim

import (
	"slices"
)

// series is one customer's usage of one meter: sums by the second, kept together
// by the hour, so that an hour is one addition and a day twenty-four.
type series struct {
	key    meterCustomer
	hours  []*usageHour // by start
	weight decimal      // of all values ever taken, without their signs: the sums stay below it

	// Where of all events of a window only the last one counts: its length in
	// seconds, and those that have been or may become the last.
	window  int64
	windows map[int64][]contender
	last    bool // the value of a range is that of its last event, not their sum
}

type usageHour struct {
	start   int64
	sum     decimal
	n       int64
	seconds []usageSecond
}

type usageSecond struct {
	sum decimal
	n   uint32
	at  uint16 // after the hour's start
}

// contender is an event of a window of which only the last one counts.
type contender struct {
	place int64 // in the order of receipt; -1: of one that is forgotten
	at    int64
	value decimal
}

const hourSeconds = 3600

// floor is the start of the unit that a time is in.
func floor(at, unit int64) int64 {
	rest := at % unit
	if rest < 0 {
		rest += unit
	}
	return at - rest
}

// enter counts an event.
func (s *series) enter(place, at int64, value decimal) {
	if s.window == 0 {
		s.add(at, value, 1)
		return
	}
	start := floor(at, s.window)
	known := s.contenders(start)
	if len(known) > 0 {
		s.remove(known[len(known)-1])
	}
	i, _ := slices.BinarySearchFunc(known, place, func(c contender, place int64) int { return int(c.place - place) })
	known = slices.Insert(known, i, contender{place, at, value})
	if s.windows == nil {
		s.windows = map[int64][]contender{}
	}
	s.windows[start] = known
	winner := known[len(known)-1]
	s.add(winner.at, winner.value, 1)
}

// contenders gives those of a window. One that is not written down any more is
// found in the sums: it alone counts there.
func (s *series) contenders(start int64) []contender {
	if known := s.windows[start]; known != nil {
		return known
	}
	for h, second := range s.between(start, start+s.window) {
		return []contender{{-1, h.start + int64(second.at), second.sum}}
	}
	return nil
}

// leave takes an event out again. Where only the last one counts, the one before
// it counts again.
func (s *series) leave(place, at int64, value decimal) {
	if s.window == 0 {
		s.add(at, value.negated(), -1)
		return
	}
	start := floor(at, s.window)
	known := s.windows[start]
	i := slices.IndexFunc(known, func(c contender) bool { return c.place == place })
	if i < 0 {
		return
	}
	before := known[len(known)-1]
	known = slices.Delete(known, i, i+1)
	s.remove(before)
	if len(known) > 0 {
		winner := known[len(known)-1]
		s.add(winner.at, winner.value, 1)
	}
	s.write(start, known)
}

// write keeps the contenders of a window, if there is more to know than its sum.
func (s *series) write(start int64, known []contender) {
	if len(known) == 0 || (len(known) == 1 && known[0].place < 0) {
		delete(s.windows, start)
		return
	}
	s.windows[start] = known
}

// settle learns that an event will not leave any more: those before it in its
// window can never count again, and it itself needs not be written down when it
// is the only one.
func (s *series) settle(place, at int64) {
	start := floor(at, max(s.window, 1))
	known := s.windows[start]
	i := slices.IndexFunc(known, func(c contender) bool { return c.place == place })
	if i < 0 {
		return
	}
	known = slices.Delete(known, 0, i)
	known[0].place = -1
	s.write(start, known)
}

func (s *series) remove(c contender) { s.add(c.at, c.value.negated(), -1) }

// add changes the sums of a second; its overflow is ruled out by weight.
func (s *series) add(at int64, value decimal, n int) {
	h := s.hour(floor(at, hourSeconds))
	h.sum, _ = h.sum.plus(value)
	h.n += int64(n)
	offset := uint16(at - h.start) //nolint:gosec // below 3600
	i, stands := len(h.seconds), false
	if i > 0 && h.seconds[i-1].at >= offset { // most usage arrives in order
		i, stands = slices.BinarySearchFunc(h.seconds, offset, func(u usageSecond, offset uint16) int { return int(u.at) - int(offset) })
	}
	if !stands {
		h.seconds = slices.Insert(h.seconds, i, usageSecond{at: offset})
	}
	u := &h.seconds[i]
	u.sum, _ = u.sum.plus(value)
	u.n += uint32(n) //nolint:gosec // modulo 2^32 it comes out right
	if u.n == 0 {
		h.seconds = slices.Delete(h.seconds, i, i+1)
	}
}

func (s *series) hour(start int64) *usageHour {
	i, stands := s.place(start)
	if !stands {
		s.hours = slices.Insert(s.hours, i, &usageHour{start: start})
	}
	return s.hours[i]
}

// place is where the first hour at or after a time is.
func (s *series) place(start int64) (i int, stands bool) {
	if i = len(s.hours); i == 0 || s.hours[i-1].start < start {
		return i, false
	}
	return slices.BinarySearchFunc(s.hours, start, func(h *usageHour, start int64) int {
		switch {
		case h.start < start:
			return -1
		case h.start > start:
			return 1
		}
		return 0
	})
}

// between gives the seconds of [from, to) that have usage, the oldest first.
func (s *series) between(from, to int64) func(yield func(*usageHour, usageSecond) bool) {
	return func(yield func(*usageHour, usageSecond) bool) {
		first, _ := s.place(floor(from, hourSeconds))
		for _, h := range s.hours[first:] {
			if h.start >= to {
				return
			}
			for _, u := range h.seconds {
				if at := h.start + int64(u.at); at >= from && at < to && !yield(h, u) {
					return
				}
			}
		}
	}
}

// sum gives the value of [from, to), and how many events count in it.
func (s *series) sum(from, to int64) (sum decimal, n int64) {
	if s.last {
		return s.lastOf(from, to)
	}
	first, _ := s.place(floor(from, hourSeconds))
	for _, h := range s.hours[first:] {
		if h.start >= to {
			break
		}
		if h.start >= from && h.start+hourSeconds <= to {
			sum, _ = sum.plus(h.sum)
			n += h.n
			continue
		}
		for _, u := range h.seconds {
			if at := h.start + int64(u.at); at >= from && at < to {
				sum, _ = sum.plus(u.sum)
				n += int64(u.n)
			}
		}
	}
	return sum, n
}

// lastOf gives the value of the last event of [from, to).
func (s *series) lastOf(from, to int64) (value decimal, n int64) {
	first, _ := s.place(floor(from, hourSeconds))
	end, _ := s.place(to)
	for _, h := range slices.Backward(s.hours[first:end]) {
		for _, u := range slices.Backward(h.seconds) {
			if at := h.start + int64(u.at); at >= from && at < to {
				return u.sum, int64(u.n)
			}
		}
	}
	return decimal{}, 0
}

// group is a window of a summary that has usage.
type group struct {
	start int64
	sum   decimal
}

// before gives at most so many groups that begin in [from, to), the newest first.
func (s *series) before(from, to, step int64, most int) []group {
	var found []group
	end, _ := s.place(to)
	for i := end - 1; i >= 0 && len(found) < most; i-- {
		start := floor(s.hours[i].start, step)
		if start < from {
			break
		}
		for i > 0 && s.hours[i-1].start >= start {
			i--
		}
		if sum, n := s.sum(start, start+step); n > 0 {
			found = append(found, group{start, sum})
		}
	}
	return found
}

// after gives at most so many groups that begin in [from, to), the oldest first.
func (s *series) after(from, to, step int64, most int) []group {
	var found []group
	for i, _ := s.place(from); i < len(s.hours) && len(found) < most; i++ {
		start := floor(s.hours[i].start, step)
		if start >= to {
			break
		}
		for i+1 < len(s.hours) && s.hours[i+1].start < start+step {
			i++
		}
		if sum, n := s.sum(start, start+step); n > 0 {
			found = append(found, group{start, sum})
		}
	}
	return found
}

package stripesim

import (
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"testing"
	"time"
)

// naiveEvent is an event as a list without any thought keeps it.
type naiveEvent struct {
	identifier       string
	customer         string
	at               int64
	value            int64 // thousandths
	received, counts time.Time
	leaves           time.Time // zero: never
	lost             bool
}

// naiveTotal computes what a book should say, from all events that ever were.
func naiveTotal(events []naiveEvent, now time.Time, window int64, last bool, customer string, from, to int64) *big.Rat {
	winners, sum := map[int64]int{}, int64(0)
	var latest int64 = -1
	for i, e := range events {
		if e.customer != customer || e.lost || e.counts.After(now) || (!e.leaves.IsZero() && !e.leaves.After(now)) {
			continue
		}
		if window > 0 {
			winners[floor(e.at, window)] = i
		} else if e.at >= from && e.at < to {
			sum += e.value
		}
	}
	for _, i := range winners {
		e := events[i]
		switch {
		case e.at < from || e.at >= to:
		case !last:
			sum += e.value
		case e.at > latest:
			latest = e.at
			sum = e.value
		}
	}
	return big.NewRat(sum, 1000)
}

// TestTheBookIsAsANaiveOne plays random events, cancellations, lags and clock moves
// against a list that is added up from its beginning each time.
func TestTheBookIsAsANaiveOne(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct {
		window int64
		last   bool
	}{{0, false}, {hourSeconds, false}, {daySeconds, false}, {1, true}, {hourSeconds, true}} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("window %d last %v seed %d", kind.window, kind.last, seed), func(t *testing.T) {
				t.Parallel()
				playBook(t, kind.window, kind.last, mathrand.New(mathrand.NewPCG(seed, 3)))
			})
		}
	}
}

func playBook(t *testing.T, window int64, last bool, random *mathrand.Rand) {
	t.Helper()
	book, now := newMeterBook(), time.Unix(1_700_000_000, 0)
	var events []naiveEvent
	later := func() time.Time { return now.Add(time.Duration(random.IntN(3)*random.IntN(900)) * time.Second) }
	check := func(customer string, from, to int64) {
		t.Helper()
		want := naiveTotal(events, now, window, last, customer, from, to)
		if got := book.total(meterCustomer{"m", customer}, from, to); got.Cmp(want) != 0 {
			t.Fatalf("after %d events the total of %s in [%d, %d) is %s, want %s", len(events), customer, from, to, got, want)
		}
	}
	for i := range 1500 {
		switch now = now.Add(time.Duration(random.IntN(200)) * time.Second); random.IntN(50) {
		case 0:
			now = now.Add(time.Duration(random.IntN(30)) * time.Hour)
		}
		book.settle(now)
		if i > 0 && random.IntN(4) == 0 { // cancel one that is known
			e := &events[random.IntN(len(events))]
			if book.remembered(e.identifier, now.UnixNano()) != nil && e.leaves.IsZero() && now.Sub(e.received) <= adjustmentAgeMax {
				e.leaves = later()
				book.take(&meterRecord{Identifier: e.identifier, Leaves: leavesCanceled, Received: now.UnixNano(), Counts: e.leaves.UnixNano()})
			}
			continue
		}
		value := random.Int64N(2_000_000) - 1_000_000
		e := naiveEvent{
			identifier: fmt.Sprint("e", i), customer: fmt.Sprint("c", random.IntN(2)), at: now.Unix() - int64(random.IntN(5)*random.IntN(50_000)),
			received: now, counts: later(), lost: random.IntN(20) == 0,
		}
		e.value = value
		events = append(events, e)
		book.take(&meterRecord{
			Meter: "m", Customer: e.customer, Window: window, Last: last, At: e.at, Value: big.NewRat(value, 1000).FloatString(3), Identifier: e.identifier,
			Received: now.UnixNano(), Counts: e.counts.UnixNano(), Until: now.Add(identifierAge).UnixNano(), Lost: e.lost,
		})
		check(e.customer, 0, timeMax)
		from := e.at - int64(random.IntN(20_000))
		check(e.customer, from, from+int64(random.IntN(200_000)))
		if i%8 == 0 {
			checkGroups(t, book.series[meterCustomer{"m", e.customer}])
		}
	}
	now = now.Add(10 * 24 * time.Hour)
	book.settle(now)
	check("c0", 0, timeMax)
	check("c1", 0, timeMax)
	if len(book.known) != 0 || book.events.at(book.events.head) != nil || len(book.turns) != 0 || book.lagging != 0 || len(book.events.chunks) > 1 {
		t.Errorf("after ten days the book still keeps %d identifiers, %d turns, %d chunks", len(book.known), len(book.turns), len(book.events.chunks))
	}
	for key, s := range book.series {
		if len(s.windows) > 0 {
			t.Errorf("after ten days %v still keeps %d windows", key, len(s.windows))
		}
	}
}

// checkGroups holds the rows of a summary, both ways, against sums of their own.
func checkGroups(t *testing.T, s *series) {
	t.Helper()
	if s == nil || len(s.hours) == 0 {
		return
	}
	const step = hourSeconds
	from, to := s.hours[0].start, s.hours[len(s.hours)-1].start+step
	down, up := s.before(from, to, step, len(s.hours)), s.after(from, to, step, len(s.hours))
	if len(down) != len(up) {
		t.Fatalf("downwards there are %d rows, upwards %d", len(down), len(up))
	}
	for i, g := range down {
		sum, n := s.sum(g.start, g.start+step)
		if u := up[len(up)-1-i]; u != g || sum != g.sum || n == 0 || (i > 0 && g.start >= down[i-1].start) {
			t.Fatalf("row %d is %v downwards, %v upwards, its sum is %v of %d events", i, g, u, sum, n)
		}
	}
}

package meter

import (
	"fmt"
	"testing"
	"time"

	"tallystick/internal/clock"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func cacheOf(most int) *keyCache {
	return &keyCache{most: most, entries: map[string]*keyEntry{}}
}

func rowOf(id string, perSecond, burst int) *keyRow {
	return &keyRow{ID: id, RatePerSecond: &perSecond, RateBurst: &burst}
}

func TestTheCacheOfKeysIsBoundedAndForgetsTheIdleFirst(t *testing.T) {
	t.Parallel()
	c := cacheOf(3)
	used := c.put(rowOf("used", 1, 1), clock.Tick(), noon)
	for i := range 100 {
		idle := c.put(rowOf(fmt.Sprint(i), 1, 1), clock.Tick(), noon)
		idle.read = clock.Instant{} // long ago
		if len(c.entries) > 3 {
			t.Fatalf("%d keys are kept, at most 3 are allowed", len(c.entries))
		}
	}
	if c.get("used") != used {
		t.Error("a key in use was forgotten while there were idle ones")
	}
	for i := range 10 { // all in use: one of them goes, but the bound stays
		c.put(rowOf(fmt.Sprint("busy", i), 1, 1), clock.Tick(), noon)
		c.outdate(fmt.Sprint("changed", i))
		if len(c.entries) > 3 {
			t.Fatalf("%d keys are kept, at most 3 are allowed", len(c.entries))
		}
	}
}

// TestWhatWasReadBeforeAChangeIsNotKept is about a request that reads a key while
// another revokes it: it must not put the key back.
func TestWhatWasReadBeforeAChangeIsNotKept(t *testing.T) {
	t.Parallel()
	for _, cached := range []bool{true, false} {
		c := cacheOf(10)
		if cached {
			c.put(rowOf("k", 1, 1), clock.Tick(), noon)
		}
		read := clock.Tick()
		time.Sleep(time.Millisecond)
		c.outdate("k")
		if e := c.put(rowOf("k", 1, 1), read, noon); e.row == nil || e.caller.actor != "key:k" {
			t.Error("the request that was reading has no key")
		}
		if c.get("k").fresh() {
			t.Errorf("cached %t: what was read before the change is trusted after it", cached)
		}
		c.put(rowOf("k", 1, 1), clock.Tick(), noon)
		if !c.get("k").fresh() {
			t.Errorf("cached %t: what was read after the change is not kept", cached)
		}
	}
}

func TestALaterReadingStays(t *testing.T) {
	t.Parallel()
	c := cacheOf(10)
	early := clock.Tick()
	time.Sleep(time.Millisecond)
	late := c.put(rowOf("k", 5, 5), clock.Tick(), noon)
	c.put(rowOf("k", 1, 1), early, noon)
	if c.get("k") != late {
		t.Error("an earlier reading took the place of a later one")
	}
}

// TestTheLimiterOutlivesWhatIsReadAgain spends, lets the key be read again, and
// changes its limit on the way.
func TestTheLimiterOutlivesWhatIsReadAgain(t *testing.T) {
	t.Parallel()
	c := cacheOf(10)
	spend := func(perSecond, burst int, at time.Time) (n int) {
		e := c.put(rowOf("k", perSecond, burst), clock.Tick(), at)
		for e.caller.take(at, 1, 1) == nil {
			n++
		}
		return n
	}
	if n := spend(1, 5, noon); n != 5 {
		t.Errorf("%d requests were let through at first, want the burst of 5", n)
	}
	if n := spend(1, 5, noon); n != 0 {
		t.Errorf("reading the key again gave %d more requests", n)
	}
	if n := spend(10, 20, noon); n != 0 {
		t.Errorf("a wider limit gave %d requests at once, want those that come with time", n)
	}
	if n := spend(10, 20, noon.Add(time.Second)); n != 10 {
		t.Errorf("%d requests a second later, want 10", n)
	}
	if n := spend(10, 2, noon.Add(time.Hour)); n != 2 {
		t.Errorf("%d requests at once after the burst was cut to 2", n)
	}
}

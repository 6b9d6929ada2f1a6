// Package clock is the only place that reads the machine's time. Everything
// else receives a now function, so that a test, the demo and the simulator can
// share one clock and move it.
package clock

import (
	"sync/atomic"
	"time"
)

// Now is the machine's time in UTC, without a monotonic reading, cut to the
// microseconds that Postgres keeps, so that a stored instant equals its source.
func Now() time.Time { return time.Now().UTC().Round(0).Truncate(time.Microsecond) }

// Since is the monotonic time elapsed since start, for latencies. It is real
// time even where Now is virtual: a latency is a fact about the machine.
func Since(start Instant) time.Duration { return time.Since(start.t) }

// Instant is a monotonic point in time, only good for Since and Before.
type Instant struct{ t time.Time }

// Before tells whether i came before j. The zero Instant came before all others.
func (i Instant) Before(j Instant) bool { return i.t.Before(j.t) }

// Tick is the present monotonic instant.
func Tick() Instant { return Instant{t: time.Now()} }

// Virtual is the machine's time plus an offset that only grows. The zero value
// is ready for use and agrees with Now. It is safe for concurrent use.
type Virtual struct{ offset atomic.Int64 }

// Now is the virtual time, in UTC, in microseconds.
func (v *Virtual) Now() time.Time { return Now().Add(time.Duration(v.offset.Load())) }

// Advance moves the virtual time forward by d. A negative d is ignored: time
// that ran backwards would break every consumer that relies on order.
func (v *Virtual) Advance(d time.Duration) {
	if d > 0 {
		v.offset.Add(int64(d.Truncate(time.Microsecond)))
	}
}

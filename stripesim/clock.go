package stripesim

import (
	"sync"
	"time"
)

// Clock is the simulator's time. Advance moves it forward.
type Clock interface {
	Now() time.Time
	Advance(d time.Duration)
}

// ownClock is the machine's time plus an offset.
type ownClock struct {
	mu     sync.Mutex
	offset time.Duration
}

// Now is the machine's time moved by what was advanced.
func (c *ownClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().UTC().Add(c.offset)
}

// Advance moves the time forward.
func (c *ownClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += max(d, 0)
}

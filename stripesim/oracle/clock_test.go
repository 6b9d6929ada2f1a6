package oracle

import (
	"sync"
	"time"
)

// began is when every story begins: all that a seed decides is the same in every run.
var began = time.Date(2024, time.January, 30, 23, 58, 30, 250_000_000, time.UTC)

// clock stands still unless it is told to go on.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now is the story's time.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the time forward.
func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(max(d, 0))
}

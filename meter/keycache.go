package meter

import (
	"context"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"
	xrate "golang.org/x/time/rate"

	"tallystick/api"
	"tallystick/internal/clock"
)

const (
	// keyFresh is how long a key is trusted without asking the database again: the
	// longest that a revocation elsewhere takes to bite.
	keyFresh = time.Second

	// keysCachedMax bounds the cache, and with it the limiters.
	keysCachedMax = 10_000
)

// keyCache spares the hot path a query per request. Requests only read it: a
// key is written about once a second.
type keyCache struct {
	mu      sync.RWMutex
	most    int // entries
	entries map[string]*keyEntry
}

// keyEntry is a key and when it was read, on the monotonic clock: a virtual
// clock that stands still must not keep a revoked key alive. It is not changed:
// another takes its place.
type keyEntry struct {
	row    *keyRow // nil: not read yet
	caller *caller
	read   clock.Instant // zero: at the next use it is read again
	valid  clock.Instant // when this process last changed the key: what was read before is outdated
}

func (e *keyEntry) fresh() bool { return clock.Since(e.read) < keyFresh }

func (c *keyCache) get(id string) *keyEntry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.entries[id]
}

// put keeps what was read of a key from an instant on, and gives the entry for
// this request, whose limiter is that of the requests before.
func (c *keyCache) put(row *keyRow, read clock.Instant, now time.Time) *keyEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.entries[row.ID]
	if old == nil {
		c.evict()
		old = &keyEntry{caller: &caller{}}
	}
	if read.Before(old.valid) || read.Before(old.read) { // a change is newer, or another request read later
		return &keyEntry{row: row, caller: old.caller}
	}
	e := &keyEntry{row: row, caller: &caller{actor: "key:" + row.ID, limiter: old.caller.limiter}, read: read, valid: old.valid}
	e.caller.follow(row.limit(), now)
	c.entries[row.ID] = e
	return e
}

// outdate forgets what was read of a key before now, also what a request is
// reading at this moment. Its limiter stays.
func (c *keyCache) outdate(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.entries[id]
	if old == nil {
		c.evict()
		old = &keyEntry{caller: &caller{actor: "key:" + id}}
	}
	c.entries[id] = &keyEntry{row: old.row, caller: old.caller, valid: clock.Tick()}
}

// evict makes room for one more. A key that is forgotten begins with a full burst
// again, so those in use go last.
func (c *keyCache) evict() {
	if len(c.entries) < c.most {
		return
	}
	victim := ""
	for id, e := range c.entries {
		if victim = id; !e.fresh() {
			break
		}
	}
	delete(c.entries, victim)
}

// sqlReadKey relies on api_keys_pkey.
const sqlReadKey = `SELECT ` + keyFields + ` FROM api_keys WHERE key_id = $1`

// readKey asks the database; sql.ErrNoRows says that there is no such key.
func (m *Meter) readKey(ctx context.Context, id string) (*keyEntry, error) {
	read := clock.Tick()
	row := &keyRow{}
	err := m.db.Read(ctx, func(tx *sqlx.Tx) error {
		*row = keyRow{}
		return tx.GetContext(ctx, row, sqlReadKey, id)
	})
	if err != nil {
		return nil, err
	}
	return m.keys.put(row, read, m.now()), nil
}

// caller is who makes a request.
type caller struct {
	actor   string // for the journal
	account string // of a token: all that it may see; "" for a key
	limiter *xrate.Limiter
	limit   api.RateLimit // of the limiter, for the refusal
}

// follow makes the limiter, which may be shared with requests under way, obey a
// limit; nil is none. What was spent of the old limit counts against the new one.
func (c *caller) follow(l *api.RateLimit, now time.Time) {
	switch {
	case l == nil:
		c.limiter, c.limit = nil, api.RateLimit{}
		return
	case c.limiter == nil:
		c.limiter = xrate.NewLimiter(xrate.Limit(l.PerSecond), l.Burst)
	case c.limiter.Limit() != xrate.Limit(l.PerSecond) || c.limiter.Burst() != l.Burst:
		c.limiter.SetLimitAt(now, xrate.Limit(l.PerSecond))
		c.limiter.SetBurstAt(now, l.Burst)
	}
	c.limit = *l
}

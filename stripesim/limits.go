package stripesim

import "time"

// traffic is what the limits of requests count.
type traffic struct {
	all     bucket
	at      map[string]*bucket // by pattern of the endpoint
	running int
	inside  map[string]int // by pattern
}

func newTraffic() traffic { return traffic{at: map[string]*bucket{}, inside: map[string]int{}} }

// bucket lets so many requests through each second, and a second's worth at once.
// It holds the time at which it would be empty again.
type bucket struct{ full time.Time }

func (b *bucket) take(now time.Time, perSecond int) bool {
	if b.full.Before(now) {
		b.full = now
	}
	next := b.full.Add(time.Second / time.Duration(perSecond))
	if next.Sub(now) > time.Second {
		return false
	}
	b.full = next
	return true
}

// admit refuses a call beyond the limits that are switched on. They stand before
// the idempotency keys, as Stripe's do: what they refuse is not remembered.
func (s *Server) admit(c *call) (release func(), err *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sw, t, now, pattern := &s.switches, &s.traffic, s.clock.Now(), c.r.Pattern
	if t.at[pattern] == nil {
		t.at[pattern] = &bucket{}
	}
	switch {
	case sw.ConcurrentRequests > 0 && t.running >= sw.ConcurrentRequests:
		return nil, rateLimited("global-concurrency")
	case sw.EndpointConcurrentRequests > 0 && t.inside[pattern] >= sw.EndpointConcurrentRequests:
		return nil, rateLimited("endpoint-concurrency")
	case sw.RequestsPerSecond > 0 && !t.all.take(now, sw.RequestsPerSecond):
		return nil, rateLimited("global-rate")
	case sw.EndpointRequestsPerSecond > 0 && !t.at[pattern].take(now, sw.EndpointRequestsPerSecond):
		return nil, rateLimited("endpoint-rate")
	}
	t.running++
	t.inside[pattern]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		t.running--
		t.inside[pattern]--
	}, nil
}

package meter

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	xrate "golang.org/x/time/rate"

	"tallystick/internal/fault"
	"tallystick/internal/web"
)

const (
	// FailuresDefault is how many failed authentications a client address may make
	// per minute.
	FailuresDefault = 120

	addressesMax  = 16_384 // whose failures are counted; the ones longest quiet are forgotten
	suspectsQueue = 64     // unknown keys that wait for their turn at the database
)

var errTooManyFailures = &fault.Error{
	Kind: fault.KindRateLimited, Code: "too_many_failures",
	Public: "too many requests from your address carried no valid key; wait as Retry-After says and send a valid one",
}

// failures limits failed authentications per client address. Secrets cannot be
// guessed; what is bounded is the work and the noise that guessing makes. An
// address without budget is not shut out, because a whole fleet may share one:
// its good keys go on, and unknown ones are looked up one at a time.
type failures struct {
	now       func() time.Time
	perMinute int
	trusted   []netip.Prefix // proxies
	addresses *lru.Cache[netip.Prefix, *xrate.Limiter]
	line      chan struct{} // suspects in the queue
	turn      chan struct{} // the one of them that is looked up
}

func newFailures(perMinute int, trusted []netip.Prefix, now func() time.Time) *failures {
	if perMinute == 0 {
		perMinute = FailuresDefault
	}
	addresses, _ := lru.New[netip.Prefix, *xrate.Limiter](addressesMax) // fails for sizes below one only
	return &failures{
		now: now, perMinute: perMinute, trusted: trusted, addresses: addresses,
		line: make(chan struct{}, suspectsQueue), turn: make(chan struct{}, 1),
	}
}

func (f *failures) client(r *http.Request) netip.Prefix { return web.Client(r, f.trusted) }

// refuse counts a failure and gives the refusal of it. The process's own
// questions, which have no address, are not counted.
func (f *failures) refuse(from *netip.Prefix) error {
	if from == nil {
		return errUnauthorized
	}
	limiter, ok := f.addresses.Get(*from)
	if !ok {
		limiter = xrate.NewLimiter(xrate.Limit(f.perMinute)/60, f.perMinute)
		if first, found, _ := f.addresses.PeekOrAdd(*from, limiter); found {
			limiter = first
		}
	}
	if limiter.AllowN(f.now(), 1) {
		return errUnauthorized
	}
	return f.tooMany(limiter)
}

func (f *failures) tooMany(limiter *xrate.Limiter) error {
	err := *errTooManyFailures
	missing := 1 - limiter.TokensAt(f.now())
	err.RetryAfter = max(time.Second, time.Duration(missing/float64(limiter.Limit())*float64(time.Second)))
	return &err
}

// queue lets whoever has budget pass at once. Others wait until it is their turn
// at the database, and are refused where too many wait already. What fails here
// refuses; nothing that fails lets anybody in.
func (f *failures) queue(ctx context.Context, from *netip.Prefix) (leave func(), err error) {
	if from == nil {
		return func() {}, nil
	}
	limiter, ok := f.addresses.Get(*from)
	if !ok || limiter.TokensAt(f.now()) >= 1 {
		return func() {}, nil
	}
	select {
	case f.line <- struct{}{}:
	default:
		return nil, f.tooMany(limiter)
	}
	select {
	case f.turn <- struct{}{}:
		return func() { <-f.turn; <-f.line }, nil
	case <-ctx.Done():
		<-f.line
		return nil, fault.ErrUnavailable.With(ctx.Err())
	}
}

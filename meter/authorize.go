package meter

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// Refusals of callers. Every unusable key or token gets the same answer.
var (
	errUnauthorized = &fault.Error{Kind: fault.KindUnauthorized, Code: "unauthorized", Public: "send a valid API key as: Authorization: Bearer tsk_…"}
	errForbidden    = &fault.Error{Kind: fault.KindForbidden, Code: "forbidden", Public: "the key lacks the scope that this call needs"}
	errOwnOnly      = errForbidden.Withf("an account's token may only read its own account: GET the account, its transfers, its usage and its reservations")
	errRateLimited  = &fault.Error{Kind: fault.KindRateLimited, Code: "rate_limited", Public: "too many requests; wait as Retry-After says, then send the same request again"}
	errBatchTooBig  = &fault.Error{Kind: fault.KindUnprocessed, Code: "batch_over_burst", Public: "the batch has more items than the key may send at once; send smaller batches"}
)

type callerKey struct{}

// callerOf is who makes a request; outside of one, nobody in particular.
func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{}
}

// byToken tells whether an account's own token asks.
func byToken(ctx context.Context) bool { return callerOf(ctx).account != "" }

// Actor names who makes a request that was let through, for the journal.
func Actor(ctx context.Context) string { return actor(ctx) }

// actor names who makes a request, for the journal.
func actor(ctx context.Context) string { return callerOf(ctx).actor }

// Authorize lets requests through to h whose key is valid, within its rate limit
// and carries the scope.
func (m *Meter) Authorize(scope string, h web.Handler) web.Handler {
	return m.authorize(scope, false, h)
}

// AuthorizeOwn lets through what Authorize does, and tokens of accounts, each to
// its own account: the routes that it is for name one in their path or take it
// from the query. To a token, another's account looks like one that is not there.
func (m *Meter) AuthorizeOwn(scope string, h web.Handler) web.Handler {
	return m.authorize(scope, true, h)
}

func (m *Meter) authorize(scope string, own bool, h web.Handler) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		r, err := m.admit(scope, own, r)
		if err != nil {
			m.refused(err)
			return err
		}
		return h(w, r)
	}
}

// admit decides, in the order of precedence of the document: a valid key, its
// rate limit, its scope.
func (m *Meter) admit(scope string, own bool, r *http.Request) (*http.Request, error) {
	ctx := r.Context()
	from := m.failures.client(r)
	secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, m.failures.refuse(&from)
	}
	if strings.HasPrefix(secret, tokenPrefix) {
		return m.admitToken(own, r, secret, from)
	}
	e, err := m.lookUp(ctx, secret, &from)
	if err != nil {
		return nil, err
	}
	web.Note(ctx, slog.String("key", e.row.ID))
	if err := e.caller.take(m.now(), 1, 1); err != nil {
		return nil, err
	}
	if !e.row.allows(scope) {
		return nil, errForbidden.Withf("the key lacks the scope %s that this call needs", scope)
	}
	ctx = web.WithCaller(ctx, "key:"+e.row.ID)
	return r.WithContext(context.WithValue(ctx, callerKey{}, e.caller)), nil
}

// take takes n requests from the limit of a caller, of the whole that it sends.
func (c *caller) take(now time.Time, n, whole int) error {
	if c.limiter == nil || c.limiter.AllowN(now, n) {
		return nil
	}
	missing := float64(whole) - c.limiter.TokensAt(now)
	wait := time.Duration(missing / float64(c.limiter.Limit()) * float64(time.Second))
	err := errRateLimited.Withf("more than %d requests per second (%d at once) came from this key or token; wait as Retry-After says, then send the same request again", c.limit.PerSecond, c.limit.Burst)
	err.RetryAfter = max(wait, time.Second)
	return err
}

// spend counts the items of a batch against the limit of its sender: the request
// itself was counted as one of them.
func (m *Meter) spend(ctx context.Context, items int) error {
	c := callerOf(ctx)
	var err error
	if c.limiter != nil && items > c.limit.Burst {
		err = errBatchTooBig.Withf("the key may send at most %d items at once, and the batch has %d; send smaller batches", c.limit.Burst, items)
	} else if items > 1 {
		err = c.take(m.now(), items-1, items)
	}
	if err != nil {
		m.refused(err)
	}
	return err
}

// parseSecret takes the id out of "<prefix><id>_<secret>".
func parseSecret(prefix, secret string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(secret, prefix)
	if !ok || len(secret) > 200 {
		return "", false
	}
	id, _, ok = strings.Cut(rest, "_")
	return id, ok && meterForm.MatchString(id)
}

// lookUp finds the key of a secret. Nothing asks the database while a key is
// fresh. A wrong secret always does, for two reasons: another process may have
// rotated the key a moment ago, and the time of the answer must not tell a
// known id from an unknown one. The address is nil where the process asks itself.
func (m *Meter) lookUp(ctx context.Context, secret string, from *netip.Prefix) (*keyEntry, error) {
	id, ok := parseSecret(keyPrefix, secret)
	if !ok {
		return nil, m.failures.refuse(from)
	}
	sum := sha256.Sum256([]byte(secret))
	hash := sum[:]
	e, known := m.keys.get(id), verdictWrong
	if e != nil && e.row != nil {
		known = e.row.judge(hash, m.now())
		if e.fresh() && known == verdictGood {
			return e, nil
		}
		if e.fresh() && known == verdictEnded { // for good
			return nil, m.failures.refuse(from)
		}
	}
	if known == verdictWrong {
		leave, err := m.failures.queue(ctx, from)
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	e, err := m.readKey(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, m.failures.refuse(from)
	}
	if err != nil {
		return nil, fmt.Errorf("look a key up: %w", err)
	}
	if e.row.judge(hash, m.now()) != verdictGood {
		return nil, m.failures.refuse(from)
	}
	return e, nil
}

// Works tells whether a key is valid and carries a scope.
func (m *Meter) Works(ctx context.Context, secret, scope string) bool {
	e, err := m.lookUp(ctx, secret, nil)
	return err == nil && e.row.allows(scope)
}

// newRefusals counts the callers that were not let in, by the code of the answer.
func newRefusals(registry prometheus.Registerer) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tallystick_refusals_total", Help: "Requests refused before they were read, for want of a valid key, a scope or a rate, by code.",
	}, []string{"code"})
	for _, e := range []*fault.Error{errUnauthorized, errForbidden, errRateLimited, errBatchTooBig, errTooManyFailures} {
		c.WithLabelValues(e.Code) // zero is a figure, too
	}
	if registry != nil {
		registry.MustRegister(c)
	}
	return c
}

func (m *Meter) refused(err error) {
	var f *fault.Error
	if errors.As(err, &f) {
		m.refusals.WithLabelValues(f.Code).Inc()
	}
}

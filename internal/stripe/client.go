// Package stripe is the one door to Stripe: the only importer of stripe-go. It
// answers in plain types of its own and takes care of what stripe-go leaves to
// its callers: no redirects, no telemetry, bounded waits that honour the
// context, an idempotency key on every write, and lists that cannot panic.
package stripe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	stripego "github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/form"
)

// APIVersion is the version that stripe-go v76 pins. Webhook endpoints must be
// created with it.
const APIVersion = stripego.APIVersion

// Bounds of a call.
const (
	timeoutDefault = 20 * time.Second
	bodyMax        = 8 << 20
	readTries      = 4
	readWait       = time.Minute // beyond it a read gives up: its caller comes again by itself
	pageSize       = 100
	pagesMax       = 10_000
)

// Config is what a Client needs.
type Config struct {
	Key     string
	BaseURL string
	Timeout time.Duration // of one call; default 20 s
	Logger  *slog.Logger
}

// Client talks to one Stripe account.
type Client struct {
	backend stripego.Backend
	key     string
}

// New makes a Client. It does not call Stripe.
func New(c Config) *Client {
	timeout := c.Timeout
	if timeout == 0 {
		timeout = timeoutDefault
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 256 // as many calls as the outbox makes at once keep their connections
	transport.MaxIdleConns = 512
	return &Client{key: c.Key, backend: stripego.GetBackendWithConfig(stripego.APIBackend, &stripego.BackendConfig{
		URL: stripego.String(c.BaseURL),
		// stripe-go sleeps between tries without looking at the context: we retry.
		MaxNetworkRetries: stripego.Int64(0),
		EnableTelemetry:   stripego.Bool(false),
		LeveledLogger:     logger{c.Logger},
		HTTPClient: &http.Client{
			Timeout:   timeout,
			Transport: bounded{transport},
			// A followed redirect would turn a POST into a GET that "succeeds".
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})}
}

// bounded cuts answers that are larger than any of Stripe's.
type bounded struct{ next http.RoundTripper }

// RoundTrip bounds the body of the answer and makes an error of a redirect.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if response.StatusCode >= 300 && response.StatusCode < 400 {
		_ = response.Body.Close()
		return nil, fmt.Errorf("stripe answered with a redirect (%d), which is not followed", response.StatusCode)
	}
	response.Body = http.MaxBytesReader(nil, response.Body, bodyMax)
	return response, nil
}

// logger sends stripe-go's own lines to debug: callers log what matters once.
type logger struct{ l *slog.Logger }

func (l logger) line(text string, args []any) {
	if l.l != nil {
		l.l.Debug("stripe-go", slog.String("line", fmt.Sprintf(text, args...)))
	}
}

// Debugf drops the line: at this level stripe-go prints whole bodies.
func (l logger) Debugf(string, ...any) {}

// Infof logs for debugging.
func (l logger) Infof(text string, args ...any) { l.line(text, args) }

// Warnf logs for debugging.
func (l logger) Warnf(text string, args ...any) { l.line(text, args) }

// Errorf logs for debugging.
func (l logger) Errorf(text string, args ...any) { l.line(text, args) }

// page is an answer of Stripe with its members left as they came.
type page struct {
	stripego.APIResource
	HasMore bool              `json:"has_more"`
	Data    []json.RawMessage `json:"data"`
}

// one is an answer that is a single object.
type one struct {
	stripego.APIResource
}

// get reads one object into dst, trying again as long as it may help.
func (c *Client) get(ctx context.Context, path string, query url.Values, dst any) error {
	var answer one
	if err := c.read(ctx, path, query, &answer); err != nil {
		return err
	}
	if answer.LastResponse == nil {
		return fmt.Errorf("stripe %s: the answer is empty", path)
	}
	if err := json.Unmarshal(answer.LastResponse.RawJSON, dst); err != nil {
		return fmt.Errorf("stripe %s: %w", path, err)
	}
	return nil
}

// list calls each with every object of a list, in Stripe's order, page by page.
func (c *Client) list(ctx context.Context, path string, query url.Values, each func(json.RawMessage) error) error {
	query = cloneValues(query)
	query.Set("limit", strconv.Itoa(pageSize))
	for range pagesMax {
		var p page
		if err := c.read(ctx, path, query, &p); err != nil {
			return err
		}
		for _, raw := range p.Data {
			if err := each(raw); err != nil {
				return err
			}
		}
		if !p.HasMore || len(p.Data) == 0 {
			return nil
		}
		var last struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(p.Data[len(p.Data)-1], &last); err != nil || last.ID == "" || last.ID == query.Get("starting_after") {
			return fmt.Errorf("stripe %s: a page ends without a cursor", path)
		}
		query.Set("starting_after", last.ID)
	}
	return fmt.Errorf("stripe %s: more than %d pages", path, pagesMax)
}

// read is a GET that is tried again on whatever may pass, when Stripe says.
func (c *Client) read(ctx context.Context, path string, query url.Values, v stripego.LastResponseSetter) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := c.call(ctx, http.MethodGet, path, query, "", v)
		if err == nil {
			return struct{}{}, nil
		}
		wait := retryAfter(err)
		switch {
		case !passing(err) || wait > readWait:
			err = backoff.Permanent(err)
		case wait > 0:
			err = errors.Join(err, &backoff.RetryAfterError{Duration: wait})
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(readTries), backoff.WithBackOff(&backoff.ExponentialBackOff{
		InitialInterval: 250 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 4 * time.Second,
	}))
	if err != nil {
		return fmt.Errorf("stripe %s: %w", path, err)
	}
	return nil
}

// call is one exchange with Stripe.
func (c *Client) call(ctx context.Context, method, path string, values url.Values, key string, v stripego.LastResponseSetter) error {
	if err := spend(ctx); err != nil {
		return err
	}
	body := &form.Values{}
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names) // the same call has the same bytes
	for _, name := range names {
		for _, value := range values[name] {
			body.Add(name, value)
		}
	}
	params := &stripego.Params{Context: ctx}
	if key != "" {
		params.SetIdempotencyKey(key)
	}
	return c.backend.CallRaw(method, path, c.key, body, params, v)
}

// passing tells whether a read that failed may succeed when tried again.
func passing(err error) bool {
	var e *stripego.Error
	if errors.As(err, &e) {
		switch shouldRetry(e) {
		case "true":
			return true
		case "false":
			return false
		}
		return e.HTTPStatusCode == http.StatusTooManyRequests || e.HTTPStatusCode == http.StatusConflict || e.HTTPStatusCode >= 500
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrBudget)
}

// shouldRetry is Stripe's own word on another try: true, false or "". It knows
// more than the status does.
func shouldRetry(e *stripego.Error) string {
	if e.LastResponse == nil {
		return ""
	}
	return e.LastResponse.Header.Get("Stripe-Should-Retry")
}

// retryAfter is how long Stripe wants to be left alone; zero when it does not say.
func retryAfter(err error) time.Duration {
	var e *stripego.Error
	if !errors.As(err, &e) || e.LastResponse == nil {
		return 0
	}
	seconds, err := strconv.Atoi(e.LastResponse.Header.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > 3600 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// IsMissing tells whether Stripe says that the object does not exist.
func IsMissing(err error) bool {
	var e *stripego.Error
	return errors.As(err, &e) && (e.HTTPStatusCode == http.StatusNotFound || e.Code == stripego.ErrorCodeResourceMissing)
}

// IsRefused tells whether Stripe refuses the key.
func IsRefused(err error) bool {
	var e *stripego.Error
	return errors.As(err, &e) && (e.HTTPStatusCode == http.StatusUnauthorized || e.HTTPStatusCode == http.StatusForbidden)
}

// Ping makes the cheapest call there is, to learn whether Stripe answers and
// takes the key.
func (c *Client) Ping(ctx context.Context) error {
	var p page
	return c.read(ctx, "/v1/events", url.Values{"limit": {"1"}}, &p)
}

func cloneValues(values url.Values) url.Values {
	clone := url.Values{}
	for k, v := range values {
		clone[k] = slices.Clone(v)
	}
	return clone
}

package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"tallystick/api"
	"tallystick/internal/clock"
)

// Defaults of a Client.
const (
	patienceDefault  = 15 * time.Second // for one call with its repeats
	tryTimeDefault   = 5 * time.Second  // for one try of it
	openPatienceMax  = 2 * time.Second  // for a reservation where the call is made anyway
	idleConnsPerHost = 64
)

// Client talks to one tallystick server. It is safe for concurrent use.
type Client struct {
	base      string
	authorize func(*http.Request) // holds the key, so that printing a Client does not show it
	http      *http.Client
	patience  time.Duration
	tryTime   time.Duration
	now       func() time.Time
	trouble   func(error)
	spool     *Spool

	stop context.CancelFunc // ends the replay of the spool
	done sync.WaitGroup
}

// Option changes a default of New.
type Option func(*Client)

// WithHTTPClient has calls made by h. Its Timeout should be zero: WithTryTime bounds
// a try, and the caller's context all of them.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// WithPatience bounds one call with its repeats; 15 seconds by default. What is
// settled after the caller's context has ended is bounded by it, too.
func WithPatience(d time.Duration) Option { return func(c *Client) { c.patience = d } }

// WithTryTime bounds a single try of a call; 5 seconds by default.
func WithTryTime(d time.Duration) Option { return func(c *Client) { c.tryTime = d } }

// WithClock tells the time at which usage happened, where the client has to say it:
// with a spool. It must agree with the server's to five minutes.
func WithClock(now func() time.Time) Option { return func(c *Client) { c.now = now } }

// OnTrouble is told what nobody waits for: a settlement after a panic, a spool that
// cannot be sent because the key is refused, usage that a Transport could not account
// for. Without it, slog's default logger gets a warning. It must not block.
func OnTrouble(report func(error)) Option { return func(c *Client) { c.trouble = report } }

// FailOpen lets calls be made while tallystick is away: their usage goes to the spool
// and is sent when it is back. Without it such calls are refused with ErrUnavailable.
// A spool serves one Client; close the Client first, then the spool.
func FailOpen(spool *Spool) Option { return func(c *Client) { c.spool = spool } }

// New makes a client for the server at base, such as https://tallystick.internal:8321,
// with an API key of scope usage; read and admin for the calls that say so. It does
// not connect. Close it to stop what it does in the background.
func New(base, key string, options ...Option) (*Client, error) {
	at, err := url.Parse(base)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the server's address: %w", err)
	case at.Scheme != "http" && at.Scheme != "https", at.Host == "", at.RawQuery != "", at.Fragment != "", at.User != nil:
		return nil, fmt.Errorf("the server's address must be like https://host:port, and is %q", at.Redacted())
	case key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("the API key must be the text that tallystick keys create has printed")
	}
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		transport = &http.Transport{Proxy: http.ProxyFromEnvironment}
	}
	transport = transport.Clone()
	transport.MaxIdleConnsPerHost = idleConnsPerHost
	c := &Client{
		base:      strings.TrimSuffix(at.String(), "/"),
		authorize: func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+key) },
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the key goes to nobody else
		},
		patience: patienceDefault, tryTime: tryTimeDefault, now: clock.Now, trouble: warn,
	}
	for _, option := range options {
		option(c)
	}
	if c.patience <= 0 || c.tryTime <= 0 {
		return nil, errors.New("patience and try time must be more than zero")
	}
	c.startReplay()
	return c, nil
}

// Close stops the replay of the spool and lets idle connections go. Calls under way
// are not hurt.
func (c *Client) Close() error {
	if c.stop != nil {
		c.stop()
	}
	c.done.Wait()
	c.http.CloseIdleConnections()
	return nil
}

// warn is what becomes of trouble that nobody asked for.
func warn(err error) {
	slog.Warn("tallystick", "error", err) //nolint:sloglint // a library has no logger of its own, and silence would hide lost money
}

// NewID makes an id for a usage, a reservation or a grant: unique, and rising with time.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

// Int is a whole number as a quantity or an amount of credits.
func Int[N int | int32 | int64 | uint32](n N) api.Decimal {
	return api.Decimal(strconv.FormatInt(int64(n), 10))
}

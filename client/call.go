package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Waits between tries where the server does not say how long.
const (
	waitFirst = 100 * time.Millisecond
	waitMax   = 3 * time.Second
)

// answerBytesMax bounds an answer; the largest are lists of 500.
const answerBytesMax = 64 << 20

// request is one call of the API.
type request struct {
	method, path string
	body         any // nil: none; json.RawMessage: as it is
	answer       any // nil: not read
	patience     time.Duration
	ifMatch      string // an ETag; such a call is sent again only where it was refused for now
}

// send makes a call, again and again with the same bytes while its outcome is unknown
// or the server asks to wait. It tells whether the answer is that of an earlier
// request. What it cannot find out is ErrUnavailable.
func (c *Client) send(ctx context.Context, q request) (replayed bool, err error) {
	payload, err := q.payload()
	if err != nil {
		return false, err
	}
	if q.patience == 0 {
		q.patience = c.patience
	}
	ctx, cancel := context.WithTimeout(ctx, q.patience)
	defer cancel()
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.Multiplier, waits.MaxInterval = waitFirst, 2, waitMax
	var last error // which the library does not give when the context has ended
	replayed, err = backoff.Retry(ctx, func() (bool, error) {
		replayed, err := c.try(ctx, q, payload)
		var refusal *Error
		switch {
		case err == nil:
			return replayed, nil
		case errors.As(err, &refusal) && !refusal.Temporary():
			return false, backoff.Permanent(err)
		case last == nil || ctx.Err() == nil: // a try that the end of the context has cut says less than the one before
			last = err
		}
		if q.ifMatch != "" && (refusal == nil || refusal.Status != http.StatusTooManyRequests) {
			return false, backoff.Permanent(err) // it may have been done, and made its own ETag stale
		}
		if errors.As(err, &refusal) && refusal.retryAfter > 0 {
			return false, &backoff.RetryAfterError{Duration: refusal.retryAfter}
		}
		return false, err
	}, backoff.WithBackOff(waits), backoff.WithMaxElapsedTime(q.patience))
	var refusal *Error
	switch {
	case err == nil:
		return replayed, nil
	case errors.As(err, &refusal) && !refusal.Temporary():
		return false, err
	case last != nil && ctx.Err() != nil:
		return false, &unavailable{errors.Join(last, context.Cause(ctx))}
	case last != nil:
		return false, &unavailable{last}
	}
	return false, &unavailable{err}
}

func (q *request) payload() ([]byte, error) {
	switch body := q.body.(type) {
	case nil:
		return nil, nil
	case json.RawMessage:
		return body, nil
	}
	payload, err := json.Marshal(q.body)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return payload, nil
}

// try makes a call once. Its error is an *Error where there was an answer.
func (c *Client) try(ctx context.Context, q request, payload []byte) (replayed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.tryTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, q.method, c.base+q.path, bytes.NewReader(payload))
	if err != nil {
		return false, err
	}
	c.authorize(r)
	r.Header.Set("User-Agent", "tallystick-go")
	if payload != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if q.ifMatch != "" {
		r.Header.Set("If-Match", q.ifMatch)
	}
	response, err := c.http.Do(r)
	if err != nil {
		return false, err
	}
	defer func() { _ = response.Body.Close() }() // it was read, or its connection is not used again
	raw, err := io.ReadAll(io.LimitReader(response.Body, answerBytesMax))
	if err != nil {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode < 200 || response.StatusCode > 299 {
		refusal := problem(response.StatusCode, raw)
		refusal.retryAfter = c.retryAfter(response.Header.Get("Retry-After"))
		return false, refusal
	}
	if q.answer != nil {
		if err := json.Unmarshal(raw, q.answer); err != nil {
			return false, fmt.Errorf("read the answer: %w", err)
		}
	}
	return response.Header.Get("Idempotent-Replayed") == "true", nil
}

// retryAfter reads the header's two forms: seconds, or a date.
func (c *Client) retryAfter(header string) time.Duration {
	if seconds, err := strconv.Atoi(header); err == nil {
		return time.Duration(min(max(seconds, 0), 86400)) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(at.Sub(c.now()), 0)
	}
	return 0
}

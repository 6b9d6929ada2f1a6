package importer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"tallystick/api"
	"tallystick/internal/clock"
)

// Waits between tries.
const (
	waitFirst = 200 * time.Millisecond
	waitMax   = 15 * time.Second
)

// answerMax bounds what is read of an answer: a thousand results are far less.
const answerMax = 32 << 20

// errAgain says that the outcome is unknown, or that the server asks to wait.
type errAgain struct {
	cause error
	wait  time.Duration // at least
}

func (e *errAgain) Error() string { return e.cause.Error() }

// errAlone says that the server refused a request as a whole, for what one or
// more of its lines hold.
type errAlone struct{ problem []byte }

func (e *errAlone) Error() string { return "the request is refused: " + string(e.problem) }

// record sends the lines of a group until each has an outcome.
func (i *run) record(ctx context.Context, g *group) error {
	var pending []*item
	for k := range g.items {
		if g.items[k].outcome == outcomePending {
			pending = append(pending, &g.items[k])
		}
	}
	return i.settle(ctx, pending)
}

// settle sends lines again and again, those that still have no outcome. A refusal
// of all for the sake of some is narrowed down by halves.
func (i *run) settle(ctx context.Context, pending []*item) error {
	waits := &backoff.ExponentialBackOff{InitialInterval: waitFirst, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: waitMax}
	waits.Reset()
	for len(pending) > 0 {
		left, err := i.send(ctx, pending)
		var alone *errAlone
		var again *errAgain
		switch {
		case err == nil && len(left) == 0:
			return nil
		case err == nil && len(left) < len(pending):
			waits.Reset()
			again = &errAgain{cause: fmt.Errorf("it puts %d lines off", len(left))}
		case err == nil:
			again = &errAgain{cause: errors.New("it puts all lines off")}
		case errors.As(err, &alone) && len(pending) == 1:
			pending[0].reject(alone.problem)
			return nil
		case errors.As(err, &alone):
			half := len(pending) / 2
			if err := i.settle(ctx, pending[:half]); err != nil {
				return err
			}
			return i.settle(ctx, pending[half:])
		case errors.As(err, &again):
		default:
			return err
		}
		pending = left
		if err := i.wait(ctx, max(waits.NextBackOff(), again.wait), again.cause); err != nil {
			return err
		}
	}
	return nil
}

// wait waits before the next try, or gives up: when the server has done nothing
// for as long as patience lasts, or asks for more of it.
func (i *run) wait(ctx context.Context, d time.Duration, cause error) error {
	left := i.o.Patience - clock.Since(*i.answer.Load())
	if d >= left {
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, i.o.URL, cause)
	}
	if d > time.Second && i.noted.CompareAndSwap(false, true) {
		i.o.Note("%s does not take usage at the moment (%v); trying for %v more", i.o.URL, cause, left.Round(time.Second))
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ErrStopped
	}
}

// send makes one request and gives the lines that have no outcome yet.
func (i *run) send(ctx context.Context, items []*item) (left []*item, err error) {
	if ctx.Err() != nil {
		return items, ErrStopped
	}
	status, header, answer, err := i.post(ctx, items)
	if err != nil {
		return items, &errAgain{cause: err}
	}
	switch {
	case status == http.StatusOK:
		return i.outcomes(items, answer)
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		return items, &errAgain{cause: fmt.Errorf("it answers %d", status), wait: retryAfter(header)}
	case status == http.StatusBadRequest, status == http.StatusRequestEntityTooLarge, status == http.StatusUnprocessableEntity:
		if !json.Valid(answer) {
			answer = []byte(`{"status": ` + strconv.Itoa(status) + `}`)
		}
		return items, &errAlone{problem: answer}
	}
	var p api.Problem
	if json.Unmarshal(answer, &p) != nil || p.Code == "" {
		return items, useErrorf("%s answers %d; is it a tallystick?", i.o.URL, status)
	}
	return items, useErrorf("%s (%s)", p.Detail, p.Code)
}

// post sends lines in one request. It goes on for a moment when the context ends:
// an answer that is waited for need not be asked for again.
func (i *run) post(ctx context.Context, items []*item) (status int, header http.Header, answer []byte, err error) {
	path, media, open, end := "/v1/usage/batch", "application/json", `{"usage":[`, `]}`
	if i.o.CloudEvents {
		path, media, open, end = "/v1/events", "application/cloudevents-batch+json", `[`, `]`
	}
	body := bytes.NewBufferString(open)
	for k, it := range items {
		if k > 0 {
			body.WriteByte(',')
		}
		body.Write(it.text)
	}
	body.WriteString(end)
	request, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(graceTime, cancel) })()
	r, err := http.NewRequestWithContext(request, http.MethodPost, strings.TrimSuffix(i.o.URL, "/")+path, body)
	if err != nil {
		return 0, nil, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+i.o.Key)
	r.Header.Set("Content-Type", media)
	response, err := i.o.Client.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err = io.ReadAll(io.LimitReader(response.Body, answerMax))
	return response.StatusCode, response.Header, answer, err
}

// outcomes gives each line what the server says became of it. What it puts off,
// for want of room or because it cannot know, stays without an outcome.
func (i *run) outcomes(items []*item, answer []byte) (left []*item, err error) {
	var b api.UsageBatch
	if json.Unmarshal(answer, &b) != nil || len(b.Results) != len(items) {
		return items, &errAgain{cause: errors.New("it answers something else than one result for each line")}
	}
	for k, r := range b.Results {
		var p api.Problem
		switch r.Result {
		case "recorded":
			items[k].outcome = outcomeRecorded
			continue
		case "replayed":
			items[k].outcome = outcomeReplayed
			continue
		}
		if json.Unmarshal(r.Problem, &p) != nil || p.Status >= http.StatusInternalServerError || p.Status == http.StatusTooManyRequests {
			left = append(left, items[k])
			continue
		}
		items[k].reject(r.Problem)
	}
	if len(left) < len(items) {
		i.answered()
		i.noted.Store(false)
	}
	return left, nil
}

// retryAfter reads how long the server asks to wait. A date is not understood and
// means nothing: no tallystick sends one.
func retryAfter(header http.Header) time.Duration {
	seconds, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, 24*3600)) * time.Second
}

package meter

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
)

// Bounds of a lane.
const (
	laneDepth = 2048 // usages that may wait; beyond it callers are told to slow down
	batchMax  = 1024 // usages in one transaction: a whole batch of the API
)

// Refusals of a lane.
var (
	errOverloaded = &fault.Error{Kind: fault.KindRateLimited, Code: "overloaded", Public: "more usage is arriving than can be recorded; slow down, then send the same request with the same id again", RetryAfter: time.Second}
	errClosing    = &fault.Error{Kind: fault.KindUnavailable, Code: "unavailable", Public: "this process is stopping; send the same request with the same id again", RetryAfter: time.Second}
)

// job is one usage on its way through a lane.
type job struct {
	usage  usage
	result result
	done   chan struct{}
}

// result is what became of a usage.
type result struct {
	record   record
	replayed bool
	err      error
	stale    bool // an event was read by a meter's definition that is none any more
}

// lane commits usage in groups. It waits for nothing: a lone usage is a group of
// one, and a busy lane's groups grow by themselves.
type lane struct {
	m  *Meter
	in chan *job
}

// submit hands usage to its lanes and waits for all results. When ctx ends
// first, what is not yet answered is unknown to the caller.
func (m *Meter) submit(ctx context.Context, usages []usage) []result {
	jobs := make([]*job, len(usages))
	results := make([]result, len(usages))
	for i, u := range usages {
		j := &job{usage: u, done: make(chan struct{})}
		if err := m.enqueue(j); err != nil {
			results[i].err = err
			continue
		}
		jobs[i] = j
	}
	for i, j := range jobs {
		if j == nil {
			continue
		}
		select {
		case <-j.done:
			results[i] = j.result
		case <-ctx.Done():
			results[i].err = fault.ErrUnavailable.With(ctx.Err())
		}
	}
	return results
}

// enqueue holds the lock while it looks and puts: what it puts in, it puts in
// before the lanes are told to drain, however long it was held up in between.
func (m *Meter) enqueue(j *job) error {
	m.closing.RLock()
	defer m.closing.RUnlock()
	select {
	case <-m.closed:
		return errClosing
	default:
	}
	select {
	case m.laneOf(j.usage.ref).in <- j:
		return nil
	default:
		return errOverloaded
	}
}

func (l *lane) run() {
	for {
		select {
		case j := <-l.in:
			l.commit(l.gather(j))
		case <-l.m.closed:
			l.drain()
			return
		}
	}
}

// drain commits what was accepted before the meter was closed. Nothing comes
// behind it, because enqueue has the lock.
func (l *lane) drain() {
	for {
		select {
		case j := <-l.in:
			l.commit(l.gather(j))
		default:
			return
		}
	}
}

// gather takes what has arrived, in order, up to the bound.
func (l *lane) gather(first *job) []*job {
	jobs := []*job{first}
	for len(jobs) < batchMax {
		select {
		case j := <-l.in:
			jobs = append(jobs, j)
		default:
			return jobs
		}
	}
	return jobs
}

// commit records a group and answers each of its jobs. Postgres having refused
// the group for one member's sake, each is tried alone, so that it hurts no
// other. An unknown outcome is settled by trying once more: usage that was
// committed is found by its key and replayed.
func (l *lane) commit(jobs []*job) {
	ctx := context.Background() //nolint:forbidigo // a group outlives any one caller's context, and is bounded by the pool
	err := l.try(ctx, jobs)
	if errors.Is(err, fault.ErrUnavailable) {
		err = l.try(ctx, jobs)
	}
	if err != nil && !errors.Is(err, fault.ErrUnavailable) && len(jobs) > 1 {
		for _, j := range jobs {
			l.commit([]*job{j})
		}
		return
	}
	for _, j := range jobs {
		if err != nil {
			j.result = result{err: err}
		}
		close(j.done)
	}
	if err != nil {
		l.m.logger.Error("usage was not recorded", slog.Int("usages", len(jobs)), slog.String("error", err.Error()))
	}
}

func (l *lane) try(ctx context.Context, jobs []*job) error {
	usages := make([]usage, len(jobs))
	for i, j := range jobs {
		usages[i] = j.usage
	}
	var results []result
	err := l.m.keyed.InTx(ctx, func(tx *sqlx.Tx) (err error) {
		results, err = l.m.record(ctx, tx, usages)
		return err
	})
	if err != nil {
		return err
	}
	for i, j := range jobs {
		j.result = results[i]
	}
	return nil
}

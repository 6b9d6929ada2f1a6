package meter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/ledger"
)

// Bounds of a lane.
const (
	laneDepth = 2048 // jobs that may wait; beyond it callers are told to slow down
	batchMax  = 1024 // jobs in one transaction: a whole batch of the API
)

// Refusals of a lane.
var (
	errOverloaded = &fault.Error{Kind: fault.KindRateLimited, Code: "overloaded", Public: "more requests are arriving than can be recorded; slow down, then send the same request with the same id again", RetryAfter: time.Second}
	errClosing    = &fault.Error{Kind: fault.KindUnavailable, Code: "unavailable", Public: "this process is stopping; send the same request with the same id again", RetryAfter: time.Second}
)

// job is work on its way through a lane.
type job struct {
	work work
	err  error
	done chan struct{}
}

// result is what became of a usage.
type result struct {
	record   record
	replayed bool
	err      error
	stale    bool // an event was read by a meter's definition that is none any more
}

// lane commits work in groups. It waits for nothing: lone work is a group of
// one, and a busy lane's groups grow by themselves.
type lane struct {
	m      *Meter
	in     chan *job
	memory memory
}

// submit hands usage to its lanes and waits for all results. When ctx ends
// first, what is not yet answered is unknown to the caller.
func (m *Meter) submit(ctx context.Context, usages []usage) []result {
	works := make([]charge, len(usages))
	jobs := make([]*job, len(usages))
	results := make([]result, len(usages))
	for i, u := range usages {
		works[i].usage = u
		jobs[i], results[i].err = m.enqueue(&works[i])
	}
	for i, j := range jobs {
		if j == nil {
			continue
		}
		if err := j.wait(ctx); err != nil {
			results[i].err = err
		} else {
			results[i] = works[i].result
		}
	}
	return results
}

// do hands work to its lane and waits until it is done.
func (m *Meter) do(ctx context.Context, w work) error {
	j, err := m.enqueue(w)
	if err != nil {
		return err
	}
	return j.wait(ctx)
}

// wait gives the error of the job's group. While there is one, the work is not
// to be looked at: the lane may still be at it.
func (j *job) wait(ctx context.Context) error {
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return fault.ErrUnavailable.With(ctx.Err())
	}
}

// enqueue holds the lock while it looks and puts: what it puts in, it puts in
// before the lanes are told to drain, however long it was held up in between.
func (m *Meter) enqueue(w work) (*job, error) {
	j := &job{work: w, done: make(chan struct{})}
	m.closing.RLock()
	defer m.closing.RUnlock()
	select {
	case <-m.closed:
		return nil, errClosing
	default:
	}
	select {
	case m.laneOf(w.ref()).in <- j:
		return j, nil
	default:
		return nil, errOverloaded
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

// commit does the work of a group and answers each of its jobs. Postgres having
// refused the group for one member's sake, each is tried alone, so that it hurts
// no other; where somebody sits on the lock of an account, each account is tried
// by itself. An unknown outcome is settled by trying once more: what was
// committed is found by its key and replayed.
func (l *lane) commit(jobs []*job) {
	ctx := context.Background() //nolint:forbidigo // a group outlives any one caller's context, and is bounded by the pool
	err := l.try(ctx, jobs)
	var parts [][]*job
	switch {
	case pg.IsCode(err, pg.CodeLockNotAvailable):
		parts = byAccount(jobs)
	case errors.Is(err, fault.ErrUnavailable):
		err = l.try(ctx, jobs)
	}
	if err != nil && !errors.Is(err, fault.ErrUnavailable) {
		parts = slices.Collect(slices.Chunk(jobs, 1))
	}
	if len(parts) > 1 {
		for _, part := range parts {
			l.commit(part)
		}
		return
	}
	for _, j := range jobs {
		j.err = err
		close(j.done)
	}
	if err != nil {
		l.m.logger.Error("work on accounts was not recorded", slog.Int("jobs", len(jobs)), slog.String("error", err.Error()))
	}
}

// try does the work in one transaction. What the lane remembers of the accounts is
// tried first; where that is not so any more, everything is read and decided anew.
// A panic is an error: the transaction is rolled back, and the lane goes on for
// everybody else.
func (l *lane) try(ctx context.Context, jobs []*job) (err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("panic: %v\n%s", reason, debug.Stack())
		}
	}()
	works := make([]work, len(jobs))
	for i, j := range jobs {
		works[i] = j.work
	}
	g := l.recall(works)
	if g != nil && g.lone() {
		same, err := g.shortcut(ctx, works)
		if same || err != nil {
			return l.after(g, err)
		}
		l.memory.mistaken()
		g = nil
	}
	recalled := g
	once := func(tx *sqlx.Tx) (err error) {
		if g, recalled = recalled, nil; g != nil { // what is recalled is good for one time
			if same, err := g.transact(ctx, tx, works); same || err != nil {
				return err
			}
			l.memory.mistaken()
		}
		g = l.m.group()
		_, err = g.transact(ctx, tx, works)
		return err
	}
	if err = l.m.keyed.InTx(ctx, once); (pg.IsCode(err, codeMistaken) || errors.Is(err, errMistaken)) && g.recalled {
		l.memory.mistaken()
		err = l.m.keyed.InTx(ctx, once)
	}
	return l.after(g, err)
}

// after remembers what a group has left, if it was committed.
func (l *lane) after(g *group, err error) error {
	if err == nil {
		l.memory.keep(g)
	}
	return err
}

// byAccount parts jobs by their accounts, each one's in the order of arrival.
func byAccount(jobs []*job) (parts [][]*job) {
	at := map[ledger.Ref]int{}
	for _, j := range jobs {
		i, ok := at[j.work.ref()]
		if !ok {
			i = len(parts)
			at[j.work.ref()], parts = i, append(parts, nil)
		}
		parts[i] = append(parts[i], j)
	}
	return parts
}

package app

import (
	"context"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/internal/stripe"
	"tallystick/outbox"
)

// process is one process: it dies with its connections, and what it was about to do
// with them stays undone.
type process struct {
	*outbox.Outbox
	db   *pg.DB
	c    *campaign
	next usageSender
	dead atomic.Bool
}

func (c *campaign) process() *process {
	c.t.Helper()
	client := stripe.New(stripe.Config{Key: c.sim.Key, BaseURL: c.sim.URL, Timeout: 5 * time.Second})
	p := &process{db: pgtest.Open(c.t, c.dsn, pg.Options{ConnectionsMax: 3}), c: c, next: usageSender{client}}
	p.Outbox = outbox.New(outbox.Config{
		DB: p.db, Now: c.clock.Now, Usage: p, Reader: hasty{&usageReader{client: client}}, Logger: slog.New(slog.DiscardHandler), Settle: 10 * time.Second,
		Rate: 1_000_000, MeterRate: 1_000_000, Sends: 4,
	})
	return p
}

// hasty gives a read less time than its client would take to try it again, so that
// outages are over sooner.
type hasty struct{ *usageReader }

const haste = 100 * time.Millisecond

// Items is outbox.UsageReader.
func (h hasty) Items(ctx context.Context, customer string) ([]outbox.Item, error) {
	ctx, cancel := context.WithTimeout(ctx, haste)
	defer cancel()
	return h.usageReader.Items(ctx, customer)
}

// Counted is outbox.UsageReader.
func (h hasty) Counted(ctx context.Context, eventName, customer string, from, to time.Time) (credit.Quantity, error) {
	ctx, cancel := context.WithTimeout(ctx, haste)
	defer cancel()
	return h.usageReader.Counted(ctx, eventName, customer, from, to)
}

// dies ends the calling goroutine as the end of its process would.
func (p *process) dies() {
	p.dead.Store(true)
	_ = p.db.Close()
	runtime.Goexit()
}

// sends makes a call, or dies before or after it.
func (p *process) sends(key string, do func() outbox.Result) outbox.Result {
	strikes := p.c.crash.Load() > 0 && p.c.crash.Add(-1) == 0
	if p.dead.Load() || (strikes && !p.c.after.Load()) {
		p.dies()
	}
	p.c.mu.Lock()
	p.c.flying[key]++
	if p.c.flying[key] > 1 {
		p.c.t.Errorf("%d calls of %s are under way", p.c.flying[key], key)
	}
	p.c.mu.Unlock()
	result := do()
	p.c.mu.Lock()
	p.c.flying[key]--
	p.c.mu.Unlock()
	if strikes {
		p.dies()
	}
	return result
}

// SendMeterEvent is outbox.UsageSender.
func (p *process) SendMeterEvent(ctx context.Context, e outbox.MeterEvent) outbox.Result {
	return p.sends(e.EventName+e.Customer, func() outbox.Result { return p.next.SendMeterEvent(ctx, e) })
}

// SendUsageRecord is outbox.UsageSender.
func (p *process) SendUsageRecord(ctx context.Context, u outbox.UsageRecord) outbox.Result {
	return p.sends(u.Item, func() outbox.Result { return p.next.SendUsageRecord(ctx, u) })
}

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"tallystick/internal/clock"
)

// voiders is how many clients take usage back while others record it.
const voiders = 4

// voidsRow is the name of the row that measureVoids measures.
const voidsRow = "hot account, voids beside 64 connections of usage"

// measureVoids measures how long a void takes on an account whose lock is never
// free: it has a transaction of its own, and waits for the lanes' as they for it.
func (b *bench) measureVoids(ctx context.Context) error {
	b.options.Note("measuring %s", voidsRow)
	noise := make(chan error, 1)
	go func() {
		_, err := b.load.run(ctx, b.server, shape{accounts: 1, batch: 1}, 64, b.options.Each)
		noise <- err
	}()
	m := &measurement{}
	type void struct {
		m   measurement
		err error
	}
	done := make(chan void, voiders)
	start := clock.Tick()
	for range voiders {
		go func() {
			var v void
			for v.err == nil && clock.Since(start) < b.options.Each {
				v.err = b.load.void(ctx, b.server, &v.m)
			}
			done <- v
		}()
	}
	var errs []error
	for range voiders {
		v := <-done
		m.each, errs = append(m.each, v.m.each...), append(errs, v.err)
	}
	m.took, m.usages = clock.Since(start), int64(len(m.each))
	slices.Sort(m.each)
	b.result.Rows = append(b.result.Rows, Row{Name: voidsRow, Connections: voiders, PerSecond: m.perSecond(), P50: m.percentile(50), P99: m.percentile(99)})
	return errors.Join(append(errs, <-noise)...)
}

// void records a usage of the hot account and takes it back, and notes how long
// the second took.
func (g *generator) void(ctx context.Context, c *child, m *measurement) error {
	n := g.ids.Add(1) - 1
	if err := g.post(ctx, c, "/v1/usage", appendUsage(nil, shape{accounts: 1}, n)); err != nil {
		return err
	}
	sent := clock.Tick()
	err := g.post(ctx, c, "/v1/usage/bench-usage-"+strconv.FormatInt(n, 10)+"/void", fmt.Appendf(nil, `{"account":%q,"reason":"measured"}`, accountName(0)))
	m.each = append(m.each, clock.Since(sent))
	return err
}

// Package loop drives background workers: it repeats a step, waits when there
// is nothing to do, waits longer after failures, and stops with its context.
package loop

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

// doublings bounds how often the wait after failures doubles.
const doublings = 4

// Step does a bounded piece of work and says whether more is waiting.
type Step func(ctx context.Context) (more bool, err error)

// Run calls step until ctx is done. A step that has more runs again at once; an
// idle or failed one waits, and each further failure doubles the wait, up to
// sixteen times idle. A panic in step is an error to onErr and never ends the
// loop: a worker that died silently would be a leak nobody sees.
func Run(ctx context.Context, idle time.Duration, step Step, onErr func(error)) {
	failures := 0
	for ctx.Err() == nil {
		more, err := Once(ctx, step)
		switch {
		case err != nil && ctx.Err() != nil:
			return
		case err != nil:
			onErr(err)
			wait(ctx, idle<<failures)
			failures = min(failures+1, doublings)
			continue
		case !more:
			wait(ctx, idle)
		}
		failures = 0
	}
}

// Once calls step and turns a panic into an error with its stack.
func Once(ctx context.Context, step Step) (more bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			more, err = false, fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return step(ctx)
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

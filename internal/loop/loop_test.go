package loop_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"tallystick/internal/loop"
)

func TestRunWaitsLongerAfterEachFailureAndRecovers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		var at []time.Duration
		step := func(context.Context) (bool, error) {
			at = append(at, time.Since(start))
			switch len(at) {
			case 1, 2:
				return false, errors.New("away")
			case 3:
				panic("worse")
			case 4:
				return true, nil // more work: again at once, and the back-off is forgotten
			case 5:
				return false, nil
			}
			cancel()
			return false, nil
		}
		failures := 0
		loop.Run(ctx, 2*time.Second, step, func(error) { failures++ })
		want := []time.Duration{0, 2 * time.Second, 6 * time.Second, 14 * time.Second, 14 * time.Second, 16 * time.Second}
		if !slices.Equal(at, want) {
			t.Errorf("steps ran at %v, want %v", at, want)
		}
		if failures != 3 {
			t.Errorf("onErr was called %d times, want 3", failures)
		}
	})
}

func TestRunBoundsTheWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var last time.Time
		var gap time.Duration
		n := 0
		step := func(context.Context) (bool, error) {
			if n > 0 {
				gap = time.Since(last)
			}
			last = time.Now()
			if n++; n == 12 {
				cancel()
			}
			return false, errors.New("away")
		}
		loop.Run(ctx, time.Second, step, func(error) {})
		if gap != 16*time.Second {
			t.Errorf("the twelfth step came %v after the eleventh, want 16s", gap)
		}
	})
}

package outbox_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tallystick/internal/credit"
	"tallystick/outbox"
)

// remote is a Stripe as simple as can be: it counts what it executes, and knows an
// identifier again for a day.
type remote struct {
	random *rand.Rand
	d      *desk
	known  map[string]time.Time
	total  credit.Quantity
	calm   bool
}

func (r *remote) answer(e outbox.MeterEvent) outbox.Result {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	trouble := r.random.IntN(8)
	if r.calm {
		trouble = 7
	}
	switch trouble {
	case 0:
		return outbox.Result{Reason: "cut before it was executed"}
	case 1:
		return outbox.Result{Outcome: outbox.OutcomeThrottled, RetryAfter: time.Duration(r.random.IntN(100)) * time.Second}
	case 2:
		return outbox.Result{Outcome: outbox.OutcomeBlocked, Reason: "401"}
	}
	if at, ok := r.known[e.Identifier]; !ok || r.d.now.Sub(at) > 24*time.Hour {
		r.total += e.Value
		r.known[e.Identifier] = r.d.now
	}
	if trouble <= 4 {
		return outbox.Result{Reason: "cut after it was executed"}
	}
	return outbox.Result{Outcome: outbox.OutcomeDelivered}
}

// TestStripeNeverHasMoreThanWeAndInTheEndTheSame plays random stories of usage,
// trouble and time, with two processes, over outages of less than a day.
func TestStripeNeverHasMoreThanWeAndInTheEndTheSame(t *testing.T) {
	t.Parallel()
	for range 4 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			d := opened(t, "a", "b")
			stripe := &remote{random: random, d: d, known: map[string]time.Time{}}
			d.answer = stripe.answer
			workers := []*outbox.Outbox{d.Outbox, d.another()}
			var staged credit.Quantity
			for range 150 {
				switch random.IntN(3) {
				case 0:
					n := int64(1 + random.IntN(9))
					late := d.clock().Sub(start) - time.Duration(random.IntN(300))*time.Second
					d.stage([]string{"a", "b"}[random.IntN(2)], "call", n, late)
					staged += credit.Units(n)
				case 1:
					if _, err := workers[random.IntN(2)].UsageStep(t.Context()); err != nil {
						t.Fatal(err)
					}
				default:
					d.pass(time.Duration(random.IntN(300)) * time.Second)
				}
				if stripe.total > staged {
					t.Fatalf("Stripe has %s, we have %s", stripe.total, staged)
				}
			}
			stripe.calm = true
			for range 40 {
				d.pass(11 * time.Minute)
				d.step()
			}
			if stripe.total != staged {
				t.Errorf("in the end Stripe has %s, we have %s: %+v", stripe.total, staged, d.rows())
			}
		})
	}
}

package oracle

import (
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	seeds = flag.Int("seeds", 0, "how many fresh seeds to play, with 10,000 calls each")
	seed  = flag.Uint64("seed", 0, "the one seed to play, with 10,000 calls")
)

// TestStories plays stories. Each failure names its seed: -seed plays it again.
func TestStories(t *testing.T) {
	t.Parallel()
	chosen, calls := []uint64{1, 2, uint64(rand.Uint32())}, 2500
	switch {
	case *seed != 0:
		chosen, calls = []uint64{*seed}, 10_000
	case *seeds > 0:
		chosen, calls = nil, 10_000
		for range *seeds {
			chosen = append(chosen, uint64(rand.Uint32()))
		}
	}
	cells := make(chan map[string]int, len(chosen))
	t.Run("all", func(t *testing.T) {
		for _, seed := range chosen {
			t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
				t.Parallel()
				s := newStory(t, seed)
				s.play(calls)
				s.report(seed)
				cells <- s.oracle.cells
			})
		}
	})
	close(cells)
	covered := map[string]int{}
	for c := range cells {
		for cell, n := range c {
			covered[cell] += n
		}
	}
	if !t.Failed() {
		judgeCoverage(t, covered, len(chosen) >= enoughSeeds)
	}
}

// happenings are the events that the stories have to bring about.
var happenings = []string{
	"billing.meter.created", "billing.meter.deactivated", "billing.meter.reactivated", "billing.meter.updated", "charge.captured", "charge.dispute.closed",
	"charge.dispute.created", "charge.dispute.funds_reinstated", "charge.dispute.funds_withdrawn", "charge.dispute.updated", "charge.expired", "charge.failed",
	"charge.pending", "charge.refund.updated", "charge.refunded", "charge.succeeded", "charge.updated", "checkout.session.async_payment_failed",
	"checkout.session.async_payment_succeeded", "checkout.session.completed", "checkout.session.expired", "customer.created", "customer.deleted", "customer.updated",
	"payment_intent.amount_capturable_updated", "payment_intent.canceled", "payment_intent.created", "payment_intent.payment_failed", "payment_intent.processing",
	"payment_intent.requires_action", "payment_intent.succeeded", "payment_method.attached", "payment_method.detached", "payment_method.updated", "price.created",
	"price.updated", "product.created", "product.updated", "refund.created", "refund.failed", "refund.updated",
}

// enoughSeeds is from how many on the stories have to meet with everything.
const enoughSeeds = 10

// judgeCoverage wants that the stories were worth it: each endpoint was executed and
// refused, each fault struck, and neither success nor failure was rare.
func judgeCoverage(t *testing.T, covered map[string]int, all bool) {
	t.Helper()
	var executed, refusals int
	for _, call := range slices.Sorted(maps.Keys(newOracle().rules)) {
		yes, no := covered[call+" executed"], covered[call+" refused"]
		t.Logf("%6d executed %6d refused  %s", yes, no, call)
		if all && (yes == 0 || (no == 0 && !strings.HasSuffix(call, "/succeed"))) {
			t.Errorf("%s was executed %d times and refused %d times: the stories miss something", call, yes, no)
		}
		executed, refusals = executed+yes, refusals+no
	}
	for _, fault := range slices.Concat(struckBefore, struckAfter) {
		if t.Logf("%6d struck by %s", covered["fault "+fault], fault); all && covered["fault "+fault] == 0 {
			t.Errorf("no call was struck by %s", fault)
		}
	}
	for _, kind := range happenings {
		if t.Logf("%6d times %s", covered["event "+kind], kind); all && covered["event "+kind] == 0 {
			t.Errorf("there never was a %s", kind)
		}
	}
	if t.Logf("%6d restarts", covered["restart"]); all && covered["restart"] == 0 {
		t.Error("the simulator was never started again")
	}
	share := 100 * executed / (executed + refusals)
	t.Logf("%d keys used again; %d %% of the calls that reached their endpoints were executed", covered["key used again"], share)
	if share < 50 || share > 95 || covered["key used again"] == 0 {
		t.Errorf("%d %% of the calls were executed: the stories are too smooth or too rough", share)
	}
}

package billingoracle

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
	seeds = flag.Int("seeds", 0, "how many fresh seeds to play, with 2,000 steps each")
	seed  = flag.Uint64("seed", 0, "the one seed to play, with 2,000 steps")
)

// TestStories plays stories. Each failure names its seed: -seed plays it again.
func TestStories(t *testing.T) {
	t.Parallel()
	chosen, steps := []uint64{1, 2, 4, uint64(rand.Uint32())}, 300
	switch {
	case *seed != 0:
		chosen, steps = []uint64{*seed}, 2000
	case *seeds > 0:
		chosen, steps = nil, 2000
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
				s.play(steps)
				s.report(seed)
				cells <- s.book.cells
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

// enoughSeeds is from how many on the stories have to meet with everything.
const enoughSeeds = 20

// judgeCoverage wants that the stories were worth it.
func judgeCoverage(t *testing.T, covered map[string]int, all bool) {
	t.Helper()
	executed, refused := 0, 0
	for _, call := range slices.Sorted(maps.Keys(rules())) {
		yes, no := covered[call+" executed"], covered[call+" refused"]
		t.Logf("%6d executed %6d refused  %s", yes, no, call)
		if all && (yes == 0 || no == 0 && !strings.HasPrefix(call, "GET")) {
			t.Errorf("%s was executed %d times and refused %d times: the stories miss something", call, yes, no)
		}
		if !strings.HasPrefix(call, "GET") {
			executed, refused = executed+yes, refused+no
		}
	}
	for _, cell := range slices.Sorted(maps.Keys(covered)) {
		if !strings.HasSuffix(cell, " executed") && !strings.HasSuffix(cell, " refused") {
			t.Logf("%6d %s", covered[cell], cell)
		}
	}
	for _, cell := range []string{
		"fault drop_before", "fault drop_after", "fault error_500_after", "fault rate_limit", "key again", "invoice subscription_create paid", "invoice subscription_create void",
		"invoice subscription_cycle draft", "invoice subscription_cycle open", "invoice subscription_cycle paid", "invoice subscription_cycle uncollectible",
		"invoice subscription_update paid", "invoice manual paid", "subscription trialing", "subscription past_due", "subscription canceled", "subscription incomplete_expired",
		"tries 2", "tries 4", "late usage", "usage sum", "usage max", "usage last_during_period", "usage last_ever", "on a test clock", "on the simulator's clock",
	} {
		if all && covered[cell] == 0 {
			t.Errorf("the stories miss %s", cell)
		}
	}
	if share := 100 * refused / (executed + refused); share < 4 || share > 25 {
		t.Errorf("%d %% of the calls were refused: the stories are too smooth or too rough", share)
	}
}

package billingoracle

import (
	"flag"
	"math/rand/v2"
	"strconv"
	"testing"
)

var (
	seeds = flag.Int("seeds", 0, "how many fresh seeds to play, with 2,000 steps each")
	seed  = flag.Uint64("seed", 0, "the one seed to play, with 2,000 steps")
)

// TestStories plays stories. Each failure names its seed: -seed plays it again.
func TestStories(t *testing.T) {
	t.Parallel()
	chosen, steps := []uint64{1, 2, 3, uint64(rand.Uint32())}, 500
	switch {
	case *seed != 0:
		chosen, steps = []uint64{*seed}, 2000
	case *seeds > 0:
		chosen, steps = nil, 2000
		for range *seeds {
			chosen = append(chosen, uint64(rand.Uint32()))
		}
	}
	for _, seed := range chosen {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			s := newStory(t, seed)
			s.play(steps)
			s.report(seed)
			if testing.Verbose() {
				t.Log(s.book.cells)
			}
		})
	}
}

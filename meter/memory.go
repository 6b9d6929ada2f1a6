package meter

import (
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"tallystick/ledger"
)

// Bounds of a lane's memory.
const (
	rememberedMax = 4096 // accounts
	grantsMax     = 64   // of an account that is remembered: comparing them must stay cheap
	mistakesMax   = 6    // mistakes in a row that count; after n of them, 2ⁿ-1 groups are not recalled
)

// codeMistaken is the SQLSTATE of meter_save for what is only in part as known.
const codeMistaken = "TS001"

// memory is what a lane knows of accounts: how its own last groups have left them.
// It spares a group all reading but of reservations. Whether it is still so is
// compared behind the accounts' locks, by the statement that writes; so other
// processes and other writers may do to an account what they like, and cost is all
// that they change. What a group takes out of it comes back when the group has committed.
type memory struct {
	accounts *simplelru.LRU[ledger.Ref, *ledger.State]
	mistakes int // in a row
	pause    int // groups that are still not to be recalled
}

func newMemory() memory {
	accounts, _ := simplelru.NewLRU[ledger.Ref, *ledger.State](rememberedMax, nil) // fails for sizes below one only
	return memory{accounts: accounts}
}

// recall makes a group out of what is remembered of its accounts and meters; nil
// when not all is, or when there is work that reads other things behind the locks.
func (l *lane) recall(works []work) *group {
	m := &l.memory
	if m.pause > 0 {
		m.pause--
		return nil
	}
	n := needs{meters: map[string]bool{}}
	for _, w := range works {
		if e, ok := w.(*ending); ok && !e.simple || !m.accounts.Contains(w.ref()) {
			return nil
		}
		w.needs(&n)
	}
	g := l.m.group()
	if g.meters = l.m.catalog.all(n.meters); g.meters == nil {
		return nil
	}
	var states []*ledger.State
	for _, w := range works {
		if s, ok := m.accounts.Peek(w.ref()); ok {
			m.accounts.Remove(w.ref())
			states = append(states, s)
		}
	}
	g.recalled, g.batch, g.known, g.held = true, ledger.Resume(states), map[usageKey]*record{}, n.reservations
	return g
}

// keep remembers how a committed group has left its accounts.
func (m *memory) keep(g *group) {
	if g.recalled {
		m.mistakes = 0
	}
	states, unknown := g.batch.Left()
	for _, ref := range unknown {
		m.accounts.Remove(ref)
	}
	for _, s := range states {
		if len(s.Grants) <= grantsMax {
			m.accounts.Add(s.Ref, s)
		} else {
			m.accounts.Remove(s.Ref)
		}
	}
}

// mistaken makes the lane recall less often: somebody else is at work on its
// accounts, and a group that was recalled for nothing has cost a trip.
func (m *memory) mistaken() {
	m.mistakes = min(m.mistakes+1, mistakesMax)
	m.pause = 1<<m.mistakes - 1
}

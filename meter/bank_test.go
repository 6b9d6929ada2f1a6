package meter_test

import (
	"slices"
	"strings"
	"time"
)

// bank is what an account must do, written down as plainly as possible, in whole
// credits times a scale: purses that are spent in an order and go off, what is
// held out of which purse, and what is owed.
type bank struct {
	now    time.Time
	purses []*purse
	holds  map[string]*bankHold
	debt   int
	said   map[string]sentence // by call and id
}

type purse struct {
	id      string
	left    int
	expires *time.Time
	made    time.Time
}

func (p *purse) due(at time.Time) bool { return p.expires != nil && !p.expires.After(at) }

type bankHold struct {
	state   string
	parts   []bankPart
	expires time.Time
	reason  string
}

type bankPart struct {
	from   *purse
	amount int
}

type sentence struct{ content, answer string }

func (b *bank) available() (sum int) {
	for _, p := range b.purses {
		if !p.due(b.now) {
			sum += p.left
		}
	}
	return sum
}

func (b *bank) held() (sum int) {
	for _, h := range b.holds {
		if h.state == "open" || h.state == "in_doubt" {
			sum += total(h.parts)
		}
	}
	return sum
}

func total(parts []bankPart) (sum int) {
	for _, p := range parts {
		sum += p.amount
	}
	return sum
}

// goOff empties the purses that are due, as each change of an account does first.
func (b *bank) goOff() {
	for _, p := range b.purses {
		if p.due(b.now) {
			p.left = 0
		}
	}
}

func (b *bank) take(amount int) (parts []bankPart) {
	slices.SortFunc(b.purses, func(x, y *purse) int {
		switch {
		case x.expires == nil && y.expires != nil:
			return 1
		case x.expires != nil && y.expires == nil:
			return -1
		case x.expires != nil && !x.expires.Equal(*y.expires):
			return x.expires.Compare(*y.expires)
		case !x.made.Equal(y.made):
			return x.made.Compare(y.made)
		}
		return strings.Compare(x.id, y.id)
	})
	for _, p := range b.purses {
		if part := min(p.left, amount); part > 0 {
			p.left, amount = p.left-part, amount-part
			parts = append(parts, bankPart{p, part})
		}
	}
	return parts
}

func (b *bank) give(id string, amount int, expires *time.Time) {
	b.goOff()
	repaid := min(b.debt, amount)
	b.debt -= repaid
	b.purses = append(b.purses, &purse{id, amount - repaid, expires, b.now})
}

// giveBack returns what was held: not into purses that are due; debt is paid first.
func (b *bank) giveBack(parts []bankPart) {
	var back []bankPart
	for _, p := range parts {
		if !p.from.due(b.now) {
			p.from.left += p.amount
			back = append(back, p)
		}
	}
	repaid := min(b.debt, total(back))
	b.debt -= repaid
	for _, p := range back {
		part := min(repaid, p.from.left)
		p.from.left, repaid = p.from.left-part, repaid-part
	}
}

// end gives back what a hold has beyond the first so many credits of it.
func (b *bank) end(h *bankHold, state string, used int) {
	b.goOff()
	h.state = state
	var rest []bankPart
	for _, p := range h.parts {
		part := min(used, p.amount)
		used -= part
		if p.amount > part {
			rest = append(rest, bankPart{p.from, p.amount - part})
		}
	}
	b.giveBack(rest)
}

func (b *bank) owe(amount int) {
	b.goOff()
	b.debt += amount - total(b.take(amount))
}

package stripesim

import (
	"encoding/json"
	"math/big"
	"slices"
	"time"
)

// aggregations are the ways in which usage records make a quantity.
var aggregations = []string{"sum", "max", "last_during_period", "last_ever"}

// usageBook keeps the usage of legacy metered items: of each, what the open period
// and the one before it hold. Older periods live on as their summaries.
type usageBook struct{ items map[string]*itemUsage }

func newUsageBook() usageBook { return usageBook{items: map[string]*itemUsage{}} }

// itemUsage is the usage of one item, by the timestamp that it was reported for.
type itemUsage struct {
	current  map[int64]*big.Int
	previous map[int64]*big.Int
	fresh    []*usageRecord // accepted, not yet to be seen, in the order of their arrival
	last     *big.Int       // the last value of all periods before
}

// usageRecord is a line of the journal: a record, or what happens to a period.
type usageRecord struct {
	Item     string    `json:"i"`
	Does     string    `json:"d,omitempty"` // "" reports, turn ends the period, clear forgets all
	At       int64     `json:"t,omitempty"`
	Quantity int64     `json:"q,omitempty"`
	Sets     bool      `json:"s,omitempty"`
	Late     bool      `json:"p,omitempty"` // it belongs to the period before
	Received time.Time `json:"r,omitzero"`
}

func (b *usageBook) restore(raw json.RawMessage) error {
	var r usageRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return err
	}
	b.take(&r)
	return nil
}

func (b *usageBook) of(item string) *itemUsage {
	if b.items[item] == nil {
		b.items[item] = &itemUsage{current: map[int64]*big.Int{}, last: new(big.Int)}
	}
	return b.items[item]
}

func (b *usageBook) take(r *usageRecord) {
	u := b.of(r.Item)
	switch {
	case r.Does == "clear":
		delete(b.items, r.Item)
	case r.Does == "turn":
		u.settle(time.Time{})
		u.last = u.lastIn(u.current, u.last)
		u.previous, u.current = u.current, map[int64]*big.Int{}
	case r.Late:
		if u.previous == nil {
			u.previous = map[int64]*big.Int{}
		}
		r.enter(u.previous)
	default:
		u.fresh = append(u.fresh, r)
	}
}

// enter lays a record over what was reported for its timestamp.
func (r *usageRecord) enter(usage map[int64]*big.Int) {
	if usage[r.At] == nil || r.Sets {
		usage[r.At] = new(big.Int)
	}
	usage[r.At].Add(usage[r.At], big.NewInt(r.Quantity))
}

// settle makes visible what was received by a time; the zero time stands for all.
func (u *itemUsage) settle(received time.Time) {
	n := 0
	for n < len(u.fresh) && (received.IsZero() || !u.fresh[n].Received.After(received)) {
		u.fresh[n].enter(u.current)
		n++
	}
	u.fresh = slices.Delete(u.fresh, 0, n)
}

// lastIn gives the value of the latest timestamp, or else what was before.
func (u *itemUsage) lastIn(usage map[int64]*big.Int, before *big.Int) *big.Int {
	latest, found := int64(0), false
	for at := range usage {
		if !found || at > latest {
			latest, found = at, true
		}
	}
	if !found {
		return before
	}
	return usage[latest]
}

// aggregate makes the quantity of the open period.
func (u *itemUsage) aggregate(how string) *big.Int {
	switch how {
	case "last_ever":
		return u.lastIn(u.current, u.last)
	case "last_during_period":
		return u.lastIn(u.current, new(big.Int))
	case "max":
		most := new(big.Int)
		for _, v := range u.current {
			if v.Cmp(most) > 0 {
				most = v
			}
		}
		return most
	}
	return sumOf(u.current)
}

func sumOf(usage map[int64]*big.Int) *big.Int {
	sum := new(big.Int)
	for _, v := range usage {
		sum.Add(sum, v)
	}
	return sum
}

// whole is a copy with everything made visible.
func (u *itemUsage) whole() *itemUsage {
	if len(u.fresh) == 0 {
		return u
	}
	c := &itemUsage{current: make(map[int64]*big.Int, len(u.current)), last: u.last, fresh: slices.Clone(u.fresh)}
	for at, v := range u.current {
		c.current[at] = new(big.Int).Set(v)
	}
	c.settle(time.Time{})
	return c
}

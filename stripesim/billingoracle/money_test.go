package billingoracle

import (
	"math/big"
	"time"
)

// day is one in seconds.
const day = 86400

// tier is one of a price's, its bounds and amounts as the call that made it wrote them.
type tier struct {
	upTo       *big.Rat // nil: without end
	each, flat *big.Rat
}

// price is what a unit costs, and how often.
type price struct {
	id, currency string
	recurring    bool
	unit         string // day, week, month, year
	count        int
	metered      bool
	aggregate    string // of usage records
	meter        string // id
	each         *big.Rat
	tiers        []tier
	volume       bool
	divide       *big.Rat // nil: not by packages
	up           bool
}

// legacy tells that usage records make the quantity.
func (p *price) legacy() bool { return p.metered && p.meter == "" }

// cost is what a quantity costs, exactly.
func (p *price) cost(quantity *big.Rat) *big.Rat {
	if len(p.tiers) > 0 {
		return p.inTiers(quantity)
	}
	units := new(big.Rat).Set(quantity)
	if p.divide != nil {
		units.Quo(units, p.divide)
		whole := new(big.Int).Quo(units.Num(), units.Denom()) // nothing here is below zero
		if p.up && !units.IsInt() {
			whole.Add(whole, big.NewInt(1))
		}
		units.SetInt(whole)
	}
	return units.Mul(units, p.each)
}

// inTiers prices the whole quantity by the one tier that holds it, or each part of
// it by its own.
func (p *price) inTiers(quantity *big.Rat) *big.Rat {
	sum, low := new(big.Rat), new(big.Rat)
	for i, t := range p.tiers {
		inside := t.upTo == nil || quantity.Cmp(t.upTo) <= 0
		if p.volume {
			if inside {
				return sum.Add(t.flat, new(big.Rat).Mul(quantity, t.each))
			}
			continue
		}
		if i > 0 && quantity.Cmp(low) <= 0 {
			break
		}
		high := quantity
		if !inside {
			high = t.upTo
		}
		sum.Add(sum, new(big.Rat).Mul(new(big.Rat).Sub(high, low), t.each))
		sum.Add(sum, t.flat)
		low = t.upTo
	}
	return sum
}

// nearest rounds to a whole minor unit, a half away from zero.
func nearest(r *big.Rat) *big.Int {
	half := big.NewRat(1, 2)
	if r.Sign() < 0 {
		half.Neg(half)
	}
	shifted := new(big.Rat).Add(r, half)
	return new(big.Int).Quo(shifted.Num(), shifted.Denom())
}

// begins is when the n-th period after an anchor begins; n may be negative. A month
// without the anchor's day ends early.
func (p *price) begins(anchor int64, n int) int64 {
	t := time.Unix(anchor, 0).UTC()
	switch p.unit {
	case "day":
		return anchor + int64(n*p.count)*day
	case "week":
		return anchor + int64(n*p.count)*7*day
	}
	months := n * p.count
	if p.unit == "year" {
		months *= 12
	}
	year, month := t.Year(), int(t.Month())-1+months
	for month < 0 {
		year, month = year-1, month+12
	}
	year, month = year+month/12, month%12+1
	for d := t.Day(); ; d-- {
		at := time.Date(year, time.Month(month), d, t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
		if int(at.Month()) == month {
			return at.Unix()
		}
	}
}

// endAfter is the first beginning of a period that is later than a time.
func (p *price) endAfter(anchor, at int64) int64 {
	n := 0
	for p.begins(anchor, n) <= at {
		n++
	}
	return p.begins(anchor, n)
}

// record is one usage record.
type record struct {
	at       int64
	quantity *big.Int
	sets     bool
}

// byTime lays records over each other: of one timestamp they add up, and one that
// sets begins again.
func byTime(records []record) (times []int64, values map[int64]*big.Int) {
	values = map[int64]*big.Int{}
	for _, r := range records {
		before := values[r.at]
		if before == nil {
			times = append(times, r.at)
		}
		if before == nil || r.sets {
			before = new(big.Int)
		}
		values[r.at] = new(big.Int).Add(before, r.quantity)
	}
	return times, values
}

// aggregated makes a quantity of a period's records; before is what the periods
// before have left, for last_ever.
func aggregated(how string, records []record, before *big.Int) *big.Int {
	times, values := byTime(records)
	sum, most, last, latest := new(big.Int), new(big.Int), new(big.Int), int64(-1)
	for _, at := range times {
		sum.Add(sum, values[at])
		if values[at].Cmp(most) > 0 {
			most = values[at]
		}
		if at > latest {
			last, latest = values[at], at
		}
	}
	switch how {
	case "max":
		return most
	case "last_during_period":
		return last
	case "last_ever":
		if len(times) == 0 {
			return before
		}
		return last
	}
	return sum
}

// least is the smallest amount that a card can be charged.
var least = map[string]int64{"usd": 50, "eur": 50, "jpy": 50}

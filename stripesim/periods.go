package stripesim

import "time"

// cadence is how often a price is billed.
type cadence struct {
	unit  string // day, week, month, year
	count int64
}

func cadenceOf(price object) cadence {
	recurring := child(price, "recurring")
	return cadence{unit: text(recurring, "interval"), count: max(number(recurring, "interval_count"), 1)}
}

// boundary gives the time at which the n-th period after an anchor begins. Months
// keep the anchor's day, and take their last where they have no such day: from 31
// January to 28 February to 31 March.
func (c cadence) boundary(anchor, n int64) int64 {
	switch c.unit {
	case "day":
		return anchor + n*c.count*86400
	case "week":
		return anchor + n*c.count*7*86400
	}
	months := n * c.count
	if c.unit == "year" {
		months *= 12
	}
	t := time.Unix(anchor, 0).UTC()
	first := time.Date(t.Year(), t.Month()+time.Month(months), 1, t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
	last := first.AddDate(0, 1, -1).Day()
	return first.AddDate(0, 0, min(t.Day(), last)-1).Unix()
}

// next gives the first boundary after a time; before gives the one that ends there.
func (c cadence) next(anchor, after int64) int64 {
	n := c.about(anchor, after)
	for c.boundary(anchor, n) > after {
		n--
	}
	for c.boundary(anchor, n) <= after {
		n++
	}
	return c.boundary(anchor, n)
}

// before gives the last boundary before a time.
func (c cadence) before(anchor, end int64) int64 {
	n := c.about(anchor, end)
	for c.boundary(anchor, n) < end {
		n++
	}
	for c.boundary(anchor, n) >= end {
		n--
	}
	return c.boundary(anchor, n)
}

// about is the number of whole periods between two times, give or take a few.
func (c cadence) about(anchor, t int64) int64 {
	length := map[string]int64{"day": 1, "week": 7, "month": 30, "year": 365}[c.unit] * 86400 * c.count
	return (t - anchor) / max(length, 1)
}

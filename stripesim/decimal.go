package stripesim

import (
	"math/big"
	"math/bits"
	"strconv"
	"strings"
)

// decimalPlaces is how many digits a value has after its point at most.
const decimalPlaces = 12

// decimalUnit is how many units of decimal make one.
const decimalUnit = 1_000_000_000_000

// decimal is an exact number in units of 10^-12, as 128 bits in two's complement:
// enough for 26 digits before the point, and a fifth of the space of a big.Rat.
type decimal struct {
	hi int64
	lo uint64
}

// parseDecimal reads an optional minus, digits, and at most twelve digits after a
// point. It refuses anything else, and what does not fit.
func parseDecimal(s string) (d decimal, ok bool) {
	digits, negative := strings.CutPrefix(s, "-")
	whole, fraction, pointed := strings.Cut(digits, ".")
	if whole == "" || (pointed && fraction == "") || len(fraction) > decimalPlaces {
		return decimal{}, false
	}
	ok = true
	var hi, lo uint64
	feed := func(digit byte) {
		over, high := bits.Mul64(hi, 10)
		carry, low := bits.Mul64(lo, 10)
		low, c := bits.Add64(low, uint64(digit-'0'), 0)
		high, c = bits.Add64(high, carry, c)
		ok = ok && digit >= '0' && digit <= '9' && over == 0 && c == 0 && high>>63 == 0
		hi, lo = high, low
	}
	for i := range len(whole) {
		feed(whole[i])
	}
	for i := range decimalPlaces {
		if i < len(fraction) {
			feed(fraction[i])
		} else {
			feed('0')
		}
	}
	if !ok {
		return decimal{}, false
	}
	d = decimal{int64(hi), lo}
	if negative {
		d = d.negated()
	}
	return d, true
}

// plus adds; ok is false where the sum does not fit.
func (d decimal) plus(e decimal) (sum decimal, ok bool) {
	lo, carry := bits.Add64(d.lo, e.lo, 0)
	hi, _ := bits.Add64(uint64(d.hi), uint64(e.hi), carry) //nolint:gosec // two's complement
	sum = decimal{int64(hi), lo}                           //nolint:gosec // two's complement
	return sum, (d.hi < 0) != (e.hi < 0) || (sum.hi < 0) == (d.hi < 0)
}

func (d decimal) negated() decimal {
	lo, borrow := bits.Sub64(0, d.lo, 0)
	hi, _ := bits.Sub64(0, uint64(d.hi), borrow) //nolint:gosec // two's complement
	return decimal{int64(hi), lo}                //nolint:gosec // two's complement
}

func (d decimal) magnitude() decimal {
	if d.hi < 0 {
		return d.negated()
	}
	return d
}

// units is the number of 10^-12.
func (d decimal) units() *big.Int {
	n := new(big.Int).Lsh(big.NewInt(d.hi), 64)
	return n.Add(n, new(big.Int).SetUint64(d.lo))
}

func (d decimal) rat() *big.Rat { return new(big.Rat).SetFrac(d.units(), big.NewInt(decimalUnit)) }

// text is the shortest exact form.
func (d decimal) text() string {
	m := d.magnitude()
	high := uint64(m.hi) //nolint:gosec // not negative
	quotient, rest := bits.Div64(high%decimalUnit, m.lo, decimalUnit)
	var b []byte
	if d.hi < 0 {
		b = append(b, '-')
	}
	if high >= decimalUnit {
		b = new(big.Int).Quo(m.units(), big.NewInt(decimalUnit)).Append(b, 10)
	} else {
		b = strconv.AppendUint(b, quotient, 10)
	}
	if rest > 0 {
		b = append(b, '.')
		b = append(b, strconv.FormatUint(decimalUnit+rest, 10)[1:]...)
		b = []byte(strings.TrimRight(string(b), "0"))
	}
	return string(b)
}

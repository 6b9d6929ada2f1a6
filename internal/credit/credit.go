// Package credit holds the exact numbers of the product: amounts of credits and
// quantities of usage, both decimal with six places, kept as an int64 of
// millionths. No float takes part, and every operation that could overflow or
// round says so.
package credit

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Places is the number of decimal places that are kept.
const Places = 6

// unit is one whole credit, or one whole unit of usage, in millionths.
const unit = 1_000_000

// Max is the largest magnitude accepted from outside, in millionths: ten to the
// fifteenth, a billion credits. Sums inside may grow beyond it up to int64.
const Max = 1_000_000_000_000_000

// ErrRange says that a number does not fit; ErrSyntax that it is no plain decimal.
var (
	ErrRange  = errors.New("is out of range: at most 1000000000 in either direction")
	ErrSyntax = errors.New("is not a plain decimal number with at most six places, such as 12 or 0.25")
)

// Amount is a number of credits, in millionths.
type Amount int64

// Quantity is a number of a meter's units, in millionths.
type Quantity int64

// ParseAmount reads a plain decimal such as "-12.5" exactly. Exponents, leading
// plus signs, blanks and a seventh place are ErrSyntax; beyond Max is ErrRange.
func ParseAmount(s string) (Amount, error) {
	n, err := parse(s)
	return Amount(n), err
}

// ParseQuantity reads a plain decimal by the rules of ParseAmount.
func ParseQuantity(s string) (Quantity, error) {
	n, err := parse(s)
	return Quantity(n), err
}

// Whole is n whole credits; it is for constants and tests.
func Whole(n int64) Amount { return Amount(n * unit) }

// Units is n whole units of usage; it is for constants and tests.
func Units(n int64) Quantity { return Quantity(n * unit) }

// String is the shortest exact decimal: "12", "0.25", "-3.000001".
func (a Amount) String() string { return format(int64(a)) }

// String is the shortest exact decimal.
func (q Quantity) String() string { return format(int64(q)) }

// Add returns a+b, or ErrRange when the true sum does not fit.
func (a Amount) Add(b Amount) (Amount, error) {
	n, err := add(int64(a), int64(b))
	return Amount(n), err
}

// Sub returns a-b, or ErrRange when the true difference does not fit.
func (a Amount) Sub(b Amount) (Amount, error) {
	n, err := sub(int64(a), int64(b))
	return Amount(n), err
}

// Add returns q+r, or ErrRange when the true sum does not fit.
func (q Quantity) Add(r Quantity) (Quantity, error) {
	n, err := add(int64(q), int64(r))
	return Quantity(n), err
}

// Sub returns q-r, or ErrRange when the true difference does not fit.
func (q Quantity) Sub(r Quantity) (Quantity, error) {
	n, err := sub(int64(q), int64(r))
	return Quantity(n), err
}

// Price is what quantity costs at perUnit credits a unit, neither negative. The
// exact product has twelve places; it is rounded to six, halves up, so that a
// charge is never more than half a millionth away from the exact one.
func Price(quantity Quantity, perUnit Amount) (Amount, error) {
	n, err := Scale(int64(quantity), int64(perUnit), unit)
	return Amount(n), err
}

// Scale is n*num/den rounded to the nearest integer, halves up, computed
// without overflow in between. n and num must not be negative and den must be
// positive; anything else, or a result beyond int64, is ErrRange.
func Scale(n, num, den int64) (int64, error) {
	if n < 0 || num < 0 || den <= 0 {
		return 0, ErrRange
	}
	hi, lo := bits.Mul64(uint64(n), uint64(num))
	lo, carry := bits.Add64(lo, uint64(den)/2, 0)
	hi += carry
	if hi >= uint64(den) {
		return 0, ErrRange
	}
	quotient, _ := bits.Div64(hi, lo, uint64(den))
	if quotient > 1<<63-1 {
		return 0, ErrRange
	}
	return int64(quotient), nil
}

// MarshalJSON writes the exact decimal as a string: a JSON number would become
// a float in most readers.
func (a Amount) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(a.String())), nil }

// MarshalJSON writes the exact decimal as a string.
func (q Quantity) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(q.String())), nil }

// UnmarshalJSON reads a JSON number or string from its literal, exactly.
func (a *Amount) UnmarshalJSON(data []byte) error {
	n, err := parse(literal(data))
	*a = Amount(n)
	return err
}

// UnmarshalJSON reads a JSON number or string from its literal, exactly.
func (q *Quantity) UnmarshalJSON(data []byte) error {
	n, err := parse(literal(data))
	*q = Quantity(n)
	return err
}

// Value stores an Amount as a bigint of millionths.
func (a Amount) Value() (driver.Value, error) { return int64(a), nil }

// Value stores a Quantity as a bigint of millionths.
func (q Quantity) Value() (driver.Value, error) { return int64(q), nil }

// Scan reads a bigint, or a numeric without places as sum() gives it.
func (a *Amount) Scan(src any) error {
	n, err := scan(src)
	*a = Amount(n)
	return err
}

// Scan reads a bigint, or a numeric without places as sum() gives it.
func (q *Quantity) Scan(src any) error {
	n, err := scan(src)
	*q = Quantity(n)
	return err
}

func scan(src any) (int64, error) {
	switch v := src.(type) {
	case int64:
		return v, nil
	case []byte:
		return strconv.ParseInt(string(v), 10, 64)
	case string:
		return strconv.ParseInt(v, 10, 64)
	}
	return 0, fmt.Errorf("a %T is no count of millionths", src)
}

// literal takes the quotes off a JSON string. An escape inside it is left in
// place, where parse refuses it: no decimal needs one.
func literal(data []byte) string {
	s := string(data)
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

func parse(s string) (int64, error) {
	digits, negative := strings.CutPrefix(s, "-")
	whole, fraction, point := strings.Cut(digits, ".")
	if !isDigits(whole) || (point && !isDigits(fraction)) || len(fraction) > Places {
		return 0, ErrSyntax
	}
	if len(whole) > 1 && whole[0] == '0' {
		return 0, ErrSyntax // "007" is an octal to some readers: refuse what two could read differently
	}
	fraction += strings.Repeat("0", Places-len(fraction))
	n, err := strconv.ParseInt(whole+fraction, 10, 64)
	if err != nil || n > Max {
		return 0, ErrRange
	}
	if negative {
		n = -n
	}
	return n, nil
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func format(n int64) string {
	sign, magnitude := "", uint64(n) //nolint:gosec // two's complement: a negative one is turned round below
	if n < 0 {
		sign, magnitude = "-", -magnitude
	}
	var room [len("-9223372036854.775808")]byte
	text := strconv.AppendUint(append(room[:0], sign...), magnitude/unit, 10)
	if rest := magnitude % unit; rest != 0 {
		text = append(text, '.')
		for place := uint64(unit / 10); rest != 0; place /= 10 {
			text = append(text, byte('0'+rest/place)) //nolint:gosec // a digit
			rest %= place
		}
	}
	return string(text)
}

func add(a, b int64) (int64, error) {
	sum := a + b
	if (b > 0 && sum < a) || (b < 0 && sum > a) {
		return 0, ErrRange
	}
	return sum, nil
}

func sub(a, b int64) (int64, error) {
	difference := a - b
	if (b > 0 && difference > a) || (b < 0 && difference < a) {
		return 0, ErrRange
	}
	return difference, nil
}

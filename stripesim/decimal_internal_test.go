package stripesim

import (
	"math/big"
	mathrand "math/rand/v2"
	"strings"
	"testing"
)

func TestDecimalRefusesWhatIsNoneOrDoesNotFit(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "-", ".", ".5", "5.", "-.5", "+5", "1e3", "0x10", " 5", "5 ", "5,0", "1.2.3", "--5", "1.0000000000000", "NaN", "½", "٣", "1_000",
		"170141183460469231731687304", "99999999999999999999999999999999999999999999999999",
	} {
		if d, ok := parseDecimal(s); ok {
			t.Errorf("%q is read as %s", s, d.text())
		}
	}
	edge, _ := parseDecimal("170141183460469231731687303.715884105727") // 2^127-1 units
	if _, ok := edge.plus(decimal{lo: 1}); ok {
		t.Error("the largest number and one unit more fit")
	}
	if _, ok := edge.negated().plus(decimal{hi: -1, lo: ^uint64(0) - 1}); ok {
		t.Error("the smallest number and two units less fit")
	}
	if edge.text() != "170141183460469231731687303.715884105727" {
		t.Errorf("the largest number is %s", edge.text())
	}
}

// TestDecimalIsAsBigRat holds the arithmetic against math/big.
func TestDecimalIsAsBigRat(t *testing.T) {
	t.Parallel()
	random := mathrand.New(mathrand.NewPCG(1, 2))
	digits := func(most int) string {
		b := make([]byte, 1+random.IntN(most))
		for i := range b {
			b[i] = byte('0' + random.IntN(10))
		}
		return string(b)
	}
	number := func() string {
		s := digits([]int{1, 3, 19, 25}[random.IntN(4)])
		if random.IntN(2) == 0 {
			s += "." + digits(12)
		}
		if random.IntN(3) == 0 {
			s = "-" + s
		}
		return s
	}
	for range 20_000 {
		a, b := number(), number()
		x, okX := parseDecimal(a)
		y, okY := parseDecimal(b)
		if !okX || !okY {
			t.Fatalf("%s or %s is refused", a, b)
		}
		wantX, _ := new(big.Rat).SetString(a)
		wantY, _ := new(big.Rat).SetString(b)
		sum, ok := x.plus(y)
		want := new(big.Rat).Add(wantX, wantY)
		if !ok || sum.rat().Cmp(want) != 0 || x.rat().Cmp(wantX) != 0 || x.negated().rat().Cmp(new(big.Rat).Neg(wantX)) != 0 {
			t.Fatalf("%s + %s = %s", a, b, sum.text())
		}
		text := want.FloatString(decimalPlaces)
		if text = strings.TrimRight(strings.TrimRight(text, "0"), "."); text == "-0" || text == "" {
			text = "0"
		}
		if sum.text() != text {
			t.Fatalf("%s + %s is written %s, want %s", a, b, sum.text(), text)
		}
	}
}

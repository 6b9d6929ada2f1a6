package credit_test

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"regexp"
	"testing"

	"pgregory.net/rapid"

	"tallystick/internal/credit"
)

func TestParseAmountRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		in   string
		want error
	}{
		{"", credit.ErrSyntax},
		{"-", credit.ErrSyntax},
		{"+1", credit.ErrSyntax},
		{"1e3", credit.ErrSyntax},
		{"1.", credit.ErrSyntax},
		{".5", credit.ErrSyntax},
		{"1.0000001", credit.ErrSyntax},
		{"1.0000000", credit.ErrSyntax},
		{"0x10", credit.ErrSyntax},
		{"007", credit.ErrSyntax},
		{" 1", credit.ErrSyntax},
		{"1 ", credit.ErrSyntax},
		{"１", credit.ErrSyntax},
		{"NaN", credit.ErrSyntax},
		{"--1", credit.ErrSyntax},
		{"1,5", credit.ErrSyntax},
		{"1000000000.000001", credit.ErrRange},
		{"-1000000000.000001", credit.ErrRange},
		{"9223372036854775808", credit.ErrRange},
		{"99999999999999999999999999", credit.ErrRange},
	} {
		if got, err := credit.ParseAmount(tc.in); !errors.Is(err, tc.want) {
			t.Errorf("ParseAmount(%q) = %v, %v; want error %v", tc.in, got, err, tc.want)
		}
	}
}

func TestParseAmountReadsExactly(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		in   string
		want credit.Amount
		text string
	}{
		{"0", 0, "0"},
		{"-0", 0, "0"},
		{"12", 12_000_000, "12"},
		{"0.25", 250_000, "0.25"},
		{"1.500000", 1_500_000, "1.5"},
		{"-3.000001", -3_000_001, "-3.000001"},
		{"1000000000", 1_000_000_000_000_000, "1000000000"},
	} {
		got, err := credit.ParseAmount(tc.in)
		if err != nil || got != tc.want || got.String() != tc.text {
			t.Errorf("ParseAmount(%q) = %d (%s), %v; want %d (%s)", tc.in, got, got, err, tc.want, tc.text)
		}
	}
	if got := credit.Amount(-1 << 63).String(); got != "-9223372036854.775808" {
		t.Errorf("the least Amount prints as %s", got)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	var got struct{ A, B credit.Amount }
	if err := json.Unmarshal([]byte(`{"A": 0.1, "B": "-2.5"}`), &got); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(got)
	if want := `{"A":"0.1","B":"-2.5"}`; err != nil || string(out) != want {
		t.Errorf("Marshal = %s, %v; want %s", out, err, want)
	}
	for _, in := range []string{`1e2`, `true`, `null`, `{}`, `"\u0031"`} {
		var a credit.Amount
		if err := json.Unmarshal([]byte(in), &a); err == nil {
			t.Errorf("Unmarshal(%s) = %v, want an error", in, a)
		}
	}
}

func TestArithmeticAgreesWithBigIntegers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Int64().Draw(t, "a"), rapid.Int64().Draw(t, "b")
		sum := new(big.Int).Add(big.NewInt(a), big.NewInt(b))
		got, err := credit.Amount(a).Add(credit.Amount(b))
		checkBig(t, "Add", int64(got), err, sum)
		difference := new(big.Int).Sub(big.NewInt(a), big.NewInt(b))
		got, err = credit.Amount(a).Sub(credit.Amount(b))
		checkBig(t, "Sub", int64(got), err, difference)
	})
}

func TestScaleAgreesWithBigIntegers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Min(0).Draw(t, "n")
		num := rapid.Int64Min(0).Draw(t, "num")
		den := rapid.Int64Min(1).Draw(t, "den")
		exact := new(big.Int).Mul(big.NewInt(n), big.NewInt(num))
		exact.Add(exact, big.NewInt(den/2))
		exact.Div(exact, big.NewInt(den))
		got, err := credit.Scale(n, num, den)
		checkBig(t, "Scale", got, err, exact)
	})
}

func TestPriceRoundsHalvesUp(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		quantity credit.Quantity
		perUnit  credit.Amount
		want     credit.Amount
	}{
		{credit.Units(1000), 250, 250_000},
		{1, 500_000, 1}, // half a millionth
		{1, 499_999, 0}, // just below
		{3, 500_000, 2}, // one and a half millionths
		{credit.Units(7), 0, 0},
	} {
		got, err := credit.Price(tc.quantity, tc.perUnit)
		if err != nil || got != tc.want {
			t.Errorf("Price(%s, %s) = %d, %v; want %d", tc.quantity, tc.perUnit, got, err, tc.want)
		}
	}
	if got, err := credit.Price(credit.Max, credit.Max); !errors.Is(err, credit.ErrRange) {
		t.Errorf("Price beyond int64 = %v, %v; want ErrRange", got, err)
	}
}

func FuzzParseAmountRoundTrip(f *testing.F) {
	for _, seed := range []string{"0", "-1.5", "0.000001", "1000000000", "1e9", "--1", "1.", ".1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := credit.ParseAmount(s)
		if err != nil {
			return
		}
		again, err := credit.ParseAmount(a.String())
		if err != nil || again != a {
			t.Errorf("ParseAmount(%q) = %s, read again as %s, %v", s, a, again, err)
		}
	})
}

// FuzzParseAmountIsExact holds the parser against exact fractions: what it takes
// is the number that stands there, and what it refuses is none that it may take.
func FuzzParseAmountIsExact(f *testing.F) {
	for _, seed := range []string{"0", "-0", "1.000001", "-999999999.999999", "1000000000", "1000000000.000001", "1e3", "0x1", "1_0", "½", "１", "007", "1.", "NaN", "1/2"} {
		f.Add(seed)
	}
	form := regexp.MustCompile(`\A-?(0|[1-9][0-9]*)(\.[0-9]{1,6})?\z`)
	f.Fuzz(func(t *testing.T, s string) {
		want, fits := new(big.Rat), form.MatchString(s)
		if fits {
			_, fits = want.SetString(s)
			fits = fits && new(big.Rat).Abs(want).Cmp(big.NewRat(1_000_000_000, 1)) <= 0
		}
		got, err := credit.ParseAmount(s)
		if (err == nil) != fits {
			t.Fatalf("ParseAmount(%q) = %s, %v; want an error: %v", s, got, err, !fits)
		}
		if exact := new(big.Rat).SetFrac64(int64(got), 1_000_000); err == nil && exact.Cmp(want) != 0 {
			t.Errorf("ParseAmount(%q) = %s", s, got)
		}
		if quantity, errQuantity := credit.ParseQuantity(s); (errQuantity == nil) != fits || int64(quantity) != int64(got) {
			t.Errorf("ParseQuantity(%q) = %s, %v, and ParseAmount gives %s", s, quantity, errQuantity, got)
		}
	})
}

func checkBig(t *rapid.T, op string, got int64, err error, want *big.Int) {
	t.Helper()
	if want.IsInt64() != (err == nil) {
		t.Fatalf("%s = %d, %v; the exact result is %s", op, got, err, want)
	}
	if err == nil && got != want.Int64() {
		t.Fatalf("%s = %d, want %s", op, got, want)
	}
}

func TestStringIsTheShortestDecimal(t *testing.T) {
	t.Parallel()
	for n, want := range map[credit.Amount]string{
		0: "0", 1: "0.000001", -1: "-0.000001", 10: "0.00001", 250_000: "0.25", 1_000_000: "1", -12_500_000: "-12.5", 1_000_001: "1.000001",
		100_100: "0.1001", math.MaxInt64: "9223372036854.775807", math.MinInt64: "-9223372036854.775808",
	} {
		if got := n.String(); got != want {
			t.Errorf("%d millionths are written %q, want %q", int64(n), got, want)
		}
	}
}

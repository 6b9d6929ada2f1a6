package reconcile

import (
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func TestMoneyReadsAsPeopleWriteIt(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		amount   int64
		currency string
		want     string
	}{
		{0, "usd", "0.00 USD"},
		{5, "usd", "0.05 USD"},
		{-1250, "eur", "-12.50 EUR"},
		{1250, "jpy", "1250 JPY"},
		{1250, "KWD", "1.250 KWD"},
		{math.MaxInt64, "usd", "92233720368547758.07 USD"},
	} {
		if got := (money{tc.amount, tc.currency}).String(); got != tc.want {
			t.Errorf("%d %s reads %q, want %q", tc.amount, tc.currency, got, tc.want)
		}
	}
}

func TestWorthRoundsHalfUpAndIsNeverNegative(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		millionths int64
		price      string
		want       int64
	}{
		{0, "2", 0},
		{1_000_000, "2", 2},
		{-1_000_000, "2", 2},
		{249_999, "2", 0},
		{250_000, "2", 1},
		{1, "499999.9", 0},
		{1, "500000", 1},
		{3_000_000, "0.002", 0},
		{250_000_000, "0.002", 1},
	} {
		price, _ := new(big.Rat).SetString(tc.price)
		if got := worth(tc.millionths, price, "usd"); got.amount != tc.want {
			t.Errorf("%d millionths at %s are worth %d, want %d", tc.millionths, tc.price, got.amount, tc.want)
		}
	}
	if got := worth(math.MaxInt64, big.NewRat(math.MaxInt64, 1), "usd"); got != nil {
		t.Errorf("more money than fits is %v, want none", got)
	}
}

// TestWorthIsExact compares with whole-number arithmetic: worth is the nearest
// minor unit to millionths times price, whatever their sign.
func TestWorthIsExact(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(-1_000_000_000_000, 1_000_000_000_000).Draw(t, "millionths")
		cents := rapid.Int64Range(0, 1_000_000).Draw(t, "price")
		got := worth(n, big.NewRat(cents, 1), "usd").amount
		product := new(big.Int).Mul(big.NewInt(max(n, -n)), big.NewInt(cents))
		distance := new(big.Int).Sub(new(big.Int).Mul(big.NewInt(got), big.NewInt(1_000_000)), product)
		if distance.Abs(distance).Cmp(big.NewInt(500_000)) > 0 {
			t.Fatalf("%d millionths at %d are worth %d", n, cents, got)
		}
	})
}

func TestSeverityAtItsEdges(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		money *money
		want  string
	}{
		{nil, "medium"},
		{&money{99, "usd"}, "low"},
		{&money{100, "usd"}, "medium"},
		{&money{9_999, "usd"}, "medium"},
		{&money{10_000, "usd"}, "high"},
		{&money{99_999, "usd"}, "high"},
		{&money{100_000, "usd"}, "critical"},
		{&money{1_000, "jpy"}, "critical"},
		{&money{999_999, "kwd"}, "high"},
	} {
		if got := severityOf(tc.money); got != tc.want {
			t.Errorf("%v is %s, want %s", tc.money, got, tc.want)
		}
	}
}

// TestWhatIsUnderWayExplainsADifference is the rule R4 at its edges: Stripe may
// have anything from what it surely has to what it may have.
func TestWhatIsUnderWayExplainsADifference(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		c    cell
		want bool
	}{
		{cell{ours: 10, theirs: 10}, true},
		{cell{ours: 10, theirs: 9}, false},
		{cell{ours: 10, theirs: 11}, false},
		{cell{ours: 10, theirs: 7, waiting: 3}, true},
		{cell{ours: 10, theirs: 8, waiting: 3}, false},
		{cell{ours: 10, theirs: 6, waiting: 3}, false},
		{cell{ours: 10, theirs: 7, unknown: 3}, true},
		{cell{ours: 10, theirs: 10, unknown: 3}, true},
		{cell{ours: 10, theirs: 6, unknown: 3}, false},
		{cell{ours: 10, theirs: 5, waiting: 2, unknown: 3}, true},
		{cell{ours: 10, theirs: 4, waiting: 2, unknown: 3}, false},
		{cell{ours: 10, theirs: 9, waiting: 2, unknown: 3}, false},
	} {
		if got := tc.c.agrees(); got != tc.want {
			t.Errorf("%+v agrees: %v, want %v", tc.c, got, tc.want)
		}
	}
}

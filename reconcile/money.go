package reconcile

import (
	"fmt"
	"math/big"
	"strings"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
)

// money is an amount in minor units of a currency.
type money struct {
	amount   int64
	currency string
}

// places is the number of decimal places of a currency at Stripe, where it is not two.
var places = map[string]int{
	"bif": 0, "clp": 0, "djf": 0, "gnf": 0, "jpy": 0, "kmf": 0, "krw": 0, "mga": 0, "pyg": 0, "rwf": 0, "vnd": 0, "vuv": 0, "xaf": 0, "xof": 0, "xpf": 0,
	"bhd": 3, "jod": 3, "kwd": 3, "omr": 3, "tnd": 3,
}

func placesOf(currency string) int {
	if p, ok := places[strings.ToLower(currency)]; ok {
		return p
	}
	return 2
}

// String reads the money for people: 12.50 USD.
func (m money) String() string {
	sign, n := "", m.amount
	if n < 0 {
		sign, n = "-", -n
	}
	p := placesOf(m.currency)
	divisor := int64(1)
	for range p {
		divisor *= 10
	}
	if p == 0 {
		return fmt.Sprintf("%s%d %s", sign, n, strings.ToUpper(m.currency))
	}
	return fmt.Sprintf("%s%d.%0*d %s", sign, n/divisor, p, n%divisor, strings.ToUpper(m.currency))
}

// worth is what a number of millionths costs at a price per whole one, which is an
// exact decimal of minor units; never negative, rounded half up.
func worth(millionths int64, perUnit *big.Rat, currency string) *money {
	r := new(big.Rat).SetFrac64(max(millionths, -millionths), 1_000_000)
	r.Mul(r, perUnit)
	n := roundHalfUp(r)
	if !n.IsInt64() {
		return nil
	}
	return &money{amount: n.Int64(), currency: currency}
}

// severityOf grades a finding by the money at risk, in major units.
func severityOf(m *money) string {
	if m == nil {
		return "medium"
	}
	major := m.amount
	for range placesOf(m.currency) {
		major /= 10
	}
	switch {
	case major >= 1000:
		return "critical"
	case major >= 100:
		return "high"
	case major >= 1:
		return "medium"
	}
	return "low"
}

// signed is a difference with its sign, so that nobody has to guess the direction.
func signed(millionths int64) string {
	text := credit.Quantity(millionths).String()
	if millionths > 0 {
		return "+" + text
	}
	return text
}

// decimal reads an exact decimal; what is none is zero.
func decimal(text string) *big.Rat {
	if r, ok := new(big.Rat).SetString(text); ok {
		return r
	}
	return new(big.Rat)
}

// apart is by how much the amounts of two quantities, in millionths, differ at a
// price. Each is rounded as an invoice rounds it.
func apart(t stripe.Tariff, a, b int64) *money {
	x, y := roundHalfUp(amountOf(t, a)), roundHalfUp(amountOf(t, b))
	x.Sub(x, y).Abs(x)
	if !x.IsInt64() {
		return nil
	}
	return &money{amount: x.Int64(), currency: t.Currency}
}

func roundHalfUp(r *big.Rat) *big.Int {
	r.Add(r, big.NewRat(1, 2))
	return new(big.Int).Quo(r.Num(), r.Denom())
}

// amountOf is what a quantity costs in a period, in minor units. Less than nothing
// costs what nothing does: an invoice takes no more off.
func amountOf(t stripe.Tariff, millionths int64) *big.Rat {
	quantity := new(big.Rat).SetFrac64(max(millionths, 0), 1_000_000)
	switch {
	case t.TiersMode == "volume":
		for _, tier := range t.Tiers {
			if tier.UpTo == 0 || quantity.Cmp(big.NewRat(tier.UpTo, 1)) <= 0 {
				return tierAmount(tier, quantity)
			}
		}
		return new(big.Rat)
	case len(t.Tiers) > 0:
		sum, below := new(big.Rat), new(big.Rat)
		for i, tier := range t.Tiers {
			top := quantity
			if upTo := big.NewRat(tier.UpTo, 1); tier.UpTo != 0 && quantity.Cmp(upTo) > 0 {
				top = upTo
			}
			if within := new(big.Rat).Sub(top, below); i == 0 || within.Sign() > 0 {
				sum.Add(sum, tierAmount(tier, within))
			}
			below = big.NewRat(tier.UpTo, 1)
			if tier.UpTo == 0 || quantity.Cmp(below) <= 0 {
				break
			}
		}
		return sum
	case t.PackageOf > 0:
		packages := new(big.Rat).Quo(quantity, big.NewRat(t.PackageOf, 1))
		whole := new(big.Int).Quo(packages.Num(), packages.Denom())
		if t.RoundUp && !packages.IsInt() {
			whole.Add(whole, big.NewInt(1))
		}
		return packages.Mul(new(big.Rat).SetInt(whole), decimal(t.UnitAmount))
	}
	return quantity.Mul(quantity, decimal(t.UnitAmount))
}

func tierAmount(t stripe.Tier, quantity *big.Rat) *big.Rat {
	amount := new(big.Rat).Mul(quantity, decimal(t.UnitAmount))
	return amount.Add(amount, decimal(t.FlatAmount))
}

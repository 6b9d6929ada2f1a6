package reconcile

import (
	"fmt"
	"math/big"
	"strings"

	"tallystick/internal/credit"
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
	r.Add(r, big.NewRat(1, 2))
	n := new(big.Int).Quo(r.Num(), r.Denom())
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

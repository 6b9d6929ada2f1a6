package meter_test

import (
	"fmt"
	"math/big"
	"net/http"
	"testing"

	"pgregory.net/rapid"

	"tallystick/api"
)

// naive is what the API must do, written as plainly as possible: exact fractions,
// a map of what was said, and no database.
type naive struct {
	available *big.Rat
	overdraft *big.Rat
	usages    map[string]said
	grants    map[string]said
}

// said is the content of an id and its first answer.
type said struct{ content, answer string }

// meters of the model: name, aggregation and rate.
var modelMeters = []struct{ name, aggregation, rate string }{{"one", "sum", "1"}, {"third", "sum", "0.333333"}, {"each", "count", "2.5"}, {"free", "sum", "0"}}

func rat(t rapid.TB, text string) *big.Rat {
	r, ok := new(big.Rat).SetString(text)
	if !ok {
		t.Fatalf("%q is no number", text)
	}
	return r
}

// price rounds to six places, halves up.
func price(quantity, rate *big.Rat) *big.Rat {
	millionths := new(big.Rat).Mul(new(big.Rat).Mul(quantity, rate), big.NewRat(1_000_000, 1))
	millionths.Add(millionths, big.NewRat(1, 2))
	return new(big.Rat).SetFrac(new(big.Int).Quo(millionths.Num(), millionths.Denom()), big.NewInt(1_000_000))
}

// use is what must come of a usage: the answer of a known id, else a status and
// the new balance.
func (n *naive) use(t rapid.TB, id, content, quantity string, meter int) (status int, code, again string, charged *big.Rat) {
	if s, ok := n.usages[id]; ok {
		if s.content != content {
			return 422, "idempotency_conflict", "", nil
		}
		return 201, "", s.answer, nil
	}
	m := modelMeters[meter]
	units := rat(t, quantity)
	if m.aggregation == "count" {
		units = big.NewRat(1, 1)
	}
	cost := price(units, rat(t, m.rate))
	left := new(big.Rat).Sub(n.available, cost)
	if cost.Sign() > 0 && left.Cmp(new(big.Rat).Neg(n.overdraft)) < 0 {
		return 402, "insufficient_credits", "", nil
	}
	n.available = left
	return 201, "", "", cost
}

// TestTheAPIAgreesWithTheNaiveModel draws few ids and few numbers, so that repeats,
// conflicts and empty accounts are common.
func TestTheAPIAgreesWithTheNaiveModel(t *testing.T) {
	t.Parallel()
	c := opened(t, 0)
	for _, m := range modelMeters {
		c.want(201, http.MethodPut, "/v1/meters/"+m.name, fmt.Sprintf(`{"aggregation": %q, "credits_per_unit": %q, "stripe": {"kind": "meter", "event_name": "e"}}`, m.aggregation, m.rate))
	}
	processes := []*till{c, c.beside()}
	accounts := 0
	outcomes := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		accounts++
		account := fmt.Sprintf("model-%04d", accounts)
		overdraft := rapid.SampledFrom([]string{"0", "0", "1.5"}).Draw(rt, "overdraft")
		c.want(201, http.MethodPut, "/v1/accounts/"+account, fmt.Sprintf(`{"overdraft": %q}`, overdraft))
		n := &naive{available: new(big.Rat), overdraft: rat(rt, overdraft), usages: map[string]said{}, grants: map[string]said{}}
		for range 6 {
			process := processes[rapid.IntRange(0, 1).Draw(rt, "process")]
			if rapid.IntRange(0, 3).Draw(rt, "what") == 0 {
				n.stepGrant(rt, process, account, outcomes)
			} else {
				n.stepUsage(rt, process, account, outcomes)
			}
		}
		var a api.Account
		read(t, c.want(200, http.MethodGet, "/v1/accounts/"+account, ""), &a)
		if rat(rt, string(a.Balance.Available)).Cmp(n.available) != 0 {
			rt.Fatalf("the account holds %s, the model %s", a.Balance.Available, n.available.FloatString(6))
		}
	})
	c.verified()
	t.Logf("%d accounts, outcomes %v", accounts, outcomes)
	for _, outcome := range []string{"grant fresh", "grant again", "grant 422", "usage fresh", "usage again", "usage 402", "usage 422"} {
		if outcomes[outcome] == 0 {
			t.Errorf("the outcome %q never came about", outcome)
		}
	}
}

func (n *naive) stepUsage(rt *rapid.T, c *till, account string, outcomes map[string]int) {
	id := fmt.Sprintf("usage-%04d", rapid.IntRange(0, 4).Draw(rt, "usage"))
	quantity := rapid.SampledFrom([]string{"0.5", "1", "1.000001", "2", "7"}).Draw(rt, "quantity")
	meter := rapid.IntRange(0, len(modelMeters)-1).Draw(rt, "meter")
	content := fmt.Sprintf(`"account": %q, "meter": %q, "quantity": %s`, account, modelMeters[meter].name, quantity)
	status, code, again, cost := n.use(rt, id, content, quantity, meter)
	a := c.call(http.MethodPost, "/v1/usage", `{"id": "`+id+`", `+content+`}`)
	if a.status != status || a.code != code || a.replayed != (again != "") || (again != "" && a.body != again) {
		rt.Fatalf("%s %s was answered %d %s, want %d %s: %s (first %s)", id, content, a.status, a.code, status, code, a.body, again)
	}
	if cost == nil {
		outcomes[outcome("usage", a)]++
		return
	}
	var u api.Usage
	read(c.t, a, &u)
	if rat(rt, string(u.Credits)).Cmp(cost) != 0 || rat(rt, string(u.Balance.Available)).Cmp(n.available) != 0 {
		rt.Fatalf("%s %s was charged %s with %s left, want %s and %s", id, content, u.Credits, u.Balance.Available, cost.FloatString(6), n.available.FloatString(6))
	}
	n.usages[id] = said{content, a.body}
	outcomes[outcome("usage", a)]++
}

func (n *naive) stepGrant(rt *rapid.T, c *till, account string, outcomes map[string]int) {
	id := fmt.Sprintf("grant-%04d", rapid.IntRange(0, 2).Draw(rt, "grant"))
	credits := rapid.SampledFrom([]string{"0", "0.000001", "1", "2.75", "10"}).Draw(rt, "credits")
	a := c.call(http.MethodPost, "/v1/accounts/"+account+"/grants", `{"id": "`+id+`", "credits": `+credits+`}`)
	defer func() { outcomes[outcome("grant", a)]++ }()
	first, known := n.grants[id]
	switch {
	case credits == "0" || (known && first.content != credits):
		if a.status != 422 {
			rt.Fatalf("%s of %s was answered %d: %s", id, credits, a.status, a.body)
		}
	case known:
		if a.status != 201 || !a.replayed || a.body != first.answer {
			rt.Fatalf("%s of %s again was answered %d: %s", id, credits, a.status, a.body)
		}
	default:
		if a.status != 201 || a.replayed {
			rt.Fatalf("%s of %s was answered %d: %s", id, credits, a.status, a.body)
		}
		n.available.Add(n.available, rat(rt, credits))
		n.grants[id] = said{credits, a.body}
	}
}

func outcome(what string, a answer) string {
	switch {
	case a.status != 201:
		return fmt.Sprint(what, " ", a.status)
	case a.replayed:
		return what + " again"
	}
	return what + " fresh"
}

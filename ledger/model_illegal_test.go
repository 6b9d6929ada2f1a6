package ledger_test

import (
	"errors"
	"math"

	"pgregory.net/rapid"

	"tallystick/internal/fault"
	"tallystick/ledger"
)

// illegal asks for what no caller may: each is refused, and changes nothing.
func (w *world) illegal(t *rapid.T) {
	list := w.illegalOperations()
	i := rapid.IntRange(0, len(list)-1).Draw(t, "illegal")
	op, before := list[i].op, w.balance()
	op.At, op.Actor, op.Cause = w.now, "test", w.id("illegal")
	transfers, err := w.apply(op)
	if err == nil || len(transfers) > 0 || w.balance() != before {
		t.Fatalf("%s: error %v, %d transfers, balance %+v, before %+v", list[i].name, err, len(transfers), w.balance(), before)
	}
	if want := list[i].want; len(want) > 0 {
		found := false
		for _, one := range want {
			found = found || errors.Is(err, one)
		}
		if !found {
			t.Fatalf("%s: error %v, want one of %v", list[i].name, err, want)
		}
	}
	w.cells.note("illegal: "+list[i].name, err)
}

type illegalOperation struct {
	name string
	op   ledger.Operation
	want []error // one of them; none: any error
}

func (w *world) illegalOperations() []illegalOperation {
	most := func(kind ledger.Kind) *ledger.Grant {
		return &ledger.Grant{ID: w.id("huge"), Kind: kind, Credits: math.MaxInt64, CreatedAt: w.now, Fingerprint: make([]byte, 32)}
	}
	broken, tooMany := []error{fault.ErrBroken}, []error{ledger.ErrTooMany}
	unaffordable := []error{ledger.ErrInsufficient, ledger.ErrTooMany}
	list := []illegalOperation{
		{"negative usage", ledger.Operation{Kind: ledger.KindUsage, Amount: -1}, broken},
		{"negative hold", ledger.Operation{Kind: ledger.KindHold, Amount: -1}, broken},
		{"negative grant", ledger.Operation{Kind: ledger.KindGrant, Amount: -1, Grant: most(ledger.KindGrant)}, broken},
		{"negative capture", ledger.Operation{Kind: ledger.KindCapture, Amount: math.MinInt64}, broken},
		{"kind unknown", ledger.Operation{Kind: "gift", Amount: 1}, nil},
		{"kind of its own", ledger.Operation{Kind: ledger.KindDebtRepaid, Amount: 1}, nil},
		{"release of nothing", ledger.Operation{Kind: ledger.KindUnhold}, broken},
		{"release of more than is held", ledger.Operation{Kind: ledger.KindUnhold, Hold: &ledger.Hold{Credits: w.balance().Held + 1}}, broken},
		{"capture of more than is held", ledger.Operation{Kind: ledger.KindCapture, Amount: 1, Hold: &ledger.Hold{Credits: w.balance().Held + 1}}, broken},
		{"release of less than nothing", ledger.Operation{Kind: ledger.KindUnhold, Hold: &ledger.Hold{Credits: -1}}, broken},
		{"usage beyond counting", ledger.Operation{Kind: ledger.KindUsage, Amount: math.MaxInt64}, unaffordable},
		{"hold beyond counting", ledger.Operation{Kind: ledger.KindHold, Amount: math.MaxInt64}, unaffordable},
		{"grant beyond counting", ledger.Operation{Kind: ledger.KindGrant, Amount: math.MaxInt64, Grant: most(ledger.KindGrant)}, tooMany},
		{"capture beyond counting", ledger.Operation{Kind: ledger.KindCapture, Amount: math.MaxInt64}, tooMany},
		{"adjustment up beyond counting", ledger.Operation{Kind: ledger.KindAdjustment, Amount: math.MaxInt64, Grant: most(ledger.KindGrant)}, tooMany},
		{"adjustment down beyond counting", ledger.Operation{Kind: ledger.KindAdjustment, Amount: math.MinInt64 + 1}, unaffordable},
		{"adjustment down beyond negation", ledger.Operation{Kind: ledger.KindAdjustment, Amount: math.MinInt64}, unaffordable},
	}
	if n := len(w.naive.grants); n > 0 {
		g := w.naive.grants[n-1]
		if back := g.credits - g.left + 1; w.roomFor(back) {
			for _, kind := range []ledger.Kind{ledger.KindRefundFailed, ledger.KindDisputeWon} {
				list = append(list, illegalOperation{"more comes back than was taken", ledger.Operation{Kind: kind, Amount: back * w.unit, Grant: w.grants[g.id]}, broken})
			}
		}
	}
	return list
}

package ledger_test

import (
	"slices"

	"pgregory.net/rapid"

	"tallystick/internal/credit"
	"tallystick/ledger"
)

// bare stands in a naive hold for a unit that came out of the overdraft.
const bare = -1

// modelHold is a hold on both sides: as the naive ledger has it, unit by unit,
// and as the kernel takes it.
type modelHold struct {
	id    string
	units []int // indexes of naive grants, in the order of spending
	hold  *ledger.Hold
}

// hold takes units one by one, and what no grant has out of the overdraft.
func (n *naive) hold(amount credit.Amount) (units []int) {
	for range amount {
		best := bare
		for i, g := range n.grants {
			if g.left > 0 && (best == bare || n.first(g, n.grants[best], "")) {
				best = i
			}
		}
		if best == bare {
			n.overdrawn++
		} else {
			n.grants[best].left--
		}
		units = append(units, best)
	}
	return units
}

// giveBack returns units: those of grants that are due are gone; of the others,
// some pay debt, some what is overdrawn, and the rest goes home.
func (n *naive) giveBack(w *world, id string, units []int) {
	units = slices.DeleteFunc(slices.Clone(units), func(u int) bool {
		return u != bare && n.grants[u].expires != nil && !n.grants[u].expires.After(w.now)
	})
	slices.SortStableFunc(units, func(a, b int) int { // those without a grant cover what is overdrawn first
		switch {
		case a == bare && b != bare:
			return -1
		case a != bare && b == bare:
			return 1
		}
		return 0
	})
	repaid := min(n.debt, credit.Amount(len(units)))
	covered := min(n.overdrawn, credit.Amount(len(units))-repaid)
	n.overdrawn -= covered
	n.debt -= repaid
	homeless := credit.Amount(0)
	var home []int
	for _, u := range units[covered:] {
		if u == bare || n.grants[u].left+w.clawed[n.grants[u].id] >= n.grants[u].credits {
			homeless++
			continue
		}
		n.grants[u].left++
		home = append(home, u)
	}
	if homeless > 0 {
		made := naiveGrant{id: "reservation:" + id, credits: homeless, left: homeless, made: w.now}
		n.grants = append(n.grants, made)
		if w.grants[made.id] == nil { // a store finds it by its id
			w.grants[made.id] = &ledger.Grant{ID: made.id}
		}
		for range homeless {
			home = append(home, len(n.grants)-1)
		}
	}
	for _, u := range home[:repaid] {
		n.grants[u].left--
	}
}

// held is in units.
func (w *world) held() (sum credit.Amount) {
	for _, h := range w.holds {
		sum += credit.Amount(len(h.units))
	}
	return sum
}

func (w *world) hold(t *rapid.T) {
	amount := credit.Amount(rapid.IntRange(0, 40).Draw(t, "hold"))
	id := w.id("resv")
	refusal := w.affords(amount)
	transfers := w.do(t, "hold", ledger.Operation{Kind: ledger.KindHold, Cause: id, Amount: amount}, refusal)
	if refusal != nil {
		return
	}
	w.naive.expire(w.now)
	h := modelHold{id: id, units: w.naive.hold(amount), hold: &ledger.Hold{Credits: amount * w.unit}}
	last := transfers[len(transfers)-1]
	for i, grant := range last.GrantIDs {
		h.hold.Parts = append(h.hold.Parts, ledger.Part{Grant: w.grants[grant], Credits: -last.GrantAmounts[i]})
	}
	w.holds = append(w.holds, h)
}

// ended takes a hold out of the list, with what refunds have taken by now.
func (w *world) ended(t *rapid.T) modelHold {
	i := rapid.IntRange(0, len(w.holds)-1).Draw(t, "which")
	h := w.holds[i]
	w.holds = slices.Delete(w.holds, i, i+1)
	for p := range h.hold.Parts {
		h.hold.Parts[p].Clawed = w.clawed[h.hold.Parts[p].Grant.ID] * w.unit
	}
	return h
}

func (w *world) release(t *rapid.T) {
	if len(w.holds) == 0 {
		return
	}
	h := w.ended(t)
	transfers := w.do(t, "release", ledger.Operation{Kind: ledger.KindUnhold, Cause: h.id, Hold: h.hold}, nil)
	wantOut(t, transfers, h.hold.Credits)
	w.naive.expire(w.now)
	w.naive.giveBack(w, h.id, h.units)
}

// wantOut holds what left held against what the hold held.
func wantOut(t *rapid.T, transfers []ledger.Transfer, want credit.Amount) {
	out := credit.Amount(0)
	for _, tr := range transfers {
		if tr.Source == ledger.BookHeld {
			out += tr.Amount
		}
	}
	if out != want {
		t.Fatalf("%d left held, the hold had %d: %+v", out, want, transfers)
	}
}

func (w *world) capture(t *rapid.T) {
	amount := credit.Amount(rapid.IntRange(0, 60).Draw(t, "captured"))
	name, h := "late capture", modelHold{id: w.id("late")}
	refusal := unless(w.fits(w.naive.debt, amount), ledger.ErrTooMany)
	if late := rapid.IntRange(0, 5).Draw(t, "late") == 0; !late && refusal == nil {
		if len(w.holds) == 0 {
			return
		}
		name, h = "capture", w.ended(t)
	}
	transfers := w.do(t, name, ledger.Operation{Kind: ledger.KindCapture, Cause: h.id, Amount: amount, Hold: h.hold}, refusal)
	if refusal != nil {
		return
	}
	charged := credit.Amount(0)
	for _, tr := range transfers {
		if tr.Target == ledger.BookUsage {
			charged += tr.Amount
		}
	}
	if last := transfers[len(transfers)-1]; charged != amount*w.unit || last.Kind != ledger.KindCapture {
		t.Fatalf("capture of %d charged %d, last %+v", amount, charged, last)
	}
	wantOut(t, transfers, credit.Amount(len(h.units))*w.unit)
	w.naive.expire(w.now)
	used := min(int(amount), len(h.units))
	if used < len(h.units) {
		w.naive.giveBack(w, h.id, h.units[used:])
	}
	missing := w.naive.take(amount-credit.Amount(used), "")
	overdraft := min(missing, max(w.naive.overdraft-w.naive.overdrawn, 0))
	w.naive.overdrawn += overdraft
	w.naive.debt += missing - overdraft
}

// refundFailed gives back what refunds took for a grant: it must always fit.
func (w *world) refundFailed(t *rapid.T) {
	for i, g := range w.naive.grants {
		if w.clawed[g.id] == 0 {
			continue
		}
		amount := credit.Amount(rapid.IntRange(1, int(w.clawed[g.id])).Draw(t, "back"))
		refusal := unless(w.roomFor(amount), ledger.ErrTooMany)
		w.do(t, "refund failed", ledger.Operation{Kind: ledger.KindRefundFailed, Cause: w.id("rf"), Amount: amount, Grant: w.grants[g.id]}, refusal)
		if refusal != nil {
			return
		}
		w.clawed[g.id] -= amount
		w.naive.expire(w.now)
		w.naive.grants[i].left += w.naive.give(amount) // of a grant that is due, it expires with the next operation
		return
	}
}

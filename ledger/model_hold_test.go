package ledger_test

import (
	"slices"

	"pgregory.net/rapid"

	"tallystick/internal/credit"
	"tallystick/ledger"
)

// bare stands in a naive hold for a unit that came out of the overdraft.
const bare = -1

// modelHold is a hold, or what a usage took, on both sides: as the naive ledger has it, unit by unit,
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
// some pay debt, some what is overdrawn, and the rest goes home, in the end to a
// grant that is made for it.
func (n *naive) giveBack(w *world, made string, units []int) {
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
		n.grants = append(n.grants, naiveGrant{id: made, credits: homeless, left: homeless, made: w.now})
		if w.grants[made] == nil { // a store finds it by its id
			w.grants[made] = &ledger.Grant{ID: made}
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
	h.hold.Parts = w.took(transfers[len(transfers)-1])
	w.holds = append(w.holds, h)
}

// took is what a transfer took out of grants.
func (w *world) took(tr ledger.Transfer) (parts []ledger.Part) {
	for i, grant := range tr.GrantIDs {
		parts = append(parts, ledger.Part{Grant: w.grants[grant], Credits: -tr.GrantAmounts[i]})
	}
	return parts
}

// ended takes one out of a list, with what refunds have taken by now.
func (w *world) ended(t *rapid.T, list *[]modelHold) modelHold {
	i := rapid.IntRange(0, len(*list)-1).Draw(t, "which")
	h := (*list)[i]
	*list = slices.Delete(*list, i, i+1)
	for p := range h.hold.Parts {
		h.hold.Parts[p].Clawed = w.clawed[h.hold.Parts[p].Grant.ID] * w.unit
	}
	return h
}

func (w *world) release(t *rapid.T) {
	if len(w.holds) == 0 {
		return
	}
	h := w.ended(t, &w.holds)
	transfers := w.do(t, "release", ledger.Operation{Kind: ledger.KindUnhold, Cause: h.id, Hold: h.hold}, nil)
	wantOut(t, transfers, ledger.BookHeld, h.hold.Credits)
	w.naive.expire(w.now)
	w.naive.giveBack(w, "reservation:"+h.id, h.units)
}

// void takes a usage or a capture back, whatever has become of its grants since.
func (w *world) void(t *rapid.T) {
	if len(w.usages) == 0 {
		return
	}
	u := w.ended(t, &w.usages)
	amount := credit.Amount(len(u.units))
	refusal := unless(w.roomFor(amount), ledger.ErrTooMany)
	transfers := w.do(t, "void", ledger.Operation{Kind: ledger.KindVoid, Cause: u.id, Amount: amount, Hold: u.hold}, refusal)
	if refusal != nil {
		return
	}
	wantOut(t, transfers, ledger.BookUsage, u.hold.Credits)
	voids := 0
	for _, tr := range transfers {
		if tr.Kind == ledger.KindVoid {
			voids++
		}
	}
	if voids != 1 {
		t.Fatalf("a void has %d transfers of its kind, want 1: %+v", voids, transfers)
	}
	w.naive.expire(w.now)
	w.naive.giveBack(w, "void@"+u.id, u.units)
}

// wantOut holds what left a book against what was in it.
func wantOut(t *rapid.T, transfers []ledger.Transfer, book ledger.Book, want credit.Amount) {
	out := credit.Amount(0)
	for _, tr := range transfers {
		if tr.Source == book {
			out += tr.Amount
		}
	}
	if out != want {
		t.Fatalf("%d left %s, want %d: %+v", out, book, want, transfers)
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
		name, h = "capture", w.ended(t, &w.holds)
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
	wantOut(t, transfers, ledger.BookHeld, credit.Amount(len(h.units))*w.unit)
	w.naive.expire(w.now)
	used := min(int(amount), len(h.units))
	if used < len(h.units) {
		w.naive.giveBack(w, "reservation:"+h.id, h.units[used:])
	}
	before := w.naive.overdrawn
	units := append(slices.Clone(h.units[:used]), w.naive.hold(amount-credit.Amount(used))...)
	missing := w.naive.overdrawn - before
	overdraft := min(missing, max(w.naive.overdraft-before, 0))
	w.naive.overdrawn = before + overdraft
	w.naive.debt += missing - overdraft
	u := modelHold{id: "reservation@" + h.id, units: units, hold: &ledger.Hold{Credits: amount * w.unit, Parts: front(h.hold, credit.Amount(used)*w.unit)}}
	for _, tr := range transfers {
		if tr.Kind == ledger.KindCapture && tr.Source == ledger.BookAvailable {
			u.hold.Parts = append(u.hold.Parts, w.took(tr)...)
		}
	}
	u.gather()
	w.usages = append(w.usages, u)
}

// gather brings what came out of one grant together, where that grant came first:
// a capture may have taken of it out of the hold and again out of the balance.
func (h *modelHold) gather() {
	var parts []ledger.Part
	for _, p := range h.hold.Parts {
		i := slices.IndexFunc(parts, func(q ledger.Part) bool { return q.Grant == p.Grant })
		if i < 0 {
			parts = append(parts, p)
		} else {
			parts[i].Credits += p.Credits
		}
	}
	h.hold.Parts = parts
	units := slices.Clone(h.units)
	slices.SortStableFunc(h.units, func(a, b int) int { return slices.Index(units, a) - slices.Index(units, b) })
}

// front is what the first so many credits of a hold came out of.
func front(h *ledger.Hold, credits credit.Amount) (parts []ledger.Part) {
	if h == nil {
		return nil
	}
	for _, p := range h.Parts {
		p.Credits = min(p.Credits, credits)
		credits -= p.Credits
		if p.Credits > 0 {
			parts = append(parts, p)
		}
	}
	return parts
}

// refundFailed gives back what refunds took for a grant: it must always fit.
func (w *world) refundFailed(t *rapid.T) {
	for i, g := range w.naive.grants {
		if w.clawed[g.id] == 0 {
			continue
		}
		amount := credit.Amount(rapid.IntRange(1, int(w.clawed[g.id])).Draw(t, "back"))
		refusal := unless(w.roomFor(amount), ledger.ErrTooMany)
		kind := rapid.SampledFrom([]ledger.Kind{ledger.KindRefundFailed, ledger.KindDisputeWon}).Draw(t, "kind")
		w.do(t, "refund failed", ledger.Operation{Kind: kind, Cause: w.id("rf"), Amount: amount, Grant: w.grants[g.id]}, refusal)
		if refusal != nil {
			return
		}
		w.clawed[g.id] -= amount
		w.naive.expire(w.now)
		w.naive.grants[i].left += w.naive.give(amount) // of a grant that is due, it expires with the next operation
		return
	}
}

package ledger_test

import (
	"errors"
	"fmt"
	"time"

	"pgregory.net/rapid"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/ledger"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// naive is a ledger that anybody can check by eye: a list of grants in the order
// of making, a number that is owed, and a number that is overdrawn. It counts in
// units, which are worth one millionth or very many.
type naive struct {
	grants    []naiveGrant
	debt      credit.Amount
	overdrawn credit.Amount
	overdraft credit.Amount
}

type naiveGrant struct {
	id       string
	credits  credit.Amount
	left     credit.Amount
	priority int
	expires  *time.Time
	made     time.Time
}

func (n *naive) available(at time.Time) credit.Amount {
	sum := -n.overdrawn
	for _, g := range n.grants {
		if g.expires == nil || g.expires.After(at) {
			sum += g.left
		}
	}
	return sum
}

// total is what is available while nothing has expired what is due.
func (n *naive) total() credit.Amount {
	sum := -n.overdrawn
	for _, g := range n.grants {
		sum += g.left
	}
	return sum
}

func (n *naive) expire(at time.Time) {
	for i := range n.grants {
		if e := n.grants[i].expires; e != nil && !e.After(at) {
			n.grants[i].left = 0
		}
	}
}

// take removes amount unit by unit from whichever grant comes first.
func (n *naive) take(amount credit.Amount, preferred string) (missing credit.Amount) {
	for amount > 0 {
		best := -1
		for i, g := range n.grants {
			if g.left > 0 && (best < 0 || n.first(g, n.grants[best], preferred)) {
				best = i
			}
		}
		if best < 0 {
			return amount
		}
		n.grants[best].left--
		amount--
	}
	return 0
}

func (n *naive) first(a, b naiveGrant, preferred string) bool {
	if a.id == preferred || b.id == preferred {
		return a.id == preferred
	}
	if a.priority != b.priority {
		return a.priority < b.priority
	}
	never := start.AddDate(100, 0, 0)
	ae, be := never, never
	if a.expires != nil {
		ae = *a.expires
	}
	if b.expires != nil {
		be = *b.expires
	}
	if !ae.Equal(be) {
		return ae.Before(be)
	}
	if !a.made.Equal(b.made) {
		return a.made.Before(b.made)
	}
	return a.id < b.id
}

func (n *naive) give(amount credit.Amount) (rest credit.Amount) {
	repaid := min(n.debt, amount)
	n.debt -= repaid
	amount -= repaid
	covered := min(n.overdrawn, amount)
	n.overdrawn -= covered
	return amount - covered
}

// world drives the kernel, or a store around it, and the naive ledger side by side.
type world struct {
	naive   naive
	unit    credit.Amount // what a unit of the naive ledger is worth in millionths
	now     time.Time
	count   int
	steps   int
	clawed  map[string]credit.Amount // in units
	said    []ledger.Operation       // what was accepted, to be said again
	apply   func(ledger.Operation) ([]ledger.Transfer, error)
	balance func() ledger.Balance
	grants  map[string]*ledger.Grant
	holds   []modelHold
	usages  []modelHold // charged and not voided
	cells   *cells
}

func newWorld(t *rapid.T, c *cells) *world {
	return &world{
		naive: naive{overdraft: credit.Amount(rapid.IntRange(0, 30).Draw(t, "overdraft"))}, now: start, cells: c,
		unit:   rapid.SampledFrom([]credit.Amount{1, 1, 7, 999_999, credit.Amount(credit.Max) / 60, countable / 100, countable / 61}).Draw(t, "unit"),
		clawed: map[string]credit.Amount{}, grants: map[string]*ledger.Grant{},
	}
}

// countable is the most that an account may have, the bound that the kernel states.
const countable = credit.Amount(1) << 61

// fits tells whether so many units more, beside what there is, can be counted.
func (w *world) fits(there, more credit.Amount) bool { return (there+more)*w.unit <= countable }

// roomFor tells whether an account can take so many units in: those that are held
// may come back. None always fit, also where a hold out of the overdraft has gone
// beyond the bound.
func (w *world) roomFor(more credit.Amount) bool {
	return more == 0 || w.fits(max(w.naive.total(), 0)+w.held(), more)
}

func (w *world) id(prefix string) string {
	w.count++
	return fmt.Sprintf("%s-%06d", prefix, w.count)
}

// do applies an operation whose amount is in units, and notes what came of it. The
// outcome must be the one that is expected: nil, or a refusal.
func (w *world) do(t *rapid.T, name string, op ledger.Operation, want error) []ledger.Transfer {
	op.Amount *= w.unit
	op.At, op.Actor = w.now, "test"
	op.Note = fmt.Sprintf("%s of %d", op.Kind, op.Amount)
	transfers, err := w.apply(op)
	if !errors.Is(err, want) {
		t.Fatalf("%s of %d units of %d (%+v): error %v, want %v; the naive ledger has %+v", name, op.Amount/w.unit, w.unit, op, err, want, w.naive)
	}
	w.cells.note(name, err)
	if err == nil {
		w.said = append(w.said, op)
	}
	return transfers
}

func unless(ok bool, refusal error) error {
	if ok {
		return nil
	}
	return refusal
}

// affords is the refusal of a spend, if it is to be refused.
func (w *world) affords(amount credit.Amount) error {
	return unless(amount == 0 || w.naive.available(w.now)-amount >= -w.naive.overdraft, ledger.ErrInsufficient)
}

func (w *world) grant(t *rapid.T) {
	kind := rapid.SampledFrom([]ledger.Kind{ledger.KindGrant, ledger.KindPurchase, ledger.KindAdjustment}).Draw(t, "kind")
	amount := credit.Amount(rapid.IntRange(1, 60).Draw(t, "credits"))
	g := &ledger.Grant{
		ID: w.id("grant"), Kind: kind, Credits: amount * w.unit, Priority: rapid.IntRange(0, 2).Draw(t, "priority"),
		CreatedAt: w.now, Fingerprint: make([]byte, 32),
	}
	switch kind { //nolint:exhaustive // those that were drawn
	case ledger.KindPurchase:
		g.Payment = &g.ID
	case ledger.KindAdjustment:
		g.Kind = ledger.KindGrant
	}
	if rapid.Bool().Draw(t, "expires") {
		at := w.now.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "hours")) * time.Hour)
		g.ExpiresAt = &at
	}
	fits := w.roomFor(amount)
	w.do(t, string(kind), ledger.Operation{Kind: kind, Cause: g.ID, Amount: amount, Grant: g}, unless(fits, ledger.ErrTooMany))
	if !fits {
		return
	}
	w.grants[g.ID] = g
	w.naive.expire(w.now)
	left := w.naive.give(amount)
	w.naive.grants = append(w.naive.grants, naiveGrant{id: g.ID, credits: amount, left: left, priority: g.Priority, expires: g.ExpiresAt, made: w.now})
}

func (w *world) use(t *rapid.T) {
	amount := credit.Amount(rapid.IntRange(0, 50).Draw(t, "amount"))
	refusal := w.affords(amount)
	id := w.id("usage")
	transfers := w.do(t, "usage", ledger.Operation{Kind: ledger.KindUsage, Cause: id, Amount: amount}, refusal)
	if refusal != nil {
		return
	}
	last := transfers[len(transfers)-1]
	if last.Kind != ledger.KindUsage || last.Amount != amount*w.unit {
		t.Fatalf("use %d posted %+v", amount, last)
	}
	w.naive.expire(w.now)
	w.usages = append(w.usages, modelHold{id: id, units: w.naive.hold(amount), hold: &ledger.Hold{Credits: amount * w.unit, Parts: w.took(last)}})
}

func (w *world) refund(t *rapid.T) {
	if len(w.naive.grants) == 0 {
		return
	}
	g := w.naive.grants[rapid.IntRange(0, len(w.naive.grants)-1).Draw(t, "grant")]
	amount := credit.Amount(rapid.IntRange(0, int(g.credits-w.clawed[g.id])).Draw(t, "amount"))
	refusal := unless(w.fits(w.naive.debt, amount), ledger.ErrTooMany)
	kind := rapid.SampledFrom([]ledger.Kind{ledger.KindRefund, ledger.KindDispute}).Draw(t, "kind")
	w.do(t, "refund", ledger.Operation{Kind: kind, Cause: w.id("re"), Amount: amount, Grant: w.grants[g.id]}, refusal)
	if refusal != nil {
		return
	}
	w.clawed[g.id] += amount
	w.naive.expire(w.now)
	w.naive.debt += w.naive.take(amount, g.id)
}

func (w *world) adjust(t *rapid.T) {
	amount := credit.Amount(rapid.IntRange(-40, -1).Draw(t, "amount"))
	refusal := w.affords(-amount)
	w.do(t, "adjustment down", ledger.Operation{Kind: ledger.KindAdjustment, Cause: w.id("adj"), Amount: amount}, refusal)
	if refusal == nil {
		w.naive.expire(w.now)
		w.naive.overdrawn += w.naive.take(-amount, "")
	}
}

func (w *world) wait(t *rapid.T) {
	w.now = w.now.Add(time.Duration(rapid.IntRange(1, 6).Draw(t, "hours")) * time.Hour)
	w.cells.note("clock", nil)
}

// back sets the clock back: what has expired stays so.
func (w *world) back(t *rapid.T) {
	w.now = w.now.Add(-time.Duration(rapid.IntRange(1, 30).Draw(t, "minutes")) * time.Minute)
	w.cells.note("clock back", nil)
}

func (w *world) expire(t *rapid.T) {
	w.do(t, "expiry", ledger.Operation{Kind: ledger.KindExpiry}, nil)
	w.said = w.said[:len(w.said)-1] // it has no id
	w.naive.expire(w.now)
}

// again says something that was said before: the same, or with other content.
func (w *world) again(t *rapid.T) {
	if len(w.said) == 0 {
		return
	}
	op := w.said[rapid.IntRange(0, len(w.said)-1).Draw(t, "which")]
	name, want, before := string(op.Kind)+" again", errAgain, w.balance()
	if rapid.Bool().Draw(t, "other") {
		op.Note, op.Amount = op.Note+" or so", op.Amount+w.unit
		want = fault.ErrIdempotency
	}
	if op.Kind == ledger.KindUnhold || op.Kind == ledger.KindCapture {
		want = errEnded
	}
	op.At = w.now
	transfers, err := w.apply(op)
	if !errors.Is(err, want) || len(transfers) > 0 || w.balance() != before {
		t.Fatalf("%+v again: error %v, want %v, and %+v is to stay %+v", op, err, want, before, w.balance())
	}
	w.cells.note(name, err)
}

func (w *world) check(t *rapid.T) {
	w.steps++
	got := w.balance()
	if got.Available != w.naive.total()*w.unit || got.Debt != w.naive.debt*w.unit || got.Held != w.held()*w.unit {
		t.Fatalf("balance %+v, the naive ledger has %d available, %d held and %d debt, in units of %d", got, w.naive.total(), w.held(), w.naive.debt, w.unit)
	}
}

func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"grant": w.grant, "grant more": w.grant, "use": w.use, "use more": w.use, "refund": w.refund, "adjust": w.adjust, "wait": w.wait, "back": w.back, "expire": w.expire,
		"hold": w.hold, "hold more": w.hold, "release": w.release, "capture": w.capture, "void": w.void, "void more": w.void, "refund failed": w.refundFailed, "again": w.again,
		"illegal": w.illegal, "illegal more": w.illegal, "": w.check,
	}
}

package ledger_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tallystick/internal/credit"
	"tallystick/ledger"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// naive is a ledger that anybody can check by eye: a list of grants in the order
// of making, a number that is owed, and a number that is overdrawn.
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
	now     time.Time
	count   int
	clawed  map[string]credit.Amount
	apply   func(ledger.Operation) ([]ledger.Transfer, error)
	balance func() ledger.Balance
	grants  map[string]*ledger.Grant
	holds   []modelHold
	usages  []modelHold // charged and not voided
}

func (w *world) id(prefix string) string {
	w.count++
	return fmt.Sprintf("%s-%06d", prefix, w.count)
}

func (w *world) grant(t *rapid.T) {
	amount := credit.Amount(rapid.IntRange(1, 60).Draw(t, "credits"))
	g := &ledger.Grant{
		ID: w.id("grant"), Kind: ledger.KindGrant, Credits: amount, Priority: rapid.IntRange(0, 2).Draw(t, "priority"),
		CreatedAt: w.now, Fingerprint: make([]byte, 32),
	}
	if rapid.Bool().Draw(t, "expires") {
		at := w.now.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "hours")) * time.Hour)
		g.ExpiresAt = &at
	}
	if _, err := w.apply(ledger.Operation{Kind: ledger.KindGrant, Cause: g.ID, Amount: amount, Grant: g, At: w.now, Actor: "test"}); err != nil {
		t.Fatalf("grant: %v", err)
	}
	w.grants[g.ID] = g
	w.naive.expire(w.now)
	left := w.naive.give(amount)
	w.naive.grants = append(w.naive.grants, naiveGrant{id: g.ID, credits: amount, left: left, priority: g.Priority, expires: g.ExpiresAt, made: w.now})
}

func (w *world) use(t *rapid.T) {
	amount := credit.Amount(rapid.IntRange(0, 50).Draw(t, "amount"))
	id := w.id("usage")
	transfers, err := w.apply(ledger.Operation{Kind: ledger.KindUsage, Cause: id, Amount: amount, At: w.now, Actor: "test"})
	if fits := w.naive.available(w.now)-amount >= -w.naive.overdraft || amount == 0; fits != (err == nil) {
		t.Fatalf("use %d of %d available, overdraft %d: error %v", amount, w.naive.available(w.now), w.naive.overdraft, err)
	}
	if err != nil {
		if !errors.Is(err, ledger.ErrInsufficient) {
			t.Fatalf("use: %v, want insufficient", err)
		}
		return
	}
	last := transfers[len(transfers)-1]
	if last.Kind != ledger.KindUsage || last.Amount != amount {
		t.Fatalf("use %d posted %+v", amount, last)
	}
	w.naive.expire(w.now)
	w.usages = append(w.usages, modelHold{id: id, units: w.naive.hold(amount), hold: &ledger.Hold{Credits: amount, Parts: w.took(last)}})
}

func (w *world) refund(t *rapid.T) {
	if len(w.naive.grants) == 0 {
		return
	}
	g := w.naive.grants[rapid.IntRange(0, len(w.naive.grants)-1).Draw(t, "grant")]
	amount := credit.Amount(rapid.IntRange(0, int(g.credits-w.clawed[g.id])).Draw(t, "amount"))
	w.clawed[g.id] += amount
	if _, err := w.apply(ledger.Operation{Kind: ledger.KindRefund, Cause: w.id("re"), Amount: amount, Grant: w.grants[g.id], At: w.now, Actor: "test"}); err != nil {
		t.Fatalf("refund: %v", err)
	}
	w.naive.expire(w.now)
	w.naive.debt += w.naive.take(amount, g.id)
}

func (w *world) adjust(t *rapid.T) {
	amount := credit.Amount(rapid.IntRange(-40, -1).Draw(t, "amount"))
	_, err := w.apply(ledger.Operation{Kind: ledger.KindAdjustment, Cause: w.id("adj"), Amount: amount, At: w.now, Actor: "test"})
	if fits := w.naive.available(w.now)+amount >= -w.naive.overdraft; fits != (err == nil) {
		t.Fatalf("adjust by %d with %d available: error %v", amount, w.naive.available(w.now), err)
	}
	if err == nil {
		w.naive.expire(w.now)
		w.naive.overdrawn += w.naive.take(-amount, "")
	}
}

func (w *world) wait(t *rapid.T) {
	w.now = w.now.Add(time.Duration(rapid.IntRange(1, 6).Draw(t, "hours")) * time.Hour)
}

func (w *world) check(t *rapid.T) {
	if _, err := w.apply(ledger.Operation{Kind: ledger.KindExpiry, At: w.now}); err != nil {
		t.Fatalf("expire: %v", err)
	}
	w.naive.expire(w.now)
	got := w.balance()
	if got.Available != w.naive.available(w.now) || got.Debt != w.naive.debt || got.Held != w.held() {
		t.Fatalf("balance %+v, the naive ledger has %d available, %d held and %d debt", got, w.naive.available(w.now), w.held(), w.naive.debt)
	}
}

func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"grant": w.grant, "use": w.use, "use again": w.use, "refund": w.refund, "adjust": w.adjust, "wait": w.wait,
		"hold": w.hold, "hold again": w.hold, "release": w.release, "capture": w.capture, "void": w.void, "void again": w.void, "refund failed": w.refundFailed, "": w.check,
	}
}

func TestKernelAgreesWithNaiveLedger(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		overdraft := credit.Amount(rapid.IntRange(0, 30).Draw(t, "overdraft"))
		s := &ledger.State{Ref: ledger.RefOf("acme"), Overdraft: overdraft}
		version := int64(0)
		w := &world{naive: naive{overdraft: overdraft}, now: start, clawed: map[string]credit.Amount{}, grants: map[string]*ledger.Grant{}}
		w.balance = func() ledger.Balance { return s.Balance }
		w.apply = func(op ledger.Operation) ([]ledger.Transfer, error) {
			before, chain, open := s.Balance, slices.Clone(s.Chain), len(s.Grants)
			transfers, err := ledger.Decide(s, op)
			if err != nil && (s.Balance != before || !slices.Equal(s.Chain, chain) || len(s.Grants) != open) {
				t.Fatalf("a refusal changed the account: %+v, before %+v", s.Balance, before)
			}
			for _, g := range s.Made {
				w.grants[g.ID] = g
			}
			s.Made = nil
			for _, tr := range transfers {
				version++
				if tr.Version != version {
					t.Fatalf("transfer %+v has a version other than %d", tr, version)
				}
			}
			return transfers, err
		}
		t.Repeat(w.actions())
	})
}

package ledger_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"
	"pgregory.net/rapid"

	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
)

var (
	kernelSteps = flag.Int("steps", 1_000_000, "how many random operations the kernel is held against the naive ledger for")
	storeSteps  = flag.Int("store-steps", 3_000, "how many random operations the store is held against the naive ledger for")
)

// What the suite's callers answer when an id comes again. The ledger leaves ids to
// its callers: those of the suite look for the transfer that an id has made.
var (
	errAgain = errors.New("said before")
	errEnded = errors.New("the hold has ended before")
)

// ends tells whether an operation is the ending of a hold.
func ends(op ledger.Operation) bool {
	return op.Kind == ledger.KindUnhold || op.Kind == ledger.KindCapture
}

// repeated is what comes of an id that made a transfer with this note.
func repeated(op ledger.Operation, note string) error {
	switch {
	case ends(op):
		return errEnded
	case note != op.Note:
		return fault.ErrIdempotency
	}
	return errAgain
}

// cells counts what came of each operation.
type cells struct {
	mu     sync.Mutex
	counts map[string]int
	steps  int
}

func (c *cells) note(name string, err error) {
	outcome := "done"
	switch {
	case errors.Is(err, errAgain), errors.Is(err, fault.ErrIdempotency), errors.Is(err, errEnded), errors.Is(err, ledger.ErrInsufficient), errors.Is(err, ledger.ErrTooMany):
		outcome = err.Error()
		var f *fault.Error
		if errors.As(err, &f) {
			outcome = f.Code
		}
	case err != nil:
		outcome = "refused"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[name+": "+outcome]++
}

// covered fails the test unless every operation met with every outcome that it can
// have, and spends were refused about as often as not. In few steps a balance that
// reaches its bound is too rare to be asked for.
func (c *cells) covered(t *testing.T, few bool) {
	t.Helper()
	t.Logf("%d steps, %d cells: %v", c.steps, len(c.counts), c.counts)
	want := []string{"clock: done", "clock back: done", "expiry: done", "release: done", "void: done", "capture: done", "unhold again: " + errEnded.Error(), "capture again: " + errEnded.Error()}
	for _, name := range []string{"grant", "purchase", "adjustment", "refund", "refund failed", "late capture"} {
		want = append(want, name+": done", name+": balance_out_of_range")
	}
	for _, name := range []string{"usage", "hold", "adjustment down"} {
		want = append(want, name+": done", name+": insufficient_credits")
	}
	for _, kind := range []ledger.Kind{"grant", "purchase", "adjustment", "usage", "hold", "refund", "refund_failed", "void"} {
		want = append(want, string(kind)+" again: "+errAgain.Error(), string(kind)+" again: idempotency_conflict")
	}
	for _, cell := range want {
		rare := strings.HasSuffix(cell, "out_of_range") || strings.HasPrefix(cell, "refund") && strings.Contains(cell, " again: ")
		if c.counts[cell] == 0 && (!few || !rare) {
			t.Errorf("it never came to %q", cell)
		}
	}
	done, refused := 0, 0
	for _, name := range []string{"usage", "hold", "adjustment down"} {
		done, refused = done+c.counts[name+": done"], refused+c.counts[name+": insufficient_credits"]
	}
	if share := 100 * refused / max(done+refused, 1); share < 30 || share > 70 {
		t.Errorf("%d%% of the spends were refused, want 30 to 70", share)
	}
}

// illegalCovered fails the test unless each illegal operation was tried.
func (c *cells) illegalCovered(t *testing.T) {
	t.Helper()
	w := &world{unit: 1, now: start, balance: func() ledger.Balance { return ledger.Balance{} }}
	for _, o := range w.illegalOperations() {
		found := false
		for _, outcome := range []string{"refused", "insufficient_credits", "balance_out_of_range"} {
			found = found || c.counts["illegal: "+o.name+": "+outcome] > 0
		}
		if !found {
			t.Errorf("%s was never tried", o.name)
		}
	}
	if c.counts["illegal: more comes back than was taken: refused"] == 0 {
		t.Error("it was never tried that more comes back than was taken")
	}
}

// play plays stories, each with a world of its own, until so many steps are done.
func (c *cells) play(t *testing.T, steps int, begin func(rt *rapid.T, w *world)) {
	t.Helper()
	for c.steps < steps && !t.Failed() {
		rapid.Check(t, func(rt *rapid.T) {
			w := newWorld(rt, c)
			begin(rt, w)
			rt.Repeat(w.actions())
			c.steps += w.steps
		})
	}
}

// TestKernelAgreesWithNaiveLedger is the suite on the pure kernel. -steps says how long.
func TestKernelAgreesWithNaiveLedger(t *testing.T) {
	t.Parallel()
	c := &cells{counts: map[string]int{}}
	c.play(t, *kernelSteps, func(rt *rapid.T, w *world) {
		s := &ledger.State{Ref: ledger.RefOf("acme"), Overdraft: w.naive.overdraft * w.unit}
		k := &kernelBooks{w: w, s: s, keys: map[string]string{}}
		w.balance = func() ledger.Balance { return s.Balance }
		w.apply = func(op ledger.Operation) ([]ledger.Transfer, error) { return k.apply(rt, op) }
	})
	c.covered(t, *kernelSteps < 100_000)
	c.illegalCovered(t)
}

// kernelBooks is the kernel with the least of a caller around it.
type kernelBooks struct {
	w       *world
	s       *ledger.State
	version int64
	keys    map[string]string
}

func keyOf(op ledger.Operation) string {
	if ends(op) {
		return "end " + op.Cause
	}
	return string(op.Kind) + " " + op.Cause
}

func (k *kernelBooks) apply(t *rapid.T, op ledger.Operation) ([]ledger.Transfer, error) {
	if note, known := k.keys[keyOf(op)]; known {
		return nil, repeated(op, note)
	}
	s := k.s
	before, chain, open := s.Balance, slices.Clone(s.Chain), len(s.Grants)
	transfers, err := ledger.Decide(s, op)
	if err != nil && (s.Balance != before || !slices.Equal(s.Chain, chain) || len(s.Grants) != open) {
		t.Fatalf("a refusal changed the account: %+v, before %+v", s.Balance, before)
	}
	for _, g := range s.Made {
		k.w.grants[g.ID] = g
	}
	s.Made = nil
	for _, tr := range transfers {
		if k.version++; tr.Version != k.version || tr.Amount < 0 {
			t.Fatalf("transfer %+v has a version other than %d, or a negative amount", tr, k.version)
		}
	}
	if err == nil && op.Cause != "" {
		k.keys[keyOf(op)] = op.Note
	}
	return transfers, err
}

// TestStoreAgreesWithNaiveLedger is the suite on Postgres. -store-steps says how long.
func TestStoreAgreesWithNaiveLedger(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	n, c := 0, &cells{counts: map[string]int{}}
	c.play(t, *storeSteps, func(_ *rapid.T, w *world) {
		n++
		ref := ledger.RefOf(fmt.Sprintf("acme-%d", n))
		put(t, db, ledger.Account{Ref: ref, Overdraft: w.naive.overdraft * w.unit})
		w.balance = func() ledger.Balance { return balance(t, db, ref) }
		w.apply = func(op ledger.Operation) ([]ledger.Transfer, error) { return applyOnce(db, ref, op) }
	})
	c.covered(t, *storeSteps < 100_000)
	c.illegalCovered(t)
	for _, name := range broken(t, db) {
		if !slices.Contains([]string{"usage", "adjustments", "held", "holds", "payments", "voids"}, name) { // posted here without their own rows
			t.Errorf("after random operations Verify finds %s broken", name)
		}
	}
}

// applyOnce is apply for a caller whose key is the transfer itself, looked for
// under the account's lock.
func applyOnce(db *pg.DB, ref ledger.Ref, op ledger.Operation) (transfers []ledger.Transfer, err error) {
	ctx := context.Background()
	err = db.InTx(ctx, func(tx *sqlx.Tx) error {
		b, err := ledger.Load(ctx, tx, []ledger.Ref{ref})
		if err != nil {
			return err
		}
		var notes []string
		const query = `SELECT note FROM transfers WHERE part = $1 AND account = $2 AND cause = $3 AND cause <> '' AND (kind = $4 OR ($5 AND kind <> 'hold')) LIMIT 1`
		if err := tx.SelectContext(ctx, &notes, query, ref.Part, ref.Account, op.Cause, string(op.Kind), ends(op)); err != nil {
			return err
		}
		if len(notes) > 0 {
			return repeated(op, notes[0])
		}
		transfers, err = applyLoaded(ctx, tx, b, ref, op)
		return err
	})
	if err != nil {
		return nil, err
	}
	return transfers, nil
}

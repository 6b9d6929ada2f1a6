package ledger

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
)

// Refusals of the ledger.
var (
	ErrInsufficient = &fault.Error{Kind: fault.KindExhausted, Code: "insufficient_credits", Public: "the account has not enough credits; grant or buy some, then send the same request with the same id again"}
	ErrNoAccount    = &fault.Error{Kind: fault.KindNotFound, Code: "account_not_found", Public: "there is no such account; create it with PUT /v1/accounts/{account}"}
	ErrTooMany      = &fault.Error{Kind: fault.KindUnprocessed, Code: "balance_out_of_range", Public: "the balance would grow beyond what can be counted"}
)

// balanceMax bounds what an account has (available and held together) and what it
// owes, so that no sum of two can overflow an int64.
const balanceMax = credit.Amount(1) << 61

// Ref names an account together with its part.
type Ref struct {
	Part    int16
	Account string
}

// RefOf gives the account's Ref. The part is a fixed hash of the id: it must
// never change, since it is in every key.
func RefOf(account string) Ref {
	h := fnv.New32a()
	_, _ = h.Write([]byte(account))
	return Ref{Part: int16(h.Sum32() & 0xff), Account: account}
}

// Compare orders Refs as their rows are locked: by part, then by account.
func (r Ref) Compare(other Ref) int {
	if r.Part != other.Part {
		return int(r.Part) - int(other.Part)
	}
	return strings.Compare(r.Account, other.Account)
}

// Kind is what a transfer does.
type Kind string

// The kinds of transfers.
const (
	KindPurchase     Kind = "purchase"
	KindGrant        Kind = "grant"
	KindUsage        Kind = "usage"
	KindHold         Kind = "hold"    // of a reservation
	KindUnhold       Kind = "unhold"  // what a reservation gives back
	KindCapture      Kind = "capture" // usage that a reservation was for
	KindVoid         Kind = "void"    // takes usage back
	KindRefund       Kind = "refund"
	KindRefundFailed Kind = "refund_failed"
	KindDispute      Kind = "dispute"     // taken back because the buyer's bank took the money
	KindDisputeWon   Kind = "dispute_won" // given back because money came back
	KindExpiry       Kind = "expiry"
	KindAdjustment   Kind = "adjustment"
	KindDebtRepaid   Kind = "debt_repaid"
)

// Book is one side of a transfer.
type Book string

// The account's own books, and those of the world outside.
const (
	BookAvailable   Book = "available"
	BookHeld        Book = "held"
	BookDebt        Book = "debt"
	BookPurchases   Book = "purchases"
	BookGrants      Book = "grants"
	BookUsage       Book = "usage"
	BookRefunds     Book = "refunds"
	BookDisputes    Book = "disputes"
	BookExpired     Book = "expired"
	BookAdjustments Book = "adjustments"
)

// outside is the book on the other side of each kind.
var outside = map[Kind]Book{
	KindPurchase: BookPurchases, KindGrant: BookGrants, KindUsage: BookUsage, KindRefund: BookRefunds,
	KindRefundFailed: BookRefunds, KindExpiry: BookExpired, KindAdjustment: BookAdjustments, KindDebtRepaid: BookDebt,
	KindHold: BookHeld, KindUnhold: BookHeld, KindCapture: BookUsage, KindVoid: BookUsage,
	KindDispute: BookDisputes, KindDisputeWon: BookDisputes,
}

// Balance is what an account has, at one version of it.
type Balance struct {
	Available credit.Amount `db:"available"`
	Held      credit.Amount `db:"held"`
	Debt      credit.Amount `db:"debt"`
	Version   int64         `db:"version"`
}

// Grant is credits given, and what is left of them.
type Grant struct {
	ID              string        `db:"grant_id"`
	Kind            Kind          `db:"kind"`
	Credits         credit.Amount `db:"credits"`
	Remaining       credit.Amount `db:"remaining"`
	Priority        int           `db:"priority"` // lower is spent first
	ExpiresAt       *time.Time    `db:"expires_at"`
	Reason          string        `db:"reason"`
	Payment         *string       `db:"payment"`
	Fingerprint     []byte        `db:"fingerprint"`
	TransferVersion int64         `db:"transfer_version"`
	CreatedAt       time.Time     `db:"created_at"`
}

// due tells whether the grant's credits are no longer spendable at a moment.
func (g *Grant) due(at time.Time) bool {
	return g.ExpiresAt != nil && !g.ExpiresAt.After(at)
}

// before is the order of spending: priority, expiry (never last), age, id.
func (g *Grant) before(other *Grant) int {
	switch {
	case g.Priority != other.Priority:
		return g.Priority - other.Priority
	case g.ExpiresAt != nil && other.ExpiresAt == nil:
		return -1
	case g.ExpiresAt == nil && other.ExpiresAt != nil:
		return 1
	case g.ExpiresAt != nil && !g.ExpiresAt.Equal(*other.ExpiresAt):
		return g.ExpiresAt.Compare(*other.ExpiresAt)
	case !g.CreatedAt.Equal(other.CreatedAt):
		return g.CreatedAt.Compare(other.CreatedAt)
	}
	return strings.Compare(g.ID, other.ID)
}

// State is an account as the kernel sees it: balance, chain and open grants.
type State struct {
	Ref
	Balance
	Overdraft credit.Amount
	Chain     []byte   // hash of the last transfer; empty before the first
	Grants    []*Grant // those with a remainder, in the order of spending
	Made      []*Grant // those that the kernel made by itself and the store does not keep yet
}

// Operation is one thing that happens to an account.
type Operation struct {
	Kind   Kind
	Cause  string        // id of the usage, grant, refund, adjustment or reservation behind it
	Amount credit.Amount // never negative, except for an adjustment
	Grant  *Grant        // the grant to make (purchase, grant), or the one that a refund or a dispute concerns
	Hold   *Hold         // what is to end by an unhold or a capture, or what a voided usage took; nil: a capture after the hold's end
	Actor  string
	Note   string
	At     time.Time
}

// Transfer is one row of the journal.
type Transfer struct {
	Ref
	Version      int64
	Kind         Kind
	Amount       credit.Amount
	Source       Book
	Target       Book
	Cause        string
	GrantIDs     []string
	GrantAmounts []credit.Amount
	After        Balance
	Actor        string
	Note         string
	PostedAt     time.Time
	Hash         []byte
}

// Decide applies op to s and returns the transfers to post, in order. It is
// pure but for s. A refusal leaves s as it was.
//
// Grants that are due expire first. Spending takes the open grants in order and
// then the overdraft. New credits pay debt first and then what is overdrawn; the
// rest is the grant's. Taking back for a refund or a dispute takes from the grant concerned,
// then from the others, never into the overdraft; what is missing becomes debt.
//
// A hold spends into held, so it is refused where usage would be. What is held
// belongs to no grant's remainder: it does not expire, and no refund takes it.
// An unhold or a capture ends a hold; giveBack and capture say how. A void gives
// back what a usage took, by the same rule as an unhold.
func Decide(s *State, op Operation) ([]Transfer, error) {
	if err := check(s, op); err != nil {
		return nil, err
	}
	d := &decision{s: s, op: op}
	d.expire()
	switch op.Kind {
	case KindUsage, KindHold:
		d.spend()
	case KindUnhold:
		d.giveBack(KindUnhold, 0)
	case KindVoid:
		d.giveBack(KindVoid, 0)
	case KindCapture:
		d.capture()
	case KindPurchase, KindGrant:
		d.credit(op.Grant, op.Amount)
	case KindAdjustment:
		if op.Amount < 0 {
			d.op.Amount = -op.Amount
			d.spend()
		} else {
			d.credit(op.Grant, op.Amount)
		}
	case KindRefund, KindDispute:
		d.takeBack()
	case KindRefundFailed, KindDisputeWon:
		d.credit(d.find(op.Grant), op.Amount)
	case KindExpiry: // done above
	case KindDebtRepaid: // check refuses it
	}
	return d.posted, nil
}

// check refuses op before anything has changed.
func check(s *State, op Operation) error {
	if _, known := outside[op.Kind]; !known {
		return fmt.Errorf("operation of unknown kind %q", op.Kind)
	}
	if op.Kind == KindDebtRepaid {
		return fmt.Errorf("%s is no operation of its own", op.Kind)
	}
	if op.Amount < 0 && op.Kind != KindAdjustment {
		return fault.ErrBroken.With(fmt.Errorf("%s of the negative amount %s", op.Kind, op.Amount))
	}
	spendable := s.Available
	for _, g := range s.Grants {
		if g.due(op.At) {
			spendable -= g.Remaining
		}
	}
	need := op.Amount
	if op.Kind == KindAdjustment {
		need = -op.Amount
	}
	spends := op.Kind == KindUsage || op.Kind == KindHold || op.Kind == KindAdjustment
	if spends && need > 0 && spendable-need < -s.Overdraft {
		refusal := ErrInsufficient.WithExtra("available", spendable).WithExtra("held", s.Held)
		if spendable+max(s.Held-s.Debt, 0)-need >= -s.Overdraft { // what comes back pays debt first
			refusal = refusal.WithExtra("held_by_reservations", true)
		}
		return refusal
	}
	if !countable(s, op) {
		return ErrTooMany
	}
	switch op.Kind {
	case KindRefundFailed, KindDisputeWon:
		return checkRoom(s, op)
	case KindUnhold, KindCapture:
		return checkHold(s, op)
	case KindVoid:
		return checkVoid(op)
	case KindPurchase, KindGrant, KindUsage, KindHold, KindRefund, KindDispute, KindExpiry, KindAdjustment, KindDebtRepaid:
	}
	return nil
}

// countable tells whether what op adds to a balance stays within balanceMax. What
// is held counts with what is available, because it may come back. Credits that
// only leave an account never make it too large, however much it has.
func countable(s *State, op Operation) bool {
	if op.Amount > balanceMax || op.Amount < -balanceMax {
		return false
	}
	switch op.Kind {
	case KindPurchase, KindGrant, KindAdjustment, KindRefundFailed, KindDisputeWon, KindVoid:
		return op.Amount <= 0 || op.Amount <= balanceMax-max(s.Available, 0)-s.Held
	case KindRefund, KindDispute, KindCapture:
		return op.Amount <= balanceMax-s.Debt
	case KindUsage, KindHold, KindUnhold, KindExpiry, KindDebtRepaid:
	}
	return true
}

// checkRoom makes sure that what comes back fits into the grant it was taken
// from: more can only come back through a bug, and is refused, not guessed.
func checkRoom(s *State, op Operation) error {
	remaining := op.Grant.Remaining
	if i := slices.IndexFunc(s.Grants, func(g *Grant) bool { return g.ID == op.Grant.ID }); i >= 0 {
		remaining = s.Grants[i].Remaining
	}
	if remaining+op.Amount > op.Grant.Credits {
		return fault.ErrBroken.With(fmt.Errorf("%s would come back to grant %s, which has room for %s", op.Amount, op.Grant.ID, op.Grant.Credits-remaining))
	}
	return nil
}

// decision is Decide under way.
type decision struct {
	s      *State
	op     Operation
	posted []Transfer
}

// expire moves the remainders of due grants out, one transfer each.
func (d *decision) expire() {
	for _, g := range slices.Clone(d.s.Grants) {
		if !g.due(d.op.At) {
			continue
		}
		t := d.draft(KindExpiry, g.Remaining, BookAvailable, BookExpired)
		t.Cause, t.Actor, t.Note = g.ID, "system:expiry", ""
		d.change(&t, g, -g.Remaining)
		d.post(t)
	}
}

// spend takes the amount out of the open grants, and what they lack out of the
// overdraft.
func (d *decision) spend() {
	t := d.draft(d.op.Kind, d.op.Amount, BookAvailable, outside[d.op.Kind])
	d.consume(&t, d.s.Grants, d.op.Amount)
	d.post(t)
}

// takeBack brings credits back for money that went back.
func (d *decision) takeBack() {
	order := slices.Clone(d.s.Grants)
	slices.SortStableFunc(order, func(a, b *Grant) int {
		switch d.op.Grant.ID {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	covered := min(d.op.Amount, max(d.s.Available, 0))
	if covered > 0 || d.op.Amount == 0 {
		t := d.draft(d.op.Kind, covered, BookAvailable, outside[d.op.Kind])
		d.consume(&t, order, covered)
		d.post(t)
	}
	if missing := d.op.Amount - covered; missing > 0 {
		d.post(d.draft(d.op.Kind, missing, BookDebt, outside[d.op.Kind]))
	}
}

// credit puts the amount into g, less what pays debt and what is overdrawn.
func (d *decision) credit(g *Grant, amount credit.Amount) {
	repaid := min(d.s.Debt, amount)
	overdrawn := min(max(-d.s.Available, 0), amount-repaid)
	if g.TransferVersion == 0 {
		g.TransferVersion = d.s.Version + 1
	}
	t := d.draft(d.op.Kind, amount, outside[d.op.Kind], BookAvailable)
	d.change(&t, g, amount-overdrawn)
	d.post(t)
	if repaid > 0 {
		t := d.draft(KindDebtRepaid, repaid, BookAvailable, BookDebt)
		d.change(&t, g, -repaid)
		d.post(t)
	}
}

// find gives the state's own copy of g where it is open, so that a change shows.
func (d *decision) find(g *Grant) *Grant {
	if i := slices.IndexFunc(d.s.Grants, func(open *Grant) bool { return open.ID == g.ID }); i >= 0 {
		return d.s.Grants[i]
	}
	return g
}

// consume takes amount out of grants in the given order, as far as they go.
func (d *decision) consume(t *Transfer, grants []*Grant, amount credit.Amount) {
	for _, g := range slices.Clone(grants) {
		if amount == 0 {
			return
		}
		part := min(amount, g.Remaining)
		if part > 0 {
			d.change(t, g, -part)
			amount -= part
		}
	}
}

// change moves a grant's remainder, notes it in the transfer, and keeps the
// state's list of open grants whole and in order.
func (d *decision) change(t *Transfer, g *Grant, by credit.Amount) {
	t.GrantIDs = append(t.GrantIDs, g.ID)
	t.GrantAmounts = append(t.GrantAmounts, by)
	g.Remaining += by
	i := slices.Index(d.s.Grants, g)
	switch {
	case i >= 0 && g.Remaining == 0:
		d.s.Grants = slices.Delete(d.s.Grants, i, i+1)
	case i < 0 && g.Remaining > 0:
		at, _ := slices.BinarySearchFunc(d.s.Grants, g, func(a, b *Grant) int { return a.before(b) })
		d.s.Grants = slices.Insert(d.s.Grants, at, g)
	}
}

func (d *decision) draft(kind Kind, amount credit.Amount, source, target Book) Transfer {
	return Transfer{
		Ref: d.s.Ref, Kind: kind, Amount: amount, Source: source, Target: target, Cause: d.op.Cause,
		GrantIDs: []string{}, GrantAmounts: []credit.Amount{}, Actor: d.op.Actor, Note: d.op.Note, PostedAt: d.op.At,
	}
}

// post moves the balance, numbers the transfer and chains it.
func (d *decision) post(t Transfer) {
	d.move(t.Source, -t.Amount)
	d.move(t.Target, t.Amount)
	d.s.Version++
	t.Version, t.After = d.s.Version, d.s.Balance
	t.Hash = chain(d.s.Chain, &t)
	d.s.Chain = t.Hash
	d.posted = append(d.posted, t)
}

func (d *decision) move(book Book, by credit.Amount) {
	switch book {
	case BookAvailable:
		d.s.Available += by
	case BookHeld:
		d.s.Held += by
	case BookDebt:
		d.s.Debt -= by // the book's balance is minus what is owed
	case BookPurchases, BookGrants, BookUsage, BookRefunds, BookDisputes, BookExpired, BookAdjustments: // not this account's
	}
}

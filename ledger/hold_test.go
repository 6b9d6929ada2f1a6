package ledger_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
)

// desk is one account of the kernel's, written down in short.
type desk struct {
	t      *testing.T
	s      *ledger.State
	now    time.Time
	grants map[string]*ledger.Grant
	holds  map[string]*ledger.Hold
	clawed map[string]credit.Amount
}

func newDesk(t *testing.T, overdraft credit.Amount) *desk {
	t.Helper()
	return &desk{
		t: t, s: &ledger.State{Ref: ledger.RefOf("acme"), Overdraft: overdraft}, now: start,
		grants: map[string]*ledger.Grant{}, holds: map[string]*ledger.Hold{}, clawed: map[string]credit.Amount{},
	}
}

// do applies an operation and gives its transfers in short: kind, amount and books.
func (d *desk) do(op ledger.Operation) (string, error) {
	op.At, op.Actor = d.now, "test"
	transfers, err := ledger.Decide(d.s, op)
	var lines []string
	for _, tr := range transfers {
		changes := ""
		for i, id := range tr.GrantIDs {
			changes += fmt.Sprintf(" %s%+d", id, tr.GrantAmounts[i])
			if op.Kind == ledger.KindHold && tr.Kind == ledger.KindHold {
				d.holds[op.Cause].Parts = append(d.holds[op.Cause].Parts, ledger.Part{Grant: d.grants[id], Credits: -tr.GrantAmounts[i]})
			}
		}
		lines = append(lines, fmt.Sprintf("%s %d %s>%s%s", tr.Kind, tr.Amount, tr.Source, tr.Target, changes))
	}
	return strings.Join(lines, "; "), err
}

func (d *desk) give(id string, amount credit.Amount, priority int, hours int) {
	d.t.Helper()
	g := grantOf(id, amount)
	g.Priority, d.grants[id] = priority, g
	if hours > 0 {
		at := start.Add(time.Duration(hours) * time.Hour)
		g.ExpiresAt = &at
	}
	d.must(ledger.Operation{Kind: ledger.KindGrant, Cause: id, Amount: amount, Grant: g})
}

func (d *desk) must(op ledger.Operation) string {
	d.t.Helper()
	text, err := d.do(op)
	if err != nil {
		d.t.Fatalf("%s of %d: %v", op.Kind, op.Amount, err)
	}
	return text
}

func (d *desk) hold(id string, amount credit.Amount) string {
	d.t.Helper()
	d.holds[id] = &ledger.Hold{Credits: amount}
	return d.must(ledger.Operation{Kind: ledger.KindHold, Cause: id, Amount: amount})
}

func (d *desk) of(id string) *ledger.Hold {
	for i := range d.holds[id].Parts {
		d.holds[id].Parts[i].Clawed = d.clawed[d.holds[id].Parts[i].Grant.ID]
	}
	return d.holds[id]
}

func (d *desk) release(id string) string {
	d.t.Helper()
	return d.must(ledger.Operation{Kind: ledger.KindUnhold, Cause: id, Hold: d.of(id)})
}

func (d *desk) capture(id string, amount credit.Amount) string {
	d.t.Helper()
	return d.must(ledger.Operation{Kind: ledger.KindCapture, Cause: id, Amount: amount, Hold: d.of(id)})
}

func (d *desk) refund(id string, amount credit.Amount) string {
	d.t.Helper()
	d.clawed[id] += amount
	return d.must(ledger.Operation{Kind: ledger.KindRefund, Cause: "re-1", Amount: amount, Grant: d.grants[id]})
}

// endings plays each ending of a hold.
var endings = []struct {
	name      string
	overdraft credit.Amount
	play      func(d *desk) string // gives the last step's transfers
	want      string
	balance   string // available/held/debt
}{
	{
		"a hold names its grants", 0, func(d *desk) string { d.give("a", 5, 0, 0); d.give("b", 5, 1, 0); return d.hold("r", 7) },
		"hold 7 available>held a-5 b-2", "3/7/0",
	},
	{
		"a release puts them back", 0, func(d *desk) string {
			d.give("a", 5, 0, 0)
			d.give("b", 5, 1, 0)
			d.hold("r", 7)
			return d.release("r")
		},
		"unhold 7 held>available a+5 b+2", "10/0/0",
	},
	{
		"capture of all", 0, func(d *desk) string { d.give("a", 5, 0, 0); d.hold("r", 5); return d.capture("r", 5) },
		"capture 5 held>usage", "0/0/0",
	},
	{
		"capture of less returns the last", 0, func(d *desk) string {
			d.give("a", 5, 0, 0)
			d.give("b", 5, 1, 0)
			d.hold("r", 7)
			return d.capture("r", 4)
		},
		"unhold 3 held>available a+1 b+2; capture 4 held>usage", "6/0/0",
	},
	{
		"capture of nothing", 0, func(d *desk) string { d.give("a", 5, 0, 0); d.hold("r", 5); return d.capture("r", 0) },
		"unhold 5 held>available a+5; capture 0 available>usage", "5/0/0",
	},
	{
		"capture beyond takes the balance", 0, func(d *desk) string { d.give("a", 9, 0, 0); d.hold("r", 5); return d.capture("r", 7) },
		"capture 5 held>usage; capture 2 available>usage a-2", "2/0/0",
	},
	{
		"then the overdraft, then debt", 3, func(d *desk) string { d.give("a", 6, 0, 0); d.hold("r", 5); return d.capture("r", 12) },
		"capture 5 held>usage; capture 4 available>usage a-1; capture 3 debt>usage", "-3/0/3",
	},
	{
		"after the hold", 0, func(d *desk) string {
			d.give("a", 2, 0, 0)
			return d.must(ledger.Operation{Kind: ledger.KindCapture, Cause: "r", Amount: 3})
		},
		"capture 2 available>usage a-2; capture 1 debt>usage", "0/0/1",
	},
	{
		"held credits do not expire", 0, func(d *desk) string {
			d.give("a", 5, 0, 1)
			d.hold("r", 3)
			d.now = d.now.Add(time.Hour)
			return d.capture("r", 3)
		},
		"expiry 2 available>expired a-2; capture 3 held>usage", "0/0/0",
	},
	{
		"what comes back due expires", 0, func(d *desk) string {
			d.give("a", 5, 0, 1)
			d.give("b", 5, 1, 0)
			d.hold("r", 7)
			d.now = d.now.Add(time.Hour)
			return d.release("r")
		},
		"expiry 5 held>expired; unhold 2 held>available b+2", "5/0/0",
	},
	{
		"not a microsecond before", 0, func(d *desk) string {
			d.give("a", 5, 0, 1)
			d.hold("r", 5)
			d.now = d.now.Add(time.Hour - time.Microsecond)
			return d.release("r")
		},
		"unhold 5 held>available a+5", "5/0/0",
	},
	{
		"all of it due", 0, func(d *desk) string {
			d.give("a", 5, 0, 1)
			d.hold("r", 5)
			d.now = d.now.Add(time.Hour)
			return d.release("r")
		},
		"expiry 5 held>expired", "0/0/0",
	},
	{
		"a hold of nothing", 0, func(d *desk) string { d.hold("r", 0); return d.release("r") },
		"unhold 0 held>available", "0/0/0",
	},
	{
		"the overdraft can be held", 4, func(d *desk) string { d.give("a", 3, 0, 0); d.hold("r", 7); return d.release("r") },
		"unhold 7 held>available a+3", "3/0/0",
	},
	{
		"covered meanwhile it becomes a grant", 4, func(d *desk) string { d.hold("r", 4); d.give("a", 10, 0, 0); return d.release("r") },
		"unhold 4 held>available reservation:r+4", "10/0/0",
	},
	{
		"it covers what is overdrawn", 4, func(d *desk) string {
			d.give("a", 3, 0, 0)
			d.hold("r", 3)
			d.must(ledger.Operation{Kind: ledger.KindUsage, Cause: "u", Amount: 2})
			return d.release("r")
		},
		"unhold 3 held>available a+1", "1/0/0",
	},
	{
		"no refund takes what is held, what comes back pays its debt", 0, func(d *desk) string { d.give("a", 10, 0, 0); d.hold("r", 6); d.refund("a", 10); return d.release("r") },
		"unhold 6 held>available reservation:r+6; debt_repaid 6 available>debt reservation:r-6", "0/0/0",
	},
	{
		"a refund that fails has its place", 0, func(d *desk) string {
			d.give("a", 10, 0, 0)
			d.give("b", 10, 1, 0)
			d.hold("r", 6)
			d.refund("a", 10)
			d.release("r")
			return d.must(ledger.Operation{Kind: ledger.KindRefundFailed, Cause: "rf-1", Amount: 10, Grant: d.grants["a"]})
		},
		"refund_failed 10 refunds>available a+10", "20/0/0",
	},
}

func TestEndingsOfHolds(t *testing.T) {
	t.Parallel()
	for _, tc := range endings {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, tc.overdraft)
			if got := tc.play(d); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if got := fmt.Sprintf("%d/%d/%d", d.s.Available, d.s.Held, d.s.Debt); got != tc.balance {
				t.Errorf("the balance is %s, want %s", got, tc.balance)
			}
		})
	}
}

func TestRefusalsOfHolds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		op      ledger.Operation
		want    error
		by      any // held_by_reservations
		changed string
	}{
		{"a hold to the last credit", ledger.Operation{Kind: ledger.KindHold, Cause: "s", Amount: 4}, nil, nil, "0/10/0"},
		{"one beyond, which only the hold withholds", ledger.Operation{Kind: ledger.KindHold, Cause: "s", Amount: 5}, ledger.ErrInsufficient, true, "4/6/0"},
		{"all there is", ledger.Operation{Kind: ledger.KindHold, Cause: "s", Amount: 10}, ledger.ErrInsufficient, true, "4/6/0"},
		{"more than there is", ledger.Operation{Kind: ledger.KindHold, Cause: "s", Amount: 11}, ledger.ErrInsufficient, nil, "4/6/0"},
		{"usage withheld", ledger.Operation{Kind: ledger.KindUsage, Cause: "u", Amount: 5}, ledger.ErrInsufficient, true, "4/6/0"},
		{"usage of more than there is", ledger.Operation{Kind: ledger.KindUsage, Cause: "u", Amount: 11}, ledger.ErrInsufficient, nil, "4/6/0"},
		{"an adjustment withheld", ledger.Operation{Kind: ledger.KindAdjustment, Cause: "x", Amount: -5}, ledger.ErrInsufficient, true, "4/6/0"},
		{"a release without its hold", ledger.Operation{Kind: ledger.KindUnhold, Cause: "r"}, fault.ErrBroken, nil, "4/6/0"},
		{"more than is held", ledger.Operation{Kind: ledger.KindUnhold, Cause: "r", Hold: &ledger.Hold{Credits: 7}}, fault.ErrBroken, nil, "4/6/0"},
		{"a negative hold", ledger.Operation{Kind: ledger.KindHold, Cause: "s", Amount: -1}, fault.ErrBroken, nil, "4/6/0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, 0)
			d.give("a", 10, 0, 0)
			d.hold("r", 6)
			d.holds["s"] = &ledger.Hold{}
			_, err := d.do(tc.op)
			if !errors.Is(err, tc.want) || (tc.want == nil) != (err == nil) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			var f *fault.Error
			if errors.As(err, &f) && f.Extra["held_by_reservations"] != tc.by {
				t.Errorf("held_by_reservations is %v, want %v", f.Extra["held_by_reservations"], tc.by)
			}
			if got := fmt.Sprintf("%d/%d/%d", d.s.Available, d.s.Held, d.s.Debt); got != tc.changed {
				t.Errorf("the balance is %s, want %s", got, tc.changed)
			}
		})
	}
}

// TestWhatComesBackPaysDebtFirst needs two holds: debt arises while they hold.
func TestWhatComesBackPaysDebtFirst(t *testing.T) {
	t.Parallel()
	d := newDesk(t, 0)
	d.give("a", 10, 0, 0)
	d.hold("r", 4)
	d.hold("s", 6)
	d.capture("s", 9)
	if got, want := d.release("r"), "unhold 4 held>available a+4; debt_repaid 3 available>debt a-3"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := d.do(ledger.Operation{Kind: ledger.KindUsage, Cause: "u", Amount: 2}); !errors.Is(err, ledger.ErrInsufficient) {
		t.Errorf("usage of more than is left: %v", err)
	}
}

// TestTheStoreKnowsWhatRefundsTook releases a hold of a grant that a refund has
// taken back: the credits must not fill the place that the refund keeps.
func TestTheStoreKnowsWhatRefundsTook(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	db, owner := pgtest.Open(t, dsn, pg.Options{}), pgtest.Owner(t, dsn)
	ref := ledger.RefOf("acme")
	put(t, db, ledger.Account{Ref: ref})
	give(t, db, ref, "grant-0001", 10)
	give(t, db, ref, "grant-0002", 10)
	h := &ledger.Hold{Credits: 6, Parts: []ledger.Part{{Grant: &ledger.Grant{ID: "grant-0001"}, Credits: 6}}}
	for _, op := range []ledger.Operation{
		{Kind: ledger.KindHold, Cause: "resv-0001", Amount: 6, At: start},
		{Kind: ledger.KindRefund, Cause: "re_1", Amount: 10, Grant: h.Parts[0].Grant, At: start},
	} {
		if _, err := apply(db, ref, op); err != nil {
			t.Fatal(err)
		}
	}
	pgtest.Exec(t, owner, "INSERT INTO clawbacks SELECT part, account, 're_1', 'pi_1', grant_id, 100, 10, 'taken', now(), now() FROM grants WHERE grant_id = 'grant-0001'")
	for _, op := range []ledger.Operation{
		{Kind: ledger.KindUnhold, Cause: "resv-0001", Hold: h, At: start},
		{Kind: ledger.KindRefundFailed, Cause: "rf_1", Amount: 10, Grant: h.Parts[0].Grant, At: start},
	} {
		if _, err := apply(db, ref, op); err != nil {
			t.Fatalf("%s: %v", op.Kind, err)
		}
	}
	if got := balance(t, db, ref); got.Available != 20 || got.Held != 0 {
		t.Errorf("balance %+v, want all 20 available", got)
	}
	var home ledger.Grant
	err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		b, err := ledger.Load(t.Context(), tx, []ledger.Ref{ref})
		if err != nil {
			return err
		}
		g, err := b.Grant(t.Context(), tx, ref, "reservation:resv-0001")
		home = *g
		return err
	})
	if err != nil || home.Remaining != 6 {
		t.Errorf("the grant for what found no place is %+v, %v", home, err)
	}
	if got := broken(t, db); len(got) != 1 || got[0] != "holds" { // the reservation itself has no row here
		t.Errorf("Verify finds %q broken", got)
	}
}

package ledger_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
)

// use records usage and keeps what it took, to be voided.
func (d *desk) use(id string, amount int64) {
	d.t.Helper()
	op := ledger.Operation{Kind: ledger.KindUsage, Cause: id, Amount: credit.Amount(amount), At: d.now, Actor: "test"}
	transfers, err := ledger.Decide(d.s, op)
	if err != nil {
		d.t.Fatal(err)
	}
	d.holds[id] = &ledger.Hold{Credits: op.Amount}
	last := transfers[len(transfers)-1]
	for i, grant := range last.GrantIDs {
		d.holds[id].Parts = append(d.holds[id].Parts, ledger.Part{Grant: d.grants[grant], Credits: -last.GrantAmounts[i]})
	}
}

func (d *desk) void(id string) string {
	d.t.Helper()
	for _, g := range d.s.Made {
		d.grants[g.ID] = g
	}
	return d.must(ledger.Operation{Kind: ledger.KindVoid, Cause: id, Amount: d.holds[id].Credits, Hold: d.of(id)})
}

// voids plays what can have become of a usage's grants by the time it is voided.
var voids = []struct {
	name      string
	overdraft int64
	play      func(d *desk) string
	want      string
	balance   string // available/held/debt
}{
	{
		"back into the grants it came out of", 0, func(d *desk) string { d.give("a", 5, 0, 0); d.give("b", 5, 1, 0); d.use("u", 7); return d.void("u") },
		"void 7 usage>available a+5 b+2", "10/0/0",
	},
	{
		"not before what was used since", 0, func(d *desk) string {
			d.give("a", 5, 0, 0)
			d.give("b", 5, 1, 0)
			d.use("u", 5)
			d.use("v", 3)
			return d.void("u")
		},
		"void 5 usage>available a+5", "7/0/0",
	},
	{
		"free usage", 0, func(d *desk) string { d.give("a", 5, 0, 0); d.use("u", 0); return d.void("u") },
		"void 0 usage>available", "5/0/0",
	},
	{
		"what would be due by now expires", 0, func(d *desk) string {
			d.give("a", 5, 0, 1)
			d.give("b", 5, 1, 0)
			d.use("u", 7)
			d.now = d.now.Add(time.Hour)
			return d.void("u")
		},
		"expiry 5 usage>expired; void 2 usage>available b+2", "5/0/0",
	},
	{
		"not a microsecond before", 0, func(d *desk) string {
			d.give("a", 5, 0, 1)
			d.use("u", 5)
			d.now = d.now.Add(time.Hour - time.Microsecond)
			return d.void("u")
		},
		"void 5 usage>available a+5", "5/0/0",
	},
	{
		"all of it due: the void is told all the same", 0, func(d *desk) string {
			d.give("a", 5, 0, 1)
			d.use("u", 5)
			d.now = d.now.Add(time.Hour)
			return d.void("u")
		},
		"expiry 5 usage>expired; void 0 usage>available", "0/0/0",
	},
	{
		"of the overdraft", 4, func(d *desk) string { d.give("a", 3, 0, 0); d.use("u", 7); return d.void("u") },
		"void 7 usage>available a+3", "3/0/0",
	},
	{
		"of the overdraft, which is covered by now", 4, func(d *desk) string { d.use("u", 4); d.give("a", 10, 0, 0); return d.void("u") },
		"void 4 usage>available void@u+4", "10/0/0",
	},
	{
		"it covers what others have overdrawn", 4, func(d *desk) string { d.give("a", 3, 0, 0); d.use("u", 3); d.use("v", 2); return d.void("u") },
		"void 3 usage>available a+1", "1/0/0",
	},
	{
		"it pays debt first", 0, func(d *desk) string {
			d.give("a", 5, 0, 0)
			d.use("u", 5)
			d.must(ledger.Operation{Kind: ledger.KindCapture, Cause: "r", Amount: 3})
			return d.void("u")
		},
		"void 5 usage>available a+5; debt_repaid 3 available>debt a-3", "2/0/0",
	},
	{
		"a refund keeps its place", 0, func(d *desk) string { d.give("a", 10, 0, 0); d.use("u", 6); d.refund("a", 10); return d.void("u") },
		"void 6 usage>available void@u+6; debt_repaid 6 available>debt void@u-6", "0/0/0",
	},
	{
		"what a void returned can be used and voided", 4, func(d *desk) string {
			d.use("u", 4)
			d.give("a", 4, 1, 0)
			d.void("u")
			d.grants["void@u"] = d.s.Made[0]
			d.use("v", 4)
			return d.void("v")
		},
		"void 4 usage>available void@u+4", "4/0/0",
	},
}

func TestVoids(t *testing.T) {
	t.Parallel()
	for _, tc := range voids {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, credit.Amount(tc.overdraft))
			if got := tc.play(d); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if got := fmt.Sprintf("%d/%d/%d", d.s.Available, d.s.Held, d.s.Debt); got != tc.balance {
				t.Errorf("the balance is %s, want %s", got, tc.balance)
			}
		})
	}
}

func TestRefusalsOfVoids(t *testing.T) {
	t.Parallel()
	d := newDesk(t, 0)
	d.give("a", 10, 0, 0)
	d.use("u", 6)
	for name, op := range map[string]ledger.Operation{
		"without what it took":      {Amount: 6},
		"more than it was charged":  {Amount: 7, Hold: d.holds["u"]},
		"less than it was charged":  {Amount: 5, Hold: d.holds["u"]},
		"less than the grants gave": {Amount: 5, Hold: &ledger.Hold{Credits: 5, Parts: d.holds["u"].Parts}},
		"a negative amount":         {Amount: -1, Hold: &ledger.Hold{Credits: -1}},
	} {
		op.Kind, op.Cause = ledger.KindVoid, "u"
		if _, err := d.do(op); !errors.Is(err, fault.ErrBroken) {
			t.Errorf("%s: got %v, want broken", name, err)
		}
		if d.s.Available != 4 || d.s.Version != 2 {
			t.Fatalf("%s: a refusal changed the account: %+v", name, d.s.Balance)
		}
	}
}

// TestVerifyFindsVoidsThatTheJournalContradicts plants each way in which the row
// of a void and its transfers can be apart.
func TestVerifyFindsVoidsThatTheJournalContradicts(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"sound":                "SELECT 1",
		"no void":              "DELETE FROM usage_voids",
		"returned more":        "UPDATE usage_voids SET returned = returned + 1",
		"expired more":         "UPDATE usage_voids SET expired = 1",
		"another transfer":     "UPDATE usage_voids SET transfer_version = 1",
		"charged more":         "UPDATE transfers SET amount = amount + 1 WHERE kind = 'usage'",
		"no transfer":          "DELETE FROM transfers WHERE kind = 'void'",
		"given back twice":     "INSERT INTO transfers SELECT part, account, version + 1, kind, 0, source, target, cause, grant_ids, grant_amounts, available_after, held_after, debt_after, actor, note, posted_at, hash FROM transfers WHERE kind = 'void'",
		"usage of another":     "UPDATE usage_voids SET usage_id = 'usage-0002'",
		"given back elsewhere": "UPDATE transfers SET cause = 'usage-0002' WHERE kind = 'void'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.DSN(t)
			db, owner, ref := pgtest.Open(t, dsn, pg.Options{}), pgtest.Owner(t, dsn), ledger.RefOf("acme")
			put(t, db, ledger.Account{Ref: ref})
			give(t, db, ref, "grant-0001", 100)
			for _, op := range []ledger.Operation{{Kind: ledger.KindUsage}, {Kind: ledger.KindVoid, Hold: &ledger.Hold{Credits: 10}}} {
				op.Cause, op.Amount, op.At, op.Actor = "usage-0001", 10, start, "test"
				if op.Hold != nil {
					op.Hold.Parts = []ledger.Part{{Grant: &ledger.Grant{ID: "grant-0001"}, Credits: 10}}
				}
				if _, err := apply(db, ref, op); err != nil {
					t.Fatal(err)
				}
			}
			pgtest.Exec(t, owner, "SET LOCAL session_replication_role = replica; "+strings.ReplaceAll(`
				INSERT INTO usage VALUES (PART, 'acme', 'usage-0001', 'm', 1, 10, 1, 0, '{}', now(), now(), decode(repeat('00', 32), 'hex'), 2, 90, 0, 0),
					(PART, 'acme', 'usage-0002', 'm', 1, 10, 1, 0, '{}', now(), now(), decode(repeat('00', 32), 'hex'), 1, 90, 0, 0);
				INSERT INTO usage_voids VALUES (PART, 'acme', 'usage-0001', 'r', 10, 0, 0, 'not_billed', '', decode(repeat('00', 32), 'hex'), 3, 3, 100, 0, 0, 'test', now());`,
				"PART", fmt.Sprint(ref.Part))+statement)
			if got := strings.Contains(strings.Join(broken(t, db), " "), "voids"); got != (name != "sound") {
				t.Errorf("Verify finds voids broken: %t", got)
			}
		})
	}
}

package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
)

func put(t testing.TB, db *pg.DB, a ledger.Account) {
	t.Helper()
	if a.Metadata == "" {
		a.Metadata = "{}"
	}
	err := db.InTx(context.Background(), func(tx *sqlx.Tx) error {
		_, err := ledger.PutAccount(context.Background(), tx, a, start)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// apply runs one operation in a transaction of its own.
func apply(db *pg.DB, ref ledger.Ref, op ledger.Operation) (transfers []ledger.Transfer, err error) {
	ctx := context.Background()
	err = db.InTx(ctx, func(tx *sqlx.Tx) error {
		b, err := ledger.Load(ctx, tx, []ledger.Ref{ref})
		if err != nil {
			return err
		}
		transfers, err = applyLoaded(ctx, tx, b, ref, op)
		return err
	})
	return transfers, err
}

// applyLoaded runs one operation on a locked account, and saves what it did.
func applyLoaded(ctx context.Context, tx *sqlx.Tx, b *ledger.Batch, ref ledger.Ref, op ledger.Operation) (transfers []ledger.Transfer, err error) {
	switch op.Kind { //nolint:exhaustive // the others concern no grant that stands
	case ledger.KindRefund, ledger.KindRefundFailed, ledger.KindDispute, ledger.KindDisputeWon:
		if op.Grant, err = b.Grant(ctx, tx, ref, op.Grant.ID); err != nil {
			return nil, err
		}
	}
	if op.Hold, err = loaded(ctx, tx, b, ref, op.Hold); err != nil {
		return nil, err
	}
	if transfers, err = b.Apply(ref, op); err != nil {
		return nil, err
	}
	return transfers, b.Save(ctx, tx)
}

// loaded reads a hold as the store has it; what refunds took is the model's word,
// because its refunds have no rows.
func loaded(ctx context.Context, tx *sqlx.Tx, b *ledger.Batch, ref ledger.Ref, h *ledger.Hold) (*ledger.Hold, error) {
	if h == nil {
		return nil, nil //nolint:nilnil // none is no failure
	}
	ids, amounts := make([]string, len(h.Parts)), make([]int64, len(h.Parts))
	for i, p := range h.Parts {
		ids[i], amounts[i] = p.Grant.ID, int64(p.Credits)
	}
	l, err := b.Hold(ctx, tx, ref, h.Credits, ids, amounts)
	if err != nil {
		return nil, err
	}
	for i := range l.Parts {
		l.Parts[i].Clawed += h.Parts[i].Clawed
	}
	return l, nil
}

func grantOf(id string, amount credit.Amount) *ledger.Grant {
	return &ledger.Grant{ID: id, Kind: ledger.KindGrant, Credits: amount, CreatedAt: start, Fingerprint: make([]byte, 32)}
}

func give(t testing.TB, db *pg.DB, ref ledger.Ref, id string, amount credit.Amount) {
	t.Helper()
	if _, err := apply(db, ref, ledger.Operation{Kind: ledger.KindGrant, Cause: id, Amount: amount, Grant: grantOf(id, amount), At: start, Actor: "test"}); err != nil {
		t.Fatal(err)
	}
}

func balance(t testing.TB, db *pg.DB, ref ledger.Ref) ledger.Balance {
	t.Helper()
	var a ledger.Account
	err := db.Read(context.Background(), func(tx *sqlx.Tx) (err error) {
		a, err = ledger.ReadAccount(context.Background(), tx, ref)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a.Balance
}

// broken gives the names of the checks that Verify finds broken, usage apart
// where the test has posted usage without metering.
func broken(t testing.TB, db *pg.DB) (names []string) {
	t.Helper()
	report, err := ledger.Verify(context.Background(), db)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Checks {
		if c.Broken > 0 {
			names = append(names, c.Name)
		}
	}
	return names
}

func TestSpendsRacingForTheLastCreditsNeverOverspend(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	pools := []*pg.DB{pgtest.Open(t, dsn, pg.Options{}), pgtest.Open(t, dsn, pg.Options{}), pgtest.Open(t, dsn, pg.Options{})}
	ref := ledger.RefOf("hot")
	put(t, pools[0], ledger.Account{Ref: ref})
	give(t, pools[0], ref, "grant-0001", 100)
	give(t, pools[0], ref, "grant-0002", 50)
	var spent, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			_, err := apply(pools[i%3], ref, ledger.Operation{Kind: ledger.KindUsage, Cause: fmt.Sprintf("usage-%04d", i), Amount: 1, At: start, Actor: "test"})
			switch {
			case err == nil:
				spent.Add(1)
			case errors.Is(err, ledger.ErrInsufficient):
				refused.Add(1)
			default:
				t.Errorf("spend: %v", err)
			}
		})
	}
	wg.Wait()
	if spent.Load() != 150 || refused.Load() != 150 {
		t.Errorf("%d spent and %d refused of 300 racing for 150", spent.Load(), refused.Load())
	}
	if got := balance(t, pools[0], ref); got.Available != 0 || got.Version != 152 {
		t.Errorf("balance %+v, want nothing available at version 152", got)
	}
}

func TestVerifyFindsEachPlantedDefect(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, statement, want string }{
		{"balance changed", "UPDATE accounts SET available = available + 5", "balances"},
		{"debt changed", "UPDATE accounts SET debt = 7", "balances"},
		{"amount changed", "UPDATE transfers SET amount = amount + 1 WHERE version = 1", "chain"},
		{"note changed", "UPDATE transfers SET note = 'x' WHERE version = 1", "chain"},
		{"hash changed", "UPDATE transfers SET hash = decode(repeat('00', 32), 'hex') WHERE version = 2", "chain"},
		{"last transfer deleted", "DELETE FROM transfers WHERE version = 3", "versions"},
		{"middle transfer deleted", "DELETE FROM transfers WHERE version = 2", "chain"},
		{"version skipped", "UPDATE accounts SET version = version + 1", "versions"},
		{"running balance changed", "UPDATE transfers SET available_after = 1 WHERE version = 3", "running"},
		{"remainder changed", "UPDATE grants SET remaining = remaining - 1", "grants"},
		{"remainder and balance apart", "UPDATE grants SET remaining = remaining - 1", "available"},
		{"grant deleted", "DELETE FROM grants", "grant_transfers"},
		{"grant raised", "UPDATE grants SET credits = credits + 1", "grant_transfers"},
		{"usage without a row", "SELECT 1", "usage"},
		{"account deleted", "DELETE FROM accounts", "accounts"},
		{"transfer of nobody's", "UPDATE transfers SET account = 'nobody' WHERE version = 3", "accounts"},
		{"adjustment invented", "INSERT INTO adjustments VALUES (0, 'acme', 'adjust-01', 5, '', decode(repeat('00', 32), 'hex'), 1, now())", "adjustments"},
		{"delivery invented", "INSERT INTO deliveries SELECT part, account, 'm', now(), 0, 1, 1, 'usage', 'pending', '', '', '', 0, now(), NULL, NULL, '', now(), now() FROM accounts", "deliveries"},
		{"purchase without a payment", "UPDATE grants SET kind = 'purchase', payment = 'pi_1'", "payments"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.DSN(t)
			db, owner := pgtest.Open(t, dsn, pg.Options{}), pgtest.Owner(t, dsn)
			ref := ledger.RefOf("acme")
			put(t, db, ledger.Account{Ref: ref})
			give(t, db, ref, "grant-0001", 100)
			if got := broken(t, db); len(got) > 0 {
				t.Fatalf("before the defect Verify finds %q broken", got)
			}
			for i := range 2 {
				if _, err := apply(db, ref, ledger.Operation{Kind: ledger.KindUsage, Cause: fmt.Sprintf("usage-%04d", i), Amount: 10, At: start, Actor: "test"}); err != nil {
					t.Fatal(err)
				}
			}
			pgtest.Exec(t, owner, "SET LOCAL session_replication_role = replica; ALTER TABLE grants DROP CONSTRAINT grants_transfer, DROP CONSTRAINT grants_purchase_has_payment;"+
				"ALTER TABLE adjustments DROP CONSTRAINT adjustments_transfer; "+strings.ReplaceAll(tc.statement, "VALUES (0,", fmt.Sprintf("VALUES (%d,", ref.Part)))
			got := broken(t, db)
			if !strings.Contains(strings.Join(got, " "), tc.want) {
				t.Errorf("after %q Verify finds %q broken, want %s among them", tc.statement, got, tc.want)
			}
		})
	}
}

func TestRebuildBringsProjectionsBackToTheJournal(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	db, owner := pgtest.Open(t, dsn, pg.Options{}), pgtest.Owner(t, dsn)
	ref, ctx := ledger.RefOf("acme"), context.Background()
	put(t, db, ledger.Account{Ref: ref})
	give(t, db, ref, "grant-0001", 100)
	want := balance(t, db, ref)
	rebuild := func() (changed bool) {
		t.Helper()
		if err := db.InTx(ctx, func(tx *sqlx.Tx) (err error) {
			changed, err = ledger.Rebuild(ctx, tx, ref, start)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return changed
	}
	if rebuild() {
		t.Error("Rebuild changed a sound account")
	}
	pgtest.Exec(t, owner, "UPDATE accounts SET available = 12, held = 3, version = 9, chain = ''")
	pgtest.Exec(t, owner, "UPDATE grants SET remaining = 7")
	if !rebuild() {
		t.Error("Rebuild changed nothing in a drifted account")
	}
	if got := balance(t, db, ref); got != want {
		t.Errorf("after Rebuild the balance is %+v, want %+v", got, want)
	}
	if got := broken(t, db); len(got) > 0 {
		t.Errorf("after Rebuild Verify finds %q broken", got)
	}
}

func TestExpireStepSweepsAccountsOnWhichNothingHappens(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ref := ledger.RefOf("idle")
	put(t, db, ledger.Account{Ref: ref})
	g := grantOf("grant-0001", 40)
	at := start.Add(time.Hour)
	g.ExpiresAt = &at
	if _, err := apply(db, ref, ledger.Operation{Kind: ledger.KindGrant, Cause: g.ID, Amount: 40, Grant: g, At: start, Actor: "test"}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		at   time.Time
		want credit.Amount
	}{{at.Add(-time.Microsecond), 40}, {at, 0}, {at, 0}} {
		if _, err := ledger.ExpireStep(t.Context(), db, tc.at); err != nil {
			t.Fatal(err)
		}
		if got := balance(t, db, ref); got.Available != tc.want {
			t.Errorf("at %v %s is available, want %s", tc.at, got.Available, tc.want)
		}
	}
}

func TestPutAccount(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a, b := ledger.RefOf("a"), ledger.RefOf("b")
	put(t, db, ledger.Account{Ref: a, Customers: []string{"cus_1", "cus_2"}, Overdraft: 10})
	put(t, db, ledger.Account{Ref: a, Customers: []string{"cus_2", "cus_3"}, Overdraft: 10})
	err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		_, err := ledger.PutAccount(t.Context(), tx, ledger.Account{Ref: b, Metadata: "{}", Customers: []string{"cus_1", "cus_2"}}, start)
		return err
	})
	if !errors.Is(err, ledger.ErrCustomerTaken) {
		t.Errorf("another account's customer: %v, want customer_taken", err)
	}
	if _, err := apply(db, a, ledger.Operation{Kind: ledger.KindUsage, Cause: "usage-0001", Amount: 10, At: start}); err != nil {
		t.Fatal(err)
	}
	err = db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		_, err := ledger.PutAccount(t.Context(), tx, ledger.Account{Ref: a, Metadata: "{}", Overdraft: 9}, start)
		return err
	})
	if !errors.Is(err, ledger.ErrOverdraftInUse) {
		t.Errorf("an overdraft below what is overdrawn: %v, want overdraft_in_use", err)
	}
	wantCustomers(t, db, a, "cus_2 cus_3")
	put(t, db, ledger.Account{Ref: a, Overdraft: 10})
	wantCustomers(t, db, a, "")
}

func wantCustomers(t *testing.T, db *pg.DB, ref ledger.Ref, want string) {
	t.Helper()
	err := db.Read(t.Context(), func(tx *sqlx.Tx) error {
		got, err := ledger.ReadAccount(t.Context(), tx, ref)
		if strings.Join(got.Customers, " ") != want {
			t.Errorf("customers are %q, want %q", got.Customers, want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

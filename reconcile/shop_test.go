package reconcile_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/apptest"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/stripesim"
)

// audited is a shop whose books the tests spoil.
type audited struct {
	*apptest.Shop
	t *testing.T
}

// open starts a shop that has sold a pack of 100 credits and has used a little,
// all of it agreed on both sides.
func open(t *testing.T, settings map[string]string) *audited {
	t.Helper()
	a := &audited{Shop: apptest.OpenShop(t, apptest.Options{Settings: settings}), t: t}
	// Totals are compared by the hour: what a test does shall not fall into two.
	now := a.Clock.Now()
	a.Sim.Advance(now.Truncate(time.Hour).Add(time.Hour + 5*time.Minute).Sub(now))
	a.Buy(a.Price)
	a.Settled()
	a.Use("usage-0001", 7)
	a.Pass(3 * time.Minute)
	if found := a.run(); len(found) > 0 {
		t.Fatalf("a clean shop has findings: %+v", found)
	}
	return a
}

// vandalise writes past everything, as the database's owner.
func (a *audited) vandalise(statement string, args ...any) {
	a.t.Helper()
	pgtest.Exec(a.t, pgtest.Owner(a.t, a.Info.DatabaseURL), statement, args...)
}

// scalar reads one text, as the database's owner.
func (a *audited) scalar(query string) (text string) {
	a.t.Helper()
	err := pgtest.Open(a.t, a.Info.DatabaseURL, pg.Options{}).Read(a.t.Context(), func(tx *sqlx.Tx) error {
		return tx.GetContext(a.t.Context(), &text, query)
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return text
}

// asService runs a statement as the role of the service, in a transaction that is
// rolled back.
func (a *audited) asService(statement string) error {
	a.t.Helper()
	undone := errors.New("undone")
	err := pgtest.Open(a.t, a.Info.DatabaseURL, pg.Options{}).InTx(a.t.Context(), func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(a.t.Context(), statement); err != nil {
			return err
		}
		return undone
	})
	if errors.Is(err, undone) {
		return nil
	}
	return err
}

// run lets the clock pass the settle time, runs all checks and gives what is open.
func (a *audited) run() []api.Finding {
	a.t.Helper()
	a.Sim.Advance(3 * time.Minute)
	return a.runWith(`{}`)
}

func (a *audited) runWith(request string) []api.Finding {
	a.t.Helper()
	var runs struct{ Data []api.Run }
	a.Want(http.StatusCreated, http.MethodPost, "/v1/reconcile/runs", request, &runs)
	for _, r := range runs.Data {
		if r.State != "succeeded" {
			a.t.Errorf("%s has %s: %s", r.Check, r.State, r.Error)
		}
	}
	return a.findings("")
}

func (a *audited) findings(query string) []api.Finding {
	a.t.Helper()
	var list struct{ Data []api.Finding }
	a.Want(http.StatusOK, http.MethodGet, "/v1/findings?limit=500"+query, nil, &list)
	return list.Data
}

// one runs the checks and wants exactly one finding.
func (a *audited) one() api.Finding {
	a.t.Helper()
	found := a.run()
	if len(found) != 1 {
		a.t.Fatalf("%d findings, want 1: %+v", len(found), found)
	}
	return found[0]
}

func (a *audited) fault(f stripesim.Fault) {
	a.t.Helper()
	if err := a.Sim.AddFaults(&f); err != nil {
		a.t.Fatal(err)
	}
}

// repair repairs a finding and wants it gone at the next run.
func (a *audited) repair(f api.Finding) {
	a.t.Helper()
	var out api.Repair
	a.Want(http.StatusOK, http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{}`, &out)
	if !out.Done {
		a.t.Fatalf("the repair says %+v", out)
	}
	a.Pass(3 * time.Minute)
	if left := a.run(); len(left) > 0 {
		a.t.Errorf("after the repair: %+v", left)
	}
}

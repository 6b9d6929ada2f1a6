package reconcile_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/pg/pgtest"
	"tallystick/retention"
)

// archived lets the months of all usage go, 80 days later.
func (a *audited) archived(want int64) {
	a.t.Helper()
	a.Sim.Advance(80 * 24 * time.Hour)
	now := a.Clock.Now()
	before, err := retention.ParseBefore(now.AddDate(0, 0, -40).Format("2006-01"), now)
	if err != nil {
		a.t.Fatal(err)
	}
	usages := int64(0)
	archiver := retention.Archiver{DB: pgtest.Owner(a.t, a.Info.DatabaseURL), Now: a.Clock.Now, Logger: slog.New(slog.DiscardHandler), Dir: a.t.TempDir()}
	if err := archiver.Run(a.t.Context(), before, func(r retention.Archive) { usages += r.Usages }); err != nil || usages != want {
		a.t.Fatalf("archived %d usages, %v", usages, err)
	}
}

// TestUsageIsComparedAfterItsArchive compares an old hour with Stripe before and
// after, then with a defect in what stays. The window ends within an hour, of
// which nothing can be said any more.
func TestUsageIsComparedAfterItsArchive(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	hour := a.Clock.Now().Truncate(time.Hour)
	window := fmt.Sprintf(`{"checks": ["usage.totals"], "from": %q, "to": %q}`, hour.Format(time.RFC3339), hour.Add(90*time.Minute).Format(time.RFC3339))
	a.Sim.Advance(hour.Add(100 * time.Minute).Sub(a.Clock.Now()))
	a.Use("usage-0003", 1) // in the hour that the window cuts, behind its end
	a.Pass(3 * time.Minute)
	a.archived(3)
	compare := func() (api.Run, []api.Finding) {
		t.Helper()
		a.Sim.Advance(time.Minute) // a slot of its own
		found := a.runWith(window)
		var runs struct{ Data []api.Run }
		a.Want(http.StatusOK, http.MethodGet, "/v1/reconcile/runs?limit=1", nil, &runs)
		return runs.Data[0], found
	}
	run, found := compare()
	if len(found) > 0 || run.Compared != 1 {
		t.Fatalf("compared %d hours, found %+v", run.Compared, found)
	}
	a.vandalise("UPDATE usage_hours SET quantity = quantity + 3000000")
	if _, found = compare(); len(found) != 1 || found[0].Ours != "15" || found[0].Theirs != "12" || found[0].Difference != "-3" {
		t.Fatalf("found %+v", found)
	}
	if f := found[0]; f.Repair != "" || f.Safe {
		t.Errorf("the repair of what Stripe no longer takes is %q (safe %v)", f.Repair, f.Safe)
	}
	if r := a.Call(http.MethodPost, "/v1/findings/"+found[0].ID+"/repair", `{}`); r.Status != http.StatusConflict || r.Code() != "no_repair" {
		t.Errorf("asked to repair it all the same: %d %s", r.Status, r.Body)
	}
	a.vandalise("UPDATE usage_hours SET quantity = quantity - 3000000")
	if _, found = compare(); len(found) > 0 {
		t.Errorf("mended, it finds %+v", found)
	}
}

// TestArchivedUsageFromBeforeTheBindingIsNotStripes binds the meter anew after the
// usage: then none of it is Stripe's business.
func TestArchivedUsageFromBeforeTheBindingIsNotStripes(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.Use("usage-0002", 5)
	hour := a.Clock.Now().Truncate(time.Hour)
	a.Pass(3 * time.Minute)
	a.archived(2)
	a.vandalise("UPDATE meters SET stripe_bound_at = $1", hour.Add(48*time.Hour))
	found := a.runWith(fmt.Sprintf(`{"checks": ["usage.totals"], "from": %q, "to": %q}`, hour.Format(time.RFC3339), hour.Add(time.Hour).Format(time.RFC3339)))
	if len(found) != 1 || found[0].Ours != "0" || found[0].Theirs != "12" {
		t.Errorf("found %+v, want all that Stripe has to be too much", found)
	}
}

// TestAFindingFromBeforeTheArchiveIsNotRepairedAfterIt opens one about the first
// minute of an hour, of which only the whole hour is left when it is repaired.
func TestAFindingFromBeforeTheArchiveIsNotRepairedAfterIt(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	hour := a.Clock.Now().Truncate(time.Hour)
	a.vandalise("UPDATE usage SET quantity = quantity + 3000000, occurred_at = $1 WHERE usage_id = 'usage-0002'", hour)
	a.Pass(3 * time.Minute)
	found := a.runWith(fmt.Sprintf(`{"checks": ["usage.totals"], "from": %q, "to": %q}`, hour.Add(-time.Hour).Format(time.RFC3339), a.Clock.Now().Add(-time.Minute).Format(time.RFC3339)))
	if len(found) != 1 || found[0].Repair == "" {
		t.Fatalf("found %+v", found)
	}
	a.archived(2)
	a.Call(http.MethodPost, "/v1/findings/"+found[0].ID+"/repair", `{}`)
	var list struct{ Data []api.Delivery }
	a.Want(http.StatusOK, http.MethodGet, "/v1/deliveries", nil, &list)
	for _, d := range list.Data {
		if d.Origin == "repair" {
			t.Errorf("it sent %+v", d)
		}
	}
}

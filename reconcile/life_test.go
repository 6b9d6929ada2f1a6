package reconcile_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/mail"
	"tallystick/stripesim"
)

// mails gives what has been caught so far, oldest first.
func (a *audited) mails() []mail.Caught {
	a.t.Helper()
	a.Settled()
	return a.Catcher.Messages()
}

func (a *audited) awaitMails(n int) []mail.Caught {
	a.t.Helper()
	a.Await(fmt.Sprintf("%d mails", n), func() bool { return len(a.mails()) >= n })
	return a.mails()
}

// TestLifeOfAFinding follows one finding from its first day to its return.
func TestLifeOfAFinding(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_MAIL_COOLDOWN": "0s"})
	a.vandalise("UPDATE accounts SET available = available + 2500000")
	first := a.one()
	if got := a.awaitMails(1); len(got) != 1 {
		t.Fatalf("%d mails about one finding, want 1", len(got))
	}

	again := a.one()
	if again.ID != first.ID || !again.LastSeen.After(first.LastSeen) || !again.FirstSeen.Equal(first.FirstSeen) {
		t.Errorf("seen again it should be the same row, seen later: %+v, then %+v", first, again)
	}
	if got := a.mails(); len(got) != 1 {
		t.Errorf("%d mails about what was known, want still 1", len(got))
	}

	a.vandalise("UPDATE accounts SET available = available + 1000000")
	if worse := a.one(); worse.ID != first.ID || worse.Difference != "-3.5" {
		t.Errorf("worsened it is %+v", worse)
	}
	if got := a.awaitMails(2); len(got) != 2 {
		t.Errorf("%d mails after it has worsened, want 2", len(got))
	}

	a.vandalise("UPDATE accounts SET available = available - 3500000")
	if left := a.run(); len(left) > 0 {
		t.Errorf("what has vanished is still open: %+v", left)
	}
	resolved := a.findings("&state=resolved")
	if len(resolved) != 1 || resolved[0].ID != first.ID || resolved[0].ResolvedAt == nil {
		t.Errorf("resolved are %+v", resolved)
	}
	if got := a.awaitMails(3); got[2].Subject != "All clear: our books and Stripe agree again" {
		t.Errorf("the mail after the end is %q", got[2].Subject)
	}

	a.vandalise("UPDATE accounts SET available = available + 2500000")
	if back := a.one(); back.ID != first.ID || back.State != "open" || back.ResolvedAt != nil {
		t.Errorf("back again it is %+v", back)
	}
	if got := a.awaitMails(4); len(got) != 4 {
		t.Errorf("%d mails after it came back, want 4", len(got))
	}
}

// TestAWindowThatDoesNotCoverAFindingLeavesItAlone keeps a narrow run from
// resolving what it has not looked at.
func TestAWindowThatDoesNotCoverAFindingLeavesItAlone(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "lose", Times: 1})
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	f := a.one()
	a.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/other", `{}`, nil)
	later := fmt.Sprintf(`{"from": %q}`, a.Clock.Now().Add(3*time.Hour).Format(time.RFC3339))
	a.Sim.Advance(5 * time.Hour)
	for _, request := range []string{`{"account": "other"}`, later, `{"checks": ["ledger.balances"]}`} {
		if left := a.runWith(request); len(left) != 1 || left[0].ID != f.ID {
			t.Errorf("a run of %s leaves %+v, want the finding as it was", request, left)
		}
	}
}

// TestStripeAwayIsAFailedRunAndNoFinding keeps an outage from being taken for a
// mismatch, and from resolving one.
func TestStripeAwayIsAFailedRunAndNoFinding(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.lose()
	a.Buy(a.Price)
	a.Settled()
	f := a.one()
	a.fault(stripesim.Fault{Method: http.MethodGet, Path: "/v1/*/*", Fault: "error_503"})
	a.fault(stripesim.Fault{Method: http.MethodGet, Path: "/v1/*", Fault: "error_503"})
	a.Sim.Advance(3 * time.Minute)
	var runs struct{ Data []api.Run }
	a.Want(http.StatusCreated, http.MethodPost, "/v1/reconcile/runs", `{}`, &runs)
	states := map[string]string{}
	for _, r := range runs.Data {
		states[r.Check] = r.State
		if (r.State == "failed") != (r.Error != "") {
			t.Errorf("without Stripe the run is %+v", r)
		}
	}
	for check, want := range map[string]string{"usage.totals": "failed", "credits.payments": "failed", "ledger.balances": "succeeded", "reconcile.silence": "succeeded"} {
		if states[check] != want {
			t.Errorf("without Stripe %s has %s, want %s", check, states[check], want)
		}
	}
	if left := a.findings(""); len(left) != 1 || left[0].ID != f.ID {
		t.Errorf("without Stripe open are %+v", left)
	}
}

// TestRepairTwiceAndAtOnceHappensOnce repairs lost usage from many sides.
func TestRepairTwiceAndAtOnceHappensOnce(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "lose", Times: 1})
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	f := a.one()
	path := "/v1/findings/" + f.ID + "/repair"
	var dry api.Repair
	a.Want(http.StatusOK, http.MethodPost, path, `{"dry_run": true}`, &dry)
	if dry.Done || !dry.DryRun || a.deliveries("pending") > 0 {
		t.Errorf("a dry run has done something: %+v", dry)
	}
	done := make([]bool, 8)
	var wg sync.WaitGroup
	for i := range done {
		wg.Go(func() {
			var out api.Repair
			a.Want(http.StatusOK, http.MethodPost, path, `{}`, &out)
			done[i] = out.Done
		})
	}
	wg.Wait()
	n := 0
	for _, d := range done {
		if d {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d repairs at once were done, want 1", n)
	}
	a.Pass(3 * time.Minute)
	if left := a.run(); len(left) > 0 {
		t.Errorf("after the repair: %+v", left)
	}
	if r := a.Call(http.MethodPost, path, `{}`); r.Status != http.StatusConflict || r.Code() != "finding_resolved" {
		t.Errorf("repairing what is resolved was answered %d %s", r.Status, r.Body)
	}
	if total := a.Sim.State().Meters[0].Total; total != "12" {
		t.Errorf("Stripe has counted %s, want 12", total)
	}
}

func TestPoliciesOfRepair(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		policy, code string
		left         int
	}{{"off", "repair_off", 1}, {"ask", "", 1}, {"safe", "", 0}} {
		t.Run(tc.policy, func(t *testing.T) {
			t.Parallel()
			a := open(t, map[string]string{"TALLYSTICK_REPAIR": tc.policy})
			a.vandalise("UPDATE accounts SET available = available + 2500000")
			f := a.one()
			if left := a.run(); len(left) != tc.left {
				t.Errorf("%d findings after a second run, want %d", len(left), tc.left)
			}
			if tc.left == 0 {
				return
			}
			if r := a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{}`); r.Code() != tc.code {
				t.Errorf("repair was answered %d %s, want the code %q", r.Status, r.Body, tc.code)
			}
			a.Want(http.StatusOK, http.MethodPost, "/v1/findings/"+f.ID+"/repair", `{"dry_run": true}`, nil)
		})
	}
}

// TestWhatIsNotSafeIsNeverRepairedByItself leaves an uncertain delivery to people.
func TestWhatIsNotSafeIsNeverRepairedByItself(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_REPAIR": "safe"})
	a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "drop_before"})
	a.Use("usage-0002", 5)
	a.Sim.Advance(2 * time.Minute)
	a.Await("a try", func() bool { return a.deliveries("ambiguous") > 0 })
	a.Sim.Advance(2 * time.Hour)
	if f := a.one(); f.Safe || f.Cause != "outcome_unknown" {
		t.Errorf("the finding is %+v", f)
	}
	if n := a.deliveries("pending"); n > 0 {
		t.Errorf("%d deliveries were staged by themselves", n)
	}
}

func TestADryRunWritesNothing(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.vandalise("UPDATE accounts SET available = available + 2500000")
	var before, after, dry struct{ Data []api.Run }
	a.Want(http.StatusOK, http.MethodGet, "/v1/reconcile/runs", nil, &before)
	a.Want(http.StatusCreated, http.MethodPost, "/v1/reconcile/runs", `{"dry_run": true}`, &dry)
	a.Want(http.StatusOK, http.MethodGet, "/v1/reconcile/runs", nil, &after)
	if len(after.Data) != len(before.Data) || len(a.findings("")) > 0 {
		t.Errorf("a dry run leaves %d runs of %d", len(after.Data), len(before.Data))
	}
	for _, r := range dry.Data {
		if want := r.Check == "ledger.balances"; want != (r.Found == 1) || want != (len(r.Preview) == 1) {
			t.Errorf("a dry run of %s says %+v", r.Check, r)
		}
	}
}

func TestRefusalsOfTheAuditor(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	for _, tc := range []struct {
		method, path, body, code string
		status                   int
	}{
		{http.MethodGet, "/v1/findings/fnd_nothing", "", "finding_not_found", 404},
		{http.MethodPost, "/v1/findings/fnd_nothing/repair", "{}", "finding_not_found", 404},
		{http.MethodGet, "/v1/reconcile/runs/run_nothing", "", "run_not_found", 404},
		{http.MethodGet, "/v1/findings?state=lost", "", "invalid_request", 400},
		{http.MethodGet, "/v1/findings?severity=worst", "", "invalid_request", 400},
		{http.MethodGet, "/v1/findings?effect=none", "", "invalid_request", 400},
		{http.MethodPost, "/v1/findings/fnd_nothing/acknowledge", "{}", "finding_not_found", 404},
		{http.MethodPost, "/v1/findings/fnd_nothing/snooze", fmt.Sprintf(`{"until": %q}`, a.Clock.Now().Add(time.Hour).Format(time.RFC3339)), "finding_not_found", 404},
		{http.MethodPost, "/v1/findings/fnd_nothing/snooze", `{"until": "2100-01-01T00:00:00Z"}`, "invalid_value", 422},
		{http.MethodPost, "/v1/findings/fnd_nothing/snooze", `{}`, "invalid_value", 422},
		{http.MethodPost, "/v1/findings/fnd_nothing/resolve", `{}`, "invalid_value", 422},
		{http.MethodPost, "/v1/findings/fnd_nothing/resolve", `{"reason": "none"}`, "finding_not_found", 404},
		{http.MethodGet, "/v1/findings?limit=501", "", "invalid_request", 400},
		{http.MethodGet, "/v1/findings?cursor=x", "", "invalid_request", 400},
		{http.MethodPost, "/v1/reconcile/runs", `{"checks": ["nothing"]}`, "unknown_check", 422},
		{http.MethodPost, "/v1/reconcile/runs", `{"from": "2100-01-01T00:00:00Z"}`, "invalid_value", 422},
		{http.MethodPost, "/v1/reconcile/runs", `{"since": 1}`, "invalid_request", 400},
	} {
		if r := a.Call(tc.method, tc.path, tc.body); r.Status != tc.status || r.Code() != tc.code {
			t.Errorf("%s %s %s was answered %d %s, want %d %s", tc.method, tc.path, tc.body, r.Status, r.Body, tc.status, tc.code)
		}
	}
}

// TestFindingsAndRunsArePaged walks both lists with pages of one.
func TestFindingsAndRunsArePaged(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.vandalise("UPDATE accounts SET available = available + 2500000")
	a.lose()
	a.Buy(a.Price)
	a.Settled()
	a.run()
	var checks struct{ Data []api.Check }
	a.Want(http.StatusOK, http.MethodGet, "/v1/reconcile/checks", nil, &checks)
	for path, want := range map[string]int{"/v1/findings": 2, "/v1/reconcile/runs": 2 * len(checks.Data)} {
		seen := map[string]bool{}
		for next := "?limit=1"; next != ""; {
			var page struct {
				Data       []struct{ ID string }
				NextCursor *string `json:"next_cursor"`
			}
			a.Want(http.StatusOK, http.MethodGet, path+next, nil, &page)
			for _, row := range page.Data {
				seen[row.ID] = true
			}
			next = ""
			if page.NextCursor != nil {
				next = "?limit=1&cursor=" + *page.NextCursor
			}
		}
		if len(seen) != want {
			t.Errorf("%s gives %d rows page by page, want %d", path, len(seen), want)
		}
	}
}

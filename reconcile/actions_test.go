package reconcile_test

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/stripesim"
)

const drift = "UPDATE accounts SET available = available + 2500000"

// act calls an action on a finding and gives it as it is then.
func (a *audited) act(status int, f api.Finding, action, body string) (after api.Finding) {
	a.t.Helper()
	r := a.Want(status, http.MethodPost, "/v1/findings/"+f.ID+"/"+action, body, &after)
	if status != http.StatusOK && r.Code() == "" {
		a.t.Errorf("%s %s was answered %s", action, body, r.Body)
	}
	return after
}

// history gives the actions of a finding's history, oldest first.
func (a *audited) history(f api.Finding) (actions []string) {
	a.t.Helper()
	var whole api.Finding
	a.Want(http.StatusOK, http.MethodGet, "/v1/findings/"+f.ID, nil, &whole)
	for _, e := range whole.History {
		actions = append(actions, e.Action)
		person := e.Action == "acknowledged" || e.Action == "snoozed" || e.Action == "resolved" || e.Action == "repaired"
		if person != strings.HasPrefix(e.Actor, "key:") {
			a.t.Errorf("%s was done by %q", e.Action, e.Actor)
		}
	}
	return actions
}

func (a *audited) wantHistory(f api.Finding, want string) {
	a.t.Helper()
	if got := strings.Join(a.history(f), " "); got != want {
		a.t.Errorf("the history is %q, want %q", got, want)
	}
}

// TestAnAcknowledgedFindingIsQuietUntilItsSeverityRises follows one from a low
// severity to a high one.
func TestAnAcknowledgedFindingIsQuietUntilItsSeverityRises(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_MAIL_COOLDOWN": "0s"})
	a.vandalise(drift)
	f := a.one()
	a.awaitMails(1)
	for range 2 { // the second time changes nothing
		if f = a.act(http.StatusOK, f, "acknowledge", `{"note": "on it"}`); f.State != "acknowledged" {
			t.Fatalf("acknowledged it is %+v", f)
		}
	}
	a.vandalise(drift) // more of the same severity
	if f = a.one(); f.State != "acknowledged" || f.Severity != "low" {
		t.Errorf("grown a little it is %+v", f)
	}
	if got := a.mails(); len(got) != 1 {
		t.Errorf("%d mails about what is acknowledged, want 1", len(got))
	}
	a.vandalise("UPDATE accounts SET available = available + 20000000")
	if f = a.one(); f.Severity != "medium" || f.State != "acknowledged" {
		t.Errorf("grown much it is %+v", f)
	}
	a.awaitMails(2)
	a.vandalise("UPDATE accounts SET available = available - 25000000")
	a.run()
	a.awaitMails(3)
	a.wantHistory(f, "found told acknowledged worsened worsened told vanished")
	a.act(http.StatusConflict, f, "acknowledge", "")
}

// TestASnoozedFindingSleepsUntilItsTime tells nobody before, and everybody then.
func TestASnoozedFindingSleepsUntilItsTime(t *testing.T) {
	t.Parallel()
	a := open(t, map[string]string{"TALLYSTICK_MAIL_COOLDOWN": "0s"})
	a.vandalise(drift)
	f := a.one()
	a.awaitMails(1)
	now := a.Clock.Now()
	for until, status := range map[time.Time]int{
		now.Add(-time.Second): 422, now.Add(90*24*time.Hour + time.Hour): 422, now.Add(90*24*time.Hour - time.Hour): 200, now.Add(2 * time.Hour): 200,
	} {
		a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/snooze", fmt.Sprintf(`{"until": %q}`, until.Format(time.RFC3339)))
		if r := a.Call(http.MethodPost, "/v1/findings/"+f.ID+"/snooze", fmt.Sprintf(`{"until": %q}`, until.Format(time.RFC3339))); r.Status != status {
			t.Errorf("snoozed until %s it was answered %d %s, want %d", until, r.Status, r.Body, status)
		}
	}
	f = a.act(http.StatusOK, f, "snooze", fmt.Sprintf(`{"until": %q, "note": "on Monday"}`, now.Add(2*time.Hour).Format(time.RFC3339)))
	if f.State != "snoozed" || f.SnoozedUntil == nil {
		t.Fatalf("snoozed it is %+v", f)
	}
	a.vandalise("UPDATE accounts SET available = available + 20000000")
	if f = a.one(); f.State != "snoozed" {
		t.Errorf("grown it is %+v", f)
	}
	if got := a.mails(); len(got) != 1 {
		t.Errorf("%d mails while it sleeps, want 1", len(got))
	}
	a.Sim.Advance(2 * time.Hour)
	f = a.one()
	if a.awaitMails(2); f.State != "open" || f.SnoozedUntil != nil {
		t.Errorf("awake it is %+v", f)
	}
}

// TestAFindingThatWasAcceptedStaysResolvedWhileItIsTheSame reopens it when it
// grows, and when it comes back after it was gone.
func TestAFindingThatWasAcceptedStaysResolvedWhileItIsTheSame(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.vandalise(drift)
	f := a.one()
	if f = a.act(http.StatusOK, f, "resolve", `{"reason": "a credit note was made"}`); f.State != "resolved" || !strings.HasPrefix(f.ResolvedBy, "key:") {
		t.Fatalf("resolved it is %+v", f)
	}
	a.act(http.StatusOK, f, "resolve", `{"reason": "again"}`)
	a.act(http.StatusConflict, f, "snooze", fmt.Sprintf(`{"until": %q}`, a.Clock.Now().Add(time.Hour).Format(time.RFC3339)))
	if left := a.run(); len(left) > 0 {
		t.Errorf("what was accepted is open again: %+v", left)
	}
	a.vandalise("UPDATE accounts SET available = available + 1")
	if back := a.one(); back.ID != f.ID || back.ResolvedBy != "" || back.TimesOpen != 2 {
		t.Errorf("grown it is %+v", back)
	}
	a.act(http.StatusOK, f, "resolve", `{"reason": "this too"}`)
	a.vandalise("UPDATE accounts SET available = available - 2500001")
	a.run()
	a.vandalise("UPDATE accounts SET available = available + 2500001")
	if back := a.one(); back.ID != f.ID || back.TimesOpen != 3 {
		t.Errorf("back after it was gone it is %+v", back)
	}
}

// TestHistoryCannotBeChanged holds for the service's role.
func TestHistoryCannotBeChanged(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.vandalise(drift)
	f := a.one()
	for _, statement := range []string{"UPDATE finding_history SET actor = 'nobody'", "DELETE FROM finding_history"} {
		if err := a.asService(statement); err == nil {
			t.Errorf("the service may run %s", statement)
		}
	}
	a.awaitMails(1)
	a.wantHistory(f, "found told")
}

// TestFiltersAndCSVOfFindings finds each finding by what it is.
func TestFiltersAndCSVOfFindings(t *testing.T) {
	t.Parallel()
	a := open(t, nil)
	a.vandalise(drift)
	a.lose()
	a.Buy(a.Price)
	a.Settled()
	a.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "lose", Times: 1})
	a.Use("usage-0002", 5)
	a.Pass(3 * time.Minute)
	if all := a.run(); len(all) != 3 {
		t.Fatalf("%d findings, want 3: %+v", len(all), all)
	}
	for query, want := range map[string]int{
		"&check=usage.totals": 1, "&severity=medium": 1, "&severity=low": 3, "&severity=high": 0, "&effect=leaked": 1, "&effect=overbilled": 0,
		"&cause=balance_changed_outside": 1, "&account=acme": 3, "&account=nobody": 0, "&state=acknowledged": 0, "&state=all": 3,
	} {
		if got := a.findings(query); len(got) != want {
			t.Errorf("%s gives %d findings, want %d", query, len(got), want)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.Info.URL+"/v1/findings?limit=2", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.Info.APIKey)
	r.Header.Set("Accept", "text/csv")
	response := a.Do(r)
	rows, err := csv.NewReader(strings.NewReader(string(response.Body))).ReadAll()
	if err != nil || len(rows) != 3 || response.Header.Get("X-Next-Cursor") == "" {
		t.Errorf("the CSV is %s with cursor %q, %v", response.Body, response.Header.Get("X-Next-Cursor"), err)
	}
}

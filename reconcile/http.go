package reconcile

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// Routes lists what the auditor serves.
func (r *Reconciler) Routes() []web.Route {
	return []web.Route{
		{Method: "GET", Pattern: "/v1/reconcile/runs", Scope: "read", Handler: r.handleRuns},
		{Method: "POST", Pattern: "/v1/reconcile/runs", Scope: "admin", Handler: r.handleRun},
		{Method: "GET", Pattern: "/v1/reconcile/runs/{id}", Scope: "read", Handler: r.handleOneRun},
		{Method: "GET", Pattern: "/v1/reconcile/checks", Scope: "read", Handler: r.handleChecks},
		{Method: "GET", Pattern: "/v1/findings", Scope: "read", Handler: r.handleFindings},
		{Method: "GET", Pattern: "/v1/findings/{id}", Scope: "read", Handler: r.handleFinding},
		{Method: "POST", Pattern: "/v1/findings/{id}/acknowledge", Scope: "admin", Handler: r.handleAcknowledge},
		{Method: "POST", Pattern: "/v1/findings/{id}/snooze", Scope: "admin", Handler: r.handleSnooze},
		{Method: "POST", Pattern: "/v1/findings/{id}/resolve", Scope: "admin", Handler: r.handleResolve},
		{Method: "POST", Pattern: "/v1/findings/{id}/repair", Scope: "admin", Handler: r.handleRepair},
	}
}

// Wire is the run as the API shows it.
func (run Run) Wire() api.Run {
	return api.Run{
		ID: run.ID, Check: run.Check, Trigger: run.Cause, From: run.From.UTC(), To: run.To.UTC(), Account: run.Account, State: run.State,
		Compared: run.Compared, Found: run.Found, New: run.Fresh, Resolved: run.Resolved, Calls: run.Calls, Note: run.Note, Totals: wireTotals(run.Totals),
		Error: run.Error, StartedAt: run.StartedAt.UTC(), FinishedAt: utc(run.FinishedAt),
	}
}

// wireTotals reads what a run has kept of the money it found.
func wireTotals(text string) api.Totals {
	var sums map[string]map[string]int64
	_ = json.Unmarshal([]byte(text), &sums) // written by totalsOf; none for a run that has not ended
	list := func(effect string) []api.Money {
		all := []api.Money{}
		for _, currency := range slices.Sorted(maps.Keys(sums[effect])) {
			m := money{amount: sums[effect][currency], currency: currency}
			all = append(all, api.Money{Amount: m.amount, Currency: currency, Text: m.String()})
		}
		return all
	}
	return api.Totals{Leaked: list(effectLeaked), Overbilled: list(effectOverbilled), AtRisk: list(effectAtRisk)}
}

// Wire is a finding as the API shows it.
func (r *Reconciler) Wire(f Finding) api.Finding {
	w := api.Finding{
		ID: f.ID, Check: f.Check, Severity: f.Severity, Subject: f.Subject, Account: f.Account, HappenedAt: f.HappenedAt.UTC(), Ours: f.Ours, Theirs: f.Theirs,
		Difference: f.Difference, Unit: f.Unit, Effect: f.Effect, Cause: f.Cause, Explanation: f.Explanation, Evidence: json.RawMessage(f.Evidence),
		Deadline: utc(f.Deadline), Remains: f.Remains, State: f.State, Repair: f.Repair, Safe: f.Safe, TimesOpen: f.TimesOpen, FirstSeen: f.FirstSeen.UTC(),
		OpenedAt: f.OpenedAt.UTC(), LastSeen: f.LastSeen.UTC(), SnoozedUntil: utc(f.SnoozedUntil), ResolvedAt: utc(f.ResolvedAt), ResolvedBy: f.ResolvedBy,
		StripeURL: r.stripeLink(f),
	}
	if f.Money != nil {
		w.MoneyAtRisk = &api.Money{Amount: *f.Money, Currency: f.Currency, Text: f.MoneyText()}
	}
	return w
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

func (r *Reconciler) handleRun(w http.ResponseWriter, q *http.Request) error {
	var body api.RunRequest
	if err := optional(w, q, &body); err != nil {
		return err
	}
	o := Options{Checks: body.Checks, Account: body.Account, DryRun: body.DryRun}
	if body.From != nil {
		o.From = *body.From
	}
	if body.To != nil {
		o.To = *body.To
	}
	runs, err := r.RunNow(q.Context(), o)
	if err != nil {
		return err
	}
	answer := struct {
		Data []api.Run `json:"data"`
	}{Data: []api.Run{}}
	for _, run := range runs {
		shown := run.Wire()
		for _, f := range run.Preview {
			shown.Preview = append(shown.Preview, r.Wire(f))
		}
		answer.Data = append(answer.Data, shown)
	}
	return web.JSON(w, http.StatusCreated, answer)
}

func (r *Reconciler) handleRuns(w http.ResponseWriter, q *http.Request) error {
	after := Position{LastSeen: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	limit, err := web.Page(q, &after)
	if err != nil {
		return err
	}
	runs, err := r.Runs(q.Context(), after.LastSeen, after.ID, q.URL.Query().Get("check"), "", limit+1)
	if err != nil {
		return err
	}
	list := make([]api.Run, len(runs))
	for i, run := range runs {
		list[i] = run.Wire()
	}
	return web.JSON(w, http.StatusOK, web.Paged(list, limit, func(run api.Run) any { return Position{run.StartedAt, run.ID} }))
}

// Checks lists the checks with their schedules and how they stand.
func (r *Reconciler) Checks(ctx context.Context) ([]api.Check, error) {
	rows, err := r.watchedChecks(ctx)
	if err != nil {
		return nil, err
	}
	standing := map[string]watchedCheck{}
	for _, w := range rows {
		standing[w.Check] = w
	}
	now := r.Now()
	list := make([]api.Check, len(r.checks))
	for i, c := range r.checks {
		w := standing[c.name]
		list[i] = api.Check{Name: c.name, Description: c.description, Schedule: r.specOf(c), LastSuccess: utc(w.LastSuccess), LastRun: w.Run, LastState: w.State, Error: firstLine(w.Error)}
		list[i].Silent, _ = w.silent(now)
	}
	return list, nil
}

func (r *Reconciler) handleChecks(w http.ResponseWriter, q *http.Request) error {
	checks, err := r.Checks(q.Context())
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, map[string]any{"data": checks})
}

func (r *Reconciler) handleOneRun(w http.ResponseWriter, q *http.Request) error {
	runs, err := r.Runs(q.Context(), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), "", "", q.PathValue("id"), 1)
	if err != nil {
		return err
	}
	if len(runs) == 0 {
		return errNoRun
	}
	return web.JSON(w, http.StatusOK, runs[0].Wire())
}

// filterOf reads the query of a list of findings.
func filterOf(q *http.Request) (f Filter, err error) {
	values := q.URL.Query()
	f = Filter{
		State: values.Get("state"), Check: values.Get("check"), Account: values.Get("account"), Severity: values.Get("severity"), Cause: values.Get("cause"),
		Effect: values.Get("effect"),
	}
	if f.Limit, err = web.Page(q, &f.After); err != nil {
		return f, err
	}
	var p fault.Problems
	for _, choice := range []struct {
		name, value string
		of          []string
	}{
		{"state", f.State, []string{StateOpen, StateAcknowledged, StateSnoozed, StateResolved, "all"}},
		{"severity", f.Severity, severities},
		{"effect", f.Effect, []string{effectLeaked, effectOverbilled, effectAtRisk}},
	} {
		if choice.value != "" && !slices.Contains(choice.of, choice.value) {
			p.Addf("#query/"+choice.name, "must be one of %s", strings.Join(choice.of, ", "))
		}
	}
	return f, p.Err(fault.ErrInvalid)
}

func (r *Reconciler) handleFindings(w http.ResponseWriter, q *http.Request) error {
	f, err := filterOf(q)
	if err != nil {
		return err
	}
	limit := f.Limit
	f.Limit++
	findings, err := r.Findings(q.Context(), f)
	if err != nil {
		return err
	}
	page := web.Paged(findings, limit, func(f Finding) any { return Position{f.LastSeen, f.ID} })
	if strings.Contains(q.Header.Get("Accept"), "text/csv") {
		file, err := findingsCSV(page.Data)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		if page.NextCursor != nil {
			w.Header().Set("X-Next-Cursor", *page.NextCursor)
		}
		_, _ = w.Write(file) // the client may be gone
		return nil
	}
	list := web.List[api.Finding]{Data: make([]api.Finding, len(page.Data)), NextCursor: page.NextCursor}
	for i, f := range page.Data {
		list.Data[i] = r.Wire(f)
	}
	return web.JSON(w, http.StatusOK, list)
}

func (r *Reconciler) handleFinding(w http.ResponseWriter, q *http.Request) error {
	f, err := r.Finding(q.Context(), q.PathValue("id"))
	if err != nil {
		return err
	}
	whole := r.Wire(f)
	if whole.History, err = r.History(q.Context(), f.ID); err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, whole)
}

func (r *Reconciler) handleRepair(w http.ResponseWriter, q *http.Request) error {
	var body api.RepairRequest
	if err := optional(w, q, &body); err != nil {
		return err
	}
	out, err := r.Repair(q.Context(), q.PathValue("id"), web.Caller(q.Context()), body)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, api.Repair{Finding: out.Finding, Action: out.Action, Result: out.Result, DryRun: body.DryRun, Done: out.Done})
}

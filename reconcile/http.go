package reconcile

import (
	"encoding/json"
	"net/http"
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
		{Method: "GET", Pattern: "/v1/findings", Scope: "read", Handler: r.handleFindings},
		{Method: "GET", Pattern: "/v1/findings/{id}", Scope: "read", Handler: r.handleFinding},
		{Method: "POST", Pattern: "/v1/findings/{id}/repair", Scope: "admin", Handler: r.handleRepair},
	}
}

// Wire is the run as the API shows it.
func (run Run) Wire() api.Run {
	return api.Run{
		ID: run.ID, Check: run.Check, Trigger: run.Cause, From: run.From.UTC(), To: run.To.UTC(), Account: run.Account, State: run.State,
		Compared: run.Compared, Found: run.Found, New: run.Fresh, Resolved: run.Resolved, Error: run.Error, StartedAt: run.StartedAt.UTC(), FinishedAt: utc(run.FinishedAt),
	}
}

// Wire is the finding as the API shows it.
func (f Finding) Wire() api.Finding {
	w := api.Finding{
		ID: f.ID, Check: f.Check, Severity: f.Severity, Subject: f.Subject, Account: f.Account, Ours: f.Ours, Theirs: f.Theirs, Difference: f.Difference,
		Unit: f.Unit, Cause: f.Cause, Explanation: f.Explanation, Evidence: json.RawMessage(f.Evidence), Deadline: utc(f.Deadline), State: f.State,
		Repair: f.Repair, Safe: f.Safe, FirstSeen: f.FirstSeen.UTC(), LastSeen: f.LastSeen.UTC(), ResolvedAt: utc(f.ResolvedAt),
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
	if q.ContentLength != 0 {
		if err := web.Decode(w, q, web.BodyMax, &body); err != nil {
			return err
		}
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
		answer.Data = append(answer.Data, run.Wire())
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

func (r *Reconciler) handleFindings(w http.ResponseWriter, q *http.Request) error {
	f := Filter{State: q.URL.Query().Get("state"), Check: q.URL.Query().Get("check"), Account: q.URL.Query().Get("account")}
	limit, err := web.Page(q, &f.After)
	if err != nil {
		return err
	}
	switch f.State {
	case "", "all", "open", "acknowledged", "snoozed", "resolved":
	default:
		var p fault.Problems
		p.Addf("#query/state", "must be open, acknowledged, snoozed, resolved or all")
		return p.Err(fault.ErrInvalid)
	}
	f.Limit = limit + 1
	findings, err := r.Findings(q.Context(), f)
	if err != nil {
		return err
	}
	list := make([]api.Finding, len(findings))
	for i, f := range findings {
		list[i] = f.Wire()
	}
	return web.JSON(w, http.StatusOK, web.Paged(list, limit, func(f api.Finding) any { return Position{f.LastSeen, f.ID} }))
}

func (r *Reconciler) handleFinding(w http.ResponseWriter, q *http.Request) error {
	f, err := r.Finding(q.Context(), q.PathValue("id"))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, f.Wire())
}

func (r *Reconciler) handleRepair(w http.ResponseWriter, q *http.Request) error {
	var body api.RepairRequest
	if q.ContentLength != 0 {
		if err := web.Decode(w, q, web.BodyMax, &body); err != nil {
			return err
		}
	}
	out, err := r.Repair(q.Context(), q.PathValue("id"), "api", body.DryRun)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, api.Repair{Finding: out.Finding, Action: out.Action, Result: out.Result, DryRun: body.DryRun, Done: out.Done})
}

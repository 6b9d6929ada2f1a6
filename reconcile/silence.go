package reconcile

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/robfig/cron/v3"

	"tallystick/internal/config"
)

// silenceCheck watches over the others.
const silenceCheck = "reconcile.silence"

// silenceSpec is often, because it is one short query here and none at Stripe.
const silenceSpec = "*/10 * * * *"

// sqlWatched gives every check with its schedule and how its last run went; runs are
// found over reconcile_runs_once.
const sqlWatched = `
	SELECT c.check_name, c.spec, c.watched_since, c.last_success, coalesce(r.run_id, '') AS run_id, coalesce(r.state, '') AS state,
		coalesce(r.error, '') AS error, r.started_at
	FROM reconcile_checks c
	LEFT JOIN LATERAL (
		SELECT run_id, state, error, started_at FROM reconcile_runs WHERE check_name = c.check_name ORDER BY slot DESC LIMIT 1
	) r ON true
	ORDER BY c.check_name`

// watchedCheck is how a check stands.
type watchedCheck struct {
	Check       string     `db:"check_name"`
	Spec        string     `db:"spec"`
	Since       time.Time  `db:"watched_since"`
	LastSuccess *time.Time `db:"last_success"`
	Run         string     `db:"run_id"`
	State       string     `db:"state"`
	Error       string     `db:"error"`
	StartedAt   *time.Time `db:"started_at"`
}

// patience is how long after its last success a check may be silent: one interval
// of its schedule and half of another, at least an hour, for the run itself.
func patience(schedule cron.Schedule, now time.Time) (allowed, interval time.Duration) {
	last, ok := latestSlot(schedule, now)
	if !ok {
		last = now
	}
	interval = schedule.Next(last).Sub(last)
	return interval + max(interval/2, time.Hour), interval
}

// silent tells whether a check has not succeeded in its time.
func (w watchedCheck) silent(now time.Time) (bool, time.Duration) {
	schedule, err := config.ParseSchedule(w.Spec)
	if err != nil {
		return false, 0 // not scheduled
	}
	allowed, interval := patience(schedule, now)
	heard := w.Since
	if w.LastSuccess != nil && w.LastSuccess.After(heard) {
		heard = *w.LastSuccess
	}
	return now.Sub(heard) > allowed, interval
}

func (r *Reconciler) watchedChecks(ctx context.Context) (rows []watchedCheck, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlWatched)
	})
	if err != nil {
		return nil, fmt.Errorf("read when the checks succeeded: %w", err)
	}
	return rows, nil
}

// silence is the check reconcile.silence: a check that does not succeed finds
// nothing, which must not be taken for "nothing to find".
func (r *Reconciler) silence(ctx context.Context, s scope) (result, error) {
	out := result{timeless: true}
	if s.account != "" {
		return out, nil // checks are not about an account
	}
	rows, err := r.watchedChecks(ctx)
	if err != nil {
		return out, err
	}
	for _, w := range rows {
		if w.Check == silenceCheck || w.Spec == "" || r.Describe(w.Check) == "" {
			continue
		}
		out.compared++
		if silent, interval := w.silent(s.now); silent {
			out.found = append(out.found, w.finding(s.now, interval))
		}
	}
	return out, nil
}

func (w watchedCheck) finding(now time.Time, interval time.Duration) disagreement {
	d := disagreement{
		Subject: "silence/" + w.Check, HappenedAt: w.Since, Unit: "check", Theirs: "success every " + interval.String(), Ours: "never succeeded",
		Difference: "late", Effect: effectAtRisk, Least: "high",
		Evidence: map[string]any{"check": w.Check, "schedule": w.Spec, "last_success": w.LastSuccess, "last_run": w.Run, "state": w.State, "error": w.Error, "started_at": w.StartedAt},
	}
	if w.LastSuccess != nil {
		d.HappenedAt, d.Ours = *w.LastSuccess, "last success "+w.LastSuccess.UTC().Format(time.RFC3339)
	}
	switch {
	case w.State == "failed" && w.StartedAt != nil && now.Sub(*w.StartedAt) <= interval+time.Hour:
		d.Cause = "failing"
		d.Explanation = fmt.Sprintf("The check %s runs, but fails; mismatches that it would find are not seen. Its last run says: %s", w.Check, firstLine(w.Error))
	case w.State == "running":
		d.Cause = "hanging"
		d.Explanation = fmt.Sprintf("A run of %s began and did not end. It is fenced off after its bound and tried again; if that goes on, its log lines say where it waits.", w.Check)
	default:
		d.Cause = "not_run"
		d.Explanation = fmt.Sprintf("Nobody has run %s in its time. A process that serves with a schedule must be up; this one is, so look whether it runs checks at all.", w.Check)
	}
	return d
}

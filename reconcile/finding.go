package reconcile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
)

// Finding is one disagreement and its history.
type Finding struct {
	ID          string     `db:"finding_id"`
	Check       string     `db:"check_name"`
	Subject     string     `db:"subject"`
	Account     string     `db:"account"`
	HappenedAt  time.Time  `db:"happened_at"`
	Severity    string     `db:"severity"`
	Ours        string     `db:"ours"`
	Theirs      string     `db:"theirs"`
	Difference  string     `db:"difference"`
	Unit        string     `db:"unit"`
	Money       *int64     `db:"money"`
	Currency    string     `db:"currency"`
	Cause       string     `db:"cause"`
	Explanation string     `db:"explanation"`
	Evidence    string     `db:"evidence"`
	Deadline    *time.Time `db:"deadline"`
	Repair      string     `db:"repair"`
	RepairArgs  string     `db:"repair_args"`
	Safe        bool       `db:"safe"`
	State       string     `db:"state"`
	TimesOpen   int        `db:"times_open"`
	FirstSeen   time.Time  `db:"first_seen"`
	LastSeen    time.Time  `db:"last_seen"`
	ResolvedAt  *time.Time `db:"resolved_at"`
}

// MoneyText reads the money at risk for people, "unknown" when no price is known.
func (f Finding) MoneyText() string {
	if f.Money == nil {
		return "unknown"
	}
	return money{amount: *f.Money, currency: f.Currency}.String()
}

// finding makes a finding, not yet stored, of a disagreement.
func (d disagreement) finding(check string, now time.Time) (Finding, error) {
	evidence, err := encode(d.Evidence)
	if err != nil {
		return Finding{}, err
	}
	args, err := encode(d.RepairArgs)
	if err != nil {
		return Finding{}, err
	}
	f := Finding{
		Check: check, Subject: d.Subject, Account: d.Account, HappenedAt: d.HappenedAt, Severity: severityOf(d.Money), Ours: d.Ours, Theirs: d.Theirs,
		Difference: d.Difference, Unit: d.Unit, Cause: d.Cause, Explanation: d.Explanation, Evidence: evidence, Deadline: d.Deadline,
		Repair: d.Repair, RepairArgs: args, Safe: d.Safe, State: "open", TimesOpen: 1, FirstSeen: now, LastSeen: now,
	}
	if d.Money != nil {
		f.Money, f.Currency = &d.Money.amount, d.Money.currency
	}
	return f, nil
}

// sqlPutFinding relies on findings_subject for R2. A finding that comes back, or
// whose money has grown, owes a mail again. It tells whether it is new or back.
const sqlPutFinding = `
	INSERT INTO findings AS f (finding_id, check_name, subject, account, happened_at, severity, ours, theirs, difference, unit, money, currency, cause,
		explanation, evidence, deadline, repair, repair_args, safe, state, times_open, first_seen, opened_at, last_seen, run_id)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15::jsonb, $16, $17, $18::jsonb, $19, 'open', 1, $20, $20, $20, $21)
	ON CONFLICT (check_name, subject) DO UPDATE
	SET account = excluded.account, happened_at = excluded.happened_at, severity = excluded.severity, ours = excluded.ours, theirs = excluded.theirs,
		difference = excluded.difference, money = excluded.money, currency = excluded.currency, cause = excluded.cause,
		explanation = excluded.explanation, evidence = excluded.evidence, deadline = excluded.deadline, repair = excluded.repair,
		repair_args = excluded.repair_args, safe = excluded.safe, last_seen = excluded.last_seen, run_id = excluded.run_id, resolved_at = NULL,
		state = CASE WHEN f.state = 'resolved' THEN 'open' ELSE f.state END,
		times_open = f.times_open + CASE WHEN f.state = 'resolved' THEN 1 ELSE 0 END,
		opened_at = CASE WHEN f.state = 'resolved' THEN excluded.opened_at ELSE f.opened_at END,
		notified_at = CASE WHEN f.state = 'resolved' OR coalesce(excluded.money, 0) > coalesce(f.money, 0) THEN NULL ELSE f.notified_at END,
		cleared_at = NULL
	RETURNING opened_at = $20 AS fresh`

// sqlUnresolved lists what a check had found and is not resolved.
const sqlUnresolved = `
	SELECT finding_id, subject, account, happened_at FROM findings WHERE check_name = $1 AND state <> 'resolved' FOR UPDATE`

// sqlResolve relies on findings_pkey.
const sqlResolve = `UPDATE findings SET state = 'resolved', resolved_at = $2 WHERE finding_id = $1`

// record writes what a check has found and resolves what it has found no more.
func (r *Reconciler) record(ctx context.Context, tx *sqlx.Tx, check string, s scope, run *Run, out result) error {
	seen := map[string]bool{}
	for _, d := range out.found {
		f, err := d.finding(check, s.now)
		if err != nil {
			return err
		}
		seen[f.Subject] = true
		fresh, err := putFinding(ctx, tx, f, run.ID)
		if err != nil {
			return err
		}
		if fresh {
			run.Fresh++
		}
	}
	var standing []Finding
	if err := tx.SelectContext(ctx, &standing, sqlUnresolved, check); err != nil {
		return fmt.Errorf("read findings of %s: %w", check, err)
	}
	for _, f := range standing {
		covered := s.covers(f.Account, f.HappenedAt) || (out.timeless && (s.account == "" || s.account == f.Account))
		if seen[f.Subject] || !covered {
			continue
		}
		if _, err := tx.ExecContext(ctx, sqlResolve, f.ID, s.now); err != nil {
			return fmt.Errorf("resolve %s: %w", f.ID, err)
		}
		run.Resolved++
	}
	return nil
}

func putFinding(ctx context.Context, tx *sqlx.Tx, f Finding, run string) (fresh bool, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return false, fmt.Errorf("name a finding: %w", err)
	}
	err = tx.GetContext(ctx, &fresh, sqlPutFinding, "fnd_"+id.String(), f.Check, f.Subject, f.Account, f.HappenedAt, f.Severity, f.Ours, f.Theirs, f.Difference,
		f.Unit, f.Money, f.Currency, f.Cause, f.Explanation, f.Evidence, f.Deadline, f.Repair, f.RepairArgs, f.Safe, f.LastSeen, run)
	if err != nil {
		return false, fmt.Errorf("keep the finding about %s: %w", f.Subject, err)
	}
	return fresh, nil
}

// Filter narrows a list of findings.
type Filter struct {
	State   string // "" for all that are not resolved, "all" for all
	Check   string
	Account string
	ID      string
	After   Position
	Limit   int
}

// Position is where a page of findings ends.
type Position struct {
	LastSeen time.Time
	ID       string
}

// sqlReadFindings pages backwards; findings are few beside everything else.
const sqlReadFindings = `
	SELECT finding_id, check_name, subject, account, happened_at, severity, ours, theirs, difference, unit, money, currency, cause, explanation,
		evidence, deadline, repair, repair_args, safe, state, times_open, first_seen, last_seen, resolved_at
	FROM findings
	WHERE (last_seen, finding_id) < ($1, $2) AND ($3 = 'all' OR ($3 = '' AND state <> 'resolved') OR state = $3)
		AND ($4 = '' OR check_name = $4) AND ($5 = '' OR account = $5) AND ($6 = '' OR finding_id = $6)
	ORDER BY last_seen DESC, finding_id DESC
	LIMIT $7`

// Findings lists findings, those seen last first.
func (r *Reconciler) Findings(ctx context.Context, f Filter) (findings []Finding, err error) {
	if f.After.LastSeen.IsZero() {
		f.After.LastSeen = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		findings = nil
		return tx.SelectContext(ctx, &findings, sqlReadFindings, f.After.LastSeen, f.After.ID, f.State, f.Check, f.Account, f.ID, f.Limit)
	})
	return findings, err
}

var errNoFinding = &fault.Error{Kind: fault.KindNotFound, Code: "finding_not_found", Public: "there is no such finding"}

// Finding gives one finding.
func (r *Reconciler) Finding(ctx context.Context, id string) (Finding, error) {
	findings, err := r.Findings(ctx, Filter{State: "all", ID: id, Limit: 1})
	if err == nil && len(findings) == 0 {
		err = errNoFinding
	}
	if err != nil {
		return Finding{}, err
	}
	return findings[0], nil
}

// sqlLockFinding relies on findings_pkey.
const sqlLockFinding = `
	SELECT finding_id, check_name, subject, account, happened_at, severity, ours, theirs, difference, unit, money, currency, cause, explanation,
		evidence, deadline, repair, repair_args, safe, state, times_open, first_seen, last_seen, resolved_at
	FROM findings WHERE finding_id = $1 FOR UPDATE`

func lockFinding(ctx context.Context, tx *sqlx.Tx, id string) (f Finding, err error) {
	err = tx.GetContext(ctx, &f, sqlLockFinding, id)
	if errors.Is(err, sql.ErrNoRows) {
		err = errNoFinding
	}
	return f, err
}

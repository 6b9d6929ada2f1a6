package reconcile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/fault"
)

// Finding is one disagreement and its history.
type Finding struct {
	ID           string     `db:"finding_id"`
	Check        string     `db:"check_name"`
	Subject      string     `db:"subject"`
	Account      string     `db:"account"`
	HappenedAt   time.Time  `db:"happened_at"`
	Severity     string     `db:"severity"`
	Least        string     `db:"least"` // severity that the check wants at least
	Ours         string     `db:"ours"`
	Theirs       string     `db:"theirs"`
	Difference   string     `db:"difference"`
	Unit         string     `db:"unit"`
	Money        *int64     `db:"money"`
	Currency     string     `db:"currency"`
	Effect       string     `db:"effect"`
	Cause        string     `db:"cause"`
	Explanation  string     `db:"explanation"`
	Evidence     string     `db:"evidence"`
	Deadline     *time.Time `db:"deadline"`
	Remains      string     `db:"remains"`
	Repair       string     `db:"repair"`
	RepairArgs   string     `db:"repair_args"`
	Safe         bool       `db:"safe"`
	State        string     `db:"state"`
	TimesOpen    int        `db:"times_open"`
	FirstSeen    time.Time  `db:"first_seen"`
	OpenedAt     time.Time  `db:"opened_at"`
	LastSeen     time.Time  `db:"last_seen"`
	ResolvedAt   *time.Time `db:"resolved_at"`
	ResolvedBy   string     `db:"resolved_by"` // "" for one that vanished
	Accepted     string     `db:"accepted"`    // fingerprint of what a person resolved as it was
	SnoozedUntil *time.Time `db:"snoozed_until"`
	NotifiedAt   *time.Time `db:"notified_at"`
	ToldMoney    *int64     `db:"told_money"`
	ToldSeverity string     `db:"told_severity"`
	Run          string     `db:"run_id"`
}

// findingColumns are those of Finding.
const findingColumns = `finding_id, check_name, subject, account, happened_at, severity, least, ours, theirs, difference, unit, money, currency, effect, cause,
		explanation, evidence, deadline, remains, repair, repair_args, safe, state, times_open, first_seen, opened_at, last_seen, resolved_at, resolved_by,
		accepted, snoozed_until, notified_at, told_money, told_severity, run_id`

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
		Check: check, Subject: d.Subject, Account: d.Account, HappenedAt: d.HappenedAt, Least: d.Least,
		Ours: d.Ours, Theirs: d.Theirs, Difference: d.Difference, Unit: d.Unit, Effect: d.effect(check), Cause: d.Cause, Explanation: d.Explanation, Evidence: evidence,
		Deadline: d.Deadline, Remains: d.Remains, Repair: d.Repair, RepairArgs: args, Safe: d.Safe,
		State: StateOpen, TimesOpen: 1, FirstSeen: now, OpenedAt: now, LastSeen: now,
	}
	if d.Money != nil {
		f.Money, f.Currency = &d.Money.amount, d.Money.currency
	}
	f.Severity = f.grade(now)
	return f, nil
}

// sqlStanding gives what a check has found before that is not resolved, or that it
// finds again, over findings_subject.
const sqlStanding = `
	SELECT ` + findingColumns + `
	FROM findings
	WHERE check_name = $1 AND (state <> 'resolved' OR accepted <> '' OR subject = ANY ($2::text[]))
	ORDER BY finding_id
	FOR UPDATE`

// sqlAddFinding relies on findings_subject for R2.
const sqlAddFinding = `
	INSERT INTO findings (finding_id, check_name, subject, account, happened_at, severity, least, ours, theirs, difference, unit, money, currency, effect, cause,
		explanation, evidence, deadline, remains, repair, repair_args, safe, state, times_open, first_seen, opened_at, last_seen, run_id)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17::jsonb, $18, $19, $20, $21::jsonb, $22, $23, $24, $25, $26, $27, $28)`

// sqlKeepFinding relies on findings_pkey.
const sqlKeepFinding = `
	UPDATE findings
	SET account = $2, happened_at = $3, severity = $4, least = $5, ours = $6, theirs = $7, difference = $8, unit = $9, money = $10, currency = $11, effect = $12,
		cause = $13, explanation = $14, evidence = $15::jsonb, deadline = $16, remains = $17, repair = $18, repair_args = $19::jsonb, safe = $20, state = $21,
		times_open = $22, opened_at = $23, last_seen = $24, resolved_at = $25, resolved_by = $26, accepted = $27, snoozed_until = $28, notified_at = $29,
		told_money = $30, told_severity = $31, run_id = $32, cleared_at = CASE WHEN $21 = 'resolved' THEN cleared_at END
	WHERE finding_id = $1`

// record writes what a check has found and resolves what it has found no more.
func (r *Reconciler) record(ctx context.Context, tx *sqlx.Tx, check string, s scope, run *Run, out result) error {
	subjects := make(pq.StringArray, len(out.found))
	for i, d := range out.found {
		subjects[i] = d.Subject
	}
	var rows []Finding
	if err := tx.SelectContext(ctx, &rows, sqlStanding, check, subjects); err != nil {
		return fmt.Errorf("read findings of %s: %w", check, err)
	}
	standing := make(map[string]Finding, len(rows))
	for _, f := range rows {
		standing[f.Subject] = f
	}
	seen := map[string]bool{}
	for _, d := range out.found {
		seen[d.Subject] = true
		f, err := d.finding(check, s.now)
		if err != nil {
			return err
		}
		f.Run = run.ID
		old, known := standing[f.Subject]
		fresh, err := keepSeen(ctx, tx, old, known, f)
		if err != nil {
			return err
		}
		if fresh {
			run.Fresh++
		}
	}
	for _, f := range rows {
		if seen[f.Subject] || (f.State == StateResolved && f.Accepted == "") || !out.hasCovered(s, f) {
			continue
		}
		if err := keepFinding(ctx, tx, f.vanished(s.now, run.ID), entry{action: "vanished", at: s.now}); err != nil {
			return err
		}
		if f.State != StateResolved {
			run.Resolved++
		}
	}
	return nil
}

// hasCovered tells whether the run would have seen a finding that it has not seen.
func (out result) hasCovered(s scope, f Finding) bool {
	switch {
	case out.covered != nil:
		return (s.account == "" || s.account == f.Account) && out.covered(f.Subject, f.Account, f.HappenedAt)
	case out.timeless:
		return s.account == "" || s.account == f.Account
	}
	return s.covers(f.Account, f.HappenedAt)
}

// keepSeen writes a finding that a run has seen; it tells whether it is new or back.
func keepSeen(ctx context.Context, tx *sqlx.Tx, old Finding, known bool, f Finding) (fresh bool, err error) {
	if known {
		next, did := old.seen(f)
		return did == "reopened", keepFinding(ctx, tx, next, entry{action: did, at: f.LastSeen, detail: f.summary()})
	}
	id, err := uuid.NewV7()
	if err != nil {
		return false, fmt.Errorf("name a finding: %w", err)
	}
	f.ID = "fnd_" + id.String()
	_, err = tx.ExecContext(ctx, sqlAddFinding, f.ID, f.Check, f.Subject, f.Account, f.HappenedAt, f.Severity, f.Least, f.Ours, f.Theirs, f.Difference, f.Unit, f.Money,
		f.Currency, f.Effect, f.Cause, f.Explanation, f.Evidence, f.Deadline, f.Remains, f.Repair, f.RepairArgs, f.Safe, f.State, f.TimesOpen, f.FirstSeen, f.OpenedAt,
		f.LastSeen, f.Run)
	if err != nil {
		return false, fmt.Errorf("keep the finding about %s: %w", f.Subject, err)
	}
	return true, addHistory(ctx, tx, f.ID, entry{action: "found", at: f.LastSeen, detail: f.summary()})
}

// keepFinding writes a finding that has a row, and what has happened to it.
func keepFinding(ctx context.Context, tx *sqlx.Tx, f Finding, e entry) error {
	_, err := tx.ExecContext(ctx, sqlKeepFinding, f.ID, f.Account, f.HappenedAt, f.Severity, f.Least, f.Ours, f.Theirs, f.Difference, f.Unit, f.Money, f.Currency, f.Effect,
		f.Cause, f.Explanation, f.Evidence, f.Deadline, f.Remains, f.Repair, f.RepairArgs, f.Safe, f.State, f.TimesOpen, f.OpenedAt, f.LastSeen, f.ResolvedAt, f.ResolvedBy,
		f.Accepted, f.SnoozedUntil, f.NotifiedAt, f.ToldMoney, f.ToldSeverity, f.Run)
	if err != nil {
		return fmt.Errorf("keep finding %s: %w", f.ID, err)
	}
	return addHistory(ctx, tx, f.ID, e)
}

// Filter narrows a list of findings.
type Filter struct {
	State   string // "" for all that are not resolved, "all" for all
	Check   string
	Account string
	ID      string

	Severity string // at least this one; "" for all
	Cause    string
	Effect   string

	After Position
	Limit int
}

// Position is where a page of findings ends.
type Position struct {
	LastSeen time.Time
	ID       string
}

// sqlReadFindings pages backwards; findings are few beside everything else.
const sqlReadFindings = `
	SELECT ` + findingColumns + `
	FROM findings
	WHERE (last_seen, finding_id) < ($1, $2) AND ($3 = 'all' OR ($3 = '' AND state <> 'resolved') OR state = $3)
		AND ($4 = '' OR check_name = $4) AND ($5 = '' OR account = $5) AND ($6 = '' OR finding_id = $6)
		AND ($8 = '' OR array_position(ARRAY['low', 'medium', 'high', 'critical'], severity) >= array_position(ARRAY['low', 'medium', 'high', 'critical'], $8))
		AND ($9 = '' OR cause = $9) AND ($10 = '' OR effect = $10)
	ORDER BY last_seen DESC, finding_id DESC
	LIMIT $7`

// Findings lists findings, those seen last first.
func (r *Reconciler) Findings(ctx context.Context, f Filter) (findings []Finding, err error) {
	if f.After.LastSeen.IsZero() {
		f.After.LastSeen = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		findings = nil
		return tx.SelectContext(ctx, &findings, sqlReadFindings, f.After.LastSeen, f.After.ID, f.State, f.Check, f.Account, f.ID, f.Limit, f.Severity, f.Cause, f.Effect)
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
	SELECT ` + findingColumns + `
	FROM findings WHERE finding_id = $1 FOR UPDATE`

func lockFinding(ctx context.Context, tx *sqlx.Tx, id string) (f Finding, err error) {
	err = tx.GetContext(ctx, &f, sqlLockFinding, id)
	if errors.Is(err, sql.ErrNoRows) {
		err = errNoFinding
	}
	return f, err
}

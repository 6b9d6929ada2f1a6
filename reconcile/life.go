package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// States of a finding.
const (
	StateOpen         = "open"
	StateAcknowledged = "acknowledged" // somebody deals with it: told again only when its severity rises
	StateSnoozed      = "snoozed"      // nobody is told before its time
	StateResolved     = "resolved"
)

// severities in rising order.
var severities = []string{"low", "medium", "high", "critical"}

// rank orders severities; "" comes before all.
func rank(severity string) int { return slices.Index(severities, severity) }

// The time left raises the severity: by one grade within a day of the deadline, by
// two within four hours, and by one once it has passed. What is worth less than one major unit stays below high.
const (
	nearDeadline    = 24 * time.Hour
	nearestDeadline = 4 * time.Hour
)

// Usage that Stripe lacks is told again after a week, and five days before Stripe takes
// it no more: each raises the severity by one grade.
const (
	agedOnce  = 7 * 24 * time.Hour
	agedTwice = 30 * 24 * time.Hour
)

// aged counts the grades that a finding has risen by for its age.
func (f Finding) aged(now time.Time) int {
	if !isUsage(f.Check) || f.Deadline == nil || strings.HasPrefix(f.Difference, "+") {
		return 0
	}
	switch age := now.Sub(f.HappenedAt); {
	case age >= agedTwice:
		return 2
	case age >= agedOnce:
		return 1
	}
	return 0
}

// grade makes the finding's severity out of its money, what the check wants at least,
// its age and the time left.
func (f Finding) grade(now time.Time) string {
	var m *money
	if f.Money != nil {
		m = &money{amount: *f.Money, currency: f.Currency}
	}
	return grade(m, f.Least, f.Deadline, f.aged(now), now)
}

// grade makes the severity out of money, what the check wants at least, the grades for
// its age, and the time left.
func grade(m *money, least string, deadline *time.Time, aged int, now time.Time) string {
	base := rank(severityOf(m))
	grades := base + aged
	if deadline != nil {
		switch left := deadline.Sub(now); {
		case left <= 0:
			grades++
		case left <= nearestDeadline:
			grades += 2
		case left <= nearDeadline:
			grades++
		}
	}
	if base == 0 {
		grades = min(grades, rank("medium"))
	}
	return severities[max(min(grades, len(severities)-1), rank(least))]
}

// isUsage tells whether a check compares usage, where the sign of a difference
// says whose loss it is.
func isUsage(check string) bool { return strings.HasPrefix(check, "usage.") }

// fingerprint is what a person accepts by resolving: the same disagreement, not a
// worse one of the same subject.
func (f Finding) fingerprint() string {
	return strings.Join([]string{f.Ours, f.Theirs, f.Difference, f.MoneyText(), f.Cause}, "|")
}

// summary is the finding in a line of its history.
func (f Finding) summary() string {
	return fmt.Sprintf("%s: %s here, %s there, %s %s; %s at risk (%s)", f.Cause, f.Ours, f.Theirs, f.Difference, f.Unit, f.MoneyText(), f.Severity)
}

// amount is the money at risk, none where it is unknown.
func (f Finding) amount() int64 {
	if f.Money == nil {
		return 0
	}
	return *f.Money
}

// seen is what becomes of a finding that a run has found again, and the word for
// it in its history; "" when nothing worth a line has happened.
func (f Finding) seen(again Finding) (next Finding, did string) {
	next = again
	next.ID, next.FirstSeen, next.OpenedAt, next.TimesOpen = f.ID, f.FirstSeen, f.OpenedAt, f.TimesOpen
	next.State, next.SnoozedUntil, next.NotifiedAt = f.State, f.SnoozedUntil, f.NotifiedAt
	next.ToldMoney, next.ToldSeverity = f.ToldMoney, f.ToldSeverity
	next.ResolvedAt, next.ResolvedBy, next.Accepted = f.ResolvedAt, f.ResolvedBy, f.Accepted
	if f.State == StateSnoozed && !f.SnoozedUntil.After(again.LastSeen) {
		next.wake()
		return next, "woke"
	}
	if f.State != StateResolved {
		if rank(again.Severity) > rank(f.Severity) || (again.Currency == f.Currency && again.amount() > f.amount()) {
			return next, "worsened"
		}
		return next, ""
	}
	if f.Accepted != "" && f.Accepted == again.fingerprint() {
		return next, ""
	}
	next.State, next.TimesOpen, next.OpenedAt = StateOpen, f.TimesOpen+1, again.LastSeen
	next.ResolvedAt, next.ResolvedBy, next.Accepted = nil, "", ""
	next.NotifiedAt, next.ToldMoney, next.ToldSeverity = nil, nil, ""
	return next, "reopened"
}

// wake opens a finding that was snoozed: it is told as if it were new.
func (f *Finding) wake() {
	f.State, f.SnoozedUntil, f.NotifiedAt, f.ToldMoney, f.ToldSeverity = StateOpen, nil, nil, nil, ""
}

// vanished is what becomes of a finding that a run would have seen and has not. One
// that was accepted stays resolved, but is news if it ever comes back.
func (f Finding) vanished(now time.Time, run string) Finding {
	f.Accepted = ""
	if f.State == StateResolved {
		return f
	}
	f.State, f.ResolvedAt, f.ResolvedBy, f.SnoozedUntil, f.Run = StateResolved, &now, "", nil, run
	return f
}

// entry is a line of a finding's history.
type entry struct {
	at     time.Time
	actor  string // "" for the system
	action string // "" writes no line
	detail string
}

const detailMax = 4000

// sqlAddHistory relies on finding_history_pkey; the table is insert-only.
const sqlAddHistory = `INSERT INTO finding_history (finding_id, entry_id, at, actor, action, detail) VALUES ($1, $2, $3, $4, $5, $6)`

func addHistory(ctx context.Context, tx *sqlx.Tx, finding string, e entry) error {
	if e.action == "" {
		return nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("name a line of history: %w", err)
	}
	if e.actor == "" {
		e.actor = actorSystem
	}
	if runes := []rune(e.detail); len(runes) > detailMax {
		e.detail = string(runes[:detailMax])
	}
	if _, err := tx.ExecContext(ctx, sqlAddHistory, finding, id.String(), e.at, e.actor, e.action, e.detail); err != nil {
		return fmt.Errorf("write the history of %s: %w", finding, err)
	}
	return nil
}

// actorSystem did what nobody asked for.
const actorSystem = "system"

// totalsOf sums the money of a run by effect and currency, as JSON.
func totalsOf(check string, found []disagreement) (string, error) {
	totals := map[string]map[string]int64{}
	for _, d := range found {
		if d.Money == nil {
			continue
		}
		effect := d.effect(check)
		if totals[effect] == nil {
			totals[effect] = map[string]int64{}
		}
		totals[effect][d.Money.currency] += d.Money.amount
	}
	text, err := json.Marshal(totals)
	if err != nil {
		return "", fmt.Errorf("encode totals: %w", err)
	}
	return string(text), nil
}

// firstLine leaves a stack out of what people read.
func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

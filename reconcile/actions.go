package reconcile

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// Bounds of what a person says about a finding.
const (
	noteMax   = 1000 // runes
	snoozeMax = 90 * 24 * time.Hour
)

// act changes a finding under its lock, and keeps who did it.
func (r *Reconciler) act(ctx context.Context, id, actor string, change func(f *Finding, now time.Time) (entry, error)) (f Finding, err error) {
	now := r.Now()
	err = r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		if f, err = lockFinding(ctx, tx, id); err != nil {
			return err
		}
		e, err := change(&f, now)
		if err != nil || e.action == "" {
			return err
		}
		e.at, e.actor = now, actor
		return keepFinding(ctx, tx, f, e)
	})
	return f, err
}

// Acknowledge says that somebody deals with a finding: it is told again only when
// its severity rises. Done again it changes nothing.
func (r *Reconciler) Acknowledge(ctx context.Context, id, actor, note string) (Finding, error) {
	return r.act(ctx, id, actor, func(f *Finding, _ time.Time) (entry, error) {
		switch f.State {
		case StateResolved:
			return entry{}, errNotOpen
		case StateAcknowledged:
			return entry{}, nil
		}
		f.State, f.SnoozedUntil = StateAcknowledged, nil
		if f.ToldSeverity == "" { // known to whoever acknowledges it, mailed or not
			f.ToldSeverity, f.ToldMoney = f.Severity, f.Money
		}
		return entry{action: "acknowledged", detail: note}, nil
	})
}

// Snooze keeps a finding quiet until a time, when it is open and told again.
func (r *Reconciler) Snooze(ctx context.Context, id, actor, note string, until time.Time) (Finding, error) {
	if now := r.Now(); !until.After(now) || until.After(now.Add(snoozeMax)) {
		var p fault.Problems
		p.Addf("/until", "must be in the future, at most %d days ahead", int(snoozeMax.Hours()/24))
		return Finding{}, p.Err(fault.ErrUnprocessed)
	}
	return r.act(ctx, id, actor, func(f *Finding, _ time.Time) (entry, error) {
		if f.State == StateResolved {
			return entry{}, errNotOpen
		}
		if f.State == StateSnoozed && f.SnoozedUntil.Equal(until) {
			return entry{}, nil
		}
		f.State, f.SnoozedUntil = StateSnoozed, &until
		return entry{action: "snoozed", detail: strings.TrimSpace("until " + until.UTC().Format(time.RFC3339) + " " + note)}, nil
	})
}

// Resolve accepts a finding as it is: it stays resolved while runs find exactly the
// same, and reopens when that grows, changes, or comes back after it was gone.
func (r *Reconciler) Resolve(ctx context.Context, id, actor, reason string) (Finding, error) {
	return r.act(ctx, id, actor, func(f *Finding, now time.Time) (entry, error) {
		if f.State == StateResolved {
			return entry{}, nil
		}
		f.State, f.SnoozedUntil, f.ResolvedAt, f.ResolvedBy, f.Accepted = StateResolved, nil, &now, actor, f.fingerprint()
		return entry{action: "resolved", detail: reason}, nil
	})
}

// sqlHistory relies on finding_history_pkey.
const sqlHistory = `SELECT at, actor, action, detail FROM finding_history WHERE finding_id = $1 ORDER BY at, entry_id LIMIT 1000`

// History lists what has happened to a finding, oldest first.
func (r *Reconciler) History(ctx context.Context, id string) (entries []api.FindingEntry, err error) {
	var rows []struct {
		At     time.Time `db:"at"`
		Actor  string    `db:"actor"`
		Action string    `db:"action"`
		Detail string    `db:"detail"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlHistory, id)
	})
	if err != nil {
		return nil, fmt.Errorf("read the history of %s: %w", id, err)
	}
	entries = make([]api.FindingEntry, len(rows))
	for i, row := range rows {
		entries[i] = api.FindingEntry{At: row.At.UTC(), Actor: row.Actor, Action: row.Action, Detail: row.Detail}
	}
	return entries, nil
}

// optional reads a body that may be left out.
func optional(w http.ResponseWriter, q *http.Request, body any) error {
	if q.ContentLength == 0 {
		return nil
	}
	return web.Decode(w, q, web.BodyMax, body)
}

// text checks what a person says.
func text(p *fault.Problems, pointer, value string, required bool) {
	switch {
	case required && strings.TrimSpace(value) == "":
		p.Addf(pointer, "must say why")
	case utf8.RuneCountInString(value) > noteMax:
		p.Addf(pointer, "must be at most %d characters long", noteMax)
	case strings.ContainsRune(value, 0):
		p.Addf(pointer, "must not hold U+0000")
	}
}

func (r *Reconciler) handleAcknowledge(w http.ResponseWriter, q *http.Request) error {
	var body api.AcknowledgeRequest
	if err := optional(w, q, &body); err != nil {
		return err
	}
	var p fault.Problems
	text(&p, "/note", body.Note, false)
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	f, err := r.Acknowledge(q.Context(), q.PathValue("id"), web.Caller(q.Context()), body.Note)
	return r.answer(w, f, err)
}

func (r *Reconciler) handleSnooze(w http.ResponseWriter, q *http.Request) error {
	var body api.SnoozeRequest
	if err := web.Decode(w, q, web.BodyMax, &body); err != nil {
		return err
	}
	var p fault.Problems
	text(&p, "/note", body.Note, false)
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	f, err := r.Snooze(q.Context(), q.PathValue("id"), web.Caller(q.Context()), body.Note, body.Until.UTC())
	return r.answer(w, f, err)
}

func (r *Reconciler) handleResolve(w http.ResponseWriter, q *http.Request) error {
	var body api.ResolveRequest
	if err := web.Decode(w, q, web.BodyMax, &body); err != nil {
		return err
	}
	var p fault.Problems
	text(&p, "/reason", body.Reason, true)
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	f, err := r.Resolve(q.Context(), q.PathValue("id"), web.Caller(q.Context()), body.Reason)
	return r.answer(w, f, err)
}

func (r *Reconciler) answer(w http.ResponseWriter, f Finding, err error) error {
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, r.Wire(f))
}

package reconcile

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/config"
)

// gatherFor is how long a mail waits for checks that are being run, so that what
// they find at the same time is told at once.
const gatherFor = 5 * time.Minute

// AlertStep does what time alone brings about: snoozed findings wake, deadlines come
// near, mails that were held back go out, and reports fall due. It may run in
// several processes.
func (r *Reconciler) AlertStep(ctx context.Context) (more bool, err error) {
	for _, step := range []func(context.Context) error{r.rouse, r.regrade, r.notify, r.report} {
		if err := step(ctx); err != nil {
			return false, err
		}
	}
	return false, nil
}

// sqlAsleep relies on findings_by_state.
const sqlAsleep = `
	SELECT ` + findingColumns + `
	FROM findings
	WHERE state = 'snoozed' AND snoozed_until <= $1
	ORDER BY finding_id
	FOR UPDATE`

// rouse opens the findings whose snooze is over.
func (r *Reconciler) rouse(ctx context.Context) error {
	now := r.Now()
	return r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		var asleep []Finding
		if err := tx.SelectContext(ctx, &asleep, sqlAsleep, now); err != nil {
			return fmt.Errorf("look for findings to wake: %w", err)
		}
		for _, f := range asleep {
			f.wake()
			if err := keepFinding(ctx, tx, f, entry{action: "woke", at: now}); err != nil {
				return err
			}
		}
		return nil
	})
}

// sqlNearDeadline relies on findings_by_state. Beside what has a deadline within a day it
// lists usage that has been lacking for a week or for thirty days.
const sqlNearDeadline = `
	SELECT ` + findingColumns + `
	FROM findings
	WHERE state IN ('open', 'acknowledged') AND deadline > $1 AND (deadline <= $2 OR (happened_at <= $3 AND check_name LIKE 'usage.%'))
	ORDER BY finding_id
	FOR UPDATE`

// regrade raises the severity of findings whose deadline has come near, or that have
// grown old, since their check ran.
func (r *Reconciler) regrade(ctx context.Context) error {
	now := r.Now()
	return r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		var near []Finding
		if err := tx.SelectContext(ctx, &near, sqlNearDeadline, now, now.Add(nearDeadline), now.Add(-agedOnce)); err != nil {
			return fmt.Errorf("look for deadlines: %w", err)
		}
		for _, f := range near {
			severity := f.grade(now)
			if rank(severity) <= rank(f.Severity) {
				continue
			}
			f.Severity = severity
			if err := keepFinding(ctx, tx, f, entry{action: "worsened", at: now, detail: "there is time until " + f.Deadline.UTC().Format(time.RFC3339)}); err != nil {
				return err
			}
		}
		return nil
	})
}

// incident is the time from the first mail about a mismatch to the all clear.
type incident struct {
	ID     string    `db:"incident_id"`
	ToldAt time.Time `db:"told_at"`
	Mails  int       `db:"mails"`
}

// mailID names the incident's next mail, and the one that began its thread, which
// the first does not reply to.
func (i incident) mailID() (id, replyTo string) {
	root := "incident:" + i.ID
	if i.Mails == 0 {
		return root, ""
	}
	return fmt.Sprintf("%s:%d", root, i.Mails+1), root
}

// sqlOpenIncident relies on incidents_one_open.
const sqlOpenIncident = `SELECT incident_id, told_at, mails FROM incidents WHERE closed_at IS NULL FOR UPDATE`

// sqlBeginIncident relies on incidents_one_open.
const sqlBeginIncident = `INSERT INTO incidents (incident_id, opened_at, told_at, mails) VALUES ($1, $2, $2, 1)`

// sqlGoOn relies on incidents_pkey.
const sqlGoOn = `UPDATE incidents SET told_at = $2, mails = mails + 1, closed_at = CASE WHEN $3 THEN $2::timestamptz END WHERE incident_id = $1`

// openIncident gives the one under way, nil for none.
func openIncident(ctx context.Context, tx *sqlx.Tx) (*incident, error) {
	var i incident
	err := tx.GetContext(ctx, &i, sqlOpenIncident)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // there may be none
	}
	if err != nil {
		return nil, fmt.Errorf("read the incident: %w", err)
	}
	return &i, nil
}

// sqlOwed lists the findings about which a mail is owed: what is new, what has
// grown by more than a tenth since it was told, and, even when somebody deals with
// it, what has become more severe.
const sqlOwed = `
	SELECT ` + findingColumns + `
	FROM findings
	WHERE (state = 'open' AND (notified_at IS NULL OR coalesce(money, 0) > coalesce(told_money, 0) + coalesce(told_money, 0) / 10))
		OR (state IN ('open', 'acknowledged') AND told_severity <> ''
			AND array_position(ARRAY['low', 'medium', 'high', 'critical'], severity) > array_position(ARRAY['low', 'medium', 'high', 'critical'], told_severity))
	ORDER BY finding_id
	FOR UPDATE`

// sqlBusy tells whether a check is being run, of which more may be heard soon.
const sqlBusy = `SELECT count(*) FROM reconcile_checks WHERE lease_until > $1`

// notify stages one mail about everything that is new or worse, and one when
// everything that was mailed about is gone, each in the transaction that marks it
// as told. A mail that is not urgent keeps a distance from the one before it; what
// it would say is owed, and told later.
func (r *Reconciler) notify(ctx context.Context) error {
	now := r.Now()
	return r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		var owed []Finding
		if err := tx.SelectContext(ctx, &owed, sqlOwed); err != nil {
			return fmt.Errorf("list findings to mail: %w", err)
		}
		current, err := openIncident(ctx, tx)
		if err != nil {
			return err
		}
		if len(owed) == 0 {
			return r.allClear(ctx, tx, current, now)
		}
		urgent := slices.ContainsFunc(owed, isUrgent)
		if current != nil && !urgent && now.Before(current.ToldAt.Add(r.Cooldown)) {
			return nil
		}
		var busy int
		if err := tx.GetContext(ctx, &busy, sqlBusy, now); err != nil {
			return fmt.Errorf("look for runs: %w", err)
		}
		fresh := !slices.ContainsFunc(owed, func(f Finding) bool { return f.OpenedAt.Before(now.Add(-gatherFor)) })
		if busy > 0 && fresh {
			return nil
		}
		return r.tell(ctx, tx, current, owed, now)
	})
}

// isUrgent tells what is mailed at once and to those who are woken for it.
func isUrgent(f Finding) bool { return rank(f.Severity) >= rank("high") }

// sqlNotified relies on findings_pkey.
const sqlNotified = `UPDATE findings SET notified_at = $2, told_money = money, told_severity = severity WHERE finding_id = ANY ($1::text[])`

// tell stages the mail, and the webhook, about findings.
func (r *Reconciler) tell(ctx context.Context, tx *sqlx.Tx, current *incident, owed []Finding, now time.Time) error {
	next := incident{}
	if current != nil {
		next = *current
	} else {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("name an incident: %w", err)
		}
		next.ID = id.String()
	}
	id, replyTo := next.mailID()
	m, err := r.findingsMail(owed, now)
	if err != nil {
		return err
	}
	m.ReplyTo, m.Urgent = replyTo, slices.ContainsFunc(owed, isUrgent)
	if err := r.Alerter.StageMail(ctx, tx, id, m); err != nil {
		return err
	}
	if err := r.stageWebhook(ctx, tx, id, "findings.told", r.toldData(next, owed), now); err != nil {
		return err
	}
	if current == nil {
		_, err = tx.ExecContext(ctx, sqlBeginIncident, next.ID, now)
	} else {
		_, err = tx.ExecContext(ctx, sqlGoOn, next.ID, now, false)
	}
	if err != nil {
		return fmt.Errorf("keep the incident: %w", err)
	}
	ids := make(pq.StringArray, len(owed))
	for i, f := range owed {
		ids[i] = f.ID
		if err := addHistory(ctx, tx, f.ID, entry{action: "told", at: now, detail: m.Subject}); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, sqlNotified, ids, now); err != nil {
		return fmt.Errorf("mark findings as told: %w", err)
	}
	return nil
}

// sqlToClear lists what was mailed about and is gone.
const sqlToClear = `
	SELECT ` + findingColumns + `
	FROM findings WHERE state = 'resolved' AND notified_at IS NOT NULL AND cleared_at IS NULL ORDER BY finding_id FOR UPDATE`

// sqlOpenCount counts what is not resolved.
const sqlOpenCount = `SELECT count(*) FROM findings WHERE state <> 'resolved'`

// sqlCleared relies on findings_pkey.
const sqlCleared = `UPDATE findings SET cleared_at = $2 WHERE finding_id = ANY ($1::text[])`

// allClear ends the incident once nothing is left of it.
func (r *Reconciler) allClear(ctx context.Context, tx *sqlx.Tx, current *incident, now time.Time) error {
	var open int
	var gone []Finding
	if err := tx.GetContext(ctx, &open, sqlOpenCount); err != nil || open > 0 {
		return err
	}
	if err := tx.SelectContext(ctx, &gone, sqlToClear); err != nil || len(gone) == 0 {
		return err
	}
	m, err := r.clearMail(gone, now)
	if err != nil {
		return err
	}
	id, replyTo := "clear:"+gone[0].ID+":"+now.Format(time.RFC3339Nano), ""
	if current != nil {
		id, replyTo = current.mailID()
		if _, err := tx.ExecContext(ctx, sqlGoOn, current.ID, now, true); err != nil {
			return fmt.Errorf("end the incident: %w", err)
		}
	}
	m.ReplyTo = replyTo
	if err := r.Alerter.StageMail(ctx, tx, id, m); err != nil {
		return err
	}
	ids := make(pq.StringArray, len(gone))
	for i, f := range gone {
		ids[i] = f.ID
	}
	if err := r.stageWebhook(ctx, tx, id, "findings.cleared", map[string]any{"findings": ids}, now); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlCleared, ids, now)
	return err
}

// Reports that are mailed by schedule.
const (
	reportDigest = "digest"
	reportWeekly = "weekly"
)

// sqlPost relies on reconcile_posts_pkey: one slot is mailed once.
const sqlPost = `INSERT INTO reconcile_posts (name, slot, staged_at) VALUES ($1, $2, $3) ON CONFLICT (name, slot) DO NOTHING`

// sqlPosted relies on reconcile_posts_pkey; the latest slot that was seen.
const sqlPosted = `SELECT max(slot) FROM reconcile_posts WHERE name = $1`

// lateMax is how late a report still goes out: an old digest helps nobody.
const lateMax = 12 * time.Hour

// report mails the reports whose slot has come. Of slots that were missed while no
// process ran only the latest is made up; the one before the first start is none.
func (r *Reconciler) report(ctx context.Context) error {
	for _, p := range []struct {
		name, spec string
		make       func(ctx context.Context, tx *sqlx.Tx, slot time.Time) (*Mail, error)
	}{{reportDigest, r.Digest, r.digestMail}, {reportWeekly, r.Weekly, r.weeklyMail}} {
		if p.spec == "" || p.spec == config.ScheduleOff {
			continue
		}
		schedule, err := config.ParseSchedule(p.spec)
		if err != nil {
			return fmt.Errorf("the schedule of the %s %w", p.name, err)
		}
		now := r.Now()
		slot, ok := latestSlot(schedule, now)
		if !ok {
			continue
		}
		err = r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
			var posted *time.Time
			if err := tx.GetContext(ctx, &posted, sqlPosted, p.name); err != nil || (posted != nil && !posted.Before(slot)) {
				return err
			}
			result, err := tx.ExecContext(ctx, sqlPost, p.name, slot, now)
			if err != nil {
				return err
			}
			if n, err := result.RowsAffected(); err != nil || n == 0 || posted == nil || now.Sub(slot) > lateMax {
				return err
			}
			m, err := p.make(ctx, tx, slot)
			if err != nil || m == nil {
				return err
			}
			return r.Alerter.StageMail(ctx, tx, p.name+":"+slot.UTC().Format(time.RFC3339), *m)
		})
		if err != nil {
			return fmt.Errorf("mail the %s: %w", p.name, err)
		}
	}
	return nil
}

package reconcile

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// eventSlow is how long an event may wait to be applied: tries with back-off take
// most of it.
const eventSlow = time.Hour

// sqlTroubled reads what was not applied, over stripe_events_failed and
// stripe_events_due, by state and type. What grants a purchase within the window is
// the payment's finding, in credits.payments, with its money.
const sqlTroubled = `
	SELECT e.state, e.type, count(*) AS events, min(e.created_at) AS oldest, (array_agg(e.event_id ORDER BY e.created_at, e.event_id))[1:20] AS ids,
		(array_agg(e.error ORDER BY e.created_at DESC, e.event_id))[1] AS error
	FROM stripe_events e
	WHERE (e.state IN ('failed', 'flagged') OR (e.state = 'pending' AND e.received_at <= $1))
		AND NOT (e.type = ANY ($2::text[]) AND e.created_at >= $3 AND e.created_at < $4)
	GROUP BY e.state, e.type
	ORDER BY e.state, e.type`

// webhooksFailures is the check webhooks.failures.
func (r *Reconciler) webhooksFailures(ctx context.Context, s scope) (result, error) {
	out := result{timeless: true}
	if s.account != "" {
		out.covered = coversNothing
		return out, nil
	}
	var rows []troubled
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlTroubled, s.now.Add(-eventSlow), pq.StringArray(boughtBy), s.from, s.to)
	})
	if err != nil {
		return out, fmt.Errorf("read events that were not applied: %w", err)
	}
	for _, t := range rows {
		out.compared += t.Events
		out.found = append(out.found, t.finding())
	}
	return out, nil
}

// troubled are events of one type that were not applied.
type troubled struct {
	State  string         `db:"state"`
	Type   string         `db:"type"`
	Events int64          `db:"events"`
	Oldest time.Time      `db:"oldest"`
	IDs    pq.StringArray `db:"ids"`
	Error  string         `db:"error"`
}

func (t troubled) finding() disagreement {
	n := strconv.FormatInt(t.Events, 10)
	gone := t.Oldest.Add(eventsKept)
	d := disagreement{
		Subject: "events/" + t.State + "/" + t.Type, HappenedAt: t.Oldest, Unit: "events", Ours: "0 applied", Theirs: n, Difference: "+" + n,
		Evidence: map[string]any{"state": t.State, "type": t.Type, "events": []string(t.IDs), "error": t.Error, "oldest": t.Oldest.UTC()},
		Deadline: &gone, Remains: "what is in the inbox: Stripe has the events no more",
	}
	switch t.State {
	case "failed":
		d.Cause = "event_failed"
		d.Explanation = fmt.Sprintf("%s events of type %s could not be applied after all tries, and nobody tries again: %s. Mend the cause, then replay them (tallystick events replay).", n, t.Type, t.Error)
	case "flagged":
		d.Cause = "event_refused"
		d.Explanation = fmt.Sprintf("%s events of type %s arrived and were kept, but not applied: %s. They are of another mode, account or API version than this system; look at the endpoint that sends them.", n, t.Type, t.Error)
	default:
		d.Cause = "event_waiting"
		d.Explanation = fmt.Sprintf("%s events of type %s wait to be applied for more than %s. The last error was: %s.", n, t.Type, eventSlow, t.Error)
	}
	return d
}

package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
)

// reportsMax bounds how many of Stripe's error reports are looked at.
const reportsMax = 1000

// sqlReports relies on the index stripe_events_by_time.
const sqlReports = `
	SELECT event_id, type, created_at, payload
	FROM stripe_events
	WHERE created_at >= $1 AND created_at < $2 AND type IN ('v1.billing.meter.error_report_triggered', 'v1.billing.meter.no_meter_found')
	ORDER BY created_at DESC, event_id
	LIMIT $3`

// report is one kind of error in one of Stripe's reports about meter events. The
// samples are a few of those that it counts.
type report struct {
	Event     string    `json:"event"`
	At        time.Time `json:"at"`
	Meter     string    `json:"stripe_meter,omitempty"` // "" when none was found
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	Code      string    `json:"code"`
	Message   string    `json:"message"`
	Count     int64     `json:"count"`
	Samples   []string  `json:"samples"` // identifiers
	EventType string    `json:"-"`
}

// readReports reads Stripe's reports of a time from the inbox, the newest first.
func (r *Reconciler) readReports(ctx context.Context, from, to time.Time) (reports []report, err error) {
	var rows []struct {
		ID      string    `db:"event_id"`
		Type    string    `db:"type"`
		At      time.Time `db:"created_at"`
		Payload []byte    `db:"payload"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlReports, from, to, reportsMax)
	})
	if err != nil {
		return nil, fmt.Errorf("read Stripe's error reports: %w", err)
	}
	for _, row := range rows {
		for _, one := range parseReport(row.Payload) {
			one.Event, one.At, one.EventType = row.ID, row.At.UTC(), row.Type
			reports = append(reports, one)
		}
	}
	return reports, nil
}

// parseReport takes a report apart; what is no report has no errors.
func parseReport(payload []byte) (reports []report) {
	var w struct {
		Related *struct {
			ID string `json:"id"`
		} `json:"related_object"`
		Data struct {
			From   time.Time `json:"validation_start"`
			To     time.Time `json:"validation_end"`
			Reason struct {
				Types []struct {
					Code    string `json:"code"`
					Count   int64  `json:"error_count"`
					Samples []struct {
						Message string `json:"error_message"`
						Request struct {
							Identifier string `json:"identifier"`
						} `json:"request"`
					} `json:"sample_errors"`
				} `json:"error_types"`
			} `json:"reason"`
		} `json:"data"`
	}
	if err := json.Unmarshal(payload, &w); err != nil {
		return nil
	}
	for _, kind := range w.Data.Reason.Types {
		one := report{From: w.Data.From, To: w.Data.To, Code: kind.Code, Count: kind.Count, Samples: []string{}}
		if w.Related != nil {
			one.Meter = w.Related.ID
		}
		for _, sample := range kind.Samples {
			one.Message = sample.Message
			one.Samples = append(one.Samples, sample.Request.Identifier)
		}
		reports = append(reports, one)
	}
	return reports
}

// reportsAbout finds the reports that name a delivery of the spans or, for reports
// hold only samples, that are about the meter when the deliveries arrived.
func (u *usageRun) reportsAbout(ctx context.Context, p pair, spans []span, t trail) (about []report, err error) {
	if t.first == nil {
		return nil, nil
	}
	reports, err := u.readReports(ctx, t.first.Add(-time.Minute), u.s.now.Add(time.Minute))
	if err != nil {
		return nil, err
	}
	sent := map[string]bool{}
	for _, sp := range spans {
		for _, d := range sp.deliveries {
			sent[d.Identifier] = true
		}
	}
	var near []report
	for _, one := range reports {
		named := false
		for _, identifier := range one.Samples {
			named = named || sent[identifier]
		}
		switch {
		case named:
			about = append(about, one)
		case one.Count > int64(len(one.Samples)) && one.Meter == p.meterID && !t.first.After(one.To) && !t.last.Before(one.From):
			near = append(near, one)
		}
	}
	if len(about) == 0 {
		about = near
	}
	return about[:min(len(about), evidenceMax)], nil
}

package reconcile

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// sqlSampled finds the deliveries that samples name, over deliveries_identifier's
// identifiers within deliveries_by_bucket, and whether usage.totals has compared
// their meter since.
const sqlSampled = `
	SELECT d.identifier, d.account, d.meter, coalesce(p.compared_at >= $3, false) AS compared
	FROM deliveries d LEFT JOIN reconcile_pairs p ON p.part = d.part AND p.account = d.account AND p.meter = d.meter
	WHERE d.identifier = ANY ($1::text[]) AND d.bucket >= $2`

// sampled is a delivery that one of Stripe's reports names.
type sampled struct {
	Identifier string `db:"identifier" json:"identifier"`
	Account    string `db:"account" json:"account"`
	Meter      string `db:"meter" json:"meter"`
	Compared   bool   `db:"compared" json:"-"`
}

// usageErrors is the check usage.errors.
func (r *Reconciler) usageErrors(ctx context.Context, s scope) (result, error) {
	out := result{}
	if s.account != "" {
		return out, nil // reports are about meters; their samples name accounts at best
	}
	reports, err := r.readReports(ctx, s.from, s.now)
	if err != nil {
		return out, err
	}
	seen := map[string]int{}
	for _, one := range reports {
		out.compared += one.Count
		d, ok, err := r.reportFinding(ctx, one)
		if err != nil {
			return out, err
		}
		if !ok {
			continue
		}
		// The newest report of a kind stands for those before it.
		if _, told := seen[d.Subject]; !told {
			seen[d.Subject] = len(out.found)
			out.found = append(out.found, d)
		}
	}
	out.covered = func(string, string, time.Time) bool { return true }
	return out, nil
}

// reportFinding makes a finding of a report, unless usage.totals has compared since
// what it names of ours: its difference, or that there is none, is worth more.
func (r *Reconciler) reportFinding(ctx context.Context, one report) (d disagreement, ok bool, err error) {
	var ours []sampled
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		ours = nil
		return tx.SelectContext(ctx, &ours, sqlSampled, pq.StringArray(one.Samples), one.From.Add(-pairBack), one.At)
	})
	if err != nil {
		return d, false, fmt.Errorf("look for what Stripe reports: %w", err)
	}
	meter := one.Meter
	if meter == "" {
		meter = "no_meter"
	}
	d = disagreement{
		Subject: strings.Join([]string{meter, one.Code}, "/"), HappenedAt: one.At, Unit: meter, Ours: "0", Theirs: fmt.Sprint(one.Count), Effect: effectAtRisk,
		Evidence: map[string]any{"report": one, "deliveries": ours},
	}
	if len(ours) < len(one.Samples) || len(one.Samples) == 0 {
		d.Cause = "reported_of_others"
		d.Explanation = fmt.Sprintf("Stripe dropped %d meter events that it had taken (%s: %s), and tallystick sent none of those that it names: another program's usage is not billed.",
			one.Count, one.Code, one.Message)
		return d, true, nil
	}
	for _, sample := range ours {
		if !sample.Compared {
			d.Cause = "reported"
			d.Account = sample.Account
			d.Explanation = fmt.Sprintf("Stripe dropped %d meter events that it had taken: %s (%s). The next comparison of totals tells what is missing.", one.Count, one.Message, one.Code)
			return d, true, nil
		}
	}
	return d, false, nil
}

package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
)

// Refusals of a repair.
var (
	errRepairOff = &fault.Error{Kind: fault.KindConflict, Code: "repair_off", Public: "repair is switched off; set TALLYSTICK_REPAIR to ask or safe"}
	errNoRepair  = &fault.Error{Kind: fault.KindConflict, Code: "no_repair", Public: "tallystick knows no repair for this finding; its explanation says what a person can do"}
	errNotOpen   = &fault.Error{Kind: fault.KindConflict, Code: "finding_resolved", Public: "the finding is resolved; there is nothing to repair"}
)

// Outcome is what a repair did, or would do.
type Outcome struct {
	Finding string
	Action  string
	Result  string
	Done    bool
}

// Repair mends one finding. A dry run only says what it would do. Done again,
// it changes nothing: a finding is repaired once for each time that it opened.
func (r *Reconciler) Repair(ctx context.Context, id, actor string, q api.RepairRequest) (Outcome, error) {
	f, err := r.Finding(ctx, id)
	if err != nil {
		return Outcome{}, err
	}
	out := Outcome{Finding: f.ID, Action: f.Repair}
	switch {
	case f.State == StateResolved:
		return out, errNotOpen
	case f.Repair == "":
		return out, errNoRepair
	case r.Policy == RepairOff && !q.DryRun:
		return out, errRepairOff
	case f.Repair == repairPropose:
		out.Result, err = f.proposal()
		return out, err
	case q.DryRun:
		out.Result = f.plan()
		return out, nil
	}
	before, err := r.repairedBefore(ctx, f)
	if err != nil || before != "" {
		out.Result = before
		return out, err
	}
	// What is foreign, or has transactions of its own, comes before the one that keeps
	// the audit row. It may be done twice, when a process dies between the two: each
	// is harmless then.
	result, err := r.actBefore(ctx, f, actor, q.Choice)
	if err != nil {
		return out, err
	}
	missing, err := r.measure(ctx, f)
	if err != nil {
		return out, err
	}
	err = r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		out.Result, out.Done, err = r.mend(ctx, tx, f, result, missing, actor)
		return err
	})
	if err == nil {
		r.Logger.Info("repair", slog.String("finding", f.ID), slog.String("action", f.Repair), slog.String("actor", actor), slog.String("result", out.Result))
	}
	return out, err
}

// measure finds what Stripe lacks at this moment, bucket by bucket, for a repair
// that sends it. It never trusts what a run found a while ago (R5).
func (r *Reconciler) measure(ctx context.Context, f Finding) ([]Missing, error) {
	if f.Repair != repairResendUsage {
		return nil, nil
	}
	var args resend
	if err := f.args(&args); err != nil {
		return nil, err
	}
	if missing, ok, err := r.measureRecords(ctx, args); ok || err != nil {
		return missing, err
	}
	pairs, err := r.pairsOf(ctx, args.Account, args.Meter)
	if err != nil {
		return nil, err
	}
	var missing []Missing
	for _, p := range pairs {
		for _, sp := range args.Spans {
			more, err := r.measureSpan(ctx, p, sp)
			if err != nil {
				return nil, err
			}
			missing = append(missing, more...)
		}
	}
	return missing, nil
}

// pairsOf gives an account's usage of one meter, as far as Stripe has the meter.
func (r *Reconciler) pairsOf(ctx context.Context, account, meter string) ([]pair, error) {
	var pairs []pair
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		pairs = nil
		return tx.SelectContext(ctx, &pairs, sqlPairs, account)
	})
	if err == nil {
		pairs, err = r.atStripe(ctx, pairs)
	}
	return slices.DeleteFunc(pairs, func(p pair) bool { return p.Meter != meter || p.meterID == "" }), err
}

// measureSpan looks at each bucket of a span. What is under way counts as if it
// had arrived: sending it again as well would bill it twice. A correction under
// way counts as if it never would: what Stripe has too much is no reason to send.
func (r *Reconciler) measureSpan(ctx context.Context, p pair, sp spanArgs) ([]Missing, error) {
	var missing []Missing
	now := r.Now()
	for at := sp.From; at.Before(sp.To); at = at.Add(r.Bucket) {
		one := span{from: at, to: at.Add(r.Bucket)}
		if err := r.ourSide(ctx, p, scope{now: now}, &one); err != nil {
			return nil, err
		}
		for _, customer := range p.Customers {
			q, err := r.total(ctx, p, customer, one.from, one.to)
			if err != nil {
				return nil, err
			}
			one.theirs += q
		}
		moving := credit.Quantity(0)
		for _, d := range one.deliveries {
			justTaken := d.State == "delivered" && d.DeliveredAt != nil && d.DeliveredAt.After(now.Add(-r.Settle)) // Stripe may not count it yet
			if d.Quantity > 0 && (justTaken || d.State == "pending" || d.State == "sending" || d.State == "ambiguous") {
				moving += d.Quantity
			}
		}
		if lacks := one.ours - one.theirs - moving; lacks > 0 {
			missing = append(missing, Missing{Bucket: at, Quantity: lacks})
		}
	}
	return missing, nil
}

// sqlRepaired relies on repairs_pkey: a finding is repaired once per opening.
const sqlRepaired = `
	INSERT INTO repairs (finding_id, times_open, action, result, actor, created_at)
	VALUES ($1, $2, $3, $4, $5, $6)
	ON CONFLICT (finding_id, times_open) DO NOTHING`

// sqlEarlierRepair relies on repairs_pkey.
const sqlEarlierRepair = `SELECT result FROM repairs WHERE finding_id = $1 AND times_open = $2`

// repairedBefore tells what an earlier repair of this opening has done; "" for none.
func (r *Reconciler) repairedBefore(ctx context.Context, f Finding) (before string, err error) {
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		before, err = repairedBefore(ctx, tx, f)
		return err
	})
	return before, err
}

func repairedBefore(ctx context.Context, tx *sqlx.Tx, f Finding) (string, error) {
	var earlier []string
	if err := tx.SelectContext(ctx, &earlier, sqlEarlierRepair, f.ID, f.TimesOpen); err != nil {
		return "", fmt.Errorf("look for an earlier repair: %w", err)
	}
	if len(earlier) == 0 {
		return "", nil
	}
	return "was repaired before, the next run tells whether it helped: " + earlier[0], nil
}

// mend does what is ours and keeps the audit row, in one transaction.
func (r *Reconciler) mend(ctx context.Context, tx *sqlx.Tx, f Finding, acted string, missing []Missing, actor string) (result string, done bool, err error) {
	locked, err := lockFinding(ctx, tx, f.ID)
	if err != nil {
		return "", false, err
	}
	if before, err := repairedBefore(ctx, tx, locked); err != nil || before != "" {
		return before, false, err
	}
	switch result = acted; f.Repair {
	case repairRebuildBalance:
		if err := r.Repairer.RebuildBalance(ctx, tx, f.Account); err != nil {
			return "", false, err
		}
		result = "the balance is what the journal says"
	case repairResendUsage:
		if result, err = r.resend(ctx, tx, f, missing); err != nil {
			return "", false, err
		}
		if len(missing) == 0 {
			return result, false, nil
		}
	}
	now := r.Now()
	if _, err = tx.ExecContext(ctx, sqlRepaired, f.ID, locked.TimesOpen, f.Repair, result, actor, now); err == nil {
		err = addHistory(ctx, tx, f.ID, entry{action: "repaired", at: now, actor: actor, detail: result})
	}
	return result, err == nil, err
}

func (r *Reconciler) resend(ctx context.Context, tx *sqlx.Tx, f Finding, missing []Missing) (string, error) {
	if len(missing) == 0 {
		return "Stripe lacks nothing any more", nil
	}
	identifiers, err := r.Repairer.ResendUsage(ctx, tx, f.Account, f.Unit, missing)
	if err != nil {
		return "", err
	}
	var sum credit.Quantity
	for _, m := range missing {
		sum += m.Quantity
	}
	return fmt.Sprintf("%s of %s is sent again as %s", sum, f.Unit, strings.Join(identifiers, ", ")), nil
}

// sqlSafeFindings lists what may be repaired without asking, over findings_by_state.
// What ends a reservation, cancels at Stripe or is but a proposal never is, whatever
// a check says.
const sqlSafeFindings = `
	SELECT f.finding_id FROM findings f
	WHERE f.state = 'open' AND f.safe AND f.repair IN ('resend_usage', 'feed_event', 'rebuild_balance', 'grant_credits', 'take_back')
		AND NOT EXISTS (SELECT 1 FROM repairs p WHERE p.finding_id = f.finding_id AND p.times_open = f.times_open)
	ORDER BY f.finding_id`

// RepairAllSafe repairs every open finding whose repair can neither over-bill nor
// over-credit.
func (r *Reconciler) RepairAllSafe(ctx context.Context, actor string) ([]Outcome, error) {
	var ids []string
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		ids = nil
		return tx.SelectContext(ctx, &ids, sqlSafeFindings)
	})
	if err != nil {
		return nil, fmt.Errorf("list what can be repaired: %w", err)
	}
	outcomes := make([]Outcome, 0, len(ids))
	for _, id := range ids {
		out, err := r.Repair(ctx, id, actor, api.RepairRequest{})
		if err != nil {
			return outcomes, fmt.Errorf("repair %s: %w", id, err)
		}
		outcomes = append(outcomes, out)
	}
	return outcomes, nil
}

func (r *Reconciler) repairSafe(ctx context.Context) error {
	_, err := r.RepairAllSafe(ctx, "system:policy")
	return err
}

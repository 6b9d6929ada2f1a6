package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// used is an account's usage of a meter that nobody may be billed for.
type used struct {
	Account   string          `db:"account"`
	Meter     string          `db:"meter"`
	EventName string          `db:"event_name"`
	Customer  string          `db:"customer"` // the first; "" for none
	Quantity  credit.Quantity `db:"quantity"`
	Delivered credit.Quantity `db:"delivered"` // to Stripe, for whomever
	First     time.Time       `db:"first"`
	Usage     string          `db:"usage_id"` // one of it
}

// sqlUsed sums usage of bound meters by account, over usage_by_time, and what of it
// was delivered, over deliveries_pkey. Usage that is recorded since the meter was
// bound is meant for Stripe.
const sqlUsed = `
	SELECT u.account, u.meter, coalesce(m.stripe_event_name, '') AS event_name, coalesce((SELECT c.customer FROM stripe_customers c
			WHERE c.part = u.part AND c.account = u.account ORDER BY c.position LIMIT 1), '') AS customer,
		sum(CASE WHEN m.aggregation = 'count' THEN 1000000 ELSE u.quantity END)::bigint AS quantity, min(u.occurred_at) AS first, min(u.usage_id) AS usage_id,
		(SELECT coalesce(sum(d.quantity), 0)::bigint FROM deliveries d WHERE d.part = u.part AND d.account = u.account AND d.meter = u.meter
			AND d.bucket >= $1 AND d.bucket < $2 AND d.state = 'delivered') AS delivered
	FROM usage u JOIN meters m ON m.meter = u.meter
	WHERE u.occurred_at >= $1 AND u.occurred_at < $2 AND ($3 = '' OR u.account = $3) AND u.recorded_at < $2 AND u.recorded_at >= m.stripe_bound_at
		AND NOT EXISTS (SELECT 1 FROM usage_voids v WHERE v.part = u.part AND v.account = u.account AND v.usage_id = u.usage_id)
	GROUP BY u.part, u.account, u.meter, m.stripe_event_name
	ORDER BY u.part, u.account, u.meter`

// sqlDeletedCustomers reads the inbox, over stripe_events_by_time: Stripe tells of
// every customer that is deleted.
const sqlDeletedCustomers = `
	SELECT DISTINCT convert_from(payload, 'UTF8')::jsonb -> 'data' -> 'object' ->> 'id'
	FROM stripe_events WHERE type = 'customer.deleted' AND created_at >= $1`

// sqlFoundByTotals lists what usage.totals or usage.deliveries has found.
const sqlFoundByTotals = `
	SELECT DISTINCT account || '/' || unit FROM findings WHERE check_name IN ('usage.totals', 'usage.deliveries') AND state <> 'resolved'`

// sqlStranded sums deliveries of meters that were unbound before they were sent, over
// deliveries_due.
const sqlStranded = `
	SELECT d.account, d.meter, '' AS event_name, '' AS customer, sum(d.quantity)::bigint AS quantity, 0::bigint AS delivered, min(d.bucket) AS first, min(d.identifier) AS usage_id
	FROM deliveries d JOIN meters m ON m.meter = d.meter
	WHERE d.state IN ('pending', 'sending', 'ambiguous') AND m.stripe_bound_at IS NULL AND d.created_at <= $1 AND ($2 = '' OR d.account = $2)
	GROUP BY d.part, d.account, d.meter
	ORDER BY d.part, d.account, d.meter`

// usageUnbilled is the check usage.unbilled.
func (r *Reconciler) usageUnbilled(ctx context.Context, s scope) (result, error) {
	out := result{timeless: true}
	to := s.now.Add(-stuckAfter) // a customer may be added a little after the first usage
	var usages, stranded []used
	var deleted, found []string
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		usages, stranded, deleted, found = nil, nil, nil, nil
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		if err := tx.SelectContext(ctx, &usages, sqlUsed, s.from, to, s.account); err != nil {
			return err
		}
		if err := tx.SelectContext(ctx, &stranded, sqlStranded, to, s.account); err != nil {
			return err
		}
		if err := tx.SelectContext(ctx, &deleted, sqlDeletedCustomers, s.now.Add(-pairBack)); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &found, sqlFoundByTotals)
	})
	if err != nil {
		return out, fmt.Errorf("read usage: %w", err)
	}
	t, err := r.readTariffs(ctx)
	if err != nil {
		return out, err
	}
	u := &unbilledRun{usageRun: &usageRun{Reconciler: r, s: s, t: t}, deleted: setOf(deleted), found: setOf(found), subscribers: map[string]map[string]bool{}}
	for _, one := range stranded {
		d := disagreement{Cause: "unbound", Explanation: fmt.Sprintf("The meter %s was unbound from Stripe while its usage waited to be sent.", one.Meter)}
		d.describe(one)
		u.out.found = append(u.out.found, d)
	}
	for _, one := range usages {
		err := u.look(ctx, one)
		if errors.Is(err, stripe.ErrBudget) {
			out.note = fmt.Sprintf("the budget of calls to Stripe was used up at the account %s: which customers have no subscription was not read", one.Account)
			out.covered = func(string, string, time.Time) bool { return false }
			break
		}
		if err != nil {
			return out, err
		}
	}
	out.compared, out.found = int64(len(usages)+len(stranded)), u.out.found
	return out, nil
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}

// unbilledRun is one run of usage.unbilled.
type unbilledRun struct {
	*usageRun
	deleted, found map[string]bool
	subscribers    map[string]map[string]bool // by Stripe's meter: the customers that subscribe to any of its prices
}

// look finds out why nobody would be billed for usage, if nobody would.
func (u *unbilledRun) look(ctx context.Context, one used) error {
	meter := u.t.meters[one.EventName]
	var d disagreement
	switch {
	case one.Customer == "" && one.Delivered >= one.Quantity: // of a customer that it had
	case one.Customer == "":
		one.Quantity -= one.Delivered
		d = disagreement{Cause: "no_customer", Explanation: fmt.Sprintf("The account %s uses %s, which Stripe bills, and has no Stripe customer.", one.Account, one.Meter)}
	case one.EventName == "" || meter.ID == "" || u.found[one.Account+"/"+one.Meter]: // usage.totals has it
	case u.deleted[one.Customer]:
		d = disagreement{Cause: "billed_to_deleted_customer", Explanation: fmt.Sprintf("The customer %s of the account %s was deleted at Stripe, which bills nobody for its usage any more.", one.Customer, one.Account)}
	case meter.Status != "active":
		d = disagreement{Cause: "archived_meter", Explanation: fmt.Sprintf("Stripe's meter %s is archived: it takes no usage any more.", one.EventName)}
	case len(u.t.prices[meter.ID]) == 0:
		d = disagreement{Cause: "no_price", Explanation: fmt.Sprintf("No active price at Stripe bills the meter %s.", one.EventName)}
	default:
		subscribers, err := u.subscribersOf(ctx, meter.ID)
		if err != nil {
			return err
		}
		if len(subscribers) > 0 && !subscribers[one.Customer] {
			d = disagreement{Cause: "no_subscription", Explanation: fmt.Sprintf("The customer %s of the account %s has no subscription to a price of %s.", one.Customer, one.Account, one.EventName)}
		}
	}
	if d.Cause == "" {
		return nil
	}
	d.describe(one)
	var customers []string
	if one.Customer != "" {
		customers = []string{one.Customer}
	}
	var err error
	if d.Money, err = u.worthAt(ctx, customers, one.EventName, one.First, int64(one.Quantity)); err != nil {
		return err
	}
	u.out.found = append(u.out.found, d)
	return nil
}

// describe says of which usage nobody is billed for.
func (d *disagreement) describe(one used) {
	deadline := one.First.Add(stripeTakesFor)
	d.Subject, d.Account, d.HappenedAt, d.Unit = strings.Join([]string{one.Account, one.Meter}, "/"), one.Account, one.First, one.Meter
	d.Ours, d.Theirs, d.Difference = one.Quantity.String(), "0", signed(-int64(one.Quantity))
	d.Deadline, d.Remains = &deadline, "an invoice item, made by hand: Stripe takes no meter event that old"
	d.Evidence = map[string]any{"usage": []string{one.Usage}, "customer": one.Customer, "event_name": one.EventName}
}

// subscribersOf reads who subscribes to a meter's prices, once a run.
func (u *unbilledRun) subscribersOf(ctx context.Context, meter string) (map[string]bool, error) {
	if set, ok := u.subscribers[meter]; ok {
		return set, nil
	}
	set := map[string]bool{}
	for _, price := range u.t.prices[meter] {
		if err := u.Stripe.Subscribers(ctx, price.ID, func(customer string) { set[customer] = true }); err != nil {
			return nil, err
		}
	}
	u.subscribers[meter] = set
	return set, nil
}

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// Bounds of stripe.catalog.
const (
	customersPerRun = 500 // read at Stripe in one run, besides those that did not fit the last time
	customersReread = 24 * time.Hour
)

// bound is a meter of ours that points at Stripe.
type bound struct {
	Meter       string    `db:"meter"`
	Aggregation string    `db:"aggregation"`
	EventName   *string   `db:"stripe_event_name"`
	Price       *string   `db:"stripe_price"`
	BoundAt     time.Time `db:"stripe_bound_at"`
}

// sqlBound reads the catalog of meters, which is small.
const sqlBound = `
	SELECT meter, aggregation, stripe_event_name, stripe_price, stripe_bound_at
	FROM meters
	WHERE stripe_bound_at IS NOT NULL
	ORDER BY meter`

// catalogProgress is where stripe.catalog goes on with the customers.
type catalogProgress struct {
	After   string    `json:"after"`    // the last customer that was read
	Lap     time.Time `json:"lap"`      // when the first of them was read this time round
	Suspect []string  `json:"suspects"` // those that did not fit, read in every run
}

// stripeCatalog is the check stripe.catalog.
func (r *Reconciler) stripeCatalog(ctx context.Context, s scope) (result, error) {
	out := result{timeless: true}
	if s.account == "" {
		found, n, err := r.boundMeters(ctx)
		if err != nil {
			return out, err
		}
		out.found, out.compared = found, n
	}
	return r.boundCustomers(ctx, s, out)
}

func (r *Reconciler) boundMeters(ctx context.Context) (found []disagreement, n int64, err error) {
	var meters []bound
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		meters = nil
		return tx.SelectContext(ctx, &meters, sqlBound)
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read bound meters: %w", err)
	}
	if len(meters) == 0 {
		return nil, 0, nil
	}
	setups, err := r.Stripe.MeterSetups(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, m := range meters {
		if m.EventName != nil {
			found = append(found, m.judgeMeter(setups)...)
			continue
		}
		p, err := r.Stripe.PriceSetup(ctx, *m.Price)
		if err != nil && !stripe.IsMissing(err) {
			return nil, 0, err
		}
		found = append(found, m.judgePrice(p, err != nil)...)
	}
	return found, int64(len(meters)), nil
}

// judgeMeter compares a meter of ours with the billing meter of its event name.
func (m bound) judgeMeter(setups []stripe.MeterSetup) []disagreement {
	d := disagreement{
		Subject: "meter/" + m.Meter, HappenedAt: m.BoundAt, Unit: m.Meter, Difference: "0", Ours: *m.EventName, Theirs: "none", Least: "high",
		Evidence: map[string]any{"meter": m.Meter, "event_name": *m.EventName},
	}
	var at *stripe.MeterSetup
	for i := range setups {
		if setups[i].EventName == *m.EventName && (at == nil || setups[i].Status == "active") {
			at = &setups[i]
		}
	}
	if at == nil {
		d.Cause = "meter_missing"
		d.Explanation = fmt.Sprintf("The meter %s is bound to the event name %s, and Stripe has no billing meter of that name: its usage is billed nowhere. Create the billing meter, or bind the meter to another.", m.Meter, *m.EventName)
		return []disagreement{d}
	}
	d.Evidence = map[string]any{"meter": m.Meter, "event_name": *m.EventName, "stripe_meter": at.ID}
	d.Theirs = at.ID
	switch {
	case at.Status != "active":
		d.Theirs, d.Cause = at.Status, "meter_inactive"
		d.Explanation = fmt.Sprintf("The billing meter %s (%s) at Stripe is %s and takes no events: usage of %s is not billed. Reactivate it.", at.ID, at.EventName, at.Status, m.Meter)
	case at.CustomerKey != "stripe_customer_id" || at.ValueKey != "value":
		d.Ours, d.Theirs, d.Cause = "stripe_customer_id, value", at.CustomerKey+", "+at.ValueKey, "meter_keys"
		d.Explanation = fmt.Sprintf("The billing meter %s reads the customer from %q and the quantity from %q; this system sends stripe_customer_id and value, which Stripe cannot tie to anybody. Make a meter with those keys.", at.ID, at.CustomerKey, at.ValueKey)
	case at.Formula != "sum":
		d.Ours, d.Theirs, d.Cause = "sum", at.Formula, "meter_aggregation"
		d.Explanation = fmt.Sprintf("The billing meter %s aggregates by %s; usage of %s is sent as sums of a minute, so that it must sum them up. Make a meter that sums.", at.ID, at.Formula, m.Meter)
	default:
		return nil
	}
	return []disagreement{d}
}

// judgePrice compares a meter of ours with the metered price that it is bound to.
func (m bound) judgePrice(p stripe.PriceSetup, isMissing bool) []disagreement {
	d := disagreement{
		Subject: "meter/" + m.Meter, HappenedAt: m.BoundAt, Unit: m.Meter, Difference: "0", Ours: *m.Price, Theirs: "none", Least: "high",
		Evidence: map[string]any{"meter": m.Meter, "price": *m.Price},
	}
	switch {
	case isMissing:
		d.Cause = "price_missing"
		d.Explanation = fmt.Sprintf("The meter %s is bound to the price %s, which does not exist at Stripe in the mode of this key: its usage is billed nowhere.", m.Meter, *m.Price)
	case !p.Active:
		d.Theirs, d.Cause = "archived", "price_inactive"
		d.Explanation = fmt.Sprintf("The price %s that %s is bound to is archived at Stripe: no new subscription can have it. Bind the meter to the price that took its place.", *m.Price, m.Meter)
	case p.UsageType != "metered" || p.Meter != "":
		d.Ours, d.Theirs, d.Cause = "metered by usage records", "not so", "price_kind"
		d.Explanation = fmt.Sprintf("The price %s that %s is bound to takes no usage records: it is licensed, or bills a billing meter. Bind the meter to a metered price, or by its event name.", *m.Price, m.Meter)
	default:
		return nil
	}
	return []disagreement{d}
}

// owned is a customer of Stripe's that is tied to an account.
type owned struct {
	Customer string    `db:"customer"`
	Account  string    `db:"account"`
	IsFirst  bool      `db:"is_first"` // usage goes there
	TiedAt   time.Time `db:"created_at"`
}

// sqlNextCustomers walks stripe_customers_pkey, with a look at stripe_customers_by_account.
const sqlNextCustomers = `
	SELECT c.customer, c.account, a.created_at, c.position = (
		SELECT min(f.position) FROM stripe_customers f WHERE f.part = c.part AND f.account = c.account) AS is_first
	FROM stripe_customers c
	JOIN accounts a ON a.part = c.part AND a.account = c.account
	WHERE (($5 AND c.customer > $1 AND ($2 = '' OR c.account = $2)) OR c.customer = ANY ($3::text[]))
	ORDER BY c.customer = ANY ($3::text[]) DESC, c.customer
	LIMIT $4`

// boundCustomers reads the next customers at Stripe, a bounded number in each run,
// and again those that did not fit.
func (r *Reconciler) boundCustomers(ctx context.Context, s scope, out result) (result, error) {
	var p catalogProgress
	if err := s.progress(&p); err != nil {
		return out, err
	}
	after, suspects := p.After, pg.Texts(p.Suspect)
	// When all have been read today, only the suspects are read.
	walks := s.account != "" || after != "" || s.now.Sub(p.Lap) >= customersReread
	if s.account != "" {
		after, suspects = "", nil
	}
	var customers []owned
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		customers = nil
		return tx.SelectContext(ctx, &customers, sqlNextCustomers, after, s.account, suspects, customersPerRun+len(suspects), walks)
	})
	if err != nil {
		return out, fmt.Errorf("read customers: %w", err)
	}
	next := catalogProgress{After: p.After, Lap: p.Lap}
	if walks && after == "" {
		next.Lap = s.now
	}
	for _, c := range customers {
		at, err := r.Stripe.Customer(ctx, c.Customer)
		if errors.Is(err, stripe.ErrBudget) {
			out.note = "the budget of calls was used up: the customers after " + c.Customer + " wait for the next run"
			break
		}
		if err != nil && !stripe.IsMissing(err) {
			return out, err
		}
		out.compared++
		if !slices.Contains(p.Suspect, c.Customer) {
			next.After = c.Customer
		}
		if d, ok := c.judge(at, err != nil); ok {
			out.found = append(out.found, d)
			next.Suspect = append(next.Suspect, c.Customer)
		}
	}
	if len(customers) < customersPerRun+len(suspects) && out.note == "" {
		next.After = "" // the lap is done
	}
	if s.account != "" {
		// Seen on the way: the walk goes on where it was, and reads these again, too.
		next = catalogProgress{After: p.After, Lap: p.Lap, Suspect: slices.Compact(slices.Sorted(slices.Values(slices.Concat(p.Suspect, next.Suspect))))}
	}
	out.progress = next
	return out, nil
}

func (c owned) judge(at stripe.Customer, isMissing bool) (disagreement, bool) {
	d := disagreement{
		Subject: "customer/" + c.Customer, Account: c.Account, HappenedAt: c.TiedAt, Unit: "customer", Ours: c.Customer, Theirs: "deleted", Difference: "0",
		Evidence: map[string]any{"stripe_customer": c.Customer, "is_first": c.IsFirst},
	}
	if c.IsFirst {
		d.Least = "medium"
	}
	switch {
	case isMissing:
		d.Theirs, d.Cause = "none", "customer_missing"
		d.Explanation = fmt.Sprintf("The account %s is tied to the Stripe customer %s, which does not exist in the mode of this key: its usage is billed to nobody and its payments cannot be told. Tie it to the right customer.", c.Account, c.Customer)
	case at.Deleted:
		d.Cause = "customer_deleted"
		d.Explanation = fmt.Sprintf("The account %s is tied to the Stripe customer %s, which was deleted there: its usage is billed to nobody. Tie the account to the customer that took its place, first in the list; keep the old one behind it, since refunds and disputes of old payments still name it.", c.Account, c.Customer)
		if !c.IsFirst {
			return d, false // kept for old payments, as it should be
		}
	default:
		return d, false
	}
	return d, true
}

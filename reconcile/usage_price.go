package reconcile

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// tariffs is what a run has learnt at Stripe of meters, prices and subscriptions.
type tariffs struct {
	meters map[string]stripe.Meter              // by event name; an active one before an archived one
	prices map[string][]stripe.Tariff           // active ones, by Stripe's id of the meter
	items  map[string][]stripe.SubscriptionItem // by customer, of those that were asked for
	single map[string]*stripe.Tariff            // of legacy prices, by id; nil for one that Stripe does not have
	bound  []binding
}

// binding is a meter of ours and what it is bound to at Stripe.
type binding struct {
	Meter     string `db:"meter"`
	EventName string `db:"stripe_event_name"`
}

// sqlBoundMeters reads a catalog, whole.
const sqlBoundMeters = `SELECT meter, stripe_event_name FROM meters WHERE stripe_event_name IS NOT NULL ORDER BY meter`

// readTariffs reads the billing meters that ours are bound to, and their prices.
func (r *Reconciler) readTariffs(ctx context.Context) (*tariffs, error) {
	t := &tariffs{
		meters: map[string]stripe.Meter{}, prices: map[string][]stripe.Tariff{}, items: map[string][]stripe.SubscriptionItem{},
		single: map[string]*stripe.Tariff{},
	}
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		t.bound = nil
		return tx.SelectContext(ctx, &t.bound, sqlBoundMeters)
	})
	if err != nil {
		return nil, fmt.Errorf("read the bound meters: %w", err)
	}
	if len(t.bound) == 0 {
		return t, nil
	}
	meters, err := r.Stripe.Meters(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range meters {
		if stands, ok := t.meters[m.EventName]; !ok || stands.Status != "active" {
			t.meters[m.EventName] = m
		}
	}
	for _, b := range t.bound {
		id := t.meterID(b.EventName)
		if _, read := t.prices[id]; read || id == "" {
			continue
		}
		if t.prices[id], err = r.Stripe.MeterTariffs(ctx, id); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// meterID is Stripe's id of the meter of an event name, "" when it has none.
func (t *tariffs) meterID(eventName string) string { return t.meters[eventName].ID }

// atStripe finds each pair's meter at Stripe.
func (r *Reconciler) atStripe(ctx context.Context, pairs []pair) ([]pair, error) {
	t, err := r.readTariffs(ctx)
	if err != nil {
		return nil, err
	}
	for i := range pairs {
		pairs[i].meterID = t.meterID(pairs[i].EventName)
	}
	return pairs, nil
}

// weights prices a unit of each meter for the order in which usage is read; the
// amounts serve for nothing else.
func (t *tariffs) weights() (meters pq.StringArray, amounts pq.Int64Array) {
	for _, b := range t.bound {
		amount := int64(1)
		for _, price := range t.prices[t.meterID(b.EventName)] {
			unit := decimal(price.UnitAmount)
			if len(price.Tiers) > 0 {
				unit = decimal(price.Tiers[0].UnitAmount)
			}
			unit.Mul(unit, big.NewRat(1000, 1))
			if whole := new(big.Int).Quo(unit.Num(), unit.Denom()); whole.IsInt64() {
				amount = max(amount, whole.Int64())
			}
		}
		meters, amounts = append(meters, b.Meter), append(amounts, amount)
	}
	return meters, amounts
}

// itemsOf reads a customer's subscription items, once a run.
func (u *usageRun) itemsOf(ctx context.Context, customer string) ([]stripe.SubscriptionItem, error) {
	if items, ok := u.t.items[customer]; ok {
		return items, nil
	}
	items, err := u.Stripe.SubscriptionItems(ctx, customer)
	if err != nil && !stripe.IsMissing(err) {
		return nil, err
	}
	u.t.items[customer] = items
	return items, nil
}

// billing is by which price, and in which period, Stripe bills usage of an hour.
type billing struct {
	price    *stripe.Tariff // nil when it is not known
	from, to time.Time      // the period, [from, to); zero when nobody has subscribed
	customer string
}

// billingOf finds the subscription that bills a pair's usage of a time; without
// any, the meter's price, if it has only one.
func (u *usageRun) billingOf(ctx context.Context, p pair, at time.Time) (b billing, err error) {
	prices := u.t.prices[p.meterID]
	for _, customer := range p.Customers {
		items, err := u.itemsOf(ctx, customer)
		if err != nil {
			return b, err
		}
		for _, item := range items {
			if item.Meter == "" || item.Meter != p.meterID {
				continue
			}
			b = billing{from: item.PeriodStart.Truncate(time.Minute), to: item.PeriodEnd.Truncate(time.Minute), customer: customer}
			for i := range prices {
				if prices[i].ID == item.Price {
					b.price = &prices[i]
				}
			}
			if b.price == nil { // an archived price bills those who have it
				price, err := u.Stripe.Tariff(ctx, item.Price)
				if err != nil {
					return b, err
				}
				b.price = &price
			}
			for b.from.After(at) {
				b.from, b.to = before(b.from, *b.price), b.from
			}
			return b, nil
		}
	}
	if len(prices) == 1 {
		b.price = &prices[0]
	}
	return b, nil
}

// before is the begin of the period that ends at a time.
func before(at time.Time, price stripe.Tariff) time.Time {
	switch price.Interval {
	case "day":
		return at.AddDate(0, 0, -price.Intervals)
	case "week":
		return at.AddDate(0, 0, -7*price.Intervals)
	case "year":
		return at.AddDate(-price.Intervals, 0, 0)
	}
	return at.AddDate(0, -price.Intervals, 0)
}

// sqlChargedPerUnit is what usage was charged in credits, over usage_by_account.
const sqlChargedPerUnit = `
	SELECT coalesce(sum(u.credits), 0)::bigint AS credits,
		coalesce(sum(CASE WHEN m.aggregation = 'count' THEN 1000000 ELSE u.quantity END), 0)::bigint AS quantity
	FROM usage u JOIN meters m ON m.meter = u.meter
	WHERE (u.account || '') = $1 AND u.part = $2 AND u.meter = $3 AND u.occurred_at >= $4 AND u.occurred_at < $5`

// sqlLatestPurchase is what the account's credits cost. Payments are few beside
// everything else.
const sqlLatestPurchase = `
	SELECT money, currency, credits FROM payments
	WHERE part = $1 AND account = $2 AND state = 'granted' AND credits > 0
	ORDER BY created_at DESC, payment_id DESC LIMIT 1`

// worthOf prices a difference: with tiers or packages as what it changes in the
// amount of the whole period. Without a price at Stripe it is what the account
// paid for the credits that the usage was charged; nil when that is not known either.
func (u *usageRun) worthOf(ctx context.Context, p pair, b billing, spans []span, difference int64) (*money, error) {
	switch {
	case b.price == nil && len(u.t.prices[p.meterID]) == 0:
		return u.worthInCredits(ctx, p, spans, difference)
	case b.price == nil:
		return nil, nil //nolint:nilnil // several prices, and no subscription that says which
	case len(b.price.Tiers) == 0 && b.price.PackageOf == 0:
		return worth(difference, decimal(b.price.UnitAmount), b.price.Currency), nil
	case b.from.IsZero():
		return nil, nil //nolint:nilnil // no period whose total would say which tier
	}
	end := b.to
	if u.s.to.Before(end) {
		end = u.s.to
	}
	total, err := u.totalOf(ctx, p, b.from, end)
	if err != nil {
		return nil, err
	}
	return apart(*b.price, int64(total), int64(total)-difference), nil
}

func (u *usageRun) worthInCredits(ctx context.Context, p pair, spans []span, difference int64) (m *money, err error) {
	err = u.DB.Read(ctx, func(tx *sqlx.Tx) error {
		m = nil
		if err := pg.Hold(ctx, tx, "usage"); err != nil {
			return err
		}
		var paid []struct {
			Money    int64  `db:"money"`
			Currency string `db:"currency"`
			Credits  int64  `db:"credits"`
		}
		if err := tx.SelectContext(ctx, &paid, sqlLatestPurchase, p.Part, p.Account); err != nil || len(paid) == 0 {
			return err
		}
		var charged, used int64
		for _, sp := range spans {
			var row struct {
				Credits  int64 `db:"credits"`
				Quantity int64 `db:"quantity"`
			}
			if err := tx.GetContext(ctx, &row, sqlChargedPerUnit, p.Account, p.Part, p.Meter, sp.from, sp.to); err != nil {
				return err
			}
			charged, used = charged+row.Credits, used+row.Quantity
		}
		if used == 0 {
			return nil
		}
		perUnit := new(big.Rat).SetFrac64(charged, used)
		perUnit.Mul(perUnit, new(big.Rat).SetFrac64(paid[0].Money, paid[0].Credits))
		perUnit.Mul(perUnit, big.NewRat(1_000_000, 1))
		m = worth(difference, perUnit, paid[0].Currency)
		return nil
	})
	if err != nil {
		err = fmt.Errorf("price usage of %s in credits: %w", p.Account, err)
	}
	return m, err
}

package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

// Bounds of what is known of subscription items.
const (
	itemFresh   = time.Hour        // then they are read again
	lookPause   = 30 * time.Second // between two readings of one customer's
	periodGrace = 5 * time.Minute  // into a period, Stripe may still take sums of the last minutes before it
)

// reasonLook is why a usage record waits for a moment: its item must be read first.
const reasonLook = "the subscription item is looked up"

// customer is one that an account's usage goes to.
type customer struct {
	part    int16
	account string
	id      string
}

type itemKey struct{ customer, price string }

// itemRow is a subscription item as last read.
type itemRow struct {
	Part        int16     `db:"part" json:"part"`
	Account     string    `db:"account" json:"account"`
	Customer    string    `db:"customer" json:"customer"`
	Price       string    `db:"price" json:"price"`
	Item        string    `db:"item" json:"item"`
	Sub         string    `db:"subscription" json:"subscription"`
	State       string    `db:"state" json:"state"`
	Limited     bool      `db:"limited" json:"limited"`
	PeriodStart time.Time `db:"period_start" json:"period_start"`
	PeriodEnd   time.Time `db:"period_end" json:"period_end"`
	CreatedAt   time.Time `db:"created_at" json:"created_at"`
	SeenAt      time.Time `db:"seen_at" json:"-"`
}

// stamp is the time at which a bucket's usage is reported for the item: the bucket's
// own, or where the period begins in the middle of it, its last second. A period is
// (start, end], and no time may lie ahead. It is false where the bucket is not in the
// period.
func (i *itemRow) stamp(bucket time.Time, span time.Duration, now time.Time) (time.Time, bool) {
	at := bucket
	if !at.After(i.PeriodStart) {
		at = bucket.Add(span - time.Second)
	}
	return at, at.After(i.PeriodStart) && !at.After(i.PeriodEnd) && !at.After(now)
}

// sqlItems relies on subscription_items_pkey.
const sqlItems = `
	SELECT i.part, i.account, i.customer, i.price, i.item, i.subscription, i.state, i.limited, i.period_start, i.period_end, i.created_at, i.seen_at
	FROM (SELECT DISTINCT * FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[]) AS u (part, account, customer, price)) w
	JOIN subscription_items i ON i.part = w.part AND i.account = w.account AND i.customer = w.customer AND i.price = w.price
	WHERE i.state <> 'gone'
	ORDER BY i.created_at DESC, i.item`

// readItems gives what is known of the items that usage records may go to, the
// newest first.
func readItems(ctx context.Context, tx *sqlx.Tx, claimed []delivery) (map[itemKey][]itemRow, error) {
	var parts pg.Smallints
	var accounts, customers, prices pg.Texts
	for _, d := range claimed {
		if d.Backend == backendRecord && d.Customer != "" {
			parts, accounts, customers, prices = append(parts, d.Part), append(accounts, d.Account), append(customers, d.Customer), append(prices, d.Price)
		}
	}
	if len(parts) == 0 {
		return nil, nil
	}
	var rows []itemRow
	if err := tx.SelectContext(ctx, &rows, sqlItems, parts, accounts, customers, prices); err != nil {
		return nil, fmt.Errorf("read subscription items: %w", err)
	}
	items := map[itemKey][]itemRow{}
	for _, r := range rows {
		key := itemKey{r.Customer, r.Price}
		items[key] = append(items[key], r)
	}
	return items, nil
}

// catalog is what one step knows of items, and whose it wants to be read.
type catalog struct {
	known  map[itemKey][]itemRow
	wanted map[customer]bool
}

// place finds the item and the time for a usage record that has none yet. Where none
// is known, the customer's items are read first, at most every lookPause.
func (o *Outbox) place(d *delivery, now time.Time, c catalog) {
	var old, over, unfit *itemRow
	for n := range c.known[itemKey{d.Customer, d.Price}] {
		i := &c.known[itemKey{d.Customer, d.Price}][n]
		at, in := i.stamp(d.Bucket, o.Bucket, now)
		switch {
		case i.State == "unfit":
			unfit = i
		case in && now.Sub(i.SeenAt) < itemFresh:
			d.goes(i, at)
			return
		case in:
			old = i
		case !at.After(i.PeriodStart) && (over == nil || i.PeriodStart.Before(over.PeriodStart)):
			over = i
		}
	}
	switch who := (customer{d.Part, d.Account, d.Customer}); {
	case c.wanted[who] || o.mayLook(d.Customer, now):
		c.wanted[who] = true
		d.reason, d.nextTryAt = reasonLook, now
	case old != nil: // it could not be read again: Stripe knows whether it is still there
		at, _ := old.stamp(d.Bucket, o.Bucket, now)
		d.goes(old, at)
	case over != nil && now.Before(over.PeriodStart.Add(periodGrace)):
		d.goes(over, d.Bucket) // Stripe forgives clocks that are a little slow
	case over != nil:
		d.isOver(now)
	case unfit != nil:
		d.stays(now, "the price does not add usage records up: it must be metered, sum, and without a meter")
	default:
		d.stays(now, "the customer has no subscription item with the price, as far as is known")
	}
}

// goes fixes where a usage record goes.
func (d *delivery) goes(i *itemRow, at time.Time) {
	d.Item, d.Stamp, d.Action = i.Item, &at, "set"
	if i.Limited {
		d.Action = "increment"
	}
}

func (d *delivery) isOver(now time.Time) {
	d.State, d.nextTryAt, d.reason = "needs_review", now, reasonOver
}

const reasonOver = "period over: Stripe takes no usage for it any more; an invoice item can still bill it"

// mayLook tells whether a customer's items may be read now, and notes that they are.
func (o *Outbox) mayLook(id string, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at, ok := o.looked[id]; ok && now.Sub(at) < lookPause {
		return false
	}
	o.looked[id] = now
	for other, at := range o.looked { // what is forgotten is only read once more
		if len(o.looked) > lookedMax && now.Sub(at) >= lookPause {
			delete(o.looked, other)
		}
	}
	return true
}

// lookedMax bounds how many readings are remembered.
const lookedMax = 10_000

// lookUp reads the items of customers from Stripe.
func (o *Outbox) lookUp(ctx context.Context, wanted map[customer]bool) {
	for c := range wanted {
		if o.circuit(o.Now()) {
			return
		}
		if _, err := o.refresh(ctx, c); err != nil {
			o.Logger.Warn("the subscription items of a customer could not be read; they are tried again", slog.String("customer", c.id), slog.String("error", err.Error()))
		}
	}
}

// refresh reads a customer's items and keeps them.
func (o *Outbox) refresh(ctx context.Context, c customer) ([]Item, error) {
	if err := o.calls.Wait(ctx); err != nil {
		return nil, err
	}
	items, err := o.Reader.Items(ctx, c.id)
	if err != nil {
		return nil, err
	}
	now := o.Now()
	rows := make([]itemRow, len(items))
	for n, i := range items {
		rows[n] = itemRow{
			Part: c.part, Account: c.account, Customer: c.id, Price: i.Price, Item: i.ID, Sub: i.Subscription, State: "active", Limited: i.Limited,
			PeriodStart: i.PeriodStart, PeriodEnd: i.PeriodEnd, CreatedAt: i.CreatedAt,
		}
		if i.Unfit != "" {
			rows[n].State = "unfit"
		}
	}
	return items, o.DB.InTx(ctx, func(tx *sqlx.Tx) error { return saveItems(ctx, tx, now, c, rows) })
}

// sqlPutItems relies on subscription_items_pkey. What was read later stands.
const sqlPutItems = `
	INSERT INTO subscription_items AS i (part, account, customer, price, item, subscription, state, limited, period_start, period_end, created_at, seen_at)
	SELECT part, account, customer, price, item, subscription, state, limited, period_start, period_end, created_at, $2
	FROM jsonb_to_recordset($1::jsonb) AS n (part smallint, account text, customer text, price text, item text, subscription text, state text, limited boolean,
		period_start timestamptz, period_end timestamptz, created_at timestamptz)
	ORDER BY part, account, customer, price, item
	ON CONFLICT (part, account, customer, price, item) DO UPDATE
	SET subscription = excluded.subscription, state = excluded.state, limited = excluded.limited, period_start = excluded.period_start,
		period_end = excluded.period_end, seen_at = excluded.seen_at
	WHERE i.seen_at <= excluded.seen_at`

// sqlItemsGone relies on subscription_items_pkey: what was not seen is not there any more.
const sqlItemsGone = `
	UPDATE subscription_items SET state = 'gone', seen_at = $4
	WHERE part = $1 AND account = $2 AND customer = $3 AND state <> 'gone' AND seen_at < $4`

func saveItems(ctx context.Context, tx *sqlx.Tx, now time.Time, c customer, rows []itemRow) error {
	encoded, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("encode subscription items: %w", err)
	}
	if _, err := tx.ExecContext(ctx, sqlPutItems, string(encoded), now); err != nil {
		return fmt.Errorf("keep subscription items of %s: %w", c.id, err)
	}
	if _, err := tx.ExecContext(ctx, sqlItemsGone, c.part, c.account, c.id, now); err != nil {
		return fmt.Errorf("mark lost subscription items of %s: %w", c.id, err)
	}
	return nil
}

// reconsider says what a refusal of a usage record means. Stripe has no code for it,
// so that the item is read again: it may be gone, or its period over.
func (o *Outbox) reconsider(ctx context.Context, d delivery, refused Result) Result {
	items, err := o.refresh(ctx, customer{d.Part, d.Account, d.Customer})
	if err != nil {
		refused.Outcome, refused.RetryAfter = OutcomeThrottled, lookPause // it was refused; why is not known yet
		return refused
	}
	now := o.Now()
	for _, i := range items {
		switch {
		case i.ID != d.Item:
		case d.Stamp.After(i.PeriodEnd) || (!d.Stamp.After(i.PeriodStart) && now.Before(i.PeriodStart.Add(periodGrace))):
			refused.Outcome, refused.RetryAfter = OutcomeThrottled, lookPause // it renews, or is forgiving for some minutes
			return refused
		case !d.Stamp.After(i.PeriodStart):
			return Result{Outcome: outcomeOver, Reason: reasonOver + " (" + refused.Reason + ")"}
		case i.Limited != (d.Action == "increment"):
			return Result{Outcome: outcomeMoved, Reason: "billing thresholds were set or removed (" + refused.Reason + ")"}
		default:
			return refused
		}
	}
	return Result{Outcome: outcomeMoved, Reason: "the subscription item is gone (" + refused.Reason + ")"}
}

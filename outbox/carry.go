package outbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

// unit is a whole unit in millionths.
const unit = 1_000_000

// carryKey is what a remainder belongs to.
type carryKey struct {
	part                     int16
	account, meter, customer string
}

// setKey is one number at Stripe that action=set replaces.
type setKey struct {
	account, meter, item string
	bucket, stamp        int64
}

func (d *delivery) carryKey() carryKey {
	return carryKey{d.Part, d.Account, d.Meter, d.Customer}
}

func (d *delivery) setKey() setKey {
	return setKey{d.Account, d.Meter, d.Item, d.Bucket.Unix(), d.Stamp.Unix()}
}

// whole tells whether Stripe takes whole units of it only.
func (d *delivery) whole() bool { return d.Backend == backendRecord || d.Whole }

// split gives the whole units of a carried remainder and a quantity, but not fewer
// than least, and what remains.
func split(remainder, quantity, least int64) (units, rest int64) {
	sum := remainder + quantity
	units = sum / unit
	if sum%unit < 0 {
		units-- // rounded down, so that Stripe never has more
	}
	units = max(units, least)
	return units, sum - units*unit
}

// fix decides for good what each delivery that is sent for the first time says. Where
// Stripe takes whole units only, the remainder goes on with the next one (O5). What
// comes to nothing is not sent.
func (o *Outbox) fix(ctx context.Context, tx *sqlx.Tx, now time.Time, claimed []delivery) error {
	var fresh []*delivery
	for i := range claimed {
		d := &claimed[i]
		switch {
		case !d.sends() || d.SentValue != nil:
		case d.whole():
			fresh = append(fresh, d)
		default:
			value := int64(d.Quantity)
			d.SentValue = &value
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	carries, err := lockCarries(ctx, tx, fresh)
	if err != nil {
		return err
	}
	totals, err := totalsOf(ctx, tx, fresh)
	if err != nil {
		return err
	}
	slices.SortStableFunc(fresh, func(a, b *delivery) int {
		return cmp.Or(a.Bucket.Compare(b.Bucket), cmp.Compare(a.Sequence, b.Sequence))
	})
	for _, d := range fresh {
		carries[d.carryKey()] = d.fixWhole(now, carries[d.carryKey()], totals)
	}
	return saveCarries(ctx, tx, now, carries)
}

// fixWhole fixes whole units and gives the remainder. An item takes no number below
// zero: what a correction cannot lower at its own time is taken off what comes next.
func (d *delivery) fixWhole(now time.Time, remainder int64, totals map[setKey]int64) int64 {
	least := int64(-1 << 62 / unit)
	if d.Backend == backendRecord {
		if least = 0; d.Action == "set" {
			least = -totals[d.setKey()]
		}
	}
	value, rest := split(remainder, int64(d.Quantity), least)
	if value == 0 {
		d.State, d.nextTryAt, d.reason = "delivered", now, "it comes to less than a whole unit: the remainder goes with what comes next"
	}
	if d.Backend == backendRecord {
		totals[d.setKey()] += value
	} else {
		value *= unit
	}
	d.SentValue = &value
	return rest
}

// sqlLockCarries relies on delivery_carries_pkey.
const sqlLockCarries = `
	SELECT c.part, c.account, c.meter, c.customer, c.remainder
	FROM delivery_carries c
	JOIN (SELECT DISTINCT * FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[]) AS u (part, account, meter, customer)) w
		ON c.part = w.part AND c.account = w.account AND c.meter = w.meter AND c.customer = w.customer
	ORDER BY c.part, c.account, c.meter, c.customer
	FOR UPDATE OF c`

func lockCarries(ctx context.Context, tx *sqlx.Tx, fresh []*delivery) (map[carryKey]int64, error) {
	var parts pg.Smallints
	var accounts, meters, customers pg.Texts
	for _, d := range fresh {
		parts, accounts, meters, customers = append(parts, d.Part), append(accounts, d.Account), append(meters, d.Meter), append(customers, d.Customer)
	}
	var rows []struct {
		Part      int16  `db:"part"`
		Account   string `db:"account"`
		Meter     string `db:"meter"`
		Customer  string `db:"customer"`
		Remainder int64  `db:"remainder"`
	}
	if err := tx.SelectContext(ctx, &rows, sqlLockCarries, parts, accounts, meters, customers); err != nil {
		return nil, fmt.Errorf("lock carried remainders: %w", err)
	}
	carries := map[carryKey]int64{}
	for _, r := range rows {
		carries[carryKey{r.Part, r.Account, r.Meter, r.Customer}] = r.Remainder
	}
	return carries, nil
}

// sqlSaveCarries relies on delivery_carries_pkey; the turn keeps others from the rows.
const sqlSaveCarries = `
	INSERT INTO delivery_carries (part, account, meter, customer, remainder, updated_at)
	SELECT part, account, meter, customer, remainder, $6
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::bigint[]) AS n (part, account, meter, customer, remainder)
	ORDER BY part, account, meter, customer
	ON CONFLICT (part, account, meter, customer) DO UPDATE SET remainder = excluded.remainder, updated_at = excluded.updated_at`

func saveCarries(ctx context.Context, tx *sqlx.Tx, now time.Time, carries map[carryKey]int64) error {
	var parts pg.Smallints
	var accounts, meters, customers pg.Texts
	var remainders pg.Bigints
	for k, remainder := range carries {
		parts, accounts, meters, customers = append(parts, k.part), append(accounts, k.account), append(meters, k.meter), append(customers, k.customer)
		remainders = append(remainders, remainder)
	}
	if _, err := tx.ExecContext(ctx, sqlSaveCarries, parts, accounts, meters, customers, remainders, now); err != nil {
		return fmt.Errorf("carry remainders: %w", err)
	}
	return nil
}

// sqlTotals relies on deliveries_pkey. It sums what the deliveries of a bucket say
// about one item and time: what the item has, or is to have, there.
const sqlTotals = `
	SELECT w.account, w.meter, w.item, w.bucket, w.stamp, sum(e.sent_value)::bigint AS total
	FROM (SELECT DISTINCT * FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::timestamptz[])
		AS u (part, account, meter, bucket, item, stamp)) w
	JOIN deliveries e ON e.part = w.part AND e.account = w.account AND e.meter = w.meter AND e.bucket = w.bucket
	WHERE e.subscription_item = w.item AND e.stamp = w.stamp AND e.sent_value IS NOT NULL AND e.state NOT IN ('rejected', 'needs_review')
	GROUP BY w.account, w.meter, w.item, w.bucket, w.stamp`

func totalsOf(ctx context.Context, tx *sqlx.Tx, records []*delivery) (map[setKey]int64, error) {
	var parts pg.Smallints
	var accounts, meters, items pg.Texts
	var buckets, stamps pg.Times
	for _, d := range records {
		if d.Backend == backendRecord {
			parts, accounts, meters = append(parts, d.Part), append(accounts, d.Account), append(meters, d.Meter)
			items, buckets, stamps = append(items, d.Item), append(buckets, d.Bucket), append(stamps, *d.Stamp)
		}
	}
	totals := map[setKey]int64{}
	if len(parts) == 0 {
		return totals, nil
	}
	var rows []struct {
		Account string    `db:"account"`
		Meter   string    `db:"meter"`
		Item    string    `db:"item"`
		Bucket  time.Time `db:"bucket"`
		Stamp   time.Time `db:"stamp"`
		Total   int64     `db:"total"`
	}
	if err := tx.SelectContext(ctx, &rows, sqlTotals, parts, accounts, meters, buckets, items, stamps); err != nil {
		return nil, fmt.Errorf("sum what items are to have: %w", err)
	}
	for _, r := range rows {
		totals[setKey{r.Account, r.Meter, r.Item, r.Bucket.Unix(), r.Stamp.Unix()}] = r.Total
	}
	return totals, nil
}

// readTotals gives each record that is sent by set what its item is to have: also
// what deliveries of the same bucket have brought, or are about to.
func readTotals(ctx context.Context, tx *sqlx.Tx, claimed []delivery) error {
	var sets []*delivery
	for i := range claimed {
		if d := &claimed[i]; d.sends() && d.Action == "set" {
			sets = append(sets, d)
		}
	}
	totals, err := totalsOf(ctx, tx, sets)
	if err != nil {
		return err
	}
	for _, d := range sets {
		d.total = totals[d.setKey()]
	}
	return nil
}

package outbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
)

// Usage is accepted usage that Stripe is to learn of.
type Usage struct {
	Part       int16
	Account    string
	Meter      string
	OccurredAt time.Time
	Quantity   credit.Quantity
}

// slot is one bucket of one account and meter.
type slot struct {
	part    int16
	account string
	meter   string
	bucket  time.Time
}

// compare orders slots as their rows are locked.
func (s slot) compare(o slot) int {
	if s.part != o.part {
		return int(s.part) - int(o.part)
	}
	if c := strings.Compare(s.account, o.account); c != 0 {
		return c
	}
	if c := strings.Compare(s.meter, o.meter); c != 0 {
		return c
	}
	return s.bucket.Compare(o.bucket)
}

// sum is what one call of StageUsage adds to a slot.
type sum struct {
	slot
	quantity credit.Quantity
	usages   int64
}

// StageUsage adds usage to the deliveries of its buckets, in the transaction
// that accepted it. The caller holds the lock of each account, so nobody else
// stages for it; a delivery that a worker has taken is closed, and its bucket
// goes on with the next sequence.
func (o *Outbox) StageUsage(ctx context.Context, tx *sqlx.Tx, now time.Time, usages []Usage) error {
	sums, err := o.sums(usages)
	if err != nil || len(sums) == 0 {
		return err
	}
	latest, err := lockLatest(ctx, tx, sums)
	if err != nil {
		return err
	}
	return o.put(ctx, tx, now, sums, latest)
}

// sums adds usage up per slot, in the order of the rows' keys.
func (o *Outbox) sums(usages []Usage) ([]sum, error) {
	bySlot := make(map[slot]*sum, len(usages))
	for _, u := range usages {
		s := slot{part: u.Part, account: u.Account, meter: u.Meter, bucket: u.OccurredAt.UTC().Truncate(o.Bucket)}
		if bySlot[s] == nil {
			bySlot[s] = &sum{slot: s}
		}
		total, err := bySlot[s].quantity.Add(u.Quantity)
		if err != nil {
			return nil, fmt.Errorf("sum usage of %s: %w", u.Account, err)
		}
		bySlot[s].quantity = total
		bySlot[s].usages++
	}
	sums := make([]sum, 0, len(bySlot))
	for _, s := range bySlot {
		sums = append(sums, *s)
	}
	slices.SortFunc(sums, func(a, b sum) int { return a.compare(b.slot) })
	return sums, nil
}

// open is the newest delivery of a slot.
type open struct {
	sequence int
	pending  bool
}

// sqlLockLatest relies on deliveries_pkey. Rows are locked in the order of the
// key, against the worker that might be taking them. A correction, whose event
// name is fixed, takes nothing on top.
const sqlLockLatest = `
	SELECT d.part, d.account, d.meter, d.bucket, d.sequence, d.state = 'pending' AND d.origin = 'usage' AND d.first_sent_at IS NULL AND d.event_name || d.price = '' AS pending
	FROM deliveries d
	JOIN unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[]) AS s (part, account, meter, bucket)
		ON d.part = s.part AND d.account = s.account AND d.meter = s.meter AND d.bucket = s.bucket
	ORDER BY d.part, d.account, d.meter, d.bucket, d.sequence
	FOR UPDATE OF d`

func lockLatest(ctx context.Context, tx *sqlx.Tx, sums []sum) (map[slot]open, error) {
	parts, accounts, meters, buckets := columns(sums)
	var rows []struct {
		Part     int16     `db:"part"`
		Account  string    `db:"account"`
		Meter    string    `db:"meter"`
		Bucket   time.Time `db:"bucket"`
		Sequence int       `db:"sequence"`
		Pending  bool      `db:"pending"`
	}
	if err := tx.SelectContext(ctx, &rows, sqlLockLatest, parts, accounts, meters, buckets); err != nil {
		return nil, fmt.Errorf("lock open deliveries: %w", err)
	}
	latest := make(map[slot]open, len(rows))
	for _, r := range rows {
		s := slot{part: r.Part, account: r.Account, meter: r.Meter, bucket: r.Bucket.UTC()}
		latest[s] = open{sequence: r.Sequence, pending: r.Pending} // rows come in the order of sequence
	}
	return latest, nil
}

// sqlPutDeliveries relies on deliveries_pkey: a conflict is the open row of the
// bucket, locked above, and takes the sum on top.
const sqlPutDeliveries = `
	INSERT INTO deliveries AS d (part, account, meter, bucket, sequence, quantity, usages, origin, state, event_name, customer, identifier,
		attempts, next_try_at, first_sent_at, delivered_at, error, created_at, updated_at)
	SELECT part, account, meter, bucket, sequence, quantity, usages, 'usage', 'pending', '', '', identifier, 0, due, NULL, NULL, '', $9, $9
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[], $5::integer[], $6::bigint[], $7::bigint[], $8::timestamptz[], $10::text[])
		AS s (part, account, meter, bucket, sequence, quantity, usages, due, identifier)
	ON CONFLICT (part, account, meter, bucket, sequence) DO UPDATE
	SET quantity = d.quantity + excluded.quantity, usages = d.usages + excluded.usages, updated_at = excluded.updated_at`

func (o *Outbox) put(ctx context.Context, tx *sqlx.Tx, now time.Time, sums []sum, latest map[slot]open) error {
	parts, accounts, meters, buckets := columns(sums)
	var sequences pg.Integers
	var quantities, usages pg.Bigints
	var due pg.Times
	var identifiers pg.Texts
	for _, s := range sums {
		sequence := 0
		if l, ok := latest[s.slot]; ok {
			sequence = l.sequence
			if !l.pending {
				sequence++
			}
		}
		sequences, quantities, usages = append(sequences, int32(sequence)), append(quantities, int64(s.quantity)), append(usages, s.usages)
		closes := s.bucket.Add(o.Bucket + o.Settle)
		if closes.Before(now) {
			closes = now.Add(o.Settle) // late usage: let what comes along with it be summed, too
		}
		due = append(due, closes)
		identifiers = append(identifiers, Identifier(s.account, s.meter, s.bucket, sequence))
	}
	_, err := tx.ExecContext(ctx, sqlPutDeliveries, parts, accounts, meters, buckets, sequences, quantities, usages, due, now, identifiers)
	if err != nil {
		return fmt.Errorf("stage deliveries: %w", err)
	}
	return nil
}

// Identifier is the name under which Stripe knows a delivery. It is made of what
// never changes, so that sending again is recognised as such.
func Identifier(account, meter string, bucket time.Time, sequence int) string {
	h := sha256.New()
	for _, part := range []string{account, meter, bucket.UTC().Format(time.RFC3339), fmt.Sprint(sequence)} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return "ts_" + hex.EncodeToString(h.Sum(nil))[:40]
}

// sqlNextSequence relies on deliveries_pkey and on the account's lock.
const sqlNextSequence = `
	SELECT coalesce(max(sequence) + 1, 0) FROM deliveries WHERE part = $1 AND account = $2 AND meter = $3 AND bucket = $4`

// sqlStageRepair relies on deliveries_pkey.
const sqlStageRepair = `
	INSERT INTO deliveries (part, account, meter, bucket, sequence, quantity, usages, origin, state, event_name, customer, identifier,
		attempts, next_try_at, first_sent_at, delivered_at, error, created_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, 0, 'repair', 'pending', '', '', $7, 0, $8, NULL, NULL, '', $8, $8)`

// sqlLockAccount relies on accounts_pkey.
const sqlLockAccount = `SELECT 1 FROM accounts WHERE part = $1 AND account = $2 FOR UPDATE`

// StageRepair stages a quantity that Stripe lacks in a bucket, to be sent at
// once. It counts on top of what usage staged; whoever calls has measured that
// Stripe lacks it, and guards against doing so twice.
func (o *Outbox) StageRepair(ctx context.Context, tx *sqlx.Tx, now time.Time, u Usage) (identifier string, err error) {
	var one int
	if err := tx.GetContext(ctx, &one, sqlLockAccount, u.Part, u.Account); err != nil {
		return "", fmt.Errorf("lock %s: %w", u.Account, err)
	}
	bucket := u.OccurredAt.UTC().Truncate(o.Bucket)
	var sequence int
	if err := tx.GetContext(ctx, &sequence, sqlNextSequence, u.Part, u.Account, u.Meter, bucket); err != nil {
		return "", fmt.Errorf("number the repair: %w", err)
	}
	identifier = Identifier(u.Account, u.Meter, bucket, sequence)
	if _, err := tx.ExecContext(ctx, sqlStageRepair, u.Part, u.Account, u.Meter, bucket, sequence, u.Quantity, identifier, now); err != nil {
		return "", fmt.Errorf("stage the repair: %w", err)
	}
	return identifier, nil
}

func columns(sums []sum) (parts pg.Smallints, accounts, meters pg.Texts, buckets pg.Times) {
	for _, s := range sums {
		parts, accounts, meters, buckets = append(parts, s.part), append(accounts, s.account), append(meters, s.meter), append(buckets, s.bucket)
	}
	return parts, accounts, meters, buckets
}

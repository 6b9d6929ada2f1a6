package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
)

// Ways in which usage is taken back.
const (
	TakenWithdrawn  = "withdrawn"   // from a delivery that was never sent
	TakenCorrected  = "corrected"   // by a delivery of the negative quantity
	TakenTooLate    = "too_late"    // not at all: Stripe takes no event of that age
	TakenNoDelivery = "no_delivery" // not at all: nothing carries it
)

// How old a meter event may be at Stripe, and how long before that a correction
// must be staged to get there in time.
const (
	stripeTakesFor   = 35 * 24 * time.Hour
	correctionLeeway = time.Hour
)

// Taken says what became of usage that was taken back.
type Taken struct {
	How        string
	Quantity   credit.Quantity // taken back
	Identifier string          // of the delivery that was lowered or that corrects
}

// slotRow is a delivery of one bucket.
type slotRow struct {
	Sequence    int             `db:"sequence"`
	Quantity    credit.Quantity `db:"quantity"`
	Origin      string          `db:"origin"`
	State       string          `db:"state"`
	Backend     string          `db:"backend"`
	EventName   string          `db:"event_name"`
	Price       string          `db:"price"`
	Customer    string          `db:"customer"`
	Item        string          `db:"subscription_item"`
	Action      string          `db:"action"`
	Stamp       *time.Time      `db:"stamp"`
	Identifier  string          `db:"identifier"`
	FirstSentAt *time.Time      `db:"first_sent_at"`
	CreatedAt   time.Time       `db:"created_at"`
}

// unsent tells whether no worker has ever taken it.
func (r *slotRow) unsent() bool {
	return r.State == "pending" && r.Origin == "usage" && r.FirstSentAt == nil
}

// goesWhere tells whether a delivery goes to where another went.
func (r *slotRow) goesWhere(o *slotRow) bool {
	return r.EventName == o.EventName && r.Customer == o.Customer && r.Price == o.Price && r.Item == o.Item &&
		(r.Stamp == o.Stamp || (r.Stamp != nil && o.Stamp != nil && r.Stamp.Equal(*o.Stamp)))
}

// sqlLockSlot relies on deliveries_pkey. The rows are locked against the worker
// that might be taking them.
const sqlLockSlot = `
	SELECT sequence, quantity, origin, state, backend, event_name, price, customer, subscription_item, action, stamp, identifier, first_sent_at, created_at
	FROM deliveries
	WHERE part = $1 AND account = $2 AND meter = $3 AND bucket = $4
	ORDER BY sequence
	FOR UPDATE`

// TakeBack takes back usage that was staged when it was recorded, in the
// transaction that voids it. The caller holds the account's lock.
//
// A delivery that was never sent is lowered. What was sent stays as it is (O1):
// a delivery of the negative quantity corrects it, to the customer and meter
// that it went to, whatever the account and the meter are bound to by now. It is
// due at once, and sent as soon as Stripe has what it corrects. What Stripe would
// refuse for its age is not staged.
func (o *Outbox) TakeBack(ctx context.Context, tx *sqlx.Tx, now time.Time, u Usage, recordedAt time.Time) (Taken, error) {
	s := slot{part: u.Part, account: u.Account, meter: u.Meter, bucket: u.OccurredAt.UTC().Truncate(o.Bucket)}
	var rows []slotRow
	if err := tx.SelectContext(ctx, &rows, sqlLockSlot, s.part, s.account, s.meter, s.bucket); err != nil {
		return Taken{}, fmt.Errorf("lock deliveries of %s: %w", u.Account, err)
	}
	went := carrier(rows, recordedAt)
	late := !now.Before(s.bucket.Add(stripeTakesFor - correctionLeeway))
	switch {
	case late && (went != nil || len(rows) == 0): // without a row, it went long ago
		return Taken{How: TakenTooLate}, nil
	case went == nil:
		return s.withdraw(ctx, tx, now, rows, u.Quantity)
	}
	last := &rows[len(rows)-1]
	if last.unsent() && last.Quantity < 0 && last.goesWhere(went) {
		return Taken{TakenCorrected, u.Quantity, last.Identifier}, s.lower(ctx, tx, now, last, u.Quantity)
	}
	identifier := Identifier(s.account, s.meter, s.bucket, last.Sequence+1)
	_, err := tx.ExecContext(ctx, sqlStageCorrection, s.part, s.account, s.meter, s.bucket, last.Sequence+1, -u.Quantity,
		went.EventName, went.Customer, identifier, now, went.Backend, went.Price, went.Item, went.Action, went.Stamp)
	if err != nil {
		return Taken{}, fmt.Errorf("stage a correction for %s: %w", u.Account, err)
	}
	return Taken{TakenCorrected, u.Quantity, identifier}, nil
}

// withdraw lowers a delivery of a bucket of which nothing was ever sent.
func (s slot) withdraw(ctx context.Context, tx *sqlx.Tx, now time.Time, rows []slotRow, quantity credit.Quantity) (Taken, error) {
	for i := range rows {
		if r := &rows[i]; r.unsent() && r.Quantity >= quantity {
			return Taken{TakenWithdrawn, quantity, r.Identifier}, s.lower(ctx, tx, now, r, quantity)
		}
	}
	return Taken{How: TakenNoDelivery}, nil
}

// carrier is the delivery by which usage recorded at a time most likely went to
// Stripe: of those that were sent, the last one opened by then, else the first;
// nil where none was sent.
func carrier(rows []slotRow, recordedAt time.Time) (found *slotRow) {
	for i := range rows {
		r := &rows[i]
		if r.Quantity > 0 && r.FirstSentAt != nil && (found == nil || (r.Origin == "usage" && !r.CreatedAt.After(recordedAt))) {
			found = r
		}
	}
	return found
}

// sqlLower relies on deliveries_pkey and on the row's lock.
const sqlLower = `
	UPDATE deliveries
	SET quantity = quantity - $6, usages = usages - 1, updated_at = $7
	WHERE part = $1 AND account = $2 AND meter = $3 AND bucket = $4 AND sequence = $5`

func (s slot) lower(ctx context.Context, tx *sqlx.Tx, now time.Time, r *slotRow, by credit.Quantity) error {
	if _, err := tx.ExecContext(ctx, sqlLower, s.part, s.account, s.meter, s.bucket, r.Sequence, by, now); err != nil {
		return fmt.Errorf("lower delivery %s: %w", r.Identifier, err)
	}
	return nil
}

// sqlStageCorrection relies on deliveries_pkey. Where it goes is where that went
// which it corrects, from the start: no other usage joins it.
const sqlStageCorrection = `
	INSERT INTO deliveries (part, account, meter, bucket, sequence, quantity, usages, origin, state, event_name, customer, identifier,
		attempts, next_try_at, first_sent_at, delivered_at, error, created_at, updated_at, backend, price, subscription_item, action, stamp)
	VALUES ($1, $2, $3, $4, $5, $6, -1, 'usage', 'pending', $7, $8, $9, 0, $10, NULL, NULL, '', $10, $10, $11, $12, $13, $14, $15)`

package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
)

// Bounds of settling what stayed unknown.
const (
	settleMax   = 50
	settleLag   = time.Hour        // Stripe's totals are trusted to hold what was sent so long ago
	settlePause = 15 * time.Minute // until a total that decided nothing is read again
)

// minuteKey is what Stripe has one total of: a bucket of a customer at a billing meter.
type minuteKey struct {
	Part      int16     `db:"part"`
	Account   string    `db:"account"`
	EventName string    `db:"event_name"`
	Customer  string    `db:"customer"`
	Bucket    time.Time `db:"bucket"`
}

// sqlClaimReviews relies on the index deliveries_review.
const sqlClaimReviews = `
	SELECT part, account, meter, bucket, sequence, event_name, customer
	FROM deliveries
	WHERE state = 'needs_review' AND next_try_at <= $1 AND backend = 'meter_event'
	ORDER BY next_try_at
	LIMIT $2
	FOR UPDATE SKIP LOCKED`

// sqlPostponeReview relies on deliveries_pkey.
const sqlPostponeReview = `
	UPDATE deliveries SET next_try_at = $6, updated_at = $7 WHERE part = $1 AND account = $2 AND meter = $3 AND bucket = $4 AND sequence = $5`

// SettleStep asks Stripe's own totals about meter events whose outcome stayed unknown
// for so long that they must not be sent again blindly. It may run in several
// processes.
func (o *Outbox) SettleStep(ctx context.Context) (more bool, err error) {
	now := o.Now()
	if o.circuit(now) {
		return false, nil
	}
	var claimed []struct {
		minuteKey
		Meter    string `db:"meter"`
		Sequence int    `db:"sequence"`
	}
	err = o.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		claimed = nil
		if err := tx.SelectContext(ctx, &claimed, sqlClaimReviews, now, settleMax); err != nil {
			return fmt.Errorf("claim deliveries that need review: %w", err)
		}
		for _, c := range claimed {
			if _, err := tx.ExecContext(ctx, sqlPostponeReview, c.Part, c.Account, c.Meter, c.Bucket, c.Sequence, now.Add(settlePause), now); err != nil {
				return fmt.Errorf("postpone a review: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	seen := map[minuteKey]bool{}
	for _, c := range claimed {
		c.Bucket = c.Bucket.UTC()
		if seen[c.minuteKey] {
			continue
		}
		seen[c.minuteKey] = true
		if err := o.settleMinute(ctx, now, c.minuteKey); err != nil {
			return false, err
		}
	}
	return len(claimed) == settleMax, nil
}

// minuteRow is a delivery of one minute, as far as it can explain Stripe's total.
type minuteRow struct {
	Meter       string          `db:"meter"`
	Sequence    int             `db:"sequence"`
	Origin      string          `db:"origin"`
	State       string          `db:"state"`
	Identifier  string          `db:"identifier"`
	Quantity    credit.Quantity `db:"quantity"`
	Value       credit.Quantity `db:"value"`
	Sent        bool            `db:"sent"`
	FirstSentAt time.Time       `db:"first_sent_at"`
	SentAt      time.Time       `db:"sent_at"`
	CreatedAt   time.Time       `db:"created_at"`
	Replaces    bool            `db:"replaces"` // another one, of which it was known that Stripe lacks it
}

// sqlMinute relies on deliveries_pkey, for each of the few meters.
const sqlMinute = `
	SELECT d.meter, d.sequence, d.origin, d.state, d.identifier, d.quantity, coalesce(d.sent_value, d.quantity) AS value, d.first_sent_at IS NOT NULL AS sent,
		coalesce(d.first_sent_at, d.created_at) AS first_sent_at, coalesce(d.sent_at, d.delivered_at, d.first_sent_at, d.created_at) AS sent_at, d.created_at,
		EXISTS (SELECT 1 FROM deliveries r WHERE r.part = d.part AND r.account = d.account AND r.meter = d.meter AND r.bucket = d.bucket
			AND r.replaced_by = d.identifier) AS replaces
	FROM meters m
	JOIN deliveries d ON d.part = $1 AND d.account = $2 AND d.meter = m.meter AND d.bucket = $3
	WHERE d.event_name = $4 AND d.customer = $5
	ORDER BY d.meter, d.sequence`

// sqlMinuteLocked relies on deliveries_pkey, and on the account's lock before it.
const sqlMinuteLocked = sqlMinute + `
	FOR UPDATE OF d`

// settleMinute reads Stripe's total of a minute and settles what it explains. What
// changed between reading and settling is left for the next time.
func (o *Outbox) settleMinute(ctx context.Context, now time.Time, k minuteKey) error {
	var before []minuteRow
	err := o.DB.Read(ctx, func(tx *sqlx.Tx) error {
		before = nil
		return tx.SelectContext(ctx, &before, sqlMinute, k.Part, k.Account, k.Bucket, k.EventName, k.Customer)
	})
	if err != nil {
		return fmt.Errorf("read the minute %s of %s: %w", k.Bucket, k.Account, err)
	}
	if slices.ContainsFunc(before, func(r minuteRow) bool {
		return r.State == "sending" || r.State == "ambiguous" || (r.Sent && now.Sub(r.SentAt) < settleLag)
	}) {
		return nil // Stripe's total says nothing yet
	}
	if err := o.calls.Wait(ctx); err != nil {
		return err
	}
	counted, err := o.Reader.Counted(ctx, k.EventName, k.Customer, k.Bucket, k.Bucket.Add(o.Bucket))
	if err != nil {
		o.Logger.Warn("Stripe's total of a minute could not be read; it is tried again", slog.String("account", k.Account), slog.String("error", err.Error()))
		return nil
	}
	return o.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		var one int
		if err := tx.GetContext(ctx, &one, sqlLockAccount, k.Part, k.Account); err != nil {
			return fmt.Errorf("lock %s: %w", k.Account, err)
		}
		var rows []minuteRow
		if err := tx.SelectContext(ctx, &rows, sqlMinuteLocked, k.Part, k.Account, k.Bucket, k.EventName, k.Customer); err != nil {
			return fmt.Errorf("lock the minute %s of %s: %w", k.Bucket, k.Account, err)
		}
		if !slices.Equal(rows, before) {
			return nil
		}
		return o.settle(ctx, tx, now, k, rows, counted)
	})
}

// verdict is what Stripe's total says about what stayed unknown.
type verdict struct {
	delivered bool
	lacking   bool
	reason    string // why neither
}

// explain compares Stripe's total of a minute with what is known to be there and with
// what may be. All of it, or none: what lies between says nothing about which.
func explain(rows []minuteRow, counted credit.Quantity, fits bool) verdict {
	var known, unknown credit.Quantity
	first := time.Time{}
	for _, r := range rows {
		switch r.State {
		case "delivered":
			known += r.Value
		case "needs_review":
			unknown += r.Value
			if first.IsZero() || r.FirstSentAt.Before(first) {
				first = r.FirstSentAt
			}
		default: // not at Stripe
		}
	}
	repaired := slices.ContainsFunc(rows, func(r minuteRow) bool { return r.Origin == "repair" && !r.Replaces && !r.CreatedAt.Before(first) })
	switch {
	case repaired:
		return verdict{reason: "a repair was staged for its minute: Stripe's total does not tell the two apart"}
	case counted == known+unknown:
		return verdict{delivered: true}
	case counted != known:
		return verdict{reason: fmt.Sprintf("Stripe counts %s in its minute; %s were delivered for sure, and about %s nothing is known", counted, known, unknown)}
	case !fits:
		return verdict{reason: "Stripe lacks it, and takes no event of that age any more: an invoice item can still bill it"}
	}
	return verdict{lacking: true}
}

// sqlSettleDelivered relies on deliveries_identifier and on the row's lock.
const sqlSettleDelivered = `
	UPDATE deliveries SET state = 'delivered', delivered_at = $3, error = '', updated_at = $3 WHERE part = $1 AND identifier = $2 AND state = 'needs_review'`

// sqlSettleReason relies on deliveries_identifier and on the row's lock.
const sqlSettleReason = `
	UPDATE deliveries SET error = $3, updated_at = $4 WHERE part = $1 AND identifier = $2 AND state = 'needs_review'`

// settle keeps the verdict about each delivery of the minute that stayed unknown.
func (o *Outbox) settle(ctx context.Context, tx *sqlx.Tx, now time.Time, k minuteKey, rows []minuteRow, counted credit.Quantity) error {
	v := explain(rows, counted, now.Before(k.Bucket.Add(stripeTakesFor-correctionLeeway)))
	for _, r := range rows {
		if r.State != "needs_review" {
			continue
		}
		var err error
		switch {
		case v.delivered:
			_, err = tx.ExecContext(ctx, sqlSettleDelivered, k.Part, r.Identifier, now)
		case v.lacking:
			err = o.replace(ctx, tx, now, k, r)
		default:
			_, err = tx.ExecContext(ctx, sqlSettleReason, k.Part, r.Identifier, v.reason, now)
		}
		if err != nil {
			return fmt.Errorf("settle delivery %s: %w", r.Identifier, err)
		}
	}
	return nil
}

// sqlStageReplacement relies on deliveries_pkey. Where it goes and what it says is
// what the one said that Stripe lacks.
const sqlStageReplacement = `
	INSERT INTO deliveries (part, account, meter, bucket, sequence, quantity, usages, origin, state, event_name, customer, identifier,
		attempts, next_try_at, first_sent_at, delivered_at, error, created_at, updated_at, stamp, sent_value)
	VALUES ($1, $2, $3, $4, $5, $6, 0, 'repair', 'pending', $7, $8, $9, 0, $10, NULL, NULL, '', $10, $10, $4, $11)`

// sqlReplaced relies on deliveries_identifier and on the row's lock.
const sqlReplaced = `
	UPDATE deliveries SET state = 'rejected', replaced_by = $3, error = $4, updated_at = $5 WHERE part = $1 AND identifier = $2`

// replace stages once more what Stripe lacks for sure, under an identifier that it
// has never seen.
func (o *Outbox) replace(ctx context.Context, tx *sqlx.Tx, now time.Time, k minuteKey, r minuteRow) error {
	var sequence int
	if err := tx.GetContext(ctx, &sequence, sqlNextSequence, k.Part, k.Account, r.Meter, k.Bucket); err != nil {
		return fmt.Errorf("number it: %w", err)
	}
	identifier := Identifier(k.Account, r.Meter, k.Bucket, sequence)
	_, err := tx.ExecContext(ctx, sqlStageReplacement, k.Part, k.Account, r.Meter, k.Bucket, sequence, r.Quantity, k.EventName, k.Customer, identifier, now, r.Value)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, sqlReplaced, k.Part, r.Identifier, identifier, "Stripe never had it: it was sent again as "+identifier, now)
	return err
}

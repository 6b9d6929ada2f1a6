package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
)

// Bounds of what a step takes.
const (
	claimMax     = 500             // deliveries taken at once
	lookMax      = 8 * claimMax    // due deliveries looked at for them
	lease        = 2 * time.Minute // how long they are ours
	ambiguousAge = 23 * time.Hour  // Stripe remembers identifiers and keys for 24 hours
	waitLeast    = time.Minute     // until what lacks a binding, a customer or an item is looked at again,
	waitMost     = time.Hour       // and how much longer when it has been waiting for long
	coverLeast   = 5 * time.Second // the same of a correction, until what it takes back is there
	coverMost    = 15 * time.Minute
	flushLead    = 30 * time.Second // before a period ends, its buckets are closed early
)

// The back ends of Stripe.
const (
	backendEvent  = "meter_event"
	backendRecord = "usage_record"
)

// delivery is a row that a step has claimed.
type delivery struct {
	Part        int16           `db:"part"`
	Account     string          `db:"account"`
	Meter       string          `db:"meter"`
	Bucket      time.Time       `db:"bucket"`
	Sequence    int             `db:"sequence"`
	Quantity    credit.Quantity `db:"quantity"`
	State       string          `db:"state"` // before it was claimed
	Backend     string          `db:"backend"`
	EventName   string          `db:"event_name"`
	Price       string          `db:"price"`
	Customer    string          `db:"customer"`
	Item        string          `db:"subscription_item"`
	Action      string          `db:"action"`
	Stamp       *time.Time      `db:"stamp"`
	SentValue   *int64          `db:"sent_value"`
	Whole       bool            `db:"whole"`
	Covered     bool            `db:"covered"` // Stripe has, or may have, what a negative one corrects
	Identifier  string          `db:"identifier"`
	Attempts    int             `db:"attempts"`
	FirstSentAt *time.Time      `db:"first_sent_at"`
	CreatedAt   time.Time       `db:"created_at"`
	total       int64           // of a set: what the item has at the stamp
	leased      time.Time       // until when it is ours
	reason      string          // why it is not sent
	nextTryAt   time.Time
}

// sqlTakeTurn relies on delivery_turns_pkey. Whoever holds the row is the only one
// that claims: what another has just taken is seen as taken (O4).
const sqlTakeTurn = `SELECT 1 FROM delivery_turns WHERE queue = 'usage' FOR UPDATE`

// sqlClaim relies on the indexes deliveries_due and deliveries_sending, and for what
// goes first, because its period ends soon, on subscription_items_ending and
// deliveries_pkey. Of the account's meters, those with calls under way are passed
// over: Stripe takes one call at a time per customer and meter. Where a delivery goes
// is looked up until the first send fixes it. A negative one, which corrects others of
// its bucket, waits until Stripe has them, or may have them for good: one that was
// rejected must not be taken back from what others have sent.
const sqlClaim = `
	SELECT d.part, d.account, d.meter, d.bucket, d.sequence, d.quantity, d.state, d.identifier, d.attempts, d.first_sent_at, d.created_at,
		d.subscription_item, d.action, d.stamp, d.sent_value, coalesce(m.stripe_whole, false) AS whole,
		CASE WHEN d.event_name || d.price <> '' THEN d.backend WHEN m.stripe_price IS NOT NULL THEN 'usage_record' ELSE 'meter_event' END AS backend,
		CASE WHEN d.event_name || d.price <> '' THEN d.event_name ELSE coalesce(m.stripe_event_name, '') END AS event_name,
		CASE WHEN d.event_name || d.price = '' OR (d.price <> '' AND d.subscription_item = '' AND m.stripe_price IS NOT NULL)
			THEN coalesce(m.stripe_price, '') ELSE d.price END AS price,
		CASE WHEN d.customer <> '' THEN d.customer ELSE coalesce((SELECT c.customer FROM stripe_customers c
			WHERE c.part = d.part AND c.account = d.account ORDER BY c.position LIMIT 1), '') END AS customer,
		d.quantity >= 0 OR d.quantity + (SELECT coalesce(sum(e.quantity), 0) FROM deliveries e
			WHERE e.part = d.part AND e.account = d.account AND e.meter = d.meter AND e.bucket = d.bucket AND e.sequence <> d.sequence AND e.replaced_by = ''
			AND (e.state IN ('delivered', 'needs_review') OR (e.quantity < 0 AND (e.state IN ('sending', 'ambiguous') OR e.sequence < d.sequence)))) >= 0 AS covered
	FROM (
		SELECT part, account, meter, bucket, sequence, min(rank) AS rank, min(at) AS at
		FROM (
			(SELECT part, account, meter, bucket, sequence, 1 AS rank, next_try_at AS at
			FROM deliveries
			WHERE state IN ('pending', 'sending', 'ambiguous') AND next_try_at <= $1
			ORDER BY next_try_at
			LIMIT $3)
			UNION ALL
			(SELECT d.part, d.account, d.meter, d.bucket, d.sequence, 0, i.period_end
			FROM subscription_items i
			JOIN meters m ON m.stripe_price = i.price
			JOIN deliveries d ON d.part = i.part AND d.account = i.account AND d.meter = m.meter
				AND d.bucket > i.period_end - interval '2 hours' AND d.bucket < i.period_end AND d.bucket <= $1
			WHERE i.state = 'active' AND i.period_end > $1 AND i.period_end <= $4 AND d.state = 'pending' AND d.first_sent_at IS NULL AND d.quantity <> 0
			ORDER BY i.period_end
			LIMIT $3)
		) either
		GROUP BY part, account, meter, bucket, sequence
	) q
	JOIN deliveries d ON d.part = q.part AND d.account = q.account AND d.meter = q.meter AND d.bucket = q.bucket AND d.sequence = q.sequence
	LEFT JOIN meters m ON m.meter = d.meter
	WHERE d.state IN ('pending', 'sending', 'ambiguous') AND (d.next_try_at <= $1 OR q.rank = 0)
		AND NOT EXISTS (SELECT 1 FROM deliveries s WHERE s.part = d.part AND s.account = d.account AND s.meter = d.meter
			AND s.state = 'sending' AND s.next_try_at > $1)
	ORDER BY q.rank, q.at
	LIMIT $2
	FOR UPDATE OF d SKIP LOCKED`

// claim takes what is due, decides about each, and fixes what is sent. It says which
// customers' items must be read from Stripe before their usage can go.
func (o *Outbox) claim(ctx context.Context, tx *sqlx.Tx, now time.Time) (claimed []delivery, wanted map[customer]bool, err error) {
	var one int
	if err := tx.GetContext(ctx, &one, sqlTakeTurn); err != nil {
		return nil, nil, fmt.Errorf("take the turn: %w", err)
	}
	if err := tx.SelectContext(ctx, &claimed, sqlClaim, now, claimMax, lookMax, now.Add(flushLead)); err != nil {
		return nil, nil, fmt.Errorf("claim deliveries: %w", err)
	}
	if len(claimed) == 0 {
		return nil, nil, nil
	}
	known, err := readItems(ctx, tx, claimed)
	if err != nil {
		return nil, nil, err
	}
	c := catalog{known: known, wanted: map[customer]bool{}}
	for i := range claimed {
		claimed[i].nextTryAt, claimed[i].leased = now.Add(lease), now.Add(lease)
		o.decide(&claimed[i], now, c)
	}
	if err := o.fix(ctx, tx, now, claimed); err != nil {
		return nil, nil, err
	}
	if err := saveClaims(ctx, tx, now, claimed); err != nil {
		return nil, nil, err
	}
	return claimed, c.wanted, readTotals(ctx, tx, claimed)
}

// decide says what happens to a due delivery: it is sent, or it stays and says why.
func (o *Outbox) decide(d *delivery, now time.Time, c catalog) {
	switch {
	case d.Quantity == 0 && d.FirstSentAt == nil:
		d.State, d.reason = "delivered", "all of its usage was voided before it was sent: there is nothing to send"
	case d.EventName == "" && d.Price == "":
		d.stays(now, "the meter is not bound to Stripe")
	case d.Customer == "":
		d.stays(now, "the account has no Stripe customer")
	case !d.Covered:
		d.waits(now, coverLeast, coverMost, "waits until Stripe has what it takes back")
	case d.forgotten(now):
		// Stripe may have it and may have forgotten it: sending it again could bill
		// it twice. Its totals must decide.
		d.State, d.nextTryAt, d.reason = "needs_review", now, "the outcome was unknown for 23 hours: Stripe's total of its minute decides"
		if d.Backend == backendRecord {
			d.reason = "the outcome was unknown for 23 hours, and Stripe does not tell what it counted for one time: only a person can decide"
		}
	case d.Backend == backendRecord && d.Item == "":
		o.place(d, now, c)
	case d.Stamp == nil:
		d.Stamp = &d.Bucket
	}
}

// forgotten tells whether Stripe may have executed it and may not know it again. A
// total that is set can be set again at any age.
func (d *delivery) forgotten(now time.Time) bool {
	return d.State != "pending" && d.FirstSentAt != nil && now.Sub(*d.FirstSentAt) >= ambiguousAge && d.Action != "set"
}

// stays lets a delivery wait for what only others can change: the longer it has
// waited, the less often it is looked at.
func (d *delivery) stays(now time.Time, reason string) { d.waits(now, waitLeast, waitMost, reason) }

func (d *delivery) waits(now time.Time, least, most time.Duration, reason string) {
	d.reason, d.nextTryAt = reason, now.Add(min(most, max(least, now.Sub(d.CreatedAt)/8)))
}

// sends tells whether Stripe is called.
func (d *delivery) sends() bool { return d.reason == "" }

// savedClaim is what is kept of a claim.
type savedClaim struct {
	Part       int16      `json:"part"`
	Identifier string     `json:"identifier"`
	Sends      bool       `json:"sends"`
	Fixes      bool       `json:"fixes"`
	State      string     `json:"state"`
	Backend    string     `json:"backend"`
	EventName  string     `json:"event_name"`
	Price      string     `json:"price"`
	Customer   string     `json:"customer"`
	Item       string     `json:"item"`
	Action     string     `json:"action"`
	Stamp      *time.Time `json:"stamp"`
	SentValue  *int64     `json:"sent_value"`
	NextTryAt  time.Time  `json:"next_try_at"`
	Reason     string     `json:"reason"`
}

// sqlSaveClaims relies on deliveries_identifier and on the locks of sqlClaim. From the
// first send on, where it goes and what it says stay as they are.
const sqlSaveClaims = `
	UPDATE deliveries d
	SET state = CASE WHEN c.sends THEN 'sending' ELSE c.state END, attempts = d.attempts + CASE WHEN c.sends THEN 1 ELSE 0 END,
		first_sent_at = CASE WHEN c.fixes THEN coalesce(d.first_sent_at, $2) ELSE d.first_sent_at END,
		sent_at = CASE WHEN c.sends THEN $2 ELSE d.sent_at END,
		delivered_at = CASE WHEN NOT c.sends AND c.state = 'delivered' THEN $2 ELSE d.delivered_at END,
		backend = CASE WHEN c.fixes THEN c.backend ELSE d.backend END, event_name = CASE WHEN c.fixes THEN c.event_name ELSE d.event_name END,
		price = CASE WHEN c.fixes THEN c.price ELSE d.price END, customer = CASE WHEN c.fixes THEN c.customer ELSE d.customer END,
		subscription_item = CASE WHEN c.fixes THEN c.item ELSE d.subscription_item END, action = CASE WHEN c.fixes THEN c.action ELSE d.action END,
		stamp = CASE WHEN c.fixes THEN c.stamp ELSE d.stamp END, sent_value = CASE WHEN c.fixes THEN c.sent_value ELSE d.sent_value END,
		next_try_at = c.next_try_at, error = CASE WHEN c.sends THEN d.error ELSE c.reason END, updated_at = $2
	FROM jsonb_to_recordset($1::jsonb) AS c (part smallint, identifier text, sends boolean, fixes boolean, state text, backend text, event_name text, price text,
		customer text, item text, action text, stamp timestamptz, sent_value bigint, next_try_at timestamptz, reason text)
	WHERE d.part = c.part AND d.identifier = c.identifier`

func saveClaims(ctx context.Context, tx *sqlx.Tx, now time.Time, claimed []delivery) error {
	saved := make([]savedClaim, len(claimed))
	for i, d := range claimed {
		saved[i] = savedClaim{
			Part: d.Part, Identifier: d.Identifier, Sends: d.sends(), Fixes: d.sends() || d.SentValue != nil, State: d.State, Backend: d.Backend, EventName: d.EventName,
			Price: d.Price, Customer: d.Customer, Item: d.Item, Action: d.Action, Stamp: d.Stamp, SentValue: d.SentValue, NextTryAt: d.nextTryAt, Reason: d.reason,
		}
	}
	rows, err := json.Marshal(saved)
	if err != nil {
		return fmt.Errorf("encode claims: %w", err)
	}
	if _, err := tx.ExecContext(ctx, sqlSaveClaims, string(rows), now); err != nil {
		return fmt.Errorf("mark claimed deliveries: %w", err)
	}
	return nil
}

package meter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/ledger"
	"tallystick/outbox"
)

// usage is a validated request to record usage.
type usage struct {
	ref         ledger.Ref
	id          string
	meter       string
	quantity    credit.Quantity
	occurredAt  time.Time
	dimensions  map[string]string
	fingerprint []byte
	actor       string
	untimely    error  // refuses it, unless it is known
	field       *field // of an event: how its quantity was read
}

type usageKey struct {
	ref ledger.Ref
	id  string
}

// record is usage as it stands in the database: everything that its first answer
// was made of.
type record struct {
	Part            int16           `db:"part"`
	Account         string          `db:"account"`
	ID              string          `db:"usage_id"`
	Meter           string          `db:"meter"`
	Quantity        credit.Quantity `db:"quantity"`
	Credits         credit.Amount   `db:"credits"`
	RateVersion     int             `db:"rate_version"`
	Staged          credit.Quantity `db:"staged"`
	Dimensions      string          `db:"dimensions"`
	OccurredAt      time.Time       `db:"occurred_at"`
	RecordedAt      time.Time       `db:"recorded_at"`
	Fingerprint     []byte          `db:"fingerprint"`
	TransferVersion int64           `db:"transfer_version"`
	Available       credit.Amount   `db:"available_after"`
	Held            credit.Amount   `db:"held_after"`
	Debt            credit.Amount   `db:"debt_after"`

	dimensions map[string]string // Dimensions as they came; nil in what was read
}

func (r *record) key() usageKey {
	return usageKey{ref: ledger.Ref{Part: r.Part, Account: r.Account}, id: r.ID}
}

// record decides a group of usages in their order and writes what was accepted.
// An error is about the whole group; what is wrong with one usage is in its result.
func (m *Meter) record(ctx context.Context, tx *sqlx.Tx, usages []usage) ([]result, error) {
	now := m.now()
	refs := make([]ledger.Ref, len(usages))
	for i, u := range usages {
		refs[i] = u.ref
	}
	batch, err := ledger.Load(ctx, tx, refs)
	if err != nil {
		return nil, err
	}
	known, err := readRecords(ctx, tx, usages)
	if err != nil {
		return nil, err
	}
	meters, err := readDefinitions(ctx, tx, usages)
	if err != nil {
		return nil, err
	}
	results := make([]result, len(usages))
	var accepted []*record
	for i, u := range usages {
		r := &results[i]
		if u.field.stale(meters[u.meter]) {
			r.err, r.stale = fault.ErrUnavailable, true
			continue
		}
		if stands := known[usageKey{u.ref, u.id}]; stands != nil {
			r.record, r.replayed = *stands, true
			if !bytes.Equal(stands.Fingerprint, u.fingerprint) {
				*r = result{err: fault.ErrIdempotency}
			}
			continue
		}
		if r.err = charge(batch, meters, u, now, &r.record); r.err == nil {
			known[usageKey{u.ref, u.id}] = &r.record
			accepted = append(accepted, &r.record)
		} else if fault.KindOf(r.err) == fault.KindInternal {
			return nil, r.err
		}
	}
	if len(accepted) == 0 {
		return results, nil
	}
	if err := batch.Save(ctx, tx); err != nil {
		return nil, err
	}
	if err := insertRecords(ctx, tx, accepted); err != nil {
		return nil, err
	}
	return results, m.stage(ctx, tx, now, accepted)
}

// charge decides one usage that is not known yet. The order of its refusals is
// documented in openapi.yaml.
func charge(batch *ledger.Batch, meters map[string]*definition, u usage, now time.Time, r *record) error {
	if u.untimely != nil {
		return u.untimely
	}
	if batch.State(u.ref) == nil {
		return ledger.ErrNoAccount
	}
	d := meters[u.meter]
	if d == nil {
		return errNoMeter
	}
	units := u.quantity
	if d.Aggregation == "count" {
		units = credit.Units(1)
	}
	credits, err := credit.Price(units, d.rate(u.dimensions))
	if err != nil {
		return errPriceRange
	}
	transfers, err := batch.Apply(u.ref, ledger.Operation{Kind: ledger.KindUsage, Cause: u.id, Amount: credits, Actor: u.actor, At: now})
	if err != nil {
		return err
	}
	dimensions, err := json.Marshal(u.dimensions)
	if err != nil {
		return fmt.Errorf("encode dimensions: %w", err)
	}
	last := transfers[len(transfers)-1]
	*r = record{
		Part: u.ref.Part, Account: u.ref.Account, ID: u.id, Meter: u.meter, Quantity: u.quantity, Credits: credits, RateVersion: d.RateVersion,
		Dimensions: string(dimensions), OccurredAt: u.occurredAt, RecordedAt: now, Fingerprint: u.fingerprint, TransferVersion: last.Version,
		Available: last.After.Available, Held: last.After.Held, Debt: last.After.Debt,
		dimensions: u.dimensions,
	}
	if d.EventName != nil {
		r.Staged = units
	}
	return nil
}

func (m *Meter) stage(ctx context.Context, tx *sqlx.Tx, now time.Time, accepted []*record) error {
	var staged []outbox.Usage
	for _, r := range accepted {
		if r.Staged > 0 {
			staged = append(staged, outbox.Usage{Part: r.Part, Account: r.Account, Meter: r.Meter, OccurredAt: r.OccurredAt, Quantity: r.Staged})
		}
	}
	if len(staged) == 0 {
		return nil
	}
	return m.stager.StageUsage(ctx, tx, now, staged)
}

// sqlReadRecords relies on usage_pkey.
const sqlReadRecords = `
	SELECT u.part, u.account, u.usage_id, u.meter, u.quantity, u.credits, u.rate_version, u.staged, u.dimensions, u.occurred_at, u.recorded_at,
		u.fingerprint, u.transfer_version, u.available_after, u.held_after, u.debt_after
	FROM usage u
	JOIN unnest($1::smallint[], $2::text[], $3::text[]) AS k (part, account, usage_id)
		ON u.part = k.part AND u.account = k.account AND u.usage_id = k.usage_id`

// readRecords finds usages that were recorded before. It runs after the accounts
// are locked: whoever recorded the same id a moment ago has committed.
func readRecords(ctx context.Context, tx *sqlx.Tx, usages []usage) (map[usageKey]*record, error) {
	parts, accounts, ids := make(pq.Int64Array, len(usages)), make(pq.StringArray, len(usages)), make(pq.StringArray, len(usages))
	for i, u := range usages {
		parts[i], accounts[i], ids[i] = int64(u.ref.Part), u.ref.Account, u.id
	}
	var rows []record
	if err := tx.SelectContext(ctx, &rows, sqlReadRecords, parts, accounts, ids); err != nil {
		return nil, fmt.Errorf("look usage up: %w", err)
	}
	known := make(map[usageKey]*record, len(usages))
	for i := range rows {
		known[rows[i].key()] = &rows[i]
	}
	return known, nil
}

// sqlInsertUsage relies on usage_pkey for M1.
const sqlInsertUsage = `
	INSERT INTO usage (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, recorded_at, fingerprint,
		transfer_version, available_after, held_after, debt_after)
	SELECT part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions::jsonb, occurred_at, $11, fingerprint,
		transfer_version, available_after, held_after, debt_after
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::integer[], $8::bigint[], $9::text[],
		$10::timestamptz[], $12::bytea[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[])
		AS u (part, account, usage_id, meter, quantity, credits, rate_version, staged, dimensions, occurred_at, fingerprint,
		transfer_version, available_after, held_after, debt_after)`

func insertRecords(ctx context.Context, tx *sqlx.Tx, records []*record) error {
	n := len(records)
	numbers := func() pq.Int64Array { return make(pq.Int64Array, 0, n) }
	texts := func() pq.StringArray { return make(pq.StringArray, 0, n) }
	parts, accounts, ids, meters := numbers(), texts(), texts(), texts()
	quantities, credits, rates, staged := numbers(), numbers(), numbers(), numbers()
	dimensions, occurred, fingerprints, versions := texts(), texts(), make(pq.ByteaArray, 0, n), numbers()
	available, held, debt := numbers(), numbers(), numbers()
	for _, r := range records {
		parts, accounts, ids, meters = append(parts, int64(r.Part)), append(accounts, r.Account), append(ids, r.ID), append(meters, r.Meter)
		quantities, credits = append(quantities, int64(r.Quantity)), append(credits, int64(r.Credits))
		rates, staged = append(rates, int64(r.RateVersion)), append(staged, int64(r.Staged))
		dimensions, occurred = append(dimensions, r.Dimensions), append(occurred, r.OccurredAt.Format(time.RFC3339Nano))
		fingerprints, versions = append(fingerprints, r.Fingerprint), append(versions, r.TransferVersion)
		available, held, debt = append(available, int64(r.Available)), append(held, int64(r.Held)), append(debt, int64(r.Debt))
	}
	_, err := tx.ExecContext(ctx, sqlInsertUsage, parts, accounts, ids, meters, quantities, credits, rates, staged, dimensions, occurred,
		records[0].RecordedAt, fingerprints, versions, available, held, debt)
	if err != nil {
		return fmt.Errorf("insert usage: %w", err)
	}
	return nil
}

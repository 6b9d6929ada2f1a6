package meter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
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
	untimely    error // refuses it, unless it is known
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
	lost       error             // only the transfer stands: why the record is gone
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
		if stands := known[usageKey{u.ref, u.id}]; stands != nil {
			r.record, r.replayed = *stands, true
			if stands.lost != nil {
				*r = result{err: stands.lost}
			} else if !bytes.Equal(stands.Fingerprint, u.fingerprint) {
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
		Dimensions: string(dimensions), OccurredAt: u.occurredAt, RecordedAt: last.PostedAt, Fingerprint: u.fingerprint, TransferVersion: last.Version,
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

// sqlKnownUsage relies on transfers_usage, which guards every charge (M1). On the
// way of a new usage this is the whole lookup: one probe that finds nothing.
const sqlKnownUsage = `
	SELECT t.part, t.account, t.cause AS usage_id, t.posted_at AS recorded_at
	FROM unnest($1::smallint[], $2::text[], $3::text[]) AS k (part, account, usage_id)
	JOIN transfers t ON t.part = k.part AND t.account || '' = k.account AND t.cause = k.usage_id
	WHERE t.kind = 'usage'`

// sqlKnownCaptures relies on transfers_captures. A capture may take several
// transfers, all posted at once.
const sqlKnownCaptures = `
	SELECT t.part, t.account, k.usage_id, max(t.posted_at) AS recorded_at
	FROM unnest($1::smallint[], $2::text[], $3::text[]) AS k (part, account, usage_id)
	JOIN transfers t ON t.part = k.part AND t.account || '' = k.account AND t.cause = substr(k.usage_id, length('` + usagePrefix + `') + 1)
	WHERE t.kind = 'capture'
	GROUP BY t.part, t.account, k.usage_id`

// sqlReadRecords relies on usage_pkey of the one partition that recorded_at names.
const sqlReadRecords = `
	SELECT u.part, u.account, u.usage_id, u.meter, u.quantity, u.credits, u.rate_version, u.staged, u.dimensions, u.occurred_at, u.recorded_at,
		u.fingerprint, u.transfer_version, u.available_after, u.held_after, u.debt_after
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::timestamptz[]) AS k (part, account, usage_id, recorded_at)
	JOIN usage u ON u.part = k.part AND u.account = k.account AND u.usage_id = k.usage_id AND u.recorded_at = k.recorded_at`

// sqlArchivedUsage relies on there being few archives: one for each month.
const sqlArchivedUsage = `SELECT EXISTS (SELECT FROM usage_archives WHERE month <= $1 AND until > $1)`

// errArchived refuses a usage that was charged so long ago that its record has
// been archived: its first answer cannot be given again, nor compared.
var errArchived = &fault.Error{Kind: fault.KindConflict, Code: "already_recorded", Public: "the usage was recorded, and has been archived since"}

// readRecords finds usages that were recorded before. It runs after the accounts
// are locked: whoever recorded the same id a moment ago has committed. A usage
// whose record is no longer there has lost set, the error to refuse it with.
func readRecords(ctx context.Context, tx *sqlx.Tx, usages []usage) (map[usageKey]*record, error) {
	var charges, captures keyColumns
	for _, u := range usages {
		if strings.HasPrefix(u.id, usagePrefix) {
			captures.add(u.ref, u.id)
		} else {
			charges.add(u.ref, u.id)
		}
	}
	known := make(map[usageKey]*record)
	for query, keys := range map[string]keyColumns{sqlKnownUsage: charges, sqlKnownCaptures: captures} {
		if len(keys.ids) == 0 {
			continue
		}
		var rows []record
		if err := tx.SelectContext(ctx, &rows, query, keys.parts, keys.accounts, keys.ids); err != nil {
			return nil, fmt.Errorf("look usage up: %w", err)
		}
		for i := range rows {
			known[rows[i].key()] = &rows[i]
		}
	}
	if len(known) == 0 {
		return known, nil
	}
	return known, fillRecords(ctx, tx, known)
}

// fillRecords reads the records of usages of which only the transfer is known.
func fillRecords(ctx context.Context, tx *sqlx.Tx, known map[usageKey]*record) error {
	var keys keyColumns
	var times pq.StringArray
	for _, r := range known {
		keys.add(r.key().ref, r.ID)
		times = append(times, r.RecordedAt.UTC().Format(time.RFC3339Nano))
	}
	var rows []record
	if err := tx.SelectContext(ctx, &rows, sqlReadRecords, keys.parts, keys.accounts, keys.ids, times); err != nil {
		return fmt.Errorf("read usage: %w", err)
	}
	for i := range rows {
		known[rows[i].key()] = &rows[i]
	}
	for _, r := range known {
		if len(r.Fingerprint) > 0 {
			continue
		}
		var archived bool
		if err := tx.GetContext(ctx, &archived, sqlArchivedUsage, r.RecordedAt); err != nil {
			return fmt.Errorf("look for the archive of usage: %w", err)
		}
		if r.lost = fault.ErrBroken.With(fmt.Errorf("usage %s of %s has a transfer and no record", r.ID, r.Account)); archived {
			at := r.RecordedAt.UTC().Format(time.RFC3339Nano)
			r.lost = errArchived.Withf("the usage was recorded and charged at %s; its record has been archived since, so the first answer cannot be given again; nothing was changed; use another id for other usage", at).
				WithExtra("recorded_at", at)
		}
	}
	return nil
}

// keyColumns are keys of usage as the arrays that unnest takes.
type keyColumns struct {
	parts         pq.Int64Array
	accounts, ids pq.StringArray
}

func (k *keyColumns) add(ref ledger.Ref, id string) {
	k.parts, k.accounts, k.ids = append(k.parts, int64(ref.Part)), append(k.accounts, ref.Account), append(k.ids, id)
}

// sqlInsertUsage relies on transfers_usage for M1: the transfers are written before.
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

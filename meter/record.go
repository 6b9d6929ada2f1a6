package meter

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
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

// charge is the work of recording a usage.
type charge struct {
	usage  usage
	result result
}

func (c *charge) ref() ledger.Ref { return c.usage.ref }

func (c *charge) needs(n *needs) {
	n.usages = append(n.usages, usageKey{c.usage.ref, c.usage.id})
	n.meters[c.usage.meter] = true
}

func (c *charge) decide(_ context.Context, g *group) error {
	u, r := &c.usage, &c.result
	*r = result{}
	if u.field.stale(g.meters[u.meter]) {
		r.err, r.stale = fault.ErrUnavailable, true
		return nil
	}
	key := usageKey{u.ref, u.id}
	if stands := g.known[key]; stands != nil {
		r.record, r.replayed = *stands, true
		if stands.lost != nil {
			*r = result{err: stands.lost}
		} else if !bytes.Equal(stands.Fingerprint, u.fingerprint) {
			*r = result{err: fault.ErrIdempotency}
		}
		return nil
	}
	if r.err = g.charge(u, &r.record); r.err != nil {
		if refusal(r.err) {
			g.refused = append(g.refused, key)
			return nil
		}
		return r.err
	}
	g.known[key] = &r.record
	g.recorded = append(g.recorded, &r.record)
	return nil
}

// charge decides one usage that is not known yet. The order of its refusals is
// documented in openapi.yaml.
func (g *group) charge(u *usage, r *record) error {
	if u.untimely != nil {
		return u.untimely
	}
	if g.batch.State(u.ref) == nil {
		return ledger.ErrNoAccount
	}
	d := g.meters[u.meter]
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
	dimensions, err := encodeTexts(u.dimensions)
	if err != nil {
		return err
	}
	transfers, err := g.batch.Apply(u.ref, ledger.Operation{Kind: ledger.KindUsage, Cause: u.id, Amount: credits, Actor: u.actor, At: g.now})
	if err != nil {
		return err
	}
	last := transfers[len(transfers)-1]
	*r = record{
		Part: u.ref.Part, Account: u.ref.Account, ID: u.id, Meter: u.meter, Quantity: u.quantity, Credits: credits, RateVersion: d.RateVersion,
		Dimensions: dimensions, OccurredAt: u.occurredAt, RecordedAt: last.PostedAt, Fingerprint: u.fingerprint, TransferVersion: last.Version,
		Available: last.After.Available, Held: last.After.Held, Debt: last.After.Debt,
		dimensions: u.dimensions,
	}
	if d.bound() {
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
	SELECT t.part, t.account, t.cause AS usage_id, t.version AS transfer_version, t.posted_at AS recorded_at
	FROM unnest($1::smallint[], $2::text[], $3::text[]) AS k (part, account, usage_id)
	JOIN transfers t ON t.part = k.part AND t.account || '' = k.account AND t.cause = k.usage_id
	WHERE t.kind = 'usage'`

// sqlKnownCaptures relies on transfers_captures. A capture may take several
// transfers, all posted at once; the last is its usage's.
const sqlKnownCaptures = `
	SELECT t.part, t.account, k.usage_id, max(t.version) AS transfer_version, max(t.posted_at) AS recorded_at
	FROM unnest($1::smallint[], $2::text[], $3::text[]) AS k (part, account, usage_id)
	JOIN transfers t ON t.part = k.part AND t.account || '' = k.account AND t.cause = substr(k.usage_id, length('` + usagePrefix + `') + 1)
	WHERE t.kind = 'capture'
	GROUP BY t.part, t.account, k.usage_id`

// sqlReadRecords relies on usage_pkey of the one partition that recorded_at names.
const sqlReadRecords = `
	SELECT u.part, u.account, u.usage_id, u.meter, u.quantity, u.credits, u.rate_version, u.staged, u.dimensions, u.occurred_at, u.recorded_at,
		u.fingerprint, u.transfer_version, u.available_after, u.held_after, u.debt_after
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[]) AS k (part, account, usage_id, version, recorded_at)
	JOIN usage u ON u.part = k.part AND u.account = k.account AND u.transfer_version = k.version AND u.recorded_at = k.recorded_at AND u.usage_id = k.usage_id`

// sqlArchivedUsage relies on there being few archives: one for each month.
const sqlArchivedUsage = `SELECT EXISTS (SELECT FROM usage_archives WHERE month <= $1 AND until > $1)`

// errArchived refuses a usage that was charged so long ago that its record has
// been archived: its first answer cannot be given again, nor compared.
var errArchived = &fault.Error{Kind: fault.KindConflict, Code: "already_recorded", Public: "the usage was recorded, and has been archived since"}

// readRecords finds usages that were recorded before. It runs after the accounts
// are locked: whoever recorded the same id a moment ago has committed. A usage
// whose record is no longer there has lost set, the error to refuse it with.
func readRecords(ctx context.Context, tx *sqlx.Tx, usages []usageKey) (map[usageKey]*record, error) {
	var charges, captures []usageKey
	for _, u := range usages {
		if strings.HasPrefix(u.id, usagePrefix) {
			captures = append(captures, u)
		} else {
			charges = append(charges, u)
		}
	}
	known := make(map[usageKey]*record)
	for query, keys := range map[string][]usageKey{sqlKnownUsage: charges, sqlKnownCaptures: captures} {
		if len(keys) == 0 {
			continue
		}
		var rows []record
		parts, accounts, ids := keyColumns(keys)
		if err := tx.SelectContext(ctx, &rows, query, parts, accounts, ids); err != nil {
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
	keys, versions, times := make([]usageKey, 0, len(known)), make(pg.Bigints, 0, len(known)), make(pg.Times, 0, len(known))
	for key, r := range known {
		keys, versions, times = append(keys, key), append(versions, r.TransferVersion), append(times, r.RecordedAt)
	}
	parts, accounts, ids := keyColumns(keys)
	var rows []record
	if err := tx.SelectContext(ctx, &rows, sqlReadRecords, parts, accounts, ids, versions, times); err != nil {
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

// keyColumns turns keys into the three arrays that unnest takes.
func keyColumns(keys []usageKey) (parts pg.Smallints, accounts, ids pg.Texts) {
	parts, accounts, ids = make(pg.Smallints, len(keys)), make(pg.Texts, len(keys)), make(pg.Texts, len(keys))
	for i, k := range keys {
		parts[i], accounts[i], ids[i] = k.ref.Part, k.ref.Account, k.id
	}
	return parts, accounts, ids
}

// sqlSave relies on transfers_usage for M1, on accounts_pkey, grants_pkey and
// meters_pkey. Its parameters are meters, whether to look and what was refused;
// accounts; grants; transfers; usage.
const sqlSave = `
	SELECT meter_save(
		$1::text[], $2::integer[], $3::boolean, $4::smallint[], $5::text[], $6::text[],
		$7::smallint[], $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bytea[], $15::bigint[],
		$16::bigint[], $17::bigint[], $18::bigint[], $19::bytea[],
		$20::smallint[], $21::text[], $22::text[], $23::bigint[], $24::bigint[],
		$25::smallint[], $26::text[], $27::bigint[], $28::text[], $29::bigint[], $30::text[], $31::text[], $32::text[], $33::text[],
		$34::text[], $35::bigint[], $36::bigint[], $37::bigint[], $38::text[], $39::text[], $40::timestamptz[], $41::bytea[],
		$42::smallint[], $43::text[], $44::text[], $45::text[], $46::bigint[], $47::bigint[], $48::integer[], $49::bigint[], $50::text[],
		$51::timestamptz[], $52::timestamptz, $53::bytea[], $54::bigint[], $55::bigint[], $56::bigint[], $57::bigint[])`

// columns gives the arguments of meter_save. A group that has read its usages and
// meters behind the accounts' locks need not look again.
func (g *group) columns() []any {
	names, revisions := pg.Texts{}, pg.Integers{}
	if g.recalled {
		for name, d := range g.meters {
			names, revisions = append(names, name), append(revisions, int32(d.Revision)) //nolint:gosec // the column is an integer
		}
	}
	parts, accounts, ids := keyColumns(g.refused)
	return slices.Concat([]any{names, revisions, g.recalled, parts, accounts, ids}, g.batch.Compared(g.recalled), recordColumns(g.recorded, g.now))
}

// recordColumns gives usages as the arrays of meter_save. All are recorded at once.
func recordColumns(records []*record, at time.Time) []any {
	n := len(records)
	numbers := func() pg.Bigints { return make(pg.Bigints, n) }
	texts := func() pg.Texts { return make(pg.Texts, n) }
	parts, accounts, ids, meters := make(pg.Smallints, n), texts(), texts(), texts()
	quantities, credits, rates, staged := numbers(), numbers(), make(pg.Integers, n), numbers()
	dimensions, occurred, fingerprints, versions := texts(), make(pg.Times, n), make(pg.Byteas, n), numbers()
	available, held, debt := numbers(), numbers(), numbers()
	for i, r := range records {
		parts[i], accounts[i], ids[i], meters[i] = r.Part, r.Account, r.ID, r.Meter
		quantities[i], credits[i], rates[i], staged[i] = int64(r.Quantity), int64(r.Credits), int32(r.RateVersion), int64(r.Staged) //nolint:gosec // the column is an integer
		dimensions[i], occurred[i], fingerprints[i], versions[i] = r.Dimensions, r.OccurredAt, r.Fingerprint, r.TransferVersion
		available[i], held[i], debt[i] = int64(r.Available), int64(r.Held), int64(r.Debt)
	}
	return []any{
		parts, accounts, ids, meters, quantities, credits, rates, staged, dimensions, occurred, at, fingerprints, versions, available, held, debt,
	}
}

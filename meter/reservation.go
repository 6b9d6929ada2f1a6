package meter

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/ledger"
)

// States of a reservation. The last three are final.
const (
	stateOpen     = "open"
	stateInDoubt  = "in_doubt"
	stateCaptured = "captured"
	stateReleased = "released"
	stateExpired  = "expired"
)

// What a policy does about doubt.
const (
	actionRelease = "release"
	actionCapture = "capture"
)

// usagePrefix makes the id of a capture's usage out of its reservation's. No
// caller's id has an @, so that it is nobody else's.
const usagePrefix = "reservation@"

// Refusals about reservations.
var (
	errNoReservation = &fault.Error{Kind: fault.KindNotFound, Code: "reservation_not_found", Public: "there is no such reservation"}
	errAmbiguous     = &fault.Error{Kind: fault.KindConflict, Code: "reservation_ambiguous", Public: "several accounts have a reservation with this id; say which by ?account="}
	errClosed        = &fault.Error{Kind: fault.KindConflict, Code: "reservation_closed", Public: "the reservation has ended already, as state says; nothing was changed"}
	errInDoubt       = &fault.Error{Kind: fault.KindConflict, Code: "reservation_in_doubt", Public: "the reservation is in doubt: it does not expire; capture or release it"}
)

// reservation is a reservation as it stands in the database.
type reservation struct {
	Part         int16            `db:"part"`
	Account      string           `db:"account"`
	ID           string           `db:"reservation_id"`
	Meter        string           `db:"meter"`
	Quantity     *credit.Quantity `db:"quantity"`
	Dimensions   string           `db:"dimensions"`
	RateVersion  int              `db:"rate_version"`
	Credits      credit.Amount    `db:"credits"`
	GrantIDs     pq.StringArray   `db:"grant_ids"`
	GrantAmounts pq.Int64Array    `db:"grant_amounts"`
	TTLSeconds   int              `db:"ttl_seconds"`
	Fingerprint  []byte           `db:"fingerprint"`
	HoldVersion  int64            `db:"hold_version"`
	CreatedAt    time.Time        `db:"created_at"`

	State              string        `db:"state"`
	ExpiresAt          time.Time     `db:"expires_at"`
	Reason             string        `db:"reason"`
	DoubtedAt          *time.Time    `db:"doubted_at"`
	Captured           credit.Amount `db:"captured"`
	Returned           credit.Amount `db:"returned"`
	Expired            credit.Amount `db:"expired"`
	EndVersion         *int64        `db:"end_version"`
	EndedAt            *time.Time    `db:"ended_at"`
	UsageID            *string       `db:"usage_id"`
	CaptureFingerprint []byte        `db:"capture_fingerprint"`

	MeterRevision int `db:"meter_revision"` // of the meter, when this was read

	ledger.Balance // after the hold or the end, as it is read

	held *ledger.Balance // after the hold, of one that was made in this group
}

func (r *reservation) key() usageKey { return usageKey{r.ref(), r.ID} }

func (r *reservation) ref() ledger.Ref { return ledger.Ref{Part: r.Part, Account: r.Account} }

// live tells whether credits are still held.
func (r *reservation) live() bool { return r.State == stateOpen || r.State == stateInDoubt }

// closed is the refusal of a second, different ending.
func (r *reservation) closed() error {
	refusal := errClosed.WithExtra("state", r.State)
	if r.State == stateReleased {
		return refusal.Withf("the reservation was released; nothing was changed; usage that has happened all the same is recorded with POST /v1/usage").WithExtra("state", r.State)
	}
	return refusal
}

// first is the reservation as its first answer showed it.
func (r *reservation) first() *reservation {
	f := *r
	f.State, f.ExpiresAt, f.Reason, f.DoubtedAt = stateOpen, r.CreatedAt.Add(time.Duration(r.TTLSeconds)*time.Second), "", nil
	f.Captured, f.Returned, f.Expired, f.EndVersion, f.EndedAt, f.UsageID = 0, 0, 0, nil, nil, nil
	return &f
}

func (r *reservation) wire() (api.Reservation, error) {
	a := api.Reservation{
		ID: r.ID, Account: r.Account, Meter: r.Meter, RateVersion: r.RateVersion,
		Credits: api.Decimal(r.Credits.String()), Captured: api.Decimal(r.Captured.String()), Returned: api.Decimal(r.Returned.String()),
		Expired: api.Decimal(r.Expired.String()), Grants: []api.GrantChange{}, State: r.State, ExpiresAt: r.ExpiresAt.UTC(), Reason: r.Reason,
		DoubtedAt: utc(r.DoubtedAt), EndedAt: utc(r.EndedAt), Usage: r.UsageID, CreatedAt: r.CreatedAt.UTC(), Balance: wireBalance(r.Balance),
	}
	if r.Quantity != nil {
		q := api.Decimal(r.Quantity.String())
		a.Quantity = &q
	}
	for i, id := range r.GrantIDs {
		a.Grants = append(a.Grants, api.GrantChange{ID: id, Credits: api.Decimal(credit.Amount(r.GrantAmounts[i]).String())})
	}
	if err := json.Unmarshal([]byte(r.Dimensions), &a.Dimensions); err != nil {
		return a, fmt.Errorf("read dimensions of reservation %s: %w", r.ID, err)
	}
	return a, nil
}

// sqlReservation begins every query that reads reservations; transfers_pkey finds
// the balance.
const sqlReservation = `
	SELECT r.part, r.account, r.reservation_id, r.meter, r.quantity, r.dimensions, r.rate_version, r.credits, r.grant_ids, r.grant_amounts,
		r.ttl_seconds, r.fingerprint, r.hold_version, r.created_at, r.state, r.expires_at, r.reason, r.doubted_at, r.captured, r.returned, r.expired,
		r.end_version, r.ended_at, r.usage_id, r.capture_fingerprint, m.revision AS meter_revision,
		t.available_after AS available, t.held_after AS held, t.debt_after AS debt, t.version
	FROM reservations r
	JOIN meters m ON m.meter = r.meter
	JOIN transfers t ON t.part = r.part AND t.account = r.account AND t.version = coalesce(r.end_version, r.hold_version)`

// sqlReadReservations relies on reservations_pkey.
const sqlReadReservations = sqlReservation + `
	JOIN unnest($1::smallint[], $2::text[], $3::text[]) AS k (part, account, reservation_id)
		ON r.part = k.part AND r.account = k.account AND r.reservation_id = k.reservation_id`

// readReservations gives those that exist. Whoever means to change them has
// locked their accounts.
func readReservations(ctx context.Context, tx *sqlx.Tx, keys []usageKey) (map[usageKey]*reservation, error) {
	found := make(map[usageKey]*reservation, len(keys))
	if len(keys) == 0 {
		return found, nil
	}
	var rows []reservation
	parts, accounts, ids := keyColumns(keys)
	if err := tx.SelectContext(ctx, &rows, sqlReadReservations, parts, accounts, ids); err != nil {
		return nil, fmt.Errorf("read reservations: %w", err)
	}
	for i := range rows {
		found[rows[i].key()] = &rows[i]
	}
	return found, nil
}

// sqlFindReservation relies on the index reservations_by_id. Two rows are enough
// to know that an id alone says too little.
const sqlFindReservation = `SELECT part, account FROM reservations WHERE reservation_id = $1 LIMIT 2`

// findReservation gives the account of a reservation. Ids are unique within an
// account only: with its name one part is asked, without it every part is.
func findReservation(ctx context.Context, tx *sqlx.Tx, id, account string) (ledger.Ref, error) {
	if account != "" {
		return ledger.RefOf(account), nil
	}
	var rows []struct {
		Part    int16  `db:"part"`
		Account string `db:"account"`
	}
	if err := tx.SelectContext(ctx, &rows, sqlFindReservation, id); err != nil {
		return ledger.Ref{}, fmt.Errorf("find reservation %s: %w", id, err)
	}
	switch len(rows) {
	case 0:
		return ledger.Ref{}, errNoReservation
	case 1:
		return ledger.Ref{Part: rows[0].Part, Account: rows[0].Account}, nil
	}
	return ledger.Ref{}, errAmbiguous
}

// sqlListReservations pages over reservations_pkey.
const sqlListReservations = sqlReservation + `
	WHERE (r.part, r.account, r.reservation_id) > ($1, $2, $3) AND ($4 = '' OR (r.part = $5 AND r.account = $4)) AND ($6 = '' OR r.state = $6)
	ORDER BY r.part, r.account, r.reservation_id
	LIMIT $7`

// sqlListLive pages over the index reservations_live, past all that have ended.
const sqlListLive = sqlReservation + `
	WHERE (r.part, r.account, r.reservation_id) > ($1, $2, $3) AND ($4 = '' OR (r.part = $5 AND r.account = $4))
		AND r.state IN ('open', 'in_doubt') AND r.state = $6
	ORDER BY r.part, r.account, r.reservation_id
	LIMIT $7`

// place is where a page of reservations ends.
type place struct {
	ledger.Ref
	ID string
}

func listReservations(ctx context.Context, tx *sqlx.Tx, after place, account, state string, limit int) (rows []reservation, err error) {
	query := sqlListReservations
	if state == stateOpen || state == stateInDoubt {
		query = sqlListLive
	}
	err = tx.SelectContext(ctx, &rows, query, after.Part, after.Account, after.ID, account, ledger.RefOf(account).Part, state, limit)
	if err != nil {
		return nil, fmt.Errorf("list reservations: %w", err)
	}
	return rows, nil
}

// sqlInsertReservations relies on reservations_pkey.
const sqlInsertReservations = `
	INSERT INTO reservations (part, account, reservation_id, meter, quantity, dimensions, rate_version, credits, grant_ids, grant_amounts,
		ttl_seconds, fingerprint, hold_version, created_at, state, expires_at, reason, captured, returned, expired)
	SELECT part, account, reservation_id, meter, nullif(quantity, 0), dimensions::jsonb, rate_version, credits, grant_ids::text[], grant_amounts::bigint[],
		ttl_seconds, fingerprint, hold_version, created_at, 'open', expires_at, '', 0, 0, 0
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::integer[], $8::bigint[], $9::text[], $10::text[],
		$11::integer[], $12::bytea[], $13::bigint[], $14::timestamptz[], $15::timestamptz[])
		AS r (part, account, reservation_id, meter, quantity, dimensions, rate_version, credits, grant_ids, grant_amounts,
		ttl_seconds, fingerprint, hold_version, created_at, expires_at)`

func insertReservations(ctx context.Context, tx *sqlx.Tx, rows []*reservation) error {
	n := len(rows)
	if n == 0 {
		return nil
	}
	parts, accounts, ids := keyColumns(keysOf(rows))
	meters, dimensions, grantIDs, grantAmounts := make(pg.Texts, n), make(pg.Texts, n), make(pg.Texts, n), make(pg.Texts, n)
	quantities, credits, holds := make(pg.Bigints, n), make(pg.Bigints, n), make(pg.Bigints, n)
	rates, ttls := make(pg.Integers, n), make(pg.Integers, n)
	fingerprints, created, expires := make(pg.Byteas, n), make(pg.Times, n), make(pg.Times, n)
	for i, r := range rows {
		meters[i], dimensions[i] = r.Meter, r.Dimensions
		if r.Quantity != nil {
			quantities[i] = int64(*r.Quantity)
		}
		grantIDs[i], grantAmounts[i] = literal(r.GrantIDs), literal(r.GrantAmounts)
		credits[i], holds[i] = int64(r.Credits), r.HoldVersion
		rates[i], ttls[i] = int32(r.RateVersion), int32(r.TTLSeconds) //nolint:gosec // the columns are integers
		fingerprints[i], created[i], expires[i] = r.Fingerprint, r.CreatedAt, r.ExpiresAt
	}
	_, err := tx.ExecContext(ctx, sqlInsertReservations, parts, accounts, ids, meters, quantities, dimensions, rates, credits, grantIDs, grantAmounts,
		ttls, fingerprints, holds, created, expires)
	if err != nil {
		return fmt.Errorf("insert reservations: %w", err)
	}
	return nil
}

// literal writes an array for a cast: an array of arrays cannot be unnested row
// by row.
func literal(a driver.Valuer) string {
	v, _ := a.Value() // arrays of texts and numbers never fail
	s, _ := v.(string)
	return s
}

// sqlUpdateReservations relies on reservations_pkey and on the accounts' locks. It
// changes those that stand as they were read, or that this group has made.
const sqlUpdateReservations = `
	UPDATE reservations r
	SET state = u.state, expires_at = u.expires_at, reason = u.reason, doubted_at = u.doubted_at, captured = u.captured, returned = u.returned,
		expired = u.expired, end_version = nullif(u.end_version, 0), ended_at = u.ended_at, usage_id = nullif(u.usage_id, ''),
		capture_fingerprint = u.capture_fingerprint
	FROM unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::timestamptz[], $8::bigint[], $9::bigint[],
		$10::bigint[], $11::bigint[], $12::timestamptz[], $13::text[], $14::bytea[], $15::text[], $16::timestamptz[])
		AS u (part, account, reservation_id, state, expires_at, reason, doubted_at, captured, returned, expired, end_version, ended_at, usage_id,
		capture_fingerprint, was_state, was_expires_at)
	WHERE r.part = u.part AND r.account = u.account AND r.reservation_id = u.reservation_id
		AND (u.was_state = '' OR (r.state = u.was_state AND r.expires_at = u.was_expires_at))`

// errMistaken says that something is not as a recalled group took it to be.
var errMistaken = errors.New("a reservation is not as it was known")

func (g *group) updateReservations(ctx context.Context, tx *sqlx.Tx, rows []*reservation) error {
	n := len(rows)
	if n == 0 {
		return nil
	}
	parts, accounts, ids := keyColumns(keysOf(rows))
	states, reasons, usages := make(pg.Texts, n), make(pg.Texts, n), make(pg.Texts, n)
	expires, doubted, ended := make(pg.Times, n), make(pg.Times, n), make(pg.Times, n)
	captured, returned, expired, versions := make(pg.Bigints, n), make(pg.Bigints, n), make(pg.Bigints, n), make(pg.Bigints, n)
	fingerprints, wasStates, wasExpires := make(pg.Byteas, n), make(pg.Texts, n), make(pg.Times, n)
	for i, r := range rows {
		if was, ok := g.stood[r]; ok {
			wasStates[i], wasExpires[i] = was.state, was.expiresAt
		}
		states[i], reasons[i], usages[i] = r.State, r.Reason, value(r.UsageID)
		expires[i], doubted[i], ended[i] = r.ExpiresAt, value(r.DoubtedAt), value(r.EndedAt)
		captured[i], returned[i], expired[i], versions[i] = int64(r.Captured), int64(r.Returned), int64(r.Expired), value(r.EndVersion)
		fingerprints[i] = r.CaptureFingerprint
	}
	result, err := tx.ExecContext(ctx, sqlUpdateReservations, parts, accounts, ids, states, expires, reasons, doubted, captured, returned, expired,
		versions, ended, usages, fingerprints, wasStates, wasExpires)
	if err != nil {
		return fmt.Errorf("update reservations: %w", err)
	}
	if changed, err := result.RowsAffected(); err != nil || changed != int64(n) {
		return errors.Join(errMistaken, err)
	}
	return nil
}

func keysOf(rows []*reservation) []usageKey {
	keys := make([]usageKey, len(rows))
	for i, r := range rows {
		keys[i] = r.key()
	}
	return keys
}

// value is what p points to, or the zero value, which the statement takes for NULL.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

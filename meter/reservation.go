package meter

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
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

	ledger.Balance // after the hold or the end, as it is read
}

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
		r.end_version, r.ended_at, r.usage_id, r.capture_fingerprint,
		t.available_after AS available, t.held_after AS held, t.debt_after AS debt, t.version
	FROM reservations r
	JOIN transfers t ON t.part = r.part AND t.account = r.account AND t.version = coalesce(r.end_version, r.hold_version)`

// sqlReadReservation relies on reservations_pkey.
const sqlReadReservation = sqlReservation + `
	WHERE r.part = $1 AND r.account = $2 AND r.reservation_id = $3`

// readReservation gives nil where there is none. Whoever means to change it has
// locked the account.
func readReservation(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, id string) (*reservation, error) {
	var r reservation
	err := tx.GetContext(ctx, &r, sqlReadReservation, ref.Part, ref.Account, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // none is no failure
	}
	if err != nil {
		return nil, fmt.Errorf("read reservation %s of %s: %w", id, ref.Account, err)
	}
	return &r, nil
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

// sqlInsertReservation relies on reservations_pkey.
const sqlInsertReservation = `
	INSERT INTO reservations (part, account, reservation_id, meter, quantity, dimensions, rate_version, credits, grant_ids, grant_amounts,
		ttl_seconds, fingerprint, hold_version, created_at, state, expires_at, reason, captured, returned, expired)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 'open', $15, '', 0, 0, 0)`

func (r *reservation) insert(ctx context.Context, tx *sqlx.Tx) error {
	_, err := tx.ExecContext(ctx, sqlInsertReservation, r.Part, r.Account, r.ID, r.Meter, r.Quantity, r.Dimensions, r.RateVersion, r.Credits,
		r.GrantIDs, r.GrantAmounts, r.TTLSeconds, r.Fingerprint, r.HoldVersion, r.CreatedAt, r.ExpiresAt)
	if err != nil {
		return fmt.Errorf("insert reservation %s of %s: %w", r.ID, r.Account, err)
	}
	return nil
}

// sqlUpdateReservation relies on reservations_pkey and on the account's lock.
const sqlUpdateReservation = `
	UPDATE reservations
	SET state = $4, expires_at = $5, reason = $6, doubted_at = $7, captured = $8, returned = $9, expired = $10, end_version = $11, ended_at = $12,
		usage_id = $13, capture_fingerprint = $14
	WHERE part = $1 AND account = $2 AND reservation_id = $3`

func (r *reservation) update(ctx context.Context, tx *sqlx.Tx) error {
	_, err := tx.ExecContext(ctx, sqlUpdateReservation, r.Part, r.Account, r.ID, r.State, r.ExpiresAt, r.Reason, r.DoubtedAt,
		r.Captured, r.Returned, r.Expired, r.EndVersion, r.EndedAt, r.UsageID, r.CaptureFingerprint)
	if err != nil {
		return fmt.Errorf("update reservation %s of %s: %w", r.ID, r.Account, err)
	}
	return nil
}

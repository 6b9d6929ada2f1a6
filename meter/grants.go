package meter

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/web"
	"tallystick/ledger"
)

const (
	reasonMax   = 1000
	priorityMax = 1000
)

// sqlBalanceAfter relies on transfers_pkey: it is the balance after a cause's
// transfer and, where it paid debt, after that one right behind it. Other transfers
// may stand there under the same name: a grant's expiry, or a usage of the same id.
const sqlBalanceAfter = `
	SELECT available_after AS available, held_after AS held, debt_after AS debt, version
	FROM transfers
	WHERE part = $1 AND account = $2 AND version IN ($3::bigint, $3::bigint + 1) AND cause = $4
		AND (version = $3 OR kind = 'debt_repaid')
	ORDER BY version DESC
	LIMIT 1`

func balanceAfter(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, version int64, cause string) (b ledger.Balance, err error) {
	err = tx.GetContext(ctx, &b, sqlBalanceAfter, ref.Part, ref.Account, version, cause)
	return b, err
}

// GrantCredits gives credits to an account, once per id. It tells whether the
// answer is that of an earlier request.
func (m *Meter) GrantCredits(ctx context.Context, account string, q api.GrantRequest, by string) (answer api.Grant, again bool, err error) {
	g, expired, err := m.validateGrant(q)
	if err != nil {
		return answer, false, err
	}
	ref := ledger.RefOf(account)
	err = m.db.InTx(ctx, func(tx *sqlx.Tx) error {
		fresh := g
		answer, again, err = giveGrant(ctx, tx, ref, &fresh, expired, by)
		return err
	})
	return answer, again, err
}

// validateGrant makes a grant of a request. Expired refuses one whose end has come,
// unless its id is known: it may come while the request is sent again.
func (m *Meter) validateGrant(q api.GrantRequest) (g ledger.Grant, expired, err error) {
	var p, late fault.Problems
	now := m.now()
	g = ledger.Grant{ID: q.ID, Kind: ledger.KindGrant, Priority: q.Priority, ExpiresAt: utc(q.ExpiresAt), Reason: q.Reason, CreatedAt: now}
	if !idForm.MatchString(q.ID) {
		p.Addf("/id", idRule)
	}
	if g.Credits, err = credit.ParseAmount(string(q.Credits)); err != nil {
		p.Addf("/credits", "%v", err)
	} else if g.Credits <= 0 {
		p.Addf("/credits", "must be more than zero")
	}
	checkWritable(&p, "/expires_at", q.ExpiresAt)
	if q.ExpiresAt != nil && !q.ExpiresAt.After(now) {
		late.Addf("/expires_at", "must be in the future")
	}
	if q.Priority < -priorityMax || q.Priority > priorityMax {
		p.Addf("/priority", "must be from %d to %d; lower is spent first", -priorityMax, priorityMax)
	}
	if len(q.Reason) > reasonMax {
		p.Addf("/reason", "must have at most %d bytes", reasonMax)
	}
	expires := ""
	if g.ExpiresAt != nil {
		expires = g.ExpiresAt.Format(time.RFC3339Nano)
	}
	g.Fingerprint = hashTexts("grant", g.Credits.String(), q.Reason, expires, strconv.Itoa(q.Priority))
	expired = p.Postpone(&late, fault.ErrUnprocessed)
	return g, expired, p.Err(fault.ErrUnprocessed)
}

func giveGrant(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, g *ledger.Grant, expired error, by string) (api.Grant, bool, error) {
	batch, err := ledger.Load(ctx, tx, []ledger.Ref{ref})
	if err != nil {
		return api.Grant{}, false, err
	}
	if batch.State(ref) == nil && expired == nil {
		return api.Grant{}, false, ledger.ErrNoAccount
	}
	stands, err := batch.Grant(ctx, tx, ref, g.ID)
	if err == nil {
		if !bytes.Equal(stands.Fingerprint, g.Fingerprint) {
			return api.Grant{}, false, fault.ErrIdempotency
		}
		balance, err := balanceAfter(ctx, tx, ref, stands.TransferVersion, g.ID)
		return wireGrant(ref, stands, balance), true, err
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return api.Grant{}, false, err
	}
	if expired != nil {
		return api.Grant{}, false, expired
	}
	op := ledger.Operation{Kind: ledger.KindGrant, Cause: g.ID, Amount: g.Credits, Grant: g, Actor: by, Note: g.Reason, At: g.CreatedAt}
	transfers, err := batch.Apply(ref, op)
	if err != nil {
		return api.Grant{}, false, err
	}
	return wireGrant(ref, g, transfers[len(transfers)-1].After), false, batch.Save(ctx, tx)
}

func wireGrant(ref ledger.Ref, g *ledger.Grant, b ledger.Balance) api.Grant {
	return api.Grant{
		ID: g.ID, Account: ref.Account, Kind: string(g.Kind), Credits: api.Decimal(g.Credits.String()), Reason: g.Reason,
		ExpiresAt: utc(g.ExpiresAt), Priority: g.Priority, CreatedAt: g.CreatedAt.UTC(), Balance: wireBalance(b),
	}
}

func (m *Meter) handleGrant(w http.ResponseWriter, r *http.Request) error {
	var q api.GrantRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	var p fault.Problems
	q.ID = idempotencyKey(r, q.ID, &p)
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	answer, again, err := m.GrantCredits(r.Context(), r.PathValue("account"), q, actor(r.Context()))
	if err != nil {
		return err
	}
	if again {
		replayed(w)
	}
	return web.JSON(w, http.StatusCreated, answer)
}

// adjustmentRow is an adjustment as it stands in the database.
type adjustmentRow struct {
	Credits         credit.Amount `db:"credits"`
	Reason          string        `db:"reason"`
	Fingerprint     []byte        `db:"fingerprint"`
	TransferVersion int64         `db:"transfer_version"`
	CreatedAt       time.Time     `db:"created_at"`
}

// sqlReadAdjustment relies on adjustments_pkey.
const sqlReadAdjustment = `
	SELECT credits, reason, fingerprint, transfer_version, created_at
	FROM adjustments WHERE part = $1 AND account = $2 AND adjustment_id = $3`

// sqlInsertAdjustment relies on adjustments_pkey.
const sqlInsertAdjustment = `
	INSERT INTO adjustments (part, account, adjustment_id, credits, reason, fingerprint, transfer_version, created_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`

// Adjust corrects a balance by hand, once per id. A reason is required, because
// the statement must say why. Credits that are taken must be there.
func (m *Meter) Adjust(ctx context.Context, account string, q api.AdjustmentRequest, by string) (answer api.Adjustment, again bool, err error) {
	var p fault.Problems
	row := adjustmentRow{Reason: q.Reason, CreatedAt: m.now()}
	if !idForm.MatchString(q.ID) {
		p.Addf("/id", idRule)
	}
	if row.Credits, err = credit.ParseAmount(string(q.Credits)); err != nil {
		p.Addf("/credits", "%v", err)
	} else if row.Credits == 0 {
		p.Addf("/credits", "must not be zero")
	}
	if q.Reason == "" || len(q.Reason) > reasonMax {
		p.Addf("/reason", "must have 1 to %d bytes", reasonMax)
	}
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return answer, false, err
	}
	row.Fingerprint = hashTexts("adjustment", row.Credits.String(), q.Reason)
	ref := ledger.RefOf(account)
	err = m.db.InTx(ctx, func(tx *sqlx.Tx) error {
		answer, again, err = adjust(ctx, tx, ref, q.ID, row, by)
		return err
	})
	return answer, again, err
}

func adjust(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, id string, row adjustmentRow, by string) (api.Adjustment, bool, error) {
	batch, err := ledger.Load(ctx, tx, []ledger.Ref{ref})
	if err != nil {
		return api.Adjustment{}, false, err
	}
	if batch.State(ref) == nil {
		return api.Adjustment{}, false, ledger.ErrNoAccount
	}
	var stands adjustmentRow
	err = tx.GetContext(ctx, &stands, sqlReadAdjustment, ref.Part, ref.Account, id)
	if err == nil {
		if !bytes.Equal(stands.Fingerprint, row.Fingerprint) {
			return api.Adjustment{}, false, fault.ErrIdempotency
		}
		balance, err := balanceAfter(ctx, tx, ref, stands.TransferVersion, id)
		return wireAdjustment(ref, id, stands, balance), true, err
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return api.Adjustment{}, false, fmt.Errorf("look adjustment %s up: %w", id, err)
	}
	op := ledger.Operation{Kind: ledger.KindAdjustment, Cause: id, Amount: row.Credits, Actor: by, Note: row.Reason, At: row.CreatedAt}
	if row.Credits > 0 {
		op.Grant = &ledger.Grant{
			ID: "adjustment:" + id, Kind: ledger.KindGrant, Credits: row.Credits, Reason: row.Reason, Fingerprint: row.Fingerprint, CreatedAt: row.CreatedAt,
		}
	}
	transfers, err := batch.Apply(ref, op)
	if err != nil {
		return api.Adjustment{}, false, err
	}
	for _, t := range transfers {
		if t.Kind == ledger.KindAdjustment {
			row.TransferVersion = t.Version
		}
	}
	if err := batch.Save(ctx, tx); err != nil {
		return api.Adjustment{}, false, err
	}
	_, err = tx.ExecContext(ctx, sqlInsertAdjustment, ref.Part, ref.Account, id, row.Credits, row.Reason, row.Fingerprint, row.TransferVersion, row.CreatedAt)
	return wireAdjustment(ref, id, row, transfers[len(transfers)-1].After), false, err
}

func wireAdjustment(ref ledger.Ref, id string, row adjustmentRow, b ledger.Balance) api.Adjustment {
	return api.Adjustment{
		ID: id, Account: ref.Account, Credits: api.Decimal(row.Credits.String()), Reason: row.Reason, CreatedAt: row.CreatedAt.UTC(), Balance: wireBalance(b),
	}
}

func (m *Meter) handleAdjustment(w http.ResponseWriter, r *http.Request) error {
	var q api.AdjustmentRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	var p fault.Problems
	q.ID = idempotencyKey(r, q.ID, &p)
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	answer, again, err := m.Adjust(r.Context(), r.PathValue("account"), q, actor(r.Context()))
	if err != nil {
		return err
	}
	if again {
		replayed(w)
	}
	return web.JSON(w, http.StatusCreated, answer)
}

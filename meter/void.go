package meter

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/web"
	"tallystick/ledger"
	"tallystick/outbox"
)

var errNoUsage = &fault.Error{Kind: fault.KindNotFound, Code: "usage_not_found", Public: "the account has no usage with this id; a capture's is called reservation@ and its reservation's id"}

// stripeNotBilled says that a voided usage was never Stripe's business.
const stripeNotBilled = "not_billed"

// voidRow is a void as it stands in the database: everything that its first
// answer was made of, beside the usage itself.
type voidRow struct {
	Reason          string          `db:"reason"`
	Returned        credit.Amount   `db:"returned"`
	Expired         credit.Amount   `db:"expired"`
	Staged          credit.Quantity `db:"staged"`
	Stripe          string          `db:"stripe"`
	Delivery        string          `db:"delivery"`
	Fingerprint     []byte          `db:"fingerprint"`
	TransferVersion int64           `db:"transfer_version"`
	Actor           string          `db:"actor"`
	VoidedAt        time.Time       `db:"voided_at"`
	ledger.Balance
}

// VoidUsage takes usage back, once: what it was charged goes back, and Stripe is
// told where it was told of the usage. It tells whether the answer is that of an
// earlier request. The usage's row stays, so that its id is never charged again.
func (m *Meter) VoidUsage(ctx context.Context, id string, q api.VoidRequest, by string) (answer api.UsageVoid, again bool, err error) {
	var p fault.Problems
	if !accountForm.MatchString(q.Account) {
		p.Addf("/account", accountRule)
	}
	if q.Reason == "" || len(q.Reason) > reasonMax {
		p.Addf("/reason", "must have 1 to %d bytes", reasonMax)
	}
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return answer, false, err
	}
	row := voidRow{Reason: q.Reason, Fingerprint: hashTexts("void", q.Reason), Actor: by, VoidedAt: m.now().UTC().Truncate(time.Microsecond)}
	err = m.settled(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		fresh := row
		var u *record
		if u, again, err = m.void(ctx, tx, ledger.RefOf(q.Account), id, &fresh); err != nil {
			return err
		}
		answer = fresh.wire(u)
		return nil
	})
	return answer, again, err
}

// settledMax bounds a transaction outside the lanes, with its repeats.
const settledMax = 20 * time.Second

// settled runs fn in a transaction. Where its outcome is unknown it runs once
// more: what was committed is found by its key, and nothing is done twice. It
// must not end with the caller, or the outcome would stay unknown.
func (m *Meter) settled(ctx context.Context, fn func(ctx context.Context, tx *sqlx.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settledMax)
	defer cancel()
	run := func(tx *sqlx.Tx) error { return fn(ctx, tx) }
	err := m.db.InTx(ctx, run)
	if errors.Is(err, fault.ErrUnavailable) {
		err = m.db.InTx(ctx, run)
	}
	return err
}

// void decides v in the order of refusals that openapi.yaml documents. Where the
// usage is voided already, v becomes what stands.
func (m *Meter) void(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, id string, v *voidRow) (u *record, again bool, err error) {
	batch, err := ledger.Load(ctx, tx, []ledger.Ref{ref})
	if err != nil {
		return nil, false, err
	}
	if batch.State(ref) == nil {
		return nil, false, ledger.ErrNoAccount
	}
	if u, err = readRecord(ctx, tx, ref, id); err != nil {
		return nil, false, err
	}
	stands, err := readVoid(ctx, tx, ref, id)
	if err != nil {
		return nil, false, err
	}
	if stands != nil {
		if !bytes.Equal(stands.Fingerprint, v.Fingerprint) {
			return nil, false, fault.ErrIdempotency
		}
		*v = *stands
		return u, true, nil
	}
	if err := v.giveBack(ctx, tx, batch, u); err != nil {
		return nil, false, err
	}
	if err := m.takeBack(ctx, tx, u, v); err != nil {
		return nil, false, err
	}
	return u, false, v.insert(ctx, tx, ref, id)
}

// giveBack posts the transfers of a void and saves them.
func (v *voidRow) giveBack(ctx context.Context, tx *sqlx.Tx, batch *ledger.Batch, u *record) error {
	ref := u.key().ref
	took, err := readTook(ctx, tx, u)
	if err != nil {
		return err
	}
	hold, err := batch.Hold(ctx, tx, ref, u.Credits, took.ids, took.amounts)
	if err != nil {
		return err
	}
	op := ledger.Operation{Kind: ledger.KindVoid, Cause: u.ID, Amount: u.Credits, Hold: hold, Actor: v.Actor, Note: v.Reason, At: v.VoidedAt}
	transfers, err := batch.Apply(ref, op)
	if err != nil {
		return err
	}
	for _, t := range transfers {
		switch {
		case t.Kind == ledger.KindVoid:
			v.Returned, v.TransferVersion = t.Amount, t.Version
		case t.Source == ledger.BookUsage:
			v.Expired += t.Amount
		}
	}
	v.Balance = transfers[len(transfers)-1].After
	return batch.Save(ctx, tx)
}

// takeBack tells Stripe, where it was told of the usage.
func (m *Meter) takeBack(ctx context.Context, tx *sqlx.Tx, u *record, v *voidRow) error {
	if u.Staged == 0 {
		v.Stripe = stripeNotBilled
		return nil
	}
	taken, err := m.stager.TakeBack(ctx, tx, v.VoidedAt, outbox.Usage{
		Part: u.Part, Account: u.Account, Meter: u.Meter, OccurredAt: u.OccurredAt, Quantity: u.Staged,
	}, u.RecordedAt)
	v.Stripe, v.Staged, v.Delivery = taken.How, taken.Quantity, taken.Identifier
	return err
}

func (v *voidRow) wire(u *record) api.UsageVoid {
	a := api.UsageVoid{
		Usage: u.ID, Account: u.Account, Meter: u.Meter, Quantity: api.Decimal(u.Quantity.String()), Credits: api.Decimal(u.Credits.String()),
		Returned: api.Decimal(v.Returned.String()), Expired: api.Decimal(v.Expired.String()), Reason: v.Reason, Stripe: v.Stripe,
		Actor: v.Actor, VoidedAt: v.VoidedAt.UTC(), Balance: wireBalance(v.Balance),
	}
	if v.Delivery != "" {
		a.Delivery = &v.Delivery
	}
	return a
}

// sqlReadVoid relies on usage_voids_pkey.
const sqlReadVoid = `
	SELECT reason, returned, expired, staged, stripe, delivery, fingerprint, transfer_version, actor, voided_at,
		available_after AS available, held_after AS held, debt_after AS debt, balance_version AS version
	FROM usage_voids
	WHERE part = $1 AND account = $2 AND usage_id = $3`

// readVoid gives nil where the usage is not voided.
func readVoid(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, id string) (*voidRow, error) {
	var v voidRow
	err := tx.GetContext(ctx, &v, sqlReadVoid, ref.Part, ref.Account, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // none is no failure
	}
	if err != nil {
		return nil, fmt.Errorf("read the void of %s of %s: %w", id, ref.Account, err)
	}
	return &v, nil
}

// sqlInsertVoid relies on usage_voids_pkey for M8.
const sqlInsertVoid = `
	INSERT INTO usage_voids (part, account, usage_id, reason, returned, expired, staged, stripe, delivery, fingerprint, transfer_version, actor, voided_at,
		available_after, held_after, debt_after, balance_version)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`

func (v *voidRow) insert(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, id string) error {
	_, err := tx.ExecContext(ctx, sqlInsertVoid, ref.Part, ref.Account, id, v.Reason, v.Returned, v.Expired, v.Staged, v.Stripe, v.Delivery, v.Fingerprint,
		v.TransferVersion, v.Actor, v.VoidedAt, v.Available, v.Held, v.Debt, v.Version)
	if err != nil {
		return fmt.Errorf("insert the void of %s of %s: %w", id, ref.Account, err)
	}
	return nil
}

func (m *Meter) handleVoid(w http.ResponseWriter, r *http.Request) error {
	var q api.VoidRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	answer, again, err := m.VoidUsage(r.Context(), r.PathValue("id"), q, actor(r.Context()))
	if err != nil {
		return err
	}
	if again {
		replayed(w)
	}
	return web.JSON(w, http.StatusCreated, answer)
}

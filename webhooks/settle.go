package webhooks

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/ledger"
)

// paymentRow is what we know of a payment.
type paymentRow struct {
	State   string        `db:"state"`
	Part    *int16        `db:"part"`
	Account *string       `db:"account"`
	GrantID *string       `db:"grant_id"`
	Credits credit.Amount `db:"credits"`
	Money   int64         `db:"money"`

	UpdatedAt time.Time `db:"updated_at"` // rises with every change, so that it tells one state from the next
}

func (p paymentRow) ref() ledger.Ref { return ledger.Ref{Part: *p.Part, Account: *p.Account} }

// sqlSeen relies on payments_pkey.
const sqlSeen = `SELECT updated_at FROM payments WHERE payment_id = $1`

// seen tells in which state our record of a payment is, before Stripe is asked.
func (h *Webhooks) seen(ctx context.Context, payment string) (at time.Time, err error) {
	err = h.db.Read(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &at, sqlSeen, payment) })
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	return at, err
}

// sqlLockPayment relies on payments_pkey.
const sqlLockPayment = `SELECT state, part, account, grant_id, credits, money, updated_at FROM payments WHERE payment_id = $1 FOR UPDATE`

// errOvertaken makes the worker come back and ask Stripe again: what it has read
// may be older than what another worker has written meanwhile.
var errOvertaken = &fault.Error{Kind: fault.KindUnavailable, Code: "unavailable", Public: "the payment was changed by another worker at the same time"}

// settle brings our records of a payment to what Stripe says: it grants the
// credits if that has not been done, and takes back or returns what its refunds
// call for. It may be called any number of times; facts that were read before our
// record last changed are refused.
func (h *Webhooks) settle(ctx context.Context, tx *sqlx.Tx, f facts, by string) error {
	var p paymentRow
	err := tx.GetContext(ctx, &p, sqlLockPayment, f.payment)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("lock payment %s: %w", f.payment, err)
	}
	if p.State == "granted" && len(f.refunds) == 0 {
		return nil
	}
	if !p.UpdatedAt.Equal(f.seen) {
		return errOvertaken
	}
	if p.State != "granted" {
		ref, problem, err := h.accountOf(ctx, tx, f)
		if err != nil {
			return err
		}
		if f.problem != "" {
			problem = f.problem
		}
		if problem != "" {
			return h.park(ctx, tx, f, problem)
		}
		if p, err = h.grant(ctx, tx, f, ref, by); err != nil {
			return err
		}
	}
	if len(f.refunds) == 0 {
		return nil
	}
	return h.takeBack(ctx, tx, f, p, by)
}

// accountOf finds whom the credits are for, or says why nobody is known.
func (h *Webhooks) accountOf(ctx context.Context, tx *sqlx.Tx, f facts) (ref ledger.Ref, problem string, err error) {
	if f.account != "" {
		ref = ledger.RefOf(f.account)
		_, err = ledger.ReadAccount(ctx, tx, ref)
		if errors.Is(err, ledger.ErrNoAccount) {
			return ref, fmt.Sprintf("it names the account %q, which does not exist", f.account), nil
		}
		return ref, "", err
	}
	if f.customer == "" {
		return ref, "nothing says which account it is for: set client_reference_id or metadata.account, or tie the Stripe customer to an account", nil
	}
	ref, err = ledger.AccountOfCustomer(ctx, tx, f.customer)
	if errors.Is(err, ledger.ErrNoAccount) {
		return ref, fmt.Sprintf("the Stripe customer %s is tied to no account", f.customer), nil
	}
	return ref, "", err
}

// sqlPark relies on payments_pkey. A granted payment stays granted.
const sqlPark = `
	INSERT INTO payments AS p (payment_id, session_id, customer, credits, money, currency, livemode, state, reason, created_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, 'parked', $8, $9, $10)
	ON CONFLICT (payment_id) DO UPDATE
	SET reason = excluded.reason, credits = excluded.credits, updated_at = greatest(excluded.updated_at, p.updated_at + interval '1 microsecond')
	WHERE p.state = 'parked'`

func (h *Webhooks) park(ctx context.Context, tx *sqlx.Tx, f facts, reason string) error {
	h.logger.Warn("a payment is parked: nobody got its credits", slog.String("payment", f.payment), slog.String("reason", reason))
	_, err := tx.ExecContext(ctx, sqlPark, f.payment, f.session, f.customer, f.offer.credits, f.money, f.currency, f.livemode, reason, f.createdAt, h.now())
	if err != nil {
		return fmt.Errorf("park payment %s: %w", f.payment, err)
	}
	return nil
}

// sqlGranted relies on payments_pkey for W3: of two workers one finds the row
// granted, changes nothing, and is rolled back.
const sqlGranted = `
	INSERT INTO payments AS p (payment_id, session_id, customer, part, account, grant_id, credits, money, currency, livemode, state, reason, created_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'granted', '', $11, $12)
	ON CONFLICT (payment_id) DO UPDATE
	SET part = excluded.part, account = excluded.account, grant_id = excluded.grant_id, credits = excluded.credits, state = 'granted', reason = '',
		updated_at = greatest(excluded.updated_at, p.updated_at + interval '1 microsecond')
	WHERE p.state = 'parked'`

func (h *Webhooks) grant(ctx context.Context, tx *sqlx.Tx, f facts, ref ledger.Ref, by string) (paymentRow, error) {
	batch, err := ledger.Load(ctx, tx, []ledger.Ref{ref})
	if err != nil {
		return paymentRow{}, err
	}
	now := h.now()
	id := "purchase:" + f.payment
	if _, err := batch.Grant(ctx, tx, ref, id); err == nil {
		return paymentRow{}, errOvertaken
	} else if !errors.Is(err, sql.ErrNoRows) {
		return paymentRow{}, err
	}
	fingerprint := sha256.Sum256([]byte(id))
	g := &ledger.Grant{
		ID: id, Kind: ledger.KindPurchase, Credits: f.offer.credits, Priority: f.offer.priority, Reason: "purchase", Payment: &f.payment,
		Fingerprint: fingerprint[:], CreatedAt: now,
	}
	if f.offer.expireDays > 0 {
		at := now.Add(time.Duration(f.offer.expireDays) * 24 * time.Hour)
		g.ExpiresAt = &at
	}
	op := ledger.Operation{Kind: ledger.KindPurchase, Cause: id, Amount: g.Credits, Grant: g, Actor: by, At: now}
	if _, err := batch.Apply(ref, op); err != nil {
		return paymentRow{}, err
	}
	if err := batch.Save(ctx, tx); err != nil {
		return paymentRow{}, err
	}
	result, err := tx.ExecContext(ctx, sqlGranted, f.payment, f.session, f.customer, ref.Part, ref.Account, id, g.Credits, f.money, f.currency,
		f.livemode, f.createdAt, now)
	if err != nil {
		return paymentRow{}, fmt.Errorf("keep payment %s: %w", f.payment, err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return paymentRow{}, errOvertaken
	}
	h.logger.Info("credits bought", slog.String("account", ref.Account), slog.String("credits", g.Credits.String()), slog.String("payment", f.payment))
	return paymentRow{State: "granted", Part: &ref.Part, Account: &ref.Account, GrantID: &id, Credits: g.Credits, Money: f.money}, nil
}

// sqlReadClawback relies on clawbacks_pkey and on the account's lock.
const sqlReadClawback = `SELECT credits FROM clawbacks WHERE part = $1 AND account = $2 AND refund_id = $3`

// sqlPutClawback relies on clawbacks_pkey.
const sqlPutClawback = `
	INSERT INTO clawbacks (part, account, refund_id, payment_id, grant_id, money, credits, state, created_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
	ON CONFLICT (part, account, refund_id) DO UPDATE SET credits = excluded.credits, state = excluded.state, updated_at = excluded.updated_at`

// sqlTouch relies on payments_pkey.
const sqlTouch = `UPDATE payments SET updated_at = greatest($2, updated_at + interval '1 microsecond') WHERE payment_id = $1`

// takeBack brings what each refund has taken to its target. It changes the
// payment's updated_at even where there is nothing to take: who has read older
// facts must not come after.
func (h *Webhooks) takeBack(ctx context.Context, tx *sqlx.Tx, f facts, p paymentRow, by string) error {
	targets, err := clawbacks(f.refunds, p.Credits, p.Money)
	if err != nil {
		return err
	}
	ref := p.ref()
	batch, err := ledger.Load(ctx, tx, []ledger.Ref{ref})
	if err != nil {
		return err
	}
	g, err := batch.Grant(ctx, tx, ref, *p.GrantID)
	if err != nil {
		return err
	}
	changes, err := differences(ctx, tx, ref, targets)
	if err != nil {
		return err
	}
	// Give back before taking: a failed refund makes room for its successor.
	for _, kind := range []ledger.Kind{ledger.KindRefundFailed, ledger.KindRefund} {
		for _, c := range changes {
			if (c.by < 0) != (kind == ledger.KindRefundFailed) {
				continue
			}
			op := ledger.Operation{Kind: kind, Cause: c.refund, Amount: max(c.by, -c.by), Grant: g, Actor: by, Note: f.payment, At: h.now()}
			if _, err := batch.Apply(ref, op); err != nil {
				return err
			}
		}
	}
	if err := batch.Save(ctx, tx); err != nil {
		return err
	}
	for _, c := range changes {
		state := "taken"
		if c.credits == 0 {
			state = "returned"
		}
		_, err := tx.ExecContext(ctx, sqlPutClawback, ref.Part, ref.Account, c.refund, f.payment, *p.GrantID, c.money, c.credits, state, h.now())
		if err != nil {
			return fmt.Errorf("keep the clawback of %s: %w", c.refund, err)
		}
	}
	if _, err := tx.ExecContext(ctx, sqlTouch, f.payment, h.now()); err != nil {
		return fmt.Errorf("touch payment %s: %w", f.payment, err)
	}
	return nil
}

// change is a clawback that differs from what has been taken.
type change struct {
	clawback
	by credit.Amount // to take; negative: to give back
}

func differences(ctx context.Context, tx *sqlx.Tx, ref ledger.Ref, targets []clawback) (changes []change, err error) {
	for _, t := range targets {
		var taken credit.Amount
		err := tx.GetContext(ctx, &taken, sqlReadClawback, ref.Part, ref.Account, t.refund)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("read the clawback of %s: %w", t.refund, err)
		}
		if t.credits != taken {
			changes = append(changes, change{clawback: t, by: t.credits - taken})
		}
	}
	return changes, nil
}

// sqlParked relies on payments being few that are parked.
const sqlParked = `SELECT payment_id FROM payments WHERE state = 'parked' AND updated_at <= $1 ORDER BY updated_at LIMIT $2`

// parkedWait is how long a parked payment rests before it is looked at again.
const parkedWait = time.Minute

// ParkedStep looks again at payments that nobody could map: an account may have
// been made or a price given its metadata since. One that fails rests like the
// others and stops none of them.
func (h *Webhooks) ParkedStep(ctx context.Context) (more bool, err error) {
	var parked []string
	err = h.db.Read(ctx, func(tx *sqlx.Tx) error {
		parked = nil
		return tx.SelectContext(ctx, &parked, sqlParked, h.now().Add(-parkedWait), claimMax)
	})
	if err != nil {
		return false, err
	}
	for _, payment := range parked {
		err := h.unpark(ctx, payment)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err != nil {
			h.logger.Warn("a parked payment could not be looked at; it is tried again", slog.String("payment", payment), slog.String("error", err.Error()))
		}
		if err := h.rest(ctx, payment); err != nil {
			return false, err
		}
	}
	return len(parked) == claimMax, nil
}

func (h *Webhooks) unpark(ctx context.Context, payment string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	f, err := h.read(ctx, payment)
	if err != nil || f == nil {
		return err
	}
	return h.db.InTx(ctx, func(tx *sqlx.Tx) error { return h.settle(ctx, tx, *f, "system:parked") })
}

// sqlRest relies on payments_pkey.
const sqlRest = `
	UPDATE payments SET updated_at = $2 WHERE payment_id = $1 AND state = 'parked' AND updated_at < $2`

// rest lets a payment that is still parked wait for its next look.
func (h *Webhooks) rest(ctx context.Context, payment string) error {
	return h.db.InTx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, sqlRest, payment, h.now()); err != nil {
			return fmt.Errorf("let payment %s rest: %w", payment, err)
		}
		return nil
	})
}

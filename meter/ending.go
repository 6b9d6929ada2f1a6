package meter

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/ledger"
)

// ending is work on one reservation under its account's lock.
type ending struct {
	m       *Meter
	tx      *sqlx.Tx
	batch   *ledger.Batch
	row     *reservation
	now     time.Time
	by      string
	changed bool    // there is something to save
	again   bool    // the answer is that of an earlier request
	usage   *record // to insert, or the one that stands
	fresh   bool    // usage is to be inserted
}

// whose names a reservation and who works on it.
type whose struct {
	id      string
	account string // "" finds it by its id alone
	by      string
	skip    bool // pass over an account that somebody works on
}

// errBusy says that another transaction has the account's lock.
var errBusy = &fault.Error{Kind: fault.KindConflict, Code: "account_busy", Public: "somebody works on the account"}

// sqlTryAccount takes the account's lock, as every change of the account does
// first, or nothing where somebody has it. It relies on accounts_pkey.
const sqlTryAccount = `SELECT account FROM accounts WHERE part = $1 AND account = $2 FOR UPDATE SKIP LOCKED`

// load locks the account of a reservation.
func (w whose) load(ctx context.Context, tx *sqlx.Tx) (ledger.Ref, *ledger.Batch, error) {
	ref, err := findReservation(ctx, tx, w.id, w.account)
	if err != nil {
		return ref, nil, err
	}
	if w.skip {
		var free []string
		if err := tx.SelectContext(ctx, &free, sqlTryAccount, ref.Part, ref.Account); err != nil {
			return ref, nil, fmt.Errorf("try the lock of %s: %w", ref.Account, err)
		}
		if len(free) == 0 {
			return ref, nil, errBusy
		}
	}
	batch, err := ledger.Load(ctx, tx, []ledger.Ref{ref})
	if err == nil && batch.State(ref) == nil {
		err = ledger.ErrNoAccount
	}
	return ref, batch, err
}

// end runs fn on a reservation under its account's lock, and saves what it did.
// One that is due expires first, which stands whatever fn then refuses.
func (m *Meter) end(ctx context.Context, w whose, fn func(ctx context.Context, e *ending) error) (e *ending, err error) {
	var refusal error
	err = m.settled(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		refusal = nil
		ref, batch, err := w.load(ctx, tx)
		if err != nil {
			return err
		}
		e = &ending{m: m, tx: tx, batch: batch, now: m.now().UTC().Truncate(time.Microsecond), by: w.by}
		if e.row, err = readReservation(ctx, tx, ref, w.id); err != nil {
			return err
		}
		if e.row == nil {
			return errNoReservation
		}
		if e.row.State == stateOpen && !e.row.ExpiresAt.After(e.now) {
			if err := e.expire(ctx); err != nil {
				return err
			}
		}
		if err := fn(ctx, e); err != nil {
			if fault.KindOf(err) != fault.KindConflict || !e.changed {
				return err
			}
			refusal = err // the expiry before it stands
		}
		return e.save(ctx)
	})
	if err == nil {
		err = refusal
	}
	return e, err
}

// save writes what was decided: transfers first, because the rows refer to them.
func (e *ending) save(ctx context.Context) error {
	if !e.changed {
		return nil
	}
	if err := e.batch.Save(ctx, e.tx); err != nil {
		return err
	}
	if e.fresh {
		if err := insertRecords(ctx, e.tx, []*record{e.usage}); err != nil {
			return err
		}
		if err := e.m.stage(ctx, e.tx, e.now, []*record{e.usage}); err != nil {
			return err
		}
	}
	return e.row.update(ctx, e.tx)
}

// apply posts what ends the hold and notes in the row what became of it.
func (e *ending) apply(ctx context.Context, op ledger.Operation, state string) ([]ledger.Transfer, error) {
	r := e.row
	op.Cause, op.At = r.ID, e.now
	var err error
	if op.Hold, err = e.batch.Hold(ctx, e.tx, r.ref(), r.Credits, r.GrantIDs, r.GrantAmounts); err != nil {
		return nil, err
	}
	transfers, err := e.batch.Apply(r.ref(), op)
	if err != nil {
		return nil, err
	}
	for _, t := range transfers {
		switch {
		case t.Kind == ledger.KindCapture && t.Source == ledger.BookHeld:
			r.Captured += t.Amount
		case t.Kind == ledger.KindUnhold:
			r.Returned += t.Amount
		case t.Kind == ledger.KindExpiry && t.Source == ledger.BookHeld:
			r.Expired += t.Amount
		}
	}
	last := transfers[len(transfers)-1]
	r.State, r.EndVersion, r.EndedAt, r.Balance = state, &last.Version, &e.now, last.After
	e.changed = true
	return transfers, nil
}

func (e *ending) expire(ctx context.Context) error {
	_, err := e.apply(ctx, ledger.Operation{Kind: ledger.KindUnhold, Actor: "system:expiry", Note: "the reservation expired"}, stateExpired)
	return err
}

func (e *ending) release(ctx context.Context) error {
	switch {
	case e.row.State == stateReleased:
		e.again = true
		return nil
	case !e.row.live():
		return e.row.closed()
	}
	_, err := e.apply(ctx, ledger.Operation{Kind: ledger.KindUnhold, Actor: e.by}, stateReleased)
	return err
}

// extend never brings the end forward: heartbeats may overtake each other.
func (e *ending) extend(ttl time.Duration) error {
	switch {
	case e.row.State == stateInDoubt:
		return errInDoubt
	case !e.row.live():
		return e.row.closed()
	}
	if until := e.now.Add(ttl); until.After(e.row.ExpiresAt) {
		e.row.ExpiresAt, e.changed = until, true
	}
	return nil
}

func (e *ending) doubt(reason string) error {
	switch {
	case e.row.State == stateInDoubt && e.row.Reason != reason:
		return fault.ErrIdempotency
	case e.row.State == stateInDoubt:
		e.again = true
		return nil
	case !e.row.live():
		return e.row.closed()
	}
	e.row.State, e.row.Reason, e.row.DoubtedAt, e.changed = stateInDoubt, reason, &e.now, true
	return nil
}

// capture is what a capture says.
type capture struct {
	measure
	occurredAt  time.Time
	dimensions  map[string]string // nil: those of the reservation
	fingerprint []byte
	untimely    error // refuses it, unless it stands already
}

// capture makes usage of a reservation: out of the hold, or out of the balance
// where the reservation has expired.
func (e *ending) capture(ctx context.Context, c capture) error {
	r := e.row
	if r.UsageID != nil {
		return e.captured(ctx, c)
	}
	if r.State == stateReleased {
		return r.closed()
	}
	if c.untimely != nil {
		return c.untimely
	}
	usage, credits, err := e.priced(ctx, c)
	if err != nil {
		return err
	}
	op := ledger.Operation{Kind: ledger.KindCapture, Cause: r.ID, Amount: credits, Actor: e.by, At: e.now}
	var transfers []ledger.Transfer
	if r.live() {
		transfers, err = e.apply(ctx, op, stateCaptured)
	} else {
		op.Note = "captured after the reservation expired"
		transfers, err = e.batch.Apply(r.ref(), op)
	}
	if err != nil {
		return err
	}
	last := transfers[len(transfers)-1]
	usage.TransferVersion, usage.Available, usage.Held, usage.Debt = last.Version, last.After.Available, last.After.Held, last.After.Debt
	r.UsageID, r.CaptureFingerprint = &usage.ID, c.fingerprint
	e.usage, e.fresh, e.changed = usage, true, true
	return nil
}

// captured answers a capture of what was captured before.
func (e *ending) captured(ctx context.Context, c capture) error {
	if !bytes.Equal(e.row.CaptureFingerprint, c.fingerprint) {
		return e.row.closed()
	}
	key := usage{ref: e.row.ref(), id: *e.row.UsageID}
	known, err := readRecords(ctx, e.tx, []usage{key})
	if err != nil {
		return err
	}
	if e.usage = known[usageKey{key.ref, key.id}]; e.usage == nil {
		return fault.ErrBroken.With(fmt.Errorf("reservation %s of %s has no usage %s", e.row.ID, e.row.Account, key.id))
	}
	if e.usage.lost != nil {
		return e.usage.lost
	}
	e.again = true
	return nil
}

// priced makes the usage of a capture, at the rates that were in force when it
// was reserved: they are what the work was begun at.
func (e *ending) priced(ctx context.Context, c capture) (*record, credit.Amount, error) {
	r := e.row
	d, err := readDefinitionAt(ctx, e.tx, r.Meter, r.RateVersion)
	if err != nil {
		return nil, 0, err
	}
	encoded, dimensions := r.Dimensions, c.dimensions
	if dimensions != nil {
		encoded, err = encodeTexts(dimensions)
	} else {
		err = json.Unmarshal([]byte(encoded), &dimensions)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("dimensions of reservation %s: %w", r.ID, err)
	}
	quantity, units, credits, err := d.price(c.measure, dimensions)
	if err != nil {
		return nil, 0, err
	}
	u := &record{
		Part: r.Part, Account: r.Account, ID: usagePrefix + r.ID, Meter: r.Meter, Quantity: quantity, Credits: credits, RateVersion: r.RateVersion,
		Dimensions: encoded, OccurredAt: c.occurredAt, RecordedAt: e.now, Fingerprint: c.fingerprint,
	}
	if d.EventName != nil {
		u.Staged = units
	}
	return u, credits, nil
}

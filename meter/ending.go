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

// ending is work on one reservation.
type ending struct {
	whose
	on ledger.Ref
	fn func(ctx context.Context, e *ending) error

	*group
	row     *reservation // as it stands in the group, and at the end as it is to be answered
	again   bool         // the answer is that of an earlier request
	usage   *record      // what the capture made, or the one that stands
	refused error
}

// whose names a reservation and who works on it.
type whose struct {
	id      string
	account string // "" finds it by its id alone
	by      string
	simple  bool // the work reads nothing but account and reservation
}

// end runs fn on a reservation in its account's lane. One that is due expires
// first, which stands whatever fn then refuses.
func (m *Meter) end(ctx context.Context, w whose, fn func(ctx context.Context, e *ending) error) (*ending, error) {
	e := &ending{whose: w, on: ledger.RefOf(w.account), fn: fn}
	if w.account == "" {
		err := m.db.Read(ctx, func(tx *sqlx.Tx) (err error) {
			e.on, err = findReservation(ctx, tx, w.id, "")
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if err := m.do(ctx, e); err != nil {
		return nil, err
	}
	return e, e.refused
}

func (e *ending) ref() ledger.Ref { return e.on }

func (e *ending) needs(n *needs) { n.reservations = append(n.reservations, usageKey{e.on, e.id}) }

func (e *ending) decide(ctx context.Context, g *group) error {
	e.group, e.row, e.again, e.usage, e.refused = g, nil, false, nil, nil
	err := e.run(ctx)
	if err != nil && refusal(err) {
		e.refused, err = err, nil
	}
	if e.row != nil {
		stands := *e.row // others of the group may go on with the row
		e.row = &stands
	}
	return err
}

func (e *ending) run(ctx context.Context) error {
	if e.batch.State(e.on) == nil {
		return ledger.ErrNoAccount
	}
	if e.row = e.reservations[usageKey{e.on, e.id}]; e.row == nil {
		return errNoReservation
	}
	if e.row.State == stateOpen && !e.row.ExpiresAt.After(e.now) {
		if err := e.expire(ctx); err != nil {
			return err
		}
	}
	return e.fn(ctx, e)
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
	e.changed[r] = true
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
		e.row.ExpiresAt, e.changed[e.row] = until, true
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
	e.row.State, e.row.Reason, e.row.DoubtedAt, e.changed[e.row] = stateInDoubt, reason, &e.now, true
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
	e.usage, e.changed[r] = usage, true
	e.known[usageKey{e.on, usage.ID}] = usage
	e.recorded = append(e.recorded, usage)
	return nil
}

// captured answers a capture of what was captured before.
func (e *ending) captured(ctx context.Context, c capture) error {
	if !bytes.Equal(e.row.CaptureFingerprint, c.fingerprint) {
		return e.row.closed()
	}
	key := usageKey{e.on, *e.row.UsageID}
	if e.usage = e.known[key]; e.usage == nil {
		known, err := readRecords(ctx, e.tx, []usageKey{key})
		if err != nil {
			return err
		}
		e.usage = known[key]
	}
	if e.usage == nil {
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
	d, err := e.definition(ctx, r)
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
	if d.bound() {
		u.Staged = units
	}
	return u, credits, nil
}

// definition gives the meter of a reservation at the rates that it was made at.
func (g *group) definition(ctx context.Context, r *reservation) (*definition, error) {
	current, _ := g.m.catalog.current(map[string]int{r.Meter: r.MeterRevision})
	if d := current[r.Meter]; d != nil && d.RateVersion == r.RateVersion {
		return d, nil
	}
	d, err := readDefinitionAt(ctx, g.tx, r.Meter, r.RateVersion)
	if err == nil && d.Latest == d.RateVersion {
		g.m.catalog.put(map[string]*definition{d.Meter: d})
	}
	return d, err
}

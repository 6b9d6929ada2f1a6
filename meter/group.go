package meter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/fault"
	"tallystick/ledger"
)

// work is what somebody wants done to one account. It is decided in a group with
// others, in the order of arrival, and is done when the group has committed.
type work interface {
	ref() ledger.Ref
	// needs says what is to be read before anything is decided.
	needs(*needs)
	// decide notes its outcome in the work itself, refusals too. It may run again
	// with another group. An error is the whole group's.
	decide(ctx context.Context, g *group) error
}

// needs is what the works of a group have to know.
type needs struct {
	usages       []usageKey
	meters       map[string]bool
	reservations []usageKey // by reservation id
}

// usageKey is the key of a usage, or of a reservation.
type usageKey struct {
	ref ledger.Ref
	id  string
}

// group is works under way in one transaction, which holds the locks of their
// accounts.
type group struct {
	m   *Meter
	tx  *sqlx.Tx // nil on the shortcut
	now time.Time

	batch        *ledger.Batch
	known        map[usageKey]*record // usages recorded before, and in this group
	meters       map[string]*definition
	reservations map[usageKey]*reservation // as they stand in this group

	recorded []*record             // usages to insert
	made     []*reservation        // reservations to insert
	changed  map[*reservation]bool // reservations to update
}

// transact reads, decides works in their order and writes what came of them.
func (m *Meter) transact(ctx context.Context, tx *sqlx.Tx, works []work) (*group, error) {
	g := m.group()
	g.tx = tx
	if err := g.read(ctx, works); err != nil {
		return nil, err
	}
	if err := g.decide(ctx, works); err != nil {
		return nil, err
	}
	return g, g.write(ctx)
}

func (m *Meter) group() *group {
	return &group{m: m, now: m.now().UTC().Truncate(time.Microsecond), changed: map[*reservation]bool{}}
}

func (g *group) decide(ctx context.Context, works []work) error {
	for _, w := range works {
		if err := w.decide(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// read locks the accounts first: whoever worked on them a moment ago has
// committed, and what is read afterwards stays so.
func (g *group) read(ctx context.Context, works []work) (err error) {
	n := needs{meters: map[string]bool{}}
	refs := make([]ledger.Ref, len(works))
	for i, w := range works {
		refs[i] = w.ref()
		w.needs(&n)
	}
	if g.batch, err = ledger.Load(ctx, g.tx, refs); err != nil {
		return err
	}
	if len(n.usages)+len(n.meters) > 0 {
		if g.known, g.meters, err = g.m.lookUpUsages(ctx, g.tx, n.usages, slices.Collect(maps.Keys(n.meters))); err != nil {
			return err
		}
	} else {
		g.known = map[usageKey]*record{}
	}
	if g.reservations, err = readReservations(ctx, g.tx, n.reservations); err != nil {
		return err
	}
	held := map[ledger.Ref][]string{}
	for _, r := range g.reservations {
		if r.live() {
			held[r.ref()] = append(held[r.ref()], r.GrantIDs...)
		}
	}
	return g.batch.ReadHeld(ctx, g.tx, held)
}

// write writes transfers first, because the other rows refer to them.
func (g *group) write(ctx context.Context) error {
	if len(g.recorded) > 0 || !g.batch.Empty() {
		var same bool
		if err := g.tx.GetContext(ctx, &same, sqlSave, g.columns()...); err != nil {
			return fmt.Errorf("write transfers and usage: %w", err)
		}
		if !same {
			return fault.ErrBroken.With(errors.New("accounts have changed behind their locks"))
		}
	}
	if err := g.batch.SaveNewGrants(ctx, g.tx); err != nil {
		return err
	}
	if err := g.m.stage(ctx, g.tx, g.now, g.recorded); err != nil {
		return err
	}
	if err := insertReservations(ctx, g.tx, g.made); err != nil {
		return err
	}
	return updateReservations(ctx, g.tx, slices.Collect(maps.Keys(g.changed)))
}

// refusal tells whether an error is about one work alone.
func refusal(err error) bool {
	kind := fault.KindOf(err)
	return kind != fault.KindInternal && kind != fault.KindUnavailable
}

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
	"tallystick/internal/pg"
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

	recalled bool // made of what its lane remembers; the statement that writes compares

	held         []usageKey // reservations that the works are about
	batch        *ledger.Batch
	known        map[usageKey]*record // usages recorded before, and in this group
	meters       map[string]*definition
	reservations map[usageKey]*reservation // as they stand in this group
	stood        map[*reservation]standing // those that were read, as they were

	recorded []*record             // usages to insert
	refused  []usageKey            // usages that were refused as new ones
	made     []*reservation        // reservations to insert
	changed  map[*reservation]bool // reservations to update
}

// transact reads, unless it was recalled, decides works in their order and writes
// what came of them. False: it was recalled, the accounts are not as they were
// known, and nothing was written.
func (g *group) transact(ctx context.Context, tx *sqlx.Tx, works []work) (same bool, err error) {
	g.tx = tx
	if !g.recalled {
		if err := g.read(ctx, works); err != nil {
			return false, err
		}
	}
	if err := g.readHeld(ctx); err != nil {
		return false, err
	}
	err = g.decide(ctx, works)
	if g.recalled && errors.Is(err, fault.ErrBroken) {
		return false, nil // what does not fit together was not read together
	}
	if err != nil {
		return false, err
	}
	return g.write(ctx)
}

// shortcut decides a recalled group and compares and writes by one statement,
// which is a transaction of its own. An error of unknown outcome is as that of a
// commit.
func (g *group) shortcut(ctx context.Context, works []work) (same bool, err error) {
	if err := g.decide(ctx, works); err != nil {
		return false, err
	}
	err = g.m.keyed.InStatement(ctx, &same, sqlSave, g.columns()...)
	if pg.IsCode(err, codeMistaken) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write transfers and usage: %w", err)
	}
	return same, nil
}

// lone tells whether the group takes nothing but one statement: it is about no
// reservation, and no usage of it is staged for Stripe.
func (g *group) lone() bool {
	if len(g.held) > 0 {
		return false
	}
	for _, d := range g.meters {
		if d.bound() {
			return false
		}
	}
	return true
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
	g.held = n.reservations
	return nil
}

// standing is what others may have changed of a reservation without a transfer.
type standing struct {
	state     string
	expiresAt time.Time
}

// readHeld reads the reservations that works are about, and the grants they came
// out of. Behind the accounts' locks they stay so; without, what ends one changes
// its account, and the rest is compared when it is written.
func (g *group) readHeld(ctx context.Context) (err error) {
	if g.reservations, err = readReservations(ctx, g.tx, g.held); err != nil {
		return err
	}
	g.stood = make(map[*reservation]standing, len(g.reservations))
	held := map[ledger.Ref][]string{}
	for _, r := range g.reservations {
		g.stood[r] = standing{r.State, r.ExpiresAt}
		if r.live() {
			held[r.ref()] = append(held[r.ref()], r.GrantIDs...)
		}
	}
	return g.batch.ReadHeld(ctx, g.tx, held)
}

// write writes transfers first, because the other rows refer to them.
func (g *group) write(ctx context.Context) (same bool, err error) {
	if g.recalled || len(g.recorded) > 0 || !g.batch.Empty() {
		err := g.tx.GetContext(ctx, &same, sqlSave, g.columns()...)
		if err != nil {
			return false, fmt.Errorf("write transfers and usage: %w", err)
		}
		if !same && !g.recalled {
			err = fault.ErrBroken.With(errors.New("accounts have changed behind their locks"))
		}
		if !same {
			return false, err
		}
	}
	if err := g.batch.SaveNewGrants(ctx, g.tx); err != nil {
		return false, err
	}
	if err := g.m.stage(ctx, g.tx, g.now, g.recorded); err != nil {
		return false, err
	}
	if err := insertReservations(ctx, g.tx, g.made); err != nil {
		return false, err
	}
	return true, g.updateReservations(ctx, g.tx, slices.Collect(maps.Keys(g.changed)))
}

// refusal tells whether an error is about one work alone.
func refusal(err error) bool {
	kind := fault.KindOf(err)
	return kind != fault.KindInternal && kind != fault.KindUnavailable
}

package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
)

// Hold is what a reservation holds, for the operation that ends it.
type Hold struct {
	Credits credit.Amount
	Parts   []Part // in the order of spending; what they lack came out of the overdraft
}

// Part is what a hold took out of one grant.
type Part struct {
	Grant   *Grant
	Credits credit.Amount
	Clawed  credit.Amount // what refunds have taken back for the grant
}

// room is how much can go back into the grant. What a refund took back for it
// stays free: should the refund fail, that much comes back.
func (p Part) room() credit.Amount {
	return max(p.Grant.Credits-p.Grant.Remaining-p.Clawed, 0)
}

// rest is what a hold still has when the first so many credits of it are taken,
// in the order of spending: parts of grants, and what came out of the overdraft.
func (h *Hold) rest(taken credit.Amount) (parts []Part, bare credit.Amount) {
	bare = h.Credits
	for _, p := range h.Parts {
		bare -= p.Credits
		use := min(taken, p.Credits)
		taken -= use
		if p.Credits -= use; p.Credits > 0 {
			parts = append(parts, p)
		}
	}
	return parts, bare - taken
}

// checkHold refuses an ending that the books contradict.
func checkHold(s *State, op Operation) error {
	if op.Hold == nil {
		if op.Kind == KindUnhold {
			return fault.ErrBroken.With(fmt.Errorf("release of %s without its hold", op.Cause))
		}
		return nil
	}
	_, bare := op.Hold.rest(0)
	if op.Hold.Credits < 0 || bare < 0 || op.Hold.Credits > s.Held {
		return fault.ErrBroken.With(fmt.Errorf("%s holds %s, its grants leave %s and the account holds %s", op.Cause, op.Hold.Credits, bare, s.Held))
	}
	return nil
}

// release ends a hold without usage.
func (d *decision) release() {
	d.giveBack(d.op.Hold.rest(0))
}

// capture ends a hold, if there is one, with usage that has happened: it is
// never refused for want of credits. What the hold has too much goes back
// first, so that the last transfer is the capture's.
func (d *decision) capture() {
	held := credit.Amount(0)
	if d.op.Hold != nil {
		held = min(d.op.Amount, d.op.Hold.Credits)
		if d.op.Hold.Credits > held {
			d.giveBack(d.op.Hold.rest(held))
		}
	}
	if held > 0 {
		d.post(d.draft(KindCapture, held, BookHeld, BookUsage))
	}
	covered := min(d.op.Amount-held, max(d.s.Available+d.s.Overdraft, 0))
	if covered > 0 || d.op.Amount == 0 {
		t := d.draft(KindCapture, covered, BookAvailable, BookUsage)
		d.consume(&t, d.s.Grants, covered)
		d.post(t)
	}
	if missing := d.op.Amount - held - covered; missing > 0 {
		d.post(d.draft(KindCapture, missing, BookDebt, BookUsage))
	}
}

// giveBack returns held credits to the grants they came out of. Those of grants
// that are due expire straight out of the hold. As with new credits, the rest
// pays debt first and then what is overdrawn. What finds no room (it came out of
// the overdraft, which new credits have covered since, or a refund took the
// grant back) becomes a grant of its own, which does not expire.
func (d *decision) giveBack(parts []Part, bare credit.Amount) {
	alive, amount := make([]Part, 0, len(parts)), bare
	for _, p := range parts {
		if !p.Grant.due(d.op.At) {
			alive, amount = append(alive, p), amount+p.Credits
			continue
		}
		t := d.draft(KindExpiry, p.Credits, BookHeld, BookExpired)
		t.Actor, t.Note = "system:expiry", "grant "+p.Grant.ID
		d.post(t)
	}
	if amount == 0 && len(alive) < len(parts) {
		return
	}
	repaid := min(d.s.Debt, amount)
	overdrawn := min(max(-d.s.Available, 0), amount-repaid)
	t := d.draft(KindUnhold, amount, BookHeld, BookAvailable)
	covered := min(overdrawn, bare)
	homeless, overdrawn := bare-covered, overdrawn-covered
	var filled []*Grant
	for _, p := range alive {
		covered := min(overdrawn, p.Credits)
		overdrawn -= covered
		back := min(p.Credits-covered, p.room())
		homeless += p.Credits - covered - back
		if back > 0 {
			d.change(&t, p.Grant, back)
			filled = append(filled, p.Grant)
		}
	}
	if homeless > 0 {
		g := d.home(homeless)
		d.change(&t, g, homeless)
		filled = append(filled, g)
	}
	d.post(t)
	if repaid > 0 {
		t := d.draft(KindDebtRepaid, repaid, BookAvailable, BookDebt)
		d.consume(&t, filled, repaid)
		d.post(t)
	}
}

// home makes a grant for returned credits that have no other.
func (d *decision) home(amount credit.Amount) *Grant {
	id := "reservation:" + d.op.Cause
	fingerprint := sha256.Sum256([]byte(id))
	g := &Grant{
		ID: id, Kind: KindGrant, Credits: amount, Reason: "returned by a reservation", Fingerprint: fingerprint[:],
		TransferVersion: d.s.Version + 1, CreatedAt: d.op.At,
	}
	d.s.Made = append(d.s.Made, g)
	return g
}

// sqlHeldGrants relies on grants_pkey, on the index clawbacks_by_grant and on the
// accounts' locks.
const sqlHeldGrants = `
	SELECT g.part, g.account, g.grant_id, g.kind, g.credits, g.remaining, g.priority, g.expires_at, g.reason, g.payment, g.fingerprint,
		g.transfer_version, g.created_at,
		coalesce((SELECT sum(c.credits) FROM clawbacks c WHERE c.part = g.part AND c.account = g.account AND c.grant_id = g.grant_id), 0) AS clawed
	FROM unnest($1::smallint[], $2::text[], $3::text[]) AS k (part, account, grant_id)
	JOIN grants g ON g.part = k.part AND g.account = k.account AND g.grant_id = k.grant_id`

// ReadHeld reads the grants that holds of locked accounts came out of, with what
// refunds took back of them, for Hold.
func (b *Batch) ReadHeld(ctx context.Context, tx *sqlx.Tx, held map[Ref][]string) error {
	var refs []Ref
	var ids pg.Texts
	asked := map[grantKey]bool{}
	for ref, grants := range held {
		for _, id := range grants {
			if key := (grantKey{ref, id}); !asked[key] && !b.hasClawed(key) {
				asked[key] = true
				refs, ids = append(refs, ref), append(ids, id)
			}
		}
	}
	if len(ids) == 0 {
		return nil
	}
	parts, accounts := columns(refs)
	var rows []struct {
		Part    int16  `db:"part"`
		Account string `db:"account"`
		Grant
		Clawed credit.Amount `db:"clawed"`
	}
	if err := tx.SelectContext(ctx, &rows, sqlHeldGrants, parts, accounts, ids); err != nil {
		return fmt.Errorf("read grants that holds came out of: %w", err)
	}
	for i := range rows {
		r := &rows[i]
		ref := Ref{Part: r.Part, Account: r.Account}
		g := b.byID[grantKey{ref, r.ID}]
		if g == nil {
			g = &r.Grant
			b.adopt(ref, g)
		}
		b.clawed[g] = r.Clawed
	}
	return nil
}

func (b *Batch) hasClawed(key grantKey) bool {
	_, ok := b.clawed[b.byID[key]]
	return ok
}

// Hold gives what a reservation of a locked account holds, as an Operation needs
// it: so many credits, out of these grants. Those that ReadHeld has not read yet
// are read.
func (b *Batch) Hold(ctx context.Context, tx *sqlx.Tx, ref Ref, credits credit.Amount, grantIDs []string, amounts []int64) (*Hold, error) {
	if err := b.ReadHeld(ctx, tx, map[Ref][]string{ref: grantIDs}); err != nil {
		return nil, err
	}
	h := &Hold{Credits: credits}
	for i, id := range grantIDs {
		g := b.byID[grantKey{ref, id}]
		if g == nil {
			return nil, fault.ErrBroken.With(fmt.Errorf("a hold of %s came out of grant %s, which does not exist", ref.Account, id))
		}
		h.Parts = append(h.Parts, Part{Grant: g, Credits: credit.Amount(amounts[i]), Clawed: b.clawed[g]})
	}
	return h, nil
}

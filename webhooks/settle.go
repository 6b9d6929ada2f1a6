package webhooks

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/pg"
	"tallystick/ledger"
)

// States of a payment.
const (
	stateGranted = "granted"
	stateParked  = "parked"
)

// paymentRow is what we know of a payment.
type paymentRow struct {
	ID      string        `db:"payment_id"`
	State   string        `db:"state"`
	Part    *int16        `db:"part"`
	Account *string       `db:"account"`
	GrantID *string       `db:"grant_id"`
	Credits credit.Amount `db:"credits"`
	Money   int64         `db:"money"`
	Reason  string        `db:"reason"`
	Review  string        `db:"review"`

	UpdatedAt time.Time `db:"updated_at"` // rises with every change, so that it tells one state from the next
}

func (p paymentRow) ref() ledger.Ref { return ledger.Ref{Part: *p.Part, Account: *p.Account} }

// sqlSeen relies on payments_pkey.
const sqlSeen = `SELECT state, updated_at FROM payments WHERE payment_id = $1`

// seen tells in which state our record of a payment is, before Stripe is asked.
func (h *Webhooks) seen(ctx context.Context, payment string) (k known, err error) {
	err = h.db.Read(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &k, sqlSeen, payment) })
	if errors.Is(err, sql.ErrNoRows) {
		return known{}, nil
	}
	return k, err
}

// errOvertaken makes the worker come back and ask Stripe again: what it has read
// may be older than what another worker has written meanwhile.
var errOvertaken = &fault.Error{Kind: fault.KindUnavailable, Code: "overtaken", Public: "the payment was changed by another worker at the same time", RetryAfter: time.Second}

// matter is a payment that is to be settled.
type matter struct {
	lead   string // "" leads nowhere
	known  bool   // it matters only when there is a record of the payment
	facts  *facts // nil: its events change nothing
	events []eventRow
	by     string // the actor in the journal
	note   string
	ask    error // why Stripe could not be asked
	err    error // why it was not settled; the others are not concerned

	row     paymentRow
	ref     ledger.Ref
	problem string // why it is parked
	granted bool   // just now
	changes []change
}

// settlement is matters under way in one transaction.
type settlement struct {
	h     *Webhooks
	tx    *sqlx.Tx
	now   time.Time
	batch *ledger.Batch
}

// settle brings our records of payments to what Stripe says: it grants the credits
// where that has not been done, and takes back or returns what refunds, disputes
// and credit notes call for. It may be called any number of times; facts that were
// read before our record last changed are refused. Its error is everybody's; a
// matter that was overtaken only says so.
func (h *Webhooks) settle(ctx context.Context, tx *sqlx.Tx, matters []*matter) error {
	s := &settlement{h: h, tx: tx, now: h.now().UTC().Truncate(time.Microsecond)}
	open, err := s.lock(ctx, matters)
	if err != nil || len(open) == 0 {
		return err
	}
	if err := s.findOwners(ctx, open); err != nil {
		return err
	}
	if err := s.load(ctx, open); err != nil {
		return err
	}
	for _, m := range open {
		if m.err == nil && m.facts.unpaid == "" {
			if err := s.decide(ctx, m); err != nil {
				return err
			}
		}
	}
	if s.batch != nil {
		if err := s.batch.Save(ctx, tx); err != nil {
			return err
		}
	}
	return s.write(ctx, tx, open)
}

// sqlLockPayments relies on payments_pkey; rows are locked in the order of the key.
const sqlLockPayments = `
	SELECT payment_id, state, part, account, grant_id, credits, money, reason, review, updated_at
	FROM payments WHERE payment_id = ANY ($1::text[])
	ORDER BY payment_id
	FOR UPDATE`

// lock locks the records that stand and gives the matters that have something to do.
func (s *settlement) lock(ctx context.Context, matters []*matter) (open []*matter, err error) {
	var payments pg.Texts
	for _, m := range matters {
		if m.facts != nil {
			payments = append(payments, m.facts.payment)
		}
	}
	if len(payments) == 0 {
		return nil, nil
	}
	var rows []paymentRow
	if err := s.tx.SelectContext(ctx, &rows, sqlLockPayments, payments); err != nil {
		return nil, fmt.Errorf("lock payments: %w", err)
	}
	standing := make(map[string]paymentRow, len(rows))
	for _, row := range rows {
		standing[row.ID] = row
	}
	for _, m := range matters {
		m.err, m.problem, m.granted, m.changes, m.row = nil, "", false, nil, paymentRow{}
		if m.facts == nil {
			continue
		}
		f := m.facts
		m.row = standing[f.payment]
		quiet := len(f.returns) == 0 && len(f.disputes) == 0 && f.unpaid == "" && m.row.Review == ""
		switch {
		case m.row.State == stateGranted && quiet:
		case !m.row.UpdatedAt.Equal(f.seen.UpdatedAt):
			m.err = errOvertaken
		case f.unpaid != "" && m.row.State != stateGranted:
		default:
			open = append(open, m)
		}
	}
	slices.SortFunc(open, func(a, b *matter) int { return cmp.Compare(a.facts.payment, b.facts.payment) })
	return open, nil
}

// findOwners finds whom the credits are for.
func (s *settlement) findOwners(ctx context.Context, matters []*matter) error {
	var customers []string
	for _, m := range matters {
		if m.row.State != stateGranted && m.facts.account == "" && m.facts.customer != "" {
			customers = append(customers, m.facts.customer)
		}
	}
	owners, err := ledger.AccountsOfCustomers(ctx, s.tx, customers)
	if err != nil {
		return err
	}
	for _, m := range matters {
		owner, tied := owners[m.facts.customer]
		switch {
		case m.row.State == stateGranted:
			m.ref = m.row.ref()
		case m.facts.account != "":
			m.ref = ledger.RefOf(m.facts.account)
		case m.facts.customer == "":
			m.problem = "nothing says which account it is for: set client_reference_id or metadata.account, or tie the Stripe customer to an account"
		case !tied:
			m.problem = fmt.Sprintf("the Stripe customer %s is tied to no account", m.facts.customer)
		default:
			m.ref = owner
		}
	}
	return nil
}

// sqlStanding relies on grants_pkey.
const sqlStanding = `
	SELECT g.grant_id FROM grants g
	JOIN unnest($1::smallint[], $2::text[], $3::text[]) AS n (part, account, grant_id)
		ON g.part = n.part AND g.account = n.account AND g.grant_id = n.grant_id`

func grantID(payment string) string { return "purchase:" + payment }

// load locks the accounts. Behind the lock a grant shows that another worker has
// made in the meantime.
func (s *settlement) load(ctx context.Context, matters []*matter) error {
	var refs []ledger.Ref
	var parts pg.Smallints
	var accounts, ids pg.Texts
	for _, m := range matters {
		if m.problem != "" || m.facts.unpaid != "" {
			continue
		}
		refs = append(refs, m.ref)
		if m.row.State != stateGranted {
			parts, accounts, ids = append(parts, m.ref.Part), append(accounts, m.ref.Account), append(ids, grantID(m.facts.payment))
		}
	}
	if len(refs) == 0 {
		return nil
	}
	var err error
	if s.batch, err = ledger.Load(ctx, s.tx, refs); err != nil || len(ids) == 0 {
		return err
	}
	var standing []string
	if err := s.tx.SelectContext(ctx, &standing, sqlStanding, parts, accounts, ids); err != nil {
		return fmt.Errorf("look for purchase grants: %w", err)
	}
	for _, m := range matters {
		if m.row.State != stateGranted && slices.Contains(standing, grantID(m.facts.payment)) {
			m.err = errOvertaken
		}
	}
	return nil
}

// decide grants a payment, or parks it, and brings what its returns have taken to
// their targets.
func (s *settlement) decide(ctx context.Context, m *matter) error {
	if m.row.State != stateGranted {
		if m.problem == "" && s.batch.State(m.ref) == nil {
			m.problem = fmt.Sprintf("it names the account %q, which does not exist", m.ref.Account)
		}
		if m.facts.problem != "" {
			m.problem = m.facts.problem
		}
		if m.problem != "" {
			return nil
		}
		if err := s.grant(m); err != nil {
			return err
		}
	}
	if len(m.facts.returns) == 0 {
		return nil
	}
	return s.takeBack(ctx, m)
}

func (s *settlement) grant(m *matter) error {
	f, id := m.facts, grantID(m.facts.payment)
	fingerprint := sha256.Sum256([]byte(id))
	g := &ledger.Grant{
		ID: id, Kind: ledger.KindPurchase, Credits: f.offer.credits, Priority: f.offer.priority, Reason: "purchase", Payment: &f.payment,
		Fingerprint: fingerprint[:], CreatedAt: s.now,
	}
	if f.offer.expireDays > 0 {
		at := s.now.Add(time.Duration(f.offer.expireDays) * 24 * time.Hour)
		g.ExpiresAt = &at
	}
	op := ledger.Operation{Kind: ledger.KindPurchase, Cause: id, Amount: g.Credits, Grant: g, Actor: m.by, Note: m.note, At: s.now}
	if _, err := s.batch.Apply(m.ref, op); err != nil {
		return err
	}
	m.granted = true
	m.row.GrantID, m.row.Credits, m.row.Money = &id, g.Credits, f.money
	return nil
}

// change is a clawback that differs from what has been taken.
type change struct {
	clawback
	by credit.Amount // to take; negative: to give back
}

func (s *settlement) takeBack(ctx context.Context, m *matter) error {
	targets, err := clawbacks(m.facts.returns, m.row.Credits, m.row.Money)
	if err != nil {
		return err
	}
	if m.changes, err = s.differences(ctx, m.ref, targets); err != nil || len(m.changes) == 0 {
		return err
	}
	g, err := s.batch.Grant(ctx, s.tx, m.ref, *m.row.GrantID)
	if err != nil {
		return err
	}
	// Give back before taking: a failed refund makes room for its successor.
	for _, give := range []bool{true, false} {
		for _, c := range m.changes {
			if (c.by < 0) != give {
				continue
			}
			kind := taking(c.kind)
			if give {
				kind = giving(c.kind)
			}
			op := ledger.Operation{Kind: kind, Cause: c.id, Amount: max(c.by, -c.by), Grant: g, Actor: m.by, Note: m.facts.payment, At: s.now}
			if _, err := s.batch.Apply(m.ref, op); err != nil {
				return err
			}
		}
	}
	return nil
}

// sqlReadClawbacks relies on clawbacks_pkey and on the account's lock.
const sqlReadClawbacks = `SELECT refund_id, credits FROM clawbacks WHERE part = $1 AND account = $2 AND refund_id = ANY ($3::text[])`

func (s *settlement) differences(ctx context.Context, ref ledger.Ref, targets []clawback) (changes []change, err error) {
	ids := make(pg.Texts, len(targets))
	for i, t := range targets {
		ids[i] = t.id
	}
	var rows []struct {
		ID      string        `db:"refund_id"`
		Credits credit.Amount `db:"credits"`
	}
	if err := s.tx.SelectContext(ctx, &rows, sqlReadClawbacks, ref.Part, ref.Account, ids); err != nil {
		return nil, fmt.Errorf("read clawbacks of %s: %w", ref.Account, err)
	}
	taken := make(map[string]credit.Amount, len(rows))
	for _, r := range rows {
		taken[r.ID] = r.Credits
	}
	for _, t := range targets {
		if t.credits != taken[t.id] {
			changes = append(changes, change{clawback: t, by: t.credits - taken[t.id]})
		}
	}
	return changes, nil
}

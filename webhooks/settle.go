package webhooks

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
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
	return s.write(ctx, open)
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

// write keeps what was decided, in the order of the payments' keys.
func (s *settlement) write(ctx context.Context, matters []*matter) error {
	matters = slices.DeleteFunc(slices.Clone(matters), func(m *matter) bool { return m.err != nil })
	if err := s.putPayments(ctx, matters); err != nil {
		return err
	}
	if err := s.touch(ctx, matters); err != nil {
		return err
	}
	for _, m := range matters {
		if err := s.putClawbacks(ctx, m); err != nil {
			return err
		}
		if err := s.putDisputes(ctx, m); err != nil {
			return err
		}
		s.tell(m)
	}
	return nil
}

// sqlPutPayments relies on payments_pkey for W3: of two workers one finds the row
// granted, changes nothing, and is rolled back. A granted payment stays granted.
const sqlPutPayments = `
	INSERT INTO payments AS p (payment_id, session_id, customer, part, account, grant_id, credits, money, currency, livemode, state, reason, created_at, updated_at)
	SELECT payment_id, session_id, customer, nullif(part, -1::smallint), nullif(account, ''), nullif(grant_id, ''), credits, money, currency, livemode::boolean,
		state, reason, created_at, $13
	FROM unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::text[], $10::text[], $11::text[],
		$12::timestamptz[], $14::text[])
		AS n (payment_id, session_id, customer, part, account, grant_id, credits, money, currency, livemode, reason, created_at, state)
	ON CONFLICT (payment_id) DO UPDATE
	SET part = excluded.part, account = excluded.account, grant_id = excluded.grant_id, credits = excluded.credits, state = excluded.state, reason = excluded.reason,
		updated_at = greatest(excluded.updated_at, p.updated_at + interval '1 microsecond')
	WHERE p.state = 'parked'`

func (s *settlement) putPayments(ctx context.Context, matters []*matter) error {
	var ids, sessions, customers, accounts, grants, currencies, modes, reasons, states pg.Texts
	var parts pg.Smallints
	var credits, money pg.Bigints
	var times pg.Times
	for _, m := range matters {
		f := m.facts
		if f.unpaid != "" || !m.granted && m.problem == "" {
			continue
		}
		ids, sessions, customers, currencies = append(ids, f.payment), append(sessions, f.session), append(customers, f.customer), append(currencies, f.currency)
		modes, times = append(modes, strconv.FormatBool(f.livemode)), append(times, f.createdAt)
		credits, money, reasons = append(credits, int64(f.offer.credits)), append(money, f.money), append(reasons, m.problem)
		if m.granted {
			states, parts, accounts, grants = append(states, stateGranted), append(parts, m.ref.Part), append(accounts, m.ref.Account), append(grants, *m.row.GrantID)
		} else {
			states, parts, accounts, grants = append(states, stateParked), append(parts, -1), append(accounts, ""), append(grants, "")
		}
	}
	if len(ids) == 0 {
		return nil
	}
	result, err := s.tx.ExecContext(ctx, sqlPutPayments, ids, sessions, customers, parts, accounts, grants, credits, money, currencies, modes, reasons,
		times, s.now, states)
	if err != nil {
		return fmt.Errorf("keep payments: %w", err)
	}
	if n, err := result.RowsAffected(); err != nil || int(n) != len(ids) {
		return errOvertaken
	}
	return nil
}

// sqlTouch relies on payments_pkey.
const sqlTouch = `
	UPDATE payments p SET updated_at = greatest($2, p.updated_at + interval '1 microsecond'), review = n.review
	FROM unnest($1::text[], $3::text[]) AS n (payment_id, review)
	WHERE p.payment_id = n.payment_id`

// touch changes updated_at even where there is nothing to take: who has read older
// facts must not come after. A payment that was granted and has failed since is
// marked for a person to look at; one that was and is paid again is not any more.
func (s *settlement) touch(ctx context.Context, matters []*matter) error {
	var ids, reviews pg.Texts
	for _, m := range matters {
		if m.problem == "" {
			ids, reviews = append(ids, m.facts.payment), append(reviews, m.facts.unpaid)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if _, err := s.tx.ExecContext(ctx, sqlTouch, ids, s.now, reviews); err != nil {
		return fmt.Errorf("touch payments: %w", err)
	}
	return nil
}

// sqlPutClawback relies on clawbacks_pkey.
const sqlPutClawback = `
	INSERT INTO clawbacks (part, account, refund_id, kind, payment_id, grant_id, money, credits, state, created_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)
	ON CONFLICT (part, account, refund_id) DO UPDATE
	SET money = excluded.money, credits = excluded.credits, state = excluded.state, updated_at = excluded.updated_at`

func (s *settlement) putClawbacks(ctx context.Context, m *matter) error {
	for _, c := range m.changes {
		state := "taken"
		if c.credits == 0 {
			state = "returned"
		}
		_, err := s.tx.ExecContext(ctx, sqlPutClawback, m.ref.Part, m.ref.Account, c.id, c.kind, m.facts.payment, *m.row.GrantID, c.money, c.credits, state, s.now)
		if err != nil {
			return fmt.Errorf("keep the clawback of %s: %w", c.id, err)
		}
	}
	return nil
}

// sqlPutDispute relies on disputes_pkey.
const sqlPutDispute = `
	INSERT INTO disputes AS d (dispute_id, payment_id, part, account, status, money, withdrawn, currency, opened_at, closed_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, CASE WHEN $10::boolean THEN NULL ELSE $11::timestamptz END, $11)
	ON CONFLICT (dispute_id) DO UPDATE
	SET part = excluded.part, account = excluded.account, status = excluded.status, money = excluded.money, withdrawn = excluded.withdrawn,
		closed_at = CASE WHEN $10::boolean THEN NULL ELSE coalesce(d.closed_at, excluded.closed_at) END, updated_at = excluded.updated_at
	WHERE (d.account, d.status, d.money, d.withdrawn) IS DISTINCT FROM (excluded.account, excluded.status, excluded.money, excluded.withdrawn)`

// putDisputes keeps the disputes of a payment. They flag its account while open.
func (s *settlement) putDisputes(ctx context.Context, m *matter) error {
	for _, d := range m.facts.disputes {
		var part *int16
		var account *string
		if m.problem == "" {
			part, account = &m.ref.Part, &m.ref.Account
		}
		money, err := withdrawn(d)
		if err != nil {
			return err
		}
		result, err := s.tx.ExecContext(ctx, sqlPutDispute, d.ID, m.facts.payment, part, account, d.Status, d.Money, money, d.Currency, d.CreatedAt, d.Open(), s.now)
		if err != nil {
			return fmt.Errorf("keep dispute %s: %w", d.ID, err)
		}
		if n, err := result.RowsAffected(); err == nil && n > 0 {
			s.h.logger.Warn("a dispute has changed", slog.String("dispute", d.ID), slog.String("status", d.Status), slog.String("payment", m.facts.payment), slog.String("account", m.ref.Account))
		}
	}
	return nil
}

// tell logs what people ask about.
func (s *settlement) tell(m *matter) {
	switch {
	case m.granted:
		s.h.logger.Info("credits bought", slog.String("account", m.ref.Account), slog.String("credits", m.row.Credits.String()), slog.String("payment", m.facts.payment))
	case m.problem != "" && m.problem != m.row.Reason:
		s.h.logger.Warn("a payment is parked: nobody got its credits", slog.String("payment", m.facts.payment), slog.String("reason", m.problem))
	case m.facts.unpaid != "" && m.facts.unpaid != m.row.Review:
		s.h.logger.Error("a payment has failed after its credits were granted; somebody must decide", slog.String("payment", m.facts.payment),
			slog.String("account", m.ref.Account), slog.String("reason", m.facts.unpaid))
	}
	for _, c := range m.changes {
		s.h.logger.Info("credits taken back", slog.String("account", m.ref.Account), slog.String("cause", c.id), slog.String("credits", c.by.String()), slog.String("payment", m.facts.payment))
	}
}

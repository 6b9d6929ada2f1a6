package webhooks

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
)

// write keeps what was decided, in the order of the payments' keys.
func (s *settlement) write(ctx context.Context, tx *sqlx.Tx, matters []*matter) error {
	matters = slices.DeleteFunc(slices.Clone(matters), func(m *matter) bool { return m.err != nil })
	if err := s.putPayments(ctx, tx, matters); err != nil {
		return err
	}
	if err := s.touch(ctx, tx, matters); err != nil {
		return err
	}
	for _, m := range matters {
		if err := s.putClawbacks(ctx, tx, m); err != nil {
			return err
		}
		if err := s.putDisputes(ctx, tx, m); err != nil {
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

func (s *settlement) putPayments(ctx context.Context, tx *sqlx.Tx, matters []*matter) error {
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
	result, err := tx.ExecContext(ctx, sqlPutPayments, ids, sessions, customers, parts, accounts, grants, credits, money, currencies, modes, reasons,
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
func (s *settlement) touch(ctx context.Context, tx *sqlx.Tx, matters []*matter) error {
	var ids, reviews pg.Texts
	for _, m := range matters {
		if m.problem == "" {
			ids, reviews = append(ids, m.facts.payment), append(reviews, m.facts.unpaid)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	if _, err := tx.ExecContext(ctx, sqlTouch, ids, s.now, reviews); err != nil {
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

func (s *settlement) putClawbacks(ctx context.Context, tx *sqlx.Tx, m *matter) error {
	for _, c := range m.changes {
		state := "taken"
		if c.credits == 0 {
			state = "returned"
		}
		_, err := tx.ExecContext(ctx, sqlPutClawback, m.ref.Part, m.ref.Account, c.id, c.kind, m.facts.payment, *m.row.GrantID, c.money, c.credits, state, s.now)
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
func (s *settlement) putDisputes(ctx context.Context, tx *sqlx.Tx, m *matter) error {
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
		result, err := tx.ExecContext(ctx, sqlPutDispute, d.ID, m.facts.payment, part, account, d.Status, d.Money, money, d.Currency, d.CreatedAt, d.Open(), s.now)
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

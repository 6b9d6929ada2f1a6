package webhooks

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/stripe"
	"tallystick/internal/web"
)

// Refusals about payments.
var (
	errNoPayment = &fault.Error{Kind: fault.KindNotFound, Code: "payment_not_found", Public: "Stripe has no such payment; name a payment intent (pi_…), a checkout session (cs_…) or an invoice (in_…)"}
	errNotPaid   = &fault.Error{Kind: fault.KindConflict, Code: "payment_not_paid", Public: "Stripe says that it is not paid, or it is for something that buys no credits"}
	errGranted   = &fault.Error{Kind: fault.KindConflict, Code: "payment_granted", Public: "its credits were granted already; correct them with an adjustment"}
)

type paymentRecord struct {
	paymentRow
	Session   string    `db:"session_id"`
	Customer  string    `db:"customer"`
	Currency  string    `db:"currency"`
	Livemode  bool      `db:"livemode"`
	CreatedAt time.Time `db:"created_at"`
}

func (p paymentRecord) wire() api.StripePayment {
	return api.StripePayment{
		ID: p.ID, Session: p.Session, Customer: p.Customer, Account: p.Account, Grant: p.GrantID, Credits: api.Decimal(p.Credits.String()), Money: p.Money,
		Currency: p.Currency, Livemode: p.Livemode, State: p.State, Reason: p.Reason, Review: p.Review, CreatedAt: p.CreatedAt.UTC(), UpdatedAt: p.UpdatedAt.UTC(),
	}
}

// sqlPayments pages backwards over the index payments_by_time; few are parked, and
// they have indexes of their own.
const sqlPayments = `
	SELECT payment_id, session_id, customer, part, account, grant_id, credits, money, currency, livemode, state, reason, review, created_at, updated_at
	FROM payments
	WHERE (created_at, payment_id) < ($1, $2) AND ($3 = '' OR state = $3 OR $3 = 'review' AND review <> '') AND ($4 = '' OR payment_id = $4)
	ORDER BY created_at DESC, payment_id DESC
	LIMIT $5`

var paymentFilters = []string{stateGranted, stateParked, "review"}

func (h *Webhooks) payments(ctx context.Context, after position, state, id string, limit int) (rows []paymentRecord, err error) {
	err = h.db.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlPayments, after.CreatedAt, after.ID, state, id, limit)
	})
	return rows, err
}

// farthest is behind every event and payment.
func farthest() position { return position{CreatedAt: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (h *Webhooks) handlePayments(w http.ResponseWriter, r *http.Request) error {
	after := farthest()
	limit, err := web.Page(r, &after)
	if err != nil {
		return err
	}
	state := r.URL.Query().Get("state")
	if state != "" && !slices.Contains(paymentFilters, state) {
		var p fault.Problems
		p.Addf("#query/state", "must be one of %v", paymentFilters)
		return p.Err(fault.ErrInvalid)
	}
	rows, err := h.payments(r.Context(), after, state, r.URL.Query().Get("id"), limit+1)
	if err != nil {
		return err
	}
	payments := make([]api.StripePayment, len(rows))
	for i, row := range rows {
		payments[i] = row.wire()
	}
	return web.JSON(w, http.StatusOK, web.Paged(payments, limit, func(p api.StripePayment) any { return position{p.CreatedAt, p.ID} }))
}

// mapping is what a person says of a payment.
type mapping struct {
	account string
	credits credit.Amount // 0: as Stripe says
	reason  string
}

func readMapping(w http.ResponseWriter, r *http.Request) (m mapping, err error) {
	var q api.PaymentApplyRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return m, err
	}
	var p fault.Problems
	m.account, m.reason = q.Account, q.Reason
	if q.Credits != "" {
		if m.credits, err = credit.ParseAmount(string(q.Credits)); err != nil {
			p.Addf("/credits", "%v", err)
		} else if m.credits <= 0 {
			p.Addf("/credits", "must be positive")
		}
	}
	if (q.Account != "" || q.Credits != "") && q.Reason == "" {
		p.Addf("/reason", "must say why, where account or credits are given")
	}
	if len(q.Reason) > 1000 {
		p.Addf("/reason", "must have at most 1000 bytes")
	}
	return m, p.Err(fault.ErrUnprocessed)
}

// handleApply looks at one payment at once, by what the request says better than
// Stripe does.
func (h *Webhooks) handleApply(w http.ResponseWriter, r *http.Request) error {
	ctx, id := r.Context(), r.PathValue("id")
	said, err := readMapping(w, r)
	if err != nil {
		return err
	}
	by := "system:unknown"
	if h.actor != nil {
		by = h.actor(ctx)
	}
	before, err := h.payments(ctx, farthest(), stateGranted, id, 1)
	if err != nil {
		return err
	}
	if len(before) > 0 && (said.account != "" || said.credits != 0) {
		return errGranted
	}
	m, err := h.look(ctx, id, by, said.amend)
	switch {
	case stripe.IsMissing(err):
		return errNoPayment.With(err)
	case errors.Is(err, errOvertaken):
		return fault.ErrUnavailable.With(err)
	case err != nil:
		return err
	case m == nil:
		return errNotPaid
	}
	rows, err := h.payments(ctx, farthest(), "", m.facts.payment, 1)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return errNotPaid
	}
	return web.JSON(w, http.StatusOK, rows[0].wire())
}

func (m mapping) amend(f *facts) {
	if m.account != "" {
		f.account = m.account
	}
	if m.credits > 0 {
		f.offer.credits, f.problem = m.credits, ""
	}
	f.note = m.reason
}

// backfillSpan bounds one backfill: Stripe keeps events for 30 days.
const backfillSpan = 31 * 24 * time.Hour

func (h *Webhooks) handleBackfill(w http.ResponseWriter, r *http.Request) error {
	var q api.BackfillRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	var p fault.Problems
	if !q.To.After(q.From) {
		p.Addf("/to", "must be after from")
	} else if q.To.Sub(q.From) > backfillSpan {
		p.Addf("/from", "must be at most 31 days before to")
	}
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	s, err := h.sweep(r.Context(), q.From, q.To, q.DryRun, func() error { return nil })
	if err != nil {
		return away(err)
	}
	answer := api.Backfill{From: q.From.UTC(), To: q.To.UTC(), DryRun: q.DryRun, Listed: s.listed, Missing: s.missing, Events: []api.MissingEvent{}}
	for _, e := range s.first {
		answer.Events = append(answer.Events, api.MissingEvent{ID: e.ID, Type: e.Type, CreatedAt: e.CreatedAt})
	}
	return web.JSON(w, http.StatusOK, answer)
}

package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
)

// sessionAgeMax is how long before its payment a session may have been created:
// a day until it is paid, and a week for methods that settle later.
const sessionAgeMax = 8 * 24 * time.Hour

// paid is a payment as Stripe tells it, and what it should have bought.
type paid struct {
	id        string // payment intent, or session when there is none
	session   string
	invoice   string // "" unless an invoice says what was bought
	customer  string
	account   string // named by the buyer's session or payment; "" leaves the customer to decide
	money     int64
	currency  string
	createdAt time.Time
	credits   credit.Amount
	unpriced  string // why nobody can say how many credits it buys
}

// bought is what we hold of a payment.
type bought struct {
	grants  []purchase
	parked  string // why it was parked; "" when it was not
	isKnown bool   // there is a row for the payment
}

// purchase is a purchase grant.
type purchase struct {
	Account   string        `db:"account"`
	GrantID   string        `db:"grant_id"`
	Credits   credit.Amount `db:"credits"`
	Payment   string        `db:"payment"`
	CreatedAt time.Time     `db:"created_at"`
}

// creditsPayments is the check credits.payments.
func (r *Reconciler) creditsPayments(ctx context.Context, s scope) (result, error) {
	out := result{}
	payments, err := r.paidAtStripe(ctx, s)
	if err != nil {
		return out, err
	}
	held, err := r.boughtHere(ctx, s, payments)
	if err != nil {
		return out, err
	}
	for _, id := range slices.Sorted(maps.Keys(payments)) {
		p := payments[id]
		owner, err := r.owner(ctx, p)
		if err != nil {
			return out, err
		}
		if s.account != "" && owner != s.account {
			continue
		}
		out.compared++
		d, ok, err := r.paymentFinding(ctx, s, p, owner, held[id])
		if err != nil {
			return out, err
		}
		if ok {
			out.found = append(out.found, d)
		}
	}
	phantoms, err := r.phantoms(ctx, s, payments, held)
	out.found = append(out.found, phantoms...)
	return out, err
}

// paidAtStripe lists what was paid within the window, by payment.
func (r *Reconciler) paidAtStripe(ctx context.Context, s scope) (map[string]paid, error) {
	payments := map[string]paid{}
	sessions := map[string]bool{} // payment intents that belong to a session, paid or not
	var open []stripe.Session
	err := r.Stripe.Sessions(ctx, s.from.Add(-sessionAgeMax), s.to, func(session stripe.Session) error {
		sessions[session.PaymentIntent] = true
		if session.Mode == "payment" && (session.PaymentStatus == "paid" || session.PaymentStatus == "no_payment_required") {
			open = append(open, session)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	intents := map[string]stripe.PaymentIntent{}
	err = r.Stripe.PaymentIntents(ctx, s.from.Add(-sessionAgeMax), s.to, func(pi stripe.PaymentIntent) error {
		intents[pi.ID] = pi
		if pi.Status == "succeeded" && pi.Invoice == "" && !sessions[pi.ID] && !pi.CreatedAt.Before(s.from) {
			payments[pi.ID] = r.paidIntent(pi)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, session := range open {
		at := session.CreatedAt
		if pi, ok := intents[session.PaymentIntent]; ok {
			at = pi.CreatedAt
		}
		if at.Before(s.from) || !at.Before(s.to) {
			continue
		}
		whole, err := r.Stripe.Session(ctx, session.ID)
		if err != nil {
			return nil, err
		}
		p := r.paidSession(whole, intents[session.PaymentIntent])
		p.createdAt = at
		payments[p.id] = p
	}
	return payments, r.paidInvoices(ctx, s, sessions, intents, payments)
}

// sqlPurchases finds purchase grants by payment, or by when they were made.
const sqlPurchases = `
	SELECT account, grant_id, credits, payment, created_at
	FROM grants
	WHERE kind = 'purchase' AND (payment = ANY ($1::text[]) OR (created_at >= $2 AND created_at < $3))`

// sqlParkedPayments relies on payments_pkey.
const sqlParkedPayments = `SELECT payment_id, state, reason FROM payments WHERE payment_id = ANY ($1::text[])`

func (r *Reconciler) boughtHere(ctx context.Context, s scope, payments map[string]paid) (map[string]bought, error) {
	ids := pq.StringArray(slices.Collect(maps.Keys(payments)))
	var grants []purchase
	var rows []struct {
		Payment string `db:"payment_id"`
		State   string `db:"state"`
		Reason  string `db:"reason"`
	}
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		grants, rows = nil, nil
		if err := unhurried(ctx, tx); err != nil {
			return err
		}
		if err := tx.SelectContext(ctx, &grants, sqlPurchases, ids, s.from, s.to); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &rows, sqlParkedPayments, ids)
	})
	if err != nil {
		return nil, fmt.Errorf("read purchases: %w", err)
	}
	held := map[string]bought{}
	for _, g := range grants {
		b := held[g.Payment]
		b.grants = append(b.grants, g)
		held[g.Payment] = b
	}
	for _, row := range rows {
		b := held[row.Payment]
		b.isKnown = true
		if row.State == "parked" {
			b.parked = row.Reason
		}
		held[row.Payment] = b
	}
	return held, nil
}

// sqlOwner relies on stripe_customers_pkey.
const sqlOwner = `SELECT account FROM stripe_customers WHERE customer = $1`

// owner is the account that a payment is for, "" when nothing says so.
func (r *Reconciler) owner(ctx context.Context, p paid) (string, error) {
	if p.account != "" || p.customer == "" {
		return p.account, nil
	}
	var owners []string
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		owners = nil
		return tx.SelectContext(ctx, &owners, sqlOwner, p.customer)
	})
	if err != nil {
		return "", fmt.Errorf("find the account of %s: %w", p.customer, err)
	}
	return strings.Join(owners, ""), nil
}

// paymentFinding compares one payment with its grants.
func (r *Reconciler) paymentFinding(ctx context.Context, s scope, p paid, owner string, b bought) (disagreement, bool, error) {
	if p.unpriced != "" && len(b.grants) == 0 && !b.isKnown && owner == "" && p.session == "" {
		return disagreement{}, false, nil // neither an account nor credits: it is somebody else's sale
	}
	d := disagreement{
		Subject: "payment/" + p.id, Account: owner, HappenedAt: p.createdAt, Unit: "credits", Theirs: p.credits.String(),
		Money: &money{amount: p.money, currency: p.currency}, Evidence: r.paymentEvidence(p, b),
	}
	if p.unpriced != "" {
		d.Theirs = "unknown"
	}
	if len(b.grants) == 0 {
		return r.missingPurchase(ctx, s, d, p, b)
	}
	var sum credit.Amount
	for _, g := range b.grants {
		sum += g.Credits
	}
	d.Ours, d.Difference = sum.String(), signed(int64(p.credits-sum))
	switch {
	case len(b.grants) > 1:
		d.Cause = "granted_twice"
		d.Explanation = fmt.Sprintf("Payment %s bought %s credits, but %d purchase grants with %s credits stand for it.", p.id, p.credits, len(b.grants), sum)
	case owner != "" && b.grants[0].Account != owner:
		d.Cause = "wrong_account"
		d.Explanation = fmt.Sprintf("Payment %s was made for account %s, but its credits went to %s.", p.id, owner, b.grants[0].Account)
	case p.unpriced == "" && sum != p.credits:
		d.Cause = "wrong_amount"
		d.Explanation = fmt.Sprintf("Payment %s buys %s credits by what Stripe says now, but %s were granted: the price's metadata was changed since, or the grant was.", p.id, p.credits, sum)
		d.Money = worthOfPart(p, int64(p.credits-sum))
	default:
		return d, false, nil
	}
	return d, true, nil
}

// worthOfPart is the share of the payment's money that a part of its credits cost.
func worthOfPart(p paid, millionths int64) *money {
	perCredit := new(big.Rat).SetFrac64(p.money, int64(p.credits))
	return worth(millionths, perCredit.Mul(perCredit, big.NewRat(1_000_000, 1)), p.currency)
}

func (r *Reconciler) paymentEvidence(p paid, b bought) map[string]any {
	grants := []map[string]string{}
	for _, g := range b.grants {
		grants = append(grants, map[string]string{"grant": g.GrantID, "account": g.Account, "credits": g.Credits.String()})
	}
	return map[string]any{
		"payment": p.id, "session": p.session, "invoice": p.invoice, "stripe_customer": p.customer, "money": p.money, "currency": p.currency, "paid_at": p.createdAt, "grants": grants,
	}
}

// missingPurchase explains why a paid purchase has no grant.
func (r *Reconciler) missingPurchase(ctx context.Context, s scope, d disagreement, p paid, b bought) (disagreement, bool, error) {
	d.Ours, d.Difference = "0", signed(int64(p.credits))
	if b.parked != "" {
		d.Cause = "parked"
		d.Explanation = fmt.Sprintf("Payment %s was received, but nobody got its credits: %s.", p.id, b.parked)
		return d, true, nil
	}
	events, err := r.eventsOf(ctx, s, p)
	if err != nil {
		return d, false, err
	}
	d.Evidence.(map[string]any)["events"] = events
	if len(events) == 0 {
		d.Cause = "no_event"
		d.Explanation = fmt.Sprintf("Payment %s of %s was paid, but no credits were granted, and Stripe lists no event for it any more.", p.id, d.Money)
		return d, true, nil
	}
	first := events[0]
	if first.CreatedAt.After(s.now.Add(-r.Settle)) || first.State == "pending" && first.ReceivedAt.After(s.now.Add(-r.Settle)) {
		return d, false, nil // it is under way
	}
	d.Repair, d.RepairArgs, d.Safe = "feed_event", map[string]string{"event": first.ID, "payment": p.id}, true
	switch first.State {
	case "":
		d.Cause = "webhook_missed"
		d.Explanation = fmt.Sprintf("Payment %s of %s was paid, but its event %s (%s) never arrived: no credits were granted.", p.id, d.Money, first.ID, first.Type)
	case "flagged":
		d.Cause = "event_flagged"
		d.Explanation = fmt.Sprintf("The event %s of payment %s arrived, but was not applied: %s.", first.ID, p.id, first.Error)
	default:
		d.Cause = "event_not_applied"
		d.Explanation = fmt.Sprintf("The event %s of payment %s arrived, but no credits were granted; its state is %s. %s", first.ID, p.id, first.State, first.Error)
	}
	return d, true, nil
}

// eventState is an event of a payment, and what became of it here.
type eventState struct {
	ID         string    `json:"id" db:"event_id"`
	Type       string    `json:"type" db:"type"`
	CreatedAt  time.Time `json:"created_at" db:"created_at"`
	State      string    `json:"state" db:"state"` // "" when it is not in the inbox
	Error      string    `json:"error,omitempty" db:"error"`
	ReceivedAt time.Time `json:"-" db:"received_at"`
}

// sqlEvents relies on stripe_events_pkey.
const sqlEvents = `SELECT event_id, type, created_at, state, error, received_at FROM stripe_events WHERE event_id = ANY ($1::text[])`

// eventsOf finds the events that should have granted a payment, in Stripe's list
// and in the inbox. An applied event comes last: it did not help.
func (r *Reconciler) eventsOf(ctx context.Context, s scope, p paid) ([]eventState, error) {
	events, err := r.eventsAbout(ctx, p.createdAt.Add(-time.Hour), s.now, func(kind string, a about) bool {
		return slices.Contains(boughtBy, kind) && (a.ID == p.id || a.ID == p.session || a.ID == p.invoice) && a.ID != ""
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(events, func(a, b eventState) int {
		return cmp.Or(cmp.Compare(applied(a), applied(b)), slices.Index(boughtBy, a.Type)-slices.Index(boughtBy, b.Type))
	})
	return events, nil
}

func applied(e eventState) int {
	if e.State == "done" || e.State == "ignored" {
		return 1
	}
	return 0
}

// fates adds what became of events here.
func (r *Reconciler) fates(ctx context.Context, events []eventState) error {
	ids := make(pq.StringArray, len(events))
	for i, e := range events {
		ids[i] = e.ID
	}
	var received []eventState
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		received = nil
		return tx.SelectContext(ctx, &received, sqlEvents, ids)
	})
	if err != nil {
		return fmt.Errorf("look events up: %w", err)
	}
	for i := range events {
		if at := slices.IndexFunc(received, func(e eventState) bool { return e.ID == events[i].ID }); at >= 0 {
			events[i].State, events[i].Error, events[i].ReceivedAt = received[at].State, received[at].Error, received[at].ReceivedAt
		}
	}
	return nil
}

// phantoms finds purchase grants without a payment at Stripe.
func (r *Reconciler) phantoms(ctx context.Context, s scope, payments map[string]paid, held map[string]bought) ([]disagreement, error) {
	var found []disagreement
	for _, id := range slices.Sorted(maps.Keys(held)) {
		if _, ok := payments[id]; ok || len(held[id].grants) == 0 {
			continue
		}
		g := held[id].grants[0]
		if s.account != "" && g.Account != s.account || g.CreatedAt.Before(s.from) || !g.CreatedAt.Before(s.to) {
			continue
		}
		status, failed, err := r.paymentStatus(ctx, id)
		if err != nil {
			return nil, err
		}
		if status == "" {
			continue
		}
		d := disagreement{
			Subject: "payment/" + id, Account: g.Account, HappenedAt: g.CreatedAt, Unit: "credits", Ours: g.Credits.String(), Theirs: "0",
			Difference: signed(-int64(g.Credits)), Cause: "phantom_grant",
			Explanation: fmt.Sprintf("Account %s holds the purchase grant %s of %s credits, but payment %s %s.", g.Account, g.GrantID, g.Credits, id, status),
			Evidence:    map[string]any{"payment": id, "grant": g.GrantID, "status": status},
		}
		if failed {
			d.Cause = "payment_failed"
			d.Explanation += " It failed after the credits were granted, or they were granted too early; take them back by an adjustment."
		}
		price, currency, err := r.creditPrice(ctx, g.Account)
		if err != nil {
			return nil, err
		}
		if price != nil {
			d.Money = worth(int64(g.Credits), price, currency)
		}
		found = append(found, d)
	}
	return found, nil
}

// paymentStatus says what is wrong with a payment, "" when it is paid after all
// (before the window, say); failed tells that it was there and ended unpaid.
func (r *Reconciler) paymentStatus(ctx context.Context, id string) (status string, failed bool, err error) {
	switch {
	case strings.HasPrefix(id, "cs_"):
		session, err := r.Stripe.Session(ctx, id)
		if err == nil && session.PaymentStatus == "unpaid" {
			return "has not been paid", true, nil
		}
		return missingStatus(err)
	case strings.HasPrefix(id, "in_"):
		invoice, err := r.Stripe.Invoice(ctx, id)
		if err == nil && invoice.Status != "paid" {
			return "is " + invoice.Status, true, nil
		}
		return missingStatus(err)
	}
	pi, err := r.Stripe.PaymentIntent(ctx, id)
	if err == nil && pi.Status != "succeeded" {
		return "has the status " + pi.Status, true, nil
	}
	return missingStatus(err)
}

func missingStatus(err error) (string, bool, error) {
	if stripe.IsMissing(err) {
		return "does not exist at Stripe", false, nil
	}
	return "", false, err
}

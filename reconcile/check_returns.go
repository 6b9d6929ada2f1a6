package reconcile

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// returnsBack is how far back refunds and disputes are compared at least: a refund
// may fail for thirty days after it succeeded.
const returnsBack = 35 * 24 * time.Hour

// explainMax bounds the findings of a run for which Stripe's events are searched.
const explainMax = 20

// returned is something by which money of a payment goes back, or was meant to.
type returned struct {
	id     string // of the refund, the dispute or the credit note
	money  int64  // gone at present, in minor units of the payment's currency
	asked  int64  // what it was about at first
	status string // Stripe's word
	at     time.Time
	due    time.Time     // of a dispute's evidence; zero for none
	must   credit.Amount // to be taken back for it
	taken  credit.Amount // what the journal has taken for it
}

// returnKinds are the beginnings of ids, in the order in which what happened in one
// second counts.
var returnKinds = []string{"re_", "cn_", "dp_"}

func returnKind(id string) int {
	return slices.IndexFunc(returnKinds, func(prefix string) bool {
		return strings.HasPrefix(id, prefix) || prefix == "re_" && strings.HasPrefix(id, "pyr_") || prefix == "dp_" && strings.HasPrefix(id, "du_")
	})
}

// sold is a purchase of which money may have gone back.
type sold struct {
	Payment  string        `db:"payment_id"`
	Part     int16         `db:"part"`
	Account  string        `db:"account"`
	GrantID  string        `db:"grant_id"`
	Credits  credit.Amount `db:"credits"` // of the grant
	Money    int64         `db:"money"`
	Currency string        `db:"currency"`
}

// sqlSold relies on payments_pkey and grants_pkey.
const sqlSold = `
	SELECT p.payment_id, p.part, p.account, p.grant_id, g.credits, p.money, p.currency
	FROM payments p
	JOIN grants g ON g.part = p.part AND g.account = p.account AND g.grant_id = p.grant_id
	WHERE p.payment_id = ANY ($1::text[]) AND p.state = 'granted' AND ($2 = '' OR p.account = $2)
	ORDER BY p.payment_id`

// sqlTakenLately reads the clawbacks that changed within a window; they are few
// beside everything else. Standing findings are looked at again by their payment.
const sqlTakenLately = `
	SELECT DISTINCT payment_id FROM clawbacks WHERE updated_at >= $1 AND updated_at < $2
	UNION
	SELECT evidence ->> 'payment' FROM findings WHERE check_name = $3 AND state <> 'resolved' AND evidence ->> 'payment' IS NOT NULL`

// sqlTaken relies on transfers_returns.
const sqlTaken = `
	SELECT t.cause, sum(CASE WHEN t.kind IN ('refund', 'dispute') THEN t.amount ELSE -t.amount END) AS taken, min(t.posted_at) AS at
	FROM transfers t
	WHERE t.part = $1 AND t.account || '' = $2 AND t.kind IN ('refund', 'refund_failed', 'dispute', 'dispute_won') AND t.note = $3
	GROUP BY t.cause`

// compareReturns reads, of each payment of which money may have gone back, what
// Stripe says is gone and what the journal has taken, and gives those that differ.
// Listed are the payments of the window at Stripe.
func (r *Reconciler) compareReturns(ctx context.Context, s scope, out *result, listed map[string]bool, judge func(sold, returned) error) error {
	from := r.returnsFrom(s)
	var payments []string
	var sales []sold
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		payments, sales = nil, nil
		check := ""
		if s.frame != nil {
			check = s.frame.run.Check
		}
		if err := tx.SelectContext(ctx, &payments, sqlTakenLately, from, s.now, check); err != nil {
			return err
		}
		for _, p := range payments {
			listed[p] = true
		}
		return tx.SelectContext(ctx, &sales, sqlSold, pg.Texts(slices.Sorted(maps.Keys(listed))), s.account)
	})
	if err != nil {
		return fmt.Errorf("read purchases: %w", err)
	}
	moving, err := r.underWay(ctx, s)
	if err != nil {
		return err
	}
	for i, p := range sales {
		all, err := r.returnsOf(ctx, &p)
		if errors.Is(err, stripe.ErrBudget) {
			out.note = fmt.Sprintf("%d of %d payments wait for the next run: the budget of calls was used up", len(sales)-i, len(sales))
			out.covered = coversNothing
			return nil
		}
		if err != nil {
			return err
		}
		out.compared++
		if moving[p.Payment] || slices.ContainsFunc(all, func(b returned) bool { return moving[b.id] }) || balanced(all) {
			continue
		}
		for _, b := range all {
			if b.must == b.taken {
				continue
			}
			if err := judge(p, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Reconciler) returnsFrom(s scope) time.Time {
	if from := s.now.Add(-returnsBack); !s.asked && from.Before(s.from) {
		return from
	}
	return s.from
}

// balanced tells whether as much is taken as must be, whatever it is for.
func balanced(all []returned) bool {
	var must, taken credit.Amount
	for _, b := range all {
		must, taken = must+b.must, taken+b.taken
	}
	return must == taken
}

// returnsOf reads what has gone back of a payment, shares it out and adds what was
// taken. What was taken for something that Stripe does not know is among it.
func (r *Reconciler) returnsOf(ctx context.Context, p *sold) ([]returned, error) {
	all, err := r.returnsAtStripe(ctx, p)
	if err != nil {
		return nil, err
	}
	share(all, p.Credits, p.Money)
	var rows []struct {
		Cause string        `db:"cause"`
		Taken credit.Amount `db:"taken"`
		At    time.Time     `db:"at"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlTaken, p.Part, p.Account, p.Payment)
	})
	if err != nil {
		return nil, fmt.Errorf("read what was taken back of %s: %w", p.Payment, err)
	}
	for _, row := range rows {
		i := slices.IndexFunc(all, func(b returned) bool { return b.id == row.Cause })
		if i < 0 {
			all = append(all, returned{id: row.Cause, at: row.At})
			i = len(all) - 1
		}
		all[i].taken = row.Taken
	}
	return all, nil
}

func (r *Reconciler) returnsAtStripe(ctx context.Context, p *sold) (all []returned, err error) {
	invoice := ""
	switch {
	case strings.HasPrefix(p.Payment, "pi_"):
		pi, err := r.Stripe.PaymentIntent(ctx, p.Payment)
		if err != nil && !stripe.IsMissing(err) {
			return nil, err
		}
		if invoice = pi.Invoice; invoice == "" && pi.Money > 0 {
			p.Money = pi.Money // an invoice may have been paid in part by other means
		}
		refunds, err := r.Stripe.RefundsOf(ctx, p.Payment)
		if err != nil {
			return nil, err
		}
		for _, f := range refunds {
			b := returned{id: f.ID, asked: f.Money, status: f.Status, at: f.CreatedAt}
			if f.Status == "succeeded" || f.Status == "pending" {
				b.money = f.Money
			}
			all = append(all, b)
		}
		disputes, err := r.Stripe.DisputesOf(ctx, p.Payment)
		if err != nil {
			return nil, err
		}
		for _, d := range disputes {
			all = append(all, returned{id: d.ID, asked: d.Money, money: withdrawnOf(d), status: d.Status, at: d.CreatedAt, due: d.EvidenceDueAt})
		}
	case strings.HasPrefix(p.Payment, "in_"):
		invoice = p.Payment
	}
	if invoice == "" {
		return all, nil
	}
	notes, err := r.Stripe.CreditNotesOf(ctx, invoice)
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		b := returned{id: n.ID, asked: n.Money, status: n.Status, at: n.CreatedAt}
		if n.Status != "void" {
			b.money = n.Money
			for _, f := range all { // the part that is a refund is one of the refunds
				if f.id == n.Refund {
					b.money = max(n.Money-f.asked, 0)
				}
			}
		}
		all = append(all, b)
	}
	return all, nil
}

// withdrawnOf is how much of the disputed money is gone: the share of what Stripe
// took from its balance, in whatever currency, that has not come back.
func withdrawnOf(d stripe.Dispute) int64 {
	var out, back int64
	for _, m := range d.Movements {
		if m.Money < 0 {
			out -= m.Money
		} else {
			back += m.Money
		}
	}
	if out == 0 || back >= out {
		return 0
	}
	return proportion(d.Money, out-back, out)
}

// proportion is n * of / whole, rounded half up; whole is positive.
func proportion(n, of, whole int64) int64 {
	product := new(big.Int).Mul(big.NewInt(n), big.NewInt(of))
	product.Lsh(product, 1).Add(product, big.NewInt(whole))
	return product.Quo(product, big.NewInt(2*whole)).Int64()
}

// share works out what must be taken back for each return: in proportion to the
// money so far, so that what was given goes in whole when all the money has gone,
// and never more, however refunds and disputes meet.
func share(all []returned, bought credit.Amount, paid int64) {
	slices.SortFunc(all, func(a, b returned) int {
		return cmp.Or(a.at.Compare(b.at), returnKind(a.id)-returnKind(b.id), strings.Compare(a.id, b.id))
	})
	var money int64
	var taken credit.Amount
	for i := range all {
		money = min(money+all[i].money, paid)
		sum := credit.Amount(0)
		if paid > 0 {
			sum = credit.Amount(proportion(int64(bought), money, paid))
		}
		all[i].must, taken = sum-taken, sum
	}
}

// sqlPendingEvents relies on stripe_events_due.
const sqlPendingEvents = `SELECT event_id, payload FROM stripe_events WHERE state = 'pending' AND received_at > $1`

// underWay gives the ids of what Stripe has told of so lately, or we have received
// so lately, that it may still be on its way through here.
func (r *Reconciler) underWay(ctx context.Context, s scope) (map[string]bool, error) {
	moving := map[string]bool{}
	since := s.now.Add(-r.Settle)
	note := func(payload []byte) error {
		about, err := aboutOf(payload)
		moving[about.ID], moving[about.PaymentIntent] = true, true
		return err
	}
	err := r.Stripe.Events(ctx, since, s.now.Add(time.Minute), func(e stripe.Event) error { return note(e.Payload) })
	if err != nil {
		return nil, err
	}
	var pending []struct {
		ID      string `db:"event_id"`
		Payload []byte `db:"payload"`
	}
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		pending = nil
		return tx.SelectContext(ctx, &pending, sqlPendingEvents, since)
	})
	if err != nil {
		return nil, fmt.Errorf("read events under way: %w", err)
	}
	for _, e := range pending {
		if err := note(e.Payload); err != nil {
			return nil, fmt.Errorf("event %s: %w", e.ID, err)
		}
	}
	delete(moving, "")
	return moving, nil
}

// about says what an event is about.
type about struct {
	ID            string
	PaymentIntent string // "" where the object names none
}

func aboutOf(payload []byte) (about, error) {
	var w struct {
		Data struct {
			Object struct {
				ID            string          `json:"id"`
				PaymentIntent json.RawMessage `json:"payment_intent"`
			} `json:"object"`
		} `json:"data"`
	}
	if err := json.Unmarshal(payload, &w); err != nil {
		return about{}, fmt.Errorf("read an event: %w", err)
	}
	a := about{ID: w.Data.Object.ID}
	_ = json.Unmarshal(w.Data.Object.PaymentIntent, &a.PaymentIntent) // no text: it names none
	return a, nil
}

// returnFinding is what all findings about money that went back have in common.
// Theirs is what must be taken by what Stripe says.
func (p sold) returnFinding(b returned, kind string) disagreement {
	d := disagreement{
		Subject: kind + "/" + b.id, Account: p.Account, HappenedAt: b.at, Unit: "credits", Ours: b.taken.String(), Theirs: b.must.String(), Difference: signed(int64(b.must - b.taken)),
		Evidence: map[string]any{
			"payment": p.Payment, kind: b.id, "grant": p.GrantID, "status": b.status, "money_gone": b.money, "money_asked": b.asked, "money_paid": p.Money,
			"currency": p.Currency, "credits_bought": p.Credits.String(),
		},
		Repair: repairTakeBack, Safe: b.taken == 0 || b.must == 0 || b.money < b.asked, Effect: effectLeaked,
	}
	if b.taken > b.must {
		d.Effect = effectOverbilled
	}
	if p.Credits > 0 {
		perCredit := new(big.Rat).SetFrac64(p.Money, int64(p.Credits))
		d.Money = worth(int64(b.must-b.taken), perCredit.Mul(perCredit, big.NewRat(1_000_000, 1)), p.Currency)
	}
	return d
}

// why tells which of Stripe's events should have brought what is missing, and what
// became of it. It searches for a bounded number of findings in a run.
func (r *Reconciler) why(ctx context.Context, s scope, d *disagreement, payment, id string, searched *int) error {
	if *searched++; *searched > explainMax {
		return nil
	}
	events, err := r.eventsAbout(ctx, d.HappenedAt.Add(-time.Hour), s.now, func(kind string, a about) bool {
		return slices.Contains(backBy, kind) && (a.ID == id || a.PaymentIntent == payment)
	})
	if err != nil {
		return err
	}
	d.Evidence.(map[string]any)["events"] = events
	if len(events) == 0 {
		d.Explanation += " Stripe lists no event for it any more."
		return nil
	}
	e := events[len(events)-1]
	for _, one := range events {
		if one.State != "done" {
			e = one
		}
	}
	switch e.State {
	case "":
		d.Explanation += fmt.Sprintf(" Its event %s (%s) never arrived.", e.ID, e.Type)
	case "done":
		d.Explanation += fmt.Sprintf(" Its event %s (%s) arrived and was applied, to no avail.", e.ID, e.Type)
	default:
		d.Explanation += fmt.Sprintf(" Its event %s (%s) arrived, and is %s. %s", e.ID, e.Type, e.State, e.Error)
	}
	return nil
}

package webhooks_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"tallystick/internal/apptest"
	"tallystick/internal/credit"
	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

var (
	deliveries = flag.Int("deliveries", 3000, "how many deliveries the storm makes")
	stormSeed  = flag.Uint64("storm-seed", 0, "seed of the storm; 0 takes one from the clock")
)

// Bounds of the storm.
const (
	stormSpan     = 3 * 24 * time.Hour
	stormAccounts = 40
)

// deal is a payment and what becomes of it, each at its time.
type deal struct {
	id, account string
	credits     credit.Amount
	money       int64
	paid        time.Time
	refunds     []giveback
	disputes    []giveback
}

// giveback is a refund that may fail, or a dispute of which a part may come back.
type giveback struct {
	id      string
	money   int64
	at, end time.Time // end is zero when nothing comes back
	back    int64
}

// gone is what of it is gone at a time.
func (g giveback) gone(now time.Time) int64 {
	switch {
	case g.at.After(now):
		return 0
	case g.end.IsZero() || g.end.After(now):
		return g.money
	}
	return g.money - g.back
}

// bank is a Stripe whose past is fixed: it says what has happened until now.
type bank struct {
	webhooks.StripeReader
	clock  func() time.Time
	deals  map[string]*deal
	order  []*deal
	events []stripe.Event // by time
}

func (b *bank) PaymentIntent(_ context.Context, id string) (stripe.PaymentIntent, error) {
	d := b.deals[id]
	if d == nil || d.paid.After(b.clock()) {
		return stripe.PaymentIntent{}, fmt.Errorf("no payment %s: %w", id, io.EOF)
	}
	return stripe.PaymentIntent{
		ID: id, Money: d.money, Currency: "usd", Status: "succeeded", CreatedAt: d.paid, Metadata: map[string]string{"credits": d.credits.String(), "account": d.account},
	}, nil
}

func (b *bank) SessionOf(context.Context, string) (stripe.Session, bool, error) {
	return stripe.Session{}, false, nil
}

func (b *bank) RefundsOf(_ context.Context, id string) (refunds []stripe.Refund, err error) {
	now := b.clock()
	for _, g := range b.deals[id].refunds {
		if g.at.After(now) {
			continue
		}
		status := "succeeded"
		if g.gone(now) == 0 {
			status = "failed"
		}
		refunds = append(refunds, stripe.Refund{ID: g.id, PaymentIntent: id, Money: g.money, Currency: "usd", Status: status, CreatedAt: g.at})
	}
	return refunds, nil
}

func (b *bank) DisputesOf(_ context.Context, id string) (disputes []stripe.Dispute, err error) {
	now := b.clock()
	for _, g := range b.deals[id].disputes {
		if g.at.After(now) {
			continue
		}
		d := stripe.Dispute{
			ID: g.id, PaymentIntent: id, Money: g.money, Currency: "usd", Status: "needs_response", CreatedAt: g.at,
			Movements: []stripe.Movement{{Money: -g.money, Category: "dispute"}},
		}
		if !g.end.IsZero() && !g.end.After(now) {
			d.Status = "lost"
			d.Movements = append(d.Movements, stripe.Movement{Money: g.back, Category: "dispute_reversal"})
		}
		disputes = append(disputes, d)
	}
	return disputes, nil
}

// EventPages lists what has happened, but for the last minute: lists lag.
func (b *bank) EventPages(_ context.Context, _ []string, from, to time.Time, each func([]stripe.Event) error) error {
	listable := b.clock().Add(-time.Minute)
	var all []stripe.Event
	for _, e := range b.events {
		if !e.CreatedAt.Before(from) && !e.CreatedAt.After(to) && !e.CreatedAt.After(listable) {
			all = append(all, e)
		}
	}
	slices.Reverse(all)
	for page := range slices.Chunk(all, 100) {
		if err := each(page); err != nil {
			return err
		}
	}
	return nil
}

// happen plans deals until they have raised so many events.
func (b *bank) happen(random *rand.Rand, events int) {
	for n := 0; len(b.events) < events; n++ {
		d := &deal{
			id: fmt.Sprint("pi_", n), account: fmt.Sprint("account-", random.IntN(stormAccounts)), credits: credit.Amount(1 + random.Int64N(1_000_000_000)),
			money: 1 + random.Int64N(100_000), paid: start.Add(time.Duration(random.Int64N(int64(stormSpan)))).Truncate(time.Second),
		}
		b.deals[d.id], b.order = d, append(b.order, d)
		object := fmt.Sprintf(`{"id": %q, "payment_intent": %q}`, d.id, d.id)
		b.raise(d.paid, "payment_intent.succeeded", object)
		b.raise(d.paid, "checkout.session.completed", fmt.Sprintf(`{"id": "cs_%d", "payment_intent": %q}`, n, d.id))
		left := d.money
		for i := range random.IntN(3) {
			money := 1 + random.Int64N(max(left, 1))
			g := giveback{id: fmt.Sprintf("re_%d_%d", n, i), money: money, at: d.paid.Add(time.Duration(random.IntN(48)) * time.Hour)}
			if left -= money; random.IntN(4) == 0 {
				g.end, g.back = g.at.Add(time.Duration(1+random.IntN(24))*time.Hour), money
				b.raise(g.end, "charge.refund.updated", object)
			}
			d.refunds = append(d.refunds, g)
			b.raise(g.at, "charge.refunded", object)
			if left <= 0 {
				break
			}
		}
		if random.IntN(4) == 0 { // a dispute is of the whole, whatever was refunded
			g := giveback{id: fmt.Sprint("dp_", n), money: d.money, at: d.paid.Add(time.Duration(random.IntN(48)) * time.Hour)}
			b.raise(g.at, "charge.dispute.created", object)
			b.raise(g.at, "charge.dispute.funds_withdrawn", object)
			if random.IntN(2) == 0 {
				g.end, g.back = g.at.Add(time.Duration(1+random.IntN(48))*time.Hour), random.Int64N(g.money+1)
				b.raise(g.end, "charge.dispute.closed", object)
				b.raise(g.end, "charge.dispute.funds_reinstated", object)
			}
			d.disputes = append(d.disputes, g)
		}
	}
	slices.SortStableFunc(b.events, func(x, y stripe.Event) int { return x.CreatedAt.Compare(y.CreatedAt) })
}

func (b *bank) raise(at time.Time, kind, object string) {
	id := fmt.Sprint("evt_", len(b.events))
	b.events = append(b.events, stripe.Event{
		ID: id, Type: kind, APIVersion: stripe.APIVersion, CreatedAt: at,
		Payload: fmt.Appendf(nil, `{"id": %q, "object": "event", "type": %q, "api_version": %q, "livemode": false, "created": %d, "data": {"object": %s}}`,
			id, kind, stripe.APIVersion, at.Unix(), object),
	})
}

// gust is one delivery.
type gust struct {
	at   time.Time
	body string
	bad  bool
}

// gusts delivers each event one to ten times within three days of its happening,
// but for some that are lost, and adds what is badly signed.
func gusts(random *rand.Rand, events []stripe.Event) (all []gust, lost int) {
	for _, e := range events {
		if random.IntN(50) == 0 {
			lost++
			continue
		}
		for range 1 + random.IntN(10) {
			all = append(all, gust{at: e.CreatedAt.Add(time.Duration(random.Int64N(int64(stormSpan)))), body: string(e.Payload)})
		}
	}
	for i := range all {
		all[i].bad = random.IntN(20) == 0
	}
	slices.SortFunc(all, func(a, b gust) int { return a.at.Compare(b.at) })
	return all, lost
}

// TestStormEveryPurchaseIsOneGrantAndEveryReturnItsClawback lets a Stripe with a
// fixed past deliver its events again and again, in disorder, badly signed or not at
// all, to two processes.
func TestStormEveryPurchaseIsOneGrantAndEveryReturnItsClawback(t *testing.T) {
	t.Parallel()
	seed := cmp.Or(*stormSeed, uint64(time.Now().UnixNano()))
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	b := &bank{deals: map[string]*deal{}}
	d := opened(t, func(c *webhooks.Config) { c.Stripe = b })
	b.clock = d.clock
	for i := range stormAccounts {
		d.account(fmt.Sprint("account-", i))
	}
	b.happen(random, *deliveries*10/55)
	all, lost := gusts(random, b.events)
	t.Logf("%d deals, %d events, %d deliveries, %d events lost", len(b.deals), len(b.events), len(all), lost)
	workers := []*webhooks.Webhooks{d.Webhooks, d.another()}
	refused := 0
	for part := range slices.Chunk(all, max(len(all)/100, 1)) {
		d.at(part[len(part)-1].at)
		refused += d.blow(part)
		d.work(workers)
	}
	d.at(start.Add(2*stormSpan + 30*time.Hour*4))
	if _, err := d.SweepStep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 50 { // what two had at once is tried again
		d.work(workers)
		d.pass(time.Minute)
	}
	if refused == 0 {
		t.Error("nothing was badly signed")
	}
	d.settled(b, lost)
}

// blow makes deliveries, several at once, and counts those refused.
func (d *till) blow(part []gust) (refused int) {
	d.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for few := range slices.Chunk(part, len(part)/8+1) {
		wg.Go(func() {
			for _, g := range few {
				key, want := secret, http.StatusOK
				if g.bad {
					key, want = "whsec_other", http.StatusBadRequest
					mu.Lock()
					refused++
					mu.Unlock()
				}
				if w := d.post(g.body, apptest.Sign(g.body, key, d.clock())); w.Code != want {
					d.t.Errorf("a delivery was answered %d, want %d: %s", w.Code, want, w.Body)
				}
			}
		})
	}
	wg.Wait()
	return refused
}

// work lets the workers apply what is due, side by side.
func (d *till) work(workers []*webhooks.Webhooks) {
	d.t.Helper()
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() {
			for more := true; more; {
				var err error
				if more, err = w.Step(d.t.Context()); err != nil {
					d.t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// settled holds what is kept against what has happened.
func (d *till) settled(b *bank, lost int) {
	d.t.Helper()
	if n := d.count("SELECT count(*) FROM stripe_events WHERE state <> 'done'"); n != 0 {
		d.t.Errorf("%d events are not done", n)
	}
	if n := d.count("SELECT count(*) FROM stripe_events"); n != len(b.events) {
		d.t.Errorf("%d events are kept, want %d", n, len(b.events))
	}
	if n := d.count("SELECT count(*) FROM stripe_events WHERE source = 'sweep'"); n < lost {
		d.t.Errorf("the sweep found %d events, at least %d were lost", n, lost)
	}
	var kept []struct {
		ID      string `db:"payment_id"`
		Account string
		Credits int64
		Grants  int
		Taken   int64
	}
	d.query(&kept, `SELECT p.payment_id, coalesce(p.account, '') AS account, p.credits, coalesce(g.grants, 0) AS grants, coalesce(c.taken, 0) AS taken
		FROM payments p
		LEFT JOIN (SELECT payment, count(*) AS grants FROM grants GROUP BY payment) g ON g.payment = p.payment_id
		LEFT JOIN (SELECT payment_id, sum(credits)::bigint AS taken FROM clawbacks GROUP BY payment_id) c ON c.payment_id = p.payment_id
		WHERE p.state = 'granted'`)
	if len(kept) != len(b.deals) {
		d.t.Errorf("%d payments are granted, want %d", len(kept), len(b.deals))
	}
	for _, k := range kept {
		deal := b.deals[k.ID]
		var gone int64
		for _, g := range slices.Concat(deal.refunds, deal.disputes) {
			gone += g.gone(d.clock())
		}
		gone = min(gone, deal.money)
		want := (2*int64(deal.credits)*gone + deal.money) / (2 * deal.money)
		if k.Grants != 1 || k.Account != deal.account || k.Credits != int64(deal.credits) || k.Taken != want {
			d.t.Errorf("%s is %+v; want one grant of %d to %s and %d taken back", k.ID, k, int64(deal.credits), deal.account, want)
		}
	}
	d.verify()
}

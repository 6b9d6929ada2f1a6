package webhooks_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/internal/apptest"
	"tallystick/webhooks"
)

// TestE02OnePurchaseIsOneGrantWhicheverOfItsEventsComes delivers each of the events
// that Stripe sends for one checkout alone, then all of them.
func TestE02OnePurchaseIsOneGrantWhicheverOfItsEventsComes(t *testing.T) {
	t.Parallel()
	s, all := beside(t)
	payment := s.Buy(s.Price)
	effective := 0
	for _, raw := range s.Events(payment) {
		alone := reading(t, s)
		alone.deliver(string(raw))
		alone.step()
		if alone.balance("acme") == "100" {
			effective++
		} else {
			alone.has("acme", "0")
		}
		all.deliver(string(raw))
		all.step()
	}
	all.has("acme", "100")
	if n := all.count("SELECT count(*) FROM grants"); n != 1 || effective != 2 {
		t.Errorf("%d events grant alone, and all of them make %d grants; want 2 and 1", effective, n)
	}
}

// TestAPaymentThatSettlesLaterIsGrantedWhenItHasSettled plays methods that take days.
func TestAPaymentThatSettlesLaterIsGrantedWhenItHasSettled(t *testing.T) {
	t.Parallel()
	s, d := beside(t)
	h := &history{t: t, s: s}
	for _, tc := range []struct {
		outcome, want string
		payments      int
	}{{"async_failed", "0", 0}, {"async_succeeded", "100", 1}, {"async_failed", "100", 1}} {
		before := d.balance("acme")
		session := s.Checkout(s.Price)
		h.pay(session, "unpaid")
		d.deliver(h.news()...)
		d.step()
		d.has("acme", before)
		h.pay(session, tc.outcome)
		d.deliver(h.news()...)
		d.step()
		d.has("acme", tc.want)
		if n := d.count("SELECT count(*) FROM payments"); n != tc.payments {
			t.Errorf("after %s there are %d payments, want %d", tc.outcome, n, tc.payments)
		}
	}
}

// history makes things happen at the simulator, and tells what is new.
type history struct {
	t      *testing.T
	s      *apptest.Shop
	random *rand.Rand

	packs    []string
	unpaid   []string // sessions that settle later
	payments []string
	refunds  []string
	told     map[string]bool
	all      []string
}

func (h *history) pay(session, outcome string) {
	h.t.Helper()
	if err := h.s.Sim.PayCheckout(session, outcome); err != nil {
		h.t.Fatal(err)
	}
	if outcome == "paid" || outcome == "async_succeeded" {
		h.payments = append(h.payments, fmt.Sprint(h.s.Stripe(http.MethodGet, "/v1/checkout/sessions/"+session, nil)["payment_intent"]))
	}
}

// news gives the events that were raised since the last call, oldest first.
func (h *history) news() []string {
	h.t.Helper()
	if h.told == nil {
		h.told = map[string]bool{}
	}
	raw := h.s.Events("")
	slices.Reverse(raw)
	var news []string
	for _, body := range raw {
		var e struct{ ID string }
		if err := json.Unmarshal(body, &e); err != nil {
			h.t.Fatal(err)
		}
		if !h.told[e.ID] {
			h.told[e.ID] = true
			news = append(news, string(body))
		}
	}
	h.all = append(h.all, news...)
	return news
}

// act lets one thing happen.
func (h *history) act() {
	h.t.Helper()
	switch n := h.random.IntN(10); {
	case n < 4 || len(h.payments) == 0:
		h.checkout()
	case n == 4 && len(h.unpaid) > 0:
		h.pay(h.unpaid[0], []string{"async_succeeded", "async_failed"}[h.random.IntN(2)])
		h.unpaid = h.unpaid[1:]
	case n < 8 || len(h.refunds) == 0:
		h.giveBack()
	default:
		i := h.random.IntN(len(h.refunds))
		if err := h.s.Sim.EndRefund(h.refunds[i], "failed"); err != nil {
			h.t.Fatal(err)
		}
		h.refunds = slices.Delete(h.refunds, i, i+1)
	}
}

// checkout opens a session for the account acme, other or an unknown one, and
// pays it, now or later.
func (h *history) checkout() {
	h.t.Helper()
	values := url.Values{
		"mode": {"payment"}, "success_url": {"https://example.com/thanks"}, "line_items[0][price]": {h.packs[h.random.IntN(len(h.packs))]},
		"line_items[0][quantity]": {fmt.Sprint(1 + h.random.IntN(3))},
	}
	switch h.random.IntN(5) {
	case 0:
		values.Set("client_reference_id", "nobody")
	case 1, 2:
		values.Set("client_reference_id", "other")
	default:
		values.Set("customer", h.s.Customer)
	}
	session := h.s.Make("/v1/checkout/sessions", values)
	if h.random.IntN(4) > 0 {
		h.pay(session, "paid")
		return
	}
	h.pay(session, "unpaid")
	h.unpaid = append(h.unpaid, session)
}

// giveBack refunds some of what is left of a payment, if anything is.
func (h *history) giveBack() {
	h.t.Helper()
	payment := h.payments[h.random.IntN(len(h.payments))]
	charge := h.s.Stripe(http.MethodGet, "/v1/charges?payment_intent="+payment, nil)["data"].([]any)[0].(map[string]any)
	left := int(charge["amount_captured"].(float64) - charge["amount_refunded"].(float64))
	if left == 0 {
		return
	}
	values := url.Values{"payment_intent": {payment}}
	if h.random.IntN(3) > 0 {
		values.Set("amount", fmt.Sprint(1+h.random.IntN(left)))
	}
	if h.random.IntN(3) == 0 {
		values.Set("metadata[sim_status]", "pending")
	}
	h.refunds = append(h.refunds, h.s.Make("/v1/refunds", values))
}

// books is what must not depend on how events came. A refund that failed before
// its first event came leaves no clawback, else one of nothing.
func (d *till) books() (lines []string) {
	d.t.Helper()
	d.query(&lines, `
		SELECT concat_ws(' ', 'account', account, available, debt) FROM accounts
		UNION ALL SELECT concat_ws(' ', 'payment', payment_id, session_id, state, account, credits, money, currency, reason) FROM payments
		UNION ALL SELECT concat_ws(' ', 'grant', grant_id, account, credits, remaining, payment) FROM grants
		UNION ALL SELECT concat_ws(' ', 'clawback', refund_id, payment_id, account, money, credits) FROM clawbacks WHERE credits > 0
		ORDER BY 1`)
	return lines
}

// shares holds the clawbacks against arithmetic of its own: what is left of each
// grant is in proportion to the money that Stripe says has stayed.
func (d *till) shares(h *history) {
	d.t.Helper()
	for _, payment := range h.payments {
		var kept []struct{ Credits, Money, Taken int64 }
		d.query(&kept, `SELECT p.credits, p.money, coalesce(sum(c.credits), 0)::bigint AS taken FROM payments p LEFT JOIN clawbacks c USING (payment_id)
			WHERE p.state = 'granted' AND p.payment_id = $1 GROUP BY p.payment_id`, payment)
		if len(kept) == 0 {
			continue
		}
		var back int64
		for _, r := range h.s.Stripe(http.MethodGet, "/v1/refunds?limit=100&payment_intent="+payment, nil)["data"].([]any) {
			if r := r.(map[string]any); r["status"] != "failed" {
				back += int64(r["amount"].(float64))
			}
		}
		k := kept[0]
		if want := (2*k.Credits*back + k.Money) / (2 * k.Money); k.Taken != want {
			d.t.Errorf("of %d for %s %d are taken back, want %d", k.Credits, payment, k.Taken, want)
		}
	}
}

// chaos delivers each event one to five times, in any order, from several sides at
// once, while two workers apply what comes.
func (d *till) chaos(random *rand.Rand, events []string) {
	d.t.Helper()
	var deliveries []string
	for _, body := range events {
		for range 1 + random.IntN(5) {
			deliveries = append(deliveries, body)
		}
	}
	random.Shuffle(len(deliveries), func(i, j int) { deliveries[i], deliveries[j] = deliveries[j], deliveries[i] })
	var senders, workers sync.WaitGroup
	for part := range slices.Chunk(deliveries, len(deliveries)/4+1) {
		senders.Go(func() { d.deliver(part...) })
	}
	over := make(chan struct{})
	for _, worker := range []*webhooks.Webhooks{d.Webhooks, d.another()} {
		workers.Go(func() {
			for last := false; !last; {
				select {
				case <-over:
					last = true
				default:
				}
				if _, err := worker.Step(d.t.Context()); err != nil {
					d.t.Error(err)
				}
			}
		})
	}
	senders.Wait()
	close(over)
	workers.Wait()
}

// rest lets the worker come back to events of payments that two had at once.
func (d *till) rest() {
	d.t.Helper()
	for range 200 {
		d.step()
		if d.count("SELECT count(*) FROM stripe_events WHERE state = 'pending'") == 0 {
			return
		}
		d.pass(2 * time.Second)
	}
	d.t.Errorf("events stay pending: %+v", d.rows())
}

// TestE03AnyOrderAndNumberOfEventsEndsAsInOrder lets purchases and refunds happen.
// One till gets each event once and at once; the other some of them now and then,
// and in the end all of them in disorder.
func TestE03AnyOrderAndNumberOfEventsEndsAsInOrder(t *testing.T) {
	t.Parallel()
	for range 2 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			s, ordered := beside(t)
			s.Control("/_sim/switches", `{"refund_events": true}`)
			disordered := reading(t, s)
			h := &history{t: t, s: s, random: random, packs: []string{s.Price, s.Pack(nil)}}
			for _, credits := range []string{"33.333333", "0.000007"} {
				h.packs = append(h.packs, s.Pack(url.Values{"metadata[credits]": {credits}}))
			}
			for _, d := range []*till{ordered, disordered} {
				d.account("other")
			}
			for range 24 {
				h.act()
				ordered.deliver(h.news()...)
				ordered.step()
				if random.IntN(4) == 0 {
					disordered.chaos(random, h.all[:random.IntN(len(h.all))])
				}
			}
			disordered.chaos(random, h.all)
			disordered.rest()
			want, got := ordered.books(), disordered.books()
			if !slices.Equal(got, want) {
				t.Errorf("in disorder it ends as\n%s\nin order as\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			for _, d := range []*till{ordered, disordered} {
				d.verify()
				d.shares(h)
			}
		})
	}
}

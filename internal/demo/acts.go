package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/pg"
)

// The customers of the story, by account id.
var accounts = []string{"acct-ash", "acct-birch", "acct-cedar", "acct-elm", "acct-larch", "acct-oak"}

// What is sold: input and output tokens, dearer for the large model.
var meters = []struct {
	name, event string
	request     api.MeterRequest
	price       string // of one unit at Stripe, in cents
}{
	{"llm.input_tokens", "llm_input_tokens", api.MeterRequest{
		Unit: "token", CreditsPerUnit: "0.002", Rates: []api.Rate{{Match: map[string]string{"model": "large"}, CreditsPerUnit: "0.01"}},
	}, "0.002"},
	{"llm.output_tokens", "llm_output_tokens", api.MeterRequest{
		Unit: "token", CreditsPerUnit: "0.006", Rates: []api.Rate{{Match: map[string]string{"model": "large"}, CreditsPerUnit: "0.03"}},
	}, "0.006"},
}

// opening makes the price list and customers, and lets everybody buy.
func (s *story) opening() error {
	for _, m := range meters {
		if err := s.meter(m.name, m.event, m.price, m.request); err != nil {
			return err
		}
	}
	var err error
	if s.at, err = s.pack("1 000 credits", 1000, 1000); err == nil {
		s.big, err = s.pack("10 000 credits", 10000, 9000)
	}
	if err != nil {
		return err
	}
	for _, account := range accounts {
		customer, err := s.stripe("/v1/customers", url.Values{"name": {account}, "metadata[account]": {account}})
		if err != nil {
			return err
		}
		id := fmt.Sprint(customer["id"])
		s.buyers = append(s.buyers, buyer{account: account, customer: id})
		if err := s.put("/v1/accounts/"+account, api.AccountRequest{StripeCustomers: []string{id}}); err != nil {
			return err
		}
	}
	for i, b := range s.buyers {
		price := s.at
		if i%2 == 0 {
			price = s.big
		}
		if err := s.buy(b, price); err != nil {
			return err
		}
	}
	if err := s.settle(); err != nil {
		return err
	}
	for _, b := range s.buyers {
		var a api.Account
		if err := s.get("/v1/accounts/"+b.account, &a); err != nil {
			return err
		}
		s.tell("  %-11s paid at checkout and holds %s credits", b.account, a.Balance.Available)
	}
	return nil
}

// meter makes a meter on both sides, and its price at Stripe.
func (s *story) meter(name, event, cents string, q api.MeterRequest) error {
	m, err := s.stripe("/v1/billing/meters", url.Values{
		"display_name": {name}, "event_name": {event}, "default_aggregation[formula]": {"sum"},
	})
	if err != nil {
		return err
	}
	product, err := s.stripe("/v1/products", url.Values{"name": {name}})
	if err != nil {
		return err
	}
	_, err = s.stripe("/v1/prices", url.Values{
		"product": {fmt.Sprint(product["id"])}, "currency": {"usd"}, "unit_amount_decimal": {cents}, "recurring[interval]": {"month"},
		"recurring[usage_type]": {"metered"}, "recurring[meter]": {fmt.Sprint(m["id"])},
	})
	if err != nil {
		return err
	}
	q.Stripe = &api.StripeBinding{Kind: "meter", EventName: event}
	return s.put("/v1/meters/"+name, q)
}

// pack makes a price that buys credits.
func (s *story) pack(name string, credits, cents int) (price string, err error) {
	product, err := s.stripe("/v1/products", url.Values{"name": {name}})
	if err != nil {
		return "", err
	}
	p, err := s.stripe("/v1/prices", url.Values{
		"product": {fmt.Sprint(product["id"])}, "currency": {"usd"}, "unit_amount": {strconv.Itoa(cents)}, "metadata[credits]": {strconv.Itoa(credits)},
	})
	return fmt.Sprint(p["id"]), err
}

// buy goes through checkout.
func (s *story) buy(b buyer, price string) error {
	session, err := s.stripe("/v1/checkout/sessions", url.Values{
		"mode": {"payment"}, "customer": {b.customer}, "client_reference_id": {b.account}, "success_url": {"https://example.com/thanks"},
		"line_items[0][price]": {price}, "line_items[0][quantity]": {"1"},
	})
	if err != nil {
		return err
	}
	return s.u.Sim.PayCheckout(fmt.Sprint(session["id"]), "paid")
}

// noonRequests is how many model calls the story makes.
const noonRequests = 400

// noon sends usage as clients really do: a tenth of all requests twice, some at
// the same moment, one that gives up waiting, and one customer out of credits.
func (s *story) noon() error {
	type call struct {
		q     api.UsageRequest
		twice bool
	}
	calls := make([]call, 0, noonRequests)
	for i := range noonRequests {
		m := meters[i%2]
		model := "small"
		if s.random.IntN(4) == 0 {
			model = "large"
		}
		calls = append(calls, call{twice: s.random.IntN(10) == 0, q: api.UsageRequest{
			ID: fmt.Sprintf("noon-%06d", i), Account: accounts[s.random.IntN(len(accounts))], Meter: m.name,
			Quantity: api.Decimal(strconv.Itoa(1 + s.random.IntN(900))), Dimensions: map[string]string{"model": model},
		}})
	}
	var mu sync.Mutex
	var failed error
	statuses := map[int]int{}
	replayed := 0
	send := func(q api.UsageRequest) {
		status, again, err := s.usage(s.ctx, q)
		mu.Lock()
		defer mu.Unlock()
		statuses[status]++
		if again {
			replayed++
		}
		if err != nil && failed == nil {
			failed = err
		}
	}
	queue := make(chan call)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for c := range queue {
				if c.twice { // a client that retries too soon: both at the same moment
					var pair sync.WaitGroup
					pair.Go(func() { send(c.q) })
					pair.Go(func() { send(c.q) })
					pair.Wait()
					continue
				}
				send(c.q)
			}
		})
	}
	for _, c := range calls {
		queue <- c
	}
	close(queue)
	wg.Wait()
	if failed != nil {
		return failed
	}
	s.result.Requests = statuses[201] + statuses[402]
	s.result.Recorded = statuses[201] - replayed
	s.tell("  %d requests for %d model calls: %d recorded, %d were repeats and charged nothing, %d refused for lack of credits",
		s.result.Requests, noonRequests, s.result.Recorded, replayed, statuses[402])
	if err := s.timeout(); err != nil {
		return err
	}
	if err := s.race(); err != nil {
		return err
	}
	return s.refund()
}

// timeout plays a client that gives up waiting and sends the same id again.
func (s *story) timeout() error {
	q := api.UsageRequest{ID: "timeout-000001", Account: accounts[0], Meter: meters[0].name, Quantity: "120"}
	ctx, cancel := context.WithTimeout(s.ctx, time.Millisecond)
	_, _, gaveUp := s.usage(ctx, q)
	cancel()
	status, _, err := s.usage(s.ctx, q)
	if err != nil {
		return err
	}
	if _, _, err = s.usage(s.ctx, q); err != nil {
		return err
	}
	var total api.UsageTotals
	if err := s.get("/v1/accounts/"+q.Account+"/usage?group_by=meter&meter="+q.Meter, &total); err != nil {
		return err
	}
	s.tell("  a client gave up after a millisecond (%v) and sent the same id twice more: answered %d, charged once", gaveUp != nil, status)
	return nil
}

// race lets many requests fight for the last credit.
func (s *story) race() error {
	account := "acct-race"
	if err := s.put("/v1/accounts/"+account, api.AccountRequest{}); err != nil {
		return err
	}
	if err := s.put("/v1/meters/call", api.MeterRequest{Unit: "call", CreditsPerUnit: "1"}); err != nil {
		return err
	}
	if err := s.post("/v1/accounts/"+account+"/grants", api.GrantRequest{ID: "race-grant-1", Credits: "1", Reason: "the last credit"}, nil); err != nil {
		return err
	}
	var mu sync.Mutex
	accepted := 0
	var failed error
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			status, _, err := s.usage(s.ctx, api.UsageRequest{ID: fmt.Sprintf("race-%06d", i), Account: account, Meter: "call", Quantity: "1"})
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
			if status == http.StatusCreated {
				accepted++
			}
		})
	}
	wg.Wait()
	s.tell("  50 requests raced for the last credit of %s: %d accepted", account, accepted)
	return failed
}

// refund gives a third of a purchase back.
func (s *story) refund() error {
	b := s.buyers[4]
	var a api.Account
	if err := s.get("/v1/accounts/"+b.account, &a); err != nil {
		return err
	}
	payment := ""
	for _, g := range a.Grants {
		if g.Payment != nil {
			payment = *g.Payment
		}
	}
	if _, err := s.stripe("/v1/refunds", url.Values{"payment_intent": {payment}, "amount": {"3000"}}); err != nil {
		return err
	}
	before := a.Balance.Available
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.get("/v1/accounts/"+b.account, &a); err != nil {
		return err
	}
	s.tell("  30.00 of 90.00 USD refunded to %s: its balance went from %s to %s", b.account, before, a.Balance.Available)
	return nil
}

func (s *story) plant(check, account, cause, what string) {
	s.result.Planted = append(s.result.Planted, Planted{Check: check, Account: account, Cause: cause, What: what})
	s.tell("  %s", what)
}

// afternoon plants the defects: each is one that no request of any client notices.
func (s *story) afternoon() error {
	if err := s.pass(settleTime); err != nil { // what noon has sent is at Stripe
		return err
	}
	if err := s.missedWebhook(s.buyers[1]); err != nil {
		return err
	}
	if err := s.lostDelivery(s.buyers[2]); err != nil {
		return err
	}
	if err := s.deletedDelivery(s.buyers[3]); err != nil {
		return err
	}
	return s.driftedBalance(s.buyers[5])
}

// missedWebhook lets somebody pay whose events never arrive.
func (s *story) missedWebhook(b buyer) error {
	lose := `{"lose":{"types":["checkout.session.completed","payment_intent.succeeded"]}}`
	if err := s.control("/_sim/webhooks", lose); err != nil {
		return err
	}
	if err := s.buy(b, s.at); err != nil {
		return err
	}
	if err := s.control("/_sim/webhooks", `{"lose":0}`); err != nil {
		return err
	}
	s.plant("credits.payments", b.account, "webhook_missed", b.account+" pays 10.00 USD and Stripe's webhooks are lost on the way")
	if err := s.buy(s.buyers[4], s.at); err != nil { // whose webhooks arrive: the endpoint is not to blame
		return err
	}
	return s.settle()
}

// lostDelivery lets Stripe acknowledge usage and drop it afterwards.
func (s *story) lostDelivery(b buyer) error {
	if err := s.spend(b, "lost", 5000); err != nil {
		return err
	}
	if err := s.control("/_sim/faults", `{"rules":[{"method":"POST","path":"/v1/billing/meter_events","fault":"lose"}]}`); err != nil {
		return err
	}
	if err := s.pass(10 * time.Minute); err != nil {
		return err
	}
	s.u.Sim.ClearFaults()
	s.plant("usage.totals", b.account, "lost_at_stripe", "Stripe answers 200 to usage of "+b.account+" and drops it")
	return nil
}

// deletedDelivery removes a staged row behind our back.
func (s *story) deletedDelivery(b buyer) error {
	if err := s.spend(b, "gone", 7000); err != nil {
		return err
	}
	if err := s.vandalise("DELETE FROM deliveries WHERE account = $1 AND state = 'pending'", b.account); err != nil {
		return err
	}
	s.plant("usage.totals", b.account, "never_staged", "somebody deletes a row of usage of "+b.account+" that was waiting to be sent")
	return nil
}

// driftedBalance changes a balance by hand, as a hurried script would.
func (s *story) driftedBalance(b buyer) error {
	if err := s.vandalise("UPDATE accounts SET available = available + 250000000 WHERE account = $1", b.account); err != nil {
		return err
	}
	s.plant("ledger.balances", b.account, "balance_changed_outside", "a script adds 250 credits to the balance of "+b.account+", past the journal")
	return nil
}

func (s *story) spend(b buyer, id string, quantity int) error {
	q := api.UsageRequest{ID: id + "-000001", Account: b.account, Meter: meters[0].name, Quantity: api.Decimal(strconv.Itoa(quantity))}
	status, _, err := s.usage(s.ctx, q)
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("usage of %s was answered %d", b.account, status)
	}
	return err
}

// vandalise runs a statement with the rights of the database's owner.
func (s *story) vandalise(statement string, args ...any) error {
	db, err := pg.Open(s.ctx, s.u.Info.DatabaseURL, pg.Options{Owner: true, ConnectionsMax: 1})
	if err != nil {
		return err
	}
	return errors.Join(db.InTx(s.ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(s.ctx, statement, args...)
		return err
	}), db.Close())
}

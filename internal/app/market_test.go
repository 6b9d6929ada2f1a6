package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/apptest"
	"tallystick/stripesim"
)

// market is a shop with many customers, whose days are played: its hours pass by
// steps of the background workers, and its checks run by the hours' slots.
type market struct {
	*apptest.Shop
	t      *testing.T
	random *rand.Rand
	names  []string          // of the accounts that live
	of     map[string]string // their customers at Stripe

	serial   int
	used     []usedCall
	payments []string // that have been neither refunded nor disputed
	disputes []string // that are open
	pending  []string // refunds that may fail
	failures map[string]int
	unswept  bool // Stripe's list of events is not looked through for those that were missed
}

// usedCall is a usage that may be sent again or voided.
type usedCall struct {
	id, account, body string
	at                time.Time
	voided            bool
}

// openMarket opens with a number of accounts that live.
func openMarket(t *testing.T, seed uint64, accounts int) *market {
	t.Helper()
	m := &market{
		Shop:   apptest.OpenShop(t, apptest.Options{Settings: map[string]string{"TALLYSTICK_RECONCILE_SETTLE": "15m"}}),
		t:      t,
		random: rand.New(rand.NewPCG(seed, 1)), of: map[string]string{}, failures: map[string]int{},
	}
	m.Want(http.StatusCreated, http.MethodPut, "/v1/meters/tokens", `{"credits_per_unit": "0.5", "rates": [{"match": {"model": "large"}, "credits_per_unit": "1.5"}]}`, nil)
	seat := m.Make("/v1/prices", url.Values{
		"product": {m.Make("/v1/products", url.Values{"name": {"seats"}})}, "currency": {"usd"}, "unit_amount": {"3"}, "recurring[interval]": {"month"},
		"recurring[usage_type]": {"metered"},
	})
	m.Want(http.StatusCreated, http.MethodPut, "/v1/meters/seat", `{"credits_per_unit": 1, "stripe": {"kind": "usage_record", "price": "`+seat+`"}}`, nil)
	for i := range accounts {
		name := fmt.Sprintf("buyer-%d", i)
		m.open(name)
		m.Make("/v1/subscriptions", url.Values{"customer": {m.of[name]}, "items[0][price]": {seat}})
		m.names = append(m.names, name)
		m.Want(http.StatusCreated, http.MethodPost, "/v1/accounts/"+name+"/grants", fmt.Sprintf(`{"id": "grant-%s", "credits": 100000}`, name), nil)
	}
	now := m.Clock.Now()
	m.Sim.Advance(now.Truncate(time.Hour).Add(time.Hour + 5*time.Minute).Sub(now))
	m.steps()
	return m
}

// open makes an account with a customer of its own.
func (m *market) open(name string) {
	m.t.Helper()
	m.of[name] = m.Make("/v1/customers", url.Values{"name": {name}})
	m.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/"+name, `{"stripe_customers": ["`+m.of[name]+`"]}`, nil)
}

// id makes one that was never used before.
func (m *market) id(kind string) string {
	m.serial++
	return fmt.Sprintf("%s-%08d", kind, m.serial)
}

// use records usage of some time ago.
func (m *market) use(account, meter string, quantity int, ago time.Duration) usedCall {
	m.t.Helper()
	u := usedCall{id: m.id("usage"), account: account, at: m.Clock.Now()}
	dimensions := ""
	if meter == "tokens" {
		dimensions = `, "dimensions": {"model": "large"}`
	}
	u.body = fmt.Sprintf(`{"id": %q, "account": %q, "meter": %q, "quantity": %d, "occurred_at": %q%s}`, u.id, account, meter, quantity, u.at.Add(-ago).Format(time.RFC3339), dimensions)
	m.Want(http.StatusCreated, http.MethodPost, "/v1/usage", u.body, nil)
	m.used = append(m.used, u)
	return u
}

// buy pays for a pack of 100 credits and gives the payment.
func (m *market) buy(account, price string) string {
	m.t.Helper()
	session := m.Make("/v1/checkout/sessions", url.Values{
		"mode": {"payment"}, "customer": {m.of[account]}, "client_reference_id": {account}, "success_url": {"https://example.com/thanks"},
		"line_items[0][price]": {price}, "line_items[0][quantity]": {"1"},
	})
	if err := m.Sim.PayCheckout(session, "paid"); err != nil {
		m.t.Fatal(err)
	}
	return fmt.Sprint(m.Stripe(http.MethodGet, "/v1/checkout/sessions/"+session, nil)["payment_intent"])
}

// dispute lets the buyer dispute a payment and gives the dispute.
func (m *market) dispute(payment string) string {
	m.t.Helper()
	id, err := m.Sim.OpenDispute(stripesim.Dispute{Charge: fmt.Sprint(m.Stripe(http.MethodGet, "/v1/payment_intents/"+payment, nil)["latest_charge"])})
	if err != nil {
		m.t.Fatal(err)
	}
	return id
}

// live plays something of an hour of one account.
func (m *market) live() {
	m.t.Helper()
	account := m.names[m.random.IntN(len(m.names))]
	switch n := m.random.IntN(20); {
	case n < 9:
		m.use(account, []string{"call", "call", "seat", "tokens"}[m.random.IntN(4)], 1+m.random.IntN(9), time.Duration(m.random.IntN(40))*time.Second)
	case n < 10: // late
		m.use(account, []string{"call", "tokens"}[m.random.IntN(2)], 1+m.random.IntN(9), time.Duration(m.random.IntN(30))*time.Hour)
	case n < 12 && len(m.used) > 0: // sent again
		if u := m.used[m.random.IntN(len(m.used))]; m.Clock.Now().Sub(u.at) < 20*24*time.Hour {
			m.Want(http.StatusCreated, http.MethodPost, "/v1/usage", u.body, nil)
		}
	case n < 13 && len(m.used) > 0:
		m.void()
	case n < 15:
		m.reserve(account)
	case n < 17:
		m.payments = append(m.payments, m.buy(account, m.Price))
	case n < 19:
		m.moneyBack()
	default:
		m.Want(http.StatusCreated, http.MethodPost, "/v1/accounts/"+account+"/grants", fmt.Sprintf(`{"id": %q, "credits": 10}`, m.id("grant")), nil)
	}
}

// void takes back usage of the last hours.
func (m *market) void() {
	m.t.Helper()
	i := max(len(m.used)-1-m.random.IntN(5), 0)
	if u := &m.used[i]; !u.voided && m.Clock.Now().Sub(u.at) < 20*time.Hour {
		u.voided = true
		m.Want(http.StatusCreated, http.MethodPost, "/v1/usage/"+u.id+"/void", `{"account": "`+u.account+`", "reason": "a mistake"}`, nil)
	}
}

// reserve holds credits, which are captured, released, or left to expire.
func (m *market) reserve(account string) {
	m.t.Helper()
	id := m.id("resv")
	m.Want(http.StatusCreated, http.MethodPost, "/v1/reservations", fmt.Sprintf(`{"id": %q, "account": %q, "meter": "call", "credits": "5", "ttl_seconds": 600}`, id, account), nil)
	switch m.random.IntN(3) {
	case 0:
		m.Want(http.StatusOK, http.MethodPost, "/v1/reservations/"+id+"/release", `{}`, nil)
	case 1:
		m.Want(http.StatusCreated, http.MethodPost, "/v1/reservations/"+id+"/capture", fmt.Sprintf(`{"quantity": %d}`, 1+m.random.IntN(7)), nil)
	}
}

// moneyBack refunds, or disputes, or ends what was begun before.
func (m *market) moneyBack() {
	m.t.Helper()
	check := func(err error) {
		if err != nil {
			m.t.Fatal(err)
		}
	}
	pop := func(list *[]string) string {
		first := (*list)[0]
		*list = (*list)[1:]
		return first
	}
	switch n := m.random.IntN(4); {
	case n == 0 && len(m.disputes) > 0:
		check(m.Sim.ResolveDispute(pop(&m.disputes), []string{"won", "lost"}[m.random.IntN(2)], 0))
	case n == 1 && len(m.pending) > 0:
		check(m.Sim.FailRefund(pop(&m.pending), "expired_or_canceled_card"))
	case n == 2 && len(m.payments) > 0:
		m.disputes = append(m.disputes, m.dispute(pop(&m.payments)))
	case len(m.payments) > 0:
		m.pending = append(m.pending, m.Make("/v1/refunds", url.Values{"payment_intent": {pop(&m.payments)}, "amount": {fmt.Sprint(100 * (1 + m.random.IntN(10)))}}))
	}
}

// steps lets every worker do what is due, beside those of the program that look by
// real time. What fails is tried again: Stripe may be away.
func (m *market) steps() {
	m.t.Helper()
	if err := m.Sim.Drain(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	for name, step := range map[string]func(context.Context) (bool, error){
		"events": m.App.App.Webhooks.Step, "sweep": m.App.App.Webhooks.SweepStep, "parked": m.App.App.Webhooks.ParkedStep,
		"deliveries": m.App.App.Outbox.UsageStep, "settle": m.App.App.Outbox.SettleStep, "reservations": m.App.App.Meter.ReservationStep,
	} {
		for range 100 {
			if name == "sweep" && m.unswept {
				break
			}
			more, err := step(m.t.Context())
			if err != nil {
				m.failures[name]++
			}
			if err != nil || !more {
				break
			}
		}
	}
}

// pass lets time pass in parts of a quarter of an hour.
func (m *market) pass(d time.Duration) {
	m.t.Helper()
	for ; d > 0; d -= 15 * time.Minute {
		m.Sim.Advance(min(d, 15*time.Minute))
		m.steps()
	}
}

// audit runs all checks by the slot of the hour, and tells how many have failed.
func (m *market) audit() (failed int) {
	m.t.Helper()
	runs, err := m.App.App.Reconcile.RunSlot(m.t.Context(), m.Clock.Now().Truncate(time.Minute))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, r := range runs {
		if r.State != "succeeded" {
			failed++
			m.failures["run of "+r.Check]++
		}
	}
	return failed
}

// findings are all that ever were, in any state.
func (m *market) findings() (all []api.Finding) {
	m.t.Helper()
	for cursor := ""; ; {
		var page struct {
			Data       []api.Finding
			NextCursor string `json:"next_cursor"`
		}
		m.Want(http.StatusOK, http.MethodGet, "/v1/findings?state=all&limit=500"+cursor, nil, &page)
		all = append(all, page.Data...)
		if page.NextCursor == "" {
			return all
		}
		cursor = "&cursor=" + url.QueryEscape(page.NextCursor)
	}
}

// told is a finding with its evidence, for whoever looks into a campaign that failed.
func told(f *api.Finding) string {
	evidence, err := json.Marshal(f.Evidence)
	if err != nil {
		evidence = []byte(err.Error())
	}
	money := "unknown money"
	if f.MoneyAtRisk != nil {
		money = f.MoneyAtRisk.Text
	}
	return strings.Join([]string{
		fmt.Sprintf("%s %s of %q (%s), %s: %q here, %q there, %s %s, %s", f.Check, f.Cause, f.Account, f.Subject, f.State, f.Ours, f.Theirs, f.Difference, f.Unit, money),
		fmt.Sprintf("happened %s, opened %s, last seen %s", f.HappenedAt.Format(time.RFC3339), f.OpenedAt.Format(time.RFC3339), f.LastSeen.Format(time.RFC3339)),
		f.Explanation, string(evidence),
	}, "\n    ")
}

package app_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/stripesim"
)

var (
	defectSeeds = flag.Int("defect-seeds", 1, "random campaigns of planted defects that are played")
	defectDays  = flag.Int("defect-days", 1, "virtual days of each")
	defectSeed  = flag.Uint64("defect-seed", 0, "the seed of the first, to play it again")
)

// flaw is a defect of one account that has bought 100 credits for 10.00 USD and has
// used 7 calls, and what must be found of it. Its name is the cause.
type flaw struct {
	name    string
	plant   func(m *market, account string)
	check   string
	differs string
	money   string
	visible time.Duration // how long after it was planted a check can see it
}

// A window ends a quarter of an hour behind the present; journals behind the marks
// are read whole once a day.
const (
	soon   = 40 * time.Minute
	daily  = 25 * time.Hour
	hourly = 2 * time.Hour
)

// flaws are those that touch one account only, so that any mix of them can be told apart.
var flaws = []flaw{
	{"lost_at_stripe", func(m *market, account string) {
		m.fault(stripesim.Fault{Path: "/v1/billing/meter_events", Fault: "lose", Times: 1})
		m.use(account, "call", 5, 0)
		m.pass(15 * time.Minute)
	}, "usage.totals", "-5", "0.10 USD", soon},
	{"refused_asynchronously", func(m *market, account string) {
		if err := m.Sim.FailMeterEvents("calls", "meter_event_no_customer_defined", 1); err != nil {
			m.t.Fatal(err)
		}
		m.use(account, "call", 5, 0)
		m.pass(15 * time.Minute)
	}, "usage.totals", "-5", "0.10 USD", soon},
	{"never_staged", func(m *market, account string) {
		m.use(account, "call", 5, 0)
		vandalise(m.t, m.App, "DELETE FROM deliveries WHERE state = 'pending' AND account = $1", account)
	}, "usage.totals", "-5", "0.10 USD", soon},
	{"sent_by_somebody_else", func(m *market, account string) {
		m.Stripe(http.MethodPost, "/v1/billing/meter_events", url.Values{
			"event_name": {"calls"}, "payload[stripe_customer_id]": {m.of[account]}, "payload[value]": {"5"}, "identifier": {"foreign-" + account},
		})
	}, "usage.totals", "+5", "0.10 USD", soon},
	{"webhook_missed", func(m *market, account string) {
		m.deaf(func() { m.buy(account, m.Price) })
	}, "credits.payments", "+100", "10.00 USD", soon},
	{"parked", func(m *market, account string) { m.buy(account, m.Pack(nil)) }, "credits.payments", "0", "10.00 USD", soon},
	{"wrong_amount", func(m *market, account string) {
		vandalise(m.t, m.App, "UPDATE grants SET credits = 150000000 WHERE account = $1", account)
	}, "credits.payments", "-50", "5.00 USD", soon},
	{"phantom_grant", func(m *market, account string) {
		vandalise(m.t, m.App, `INSERT INTO grants SELECT part, account, grant_id || '-2', kind, 30000000, 0, priority, expires_at, reason, 'pi_nobody_' || account, fingerprint,
			transfer_version, created_at FROM grants WHERE account = $1`, account)
	}, "credits.payments", "-30", "3.00 USD", soon},
	{"granted_twice", func(m *market, account string) {
		vandalise(m.t, m.App, `INSERT INTO grants SELECT part, account, grant_id || '-2', kind, credits, 0, priority, expires_at, reason, payment, fingerprint, transfer_version,
			created_at FROM grants WHERE account = $1`, account)
	}, "credits.payments", "-100", "10.00 USD", soon},
	{"refund_missed", func(m *market, account string) {
		m.deaf(func() { m.Make("/v1/refunds", url.Values{"payment_intent": {m.paid(account)}, "amount": {"500"}}) })
	}, "credits.refunds", "+50", "5.00 USD", soon},
	{"refund_failed", func(m *market, account string) {
		refund := m.Make("/v1/refunds", url.Values{"payment_intent": {m.paid(account)}, "amount": {"500"}})
		m.pass(15 * time.Minute)
		m.deaf(func() {
			if err := m.Sim.FailRefund(refund, "expired_or_canceled_card"); err != nil {
				m.t.Fatal(err)
			}
		})
	}, "credits.refunds", "-50", "5.00 USD", soon},
	{"dispute_missed", func(m *market, account string) {
		m.deaf(func() { m.dispute(m.paid(account)) })
	}, "credits.disputes", "+100", "10.00 USD", soon},
	{"dispute_not_given_back", func(m *market, account string) {
		dispute := m.dispute(m.paid(account))
		m.pass(15 * time.Minute)
		m.deaf(func() {
			if err := m.Sim.ResolveDispute(dispute, "won", 0); err != nil {
				m.t.Fatal(err)
			}
		})
	}, "credits.disputes", "-100", "10.00 USD", soon},
	{"balance_changed_outside", func(m *market, account string) {
		vandalise(m.t, m.App, "UPDATE accounts SET available = available + 2500000 WHERE account = $1", account)
	}, "ledger.balances", "-2.5", "0.25 USD", soon},
	{"grant_changed_outside", func(m *market, account string) {
		vandalise(m.t, m.App, "UPDATE grants SET remaining = remaining - 2500000 WHERE account = $1", account)
	}, "ledger.grants", "+2.5", "0.25 USD", soon},
	{"grant_missing", func(m *market, account string) {
		m.Want(http.StatusCreated, http.MethodPost, "/v1/accounts/"+account+"/grants", `{"id": "gift-`+account+`", "credits": 20}`, nil)
		vandalise(m.t, m.App, "DELETE FROM grants WHERE account = $1 AND kind = 'grant'", account)
	}, "ledger.grants", "+20", "2.00 USD", soon},
	{"transfer_without_usage", func(m *market, account string) {
		u := m.use(account, "tokens", 2, 0)
		vandalise(m.t, m.App, "DELETE FROM usage WHERE account = $1 AND usage_id = $2", account, u.id)
	}, "ledger.usage", "+3", "0.30 USD", soon},
	{"usage_amount_changed", func(m *market, account string) {
		u := m.use(account, "tokens", 2, 0)
		vandalise(m.t, m.App, "UPDATE usage SET credits = 5000000 WHERE account = $1 AND usage_id = $2", account, u.id)
	}, "ledger.usage", "-2", "0.20 USD", soon},
	{"wrong_price", func(m *market, account string) {
		u := m.use(account, "tokens", 2, 0)
		m.use(account, "tokens", 2, 0)
		vandalise(m.t, m.App, "UPDATE usage SET quantity = 3000000 WHERE account = $1 AND usage_id = $2", account, u.id)
	}, "ledger.usage", "+1.5", "0.15 USD", soon},
	{"reservation_missing", func(m *market, account string) {
		m.hold(account, "2.5")
		vandalise(m.t, m.App, "DELETE FROM reservations WHERE account = $1", account)
	}, "ledger.holds", "+2.5", "0.25 USD", soon},
	{"in_doubt", func(m *market, account string) {
		m.Want(http.StatusOK, http.MethodPost, "/v1/reservations/"+m.hold(account, "4")+"/doubt", `{"reason": "the provider did not answer"}`, nil)
	}, "ledger.holds", "0", "0.40 USD", soon},
	{"account_chain_changed", func(m *market, account string) {
		vandalise(m.t, m.App, `UPDATE accounts SET chain = '\x00' WHERE account = $1`, account)
	}, "ledger.chain", "0", "", daily},
	{"journal_row_changed", func(m *market, account string) {
		vandalise(m.t, m.App, "UPDATE transfers SET amount = 6000000 WHERE account = $1 AND kind = 'usage'", account)
	}, "ledger.chain", "-1", "0.10 USD", daily},
	{"no_customer", func(m *market, account string) {
		m.Want(http.StatusOK, http.MethodPut, "/v1/accounts/"+account, `{"stripe_customers": []}`, nil)
		m.use(account, "call", 5, 0)
	}, "usage.unbilled", "-5", "0.10 USD", hourly},
}

// lostWebhooks are flaws that are planted by losing webhooks.
var lostWebhooks = []string{"webhook_missed", "refund_missed", "refund_failed", "dispute_missed", "dispute_not_given_back"}

// fault adds one to the simulator.
func (m *market) fault(f stripesim.Fault) {
	m.t.Helper()
	if err := m.Sim.AddFaults(&f); err != nil {
		m.t.Fatal(err)
	}
}

// deaf loses every webhook of what is done meanwhile.
func (m *market) deaf(do func()) {
	m.t.Helper()
	lose := func(share float64) {
		if err := m.Sim.SetWebhooks(stripesim.Webhooks{Lose: &stripesim.Rule{Probability: &share}}); err != nil {
			m.t.Fatal(err)
		}
	}
	lose(1)
	do()
	if err := m.Sim.Drain(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	lose(0)
}

// paid is the payment of an account's first pack.
func (m *market) paid(account string) string {
	m.t.Helper()
	list, _ := m.Stripe(http.MethodGet, "/v1/payment_intents?customer="+m.of[account], nil)["data"].([]any)
	if len(list) == 0 {
		m.t.Fatalf("%s has paid nothing", account)
	}
	intent, _ := list[len(list)-1].(map[string]any)
	return fmt.Sprint(intent["id"])
}

// hold reserves credits for a day.
func (m *market) hold(account, credits string) string {
	m.t.Helper()
	id := m.id("resv")
	m.Want(http.StatusCreated, http.MethodPost, "/v1/reservations",
		fmt.Sprintf(`{"id": %q, "account": %q, "meter": "tokens", "credits": %q, "ttl_seconds": 86400}`, id, account, credits), nil)
	return id
}

// planted is a flaw with its account, and when it can first be seen.
type planted struct {
	flaw
	account string
	visible time.Time
}

// TestRandomDefectsAreFoundAndNothingElse plants random mixes of defects at random
// times into a market that lives. Each is found by the first round of checks that
// can see it, with its amount to the last unit; its cause is right in 95 of 100; and
// nothing else is found.
func TestRandomDefectsAreFoundAndNothingElse(t *testing.T) {
	t.Parallel()
	var all score
	for n := range *defectSeeds { //nolint:paralleltest // a market keeps all processors busy by itself
		seed := rand.Uint64()
		if n == 0 && *defectSeed != 0 {
			seed = *defectSeed
		}
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			s := playDefects(t, seed)
			all.planted, all.found, all.caused, all.wrong = all.planted+s.planted, all.found+s.found, all.caused+s.caused, all.wrong+s.wrong
		})
	}
	t.Logf("%s", all)
	if all.caused*100 < all.found*95 {
		t.Errorf("the cause is right in %d of %d", all.caused, all.found)
	}
}

// score counts defects and findings.
type score struct{ planted, found, caused, wrong int }

// String gives recall and precision.
func (s score) String() string {
	share := func(n, of int) float64 { return 100 * float64(n) / float64(max(of, 1)) }
	return fmt.Sprintf("%d defects planted: recall %.1f %%, precision %.1f %%, right cause %.1f %%",
		s.planted, share(s.found, s.planted), share(s.found, s.found+s.wrong), share(s.caused, s.found))
}

func playDefects(t *testing.T, seed uint64) score {
	t.Helper()
	m := openMarket(t, seed, 2)
	m.unswept = true // it would mend what was lost before a check could see it
	chosen := slices.Clone(flaws)
	m.random.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	chosen = chosen[:6+m.random.IntN(len(chosen)-5)]
	rounds := *defectDays * 4
	at := map[int][]planted{}
	for i, f := range chosen {
		p := planted{flaw: f, account: fmt.Sprintf("flawed-%d", i)}
		m.open(p.account)
		m.buy(p.account, m.Price)
		m.applied()
		m.use(p.account, "call", 7, 0)
		round := m.random.IntN(rounds)
		at[round] = append(at[round], p)
	}
	m.used = nil // what is voided below is the living accounts' alone
	m.pass(time.Hour)
	m.audit()
	if found := m.findings(); len(found) > 0 {
		t.Fatalf("before anything was planted: %s", told(&found[0]))
	}
	var all []planted
	for round := range rounds + 6 { // a day and a half behind the last
		for _, p := range at[round] {
			before := len(m.used)
			p.plant(m, p.account)
			m.used = m.used[:before]
			p.visible = m.Clock.Now().Add(p.flaw.visible)
			all = append(all, p)
			m.applied()
		}
		for range m.random.IntN(6) {
			m.live()
			m.pass(15 * time.Minute)
		}
		m.pass(3 * time.Hour)
		m.applied()
		if failed := m.audit(); failed > 0 {
			t.Errorf("%d checks have failed: %v", failed, m.failures)
		}
		for _, p := range all {
			if found := m.about(p.account); len(found) == 0 && !p.visible.After(m.Clock.Now()) {
				t.Errorf("%s of %s was not found in the first round that could see it", p.name, p.account)
			}
		}
	}
	s := m.score(all)
	t.Logf("seed %d: %s", seed, s)
	return s
}

// applied waits until every event that has arrived was applied.
func (m *market) applied() {
	m.t.Helper()
	m.steps()
	m.Await("the events", func() bool {
		var events struct{ Data []any }
		m.Want(http.StatusOK, http.MethodGet, "/v1/stripe/events?state=pending&limit=1", nil, &events)
		return len(events.Data) == 0
	})
}

// about are the findings about an account.
func (m *market) about(account string) []api.Finding {
	m.t.Helper()
	return slices.DeleteFunc(m.findings(), func(f api.Finding) bool { return f.Account != account })
}

// score holds what was found against what was planted.
func (m *market) score(all []planted) (s score) {
	m.t.Helper()
	for _, f := range m.findings() {
		if f.Cause == "deliveries_failing" && slices.ContainsFunc(all, func(p planted) bool { return slices.Contains(lostWebhooks, p.name) }) {
			continue // it tells of the same loss from the endpoint's side
		}
		i := slices.IndexFunc(all, func(p planted) bool { return p.account == f.Account && p.check == f.Check })
		if i < 0 {
			s.wrong++
			m.t.Errorf("nobody has planted this: %s", told(&f))
			continue
		}
		p, money := all[i], ""
		if f.MoneyAtRisk != nil {
			money = f.MoneyAtRisk.Text
		}
		if s.found++; f.Cause == p.name {
			s.caused++
		}
		if f.State != "open" || f.Difference != p.differs || money != p.money {
			m.t.Errorf("%s was planted, with %s, %q: %s", p.name, p.differs, p.money, told(&f))
		}
	}
	s.planted = len(all)
	if s.found != s.planted {
		m.t.Errorf("%d were planted and %d of them found", s.planted, s.found)
	}
	return s
}

package app

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
	"tallystick/outbox"
	"tallystick/stripesim"
)

var (
	outageSeeds = flag.Int("outages", 2, "random campaigns of outages and crashes that are played")
	outageSeed  = flag.Uint64("outage-seed", 0, "the seed of the first campaign, to play one again")
)

// standing is a clock that moves only when it is told to.
type standing struct {
	mu  sync.Mutex
	now time.Time
}

// Now is stripesim.Clock.
func (c *standing) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance is stripesim.Clock.
func (c *standing) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// book is one number on both sides: what an account used of a meter, and what Stripe
// has of it, counted from the calls that it executed.
type book struct {
	ours   int64 // millionths
	taken  int64 // of which voids have taken back so much
	theirs *big.Rat
}

// campaign plays usage, voids, crashes, faults and outages against the simulator.
type campaign struct {
	t      *testing.T
	random *rand.Rand
	sim    *stripesim.Sim
	clock  *standing
	dsn    string
	db     *pg.DB

	mu     sync.Mutex
	books  map[string]*book // by meter and account
	of     map[string]string
	set    map[string]map[string]*big.Rat // by item and timestamp
	flying map[string]int
	used   []outbox.Usage

	crash atomic.Int64 // the process dies at the call that takes it to zero
	after atomic.Bool  // and once that has been made
	lives map[string]int
}

// campaignMeters are one meter of each kind.
const campaignMeters = `INSERT INTO meters (meter, unit, aggregation, stripe_event_name, stripe_price, stripe_whole, stripe_bound_at, rate_version, created_at, updated_at)
	VALUES ('call', '', 'sum', 'calls', NULL, false, $1, 1, $1, $1), ('whole', '', 'sum', 'wholes', NULL, true, $1, 1, $1, $1), ('seat', '', 'sum', NULL, $2, false, $1, 1, $1, $1)`

func newCampaign(t *testing.T, seed uint64, switches stripesim.Switches) *campaign {
	t.Helper()
	c := &campaign{
		t: t, random: rand.New(rand.NewPCG(seed, 0)), clock: &standing{now: time.Date(2026, 3, 1, 12, 0, 17, 0, time.UTC)}, dsn: pgtest.DSN(t),
		books: map[string]*book{}, of: map[string]string{}, set: map[string]map[string]*big.Rat{}, flying: map[string]int{}, lives: map[string]int{},
	}
	c.db = pgtest.Open(t, c.dsn, pg.Options{ConnectionsMax: 4})
	c.sim = stripesim.New(t, stripesim.Options{Clock: c.clock, Seed: seed, Switches: switches, Observe: c.observe})
	price := c.made("/v1/prices", url.Values{
		"product": {c.made("/v1/products", url.Values{"name": {"seats"}})}, "currency": {"usd"}, "unit_amount": {"2"}, "recurring[interval]": {"month"},
		"recurring[usage_type]": {"metered"},
	})
	for _, name := range []string{"calls", "wholes"} {
		c.made("/v1/billing/meters", url.Values{"display_name": {name}, "event_name": {name}, "default_aggregation[formula]": {"sum"}})
	}
	pgtest.Exec(t, pgtest.Owner(t, c.dsn), campaignMeters, c.clock.Now(), price)
	for _, account := range []string{"a", "b"} {
		customer := c.made("/v1/customers", url.Values{"name": {account}})
		c.of[customer] = account
		for _, meter := range []string{"call", "whole", "seat"} {
			c.books[meter+" "+account] = &book{theirs: new(big.Rat)}
		}
		c.tx(func(tx *sqlx.Tx) error {
			_, err := ledger.PutAccount(t.Context(), tx, ledger.Account{Ref: ledger.RefOf(account), Metadata: "{}", Customers: []string{customer}}, c.clock.Now())
			return err
		})
		c.subscribe(customer, account, price)
	}
	c.clock.Advance(time.Minute)
	return c
}

func (c *campaign) subscribe(customer, account, price string) {
	c.t.Helper()
	var sub struct {
		Items struct{ Data []struct{ ID string } }
	}
	if err := json.Unmarshal(c.call("/v1/subscriptions", url.Values{"customer": {customer}, "items[0][price]": {price}}), &sub); err != nil || len(sub.Items.Data) != 1 {
		c.t.Fatalf("the subscription has %v, %v", sub, err)
	}
	c.of[sub.Items.Data[0].ID] = account
}

func (c *campaign) made(path string, values url.Values) string {
	c.t.Helper()
	var o struct{ ID string }
	if err := json.Unmarshal(c.call(path, values), &o); err != nil || o.ID == "" {
		c.t.Fatalf("%s made nothing: %v", path, err)
	}
	return o.ID
}

func (c *campaign) call(path string, values url.Values) []byte {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.sim.URL+path, strings.NewReader(values.Encode()))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.sim.Key)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var raw json.RawMessage
	if err := json.NewDecoder(response.Body).Decode(&raw); err != nil || response.StatusCode != http.StatusOK {
		c.t.Fatalf("%s was answered %d: %s, %v", path, response.StatusCode, raw, err)
	}
	return raw
}

func (c *campaign) tx(do func(tx *sqlx.Tx) error) {
	c.t.Helper()
	if err := c.db.InTx(c.t.Context(), do); err != nil {
		c.t.Fatal(err)
	}
}

// observe counts what Stripe executed, by itself, and compares at that instant: what
// Stripe has is never more than ours, but for voids that may be under way (D13).
func (c *campaign) observe(q stripesim.Request) {
	if !q.Executed || q.Replayed || q.Method != http.MethodPost {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var key string
	switch {
	case q.Path == "/v1/billing/meter_events":
		key = strings.TrimSuffix(q.Form.Get("event_name"), "s") + " " + c.of[q.Form.Get("payload[stripe_customer_id]")]
		c.books[key].theirs.Add(c.books[key].theirs, number(c.t, q.Form.Get("payload[value]")))
	case strings.HasSuffix(q.Path, "/usage_records"):
		item := strings.Split(q.Path, "/")[3]
		key = "seat " + c.of[item]
		if c.set[item] == nil {
			c.set[item] = map[string]*big.Rat{}
		}
		value, at := number(c.t, q.Form.Get("quantity")), q.Form.Get("timestamp")
		if before := c.set[item][at]; before != nil {
			c.books[key].theirs.Sub(c.books[key].theirs, before)
		}
		c.set[item][at] = value
		c.books[key].theirs.Add(c.books[key].theirs, value)
	default:
		return
	}
	b := c.books[key]
	most := b.ours + b.taken
	if b.taken > 0 && !strings.HasPrefix(key, "call ") {
		most = (most + 999_999) / 1_000_000 * 1_000_000 // a correction takes whole units, too, and what it takes beyond goes with the next usage
	}
	if b.theirs.Cmp(big.NewRat(most, 1_000_000)) > 0 || b.theirs.Sign() < 0 {
		c.t.Errorf("Stripe has %s of %s, we have %d millionths, and %d were taken back", b.theirs.FloatString(6), key, b.ours, b.taken)
	}
}

func number(t *testing.T, text string) *big.Rat {
	t.Helper()
	n, ok := new(big.Rat).SetString(text)
	if !ok {
		t.Errorf("%q is no number", text)
		return new(big.Rat)
	}
	return n
}

// stage records usage of the last minutes, on our side first.
func (c *campaign) stage() {
	u := outbox.Usage{
		Account: []string{"a", "b"}[c.random.IntN(2)], Meter: []string{"call", "whole", "seat"}[c.random.IntN(3)],
		OccurredAt: c.clock.Now().Add(-time.Duration(c.random.IntN(50)) * time.Second), Quantity: credit.Quantity(1 + c.random.Int64N(5_000_000)),
	}
	u.Part = ledger.RefOf(u.Account).Part
	c.mu.Lock()
	c.books[u.Meter+" "+u.Account].ours += int64(u.Quantity)
	c.mu.Unlock()
	c.used = append(c.used, u)
	o := outbox.New(outbox.Config{DB: c.db, Now: c.clock.Now, Settle: 10 * time.Second})
	c.tx(func(tx *sqlx.Tx) error { return o.StageUsage(c.t.Context(), tx, c.clock.Now(), []outbox.Usage{u}) })
}

// void takes one usage back.
func (c *campaign) void() {
	if len(c.used) == 0 {
		return
	}
	i := c.random.IntN(len(c.used))
	u := c.used[i]
	c.used = append(c.used[:i], c.used[i+1:]...)
	o := outbox.New(outbox.Config{DB: c.db, Now: c.clock.Now, Settle: 10 * time.Second})
	c.tx(func(tx *sqlx.Tx) error {
		if _, err := ledger.Load(c.t.Context(), tx, []ledger.Ref{ledger.RefOf(u.Account)}); err != nil {
			return err
		}
		taken, err := o.TakeBack(c.t.Context(), tx, c.clock.Now(), u, u.OccurredAt)
		c.mu.Lock()
		defer c.mu.Unlock()
		b := c.books[u.Meter+" "+u.Account]
		b.ours, b.taken = b.ours-int64(taken.Quantity), b.taken+int64(taken.Quantity)
		return err
	})
}

// steps lets one process, or two at once, work for a while, and crash at any point:
// before the claim is committed, before a call, after it, or after all is marked.
func (c *campaign) steps(ps []*process) {
	c.t.Helper()
	mode := []string{"none", "none", "none", "claim", "before", "after", "between"}[c.random.IntN(7)]
	c.after.Store(mode == "after")
	c.crash.Store(0)
	if mode == "before" || mode == "after" {
		c.crash.Store(1 + c.random.Int64N(6))
	}
	n := 1 + c.random.IntN(2)
	var wg sync.WaitGroup
	for _, p := range ps[:n] {
		ctx, cancel := context.WithCancel(c.t.Context())
		if mode == "claim" {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(c.random.IntN(4000))*time.Microsecond)
		}
		wg.Go(func() {
			defer cancel()
			for more := true; more && !p.dead.Load(); {
				var err error
				if more, err = p.UsageStep(ctx); err != nil && mode == "none" {
					c.t.Errorf("a step failed: %v", err)
				}
			}
			if _, err := p.SettleStep(ctx); err != nil && mode == "none" {
				c.t.Errorf("a settling step failed: %v", err)
			}
		})
	}
	wg.Wait()
	c.crash.Store(0)
	for i, p := range ps {
		if p.dead.Load() || mode == "claim" || mode == "between" {
			if p.dead.Load() || i < n {
				c.lives[mode]++
			}
			if err := p.db.Close(); err != nil && !errors.Is(err, context.Canceled) {
				c.t.Error(err)
			}
			ps[i] = c.process()
		}
	}
}

// trouble are the faults of the calls that usage takes. What loses usage behind an
// answer of success is the auditor's to find, and not among them.
func (c *campaign) trouble() (rules []*stripesim.Fault) {
	probability := 0.04
	for _, fault := range []string{
		"drop_before", "drop_after", "reset_before", "reset_after", "cut_body", "error_500_before", "error_500_after", "error_502_html", "error_502_after",
		"error_503", "error_503_after", "rate_limit", "lock_timeout", "conflict_409", "key_mismatch_400", "unauthorized_401", "redirect_302", "malformed_json",
		"wrong_content_type", "empty_200",
	} {
		rules = append(rules, &stripesim.Fault{Path: "/v1/**", Fault: fault, Probability: &probability, Seed: c.random.Uint64()})
	}
	return rules
}

// play runs the whole story of one seed.
func (c *campaign) play(outage time.Duration, voids bool) {
	c.t.Helper()
	ps := []*process{c.process(), c.process()}
	act := func(most time.Duration) {
		for range 1 + c.random.IntN(4) {
			c.stage()
		}
		if voids && c.random.IntN(2) == 0 {
			c.void()
		}
		c.steps(ps)
		c.sim.Advance(time.Duration(c.random.Int64N(int64(most))))
	}
	if err := c.sim.AddFaults(c.trouble()...); err != nil {
		c.t.Fatal(err)
	}
	for range 30 {
		act(5 * time.Minute)
	}
	c.sim.ClearFaults()
	if err := c.sim.AddFaults(&stripesim.Fault{Path: "/v1/**", Fault: []string{"drop_before", "error_503", "reset_before", "error_502_html"}[c.random.IntN(4)]}); err != nil {
		c.t.Fatal(err)
	}
	for until := c.clock.Now().Add(outage); c.clock.Now().Before(until); {
		act(3 * time.Hour)
	}
	c.sim.ClearFaults()
	if err := c.sim.AddFaults(c.trouble()...); err != nil {
		c.t.Fatal(err)
	}
	for range 20 {
		act(20 * time.Minute)
	}
	c.sim.ClearFaults()
	for range 60 { // what is unknown now is settled within 25 hours
		c.sim.Advance(30 * time.Minute)
		c.works(ps[0])
	}
	c.settled()
}

// settled compares both sides at the end, to the last unit.
func (c *campaign) settled() {
	c.t.Helper()
	var open []struct {
		Account, Meter, State, Error, Identifier string
		Attempts                                 int
	}
	remainders := map[string]int64{}
	states := map[string]int{}
	err := c.db.Read(c.t.Context(), func(tx *sqlx.Tx) error {
		open = nil
		if err := tx.Select(&open, `SELECT account, meter, state, error, identifier, attempts FROM deliveries
			WHERE state <> 'delivered' AND replaced_by = ''`); err != nil {
			return err
		}
		var counts []struct {
			State    string
			Replaced bool
			N        int
		}
		if err := tx.Select(&counts, `SELECT state, replaced_by <> '' AS replaced, count(*) AS n FROM deliveries GROUP BY 1, 2`); err != nil {
			return err
		}
		for _, n := range counts {
			states[fmt.Sprintf("%s replaced %t", n.State, n.Replaced)] = n.N
		}
		var carries []struct {
			Account, Meter string
			Remainder      int64
		}
		err := tx.Select(&carries, `SELECT account, meter, remainder FROM delivery_carries`)
		for _, r := range carries {
			remainders[r.Meter+" "+r.Account] += r.Remainder
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, d := range open {
		c.t.Errorf("in the end it is %+v", d)
	}
	for key, b := range c.books {
		if want := big.NewRat(b.ours-remainders[key], 1_000_000); b.theirs.Cmp(want) != 0 {
			c.t.Errorf("in the end Stripe has %s of %s, want %s: we have %d millionths and carry %d", b.theirs.FloatString(6), key, want.FloatString(6), b.ours, remainders[key])
		}
		if r := remainders[key]; b.taken == 0 && (r < 0 || r >= 1_000_000) {
			c.t.Errorf("%d millionths of %s are carried", r, key)
		}
	}
	c.t.Logf("deliveries %v, crashes %v", states, c.lives)
}

// TestD08OutagesAndCrashesLoseNothingAndBillNothingTwice plays random campaigns with
// both back ends: faults of every kind, crashes at every point of a delivery, an outage
// of 36 or of 40 hours, while Stripe forgets keys and identifiers after 24. Stripe never
// has more than we have, and in the end the same.
func TestD08OutagesAndCrashesLoseNothingAndBillNothingTwice(t *testing.T) {
	t.Parallel()
	for n := range *outageSeeds {
		seed := rand.Uint64()
		if n == 0 && *outageSeed != 0 {
			seed = *outageSeed
		}
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			if *outageSeeds <= 4 {
				t.Parallel()
			}
			playOutage(t, seed, n)
		})
	}
}

func playOutage(t *testing.T, seed uint64, n int) {
	t.Helper()
	outage := 36 * time.Hour
	if n%2 == 1 {
		outage = 40 * time.Hour
	}
	c := newCampaign(t, seed, stripesim.Switches{MeterLagSeconds: int64(n % 3 * 120), MeterLagJitterSeconds: int64(n % 2 * 300), MemoryExtraSeconds: int64(n % 2 * 86400)})
	c.play(outage, n%2 == 1)
}

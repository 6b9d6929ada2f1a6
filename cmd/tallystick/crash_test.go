package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	crashSenders  = 8
	crashAccounts = 5
)

// crashLoad sends usage from many senders. Half of them send the same id again
// until it is acknowledged, as clients must; the others give up, and what they
// do not know is asked for at the end.
type crashLoad struct {
	sent         atomic.Int64
	acknowledged atomic.Int64
	lastTry      atomic.Int64 // tries that were answered by nobody, or by 503
	stop         chan struct{}
	wg           sync.WaitGroup

	mu      sync.Mutex
	process *process // the server of this moment
	sums    map[string]int64
	unknown []unknownUsage // what was given up
}

// unknownUsage is one of which nobody has heard whether it was recorded.
type unknownUsage struct {
	body, account string
	quantity      int64
}

func (l *crashLoad) server() *process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.process
}

func (l *crashLoad) use(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.process = p
}

func startLoad(t *testing.T, p *process) *crashLoad {
	t.Helper()
	l := &crashLoad{stop: make(chan struct{}), process: p, sums: map[string]int64{}}
	for sender := range crashSenders {
		l.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				l.one(t, sender, i)
			}
		})
	}
	return l
}

func (l *crashLoad) one(t *testing.T, sender, i int) {
	t.Helper()
	account, quantity := fmt.Sprintf("crash-%d", (sender+i)%crashAccounts), int64(1+i%7)
	l.send(t, fmt.Sprintf(`{"id": "usage-%d-%06d", "account": %q, "meter": "call", "quantity": %d}`, sender, i, account, quantity), account, quantity, sender%2 == 1)
}

// send sends a usage until it is acknowledged, or once where it is given up.
func (l *crashLoad) send(t *testing.T, body, account string, quantity int64, givesUp bool) {
	t.Helper()
	l.sent.Add(1)
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		status, answer, err := l.server().call(http.MethodPost, "/v1/usage", body)
		switch {
		case err == nil && status == http.StatusCreated:
			l.acknowledged.Add(1)
			l.mu.Lock()
			l.sums[account] += quantity
			l.mu.Unlock()
			return
		case err == nil && status != http.StatusServiceUnavailable:
			t.Errorf("usage was answered %d while things were killed: %s", status, answer)
			return
		}
		l.lastTry.Add(1)
		if givesUp {
			l.mu.Lock()
			l.unknown = append(l.unknown, unknownUsage{body, account, quantity})
			l.mu.Unlock()
			time.Sleep(50 * time.Millisecond) // a server that is away would be given up again and again
			return
		}
	}
	t.Errorf("%s was never acknowledged", body)
}

// more waits until so many further usages have been acknowledged.
func (l *crashLoad) more(t *testing.T, n int64) {
	t.Helper()
	until := l.acknowledged.Load() + n
	await(t, "usage to go on", func() bool { return l.acknowledged.Load() >= until })
}

// end ends the load, and asks for what was given up: sent again it is recorded
// now, or was already.
func (l *crashLoad) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	for _, u := range l.unknown {
		l.send(t, u.body, u.account, u.quantity, false)
	}
}

// openCrash makes accounts, a bound meter and customers.
func openCrash(t *testing.T, p *process) (meter string, customers map[string]string) {
	t.Helper()
	meter = fmt.Sprint(p.stripe(http.MethodPost, "/v1/billing/meters", "display_name=calls&event_name=calls&default_aggregation[formula]=sum")["id"])
	p.must(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "calls"}}`)
	customers = map[string]string{}
	for i := range crashAccounts {
		account := fmt.Sprintf("crash-%d", i)
		customers[account] = fmt.Sprint(p.stripe(http.MethodPost, "/v1/customers", "name="+account)["id"])
		p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/"+account, `{"stripe_customers": ["`+customers[account]+`"]}`)
		p.must(http.StatusCreated, http.MethodPost, "/v1/accounts/"+account+"/grants", `{"id": "opening-grant", "credits": 1000000}`)
	}
	return meter, customers
}

// TestKilledInTheMiddleOfLoadNothingIsLostOrDoubled kills server and Postgres by
// SIGKILL while usage comes in, and compares at the end what was acknowledged
// with balances, with Stripe, and with every invariant.
func TestKilledInTheMiddleOfLoadNothingIsLostOrDoubled(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	p := up(t, dataDir(t))
	meter, customers := openCrash(t, p)
	load := startLoad(t, p)
	for round := range 3 {
		load.more(t, 50+random.Int64N(200))
		p.kill()
		p = up(t, p.dir)
		load.use(p)
		load.more(t, 50+random.Int64N(200))
		killPostgres(t, p)
		load.more(t, 50)
		t.Logf("round %d: %d sent, %d acknowledged, %d tries unanswered", round, load.sent.Load(), load.acknowledged.Load(), load.lastTry.Load())
	}
	load.end(t)
	t.Logf("%d usages were given up, and asked for at the end", len(load.unknown))
	if load.lastTry.Load() == 0 {
		t.Error("no request met a dead server: nothing was tried")
	}
	for account, sum := range load.sums {
		var a struct{ Balance struct{ Available string } }
		if err := json.Unmarshal(p.must(http.StatusOK, http.MethodGet, "/v1/accounts/"+account, ""), &a); err != nil {
			t.Fatal(err)
		}
		if want := strconv.FormatInt(1000000-sum, 10); a.Balance.Available != want {
			t.Errorf("%s holds %s, want %s after %d acknowledged", account, a.Balance.Available, want, sum)
		}
	}
	stripeAgrees(t, p, meter, customers, load.sums)
	if code, out, errs := cli(t, nil, "verify", "--data", p.dir); code != exitFine {
		t.Errorf("verify ends with %d:\n%s%s", code, out, errs)
	}
	p.pass(2 * time.Minute)
	if code, out, errs := cli(t, nil, "reconcile", "run", "--data", p.dir); code != exitFine {
		t.Errorf("reconcile run ends with %d:\n%s%s", code, out, errs)
	}
	p.stop()
}

// killPostgres kills the private server's postmaster and all of its children.
func killPostgres(t *testing.T, p *process) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(p.dir, "postgres", "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.SplitN(string(content), "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// stripeAgrees waits until everything is delivered and compares Stripe's totals
// with what was acknowledged.
func stripeAgrees(t *testing.T, p *process, meter string, customers map[string]string, sums map[string]int64) {
	t.Helper()
	p.pass(2 * time.Minute)
	await(t, "deliveries", func() bool {
		for _, state := range []string{"pending", "sending", "ambiguous"} {
			var page struct{ Data []any }
			if err := json.Unmarshal(p.must(http.StatusOK, http.MethodGet, "/v1/deliveries?state="+state, ""), &page); err != nil {
				t.Fatal(err)
			}
			if len(page.Data) > 0 {
				return false
			}
		}
		return true
	})
	now := time.Now().Add(time.Hour).Truncate(time.Hour)
	for account, customer := range customers {
		query := url.Values{"customer": {customer}, "start_time": {fmt.Sprint(now.Add(-24 * time.Hour).Unix())}, "end_time": {fmt.Sprint(now.Add(time.Hour).Unix())}}
		o := p.stripe(http.MethodGet, "/v1/billing/meters/"+meter+"/event_summaries?"+query.Encode(), "")
		total := 0.0
		for _, row := range o["data"].([]any) {
			total += row.(map[string]any)["aggregated_value"].(float64)
		}
		if total != float64(sums[account]) {
			t.Errorf("Stripe's total of %s is %v, want %d", account, total, sums[account])
		}
	}
}

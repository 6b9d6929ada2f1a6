package app_test

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/apptest"
	"tallystick/internal/credit"
	"tallystick/internal/pg/pgtest"
)

// How the trace is spread over customers.
const (
	traceAccounts  = 500
	traceHotEvery  = 300 // of so many calls three in a row are the hot account's, so that they meet
	traceTwice     = 10  // one usage in so many is sent twice at the same moment
	traceSenders   = 32
	traceSeed      = 20231116
	traceGenerated = 28184
	traceBucket    = 30 * time.Minute
)

// traceMeters prices input and output tokens so that the ledger shows by its
// digits which of them it has charged.
var traceMeters = []struct{ name, event, rate string }{
	{"llm.input_tokens", "trace_input", "0.001"},
	{"llm.output_tokens", "trace_output", "0.003"},
}

// modelCall is one line of the trace.
type modelCall struct {
	at     time.Duration // since the first
	tokens [2]int64      // in, out
}

// traceCalls reads real requests of two production LLM services (Azure LLM
// inference trace 2023, CC BY 4.0; Patel et al., "Splitwise", ISCA 2024) from
// shared/data beside the repository. Where they are not, it makes as many calls
// of a like shape, so that the test never has nothing to say.
func traceCalls(t *testing.T) []modelCall {
	t.Helper()
	var calls []modelCall
	for _, name := range []string{"llm-trace-code.csv", "llm-trace-conv.csv"} {
		file, err := os.Open(filepath.Join("..", "..", "..", "shared", "data", name))
		if errors.Is(err, fs.ErrNotExist) {
			t.Logf("%s is not there: the trace is generated with seed %d", name, traceSeed)
			return generatedCalls()
		}
		if err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(file).ReadAll()
		_ = file.Close()
		if err != nil {
			t.Fatal(err)
		}
		first, err := time.Parse("2006-01-02 15:04:05.9999999", rows[1][0])
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows[1:] {
			at, err := time.Parse("2006-01-02 15:04:05.9999999", row[0])
			in, errIn := strconv.ParseInt(row[1], 10, 64)
			out, errOut := strconv.ParseInt(row[2], 10, 64)
			if err := errors.Join(err, errIn, errOut); err != nil {
				t.Fatal(err)
			}
			calls = append(calls, modelCall{at: at.Sub(first), tokens: [2]int64{in, out}})
		}
	}
	return calls
}

func generatedCalls() []modelCall {
	random := rand.New(rand.NewPCG(traceSeed, 1))
	calls := make([]modelCall, traceGenerated)
	for i := range calls {
		calls[i] = modelCall{
			at:     time.Duration(random.Int64N(int64(time.Hour))),
			tokens: [2]int64{int64(random.ExpFloat64()*1200) + 1, int64(random.ExpFloat64()*150) + 1},
		}
	}
	return calls
}

// book is quantities by account and meter.
type book map[[2]string]credit.Quantity

func (b book) equal(t *testing.T, name string, want book) {
	t.Helper()
	keys := slices.SortedFunc(maps.Keys(want), func(x, y [2]string) int { return slices.Compare(x[:], y[:]) })
	for _, k := range keys {
		if b[k] != want[k] {
			t.Errorf("%s of %s, %s: %s, want %s", name, k[0], k[1], b[k], want[k])
		}
	}
	if len(b) != len(want) {
		t.Errorf("%s has %d rows, want %d", name, len(b), len(want))
	}
}

// TestTraceOfRealModelCallsAgreesExactlyOnAllSides replays real requests through
// HTTP, with repeats and races, and adds up what was acknowledged. Usage, ledger
// and Stripe must each say the same, per account and meter.
func TestTraceOfRealModelCallsAgreesExactlyOnAllSides(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{Settings: map[string]string{"TALLYSTICK_USAGE_BUCKET": traceBucket.String(), "TALLYSTICK_STRIPE_RATE": "900"}})
	meters, customers := openTrace(t, a)
	acknowledged := replayTrace(t, a, traceCalls(t))
	a.Pass(traceBucket + time.Minute)

	usageBook(t, a).equal(t, "our usage", acknowledged)
	transferBook(t, a).equal(t, "the ledger", acknowledged)
	stripeBook(t, a, meters, customers).equal(t, "Stripe's summary", acknowledged)
	verified(t, a)

	a.Pass(2 * time.Minute) // the window of the checks ends behind the present
	a.Want(http.StatusCreated, http.MethodPost, "/v1/reconcile/runs", `{}`, nil)
	var findings struct{ Data []any }
	a.Want(http.StatusOK, http.MethodGet, "/v1/findings", nil, &findings)
	if len(findings.Data) != 0 {
		t.Errorf("the auditor finds differences where there are none: %v", findings.Data)
	}
}

// openTrace makes the accounts, with credits for everything but the hot one's
// last requests, and gives Stripe's meters and the accounts' customers.
func openTrace(t *testing.T, a *apptest.App) (meters []string, customers map[string]string) {
	t.Helper()
	for _, m := range traceMeters {
		o := a.Stripe(http.MethodPost, "/v1/billing/meters", url.Values{"display_name": {m.name}, "event_name": {m.event}, "default_aggregation[formula]": {"sum"}})
		meters = append(meters, fmt.Sprint(o["id"]))
		a.Want(http.StatusCreated, http.MethodPut, "/v1/meters/"+m.name,
			`{"unit": "token", "credits_per_unit": "`+m.rate+`", "stripe": {"kind": "meter", "event_name": "`+m.event+`"}}`, nil)
	}
	customers = map[string]string{}
	for i := range traceAccounts {
		account, credits := traceAccount(i), "1000000"
		if i == 0 {
			credits = "400" // runs out on the way
		}
		customers[account] = fmt.Sprint(a.Stripe(http.MethodPost, "/v1/customers", url.Values{"name": {account}})["id"])
		a.Want(http.StatusCreated, http.MethodPut, "/v1/accounts/"+account, `{"stripe_customers": ["`+customers[account]+`"]}`, nil)
		a.Want(http.StatusCreated, http.MethodPost, "/v1/accounts/"+account+"/grants", `{"id": "opening-grant", "credits": "`+credits+`"}`, nil)
	}
	return meters, customers
}

func traceAccount(i int) string { return fmt.Sprintf("trace-%03d", i) }

// replayTrace sends every call's two usages and gives the sums of what was
// acknowledged, each id once.
func replayTrace(t *testing.T, a *apptest.App, calls []modelCall) book {
	t.Helper()
	random := rand.New(rand.NewPCG(traceSeed, 2))
	start := a.Clock.Now().Add(-2 * time.Hour).Truncate(time.Hour)
	sums, refused, repeats := book{}, 0, 0
	var mu sync.Mutex
	send := func(account, id string, meter int, quantity int64, at time.Time) {
		body := fmt.Sprintf(`{"id": %q, "account": %q, "meter": %q, "quantity": %d, "occurred_at": %q}`, id, account, traceMeters[meter].name, quantity, at.Format(time.RFC3339Nano))
		r := a.Call(http.MethodPost, "/v1/usage", body)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.Status == http.StatusCreated && r.Header.Get("Idempotent-Replayed") == "":
			sums[[2]string{account, traceMeters[meter].name}] += credit.Units(quantity)
		case r.Status == http.StatusCreated:
			repeats++
		case r.Status == http.StatusPaymentRequired && account == traceAccount(0):
			refused++
		default:
			t.Errorf("usage %s was answered %d: %s", id, r.Status, r.Body)
		}
	}
	queue := make(chan func(), traceSenders)
	var wg sync.WaitGroup
	for range traceSenders {
		wg.Go(func() {
			for work := range queue {
				work()
			}
		})
	}
	for i, c := range calls {
		account := traceAccount(1 + random.IntN(traceAccounts-1))
		if i%traceHotEvery < 3 {
			account = traceAccount(0)
		}
		for meter, quantity := range c.tokens {
			if quantity == 0 {
				continue
			}
			work := func() { send(account, fmt.Sprintf("call-%06d-%d", i, meter), meter, quantity, start.Add(c.at)) }
			queue <- work
			if random.IntN(traceTwice) == 0 {
				queue <- work
			}
		}
	}
	close(queue)
	wg.Wait()
	if refused == 0 || repeats == 0 {
		t.Errorf("%d usages were refused and %d were repeats: the trace does not try what it should", refused, repeats)
	}
	t.Logf("%d model calls, %d sums, %d repeats, %d refused", len(calls), len(sums), repeats, refused)
	return sums
}

type bookRow struct {
	Account, Meter string
	Quantity       credit.Quantity
}

func readBook(t *testing.T, a *apptest.App, query string) book {
	t.Helper()
	var rows []bookRow
	err := pgtest.Owner(t, a.Info.DatabaseURL).Read(t.Context(), func(tx *sqlx.Tx) error { return tx.SelectContext(t.Context(), &rows, query) })
	if err != nil {
		t.Fatal(err)
	}
	b := book{}
	for _, r := range rows {
		b[[2]string{r.Account, r.Meter}] = r.Quantity
	}
	return b
}

func usageBook(t *testing.T, a *apptest.App) book {
	t.Helper()
	return readBook(t, a, "SELECT account, meter, sum(quantity)::bigint AS quantity FROM usage GROUP BY 1, 2")
}

// transferBook turns the credits that the ledger took back into quantities: by
// the meters' rates, which are one and three thousandths.
func transferBook(t *testing.T, a *apptest.App) book {
	t.Helper()
	return readBook(t, a, `
		SELECT t.account, u.meter, sum(t.amount * 1000 / CASE u.meter WHEN 'llm.input_tokens' THEN 1 ELSE 3 END)::bigint AS quantity
		FROM transfers t JOIN usage u ON u.part = t.part AND u.account = t.account AND u.usage_id = t.cause
		WHERE t.kind = 'usage' GROUP BY 1, 2`)
}

func stripeBook(t *testing.T, a *apptest.App, meters []string, customers map[string]string) book {
	t.Helper()
	from, to := a.Clock.Now().Add(-6*time.Hour).Truncate(time.Hour), a.Clock.Now().Truncate(time.Hour).Add(time.Hour)
	window := fmt.Sprintf("&start_time=%d&end_time=%d", from.Unix(), to.Unix())
	b := book{}
	for i, meter := range meters {
		for account, customer := range customers {
			o := a.Stripe(http.MethodGet, "/v1/billing/meters/"+meter+"/event_summaries?customer="+customer+window, nil)
			for _, row := range o["data"].([]any) {
				sum, err := credit.ParseQuantity(strconv.FormatFloat(row.(map[string]any)["aggregated_value"].(float64), 'f', -1, 64))
				if err != nil {
					t.Fatal(err)
				}
				if sum != 0 {
					b[[2]string{account, traceMeters[i].name}] += sum
				}
			}
		}
	}
	return b
}

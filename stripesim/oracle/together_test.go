package oracle

import (
	"bytes"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"tallystick/stripesim"
)

// TestCallersAtOnce lets callers who know nothing of one another use the same keys
// and identifiers at the same time: each executes once, whoever comes first.
func TestCallersAtOnce(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var log []entry
	sim, err := stripesim.NewServer(stripesim.Options{Clock: &clock{now: began}, APIKey: key, Observe: func(q stripesim.Request) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, newEntry(q, stripesim.Switches{}))
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	call := func(path, idempotency, form string) []byte {
		for {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(form))
			r.Header.Set("Authorization", "Bearer "+key)
			r.Header.Set("Idempotency-Key", idempotency)
			w := httptest.NewRecorder()
			sim.ServeHTTP(w, r)
			if w.Code != http.StatusConflict && w.Code != http.StatusTooManyRequests { // else another one is under way
				return w.Body.Bytes()
			}
		}
	}
	created, _ := read(call("/v1/customers", "c", ""))
	customer := textOf(created, "id")
	call("/v1/billing/meters", "m", "display_name=x&event_name=tokens&default_aggregation[formula]=sum")
	const callers, calls = 8, 150
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for i := range calls {
				n := strconv.Itoa(i)
				call("/v1/customers", "customer-"+n, "name="+n)
				call("/v1/billing/meter_events", "event-"+n, url.Values{
					"event_name": {"tokens"}, "identifier": {"id-" + strconv.Itoa(i/2)}, "payload[stripe_customer_id]": {customer}, "payload[value]": {n},
				}.Encode())
			}
		})
	}
	all.Wait()
	judgeTogether(t, log, sim.State(), calls)
}

// judgeTogether wants one execution for each key, the same answer to all who came
// later, and the total of what was executed.
func judgeTogether(t *testing.T, log []entry, st stripesim.State, calls int) {
	t.Helper()
	first := map[string][]byte{}
	total := new(big.Rat)
	identifiers := map[string]bool{}
	for _, e := range log {
		if !e.Executed {
			continue
		}
		if first[e.Key] != nil {
			t.Errorf("%s was executed a second time", describe(&e))
		}
		first[e.Key] = e.Body
		if e.Path == "/v1/billing/meter_events" {
			if identifier := e.text("identifier"); identifiers[identifier] {
				t.Errorf("%s: the identifier was taken a second time", describe(&e))
			} else {
				identifiers[identifier] = true
			}
			total.Add(total, decimal(e.text("payload[value]")))
		}
	}
	outcomes := map[int]int{}
	for _, e := range log {
		outcomes[e.Status]++
		if e.Replayed && !bytes.Equal(e.Body, first[e.Key]) {
			t.Errorf("%s is no replay of what was answered first", describe(&e))
		}
	}
	if st.Counts["customer"] != calls+1 || len(identifiers) != calls/2 || int(st.MeterEvents.Accepted) != calls/2 {
		t.Errorf("%d customers, %d identifiers, %d events were made of %d", st.Counts["customer"], len(identifiers), st.MeterEvents.Accepted, calls)
	}
	if got := decimal(st.Meters[0].Total); got.Cmp(total) != 0 {
		t.Errorf("the meter has %s, want %s", st.Meters[0].Total, total.RatString())
	}
	t.Logf("answers by status: %v", outcomes)
}

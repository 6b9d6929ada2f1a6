package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"tallystick/api"
	"tallystick/internal/clock"
)

// accounts is how many accounts the load can be spread over.
const accounts = 1000

// shape is what the requests of a load look like.
type shape struct {
	accounts int
	batch    int  // usages in one request
	bound    bool // of a meter that is billed at Stripe
	reserved bool // each usage is a reservation and its capture: two requests

	scattered bool // ids come in no order, as those that programs draw
}

// generator sends usage as clients do: keep-alive connections, one request
// after the other on each.
type generator struct {
	client *http.Client
	ids    atomic.Int64
}

func newGenerator() *generator {
	return &generator{client: &http.Client{Transport: &http.Transport{MaxIdleConns: 0, MaxIdleConnsPerHost: 512, DisableCompression: true}}}
}

// measurement is what a load met.
type measurement struct {
	usages int64
	took   time.Duration
	each   []time.Duration // sorted
}

func (m *measurement) perSecond() int64 {
	if m.took <= 0 {
		return 0
	}
	return m.usages * int64(time.Second) / int64(m.took)
}

func (m *measurement) percentile(p int) time.Duration {
	if len(m.each) == 0 {
		return 0
	}
	return m.each[min(len(m.each)-1, len(m.each)*p/100)]
}

// run loads a process for a while. An answer that is no success fails it: a
// refusal is faster than the work.
func (g *generator) run(ctx context.Context, c *child, s shape, connections int, d time.Duration) (*measurement, error) {
	m := &measurement{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failure error
	start := clock.Tick()
	for range connections {
		wg.Go(func() {
			var each []time.Duration
			var err error
			for err == nil && clock.Since(start) < d {
				sent := clock.Tick()
				err = g.send(ctx, c, s)
				each = append(each, clock.Since(sent))
			}
			mu.Lock()
			defer mu.Unlock()
			m.each = append(m.each, each...)
			if failure == nil {
				failure = err
			}
		})
	}
	wg.Wait()
	m.took, m.usages = clock.Since(start), int64(len(m.each)*s.batch)
	slices.Sort(m.each)
	return m, failure
}

// send sends the request of a usage or of a batch; or the two of a reservation
// and its capture.
func (g *generator) send(ctx context.Context, c *child, s shape) error {
	first := g.ids.Add(int64(s.batch)) - int64(s.batch)
	path, body := "/v1/usage", make([]byte, 0, 200*s.batch+16)
	switch {
	case s.reserved:
		account, id := accountName(first%int64(s.accounts)), "bench-usage-"+strconv.FormatInt(first, 10)
		reserve := `{"id":"` + id + `","account":"` + account + `","meter":"llm.output_tokens","quantity":"1000","ttl_seconds":600,"dimensions":{"model":"large","region":"eu"}}`
		if err := g.post(ctx, c, "/v1/reservations", []byte(reserve)); err != nil {
			return err
		}
		path = "/v1/reservations/" + id + "/capture?account=" + account
		body = append(strconv.AppendInt(append(body, `{"quantity":"`...), 1+first%1000, 10), `"}`...)
	case s.batch == 1:
		body = appendUsage(body, s, first)
	default:
		path, body = "/v1/usage/batch", append(body, `{"usage":[`...)
		for i := range s.batch {
			if i > 0 {
				body = append(body, ',')
			}
			body = appendUsage(body, s, first+int64(i))
		}
		body = append(body, "]}"...)
	}
	return g.post(ctx, c, path, body)
}

// post sends one request and reads its answer.
func (g *generator) post(ctx context.Context, c *child, path string, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+c.key)
	response, err := g.client.Do(r)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return err
	}
	if response.StatusCode >= 300 || bytes.Contains(answer, []byte(`"result":"refused"`)) {
		return fmt.Errorf("%s was answered %d: %.300s", path, response.StatusCode, answer)
	}
	return nil
}

func appendUsage(body []byte, s shape, n int64) []byte {
	meter := "llm.output_tokens"
	if s.bound {
		meter = "llm.bound_tokens"
	}
	body = append(body, `{"id":"bench-usage-`...)
	if s.scattered {
		body = fmt.Appendf(body, "%016x-", scatter(n))
	}
	body = strconv.AppendInt(body, n, 10)
	body = append(body, `","account":"`...)
	body = append(body, accountName(n%int64(s.accounts))...)
	body = append(body, `","meter":"`+meter+`","quantity":"`...)
	body = strconv.AppendInt(body, 1+n%1000, 10)
	return append(body, `","dimensions":{"model":"large","region":"eu"}}`...)
}

// scatter gives numbers in a row places far from each other.
func scatter(n int64) uint64 {
	x := uint64(n) * 0x9e3779b97f4a7c15 //nolint:gosec // any bits do
	return (x ^ x>>29) * 0xbf58476d1ce4e5b9
}

func accountName(n int64) string { return "bench-account-" + strconv.FormatInt(n, 10) }

// prepare makes meters and accounts with enough credits, over the API.
func (g *generator) prepare(ctx context.Context, c *child) error {
	free := api.MeterRequest{
		Unit: "token", CreditsPerUnit: "0.000002",
		Rates: []api.Rate{{Match: map[string]string{"model": "large"}, CreditsPerUnit: "0.000001"}},
	}
	bound := free
	bound.Stripe = &api.StripeBinding{Kind: "meter", EventName: "llm_bound_tokens"}
	err := errors.Join(g.call(ctx, c, http.MethodPut, "/v1/meters/llm.output_tokens", free), g.call(ctx, c, http.MethodPut, "/v1/meters/llm.bound_tokens", bound))
	if err != nil {
		return err
	}
	var next atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failure error
	for range 16 {
		wg.Go(func() {
			for n := next.Add(1) - 1; n < accounts; n = next.Add(1) - 1 {
				path := "/v1/accounts/" + accountName(n)
				err := g.call(ctx, c, http.MethodPut, path, api.AccountRequest{Name: "measured"})
				if err == nil {
					err = g.call(ctx, c, http.MethodPost, path+"/grants", api.GrantRequest{ID: "bench-grant", Credits: "1000000000"})
				}
				if err != nil {
					mu.Lock()
					failure = errors.Join(failure, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return failure
}

func (g *generator) call(ctx context.Context, c *child, method, path string, body any) error {
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+c.key)
	response, err := g.client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body) // to its end, so that the connection can serve again
	if err == nil && response.StatusCode >= 300 {
		err = fmt.Errorf("%s %s was answered %d: %s", method, path, response.StatusCode, answer)
	}
	return err
}

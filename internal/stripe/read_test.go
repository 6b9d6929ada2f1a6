package stripe_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
)

// TestWhatIsReadAgain counts the tries of a read. A read changes nothing, so it is
// tried again on whatever may pass, and on nothing else.
func TestWhatIsReadAgain(t *testing.T) {
	t.Parallel()
	busy := errorOf(refused, "rate_limit", "slow")
	for _, tc := range []struct {
		name   string
		answer func(int, http.ResponseWriter, *http.Request)
		tries  int
	}{
		{"400", says(400, errorOf(refused, "", "bad")), 1},
		{"401", says(401, errorOf(refused, "", "key")), 1},
		{"404", says(404, errorOf(refused, "resource_missing", "no")), 1},
		{"500 not to be asked again", says(500, errorOf("api_error", "", "oops"), "Stripe-Should-Retry", "false"), 1},
		{"429 not to be asked again", says(429, busy, "Stripe-Should-Retry", "false"), 1},
		{"429 for longer than a read waits", says(429, busy, "Retry-After", "61"), 1},
		{"400 to be asked again", says(400, errorOf(refused, "", "busy"), "Stripe-Should-Retry", "true"), 4},
		{"409", says(409, errorOf(refused, "lock_timeout", "busy")), 4},
		{"429", says(429, busy), 4},
		{"500", says(500, errorOf("api_error", "", "oops")), 4},
		{"502 in HTML", says(502, "<html>"), 4},
		{"redirect", says(302, "", "Location", "/elsewhere"), 4},
		{"cut", hangsUp("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"), 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := doubled(t, 0, tc.answer)
			if _, err := d.Event(t.Context(), "evt_1"); err == nil {
				t.Error("the read succeeded")
			}
			if n := len(d.asked()); n != tc.tries {
				t.Errorf("Stripe was asked %d times, want %d", n, tc.tries)
			}
		})
	}
}

func TestAReadSucceedsWhenTheTroubleHasPassed(t *testing.T) {
	t.Parallel()
	trouble := []func(int, http.ResponseWriter, *http.Request){says(500, "{}"), hangsUp(""), says(200, padded(100))}
	d := doubled(t, 0, func(n int, w http.ResponseWriter, r *http.Request) { trouble[n-1](n, w, r) })
	e, err := d.Event(t.Context(), "evt_1")
	if err != nil || e.ID != "evt_1" || len(e.Payload) != 100 {
		t.Errorf("read were %d bytes of %q, %v; want the whole", len(e.Payload), e.ID, err)
	}
}

// TestTheContextIsHonouredDuringTheWait: stripe-go would sleep on.
func TestTheContextIsHonouredDuringTheWait(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	d := doubled(t, 0, func(n int, w http.ResponseWriter, r *http.Request) {
		says(429, errorOf(refused, "rate_limit", "slow"), "Retry-After", "60")(n, w, r)
		time.AfterFunc(50*time.Millisecond, cancel) // the answer is on its way, the wait has begun or is about to
	})
	ended := make(chan error, 1)
	go func() { ended <- d.Ping(ctx) }()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) || len(d.asked()) != 1 {
			t.Errorf("%v after %d requests, want canceled after one", err, len(d.asked()))
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the wait went on without anybody waiting")
	}
}

func TestRetryAfterIsWaitedFor(t *testing.T) {
	t.Parallel()
	d := doubled(t, 0, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			says(429, errorOf(refused, "rate_limit", "slow"), "Retry-After", "1")(n, w, r)
			return
		}
		says(200, `{"data": [], "has_more": false}`)(n, w, r)
	})
	began := time.Now()
	if err := d.Ping(t.Context()); err != nil || len(d.asked()) != 2 {
		t.Errorf("%v after %d requests", err, len(d.asked()))
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("Stripe was asked again after %v, want a second at least", took)
	}
}

func list(t *testing.T, d *double) (ids []string, err error) {
	t.Helper()
	err = d.Events(t.Context(), start, start.Add(time.Hour), func(e stripe.Event) error {
		ids = append(ids, e.ID)
		return nil
	})
	return ids, err
}

func TestListsEndWhateverStripeSays(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		pages []string
		want  []string
		fails bool
	}{
		{"an empty page that promises more", []string{`{"data": [], "has_more": true}`}, nil, false},
		{"an empty page behind a full one", []string{`{"data": [{"id": "a"}], "has_more": true}`, `{"data": [], "has_more": true}`}, []string{"a"}, false},
		{"no list at all", []string{`{}`}, nil, false},
		{"null for a list", []string{`{"data": null, "has_more": true}`}, nil, false},
		{"a page without a cursor", []string{`{"data": [{"object": "event"}], "has_more": true}`}, []string{""}, true},
		{"a page that repeats the cursor", []string{`{"data": [{"id": "a"}], "has_more": true}`, `{"data": [{"id": "a"}], "has_more": true}`}, []string{"a", "a"}, true},
		{"an item that is none", []string{`{"data": ["a"], "has_more": false}`}, nil, true},
		{"a second page that fails", []string{`{"data": [{"id": "a"}], "has_more": true}`, ""}, []string{"a"}, true},
		{"two pages", []string{`{"data": [{"id": "a"}, {"id": "b"}], "has_more": true}`, `{"data": [{"id": "c"}], "has_more": false}`}, []string{"a", "b", "c"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := doubled(t, 0, func(n int, w http.ResponseWriter, r *http.Request) {
				if body := tc.pages[min(n, len(tc.pages))-1]; body != "" {
					says(200, body)(n, w, r)
					return
				}
				says(400, errorOf(refused, "", "bad"))(n, w, r)
			})
			ids, err := list(t, d)
			if diff := cmp.Diff(tc.want, ids); diff != "" || (err != nil) != tc.fails {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if n := len(d.asked()); n != len(tc.pages) {
				t.Errorf("%d pages were asked for, want %d", n, len(tc.pages))
			}
		})
	}
}

func TestAListAsksFromWhereItStopped(t *testing.T) {
	t.Parallel()
	d := doubled(t, 0, func(n int, w http.ResponseWriter, r *http.Request) {
		says(200, fmt.Sprintf(`{"data": [{"id": "evt_%d"}], "has_more": %v}`, n, n < 3))(n, w, r)
	})
	if _, err := list(t, d); err != nil {
		t.Fatal(err)
	}
	for i, after := range []string{"", "evt_1", "evt_2"} {
		r := d.asked()[i]
		u, err := url.ParseRequestURI(r.path)
		if err != nil {
			t.Fatal(err)
		}
		want := url.Values{"created[gte]": {"1772366400"}, "created[lte]": {"1772370000"}, "limit": {"100"}}
		if after != "" {
			want.Set("starting_after", after)
		}
		if diff := cmp.Diff(want, u.Query()); diff != "" || u.Path != "/v1/events" || r.method != http.MethodGet || r.header.Get("Idempotency-Key") != "" {
			t.Errorf("page %d: %s %s, key %q (-want +got):\n%s", i, r.method, u.Path, r.header.Get("Idempotency-Key"), diff)
		}
	}
}

func TestAnErrorOfTheReceiverStopsTheList(t *testing.T) {
	t.Parallel()
	d := doubled(t, 0, says(200, `{"data": [{"id": "a"}, {"id": "b"}], "has_more": true}`))
	stop := errors.New("stop")
	n := 0
	err := d.Events(t.Context(), start, start, func(stripe.Event) error {
		n++
		return stop
	})
	if !errors.Is(err, stop) || n != 1 || len(d.asked()) != 1 {
		t.Errorf("%v after %d items and %d pages", err, n, len(d.asked()))
	}
}

func TestErrorsAreToldApart(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status           int
		body             string
		missing, refused bool
	}{
		{404, errorOf(refused, "", "Unrecognized request URL"), true, false},
		{400, errorOf(refused, "resource_missing", "No such customer"), true, false},
		{401, errorOf(refused, "", "key"), false, true},
		{403, errorOf(refused, "", "permission"), false, true},
		{400, errorOf(refused, "", "bad"), false, false},
		{404, "<html>", false, false}, // a proxy's, not Stripe's
	} {
		_, err := doubled(t, 0, says(tc.status, tc.body)).PaymentIntent(t.Context(), "pi_1")
		if err == nil || stripe.IsMissing(err) != tc.missing || stripe.IsRefused(err) != tc.refused {
			t.Errorf("%d %s: %v, missing %v, refused %v", tc.status, tc.body, err, stripe.IsMissing(err), stripe.IsRefused(err))
		}
	}
}

// TestTotalsAreExact has numbers that a float would change.
func TestTotalsAreExact(t *testing.T) {
	t.Parallel()
	for literal, want := range map[string]string{
		`"x"`: "", "9223372036854.775808": "", "1e400": "", "1e4000000": "",
		"0": "0", "3": "3", "0.1": "0.1", "1e3": "1000", "9007199254.740993": "9007199254.740993", "9223372036854.775807": "9223372036854.775807",
		"0.0000004": "0", "0.0000005": "0.000001", "0.0000015": "0.000002", "-2": "-2", "-0.0000005": "-0.000001", "2.50": "2.5",
	} {
		d := doubled(t, 0, says(200, `{"data": [{"id": "s", "start_time": 1772366400, "end_time": 1772370000, "aggregated_value": `+literal+`}], "has_more": false}`))
		totals, err := d.Totals(t.Context(), "mtr/1", "cus_1", start, start.Add(time.Hour), true)
		if want == "" {
			if err == nil {
				t.Errorf("%s was read as %v", literal, totals)
			}
			continue
		}
		quantity := credit.Quantity(0)
		if len(totals) == 1 {
			quantity = totals[0].Quantity
		}
		if err != nil || quantity.String() != want || !totals[0].From.Equal(start) {
			t.Errorf("%s was read as %v, %v; want %s", literal, totals, err, want)
		}
		if path := d.asked()[0].path; !strings.HasPrefix(path, "/v1/billing/meters/mtr%2F1/event_summaries?") {
			t.Errorf("the path is %s: an id is one segment of it", path)
		}
	}
}

// TestMoreLinesThanAnAnswerHoldsAreRead: a session has ten of its lines in it.
func TestMoreLinesThanAnAnswerHoldsAreRead(t *testing.T) {
	t.Parallel()
	line := func(price string) string {
		return `{"id": "li_` + price + `", "quantity": 2, "price": {"id": "` + price + `", "metadata": {"credits": "5"}, "product": {"id": "prod_1", "metadata": {"credits": "7"}}}}`
	}
	d := doubled(t, 0, func(n int, w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/checkout/sessions/cs_1/line_items") {
			says(200, `{"data": [`+line("price_1")+","+line("price_2")+`], "has_more": false}`)(n, w, r)
			return
		}
		says(200, `{"id": "cs_1", "payment_intent": {"id": "pi_1"}, "customer": null, "line_items": {"has_more": true, "data": [`+line("price_1")+`]}}`)(n, w, r)
	})
	s, err := d.Session(t.Context(), "cs_1")
	if err != nil || len(s.Items) != 2 || s.PaymentIntent != "pi_1" || s.Customer != "" {
		t.Fatalf("read was %+v, %v", s, err)
	}
	if i := s.Items[1]; i.Price != "price_2" || i.Product != "prod_1" || i.Quantity != 2 || i.PriceMetadata["credits"] != "5" || i.ProductMetadata["credits"] != "7" {
		t.Errorf("the second line is %+v", i)
	}
}

// TestJ01TheKeyIsNeverLogged: nor are bodies, which hold what customers are called.
func TestJ01TheKeyIsNeverLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	d := doubled(t, 0, says(400, errorOf(refused, "", "bad")))
	client := stripe.New(stripe.Config{Key: "sk_test_canary", BaseURL: d.url, Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	_, _, err := client.SendMeterEvent(t.Context(), event)
	if err == nil || strings.Contains(err.Error(), "canary") || strings.Contains(log.String(), "canary") || strings.Contains(log.String(), "cus_1") {
		t.Errorf("%v was logged as %s", err, log.String())
	}
	var line struct{ Level string }
	if err := json.Unmarshal(bytes.SplitN(log.Bytes(), []byte("\n"), 2)[0], &line); err != nil || line.Level != "DEBUG" {
		t.Errorf("stripe-go's lines are %s: callers log what matters", log.String())
	}
}

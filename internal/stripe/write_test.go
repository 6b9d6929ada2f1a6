package stripe_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tallystick/internal/stripe"
)

// TestWhatAnAnswerToAWriteMeans has each answer of which stripe-go, or a retry,
// would make something else.
func TestWhatAnAnswerToAWriteMeans(t *testing.T) {
	t.Parallel()
	html := "<html><body><h1>Bad Gateway</h1></body></html>"
	for _, tc := range []struct {
		name   string
		answer func(int, http.ResponseWriter, *http.Request)
		want   stripe.Verdict
		wait   time.Duration
	}{
		{"400", says(400, errorOf(refused, "", "Invalid timestamp")), stripe.VerdictRejected, 0},
		{"402", says(402, errorOf("card_error", "card_declined", "no")), stripe.VerdictRejected, 0},
		{"404", says(404, errorOf(refused, "resource_missing", "No such customer")), stripe.VerdictRejected, 0},
		{"400 that is to be sent again", says(400, errorOf(refused, "", "Busy"), "Stripe-Should-Retry", "true"), stripe.VerdictUnknown, 0},
		{"400 that is not", says(400, errorOf(refused, "", "Bad"), "Stripe-Should-Retry", "false"), stripe.VerdictRejected, 0},
		{"400 of the key's content", says(400, errorOf("idempotency_error", "", "other parameters")), stripe.VerdictUnknown, 0},
		{"400 in HTML", says(400, html), stripe.VerdictUnknown, 0},
		{"401", says(401, errorOf(refused, "", "Expired API Key")), stripe.VerdictRefused, 0},
		{"403", says(403, errorOf(refused, "", "The key lacks a permission")), stripe.VerdictRefused, 0},
		{"409", says(409, errorOf(refused, "idempotency_key_in_use", "in use")), stripe.VerdictUnknown, 0},
		{"429", says(429, errorOf(refused, "rate_limit", "slow")), stripe.VerdictThrottled, 0},
		{"429 that says when", says(429, errorOf(refused, "rate_limit", "slow"), "Retry-After", "7"), stripe.VerdictThrottled, 7 * time.Second},
		{"429 in an hour", says(429, errorOf(refused, "rate_limit", "slow"), "Retry-After", "3600"), stripe.VerdictThrottled, time.Hour},
		{"429 beyond an hour", says(429, errorOf(refused, "rate_limit", "slow"), "Retry-After", "3601"), stripe.VerdictThrottled, 0},
		{"429 before now", says(429, errorOf(refused, "rate_limit", "slow"), "Retry-After", "-1"), stripe.VerdictThrottled, 0},
		{"429 at a date", says(429, errorOf(refused, "rate_limit", "slow"), "Retry-After", "Sun, 01 Mar 2026 12:00:00 GMT"), stripe.VerdictThrottled, 0},
		{"429 not to be sent again", says(429, errorOf(refused, "lock_timeout", "busy"), "Stripe-Should-Retry", "false"), stripe.VerdictThrottled, 0},
		{"500", says(500, errorOf("api_error", "", "oops")), stripe.VerdictUnknown, 0},
		{"500 not to be sent again", says(500, errorOf("api_error", "", "oops"), "Stripe-Should-Retry", "false"), stripe.VerdictUnknown, 0},
		{"500 without an error", says(500, "{}"), stripe.VerdictUnknown, 0},
		{"500 without a body", says(500, ""), stripe.VerdictUnknown, 0},
		{"502 in HTML", says(502, html), stripe.VerdictUnknown, 0},
		{"503", says(503, errorOf("api_error", "", "away")), stripe.VerdictUnknown, 0},
		{"500 that mentions the identifier", says(500, errorOf("api_error", "", twice)), stripe.VerdictUnknown, 0},
		{"200 in HTML", says(200, html), stripe.VerdictUnknown, 0},
		{"200 without a body", says(200, ""), stripe.VerdictUnknown, 0},
		{"200 with half a body", says(200, noResult[:10]), stripe.VerdictUnknown, 0},
		{"200 beyond the bound", says(200, padded(bodyMax+1)), stripe.VerdictUnknown, 0},
		{"cut before the answer", hangsUp(""), stripe.VerdictUnknown, 0},
		{"cut in the header", hangsUp("HTTP/1.1 200 O"), stripe.VerdictUnknown, 0},
		{"cut in the body", hangsUp("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"), stripe.VerdictUnknown, 0},
		{"200", says(200, noResult), stripe.VerdictDone, 0},
		{"200 at the bound", says(200, padded(bodyMax)), stripe.VerdictDone, 0},
		{"400, it is there", says(400, errorOf(refused, "", twice), "Stripe-Should-Retry", "false"), stripe.VerdictDone, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := doubled(t, 0, tc.answer)
			verdict, wait, err := d.SendMeterEvent(t.Context(), event)
			if verdict != tc.want || wait != tc.wait || (err == nil && verdict != stripe.VerdictDone) {
				t.Errorf("verdict %d, wait %v, %v; want %d and %v", verdict, wait, err, tc.want, tc.wait)
			}
			if n := len(d.asked()); n != 1 {
				t.Errorf("Stripe was asked %d times, want once: the outbox decides about the next", n)
			}
		})
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		d := doubled(t, 0, func(_ int, w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/elsewhere" {
				says(200, noResult)(0, w, r)
				return
			}
			says(status, "{}", "Location", "/elsewhere")(0, w, r) // read as an answer, it would say done
		})
		verdict, _, err := d.SendMeterEvent(t.Context(), event)
		if verdict != stripe.VerdictUnknown || err == nil || len(d.asked()) != 1 {
			t.Errorf("%d: verdict %d, %v, after %d requests; want unknown after one", status, verdict, err, len(d.asked()))
		}
	}
}

func TestAStripeThatDoesNotAnswerInTimeIsUnknown(t *testing.T) {
	t.Parallel()
	never := func(_ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	if verdict, _, err := doubled(t, 50*time.Millisecond, never).SendMeterEvent(t.Context(), event); verdict != stripe.VerdictUnknown || err == nil {
		t.Errorf("beyond the time of a call: verdict %d, %v", verdict, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := doubled(t, 0, func(_ int, _ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if verdict, _, err := gone.SendMeterEvent(ctx, event); verdict != stripe.VerdictUnknown || err == nil {
		t.Errorf("beyond the caller's context: verdict %d, %v", verdict, err)
	}
	away := stripe.New(stripe.Config{Key: "sk_test_canary", BaseURL: "http://127.0.0.1:1"})
	if verdict, _, err := away.SendMeterEvent(t.Context(), event); verdict != stripe.VerdictUnknown || err == nil {
		t.Errorf("nobody there: verdict %d, %v", verdict, err)
	}
}

// TestAConnectionThatDiesBetweenCallsIsTriedWithTheSameBytes: net/http itself sends
// a request again that has an idempotency key, when a kept connection turns out
// to be dead.
func TestAConnectionThatDiesBetweenCallsIsTriedWithTheSameBytes(t *testing.T) {
	t.Parallel()
	d := doubled(t, 0, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 2 {
			hangsUp("")(n, w, r)
			return
		}
		says(200, noResult)(n, w, r)
	})
	for range 2 {
		if verdict, _, err := d.SendMeterEvent(t.Context(), event); verdict != stripe.VerdictDone {
			t.Errorf("verdict %d, %v", verdict, err)
		}
	}
	asked := d.asked()
	for _, r := range asked[1:] {
		if r.body != asked[0].body || r.header.Get("Idempotency-Key") != asked[0].header.Get("Idempotency-Key") {
			t.Errorf("sent again were %q %q, first %q %q", r.header.Get("Idempotency-Key"), r.body, asked[0].header.Get("Idempotency-Key"), asked[0].body)
		}
	}
}

// TestP10AWriteIsMadeOfItsEventOnly sends the same event from two clients: same
// bytes, same key, nothing of chance in it.
func TestP10AWriteIsMadeOfItsEventOnly(t *testing.T) {
	t.Parallel()
	var calls [][]seen
	for range 2 {
		d := doubled(t, 0, says(200, noResult, "Request-Id", "req_1"))
		again := event
		again.Attempt = 2
		for _, e := range []stripe.MeterEvent{event, event, again} {
			if verdict, _, err := d.SendMeterEvent(t.Context(), e); verdict != stripe.VerdictDone {
				t.Fatal(err)
			}
		}
		if err := d.CancelMeterEvent(t.Context(), "calls", event.Identifier); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, d.asked())
	}
	for i, want := range []string{"tally-0001-1", "tally-0001-1", "tally-0001-2", "cancel-tally-0001"} {
		a, b := calls[0][i], calls[1][i]
		if a.body != b.body || a.header.Get("Idempotency-Key") != want || b.header.Get("Idempotency-Key") != want {
			t.Errorf("call %d: keys %q and %q, want %q; bodies %q and %q", i, a.header.Get("Idempotency-Key"), b.header.Get("Idempotency-Key"), want, a.body, b.body)
		}
	}
	first := calls[0][0]
	values, err := url.ParseQuery(first.body)
	if err != nil {
		t.Fatal(err)
	}
	want := url.Values{
		"event_name": {"calls"}, "identifier": {"tally-0001"}, "timestamp": {"1772366400"},
		"payload[stripe_customer_id]": {"cus_1"}, "payload[value]": {"3"},
	}
	if diff := cmp.Diff(want, values); diff != "" || first.method != http.MethodPost || first.path != "/v1/billing/meter_events" {
		t.Errorf("%s %s (-want +got):\n%s", first.method, first.path, diff)
	}
	for i, call := range calls[0] {
		if call.header.Get("X-Stripe-Client-Telemetry") != "" || call.header.Get("Stripe-Version") != stripe.APIVersion || call.header.Get("Authorization") != "Bearer sk_test_canary" {
			t.Errorf("call %d has the headers %v", i, call.header)
		}
	}
	if diff := cmp.Diff(calls[0][1].body, calls[0][2].body); diff != "" || strings.Contains(calls[0][2].body, "attempt") {
		t.Errorf("a later attempt has other bytes:\n%s", diff)
	}
}

package stripesim_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/webhook"

	"tallystick/stripesim"
)

// letter is a webhook that has arrived.
type letter struct {
	body      []byte
	signature string
	event     map[string]any
}

// inbox is a receiver of webhooks that answers with a status.
type inbox struct {
	mu      sync.Mutex
	letters []letter
	status  int
	URL     string
	secret  string
	id      string
}

func (i *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	l := letter{body: body, signature: r.Header.Get("Stripe-Signature")}
	_ = json.Unmarshal(body, &l.event)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.letters = append(i.letters, l)
	if i.status == http.StatusFound {
		w.Header().Set("Location", i.URL)
	}
	w.WriteHeader(i.status)
}

func (i *inbox) answer(status int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.status = status
}

func (i *inbox) all() []letter {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.letters)
}

// listen makes an endpoint that receives events of some types.
func (u *user) listen(events string, form ...string) *inbox {
	u.t.Helper()
	i := &inbox{status: http.StatusOK}
	receiver := httptest.NewServer(i)
	u.t.Cleanup(receiver.Close)
	i.URL = receiver.URL
	o := u.must("POST", "/v1/webhook_endpoints", "url="+receiver.URL+"&enabled_events[]="+events+strings.Join(append([]string{""}, form...), "&"))
	i.secret, i.id = o["secret"].(string), o["id"].(string)
	return i
}

func (u *user) drain() {
	u.t.Helper()
	if err := u.Drain(u.t.Context()); err != nil {
		u.t.Fatal(err)
	}
}

func (u *user) webhooks(rules string) {
	u.t.Helper()
	u.must("POST", "/_sim/webhooks", rules)
}

// event gives the newest event of a type.
func (u *user) event(kind string) map[string]any {
	u.t.Helper()
	data, _ := u.must("GET", "/v1/events", "limit=1&type="+kind)["data"].([]any)
	if len(data) == 0 {
		u.t.Fatalf("there is no event %s", kind)
	}
	return data[0].(map[string]any)
}

func march() *still { return &still{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

// TestEachTryIsSignedAfresh and stripe-go takes it.
func TestEachTryIsSignedAfresh(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	i := u.listen("customer.created", "api_version=2023-10-16")
	i.answer(http.StatusInternalServerError)
	u.make("/v1/customers", "")
	u.drain()
	u.Advance(2 * time.Second)
	u.drain()
	letters := i.all()
	if len(letters) != 2 || string(letters[0].body) != string(letters[1].body) || letters[0].signature == letters[1].signature {
		t.Fatalf("the tries are %v", letters)
	}
	e, err := webhook.ConstructEvent(letters[0].body, letters[0].signature, i.secret)
	if err != nil || e.Type != "customer.created" || e.PendingWebhooks != 1 || e.Request.ID == "" {
		t.Errorf("stripe-go reads %+v, %v", e, err)
	}
	if !strings.Contains(letters[0].signature, ",v0=") {
		t.Error("the signature lacks the v0 of test mode")
	}
}

// TestTheScheduleOfTries runs over three days, or over some hours in a sandbox.
func TestTheScheduleOfTries(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sandbox bool
		tries   int
		within  time.Duration
	}{{false, 14, 72 * time.Hour}, {true, 3, 5 * time.Hour}} {
		clock := march()
		u := newUser(t, stripesim.Options{Clock: clock, Switches: stripesim.Switches{SandboxRetries: tc.sandbox}})
		i := u.listen("customer.created")
		i.answer(http.StatusFound) // a redirect is a failure, too
		u.make("/v1/customers", "")
		start := clock.Now()
		for range 1000 {
			u.drain()
			if u.State().Webhooks.Queued == 0 {
				break
			}
			u.Advance(5 * time.Minute)
		}
		tries := u.Deliveries()
		last := tries[len(tries)-1].At.Sub(start)
		if len(tries) != tc.tries || len(i.all()) != tc.tries || last > tc.within+2*time.Hour || last < tc.within/2 {
			t.Errorf("sandbox %v: %d tries, the last one after %v", tc.sandbox, len(tries), last)
		}
		for n, d := range tries {
			if d.Try != n+1 || d.Status != 302 || d.Endpoint != i.id || d.URL != i.URL || d.Type != "customer.created" {
				t.Errorf("try %d is logged as %+v", n+1, d)
			}
		}
		e := u.event("customer.created")
		if fmt.Sprint(e["pending_webhooks"]) != "1" {
			t.Errorf("an event that was never delivered has %v pending webhooks", e["pending_webhooks"])
		}
		for query, want := range map[string]int{"delivery_success=false": 1, "delivery_success=true": 0} {
			if data, _ := u.must("GET", "/v1/events", query)["data"].([]any); len(data) != want {
				t.Errorf("%s lists %d events, want %d", query, len(data), want)
			}
		}
		i.answer(http.StatusNoContent)
		if err := u.Redeliver(e["id"].(string)); err != nil {
			t.Fatal(err)
		}
		u.drain()
		if e := u.event("customer.created"); fmt.Sprint(e["pending_webhooks"]) != "0" {
			t.Errorf("an event that was sent again has %v pending webhooks", e["pending_webhooks"])
		}
		if data, _ := u.must("GET", "/v1/events", "delivery_success=true")["data"].([]any); len(data) != 1 {
			t.Errorf("%d events are listed as delivered, want 1", len(data))
		}
	}
}

// TestPendingWebhooks counts the endpoints that an event has not reached.
func TestPendingWebhooks(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	good, bad, gone := u.listen("*"), u.listen("*"), u.listen("customer.created")
	bad.answer(500)
	gone.answer(500)
	u.webhooks(`{"duplicate": 1}`)
	u.make("/v1/customers", "")
	pending := func() string { return fmt.Sprint(u.event("customer.created")["pending_webhooks"]) }
	u.drain()
	if got := pending(); got != "2" || len(good.all()) != 2 {
		t.Errorf("%s are pending, want 2; the good endpoint has %d", got, len(good.all()))
	}
	u.must("DELETE", "/v1/webhook_endpoints/"+gone.id, "")
	if got := pending(); got != "1" {
		t.Errorf("without the endpoint that is deleted %s are pending, want 1", got)
	}
	u.must("POST", "/v1/webhook_endpoints/"+bad.id, "disabled=true")
	if got := pending(); got != "0" || u.State().Webhooks.Queued != 0 {
		t.Errorf("without the endpoint that is disabled %s are pending and %d queued", got, u.State().Webhooks.Queued)
	}
	if data, _ := u.must("GET", "/v1/events", "delivery_success=false")["data"].([]any); len(data) != 1 {
		t.Error("an event that some endpoint never got is not listed as undelivered")
	}
	u.Advance(time.Hour)
	u.drain()
	if len(bad.all()) != 2 || len(gone.all()) != 2 {
		t.Errorf("the endpoints that are no more got %d and %d", len(bad.all()), len(gone.all()))
	}
}

// TestWhatGoesWrongWithDeliveries plays each rule.
func TestWhatGoesWrongWithDeliveries(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		rule string
		want int // letters
		look func(i *inbox, l letter) bool
	}{
		{"lose", 0, nil},
		{"duplicate", 2, nil},
		{"duplicate_new_id", 2, nil},
		{"bad_signature", 1, func(i *inbox, l letter) bool { return failsWith(i, l, webhook.ErrNoValidSignature) }},
		{"wrong_secret", 1, func(i *inbox, l letter) bool { return failsWith(i, l, webhook.ErrNoValidSignature) }},
		{"truncated_body", 1, func(i *inbox, l letter) bool { return failsWith(i, l, webhook.ErrNoValidSignature) && l.event == nil }},
		{"old_timestamp", 1, func(i *inbox, l letter) bool { return failsWith(i, l, webhook.ErrTooOld) }},
		{"future_timestamp", 1, func(i *inbox, l letter) bool { return failsWith(i, l, nil) && signedAt(l) > time.Now().Unix()+3000 }},
		{"wrong_livemode", 1, func(i *inbox, l letter) bool { return failsWith(i, l, nil) && l.event["livemode"] == true }},
		{"wrong_api_version", 1, func(_ *inbox, l letter) bool { return l.event["api_version"] != stripe.APIVersion }},
	} {
		u := newUser(t)
		i := u.listen("*", "api_version="+stripe.APIVersion)
		u.webhooks(`{"` + tc.rule + `": {"types": ["customer.*"], "times": 1}}`)
		u.make("/v1/products", "name=a") // of another type
		u.make("/v1/customers", "")
		u.make("/v1/customers", "") // the rule is spent
		u.drain()
		letters := i.all()
		if len(letters) != tc.want+2 {
			t.Errorf("%s: %d letters, want %d", tc.rule, len(letters), tc.want+2)
			continue
		}
		spoiled := 0
		for _, l := range letters {
			if tc.look != nil && tc.look(i, l) {
				spoiled++
			} else if !failsWith(i, l, nil) {
				t.Errorf("%s: one that was to be left alone is %s", tc.rule, l.body)
			}
		}
		if tc.look != nil && spoiled != 1 {
			t.Errorf("%s: %d are spoiled, want 1", tc.rule, spoiled)
		}
		named := slices.ContainsFunc(u.Deliveries(), func(d stripesim.Delivery) bool { return d.Fault == tc.rule })
		if named != (tc.look != nil) {
			t.Errorf("%s: the log of tries is %+v", tc.rule, u.Deliveries())
		}
	}
}

func failsWith(i *inbox, l letter, want error) bool {
	_, err := webhook.ConstructEvent(l.body, l.signature, i.secret)
	return errors.Is(err, want)
}

func signedAt(l letter) int64 {
	stamp, _, _ := strings.Cut(strings.TrimPrefix(l.signature, "t="), ",")
	n, _ := strconv.ParseInt(stamp, 10, 64)
	return n
}

// TestTwoEventsOfOneChange differ in nothing but their ids, and both are listed.
func TestTwoEventsOfOneChange(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	i := u.listen("*")
	u.webhooks(`{"duplicate_new_id": 1}`)
	u.make("/v1/customers", "name=a")
	u.drain()
	letters := i.all()
	if len(letters) != 2 || letters[0].event["id"] == letters[1].event["id"] {
		t.Fatalf("the letters are %v", letters)
	}
	delete(letters[0].event, "id")
	delete(letters[1].event, "id")
	if fmt.Sprint(letters[0].event) != fmt.Sprint(letters[1].event) {
		t.Errorf("the events are %v and %v", letters[0].event, letters[1].event)
	}
	if data, _ := u.must("GET", "/v1/events", "")["data"].([]any); len(data) != 2 {
		t.Errorf("%d events are listed, want 2", len(data))
	}
}

// TestDeliveriesWait for a delay of days, and for the end of a pause.
func TestDeliveriesWait(t *testing.T) {
	t.Parallel()
	clock := march()
	u := newUser(t, stripesim.Options{Clock: clock})
	i := u.listen("*")
	u.webhooks(fmt.Sprintf(`{"delay_ms": %d}`, 3*24*3600*1000))
	u.make("/v1/customers", "")
	u.Advance(3*24*time.Hour - time.Millisecond)
	u.drain()
	if len(i.all()) != 0 {
		t.Error("a delivery comes before its delay")
	}
	u.Advance(time.Millisecond)
	u.drain()
	if letters := i.all(); len(letters) != 1 || signedAt(letters[0]) != clock.Now().Unix() {
		t.Errorf("after the delay: %v", letters)
	}
	u.webhooks(`{"delay_ms": 0, "pause": true}`)
	u.make("/v1/customers", "")
	time.Sleep(250 * time.Millisecond)
	if len(i.all()) != 1 || u.State().Webhooks.Queued != 1 {
		t.Error("a delivery comes in a pause")
	}
	u.webhooks(`{"pause": false}`)
	u.drain()
	if len(i.all()) != 2 {
		t.Errorf("after the pause there are %d letters, want 2", len(i.all()))
	}
}

// TestReorder delivers in another order than that of the changes.
func TestReorder(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Seed: 3})
	i := u.listen("customer.created")
	u.webhooks(`{"reorder": true}`)
	for n := range 30 {
		u.make("/v1/customers", "name="+fmt.Sprintf("%02d", n))
	}
	u.Advance(time.Second)
	u.drain()
	var names []string
	for _, l := range i.all() {
		names = append(names, member(l.event, "data", "object", "name").(string))
	}
	if len(names) != 30 || slices.IsSorted(names) {
		t.Errorf("the order is %v", names)
	}
}

// TestRolledSecrets both sign for a day, and then only the new one.
func TestRolledSecrets(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	i := u.listen("*")
	old := i.secret
	rolled, err := u.RollSecret(i.id)
	if err != nil {
		t.Fatal(err)
	}
	good := func(want map[string]bool) {
		t.Helper()
		u.make("/v1/customers", "")
		u.drain()
		letters := i.all()
		l := letters[len(letters)-1]
		for secret, ok := range want {
			if got := webhook.ValidatePayloadIgnoringTolerance(l.body, l.signature, secret) == nil; got != ok {
				t.Errorf("a secret is good: %v, want %v", got, ok)
			}
		}
	}
	good(map[string]bool{old: true, rolled: true})
	u.Advance(24*time.Hour - 10*time.Second)
	good(map[string]bool{old: true, rolled: true})
	u.Advance(20 * time.Second)
	good(map[string]bool{old: false, rolled: true})
	at := u.must("POST", "/_sim/webhook_endpoints/"+i.id+"/roll_secret", `{"keep_seconds": 0}`)["secret"].(string)
	good(map[string]bool{old: false, rolled: false, at: true})
}

// TestAnEndpointThatFailsForDaysIsDisabled where the switch says so.
func TestAnEndpointThatFailsForDaysIsDisabled(t *testing.T) {
	t.Parallel()
	for _, days := range []int{0, 2} {
		u := newUser(t, stripesim.Options{Switches: stripesim.Switches{EndpointDisabledAfterDays: days}})
		i := u.listen("*")
		i.answer(503)
		status := func() any { return u.must("GET", "/v1/webhook_endpoints/"+i.id, "")["status"] }
		u.make("/v1/customers", "")
		u.drain()
		u.Advance(47 * time.Hour)
		u.make("/v1/customers", "")
		u.drain()
		if got := status(); got != "enabled" {
			t.Errorf("%d days: after 47 hours the endpoint is %v", days, got)
		}
		u.Advance(2 * time.Hour)
		u.make("/v1/customers", "")
		u.drain()
		if got, want := status(), map[int]string{0: "enabled", 2: "disabled"}[days]; got != want {
			t.Errorf("%d days: after 49 hours the endpoint is %v, want %s", days, got, want)
		}
		if days > 0 && u.State().Webhooks.Queued != 0 {
			t.Errorf("%d deliveries are queued for an endpoint that is disabled", u.State().Webhooks.Queued)
		}
	}
}

// TestASlowReceiverIsAFailure after the timeout of the switch.
func TestASlowReceiverIsAFailure(t *testing.T) {
	t.Parallel()
	u := newUser(t, stripesim.Options{Switches: stripesim.Switches{WebhookTimeoutMS: 30}})
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	t.Cleanup(slow.Close)
	u.make("/v1/webhook_endpoints", "url="+slow.URL+"&enabled_events[]=*")
	u.make("/v1/customers", "")
	u.drain()
	tries := u.Deliveries()
	if len(tries) != 1 || tries[0].Status != 0 || !strings.Contains(tries[0].Error, "deadline") || u.State().Webhooks.Failed != 1 {
		t.Errorf("the tries are %+v", tries)
	}
}

// TestAnEndpointHasItsVersionAndItsTypes and thin events have to be listed.
func TestAnEndpointHasItsVersionAndItsTypes(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	all, old, thin := u.listen("*"), u.listen("customer.*", "api_version=2020-08-27"), u.listen("v1.billing.meter.no_meter_found")
	u.make("/v1/customers", "")
	u.make("/v1/products", "name=a")
	u.must("POST", "/v1/billing/meter_events", "event_name=nothing&payload[stripe_customer_id]=cus_1&payload[value]=1")
	u.Advance(time.Minute) // reports of meter errors come in batches
	u.State()
	u.drain()
	if letters := all.all(); len(letters) != 2 || letters[0].event["api_version"] != stripesim.APIVersion {
		t.Errorf("the endpoint for all got %d letters", len(letters))
	}
	if letters := old.all(); len(letters) != 1 || letters[0].event["api_version"] != "2020-08-27" {
		t.Errorf("the endpoint of an old version got %v", letters)
	}
	letters := thin.all()
	if len(letters) != 1 || letters[0].event["type"] != "v1.billing.meter.no_meter_found" || webhook.ValidatePayload(letters[0].body, letters[0].signature, thin.secret) != nil {
		t.Errorf("the endpoint for thin events got %v", letters)
	}
}

// TestEndpointsAreChecked refuses what is no endpoint, and one too many.
func TestEndpointsAreChecked(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	for _, tc := range []struct{ form, code, param string }{
		{"enabled_events[]=*", "parameter_missing", "url"},
		{"url=http://127.0.0.1/", "parameter_missing", "enabled_events"},
		{"url=127.0.0.1&enabled_events[]=*", "url_invalid", "url"},
		{"url=http://&enabled_events[]=*", "url_invalid", "url"},
		{"url=ftp://127.0.0.1/&enabled_events[]=*", "url_invalid", "url"},
		{"url=http://127.0.0.1/&enabled_events[]=a[b", "", "enabled_events[0]"},
		{"url=http://127.0.0.1/&enabled_events[]=*&api_version=new", "", "api_version"},
		{"url=http://127.0.0.1/&enabled_events[]=*&disabled=true", "parameter_unknown", "disabled"},
	} {
		u.refused(u.call("POST", "/v1/webhook_endpoints", tc.form), 400, invalidRequest, tc.code, tc.param)
	}
	var id string
	for range 16 {
		id = u.make("/v1/webhook_endpoints", "url=http://127.0.0.1:1/&enabled_events[]=*&metadata[a]=b")
	}
	u.refused(u.call("POST", "/v1/webhook_endpoints", "url=http://127.0.0.1/&enabled_events[]=*"), 400, invalidRequest, "", "")
	u.refused(u.call("POST", "/v1/webhook_endpoints/"+id, "api_version=2023-10-16"), 400, invalidRequest, "parameter_unknown", "api_version")
	o := u.must("POST", "/v1/webhook_endpoints/"+id, "description=x&metadata[c]=d&enabled_events[]=charge.refunded")
	if o["secret"] != nil || o["description"] != "x" || fmt.Sprint(o["metadata"]) != "map[a:b c:d]" || fmt.Sprint(o["enabled_events"]) != "[charge.refunded]" {
		t.Errorf("the endpoint is now %v", o)
	}
}

// TestTenThousandDeliveries are queued, and go out without a look at all of them
// for each.
func TestTenThousandDeliveries(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	i := u.listen("customer.updated")
	u.webhooks(`{"pause": true}`)
	customer := u.make("/v1/customers", "")
	for n := range 100 {
		u.must("POST", "/v1/customers/"+customer, fmt.Sprintf("name=%d", n))
	}
	data, _ := u.must("GET", "/v1/events", "limit=100&type=customer.updated")["data"].([]any)
	for range 99 {
		for _, e := range data {
			if err := u.Redeliver(e.(map[string]any)["id"].(string)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := u.State().Webhooks.Queued; got != 10000 {
		t.Fatalf("%d are queued, want 10000", got)
	}
	u.webhooks(`{"pause": false}`)
	u.drain()
	if got := len(i.all()); got != 10000 {
		t.Errorf("%d arrived, want 10000", got)
	}
}

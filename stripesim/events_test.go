package stripesim_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// TestPreviousAttributes hold what has changed, and of maps only the members.
func TestPreviousAttributes(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	path := "/v1/customers/" + u.make("/v1/customers", "name=a&email=a@example.com&metadata[stays]=1&metadata[goes]=2&metadata[changes]=3")
	if got := member(u.event("customer.created"), "data", "previous_attributes"); got != nil {
		t.Errorf("a creation has the previous attributes %v", got)
	}
	u.must("POST", path, "name=b&email=a@example.com&metadata[goes]=&metadata[changes]=4&metadata[comes]=5")
	if got := fmt.Sprint(member(u.event("customer.updated"), "data", "previous_attributes")); got != "map[metadata:map[changes:3 comes:<nil> goes:2] name:a]" {
		t.Errorf("the previous attributes are %s", got)
	}
	u.must("POST", path, "name=b")
	if data, _ := u.must("GET", "/v1/events", "type=customer.updated")["data"].([]any); len(data) != 1 {
		t.Errorf("a change that changes nothing makes %d events, want 1 of before", len(data))
	}
	if got := member(u.event("customer.updated"), "data", "object", "name"); got != "b" {
		t.Errorf("the event's object is named %v", got)
	}
}

// TestEventsNameTheirRequest and have none where nobody asked.
func TestEventsNameTheirRequest(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	a := u.call("POST", "/v1/customers", "", key("k")...)
	e := u.event("customer.created")
	if member(e, "request", "id") != a.Header.Get("Request-Id") || member(e, "request", "idempotency_key") != "k" || e["api_version"] != stripesim.APIVersion {
		t.Errorf("the event is %v", e)
	}
}

// TestEventsAreFiltered by type, with *, by time and by what became of them.
func TestEventsAreFiltered(t *testing.T) {
	t.Parallel()
	clock := march()
	u := newUser(t, stripesim.Options{Clock: clock})
	start := clock.Now().Unix()
	customer := u.make("/v1/customers", "")
	u.Advance(10 * time.Second)
	u.must("POST", "/v1/customers/"+customer, "name=b")
	u.Advance(10 * time.Second)
	u.make("/v1/products", "name=a")
	for _, tc := range []struct{ query, want string }{
		{"", "product.created customer.updated customer.created"},
		{"type=customer.created", "customer.created"},
		{"type=customer.*", "customer.updated customer.created"},
		{"type=*", "product.created customer.updated customer.created"},
		{"type=charge.*", ""},
		{"types[]=product.created&types[]=customer.created", "product.created customer.created"},
		{fmt.Sprintf("created[gte]=%d", start+10), "product.created customer.updated"},
		{fmt.Sprintf("created[gt]=%d", start+10), "product.created"},
		{fmt.Sprintf("created[lte]=%d", start+10), "customer.updated customer.created"},
		{fmt.Sprintf("created[lt]=%d", start+10), "customer.created"},
		{fmt.Sprintf("created[gt]=%d&created[lt]=%d", start, start+20), "customer.updated"},
		{"delivery_success=false", ""},
		{"delivery_success=true&limit=1", "product.created"},
	} {
		var got []string
		data, _ := u.must("GET", "/v1/events", tc.query)["data"].([]any)
		for _, e := range data {
			got = append(got, e.(map[string]any)["type"].(string))
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s lists %v, want %s", tc.query, got, tc.want)
		}
	}
	u.refused(u.call("GET", "/v1/events", "type=a&types[]=b"), 400, invalidRequest, "", "types")
	u.must("GET", "/v1/events", strings.Repeat("types[]=a&", 20))
	u.refused(u.call("GET", "/v1/events", strings.Repeat("types[]=a&", 21)), 400, invalidRequest, "", "types")
	u.refused(u.call("GET", "/v1/events/evt_none", ""), 404, invalidRequest, "resource_missing", "id")
}

// TestEventsGoAfter30Days at the edge and one beyond, and lag in the list.
func TestEventsGoAfter30Days(t *testing.T) {
	t.Parallel()
	clock := march()
	u := newUser(t, stripesim.Options{Clock: clock, Switches: stripesim.Switches{EventLagSeconds: 20}})
	u.make("/v1/customers", "")
	listed := func() []any {
		data, _ := u.must("GET", "/v1/events", "")["data"].([]any)
		return data
	}
	u.Advance(19 * time.Second)
	if len(listed()) != 0 {
		t.Error("a new event is listed at once")
	}
	u.Advance(time.Second)
	if len(listed()) != 1 {
		t.Fatal("an event is not listed after its lag")
	}
	path := "/v1/events/" + listed()[0].(map[string]any)["id"].(string)
	u.Advance(30*24*time.Hour - 21*time.Second)
	u.must("GET", path, "")
	u.Advance(time.Second)
	u.refused(u.call("GET", path, ""), 404, invalidRequest, "resource_missing", "id")
	if err := u.Redeliver(strings.TrimPrefix(path, "/v1/events/")); err == nil {
		t.Error("an event that is gone can be sent again")
	}
	if len(listed()) != 0 || u.State().Counts["event"] > 1 {
		t.Error("an event that is gone is listed")
	}
}

// TestLostEventsStayListed as those that are pending for ever.
func TestLostEventsStayListed(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	i := u.listen("*")
	u.webhooks(`{"lose": {"types": ["customer.*"]}}`)
	u.make("/v1/customers", "")
	u.make("/v1/products", "name=a")
	u.drain()
	if got := u.State().Webhooks; len(i.all()) != 1 || got.Lost != 1 || got.Queued != 0 {
		t.Errorf("%d letters and %+v", len(i.all()), got)
	}
	data, _ := u.must("GET", "/v1/events", "delivery_success=false")["data"].([]any)
	if len(data) != 1 || fmt.Sprint(data[0].(map[string]any)["pending_webhooks"]) != "1" {
		t.Fatalf("undelivered are %v", data)
	}
	u.webhooks(`{"lose": 0}`)
	u.must("POST", "/_sim/webhooks/redeliver", fmt.Sprintf(`{"event": "%s", "endpoint": "%s"}`, data[0].(map[string]any)["id"], i.id))
	u.drain()
	if !slices.ContainsFunc(i.all(), func(l letter) bool { return l.event["type"] == "customer.created" }) {
		t.Error("a lost event cannot be sent again")
	}
	if data, _ := u.must("GET", "/v1/events", "delivery_success=false")["data"].([]any); len(data) != 0 {
		t.Errorf("still undelivered are %v", data)
	}
}

// TestWhatWasDeliveredStaysSo when it is sent again and refused then, and carries
// the time of the simulator's own clock.
func TestWhatWasDeliveredStaysSo(t *testing.T) {
	t.Parallel()
	clock := march()
	u := newUser(t, stripesim.Options{Clock: clock, Switches: stripesim.Switches{ClockSkewSeconds: -600}})
	i := u.listen("*")
	u.make("/v1/customers", "")
	u.drain()
	i.answer(500)
	e := u.event("customer.created")
	if err := u.Redeliver(e["id"].(string)); err != nil {
		t.Fatal(err)
	}
	u.drain()
	letters := i.all()
	if len(letters) != 2 || signedAt(letters[1]) != clock.Now().Unix()-600 {
		t.Errorf("the letters are %v", letters)
	}
	if e := u.event("customer.created"); fmt.Sprint(e["pending_webhooks"]) != "0" || u.State().Webhooks.Queued != 0 {
		t.Errorf("after a refusal of what was sent again %v are pending, %d queued", e["pending_webhooks"], u.State().Webhooks.Queued)
	}
	if data, _ := u.must("GET", "/v1/events", "delivery_success=true")["data"].([]any); len(data) != 1 {
		t.Error("an event that was delivered once is listed as undelivered")
	}
}

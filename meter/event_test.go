package meter_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/api"
)

const (
	structured = "application/cloudevents+json"
	batched    = "application/cloudevents-batch+json"
)

// eventOf is an event of acme's with one call, changed by further members; a
// member "" is left out.
func eventOf(id string, change ...string) string {
	members := map[string]string{
		"specversion": `"1.0"`, "id": `"` + id + `"`, "source": `"/llm"`, "type": `"call"`, "subject": `"acme"`, "data": `{"quantity": 2}`,
	}
	for i := 0; i+1 < len(change); i += 2 {
		members[change[i]] = change[i+1]
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if members[name] != "" {
			_, _ = fmt.Fprintf(&b, `, %q: %s`, name, members[name])
		}
	}
	return "{" + strings.TrimPrefix(b.String(), ", ") + "}"
}

func (c *till) event(body string) answer {
	c.t.Helper()
	return c.call(http.MethodPost, "/v1/events", body, "Content-Type", structured)
}

// binary sends an event in binary mode.
func (c *till) binary(body string, header ...string) answer {
	c.t.Helper()
	header = append([]string{"Content-Type", "application/json", "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/llm", "ce-type", "call", "ce-subject", "acme"}, header...)
	return c.call(http.MethodPost, "/v1/events", body, header...)
}

// pointers lists the places of a problem.
func pointers(t *testing.T, a answer) []string {
	t.Helper()
	var p api.Problem
	read(t, a, &p)
	var places []string
	for _, f := range p.Errors {
		places = append(places, f.Pointer)
	}
	return places
}

func TestC01AnEventIsOneUsageInWhicheverMode(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.clock.pass(time.Minute)
	first := c.want(201, http.MethodPost, "/v1/events", eventOf("1", "time", `"2026-03-01T13:00:00.5+01:00"`, "data", `{"quantity": "2.50", "dimensions": {"model": "l"}, "trace": [1]}`,
		"datacontenttype", `"application/json; charset=utf-8"`, "traceparent", `"00-1"`, "sampled", `true`, "sequence", `7`, "dataschema", `null`), "Content-Type", structured+"; charset=utf-8")
	var u api.Usage
	read(t, first, &u)
	if u.ID != "event@~llm@1" || u.Account != "acme" || u.Meter != "call" || u.Quantity != "2.5" || u.Credits != "2.5" || u.Dimensions["model"] != "l" || !u.OccurredAt.Equal(start.Add(500*time.Millisecond)) || first.replayed {
		t.Errorf("the event was recorded as %s", first.body)
	}
	c.clock.pass(time.Hour)
	again := c.binary(`{"quantity": 2.5, "dimensions": {"model": "l"}}`, "ce-time", "2026-03-01T12:00:00.5Z", "ce-tracestate", "x")
	if again.status != 201 || !again.replayed || again.body != first.body {
		t.Errorf("the same in binary mode was answered %d: %s", again.status, again.body)
	}
	event := eventOf("1", "time", `"2026-03-01T12:00:00.500Z"`, "data", `{"dimensions": {"model": "l"}, "quantity": 2.500000}`)
	var b api.UsageBatch
	read(t, c.want(200, http.MethodPost, "/v1/events", "["+event+","+event+"]", "Content-Type", batched), &b)
	for i, r := range b.Results {
		if r.Result != "replayed" || r.Usage == nil || r.Usage.RecordedAt != u.RecordedAt {
			t.Errorf("in a batch, %d became %s", i, r.Result)
		}
	}
	if got := c.available(); got != "97.5" || len(b.Results) != 2 {
		t.Errorf("acme holds %s, want 97.5 after one event", got)
	}
	c.verified()
}

func TestC02AnEventWithOtherContentIsRefused(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	c.want(201, http.MethodPut, "/v1/meters/other", `{"credits_per_unit": 1}`)
	c.want(201, http.MethodPost, "/v1/events", eventOf("1"), "Content-Type", structured)
	for _, other := range []string{
		eventOf("1", "type", `"other"`), eventOf("1", "data", `{"quantity": 3}`), eventOf("1", "time", `"2026-03-01T12:00:00Z"`), eventOf("1", "data", `{"quantity": 2, "dimensions": {"a": "b"}}`),
	} {
		if a := c.event(other); a.status != 422 || a.code != "idempotency_conflict" {
			t.Errorf("%s was answered %d: %s", other, a.status, a.body)
		}
	}
	for _, same := range []string{eventOf("1", "myext", `"x"`), eventOf("1", "data", `{"quantity": 2, "more": 1}`), eventOf("1", "dataschema", `"https://example.com/s"`)} {
		if a := c.event(same); a.status != 201 || !a.replayed {
			t.Errorf("%s was answered %d: %s", same, a.status, a.body)
		}
	}
	if got := c.available(); got != "98" {
		t.Errorf("acme holds %s, want 98", got)
	}
}

// TestC03EventsOfOtherSourcesAccountsAndPlainUsageAreOthers records as many usages as there
// are keys, some of which look alike.
func TestC03EventsOfOtherSourcesAccountsAndPlainUsageAreOthers(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	long := strings.Repeat("x", 5000)
	for _, key := range [][2]string{{"/llm", "1"}, {"llm", "1"}, {"/llm", "11"}, {"/llm/1", "1"}, {"~llm", "1"}, {"/llm", "a b"}, {"/llm", long}, {"/llm", long + "x"}, {"/" + long[:2000], "é"}} {
		a := c.event(eventOf("1", "source", quoted(t, key[0]), "id", quoted(t, key[1])))
		if a.status != 201 || a.replayed {
			t.Errorf("%.20q was answered %d: %.300s", key, a.status, a.body)
		}
		if again := c.event(eventOf("1", "source", quoted(t, key[0]), "id", quoted(t, key[1]))); !again.replayed || again.body != a.body {
			t.Errorf("%.20q once more was answered %d: %.300s", key, again.status, again.body)
		}
	}
	if a := c.use("event@~llm@1", 1); a.status != 422 || !slices.Equal(pointers(t, a), []string{"/id"}) {
		t.Errorf("a caller chose the id of an event: %d %s", a.status, a.body)
	}
	c.want(201, http.MethodPut, "/v1/accounts/other", `{"overdraft": 10}`)
	if a := c.event(eventOf("1", "subject", `"other"`)); a.status != 201 || a.replayed {
		t.Errorf("the same key of another account was answered %d: %s", a.status, a.body)
	}
	if got := c.available(); got != "82" {
		t.Errorf("acme holds %s, want 82 after nine events", got)
	}
}

func TestG05EventsAreRefusedWithAllTheirMistakes(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	for _, tc := range []struct {
		body   string
		status int
		want   []string
	}{
		{`{}`, 422, []string{"/id", "/source", "/specversion", "/data/quantity", "/subject", "/type"}},
		{`null`, 422, []string{"/id", "/source", "/specversion", "/data/quantity", "/subject", "/type"}},
		{`[]`, 400, []string{""}},
		{`{"id": "1", "id": "1"}`, 400, []string{"/id"}},
		{eventOf("1", "data", `{"quantity": 1, "quantity": 1}`), 400, []string{"/data/quantity"}},
		{eventOf("1", "myext", `"\u0000"`), 400, []string{""}},
		{eventOf("1", "specversion", `"0.3"`), 422, []string{"/specversion"}},
		{eventOf("1", "specversion", `1.0`), 422, []string{"/specversion"}},
		{eventOf("1", "id", `""`, "source", `"%zz"`), 422, []string{"/id", "/source"}},
		{eventOf("1", "id", `"a\u007f"`, "source", `null`), 422, []string{"/id", "/source"}},
		{eventOf("1", "time", `"yesterday"`, "subject", `"a b"`, "type", `"a/b"`), 422, []string{"/subject", "/time", "/type"}},
		{eventOf("1", "time", `"2026-01-25T11:59:59Z"`), 422, []string{"/time"}},
		{eventOf("1", "time", `"2026-01-25T11:59:59Z"`, "data", `{"quantity": 0}`), 422, []string{"/data/quantity", "/time"}},
		{eventOf("1", "Subject", `"x"`, "my-ext", `1`, "ext", `{}`, "other", `1.5`, "big", `2147483648`), 422, []string{"/Subject", "/big", "/ext", "/my-ext", "/other"}},
		{eventOf("1", "data", ``), 422, []string{"/data/quantity"}},
		{eventOf("1", "data", ``, "data_base64", `"e30="`), 422, []string{"/data_base64", "/data/quantity"}},
		{eventOf("1", "data", `"{\"quantity\": 1}"`), 422, []string{"/data"}},
		{eventOf("1", "datacontenttype", `"text/xml"`), 422, []string{"/datacontenttype"}},
		{eventOf("1", "data", `{"quantity": 1e3}`), 422, []string{"/data/quantity"}},
		{eventOf("1", "data", `{"quantity": 0.0000001}`), 422, []string{"/data/quantity"}},
		{eventOf("1", "data", `{"quantity": null}`), 422, []string{"/data/quantity"}},
		{eventOf("1", "data", `{"quantity": [1]}`), 422, []string{"/data/quantity"}},
		{eventOf("1", "data", `{"quantity": 1, "dimensions": []}`), 422, []string{"/data/dimensions"}},
		{eventOf("1", "data", `{"quantity": 1, "dimensions": {"a/b": 1, "c": null, "d": "`+strings.Repeat("x", 257)+`"}}`), 422, []string{"/data/dimensions/a~1b", "/data/dimensions/c", "/data/dimensions/d"}},
		{eventOf("1", "type", `"unknown"`, "data", `{"tokens": 1}`), 422, []string{"/data/quantity"}},
	} {
		a := c.event(tc.body)
		if got := pointers(t, a); a.status != tc.status || !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(tc.want))) {
			t.Errorf("%.200s was answered %d with %q, want %d with %q: %s", tc.body, a.status, got, tc.status, tc.want, a.body)
		}
	}
	for _, tc := range []struct {
		body, code string
		status     int
	}{
		{eventOf("1", "type", `"unknown"`), "meter_not_found", 404},
		{eventOf("1", "subject", `"nobody"`), "account_not_found", 404},
		{eventOf("1", "data", `{"quantity": 101}`), "insufficient_credits", 402},
	} {
		if a := c.event(tc.body); a.status != tc.status || a.code != tc.code {
			t.Errorf("%s was answered %d: %s", tc.body, a.status, a.body)
		}
	}
	if n := c.count("SELECT count(*) FROM usage"); n != 0 {
		t.Errorf("%d usages were recorded of refused events", n)
	}
	c.want(201, http.MethodPost, "/v1/events", eventOf("1"), "Content-Type", structured) // M3
}

func TestG05BinaryEventsAreRefusedWithAllTheirMistakes(t *testing.T) {
	t.Parallel()
	c := opened(t, 100)
	plain := c.call(http.MethodPost, "/v1/events", usageOf("usage-0001", 1), "Content-Type", "application/json")
	if got := pointers(t, plain); plain.status != 422 || !slices.Equal(got, []string{"#header/ce-id", "#header/ce-source", "#header/ce-specversion", "#header/ce-subject", "#header/ce-type"}) {
		t.Errorf("a usage without headers was answered %d: %s", plain.status, plain.body)
	}
	for _, tc := range []struct {
		body   string
		header []string
		status int
		want   []string
	}{
		{`{"quantity": 1} `, []string{"ce-id", "50%"}, 422, []string{"#header/ce-id"}},
		{`{"quantity": 1} `, []string{"ce-id", "%C0%A0"}, 422, []string{"#header/ce-id"}},
		{`{"quantity": 1} `, []string{"ce-datacontenttype", "application/json", "ce-data", "x"}, 422, []string{"#header/ce-data", "#header/ce-datacontenttype"}},
		{`{"quantity": 1} `, []string{"ce-my-ext", "x", "ce-", "y"}, 422, []string{"#header/ce-", "#header/ce-my-ext"}},
		{`{"quantity": 1} `, []string{"ce-myext", ""}, 422, []string{"#header/ce-myext"}},
		{`{"quantity": 0, "dimensions": {"a": 1}}`, []string{"ce-subject", "a b"}, 422, []string{"/dimensions/a", "#header/ce-subject", "/quantity"}},
		{`{"quantity": 1, "quantity": 1}`, nil, 400, []string{"/quantity"}},
		{`{"quantity": "\u0000"}`, nil, 400, []string{""}},
		{`[1]`, nil, 422, []string{""}},
		{``, nil, 422, []string{"/quantity"}},
	} {
		a := c.binary(tc.body, tc.header...)
		if got := pointers(t, a); a.status != tc.status || !slices.Equal(got, tc.want) {
			t.Errorf("%s with %q was answered %d with %q, want %d with %q: %s", tc.body, tc.header, a.status, got, tc.status, tc.want, a.body)
		}
	}
	twice, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+"/v1/events", strings.NewReader(`{"quantity": 1}`))
	if err != nil {
		t.Fatal(err)
	}
	twice.Header = http.Header{
		"Authorization": {"Bearer " + c.key}, "Content-Type": {"application/json"}, "Ce-Specversion": {"1.0"}, "Ce-Id": {"1", "1"},
		"Ce-Source": {"/llm"}, "Ce-Type": {"call"}, "Ce-Subject": {"acme"},
	}
	response, err := client.Do(twice)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if n := c.count("SELECT count(*) FROM usage"); n != 0 || response.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a key given twice was answered %d; %d usages were recorded", response.StatusCode, n)
	}
}

func TestG06EventsAtTheirBoundsAndOneBeyond(t *testing.T) {
	t.Parallel()
	c := opened(t, 5000)
	events := func(n int) string {
		items := make([]string, n)
		for i := range items {
			items[i] = eventOf(fmt.Sprint(i), "data", `{"quantity": 1}`)
		}
		return "[" + strings.Join(items, ",") + "]"
	}
	padded := func(size int) string {
		return eventOf("pad", "data", `{"quantity": 1, "pad": "`+strings.Repeat("x", size-len(eventOf("pad", "data", `{"quantity": 1, "pad": ""}`)))+`"}`)
	}
	for _, tc := range []struct {
		media, body string
		status      int
		code        string
	}{
		{batched, events(1001), 422, "invalid_value"},
		{batched, events(1000), 200, ""},
		{batched, `[]`, 200, ""},
		{batched, `null`, 400, "invalid_request"},
		{batched, `{}`, 400, "invalid_request"},
		{batched, `[{}`, 400, "invalid_request"},
		{batched, `[` + strings.Repeat(" ", 8<<20-1) + `]`, 413, "body_too_large"},
		{batched, `[` + strings.Repeat(" ", 8<<20-2) + `]`, 200, ""},
		{structured, padded(1<<20 + 1), 413, "body_too_large"},
		{structured, padded(1 << 20), 201, ""},
		{"application/cloudevents", `{}`, 415, "unsupported_media_type"},
		{"application/cloudevents+avro", `{}`, 415, "unsupported_media_type"},
		{"application/cloudevents-batch+xml", `{}`, 415, "unsupported_media_type"},
		{"text/plain", `{}`, 415, "unsupported_media_type"},
		{"application/x-www-form-urlencoded", `a=b`, 415, "unsupported_media_type"},
		{"application/cloudevents+json; charset", eventOf("1"), 415, "unsupported_media_type"},
	} {
		if a := c.call(http.MethodPost, "/v1/events", tc.body, "Content-Type", tc.media); a.status != tc.status || a.code != tc.code {
			t.Errorf("%.80s as %s was answered %d, want %d %s: %.300s", tc.body, tc.media, a.status, tc.status, tc.code, a.body)
		}
	}
	if got := c.available(); got != "3999" {
		t.Errorf("acme holds %s, want 3999", got)
	}
}

// TestABadEventHurtsNoNeighbour sends every kind of bad one between good ones.
func TestABadEventHurtsNoNeighbour(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	items := []string{
		eventOf("1"), `7`, eventOf("2"), `{"id": "1", "id": "2"}`, eventOf("1"), eventOf("3", "subject", `"nobody"`), eventOf("1", "data", `{"quantity": 1}`),
		eventOf("4", "data", `{"quantity": 7}`), eventOf("5", "myext", `"\u0000"`), `null`, eventOf("6"),
	}
	var b api.UsageBatch
	read(t, c.want(200, http.MethodPost, "/v1/events", "["+strings.Join(items, ",")+"]", "Content-Type", batched), &b)
	want := []string{
		"recorded", "invalid_request", "recorded", "invalid_request", "replayed", "account_not_found", "idempotency_conflict", "insufficient_credits", "invalid_request", "invalid_value", "recorded",
	}
	for i, r := range b.Results {
		got := r.Result
		if r.Problem != nil {
			var p api.Problem
			if err := json.Unmarshal(r.Problem, &p); err != nil {
				t.Fatal(err)
			}
			got = p.Code
		}
		if got != want[i] {
			t.Errorf("%s became %s, want %s", items[i], got, want[i])
		}
	}
	if got := c.available(); got != "4" || len(b.Results) != len(want) {
		t.Errorf("acme holds %s, want 4", got)
	}
}

// TestTheMetersValueFieldHoldsTheQuantity changes the field between events, one of
// which is sent again.
func TestTheMetersValueFieldHoldsTheQuantity(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	meters := "/v1/meters/"
	for _, tc := range []struct{ field, pointer string }{{strings.Repeat("f", 65), "/value_field"}, {"dimensions", "/value_field"}} {
		if a := c.call(http.MethodPut, meters+"m", `{"credits_per_unit": 1, "value_field": "`+tc.field+`"}`); a.status != 422 || !slices.Equal(pointers(t, a), []string{tc.pointer}) {
			t.Errorf("%s was answered %d: %s", tc.field, a.status, a.body)
		}
	}
	c.want(201, http.MethodPut, meters+"long", `{"credits_per_unit": 1, "value_field": "`+strings.Repeat("f", 64)+`"}`)
	var m api.Meter
	read(t, c.want(201, http.MethodPut, meters+"m", `{"credits_per_unit": 1, "value_field": "a/b"}`), &m)
	if m.ValueField != "a/b" {
		t.Errorf("the meter says %s", m.ValueField)
	}
	event := eventOf("1", "type", `"m"`, "data", `{"quantity": 1, "a/b": 3.000001}`)
	var u api.Usage
	first := c.want(201, http.MethodPost, "/v1/events", event, "Content-Type", structured)
	if read(t, first, &u); u.Quantity != "3.000001" {
		t.Errorf("recorded was %s", first.body)
	}
	if a := c.event(eventOf("2", "type", `"m"`)); !slices.Equal(pointers(t, a), []string{"/data/a~1b"}) {
		t.Errorf("an event without the field was answered %d: %s", a.status, a.body)
	}
	read(t, c.want(200, http.MethodPut, meters+"m", `{"credits_per_unit": 1}`), &m)
	if m.ValueField != "quantity" || m.RateVersion != 1 {
		t.Errorf("a field that is left out became %s, the rate version %d", m.ValueField, m.RateVersion)
	}
	if a := c.event(event); a.status != 422 || a.code != "idempotency_conflict" {
		t.Errorf("an event that now has another quantity was answered %d: %s", a.status, a.body)
	}
	c.want(200, http.MethodPut, meters+"m", `{"credits_per_unit": 1, "value_field": "a/b"}`)
	if a := c.event(event); !a.replayed || a.body != first.body {
		t.Errorf("the field being back, the event was answered %d: %s", a.status, a.body)
	}
	c.want(201, http.MethodPut, meters+"counts", `{"credits_per_unit": 5, "aggregation": "count"}`)
	for id, data := range map[string]string{"3": "", "4": `{}`, "5": `{"quantity": 9}`} {
		read(t, c.want(201, http.MethodPost, "/v1/events", eventOf(id, "type", `"counts"`, "data", data), "Content-Type", structured), &u)
		if u.Credits != "5" {
			t.Errorf("an event of a meter that counts, with data %s, cost %s", data, u.Credits)
		}
	}
	if a := c.binary("", "ce-type", "counts", "ce-id", url.PathEscape("a b")); a.status != 201 {
		t.Errorf("an event without a body was answered %d: %s", a.status, a.body)
	}
	if got := c.available(); got != "976.999999" {
		t.Errorf("acme holds %s, want 976.999999", got)
	}
}

// TestAnEventThatIsSentAgainAfterItsTimeHasRunOutIsReplayed is about the edge at
// which a refusal would say that nothing was recorded.
func TestAnEventThatIsSentAgainAfterItsTimeHasRunOutIsReplayed(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	old := eventOf("1", "time", `"`+start.Add(-35*24*time.Hour).Format(time.RFC3339)+`"`)
	first := c.want(201, http.MethodPost, "/v1/events", old, "Content-Type", structured)
	c.clock.pass(time.Minute)
	if a := c.event(old); !a.replayed || a.body != first.body {
		t.Errorf("the event that was sent again was answered %d: %s", a.status, a.body)
	}
	if a := c.event(strings.ReplaceAll(old, `"id": "1"`, `"id": "2"`)); a.status != 422 || !slices.Equal(pointers(t, a), []string{"/time"}) {
		t.Errorf("a new event of that time was answered %d: %s", a.status, a.body)
	}
}

// TestC01OneEventSentByManyAtOnceIsChargedOnce mixes the modes.
func TestC01OneEventSentByManyAtOnceIsChargedOnce(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			var a answer
			switch i % 3 {
			case 0:
				a = c.event(eventOf("1"))
			case 1:
				a = c.binary(`{"quantity": 2}`)
			case 2:
				a = c.call(http.MethodPost, "/v1/events", "["+eventOf("1")+"]", "Content-Type", batched)
			}
			if a.status > 201 || strings.Contains(a.body, "refused") {
				t.Errorf("answered %d: %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	if got := c.available(); got != "8" {
		t.Errorf("acme holds %s, want 8", got)
	}
	c.verified()
}

func TestEventsNeedTheScopeUsage(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	for scope, status := range map[string]int{"read": 403, "usage": 201} {
		var k api.Key
		read(t, c.want(201, http.MethodPost, "/v1/keys", `{"name": "x", "scopes": ["`+scope+`"]}`), &k)
		if a := c.call(http.MethodPost, "/v1/events", eventOf("1"), "Content-Type", structured, "Authorization", "Bearer "+k.Secret); a.status != status {
			t.Errorf("with scope %s answered %d, want %d: %s", scope, a.status, status, a.body)
		}
	}
}

// TestAProcessThatKnowsAnOldFieldReadsByTheNewOne changes a meter through one
// process and sends events through another, which has it in memory.
func TestAProcessThatKnowsAnOldFieldReadsByTheNewOne(t *testing.T) {
	t.Parallel()
	c := opened(t, 1000)
	other := c.beside()
	event := func(id string) string {
		return eventOf(id, "type", `"m"`, "data", `{"quantity": 1, "tokens": 10}`)
	}
	if a := other.event(event("0")); a.status != 404 {
		t.Errorf("an event of no meter was answered %d: %s", a.status, a.body)
	}
	c.want(201, http.MethodPut, "/v1/meters/m", `{"credits_per_unit": 1}`)
	c.want(201, http.MethodPut, "/v1/meters/n", `{"credits_per_unit": 1}`)
	other.want(201, http.MethodPost, "/v1/events", event("1"), "Content-Type", structured) // 1
	c.want(200, http.MethodPut, "/v1/meters/m", `{"credits_per_unit": 1, "value_field": "tokens"}`)
	first := c.want(201, http.MethodPost, "/v1/events", event("2"), "Content-Type", structured) // 10
	if a := other.event(event("2")); !a.replayed || a.body != first.body {
		t.Errorf("the event that another process has recorded was answered %d: %s", a.status, a.body)
	}
	other.want(201, http.MethodPost, "/v1/events", event("3"), "Content-Type", structured) // 10
	c.want(200, http.MethodPut, "/v1/meters/m", `{"credits_per_unit": 1}`)
	var b api.UsageBatch
	batch := "[" + strings.Join([]string{event("4"), eventOf("5", "type", `"m"`, "data", `{"quantity": 1}`), eventOf("6", "type", `"n"`), event("3")}, ",") + "]" // 1, 1, 2
	read(t, other.want(200, http.MethodPost, "/v1/events", batch, "Content-Type", batched), &b)
	for i, want := range []string{"recorded", "recorded", "recorded", "refused"} {
		if b.Results[i].Result != want {
			t.Errorf("event %d of the batch became %s, want %s: %s", i, b.Results[i].Result, want, b.Results[i].Problem)
		}
	}
	if a := other.event(eventOf("7", "type", `"m"`, "data", "")); a.status != 422 || !slices.Equal(pointers(t, a), []string{"/data/quantity"}) {
		t.Errorf("an event without a quantity was answered %d: %s", a.status, a.body)
	}
	if got := c.available(); got != "975" {
		t.Errorf("acme holds %s, want 975", got)
	}
	c.verified()
}

// TestUsageOfAnEventIsShownAndVoided names it by the id that its event gave it,
// short and long.
func TestUsageOfAnEventIsShownAndVoided(t *testing.T) {
	t.Parallel()
	c := opened(t, 10)
	for i, id := range []string{"1", strings.Repeat("long", 60)} {
		var u api.Usage
		read(t, c.want(201, http.MethodPost, "/v1/events", eventOf(id), "Content-Type", structured), &u)
		path := "/v1/usage/" + url.PathEscape(u.ID)
		c.want(200, http.MethodGet, path+"?account=acme", "")
		c.want(201, http.MethodPost, path+"/void", `{"account": "acme", "reason": "never happened"}`)
		if got := c.available(); got != "10" {
			t.Errorf("after the void of event %d acme holds %s, want 10", i, got)
		}
	}
	c.verified()
}

package meter

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// TestEventIDsAreTheSameForEver holds the ids of events against literals: they are
// guards of charges, so another way of making them would charge every event that
// is sent again a second time.
func TestEventIDsAreTheSameForEver(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ source, id, want string }{
		{"/llm", "1", "event@~llm@1"},
		{"https://example.com/llm/eu", "01HZX-9.a_b:c", "event@https:~~example.com~llm~eu@01HZX-9.a_b:c"},
		{"urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", "7", "event@urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66@7"},
		{strings.Repeat("s", 149), "1234", "event@" + strings.Repeat("s", 149) + "@1234"}, // 160 in all
		{strings.Repeat("s", 150), "1234", "event@ec87cdbebff7416a6318be3a79367dc1cadb496eb1c26aac8b23c0ca9d04d196"},
		{"/a~b", "1", "event@e760db3769a3c40bb1bfa2efe983dc46d8c996c29c462d505aed8d6a49c14c2c"},
		{"/llm", "a b", "event@345d61870db8f2d75d80c22189bd260d76ff1f74e9e5ddc89737721cb40d0531"},
		{"/llm", "a/b", "event@4c4be6d2645051ef7f7452e1ba20ca620ae6e1d259f3ebaa6cbfcf69a93cd7da"},
		{"/llm?x=1", "1", "event@24cff4225af2a04ae2b6f495870687c4a79972f51846c0e8f0e9b333b9b35d5f"},
		{"/é", "1", "event@7c4f2a82d25f4bba2ca7dad7994081dd3d9850a06807c6659428f45ff507f5c3"},
		{"a@b", "1", "event@484b70715cbdb00c55e32dd2b481750603bacec4a230daba4dd8ef475261a2fb"},
	} {
		if got := eventID(tc.source, tc.id); got != tc.want {
			t.Errorf("source %q, id %q: %s, want %s", tc.source, tc.id, got, tc.want)
		}
	}
}

// TestNoTwoEventsShareAnID tries sources and ids of few characters, all of which
// the readable form uses or has to refuse.
func TestNoTwoEventsShareAnID(t *testing.T) {
	t.Parallel()
	seen := map[string][2]string{}
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.StringOfN(rapid.RuneFrom([]rune("a/~@.:0")), 1, 6, -1)
		pair := [2]string{texts.Draw(t, "source"), texts.Draw(t, "id")}
		id := eventID(pair[0], pair[1])
		if other, known := seen[id]; known && other != pair {
			t.Fatalf("%q and %q share the id %s", pair, other, id)
		}
		seen[id] = pair
		if idForm.MatchString(id) || len(id) < 8 || len(id) > eventIDMax || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@~-") != "" {
			t.Fatalf("%q has the id %q: a caller may choose it, or the table or a path cannot take it", pair, id)
		}
	})
}

// readEvent is an event on the way that requests take, up to the lanes.
func readEvent(m *Meter, e *event) (api.UsageRequest, error) {
	q, in := e.usage(&field{Value: "tokens"})
	m.validateIdentified(q, "test", &e.problems, in)
	return q, e.problems.Err(fault.ErrUnprocessed)
}

func TestAFieldIsStaleWhenItsMeterReadsOtherwise(t *testing.T) {
	t.Parallel()
	sum, counts := &definition{ValueField: "tokens", Aggregation: "sum"}, &definition{ValueField: "tokens", Aggregation: "count"}
	for i, tc := range []struct {
		f     *field
		d     *definition
		stale bool
	}{
		{nil, sum, false},
		{nil, nil, false},
		{&field{Value: "tokens"}, sum, false},
		{&field{Value: "quantity"}, sum, true},
		{&field{Value: "tokens"}, counts, true},
		{&field{Value: "tokens", Counts: true}, counts, false},
		{&field{Value: "tokens", Counts: true}, sum, true},
		{&field{Value: "tokens", unknown: true}, nil, false},
		{&field{Value: "tokens", unknown: true}, sum, true},
	} {
		if got := tc.f.stale(tc.d); got != tc.stale {
			t.Errorf("case %d: stale is %t, want %t", i, got, tc.stale)
		}
	}
}

// asHeaders writes an event in binary mode as the HTTP binding says.
func asHeaders(attributes map[string]string) http.Header {
	header := http.Header{}
	for name, text := range attributes {
		var b strings.Builder
		for i := range len(text) {
			if c := text[i]; c > ' ' && c < 0x7f && c != '"' && c != '%' {
				b.WriteByte(c)
			} else {
				_, _ = fmt.Fprintf(&b, "%%%02x", c)
			}
		}
		if name == "datacontenttype" {
			header.Set("Content-Type", text)
		} else {
			header.Set("Ce-"+name, b.String())
		}
	}
	return header
}

// FuzzEvent holds the reader of CloudEvents against its promises: what it refuses
// is the caller's mistake, what it takes can be recorded, and the same event in
// binary mode is the same usage.
func FuzzEvent(f *testing.F) {
	const whole = `{"specversion": "1.0", "id": "a b%", "source": "/llm", "type": "llm.tokens", "subject": "acme", "time": "2026-03-01T12:00:00.5+01:00",
		"datacontenttype": "application/json", "traceparent": "00-é", "sequence": 7, "flag": true, "dataschema": null, "data": {"tokens": "12.5", "dimensions": {"model": "l"}}}`
	for _, seed := range []string{
		whole, `{}`, `[]`, `null`, strings.ReplaceAll(whole, "12.5", "1e3"), strings.ReplaceAll(whole, `"acme"`, `5`), strings.ReplaceAll(whole, `{"model": "l"}`, `{"a/~": 1}`),
		strings.ReplaceAll(whole, `"1.0"`, `"0.3"`), strings.ReplaceAll(whole, `"flag"`, `"Flag"`), strings.ReplaceAll(whole, `"data":`, `"data_base64": "e30=", "data":`),
		strings.ReplaceAll(whole, `"flag"`, `"id"`), strings.ReplaceAll(whole, "application/json", "text/xml"), strings.ReplaceAll(whole, "a b%", `\u0000`),
		strings.ReplaceAll(whole, "a b%", "\u007f"), strings.ReplaceAll(whole, `"/llm"`, `"%zz"`), strings.ReplaceAll(whole, `{"tokens"`, `{"tokens": 1, "tokens"`),
	} {
		f.Add([]byte(seed))
	}
	m := &Meter{now: func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }}
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := structuredEvent(body)
		if err == nil {
			var q api.UsageRequest
			if q, err = readEvent(m, e); err == nil {
				sameInBinaryMode(t, m, e, q)
			}
		}
		if kind := fault.KindOf(err); err != nil && kind != fault.KindInvalid && kind != fault.KindUnprocessed {
			t.Errorf("%q: %v", body, err)
		}
	})
}

func sameInBinaryMode(t *testing.T, m *Meter, e *event, q api.UsageRequest) {
	t.Helper()
	for name, text := range e.attributes {
		if text == "" || strings.Contains(text, "\x00") {
			t.Errorf("the attribute %s was taken as %q", name, text)
		}
	}
	if e.attributes["datacontenttype"] == "" {
		e.attributes["datacontenttype"] = "application/json"
	}
	binary, err := binaryEvent(asHeaders(e.attributes), e.data)
	if err != nil {
		t.Fatalf("%v in binary mode: %v", e.attributes, err)
	}
	again, err := readEvent(m, binary)
	if err != nil {
		t.Fatalf("%v in binary mode: %v", e.attributes, err)
	}
	if diff := cmp.Diff(q, again); diff != "" {
		t.Errorf("in binary mode it is another usage (-structured +binary):\n%s", diff)
	}
}

// FuzzHeaderText holds the decoding of headers against one that works the other
// way round: what was encoded comes back.
func FuzzHeaderText(f *testing.F) {
	for _, seed := range []string{"", "plain", "a b", `"a \"b\""`, "Euro%20%E2%82%AC%20%f0%9f%98%80", "%", "%4", "%C0%A0", `"`, `""`, "%25zz", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		text, mistake := headerText(value)
		if mistake != "" {
			return
		}
		encoded := asHeaders(map[string]string{"x": text}).Get("Ce-X")
		if again, mistake := headerText(encoded); mistake != "" || again != text {
			t.Errorf("%q is %q, which is written %q and read %q, %s", value, text, encoded, again, mistake)
		}
	})
}

func TestHeaderTexts(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"plain": "plain", "Euro%20%E2%82%AC%20%f0%9f%98%80": "Euro € 😀", `"a b"`: "a b", `"a \"b\" \\"`: `a "b" \`, `"%41"`: "A", "%2541": "%41", "é": "é", "": "",
	} {
		if got, mistake := headerText(value); got != want || mistake != "" {
			t.Errorf("%q was read as %q, %s, want %q", value, got, mistake, want)
		}
	}
	for _, value := range []string{"%", "50%", "%4", "%zz", "%C0%A0", "%ff", "\xff", "a%2"} {
		if got, mistake := headerText(value); mistake == "" {
			t.Errorf("%q was read as %q, want a refusal", value, got)
		}
	}
}

// FuzzUsageBody holds what POST /v1/usage takes against what the tables take.
func FuzzUsageBody(f *testing.F) {
	const whole = `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": 12.5, "occurred_at": "2026-03-01T12:00:00Z", "dimensions": {"model": "l"}}`
	for _, seed := range []string{
		whole, `{}`, `[]`, strings.ReplaceAll(whole, "12.5", `"12.5"`), strings.ReplaceAll(whole, "12.5", "1e3"), strings.ReplaceAll(whole, "12.5", "1000000000.000001"),
		strings.ReplaceAll(whole, "12.5", "0.0000001"), strings.ReplaceAll(whole, "12.5", "-1"), strings.ReplaceAll(whole, `"l"`, `"\u0000"`), strings.ReplaceAll(whole, "call", "c\\u0061ll"),
		strings.ReplaceAll(whole, "2026-03-01T12:00:00Z", "0000-01-01T00:00:00+23:59"), strings.ReplaceAll(whole, `"meter"`, `"account"`),
	} {
		f.Add([]byte(seed))
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m := &Meter{now: func() time.Time { return now }}
	f.Fuzz(func(t *testing.T, body []byte) {
		u, err := m.readUsage(body)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) && !errors.Is(err, fault.ErrUnprocessed) {
				t.Errorf("%q: %v", body, err)
			}
			return
		}
		if u.quantity <= 0 || len(u.id) < 8 || len(u.id) > 128 || len(u.fingerprint) != 32 || u.ref.Part < 0 || u.ref.Part > 255 || u.dimensions == nil {
			t.Errorf("%q was taken as %+v", body, u)
		}
		if age := now.Sub(u.occurredAt); u.untimely == nil && (age > ageMax || age < -aheadMax) {
			t.Errorf("%q was taken at %v", body, u.occurredAt)
		}
		if again, err := m.readUsage(body); err != nil || !cmp.Equal(again.fingerprint, u.fingerprint) {
			t.Errorf("%q read again is %v, %v", body, again, err)
		}
	})
}

// readUsage is the body of a usage on the way that requests take, up to the lanes.
func (m *Meter) readUsage(body []byte) (usage, error) {
	var q api.UsageRequest
	if err := web.DecodeBytes(body, &q); err != nil {
		return usage{}, err
	}
	var p fault.Problems
	u := m.validate(q, "test", &p)
	return u, p.Err(fault.ErrUnprocessed)
}

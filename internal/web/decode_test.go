package web_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// request is a body with members of every kind.
type request struct {
	Name  string            `json:"name"`
	Count int               `json:"count"`
	Texts map[string]string `json:"texts"`
	Items []struct {
		ID string `json:"id"`
	} `json:"items"`
	When *time.Time `json:"when"`
}

func decode(body io.Reader, media string, limit int64) (request, error) {
	var q request
	r := httptest.NewRequest(http.MethodPost, "/", body)
	if media != "" {
		r.Header.Set("Content-Type", media)
	}
	return q, web.Decode(httptest.NewRecorder(), r, limit, &q)
}

func TestG05MalformedBodiesAreRefusedWithTheirPlace(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, body, pointer string }{
		{"nothing", "", ""},
		{"no JSON", "name=x", ""},
		{"cut off", `{"name": "x"`, ""},
		{"another kind", `[]`, ""},
		{"a text", `"{}"`, ""},
		{"unknown member", `{"nme": "x"}`, "/nme"},
		{"unknown member further in", `{"items": [{}, {"id": "x", "other": 1}]}`, "/items/1/other"},
		{"member in another case", `{"Name": "x"}`, "/Name"},
		{"duplicate member", `{"name": "x", "name": "x"}`, "/name"},
		{"duplicate name in a map", `{"texts": {"a": "b", "a": "c"}}`, "/texts/a"},
		{"duplicate by an escape", `{"name": "x", "n\u0061me": "x"}`, "/name"},
		{"number for text", `{"name": 1}`, "/name"},
		{"text for number", `{"count": "1"}`, "/count"},
		{"fraction for a whole", `{"count": 1.5}`, "/count"},
		{"number beyond its type", `{"count": 9223372036854775808}`, "/count"},
		{"object for a list", `{"items": {}}`, "/items"},
		{"no time", `{"when": "yesterday"}`, "/when"},
		{"a second document", `{} {}`, ""},
		{"text behind the document", `{"name": "x"}x`, ""},
		{"invalid UTF-8", "{\"name\": \"\xff\"}", "/name"},
		{"half of a pair", `{"name": "\ud800"}`, "/name"},
		{"raw NUL", "{\"name\": \"\x00\"}", "/name"},
		{"escaped NUL", `{"name": "\u0000"}`, ""},
		{"escaped NUL behind a backslash", `{"name": "\\\u0000"}`, ""},
		{"escaped NUL as a name", `{"texts": {"\u0000": "x"}}`, ""},
		{"a byte order mark", "\ufeff{}", ""},
		{"deep", strings.Repeat(`[`, 100_000), ""},
	} {
		_, err := decode(strings.NewReader(tc.body), "application/json", web.BodyMax)
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind != fault.KindInvalid || f.Code != "invalid_request" || len(f.Fields) != 1 {
			t.Errorf("%s: %v, want one invalid_request", tc.name, err)
			continue
		}
		if got := f.Fields[0].Pointer; got != tc.pointer && tc.name != "deep" {
			t.Errorf("%s: the place is %q, want %q: %s", tc.name, got, tc.pointer, f.Fields[0].Message)
		}
		if text := f.Fields[0].Message; text == "" || strings.Contains(text, "web_test") || strings.Contains(text, "Go ") {
			t.Errorf("%s: the message is of the inside: %s", tc.name, text)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	for media, fits := range map[string]bool{
		"text/plain": false, "application/x-www-form-urlencoded": false, "application/jsonp": false, "application/json; charset": false, "/": false,
		"": true, "application/json": true, "application/json; charset=utf-8": true, "Application/JSON": true,
	} {
		_, err := decode(strings.NewReader(`{}`), media, web.BodyMax)
		if fits != (err == nil) || (!fits && !errors.Is(err, web.ErrMediaType)) {
			t.Errorf("%q: %v", media, err)
		}
	}
}

func TestG06ABodyAtItsBoundAndOneBeyond(t *testing.T) {
	t.Parallel()
	for size, fits := range map[int]bool{101: false, 100: true, 99: true} {
		body := `{"name": "` + strings.Repeat("x", size-12) + `"}`
		_, err := decode(strings.NewReader(body), "", 100)
		if fits != (err == nil) || (!fits && !errors.Is(err, web.ErrTooLarge)) {
			t.Errorf("%d bytes where 100 are taken: %v", len(body), err)
		}
	}
}

func TestABodyThatBreaksOffIsNoErrorOfOurs(t *testing.T) {
	t.Parallel()
	_, err := decode(iotest.ErrReader(io.ErrUnexpectedEOF), "", 100)
	if !errors.Is(err, fault.ErrInvalid) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v, want invalid_request with its cause", err)
	}
}

func TestWhatIsWellFormedIsRead(t *testing.T) {
	t.Parallel()
	got, err := decode(strings.NewReader(` {"name": "\\u0000 é \ud83d\ude00", "count": -3, "texts": {"a": "", "A": "b"}, "items": [{"id": "1"}], "when": null} `), "", web.BodyMax)
	if err != nil {
		t.Fatal(err)
	}
	want := request{Name: `\u0000 é 😀`, Count: -3, Texts: map[string]string{"a": "", "A": "b"}, Items: []struct {
		ID string `json:"id"`
	}{{"1"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read was (-want +got):\n%s", diff)
	}
}

// FuzzDecodeBytes holds the decoder against its promise: what it takes has no NUL,
// and what it refuses is the caller's mistake.
func FuzzDecodeBytes(f *testing.F) {
	for _, seed := range []string{`{}`, `{"name": "\u0000"}`, `{"name": "\\u0000"}`, `{"name": 1, "name": 2}`, "{\"name\": \"\xff\"}", `[[[`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var q request
		err := web.DecodeBytes(body, &q)
		if err != nil && !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %v", body, err)
		}
		texts := q.Name
		for name, value := range q.Texts {
			texts += name + value
		}
		if err == nil && strings.Contains(texts, "\x00") {
			t.Errorf("%q was taken with NUL", body)
		}
	})
}

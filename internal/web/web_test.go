package web_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// served is a handler behind the server, over real HTTP, with its log.
type served struct {
	t        *testing.T
	url      string
	registry *prometheus.Registry

	mu  sync.Mutex
	log bytes.Buffer
}

// Write is io.Writer, for the log.
func (s *served) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

func serve(t *testing.T, h web.Handler) *served {
	t.Helper()
	s := &served{t: t, registry: prometheus.NewRegistry()}
	server := web.NewServer(slog.New(slog.NewJSONHandler(s, nil)), s.registry)
	test := httptest.NewUnstartedServer(server.Handle("GET /thing", h))
	test.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	test.Start()
	t.Cleanup(test.Close)
	s.url = test.URL
	return s
}

// answer is an answer, read whole.
type answer struct {
	status int
	header http.Header
}

func (s *served) get(path string, header ...string) (answer, string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header}, string(body)
}

// line is the last line of the log, once it is written: the answer may be first.
func (s *served) line() map[string]any {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		text := strings.TrimSpace(s.log.String())
		s.mu.Unlock()
		if text == "" {
			continue
		}
		lines := strings.Split(text, "\n")
		var line map[string]any
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &line); err != nil {
			s.t.Fatal(err)
		}
		return line
	}
	s.t.Fatal("nothing was logged")
	return nil
}

func problem(t *testing.T, body string) map[string]any {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal([]byte(body), &members); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return members
}

const secret = "postgres://user:canary@db"

func TestG11APanicIsAProblemAndItsCauseStaysInTheLog(t *testing.T) {
	t.Parallel()
	for name, cause := range map[string]any{"text": secret, "error": errors.New(secret), "list": []string{secret}} {
		s := serve(t, func(http.ResponseWriter, *http.Request) error { panic(cause) })
		for range 2 { // the process lives
			response, body := s.get("/thing")
			want := map[string]any{
				"type": "about:blank", "title": "Internal Server Error", "status": 500.0, "code": "internal", "detail": fault.ErrInternal.Public,
				"request_id": response.header.Get("X-Request-Id"),
			}
			if diff := cmp.Diff(want, problem(t, body)); diff != "" || response.status != http.StatusInternalServerError || response.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: answered %d %s (-want +got):\n%s", name, response.status, response.header.Get("Content-Type"), diff)
			}
		}
		line := s.line()
		if text := fmt.Sprint(line["error"]); !strings.Contains(text, secret) || !strings.Contains(text, "web_test.go") || line["level"] != "ERROR" {
			t.Errorf("%s: the log has not the cause and where it was: %v", name, line)
		}
	}
}

func TestG11AnErrorThatIsNoFaultShowsNothing(t *testing.T) {
	t.Parallel()
	for _, err := range []error{errors.New(secret), fmt.Errorf("wrapped: %w", fault.ErrUnavailable.With(errors.New(secret))), fault.ErrNotFound.With(errors.New(secret))} {
		s := serve(t, func(http.ResponseWriter, *http.Request) error { return err })
		response, body := s.get("/thing")
		if strings.Contains(body, "canary") || strings.Contains(fmt.Sprint(response.header), "canary") {
			t.Errorf("%v was answered %s", err, body)
		}
		if line := s.line(); !strings.Contains(fmt.Sprint(line["error"]), secret) {
			t.Errorf("the log has not the cause: %v", line)
		}
	}
}

func TestEveryKindOfFaultHasItsStatusAndForm(t *testing.T) {
	t.Parallel()
	for kind, status := range map[fault.Kind]int{
		fault.KindInternal: 500, fault.KindInvalid: 400, fault.KindUnprocessed: 422, fault.KindUnauthorized: 401, fault.KindForbidden: 403,
		fault.KindNotFound: 404, fault.KindConflict: 409, fault.KindExhausted: 402, fault.KindTooLarge: 413, fault.KindMediaType: 415,
		fault.KindRateLimited: 429, fault.KindUnavailable: 503, fault.KindMethod: 405, fault.KindPrecondition: 412,
	} {
		err := (&fault.Error{Kind: kind, Code: "the_code", Public: "do this", Fields: []fault.Field{{Pointer: "/a", Message: "b"}}}).WithExtra("available", "3")
		s := serve(t, func(http.ResponseWriter, *http.Request) error { return fmt.Errorf("around: %w", err) })
		response, body := s.get("/thing", "X-Request-Id", "req-1")
		want := map[string]any{
			"type": "about:blank", "title": http.StatusText(status), "status": float64(status), "code": "the_code", "detail": "do this", "request_id": "req-1",
			"errors": []any{map[string]any{"pointer": "/a", "message": "b"}}, "available": "3",
		}
		if diff := cmp.Diff(want, problem(t, body)); diff != "" || response.status != status {
			t.Errorf("kind %d was answered %d (-want +got):\n%s", kind, response.status, diff)
		}
		if challenge := response.header.Get("WWW-Authenticate"); (challenge != "") != (status == 401) {
			t.Errorf("kind %d: WWW-Authenticate is %q", kind, challenge)
		}
		if line := s.line(); (line["level"] == "ERROR") != (status >= 500) || line["status"] != float64(status) || line["request_id"] != "req-1" {
			t.Errorf("kind %d was logged as %v", kind, line)
		}
	}
}

func TestRetryAfterIsInWholeSecondsAndNeverZero(t *testing.T) {
	t.Parallel()
	for wait, want := range map[time.Duration]string{0: "", time.Millisecond: "1", time.Second: "1", time.Second + 1: "2", 90 * time.Second: "90"} {
		s := serve(t, func(http.ResponseWriter, *http.Request) error {
			return &fault.Error{Kind: fault.KindRateLimited, Code: "slow", RetryAfter: wait}
		})
		if response, _ := s.get("/thing"); response.header.Get("Retry-After") != want {
			t.Errorf("a wait of %v is Retry-After %q, want %q", wait, response.header.Get("Retry-After"), want)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) error {
		web.Note(r.Context(), slog.String("noted", "yes"))
		return web.JSON(w, http.StatusOK, web.RequestID(r.Context()))
	})
	seen := map[string]bool{}
	for _, sent := range []string{"", "has blank", "emoji-😀", `quote"`, strings.Repeat("x", 129)} {
		response, body := s.get("/thing", "X-Request-Id", sent)
		id := response.header.Get("X-Request-Id")
		if !strings.HasPrefix(id, "req_") || len(id) != 36 || seen[id] || body != `"`+id+"\"\n" {
			t.Errorf("for %.20q the id is %q, and the handler saw %s", sent, id, body)
		}
		seen[id] = true
	}
	for _, sent := range []string{"a", "trace.1:2-3_4", strings.Repeat("x", 128)} {
		if response, body := s.get("/thing", "X-Request-Id", sent); response.header.Get("X-Request-Id") != sent || body != `"`+sent+"\"\n" {
			t.Errorf("the id %.20q was not kept: %s", sent, body)
		}
	}
	if line := s.line(); line["noted"] != "yes" || line["route"] != "GET /thing" || line["status"] != 200.0 {
		t.Errorf("the line of the log is %v", line)
	}
	if web.RequestID(t.Context()) != "" || web.RequestID(web.WithRequestID(t.Context(), "step-1")) != "step-1" {
		t.Error("background work has not the id that it was given, or one without being given")
	}
}

// TestAnErrorBehindTheAnswerChangesNothing: the status is sent, only the log can
// still tell.
func TestAnErrorBehindTheAnswerChangesNothing(t *testing.T) {
	t.Parallel()
	for _, after := range []func() error{func() error { return errors.New(secret) }, func() error { panic(secret) }} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) error {
			_ = web.JSON(w, http.StatusAccepted, 1)
			return after()
		})
		if response, body := s.get("/thing"); response.status != http.StatusAccepted || body != "1\n" {
			t.Errorf("answered %d %s", response.status, body)
		}
		if line := s.line(); !strings.Contains(fmt.Sprint(line["error"]), secret) {
			t.Errorf("logged was %v", line)
		}
	}
}

func TestWhatCannotBeWrittenIsAProblemNotHalfAnAnswer(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) error { return web.JSON(w, http.StatusOK, make(chan int)) })
	if response, body := s.get("/thing"); response.status != http.StatusInternalServerError || problem(t, body)["code"] != "internal" {
		t.Errorf("answered %d %s", response.status, body)
	}
}

func TestAnAddressThatIsNoTextDoesNotReachTheHandler(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) error { return web.JSON(w, http.StatusOK, 1) })
	for _, path := range []string{"/%00", "/a%ffb", "/?q=%00", "/?%ff=q", "/?a=b&q=a%00"} {
		if response, body := s.get(path); response.status != 400 || problem(t, body)["code"] != "invalid_request" {
			t.Errorf("%s was answered %d %s", path, response.status, body)
		}
	}
	for _, path := range []string{"/%C3%A9?q=%F0%9F%98%80", "/?q=%01", "/?q=%2500"} {
		if response, body := s.get(path); response.status != 200 {
			t.Errorf("%s was answered %d %s", path, response.status, body)
		}
	}
}

func TestPagesAreCutAndPointBehindTheirLast(t *testing.T) {
	t.Parallel()
	page := func(query string) (limit int, position string, err error) {
		limit, err = web.Page(httptest.NewRequest(http.MethodGet, "/?"+query, nil), &position)
		return limit, position, err
	}
	for _, query := range []string{"limit=0", "limit=-1", "limit=501", "limit=1.0", "limit=x", "cursor=%21", "cursor=e30", "cursor=IlwwMDAwIg"} {
		if _, _, err := page(query); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s gives %v", query, err)
		}
	}
	if limit, position, err := page(""); limit != 50 || position != "" || err != nil {
		t.Errorf("by default: %d from %q, %v", limit, position, err)
	}
	self := func(item string) any { return item }
	for n, more := range map[int]bool{0: false, 1: false, 2: false, 3: true} {
		list := web.Paged([]string{"a", "b", "c"}[:n], 2, self)
		if len(list.Data) != min(n, 2) || (list.NextCursor != nil) != more {
			t.Errorf("%d items on pages of two give %v", n, list)
		}
		if more {
			limit, position, err := page("limit=500&cursor=" + url.QueryEscape(*list.NextCursor))
			if limit != 500 || position != "b" || err != nil {
				t.Errorf("the cursor gives %q, %v; want b", position, err)
			}
		}
	}
	if content, err := json.Marshal(web.Paged[string](nil, 2, self)); string(content) != `{"data":[],"next_cursor":null}` || err != nil {
		t.Errorf("an empty list is %s, %v", content, err)
	}
}

func TestH07Cells(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"=1": "'=1", "+1": "'+1", "-1": "'-1", "@a": "'@a", "\ta": "'\ta", "\ra": "'\ra", "=": "'=",
		"": "", "a=1": "a=1", " =1": " =1", "é": "é", "'=1": "'=1",
	} {
		if got := web.Cell(text); got != want {
			t.Errorf("Cell(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestTimesOfAQuery(t *testing.T) {
	t.Parallel()
	fallback := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"": "2026-03-01T00:00:00Z", "2026-03-01T02:00:00%2B02:00": "2026-03-01T00:00:00Z", "2026-03-01": "", "1": "",
		"9999-12-31T23:59:59Z": "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-00:01": "", "0000-01-01T00:00:00%2B00:01": "",
	} {
		var p fault.Problems
		got := web.Time(httptest.NewRequest(http.MethodGet, "/?from="+text, nil), &p, "from", fallback)
		if err := p.Err(fault.ErrInvalid); (err != nil) != (want == "") || (err == nil && got.Format(time.RFC3339) != want) {
			t.Errorf("%q gives %v, %v; want %q", text, got, err, want)
		}
	}
}

func TestEachRequestIsMeasuredByRouteAndStatus(t *testing.T) {
	t.Parallel()
	s := serve(t, func(http.ResponseWriter, *http.Request) error { return fault.ErrNotFound })
	s.get("/whatever/the/path")
	s.line()
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(families); !strings.Contains(text, "tallystick_http_request_seconds") || !strings.Contains(text, "GET /thing") || !strings.Contains(text, "404") || strings.Contains(text, "whatever") {
		t.Errorf("measured was %s", text)
	}
}

// FuzzCursor holds lists against what callers make up: a cursor is a position or a
// mistake in the query, and what Paged gives is read back as it was.
func FuzzCursor(f *testing.F) {
	for _, seed := range []string{"", "ImEi", "bnVsbA", "e30", "WyJhIiwxXQ", "IlwidTAwMDAi", "IlwiMDAwMCI", "%", "ImEi=", "Im\n Ei", "InVzZXJcdTAwMDAi"} {
		f.Add(seed, "50")
	}
	f.Add("", "501")
	f.Add("", "-1")
	f.Add("ImEi", "9223372036854775808")
	f.Fuzz(func(t *testing.T, cursor, limit string) {
		r := httptest.NewRequest(http.MethodGet, "/?"+url.Values{"cursor": {cursor}, "limit": {limit}}.Encode(), nil)
		after := ""
		n, err := web.Page(r, &after)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%q, %q: %v", cursor, limit, err)
			}
			return
		}
		if n < 1 || n > 500 || strings.Contains(after, "\x00") {
			t.Errorf("%q, %q were taken as %q, %d", cursor, limit, after, n)
		}
		list := web.Paged([]string{after, after}, 1, func(s string) any { return s })
		again := ""
		if _, err := web.Page(httptest.NewRequest(http.MethodGet, "/?cursor="+*list.NextCursor, nil), &again); err != nil || again != after {
			t.Errorf("%q was read as %q, which is given as %q and read as %q, %v", cursor, after, *list.NextCursor, again, err)
		}
	})
}

package importer_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tallystick/api"
	"tallystick/internal/importer"
)

// book is a server that knows nothing but ids: it records each once. How often
// it fails, and how, is its faults' to say.
type book struct {
	t      *testing.T
	url    string
	faults func(w http.ResponseWriter, late bool) bool // true: it has answered, or has not and never will

	mu       sync.Mutex
	recorded map[string]string // content by id
	order    []string
	requests int
	most     int // requests at a time
	now      int
}

func newBook(t *testing.T) *book {
	t.Helper()
	b := &book{t: t, recorded: map[string]string{}, faults: func(http.ResponseWriter, bool) bool { return false }}
	s := httptest.NewServer(b)
	t.Cleanup(s.Close)
	b.url = s.URL
	return b
}

func (b *book) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.requests++
	b.now++
	b.most = max(b.most, b.now)
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.now--
		b.mu.Unlock()
	}()
	if b.faults(w, false) {
		return
	}
	var q struct{ Usage []json.RawMessage }
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Authorization") != "Bearer key" {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"code": "unauthorized", "detail": "name a key"}`)
		return
	}
	var dst any = &q
	if r.URL.Path == "/v1/events" && r.Header.Get("Content-Type") == "application/cloudevents-batch+json" {
		dst = &q.Usage
	}
	if err := json.Unmarshal(body, dst); err != nil {
		b.t.Errorf("a body that is no JSON was sent: %v in %.200s", err, body)
	}
	if bytes.Contains(body, []byte("poison")) { // as a server would that knows of mistakes which we do not
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"code": "invalid_request", "status": 400}`)
		return
	}
	answer := b.record(q.Usage)
	if b.faults(w, true) {
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (b *book) record(lines []json.RawMessage) api.UsageBatch {
	b.mu.Lock()
	defer b.mu.Unlock()
	var answer api.UsageBatch
	for _, line := range lines {
		var u struct{ ID, Account string }
		if err := json.Unmarshal(line, &u); err != nil {
			b.t.Error(err)
		}
		result := api.UsageResult{Result: "recorded", Usage: &api.Usage{ID: u.ID}}
		stands, known := b.recorded[u.ID]
		switch {
		case u.Account == "poor":
			result = api.UsageResult{Result: "refused", Problem: json.RawMessage(`{"code": "insufficient_credits", "status": 402}`)}
		case u.Account == "slow" && b.requests%2 == 0:
			result = api.UsageResult{Result: "refused", Problem: json.RawMessage(`{"code": "overloaded", "status": 429}`)}
		case known && stands == string(line):
			result.Result = "replayed"
		case known:
			result = api.UsageResult{Result: "refused", Problem: json.RawMessage(`{"code": "idempotency_conflict", "status": 422}`)}
		default:
			b.recorded[u.ID] = string(line)
			b.order = append(b.order, u.ID)
		}
		answer.Results = append(answer.Results, result)
	}
	return answer
}

func usage(id int, account string) string {
	return fmt.Sprintf(`{"id":"usage-%06d","account":%q,"meter":"call","quantity":1}`, id, account)
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// rejected reads a file of rejected lines: line number to code.
func rejected(t *testing.T, path string) map[int64]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	lines, last := map[int64]string{}, int64(0)
	s := bufio.NewScanner(file)
	s.Buffer(nil, 4<<20)
	for s.Scan() {
		var r struct {
			Line    int64
			Problem api.Problem
		}
		if err := json.Unmarshal(s.Bytes(), &r); err != nil || r.Line <= last {
			t.Fatalf("%v, line %d behind %d: %.200s", err, r.Line, last, s.Text())
		}
		last, lines[r.Line] = r.Line, r.Problem.Code
	}
	return lines
}

func options(b *book, path string) importer.Options {
	return importer.Options{URL: b.url, Key: "key", Path: path, Patience: 20 * time.Second}
}

// untouched fails the test when something is left beside the file.
func untouched(t *testing.T, path string) {
	t.Helper()
	if beside, err := filepath.Glob(path + "*"); err != nil || len(beside) != 1 {
		t.Errorf("beside the file are %q, %v", beside, err)
	}
}

func TestLinesOfEveryKindAreRecordedOrRejected(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	padded := func(size int) string {
		line := `{"id":"usage-000099","account":"acme","meter":"call","quantity":1,"dimensions":{"a":""}}`
		return strings.Replace(line, `""`, `"`+strings.Repeat("x", size-len(line))+`"`, 1)
	}
	content := "\ufeff" + usage(1, "acme") + "\n\n  \r\n" + usage(2, "acme") + "\r\n" + // lines 1 to 4
		"garbage\n{\"id\": \n[]\n" + `{"id":"usage-000003","id":"usage-000003"}` + "\n" + `{"id":"usage-000003","nonsense":1}` + "\n" + // 5 to 9
		"\xff\xfe\n" + padded(1<<20+1) + "\n" + usage(4, "poor") + "\n" + usage(1, "acme") + "\n" + usage(1, "other") + "\n" + // 10 to 14
		usage(5, "poison") + "\n" + padded(1<<20) + "\r\n" + usage(3, "acme") + strings.Repeat(" ", 1<<21) + "\n" + usage(6, "slow") // 15 to 18
	path := write(t, "usage.ndjson", content)
	o := options(b, path)
	o.Rejects, o.Parallel = filepath.Join(t.TempDir(), "rejects"), 1
	s, err := importer.Run(t.Context(), o)
	if diff := cmp.Diff(importer.Summary{Recorded: 4, Replayed: 1, Rejected: 11}, s); diff != "" || err != nil {
		t.Errorf("became %v (-want +got):\n%s", err, diff)
	}
	want := map[int64]string{
		5: "invalid_request", 6: "invalid_request", 7: "invalid_request", 8: "invalid_request", 9: "invalid_request", 10: "invalid_request", 11: "body_too_large",
		12: "insufficient_credits", 14: "idempotency_conflict", 15: "invalid_request", 17: "body_too_large",
	}
	if diff := cmp.Diff(want, rejected(t, o.Rejects)); diff != "" {
		t.Errorf("rejected were (-want +got):\n%s", diff)
	}
	untouched(t, path)
}

// TestKilledAndSlowedEveryLineIsOnceThere ends imports at moments of no meaning, by
// their context, over a server that fails in every way, until one comes through.
func TestKilledAndSlowedEveryLineIsOnceThere(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			b := newBook(t)
			var mu sync.Mutex
			random := rand.New(rand.NewPCG(seed, 1))
			roll := func(n int) int {
				mu.Lock()
				defer mu.Unlock()
				return random.IntN(n)
			}
			b.faults = func(w http.ResponseWriter, late bool) bool {
				switch roll(40) {
				case 0:
					w.WriteHeader([]int{429, 500, 502, 503}[roll(4)])
				case 1:
					panic(http.ErrAbortHandler)
				case 2:
					_, _ = io.WriteString(w, `{"results": []}`)
				default:
					return false
				}
				return true
			}
			const lines = 2000
			var content strings.Builder
			bad := map[int64]string{}
			for i := range lines {
				line := usage(i, "acme")
				switch {
				case i%97 == 0:
					line, bad[int64(i+1)] = "garbage", "invalid_request"
				case i%101 == 0:
					line, bad[int64(i+1)] = usage(i, "poor"), "insufficient_credits"
				case i%103 == 0:
					line = usage(i, "slow")
				}
				content.WriteString(line + "\n")
			}
			path := write(t, "usage.ndjson", content.String())
			o := options(b, path)
			o.Rejects, o.Parallel, o.Batch = filepath.Join(t.TempDir(), "rejects"), 2+roll(8), 10+roll(40)
			var s importer.Summary
			err, runs := importer.ErrStopped, 0
			for ; errors.Is(err, importer.ErrStopped); runs++ {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+roll(50)*(1+runs))*time.Millisecond)
				s, err = importer.Run(ctx, o)
				cancel()
			}
			if err != nil || s.Recorded+s.Replayed != int64(lines-len(bad)) || s.Rejected != int64(len(bad)) {
				t.Errorf("after %d runs: %+v, %v", runs, s, err)
			}
			if diff := cmp.Diff(bad, rejected(t, o.Rejects)); diff != "" {
				t.Errorf("rejected were (-want +got):\n%s", diff)
			}
			if len(b.recorded) != lines-len(bad) || len(b.order) != len(b.recorded) {
				t.Errorf("%d ids were recorded, want %d", len(b.recorded), lines-len(bad))
			}
			untouched(t, path)
			t.Logf("%d runs, %d requests, %d at a time", runs, b.requests, b.most)
		})
	}
}

// stopped imports until some lines are noted, and stops there.
func stopped(t *testing.T, o importer.Options) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Progress = func(importer.Progress) { cancel() }
	if _, err := importer.Run(ctx, o); !errors.Is(err, importer.ErrStopped) {
		t.Fatalf("the import that was stopped says %v", err)
	}
}

func lines(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		b.WriteString(usage(i, "acme") + "\n")
	}
	return b.String()
}

func TestAFileIsGoneOnWithOnlyIfItIsTheSame(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	path := write(t, "usage.ndjson", lines(0, 1000))
	o := options(b, path)
	o.Batch, o.Parallel = 10, 1
	stopped(t, o)
	for name, spoil := range map[string]func(o *importer.Options){
		"a line changed": func(o *importer.Options) {
			o.Path = write(t, "usage.ndjson", usage(0, "other")+lines(1, 1000))
		},
		"cut off":               func(o *importer.Options) { o.Path = write(t, "usage.ndjson", usage(0, "acme")) },
		"another server":        func(o *importer.Options) { o.URL += "/x" },
		"another form":          func(o *importer.Options) { o.CloudEvents = true },
		"no note":               func(o *importer.Options) { o.Path = write(t, "usage.ndjson", lines(0, 1000)) },
		"somebody else's lines": func(o *importer.Options) { o.Rejects = write(t, "rejects", "dear diary") },
	} {
		changed := o
		spoil(&changed)
		if changed.Path != o.Path {
			note, err := os.ReadFile(path + ".tallystick-import")
			if err != nil {
				t.Fatal(err)
			}
			if name == "no note" {
				note = []byte("{")
			}
			if err := os.WriteFile(changed.Path+".tallystick-import", note, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := b.requests
		var use *importer.UseError
		if _, err := importer.Run(t.Context(), changed); !errors.As(err, &use) || b.requests != before {
			t.Errorf("%s: %v after %d requests, want a refusal before the first", name, err, b.requests-before)
		}
		if content, err := os.ReadFile(changed.Rejects); changed.Rejects != "" && string(content) != "dear diary" {
			t.Errorf("%s: the file holds %q, %v", name, content, err)
		}
	}
	grown, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grown.WriteString(lines(1000, 1100)); err != nil || grown.Close() != nil {
		t.Fatal(err)
	}
	s, err := importer.Run(t.Context(), o)
	if err != nil || s.Recorded != 1100 || len(b.recorded) != 1100 {
		t.Errorf("a file that has grown: %+v, %v", s, err)
	}
	if !slices.IsSorted(b.order) {
		t.Error("one request at a time has lost the order of the file")
	}
	stopped(t, o)
	o.Restart = true
	if s, err := importer.Run(t.Context(), o); err != nil || s.Replayed != 1100 || s.Recorded != 0 {
		t.Errorf("begun again: %+v, %v", s, err)
	}
	untouched(t, path)
}

// TestACrashBeforeTheNoteRejectsNoLineTwice puts an older note back, as a crash
// leaves it: behind what it says stand rejected lines.
func TestACrashBeforeTheNoteRejectsNoLineTwice(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	path := write(t, "usage.ndjson", strings.Repeat("garbage\n", 100)+lines(0, 100))
	o := options(b, path)
	o.Batch, o.Parallel, o.Rejects = 10, 1, filepath.Join(t.TempDir(), "rejects")
	stopped(t, o)
	older, err := os.ReadFile(path + ".tallystick-import")
	if err != nil {
		t.Fatal(err)
	}
	stopped(t, o)
	if err := os.WriteFile(path+".tallystick-import", older, 0o600); err != nil {
		t.Fatal(err)
	}
	before := len(rejected(t, o.Rejects))
	s, err := importer.Run(t.Context(), o)
	if got := rejected(t, o.Rejects); err != nil || before < 20 || len(got) != 100 || s.Rejected != 100 || s.Recorded+s.Replayed != 100 {
		t.Errorf("%d lines were rejected before and %d in the end: %+v, %v", before, len(got), s, err)
	}
}

func zipped(t *testing.T, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, content); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCompressedFilesAndStreams(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	path := write(t, "usage.ndjson.gz", string(zipped(t, lines(0, 1000))))
	o := options(b, path)
	o.Batch, o.Parallel = 10, 1
	stopped(t, o)
	if s, err := importer.Run(t.Context(), o); err != nil || s.Recorded+s.Replayed != 1000 || s.Replayed > 30 {
		t.Errorf("compressed: %+v, %v", s, err)
	}
	o.Path, o.Input = "-", strings.NewReader(lines(500, 1500))
	if s, err := importer.Run(t.Context(), o); err != nil || s.Recorded != 500 || s.Replayed != 500 {
		t.Errorf("from a stream: %+v, %v", s, err)
	}
	var use *importer.UseError
	cut := zipped(t, lines(2000, 3000))
	o = options(b, write(t, "usage.ndjson.gz", string(cut[:len(cut)-10])))
	s, err := importer.Run(t.Context(), o)
	if !errors.As(err, &use) || s.Recorded == 0 || len(b.recorded) != 1500+int(s.Recorded) {
		t.Errorf("a file that is cut off: %+v, %v, want what can be read and then a refusal", s, err)
	}
	if err := os.WriteFile(o.Path, cut, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := importer.Run(t.Context(), o); err != nil || s.Recorded+s.Replayed+s.Rejected != 1000 || len(b.recorded) < 2499 {
		t.Errorf("the file being whole: %+v, %v", s, err)
	}
	for name, content := range map[string]string{"x.gz": "no gzip", "y": ""} {
		o := options(b, write(t, name, content))
		s, err := importer.Run(t.Context(), o)
		if (name == "x.gz") != errors.As(err, &use) || s != (importer.Summary{}) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if _, err := importer.Run(t.Context(), options(b, filepath.Join(t.TempDir(), "none"))); !errors.As(err, &use) {
		t.Errorf("a file that is missing: %v", err)
	}
}

func TestEventsGoToTheirRoute(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	o := options(b, write(t, "events", `{"id":"1","specversion":"1.0"}`+"\n{\n"+`{"id":"2","id":"2"}`+"\n"+`{"id":"3"}`))
	o.CloudEvents, o.Rejects = true, filepath.Join(t.TempDir(), "rejects")
	if s, err := importer.Run(t.Context(), o); err != nil || s.Recorded != 2 || s.Rejected != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	if diff := cmp.Diff(map[int64]string{2: "invalid_request", 3: "invalid_request"}, rejected(t, o.Rejects)); diff != "" {
		t.Error(diff)
	}
	content, err := os.ReadFile(o.Rejects)
	if err != nil || !bytes.Contains(content, []byte(`"text":"{"`)) || !bytes.Contains(content, []byte(`"event":{"id":"2","id":"2"}`)) {
		t.Errorf("%v: %s", err, content)
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	t.Parallel()
	for status, within := range map[int]time.Duration{http.StatusTooManyRequests: time.Minute, http.StatusServiceUnavailable: 1500 * time.Millisecond} {
		b := newBook(t)
		var tries atomic.Int64
		var first, second atomic.Int64
		b.faults = func(w http.ResponseWriter, late bool) bool {
			if late || tries.Add(1) > 1 {
				second.CompareAndSwap(0, time.Now().UnixNano())
				return false
			}
			first.Store(time.Now().UnixNano())
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(status)
			return true
		}
		o := options(b, write(t, "usage", usage(1, "acme")))
		o.Patience = within
		s, err := importer.Run(t.Context(), o)
		if within > 2*time.Second {
			if waited := time.Duration(second.Load() - first.Load()); err != nil || s.Recorded != 1 || waited < 2*time.Second {
				t.Errorf("%d: tried again after %v: %+v, %v", status, waited, s, err)
			}
		} else if !errors.Is(err, importer.ErrUnreachable) || tries.Load() != 1 {
			t.Errorf("%d: asked to wait beyond patience, it tried %d times: %v", status, tries.Load(), err)
		}
	}
}

func TestWhatTryingAgainDoesNotHelp(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	path := write(t, "usage", lines(0, 10))
	var use *importer.UseError
	o := options(b, path)
	o.Key = "wrong"
	if _, err := importer.Run(t.Context(), o); !errors.As(err, &use) || !strings.Contains(err.Error(), "name a key") {
		t.Errorf("a wrong key: %v", err)
	}
	for _, status := range []int{http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType} {
		b.faults = func(w http.ResponseWriter, _ bool) bool {
			w.WriteHeader(status)
			return true
		}
		before := b.requests
		if _, err := importer.Run(t.Context(), options(b, path)); !errors.As(err, &use) || !strings.Contains(err.Error(), strconv.Itoa(status)) || b.requests != before+1 {
			t.Errorf("%d: %v after %d requests", status, err, b.requests-before)
		}
	}
	o = options(b, path)
	o.URL, o.Patience, o.Restart = "http://127.0.0.1:1", time.Second, true
	if _, err := importer.Run(t.Context(), o); !errors.Is(err, importer.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
	b.faults = func(http.ResponseWriter, bool) bool { return false }
	o = options(b, path)
	o.Restart = true
	if s, err := importer.Run(t.Context(), o); err != nil || s.Recorded != 10 {
		t.Errorf("in the end: %+v, %v", s, err)
	}
}

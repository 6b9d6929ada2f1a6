package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// usageFile writes lines of usage of acme's, one credit each; every 100th is
// garbage, every 100th before that is beyond all balances.
func usageFile(t *testing.T, lines int) (path string, bad int) {
	t.Helper()
	var b bytes.Buffer
	for i := range lines {
		switch i % 100 {
		case 99:
			bad++
			b.WriteString("{garbage\n")
		case 98:
			bad++
			_, _ = fmt.Fprintf(&b, `{"id": "import-%06d", "account": "acme", "meter": "call", "quantity": 900000000}`+"\n", i)
		default:
			_, _ = fmt.Fprintf(&b, `{"id": "import-%06d", "account": "acme", "meter": "call", "quantity": 1, "dimensions": {"line": "%d"}}`+"\n", i, i)
		}
	}
	path = filepath.Join(t.TempDir(), "usage.ndjson")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, bad
}

// front is an address that stays while the server behind it comes and goes.
type front struct {
	url    string
	behind atomic.Pointer[url.URL]
}

func newFront(t *testing.T, p *process, delay time.Duration) *front {
	t.Helper()
	f := &front{}
	f.use(t, p)
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(f.behind.Load()) }, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
		w.WriteHeader(http.StatusBadGateway)
	}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(delay)
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

func (f *front) use(t *testing.T, p *process) {
	t.Helper()
	target, err := url.Parse(p.Info.URL)
	if err != nil {
		t.Fatal(err)
	}
	f.behind.Store(target)
}

// importing is an import as a process of its own.
type importing struct {
	t    *testing.T
	cmd  *exec.Cmd
	path string
	errs bytes.Buffer
}

func startImport(t *testing.T, path string, args ...string) *importing {
	t.Helper()
	i := &importing{t: t, path: path}
	i.cmd = exec.CommandContext(context.Background(), os.Args[0], append([]string{"usage", "import", path}, args...)...)
	i.cmd.Env, i.cmd.Stderr = environment(), &i.errs
	if err := i.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.cmd.Process.Kill() })
	return i
}

// until waits until the import has noted so many lines.
func (i *importing) until(line int64) {
	i.t.Helper()
	await(i.t, "the import to come so far", func() bool {
		content, err := os.ReadFile(i.path + ".tallystick-import")
		var n struct{ Position struct{ Line int64 } }
		return err == nil && json.Unmarshal(content, &n) == nil && n.Position.Line >= line
	})
}

func (i *importing) end(s syscall.Signal) (code int) {
	i.t.Helper()
	if err := i.cmd.Process.Signal(s); err != nil {
		i.t.Fatalf("the import has ended already: %v: %s", err, &i.errs)
	}
	var exit *exec.ExitError
	if err := i.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		i.t.Fatal(err)
	}
	return i.cmd.ProcessState.ExitCode()
}

// TestAnImportThatIsKilledGoesOnAndRecordsEveryLineOnce kills the import, then the
// server under it, then interrupts it, and lets it end.
func TestAnImportThatIsKilledGoesOnAndRecordsEveryLineOnce(t *testing.T) {
	t.Parallel()
	p := up(t, dataDir(t))
	p.must(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1}`)
	p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`)
	p.must(http.StatusCreated, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "opening-grant", "credits": 1000000}`)
	f := newFront(t, p, 15*time.Millisecond)
	path, bad := usageFile(t, 6000)
	rejects := filepath.Join(t.TempDir(), "rejects")
	args := []string{"--url", f.url, "--api-key", p.Info.APIKey, "--batch", "20", "--parallel", "2", "--rejects", rejects}

	i := startImport(t, path, args...)
	i.until(500)
	if code := i.end(syscall.SIGKILL); code != -1 {
		t.Fatalf("the import ended with %d before it was killed: %s", code, &i.errs)
	}
	i = startImport(t, path, args...)
	i.until(1500)
	p.kill()
	p = up(t, p.dir)
	f.use(t, p)
	i.until(2500)
	if code := i.end(syscall.SIGINT); code != exitFindings || !strings.Contains(i.errs.String(), "run the same command again to go on") {
		t.Errorf("the import that was interrupted ended with %d: %s", code, &i.errs)
	}
	code, out, errs := cli(t, nil, append([]string{"usage", "import", path, "--output", "json"}, args...)...)
	var s struct{ Recorded, Replayed, Rejected int }
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != exitFindings || s.Recorded+s.Replayed != 6000-bad || s.Rejected != bad {
		t.Errorf("the import ended with %d, %v: %s%s", code, err, out, errs)
	}
	if !strings.Contains(errs, "going on behind line") || !strings.Contains(errs, rejects) {
		t.Errorf("it says %s", errs)
	}
	content, err := os.ReadFile(rejects)
	if lines := bytes.Count(content, []byte("\n")); err != nil || lines != bad || bytes.Count(content, []byte("insufficient_credits")) != bad/2 {
		t.Errorf("%d lines are rejected, want %d, half of them for want of credits: %v", lines, bad, err)
	}
	everyLineOnce(t, p, 6000-bad)
	code, out, errs = cli(t, nil, "usage", "import", path, "--output", "json", "--url", f.url, "--api-key", p.Info.APIKey)
	if code != exitFindings || !strings.Contains(out, fmt.Sprintf(`"replayed": %d`, 6000-bad)) {
		t.Errorf("imported once more it ended with %d: %s%s", code, out, errs)
	}
	everyLineOnce(t, p, 6000-bad)
	p.stop()
}

// everyLineOnce compares the account with the lines: each says which it is.
func everyLineOnce(t *testing.T, p *process, want int) {
	t.Helper()
	var totals struct {
		Data []struct {
			Count int
			Group map[string]string
		}
	}
	if err := json.Unmarshal(p.must(http.StatusOK, http.MethodGet, "/v1/accounts/acme/usage?group_by=line", ""), &totals); err != nil {
		t.Fatal(err)
	}
	for _, line := range totals.Data {
		if line.Count != 1 {
			t.Errorf("line %s was recorded %d times", line.Group["line"], line.Count)
		}
	}
	if len(totals.Data) != want {
		t.Errorf("%d lines were recorded, want %d", len(totals.Data), want)
	}
	balance := fmt.Sprintf(`"available":"%d"`, 1000000-want)
	if answer := p.must(http.StatusOK, http.MethodGet, "/v1/accounts/acme", ""); !bytes.Contains(answer, []byte(balance)) {
		t.Errorf("the account holds something else than %s: %s", balance, answer)
	}
	if code, out, errs := cli(t, nil, "verify", "--data", p.dir); code != exitFine {
		t.Errorf("verify ends with %d:\n%s%s", code, out, errs)
	}
}

func TestImportsOfEventsAndTheirExitCodes(t *testing.T) {
	t.Parallel()
	p := up(t, dataDir(t))
	p.must(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1, "value_field": "calls"}`)
	p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{"overdraft": 10}`)
	write := func(content string) string {
		path := filepath.Join(t.TempDir(), "events")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	event := func(id string) string {
		return `{"specversion": "1.0", "id": "` + id + `", "source": "/llm", "type": "call", "subject": "acme", "data": {"calls": 2}}` + "\n"
	}
	for _, step := range []struct {
		args string
		code int
		want []string
	}{
		{"usage import " + write(event("1")+event("2")+event("1")) + " --cloudevents --output json", exitFine, []string{`"recorded": 2`, `"replayed": 1`, `"rejected": 0`}},
		{"usage import " + write(event("3")+"{}\n") + " --cloudevents", exitFindings, []string{"1 lines are rejected", "--rejects FILE"}},
		{"usage import " + write(event("4")), exitFindings, []string{"1 lines are rejected"}},
		{"usage import - --output csv", exitFine, []string{"recorded,replayed,rejected", "0,0,0"}},
		{"usage import /nonexistent/file", exitUsage, []string{"no such file"}},
		{"usage import", exitUsage, []string{"accepts 1 arg"}},
		{"usage import - --batch 1001", exitUsage, []string{"--batch"}},
		{"usage import - --parallel 0", exitUsage, []string{"--parallel"}},
		{"usage import - --patience 1ms", exitUsage, []string{"--patience"}},
		{"usage import " + write(event("5")) + " --cloudevents --url " + p.Info.URL + " --api-key tsk_x", exitUsage, []string{"unauthorized"}},
		{"usage import " + write(event("5")) + " --cloudevents --url http://127.0.0.1:1 --api-key tsk_x --patience 1s", exitUnreachable, []string{"cannot be reached", "run the same command again"}},
	} {
		code, out, errs := cli(t, nil, append(strings.Fields(step.args), "--data", p.dir)...)
		if code != step.code {
			t.Errorf("%s ended with %d, want %d:\n%s%s", step.args, code, step.code, out, errs)
		}
		for _, want := range step.want {
			if !strings.Contains(out+errs, want) {
				t.Errorf("%s does not say %q:\n%s%s", step.args, want, out, errs)
			}
		}
	}
	if answer := p.must(http.StatusOK, http.MethodGet, "/v1/accounts/acme", ""); !bytes.Contains(answer, []byte(`"available":"-6"`)) {
		t.Errorf("after three events of two calls the account is %s", answer)
	}
	p.stop()
}

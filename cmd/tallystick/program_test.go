package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tallystick/internal/app"
)

// asProgram makes this test binary run as the program itself, so that tests can
// kill it as one kills a real one.
const asProgram = "TALLYSTICK_TEST_RUNS_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// environment is what the tests' programs see: nothing of ours but the path.
func environment(settings ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", asProgram + "=1"}, settings...)
}

// cli runs the program in this process and gives what it printed.
func cli(t *testing.T, settings []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, environment(settings...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// process is `tallystick up` as a process of its own.
type process struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	log  *tail
	Info app.Info
}

// tail keeps the last lines of a log.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (l *tail) read(r io.Reader) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		l.mu.Lock()
		l.lines = append(l.lines, s.Text())
		l.lines = l.lines[max(0, len(l.lines)-40):]
		l.mu.Unlock()
	}
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// dataDir is a directory that Postgres's own user can enter, too.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tallystick-up-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "data")
}

// up starts `tallystick up` over the directory and waits until it serves.
func up(t *testing.T, dir string, settings ...string) *process {
	t.Helper()
	return upOf(t, thisProgram(), dir, settings...)
}

// thisProgram is the program that this test binary runs as.
func thisProgram() string { return os.Args[0] }

// upOf is up of a certain program.
func upOf(t *testing.T, program, dir string, settings ...string) *process {
	t.Helper()
	p := &process{t: t, dir: dir, log: &tail{}}
	p.cmd = exec.CommandContext(context.Background(), program, "up", "--data", dir, "--listen", "127.0.0.1:0")
	p.cmd.Env = environment(settings...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	go p.log.read(stderr)
	greeting := make(chan string, 1)
	go func() {
		s := bufio.NewScanner(stdout)
		s.Scan()
		greeting <- s.Text()
		_, _ = io.Copy(io.Discard, stdout)
	}()
	select {
	case line := <-greeting:
		if line != "tallystick is up" {
			t.Fatalf("up said %q:\n%s", line, p.log)
		}
	case <-time.After(90 * time.Second):
		t.Fatalf("up does not come up:\n%s", p.log)
	}
	if p.Info, err = app.ReadInfo(dir); err != nil {
		t.Fatal(err)
	}
	return p
}

// kill ends the process as a crash does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// stop asks the process to end and fails the test unless it does so cleanly.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("up ended with %v:\n%s", err, p.log)
	}
}

// call makes a request to the API with the key of up.
func (p *process) call(method, path, body string) (status int, answer []byte, err error) {
	return send(method, p.Info.URL+path, p.Info.APIKey, body)
}

func send(method, url, key, body string) (status int, answer []byte, err error) {
	r, err := http.NewRequestWithContext(context.Background(), method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	if strings.Contains(url, "/v1/") && !strings.HasPrefix(body, "{") {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

// must calls and fails the test unless the status is as wanted.
func (p *process) must(want int, method, path, body string) []byte {
	p.t.Helper()
	status, answer, err := p.call(method, path, body)
	if err != nil || status != want {
		p.t.Fatalf("%s %s was answered %d, %v, want %d: %s\n%s", method, path, status, err, want, answer, p.log)
	}
	return answer
}

// stripe makes a form-encoded call to the simulator.
func (p *process) stripe(method, path, form string) map[string]any {
	p.t.Helper()
	status, answer, err := send(method, p.Info.StripeAPIBase+path, p.Info.StripeAPIKey, form)
	var o map[string]any
	if err != nil || status != http.StatusOK || json.Unmarshal(answer, &o) != nil {
		p.t.Fatalf("%s %s at the simulator was answered %d, %v: %s", method, path, status, err, answer)
	}
	return o
}

// pass moves the one clock forward.
func (p *process) pass(d time.Duration) {
	p.t.Helper()
	p.stripe(http.MethodPost, "/_sim/clock", fmt.Sprintf(`{"advance_seconds": %d}`, int(d.Seconds())))
}

// await waits for a condition, or fails the test after a while.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

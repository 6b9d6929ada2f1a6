package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSimRefusesWhatItDoesNotUnderstand before it listens.
func TestSimRefusesWhatItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	rules := filepath.Join(t.TempDir(), "rules.json")
	if err := os.WriteFile(rules, []byte(`{"rules": [{"fault": "explode"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"--switches", `{"meter_lag": 1}`}, `--switches: json: unknown field "meter_lag"`},
		{[]string{"--switches", `{"requests_per_second": -1}`}, "requests_per_second is -1; it must not be negative"},
		{[]string{"--faults", rules}, `fault "explode" is unknown; it is one of drop_before`},
		{[]string{"--faults", rules + ".none"}, "no such file"},
		{[]string{"--webhook", "127.0.0.1/hook"}, "Invalid URL"},
		{[]string{"--listen", "nowhere"}, "listen on nowhere"},
		{[]string{"more"}, "see: tallystick sim --help"},
	} {
		code, _, stderr := cli(t, nil, append([]string{"sim", "--data", t.TempDir()}, tc.args...)...)
		if code != exitUsage || !strings.Contains(stderr, tc.says) {
			t.Errorf("sim %q ends with %d: %s", tc.args, code, stderr)
		}
	}
}

// simProcess is `tallystick sim` as a process of its own.
func simProcess(t *testing.T, args ...string) (cmd *exec.Cmd, url string, printed []string) {
	t.Helper()
	cmd = exec.CommandContext(context.Background(), os.Args[0], append([]string{"sim", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = environment()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(stdout)
	for url == "" && lines.Scan() {
		printed = append(printed, lines.Text())
		url = regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text())
		if !strings.Contains(lines.Text(), "listens on") {
			url = ""
		}
	}
	if url == "" {
		t.Fatalf("sim says %q", printed)
	}
	return cmd, url, printed
}

func stripeCall(t *testing.T, method, url, form string) (int, map[string]any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("sk_test_1", "")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var o map[string]any
	if err := json.NewDecoder(response.Body).Decode(&o); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return response.StatusCode, o
}

// TestSimIsSetUpByItsFlags, ends cleanly, and keeps its state.
func TestSimIsSetUpByItsFlags(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rules := filepath.Join(dir, "rules.json")
	if err := os.WriteFile(rules, []byte(`{"rules": [{"method": "GET", "path": "/v1/products", "fault": "error_503"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	arrived := make(chan string, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { arrived <- r.Header.Get("Stripe-Signature") }))
	t.Cleanup(receiver.Close)
	args := []string{"--data", filepath.Join(dir, "sim"), "--seed", "7", "--switches", `{"event_lag_seconds": 9}`, "--faults", rules, "--webhook", receiver.URL}
	customer := ""
	for range 2 {
		cmd, url, printed := simProcess(t, args...)
		if !strings.Contains(printed[0], "signed with the secret whsec_") {
			t.Errorf("sim says %q", printed)
		}
		if status, o := stripeCall(t, http.MethodGet, url+"/v1/products", ""); status != 503 {
			t.Errorf("a call that a rule is about is answered %d %v", status, o)
		}
		if _, o := stripeCall(t, http.MethodGet, url+"/_sim/switches", ""); o["event_lag_seconds"] != 9.0 {
			t.Errorf("the switches are %v", o)
		}
		if _, o := stripeCall(t, http.MethodGet, url+"/_sim/faults", ""); len(o["rules"].([]any)) != 1 {
			t.Errorf("the rules are %v", o)
		}
		if customer == "" {
			_, o := stripeCall(t, http.MethodPost, url+"/v1/customers", "name=a")
			customer, _ = o["id"].(string)
			select {
			case <-arrived:
			case <-time.After(20 * time.Second):
				t.Error("no event arrives")
			}
		} else if status, _ := stripeCall(t, http.MethodGet, url+"/v1/customers/"+customer, ""); status != 200 {
			t.Error("the customer is gone after a restart")
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after SIGTERM sim ends with %v", err)
		}
	}
}

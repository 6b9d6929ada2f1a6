package stripesim_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"tallystick/stripesim"
)

// kept starts a simulator over a directory, and again after each end.
type kept struct {
	*user
	dir    string
	server *httptest.Server
}

func keep(t *testing.T) *kept {
	t.Helper()
	k := &kept{dir: t.TempDir()}
	k.user = &user{Sim: &stripesim.Sim{Key: "sk_test_1"}, t: t}
	k.start()
	t.Cleanup(k.end)
	return k
}

func (k *kept) start() {
	k.t.Helper()
	server, err := stripesim.NewServer(stripesim.Options{Dir: k.dir})
	if err != nil {
		k.t.Fatal(err)
	}
	k.server = httptest.NewServer(server)
	k.Server, k.URL = server, k.server.URL
}

func (k *kept) end() {
	k.server.Close()
	if err := k.Close(); err != nil {
		k.t.Error(err)
	}
}

func (k *kept) restart() {
	k.t.Helper()
	k.end()
	k.start()
}

func (k *kept) journal() string { return filepath.Join(k.dir, "stripesim.jsonl") }

func (k *kept) lines() int {
	k.t.Helper()
	content, err := os.ReadFile(k.journal())
	if err != nil {
		k.t.Fatal(err)
	}
	return bytes.Count(content, []byte("\n"))
}

// TestEverythingSurvivesARestart sets all there is, and looks at it after two restarts.
func TestEverythingSurvivesARestart(t *testing.T) {
	t.Parallel()
	u := keep(t)
	i := u.listen("customer.created")
	i.answer(500)
	u.must("POST", "/_sim/switches", `{"event_lag_seconds": 1, "list_lag_seconds": {"refund": 3}, "sandbox_retries": true}`)
	u.must("POST", "/_sim/faults", `{"rules": [{"fault": "error_503", "method": "GET", "path": "/v1/products", "times": 3}]}`)
	u.webhooks(`{"lose": {"types": ["product.*"], "times": 5}, "duplicate": 0.25}`)
	u.Advance(100 * time.Hour)
	customer := u.call("POST", "/v1/customers", "name=a", key("k")...)
	id, _ := customer.Body["id"].(string)
	u.make("/v1/billing/meters", "display_name=a&event_name=a&default_aggregation[formula]=sum")
	u.must("POST", "/v1/billing/meter_events", "event_name=a&identifier=i&payload[stripe_customer_id]="+id+"&payload[value]=7")
	u.call("GET", "/v1/products", "")
	secret, err := u.RollSecret(i.id)
	if err != nil {
		t.Fatal(err)
	}
	u.drain()
	before := u.State()
	rules := u.Faults()
	for range 2 {
		u.restart()
		after := u.State()
		if after.Now < before.Now || after.Now > before.Now+60 {
			t.Errorf("the clock shows %d, after %d", after.Now, before.Now)
		}
		for what, pair := range map[string][2]any{
			"objects": {some(before.Counts), some(after.Counts)}, "switches": {before.Switches, after.Switches}, "meters": {before.Meters, after.Meters},
			"webhooks": {before.Webhooks.Rules, after.Webhooks.Rules}, "queued": {before.Webhooks.Queued, after.Webhooks.Queued}, "faults": {simple(rules), simple(u.Faults())},
		} {
			if !reflect.DeepEqual(pair[0], pair[1]) {
				t.Errorf("%s were %v, and are %v", what, pair[0], pair[1])
			}
		}
		if again := u.call("POST", "/v1/customers", "name=a", key("k")...); again.Raw != customer.Raw || again.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("the key gives %d %s", again.Status, again.Raw)
		}
		u.refused(u.call("POST", "/v1/billing/meter_events", "event_name=a&identifier=i&payload[stripe_customer_id]="+id+"&payload[value]=7"), 400, invalidRequest, "", "identifier")
	}
	i.answer(200)
	u.Advance(time.Hour)
	u.drain()
	letters, tries := i.all(), u.Deliveries()
	last := letters[len(letters)-1]
	if len(tries) == 0 || tries[0].Try != 2 || !strings.Contains(last.signature, ",v1=") || !failsWith(&inbox{secret: secret}, last, nil) && signedAt(last) < time.Now().Unix()+3600 {
		t.Errorf("after the restarts the tries are %+v", tries)
	}
	if e := u.event("customer.created"); fmt.Sprint(e["pending_webhooks"]) != "0" {
		t.Errorf("pending webhooks are %v", e["pending_webhooks"])
	}
	u.restart()
	if e := u.event("customer.created"); fmt.Sprint(e["pending_webhooks"]) != "0" || u.State().Webhooks.Queued != 0 {
		t.Errorf("after one more restart pending webhooks are %v", e["pending_webhooks"])
	}
}

// some leaves out what there is none of.
func some(counts map[string]int) map[string]int {
	maps.DeleteFunc(counts, func(_ string, n int) bool { return n == 0 })
	return counts
}

// simple is what of a value can be written.
func simple(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw)
}

// TestATornLineIsCutAndADamagedOneRefused edits the journal by hand.
func TestATornLineIsCutAndADamagedOneRefused(t *testing.T) {
	t.Parallel()
	u := keep(t)
	first := u.make("/v1/customers", "name=first")
	u.server.Close()
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(u.journal())
	if err != nil {
		t.Fatal(err)
	}
	write := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(u.journal(), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for damage, says := range map[string]string{
		"not JSON\n":                        "line 2 of " + u.journal(),
		`{"t":"key","id":"k","r":3}` + "\n": "is damaged",
		"\x00\x00\n":                        "bring the file back from a copy, or move it away",
	} {
		write(append(bytes.Clone(whole), damage...))
		if _, err := stripesim.NewServer(stripesim.Options{Dir: u.dir}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is met with %v", damage, err)
		}
	}
	write(append(bytes.Clone(whole), whole[:len(whole)/2]...))
	u.start()
	u.must("GET", "/v1/customers/"+first, "")
	second := u.make("/v1/customers", "name=second")
	u.restart()
	u.must("GET", "/v1/customers/"+first, "")
	u.must("GET", "/v1/customers/"+second, "")
}

// TestAJournalThatHasGrownIsWrittenAnew and says the same.
func TestAJournalThatHasGrownIsWrittenAnew(t *testing.T) {
	t.Parallel()
	u := keep(t)
	var ids []string
	for n := range 5 {
		ids = append(ids, u.make("/v1/products", fmt.Sprintf("name=p%d", n)))
	}
	u.make("/v1/webhook_endpoints", "url=http://127.0.0.1:1/&enabled_events[]=*")
	u.webhooks(`{"pause": true}`)
	u.must("POST", "/v1/products", "name=keyed", key("k")...)
	for range 1100 {
		u.must("POST", "/_sim/switches", `{"meter_lag_seconds": 3}`)
		u.Advance(time.Second)
	}
	before, long := u.State(), u.lines()
	u.restart()
	if short := u.lines(); long < 2200 || short > 60 {
		t.Errorf("the journal had %d lines, and has %d", long, short)
	}
	for range 2 {
		after := u.State()
		if !reflect.DeepEqual(some(after.Counts), some(before.Counts)) || !reflect.DeepEqual(after.Switches, before.Switches) || after.Webhooks.Queued != before.Webhooks.Queued || after.Now < before.Now {
			t.Errorf("before %+v, after %+v", before, after)
		}
		data, _ := u.must("GET", "/v1/products", "starting_after="+u.must("GET", "/v1/products", "limit=1")["data"].([]any)[0].(map[string]any)["id"].(string))["data"].([]any)
		for i, o := range data {
			if o.(map[string]any)["id"] != ids[len(ids)-1-i] {
				t.Errorf("product %d is %v", i, o)
			}
		}
		if a := u.call("POST", "/v1/products", "name=keyed", key("k")...); a.Header.Get("Idempotent-Replayed") != "true" {
			t.Error("the key is forgotten")
		}
		u.restart()
	}
	if left, _ := filepath.Glob(filepath.Join(u.dir, "*.new")); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// TestADiskThatFailsIsAnError and no promise is made any more.
func TestADiskThatFailsIsAnError(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server, err := stripesim.NewServer(stripesim.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	u := &user{Sim: &stripesim.Sim{Server: server, Key: "sk_test_1"}, t: t}
	u.raw("POST", "/v1/customers", "name=kept")
	if err := server.FailJournal(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		u.refused(u.raw("POST", "/v1/customers", "name=lost", key("k")...), 500, "api_error", "", "")
	}
	if err := server.Close(); err == nil {
		t.Error("a simulator that has lost its journal ends as if nothing were")
	}
	again, err := stripesim.NewServer(stripesim.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if got := again.State().Counts["customer"]; got != 1 {
		t.Errorf("%d customers are kept, want 1", got)
	}
}

// killedDir names the directory of a simulator that this binary runs as a process
// of its own, to be killed.
const killedDir = "STRIPESIM_TEST_KILLED_DIR"

// TestAKilledProcess leaves each call whole or not at all: a retry by its key
// never does anything twice.
func TestAKilledProcess(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(killedDir); dir != "" {
		serveUntilKilled(t, dir)
	}
	u := &user{Sim: &stripesim.Sim{Key: "sk_test_1"}, t: t}
	dir := t.TempDir()
	for round := range 4 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAKilledProcess$")
		cmd.Env = append(os.Environ(), killedDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscanln(out, &u.URL); err != nil {
			t.Fatal(err)
		}
		killed := make(chan struct{})
		time.AfterFunc(time.Duration(30+20*round)*time.Millisecond, func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			close(killed)
		})
		u.tryUntilKilled(round)
		<-killed
	}
	server, err := stripesim.NewServer(stripesim.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	u.Server = server
	made := 0
	for round := range 4 {
		for n := 0; ; n++ {
			a := u.raw("POST", "/v1/customers", "name=a", key(fmt.Sprintf("k%d-%d", round, n))...)
			if a.Header.Get("Idempotent-Replayed") == "" {
				made += n
				break
			}
		}
	}
	if got := server.State().Counts["customer"] - 4; got != made || made == 0 {
		t.Errorf("%d customers stand, and %d keys know of one", got, made)
	}
}

// serveUntilKilled is the other process.
func serveUntilKilled(t *testing.T, dir string) {
	t.Helper()
	server, err := stripesim.NewServer(stripesim.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(httptest.NewServer(server).URL)
	select {}
}

// tryUntilKilled makes customers, one key after the other, until nobody answers.
func (u *user) tryUntilKilled(round int) {
	u.t.Helper()
	for n := 0; ; n++ {
		r, err := http.NewRequestWithContext(u.t.Context(), http.MethodPost, u.URL+"/v1/customers", strings.NewReader("name=a"))
		if err != nil {
			u.t.Fatal(err)
		}
		r.SetBasicAuth(u.Key, "")
		r.Header.Set("Idempotency-Key", fmt.Sprintf("k%d-%d", round, n))
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			return
		}
		_ = response.Body.Close()
	}
}

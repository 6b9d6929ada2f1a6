package client_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/client"
)

// dead collects dead letters.
type dead struct {
	mu      sync.Mutex
	letters []client.DeadLetter
}

func (d *dead) add(l client.DeadLetter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.letters = append(d.letters, l)
}

func (d *dead) all() []client.DeadLetter {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.letters)
}

func spoolIn(t *testing.T, dir string, o client.SpoolOptions) *client.Spool {
	t.Helper()
	spool, err := client.OpenSpool(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := spool.Close(); err != nil {
			t.Error(err)
		}
	})
	return spool
}

func drain(t *testing.T, c *client.Client) {
	t.Helper()
	if err := c.Drain(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
}

// TestFailOpenRecordsLater makes calls while tallystick is away.
func TestFailOpenRecordsLater(t *testing.T) {
	t.Parallel()
	s := open(t)
	var letters dead
	spool := spoolIn(t, t.TempDir(), client.SpoolOptions{OnDead: letters.add})
	c := s.client(client.FailOpen(spool), client.WithPatience(200*time.Millisecond))
	s.gate.close(true)
	at := s.Clock.Now()
	out, err := c.Do(t.Context(), forty("call-0001"), says(7, nil))
	if err != nil || out.State != client.StateSpooled {
		t.Fatalf("a quantity: %+v, %v", out, err)
	}
	in := client.Reservation{ID: "call-0002", Account: "acme", Meter: "out", Credits: "10"}
	out, err = c.Do(t.Context(), in, func(context.Context) (client.Actual, error) { return client.Actual{Credits: "4"}, nil })
	if err != nil || out.State != client.StateSpooled {
		t.Fatalf("credits: %+v, %v", out, err)
	}
	recorded, err := c.Record(t.Context(), api.UsageRequest{Account: "acme", Meter: "in", Quantity: "2"})
	if err != nil || !recorded.Spooled || recorded.ID == "" {
		t.Fatalf("a usage: %+v, %v", recorded, err)
	}
	batch, err := c.RecordBatch(t.Context(), []api.UsageRequest{{Account: "acme", Meter: "in", Quantity: "1"}, {Account: "acme", Meter: "in", Quantity: "3"}})
	if err != nil || batch[0].Result != "spooled" || batch[1].Result != "spooled" {
		t.Fatalf("a batch: %+v, %v", batch, err)
	}
	if out, err = c.Do(t.Context(), forty("call-0003"), saysNothing(errors.New("refused"))); err == nil || out.State != client.StateReleased {
		t.Errorf("a refused call: %+v, %v", out, err)
	}
	if out, _ = c.Do(t.Context(), forty("call-0004"), saysNothing(context.DeadlineExceeded)); out.State != client.StateUnknown {
		t.Errorf("a call in doubt: %+v", out)
	}
	if spool.Empty() || spool.Bytes() == 0 {
		t.Error("nothing is in the spool")
	}
	s.Sim.Advance(time.Hour)
	s.gate.close(false)
	drain(t, c)
	s.holds("86", "0") // 7 + 4 + 1 + 2
	var totals api.UsageTotals
	s.Want(200, "GET", "/v1/accounts/acme/usage?to="+at.Add(time.Minute).Format(time.RFC3339), nil, &totals)
	if len(totals.Data) != 2 || totals.Data[1].Quantity != "11" {
		t.Errorf("by the time at which they happened, the usages are %+v", totals.Data)
	}
	if l := letters.all(); len(l) != 1 || l[0].ID != "call-0004" || l[0].Ending != "doubt" {
		t.Errorf("the dead letters are %+v, want the call of which nobody knows", l)
	}
}

// TestFailOpenWithAReservationOfWhichNobodyKnew has the reservation made and its answer
// cut: the usage is charged once, and nothing stays held.
func TestFailOpenWithAReservationOfWhichNobodyKnew(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client(client.FailOpen(spoolIn(t, t.TempDir(), client.SpoolOptions{})), client.WithPatience(200*time.Millisecond))
	s.gate.next(fault{path: "/v1/reservations", executed: true})
	s.gate.next(slices.Repeat([]fault{{path: "/v1/reservations"}}, 20)...)
	out, err := c.Do(t.Context(), forty("call-0001"), says(7, nil))
	if err != nil || out.State != client.StateSpooled {
		t.Fatalf("%+v, %v", out, err)
	}
	drain(t, c)
	s.holds("93", "0")
	s.state("call-0001", "released")
}

// TestFailOpenSendsEndingsLater loses tallystick while the model works.
func TestFailOpenSendsEndingsLater(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client(client.FailOpen(spoolIn(t, t.TempDir(), client.SpoolOptions{})), client.WithPatience(time.Second))
	for id, work := range map[string]func(context.Context) (client.Actual, error){
		"captured": func(context.Context) (client.Actual, error) {
			return client.Actual{Quantity: "3", Also: []api.UsageRequest{{Meter: "in", Quantity: "2"}}}, nil
		},
		"released": saysNothing(errors.New("refused")),
		"in_doubt": saysNothing(context.DeadlineExceeded),
	} {
		s.gate.close(false)
		r := forty(id)
		r.Quantity = "10"
		out, _ := c.Do(t.Context(), r, func(ctx context.Context) (client.Actual, error) {
			s.gate.close(true)
			return work(ctx)
		})
		if out.State != client.StateSpooled {
			t.Errorf("%s: %+v", id, out)
		}
	}
	s.gate.close(false)
	drain(t, c)
	for _, id := range []string{"captured", "released", "in_doubt"} {
		s.state(id, id)
	}
	s.holds("86", "10") // 3 and 1 used, 10 held
}

// TestReplayGoesOnAfterRefusals mixes usage that is refused for good into a spool, with
// a server that fails now and then.
func TestReplayGoesOnAfterRefusals(t *testing.T) {
	t.Parallel()
	s := open(t)
	var letters dead
	dir := t.TempDir()
	spool := spoolIn(t, dir, client.SpoolOptions{OnDead: letters.add})
	c := s.client(client.FailOpen(spool), client.WithPatience(50*time.Millisecond))
	s.gate.close(true)
	for i := range 30 {
		u := api.UsageRequest{ID: fmt.Sprintf("usage-%04d", i), Account: "acme", Meter: "out", Quantity: "1"}
		if i%10 == 3 {
			u.Meter = "nothing"
		}
		if _, err := c.Record(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	s.gate.next(fault{executed: true}, fault{status: 503, retryAfter: "1"}, fault{status: 404, html: true}, fault{status: 413}, fault{half: true})
	s.gate.close(false)
	drain(t, c)
	s.holds("73", "0")
	for id, n := range s.charges() {
		if n != 1 {
			t.Errorf("%s was charged %d times", id, n)
		}
	}
	content, err := os.ReadFile(filepath.Join(dir, "dead.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var kept []client.DeadLetter
	for line := range bytes.Lines(content) {
		var l client.DeadLetter
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, l)
	}
	if len(kept) != 3 || len(letters.all()) != 3 {
		t.Fatalf("%d dead letters are kept and %d told, want 3", len(kept), len(letters.all()))
	}
	if l := kept[0]; l.ID != "usage-0003" || l.Code != "meter_not_found" || !bytes.Contains(l.Body, []byte(`"nothing"`)) || l.Path != "/v1/usage" {
		t.Errorf("the first dead letter is %+v", l)
	}
}

// TestAKeyThatIsRefusedLosesNothing revokes what the spool is sent with.
func TestAKeyThatIsRefusedLosesNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	spool := spoolIn(t, t.TempDir(), client.SpoolOptions{})
	trouble := make(chan error, 10)
	wrong, err := client.New(s.gate.url, "tsk_wrong", client.FailOpen(spool), client.WithPatience(50*time.Millisecond),
		client.OnTrouble(func(err error) { trouble <- err }), client.WithClock(s.Clock.Now))
	if err != nil {
		t.Fatal(err)
	}
	s.gate.close(true)
	if _, err := wrong.Record(t.Context(), api.UsageRequest{Account: "acme", Meter: "out", Quantity: "1"}); err != nil {
		t.Fatal(err)
	}
	s.gate.close(false)
	if err := wrong.Drain(within(t, 300*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the spool is sent with a wrong key: %v", err)
	}
	select {
	case err := <-trouble:
		if !errors.Is(err, client.ErrUnauthorized) {
			t.Errorf("the trouble is %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody is told of the trouble")
	}
	if len(trouble) > 0 {
		t.Errorf("it is told again: %v", <-trouble)
	}
	if err := wrong.Close(); err != nil {
		t.Fatal(err)
	}
	c := s.client(client.FailOpen(spool))
	drain(t, c)
	s.holds("99", "0")
}

// TestAFullSpoolLetsNoCallThrough fills a spool to its bound.
func TestAFullSpoolLetsNoCallThrough(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.gate.close(true)
	const bound = 80 << 10 // one call's room, and a little
	spool := spoolIn(t, t.TempDir(), client.SpoolOptions{BytesMax: bound})
	c := s.client(client.FailOpen(spool), client.WithPatience(50*time.Millisecond))
	calls := 0
	work := func(ctx context.Context) (client.Actual, error) {
		calls++
		if calls == 1 { // one call is under way: there is no room for a second
			if _, err := c.Do(ctx, forty(""), says(1, nil)); !errors.Is(err, client.ErrSpoolFull) || !errors.Is(err, client.ErrUnavailable) {
				t.Errorf("a second call: %v", err)
			}
		}
		return client.Actual{Quantity: "1"}, nil
	}
	for range 200 {
		r := forty("")
		r.Dimensions = map[string]string{"filler": strings.Repeat("x", 250)}
		out, err := c.Do(t.Context(), r, work)
		if err == nil && out.State == client.StateSpooled {
			continue
		}
		if !errors.Is(err, client.ErrSpoolFull) || calls < 5 {
			t.Fatalf("after %d calls: %+v, %v", calls, out, err)
		}
		break
	}
	if spool.Bytes() > bound {
		t.Errorf("the spool has %d bytes, more than %d", spool.Bytes(), bound)
	}
	s.gate.close(false)
	drain(t, c)
	s.holds(fmt.Sprint(100-calls), "0")
	if _, err := c.Do(t.Context(), forty(""), says(1, nil)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestOneProcessHasASpool(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := client.OpenSpool(dir, client.SpoolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.OpenSpool(dir, client.SpoolOptions{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second one opens it: %v", err)
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Error(err)
	}
	second, err := client.OpenSpool(dir, client.SpoolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = second.Close()
	if err := os.WriteFile(filepath.Join(dir, "notes.spool"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client.OpenSpool(dir, client.SpoolOptions{}); err == nil {
		t.Error("what is no segment is taken for one")
	}
}

// TestASpoolThatWasDamagedGivesUpOnlyTheDamage tears the last line of a segment and
// flips a bit in the middle of it.
func TestASpoolThatWasDamagedGivesUpOnlyTheDamage(t *testing.T) {
	t.Parallel()
	s := open(t)
	dir := t.TempDir()
	s.gate.close(true)
	spool, err := client.OpenSpool(dir, client.SpoolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New("http://127.0.0.1:1", "tsk_x", client.FailOpen(spool), client.WithPatience(20*time.Millisecond), client.WithClock(s.Clock.Now))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil { // nothing is sent, and one segment is made
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := c.Record(t.Context(), api.UsageRequest{ID: fmt.Sprintf("usage-%04d", i), Account: "acme", Meter: "out", Quantity: "1"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := spool.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the segments are %v, %v", files, err)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	content = content[:len(content)-20]
	content = bytes.Replace(content, []byte("usage-0002"), []byte("usage-0902"), 1)
	if err := os.WriteFile(files[0], content, 0o600); err != nil {
		t.Fatal(err)
	}
	var letters dead
	s.gate.close(false)
	again := s.client(client.FailOpen(spoolIn(t, dir, client.SpoolOptions{OnDead: letters.add})))
	drain(t, again)
	s.holds("97", "0")
	if l := letters.all(); len(l) != 1 || l[0].Code != "unreadable" || !strings.Contains(l[0].Line, "usage-0902") {
		t.Errorf("the dead letters are %+v", l)
	}
}

// worker is a process that makes calls while tallystick comes and goes, until it is
// killed. It prints the id of each call that Do has answered for.
func worker(dir, url, key string) int {
	spool, err := client.OpenSpool(dir, client.SpoolOptions{OnDead: func(l client.DeadLetter) { fmt.Println("dead", l.ID, l.Detail) }})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	c, err := client.New(url, key, client.FailOpen(spool), client.WithPatience(300*time.Millisecond), client.WithTryTime(200*time.Millisecond))
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	var lines sync.Mutex
	for range 4 {
		go func() {
			for {
				id := client.NewID()
				out, err := c.Do(context.Background(), client.Reservation{ID: id, Account: "acme", Meter: "out", Quantity: "0.002"}, says001)
				lines.Lock()
				if err != nil {
					fmt.Println("error", id, err)
				} else {
					fmt.Println(out.State, id)
				}
				lines.Unlock()
			}
		}()
	}
	select {}
}

func says001(context.Context) (client.Actual, error) { return client.Actual{Quantity: "0.001"}, nil }

// TestKilledProcessesLoseNoUsageAndChargeNoneTwice kills a process by SIGKILL in the
// middle of its calls, again and again, while tallystick comes and goes. At the end
// each call that was answered for is charged once, and no call twice.
func TestKilledProcessesLoseNoUsageAndChargeNoneTwice(t *testing.T) {
	t.Parallel()
	s := open(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	answered, count := map[string]string{}, map[string]int{}
	for round := 0; round < 8 || (round < 40 && min(count["captured"], count["spooled"]) < 20); round++ {
		process := exec.CommandContext(t.Context(), os.Args[0])
		process.Env = append(os.Environ(), "CLIENT_TEST_SPOOL="+dir, "CLIENT_TEST_URL="+s.gate.url, "CLIENT_TEST_KEY="+s.Info.APIKey)
		out, err := process.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := process.Start(); err != nil {
			t.Fatal(err)
		}
		var reading sync.WaitGroup
		reading.Go(func() {
			for lines := bufio.NewScanner(out); lines.Scan(); {
				state, id, found := strings.Cut(lines.Text(), " ")
				if !found || (state != "captured" && state != "spooled") {
					t.Errorf("the process says %s", lines.Text())
					continue
				}
				answered[id] = state
				count[state]++
			}
		})
		for i := range 4 {
			s.gate.close(i%2 == round%2)
			s.gate.next(fault{executed: true}, fault{half: true}, fault{})
			time.Sleep(time.Duration(50+random.IntN(300)) * time.Millisecond)
		}
		if err := process.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		reading.Wait()
		_ = process.Wait() // killed, as it should be
	}
	s.gate.close(false)
	s.gate.mu.Lock()
	s.gate.plan = nil
	s.gate.mu.Unlock()
	c := s.client(client.FailOpen(spoolIn(t, dir, client.SpoolOptions{OnDead: func(l client.DeadLetter) { t.Errorf("a dead letter: %+v", l) }})))
	drain(t, c)
	charges := s.charges()
	for id, state := range answered {
		if charges[id] != 1 {
			t.Errorf("%s was %s and is charged %d times", id, state, charges[id])
		}
	}
	for id, n := range charges {
		if n != 1 {
			t.Errorf("%s is charged %d times", id, n)
		}
	}
	if count["captured"] < 10 || count["spooled"] < 10 {
		t.Errorf("too little was tried: %v", count)
	}
	t.Logf("answered for: %v, charged: %d", count, len(charges))
}

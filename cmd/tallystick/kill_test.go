package main

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg/pgtest"
)

var everyMessage = flag.Bool("every-message", false, "kill the server at each message of a usage's transaction, not at a few")

// trap kills a server at one message of a lane's transaction.
type trap struct {
	at       int  // messages since BEGIN, which is 0
	commit   bool // at COMMIT, whichever message that is
	executed bool // Postgres gets the message, and the server dies before it reads the reply
	kill     func()
	struck   atomic.Bool
}

// gate is a proxy before Postgres that reads the protocol of the lanes'
// connections, and springs a trap. A lane's connection is known by its settings.
type gate struct {
	t      *testing.T
	target *url.URL
	dsn    string
	trap   atomic.Pointer[trap]
}

func newGate(t *testing.T, dsn string) *gate {
	t.Helper()
	target, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	front := *target
	front.Host, front.RawQuery = listener.Addr().String(), "sslmode=disable"
	g := &gate{t: t, target: target, dsn: front.String()}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go g.carry(client)
		}
	}()
	return g
}

func (g *gate) carry(client net.Conn) {
	defer func() { _ = client.Close() }()
	network, address := "tcp", g.target.Host
	if dir := g.target.Query().Get("host"); dir != "" {
		network, address = "unix", filepath.Join(dir, ".s.PGSQL.5432")
	}
	server, err := net.Dial(network, address)
	if err != nil {
		return // the test's Postgres has ended
	}
	defer func() { _ = server.Close() }()
	var sprung atomic.Pointer[trap]
	go func() {
		defer func() { _ = client.Close() }()
		buffer := make([]byte, 64<<10)
		for {
			n, err := server.Read(buffer)
			if err != nil {
				return
			}
			if t := sprung.Load(); t != nil {
				t.kill() // the reply is not passed on
				return
			}
			if _, err := client.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	lane, count := false, -1
	for started := false; ; started = true {
		head := make([]byte, 5)
		if !started {
			head = head[:4] // the start-up packet has no kind
		}
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[len(head)-4:])-4)
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		text := strings.TrimRight(string(body), "\x00")
		lane = lane || (!started && strings.Contains(text, "enable_seqscan"))
		count++
		if head[0] == 'Q' && strings.HasPrefix(text, "BEGIN") {
			count = 0
		}
		if t := g.trap.Load(); lane && started && t != nil && (t.at == count || (t.commit && text == "COMMIT")) && t.struck.CompareAndSwap(false, true) {
			if !t.executed {
				t.kill()
				return
			}
			sprung.Store(t)
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return
		}
	}
}

// TestA01ToA04KilledAtEachPointOfATransaction kills the server before BEGIN, at
// messages within a usage's transaction, before COMMIT, and when COMMIT was
// executed and its reply not read. The usage that was under way is sent again to
// the server that follows: it is recorded once.
func TestA01ToA04KilledAtEachPointOfATransaction(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	g := newGate(t, dsn)
	dir := dataDir(t)
	setting := "DATABASE_URL=" + g.dsn
	p := up(t, dir, setting)
	p.must(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1, "stripe": {"kind": "meter", "event_name": "calls"}}`)
	p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`)
	p.must(http.StatusCreated, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 1000}`)
	sent := 0
	// killed sends usage into a trap, and again to the server that follows. It
	// tells whether the trap was sprung.
	killed := func(tr *trap, recorded bool) bool {
		t.Helper()
		program := p.cmd.Process
		tr.kill = func() { _ = program.Kill() }
		g.trap.Store(tr)
		sent++
		body := fmt.Sprintf(`{"id": "usage-%04d", "account": "acme", "meter": "call", "quantity": 3}`, sent)
		status, answer, err := p.call(http.MethodPost, "/v1/usage", body)
		g.trap.Store(nil)
		if !tr.struck.Load() {
			if err != nil || status != http.StatusCreated {
				t.Fatalf("without a kill usage was answered %d %s, %v", status, answer, err)
			}
			return false
		}
		if err == nil {
			t.Errorf("%+v: a server that was killed answered %d %s", tr, status, answer)
		}
		_ = p.cmd.Wait()
		if n := usages(t, dsn); (n == sent) != recorded {
			t.Errorf("killed at message %d (executed %v): %d usages were recorded of %d, the last one: want %v", tr.at, tr.executed, n, sent, recorded)
		}
		p = up(t, dir, setting)
		p.must(http.StatusCreated, http.MethodPost, "/v1/usage", body)
		if n := usages(t, dsn); n != sent {
			t.Fatalf("killed at message %d (executed %v): %d usages of %d", tr.at, tr.executed, n, sent)
		}
		return true
	}
	points := 0
	for at := 0; killed(&trap{at: at}, false); at += map[bool]int{true: 1, false: 5}[*everyMessage] {
		points++
	}
	for _, executed := range []bool{false, true} {
		if !killed(&trap{at: -1, commit: true, executed: executed}, executed) {
			t.Error("there was no COMMIT to be killed at")
		}
	}
	t.Logf("killed at %d messages of a transaction, and twice at its COMMIT", points)
	if points < 3 {
		t.Errorf("only %d messages were seen", points)
	}
	var a struct{ Balance struct{ Available string } }
	if err := json.Unmarshal(p.must(http.StatusOK, http.MethodGet, "/v1/accounts/acme", ""), &a); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint(1000 - 3*sent); a.Balance.Available != want {
		t.Errorf("acme holds %s, want %s after %d usages", a.Balance.Available, want, sent)
	}
	p.stop()
	if code, out, errs := cli(t, []string{"DATABASE_URL=" + dsn}, "verify"); code != exitFine {
		t.Errorf("verify ends with %d:\n%s%s", code, out, errs)
	}
}

func usages(t *testing.T, dsn string) (n int) {
	t.Helper()
	db := pgtest.Owner(t, dsn)
	defer func() { _ = db.Close() }()
	if err := db.Read(t.Context(), func(tx *sqlx.Tx) error { return tx.Get(&n, "SELECT count(*) FROM usage") }); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestA14SIGTERMUnderLoadLosesNoAcknowledgement stops the server while usage comes
// in: it ends by itself, and each usage that it acknowledged is there.
func TestA14SIGTERMUnderLoadLosesNoAcknowledgement(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	p := up(t, dataDir(t), "DATABASE_URL="+dsn)
	p.must(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 1}`)
	p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`)
	p.must(http.StatusCreated, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 1000000}`)
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	unknown := 0
	var wg sync.WaitGroup
	for sender := range 12 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("usage-%02d-%06d", sender, i)
				status, answer, err := p.call(http.MethodPost, "/v1/usage", fmt.Sprintf(`{"id": %q, "account": "acme", "meter": "call", "quantity": 1}`, id))
				mu.Lock()
				switch {
				case err == nil && status == http.StatusCreated:
					acknowledged[id] = true
				case err != nil || status == http.StatusServiceUnavailable:
					unknown++
				default:
					t.Errorf("while it ended the server answered %d: %s", status, answer)
				}
				mu.Unlock()
				if err != nil || status != http.StatusCreated {
					return
				}
			}
		})
	}
	await(t, "the load", func() bool { mu.Lock(); defer mu.Unlock(); return len(acknowledged) > 100 })
	began := time.Now()
	p.stop()
	took := time.Since(began)
	wg.Wait()
	if took > 25*time.Second {
		t.Errorf("it took %s to end", took)
	}
	var ids []string
	db := pgtest.Owner(t, dsn)
	if err := db.Read(t.Context(), func(tx *sqlx.Tx) error { return tx.Select(&ids, "SELECT usage_id FROM usage") }); err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, id := range ids {
		there[id] = true
	}
	for id := range acknowledged {
		if !there[id] {
			t.Errorf("%s was acknowledged, and is lost", id)
		}
	}
	if len(ids) > len(acknowledged)+unknown {
		t.Errorf("%d usages are there; %d were acknowledged and %d unknown", len(ids), len(acknowledged), unknown)
	}
	t.Logf("ended in %s: %d acknowledged, %d recorded, %d callers without an answer", took.Round(time.Millisecond), len(acknowledged), len(ids), unknown)
	if code, out, errs := cli(t, []string{"DATABASE_URL=" + dsn}, "verify"); code != exitFine {
		t.Errorf("verify ends with %d:\n%s%s", code, out, errs)
	}
}

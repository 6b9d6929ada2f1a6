package meter_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// cut says at which message of a client's transaction that writes, and how, a
// connection to Postgres ends.
type cut struct {
	statement string // the simple query, such as COMMIT; "" for any message
	skip      int    // how many such messages pass before
	executed  bool   // Postgres gets the message, and executes it before the connection ends
	half      bool   // of an executed one's reply, the client gets the beginning
	reset     bool   // RST instead of FIN
}

func (c cut) String() string {
	return fmt.Sprintf("at %q+%d, executed %v, half a reply %v, reset %v", c.statement, c.skip, c.executed, c.half, c.reset)
}

// wire is a TCP proxy before Postgres that reads the protocol and cuts
// connections where it is told to. This is the one way to get at what a commit
// whose reply is lost leaves behind.
type wire struct {
	t      *testing.T
	target *url.URL
	dsn    string // of the database, through the wire

	mu   sync.Mutex
	cuts []cut
}

func wired(t *testing.T, dsn string) *wire {
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
	w := &wire{t: t, target: target}
	front := *target
	front.Host, front.RawQuery = listener.Addr().String(), "sslmode=disable"
	w.dsn = front.String()
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go w.carry(client)
		}
	}()
	return w
}

// plan orders cuts, one after the other.
func (w *wire) plan(cuts ...cut) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts = cuts
}

// left is how many of the planned cuts did not happen.
func (w *wire) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.cuts)
}

// due gives the cut that a message is for, nil when it passes.
func (w *wire) due(simple bool, text string) *cut {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.cuts) == 0 {
		return nil
	}
	next := w.cuts[0]
	if next.statement != "" && (!simple || text != next.statement) {
		return nil
	}
	if next.skip > 0 {
		w.cuts[0].skip--
		return nil
	}
	w.cuts = w.cuts[1:]
	return &next
}

func (w *wire) dial() (net.Conn, error) {
	if dir := w.target.Query().Get("host"); dir != "" {
		return net.Dial("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	}
	return net.Dial("tcp", w.target.Host)
}

func (w *wire) carry(client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := w.dial()
	if err != nil {
		w.t.Errorf("reach Postgres: %v", err)
		return
	}
	defer func() { _ = server.Close() }()
	var struck atomic.Pointer[cut]
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.replies(client, server, &struck)
	}()
	if struckNow := w.requests(client, server, &struck); struckNow != nil {
		end(client, struckNow.reset)
		return
	}
	_ = server.Close()
	<-done
}

// requests passes the client's messages on until it ends or a cut is to happen
// before one is executed. A cut after execution is left to replies.
func (w *wire) requests(client, server net.Conn, struck *atomic.Pointer[cut]) *cut {
	const none, reading, writing = 0, 1, 2
	block := none // reads, such as of the caller's key, are left alone
	for started := false; ; started = true {
		head := make([]byte, 5)
		if !started {
			head = head[:4] // the start-up packet has no kind
		}
		if _, err := io.ReadFull(client, head); err != nil {
			return nil
		}
		body := make([]byte, binary.BigEndian.Uint32(head[len(head)-4:])-4)
		if _, err := io.ReadFull(client, body); err != nil {
			return nil
		}
		text := strings.TrimRight(string(body), "\x00")
		if head[0] == 'Q' && strings.HasPrefix(text, "BEGIN") {
			block = writing
			if strings.Contains(text, "READ ONLY") {
				block = reading
			}
		}
		lone := block == none && strings.ContainsRune("PDBES", rune(head[0])) // a statement that is a transaction
		if started && (block == writing || lone) {
			if c := w.due(head[0] == 'Q', text); c != nil {
				if !c.executed {
					return c
				}
				struck.Store(c)
			}
		}
		if head[0] == 'Q' && (text == "COMMIT" || text == "ROLLBACK") {
			block = none
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return nil
		}
	}
}

// replies passes the server's bytes on. Those that come after a cut was struck
// are the reply to the message that was executed: they are lost.
func (w *wire) replies(client, server net.Conn, struck *atomic.Pointer[cut]) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := server.Read(buffer)
		if err != nil {
			return
		}
		if c := struck.Load(); c != nil {
			if c.half {
				_, _ = client.Write(buffer[:n/2])
			}
			end(client, c.reset)
			return
		}
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func end(client net.Conn, reset bool) {
	if tcp, ok := client.(*net.TCPConn); ok && reset {
		_ = tcp.SetLinger(0)
	}
	_ = client.Close()
}

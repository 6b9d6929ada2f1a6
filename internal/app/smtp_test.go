package app_test

import (
	"bufio"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/apptest"
)

// moody is a mail server with bad days, which counts what it has kept.
type moody struct {
	listener net.Listener

	mu      sync.Mutex
	mood    string         // refused, greylisted, slow, cut, or "" for a good one
	talks   int            // connections in this mood
	letters int            // senders that were named
	kept    map[string]int // by Message-ID
}

func newMoody(t *testing.T) *moody {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	m := &moody{listener: listener, kept: map[string]int{}}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go m.talk(c)
		}
	}()
	return m
}

// port is where it listens.
func (m *moody) port() string {
	_, port, _ := net.SplitHostPort(m.listener.Addr().String())
	return port
}

// set changes the mood.
func (m *moody) set(mood string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mood, m.talks = mood, 0
}

// seen gives the connections in this mood, the senders named and the mails kept.
func (m *moody) seen() (talks, letters int, kept map[string]int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.talks, m.letters, maps.Clone(m.kept)
}

func (m *moody) talk(c net.Conn) {
	defer func() { _ = c.Close() }()
	m.mu.Lock()
	mood := m.mood
	m.talks++
	m.mu.Unlock()
	say := func(line string) bool {
		if mood == "slow" {
			time.Sleep(100 * time.Millisecond)
		}
		_, err := c.Write([]byte(line + "\r\n"))
		return err == nil
	}
	if mood == "refused" {
		say("554 no service today")
		return
	}
	lines := bufio.NewScanner(c)
	for more := say("220 here"); more && lines.Scan(); {
		switch verb, _, _ := strings.Cut(strings.ToUpper(lines.Text()), " "); {
		case verb == "RCPT" && mood == "greylisted":
			more = say("450 4.2.0 come again later")
		case verb == "DATA":
			more = say("354 go on") && m.keep(lines) && mood != "cut" && say("250 taken")
		case verb == "MAIL":
			m.mu.Lock()
			m.letters++
			m.mu.Unlock()
			more = say("250 ok")
		case verb == "QUIT":
			say("221 bye")
			return
		default:
			more = say("250 ok")
		}
	}
}

// keep reads a mail to its end.
func (m *moody) keep(lines *bufio.Scanner) bool {
	id := ""
	for lines.Scan() && lines.Text() != "." {
		if text := lines.Text(); id == "" && strings.HasPrefix(strings.ToLower(text), "message-id:") {
			id = text
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[id]++
	return id != ""
}

// mailsIn counts the mails in a state.
func mailsIn(t *testing.T, a *apptest.Shop, state string) (n int) {
	t.Helper()
	err := a.App.App.DB.Read(t.Context(), func(tx *sqlx.Tx) error {
		return tx.GetContext(t.Context(), &n, "SELECT count(*) FROM mails WHERE state = $1", state)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// mismatch makes a finding, runs the checks and stages the mail about it.
func mismatch(t *testing.T, a *apptest.Shop) {
	t.Helper()
	vandalise(t, a.App, "UPDATE accounts SET available = available + 2500000")
	a.Want(http.StatusCreated, http.MethodPost, "/v1/reconcile/runs", `{"checks": ["ledger.balances"]}`, nil)
	if _, err := a.App.App.Reconcile.AlertStep(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestTheAuditorsMailsOutliveTheMailServersBadDays: each mail arrives in the end,
// once, but for the one that was cut off after it had been taken: that twice, under
// one Message-ID.
func TestTheAuditorsMailsOutliveTheMailServersBadDays(t *testing.T) {
	t.Parallel()
	server := newMoody(t)
	a := apptest.OpenShop(t, apptest.Options{Settings: map[string]string{
		"TALLYSTICK_SMTP_URL": "smtp://127.0.0.1:" + server.port(), "TALLYSTICK_MAIL_TO": "billing@example.com", "TALLYSTICK_MAIL_COOLDOWN": "0s",
	}})
	a.Buy(a.Price) // gives credits a price, so that a mismatch that grows is worse
	a.Settled()
	copies := map[string]int{}
	for i, mood := range []string{"refused", "greylisted", "slow", "cut", "cut", ""} {
		server.set(mood)
		mismatch(t, a)
		a.Await("a try in the mood "+mood, func() bool { talks, _, _ := server.seen(); return talks > 0 })
		bad := mood != "slow" && mood != ""
		if bad {
			a.Await("the try to be given up", func() bool { return mailsIn(t, a, "ambiguous") == 1 })
		}
		server.set("")
		a.Sim.Advance(2 * time.Hour)
		a.Await("the mail to arrive", func() bool { return mailsIn(t, a, "delivered") == i+1 })
		_, _, kept := server.seen()
		for id, n := range kept {
			want := 1
			if mood == "cut" {
				want = 2
			}
			if _, old := copies[id]; !old && n != want {
				t.Errorf("in the mood %q the mail %s came %d times, want %d", mood, id, n, want)
			} else if old && copies[id] != n {
				t.Errorf("the mail %s came again in the mood %q", id, mood)
			}
			copies[id] = n
		}
		if len(copies) != i+1 {
			t.Errorf("after the mood %q %d mails have come, want %d", mood, len(copies), i+1)
		}
	}
}

// TestWithoutSTARTTLSTheAuditorsMailWaits: whoever takes the offer of STARTTLS away
// learns nothing, and the mail is tried until the offer is back.
func TestWithoutSTARTTLSTheAuditorsMailWaits(t *testing.T) {
	t.Parallel()
	server := newMoody(t)
	a := apptest.OpenShop(t, apptest.Options{Settings: map[string]string{
		"TALLYSTICK_SMTP_URL": "smtp://0.0.0.0:" + server.port(), "TALLYSTICK_MAIL_TO": "billing@example.com", "TALLYSTICK_MAIL_COOLDOWN": "0s",
	}})
	mismatch(t, a)
	for tries := range 3 {
		a.Await("a try", func() bool { talks, _, _ := server.seen(); return talks > tries && mailsIn(t, a, "ambiguous") == 1 })
		a.Sim.Advance(2 * time.Hour)
	}
	if _, letters, kept := server.seen(); letters != 0 || len(kept) != 0 {
		t.Errorf("the server was told %d senders and %d mails in the open", letters, len(kept))
	}
}

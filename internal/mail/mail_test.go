package mail_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"tallystick/internal/mail"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func now() time.Time { return start }

var letter = mail.Message{ID: "letter@example.com", To: []string{"a@example.com"}, Subject: "1.00 USD at risk", Text: "text"}

// postman is an SMTP server that answers by script and remembers what it was told.
type postman struct {
	address string // host and port, on loopback

	mu       sync.Mutex
	commands []string
	data     []string
}

// hired starts a postman who answers each verb with what the script says; "" cuts
// the connection. The verb of the end of a mail is ".", that of the greeting "".
func hired(t *testing.T, script map[string]string) *postman {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	p := &postman{address: listener.Addr().String()}
	replies := map[string]string{
		"": "220 here", "EHLO": "250 here", "HELO": "250 here", "NOOP": "250 ok", "RSET": "250 ok", "MAIL": "250 ok", "RCPT": "250 ok",
		"DATA": "354 go on", ".": "250 taken", "QUIT": "221 bye",
	}
	for verb, reply := range script {
		replies[verb] = reply
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go p.talk(connection, replies)
		}
	}()
	return p
}

func (p *postman) talk(connection net.Conn, replies map[string]string) {
	defer func() { _ = connection.Close() }()
	lines := bufio.NewScanner(connection)
	for verb, inData := "", false; ; {
		if !inData || verb == "." {
			reply, known := replies[verb]
			if !known {
				reply = "502 what"
			}
			if reply == "" {
				return
			}
			if _, err := connection.Write([]byte(reply + "\r\n")); err != nil || verb == "QUIT" {
				return
			}
			inData = strings.HasPrefix(reply, "354")
		}
		if !lines.Scan() {
			return
		}
		verb = p.hear(lines.Text(), inData)
	}
}

func (p *postman) hear(line string, inData bool) (verb string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if inData && line != "." {
		p.data = append(p.data, line)
		return ""
	}
	p.commands = append(p.commands, line)
	verb, _, _ = strings.Cut(line, " ")
	return strings.ToUpper(verb)
}

func (p *postman) heard() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.commands, "\n")
}

func sender(t *testing.T, address string) *mail.Sender {
	t.Helper()
	s, err := mail.NewSender(address, "tallystick@example.com", now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAddressesOfServers(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "smtp://", "mail.example.com:25", "smtp://:25", "smtp://\x00", "smtp://host:port"} {
		if _, err := mail.NewSender(address, "a@example.com", now); err == nil {
			t.Errorf("%q was taken", address)
		}
	}
	for _, address := range []string{"smtp://u:canary@%zz", "smtp://u:canary@host:x"} {
		if _, err := mail.NewSender(address, "a@example.com", now); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("the refusal of an address shows its password: %v", err)
		}
	}
}

// TestI02WhatARefusalMeans goes through each place at which a server can refuse.
// For good is only what it says of this mail: what it says of us, such as of our
// password, an operator will mend, and the mail must wait for that.
func TestI02WhatARefusalMeans(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		script map[string]string
		user   string
		final  bool
	}{
		{"sender refused", map[string]string{"MAIL": "550 no"}, "", true},
		{"recipient unknown", map[string]string{"RCPT": "550 5.1.1 no such user"}, "", true},
		{"data refused", map[string]string{"DATA": "554 no"}, "", true},
		{"content refused", map[string]string{".": "552 too large"}, "", true},
		{"sender for now", map[string]string{"MAIL": "451 later"}, "", false},
		{"recipient greylisted", map[string]string{"RCPT": "450 4.2.0 later"}, "", false},
		{"data for now", map[string]string{"DATA": "421 later"}, "", false},
		{"content for now", map[string]string{".": "452 later"}, "", false},
		{"greeted with no", map[string]string{"": "554 no service"}, "", false},
		{"greeted with later", map[string]string{"": "421 later"}, "", false},
		{"no hello", map[string]string{"EHLO": "550 no", "HELO": "550 no"}, "", false},
		{"wrong password", map[string]string{"EHLO": "250-here\r\n250 AUTH CRAM-MD5", "AUTH": "535 wrong"}, "user:canary@", false},
		{"cut at once", map[string]string{"": ""}, "", false},
		{"cut before the recipient", map[string]string{"RCPT": ""}, "", false},
		{"cut before the data", map[string]string{"DATA": ""}, "", false},
		{"cut after the data", map[string]string{".": ""}, "", false},
		{"nonsense after the data", map[string]string{".": "what"}, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := hired(t, tc.script)
			err := sender(t, "smtp://"+tc.user+p.address).Send(t.Context(), letter)
			var final *mail.PermanentError
			if err == nil || errors.As(err, &final) != tc.final {
				t.Errorf("%v, want it for good: %v; said was\n%s", err, tc.final, p.heard())
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("the error shows the password: %v", err)
			}
			if tc.user != "" && !strings.Contains(p.heard(), "AUTH") {
				t.Errorf("the password was not tried: %v", err)
			}
		})
	}
	if err := sender(t, "smtp://127.0.0.1:1").Send(t.Context(), letter); err == nil || errors.As(err, new(*mail.PermanentError)) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestATakenMailIsTakenWhateverComesBehind: sending it again would make a copy
// every time, for as long as the server ends its sessions so.
func TestATakenMailIsTakenWhateverComesBehind(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]map[string]string{
		"cut at RSET": {"RSET": ""}, "refused RSET": {"RSET": "502 what"}, "cut at QUIT": {"QUIT": ""}, "refused QUIT": {"QUIT": "500 what"}, "well ended": {},
	} {
		p := hired(t, script)
		if err := sender(t, "smtp://"+p.address).Send(t.Context(), letter); err != nil {
			t.Errorf("%s: %v, although the mail was taken; said was\n%s", name, err, p.heard())
		}
	}
}

// TestI01NoHeaderIsInjected looks at what reaches the server, too.
func TestI01NoHeaderIsInjected(t *testing.T) {
	t.Parallel()
	p := hired(t, nil)
	for name, change := range map[string]func(*mail.Message, string){
		"subject":         func(m *mail.Message, bad string) { m.Subject = "x" + bad },
		"recipient":       func(m *mail.Message, bad string) { m.To = []string{"a@example.com" + bad} },
		"recipient name":  func(m *mail.Message, bad string) { m.To = []string{`"x` + bad + `" <a@example.com>`} },
		"second":          func(m *mail.Message, bad string) { m.To = []string{"a@example.com", "b@example.com" + bad} },
		"message id":      func(m *mail.Message, bad string) { m.ID = "x" + bad },
		"in reply to":     func(m *mail.Message, bad string) { m.InReplyTo = "x" + bad },
		"attachment name": func(m *mail.Message, bad string) { m.Attachments = []mail.Attachment{{Name: "x" + bad}} },
		"attachment type": func(m *mail.Message, bad string) {
			m.Attachments = []mail.Attachment{{Name: "x", ContentType: "text/csv" + bad}}
		},
	} {
		for _, bad := range []string{"\r\nBcc: evil@example.com", "\nBcc: evil@example.com", "\rBcc: evil@example.com", "\x00"} {
			m := letter
			change(&m, bad)
			var final *mail.PermanentError
			if err := sender(t, "smtp://"+p.address).Send(t.Context(), m); !errors.As(err, &final) {
				t.Errorf("%q in the %s: %v, want it refused for good", bad, name, err)
			}
		}
	}
	s, err := mail.NewSender("smtp://"+p.address, "a@example.com\r\nBcc: evil@example.com", now)
	if err == nil {
		err = s.Send(t.Context(), letter)
	}
	if err == nil {
		t.Error("a line break in the sender was taken")
	}
	if heard := p.heard(); strings.Contains(heard, "MAIL") {
		t.Errorf("a mail that holds a line break in a header reached the server:\n%s", heard)
	}
}

// picky is an SMTP server that refuses addresses by what they begin with.
func picky(t *testing.T) (address string, got func() map[string]int) {
	t.Helper()
	var mu sync.Mutex
	mails := map[string]int{}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		return &pickySession{got: func(to string) {
			mu.Lock()
			defer mu.Unlock()
			mails[to]++
		}}, nil
	}))
	server.Domain, server.ErrorLog = "localhost", discard{}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return listener.Addr().String(), func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(mails)
	}
}

type pickySession struct {
	to  []string
	got func(to string)
}

func (s *pickySession) Reset() { s.to = nil }

func (s *pickySession) Logout() error { return nil }

func (s *pickySession) Mail(string, *smtp.MailOptions) error { return nil }

func (s *pickySession) Rcpt(to string, _ *smtp.RcptOptions) error {
	switch {
	case strings.HasPrefix(to, "gone"):
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	case strings.HasPrefix(to, "later"):
		return &smtp.SMTPError{Code: 450, EnhancedCode: smtp.EnhancedCode{4, 2, 0}, Message: "greylisted"}
	}
	s.to = append(s.to, to)
	return nil
}

func (s *pickySession) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	for _, to := range s.to {
		s.got(to)
	}
	return err
}

// TestI02OneBadRecipientDoesNotKeepAMailFromTheOthers has each mix of recipients.
func TestI02OneBadRecipientDoesNotKeepAMailFromTheOthers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		to             []string
		refused, later int
		final          bool
		got            int
	}{
		{[]string{"a@x.org", "b@x.org"}, 0, 0, false, 2},
		{[]string{"gone@x.org", "b@x.org", "c@x.org"}, 1, 0, false, 2},
		{[]string{"a@x.org", "later@x.org"}, 0, 1, false, 1},
		{[]string{"gone@x.org", "later@x.org", "c@x.org"}, 1, 1, false, 1},
		{[]string{"gone@x.org", "later@x.org"}, 1, 1, false, 0},
		{[]string{"gone1@x.org", "gone2@x.org"}, 0, 0, true, 0},
	} {
		address, got := picky(t)
		m := letter
		m.To = tc.to
		err := sender(t, "smtp://"+address).Send(t.Context(), m)
		var some *mail.RecipientsError
		if errors.As(err, &some) != (tc.refused+tc.later > 0) || errors.As(err, new(*mail.PermanentError)) && some == nil != tc.final {
			t.Errorf("%v: %v", tc.to, err)
		}
		if some != nil && (len(some.Refused) != tc.refused || len(some.Later) != tc.later) {
			t.Errorf("%v: refused %v, later %v", tc.to, some.Refused, some.Later)
		}
		if mails := got(); len(mails) != tc.got {
			t.Errorf("%v: the mail came to %v, want %d", tc.to, mails, tc.got)
		}
		for to, n := range got() {
			if n != 1 {
				t.Errorf("%v: %s got it %d times", tc.to, to, n)
			}
		}
	}
}

// TestAHangingServerDoesNotHoldUpTheEnd stops while a server says nothing.
func TestAHangingServerDoesNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		connection, err := listener.Accept()
		if err == nil {
			stop()
			<-t.Context().Done()
			_ = connection.Close()
		}
	}()
	err = sender(t, "smtp://"+listener.Addr().String()).Send(ctx, letter)
	if !errors.Is(err, context.Canceled) || errors.As(err, new(*mail.PermanentError)) { // the server alone would end it by its own time-out
		t.Errorf("it says %v", err)
	}
}

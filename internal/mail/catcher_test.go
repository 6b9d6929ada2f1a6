package mail_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tallystick/internal/mail"
)

func caught(t *testing.T, dir string) (*mail.Catcher, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := mail.NewCatcher(listener, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	pages := httptest.NewServer(c.Handler())
	t.Cleanup(pages.Close)
	return c, pages.URL
}

type page struct {
	status int
	header http.Header
	body   string
}

func get(t *testing.T, method, url string) page {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return page{response.StatusCode, response.Header, string(body)}
}

func send(t *testing.T, c *mail.Catcher, m mail.Message) {
	t.Helper()
	if err := sender(t, c.Address()).Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// whole is a mail with everything that could suffer on the way.
var whole = mail.Message{
	ID: "second@example.com", To: []string{"a@example.com", "Béla <b@example.com>"}, Subject: "Größe: 1.00 USD at risk, " + strings.Repeat("long ", 40),
	Text: "line\n.\n..dots\nFrom here\n" + strings.Repeat("x", 2000) + "\nend €", HTML: "<p>é " + strings.Repeat("y", 2000) + "</p>\n.\n",
	InReplyTo:   "first@example.com",
	Attachments: []mail.Attachment{{Name: "findings.csv", ContentType: "text/csv", Content: []byte("a,b\r\n1,\"x\ny\"\n\x00\xff.\r\n.\r\n")}},
}

func TestAMailArrivesWhole(t *testing.T) {
	t.Parallel()
	c, url := caught(t, "")
	send(t, c, whole)
	mails := c.Messages()
	if len(mails) != 1 {
		t.Fatalf("%d mails were caught", len(mails))
	}
	m := mails[0]
	want := mail.Caught{
		ID: "1", MessageID: whole.ID, From: "<tallystick@example.com>", To: []string{"a@example.com", "b@example.com"}, Subject: strings.TrimSpace(whole.Subject), Date: start,
		Text: whole.Text, HTML: whole.HTML, Attachments: []string{"findings.csv"},
	}
	got := mail.Caught{
		ID: m.ID, MessageID: m.MessageID, From: m.From, To: m.To, Subject: strings.TrimSpace(m.Subject), Date: m.Date,
		Text: strings.ReplaceAll(m.Text, "\r\n", "\n"), HTML: strings.ReplaceAll(m.HTML, "\r\n", "\n"), Attachments: m.Attachments,
	}
	if diff := cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got)); diff != "" {
		t.Errorf("caught was (-want +got):\n%s", diff)
	}
	file := get(t, http.MethodGet, url+"/mail/1/attachments/findings.csv")
	if file.body != string(whole.Attachments[0].Content) || file.header.Get("Content-Disposition") != "attachment" {
		t.Errorf("the attachment is %q, %v", file.body, file.header)
	}
	source := get(t, http.MethodGet, url+"/mail/1/source").body
	for _, header := range []string{
		"Message-ID: <second@example.com>", "In-Reply-To: <first@example.com>", "References: <first@example.com>", "Auto-Submitted: auto-generated",
		"Date: Sun, 01 Mar 2026 12:00:00 +0000", "multipart/mixed", "multipart/alternative", `text/csv`,
	} {
		if !strings.Contains(source, header) {
			t.Errorf("the source has not %s:\n%.1500s", header, source)
		}
	}
	for line := range strings.SplitSeq(source, "\r\n") {
		if len(line) > 998 {
			t.Errorf("a line has %d bytes, at most 998 are allowed: %.60s", len(line), line)
		}
	}
}

func TestTheSameMailSentAgainHasTheSameMessageID(t *testing.T) {
	t.Parallel()
	c, _ := caught(t, "")
	for range 2 {
		send(t, c, letter)
	}
	mails := c.Messages()
	if len(mails) != 2 || mails[0].MessageID != "letter@example.com" || mails[1].MessageID != "letter@example.com" {
		t.Errorf("caught were %+v", mails)
	}
}

// TestH03PagesEscapeWhatMailsContain has markup in every place of a mail.
func TestH03PagesEscapeWhatMailsContain(t *testing.T) {
	t.Parallel()
	c, url := caught(t, "")
	const evil = `<script>alert(1)</script>"'><img src=x onerror=alert(1)>`
	send(t, c, mail.Message{
		ID: "x@example.com", To: []string{`"<b>x</b>" <a@example.com>`}, Subject: evil, Text: "</pre>" + evil, HTML: "<p>" + evil + "</p>",
		Attachments: []mail.Attachment{{Name: `"><script>alert(2)</script>.csv`, ContentType: "text/csv", Content: []byte("x")}},
	})
	for _, path := range []string{"/", "/mail/1"} {
		p := get(t, http.MethodGet, url+path)
		for _, bad := range []string{"<script", "<img", "<b>x", "</pre><script", `""`} {
			if strings.Contains(p.body, bad) {
				t.Errorf("%s holds %s:\n%s", path, bad, p.body)
			}
		}
		if !strings.Contains(p.body, "&lt;script&gt;alert(1)") {
			t.Errorf("%s does not show the subject:\n%s", path, p.body)
		}
		if policy := p.header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "script-src") {
			t.Errorf("%s has the policy %q", path, policy)
		}
	}
	html := get(t, http.MethodGet, url+"/mail/1/html")
	if policy := html.header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "sandbox") || strings.Contains(policy, "allow-scripts") {
		t.Errorf("the mail's own HTML is shown with the policy %q", policy)
	}
	source := get(t, http.MethodGet, url+"/mail/1/source")
	if source.header.Get("Content-Type") != "text/plain; charset=utf-8" || source.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("the source is shown as %v", source.header)
	}
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	t.Parallel()
	c, url := caught(t, "")
	send(t, c, letter)
	for _, path := range []string{"/mail/2", "/mail/0", "/mail/x", "/messages/2", "/mail/1/attachments/x", "/mail/2/html", "/mail/2/source", "/x"} {
		if p := get(t, http.MethodGet, url+path); p.status != http.StatusNotFound {
			t.Errorf("%s was answered %d", path, p.status)
		}
	}
}

func TestMailsAreListedAndKeptOverARestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "mails")
	first, _ := caught(t, dir)
	for i := range 11 { // as many as sort otherwise by name than by number
		m := letter
		m.ID, m.Subject = fmt.Sprintf("%d@example.com", i), fmt.Sprint("subject ", i)
		send(t, first, m)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mail-x.eml"), []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	second, url := caught(t, dir)
	m := letter
	m.Subject = "subject 11"
	send(t, second, m)
	var listed []struct{ ID, Subject string }
	if err := json.Unmarshal([]byte(get(t, http.MethodGet, url+"/messages").body), &listed); err != nil {
		t.Fatal(err)
	}
	if len(listed) != 12 {
		t.Fatalf("%d mails are listed, want 12", len(listed))
	}
	for i, l := range listed {
		if l.ID != fmt.Sprint(i+1) || l.Subject != fmt.Sprint("subject ", i) {
			t.Errorf("mail %d is %+v", i, l)
		}
	}
	if p := get(t, http.MethodDelete, url+"/messages"); p.status != http.StatusNoContent {
		t.Errorf("deleting was answered %d", p.status)
	}
	if third, _ := caught(t, dir); len(third.Messages()) != 0 || len(second.Messages()) != 0 {
		t.Error("deleted mails are back after a restart")
	}
}

func TestThePagesEndWithTheirContext(t *testing.T) {
	t.Parallel()
	c, _ := caught(t, "")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Serve(ctx, listener) }()
	if p := get(t, http.MethodGet, "http://"+listener.Addr().String()+"/"); p.status != http.StatusOK || !strings.Contains(p.body, "No mail yet") {
		t.Errorf("the page was answered %d: %s", p.status, p.body)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("served until %v", err)
	}
}

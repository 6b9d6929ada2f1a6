package mail

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/jhillyerd/enmime/v2"
)

// Bounds of the catcher.
const (
	caughtSizeMax = 16 << 20
	caughtMax     = 10_000
)

//go:embed catcher.html message.html catcher.css
var catcherFiles embed.FS

var catcherPages = template.Must(template.ParseFS(catcherFiles, "catcher.html", "message.html"))

// Caught is a mail that was caught.
type Caught struct {
	ID          string    `json:"id"`
	MessageID   string    `json:"message_id"`
	InReplyTo   string    `json:"in_reply_to"` // Message-ID of the mail that began the thread
	From        string    `json:"from"`
	To          []string  `json:"to"`
	Subject     string    `json:"subject"`
	Date        time.Time `json:"date"`
	Text        string    `json:"text"`
	HTML        string    `json:"html"`
	Attachments []string  `json:"attachments"`
	source      []byte
	files       map[string][]byte
}

// Catcher is an SMTP server that delivers nothing and shows what it was given.
type Catcher struct {
	dir    string
	server *smtp.Server
	smtp   net.Listener

	mu   sync.Mutex
	next int
	mail []*Caught
}

// NewCatcher catches mails on the listener until Close. With a directory it keeps
// them over restarts.
func NewCatcher(listener net.Listener, dir string) (*Catcher, error) {
	c := &Catcher{dir: dir, smtp: listener, next: 1}
	if err := c.load(); err != nil {
		return nil, err
	}
	c.server = smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &session{c: c}, nil }))
	c.server.Domain = "localhost"
	c.server.MaxMessageBytes = caughtSizeMax
	c.server.ReadTimeout, c.server.WriteTimeout = time.Minute, time.Minute
	go func() { _ = c.server.Serve(listener) }()
	return c, nil
}

// Address is where the catcher takes mails, for a Sender.
func (c *Catcher) Address() string { return "smtp://" + c.smtp.Addr().String() }

// Close ends the SMTP server.
func (c *Catcher) Close() error { return c.server.Close() }

// Messages gives what was caught, oldest first.
func (c *Catcher) Messages() []Caught {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Caught, len(c.mail))
	for i, m := range c.mail {
		all[i] = *m
	}
	return all
}

// session is one SMTP conversation.
type session struct {
	c    *Catcher
	from string
	to   []string
}

// Mail takes the sender.
func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

// Rcpt takes a recipient.
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.to = append(s.to, to)
	return nil
}

// Data takes the mail.
func (s *session) Data(r io.Reader) error {
	source, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return s.c.keep(s.from, s.to, source)
}

// Reset forgets the conversation.
func (s *session) Reset() { s.from, s.to = "", nil }

// Logout ends the conversation.
func (s *session) Logout() error { return nil }

func (c *Catcher) keep(from string, to []string, source []byte) error {
	m, err := parse(source)
	if err != nil {
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: "the mail cannot be read"}
	}
	m.From, m.To = cmp.Or(m.From, from), to
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.mail) >= caughtMax {
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 2, 2}, Message: "the catcher is full; delete some mails"}
	}
	m.ID = strconv.Itoa(c.next)
	c.next++
	if c.dir != "" {
		if err := os.WriteFile(c.file(m.ID), source, 0o600); err != nil {
			return fmt.Errorf("keep the mail: %w", err)
		}
	}
	c.mail = append(c.mail, m)
	return nil
}

func (c *Catcher) file(id string) string { return filepath.Join(c.dir, "mail-"+id+".eml") }

func (c *Catcher) load() error {
	if c.dir == "" {
		return nil
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make the catcher's directory: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(c.dir, "mail-*.eml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "mail-"), ".eml"))
		if err != nil {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read a caught mail: %w", err)
		}
		m, err := parse(source)
		if err != nil {
			continue // cut off by a crash: it was never acknowledged
		}
		m.ID = strconv.Itoa(n)
		c.next = max(c.next, n+1)
		c.mail = append(c.mail, m)
	}
	slices.SortFunc(c.mail, func(a, b *Caught) int {
		x, _ := strconv.Atoi(a.ID)
		y, _ := strconv.Atoi(b.ID)
		return x - y
	})
	return nil
}

func parse(source []byte) (*Caught, error) {
	e, err := enmime.ReadEnvelope(bytes.NewReader(source))
	if err != nil {
		return nil, fmt.Errorf("parse the mail: %w", err)
	}
	m := &Caught{
		MessageID: strings.Trim(e.GetHeader("Message-Id"), "<>"), InReplyTo: strings.Trim(e.GetHeader("In-Reply-To"), "<>"), From: e.GetHeader("From"), Subject: e.GetHeader("Subject"), Text: e.Text, HTML: e.HTML,
		To: strings.Split(e.GetHeader("To"), ", "), Attachments: []string{}, files: map[string][]byte{}, source: source,
	}
	if m.Date, err = e.Date(); err == nil {
		m.Date = m.Date.UTC()
	}
	for _, a := range e.Attachments {
		m.Attachments = append(m.Attachments, a.FileName)
		m.files[a.FileName] = a.Content
	}
	return m, nil
}

// Handler shows the mails: pages for people, JSON for programs.
func (c *Catcher) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		all := c.Messages()
		slices.Reverse(all)
		c.page(w, "catcher.html", all)
	})
	mux.HandleFunc("GET /catcher.css", func(w http.ResponseWriter, _ *http.Request) {
		css, _ := catcherFiles.ReadFile("catcher.css") // embedded
		w.Header().Set("Content-Type", "text/css; charset=utf-8")
		_, _ = w.Write(css)
	})
	mux.HandleFunc("GET /mail/{id}", c.one(func(w http.ResponseWriter, m *Caught) { c.page(w, "message.html", m) }))
	mux.HandleFunc("GET /mail/{id}/html", c.one(func(w http.ResponseWriter, m *Caught) {
		// A mail is somebody else's HTML: no scripts, nothing from elsewhere.
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, m.HTML)
	}))
	mux.HandleFunc("GET /mail/{id}/source", c.one(func(w http.ResponseWriter, m *Caught) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff") // it may look like HTML
		_, _ = w.Write(m.source)
	}))
	mux.HandleFunc("GET /mail/{id}/attachments/{name}", func(w http.ResponseWriter, r *http.Request) {
		c.one(func(w http.ResponseWriter, m *Caught) {
			content, ok := m.files[r.PathValue("name")]
			if !ok {
				http.Error(w, "there is no such attachment", http.StatusNotFound)
				return
			}
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Content-Disposition", "attachment")
			_, _ = w.Write(content)
		})(w, r)
	})
	mux.HandleFunc("GET /messages", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.Messages()) })
	mux.HandleFunc("GET /messages/{id}", c.one(func(w http.ResponseWriter, m *Caught) { answer(w, m) }))
	mux.HandleFunc("DELETE /messages", func(w http.ResponseWriter, _ *http.Request) {
		if err := c.clear(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func (c *Catcher) clear() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, m := range c.mail {
		if c.dir != "" {
			errs = append(errs, os.Remove(c.file(m.ID)))
		}
	}
	c.mail = nil
	return errors.Join(errs...)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

func (c *Catcher) one(show func(http.ResponseWriter, *Caught)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		all := c.Messages()
		i := slices.IndexFunc(all, func(m Caught) bool { return m.ID == r.PathValue("id") })
		if i < 0 {
			http.Error(w, "there is no such mail", http.StatusNotFound)
			return
		}
		show(w, &all[i])
	}
}

func (c *Catcher) page(w http.ResponseWriter, name string, data any) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; frame-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := catcherPages.ExecuteTemplate(w, name, data); err != nil {
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
	}
}

// Serve shows the mails on a listener until ctx ends.
func (c *Catcher) Serve(ctx context.Context, listener net.Listener) error {
	s := &http.Server{Handler: c.Handler(), ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the mail catcher: %w", err)
	}
	return nil
}

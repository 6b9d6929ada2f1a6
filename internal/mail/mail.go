// Package mail sends mails by SMTP and, for development, catches them.
package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// Bounds of one delivery.
const (
	sendTime  = 30 * time.Second // connection included
	stopGrace = 3 * time.Second  // for a server that is answering, once the caller's context has ended
)

// Attachment is a file of a mail.
type Attachment struct {
	Name        string `json:"name"`
	ContentType string `json:"content_type"`
	Content     []byte `json:"content"`
}

// Message is a mail. The ID stays the same however often it is sent, so that a
// mail server or reader can drop the second copy of one.
type Message struct {
	ID          string // without angle brackets
	To          []string
	Subject     string
	Text        string
	HTML        string
	InReplyTo   string // Message-ID of the mail that began the thread, "" for none
	Attachments []Attachment
}

// PermanentError says that sending again will not help.
type PermanentError struct{ Err error }

// Error gives the server's answer.
func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *PermanentError) Unwrap() error { return e.Err }

// RecipientsError says that some recipients did not get the mail, and others did.
type RecipientsError struct {
	Refused []string // never will
	Later   []string // may or may not have got it
	Err     error
}

// Error gives the server's answers.
func (e *RecipientsError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *RecipientsError) Unwrap() error { return e.Err }

// Sender sends mails to one SMTP server.
type Sender struct {
	host, user, password string
	port                 int
	tls                  string // "implicit", "starttls" or "none"
	from                 string
	now                  func() time.Time
}

// NewSender reads an address such as smtps://user:password@host:465 (TLS from
// the start) or smtp://host:587 (STARTTLS, required unless the host is loopback).
func NewSender(address, from string, now func() time.Time) (*Sender, error) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return nil, errors.New("the SMTP address is no smtp:// or smtps:// URL")
	}
	s := &Sender{host: u.Hostname(), port: 587, tls: "starttls", from: from, now: now}
	if u.User != nil {
		s.user = u.User.Username()
		s.password, _ = u.User.Password()
	}
	if u.Scheme == "smtps" {
		s.port, s.tls = 465, "implicit"
	} else if ip := net.ParseIP(s.host); s.host == "localhost" || (ip != nil && ip.IsLoopback()) {
		s.tls = "none"
	}
	if text := u.Port(); text != "" {
		if s.port, err = strconv.Atoi(text); err != nil {
			return nil, errors.New("the SMTP address names no port")
		}
	}
	return s, nil
}

// Send hands a mail to the server. A *PermanentError says that it never will be
// taken, a *RecipientsError that some recipients have it; after any other error it
// may or may not have been taken. A server that hangs is left alone soon after ctx
// has ended.
func (s *Sender) Send(ctx context.Context, m Message) error {
	err := s.sendTo(ctx, m)
	var refused *gomail.SendError
	if err == nil || len(m.To) < 2 || !errors.As(err, &refused) || refused.Reason != gomail.ErrSMTPRcptTo {
		return err
	}
	return s.sendEach(ctx, m) // nobody got it: the session was reset
}

// sendEach sends a mail to each recipient alone, so that one bad address does not
// keep it from the others.
func (s *Sender) sendEach(ctx context.Context, m Message) error {
	some := &RecipientsError{}
	var errs []error
	for _, to := range m.To {
		one := m
		one.To = []string{to}
		err := s.sendTo(ctx, one)
		var permanent *PermanentError
		switch {
		case err == nil:
			continue
		case errors.As(err, &permanent):
			some.Refused = append(some.Refused, to)
		default:
			some.Later = append(some.Later, to)
		}
		errs = append(errs, fmt.Errorf("%s: %w", to, err))
	}
	some.Err = errors.Join(errs...)
	switch {
	case len(errs) == 0:
		return nil
	case len(some.Refused) == len(m.To):
		return &PermanentError{Err: some.Err}
	}
	return some
}

// sendTo is one session with the server.
func (s *Sender) sendTo(ctx context.Context, m Message) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	message, err := s.compose(m)
	if err != nil {
		return &PermanentError{Err: err}
	}
	client, err := gomail.NewClient(s.host, s.options()...)
	if err != nil {
		return fmt.Errorf("set the SMTP client up: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- client.DialAndSendWithContext(ctx, message) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		grace := time.NewTimer(stopGrace)
		defer grace.Stop()
		select {
		case err = <-done:
		case <-grace.C:
			return fmt.Errorf("the server does not answer: %w", ctx.Err())
		}
	}
	if err == nil || message.IsDelivered() { // how a server ends its session is no matter of the mail
		return nil
	}
	return classify(err)
}

func (s *Sender) options() []gomail.Option {
	options := []gomail.Option{gomail.WithPort(s.port), gomail.WithTimeout(sendTime), gomail.WithHELO("tallystick.localdomain")}
	switch s.tls {
	case "implicit":
		options = append(options, gomail.WithSSL())
	case "starttls":
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	default:
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	}
	if s.tls != "none" {
		options = append(options, gomail.WithTLSConfig(&tls.Config{ServerName: s.host, MinVersion: tls.VersionTLS12}))
	}
	if s.user != "" {
		options = append(options, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover), gomail.WithUsername(s.user), gomail.WithPassword(s.password))
	}
	return options
}

// classify finds a 5xx answer about the mail, which is final. Not so 4xx and cut
// connections, nor what a server refuses before it hears of the mail: a password
// or a service is mended, and the mail must still be there then.
func classify(err error) error {
	var refused *gomail.SendError
	if !errors.As(err, &refused) || refused.ErrorCode() < 500 {
		return err
	}
	switch refused.Reason {
	case gomail.ErrSMTPMailFrom, gomail.ErrSMTPRcptTo, gomail.ErrSMTPData, gomail.ErrSMTPDataClose:
		return &PermanentError{Err: err}
	default:
		return err
	}
}

// compose refuses line breaks in what becomes a header: they would start another.
func (s *Sender) compose(m Message) (*gomail.Msg, error) {
	headers := append([]string{m.ID, m.Subject, m.InReplyTo, s.from}, m.To...)
	for _, a := range m.Attachments {
		headers = append(headers, a.Name, a.ContentType)
	}
	for _, header := range headers {
		if strings.ContainsAny(header, "\r\n\x00") {
			return nil, errors.New("a header of the mail holds a line break")
		}
	}
	message := gomail.NewMsg()
	if err := message.From(s.from); err != nil {
		return nil, fmt.Errorf("sender: %w", err)
	}
	if err := message.To(m.To...); err != nil {
		return nil, fmt.Errorf("recipient: %w", err)
	}
	message.Subject(m.Subject)
	message.SetDateWithValue(s.now())
	message.SetMessageIDWithValue(m.ID)
	message.SetGenHeader("Auto-Submitted", "auto-generated") // keeps vacation replies away
	if m.InReplyTo != "" {
		message.SetGenHeader(gomail.HeaderInReplyTo, "<"+m.InReplyTo+">")
		message.SetGenHeader(gomail.HeaderReferences, "<"+m.InReplyTo+">")
	}
	message.SetBodyString(gomail.TypeTextPlain, m.Text)
	if m.HTML != "" {
		message.AddAlternativeString(gomail.TypeTextHTML, m.HTML)
	}
	for _, a := range m.Attachments {
		err := message.AttachReader(a.Name, strings.NewReader(string(a.Content)), gomail.WithFileContentType(gomail.ContentType(a.ContentType)))
		if err != nil {
			return nil, fmt.Errorf("attach %s: %w", a.Name, err)
		}
	}
	return message, nil
}

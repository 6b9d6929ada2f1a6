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

// sendTime bounds one delivery, connection included.
const sendTime = 30 * time.Second

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
// taken; after any other error it may or may not have been.
func (s *Sender) Send(ctx context.Context, m Message) error {
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
	err = client.DialAndSendWithContext(ctx, message)
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

package mail_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/emersion/go-smtp"

	"tallystick/internal/mail"
)

// elsewhere is the address of a server of this machine by which it is none of
// loopback's names: Linux takes it for itself.
func elsewhere(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return "0.0.0.0:" + port
}

// TestI05WithoutSTARTTLSNothingIsSaid: a server that does not offer it, or from
// whose offer somebody in between has taken it, learns neither mail nor password.
func TestI05WithoutSTARTTLSNothingIsSaid(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"", "user:canary@"} {
		p := hired(t, map[string]string{"EHLO": "250-here\r\n250 AUTH PLAIN LOGIN", "AUTH": "235 fine"})
		err := sender(t, "smtp://"+user+elsewhere(p.address)).Send(t.Context(), letter)
		if err == nil || errors.As(err, new(*mail.PermanentError)) {
			t.Errorf("%v, want an error that passes", err)
		}
		if heard := p.heard(); strings.Contains(heard, "MAIL") || strings.Contains(heard, "AUTH") || !strings.Contains(heard, "EHLO") {
			t.Errorf("the server was told\n%s", heard)
		}
		if err := sender(t, "smtp://"+p.address).Send(t.Context(), letter); err != nil {
			t.Errorf("on loopback, where nobody is in between: %v", err)
		}
	}
}

// impostor is an SMTP server whose certificate nobody has signed.
func impostor(t *testing.T, implicit bool) (address string, mails *atomic.Int64) {
	t.Helper()
	signer := httptest.NewTLSServer(nil)
	certificates := signer.TLS.Certificates
	signer.Close()
	mails = &atomic.Int64{}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return counted{mails}, nil }))
	server.Domain = "localhost"
	server.TLSConfig = &tls.Config{Certificates: certificates}
	server.ErrorLog = discard{}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = listener.Addr().String()
	if implicit {
		listener = tls.NewListener(listener, server.TLSConfig)
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return address, mails
}

type discard struct{}

func (discard) Printf(string, ...any) {}
func (discard) Println(...any)        {}

type counted struct{ mails *atomic.Int64 }

func (c counted) Mail(string, *smtp.MailOptions) error {
	c.mails.Add(1)
	return nil
}
func (c counted) Rcpt(string, *smtp.RcptOptions) error { return nil }

func (c counted) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}
func (c counted) Reset()        {}
func (c counted) Logout() error { return nil }

func TestACertificateThatNobodySignedIsRefused(t *testing.T) {
	t.Parallel()
	for _, implicit := range []bool{false, true} {
		address, mails := impostor(t, implicit)
		target := "smtp://" + elsewhere(address)
		if implicit {
			target = "smtps://" + address
		}
		err := sender(t, target).Send(t.Context(), letter)
		if err == nil || !strings.Contains(err.Error(), "certificate") || errors.As(err, new(*mail.PermanentError)) {
			t.Errorf("%s: %v, want an error about the certificate that passes", target, err)
		}
		if n := mails.Load(); n != 0 {
			t.Errorf("%s: the impostor got %d mails", target, n)
		}
	}
}

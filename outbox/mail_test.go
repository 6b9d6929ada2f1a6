package outbox_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"

	"tallystick/internal/mail"
	"tallystick/outbox"
)

var letter = mail.Message{
	ID: "letter@example.com", To: []string{"a@example.com", "b@example.com"}, Subject: "1.00 USD at risk", Text: "text", HTML: "<p>html</p>",
	InReplyTo: "first@example.com", Attachments: []mail.Attachment{{Name: "findings.csv", ContentType: "text/csv", Content: []byte("a,b\r\n\x00\xff")}},
}

func (d *desk) stageMail(id string, m mail.Message) {
	d.t.Helper()
	d.tx(func(tx *sqlx.Tx) error { return outbox.StageMail(d.t.Context(), tx, d.clock(), id, m) })
}

func (d *desk) mailStep() {
	d.t.Helper()
	if _, err := d.MailStep(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
}

func TestAMailIsSentAsStagedAndOncePerCause(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.stageMail("cause", letter)
	other := letter
	other.Subject = "another"
	d.stageMail("cause", other)
	for range 3 {
		d.mailStep()
		d.pass(time.Hour)
	}
	if diff := cmp.Diff([]mail.Message{letter}, d.mails); diff != "" {
		t.Errorf("sent were (-want +got):\n%s", diff)
	}
}

func TestARefusedMailIsNotSentAgainAndAnUncertainOneIs(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		refusal error
		tries   int
	}{
		{"for good", &mail.PermanentError{Err: errors.New("550 no such user")}, 1},
		{"for now", errors.New("450 try later \xff"), 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := opened(t)
			d.refusal = tc.refusal
			d.stageMail("cause", letter)
			d.mailStep()
			d.pass(10*time.Second - time.Microsecond)
			d.mailStep()
			if n := len(d.mails); n != 1 {
				t.Errorf("%d tries before the wait was over, want 1", n)
			}
			d.pass(time.Microsecond)
			d.mailStep()
			d.pass(20 * time.Second)
			d.mailStep()
			if n := len(d.mails); n != tc.tries {
				t.Errorf("%d tries, want %d", n, tc.tries)
			}
			for _, m := range d.mails {
				if m.ID != letter.ID {
					t.Errorf("a try has the Message-ID %s", m.ID)
				}
			}
		})
	}
}

// TestI02OnlyWhoHasNotGotAMailGetsItAgain keeps one bad address from the others.
func TestI02OnlyWhoHasNotGotAMailGetsItAgain(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.stageMail("cause", letter)
	d.refusal = &mail.RecipientsError{Refused: []string{"a@example.com"}, Later: []string{"b@example.com"}, Err: errors.New("a@example.com: 550 no; b@example.com: 450 later")}
	d.mailStep()
	d.pass(time.Hour)
	d.refusal = &mail.RecipientsError{Refused: []string{"b@example.com"}, Err: errors.New("b@example.com: 550 no")}
	d.mailStep()
	d.pass(time.Hour)
	d.mailStep()
	if len(d.mails) != 2 || len(d.mails[0].To) != 2 || len(d.mails[1].To) != 1 || d.mails[1].To[0] != "b@example.com" || d.mails[1].ID != letter.ID {
		t.Errorf("sent were %+v", d.mails)
	}
}

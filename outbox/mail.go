package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/fault"
	"tallystick/internal/mail"
)

// Bounds of the delivery of mail.
const (
	mailClaimMax   = 10
	mailRetryFirst = 10 * time.Second
	mailRetryMost  = time.Hour
)

// sqlStageMail relies on mails_pkey: one cause is mailed once.
const sqlStageMail = `
	INSERT INTO mails (mail_id, message_id, recipients, subject, text_body, html_body, attachments, in_reply_to, state, attempts, next_try_at,
		error, created_at, updated_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, 'pending', 0, $9, '', $9, $9)
	ON CONFLICT (mail_id) DO NOTHING`

// StageMail keeps a mail in the transaction that causes it. The id names the
// cause: staged again, nothing happens.
func StageMail(ctx context.Context, tx *sqlx.Tx, now time.Time, id string, m mail.Message) error {
	attachments, err := json.Marshal(m.Attachments)
	if err != nil {
		return fmt.Errorf("encode attachments: %w", err)
	}
	_, err = tx.ExecContext(ctx, sqlStageMail, id, m.ID, pq.StringArray(m.To), m.Subject, m.Text, m.HTML, string(attachments), m.InReplyTo, now)
	if err != nil {
		return fmt.Errorf("stage mail %s: %w", id, err)
	}
	return nil
}

// mailRow is a mail that a step has claimed.
type mailRow struct {
	ID          string         `db:"mail_id"`
	MessageID   string         `db:"message_id"`
	To          pq.StringArray `db:"recipients"`
	Subject     string         `db:"subject"`
	Text        string         `db:"text_body"`
	HTML        string         `db:"html_body"`
	Attachments string         `db:"attachments"`
	InReplyTo   string         `db:"in_reply_to"`
	Attempts    int            `db:"attempts"`
}

// sqlClaimMails relies on the index mails_due.
const sqlClaimMails = `
	SELECT mail_id, message_id, recipients, subject, text_body, html_body, attachments, in_reply_to, attempts
	FROM mails
	WHERE state IN ('pending', 'sending', 'ambiguous') AND next_try_at <= $1
	ORDER BY next_try_at
	LIMIT $2
	FOR UPDATE SKIP LOCKED`

// sqlLeaseMails relies on mails_pkey and on the locks of sqlClaimMails.
const sqlLeaseMails = `
	UPDATE mails SET state = 'sending', attempts = attempts + 1, next_try_at = $2, updated_at = $3 WHERE mail_id = ANY ($1::text[])`

// MailStep sends the mails that are due. It may run in several processes.
func (o *Outbox) MailStep(ctx context.Context) (more bool, err error) {
	now := o.Now()
	var claimed []mailRow
	err = o.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		claimed = nil
		if err := tx.SelectContext(ctx, &claimed, sqlClaimMails, now, mailClaimMax); err != nil || len(claimed) == 0 {
			return err
		}
		ids := make(pq.StringArray, len(claimed))
		for i, m := range claimed {
			ids[i] = m.ID
		}
		_, err := tx.ExecContext(ctx, sqlLeaseMails, ids, now.Add(lease*2), now)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("claim mails: %w", err)
	}
	for _, m := range claimed {
		if ctx.Err() != nil {
			break // what is not sent yet is taken over when the lease is over
		}
		if err := o.sendMail(ctx, m); err != nil {
			return false, err
		}
	}
	return len(claimed) == mailClaimMax, nil
}

// sqlMarkMail relies on mails_pkey. Once some recipients have it, only the others are
// left to be sent to.
const sqlMarkMail = `
	UPDATE mails SET state = $2, next_try_at = $3, delivered_at = CASE WHEN $2 = 'delivered' THEN $4::timestamptz END, error = $5, updated_at = $4,
		recipients = CASE WHEN $6 THEN $7::text[] ELSE recipients END
	WHERE mail_id = $1 AND state = 'sending'`

func (o *Outbox) sendMail(ctx context.Context, row mailRow) error {
	m := mail.Message{ID: row.MessageID, To: row.To, Subject: row.Subject, Text: row.Text, HTML: row.HTML, InReplyTo: row.InReplyTo}
	if err := json.Unmarshal([]byte(row.Attachments), &m.Attachments); err != nil {
		return fmt.Errorf("read the attachments of mail %s: %w", row.ID, err)
	}
	sent := o.Mail.Send(ctx, m)
	state, reason, wait := "delivered", "", time.Duration(0)
	var permanent *mail.PermanentError
	var some *mail.RecipientsError
	switch {
	case errors.As(sent, &some):
		reason = sent.Error()
		if len(some.Later) > 0 {
			state, wait = "ambiguous", backoff(row.Attempts+1, mailRetryFirst, mailRetryMost)
		}
		o.Logger.Error("a mail was not taken for some of its recipients", slog.String("mail", row.ID), slog.Any("refused", some.Refused),
			slog.Any("again", some.Later), slog.String("reason", reason))
	case errors.As(sent, &permanent):
		state, reason = "rejected", sent.Error()
		o.Logger.Error("a mail was refused for good", slog.String("mail", row.ID), slog.String("reason", reason))
	case sent != nil:
		state, reason, wait = "ambiguous", sent.Error(), backoff(row.Attempts+1, mailRetryFirst, mailRetryMost)
		o.Logger.Warn("a mail was not taken; it is sent again", slog.String("mail", row.ID), slog.Duration("in", wait), slog.String("reason", reason))
	}
	left := pq.StringArray{}
	if some != nil {
		left = some.Later
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), markTime)
	defer cancel()
	now := o.Now()
	return o.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, sqlMarkMail, row.ID, state, now.Add(wait), now, fault.Text(reason), len(left) > 0, left)
		return err
	})
}

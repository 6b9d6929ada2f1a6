package reconcile

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/api"
	"tallystick/internal/fault"
)

// Webhook is where alerts are posted, signed after Standard Webhooks 1.0.
type Webhook struct {
	URL     string   // "" for nowhere
	Secrets []string // whsec_ and base64; each signs, so that a receiver may know the old one or the new
	Private bool     // whether loopback, private and link-local addresses are allowed
}

// Bounds of the delivery of webhooks.
const (
	webhookTime     = 20 * time.Second
	webhookClaimMax = 10
	webhookLease    = webhookClaimMax * webhookTime * 2
	webhookShowMax  = 100 // findings in one; the API has the others
	answerMax       = 4 << 10
)

// webhookWaits are how long to wait after each failure; after the last the webhook
// has failed. Together they are about three days.
var webhookWaits = []time.Duration{
	5 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

// sqlStageWebhook relies on alert_webhooks_pkey: one cause is posted once.
const sqlStageWebhook = `
	INSERT INTO alert_webhooks (webhook_id, body, state, attempts, next_try_at, error, created_at)
	VALUES ($1, $2, 'pending', 0, $3, '', $3)
	ON CONFLICT (webhook_id) DO NOTHING`

// stageWebhook keeps an alert in the transaction that causes it. The cause gives
// its id, which a receiver can tell a repetition by.
func (r *Reconciler) stageWebhook(ctx context.Context, tx *sqlx.Tx, cause, kind string, data any, now time.Time) error {
	if r.Webhook.URL == "" {
		return nil
	}
	body, err := json.Marshal(map[string]any{"type": kind, "timestamp": now.UTC().Format(time.RFC3339Nano), "data": data})
	if err != nil {
		return fmt.Errorf("encode an alert: %w", err)
	}
	id := "msg_" + strings.ReplaceAll(uuid.NewSHA1(uuid.NameSpaceURL, []byte("tallystick:"+cause)).String(), "-", "")
	if _, err := tx.ExecContext(ctx, sqlStageWebhook, id, string(body), now); err != nil {
		return fmt.Errorf("stage an alert: %w", err)
	}
	return nil
}

// toldData is what a webhook says about findings. Evidence is left to the API: it
// may be large, and is for people.
func (r *Reconciler) toldData(i incident, findings []Finding) any {
	shown := make([]api.Finding, min(len(findings), webhookShowMax))
	for k := range shown {
		shown[k] = r.Wire(findings[k])
		shown[k].Evidence = json.RawMessage("{}")
	}
	return map[string]any{
		"incident": i.ID, "count": len(findings), "money_at_risk": totalMoney(findings), "findings": shown, "url": r.link("/v1/findings"),
	}
}

// webhookRow is one that a step has claimed.
type webhookRow struct {
	ID       string `db:"webhook_id"`
	Body     string `db:"body"`
	Attempts int    `db:"attempts"`
}

// sqlClaimWebhooks relies on the index alert_webhooks_due.
const sqlClaimWebhooks = `
	SELECT webhook_id, body, attempts FROM alert_webhooks
	WHERE state IN ('pending', 'sending') AND next_try_at <= $1
	ORDER BY next_try_at
	LIMIT $2
	FOR UPDATE SKIP LOCKED`

// sqlLeaseWebhooks relies on alert_webhooks_pkey and the locks of sqlClaimWebhooks.
const sqlLeaseWebhooks = `UPDATE alert_webhooks SET state = 'sending', attempts = attempts + 1, next_try_at = $2 WHERE webhook_id = ANY ($1::text[])`

// sqlMarkWebhook relies on alert_webhooks_pkey.
const sqlMarkWebhook = `
	UPDATE alert_webhooks SET state = $2, next_try_at = $3, error = $4, delivered_at = CASE WHEN $2 = 'delivered' THEN $5::timestamptz END
	WHERE webhook_id = $1 AND state = 'sending'`

// WebhookStep posts the alerts that are due: at least once, with the same id and
// bytes each time. It may run in several processes.
func (r *Reconciler) WebhookStep(ctx context.Context) (more bool, err error) {
	if r.Webhook.URL == "" {
		return false, nil
	}
	now := r.Now()
	var claimed []webhookRow
	err = r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		claimed = nil
		if err := tx.SelectContext(ctx, &claimed, sqlClaimWebhooks, now, webhookClaimMax); err != nil || len(claimed) == 0 {
			return err
		}
		ids := make(pq.StringArray, len(claimed))
		for i, w := range claimed {
			ids[i] = w.ID
		}
		_, err := tx.ExecContext(ctx, sqlLeaseWebhooks, ids, now.Add(webhookLease))
		return err
	})
	if err != nil {
		return false, fmt.Errorf("claim alerts: %w", err)
	}
	for _, w := range claimed {
		if err := r.markWebhook(ctx, w, r.post(ctx, w)); err != nil {
			return false, err
		}
	}
	return len(claimed) == webhookClaimMax, nil
}

// errGone says that the receiver wants no more of it.
var errGone = errors.New("the receiver answered 410 Gone")

func (r *Reconciler) markWebhook(ctx context.Context, w webhookRow, posted error) error {
	state, reason, wait := "delivered", "", time.Duration(0)
	switch {
	case posted == nil:
	case errors.Is(posted, errGone) || w.Attempts >= len(webhookWaits):
		state, reason = "failed", posted.Error()
		r.Logger.Error("an alert was not taken, and is given up", slog.String("webhook", w.ID), slog.String("reason", reason))
	default:
		state, reason, wait = "pending", posted.Error(), webhookWaits[w.Attempts]
		r.Logger.Warn("an alert was not taken; it is posted again", slog.String("webhook", w.ID), slog.Duration("in", wait), slog.String("reason", reason))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), webhookTime)
	defer cancel()
	now := r.Now()
	return r.DB.InTx(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, sqlMarkWebhook, w.ID, state, now.Add(wait), fault.Text(reason), now)
		return err
	})
}

// post makes one try. Whatever is no 2xx is a failure, redirects too: the signature
// is a promise to one address.
func (r *Reconciler) post(ctx context.Context, w webhookRow) error {
	ctx, cancel := context.WithTimeout(ctx, webhookTime)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Webhook.URL, bytes.NewReader([]byte(w.Body)))
	if err != nil {
		return errors.New("the address of the webhook cannot be used") // the cause would repeat it, and it may hold a secret
	}
	at := strconv.FormatInt(r.Now().Unix(), 10)
	signature, err := r.Webhook.sign(w.ID, at, w.Body)
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "tallystick", "Webhook-Id": w.ID, "Webhook-Timestamp": at, "Webhook-Signature": signature,
	} {
		q.Header.Set(name, value)
	}
	response, err := r.poster.Do(q)
	if err != nil {
		return bare(err)
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, answerMax)) // so that the connection can be used again
	switch {
	case response.StatusCode == http.StatusGone:
		return errGone
	case response.StatusCode < 200 || response.StatusCode > 299:
		return fmt.Errorf("the receiver answered %d", response.StatusCode)
	}
	return nil
}

// bare leaves the address out of an error of net/http: its query may be a secret.
func bare(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// sign signs after Standard Webhooks: HMAC-SHA256 over id, timestamp and body, once
// with each secret.
func (w Webhook) sign(id, at, body string) (string, error) {
	signatures := make([]string, len(w.Secrets))
	for i, secret := range w.Secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
		if err != nil {
			return "", errors.New("a secret of the webhook is no base64")
		}
		mac := hmac.New(sha256.New, key)
		_, _ = fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(signatures, " "), nil
}

// errPrivate refuses what a mistyped or hijacked name would reach inside.
var errPrivate = errors.New("the receiver's address is not public; TALLYSTICK_ALERT_WEBHOOK_PRIVATE allows it")

// client looks at the address that a name has led to, not at the name, goes by no
// proxy and follows nothing.
func (w Webhook) client() *http.Client {
	dialer := &net.Dialer{Timeout: webhookTime, Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || (!w.Private && !isPublic(at.Addr())) {
			return errPrivate
		}
		return nil
	}}
	return &http.Client{
		Timeout:       webhookTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: webhookTime, MaxIdleConns: 2,
			IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
		},
	}
}

// inside are networks that the standard library does not call private.
var inside = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"),
}

func isPublic(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range inside {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

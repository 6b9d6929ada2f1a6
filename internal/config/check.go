package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// StripeAPI is Stripe's own address.
const StripeAPI = "https://api.stripe.com"

// check lists what is wrong with single values and pairs, whatever the command.
func (c Config) check() []string {
	var m mistakes
	m.checkAddress("TALLYSTICK_LISTEN", c.Listen)
	m.checkURL("STRIPE_API_BASE", c.StripeAPIBase, "http", "https")
	if c.PublicURL != "" {
		m.checkURL("TALLYSTICK_PUBLIC_URL", c.PublicURL, "http", "https")
	}
	if c.SMTPURL != "" {
		m.checkURL("TALLYSTICK_SMTP_URL", c.SMTPURL.Reveal(), "smtp", "smtps")
	}
	key := c.StripeAPIKey.Reveal()
	if key != "" && !isTestKey(key) && !isLiveKey(key) {
		m.addf("STRIPE_API_KEY must begin with sk_test_, rk_test_, sk_live_ or rk_live_")
	}
	if isLiveKey(key) && c.StripeAPIBase != StripeAPI {
		m.addf("STRIPE_API_BASE must be %s with a live key: a live key is never shown to anybody else", StripeAPI)
	}
	for _, secret := range c.StripeWebhookSecrets {
		if !strings.HasPrefix(secret.Reveal(), "whsec_") {
			m.addf("STRIPE_WEBHOOK_SECRET must hold secrets that begin with whsec_")
			break
		}
	}
	m.checkRange("TALLYSTICK_DATABASE_CONNECTIONS", c.DatabaseMax, 4, 500)
	m.checkRange("TALLYSTICK_AUTH_FAILURES", c.AuthFailures, 1, 1_000_000)
	for _, proxy := range c.TrustedProxies {
		if _, err := network(proxy); err != nil {
			m.addf("TALLYSTICK_TRUSTED_PROXIES must hold addresses or networks such as 127.0.0.1 or 10.0.0.0/8")
			break
		}
	}
	for _, origin := range c.AllowedOrigins {
		if u, err := url.Parse(origin); err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.Scheme+"://"+u.Host != origin || strings.Contains(origin, "*") {
			m.addf("TALLYSTICK_ALLOWED_ORIGINS must hold origins such as https://app.example.com, without a path and without *")
			break
		}
	}
	m.checkRange("TALLYSTICK_STRIPE_RATE", c.StripeRate, 1, 900)
	m.checkRange("TALLYSTICK_STRIPE_METER_RATE", c.MeterRate, 1, 1000)
	if c.CreditsPerUnit < 0 || c.CreditsPerUnit > 1_000_000 {
		m.addf("TALLYSTICK_CREDITS_PER_MAJOR_UNIT must be between 0 and 1000000")
	}
	if c.UsageBucket < time.Minute || time.Hour%c.UsageBucket != 0 {
		m.addf("TALLYSTICK_USAGE_BUCKET must be at least 1m and divide an hour: 1m, 5m, 10m, 15m, 30m, 1h")
	}
	m.checkSpan("TALLYSTICK_USAGE_SETTLE", c.UsageSettle, 0, time.Hour)
	m.checkSpan("TALLYSTICK_RECONCILE_SETTLE", c.ReconcileSettle, 0, 24*time.Hour)
	m.checkSpan("TALLYSTICK_RECONCILE_LOOKBACK", c.ReconcileLookback, time.Hour, 35*24*time.Hour)
	m.checkRange("TALLYSTICK_RECONCILE_CALLS", c.ReconcileCalls, 100, 1_000_000)
	m.checkSchedule("TALLYSTICK_RECONCILE_SCHEDULE", c.ReconcileSchedule, false)
	m.checkSchedule("TALLYSTICK_RECONCILE_DAILY", c.ReconcileDaily, false)
	m.checkSchedule("TALLYSTICK_MAIL_DIGEST", c.MailDigest, true)
	m.checkSchedule("TALLYSTICK_MAIL_WEEKLY", c.MailWeekly, true)
	if _, err := schedules(c.ReconcileSchedules); err != nil {
		m.addf("TALLYSTICK_RECONCILE_SCHEDULES %s", err)
	}
	if c.Repair != "off" && c.Repair != "ask" && c.Repair != "safe" {
		m.addf("TALLYSTICK_REPAIR must be off, ask or safe")
	}
	m.checkMail("TALLYSTICK_MAIL_FROM", c.MailFrom)
	for _, to := range c.MailTo {
		m.checkMail("TALLYSTICK_MAIL_TO", to)
	}
	for _, to := range c.MailUrgentTo {
		m.checkMail("TALLYSTICK_MAIL_URGENT_TO", to)
	}
	m.checkSpan("TALLYSTICK_MAIL_COOLDOWN", c.MailCooldown, 0, 24*time.Hour)
	m.checkWebhook(c)
	return m
}

// Serve lists what production needs beyond valid values: nothing embedded
// stands in for what is missing.
func (c Config) Serve() []string {
	var m mistakes
	for _, required := range []struct {
		name  string
		given bool
		hint  string
	}{
		{"DATABASE_URL", c.DatabaseURL != "", "for example postgres://tallystick@db.example.com/tallystick?sslmode=verify-full"},
		{"STRIPE_API_KEY", c.StripeAPIKey != "", "a restricted key suffices; docs/stripe.md lists its permissions"},
		{"STRIPE_WEBHOOK_SECRET", len(c.StripeWebhookSecrets) > 0, "Stripe shows it once, when the endpoint is created"},
		{"TALLYSTICK_SMTP_URL", c.SMTPURL != "", "mismatches are mailed"},
		{"TALLYSTICK_MAIL_TO", len(c.MailTo) > 0, "mismatches are mailed"},
	} {
		if !required.given {
			m.addf("%s is missing: %s", required.name, required.hint)
		}
	}
	if c.MailFrom == "tallystick@localhost" {
		m.addf("TALLYSTICK_MAIL_FROM is missing: mail servers refuse tallystick@localhost")
	}
	m.checkDatabase(c.DatabaseURL.Reveal())
	return m
}

// Proxies are the networks of TrustedProxies.
func (c Config) Proxies() []netip.Prefix {
	var all []netip.Prefix
	for _, proxy := range c.TrustedProxies {
		if p, err := network(proxy); err == nil { // others are mistakes, which no start survives
			all = append(all, p)
		}
	}
	return all
}

// network reads an address, which is a network of one, or a network.
func network(text string) (netip.Prefix, error) {
	text = strings.TrimSpace(text)
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Unmap().WithZone("").Prefix(a.Unmap().BitLen())
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

type mistakes []string

func (m *mistakes) addf(format string, args ...any) { *m = append(*m, fmt.Sprintf(format, args...)) }

func (m *mistakes) checkRange(name string, value, least, most int) {
	if value < least || value > most {
		m.addf("%s must be between %d and %d", name, least, most)
	}
}

func (m *mistakes) checkSpan(name string, value, least, most time.Duration) {
	if value < least || value > most {
		m.addf("%s must be between %v and %v", name, least, most)
	}
}

func (m *mistakes) checkAddress(name, address string) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		m.addf("%s must be host:port, such as 127.0.0.1:8321", name)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		m.addf("%s must end in a port from 0 to 65535, not %q", name, port)
	}
	if host == "" {
		m.addf("%s must name a host: 0.0.0.0 for every interface, 127.0.0.1 for this machine", name)
	}
}

func (m *mistakes) checkURL(name, text string, schemes ...string) {
	u, err := url.Parse(text)
	if err == nil && u.Host != "" {
		for _, scheme := range schemes {
			if u.Scheme == scheme {
				return
			}
		}
	}
	m.addf("%s must be an address that begins with %s://", name, strings.Join(schemes, ":// or "))
}

// checkDatabase wants sslmode said for a database elsewhere: lib/pq's default
// is about to change, and a password must not travel in the clear by surprise.
func (m *mistakes) checkDatabase(dsn string) {
	if dsn == "" {
		return
	}
	u, err := url.Parse(dsn)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		m.addf("DATABASE_URL must be a postgres:// address")
		return
	}
	if host := u.Hostname(); host == "" || host == "localhost" || net.ParseIP(host).IsLoopback() {
		return
	}
	if u.Query().Get("sslmode") == "" {
		m.addf("DATABASE_URL must say sslmode=verify-full (or another mode, if you mean it)")
	}
}

// ParseSchedule reads a schedule of five cron fields, UTC. It parses under recover,
// because robfig/cron panics on some texts. A time zone is refused, because every
// schedule is UTC; a date that never comes, because the check would never run.
func ParseSchedule(spec string) (schedule cron.Schedule, err error) {
	defer func() {
		if recover() != nil {
			schedule, err = nil, errors.New("is no cron schedule")
		}
	}()
	if strings.Contains(spec, "TZ=") {
		return nil, errors.New("must not name a time zone: schedules are UTC")
	}
	schedule, err = cron.ParseStandard(spec)
	if err != nil {
		return nil, errors.New("is no cron schedule of five fields, such as 7 * * * *")
	}
	if schedule.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, errors.New("names a date that never comes")
	}
	return schedule, nil
}

// ScheduleOff stands for a schedule where there shall be none.
const ScheduleOff = "off"

// checkSchedule wants a schedule, or off where that is allowed.
func (m *mistakes) checkSchedule(name, spec string, off bool) {
	if off && spec == ScheduleOff {
		return
	}
	if _, err := ParseSchedule(spec); err != nil {
		m.addf("%s %s", name, err)
	}
}

// Schedules are those of single checks, by the names of the checks.
func (c Config) Schedules() map[string]string {
	specs, _ := schedules(c.ReconcileSchedules) // mistakes are found before anything starts
	return specs
}

// schedules reads check=spec; check=spec.
func schedules(text string) (specs map[string]string, err error) {
	specs = map[string]string{}
	for part := range strings.SplitSeq(text, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, spec, ok := strings.Cut(part, "=")
		name, spec = strings.TrimSpace(name), strings.TrimSpace(spec)
		if !ok || name == "" {
			return nil, errors.New("must be check=schedule; check=schedule, such as usage.totals=*/30 * * * *; ledger.chain=off")
		}
		if spec != ScheduleOff {
			if _, err := ParseSchedule(spec); err != nil {
				return nil, fmt.Errorf("for %s %w", name, err)
			}
		}
		specs[name] = spec
	}
	return specs, nil
}

func (m *mistakes) checkMail(name, address string) {
	if _, err := mail.ParseAddress(address); err != nil || strings.ContainsAny(address, "\r\n") {
		m.addf("%s must hold mail addresses such as billing@example.com", name)
	}
}

// checkWebhook wants an address that can be kept a secret's promise, and a secret
// long enough for one.
func (m *mistakes) checkWebhook(c Config) {
	if c.AlertWebhookURL == "" {
		return
	}
	m.checkURL("TALLYSTICK_ALERT_WEBHOOK_URL", c.AlertWebhookURL, "http", "https")
	if u, err := url.Parse(c.AlertWebhookURL); err == nil && u.User != nil {
		m.addf("TALLYSTICK_ALERT_WEBHOOK_URL must not hold a password: what is sent there is signed")
	}
	if strings.HasPrefix(c.AlertWebhookURL, "http://") && !c.AlertWebhookPrivate {
		m.addf("TALLYSTICK_ALERT_WEBHOOK_URL must begin with https://, unless TALLYSTICK_ALERT_WEBHOOK_PRIVATE allows addresses of your own network")
	}
	if len(c.AlertWebhookSecrets) == 0 {
		m.addf("TALLYSTICK_ALERT_WEBHOOK_SECRET is missing: it signs what is sent to TALLYSTICK_ALERT_WEBHOOK_URL")
	}
	for _, secret := range c.AlertWebhookSecrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret.Reveal(), "whsec_"))
		if !strings.HasPrefix(secret.Reveal(), "whsec_") || err != nil || len(key) < 24 || len(key) > 64 {
			m.addf("TALLYSTICK_ALERT_WEBHOOK_SECRET must hold secrets such as whsec_ and 24 to 64 bytes in base64: openssl rand -base64 32")
			break
		}
	}
}

func isTestKey(key string) bool {
	return strings.HasPrefix(key, "sk_test_") || strings.HasPrefix(key, "rk_test_")
}

func isLiveKey(key string) bool {
	return strings.HasPrefix(key, "sk_live_") || strings.HasPrefix(key, "rk_live_")
}

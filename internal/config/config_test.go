package config_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tallystick/internal/config"
)

func TestLoadReportsEveryMistakeAtOnce(t *testing.T) {
	t.Parallel()
	c, mistakes := config.Load(config.Sources{Environ: []string{
		"DATABASE_URL=mysql://db",
		"STRIPE_API_KEY=hunter2",
		"STRIPE_API_BASE=ftp://x",
		"STRIPE_WEBHOOK_SECRET=abc",
		"TALLYSTICK_LISTEN=8321",
		"TALLYSTICK_LISTN=127.0.0.1:1",
		"TALLYSTICK_USAGE_BUCKET=7m",
		"TALLYSTICK_USAGE_SETTLE=soon",
		"TALLYSTICK_RECONCILE_SCHEDULE=0 0 30 2 *",
		"TALLYSTICK_STRIPE_RATE=0",
		"TALLYSTICK_STRIPE_METER_RATE=1001",
		"TALLYSTICK_AUTH_FAILURES=0",
		"TALLYSTICK_TRUSTED_PROXIES=127.0.0.1,10.0.0.0/33",
		"TALLYSTICK_ALLOWED_ORIGINS=https://app.example.com,https://*.example.com",
		"TALLYSTICK_REPAIR=maybe",
		"TALLYSTICK_MAIL_TO=nobody",
		"TALLYSTICK_LOG_LEVEL=loud",
	}})
	mistakes = append(mistakes, c.Serve()...)
	text := config.Err(mistakes).Error()
	for _, want := range []string{
		"DATABASE_URL must be", "STRIPE_API_KEY must begin", "STRIPE_API_BASE must be", "STRIPE_WEBHOOK_SECRET must hold",
		"TALLYSTICK_LISTEN must be", "TALLYSTICK_LISTN in the environment is no setting; did you mean TALLYSTICK_LISTEN?",
		"TALLYSTICK_USAGE_BUCKET must", "TALLYSTICK_USAGE_SETTLE is no duration", "TALLYSTICK_RECONCILE_SCHEDULE names a date that never comes",
		"TALLYSTICK_STRIPE_RATE must be between", "TALLYSTICK_STRIPE_METER_RATE must be between", "TALLYSTICK_AUTH_FAILURES must be between",
		"TALLYSTICK_TRUSTED_PROXIES must hold", "TALLYSTICK_ALLOWED_ORIGINS must hold", "TALLYSTICK_REPAIR must be", "TALLYSTICK_MAIL_TO must hold", "TALLYSTICK_LOG_LEVEL is no log level",
		"TALLYSTICK_SMTP_URL is missing", "TALLYSTICK_MAIL_FROM is missing",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "hunter2") {
		t.Errorf("the report shows a secret:\n%s", text)
	}
}

func TestLoadTakesFlagsOverEnvironmentOverFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tallystick.conf")
	content := "# comment\nTALLYSTICK_LISTEN=127.0.0.1:1\nTALLYSTICK_USAGE_SETTLE=1s\nTALLYSTICK_STRIPE_RATE=1\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	c, mistakes := config.Load(config.Sources{
		File:    file,
		Environ: []string{"TALLYSTICK_LISTEN=127.0.0.1:2", "TALLYSTICK_USAGE_SETTLE=2s", "HOME=/nowhere"},
		Flags:   map[string]string{"TALLYSTICK_LISTEN": "127.0.0.1:3"},
	})
	if len(mistakes) > 0 {
		t.Fatal(mistakes)
	}
	if c.Listen != "127.0.0.1:3" || c.UsageSettle != 2*time.Second || c.StripeRate != 1 || c.UsageBucket != time.Minute {
		t.Errorf("got listen %s, settle %v, rate %d, bucket %v; want 127.0.0.1:3, 2s, 1, 1m", c.Listen, c.UsageSettle, c.StripeRate, c.UsageBucket)
	}
}

func TestScheduleRefusals(t *testing.T) {
	t.Parallel()
	for _, spec := range []string{"TZ=America/New_York", "CRON_TZ=UTC * * * * *", "* * * *", "61 * * * *", "nonsense", "0 0 31 4 *"} {
		_, mistakes := config.Load(config.Sources{Flags: map[string]string{"TALLYSTICK_RECONCILE_SCHEDULE": spec}})
		if len(mistakes) != 1 {
			t.Errorf("schedule %q: got mistakes %q, want one", spec, mistakes)
		}
	}
}

func TestLiveKeyGoesOnlyToStripe(t *testing.T) {
	t.Parallel()
	flags := map[string]string{"STRIPE_API_KEY": "sk_live_x", "STRIPE_API_BASE": "http://127.0.0.1:12111"}
	if _, mistakes := config.Load(config.Sources{Flags: flags}); len(mistakes) != 1 {
		t.Errorf("a live key for another address: got mistakes %q, want one", mistakes)
	}
	flags["STRIPE_API_KEY"] = "sk_test_x"
	if _, mistakes := config.Load(config.Sources{Flags: flags}); len(mistakes) != 0 {
		t.Errorf("a test key for another address: got mistakes %q, want none", mistakes)
	}
}

func TestServeWantsSSLModeForARemoteDatabase(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string]bool{
		"postgres://u:p@db.example.com/t":                     true,
		"postgres://u:p@db.example.com/t?sslmode=verify-full": false,
		"postgres://u@localhost/t":                            false,
		"postgres://u@/t?host=/run/postgresql":                false,
	} {
		c, _ := config.Load(config.Sources{Flags: map[string]string{"DATABASE_URL": dsn}})
		if got := strings.Contains(strings.Join(c.Serve(), "\n"), "sslmode"); got != want {
			t.Errorf("Serve complains of sslmode for %s: %v, want %v", dsn, got, want)
		}
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	t.Parallel()
	c, _ := config.Load(config.Sources{Flags: map[string]string{
		"DATABASE_URL": "postgres://u:canary@localhost/t", "STRIPE_API_KEY": "sk_test_canary",
		"STRIPE_WEBHOOK_SECRET": "whsec_canary,whsec_canary2", "TALLYSTICK_SMTP_URL": "smtp://u:canary@localhost:25",
	}})
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("config", "config", c, "key", c.StripeAPIKey)
	for name, text := range map[string]string{
		"%v": fmt.Sprintf("%v", c), "%+v": fmt.Sprintf("%+v", c), "%#v": fmt.Sprintf("%#v", c),
		"json": string(asJSON), "slog": log.String(), "values": strings.Join(c.Values(), "\n"),
	} {
		if strings.Contains(text, "canary") {
			t.Errorf("%s shows a secret: %s", name, text)
		}
	}
	if c.StripeAPIKey.Reveal() != "sk_test_canary" || len(c.StripeWebhookSecrets) != 2 {
		t.Errorf("the secrets were not read: %d webhook secrets", len(c.StripeWebhookSecrets))
	}
}

func TestReferenceDocumentsEverySetting(t *testing.T) {
	t.Parallel()
	for _, s := range config.Reference() {
		if s.Name == "" || s.Doc == "" {
			t.Errorf("setting %+v lacks a name or a text", s)
		}
	}
}

func TestProxiesAreAddressesOrNetworks(t *testing.T) {
	t.Parallel()
	c, mistakes := config.Load(config.Sources{Environ: []string{"TALLYSTICK_TRUSTED_PROXIES=127.0.0.1, ::ffff:10.1.2.3,10.9.9.9/8,2001:db8::/32,::1"}})
	if got, want := fmt.Sprint(c.Proxies()), "[127.0.0.1/32 10.1.2.3/32 10.0.0.0/8 2001:db8::/32 ::1/128]"; got != want || len(mistakes) > 0 {
		t.Errorf("the proxies are %s, want %s; mistakes %q", got, want, mistakes)
	}
	for _, wrong := range []string{"localhost", "10.0.0.0/33", "10.0.0.0:80", "*", "127.0.0.1,,x"} {
		if _, mistakes := config.Load(config.Sources{Environ: []string{"TALLYSTICK_TRUSTED_PROXIES=" + wrong}}); len(mistakes) != 1 {
			t.Errorf("%s: mistakes %q, want one", wrong, mistakes)
		}
	}
}

func TestOriginsAreExact(t *testing.T) {
	t.Parallel()
	for origin, mistaken := range map[string]bool{
		"https://app.example.com": false, "http://localhost:3000": false, "https://a.example,https://b.example:8443": false,
		"*": true, "https://*.example.com": true, "https://app.example.com/": true, "https://app.example.com/x": true, "app.example.com": true,
		"null": true, "ftp://app.example.com": true, "https://user@app.example.com": true, "https://": true,
	} {
		if _, mistakes := config.Load(config.Sources{Environ: []string{"TALLYSTICK_ALLOWED_ORIGINS=" + origin}}); (len(mistakes) > 0) != mistaken {
			t.Errorf("%s: mistakes %q, want some: %t", origin, mistakes, mistaken)
		}
	}
}

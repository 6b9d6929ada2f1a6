// Package config reads the settings of a process from flags, the environment
// and an optional file into one struct, and reports every mistake at once. A
// file uses the names of the environment, so each setting has one name.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/joho/godotenv"
)

// Secret is a setting that is never printed: every way of formatting it gives
// "[redacted]". Reveal is the only way to its value.
type Secret string

const redacted = "[redacted]"

// Reveal is the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String hides the secret.
func (s Secret) String() string { return redacted }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return redacted }

// MarshalText hides the secret from JSON and every other encoder.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText takes the secret as it stands.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = Secret(text)
	return nil
}

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// Config is every setting. The tags are its documentation: the table in the
// README and the output of `tallystick config show` are made from them.
type Config struct {
	DatabaseURL          Secret   `env:"DATABASE_URL" doc:"Postgres to use; serve requires it, up and demo start a private one without it"`
	StripeAPIKey         Secret   `env:"STRIPE_API_KEY" doc:"Stripe secret or restricted key; serve requires it, up and demo start the simulator without it"`
	StripeAPIBase        string   `env:"STRIPE_API_BASE" envDefault:"https://api.stripe.com" doc:"where Stripe's API is; another address is refused with a live key"`
	StripeWebhookSecrets []Secret `env:"STRIPE_WEBHOOK_SECRET" doc:"signing secrets of the webhook endpoint, comma-separated while one is being rolled"`

	Listen         string   `env:"TALLYSTICK_LISTEN" envDefault:"127.0.0.1:8321" doc:"address of the HTTP server; loopback unless you say otherwise"`
	PublicURL      string   `env:"TALLYSTICK_PUBLIC_URL" doc:"address under which people reach this server, for links in mails; default http://<listen>"`
	DatabaseMax    int      `env:"TALLYSTICK_DATABASE_CONNECTIONS" envDefault:"16" doc:"most connections to Postgres, 4 to 500"`
	AuthFailures   int      `env:"TALLYSTICK_AUTH_FAILURES" envDefault:"120" doc:"most failed authentications per client address and minute, 1 to 1000000; beyond it they are answered 429"`
	TrustedProxies []string `env:"TALLYSTICK_TRUSTED_PROXIES" doc:"addresses or networks of your proxies, comma-separated, such as 127.0.0.1 or 10.0.0.0/8: whose X-Forwarded-For says what the client's address is; default nobody's"`
	AllowedOrigins []string `env:"TALLYSTICK_ALLOWED_ORIGINS" doc:"origins of pages, comma-separated, such as https://app.example.com, whose scripts may read an account with its token; default none"`
	CreditsPerUnit int64    `env:"TALLYSTICK_CREDITS_PER_MAJOR_UNIT" doc:"whole credits bought per major unit of money (one dollar, one yen) when neither price, product, session nor payment says metadata.credits; 0: such payments are parked"`

	UsageBucket time.Duration `env:"TALLYSTICK_USAGE_BUCKET" envDefault:"1m" doc:"usage is summed per account, meter and this span before it goes to Stripe; a divisor of 1h, at least 1m"`
	UsageSettle time.Duration `env:"TALLYSTICK_USAGE_SETTLE" envDefault:"10s" doc:"how long after its end a bucket stays open for usage under way"`
	StripeRate  int           `env:"TALLYSTICK_STRIPE_RATE" envDefault:"80" doc:"most calls per second to Stripe, meter events left out, 1 to 900; Stripe's own default limits are 100 live and 25 in test mode"`
	MeterRate   int           `env:"TALLYSTICK_STRIPE_METER_RATE" envDefault:"940" doc:"most meter events per second to Stripe, 1 to 1000; Stripe takes 1000 live, and in test mode counts them among all calls: 20 suits it there"`

	ReconcileSchedule  string        `env:"TALLYSTICK_RECONCILE_SCHEDULE" envDefault:"7 * * * *" doc:"when the cheap checks run: five cron fields, UTC"`
	ReconcileDaily     string        `env:"TALLYSTICK_RECONCILE_DAILY" envDefault:"23 4 * * *" doc:"when the dear checks run, those that read much: five cron fields, UTC"`
	ReconcileSchedules string        `env:"TALLYSTICK_RECONCILE_SCHEDULES" doc:"schedules of single checks, such as usage.totals=*/30 * * * *; ledger.chain=off"`
	ReconcileSettle    time.Duration `env:"TALLYSTICK_RECONCILE_SETTLE" envDefault:"15m" doc:"how far behind the present a window ends, so that usage under way is not taken for a mismatch"`
	ReconcileLookback  time.Duration `env:"TALLYSTICK_RECONCILE_LOOKBACK" envDefault:"72h" doc:"how far back a scheduled run looks, 1h to 840h"`
	ReconcileCalls     int           `env:"TALLYSTICK_RECONCILE_CALLS" envDefault:"10000" doc:"most calls to Stripe that one run of one check makes, 100 to 1000000; what is left unread waits for the next run"`
	Repair             string        `env:"TALLYSTICK_REPAIR" envDefault:"ask" doc:"off: never repair; ask: only when a person says so; safe: what cannot over-bill or over-credit is repaired at once"`

	SMTPURL      Secret        `env:"TALLYSTICK_SMTP_URL" doc:"smtps://user:password@host:465, or smtp:// for STARTTLS; serve requires it, up and demo catch mails themselves without it"`
	MailFrom     string        `env:"TALLYSTICK_MAIL_FROM" envDefault:"tallystick@localhost" doc:"sender of the mails"`
	MailTo       []string      `env:"TALLYSTICK_MAIL_TO" doc:"who is mailed about mismatches, comma-separated; serve requires it"`
	MailUrgentTo []string      `env:"TALLYSTICK_MAIL_URGENT_TO" doc:"who is mailed, too, when a mismatch is high or critical, comma-separated"`
	MailCooldown time.Duration `env:"TALLYSTICK_MAIL_COOLDOWN" envDefault:"15m" doc:"least time between two mails about mismatches, 0 to 24h; what is high or critical does not wait"`
	MailDigest   string        `env:"TALLYSTICK_MAIL_DIGEST" envDefault:"0 7 * * *" doc:"when the daily digest is mailed, unless there is nothing to tell: five cron fields, UTC, or off"`
	MailWeekly   string        `env:"TALLYSTICK_MAIL_WEEKLY" envDefault:"0 8 * * 1" doc:"when the weekly report is mailed: five cron fields, UTC, or off"`

	AlertWebhookURL     string   `env:"TALLYSTICK_ALERT_WEBHOOK_URL" doc:"where mismatches are also posted as signed webhooks (Standard Webhooks)"`
	AlertWebhookSecrets []Secret `env:"TALLYSTICK_ALERT_WEBHOOK_SECRET" doc:"secrets that sign them, whsec_ and base64; several, comma-separated, while one is being replaced"`
	AlertWebhookPrivate bool     `env:"TALLYSTICK_ALERT_WEBHOOK_PRIVATE" doc:"whether they may go to loopback, private and link-local addresses, and by http"`

	LogLevel slog.Level `env:"TALLYSTICK_LOG_LEVEL" envDefault:"info" doc:"debug, info, warn or error"`
}

// Sources are where settings come from, the strongest first.
type Sources struct {
	Flags   map[string]string // by the name in the environment
	Environ []string          // as os.Environ gives it
	File    string            // path of a file of NAME=value lines; "" for none
}

// Setting is one row of the reference.
type Setting struct{ Name, Default, Doc string }

// MistakeError lists everything that is wrong with a configuration.
type MistakeError struct{ Mistakes []string }

// Error is a list, one mistake a line.
func (e *MistakeError) Error() string {
	return "the configuration has mistakes:\n  - " + strings.Join(e.Mistakes, "\n  - ")
}

// Load merges the sources over the defaults and checks each value for itself.
// Whether the whole suffices for production is for Serve to say. All mistakes
// of both are best reported together: pass the error's mistakes on.
func Load(s Sources) (Config, []string) {
	merged, mistakes := merge(s)
	var c Config
	err := env.ParseWithOptions(&c, env.Options{Environment: merged})
	mistakes = append(mistakes, parseMistakes(err)...)
	mistakes = append(mistakes, c.check()...)
	return c, mistakes
}

// Err is nil without mistakes.
func Err(mistakes []string) error {
	if len(mistakes) == 0 {
		return nil
	}
	return &MistakeError{Mistakes: mistakes}
}

// Reference lists every setting in the order of the struct.
func Reference() []Setting {
	t := reflect.TypeFor[Config]()
	settings := make([]Setting, 0, t.NumField())
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		settings = append(settings, Setting{Name: tag.Get("env"), Default: tag.Get("envDefault"), Doc: tag.Get("doc")})
	}
	return settings
}

// Values gives every setting as text in the order of Reference, secrets hidden.
func (c Config) Values() []string {
	v := reflect.ValueOf(c)
	values := make([]string, 0, v.NumField())
	for i := range v.NumField() {
		field := v.Field(i)
		if field.IsZero() {
			values = append(values, "")
			continue
		}
		values = append(values, strings.Trim(fmt.Sprint(field.Interface()), "[]"))
		if strings.Contains(fmt.Sprint(field.Interface()), redacted) {
			values[len(values)-1] = redacted
		}
	}
	return values
}

// merge lays flags over environment over file, and refuses names of ours that
// mean nothing: a misspelt setting would otherwise be silently without effect.
func merge(s Sources) (map[string]string, []string) {
	merged := map[string]string{}
	var mistakes []string
	if s.File != "" {
		values, err := readFile(s.File)
		if err != nil {
			mistakes = append(mistakes, err.Error())
		}
		for name, value := range values {
			merged[name] = value
			if !known(name) {
				mistakes = append(mistakes, fmt.Sprintf("%s in %s is no setting%s", name, s.File, meant(name)))
			}
		}
	}
	for _, entry := range s.Environ {
		name, value, _ := strings.Cut(entry, "=")
		switch {
		case known(name) && value != "":
			merged[name] = value
		case strings.HasPrefix(name, "TALLYSTICK_") && !known(name) && !foreign(name):
			mistakes = append(mistakes, fmt.Sprintf("%s in the environment is no setting%s", name, meant(name)))
		}
	}
	for name, value := range s.Flags {
		if value != "" {
			merged[name] = value
		}
	}
	slices.Sort(mistakes)
	return merged, mistakes
}

// readFile reads NAME=value lines. The library's error may quote a line, and a
// line may hold a secret: only that the file cannot be read is passed on.
func readFile(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the configuration file cannot be opened: %w", err)
	}
	defer func() { _ = f.Close() }()
	values, err := godotenv.Parse(f)
	if err != nil {
		return nil, fmt.Errorf("%s is no list of NAME=value lines", path)
	}
	return values, nil
}

// foreign names begin like settings but are read by the command line's client
// or by the tests.
func foreign(name string) bool {
	return name == "TALLYSTICK_URL" || name == "TALLYSTICK_API_KEY" || name == "TALLYSTICK_DATA" || strings.HasPrefix(name, "TALLYSTICK_TEST_")
}

func known(name string) bool {
	return slices.ContainsFunc(Reference(), func(s Setting) bool { return s.Name == name })
}

// meant suggests the setting that shares the longest beginning with name.
func meant(name string) string {
	best, length := "", len("TALLYSTICK_")
	for _, s := range Reference() {
		n := 0
		for n < min(len(name), len(s.Name)) && name[n] == s.Name[n] {
			n++
		}
		if n > length {
			best, length = s.Name, n
		}
	}
	if best == "" {
		return "; `tallystick config show` lists them all"
	}
	return "; did you mean " + best + "?"
}

// parseMistakes names the setting, not the Go field, and not the value, which
// the person has before them and which may be a secret.
func parseMistakes(err error) []string {
	if err == nil {
		return nil
	}
	var all env.AggregateError
	if !errors.As(err, &all) {
		return []string{err.Error()}
	}
	var mistakes []string
	for _, e := range all.Errors {
		var p env.ParseError
		if !errors.As(e, &p) {
			mistakes = append(mistakes, e.Error())
			continue
		}
		field, _ := reflect.TypeFor[Config]().FieldByName(p.Name)
		mistakes = append(mistakes, fmt.Sprintf("%s is no %s", field.Tag.Get("env"), kindOf(p.Type)))
	}
	return mistakes
}

func kindOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration such as 90s, 15m or 72h"
	case reflect.TypeFor[slog.Level]():
		return "log level: debug, info, warn or error"
	}
	return cmp.Or(map[reflect.Kind]string{reflect.Bool: "true or false", reflect.Int: "whole number", reflect.Int64: "whole number"}[t.Kind()], "valid value")
}

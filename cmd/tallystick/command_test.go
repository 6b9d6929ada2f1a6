package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tallystick/internal/pg/pgtest"
)

func TestBadConfigurationIsOneMessageWithAllMistakes(t *testing.T) {
	t.Parallel()
	settings := []string{
		"DATABASE_URL=postgres://localhost/x", "STRIPE_API_KEY=pk_live_wrong", "TALLYSTICK_LISTEN=nowhere", "TALLYSTICK_USAGE_BUCKET=7m",
		"TALLYSTICK_RECONCILE_SCHEDULE=0 0 30 2 *", "TALLYSTICK_UNKNOWN=1", "TALLYSTICK_DATABASE_CONNECTIONS=many",
	}
	for _, command := range [][]string{{"serve"}, {"config", "check"}} {
		code, out, errs := cli(t, settings, command...)
		if code != exitUsage || out != "" {
			t.Errorf("%v ended with %d and printed %q, want %d and nothing", command, code, out, exitUsage)
		}
		for _, name := range []string{
			"STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET", "TALLYSTICK_LISTEN", "TALLYSTICK_USAGE_BUCKET", "TALLYSTICK_RECONCILE_SCHEDULE", "TALLYSTICK_UNKNOWN",
			"TALLYSTICK_DATABASE_CONNECTIONS", "TALLYSTICK_SMTP_URL", "TALLYSTICK_MAIL_TO",
		} {
			if !strings.Contains(errs, name) {
				t.Errorf("%v does not name %s:\n%s", command, name, errs)
			}
		}
		if strings.Contains(errs, "pk_live_wrong") || strings.Count(errs, "the configuration has mistakes") != 1 {
			t.Errorf("%v shows a secret, or is not one message:\n%s", command, errs)
		}
	}
}

func TestMistakesOfUseEndWithTwoAndSayWhatToDo(t *testing.T) {
	t.Parallel()
	empty := t.TempDir()
	for _, tc := range []struct{ args, want string }{
		{"nonsense", `unknown command "nonsense"`},
		{"up --nonsense", "see: tallystick up --help"},
		{"accounts show", "see: tallystick accounts show --help"},
		{"accounts list --output xml", "--output must be table, json or csv"},
		{"reconcile run --from yesterday", "--from must be a time such as"},
		{"verify", "set DATABASE_URL, or name the --data directory"},
		{"accounts list", "start one with `tallystick up`"},
		{"accounts list --url http://127.0.0.1:1", "--url needs an API key"},
	} {
		code, out, errs := cli(t, nil, append(strings.Fields(tc.args), "--data", empty)...)
		if code != exitUsage || !strings.Contains(errs, tc.want) || out != "" {
			t.Errorf("%s ended with %d, want %d and %q:\n%s%s", tc.args, code, exitUsage, tc.want, out, errs)
		}
	}
}

func TestWhatIsUnreachableEndsWithThree(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"accounts", "list", "--url", "http://127.0.0.1:1", "--api-key", "tsk_x"},
		{"verify"},
		{"migrate"},
		{"keys", "create", "first", "--data", t.TempDir()},
	} {
		code, _, errs := cli(t, []string{"DATABASE_URL=postgres://nobody:secret-word@127.0.0.1:1/none?sslmode=disable"}, args...)
		if code != exitUnreachable || errs == "" || strings.Contains(errs, "secret-word") {
			t.Errorf("%v ended with %d, want %d:\n%s", args, code, exitUnreachable, errs)
		}
	}
}

func TestMigrateBringsAnEmptyDatabaseUpAndServeRefusesOneThatIsBehind(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Empty(t)
	settings := []string{
		"DATABASE_URL=" + dsn, "STRIPE_API_KEY=sk_test_x", "STRIPE_API_BASE=http://127.0.0.1:1", "STRIPE_WEBHOOK_SECRET=whsec_x",
		"TALLYSTICK_SMTP_URL=smtp://127.0.0.1:1", "TALLYSTICK_MAIL_TO=billing@example.com", "TALLYSTICK_MAIL_FROM=tallystick@example.com", "TALLYSTICK_LISTEN=127.0.0.1:0",
	}
	if code, _, errs := cli(t, settings, "serve"); code != exitUsage || !strings.Contains(errs, "tallystick migrate") {
		t.Errorf("serve over an empty database ended with %d, want %d:\n%s", code, exitUsage, errs)
	}
	for _, want := range []string{"applied 0001_core.sql", "nothing to do"} {
		if code, out, errs := cli(t, settings, "migrate"); code != exitFine || !strings.Contains(out, want) {
			t.Errorf("migrate ended with %d, want %q:\n%s%s", code, want, out, errs)
		}
	}
	code, out, errs := cli(t, append(settings, "TALLYSTICK_DATA="+t.TempDir()), "keys", "create", "first", "--scope", "admin", "--output", "json")
	if code != exitFine || !strings.Contains(out, `"secret": "tsk_`) {
		t.Errorf("the first key of an installation: %d\n%s%s", code, out, errs)
	}
	if code, out, _ := cli(t, settings, "verify", "--output", "json"); code != exitFine || !strings.Contains(out, `"ok": true`) {
		t.Errorf("verify of a new database ended with %d:\n%s", code, out)
	}
}

// TestCommandsAgainstARunningServer walks through the commands as a user does.
func TestCommandsAgainstARunningServer(t *testing.T) {
	t.Parallel()
	p := up(t, dataDir(t))
	p.must(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": "0.5"}`)
	p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/shop", `{"overdraft": 100}`)
	for _, id := range []string{"resv-0001", "resv-0002"} {
		p.must(http.StatusCreated, http.MethodPost, "/v1/reservations", `{"id": "`+id+`", "account": "shop", "meter": "call", "quantity": 8, "ttl_seconds": 3600}`)
	}
	p.walk([]step{
		{"accounts put acme --name Acme --low-balance 5", exitFine, []string{"acme", "Acme"}},
		{"grants create acme 10 --id first-grant --reason hello --expires 2100-01-01T00:00:00Z", exitFine, []string{"first-grant", "10"}},
		{"grants create acme 10 --id first-grant --reason hello --expires 2100-01-01T00:00:00Z", exitFine, []string{"first-grant", "10"}},
		{"grants list acme", exitFine, []string{"first-grant", "2100-01-01 00:00 UTC", "hello"}},
		{"usage record acme call 3 --id usage-0001 --dimension model=small", exitFine, []string{"usage-0001", "1.5", "8.5"}},
		{"usage record acme call 3 --id usage-0001 --dimension model=small", exitFine, []string{"usage-0001", "1.5", "8.5"}},
		{"usage record acme call 100", exitFindings, []string{"insufficient_credits"}},
		{"usage record acme call 0", exitUsage, []string{"/quantity"}},
		{"usage show usage-0001 --account acme", exitFine, []string{"usage-0001", "0.5", "first-grant=1.5"}},
		{"usage record acme call 2 --id usage-0002", exitFine, []string{"7.5"}},
		{"usage void usage-0002 --account acme --reason mistake", exitFine, []string{"usage-0002", "8.5", "not_billed"}},
		{"usage show usage-0002 --account acme", exitFine, []string{"mistake", "UTC"}},
		{"usage record nobody call 1", exitUsage, []string{"account_not_found"}},
		{"usage totals acme --group-by meter,model", exitFine, []string{"call", "model=small", "1.5"}},
		{"accounts show acme --output json", exitFine, []string{`"available":"8.5"`}},
		{"accounts list --output csv", exitFine, []string{"account,name,available", "acme,Acme,8.5"}},
		{"accounts put acme --name Acme --in-doubt release --in-doubt-after 90m --output json", exitFine, []string{`"in_doubt_after":{"action":"release","seconds":5400}`}},
		{"accounts put acme --in-doubt wait --in-doubt-after 90m", exitUsage, []string{"/in_doubt_after/action"}},
		{"accounts put acme --in-doubt release", exitUsage, []string{"/in_doubt_after/seconds"}},
		{"reservations list --account shop --state open", exitFine, []string{"resv-0001", "resv-0002", "open", "4"}},
		{"reservations list --state expired", exitFine, []string{"nothing to show"}},
		{"reservations capture resv-0001", exitUsage, []string{"quantity", "credits"}},
		{"reservations capture resv-0001 --quantity 2 --credits 2", exitUsage, []string{"quantity", "credits"}},
		{"reservations capture resv-0001 --quantity 2", exitFine, []string{"reservation@resv-0001", "2", "-5"}},
		{"reservations capture resv-0001 --quantity 2 --account shop", exitFine, []string{"reservation@resv-0001", "2", "-5"}},
		{"reservations release resv-0001", exitUsage, []string{"reservation_closed"}},
		{"reservations release resv-0002", exitFine, []string{"resv-0002", "released"}},
		{"reservations show resv-0001 --output csv", exitFine, []string{"reservation,account", "resv-0001,shop,call,4,captured"}},
		{"reservations show resv-0009", exitUsage, []string{"reservation_not_found"}},
		{"keys create reader --scope read", exitFine, []string{"reader", "tsk_"}},
		{"keys list", exitFine, []string{"reader", "made by up"}},
		{"keys revoke nothing", exitUsage, []string{"key_not_found"}},
		{"verify", exitFine, []string{"ok"}},
		{"migrate", exitFine, []string{"up to date"}},
		{"config show", exitFine, []string{"TALLYSTICK_USAGE_BUCKET"}},
		{"version", exitFine, []string{"tallystick "}},
	})
	if code, _, errs := cli(t, nil, "up", "--data", p.dir, "--listen", "127.0.0.1:0"); code == exitFine || !strings.Contains(errs, "another") {
		t.Errorf("a second up on the same directory ended with %d:\n%s", code, errs)
	}
	p.stop()
}

// step is a command, how it ends and what it says.
type step struct {
	args string
	code int
	want []string
}

// walk runs commands one after the other.
func (p *process) walk(steps []step) {
	p.t.Helper()
	for _, step := range steps {
		code, out, errs := cli(p.t, nil, append(strings.Fields(step.args), "--data", p.dir)...)
		if code != step.code {
			p.t.Errorf("%s ended with %d, want %d:\n%s%s", step.args, code, step.code, out, errs)
		}
		for _, want := range step.want {
			if !strings.Contains(out+errs, want) {
				p.t.Errorf("%s does not say %q:\n%s%s", step.args, want, out, errs)
			}
		}
	}
}

// TestCommandsAboutStripeAgainstARunningServer walks through those that look at
// Stripe, and at what came of it.
func TestCommandsAboutStripeAgainstARunningServer(t *testing.T) {
	t.Parallel()
	p := up(t, dataDir(t))
	p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`)
	p.walk([]step{
		{"reconcile list", exitFine, []string{"usage.totals", "credits.payments", "ledger.balances"}},
		{"reconcile run --check ledger.balances", exitFine, []string{"ledger.balances", "succeeded"}},
		{"reconcile run --check nothing", exitUsage, []string{"nothing"}},
		{"findings list", exitFine, []string{"nothing to show"}},
		{"findings show fnd_nothing", exitUsage, []string{"finding_not_found"}},
		{"events list", exitFine, []string{"nothing to show"}},
		{"events list --limit 0", exitUsage, []string{"--limit"}},
		{"events replay", exitUsage, []string{"--failed"}},
		{"events replay --failed evt_1", exitUsage, []string{"--failed"}},
		{"events replay --failed", exitFine, []string{"nothing to show"}},
		{"events replay evt_nowhere", exitUsage, []string{"event_not_found"}},
		{"events backfill --from 2026-01-02T00:00:00Z --to 2026-01-01T00:00:00Z", exitUsage, []string{"--to"}},
		{"events backfill --from yesterday", exitUsage, []string{"--from"}},
		{"events backfill --dry-run --output json", exitFine, []string{`"missing": 0`}},
		{"events parked", exitFine, []string{"nothing to show"}},
		{"events parked --review", exitFine, []string{"nothing to show"}},
		{"events apply", exitFine, []string{"nothing to show"}},
		{"events apply pi_nowhere", exitUsage, []string{"payment_not_found"}},
		{"events map pi_nowhere --account acme", exitUsage, []string{"--reason"}},
		{"events map pi_nowhere --account acme --reason x", exitUsage, []string{"payment_not_found"}},
		{"webhook setup", exitUsage, []string{"--url"}},
		{"webhook setup --url nonsense", exitUsage, []string{"--url"}},
		{"webhook setup --url http://localhost:9 --dry-run", exitFine, []string{"create", "http://localhost:9/webhooks/stripe", "nothing was done"}},
		{"webhook setup --url http://localhost:9", exitFine, []string{"create", "whsec_", "this once"}},
		{"webhook setup --url http://localhost:9", exitFine, []string{"nothing", "we_"}},
	})
	p.stop()
}

// TestUpContinuesWhereItStopped stops and starts on the same data, while another
// one runs on other data.
func TestUpContinuesWhereItStopped(t *testing.T) {
	t.Parallel()
	other := up(t, dataDir(t))
	first := up(t, dataDir(t))
	first.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`)
	first.must(http.StatusCreated, http.MethodPost, "/v1/accounts/acme/grants", `{"id": "first-grant", "credits": 10}`)
	customer := first.stripe(http.MethodPost, "/v1/customers", "name=acme")["id"].(string)
	first.pass(48 * 3600e9)
	first.stop()
	again := up(t, first.dir)
	if again.Info.APIKey != first.Info.APIKey || again.Info.WebhookSecret != first.Info.WebhookSecret || again.Info.PID == first.Info.PID {
		t.Errorf("up came back as another: %v, then %v", first.Info, again.Info)
	}
	if answer := again.must(http.StatusOK, http.MethodGet, "/v1/accounts/acme", ""); !bytes.Contains(answer, []byte(`"available":"10"`)) {
		t.Errorf("the balance was not kept: %s", answer)
	}
	if o := again.stripe(http.MethodGet, "/v1/customers/"+customer, ""); o["id"] != customer {
		t.Errorf("the simulator has forgotten %s: %v", customer, o)
	}
	other.must(http.StatusNotFound, http.MethodGet, "/v1/accounts/acme", "")
	again.stop()
	other.stop()
}

func TestDemoFindsExactlyWhatWasPlanted(t *testing.T) {
	t.Parallel()
	for _, seed := range []string{"1", "2"} {
		t.Run("seed "+seed, func(t *testing.T) {
			t.Parallel()
			code, out, errs := cli(t, nil, "demo", "--exit", "--output", "json", "--seed", seed, "--data", dataDir(t))
			var result struct {
				Planted, Findings []map[string]any
				Mails             int
				OK                bool `json:"ok"`
			}
			if err := json.Unmarshal([]byte(out), &result); err != nil || code != exitFine {
				t.Fatalf("demo ended with %d, %v:\n%s\n%s", code, err, out, errs)
			}
			if !result.OK || len(result.Planted) < 4 || len(result.Findings) != len(result.Planted) || result.Mails == 0 {
				t.Errorf("demo says %s", out)
			}
		})
	}
}

func TestConfigFileIsWeakerThanTheEnvironment(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "settings")
	if err := os.WriteFile(file, []byte("TALLYSTICK_STRIPE_RATE=7\nTALLYSTICK_USAGE_BUCKET=5m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, out, errs := cli(t, []string{"TALLYSTICK_STRIPE_RATE=8"}, "config", "show", "--config", file, "--output", "json")
	var shown map[string]string
	if err := json.Unmarshal([]byte(out), &shown); err != nil || shown["TALLYSTICK_STRIPE_RATE"] != "8" || shown["TALLYSTICK_USAGE_BUCKET"] != "5m0s" {
		t.Errorf("%v, %v: %s", shown, err, errs)
	}
	if code, _, errs := cli(t, nil, "config", "show", "--config", file+"x"); code != exitUsage || !strings.Contains(errs, file+"x") {
		t.Errorf("a file that is missing: %d %s", code, errs)
	}
}

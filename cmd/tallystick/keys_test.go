package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"tallystick/api"
	"tallystick/internal/pg/pgtest"
)

// TestKeysThroughAServerAndDirectly walks through the commands of keys in both
// ways: what they print must not depend on which it is.
func TestKeysThroughAServerAndDirectly(t *testing.T) {
	t.Parallel()
	p := up(t, dataDir(t))
	for way, settings := range map[string][]string{
		"through a server": {"TALLYSTICK_DATA=" + p.dir},
		"directly":         {"TALLYSTICK_DATA=" + t.TempDir(), "DATABASE_URL=" + pgtest.DSN(t)},
	} {
		var key api.Key
		step := func(code int, args, want string) {
			t.Helper()
			got, out, errs := cli(t, settings, strings.Fields(strings.ReplaceAll(args, "KEY", key.ID))...)
			if got != code || !strings.Contains(out+errs, want) {
				t.Errorf("%s: %s ended with %d, want %d and %q:\n%s%s", way, args, got, code, want, out, errs)
			}
			if strings.Contains(args, "json") && code == exitFine {
				key = api.Key{}
				if err := json.Unmarshal([]byte(out), &key); err != nil {
					t.Fatalf("%s: %v in %s", way, err, out)
				}
			}
		}
		step(exitUsage, "keys create k --rate 100001", "/rate_limit/per_second")
		step(exitUsage, "keys create k --burst 5", "/rate_limit/per_second")
		step(exitFine, "keys create k --scope read --rate 5 --output json", "tsk_")
		if key.RateLimit == nil || *key.RateLimit != (api.RateLimit{PerSecond: 5, Burst: 5}) {
			t.Errorf("%s: the key has the limit %+v", way, key.RateLimit)
		}
		step(exitFine, "keys limit KEY --rate 7 --burst 20", "7/s, 20 at once")
		step(exitFine, "keys list", "7/s, 20 at once")
		step(exitUsage, "keys limit KEY", "--none")
		step(exitUsage, "keys limit KEY --none --rate 1", "--none")
		step(exitUsage, "keys limit nobody --none", "key_not_found")
		step(exitUsage, "keys rotate KEY --overlap 1500ms", "whole seconds")
		step(exitUsage, "keys rotate KEY --overlap 169h", "/overlap_seconds")
		secret := key.Secret
		step(exitFine, "keys rotate KEY --overlap 1h --output json", "tsk_")
		if key.Secret == secret || key.RotatedAt == nil || key.PreviousExpiresAt == nil {
			t.Errorf("%s: the key was rotated to %+v", way, key)
		}
		step(exitFine, "keys list --output csv", key.PreviousExpiresAt.Format("2006-01-02T15:04:05Z07:00"))
		step(exitUsage, "keys rotate KEY", "rotation_under_way")
		step(exitFine, "keys rotate KEY --overlap 0s", "tsk_")
		step(exitFine, "keys limit KEY --none --output json", `"rate_limit": null`)
		step(exitFine, "keys revoke KEY", "k")
		step(exitUsage, "keys rotate KEY", "key_ended")
	}
	p.stop()
}

func TestTokensOfAnAccountByCommand(t *testing.T) {
	t.Parallel()
	p := up(t, dataDir(t))
	p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`)
	settings := []string{"TALLYSTICK_DATA=" + p.dir}
	code, out, errs := cli(t, settings, "accounts", "token", "acme", "--ttl", "90s", "--name", "page", "--output", "json")
	var token api.Token
	if err := json.Unmarshal([]byte(out), &token); err != nil || code != exitFine || token.ExpiresAt.Sub(token.CreatedAt).Seconds() != 90 {
		t.Fatalf("the token ended with %d, %v:\n%s%s", code, err, out, errs)
	}
	read := func(want int, path string) {
		t.Helper()
		if status, body, err := send(http.MethodGet, p.Info.URL+path, token.Secret, ""); err != nil || status != want {
			t.Errorf("%s was answered %d, want %d: %v %s", path, status, want, err, body)
		}
	}
	read(200, "/v1/accounts/acme")
	read(403, "/v1/accounts")
	for _, step := range []struct {
		args string
		code int
		want string
	}{
		{"accounts token acme --ttl 1500ms", exitUsage, "whole seconds"},
		{"accounts token acme --ttl 25h", exitUsage, "/ttl_seconds"},
		{"accounts token nobody", exitUsage, "account_not_found"},
		{"accounts tokens acme", exitFine, "page"},
		{"accounts tokens nobody", exitUsage, "account_not_found"},
		{"accounts revoke-token acme nothing", exitUsage, "token_not_found"},
		{"accounts revoke-token acme " + token.ID, exitFine, token.ID},
	} {
		code, out, errs := cli(t, settings, strings.Fields(step.args)...)
		if code != step.code || !strings.Contains(out+errs, step.want) || strings.Contains(out, token.Secret) {
			t.Errorf("%s ended with %d, want %d and %q:\n%s%s", step.args, code, step.code, step.want, out, errs)
		}
	}
	read(401, "/v1/accounts/acme")
	p.stop()
}

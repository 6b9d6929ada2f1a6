package client_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// TestTypeScript holds the client in clients/typescript against the document that its
// types come from, and plays it in Node against the running program.
func TestTypeScript(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("..", "clients", "typescript")
	run := func(name string, arguments ...string) []byte {
		t.Helper()
		command := exec.CommandContext(t.Context(), name, arguments...)
		command.Dir = dir
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s\nmake test installs node and npm where they are missing; so does scripts/need node", name, arguments, err, out)
		}
		return out
	}
	lock, err := os.ReadFile(filepath.Join(dir, "package-lock.json"))
	if err != nil {
		t.Fatal(err)
	}
	// Installed as the lock file says, once, and again when it has changed.
	stamp := filepath.Join(dir, "node_modules", ".installed-lock.json")
	if installed, err := os.ReadFile(stamp); err != nil || !bytes.Equal(installed, lock) {
		run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
		if err := os.WriteFile(stamp, lock, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fresh := filepath.Join(t.TempDir(), "schema.ts")
	run("npx", "--no-install", "openapi-typescript", filepath.Join("..", "..", "api", "openapi.yaml"), "--output", fresh)
	if !bytes.Equal(read(t, fresh), read(t, filepath.Join(dir, "src", "schema.ts"))) {
		t.Error("src/schema.ts is not what api/openapi.yaml says: run npm run generate in clients/typescript, and commit it")
	}
	run("npm", "run", "build")
	s := open(t)
	n := 0
	for _, file := range []string{"client.test.mjs", "do.test.mjs"} { // one after the other: both count the same account's credits
		play := exec.CommandContext(t.Context(), "node", "--test", "--test-reporter=tap", filepath.Join("test", file))
		play.Dir = dir
		play.Env = append(os.Environ(), "TALLYSTICK_URL="+s.Info.URL, "TALLYSTICK_API_KEY="+s.Info.APIKey)
		out, err := play.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if found := regexp.MustCompile(`(?m)^# pass (\d+)$`).FindSubmatch(out); found != nil {
			passed, _ := strconv.Atoi(string(found[1]))
			n += passed
		}
	}
	if n < 19 {
		t.Errorf("%d tests were played", n)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

package conformance

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"

	"tallystick/stripesim"
)

// library installs Stripe's library for Node as the lock file says, once, and again
// when the lock file has changed.
var library = sync.OnceValue(func() error {
	lock, err := os.ReadFile(filepath.Join("node", "package-lock.json"))
	if err != nil {
		return err
	}
	stamp := filepath.Join("node", "node_modules", ".installed-lock.json")
	if installed, err := os.ReadFile(stamp); err == nil && bytes.Equal(installed, lock) {
		return nil
	}
	install := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	install.Dir = "node"
	if out, err := install.CombinedOutput(); err != nil {
		return &installError{err, out}
	}
	return os.WriteFile(stamp, lock, 0o600)
})

type installError struct {
	err error
	out []byte
}

// Error shows what npm has said.
func (e *installError) Error() string {
	return "npm ci: " + e.err.Error() + "\n" + string(e.out) + "\nmake test installs node and npm where they are missing; so does scripts/need node"
}

// Unwrap is what came of starting npm.
func (e *installError) Unwrap() error { return e.err }

// passed is in the report of node's test runner.
var passed = regexp.MustCompile(`(?m)^# pass (\d+)$`)

// TestNode plays the stories of conformance/node by Stripe's own library for Node,
// each file against a simulator of its own.
func TestNode(t *testing.T) {
	t.Parallel()
	if err := library(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join("node", "*.test.mjs"))
	if err != nil || len(files) < 8 {
		t.Fatalf("the stories are %q, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			sim := stripesim.New(t)
			play := exec.CommandContext(t.Context(), "node", "--test", "--test-reporter=tap", filepath.Base(file))
			play.Dir = "node"
			play.Env = append(os.Environ(), "STRIPESIM_URL="+sim.URL, "STRIPESIM_KEY="+sim.Key)
			out, err := play.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			n := 0
			if found := passed.FindSubmatch(out); found != nil {
				n, _ = strconv.Atoi(string(found[1]))
			}
			if n < 2 {
				t.Errorf("%d stories were played:\n%s", n, out)
			}
		})
	}
}

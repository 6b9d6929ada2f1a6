package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tallystick/internal/config"
)

func readme(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// settingsTable is the README's table of settings as it must be.
func settingsTable() string {
	var b strings.Builder
	b.WriteString("| setting | default | meaning |\n| --- | --- | --- |\n")
	for _, s := range config.Reference() {
		fallback := ""
		if s.Default != "" {
			fallback = "`" + s.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.Name, fallback, strings.ReplaceAll(s.Doc, "|", `\|`))
	}
	return b.String()
}

func TestReadmeListsEverySetting(t *testing.T) {
	t.Parallel()
	if want := settingsTable(); !strings.Contains(readme(t), want) {
		t.Errorf("the README's table of settings is not this one:\n%s", want)
	}
}

// TestReadmeCommandsDoWhatTheReadmeSays runs the quick start's commands, in their
// order, against a server that has just been started.
func TestReadmeCommandsDoWhatTheReadmeSays(t *testing.T) {
	t.Parallel()
	_, start, ok := strings.Cut(readme(t), "<!-- quick start")
	if !ok {
		t.Fatal("the README has no quick start")
	}
	start, _, _ = strings.Cut(start, "\n## ")
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(start, -1)
	if len(blocks) < 5 {
		t.Fatalf("the quick start has %d blocks", len(blocks))
	}
	p := up(t, dataDir(t))
	var script strings.Builder
	for _, b := range blocks {
		script.WriteString(b[1])
		if strings.Contains(b[1], "/pay ") { // the README says: a moment later
			script.WriteString("\nfor i in $(seq 200); do call $URL/v1/accounts/acme | grep -q '\"1004.5\"' && break; sleep 0.05; done\n")
		}
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", strings.ReplaceAll(script.String(), "bin/tallystick", os.Args[0]))
	cmd.Dir = root
	cmd.Env = environment("URL="+p.Info.URL, "KEY="+p.Info.APIKey, "STRIPE="+p.Info.StripeAPIBase, "TALLYSTICK_DATA="+p.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the quick start ends with %v:\n%s", err, out)
	}
	for _, want := range []string{`"credits":"4.12"`, `"available":"0.88"`, `"code":"insufficient_credits"`, `"returned":"4.12"`, "1004.5", "nothing to show", "no two deliveries share an identifier"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("the quick start does not print %s:\n%s", want, out)
		}
	}
	p.must(http.StatusOK, http.MethodGet, "/v1/accounts/acme", "")
	p.stop()
}

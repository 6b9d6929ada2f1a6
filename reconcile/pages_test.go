package reconcile_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// causesInCode reads the causes out of the checks' own source.
func causesInCode(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("check_*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("the checks' source is not here: %v", err)
	}
	var causes []string
	for _, name := range files {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:broken\(|Cause, [^=\n]*= |Cause(?:: +| = (?:[^\n]*, )?))"([a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
			causes = append(causes, m[1])
		}
	}
	slices.Sort(causes)
	return slices.Compact(causes)
}

// document is the page of a check.
func document(t *testing.T, check string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "docs", "checks", check+".md"))
	if err != nil {
		t.Error(err)
	}
	return string(content)
}

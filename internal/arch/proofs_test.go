package arch

import (
	"fmt"
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestProofsNameTestsThatExist reads docs/proofs.md: each row of a fault has a
// test that is in the tree, or says why not; and no fault is left out.
func TestProofsNameTestsThatExist(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join("..", "..", "docs", "proofs.md"))
	if err != nil {
		t.Fatal(err)
	}
	sources, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	for _, mistake := range proofMistakes(string(content), testNames(sources)) {
		t.Error(mistake)
	}
}

// testNames are the tests and fuzz targets of the tree.
func testNames(sources []*source) map[string]bool {
	names := map[string]bool{}
	for _, s := range sources {
		for _, d := range s.ast.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test && f.Recv == nil {
				names[f.Name.Name] = true
			}
		}
	}
	return names
}

var (
	proofName = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	proofRow  = regexp.MustCompile(`(?m)^\| ([ACEG]\d\d|[A-Za-z][A-Za-z0-9-]+ (?:PR )?\d+) \| ([^|]+) \| ([^|]+) \|$`)
)

func proofMistakes(page string, names map[string]bool) (mistakes []string) {
	for _, m := range proofName.FindAllStringSubmatch(page, -1) {
		if !names[m[1]] {
			mistakes = append(mistakes, fmt.Sprintf("docs/proofs.md names %s, and there is no such test", m[1]))
		}
	}
	rows := map[string]bool{}
	for _, m := range proofRow.FindAllStringSubmatch(page, -1) {
		rows[m[1]] = true
		if !proofName.MatchString(m[3]) && !strings.HasPrefix(m[3], "open: ") && !strings.HasPrefix(m[3], "other: ") {
			mistakes = append(mistakes, fmt.Sprintf("docs/proofs.md has neither a test nor a reason for %s", m[1]))
		}
	}
	for part, count := range map[string]int{"A": 18, "C": 14, "E": 12, "G": 12} {
		for n := range count {
			if id := fmt.Sprintf("%s%02d", part, n+1); !rows[id] {
				mistakes = append(mistakes, "docs/proofs.md leaves out "+id)
			}
		}
	}
	for _, peer := range []string{
		"Formance 364", "Formance PR 365", "Formance 1638", "Formance 1633", "Formance 1281", "Blnk 181", "Blnk 182", "Blnk PR 43", "Blnk 152", "Lago 5870", "OpenMeter 5118", "five-bells-ledger 402",
		"akash 2438", "llmgateway 2400", "eliza 10997", "eliza 31449", "eliza 11155", "eliza 10938", "vm0 10668", "AI-Shipping-Labs 1423", "woocommerce 5478", "stripe-go 1771",
		"OpenMeter 2080", "woocommerce 883", "gumroad 5779",
	} {
		if !rows[peer] {
			mistakes = append(mistakes, "docs/proofs.md leaves out "+peer)
		}
	}
	return mistakes
}

// TestMistakesOfThePageOfProofsAreFound plants each.
func TestMistakesOfThePageOfProofsAreFound(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join("..", "..", "docs", "proofs.md"))
	if err != nil {
		t.Fatal(err)
	}
	page, names := string(content), map[string]bool{}
	for _, m := range proofName.FindAllStringSubmatch(page, -1) {
		names[m[1]] = true
	}
	if mistakes := proofMistakes(page, names); len(mistakes) > 0 {
		t.Fatalf("without a mistake: %q", mistakes)
	}
	for _, tc := range []struct{ old, replacement, want string }{
		{"`TestA18NothingLeaks`", "`TestA18SomethingElse`", "there is no such test"},
		{"`TestA18NothingLeaks`", "some day", "neither a test nor a reason for A18"},
		{"| A18 |", "| A19 |", "leaves out A18"},
		{"| Lago 5870 |", "| Lago |", "leaves out Lago 5870"},
	} {
		changed := strings.Replace(page, tc.old, tc.replacement, 1)
		if mistakes := strings.Join(proofMistakes(changed, names), "\n"); !strings.Contains(mistakes, tc.want) {
			t.Errorf("with %s for %s: %q, want %q", tc.replacement, tc.old, mistakes, tc.want)
		}
	}
}

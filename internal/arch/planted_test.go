package arch

import (
	"strings"
	"testing"
)

// TestRulesBite plants what each rule must find, and beside it what it must let
// through.
func TestRulesBite(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rule, path, content string
		want                string // part of the one complaint; "" for none
	}{
		{"imports", "reconcile/x.go", "package reconcile\nimport _ \"tallystick/ledger\"", "reconcile may not import ledger"},
		{"imports", "reconcile/x.go", "package reconcile\nimport _ \"tallystick/internal/credit\"", ""},
		{"imports", "reconcile/x_test.go", "package reconcile\nimport _ \"tallystick/ledger\"", ""},
		{"imports", "stripesim/x.go", "package stripesim\nimport _ \"tallystick/internal/credit\"", "stripesim may not import internal/credit"},
		{"imports", "internal/app/x.go", "package app\nimport _ \"tallystick/cmd/tallystick\"", "may not import cmd/tallystick"},
		{"imports", "internal/app/x.go", "package app\nimport _ \"tallystick/reconcile\"", ""},
		{"imports", "internal/util/x.go", "package util", "no row"},

		{"package comments", "meter/x.go", "package meter", "meter has 0 package comments"},
		{"package comments", "meter/x.go", "// Package meter meters.\npackage meter", ""},

		{"lengths", "meter/x.go", "package meter\nfunc f() {" + strings.Repeat("\n", 70) + "}", "f has 71 lines"},
		{"lengths", "meter/x.go", "package meter\nfunc f() {" + strings.Repeat("\n", 69) + "}", ""},
		{"lengths", "meter/x_test.go", "package meter" + strings.Repeat("\n", 501), "has 501 lines"},
		{"lengths", "meter/x.go", "package meter" + strings.Repeat("\n", 500), ""},

		{"no skipped tests", "meter/x_test.go", "package meter\nfunc TestX(t *testing.T) { t.Skip(\"no database\") }", "call of Skip"},
		{"no skipped tests", "meter/x_test.go", "package meter\nfunc helper(tb testing.TB) { tb.SkipNow() }", "call of SkipNow"},
		{"no skipped tests", "meter/x_test.go", "package meter\nfunc TestX(t *testing.T) { t.Fatal(\"no database\") }", ""},

		{"one door", "outbox/x.go", "package outbox\nimport _ \"github.com/stripe/stripe-go/v76/client\"", "only internal/stripe"},
		{"one door", "stripesim/x.go", "package stripesim\nimport _ \"github.com/stripe/stripe-go/v76\"", "only internal/stripe"},
		{"one door", "stripesim/x_test.go", "package stripesim\nimport _ \"github.com/stripe/stripe-go/v76\"", ""},
		{"one door", "internal/stripe/x.go", "package stripe\nimport _ \"github.com/stripe/stripe-go/v76\"", ""},

		{"one clock", "ledger/x.go", "package ledger\nimport \"time\"\nvar now = time.Now", "time.Now outside"},
		{"one clock", "ledger/x.go", "package ledger\nimport clock \"time\"\nvar now = clock.Now()", "time.Now outside"},
		{"one clock", "ledger/x.go", "package ledger\nimport time \"tallystick/internal/clock\"\nvar now = time.Now()", ""},
		{"one clock", "ledger/x_test.go", "package ledger\nimport \"time\"\nvar now = time.Now", ""},

		{"writes in tx", "ledger/x.go", "package ledger\nfunc f() { db.ExecContext(ctx, q) }", "call of ExecContext"},
		{"writes in tx", "ledger/x.go", "package ledger\nfunc f() { s.db.NamedExec(q, v) }", "call of NamedExec"},
		{"writes in tx", "ledger/x.go", "package ledger\nfunc f() { tx.ExecContext(ctx, q) }", ""},
		{"writes in tx", "ledger/x.go", "package ledger\nimport \"syscall\"\nfunc f() { syscall.Exec(a, b, c) }", ""},
	} {
		content := c.content[:min(len(c.content), 80)]
		complaints := rules[c.rule](planted(t, c.path, c.content))
		found := len(complaints) == 1 && strings.Contains(complaints[0], c.want)
		if (c.want == "" && len(complaints) > 0) || (c.want != "" && !found) {
			t.Errorf("%s on %s: %q: got %q, want one complaint with %q", c.rule, c.path, content, complaints, c.want)
		}
	}
}

func TestTwoPackageCommentsAreFound(t *testing.T) {
	t.Parallel()
	sources := append(planted(t, "meter/a.go", "// Package meter meters.\npackage meter"), planted(t, "meter/b.go", "// Package meter counts.\npackage meter")...)
	if complaints := packageComments(sources); len(complaints) != 1 || !strings.Contains(complaints[0], "2 package comments") {
		t.Errorf("two package comments: %q", complaints)
	}
}

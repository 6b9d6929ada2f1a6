package arch

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
	"testing"
)

const (
	functionLinesMax = 70
	fileLinesMax     = 500
)

// rules are functions from sources to complaints.
var rules = map[string]func([]*source) []string{
	"imports":          imports,
	"package comments": packageComments,
	"lengths":          lengths,
	"no skipped tests": skips,
	"one door":         doorToStripe,
	"one clock":        clocks,
	"writes in tx":     autocommit,
}

func TestRules(t *testing.T) {
	t.Parallel()
	for name, rule := range rules {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, complaint := range rule(sources(t)) {
				t.Error(complaint)
			}
		})
	}
}

// packageComments wants exactly one for each package: none leaves a reader
// without an entry, two contradict each other sooner or later.
func packageComments(sources []*source) []string {
	found := map[string][]string{}
	for _, s := range sources {
		if s.test {
			continue
		}
		found[s.pkg()] = append(found[s.pkg()], "")
		if s.ast.Doc != nil {
			found[s.pkg()][0] += s.path + " "
		}
	}
	var complaints []string
	for pkg, files := range found {
		if n := len(strings.Fields(files[0])); n != 1 {
			complaints = append(complaints, fmt.Sprintf("%s has %d package comments, want 1: %s", pkg, n, files[0]))
		}
	}
	slices.Sort(complaints)
	return complaints
}

func lengths(sources []*source) []string {
	var complaints []string
	for _, s := range sources {
		if s.lines > fileLinesMax {
			complaints = append(complaints, fmt.Sprintf("%s has %d lines, at most %d are allowed", s.path, s.lines, fileLinesMax))
		}
		for _, declaration := range s.ast.Decls {
			f, ok := declaration.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if lines := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line + 1; lines > functionLinesMax {
				complaints = append(complaints, fmt.Sprintf("%s: %s has %d lines, at most %d are allowed", s.at(f), f.Name.Name, lines, functionLinesMax))
			}
		}
	}
	return complaints
}

// skips finds tests that may pass by not running.
func skips(sources []*source) []string {
	return calls(sources, func(s *source, x ast.Expr, name string) bool {
		if name != "Skip" && name != "Skipf" && name != "SkipNow" {
			return false
		}
		receiver, ok := x.(*ast.Ident)
		return ok && slices.Contains([]string{"t", "tb", "b", "f"}, receiver.Name)
	}, "a test that skips says ok about nothing")
}

// doorToStripe lets stripe-go in by one package; tests of the simulator use it
// as a customer would.
func doorToStripe(sources []*source) []string {
	var complaints []string
	for _, s := range sources {
		if s.pkg() == "internal/stripe" || (s.test && strings.HasPrefix(s.path, "stripesim/")) {
			continue
		}
		for _, spec := range s.ast.Imports {
			if strings.HasPrefix(spec.Path.Value, `"github.com/stripe/stripe-go`) {
				complaints = append(complaints, s.at(spec)+": only internal/stripe may import stripe-go")
			}
		}
	}
	return complaints
}

// clocks finds readers of the machine's time. The simulator shares nothing with
// us, so it has a clock of its own; what exists for tests waits as tests do.
func clocks(sources []*source) []string {
	var complaints []string
	for _, s := range sources {
		if s.test || s.pkg() == "internal/clock" || s.pkg() == "internal/apptest" || s.path == "stripesim/clock.go" {
			continue
		}
		ast.Inspect(s.ast, func(node ast.Node) bool { // not only calls: handing time.Now on is reading it too
			selector, ok := node.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Now", "Since", "Until"}, selector.Sel.Name) {
				return true
			}
			if x, ok := selector.X.(*ast.Ident); ok && s.imported(x.Name) == "time" {
				complaints = append(complaints, fmt.Sprintf("%s: time.%s outside internal/clock", s.at(selector), selector.Sel.Name))
			}
			return true
		})
	}
	return complaints
}

// autocommit finds writes that are not statements of a transaction, which is
// always called tx: database/sql may run them twice.
func autocommit(sources []*source) []string {
	var product []*source
	for _, s := range sources {
		// CREATE DATABASE cannot run in a transaction, and a driver is what runs them.
		if !s.test && s.pkg() != "internal/pg/pgtest" && s.path != "internal/pg/statements.go" {
			product = append(product, s)
		}
	}
	return calls(product, func(s *source, x ast.Expr, name string) bool {
		switch strings.TrimSuffix(name, "Context") {
		case "Exec", "NamedExec", "MustExec":
		default:
			return false
		}
		receiver, ok := x.(*ast.Ident)
		return !ok || (receiver.Name != "tx" && s.imported(receiver.Name) == "")
	}, "a write outside a transaction may run twice; use pg.DB.InTx and call the transaction tx")
}

// calls lists the method calls x.name(…) that match.
func calls(sources []*source, match func(s *source, x ast.Expr, name string) bool, why string) []string {
	var complaints []string
	for _, s := range sources {
		ast.Inspect(s.ast, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			selector, ok := call.Fun.(*ast.SelectorExpr)
			if ok && match(s, selector.X, selector.Sel.Name) {
				complaints = append(complaints, fmt.Sprintf("%s: call of %s: %s", s.at(call), selector.Sel.Name, why))
			}
			return true
		})
	}
	return complaints
}

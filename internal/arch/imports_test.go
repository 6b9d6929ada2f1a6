package arch

import (
	"fmt"
	"slices"
	"strings"
)

// vocabulary is the floor that the packages with business in them stand on.
var vocabulary = []string{
	"internal/clock", "internal/config", "internal/credit", "internal/fault", "internal/loop",
	"internal/mail", "internal/pg", "internal/stripe", "internal/telemetry", "internal/web",
}

// anything marks a package that may import all others but the commands.
const anything = "*"

// permitted says which of our packages each package may import outside its
// tests. A new arrow is a decision: the commit that adds it says why.
var permitted = map[string][]string{
	"cmd/tallystick":   {anything},
	"internal/app":     {anything},
	"internal/apptest": {anything},
	"internal/demo":    {anything},
	"internal/bench":   {anything},

	"dashboard": with(vocabulary, "meter", "webhooks", "reconcile", "outbox", "ledger"),
	"meter":     with(vocabulary, "ledger", "outbox", "api"),
	"retention": vocabulary,
	"webhooks":  with(vocabulary, "ledger", "outbox", "api"),
	"reconcile": with(vocabulary, "api"), // the auditor stays outside what it audits
	"ledger":    with(vocabulary, "api"),
	"outbox":    with(vocabulary, "api"),
	"client":    {"api", "internal/credit", "internal/clock"}, // users see api alone

	"internal/web":       {"api", "internal/fault", "internal/clock"},
	"internal/pg":        {"internal/clock", "internal/fault", "migrations"},
	"internal/pg/pgtest": {"internal/pg", "internal/pg/pgdev", "migrations"},
	"internal/stripe":    {"internal/credit", "internal/fault", "internal/clock"},
	"internal/mail":      {"internal/fault", "internal/clock"},
	"internal/telemetry": {"internal/fault", "internal/clock"},
	"internal/config":    {"internal/fault", "internal/credit"},
	"internal/credit":    {"internal/fault"},
	"internal/loop":      {"internal/fault"},
	"internal/importer":  {"api", "internal/clock", "internal/fault", "internal/web"},

	"internal/arch":     nil,
	"internal/mutants":  nil, // its tests start the program from outside
	"internal/clock":    nil,
	"internal/fault":    nil,
	"internal/pg/pgdev": nil,
	"stripesim":         nil, // a Stripe that shared our code would share our mistakes
	"api":               nil,
	"migrations":        nil,
}

func with(base []string, more ...string) []string { return slices.Concat(base, more) }

// imports holds the tree against the table. A package without a row is a
// complaint too, so that nothing grows beside the table.
func imports(sources []*source) []string {
	var complaints []string
	for _, s := range sources {
		if s.test {
			continue // a test may stand anywhere
		}
		row, known := permitted[s.pkg()]
		if !known {
			complaints = append(complaints, s.path+": the package has no row in the table of permitted imports")
			continue
		}
		for _, spec := range s.ast.Imports {
			target, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module+"/")
			if !ours {
				continue
			}
			toAll := slices.Contains(row, anything) && !strings.HasPrefix(target, "cmd/")
			if !toAll && !slices.Contains(row, target) {
				complaints = append(complaints, fmt.Sprintf("%s: %s may not import %s", s.at(spec), s.pkg(), target))
			}
		}
	}
	return complaints
}

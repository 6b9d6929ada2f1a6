package arch

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/types"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
)

// statementName is how constants with SQL are called.
var statementName = regexp.MustCompile(`^sql[A-Z]`)

// statement is one constant with SQL.
type statement struct{ name, at, sql string }

// TestStatementsFitTheSchema prepares every statement of the product in a
// migrated database, as the role that runs it, and plans it, which also checks
// that the role may do it. A column that was renamed, and a privilege that was
// forgotten, are found here and not on the one path that no test takes.
func TestStatementsFitTheSchema(t *testing.T) {
	t.Parallel()
	found, err := statements(sources(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 50 {
		t.Fatalf("found %d statements: the constants were not found", len(found))
	}
	dsn := pgtest.DSN(t)
	service, owner := pgtest.Open(t, dsn, pg.Options{}), pgtest.Owner(t, dsn)
	for _, s := range found {
		db := service
		if strings.HasPrefix(s.at, archiver) {
			db = owner
		}
		if err := plan(t, db, s.sql); err != nil {
			t.Errorf("%s: %s: %v", s.at, s.name, err)
		}
	}
}

// archiver is the one file whose statements an operator runs as the owner of the
// tables: the service may not let go of usage.
const archiver = "retention/archive.go:"

func TestStatementsThatDoNotFitAreFound(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for _, c := range []struct{ declaration, code string }{
		{"const sqlFine = `SELECT account FROM accounts WHERE part = $1`", ""},
		{"const sqlMisspelt = `SELECT acount FROM accounts`", "42703"},
		{"const sqlNoTable = `INSERT INTO acounts VALUES ($1)`", pg.CodeUndefinedTable},
		{"const from = ` FROM acounts`; const sqlJoined = `SELECT 1` + from", pg.CodeUndefinedTable},
		{"func f() { const sqlInside = `SELECT part FROM acounts` }", pg.CodeUndefinedTable},
		{"const sqlForbidden = `DELETE FROM transfers WHERE part = $1`", pg.CodePrivilege},
		{"const sqlForbiddenToo = `UPDATE transfers SET amount = $2 WHERE part = $1`", pg.CodePrivilege},
	} {
		found, err := statements(planted(t, "ledger/x.go", "package ledger\n"+c.declaration))
		if err != nil || len(found) != 1 {
			t.Errorf("%s: found %v, %v; want one statement", c.declaration, found, err)
			continue
		}
		err = plan(t, db, found[0].sql)
		if (c.code == "" && err != nil) || (c.code != "" && !pg.IsCode(err, c.code)) {
			t.Errorf("%s: got %v, want SQLSTATE %q", c.declaration, err, c.code)
		}
	}
}

var errPlanned = errors.New("planned, nothing to keep")

// plan asks Postgres how it would run the statement with whatever parameters.
func plan(t *testing.T, db *pg.DB, statement string) error {
	t.Helper()
	err := db.InTx(t.Context(), func(tx *sqlx.Tx) error {
		// A prepared statement belongs to the connection and outlives a rollback.
		for _, step := range []string{"DEALLOCATE ALL", "SET LOCAL plan_cache_mode = force_generic_plan", "PREPARE statement AS " + statement} {
			if _, err := tx.ExecContext(t.Context(), step); err != nil {
				return err
			}
		}
		var parameters int
		if err := tx.GetContext(t.Context(), &parameters, "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'statement'"); err != nil {
			return err
		}
		execute := "EXPLAIN EXECUTE statement"
		if parameters > 0 {
			execute += "(NULL" + strings.Repeat(", NULL", parameters-1) + ")"
		}
		if _, err := tx.ExecContext(t.Context(), execute); err != nil {
			return err
		}
		return errPlanned
	})
	if errors.Is(err, errPlanned) {
		return nil
	}
	return err
}

// statements evaluates the constants of the product that hold SQL, also those
// that are put together from others.
func statements(sources []*source) ([]statement, error) {
	packages := map[string][]*source{}
	for _, s := range sources {
		if !s.test {
			packages[s.pkg()] = append(packages[s.pkg()], s)
		}
	}
	var found []statement
	for pkg, files := range packages {
		info := definitions(pkg, files)
		for _, s := range files {
			more, err := inFile(s, info)
			if err != nil {
				return nil, err
			}
			found = append(found, more...)
		}
	}
	slices.SortFunc(found, func(a, b statement) int { return cmp.Compare(a.at, b.at) })
	return found, nil
}

func inFile(s *source, info *types.Info) (found []statement, err error) {
	ast.Inspect(s.ast, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for _, name := range spec.Names {
			if !statementName.MatchString(name.Name) {
				continue
			}
			constantOf, ok := info.Defs[name].(*types.Const)
			if !ok || constantOf.Val().Kind() != constant.String {
				err = errors.Join(err, fmt.Errorf("%s: %s cannot be evaluated: SQL is a constant made of constants of its own package", s.at(name), name.Name))
				continue
			}
			found = append(found, statement{name: name.Name, at: s.at(name), sql: constant.StringVal(constantOf.Val())})
		}
		return true
	})
	return found, err
}

// definitions type-checks one package for the sake of its constants. All that
// comes from other packages stays unknown, and the errors about it unread.
func definitions(pkg string, files []*source) *types.Info {
	syntax := make([]*ast.File, 0, len(files))
	for _, s := range files {
		syntax = append(syntax, s.ast)
	}
	info := &types.Info{Defs: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: stranger{}, Error: func(error) {}}
	_, _ = config.Check(pkg, files[0].fset, syntax, info)
	return info
}

// stranger stands for every imported package without looking into it.
type stranger struct{}

func (stranger) Import(importPath string) (*types.Package, error) {
	p := types.NewPackage(importPath, path.Base(importPath))
	p.MarkComplete()
	return p, nil
}

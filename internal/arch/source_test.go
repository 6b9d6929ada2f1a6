package arch

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const module = "tallystick"

// source is one parsed file.
type source struct {
	path  string // inside the module, with slashes
	test  bool
	lines int
	fset  *token.FileSet
	ast   *ast.File
}

// pkg is the package's path inside the module.
func (s *source) pkg() string { return path.Dir(s.path) }

// at says where a node is, for a message.
func (s *source) at(node ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(node.Pos()).Line)
}

// imported is the import path that an identifier of this file stands for, "" for
// none. A package's last element is taken for its name, which holds for all
// that the rules are about.
func (s *source) imported(name string) string {
	for _, spec := range s.ast.Imports {
		importPath := strings.Trim(spec.Path.Value, `"`)
		local := path.Base(importPath)
		if spec.Name != nil {
			local = spec.Name.Name
		}
		if local == name {
			return importPath
		}
	}
	return ""
}

// parse reads one file; the content nil means from disk.
func parse(fset *token.FileSet, name, within string, content any) (*source, error) {
	file, err := parser.ParseFile(fset, filepath.Join(within, name), content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &source{
		path: filepath.ToSlash(name), test: strings.HasSuffix(name, "_test.go"),
		lines: fset.File(file.Pos()).LineCount(), fset: fset, ast: file,
	}, nil
}

// tree is every Go file of this module that belongs to a build on this machine.
var tree = sync.OnceValues(func() ([]*source, error) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var sources []*source
	err = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name != root && outside(name, entry.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		if built, err := build.Default.MatchFile(filepath.Dir(name), entry.Name()); err != nil || !built {
			return err
		}
		inside, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		parsed, err := parse(fset, inside, root, nil)
		if err != nil {
			return err
		}
		sources = append(sources, parsed)
		return nil
	})
	return sources, err
})

// outside tells whether a directory is no part of the module: hidden, data of
// tests, what was built, or a module of its own.
func outside(dir, name string) bool {
	if strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" {
		return true
	}
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// sources is the tree, whole enough for a rule's silence to mean something.
func sources(t *testing.T) []*source {
	t.Helper()
	all, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("found %d Go files: the tree was not found", len(all))
	}
	return all
}

// planted is a tree of one file.
func planted(t *testing.T, name, content string) []*source {
	t.Helper()
	s, err := parse(token.NewFileSet(), name, "", content)
	if err != nil {
		t.Fatal(err)
	}
	return []*source{s}
}

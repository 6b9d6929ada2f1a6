package mutants

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"tallystick/api"
)

var (
	all  = flag.Bool("all", false, "whether all mutants are played, not only a few")
	only = flag.String("only", "", "plays the mutants whose names match this expression")
	seed = flag.Uint64("seed", 0, "chooses the few that are played; 0 takes the time of day")
)

// few is how many mutants are played beside the program without one.
const few = 2

// least is how many different bugs there must be.
const least = 25

func contains(content []byte, text string) bool { return bytes.Contains(content, []byte(text)) }

// apply gives the files that a mutant changes. Text that is not there, or there more
// than once, fails the test: the table would plant nothing, or something else.
func (m mutant) apply(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, e := range m.edits {
		content, ok := files[e.file]
		if !ok {
			var err error
			if content, err = os.ReadFile(filepath.Join(root(t), e.file)); err != nil {
				t.Fatal(err)
			}
		}
		if n := bytes.Count(content, []byte(e.old)); n != 1 || e.old == e.planted {
			t.Fatalf("%s: what it changes is found %d times in %s, want once:\n%s", m.name, n, e.file, e.old)
		}
		files[e.file] = bytes.Replace(content, []byte(e.old), []byte(e.planted), 1)
	}
	return files
}

// TestEachMutantIsOfItsPackageAndPlantsSomething keeps the table from rotting.
func TestEachMutantIsOfItsPackageAndPlantsSomething(t *testing.T) {
	t.Parallel()
	names, planted := map[string]bool{}, map[string]bool{}
	for i, pkg := range []string{"ledger/", "meter/", "webhooks/", "outbox/"} {
		for _, m := range mutants[i] {
			m.apply(t)
			what := fmt.Sprint(m.edits)
			if names[m.name] || planted[what] {
				t.Errorf("%s is there twice", m.name)
			}
			names[m.name], planted[what] = true, true
			for _, e := range m.edits {
				if !strings.HasPrefix(e.file, pkg) {
					t.Errorf("%s changes %s, which is not in %s", m.name, e.file, pkg)
				}
			}
		}
	}
	if len(names) < least {
		t.Errorf("%d mutants, want at least %d", len(names), least)
	}
}

// chosen gives the mutants that are played.
func chosen(t *testing.T) []mutant {
	t.Helper()
	list := slices.Concat(mutants...)
	if *only != "" {
		wanted, err := regexp.Compile(*only)
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(list, func(m mutant) bool { return !wanted.MatchString(m.name) })
	}
	if *all {
		return list
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, *seed))
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:few]
}

// line is what became of a mutant.
type line struct {
	mutant
	found   []api.Finding
	seconds float64
}

// TestMutants plays the story for the program as it is, which must come out of it
// without a finding, and for mutants, each of which must be found.
func TestMutants(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var lines []line
	t.Run("played", func(t *testing.T) {
		for _, m := range append([]mutant{{name: "none"}}, chosen(t)...) {
			t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
				t.Parallel()
				begun := time.Now()
				found := play(t, start(t, build(t, m)), len(m.edits) == 0)
				mu.Lock()
				lines = append(lines, line{m, found, time.Since(begun).Seconds()})
				mu.Unlock()
				m.judge(t, found)
			})
		}
	})
	t.Logf("%d played\n%s", len(lines), table(lines))
}

// judge holds what was found against what was planted.
func (m mutant) judge(t *testing.T, found []api.Finding) {
	t.Helper()
	if len(m.edits) == 0 {
		for _, f := range found {
			t.Errorf("the program as it is has %s %s of %s: %s", f.Check, f.Cause, f.Subject, f.Explanation)
		}
		return
	}
	for _, f := range found {
		if f.Check == m.check && f.Cause == m.cause {
			return
		}
	}
	t.Errorf("it is not found by %s as %s, but as: %s", m.check, m.cause, strings.Join(told(found), ", "))
}

// told names the kinds of findings, each once.
func told(found []api.Finding) (kinds []string) {
	for _, f := range found {
		kinds = append(kinds, f.Check+" "+f.Cause)
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// table shows what became of each, in the order of the names.
func table(lines []line) string {
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.name, b.name) })
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "planted\tmust be found by\tas\tfound\tseconds")
	for _, l := range lines {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.0f\n", l.name, l.check, l.cause, strings.Join(told(l.found), ", "), l.seconds)
	}
	_ = w.Flush() // it writes to memory
	return b.String()
}

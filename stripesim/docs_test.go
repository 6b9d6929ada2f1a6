package stripesim_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"tallystick/stripesim"
)

// TestTheDocumentationNamesEverything keeps docs/stripesim.md whole: each endpoint,
// control call, switch and fault that the sources have stands there.
func TestTheDocumentationNamesEverything(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(filepath.Join("..", "docs", "stripesim.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(content)
	for _, name := range stripesim.FaultNames {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("the fault %s is not described", name)
		}
	}
	switches := reflect.TypeFor[stripesim.Switches]()
	for i := range switches.NumField() {
		if name := switches.Field(i).Tag.Get("json"); !strings.Contains(page, "`"+name+"`") {
			t.Errorf("the switch %s is not described", name)
		}
	}
	rules := reflect.TypeFor[stripesim.Fault]()
	for i := range rules.NumField() {
		if name := rules.Field(i).Tag.Get("json"); name != "" && !strings.Contains(page, "`"+name+"`") {
			t.Errorf("the member %s of a fault's rule is not described", name)
		}
	}
	for _, route := range routes(t) {
		if !strings.Contains(page, route) {
			t.Errorf("%s is not described", route)
		}
	}
}

// routes lists what the sources mount, with names of path members as they are there.
func routes(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	mounted := regexp.MustCompile(`s\.(?:handle|control)\("([A-Z]+ /[^"]*)"`)
	var all []string
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range mounted.FindAllStringSubmatch(string(source), -1) {
			all = append(all, match[1])
		}
	}
	if len(all) < 40 {
		t.Fatalf("only %d routes were found in the sources", len(all))
	}
	return all
}

package billingoracle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tallystick/stripesim"
)

// entry is one line of the raw log.
type entry struct {
	stripesim.Request
	answer map[string]any // Body, read; numbers are json.Number
	moved  bool           // no call: the simulator's clock has gone on to At
}

func newEntry(q stripesim.Request) entry { return entry{Request: q, answer: read(q.Body)} }

// read gives a JSON object with exact numbers; nil where there is none.
func read(body []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v map[string]any
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

// text gives a parameter of the call.
func (e *entry) text(name string) string { return e.Form.Get(name) }

// has tells that a parameter was sent with something in it.
func (e *entry) has(name string) bool { return e.Form.Get(name) != "" }

// whole gives a parameter that is a whole number; nil where it is none.
func (e *entry) whole(name string) *big.Int {
	n, ok := new(big.Int).SetString(e.Form.Get(name), 10)
	if !ok || !n.IsInt64() {
		return nil
	}
	return n
}

// seconds gives a parameter that is a time, 0 where it is none.
func (e *entry) seconds(name string) int64 {
	n, _ := strconv.ParseInt(e.Form.Get(name), 10, 64)
	return n
}

// rat gives a parameter that is an exact number, which is 0 where it is not sent.
func rat(form url.Values, name string) *big.Rat {
	for _, full := range []string{name, name + "_decimal"} {
		if r, ok := new(big.Rat).SetString(form.Get(full)); ok {
			return r
		}
	}
	return new(big.Rat)
}

// parts are those of the path behind /v1/.
func (e *entry) parts() []string { return strings.Split(strings.TrimPrefix(e.Path, "/v1/"), "/") }

func describe(e *entry) string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", e.At.UTC().Format(time.DateTime), e.Method, e.Path, e.Form.Encode(), e.Fault))
}

// member goes down into an answer; a whole number stands for an element of a list.
func member(v any, path ...any) any {
	for _, step := range path {
		switch name := step.(type) {
		case string:
			o, _ := v.(map[string]any)
			v = o[name]
		case int:
			list, _ := v.([]any)
			if name >= len(list) {
				return nil
			}
			v = list[name]
		}
	}
	return v
}

func word(v any, path ...any) string {
	s, _ := member(v, path...).(string)
	return s
}

func list(v any, path ...any) []any {
	l, _ := member(v, path...).([]any)
	return l
}

// plain writes a value so that equal ones are written alike.
func plain(v any) string {
	switch x := v.(type) {
	case nil:
		return "null"
	case *big.Int:
		if x == nil {
			return "null"
		}
		return x.String()
	case json.Number:
		if r, ok := new(big.Rat).SetString(x.String()); ok && r.IsInt() {
			return r.Num().String()
		}
		return x.String()
	case string:
		return strconv.Quote(x)
	}
	return fmt.Sprint(v)
}

// differences lists the members in which an answer is not as it should be.
func differences(want map[string]any, got any, at string) (found []string) {
	for _, name := range sortedNames(want) {
		found = append(found, differ(want[name], member(got, name), at+name)...)
	}
	return found
}

func differ(want, got any, at string) []string {
	switch w := want.(type) {
	case map[string]any:
		if _, ok := got.(map[string]any); !ok {
			return []string{fmt.Sprintf("%s is %s, want %v", at, plain(got), w)}
		}
		return differences(w, got, at+".")
	case []map[string]any:
		data, _ := got.([]any)
		if len(data) != len(w) {
			return []string{fmt.Sprintf("%s has %d elements, want %d: %s, want %v", at, len(data), len(w), clip(data), w)}
		}
		var found []string
		for i := range w {
			found = append(found, differ(w[i], data[i], fmt.Sprintf("%s[%d]", at, i))...)
		}
		return found
	}
	if plain(want) != plain(got) {
		return []string{fmt.Sprintf("%s is %s, want %s", at, plain(got), plain(want))}
	}
	return nil
}

func clip(v any) string {
	s := fmt.Sprint(v)
	return s[:min(len(s), 400)]
}

func sortedNames(o map[string]any) []string {
	names := make([]string, 0, len(o))
	for name := range o {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

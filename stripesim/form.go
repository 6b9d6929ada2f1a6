package stripesim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// decodeExact is json.Unmarshal with numbers kept as they are written.
func decodeExact(data []byte, dst any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return d.Decode(dst)
}

// nest turns form keys such as line_items[0][price] into nested objects and lists.
func nest(values url.Values) (object, *apiError) {
	root := object{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		for i, value := range values[key] {
			path := splitKey(key)
			if path == nil {
				return nil, invalid(key, "", "Invalid parameter name: %s", key)
			}
			if path[len(path)-1] == "" {
				path[len(path)-1] = strconv.Itoa(i)
			}
			if err := place(root, path, value, key); err != nil {
				return nil, err
			}
		}
	}
	return root, nil
}

// splitKey gives a, b, c of a[b][c], nil when brackets do not match.
func splitKey(key string) []string {
	head, rest, nested := strings.Cut(key, "[")
	path := []string{head}
	for nested {
		var part string
		var ok bool
		if part, rest, ok = strings.Cut(rest, "]"); !ok {
			return nil
		}
		path = append(path, part)
		if rest == "" {
			break
		}
		if rest[0] != '[' {
			return nil
		}
		rest = rest[1:]
	}
	return path
}

func place(at object, path []string, value, key string) *apiError {
	for _, name := range path[:len(path)-1] {
		next, stands := at[name]
		if !stands {
			next = object{}
			at[name] = next
		}
		inner, ok := next.(object)
		if !ok {
			return invalid(key, "", "Invalid object")
		}
		at = inner
	}
	at[path[len(path)-1]] = value
	return nil
}

// spec says which parameters a call takes: the kind of a value ("string", "int",
// "bool", "decimal", "map"), or a spec for an object, or a listOf for a list.
type spec map[string]any

type listOf struct{ of any }

// params are the parameters of one call, checked against its spec.
type params struct{ values object }

// check converts values as the spec says; what the spec does not know is refused.
func (sp spec) check(values object, prefix string) (object, *apiError) {
	checked := object{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		full := name
		if prefix != "" {
			full = prefix + "[" + name + "]"
		}
		kind, known := sp[name]
		if !known {
			return nil, invalid(full, "parameter_unknown", "Received unknown parameter: %s", full)
		}
		v, err := checkValue(kind, values[name], full)
		if err != nil {
			return nil, err
		}
		checked[name] = v
	}
	return checked, nil
}

func checkValue(kind, value any, name string) (any, *apiError) {
	switch k := kind.(type) {
	case spec:
		inner, ok := value.(object)
		if !ok {
			if value == "" {
				return nil, nil // an empty value unsets
			}
			return nil, invalid(name, "", "Invalid object")
		}
		return k.check(inner, name)
	case listOf:
		return checkList(k, value, name)
	case string:
		return checkScalar(k, value, name)
	}
	panic(fmt.Sprintf("parameter %s has no kind", name))
}

// checkList takes both a[]=x and a[0]=x.
func checkList(k listOf, value any, name string) (any, *apiError) {
	inner, ok := value.(object)
	if !ok {
		if value == "" {
			return []any{}, nil
		}
		return nil, invalid(name, "", "Invalid array")
	}
	indices := slices.Collect(maps.Keys(inner))
	slices.SortFunc(indices, func(a, b string) int {
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	})
	list := []any{}
	for _, i := range indices {
		v, err := checkValue(k.of, inner[i], name+"["+i+"]")
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func checkScalar(kind string, value any, name string) (any, *apiError) {
	if kind == "map" {
		if value == "" {
			return object{}, nil
		}
		inner, ok := value.(object)
		if !ok {
			return nil, invalid(name, "", "Invalid object")
		}
		for key, v := range inner {
			if _, ok := v.(string); !ok {
				return nil, invalid(name+"["+key+"]", "", "Metadata values must be strings, but for key `%s` you passed in a hash.", key)
			}
		}
		if name == "metadata" || strings.HasSuffix(name, "[metadata]") {
			return inner, checkMetadataMap(name, inner)
		}
		return inner, nil
	}
	s, ok := value.(string)
	if !ok {
		return nil, invalid(name, "", "Invalid %s", kind)
	}
	switch kind {
	case "int":
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, invalid(name, "parameter_invalid_integer", "Invalid integer: %s", s)
		}
		return n, nil
	case "bool":
		if s != "true" && s != "false" {
			return nil, invalid(name, "", "Invalid boolean: %s", s)
		}
		return s == "true", nil
	}
	return s, nil
}

// has tells whether a parameter was given.
func (p params) has(name string) bool {
	_, ok := p.values[name]
	return ok
}

func (p params) text(name string) string { return text(p.values, name) }

func (p params) number(name string) int64 { return number(p.values, name) }

func (p params) child(name string) params { return params{child(p.values, name)} }

func (p params) list(name string) []any {
	l, _ := p.values[name].([]any)
	return l
}

// orNull gives a text parameter, or null where it was not given.
func (p params) orNull(name string) any {
	if v, ok := p.values[name]; ok && v != "" {
		return v
	}
	return nil
}

// metadata gives a map parameter, empty where it was not given.
func (p params) metadata() object {
	if m := child(p.values, "metadata"); m != nil {
		return m
	}
	return object{}
}

// mergeMetadata lays changes over metadata; an empty value removes its key.
func mergeMetadata(old, changes object) object {
	merged := maps.Clone(old)
	if merged == nil {
		merged = object{}
	}
	for k, v := range changes {
		if v == "" {
			delete(merged, k)
		} else {
			merged[k] = v
		}
	}
	return merged
}

// require refuses a call that lacks one of the parameters.
func (p params) require(names ...string) *apiError {
	for _, name := range names {
		if v, ok := p.values[name]; !ok || v == "" {
			return invalid(name, "parameter_missing", "Missing required param: %s.", name)
		}
	}
	return nil
}

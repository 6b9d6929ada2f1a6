package oracle

import (
	"bytes"
	"encoding/json"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tallystick/stripesim"
)

// control is the method of a log entry that stands for a call of the control plane:
// its path is the object's, its form says what was asked for, and its status is
// 200 where the simulator did it.
const control = "CONTROL"

// entry is one line of the raw log.
type entry struct {
	stripesim.Request
	answer   map[string]any // Body, read; numbers are json.Number
	switches stripesim.Switches
}

func newEntry(q stripesim.Request, switches stripesim.Switches) entry {
	e := entry{Request: q, switches: switches}
	e.answer, _ = read(q.Body)
	return e
}

func read(body []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v map[string]any
	err := d.Decode(&v)
	return v, err
}

// text gives a parameter of the call.
func (e *entry) text(name string) string { return e.Form.Get(name) }

// number gives a parameter that is a whole number, else 0.
func (e *entry) number(name string) int64 {
	n, _ := strconv.ParseInt(e.Form.Get(name), 10, 64)
	return n
}

// id is the id of the answered object.
func (e *entry) id() string { return textOf(e.answer, "id") }

// target is the id in the path of /v1/things/{id} or of what goes on behind it.
func (e *entry) target(prefix string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(e.Path, prefix), "/")
	return id
}

func (e *entry) unix() int64 { return e.At.Unix() }

// bad tells whether a call is wrong in its form alone: a parameter is missing that
// it needs, unknown, or no whole number where it has to be one.
func (e *entry) bad(needed []string, whole ...string) bool {
	for name := range e.Form {
		if strings.HasPrefix(name, "bogus") {
			return true
		}
	}
	for _, name := range needed {
		if !slices.ContainsFunc(formNames(e.Form), func(given string) bool {
			return (given == name && e.Form.Get(given) != "") || strings.HasPrefix(given, name+"[")
		}) {
			return true
		}
	}
	for _, name := range whole {
		if v, given := e.Form[name]; given {
			if _, err := strconv.ParseInt(v[0], 10, 64); err != nil {
				return true
			}
		}
	}
	return false
}

func formNames(form url.Values) []string {
	names := make([]string, 0, len(form))
	for name := range form {
		names = append(names, name)
	}
	return names
}

func textOf(o map[string]any, path ...string) string {
	for _, name := range path[:len(path)-1] {
		o, _ = o[name].(map[string]any)
	}
	v, _ := o[path[len(path)-1]].(string)
	return v
}

// decimal reads an exact decimal of at most twelve places, nil when it is none.
func decimal(s string) *big.Rat {
	whole, fraction, _ := strings.Cut(strings.TrimPrefix(s, "-"), ".")
	if whole == "" || strings.Trim(whole+fraction, "0123456789") != "" || len(fraction) > 12 || strings.HasSuffix(s, ".") {
		return nil
	}
	v, ok := new(big.Rat).SetString(s)
	if !ok {
		return nil
	}
	return v
}

// struckBefore lists the faults that keep a call from being executed.
var struckBefore = []string{
	"drop_before", "error_500_before", "error_502_html", "error_503", "rate_limit", "lock_timeout", "conflict_409", "redirect_302", "unauthorized_401",
}

// struckAfter lists those that leave the execution alone.
var struckAfter = []string{"drop_after", "error_500_after", "malformed_json", "slow", "slow_after", "lose"}

// controlled makes the log entry of a call of the control plane.
func controlled(at time.Time, path string, form url.Values, err error, switches stripesim.Switches) entry {
	e := entry{Request: stripesim.Request{At: at, Method: control, Path: path, Form: form, Status: http.StatusOK, Executed: err == nil}, switches: switches}
	if err != nil {
		e.Status = http.StatusBadRequest
	}
	return e
}

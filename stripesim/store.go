package stripesim

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// object is one of Stripe's objects. Members that begin with an underscore are
// ours and never answered.
type object = map[string]any

// store keeps objects by kind in the order of their making, and a journal of
// every change where it has a directory.
type store struct {
	kinds   map[string]*shelf
	journal *os.File
	err     error // of the journal; it ends the simulator's promises, so it is shown
}

// shelf keeps the objects of one kind.
type shelf struct {
	byID   map[string]object
	order  []string       // ids by the time of their making; "" where one was deleted
	place  map[string]int // of an id in order
	sorted bool           // created never falls along order
	filed  map[string]map[string]string
	index  map[string]map[string][]string // by member, by its value: ids in the order of their making
}

// indexed are the members by which a kind's lists are filtered most.
var indexed = map[string][]string{
	"balance_transaction":          {"source"},
	"charge":                       {"payment_intent", "customer", "invoice"},
	"customer":                     {"test_clock"},
	"checkout.session":             {"payment_intent", "customer", "subscription"},
	"credit_note":                  {"invoice", "customer"},
	"customer_balance_transaction": {"customer"},
	"dispute":                      {"charge", "payment_intent"},
	"invoice":                      {"subscription", "customer"},
	"invoiceitem":                  {"invoice", "customer"},
	"payment_intent":               {"customer"},
	"payment_method":               {"customer"},
	"price":                        {"product"},
	"refund":                       {"charge", "payment_intent"},
	"subscription":                 {"customer", "test_clock"},
	"subscription_item":            {"subscription"},
	"usage_record_summary":         {"subscription_item"},
}

// entry is one line of the journal.
type entry struct {
	Type    string          `json:"t"` // put, del, clock, meter, key, roll
	Kind    string          `json:"k,omitempty"`
	ID      string          `json:"id,omitempty"`
	Object  object          `json:"o,omitempty"`
	Seconds float64         `json:"s,omitempty"`
	Raw     json.RawMessage `json:"r,omitempty"`
}

// openStore reads the journal in dir, giving each line that is not about an
// object to replay. A last line that a crash has torn is cut off.
func openStore(dir string, replay func(entry) error) (*store, error) {
	s := &store{kinds: map[string]*shelf{}}
	if dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the simulator's directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "stripesim.jsonl"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the simulator's journal: %w", err)
	}
	end, err := s.read(f, replay)
	if err == nil {
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.Seek(end, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("read the simulator's journal: %w", err)
	}
	s.journal = f
	return s, nil
}

func (s *store) read(f *os.File, replay func(entry) error) (end int64, err error) {
	lines := bufio.NewReaderSize(f, 1<<16)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return end, nil // what has no line end was never answered
		}
		if err != nil {
			return end, err
		}
		e, err := decodeEntry(line)
		if err != nil {
			return end, fmt.Errorf("the line at byte %d is damaged: %w", end, err)
		}
		end += int64(len(line))
		switch e.Type {
		case "put":
			s.keep(e.Kind, e.ID, e.Object)
		case "del":
			s.drop(e.Kind, e.ID)
		default:
			if err := replay(e); err != nil {
				return end, err
			}
		}
	}
}

func (s *store) persistent() bool { return s.journal != nil }

func (s *store) log(e entry) {
	if s.journal == nil {
		return
	}
	line, err := json.Marshal(e)
	if err == nil {
		_, err = s.journal.Write(append(line, '\n'))
	}
	if err != nil && s.err == nil {
		s.err = fmt.Errorf("write the simulator's journal: %w", err)
	}
}

func (s *store) close() error {
	if s.journal == nil {
		return s.err
	}
	return errors.Join(s.err, s.journal.Close())
}

func (s *store) shelf(kind string) *shelf {
	if s.kinds[kind] == nil {
		sh := &shelf{byID: map[string]object{}, place: map[string]int{}, sorted: true, filed: map[string]map[string]string{}, index: map[string]map[string][]string{}}
		for _, member := range indexed[kind] {
			sh.filed[member], sh.index[member] = map[string]string{}, map[string][]string{}
		}
		s.kinds[kind] = sh
	}
	return s.kinds[kind]
}

func (s *store) keep(kind, id string, o object) {
	sh := s.shelf(kind)
	if _, stands := sh.byID[id]; !stands {
		if n := len(sh.order); n > 0 && number(sh.byID[sh.order[n-1]], "created") > number(o, "created") {
			sh.sorted = false
		}
		sh.place[id] = len(sh.order)
		sh.order = append(sh.order, id)
	}
	sh.byID[id] = o
	for member := range sh.index {
		sh.file(member, id, text(o, member))
	}
}

// file puts an id where a filter by the member will look for it.
func (sh *shelf) file(member, id, value string) {
	before, stands := sh.filed[member][id]
	if stands && before == value {
		return
	}
	ids := sh.index[member]
	if stands {
		ids[before] = slices.DeleteFunc(ids[before], func(other string) bool { return other == id })
	}
	sh.filed[member][id] = value
	at, _ := slices.BinarySearchFunc(ids[value], sh.place[id], func(other string, place int) int { return sh.place[other] - place })
	ids[value] = slices.Insert(ids[value], at, id)
}

func (s *store) drop(kind, id string) {
	sh := s.shelf(kind)
	at, stands := sh.place[id]
	if !stands {
		return
	}
	delete(sh.byID, id)
	delete(sh.place, id)
	for member, ids := range sh.index {
		value := sh.filed[member][id]
		delete(sh.filed[member], id)
		if ids[value] = slices.DeleteFunc(ids[value], func(other string) bool { return other == id }); len(ids[value]) == 0 {
			delete(ids, value)
		}
	}
	sh.order[at] = ""
	if len(sh.order) > 2*len(sh.byID)+64 {
		sh.order = slices.DeleteFunc(sh.order, func(id string) bool { return id == "" })
		for i, id := range sh.order {
			sh.place[id] = i
		}
	}
}

// around gives the ids that may pass a call's filters, in the order of their
// making: those before the place of a cursor, and those from it on.
func (sh *shelf) around(c *call, cursor string) (before, from []string, found bool) {
	ids, at := sh.order, len(sh.order)
	place, stands := sh.place[cursor]
	if stands {
		at = place
	}
	for member, byValue := range sh.index {
		if c.has(member) {
			ids = byValue[c.text(member)]
			at = len(ids)
			if stands {
				at, _ = slices.BinarySearchFunc(ids, place, func(id string, place int) int { return sh.place[id] - place })
			}
			break
		}
	}
	return ids[:at], ids[at:], stands || cursor == ""
}

// all gives the objects of a kind in the order of their making.
func (sh *shelf) all(yield func(object) bool) {
	for _, id := range sh.order {
		if o := sh.byID[id]; o != nil && !yield(o) {
			return
		}
	}
}

// with gives the objects whose indexed member has a value, in the order of their making.
func (sh *shelf) with(member, value string) []object {
	ids := sh.index[member][value]
	all := make([]object, len(ids))
	for i, id := range ids {
		all[i] = sh.byID[id]
	}
	return all
}

// put keeps a new or changed object.
func (s *store) put(kind string, o object) {
	id := text(o, "id")
	s.keep(kind, id, o)
	s.log(entry{Type: "put", Kind: kind, ID: id, Object: o})
}

func (s *store) delete(kind, id string) {
	s.drop(kind, id)
	s.log(entry{Type: "del", Kind: kind, ID: id})
}

// get gives an object, nil when there is none.
func (s *store) get(kind, id string) object { return s.shelf(kind).byID[id] }

// decodeEntry keeps numbers as they are written: ids and amounts would suffer as floats.
func decodeEntry(line []byte) (entry, error) {
	var e entry
	err := decodeExact(line, &e)
	return e, err
}

// text gives a member that is a string, else "".
func text(o object, name string) string {
	v, _ := o[name].(string)
	return v
}

// number gives a member that is a whole number, else 0. After a restart numbers
// come back as json.Number.
func number(o object, name string) int64 {
	switch v := o[name].(type) {
	case int64:
		return v
	case int:
		return int64(v)
	case json.Number:
		n, _ := v.Int64()
		return n
	}
	return 0
}

func child(o object, name string) object {
	v, _ := o[name].(object)
	return v
}

func flag(o object, name string) bool {
	v, _ := o[name].(bool)
	return v
}

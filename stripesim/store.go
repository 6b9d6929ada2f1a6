package stripesim

import (
	"encoding/json"
	"os"
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
	holding bool  // entries are held back until commit
	held    []entry
	places  map[string]int // in held, of the objects put
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

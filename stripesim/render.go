package stripesim

import (
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
)

func itoa(n int) string { return strconv.Itoa(n) }

// references says which members hold the id of an object, and of which kind.
var references = map[string]string{
	"customer": "customer", "payment_intent": "payment_intent", "latest_charge": "charge", "charge": "charge", "product": "product", "price": "price",
	"payment_method": "payment_method", "default_payment_method": "payment_method", "default_source": "payment_method", "balance_transaction": "balance_transaction",
	"failure_balance_transaction": "balance_transaction", "invoice": "invoice", "subscription": "subscription", "test_clock": "test_helpers.test_clock",
	"credit_note": "credit_note", "customer_balance_transaction": "customer_balance_transaction", "invoice_item": "invoiceitem",
	"latest_invoice": "invoice", "refund": "refund", "subscription_item": "subscription_item",
}

// sources are the kinds of what moves money, by the beginnings of their ids.
var sources = map[string]string{"ch": "charge", "py": "charge", "re": "refund", "pyr": "refund", "dp": "dispute"}

// render makes the answer of an object: members of ours are left out, and
// members that were asked to be expanded hold the object instead of its id.
func (s *Server) render(o object, expand []string) []byte {
	body, err := encode(make([]byte, 0, 512), s.view(o, expand))
	if err != nil {
		s.logger.Error("an answer cannot be encoded", "error", err)
		return serverError().body("", 0)
	}
	return body
}

// view is a deep copy of an object as it is answered.
func (s *Server) view(o object, expand []string) object {
	v := object{}
	for name, member := range o {
		if !strings.HasPrefix(name, "_") {
			v[name] = s.viewMember(name, member, below(expand, name))
		}
	}
	s.expandVirtual(o, v, expand)
	return v
}

// below gives the paths that go on under a member, "" standing for the member itself.
func below(expand []string, name string) []string {
	var paths []string
	for _, path := range expand {
		if path == name {
			paths = append(paths, "")
		} else if rest, ok := strings.CutPrefix(path, name+"."); ok {
			paths = append(paths, "", rest)
		}
	}
	return paths
}

func (s *Server) viewMember(name string, member any, expand []string) any {
	switch m := member.(type) {
	case object:
		return s.view(m, expand)
	case []any:
		list := make([]any, len(m))
		for i, item := range m {
			list[i] = item
			if o, ok := item.(object); ok {
				list[i] = s.view(o, expand)
			}
		}
		return list
	case string:
		kind := references[name]
		if prefix, _, _ := strings.Cut(m, "_"); name == "source" {
			kind = sources[prefix]
		}
		if kind != "" && slices.Contains(expand, "") {
			if target := s.store.get(kind, m); target != nil {
				return s.view(target, expand)
			}
		}
	}
	return member
}

// expandVirtual fills the lists that are answered only when asked for.
func (s *Server) expandVirtual(o, v object, expand []string) {
	switch text(o, "object") {
	case "invoice", "credit_note":
		if lines := child(v, "lines"); lines != nil {
			cutLines(lines)
		}
	case "checkout.session":
		if paths := below(expand, "line_items"); len(paths) > 0 {
			items, _ := o["_line_items"].([]any)
			v["line_items"] = s.view(listObject("/v1/checkout/sessions/"+text(o, "id")+"/line_items", items, false), paths)
		}
	case "subscription":
		v["items"] = s.view(s.itemList(o), below(expand, "items"))
	case "subscription_item":
		if price := s.store.get("price", text(o, "price")); price != nil {
			v["price"] = s.view(price, below(expand, "price"))
		}
	case "price":
		if tiers, tiered := o["_tiers"].([]any); tiered && len(below(expand, "tiers")) > 0 {
			v["tiers"] = s.viewMember("tiers", tiers, nil)
		}
	case "charge":
		if paths := below(expand, "refunds"); len(paths) > 0 {
			var refunds []any
			for _, r := range s.refundsOf(text(o, "id")) {
				refunds = append(refunds, r)
			}
			v["refunds"] = s.view(listObject("/v1/charges/"+text(o, "id")+"/refunds", refunds, false), paths)
		}
	}
}

func listObject(url string, data []any, more bool) object {
	if data == nil {
		data = []any{}
	}
	return object{"object": "list", "url": url, "has_more": more, "data": data}
}

// listSpec is what every list takes; add merges filters into it.
func listSpec(filters spec) spec {
	sp := spec{"limit": "int", "starting_after": "string", "ending_before": "string"}
	maps.Copy(sp, filters)
	return sp
}

// createdSpec is the range filter of lists.
var createdSpec = spec{"gt": "int", "gte": "int", "lt": "int", "lte": "int"}

// inRange tells whether an object's time passes the created filter.
func inRange(c *call, created int64) bool {
	r := c.child("created")
	return (!r.has("gt") || created > r.number("gt")) && (!r.has("gte") || created >= r.number("gte")) &&
		(!r.has("lt") || created < r.number("lt")) && (!r.has("lte") || created <= r.number("lte"))
}

// list answers a page of a kind's objects that pass the filter, newest first.
func (s *Server) list(c *call, kind string, passes func(object) bool) (object, *apiError) {
	limit, err := c.limit()
	if err != nil {
		return nil, err
	}
	sh := s.store.shelf(kind)
	cursor, direction, err := c.cursor(kind, func(id string) bool { return sh.byID[id] != nil })
	if err != nil {
		return nil, err
	}
	older, younger, _ := sh.around(c, cursor)
	passes = s.visible(kind, passes)
	if c.shifted(limit) && direction == "starting_after" {
		older = append(slices.Clone(older), cursor)
	}
	if direction == "ending_before" {
		found := sh.collect(slices.Values(younger), limit+1, func(o object) bool { return text(o, "id") != cursor && passes(o) }, nil)
		more := len(found) > limit
		found = found[:min(limit, len(found))]
		slices.Reverse(found)
		return listObject(c.r.URL.Path, found, more), nil
	}
	found := sh.collect(backward(older), limit+1, passes, func(o object) bool { return sh.sorted && olderThanAsked(c, o) })
	return listObject(c.r.URL.Path, found[:min(limit, len(found))], len(found) > limit), nil
}

func backward(ids []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, id := range slices.Backward(ids) {
			if !yield(id) {
				return
			}
		}
	}
}

// olderThanAsked tells that an object and all that were made before it are too
// old for the created filter.
func olderThanAsked(c *call, o object) bool {
	r, created := c.child("created"), number(o, "created")
	if text(o, "object") == "invoiceitem" {
		created = number(o, "date")
	}
	if created == 0 {
		return false // one that is deleted has no time
	}
	return (r.has("gte") && created < r.number("gte")) || (r.has("gt") && created < r.number("gt"))
}

// collect takes the first objects that pass, and gives up at one where it may stop.
func (sh *shelf) collect(ids iter.Seq[string], most int, passes, stop func(object) bool) []any {
	var found []any
	for id := range ids {
		o := sh.byID[id]
		if o == nil {
			continue
		}
		if stop != nil && stop(o) {
			break
		}
		if passes(o) {
			if found = append(found, o); len(found) == most {
				break
			}
		}
	}
	return found
}

// limit is how many objects a page has at most.
func (c *call) limit() (int, *apiError) {
	if !c.has("limit") {
		return 10, nil
	}
	n := c.number("limit")
	if n < 1 || n > 100 {
		return 0, invalid("limit", "parameter_invalid_integer", "This value must be greater than or equal to 1 and less than or equal to 100 (sent: %d)", n)
	}
	return int(n), nil
}

// page cuts a page out of a whole list by Stripe's cursors.
func page(c *call, url, kind string, all []any) (object, *apiError) {
	limit, err := c.limit()
	if err != nil {
		return nil, err
	}
	at := func(id string) int {
		return slices.IndexFunc(all, func(o any) bool { return text(o.(object), "id") == id })
	}
	cursor, direction, err := c.cursor(kind, func(id string) bool { return at(id) >= 0 })
	if err != nil {
		return nil, err
	}
	if direction == "ending_before" {
		i := at(cursor)
		from := max(0, i-limit)
		return listObject(url, all[from:i], from > 0), nil
	}
	from := 0
	if cursor != "" {
		from = at(cursor) + 1
	}
	if c.shifted(limit) {
		from--
	}
	to := min(len(all), from+limit)
	return listObject(url, all[from:to], to < len(all)), nil
}

// cursor gives the id that a page starts from, and the parameter that named it.
func (c *call) cursor(kind string, stands func(id string) bool) (id, direction string, err *apiError) {
	direction = "starting_after"
	for _, name := range []string{"starting_after", "ending_before"} {
		if c.text(name) == "" {
			continue
		}
		if id, direction = c.text(name), name; !stands(id) {
			return "", "", missing(kind, id, name)
		}
	}
	if c.text("starting_after") != "" && c.text("ending_before") != "" {
		return "", "", invalid("", "", "Received both starting_after and ending_before parameters. Please pass in only one.")
	}
	return id, direction, nil
}

// shifted tells that the page has moved on by one since the page before was read,
// and begins with the object that ended that one. A page of one would end nowhere.
func (c *call) shifted(limit int) bool {
	return c.fault.is("page_shift") && c.text("starting_after") != "" && limit > 1
}

// visible narrows a filter to the objects that have reached the lists already.
func (s *Server) visible(kind string, passes func(object) bool) func(object) bool {
	lag, ok := s.switches.ListLagSeconds[kind]
	if !ok {
		lag = s.switches.ListLagSeconds["*"]
	}
	if lag <= 0 {
		return passes
	}
	newest := s.now() - lag
	return func(o object) bool { return number(o, "created") <= newest && passes(o) }
}

// find gives an object or the error that it does not exist.
func (s *Server) find(kind, id, param string) (object, *apiError) {
	if o := s.store.get(kind, id); o != nil {
		return o, nil
	}
	names := map[string]string{
		"checkout.session": "checkout.session", "payment_intent": "payment_intent", "billing.meter": "billing meter", "payment_method": "PaymentMethod",
		"test_helpers.test_clock": "testclock",
	}
	name := kind
	if n, ok := names[kind]; ok {
		name = n
	}
	return nil, missing(name, id, param)
}

// change sets members of a stored object, keeps it, and gives what they were.
func (s *Server) change(kind string, o object, changes object) (previous object) {
	previous = object{}
	for name, v := range changes {
		if !equal(o[name], v) {
			previous[name] = o[name]
			o[name] = v
		}
	}
	s.store.put(kind, o)
	return previous
}

func equal(a, b any) bool {
	x, errX := encode(nil, a)
	y, errY := encode(nil, b)
	return errX == nil && errY == nil && string(x) == string(y)
}

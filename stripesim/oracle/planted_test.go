package oracle

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"tallystick/stripesim"
)

// calmStory is a good story that has what the test needs.
func calmStory(t *testing.T, enough func(*story) bool) *story {
	t.Helper()
	for seed := range uint64(40) {
		s := newStory(t, 1000+seed)
		s.keeps = true
		s.play(1000)
		s.report(1000 + seed)
		if t.Failed() || enough(s) {
			return s
		}
	}
	t.Fatal("no story has everything that can be falsified")
	return nil
}

// TestTheOracleSeesAFalsifiedLog takes the logs of good stories, changes one thing in
// one, and wants that a fresh oracle no longer agrees with the simulator.
func TestTheOracleSeesAFalsifiedLog(t *testing.T) {
	t.Parallel()
	unseen, tries := maps.Clone(falsifications), map[string]int{}
	maps.Copy(unseen, moneyFalsifications)
	for seed := uint64(1000); len(unseen) > 0 && seed < 1040; seed++ {
		s := newStory(t, seed)
		s.keeps = true
		s.play(1000)
		if s.report(seed); t.Failed() {
			return
		}
		falsified(s, unseen, tries)
		t.Logf("after seed %d %d are left", seed, len(unseen))
	}
	for name := range unseen {
		t.Errorf("%s is not seen in %d tries", name, tries[name])
	}
}

// falsified tries the falsifications that a story's log has room for, and takes out
// those that are seen. What never counted cannot be missed: another one is tried then.
func falsified(s *story, unseen map[string]falsification, tries map[string]int) {
	truth := map[string]map[string]any{}
	again := func(log []entry) []string {
		o := newOracle()
		for _, e := range log {
			if o.take(e); len(o.problems) > 0 {
				return o.problems
			}
		}
		s.oracle, s.keeps = o, false
		o.audit(liar{story: s, told: truth})
		return o.problems
	}
	whole := slices.Clone(s.log)
	for i := range whole {
		if whole[i].answer == nil {
			whole[i].answer, _ = read(whole[i].Body)
		}
	}
	if problems := again(whole); len(problems) > 0 {
		s.t.Fatalf("seed %d: the log as it is gives %q", s.seed, problems)
	}
	for name, falsify := range unseen {
		most := tries[name] + 25
		for at := 0; at < len(whole) && tries[name] < most; at++ {
			if !falsify.finds(&whole[at]) {
				continue
			}
			tries[name]++
			if problems := again(falsify.change(slices.Clone(whole), at)); len(problems) > 0 {
				s.t.Logf("%s: seen at try %d, such as %.300s", name, tries[name], problems[0])
				delete(unseen, name)
				break
			}
		}
	}
}

// used gives the meters' totals that customers who are still there have.
func used(s *story) (all []stripesim.MeterTotal) {
	for _, total := range s.sim.State().Meters {
		if total.Total != "0" && s.oracle.alive("customer", total.Customer) != nil {
			all = append(all, total)
		}
	}
	return all
}

// falsification changes a log at the first call that it finds.
type falsification struct {
	finds  func(*entry) bool
	change func(log []entry, at int) []entry
}

func executed(call string) func(*entry) bool {
	method, path, _ := strings.Cut(call, " ")
	return func(e *entry) bool {
		return e.Executed && e.Method == method && strings.HasPrefix(e.Path, path) && e.Status == http.StatusOK && e.Fault == ""
	}
}

// drop takes a call out.
func drop(log []entry, at int) []entry { return slices.Delete(log, at, at+1) }

// with changes a parameter of a call.
func with(name, value string) func([]entry, int) []entry {
	return func(log []entry, at int) []entry {
		form := url.Values{}
		for k, v := range log[at].Form {
			form[k] = v
		}
		form.Set(name, value)
		log[at].Form = form
		return log
	}
}

func rewrite(log []entry, at int, change func(*entry)) []entry {
	change(&log[at])
	log[at].answer, _ = read(log[at].Body)
	return log
}

var falsifications = map[string]falsification{
	"a customer that nobody made":     {executed("POST /v1/customers"), drop},
	"a product that nobody made":      {executed("POST /v1/products"), drop},
	"a session that nobody made":      {executed("POST /v1/checkout/sessions"), drop},
	"a payment that nobody made":      {executed("POST /v1/payment_intents"), drop},
	"a refund that nobody asked for":  {executed("POST /v1/refunds"), drop},
	"a buyer's payment":               {executed(control + " /v1/checkout/sessions"), drop},
	"a refund that failed":            {executed(control + " /v1/refunds"), drop},
	"a webhook endpoint":              {executed("POST /v1/webhook_endpoints"), drop},
	"usage that nobody sent":          {counted, drop},
	"another value of usage":          {counted, func(log []entry, at int) []entry { return with(payloadName(log[at], "val", "much"), "77")(log, at) }},
	"usage of another time":           {counted, with("timestamp", "1706000000")},
	"another amount of a refund":      {func(e *entry) bool { return executed("POST /v1/refunds")(e) && e.text("amount") == "1" }, with("amount", "2")},
	"another amount of a payment":     {executed("POST /v1/payment_intents"), with("amount", "7777")},
	"other metadata":                  {executed("POST /v1/customers"), with("metadata[k]", "planted")},
	"a call that was executed, twice": {executed("POST /v1/customers"), func(log []entry, at int) []entry { return slices.Insert(log, at+1, log[at]) }},
	"a refusal of what is right": {executed("GET /v1/charges"), func(log []entry, at int) []entry {
		return rewrite(log, at, func(e *entry) { e.Executed, e.Status, e.Body = false, 400, []byte(`{"error": {}}`) })
	}},
	"an execution of what is wrong": {func(e *entry) bool { return e.Method == post && e.Status == 400 && e.Path == "/v1/refunds" }, func(log []entry, at int) []entry {
		return rewrite(log, at, func(e *entry) { e.Executed, e.Status = true, 200 })
	}},
	"a replay with another answer": {func(e *entry) bool { return e.Replayed && e.Status == 200 }, func(log []entry, at int) []entry {
		return rewrite(log, at, func(e *entry) { e.Body = append(slices.Clone(e.Body), ' ') })
	}},
	"a key that executed again": {func(e *entry) bool { return e.Replayed && e.Status == 200 }, func(log []entry, at int) []entry {
		return rewrite(log, at, func(e *entry) { e.Executed, e.Replayed = true, false })
	}},
	"other parameters under a key": {func(e *entry) bool { return e.Replayed && e.Status == 200 }, with("metadata[planted]", "x")},
	"an execution behind a fault": {func(e *entry) bool { return slices.Contains(struckBefore, e.Fault) }, func(log []entry, at int) []entry {
		return rewrite(log, at, func(e *entry) { e.Executed, e.Status = true, 200 })
	}},
	"a page that is too short": {func(e *entry) bool {
		return executed("GET /v1/charges")(e) && len(e.Body) > 2000 && strings.HasSuffix(e.Path, "s")
	}, func(log []entry, at int) []entry {
		return rewrite(log, at, func(e *entry) {
			page, _ := read(e.Body)
			data, _ := page["data"].([]any)
			page["data"] = data[1:]
			e.Body, _ = json.Marshal(page)
		})
	}},
}

// counted finds usage that stayed in the totals.
func counted(e *entry) bool {
	return executed("POST /v1/billing/meter_events")(e) && e.text("timestamp") != "" && (e.text("payload[value]") == "1" || e.text("payload[much]") == "1")
}

func payloadName(e entry, names ...string) string {
	for _, name := range formNames(e.Form) {
		for _, part := range names {
			if strings.HasPrefix(name, "payload["+part) {
				return name
			}
		}
	}
	return ""
}

// liar is a reader that changes what the simulator answers.
type liar struct {
	*story
	path   string
	change func(page map[string]any)
	states func(*stripesim.State)
	told   map[string]map[string]any // the truth, which nobody changes
}

func (l liar) get(path string, query url.Values) map[string]any {
	if l.change != nil && strings.HasPrefix(path, l.path) && (l.path == "/v1/billing" || !strings.Contains(path, "event_summaries")) {
		answer := l.story.get(path, query)
		l.change(answer)
		return answer
	}
	asked := path + "?" + query.Encode()
	if l.told[asked] == nil {
		l.told[asked] = l.story.get(path, query)
	}
	return l.told[asked]
}

func (l liar) state() stripesim.State {
	st := l.story.state()
	if l.states != nil {
		l.states(&st)
	}
	return st
}

// TestTheOracleSeesAFalsifiedState changes what the simulator says of itself.
func TestTheOracleSeesAFalsifiedState(t *testing.T) {
	t.Parallel()
	s := calmStory(t, func(s *story) bool {
		return len(used(s)) > 0 && len(s.oracle.things["charge"]) > 1 && len(s.oracle.things["refund"]) > 0 && len(s.oracle.things["checkout.session"]) > 0 &&
			len(s.oracle.things["dispute"]) > 0 && slices.ContainsFunc(s.oracle.living("customer"), func(t *thing) bool { return len(s.oracle.with(methodKind, "customer", t.id)) > 0 })
	})
	lies := moneyLies()
	maps.Copy(lies, map[string]liar{
		"an amount refunded":  {path: "/v1/charges", change: set("amount_refunded", json.Number("123456789"))},
		"an amount captured":  {path: "/v1/charges", change: set("amount_captured", json.Number("123456789"))},
		"a refund's status":   {path: "/v1/refunds", change: set("status", "planted")},
		"a refund's amount":   {path: "/v1/refunds", change: set("amount", json.Number("123456789"))},
		"a session's status":  {path: "/v1/checkout/sessions", change: set("payment_status", "planted")},
		"an intent's status":  {path: "/v1/payment_intents", change: set("status", "planted")},
		"a customer's name":   {path: "/v1/customers", change: set("name", "planted")},
		"a price's amount":    {path: "/v1/prices", change: set("unit_amount", json.Number("123456789"))},
		"a lost charge":       {path: "/v1/charges", change: lost},
		"a lost event":        {path: "/v1/events", change: lost},
		"an event's type":     {path: "/v1/events", change: set("type", "charge.planted")},
		"an event's time":     {path: "/v1/events", change: set("created", json.Number("1706000000"))},
		"an event's requests": {path: "/v1/events", change: set("request", nil)},
		"an event's webhooks": {path: "/v1/events", change: set("pending_webhooks", json.Number("99"))},
		"a summary's value":   {path: "/v1/billing", change: set("aggregated_value", json.Number("0.000000000001"))},
		"a lost window":       {path: "/v1/billing", change: lost},
		"a count of charges":  {states: func(st *stripesim.State) { st.Counts["charge"]++ }},
		"a count of methods":  {states: func(st *stripesim.State) { st.Counts[methodKind]++ }},
		"a count of disputes": {states: func(st *stripesim.State) { st.Counts["dispute"]-- }},
		"a count of usage":    {states: func(st *stripesim.State) { st.MeterEvents.Accepted++ }},
		"a meter's total":     {states: func(st *stripesim.State) { st.Meters[0].Total += "1" }},
		"a meter too many": {states: func(st *stripesim.State) {
			st.Meters = append(st.Meters, stripesim.MeterTotal{Meter: "mtr_planted", Customer: "cus_planted", Total: "1"})
		}},
	})
	truth := map[string]map[string]any{}
	for name, l := range lies {
		s.oracle.problems, l.story, l.told = nil, s, truth
		s.oracle.audit(l)
		if len(s.oracle.problems) == 0 {
			t.Errorf("%s is not seen", name)
		}
	}
	s.oracle.problems = nil
	if s.oracle.audit(s); len(s.oracle.problems) > 0 {
		t.Errorf("without a lie it sees %q", s.oracle.problems)
	}
}

package oracle

import (
	"math/big"
	"time"
)

// Times that Stripe gives meter events.
const (
	oldest         = 35 * 24 * time.Hour
	farthest       = 5 * time.Minute
	remembersAtAll = 24 * time.Hour
)

// widest is the first value that the simulator's exact decimals, of 127 bits and
// twelve places, cannot hold.
var widest = new(big.Rat).SetFrac(new(big.Int).Lsh(big.NewInt(1), 127), big.NewInt(1_000_000_000_000))

// metered is one meter event that was taken.
type metered struct {
	meter, customer string
	at              int64
	value           *big.Rat
	counts          time.Time // from then on the summaries have it
	received        time.Time
	cancelled       bool
}

// usage is every meter event, in the order in which it was taken.
type usage struct {
	all  []*metered
	last map[string]*metered // by identifier
	said []string            // identifiers, in that order, too
	lost int64               // taken, and never counted
	kept int64               // taken
}

func newUsage() usage { return usage{last: map[string]*metered{}} }

// meterRules are those of billing meters and their events.
var meterRules = []rule{
	{"POST /v1/billing/meters", func(o *oracle, e *entry) verdict {
		if e.bad([]string{"display_name", "event_name", "default_aggregation"}) {
			return refused
		}
		for _, name := range []string{"customer_mapping", "value_settings"} {
			if len(below(e, name)) > 0 && e.text(name+"[event_payload_key]") == "" {
				return refused
			}
		}
		if len(below(e, "customer_mapping")) > 0 && e.text("customer_mapping[type]") != "by_id" {
			return refused
		}
		formula := e.text("default_aggregation[formula]")
		return accept((formula == "sum" || formula == "count") && o.meterOf(e.text("event_name")) == nil)
	}, func(o *oracle, e *entry) {
		customer, value := e.text("customer_mapping[event_payload_key]"), e.text("value_settings[event_payload_key]")
		if customer == "" {
			customer = "stripe_customer_id"
		}
		if value == "" {
			value = "value"
		}
		t := o.make("billing.meter", e.id(), map[string]any{
			"display_name": e.text("display_name"), "event_name": e.text("event_name"), "status": "active", "_formula": e.text("default_aggregation[formula]"),
			"_customer": customer, "_value": value,
		})
		o.meterRaised(e, "billing.meter.created", t)
	}},
	getRule("billing.meter", "/v1/billing/meters/"),
	{"POST /v1/billing/meters/{}", func(o *oracle, e *entry) verdict {
		return accept(o.get("billing.meter", e.target("/v1/billing/meters/")) != nil && !e.bad(nil))
	}, func(o *oracle, e *entry) {
		t := o.get("billing.meter", e.target("/v1/billing/meters/"))
		before := t.text("display_name")
		setTexts(e, t.members, false, "display_name")
		o.meterRaised(e, "billing.meter.updated", t)
		if last := len(o.events) - 1; o.switches.MeterEventsRaised {
			o.events[last].maybe = t.text("display_name") == before
		}
	}},
	{"POST /v1/billing/meters/{}/deactivate", meterIn("active"), func(o *oracle, e *entry) { o.switched(e, "inactive", "billing.meter.deactivated") }},
	{"POST /v1/billing/meters/{}/reactivate", meterIn("inactive"), func(o *oracle, e *entry) { o.switched(e, "active", "billing.meter.reactivated") }},
	listRule("billing.meter"),
	{"POST /v1/billing/meter_events", meterEventVerdict, tookMeterEvent},
	{"POST /v1/billing/meter_event_adjustments", adjustmentVerdict, func(o *oracle, e *entry) {
		if m := o.usage.last[e.text("cancel[identifier]")]; m != nil {
			m.cancelled = true
		}
	}},
	{"GET /v1/billing/meters/{}/event_summaries", summariesVerdict, summariesRead},
}

func meterIn(status string) func(*oracle, *entry) verdict {
	return func(o *oracle, e *entry) verdict {
		t := o.get("billing.meter", e.target("/v1/billing/meters/"))
		if t == nil || t.text("status") != status || e.bad(nil) {
			return refused
		}
		if other := o.meterOf(t.text("event_name")); status == "inactive" && other != nil {
			return refused // two active meters may not share an event
		}
		return accepted
	}
}

func (o *oracle) switched(e *entry, status, event string) {
	t := o.get("billing.meter", e.target("/v1/billing/meters/"))
	t.members["status"] = status
	o.meterRaised(e, event, t)
}

// meterRaised notes an event that only newer API versions have.
func (o *oracle) meterRaised(e *entry, event string, t *thing) {
	if o.switches.MeterEventsRaised {
		o.raised(e, event, t)
	}
}

// meterOf finds the active meter of an event's name.
func (o *oracle) meterOf(event string) *thing {
	for _, t := range o.with("billing.meter", "event_name", event) {
		if t.text("status") == "active" {
			return t
		}
	}
	return nil
}

func (e *entry) meteredAt() time.Time {
	if e.Form.Has("timestamp") {
		return time.Unix(e.number("timestamp"), 0)
	}
	return time.Unix(e.unix(), 0)
}

func meterEventVerdict(o *oracle, e *entry) verdict {
	at := e.meteredAt()
	if e.bad([]string{"event_name", "payload"}, "timestamp") || len(e.text("identifier")) > 100 {
		return refused
	}
	if e.Form.Has("timestamp") && (at.Before(time.Unix(e.unix(), 0).Add(-oldest)) || at.After(e.At.Add(farthest))) {
		return refused
	}
	if before := o.usage.last[e.text("identifier")]; before != nil && e.At.Sub(before.received) < remembersAtAll {
		return refused
	} else if longest := remembersAtAll + time.Duration(o.switches.MemoryExtraSeconds)*time.Second; before != nil && !e.Executed && e.At.Sub(before.received) < longest {
		return either // it may be remembered for so long
	}
	m, wrong := o.countable(e)
	switch {
	case !wrong:
		return accepted
	case m == nil && !o.switches.MeterErrorsSync:
		return accepted // and reported later
	}
	return refused
}

// countable says what an event counts. When something is wrong with it, a value that
// is no number gives an event that is refused at once, anything else nil.
func (o *oracle) countable(e *entry) (m *metered, wrong bool) {
	meter := o.meterOf(e.text("event_name"))
	if meter == nil {
		return nil, true
	}
	customer, value := e.text("payload["+meter.text("_customer")+"]"), e.text("payload["+meter.text("_value")+"]")
	if o.alive("customer", customer) == nil {
		return nil, true
	}
	m = &metered{meter: meter.id, customer: customer, at: e.meteredAt().Unix(), value: big.NewRat(1, 1)}
	if meter.text("_formula") == "sum" || value != "" {
		n := decimal(value)
		if value == "" {
			return nil, true
		}
		if n == nil || new(big.Rat).Abs(n).Cmp(widest) >= 0 {
			return m, true
		}
		if meter.text("_formula") == "sum" {
			m.value = n
		}
	}
	return m, false
}

func tookMeterEvent(o *oracle, e *entry) {
	m, wrong := o.countable(e)
	o.usage.kept++
	if m == nil || wrong || e.Fault == "lose" {
		m = &metered{cancelled: true}
		o.usage.lost++
	}
	m.received = e.At
	m.counts = e.At.Add(time.Duration(o.switches.MeterLagSeconds) * time.Second)
	identifier := textOf(e.answer, "identifier")
	if given := e.text("identifier"); identifier == "" || (given != "" && given != identifier) {
		o.problem("%s is answered the identifier %q", describe(e), identifier)
	}
	o.usage.last[identifier] = m
	o.usage.all, o.usage.said = append(o.usage.all, m), append(o.usage.said, identifier)
	payload, _ := e.answer["payload"].(map[string]any)
	for name, v := range payload {
		if e.text("payload["+name+"]") != v {
			o.problem("%s: the payload came back as %v", describe(e), payload)
		}
	}
}

func adjustmentVerdict(o *oracle, e *entry) verdict {
	if e.bad([]string{"event_name", "type", "cancel[identifier]"}) || e.text("type") != "cancel" {
		return refused
	}
	m := o.usage.last[e.text("cancel[identifier]")]
	if m != nil && m.meter != "" && o.get("billing.meter", m.meter).text("event_name") != e.text("event_name") {
		return refused
	}
	switch {
	case m == nil || e.At.Sub(m.received) > remembersAtAll:
		return refused
	case m.cancelled || e.At.Sub(m.received) == remembersAtAll:
		return either
	}
	return accepted
}

// total adds up what a customer has used of a meter from a time on, before another.
func (o *oracle) total(meter, customer string, from, to int64) *big.Rat {
	sum := new(big.Rat)
	for _, m := range o.usage.all {
		if m.meter == meter && m.customer == customer && m.at >= from && m.at < to && !m.cancelled && !m.counts.After(o.now) {
			sum.Add(sum, m.value)
		}
	}
	return sum
}

var windows = map[string]int64{"": 60, "hour": 3600, "day": 86400}

func summariesVerdict(o *oracle, e *entry) verdict {
	unit := windows[e.text("value_grouping_window")]
	from, to := e.number("start_time"), e.number("end_time")
	if e.bad([]string{"customer", "start_time", "end_time"}, "start_time", "end_time", "limit") || unit == 0 || badLimit(e) {
		return refused
	}
	if o.get("billing.meter", e.target("/v1/billing/meters/")) == nil || from >= to || from%unit != 0 || to%unit != 0 {
		return refused
	}
	if e.Form.Has("starting_after") || o.alive("customer", e.text("customer")) == nil {
		return either // the cursor is one of a row that may be gone
	}
	return accepted
}

// summariesRead holds each row that was answered against the events, and looks for
// rows that are missing, newest first.
func summariesRead(o *oracle, e *entry) {
	meter, customer := e.target("/v1/billing/meters/"), e.text("customer")
	from, to := e.number("start_time"), e.number("end_time")
	step := to - from
	if w := e.text("value_grouping_window"); w != "" {
		step = windows[w]
	}
	rows, _ := e.answer["data"].([]any)
	next, more := to, e.answer["has_more"] == true
	continues := e.Form.Has("starting_after")
	for i, raw := range rows {
		row, _ := raw.(map[string]any)
		start, end := wholeOf(row["start_time"]), wholeOf(row["end_time"])
		got, ok := new(big.Rat).SetString(inWords(row["aggregated_value"]))
		if want := o.total(meter, customer, start, end); !ok || want.Cmp(got) != 0 || end-start != step || end > next || row["meter"] != meter {
			o.problem("%s: row %d is %v, and the events from %d to %d add up to %s", describe(e), i, row, start, end, want.FloatString(12))
		}
		if i > 0 || !continues {
			o.nothingBetween(e, meter, customer, end, next)
		}
		next = start
	}
	if !more && (len(rows) > 0 || !continues) {
		o.nothingBetween(e, meter, customer, from, next)
	}
}

// nothingBetween wants that no window without a row has usage that does not cancel out.
func (o *oracle) nothingBetween(e *entry, meter, customer string, from, to int64) {
	step := windows[e.text("value_grouping_window")]
	sums := map[int64]*big.Rat{}
	for _, m := range o.usage.all {
		if m.meter == meter && m.customer == customer && m.at >= from && m.at < to && !m.cancelled && !m.counts.After(o.now) {
			at := m.at - m.at%step
			if sums[at] == nil {
				sums[at] = new(big.Rat)
			}
			sums[at].Add(sums[at], m.value)
		}
	}
	for at, sum := range sums {
		if sum.Sign() != 0 {
			o.problem("%s: no row for the window of %d, which has %s", describe(e), at, sum.FloatString(12))
		}
	}
}

func badLimit(e *entry) bool {
	n := e.number("limit")
	return e.Form.Has("limit") && (n < 1 || n > 100)
}

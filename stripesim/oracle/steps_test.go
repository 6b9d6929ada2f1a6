package oracle

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// step is one thing that a story may do, the more often the more it weighs.
type step struct {
	weight int
	take   func(*story)
}

const post, get = http.MethodPost, http.MethodGet

// steps are all that a story is made of; a topic adds its own.
var steps = joined(customerSteps, endpointSteps, catalogSteps, methodSteps, sessionSteps, intentSteps, refundSteps, disputeSteps, meterSteps, readSteps)

func joined(topics ...[]step) (all []step) {
	for _, topic := range topics {
		all = append(all, topic...)
	}
	return all
}

func (s *story) word() string {
	return one(s, "a", "b", "x y", "ü&=", "100%") + strconv.Itoa(s.random.IntN(1000))
}

func (s *story) whole(most int64) string { return strconv.FormatInt(s.random.Int64N(most)+1, 10) }

// sometimes adds parameters to a call.
func (s *story) sometimes(pairs []string, more ...string) []string {
	for i := 0; i+1 < len(more); i += 2 {
		if s.often(0.3) {
			pairs = append(pairs, more[i], more[i+1])
		}
	}
	return pairs
}

var endpointSteps = []step{
	{1, func(s *story) {
		s.call(post, "/v1/webhook_endpoints", "url", one(s, "http://127.0.0.1:9/", "http://[::1]:9/x", "ftp://no"), "enabled_events[]", one(s, "charge.*", "customer.created", "refund.failed", "product.updated"), "enabled_events[]", "charge.refunded")
	}},
	{2, func(s *story) {
		s.call(post, "/v1/webhook_endpoints/"+s.any("webhook_endpoint"), s.sometimes(nil, "url", "http://127.0.0.1:9/"+s.whole(9), "disabled", one(s, "true", "false"))...)
	}},
	{1, func(s *story) { s.call(http.MethodDelete, "/v1/webhook_endpoints/"+s.any("webhook_endpoint")) }},
}

var catalogSteps = []step{
	{2, func(s *story) {
		s.call(post, "/v1/products", s.sometimes([]string{"name", s.word()}, "id", "prod_"+s.whole(20), "description", s.word(), "active", one(s, "true", "false"), "metadata[k]", "v")...)
	}},
	{2, func(s *story) {
		s.call(post, "/v1/products/"+s.any("product"), s.sometimes(nil, "name", s.word(), "active", one(s, "true", "false"), "metadata[k]", s.word())...)
	}},
	{3, func(s *story) {
		pairs := s.sometimes([]string{"currency", one(s, "usd", "USD", "usd", "eur", "jpy"), "unit_amount", one(s, s.whole(20), s.whole(5000), s.whole(99_999_999), "0")}, "nickname", s.word(), "metadata[k]", "v")
		if s.often(0.2) {
			pairs = append(pairs, "product_data[name]", s.word())
		} else {
			pairs = append(pairs, "product", s.any("product"))
		}
		s.call(post, "/v1/prices", pairs...)
	}},
	{1, func(s *story) {
		pairs := []string{"currency", "usd", "unit_amount_decimal", one(s, "0.002", "1.5", "7", "1e3", "0.1234567890123", "12.000000000001"), "recurring[interval]", "month", "recurring[usage_type]", one(s, "metered", "metered", "licensed")}
		if s.often(0.5) {
			pairs = append(pairs, "recurring[meter]", s.any("billing.meter"))
		}
		if s.often(0.3) {
			pairs = append(pairs, "product_data[name]", s.word())
		} else {
			pairs = append(pairs, "product", s.any("product"))
		}
		s.call(post, "/v1/prices", pairs...)
	}},
	{1, func(s *story) {
		s.call(post, "/v1/prices/"+s.any("price"), s.sometimes(nil, "nickname", s.word(), "active", one(s, "true", "true", "false"), "metadata[k]", s.word())...)
	}},
}

// event is the name of a meter's events: there are few, so that they meet.
func (s *story) event() string { return one(s, "tokens", "calls", "gb", "nothing") }

var meterSteps = []step{
	{1, func(s *story) {
		s.call(post, "/v1/billing/meters", s.sometimes([]string{"display_name", s.word(), "event_name", one(s, "tokens", "calls", "gb"), "default_aggregation[formula]", one(s, "sum", "sum", "count", "max")},
			"customer_mapping[event_payload_key]", "who", "customer_mapping[type]", "by_id", "value_settings[event_payload_key]", "much")...)
	}},
	{1, func(s *story) { s.call(post, "/v1/billing/meters/"+s.any("billing.meter"), "display_name", s.word()) }},
	{1, func(s *story) {
		s.call(post, "/v1/billing/meters/"+s.any("billing.meter")+one(s, "/deactivate", "/reactivate", "/reactivate"))
	}},
	{50, meterEvent},
	{6, func(s *story) {
		identifier := s.identifier()
		if all := s.oracle.usage.said; len(all) > 0 && s.often(0.8) {
			identifier = all[max(0, len(all)-1-s.random.IntN(100))]
		}
		s.call(post, "/v1/billing/meter_event_adjustments", "event_name", s.event(), "type", one(s, "cancel", "cancel", "cancel", "undo"), "cancel[identifier]", identifier)
	}},
	{6, summaries},
}

// identifier takes from few, so that events share them.
func (s *story) identifier() string {
	if s.often(0.02) {
		return strings.Repeat("i", one(s, 100, 101))
	}
	return "id-" + s.whole(int64(50+s.calls/2))
}

func meterEvent(s *story) {
	event := s.event()
	who, much := "stripe_customer_id", "value"
	if t := s.oracle.meterOf(event); t != nil && s.often(0.97) {
		who, much = t.text("_customer"), t.text("_value")
	}
	value := one(s, "1", s.whole(10), s.whole(1_000_000), "9007199254740993", "123456789012345678901234567890", "0.000000000001", "-"+s.whole(20), "0", "1.5", "", "abc", "1e5", "0.1234567890123")
	pairs := []string{"event_name", event, "payload[" + who + "]", s.any("customer"), "payload[" + much + "]", value}
	if s.often(0.9) {
		pairs = append(pairs, "identifier", s.identifier())
	}
	now := s.clock.Now()
	at := one(s, now, now.Add(-time.Duration(s.random.IntN(7200))*time.Second), now.Add(-time.Duration(s.random.IntN(34*86400))*time.Second))
	if s.often(0.05) {
		at = one(s, now.Add(farthest), now.Add(farthest+time.Second), now.Add(-oldest), now.Add(-oldest-time.Second), now.Add(-oldest+time.Second))
	}
	if s.often(0.8) {
		pairs = append(pairs, "timestamp", strconv.FormatInt(at.Unix(), 10))
	}
	s.call(post, "/v1/billing/meter_events", pairs...)
}

// summaries reads a customer's usage, on the edges of a window or beside them.
func summaries(s *story) {
	window := one(s, "", "hour", "day", "minute")
	unit := one(s, max(windows[window], 60), max(windows[window], 60), 60, 1)
	to := (s.clock.Now().Unix() + s.random.Int64N(90_000)) / unit * unit
	from := to - unit*s.random.Int64N(one(s, int64(40), 3, 1000))
	pairs := []string{"customer", s.any("customer"), "start_time", strconv.FormatInt(from, 10), "end_time", strconv.FormatInt(to, 10)}
	if window != "" {
		pairs = append(pairs, "value_grouping_window", window)
	}
	s.call(get, "/v1/billing/meters/"+s.any("billing.meter")+"/event_summaries", s.sometimes(pairs, "limit", one(s, "1", "100", "101", "0"))...)
}

var readSteps = []step{
	{6, func(s *story) {
		kind := one(s, "customer", "product", "price", "checkout.session", "payment_intent", "charge", "refund", "dispute", methodKind, moneyKind, "billing.meter", "webhook_endpoint")
		s.call(get, lists[kind].path+"/"+s.any(kind))
	}},
	{10, listing},
	{2, func(s *story) {
		id := "evt_nobody"
		if len(s.oracle.shown) > 0 && s.often(0.9) {
			id = s.oracle.showed[s.random.IntN(len(s.oracle.showed))]
		}
		s.call(get, "/v1/events/"+id)
	}},
	{2, func(s *story) {
		s.call(get, "/v1/events", s.sometimes(nil, "type", one(s, "charge.*", "customer.created", "*"), "limit", s.whole(100), "types[0]", "charge.refunded", "types[1]", "customer.*")...)
	}},
}

// listing reads a page with filters that somebody might want.
func listing(s *story) {
	kind := one(s, "customer", "product", "price", "checkout.session", "payment_intent", "charge", "refund", "dispute", methodKind, moneyKind, "billing.meter", "webhook_endpoint")
	form := url.Values{}
	all := s.oracle.things[kind]
	for _, name := range lists[kind].filters {
		if len(all) > 0 && s.often(0.3) {
			if v := shown(all[s.random.IntN(len(all))].members[name]); v != "" {
				form.Set(name, v)
			}
		}
	}
	for _, name := range []string{"created[gt]", "created[gte]", "created[lt]", "created[lte]"} {
		if len(all) > 0 && lists[kind].timed && s.often(0.15) {
			form.Set(name, inWords(all[s.random.IntN(len(all))].members["created"]))
		}
	}
	if s.often(0.6) {
		form.Set("limit", one(s, "1", "2", "3", s.whole(100), "100", "0", "101"))
	}
	switch {
	case s.often(0.3):
		form.Set("starting_after", s.any(kind))
	case s.often(0.3):
		form.Set("ending_before", s.any(kind))
	}
	var pairs []string
	for name, v := range form {
		pairs = append(pairs, name, v[0])
	}
	s.call(get, lists[kind].path, pairs...)
}

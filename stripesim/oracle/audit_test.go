package oracle

import (
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"strconv"

	"tallystick/stripesim"
)

// reader asks the simulator, in the end, without faults.
type reader interface {
	get(path string, query url.Values) map[string]any
	state() stripesim.State
}

// audit compares all that the simulator answers with all that the log adds up to.
func (o *oracle) audit(r reader) {
	st := r.state()
	for _, kind := range slices.Sorted(maps.Keys(lists)) {
		if kind != methodKind { // auditMethods asks customer by customer
			o.auditList(r, kind)
		}
		want := len(o.things[kind])
		if kind == "webhook_endpoint" { // of which nothing stays
			want = len(o.living(kind))
		}
		if st.Counts[kind] != want {
			o.problem("the state counts %d of %s, want %d", st.Counts[kind], kind, want)
		}
	}
	o.auditMethods(r)
	o.auditEvents(r)
	o.auditMoney(r)
	o.auditBalance(r)
	o.auditMeters(r, st)
}

func (o *oracle) living(kind string) (all []*thing) {
	for _, t := range o.things[kind] {
		if !t.deleted {
			all = append(all, t)
		}
	}
	return all
}

// whole reads a list from its beginning to its end.
func (o *oracle) whole(r reader, path string, query url.Values) (all []map[string]any) {
	query = maps.Clone(query)
	if query == nil {
		query = url.Values{}
	}
	query.Set("limit", "100")
	seen := map[string]bool{}
	for {
		page := r.get(path, query)
		data, ok := page["data"].([]any)
		if !ok || (len(data) == 0 && page["has_more"] == true) {
			o.problem("%s %s gives no page: %v", path, query.Encode(), page)
			return all
		}
		for _, raw := range data {
			object, _ := raw.(map[string]any)
			if id := textOf(object, "id"); seen[id] {
				o.problem("%s shows %s twice", path, id)
			} else {
				seen[id] = true
				query.Set("starting_after", id)
			}
			all = append(all, object)
		}
		if page["has_more"] != true {
			return all
		}
	}
}

func (o *oracle) auditList(r reader, kind string) {
	got := o.whole(r, lists[kind].path, nil)
	want := o.living(kind)
	slices.Reverse(want)
	if len(got) != len(want) {
		o.problem("there are %d of %s, want %d", len(got), kind, len(want))
	}
	for i := range min(len(got), len(want)) {
		if !want[i].isNamed(textOf(got[i], "id")) {
			o.problem("%s %d of the list is %s, want %s", kind, i, textOf(got[i], "id"), want[i].id)
			return
		}
		o.compare("in the end", want[i], got[i])
	}
}

// auditEvents wants each event once, with its object as it was at that moment.
func (o *oracle) auditEvents(r reader) {
	from, to := o.now.Unix()-eventsKept, o.now.Unix()-o.switches.EventLagSeconds
	name := func(kind, object, request, key string, created int64) string {
		return fmt.Sprintf("%s of %s at %d by %q key %q", kind, object, created, request, key)
	}
	open := map[string][]happening{}
	for _, h := range o.events {
		if h.created > from && h.created <= to {
			n := name(h.kind, h.of.id, h.request, h.key, h.created)
			open[n] = append(open[n], h)
		}
	}
	for _, e := range o.whole(r, "/v1/events", nil) {
		data, _ := e["data"].(map[string]any)
		object, _ := data["object"].(map[string]any)
		created := wholeOf(e["created"])
		n := name(textOf(e, "type"), textOf(object, "id"), textOf(e, "request", "id"), textOf(e, "request", "idempotency_key"), created)
		if unnamed := name(textOf(e, "type"), "", textOf(e, "request", "id"), textOf(e, "request", "idempotency_key"), created); len(open[n]) == 0 && len(open[unnamed]) > 0 {
			open[unnamed][len(open[unnamed])-1].of.isNamed(textOf(object, "id")) // it was in no list, and in no answer
			n = unnamed
		}
		if len(open[n]) == 0 {
			o.problem("nothing had to raise the %s", n)
			continue
		}
		newest := len(open[n]) - 1
		h := open[n][newest]
		open[n] = open[n][:newest]
		wrong := differences(h.members, object)
		if got := wholeOf(e["pending_webhooks"]); got != int64(len(h.pending)) {
			wrong = append(wrong, fmt.Sprintf("pending_webhooks is %d, want %d", got, len(h.pending)))
		}
		for _, difference := range wrong {
			o.problem("the %s: %s", n, difference)
		}
	}
	for n, left := range open {
		for _, h := range left {
			if !h.maybe {
				o.problem("missing is the %s", n)
			}
		}
	}
}

// auditMoney compares what customers have paid and what they got back.
func (o *oracle) auditMoney(r reader) {
	for _, customer := range o.things["customer"] {
		var paid, back int64
		for _, c := range o.with("charge", "customer", customer.id) {
			paid += c.number("amount_captured")
			for _, refund := range o.with("refund", "charge", c) {
				if s := refund.text("status"); s == "succeeded" || s == "pending" {
					back += refund.number("amount")
				}
			}
		}
		if paid == 0 {
			continue
		}
		for _, c := range o.whole(r, "/v1/charges", url.Values{"customer": {customer.id}}) {
			paid -= wholeOf(c["amount_captured"])
			for _, refund := range o.whole(r, "/v1/refunds", url.Values{"charge": {textOf(c, "id")}}) {
				if s := textOf(refund, "status"); s == "succeeded" || s == "pending" {
					back -= wholeOf(refund["amount"])
				}
			}
		}
		if paid != 0 || back != 0 {
			o.problem("customer %s: %d paid and %d refunded are missing from what the charges and refunds add up to", customer.id, paid, back)
		}
	}
}

// auditMeters compares every customer's totals: of all time, by day and by hour.
func (o *oracle) auditMeters(r reader, st stripesim.State) {
	if got := st.MeterEvents; got.Accepted != o.usage.kept {
		o.problem("the state counts %d meter events, want %d", got.Accepted, o.usage.kept)
	}
	shown := map[[2]string]string{}
	for _, total := range st.Meters {
		shown[[2]string{total.Meter, total.Customer}] = total.Total
	}
	pairs := map[[2]string]bool{}
	for _, m := range o.usage.all {
		if m.meter != "" {
			pairs[[2]string{m.meter, m.customer}] = true
		}
	}
	for pair := range pairs {
		want := o.total(pair[0], pair[1], 0, 1<<40)
		if got, ok := new(big.Rat).SetString(shown[pair]); (!ok || got.Cmp(want) != 0) && (ok || want.Sign() != 0) {
			o.problem("the state says that %s used %q of %s, want %s", pair[1], shown[pair], pair[0], want.FloatString(12))
		}
		delete(shown, pair)
		if o.alive("customer", pair[1]) == nil {
			continue // whether Stripe still answers for it is not known
		}
		for _, window := range []string{"", "day", "hour"} {
			from, to := began.Add(-oldest).Unix()/86400*86400, o.now.Unix()/86400*86400+86400
			if window == "hour" {
				from = to - 2*86400
			}
			sum, wanted := new(big.Rat), o.total(pair[0], pair[1], from, to)
			query := url.Values{"customer": {pair[1]}, "start_time": {strconv.FormatInt(from, 10)}, "end_time": {strconv.FormatInt(to, 10)}}
			if window != "" {
				query.Set("value_grouping_window", window)
			}
			for _, row := range o.whole(r, "/v1/billing/meters/"+pair[0]+"/event_summaries", query) {
				if v, ok := new(big.Rat).SetString(inWords(row["aggregated_value"])); ok {
					sum.Add(sum, v)
				}
			}
			if sum.Cmp(wanted) != 0 {
				o.problem("the summaries by %q of %s for %s add up to %s, want %s", window, pair[0], pair[1], sum.FloatString(12), wanted.FloatString(12))
			}
		}
	}
	for pair, total := range shown {
		if total != "0" {
			o.problem("the state says that %s used %s of %s, and nothing was taken", pair[1], total, pair[0])
		}
	}
}

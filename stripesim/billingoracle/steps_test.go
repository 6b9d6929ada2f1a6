package billingoracle

import (
	"fmt"
	"math/big"
	"net/http"
	"strconv"
)

const (
	post   = http.MethodPost
	remove = http.MethodDelete
)

// furnish makes what stories are about.
func (s *story) furnish() {
	s.call(post, "products", "name", "things")
	for range 2 {
		s.newMeter()
	}
	for range 14 {
		s.newPrice()
	}
	for range 20 {
		if len(s.book.customers) < 3 {
			s.newCustomer()
		}
	}
}

// step does one thing, the usual ones more often.
func (s *story) step() {
	type choice struct {
		weight int
		do     func()
	}
	choices := []choice{
		{1, s.newPrice},
		{1, s.newCustomer},
		{4, s.newSubscription},
		{26, s.use},
		{8, s.useMeter},
		{14, s.move},
		{6, s.changeQuantity},
		{3, s.changeEnd},
		{1, s.cancel},
		{6, s.newItem},
		{4, s.changeOldItem},
		{3, s.newInvoice},
		{10, s.moveInvoice},
		{6, s.newNote},
		{1, s.voidOldNote},
		{3, s.changeBalance},
		{3, s.changeMethod},
		{12, s.look},
		{1, s.wrongID},
	}
	sum := 0
	for _, c := range choices {
		sum += c.weight
	}
	n := s.random.IntN(sum)
	for _, c := range choices {
		if n -= c.weight; n < 0 {
			c.do()
			return
		}
	}
}

func (s *story) name(of string) string {
	s.names++
	return of + "_" + strconv.Itoa(s.names)
}

func (s *story) newMeter() {
	s.call(post, "billing/meters", "display_name", "m", "event_name", s.name("used"), "default_aggregation[formula]", one(s, "sum", "sum", "count"))
}

// amounts are of all sizes, and some are parts of a minor unit.
func (s *story) amount(name string) (string, string) {
	if s.often(0.4) {
		return name + "_decimal", one(s, "0.5", "0.000000000001", "12.345678901234"[:13], "0.333", "1.5", "2.5", "99.99")
	}
	return name, one(s, "0", "1", "7", "50", "99", "1000", "12345", "99999999", "3", "2500", "5", "-5")
}

func (s *story) newPrice() {
	product := "things"
	pairs := []string{"currency", one(s, "usd", "usd", "usd", "usd", "eur", "jpy"), "product_data[name]", product}
	if s.often(0.03) {
		pairs = pairs[2:]
	}
	add := func(name, value string) { pairs = append(pairs, name, value) }
	if s.often(0.85) {
		add("recurring[interval]", one(s, "month", "month", "month", "week", "day", "year"))
		add("recurring[interval_count]", one(s, "1", "1", "1", "1", "2", "3"))
		if s.often(0.65) {
			add("recurring[usage_type]", "metered")
			if len(s.book.meters) > 0 && s.often(0.3) {
				add("recurring[meter]", s.anyMeter().id)
			} else {
				add("recurring[aggregate_usage]", one(s, "sum", "sum", "max", "last_during_period", "last_ever"))
			}
		}
	}
	if s.often(0.4) {
		s.addTiers(add)
	} else {
		add(s.amount("unit_amount"))
		if s.often(0.3) {
			add("transform_quantity[divide_by]", one(s, "2", "10", "1000"))
			add("transform_quantity[round]", one(s, "up", "down"))
		}
	}
	s.call(post, "prices", pairs...)
}

func (s *story) addTiers(add func(name, value string)) {
	add("billing_scheme", "tiered")
	add("tiers_mode", one(s, "graduated", "volume"))
	n := 1 + s.random.IntN(3)
	upTo := 0
	for i := range n {
		at := fmt.Sprintf("tiers[%d]", i)
		upTo += one(s, 1, 5, 10, 1000)
		bound := strconv.Itoa(upTo)
		if i == n-1 && s.often(0.98) {
			bound = "inf"
		}
		add(at+"[up_to]", bound)
		if s.often(0.3) {
			add(at+"[unit_amount_decimal]", one(s, "0.5", "0.25", "1.005"))
		} else {
			add(at+"[unit_amount]", one(s, "0", "3", "100", "1999"))
		}
		if s.often(0.4) {
			add(at+"[flat_amount]", one(s, "0", "100", "2500"))
		}
	}
}

func (s *story) newCustomer() {
	pairs := []string{}
	if s.tests {
		if len(s.book.clocks) == 0 || s.often(0.5) {
			s.call(post, "test_helpers/test_clocks", "frozen_time", strconv.FormatInt(began.Unix()+int64(s.random.IntN(3_000_000)), 10))
		}
		pairs = append(pairs, "test_clock", s.anyClock())
	}
	if s.often(0.7) {
		name := one(s, "pm_card_visa", "pm_card_visa", "pm_card_chargeCustomerFail")
		pairs = append(pairs, "payment_method", name, "invoice_settings[default_payment_method]", name)
	}
	if s.often(0.2) {
		pairs = append(pairs, "balance", one(s, "-1000", "-7", "30", "500", "-999999999999"))
	}
	s.call(post, "customers", pairs...)
}

// quantity is of a size that the price can bear.
func (s *story) quantity(p *price) string {
	if s.often(0.02) {
		return one(s, "-1", "1.5", "x")
	}
	if p.cost(big.NewRat(1_000_000_000_000_000, 1)).Cmp(big.NewRat(100_000_000_000_000_000, 1)) < 0 && s.often(0.3) {
		return one(s, "1000000000000000", "999999999999999", "123456789012345")
	}
	return one(s, "0", "1", "1", "2", "3", "5", "6", "7", "10", "11", "100", "999", "1000", "1001", "54321")
}

func (s *story) newSubscription() {
	c := s.anyCustomer()
	running := 0
	for _, sub := range s.book.subs {
		if sub.of == c && !sub.over() {
			running++
		}
	}
	if running >= 3 && s.often(0.9) {
		return
	}
	first := s.anyPrice()
	if first == nil || c.currency != "" && first.currency != c.currency && s.often(0.9) {
		return
	}
	s.align(c, int64(c.subs%50))
	now := s.book.timeOf(c.clock)
	pairs := []string{"customer", c.id}
	prices := []*price{first}
	for range s.random.IntN(3) {
		if p := s.anyPrice(); p != nil && (p.unit == first.unit && p.count == first.count && p.currency == first.currency && p != first || s.often(0.03)) {
			prices = append(prices, p)
		}
	}
	if len(prices) == 3 && prices[1] == prices[2] && s.often(0.8) {
		prices = prices[:2]
	}
	for i, p := range prices {
		at := fmt.Sprintf("items[%d]", i)
		pairs = append(pairs, at+"[price]", p.id)
		if !p.metered && s.often(0.7) || s.often(0.02) {
			pairs = append(pairs, at+"[quantity]", s.quantity(p))
		}
	}
	switch s.random.IntN(6) {
	case 0:
		pairs = append(pairs, "trial_period_days", one(s, "1", "7", "14", "30", "30", "730", "731", "0"))
	case 1:
		pairs = append(pairs, "trial_end", strconv.FormatInt(now+one(s, int64(3600), 90000, 40*day, 8*day, -60), 10))
	case 2:
		pairs = append(pairs, "billing_cycle_anchor", strconv.FormatInt(now+one(s, int64(3600), 3600, day, 6*day, 6*day, 20*day, 1500*day), 10), "proration_behavior", one(s, "create_prorations", "none"))
	}
	if s.often(0.15) {
		pairs = append(pairs, "cancel_at_period_end", "true")
	}
	if s.often(0.15) {
		pairs = append(pairs, "collection_method", "send_invoice", "days_until_due", one(s, "1", "30"))
	}
	if s.often(0.4) {
		pairs = append(pairs, "payment_behavior", one(s, "allow_incomplete", "allow_incomplete", "default_incomplete", "default_incomplete", "default_incomplete", "error_if_incomplete", "error_if_incomplete", "pending_if_incomplete"))
	}
	s.call(post, "subscriptions", pairs...)
}

// use reports usage at a time of the open period, or at its edges.
func (s *story) use() {
	it := s.anyItem(func(it *item) bool { return it.price.legacy() || s.often(0.02) })
	if it == nil {
		return
	}
	now := s.book.timeOf(it.sub.of.clock)
	pairs := []string{"quantity", s.quantity(it.price)}
	switch s.random.IntN(4) {
	case 0:
		pairs = append(pairs, "timestamp", strconv.FormatInt(s.moment(it, now), 10))
	case 1:
		pairs = append(pairs, "timestamp", one(s, "now", strconv.FormatInt(now, 10), strconv.FormatInt(now, 10), strconv.FormatInt(now+1, 10)))
	}
	if s.often(0.4) {
		pairs = append(pairs, "action", one(s, "set", "set", "set", "set", "increment", "increment", "increment", "replace"))
	}
	s.call(post, "subscription_items/"+it.id+"/usage_records", pairs...)
	if s.often(0.3) {
		s.read("subscription_items/"+it.id+"/usage_record_summaries", "limit", one(s, "1", "3", "100"))
	}
}

// moment is a time in a period, or close to its edges.
func (s *story) moment(it *item, now int64) int64 {
	start := it.sub.start
	if it.price.legacy() {
		start = it.periods[len(it.periods)-1].start
	}
	if now < start+lateness || s.often(0.2) {
		return start + one(s, int64(-301), -300, -299, -299, -1, -1, 0, 0, 1, 2, 60)
	}
	return start + 1 + s.random.Int64N(max(now-start, 1))
}

func (s *story) useMeter() {
	c := s.anyCustomer()
	pairs := []string{"event_name", s.anyMeterName(), "payload[stripe_customer_id]", c.id, "payload[value]", one(s, "1", "2", "10", "1000", "0", "-3", "0.5", "2.25")}
	if s.often(0.5) {
		pairs = append(pairs, "identifier", one(s, s.name("event"), s.name("event"), s.name("event"), "event_1"))
	}
	now := s.book.timeOf(c.clock)
	if s.often(0.7) {
		at := now + one(s, int64(-35*day-1), -35*day, -day, -7*day, -3600, -60, -2, -1, 0, 1, 30, 300, 301)
		if it := s.anyItem(func(it *item) bool { return it.price.meter != "" && it.sub.of == c }); it != nil && s.often(0.6) {
			at = it.sub.start + one(s, int64(-1), 0, 1)
		}
		pairs = append(pairs, "timestamp", strconv.FormatInt(at, 10))
	}
	s.call(post, "billing/meter_events", pairs...)
}

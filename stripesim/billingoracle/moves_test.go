package billingoracle

import (
	"math/big"
	"slices"
	"strconv"
)

// pick gives one of those that fit, the younger ones more often; the zero value
// where none does.
func pick[T any](s *story, all []T, fits func(T) bool) (picked T) {
	var found []T
	for _, v := range all {
		if fits(v) {
			found = append(found, v)
		}
	}
	if len(found) > 6 && s.often(0.7) {
		found = found[len(found)-6:]
	}
	if len(found) > 0 {
		picked = one(s, found...)
	}
	return picked
}

func (s *story) anyCustomer() *customer {
	return pick(s, s.book.customers, func(*customer) bool { return true })
}

func (s *story) anySubscription(fits func(*subscription) bool) *subscription {
	over := s.often(0.02)
	return pick(s, s.book.subs, func(sub *subscription) bool { return fits(sub) && sub.over() == over })
}

func (s *story) anyItem(fits func(*item) bool) *item {
	sub := s.anySubscription(func(sub *subscription) bool { return slices.ContainsFunc(sub.items, fits) })
	if sub == nil {
		return nil
	}
	return pick(s, sub.items, fits)
}

func (s *story) anyPrice() *price {
	ids := make([]string, 0, len(s.book.prices))
	for id := range s.book.prices {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	id := pick(s, ids, func(id string) bool { return s.book.prices[id].recurring || s.often(0.02) })
	return s.book.prices[id]
}

func (s *story) anyMeterName() string {
	names := make([]string, 0, len(s.book.meters))
	for name := range s.book.meters {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) == 0 || s.often(0.03) {
		return "nothing"
	}
	return one(s, names...)
}

func (s *story) anyMeter() *meter {
	for {
		if m := s.book.meters[s.anyMeterName()]; m != nil {
			return m
		}
	}
}

func (s *story) anyClock() string {
	ids := make([]string, 0, len(s.book.clocks))
	for id := range s.book.clocks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if len(ids) == 0 {
		return "clock_none"
	}
	return one(s, ids...)
}

// advance moves the clock of a customer.
func (s *story) advance(clock string, seconds int64) {
	if clock == "" {
		s.wait(seconds)
		return
	}
	s.call(post, "test_helpers/test_clocks/"+clock+"/advance", "frozen_time", strconv.FormatInt(s.book.clocks[clock]+seconds, 10))
}

// align moves a customer's clock to a second of the minute. What a customer's
// subscriptions do by themselves happens in different seconds that way: Stripe does
// not say what comes first within one.
func (s *story) align(c *customer, second int64) {
	s.advance(c.clock, 1+(second+119-s.book.timeOf(c.clock)%60)%60)
}

// move lets time pass: seconds to months, often to where something happens.
func (s *story) move() {
	c := s.anyCustomer()
	now := s.book.timeOf(c.clock)
	by := one(s, int64(1), 60, 299, 600, 3599, 3600, 3601, 7200, 6*3600, day, 3*day, 8*day, 20*day, 31*day)
	if s.often(0.05) {
		by = one(s, int64(62*day), 95*day, 0, -5)
	}
	if sub := s.anySubscription(func(sub *subscription) bool { return sub.of.clock == c.clock && sub.next() > now }); sub != nil && s.often(0.6) {
		by = sub.next() - now + one(s, int64(-1), 0, 0, 1, 60, 299, 300, 3600, 3601)
	} else if inv := pick(s, s.book.invoices, func(inv *invoice) bool { return inv.of.clock == c.clock && inv.due > now }); inv != nil && s.often(0.5) {
		by = inv.due - now + one(s, int64(-1), 0, 1)
	}
	if c.clock == "" && by < 1 {
		by = 1
	}
	s.advance(c.clock, by)
	if c.clock != "" && s.often(0.1) {
		s.wait(one(s, int64(1), 60, 600)) // a test clock lives for seven days of the simulator's
	}
}

func (s *story) changeQuantity() {
	it := s.anyItem(func(it *item) bool { return !it.price.metered || s.often(0.02) })
	if it == nil || it.sub.id == "" {
		return
	}
	pairs := []string{"quantity", s.quantity(it.price)}
	if s.often(0.7) {
		pairs = append(pairs, "proration_behavior", one(s, "create_prorations", "create_prorations", "none", "none", "always_invoice", "always_invoice", "always_invoice", "sometimes"))
	}
	s.call(post, "subscription_items/"+it.id, pairs...)
}

func (s *story) changeEnd() {
	sub := s.anySubscription(func(*subscription) bool { return true })
	if sub == nil {
		return
	}
	switch s.random.IntN(6) {
	case 0:
		if sub.status == "trialing" {
			s.align(sub.of, sub.made%60)
		}
		s.call(post, "subscriptions/"+sub.id, "trial_end", "now")
	case 1:
		s.call(post, "subscriptions/"+sub.id, "metadata[k]", "v")
	default:
		s.call(post, "subscriptions/"+sub.id, "cancel_at_period_end", one(s, "true", "false"))
	}
	if s.often(0.2) {
		s.read("subscriptions/" + sub.id)
	}
}

func (s *story) cancel() {
	sub := s.anySubscription(func(*subscription) bool { return true })
	if sub == nil {
		return
	}
	s.align(sub.of, sub.made%60)
	pairs := []string{}
	if s.often(0.5) {
		pairs = append(pairs, "invoice_now", one(s, "true", "false"))
	}
	if s.often(0.4) {
		pairs = append(pairs, "prorate", one(s, "true", "false"))
	}
	s.call(remove, "subscriptions/"+sub.id, pairs...)
}

func (s *story) newItem() {
	c := s.anyCustomer()
	pairs := []string{"customer", c.id}
	switch s.random.IntN(4) {
	case 0:
		pairs = append(pairs, "amount", one(s, "1", "49", "50", "1000", "-700", "999999999999", "1000000000000", "0", "x"))
	case 1:
		name, value := s.amount("unit_amount")
		pairs = append(pairs, name, value, "quantity", one(s, "0", "1", "3", "7", "1000", "-1"))
	case 2:
		if p := pick(s, s.oncePrices(), func(p *price) bool { return p.currency == c.currency || s.often(0.1) }); p != nil {
			pairs = append(pairs, "price", p.id, "quantity", one(s, "1", "2", "11"))
		}
	default:
		pairs = append(pairs, "amount", one(s, "300", "20", "-20", "5000", "123456"))
	}
	if s.often(0.8) && !slices.Contains(pairs, "price") {
		currency := c.currency
		if currency == "" || s.often(0.03) {
			currency = one(s, "usd", "eur")
		}
		pairs = append(pairs, "currency", currency)
	}
	if inv := pick(s, s.book.invoices, func(inv *invoice) bool { return inv.of == c && inv.id != "" && inv.status == "draft" }); inv != nil && s.often(0.4) {
		pairs = append(pairs, "invoice", inv.id)
	} else if sub := s.anySubscription(func(sub *subscription) bool { return sub.of == c }); sub != nil && s.often(0.3) {
		pairs = append(pairs, "subscription", sub.id)
	}
	s.call(post, "invoiceitems", pairs...)
}

func (s *story) oncePrices() (found []*price) {
	ids := make([]string, 0, len(s.book.prices))
	for id := range s.book.prices {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if p := s.book.prices[id]; !p.recurring {
			found = append(found, p)
		}
	}
	return found
}

func (s *story) changeOldItem() {
	i := pick(s, s.book.pending, func(i *invoiceItem) bool {
		return i.id != "" && !i.proration && (i.on == nil || i.on.status == "draft" || s.often(0.05))
	})
	if i == nil {
		return
	}
	if s.often(0.25) {
		s.call(remove, "invoiceitems/"+i.id)
		return
	}
	s.call(post, "invoiceitems/"+i.id, "amount", one(s, "17", "4000", "-9", "50", "3", "999999999999", "1000000000000"))
}

func (s *story) newInvoice() {
	c := s.anyCustomer()
	s.align(c, 50+s.random.Int64N(10))
	pairs := []string{"customer", c.id, "pending_invoice_items_behavior", one(s, "include", "include", "include", "include", "include", "exclude", "exclude", "some")}
	if s.often(0.5) {
		pairs = append(pairs, "auto_advance", one(s, "true", "true", "false"))
	}
	if s.often(0.2) {
		pairs = append(pairs, "collection_method", "send_invoice", "days_until_due", "30")
	}
	s.call(post, "invoices", pairs...)
}

// moveInvoice does something to an invoice that may not be fit for it.
func (s *story) moveInvoice() {
	wanted := one(s, "draft", "open", "open", "paid")
	inv := pick(s, s.book.invoices, func(inv *invoice) bool { return inv.id != "" && inv.status == wanted })
	if inv == nil {
		return
	}
	path := "invoices/" + inv.id
	if wanted == "paid" && s.often(0.8) {
		s.read(path)
		s.read(path+"/lines", "limit", "100")
		return
	}
	choice := s.random.IntN(9)
	if fit := map[string][]int{"draft": {0, 1, 2, 7, 8}, "open": {2, 3, 4, 5, 6, 8}}[wanted]; fit != nil && s.often(0.9) {
		choice = one(s, fit...)
	}
	switch choice {
	case 0, 1:
		s.align(inv.of, inv.made%60)
		if s.often(0.3) {
			s.call(post, path+"/finalize", "auto_advance", one(s, "true", "false"))
		} else {
			s.call(post, path+"/finalize")
		}
	case 2, 3, 4:
		s.call(post, path+"/pay", one(s, [][]string{{}, {}, {"paid_out_of_band", "true"}, {"payment_method", "pm_card_visa"}, {"payment_method", "pm_card_chargeCustomerFail"}}...)...)
	case 5:
		s.call(post, path+"/void")
	case 6:
		s.call(post, path+"/mark_uncollectible")
	case 7:
		s.call(remove, path)
	default:
		s.read(path)
	}
}

func (s *story) newNote() {
	wanted := one(s, "open", "open", "open", "paid", "paid", "paid", "uncollectible", "draft")
	inv := pick(s, s.book.invoices, func(inv *invoice) bool {
		return inv.id != "" && inv.total.Sign() > 0 && inv.status == wanted
	})
	if inv == nil {
		return
	}
	room := new(big.Int).Sub(inv.total, new(big.Int).Add(inv.before, inv.after))
	if inv.status != "paid" {
		room = inv.left
	}
	total := new(big.Int).Set(room)
	switch s.random.IntN(4) {
	case 0:
		total.Quo(total, big.NewInt(2))
	case 1:
		total.Quo(total, big.NewInt(3))
	case 2:
		total.Add(total, big.NewInt(one(s, int64(0), 0, 0, 0, 0, 1)))
	}
	if total.Sign() == 0 && s.often(0.9) {
		return
	}
	pairs := []string{"invoice", inv.id, "amount", total.String()}
	if inv.status == "paid" || s.often(0.03) {
		refund := new(big.Int).Sub(inv.charged, inv.refunded)
		if refund.Cmp(total) > 0 || s.often(0.05) {
			refund.Set(total)
		}
		refund.Quo(refund, big.NewInt(one(s, int64(1), 2, 1_000_000_000_000_000_000)))
		rest := new(big.Int).Sub(total, refund)
		credit := new(big.Int).Quo(rest, big.NewInt(one(s, int64(1), 2)))
		rest.Sub(rest, credit)
		for name, part := range map[string]*big.Int{"refund_amount": refund, "credit_amount": credit, "out_of_band_amount": rest} {
			if part.Sign() != 0 {
				pairs = append(pairs, name, part.String())
			}
		}
	}
	s.call(post, "credit_notes", pairs...)
}

func (s *story) voidOldNote() {
	fit := s.often(0.8)
	if n := pick(s, s.book.notes, func(n *note) bool { return (!n.after && !n.void && n.on.status == "open") == fit }); n != nil {
		s.call(post, "credit_notes/"+n.id+"/void")
	}
}

func (s *story) changeBalance() {
	c := s.anyCustomer()
	amount := one(s, "-1000", "-30", "20", "700", "-99999", "-1", "49", "-700000", "3", "x")
	if s.often(0.3) {
		s.call(post, "customers/"+c.id, "balance", one(s, "0", "-500", "10"))
		return
	}
	currency := c.currency
	if currency == "" || s.often(0.05) {
		currency = "usd"
	}
	s.call(post, "customers/"+c.id+"/balance_transactions", "amount", amount, "currency", currency)
}

func (s *story) changeMethod() {
	c := s.anyCustomer()
	before := len(s.book.methods)
	s.call(post, "payment_methods/"+one(s, "pm_card_visa", "pm_card_visa", "pm_card_chargeCustomerFail")+"/attach", "customer", c.id)
	if len(s.book.methods) > before {
		s.call(post, "customers/"+c.id, "invoice_settings[default_payment_method]", s.book.newest)
	}
}

// look reads what is to be compared, and learns the ids of what was made by itself.
func (s *story) look() {
	c := s.anyCustomer()
	switch s.random.IntN(8) {
	case 0:
		s.read("customers/" + c.id)
	case 1:
		s.read("customers/"+c.id+"/balance_transactions", "limit", "100")
	case 2:
		s.read("invoiceitems", "customer", c.id, "limit", "100")
	case 3:
		s.read("subscriptions", "customer", c.id, "status", "all", "limit", "100")
	default:
		s.read("invoices", "customer", c.id, "limit", one(s, "5", "100"))
	}
}

// wrongID calls for things that are not there.
func (s *story) wrongID() {
	switch s.random.IntN(7) {
	case 6:
		s.call(post, "products", "description", "it has no name")
	case 5:
		s.call(post, "test_helpers/test_clocks", "frozen_time", "0")
	case 0:
		s.call(post, "subscription_items/si_none/usage_records", "quantity", "1")
	case 1:
		s.call(remove, "subscriptions/sub_none")
	case 2:
		s.call(post, "invoices/in_none/pay")
	case 3:
		s.call(post, "credit_notes", "invoice", "in_none", "amount", "1")
	default:
		s.call(post, "subscriptions", "customer", "cus_none", "items[0][price]", "price_none")
	}
}

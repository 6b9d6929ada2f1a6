package billingoracle

import (
	"cmp"
	"fmt"
	"math/big"
	"net/http"
	"slices"
)

// line is one of an invoice.
type line struct {
	kind       string // subscription, invoiceitem
	item       *item
	from       *invoiceItem
	quantity   *big.Rat
	amount     *big.Int
	start, end int64
	proration  bool
	free       bool // of a trial
}

// invoice is one as it should be.
type invoice struct {
	id                    string
	of                    *customer
	sub                   *subscription
	reason, currency      string
	status                string
	made                  int64
	start, end            int64
	auto, sends, outside  bool
	days                  *big.Int
	lines                 []*line
	total, starting       *big.Int
	ending                *big.Int // nil until it is finalized
	dueAmount, paid, left *big.Int
	before, after         *big.Int // credit notes
	attempts              int64
	attempted             bool
	due                   int64 // when something happens to it by itself
	retry                 int64 // next_payment_attempt
	finalized, settled    int64
	voided, givenUp       int64
	charged, refunded     *big.Int // by card
}

func switched(value, normally int64) int64 {
	if value == 0 {
		return normally
	}
	return max(value, 0)
}

// open makes a draft, with what waits for it.
func (b *book) open(inv *invoice, atOnce bool) {
	inv.status, inv.paid, inv.before, inv.after = "draft", new(big.Int), new(big.Int), new(big.Int)
	inv.charged, inv.refunded = new(big.Int), new(big.Int)
	if inv.sends && inv.sub != nil && inv.sub.days != nil {
		inv.days = inv.sub.days
	}
	if inv.of.currency == "" {
		inv.of.currency = inv.currency
	}
	if inv.reason != "manual" {
		inv.lines = append(inv.lines, b.pendingLines(inv.of, inv.sub, inv.currency)...)
	}
	for _, l := range inv.lines {
		if l.from != nil {
			l.from.on = inv
		}
	}
	b.reckon(inv)
	if inv.auto && !atOnce {
		b.schedule(inv)
	}
	b.invoices = append(b.invoices, inv)
}

// schedule lets a draft be finalized after the time of grace.
func (b *book) schedule(inv *invoice) {
	inv.due, inv.retry = max(inv.made+switched(b.with.InvoiceGraceSeconds, 3600), b.timeOf(inv.of.clock)), 0
	if !inv.sends {
		inv.retry = inv.due
	}
}

// balanced tells that the customer's balance is of the invoice's currency.
func (inv *invoice) balanced() bool { return inv.of.currency == "" || inv.of.currency == inv.currency }

// reckon adds a draft up. What is too little to be charged is not due.
func (b *book) reckon(inv *invoice) (ending *big.Int) {
	inv.total, inv.starting = new(big.Int), new(big.Int)
	for _, l := range inv.lines {
		inv.total.Add(inv.total, l.amount)
	}
	if inv.balanced() {
		inv.starting.Set(inv.of.balance)
	}
	sum := new(big.Int).Add(inv.total, inv.starting)
	inv.dueAmount, ending = new(big.Int), new(big.Int)
	switch {
	case sum.Sign() <= 0:
		ending.Set(sum)
	case sum.Cmp(big.NewInt(least[inv.currency])) < 0:
		ending.Set(sum)
	default:
		inv.dueAmount.Set(sum)
	}
	inv.left = new(big.Int).Set(inv.dueAmount)
	return ending
}

// finalize makes the amounts stand. Usage of meters counts until now.
func (b *book) finalize(inv *invoice) {
	now := b.at(inv)
	for _, l := range inv.lines {
		if l.kind == "subscription" && l.item.price.meter != "" && !l.proration {
			l.quantity = b.metered(l.item.price.meter, inv.of.id, l.start, l.end)
			l.amount = nearest(l.item.price.cost(l.quantity))
			if l.free || inv.reason == "subscription_create" {
				l.amount = new(big.Int)
			}
		}
	}
	ending := b.reckon(inv)
	inv.status, inv.finalized, inv.due, inv.retry, inv.ending = "open", now, 0, 0, ending
	if inv.balanced() {
		applied := new(big.Int).Sub(ending, inv.starting)
		if ending.Sign() > 0 { // too small
			applied.Neg(inv.starting)
		}
		if applied.Sign() != 0 {
			b.moveAt(inv, applied, "applied_to_invoice")
		}
		if ending.Sign() > 0 {
			b.moveAt(inv, ending, "invoice_too_small")
		}
	}
	if inv.dueAmount.Sign() == 0 {
		inv.attempted = true
		b.settle(inv)
	}
}

// at is the time at which something happens to an invoice.
func (b *book) at(inv *invoice) int64 { return b.timeOf(inv.of.clock) }

func (b *book) moveAt(inv *invoice, by *big.Int, kind string) {
	b.move(inv.of, by, kind, inv, nil)
	b.reckonDrafts(inv.of)
}

// reckonDrafts lets a customer's drafts start from its balance as it is now.
func (b *book) reckonDrafts(c *customer) {
	for _, draft := range b.invoices {
		if draft.status == "draft" && draft.of == c {
			b.reckon(draft)
		}
	}
}

// settle ends an invoice well.
func (b *book) settle(inv *invoice) {
	inv.status, inv.settled, inv.auto, inv.due, inv.retry = "paid", b.at(inv), false, 0, 0
	inv.paid, inv.left = new(big.Int).Set(inv.dueAmount), new(big.Int)
	if s := b.concerned(inv); s != nil && slices.Contains([]string{"incomplete", "past_due", "unpaid"}, s.status) {
		s.status = "active"
	}
}

// concerned is the subscription whose status follows an invoice: only the latest
// one counts.
func (b *book) concerned(inv *invoice) *subscription {
	s := inv.sub
	if s == nil || s.over() || s.latest != inv && s.latest != nil && s.latest.made > inv.made {
		return nil
	}
	return s
}

// collect tries to charge what is left.
func (b *book) collect(inv *invoice, method string, automatic bool) bool {
	inv.attempted = true
	first := automatic || inv.attempts == 0
	if first {
		inv.attempts++
	}
	if method == "" {
		method = inv.of.method
	}
	if b.pays(method) {
		inv.charged = new(big.Int).Set(inv.left)
		b.settle(inv)
		return true
	}
	tries := switched(b.with.InvoiceRetries, 3)
	if first {
		inv.due, inv.retry = 0, 0
		if inv.auto && inv.reason != "subscription_create" && inv.attempts <= tries {
			inv.due = b.at(inv) + switched(b.with.InvoiceRetrySeconds, 3*day)
			inv.retry = inv.due
		}
	}
	s := b.concerned(inv)
	if s == nil || s.status != "active" && s.status != "past_due" {
		return false
	}
	s.status = "past_due"
	if inv.attempts > tries && inv.retry == 0 && b.with.AfterLastTry != "" {
		if b.with.AfterLastTry == "canceled" {
			b.endSubscription(s, b.at(inv), "", false)
		} else {
			s.status = b.with.AfterLastTry
		}
	}
	return false
}

// invoiceDue lets happen what has come to an invoice.
func (b *book) invoiceDue(inv *invoice) {
	inv.due = 0
	if inv.status == "draft" {
		b.finalize(inv)
	}
	if inv.status == "open" && !inv.sends {
		b.collect(inv, "", true)
	}
}

// voidInvoice gives back what the customer's balance has paid.
func (b *book) voidInvoice(inv *invoice) {
	if applied := new(big.Int).Sub(inv.starting, inv.ending); inv.balanced() && applied.Sign() != 0 {
		b.moveAt(inv, applied, "unapplied_from_invoice")
	}
	inv.status, inv.voided, inv.auto, inv.due, inv.retry = "void", b.at(inv), false, 0, 0
}

// bind learns the id of an invoice that was made by itself.
func (b *book) bind(inv *invoice, id string) {
	if inv == nil || inv.id != "" || id == "" {
		return
	}
	if other := b.byID[id]; other != nil {
		b.problem("the invoice %s is two: of %s and of %s", id, other.reason, inv.reason)
		return
	}
	inv.id, b.byID[id] = id, inv
}

func (b *book) idOf(inv *invoice) any {
	if inv == nil || inv.id == "" {
		return nil
	}
	return inv.id
}

// show is an invoice as an answer should give it. The order of its lines is that of
// the answer: Stripe promises none.
func (b *book) show(inv *invoice) map[string]any {
	want := map[string]any{
		"id": b.idOf(inv), "customer": inv.of.id, "billing_reason": inv.reason, "currency": inv.currency, "status": inv.status, "created": at(inv.made),
		"period_start": at(inv.start), "period_end": at(inv.end), "auto_advance": inv.auto, "total": inv.total, "subtotal": inv.total, "starting_balance": inv.starting,
		"ending_balance": nil, "amount_due": inv.dueAmount, "amount_paid": inv.paid, "amount_remaining": inv.left, "attempt_count": big.NewInt(inv.attempts),
		"attempted": inv.attempted, "next_payment_attempt": at(inv.retry), "paid": inv.status == "paid", "paid_out_of_band": inv.outside,
		"pre_payment_credit_notes_amount": inv.before, "post_payment_credit_notes_amount": inv.after, "subscription": nil, "due_date": nil,
		"collection_method": map[bool]string{false: "charge_automatically", true: "send_invoice"}[inv.sends],
		"status_transitions": map[string]any{
			"finalized_at": at(inv.finalized), "paid_at": at(inv.settled), "voided_at": at(inv.voided), "marked_uncollectible_at": at(inv.givenUp),
		},
	}
	if inv.ending != nil {
		want["ending_balance"] = inv.ending
	}
	if inv.sub != nil {
		want["subscription"] = inv.sub.id
	}
	if inv.days != nil {
		want["due_date"] = at(inv.made + inv.days.Int64()*day)
	}
	return want
}

// compareInvoice holds an answered invoice against the book.
func (b *book) compareInvoice(inv *invoice, got any, e *entry) {
	for _, d := range differences(b.show(inv), got, "") {
		b.problem("%s: invoice %s (%s): %s", describe(e), inv.id, inv.reason, d)
	}
	if more, _ := member(got, "lines", "has_more").(bool); !more {
		b.compareLines(inv, list(got, "lines", "data"), e)
	} else if len(inv.lines) <= 10 {
		b.problem("%s: invoice %s has more than ten lines, want %d", describe(e), inv.id, len(inv.lines))
	}
}

// compareLines holds lines against the book, whatever their order.
func (b *book) compareLines(inv *invoice, got []any, e *entry) {
	want := make([]map[string]any, 0, len(inv.lines))
	for _, l := range inv.lines {
		if l.from != nil && l.from.id == "" {
			b.bindItem(l, got)
		}
		want = append(want, l.show())
	}
	name := func(v any) string {
		return word(v, "type") + word(v, "subscription_item") + word(v, "invoice_item") + plain(member(v, "period", "start")) + plain(member(v, "period", "end"))
	}
	slices.SortFunc(want, func(x, y map[string]any) int { return cmp.Compare(name(x), name(y)) })
	got = slices.Clone(got)
	slices.SortFunc(got, func(x, y any) int { return cmp.Compare(name(x), name(y)) })
	if found := differ(want, got, "lines"); len(found) > 0 {
		b.problem("%s: invoice %s (%s) of %d: %s; want lines %s and it has %s", describe(e), inv.id, inv.reason, inv.made, found[0], written(want), written(got))
	}
}

// written shows lines in short.
func written[T any](lines []T) (all []string) {
	for _, l := range lines {
		s := fmt.Sprintf("%v×%v=%v of %v", member(any(l), "subscription_item"), plain(member(any(l), "quantity")), plain(member(any(l), "amount")), plain(member(any(l), "invoice_item")))
		all = append(all, s+" "+plain(member(any(l), "period", "start"))+"-"+plain(member(any(l), "period", "end")))
	}
	return all
}

// bindItem learns the id of an invoice item that was made by itself.
func (b *book) bindItem(l *line, got []any) {
	for _, g := range got {
		id := word(g, "invoice_item")
		taken := slices.ContainsFunc(b.pending, func(i *invoiceItem) bool { return i.id == id })
		want := l.show()
		delete(want, "invoice_item")
		if !taken && id != "" && len(differences(want, g, "")) == 0 {
			l.from.id = id
			return
		}
	}
}

func (l *line) show() map[string]any {
	want := map[string]any{
		"type": l.kind, "amount": l.amount, "quantity": nearest(l.quantity), "period": map[string]any{"start": at(l.start), "end": at(l.end)}, "proration": l.proration,
	}
	if l.kind == "subscription" {
		want["subscription_item"], want["price"] = l.item.id, map[string]any{"id": l.item.price.id}
		want["subscription"] = l.item.sub.id
	} else {
		want["invoice_item"] = l.from.id
		if l.from.item != nil {
			want["subscription_item"] = l.from.item.id
		}
	}
	return want
}

var invoiceRules map[string]rule

func init() {
	invoiceRules = map[string]rule{
		"POST invoices":      makeInvoice,
		"DELETE invoices/{}": dropInvoice,
		"POST invoices/{}/finalize": step(func(_ *book, e *entry, inv *invoice) string {
			return unless(inv.status == "draft", "it is finalized")
		}, finalizeNow),
		"POST invoices/{}/pay": step(func(_ *book, e *entry, inv *invoice) string {
			return unless(inv.status != "paid" && inv.status != "void", "it is paid or void")
		}, payNow),
		"POST invoices/{}/void": step(func(_ *book, e *entry, inv *invoice) string {
			return unless(inv.status == "open" || inv.status == "uncollectible", "it is not open")
		}, func(b *book, _ *entry, inv *invoice) { b.voidInvoice(inv) }),
		"POST invoices/{}/mark_uncollectible": step(func(_ *book, e *entry, inv *invoice) string {
			return unless(inv.status == "open", "it is not open")
		}, func(b *book, _ *entry, inv *invoice) {
			inv.status, inv.givenUp, inv.auto, inv.due, inv.retry = "uncollectible", b.at(inv), false, 0, 0
		}),
	}
}

// step is a rule of what moves an invoice.
func step(judge func(*book, *entry, *invoice) string, do func(*book, *entry, *invoice)) rule {
	return func(b *book, e *entry) (string, func() map[string]any) {
		inv := b.byID[e.parts()[1]]
		if inv == nil {
			return "there is no such invoice", nothing
		}
		return firstOf(bogus(e), judge(b, e, inv)), func() map[string]any {
			do(b, e, inv)
			if b.expects == http.StatusOK {
				b.compareInvoice(inv, e.answer, e)
			}
			return nil
		}
	}
}

func finalizeNow(b *book, e *entry, inv *invoice) {
	if e.has("auto_advance") {
		inv.auto = e.text("auto_advance") == "true"
	}
	b.finalize(inv)
	if inv.status == "open" && inv.auto && !inv.sends {
		inv.due = b.at(inv) + switched(b.with.InvoiceGraceSeconds, 3600)
		inv.retry = inv.due
	}
}

func payNow(b *book, e *entry, inv *invoice) {
	if inv.status == "draft" {
		b.finalize(inv)
	}
	switch {
	case inv.status == "paid":
	case e.text("paid_out_of_band") == "true":
		inv.outside = true
		b.settle(inv)
	case !b.collect(inv, e.text("payment_method"), false):
		b.expects = http.StatusPaymentRequired
	}
}

// makeInvoice makes a draft by hand, of all that waits where the call says so.
func makeInvoice(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.text("customer"))
	sends := e.text("collection_method") == "send_invoice"
	refusal := firstOf(
		bogus(e), unless(c != nil, "there is no such customer"), unless(sends == e.has("days_until_due"), "days_until_due belongs to send_invoice"),
		e.oneOf("pending_invoice_items_behavior", "include", "exclude"), e.oneOf("collection_method", "charge_automatically", "send_invoice"),
	)
	return refusal, func() map[string]any {
		now := b.timeOf(c.clock)
		inv := &invoice{
			of: c, reason: "manual", currency: cmp.Or(e.text("currency"), c.currency, "usd"), made: now, start: now, end: now, sends: sends,
			auto: e.text("auto_advance") == "true", days: e.whole("days_until_due"),
		}
		if e.text("pending_invoice_items_behavior") == "include" {
			inv.lines = b.pendingLines(c, nil, inv.currency)
		}
		b.open(inv, false)
		b.bind(inv, word(e.answer, "id"))
		b.compareInvoice(inv, e.answer, e)
		return nil
	}
}

func dropInvoice(b *book, e *entry) (string, func() map[string]any) {
	inv := b.byID[e.parts()[1]]
	if inv == nil {
		return "there is no such invoice", nothing
	}
	return firstOf(bogus(e), unless(inv.status == "draft" && inv.sub == nil, "it is no draft made by hand")), func() map[string]any {
		b.invoices = slices.DeleteFunc(b.invoices, func(other *invoice) bool { return other == inv })
		b.pending = slices.DeleteFunc(b.pending, func(i *invoiceItem) bool { return i.on == inv })
		delete(b.byID, inv.id)
		return map[string]any{"deleted": true}
	}
}

package billingoracle

import (
	"math/big"
	"strconv"
)

// note is a credit note.
type note struct {
	id    string
	on    *invoice
	total *big.Int
	after bool // the invoice was paid
	void  bool
	made  int64
}

var noteRules map[string]rule

func init() {
	noteRules = map[string]rule{
		"POST credit_notes":         makeNote,
		"POST credit_notes/{}/void": voidNote,
	}
}

// amountOf reads an amount that may be left out.
func amountOf(e *entry, name string) *big.Int {
	if n := e.whole(name); n != nil {
		return n
	}
	return new(big.Int)
}

func makeNote(b *book, e *entry) (string, func() map[string]any) {
	inv := b.byID[e.text("invoice")]
	if inv == nil {
		return "there is no such invoice", nothing
	}
	total := amountOf(e, "amount")
	credit, refund, outside := amountOf(e, "credit_amount"), amountOf(e, "refund_amount"), amountOf(e, "out_of_band_amount")
	after := inv.status == "paid"
	refusal := firstOf(
		bogus(e), unless(total.Sign() > 0, "it is about nothing"), unless(after || inv.status == "open" || inv.status == "uncollectible", "the invoice is neither open nor paid"),
	)
	given := new(big.Int).Add(credit, refund)
	given.Add(given, outside)
	switch {
	case refusal != "":
	case after:
		room := new(big.Int).Sub(inv.total, inv.before)
		room.Sub(room, inv.after)
		refundable := new(big.Int).Sub(inv.charged, inv.refunded)
		refusal = firstOf(
			unless(total.Cmp(room) <= 0, "it is more than is left of the invoice"), unless(given.Cmp(total) == 0, "the parts are not the whole"),
			unless(credit.Sign() >= 0 && refund.Sign() >= 0 && outside.Sign() >= 0, "a part is below zero"),
			unless(refund.Cmp(refundable) <= 0, "it is more than was charged"), unless(credit.Sign() == 0 || inv.balanced(), "the balance is of another currency"),
		)
	default:
		refusal = firstOf(unless(!e.has("credit_amount") && !e.has("refund_amount") && !e.has("out_of_band_amount"), "nothing was paid yet"), unless(total.Cmp(inv.left) <= 0, "it is more than is left to pay"))
	}
	return refusal, func() map[string]any {
		n := &note{id: word(e.answer, "id"), on: inv, total: total, after: after, made: b.at(inv)}
		b.notes = append(b.notes, n)
		if !after {
			b.credit(inv, total)
			return b.showNote(n)
		}
		inv.refunded = new(big.Int).Add(inv.refunded, refund)
		inv.after = new(big.Int).Add(inv.after, total)
		if credit.Sign() > 0 {
			b.move(inv.of, new(big.Int).Neg(credit), "credit_note", inv, n.id)
			b.reckonDrafts(inv.of)
		}
		return b.showNote(n)
	}
}

// credit lowers what is due of an invoice that is not paid; one with nothing left is
// paid.
func (b *book) credit(inv *invoice, amount *big.Int) {
	inv.before = new(big.Int).Add(inv.before, amount)
	inv.dueAmount = new(big.Int).Sub(inv.dueAmount, amount)
	inv.left = new(big.Int).Sub(inv.left, amount)
	if inv.left.Sign() == 0 {
		b.settle(inv)
	}
}

func (b *book) showNote(n *note) map[string]any {
	return map[string]any{
		"id": n.id, "invoice": n.on.id, "customer": n.on.of.id, "amount": n.total, "total": n.total, "currency": n.on.currency, "created": at(n.made),
		"type":   map[bool]string{false: "pre_payment", true: "post_payment"}[n.after],
		"status": map[bool]string{false: "issued", true: "void"}[n.void],
	}
}

func voidNote(b *book, e *entry) (string, func() map[string]any) {
	for _, n := range b.notes {
		if n.id != e.parts()[1] {
			continue
		}
		return firstOf(bogus(e), unless(!n.void && !n.after && n.on.status == "open", "it cannot be taken back")), func() map[string]any {
			n.void = true
			b.credit(n.on, new(big.Int).Neg(n.total))
			return b.showNote(n)
		}
	}
	return "there is no such credit note", nothing
}

var listRules map[string]rule

func init() {
	listRules = map[string]rule{
		"GET invoices":                          listInvoices,
		"GET invoices/{}":                       readInvoice,
		"GET invoices/{}/lines":                 readLines,
		"GET invoiceitems":                      listItems,
		"GET credit_notes":                      listNotes,
		"GET customers/{}":                      readCustomer,
		"GET customers/{}/balance_transactions": listMoves,
		"GET subscriptions":                     listSubscriptions,
	}
}

// newest gives a customer's things, the newest first.
func newest[T any](all []T, of func(T) bool) (found []T) {
	for i := len(all) - 1; i >= 0; i-- {
		if of(all[i]) {
			found = append(found, all[i])
		}
	}
	return found
}

// after cuts off what a page leaves behind it.
func after[T any](all []T, id string, idOf func(T) string) []T {
	for i := range all {
		if id != "" && idOf(all[i]) == id {
			return all[i+1:]
		}
	}
	return all
}

func listInvoices(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.text("customer"))
	if c == nil {
		return "the oracle asks for customers that are there", nothing
	}
	return bogus(e), func() map[string]any {
		rows := newest(b.invoices, func(inv *invoice) bool { return inv.of == c })
		rows = after(rows, e.text("starting_after"), func(inv *invoice) string { return inv.id })
		got := list(e.answer, "data")
		want := []map[string]any{}
		for i, inv := range rows {
			if i < len(got) {
				b.bind(inv, word(got[i], "id"))
				b.compareInvoice(inv, got[i], e)
			}
			want = append(want, map[string]any{"id": b.idOf(inv)})
		}
		return b.page(e, want)
	}
}

func readInvoice(b *book, e *entry) (string, func() map[string]any) {
	inv := b.byID[e.parts()[1]]
	return unless(inv != nil, "there is no such invoice"), func() map[string]any {
		b.compareInvoice(inv, e.answer, e)
		return nil
	}
}

func readLines(b *book, e *entry) (string, func() map[string]any) {
	inv := b.byID[e.parts()[1]]
	return unless(inv != nil, "there is no such invoice"), func() map[string]any {
		if more, _ := member(e.answer, "has_more").(bool); !more {
			b.compareLines(inv, list(e.answer, "data"), e)
		}
		return nil
	}
}

func listItems(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.text("customer"))
	if c == nil {
		return "the oracle asks for customers that are there", nothing
	}
	return bogus(e), func() map[string]any {
		got, want := list(e.answer, "data"), []map[string]any{}
		for i, item := range newest(b.pending, func(i *invoiceItem) bool { return i.of == c }) {
			if i < len(got) && item.id == "" {
				item.id = word(got[i], "id")
			}
			if i < len(got) && item.on != nil {
				b.bind(item.on, word(got[i], "invoice"))
			}
			want = append(want, b.showItem(item))
		}
		return b.page(e, want)
	}
}

func listNotes(b *book, e *entry) (string, func() map[string]any) {
	return bogus(e), func() map[string]any {
		want := []map[string]any{}
		for _, n := range newest(b.notes, func(n *note) bool { return n.on.of.id == e.text("customer") }) {
			want = append(want, b.showNote(n))
		}
		return b.page(e, want)
	}
}

func readCustomer(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.parts()[1])
	return unless(c != nil, "there is no such customer"), func() map[string]any { return b.showCustomer(c) }
}

func listMoves(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.parts()[1])
	return unless(c != nil, "there is no such customer"), func() map[string]any {
		got, want := list(e.answer, "data"), []map[string]any{}
		for i, move := range c.moves {
			want = append(want, b.showMove(move, member(any(got), i)))
		}
		return b.page(e, want)
	}
}

func listSubscriptions(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.text("customer"))
	if c == nil || e.text("status") != "all" {
		return "the oracle asks for all of a customer that is there", nothing
	}
	return bogus(e), func() map[string]any {
		got, want := list(e.answer, "data"), []map[string]any{}
		for i, s := range newest(b.subs, func(s *subscription) bool { return s.of == c }) {
			b.bind(s.latest, word(member(any(got), i), "latest_invoice"))
			want = append(want, b.showSubscription(s))
		}
		return b.page(e, want)
	}
}

// count holds the number of all objects against what the simulator says of itself.
func (b *book) count(counts map[string]int) {
	items, periods := 0, 0
	for _, s := range b.subs {
		b.cells["subscription "+s.status]++
		items += len(s.items)
		for _, it := range s.items {
			periods += len(it.periods)
		}
	}
	for _, inv := range b.invoices {
		b.cells["invoice "+inv.reason+" "+inv.status]++
		b.cells["tries "+strconv.FormatInt(inv.attempts, 10)]++
	}
	moves := 0
	for _, c := range b.customers {
		moves += len(c.moves)
		b.cells[map[bool]string{true: "on the simulator's clock", false: "on a test clock"}[c.clock == ""]]++
	}
	for kind, want := range map[string]int{
		"customer": len(b.customers), "price": len(b.prices), "subscription": len(b.subs), "subscription_item": items, "usage_record_summary": periods,
		"invoice": len(b.invoices), "invoiceitem": len(b.pending), "credit_note": len(b.notes), "customer_balance_transaction": moves,
		"billing.meter": len(b.meters), "test_helpers.test_clock": len(b.clocks),
	} {
		if counts[kind] != want {
			b.problem("the simulator holds %d of %s, want %d", counts[kind], kind, want)
		}
	}
}

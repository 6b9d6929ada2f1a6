package billingoracle

import (
	"cmp"
	"math/big"
	"slices"
)

// invoiceItem waits for an invoice, or is on one.
type invoiceItem struct {
	id         string
	of         *customer
	sub        *subscription
	item       *item
	price      *price
	currency   string
	each       *big.Rat
	quantity   *big.Int
	amount     *big.Int
	start, end int64
	proration  bool
	on         *invoice
	made       int64
}

// pendingLines are those of the items that wait: of a subscription and of none; for
// no subscription all.
func (b *book) pendingLines(c *customer, s *subscription, currency string) (lines []*line) {
	for _, i := range b.pending {
		if i.on == nil && i.of == c && i.currency == currency && (s == nil || i.sub == nil || i.sub == s) {
			lines = append(lines, i.line())
		}
	}
	return lines
}

func (i *invoiceItem) line() *line {
	return &line{kind: "invoiceitem", from: i, quantity: new(big.Rat).SetInt(i.quantity), amount: i.amount, start: i.start, end: i.end, proration: i.proration}
}

func (b *book) showItem(i *invoiceItem) map[string]any {
	want := map[string]any{
		"id": i.id, "customer": i.of.id, "amount": i.amount, "quantity": i.quantity, "currency": i.currency, "date": at(i.made), "proration": i.proration,
		"period": map[string]any{"start": at(i.start), "end": at(i.end)}, "invoice": nil, "subscription": nil,
	}
	if i.on != nil {
		want["invoice"] = b.idOf(i.on)
	}
	if i.sub != nil {
		want["subscription"] = i.sub.id
	}
	return want
}

var itemRules map[string]rule

func init() {
	itemRules = map[string]rule{
		"POST invoiceitems":                      makeItem,
		"POST invoiceitems/{}":                   editItem,
		"DELETE invoiceitems/{}":                 dropItem,
		"POST customers/{}/balance_transactions": moveBalance,
	}
}

// most is the largest amount of an invoice item.
const most = 999_999_999_999

// worth reads what an item costs.
func (b *book) worth(e *entry, i *invoiceItem) (refusal string) {
	given := 0
	for _, name := range []string{"amount", "unit_amount", "unit_amount_decimal", "price"} {
		if e.has(name) {
			given++
		}
	}
	if e.has("quantity") {
		if i.quantity = e.whole("quantity"); i.quantity == nil || i.quantity.Sign() < 0 {
			return "the quantity is no number"
		}
	}
	switch p := b.prices[e.text("price")]; {
	case given != 1:
		return "the amount is said in no way or in two"
	case e.has("amount"):
		if e.has("quantity") || e.whole("amount") == nil {
			return "an amount has no quantity"
		}
		i.amount, i.quantity = e.whole("amount"), big.NewInt(1)
		i.each, i.price = new(big.Rat).SetInt(i.amount), nil
	case e.has("price"):
		if p == nil || p.recurring || p.currency != i.currency {
			return "there is no such price for once"
		}
		i.price = p
		i.amount = nearest(p.cost(new(big.Rat).SetInt(i.quantity)))
	default:
		i.each, i.price = rat(e.Form, "unit_amount"), nil
		i.amount = nearest(new(big.Rat).Mul(i.each, new(big.Rat).SetInt(i.quantity)))
	}
	return unless(i.amount.CmpAbs(big.NewInt(most)) <= 0, "the amount is too large")
}

func makeItem(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.text("customer"))
	if c == nil {
		return "there is no such customer", nothing
	}
	inv, s := b.byID[e.text("invoice")], b.subscription(e.text("subscription"))
	now := b.timeOf(c.clock)
	i := &invoiceItem{of: c, sub: s, quantity: big.NewInt(1), start: now, end: now, made: now, on: inv}
	i.currency = e.text("currency")
	if p := b.prices[e.text("price")]; p != nil {
		i.currency = p.currency
	}
	if i.currency == "" {
		if inv != nil {
			i.currency = inv.currency
		} else if s != nil {
			i.currency = s.currency
		}
		i.currency = cmp.Or(i.currency, c.currency)
	}
	refusal := firstOf(
		bogus(e), unless(i.currency != "", "it has no currency"), b.worth(e, i), unless(!e.has("invoice") || inv != nil && inv.of == c && inv.status == "draft", "there is no such draft"),
		unless(!e.has("subscription") || s != nil && s.of == c, "there is no such subscription"), unless(inv == nil || inv.currency == i.currency, "currencies differ"),
		unless(s == nil || s.currency == i.currency, "currencies differ"),
	)
	return refusal, func() map[string]any {
		c.currency = cmp.Or(c.currency, i.currency)
		i.id = word(e.answer, "id")
		b.pending = append(b.pending, i)
		if inv != nil {
			inv.lines = append(inv.lines, i.line())
			b.reckon(inv)
		}
		return b.showItem(i)
	}
}

// itemCalled gives an item that can still be changed.
func (b *book) itemCalled(id string) (*invoiceItem, string) {
	for _, i := range b.pending {
		if i.id == id && id != "" {
			return i, unless(i.on == nil || i.on.status == "draft", "its invoice is finalized")
		}
	}
	return nil, "there is no such item"
}

// editItem gives an item another amount, or another quantity.
func editItem(b *book, e *entry) (string, func() map[string]any) {
	i, refusal := b.itemCalled(e.parts()[1])
	if refusal != "" {
		return refusal, nothing
	}
	changed := *i
	refusal = firstOf(bogus(e), b.worth(e, &changed))
	return refusal, func() map[string]any {
		*i = changed
		if i.on != nil {
			for n, l := range i.on.lines {
				if l.from == i {
					i.on.lines[n] = i.line()
				}
			}
			b.reckon(i.on)
			b.bind(i.on, word(e.answer, "invoice"))
		}
		return b.showItem(i)
	}
}

func dropItem(b *book, e *entry) (string, func() map[string]any) {
	i, refusal := b.itemCalled(e.parts()[1])
	return firstOf(refusal, bogus(e)), func() map[string]any {
		b.pending = slices.DeleteFunc(b.pending, func(other *invoiceItem) bool { return other == i })
		if i.on != nil {
			i.on.lines = slices.DeleteFunc(i.on.lines, func(l *line) bool { return l.from == i })
			b.reckon(i.on)
		}
		return map[string]any{"deleted": true}
	}
}

func moveBalance(b *book, e *entry) (string, func() map[string]any) {
	c := b.customer(e.parts()[1])
	amount, currency := e.whole("amount"), e.text("currency")
	refusal := firstOf(bogus(e), unless(c != nil, "there is no such customer"), unless(amount != nil, "there is no amount"), unless(currency != "", "there is no currency"))
	if refusal == "" {
		refusal = unless(c.currency == "" || c.currency == currency, "the customer pays in another currency")
	}
	return refusal, func() map[string]any {
		c.currency = cmp.Or(c.currency, currency)
		b.move(c, amount, "adjustment", nil, nil)
		b.reckonDrafts(c)
		return b.showMove(c.moves[0], e.answer)
	}
}

// showMove is a balance transaction; it learns the id of the invoice it is about.
func (b *book) showMove(move map[string]any, got any) map[string]any {
	want := map[string]any{"invoice": nil}
	for name, v := range move {
		if name != "_invoice" {
			want[name] = v
		}
	}
	if inv, _ := move["_invoice"].(*invoice); inv != nil {
		b.bind(inv, word(got, "invoice"))
		want["invoice"] = b.idOf(inv)
	}
	return want
}

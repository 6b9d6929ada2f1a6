package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
)

// facts are what Stripe says of a payment, and what it buys.
type facts struct {
	payment   string // the payment intent, else the session, else the invoice
	session   string
	invoice   string
	customer  string
	account   string // as named by the buyer's session, the invoice or the payment; "" leaves the customer to decide
	money     int64
	currency  string
	livemode  bool
	createdAt time.Time
	offer     offer
	problem   string // why the credits are not known
	unpaid    string // why it counts as paid no more; all else is empty then
	returns   []moneyBack
	disputes  []stripe.Dispute
	note      string // for the journal, when a person has mapped it
	seen      known  // our record before Stripe was asked
}

// known tells in which state our record of a payment is.
type known struct {
	State     string    `db:"state"` // "" without a record
	UpdatedAt time.Time `db:"updated_at"`
}

// offer is what a payment buys.
type offer struct {
	credits     credit.Amount
	expireDays  int
	priority    int
	hasPriority bool
}

// read gathers the facts of the payment that a lead leads to, nil when it has not
// been paid or does not concern us. It calls Stripe and is never called inside a
// transaction.
func (h *Webhooks) read(ctx context.Context, lead string, seen known) (*facts, error) {
	f, err := h.ask(ctx, lead, seen)
	if f == nil || err != nil {
		return nil, err
	}
	if f.payment != lead { // what was seen is of another record: look at the right one, and ask again
		if seen, err = h.seen(ctx, f.payment); err != nil {
			return nil, err
		}
		if f, err = h.ask(ctx, f.payment, seen); f == nil || err != nil {
			return nil, err
		}
	}
	f.seen = seen
	return f, nil
}

// ask is read without a look at our own records.
func (h *Webhooks) ask(ctx context.Context, lead string, seen known) (*facts, error) {
	switch {
	case isSession(lead):
		return h.askSession(ctx, lead, seen)
	case isInvoice(lead):
		return h.askInvoice(ctx, lead, seen)
	}
	return h.askIntent(ctx, lead, seen)
}

// failed are the facts of a payment that is not paid. Nobody but who has taken it
// for paid before needs them.
func failed(payment string, seen known, why string) *facts {
	if seen.State != stateGranted {
		return nil
	}
	return &facts{payment: payment, unpaid: why}
}

func (h *Webhooks) askSession(ctx context.Context, id string, seen known) (*facts, error) {
	s, err := h.stripe.Session(ctx, id)
	switch {
	case err != nil:
		return nil, away(err)
	case s.PaymentIntent != "":
		return h.askIntent(ctx, s.PaymentIntent, seen)
	case s.Mode != "payment": // a subscription's session has no payment intent either, and its invoice buys
		return nil, nil
	case s.Status != "complete" || s.PaymentStatus == "unpaid":
		return failed(id, seen, fmt.Sprintf("checkout session %s is %s and %s", id, s.Status, s.PaymentStatus)), nil
	}
	return h.sessionFacts(s, stripe.PaymentIntent{}), nil
}

func (h *Webhooks) askIntent(ctx context.Context, id string, seen known) (*facts, error) {
	pi, err := h.stripe.PaymentIntent(ctx, id)
	switch {
	case err != nil:
		return nil, away(err)
	case pi.Status == "succeeded":
	case pi.Invoice != "" && seen.State == "": // it may have been paid by another way
		return h.askInvoice(ctx, pi.Invoice, seen)
	default:
		return failed(id, seen, fmt.Sprintf("payment intent %s is %s", id, pi.Status)), nil
	}
	s, ok, err := h.stripe.SessionOf(ctx, id)
	if err != nil {
		return nil, away(err)
	}
	var f *facts
	var i stripe.Invoice
	switch {
	case ok && s.Mode == "payment": // it may make an invoice of its payment: it is a purchase all the same
		f = h.sessionFacts(s, pi)
		f.invoice = pi.Invoice
	case pi.Invoice != "":
		if i, err = h.stripe.Invoice(ctx, pi.Invoice); err != nil {
			return nil, away(err)
		}
		f = invoiceFacts(i, pi)
	case ok: // a session that only sets something up
	default:
		f = h.intentFacts(pi)
	}
	if f == nil {
		return nil, nil
	}
	return f, h.askReturns(ctx, f)
}

// askInvoice is for an invoice by itself. What was paid by a payment intent or in
// a checkout session counts as that, so that one purchase has one key.
func (h *Webhooks) askInvoice(ctx context.Context, id string, seen known) (*facts, error) {
	i, err := h.stripe.Invoice(ctx, id)
	if err != nil {
		return nil, away(err)
	}
	pi := stripe.PaymentIntent{}
	if i.PaymentIntent != "" {
		if pi, err = h.stripe.PaymentIntent(ctx, i.PaymentIntent); err != nil {
			return nil, away(err)
		}
		if pi.Status == "succeeded" {
			return &facts{payment: pi.ID}, nil // read asks about that one
		}
	}
	if i.Status != "paid" {
		return failed(id, seen, fmt.Sprintf("invoice %s is %s", id, i.Status)), nil
	}
	if i.Subscription == "" && i.Customer != "" {
		s, ok, err := h.stripe.SessionOfInvoice(ctx, i.Customer, id)
		if err != nil {
			return nil, away(err)
		}
		if ok && s.Mode == "payment" {
			return h.sessionFacts(s, pi), nil
		}
	}
	f := invoiceFacts(i, pi)
	if f == nil {
		return nil, nil
	}
	return f, h.askReturns(ctx, f)
}

// askReturns adds what has gone back of a payment: by refunds, by disputes and by
// credit notes.
func (h *Webhooks) askReturns(ctx context.Context, f *facts) error {
	var refunds []stripe.Refund
	var err error
	if !isInvoice(f.payment) && !isSession(f.payment) {
		if f.disputes, err = h.stripe.DisputesOf(ctx, f.payment); err != nil {
			return away(err)
		}
		if refunds, err = h.stripe.RefundsOf(ctx, f.payment); err != nil {
			return away(err)
		}
	}
	var notes []stripe.CreditNote
	if f.invoice != "" {
		if notes, err = h.stripe.CreditNotesOf(ctx, f.invoice); err != nil {
			return away(err)
		}
	}
	f.returns, err = returnsOf(refunds, f.disputes, notes)
	return err
}

func (h *Webhooks) sessionFacts(s stripe.Session, pi stripe.PaymentIntent) *facts {
	f := &facts{
		payment: cmp.Or(s.PaymentIntent, s.ID), session: s.ID, customer: cmp.Or(s.Customer, pi.Customer), money: s.Money, currency: s.Currency,
		livemode: s.Livemode, createdAt: s.CreatedAt, account: cmp.Or(s.ClientReference, s.Metadata["account"], pi.Metadata["account"]),
	}
	var err error
	var found bool
	if f.offer, found, err = itemsOffer(s.Items); !found && err == nil {
		if f.offer, found, err = metadataOffer(s.Metadata); !found && err == nil {
			f.offer, found, err = metadataOffer(pi.Metadata)
		}
	}
	f.price(h.perMajor, found, err)
	return f
}

func (h *Webhooks) intentFacts(pi stripe.PaymentIntent) *facts {
	f := &facts{
		payment: pi.ID, customer: pi.Customer, money: pi.Money, currency: pi.Currency, livemode: pi.Livemode, createdAt: pi.CreatedAt,
		account: pi.Metadata["account"],
	}
	o, found, err := metadataOffer(pi.Metadata)
	f.offer = o
	f.price(h.perMajor, found, err)
	return f
}

// price falls back to the configured rate where no metadata says what is bought.
func (f *facts) price(perMajor int64, found bool, err error) {
	switch {
	case err != nil:
		f.problem = err.Error()
	case found:
	case perMajor > 0:
		f.offer.credits, err = creditsOf(f.money, f.currency, perMajor)
		if err != nil {
			f.problem = err.Error()
		}
	default:
		f.problem = "nothing says how many credits it buys: set metadata.credits on the price, the product, the session or the payment"
	}
	if f.problem == "" && f.offer.credits <= 0 {
		f.problem = "it buys no credits"
	}
}

// invoiceFacts are of an invoice that was paid: by the payment intent, outside of
// Stripe, or out of the customer's balance. It buys credits only where a line, the
// invoice or the payment says so: most invoices are for something else. One that
// asked for no money buys none, such as the first of a trial.
func invoiceFacts(i stripe.Invoice, pi stripe.PaymentIntent) *facts {
	if i.Total <= 0 {
		return nil
	}
	f := &facts{
		payment: i.ID, invoice: i.ID, customer: cmp.Or(i.Customer, pi.Customer), money: i.Total, currency: i.Currency, livemode: i.Livemode,
		createdAt: i.CreatedAt, account: cmp.Or(i.Metadata["account"], pi.Metadata["account"]),
	}
	if pi.Status == "succeeded" {
		f.payment, f.createdAt = pi.ID, pi.CreatedAt
	}
	o, found, err := itemsOffer(lineItems(i.Lines))
	if !found && err == nil && i.Subscription == "" {
		if o, found, err = metadataOffer(i.Metadata); !found && err == nil {
			o, found, err = metadataOffer(pi.Metadata)
		}
	}
	if !found && err == nil {
		return nil
	}
	f.offer = o
	f.price(0, found, err)
	return f
}

// lineItems are the lines that buy something whole: not what is billed by usage,
// and no part of a period.
func lineItems(lines []stripe.InvoiceLine) (items []stripe.Item) {
	for _, line := range lines {
		if line.Metered || line.Proration || line.Quantity <= 0 || line.Money < 0 {
			continue
		}
		items = append(items, stripe.Item{
			Price: line.Price, Product: line.Product, Quantity: line.Quantity, PriceMetadata: line.PriceMetadata, ProductMetadata: line.ProductMetadata,
		})
	}
	return items
}

// itemsOffer adds up what the lines buy: each by its price's metadata.credits,
// else by its product's. Lines without either are goods of another kind.
func itemsOffer(items []stripe.Item) (total offer, found bool, err error) {
	for _, item := range items {
		metadata := item.PriceMetadata
		if metadata["credits"] == "" {
			metadata = item.ProductMetadata
		}
		one, ok, err := metadataOffer(metadata)
		if err != nil {
			return offer{}, true, err
		}
		if !ok {
			continue
		}
		credits, err := credit.Scale(int64(one.credits), item.Quantity, 1)
		if err == nil {
			total.credits, err = total.credits.Add(credit.Amount(credits))
		}
		if err != nil {
			return offer{}, true, fmt.Errorf("the credits of price %s: %w", item.Price, err)
		}
		if !found {
			total.expireDays, total.priority, total.hasPriority = one.expireDays, one.priority, one.hasPriority
		}
		found = true
	}
	return total, found, nil
}

var errMetadata = errors.New("its metadata cannot be read")

// metadataOffer reads credits, credits_expire_days and credits_priority.
func metadataOffer(metadata map[string]string) (o offer, found bool, err error) {
	text := metadata["credits"]
	if text == "" {
		return offer{}, false, nil
	}
	if o.credits, err = credit.ParseAmount(text); err != nil {
		return offer{}, true, fmt.Errorf("%w: credits %q %w", errMetadata, text, err)
	}
	if days := metadata["credits_expire_days"]; days != "" {
		if o.expireDays, err = strconv.Atoi(days); err != nil || o.expireDays < 1 || o.expireDays > 36500 {
			return offer{}, true, fmt.Errorf("%w: credits_expire_days %q is no number of days", errMetadata, days)
		}
	}
	if priority := metadata["credits_priority"]; priority != "" {
		if o.priority, err = strconv.Atoi(priority); err != nil || o.priority < -1000 || o.priority > 1000 {
			return offer{}, true, fmt.Errorf("%w: credits_priority %q is no number from -1000 to 1000", errMetadata, priority)
		}
		o.hasPriority = true
	}
	return o, true, nil
}

// Minor units in a major unit, where it is not 100. Stripe takes ISK and UGX with
// two decimals although they have none.
var minorUnits = map[string]int64{
	"bif": 1, "clp": 1, "djf": 1, "gnf": 1, "jpy": 1, "kmf": 1, "krw": 1, "mga": 1, "pyg": 1, "rwf": 1, "vnd": 1, "vuv": 1, "xaf": 1, "xof": 1, "xpf": 1,
	"bhd": 1000, "jod": 1000, "kwd": 1000, "omr": 1000, "tnd": 1000,
}

func creditsOf(money int64, currency string, perMajor int64) (credit.Amount, error) {
	minor := cmp.Or(minorUnits[strings.ToLower(currency)], 100)
	n, err := credit.Scale(money, int64(credit.Whole(perMajor)), minor)
	return credit.Amount(n), err
}

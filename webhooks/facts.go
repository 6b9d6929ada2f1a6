package webhooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/fault"
	"tallystick/internal/stripe"
)

// facts are what Stripe says of a payment, and what it buys.
type facts struct {
	payment   string // the payment intent, or the session when there is none
	session   string
	customer  string
	account   string // as named by the buyer's session or the payment; "" leaves the customer to decide
	money     int64
	currency  string
	livemode  bool
	createdAt time.Time
	offer     offer
	problem   string // why the credits are not known
	refunds   []stripe.Refund
	seen      time.Time // updated_at of our record before Stripe was asked; zero without one
}

// offer is what a payment buys.
type offer struct {
	credits     credit.Amount
	expireDays  int
	priority    int
	hasPriority bool
}

// read gathers the facts of a payment, nil when it has not been paid or does not
// concern us. It calls Stripe and is never called inside a transaction.
func (h *Webhooks) read(ctx context.Context, payment string) (*facts, error) {
	seen, err := h.seen(ctx, payment)
	if err != nil {
		return nil, err
	}
	f, err := h.ask(ctx, payment)
	if f != nil {
		f.seen = seen
	}
	return f, err
}

// ask is read without a look at our own records.
func (h *Webhooks) ask(ctx context.Context, payment string) (*facts, error) {
	if strings.HasPrefix(payment, "cs_") {
		s, err := h.stripe.Session(ctx, payment)
		if err != nil || s.PaymentIntent != "" || s.Status != "complete" || s.PaymentStatus == "unpaid" || s.Mode != "payment" {
			return nil, away(err) // a subscription's session has no payment intent either, and buys no credits
		}
		return h.sessionFacts(s, stripe.PaymentIntent{}), nil
	}
	pi, err := h.stripe.PaymentIntent(ctx, payment)
	if err != nil {
		return nil, away(err)
	}
	if pi.Status != "succeeded" {
		return nil, nil
	}
	s, ok, err := h.stripe.SessionOf(ctx, payment)
	if err != nil {
		return nil, away(err)
	}
	refunds, err := h.stripe.RefundsOf(ctx, payment)
	if err != nil {
		return nil, away(err)
	}
	var f *facts
	switch {
	case ok && s.Mode != "payment", !ok && pi.Invoice != "":
		return nil, nil
	case ok: // a session may make an invoice of its payment: it is a purchase all the same
		f = h.sessionFacts(s, pi)
	default:
		f = h.intentFacts(pi)
	}
	f.refunds = refunds
	return f, nil
}

// away makes an outage of Stripe an outage to our callers, too: its errors that
// are no plain answer.
func away(err error) error {
	if err == nil || stripe.IsMissing(err) {
		return err
	}
	return fault.ErrUnavailable.With(err)
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

// clawback is what one refund is to take back.
type clawback struct {
	refund  string
	money   int64
	credits credit.Amount
}

// clawbacks divides what refunds take back. The sum over the refunds so far is in
// proportion to the money so far, so that rounding never adds up: a full refund
// takes exactly what was bought, in however many parts it comes.
func clawbacks(refunds []stripe.Refund, bought credit.Amount, paid int64) ([]clawback, error) {
	refunds = slices.Clone(refunds)
	slices.SortFunc(refunds, func(a, b stripe.Refund) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	var taken credit.Amount
	var money int64
	targets := make([]clawback, 0, len(refunds))
	for _, r := range refunds {
		target := clawback{refund: r.ID, money: r.Money}
		if r.Status == "succeeded" || r.Status == "pending" {
			money = min(money+r.Money, paid) // a refund of more than was paid takes no more than was bought
			sum, err := credit.Scale(int64(bought), money, max(paid, 1))
			if err != nil {
				return nil, fmt.Errorf("share out refund %s: %w", r.ID, err)
			}
			target.credits = credit.Amount(sum) - taken
			taken = credit.Amount(sum)
		}
		targets = append(targets, target)
	}
	return targets, nil
}

package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"math/big"
	"slices"
	"time"

	"tallystick/internal/credit"
	"tallystick/internal/stripe"
)

// invoiceAgeMax is how long after it was made an invoice may be paid and still be seen.
const invoiceAgeMax = 40 * 24 * time.Hour

// paidInvoices adds the invoices that were paid within the window and that say what
// they buy. One that a checkout session made is the session's purchase.
func (r *Reconciler) paidInvoices(ctx context.Context, s scope, sessions map[string]bool, intents map[string]stripe.PaymentIntent, payments map[string]paid) error {
	var candidates []stripe.Invoice
	silent := map[string]bool{} // products that say nothing of credits
	err := r.Stripe.Invoices(ctx, s.from.Add(-invoiceAgeMax), s.to, func(i stripe.Invoice) error {
		isOurs := i.Status == "paid" && i.Total > 0 && !i.PaidAt.Before(s.from) && i.PaidAt.Before(s.to) && (i.PaymentIntent == "" || !sessions[i.PaymentIntent])
		if isOurs {
			candidates = append(candidates, i)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range candidates {
		pi, ok := intents[i.PaymentIntent]
		if i.PaymentIntent != "" && !ok {
			if pi, err = r.Stripe.PaymentIntent(ctx, i.PaymentIntent); err != nil {
				return err
			}
		}
		if i.Metadata["credits"] == "" && pi.Metadata["credits"] == "" && len(i.Lines) < 10 && !slices.ContainsFunc(i.Lines, func(l stripe.InvoiceLine) bool {
			return l.PriceMetadata["credits"] != "" || l.Product != "" && !silent[l.Product]
		}) {
			continue // it buys something else, as was seen before
		}
		whole, err := r.Stripe.Invoice(ctx, i.ID)
		if err != nil {
			return err
		}
		for _, l := range whole.Lines {
			silent[l.Product] = l.ProductMetadata["credits"] == ""
		}
		if p, ok := paidInvoice(whole, pi); ok {
			payments[p.id] = p
		}
	}
	return nil
}

// paidInvoice reads what an invoice bought: by its lines' prices, else their
// products; one without a subscription also by its own metadata or its payment's.
// What is billed by usage, and parts of a period, buy nothing. Without any word of
// credits it is somebody else's invoice.
func paidInvoice(i stripe.Invoice, pi stripe.PaymentIntent) (paid, bool) {
	p := paid{
		id: i.ID, invoice: i.ID, customer: cmp.Or(i.Customer, pi.Customer), money: i.Total, currency: i.Currency, createdAt: i.PaidAt,
		account: cmp.Or(i.Metadata["account"], pi.Metadata["account"]),
	}
	if pi.Status == "succeeded" {
		p.id = pi.ID
	}
	var items []stripe.Item
	for _, l := range i.Lines {
		if !l.Metered && !l.Proration && l.Quantity > 0 && l.Money >= 0 {
			items = append(items, stripe.Item{Price: l.Price, Quantity: l.Quantity, PriceMetadata: l.PriceMetadata, ProductMetadata: l.ProductMetadata})
		}
	}
	if p.items(items) {
		return p, true
	}
	text := ""
	if i.Subscription == "" {
		text = cmp.Or(i.Metadata["credits"], pi.Metadata["credits"])
	}
	if text == "" {
		return p, false
	}
	p.fallback(text, 0)
	return p, true
}

// paidSession reads what a session bought, by the rules of the price list: the
// lines' prices, else their products, else the session, else the payment, else
// the configured rate.
func (r *Reconciler) paidSession(s stripe.Session, pi stripe.PaymentIntent) paid {
	p := paid{
		id: cmp.Or(s.PaymentIntent, s.ID), session: s.ID, customer: cmp.Or(s.Customer, pi.Customer), money: s.Money, currency: s.Currency,
		account: cmp.Or(s.ClientReference, s.Metadata["account"], pi.Metadata["account"]),
	}
	if p.items(s.Items) {
		return p
	}
	p.fallback(cmp.Or(s.Metadata["credits"], pi.Metadata["credits"]), r.PerMajorUnit)
	return p
}

// items adds up what lines buy, each by its price, else its product; it tells
// whether any of them says.
func (p *paid) items(items []stripe.Item) bool {
	sum, priced := new(big.Rat), false
	for _, item := range items {
		text := cmp.Or(item.PriceMetadata["credits"], item.ProductMetadata["credits"])
		if text == "" {
			continue
		}
		each, ok := new(big.Rat).SetString(text)
		if !ok {
			p.unpriced = fmt.Sprintf("credits %q of price %s is no number", text, item.Price)
			return true
		}
		priced = true
		sum.Add(sum, each.Mul(each, big.NewRat(item.Quantity, 1)))
	}
	if priced {
		p.setCredits(sum)
	}
	return priced
}

func (r *Reconciler) paidIntent(pi stripe.PaymentIntent) paid {
	p := paid{
		id: pi.ID, customer: pi.Customer, money: pi.Money, currency: pi.Currency, createdAt: pi.CreatedAt, account: pi.Metadata["account"],
	}
	p.fallback(pi.Metadata["credits"], r.PerMajorUnit)
	return p
}

func (p *paid) fallback(text string, perMajor int64) {
	if text != "" {
		credits, ok := new(big.Rat).SetString(text)
		if !ok {
			p.unpriced = fmt.Sprintf("credits %q is no number", text)
			return
		}
		p.setCredits(credits)
		return
	}
	if perMajor == 0 {
		p.unpriced = "nothing at Stripe says how many credits it buys"
		return
	}
	divisor := int64(1)
	for range placesOf(p.currency) {
		divisor *= 10
	}
	p.setCredits(big.NewRat(p.money*perMajor, divisor))
}

func (p *paid) setCredits(credits *big.Rat) {
	credits.Mul(credits, big.NewRat(1_000_000, 1)).Add(credits, big.NewRat(1, 2))
	n := new(big.Int).Quo(credits.Num(), credits.Denom())
	if !n.IsInt64() || n.Sign() <= 0 {
		p.unpriced = "it buys no number of credits that can be granted"
		return
	}
	p.credits = credit.Amount(n.Int64())
}

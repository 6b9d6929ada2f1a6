package conformance

import (
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76"
)

// subscriptions plays prices, subscriptions, usage and test clocks.
func (s *story) subscriptions() {
	start := time.Date(2024, time.January, 31, 12, 0, 0, 0, time.UTC)
	clock, err := s.api.TestHelpersTestClocks.New(&stripe.TestHelpersTestClockParams{FrozenTime: stripe.Int64(start.Unix()), Name: stripe.String("a year")})
	s.must(err)
	customer, err := s.api.Customers.New(&stripe.CustomerParams{TestClock: stripe.String(clock.ID)})
	s.must(err)
	seat, calls, tiered := s.recurringPrices()
	sub, err := s.api.Subscriptions.New(&stripe.SubscriptionParams{
		Customer: stripe.String(customer.ID), Metadata: map[string]string{"plan": "gold"}, TrialPeriodDays: stripe.Int64(7),
		Items: []*stripe.SubscriptionItemsParams{{Price: stripe.String(seat), Quantity: stripe.Int64(3)}, {Price: stripe.String(calls)}},
	})
	s.must(err)
	s.advance(clock.ID, start.AddDate(0, 0, 8))
	s.usage(sub.Items.Data[1].ID, start.AddDate(0, 0, 8))
	_, err = s.api.SubscriptionItems.New(&stripe.SubscriptionItemParams{Subscription: stripe.String(sub.ID), Price: stripe.String(tiered), Quantity: stripe.Int64(2)})
	s.must(err)
	_, err = s.api.SubscriptionItems.Update(sub.Items.Data[0].ID, &stripe.SubscriptionItemParams{Quantity: stripe.Int64(5)})
	s.must(err)
	_, err = s.api.SubscriptionItems.Get(sub.Items.Data[0].ID, nil)
	s.must(err)
	_, err = s.api.SubscriptionItems.Del(sub.Items.Data[0].ID, &stripe.SubscriptionItemParams{ProrationBehavior: stripe.String("none")})
	s.must(err)
	_, err = s.api.SubscriptionItems.Del(sub.Items.Data[1].ID, nil)
	if err == nil {
		s.t.Error("a metered item is deleted without its usage")
	}
	s.advance(clock.ID, start.AddDate(0, 1, 15))
	s.summaries(sub.Items.Data[1].ID)
	s.endings(customer.ID, sub.ID, clock.ID)
}

func (s *story) recurringPrices() (seat, calls, tiered string) {
	product, err := s.api.Products.New(&stripe.ProductParams{Name: stripe.String("Gold")})
	s.must(err)
	month := func(usage string) *stripe.PriceRecurringParams {
		return &stripe.PriceRecurringParams{Interval: stripe.String("month"), UsageType: stripe.String(usage)}
	}
	price, err := s.api.Prices.New(&stripe.PriceParams{
		Product: stripe.String(product.ID), Currency: stripe.String("usd"), UnitAmount: stripe.Int64(1000), Recurring: month("licensed"), LookupKey: stripe.String("seat"),
	})
	s.must(err)
	seat = price.ID
	price, err = s.api.Prices.New(&stripe.PriceParams{
		Product: stripe.String(product.ID), Currency: stripe.String("usd"), UnitAmountDecimal: stripe.Float64(0.5), Recurring: month("metered"),
		TransformQuantity: &stripe.PriceTransformQuantityParams{DivideBy: stripe.Int64(10), Round: stripe.String("up")},
	})
	s.must(err)
	calls = price.ID
	params := &stripe.PriceParams{
		Product: stripe.String(product.ID), Currency: stripe.String("usd"), BillingScheme: stripe.String("tiered"), TiersMode: stripe.String("graduated"), Recurring: month("licensed"),
		Tiers: []*stripe.PriceTierParams{{UpTo: stripe.Int64(5), FlatAmount: stripe.Int64(300)}, {UpToInf: stripe.Bool(true), UnitAmountDecimal: stripe.Float64(1.25)}},
	}
	params.AddExpand("tiers")
	price, err = s.api.Prices.New(params)
	s.must(err)
	if len(price.Tiers) != 2 || price.Tiers[1].UnitAmountDecimal != 1.25 {
		s.t.Errorf("the tiers are %+v", price.Tiers)
	}
	return seat, calls, price.ID
}

func (s *story) advance(clock string, to time.Time) {
	moving, err := s.api.TestHelpersTestClocks.Advance(clock, &stripe.TestHelpersTestClockAdvanceParams{FrozenTime: stripe.Int64(to.Unix())})
	s.must(err)
	ready, err := s.api.TestHelpersTestClocks.Get(clock, nil)
	s.must(err)
	if moving.Status != "advancing" || ready.Status != "ready" || ready.FrozenTime != to.Unix() {
		s.t.Errorf("the clock is first %s, then %s at %d", moving.Status, ready.Status, ready.FrozenTime)
	}
}

func (s *story) usage(item string, at time.Time) {
	for _, action := range []string{"increment", "set"} {
		_, err := s.api.UsageRecords.New(&stripe.UsageRecordParams{
			SubscriptionItem: stripe.String(item), Quantity: stripe.Int64(25), Action: stripe.String(action), Timestamp: stripe.Int64(at.Unix()),
		})
		s.must(err)
	}
	_, err := s.api.UsageRecords.New(&stripe.UsageRecordParams{SubscriptionItem: stripe.String(item), Quantity: stripe.Int64(1), Timestamp: stripe.Int64(at.AddDate(1, 0, 0).Unix())})
	if err == nil {
		s.t.Error("usage of the future is taken")
	}
}

func (s *story) summaries(item string) {
	rows := s.api.UsageRecordSummaries.List(&stripe.UsageRecordSummaryListParams{SubscriptionItem: stripe.String(item)})
	var totals []int64
	for rows.Next() {
		totals = append(totals, rows.UsageRecordSummary().TotalUsage)
	}
	s.must(rows.Err())
	if len(totals) != 3 || totals[0] != 0 || totals[1] != 25 || totals[2] != 0 {
		s.t.Errorf("the periods hold %v, want those of 25 and the trial before", totals)
	}
}

// endings plays the ways in which subscriptions change and end.
func (s *story) endings(customer, subscription, clock string) {
	params := &stripe.SubscriptionParams{CancelAtPeriodEnd: stripe.Bool(true), Description: stripe.String("soon over")}
	for _, name := range []string{"items.data.price.product", "customer.test_clock", "latest_invoice"} {
		params.AddExpand(name)
	}
	sub, err := s.api.Subscriptions.Update(subscription, params)
	s.must(err)
	if sub.Items.Data[0].Price.Product.Name != "Gold" || sub.Customer.TestClock.Name != "a year" || sub.CancelAt != sub.CurrentPeriodEnd {
		s.t.Errorf("the subscription is not expanded as asked: %+v", sub)
	}
	_, err = s.api.Subscriptions.Update(subscription, &stripe.SubscriptionParams{
		CancelAtPeriodEnd: stripe.Bool(false), BillingCycleAnchorNow: stripe.Bool(true), PauseCollection: &stripe.SubscriptionPauseCollectionParams{Behavior: stripe.String("keep_as_draft")},
		BillingThresholds: &stripe.SubscriptionBillingThresholdsParams{AmountGTE: stripe.Int64(100000)},
	})
	s.must(err)
	subs := s.api.Subscriptions.List(&stripe.SubscriptionListParams{Customer: stripe.String(customer), Status: stripe.String("all")})
	for subs.Next() {
		s.must(subs.Err())
	}
	items := s.api.SubscriptionItems.List(&stripe.SubscriptionItemListParams{Subscription: stripe.String(subscription)})
	for items.Next() {
		s.must(items.Err())
	}
	ended, err := s.api.Subscriptions.Cancel(subscription, &stripe.SubscriptionCancelParams{InvoiceNow: stripe.Bool(true), Prorate: stripe.Bool(true)})
	s.must(err)
	if ended.Status != stripe.SubscriptionStatusCanceled {
		s.t.Errorf("a cancelled subscription is %s", ended.Status)
	}
	session, err := s.api.CheckoutSessions.New(&stripe.CheckoutSessionParams{
		Mode: stripe.String("subscription"), SuccessURL: stripe.String("https://example.com/thanks"),
		LineItems:        []*stripe.CheckoutSessionLineItemParams{{Price: stripe.String(sub.Items.Data[1].Price.ID), Quantity: stripe.Int64(2)}},
		SubscriptionData: &stripe.CheckoutSessionSubscriptionDataParams{Metadata: map[string]string{"from": "checkout"}},
	})
	s.must(err)
	s.must(s.sim.PayCheckout(session.ID, "paid"))
	session, err = s.api.CheckoutSessions.Get(session.ID, nil)
	s.must(err)
	if session.Subscription == nil || session.PaymentStatus != "paid" {
		s.t.Errorf("a paid session has the subscription %v and is %s", session.Subscription, session.PaymentStatus)
	}
	clocks := s.api.TestHelpersTestClocks.List(&stripe.TestHelpersTestClockListParams{})
	for clocks.Next() {
		s.must(clocks.Err())
	}
	_, err = s.api.TestHelpersTestClocks.Del(clock, nil)
	s.must(err)
}

// TestTheSubscriptionsOfTheStory plays them alone: a failure of theirs is read more easily.
func TestTheSubscriptionsOfTheStory(t *testing.T) {
	t.Parallel()
	newStory(t).subscriptions()
}

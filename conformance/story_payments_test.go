package conformance

import (
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76"

	"tallystick/stripesim"
)

// money plays payment methods, intents, charges, refunds, disputes and the balance.
func (s *story) money() {
	customer := s.methods()
	s.intents(customer)
	s.oldCharges(customer)
	s.refunds()
	s.disputes()
	s.sessions()
	s.balance()
	for _, id := range []string{"pm_card_visa", "pm_usBankAccount_success"} {
		_, err := s.api.PaymentMethods.Get(id, nil)
		s.must(err)
	}
	_, err := s.api.Customers.Del(customer.ID, nil)
	s.must(err)
}

func (s *story) methods() *stripe.Customer {
	customer, err := s.api.Customers.New(&stripe.CustomerParams{
		PaymentMethod: stripe.String("pm_card_visa"), PreferredLocales: stripe.StringSlice([]string{"de"}),
		InvoiceSettings: &stripe.CustomerInvoiceSettingsParams{DefaultPaymentMethod: stripe.String("pm_card_visa"), Footer: stripe.String("thanks")},
		Shipping:        &stripe.CustomerShippingParams{Name: stripe.String("Acme"), Address: &stripe.AddressParams{City: stripe.String("Vienna")}},
	})
	s.must(err)
	method, err := s.api.PaymentMethods.New(&stripe.PaymentMethodParams{
		Type: stripe.String("card"), BillingDetails: &stripe.PaymentMethodBillingDetailsParams{Email: stripe.String("a@example.com"), Address: &stripe.AddressParams{City: stripe.String("Graz")}},
		Card: &stripe.PaymentMethodCardParams{Number: stripe.String("5555555555554444"), ExpMonth: stripe.Int64(8), ExpYear: stripe.Int64(int64(time.Now().Year() + 1)), CVC: stripe.String("123")},
	})
	s.must(err)
	_, err = s.api.PaymentMethods.Attach(method.ID, &stripe.PaymentMethodAttachParams{Customer: stripe.String(customer.ID)})
	s.must(err)
	_, err = s.api.PaymentMethods.Update(method.ID, &stripe.PaymentMethodParams{Metadata: map[string]string{"a": "b"}})
	s.must(err)
	list := s.api.PaymentMethods.List(&stripe.PaymentMethodListParams{Customer: stripe.String(customer.ID)})
	for list.Next() {
		_, err := s.api.Customers.RetrievePaymentMethod(list.PaymentMethod().ID, &stripe.CustomerRetrievePaymentMethodParams{Customer: stripe.String(customer.ID)})
		s.must(err)
	}
	s.must(list.Err())
	_, err = s.api.PaymentMethods.Detach(method.ID, nil)
	s.must(err)
	_, err = s.api.PaymentMethods.Attach("pm_card_visa_chargeDeclined", &stripe.PaymentMethodAttachParams{Customer: stripe.String(customer.ID)})
	s.refused(err, stripe.ErrorCodeCardDeclined)
	params := &stripe.CustomerParams{}
	params.AddExpand("invoice_settings.default_payment_method")
	customer, err = s.api.Customers.Get(customer.ID, params)
	s.must(err)
	if customer.InvoiceSettings.DefaultPaymentMethod.Card == nil {
		s.t.Errorf("the default payment method is not expanded: %+v", customer.InvoiceSettings)
	}
	return customer
}

// pay confirms an intent by a payment method.
func (s *story) pay(method string, change func(*stripe.PaymentIntentParams)) *stripe.PaymentIntent {
	s.t.Helper()
	params := &stripe.PaymentIntentParams{
		Amount: stripe.Int64(5000), Currency: stripe.String("usd"), Confirm: stripe.Bool(true), PaymentMethod: stripe.String(method),
		PaymentMethodTypes: stripe.StringSlice([]string{"card", "us_bank_account"}),
	}
	params.AddExpand("latest_charge.balance_transaction")
	if change != nil {
		change(params)
	}
	intent, err := s.api.PaymentIntents.New(params)
	s.must(err)
	return intent
}

func (s *story) intents(customer *stripe.Customer) {
	asked := s.pay("pm_card_authenticationRequired", func(p *stripe.PaymentIntentParams) { p.ReturnURL = stripe.String("https://example.com") })
	s.must(s.sim.AuthenticatePayment(asked.ID, "failed"))
	asked, err := s.api.PaymentIntents.Get(asked.ID, nil)
	s.must(err)
	if asked.LastPaymentError.Code != stripe.ErrorCodePaymentIntentAuthenticationFailure {
		s.t.Errorf("the error is %+v", asked.LastPaymentError)
	}
	asked = s.pay("pm_card_authenticationRequired", func(p *stripe.PaymentIntentParams) {
		p.Customer, p.SetupFutureUsage = stripe.String(customer.ID), stripe.String("off_session")
	})
	s.must(s.sim.AuthenticatePayment(asked.ID, "succeeded"))
	for _, outcome := range []string{"succeeded", "failed"} {
		debit := s.pay("pm_usBankAccount_processing", nil)
		s.must(s.sim.SettlePayment(debit.ID, outcome))
		params := &stripe.PaymentIntentParams{}
		params.AddExpand("latest_charge")
		_, err = s.api.PaymentIntents.Get(debit.ID, params)
		s.must(err)
	}
	manual := func(p *stripe.PaymentIntentParams) { p.CaptureMethod = stripe.String("manual") }
	part := s.pay("pm_card_visa", manual)
	_, err = s.api.PaymentIntents.Capture(part.ID, &stripe.PaymentIntentCaptureParams{AmountToCapture: stripe.Int64(3000)})
	s.must(err)
	charge := &stripe.ChargeParams{}
	charge.AddExpand("refunds")
	got, err := s.api.Charges.Get(part.LatestCharge.ID, charge)
	s.must(err)
	if got.AmountCaptured != 3000 || got.AmountRefunded != 2000 || len(got.Refunds.Data) != 1 {
		s.t.Errorf("a charge captured in part is %+v", got)
	}
	dropped := s.pay("pm_card_visa", manual)
	_, err = s.api.PaymentIntents.Cancel(dropped.ID, nil)
	s.must(err)
	_, err = s.api.PaymentIntents.Cancel(dropped.ID, nil)
	s.refused(err, stripe.ErrorCodePaymentIntentUnexpectedState)
	expiring := s.pay("pm_card_visa", manual)
	s.sim.Advance(8 * 24 * time.Hour)
	expired, err := s.api.PaymentIntents.Get(expiring.ID, nil)
	s.must(err)
	if expired.Status != stripe.PaymentIntentStatusCanceled {
		s.t.Errorf("an intent that nobody captured is %s", expired.Status)
	}
}

func (s *story) oldCharges(customer *stripe.Customer) {
	token := &stripe.ChargeParams{Amount: stripe.Int64(900), Currency: stripe.String("eur"), Capture: stripe.Bool(false), Description: stripe.String("old")}
	s.must(token.SetSource("tok_visa"))
	charge, err := s.api.Charges.New(token)
	s.must(err)
	_, err = s.api.Charges.Capture(charge.ID, &stripe.ChargeCaptureParams{Amount: stripe.Int64(800)})
	s.must(err)
	_, err = s.api.Charges.Update(charge.ID, &stripe.ChargeParams{FraudDetails: &stripe.ChargeFraudDetailsParams{UserReport: stripe.String("safe")}})
	s.must(err)
	_, err = s.api.Charges.New(&stripe.ChargeParams{Amount: stripe.Int64(900), Currency: stripe.String("eur"), Customer: stripe.String(customer.ID)})
	s.must(err)
	declined := &stripe.ChargeParams{Amount: stripe.Int64(900), Currency: stripe.String("eur")}
	s.must(declined.SetSource("tok_visa_chargeDeclined"))
	_, err = s.api.Charges.New(declined)
	s.refused(err, stripe.ErrorCodeCardDeclined)
}

func (s *story) refunds() {
	for _, method := range []string{"pm_card_pendingRefund", "pm_card_refundFail"} {
		intent := s.pay(method, nil)
		refund, err := s.api.Refunds.New(&stripe.RefundParams{PaymentIntent: stripe.String(intent.ID), Amount: stripe.Int64(100), Reason: stripe.String("fraudulent")})
		s.must(err)
		s.sim.Advance(8 * 24 * time.Hour)
		params := &stripe.RefundParams{}
		params.AddExpand("balance_transaction")
		params.AddExpand("failure_balance_transaction")
		_, err = s.api.Refunds.Get(refund.ID, params)
		s.must(err)
	}
	debit := s.pay("pm_usBankAccount_success", nil)
	s.sim.Advance(5 * 24 * time.Hour)
	asking := &stripe.RefundParams{PaymentIntent: stripe.String(debit.ID), InstructionsEmail: stripe.String("a@example.com")}
	asking.AddMetadata("sim_status", "requires_action")
	refund, err := s.api.Refunds.New(asking)
	s.must(err)
	_, err = s.api.TestHelpersRefunds.Expire(refund.ID, nil)
	s.must(err)
	refund, err = s.api.Refunds.New(&stripe.RefundParams{PaymentIntent: stripe.String(debit.ID)})
	s.must(err)
	s.must(s.sim.EndRefund(refund.ID, "succeeded"))
	s.must(s.sim.FailRefund(refund.ID, "lost_or_stolen_card"))
	_, err = s.api.Refunds.Get(refund.ID, nil)
	s.must(err)
}

func (s *story) disputes() {
	open := func(d stripesim.Dispute) string {
		s.t.Helper()
		d.Charge = s.pay("pm_card_visa", nil).LatestCharge.ID
		id, err := s.sim.OpenDispute(d)
		s.must(err)
		return id
	}
	for _, outcomes := range [][]string{{"under_review", "won"}, {"lost"}, {"partly_won"}} {
		id := open(stripesim.Dispute{Reason: "product_not_received"})
		for _, outcome := range outcomes {
			amount := int64(0)
			if outcome == "partly_won" {
				amount = 2000
			}
			s.must(s.sim.ResolveDispute(id, outcome, amount))
			_, err := s.api.Disputes.Get(id, nil)
			s.must(err)
		}
	}
	asked := open(stripesim.Dispute{Stage: "inquiry"})
	_, err := s.api.Disputes.Update(asked, &stripe.DisputeParams{Submit: stripe.Bool(false), Evidence: &stripe.DisputeEvidenceParams{ProductDescription: stripe.String("credits")}})
	s.must(err)
	s.must(s.sim.ResolveDispute(asked, "opened", 0))
	_, err = s.api.Disputes.Update(asked, &stripe.DisputeParams{Evidence: &stripe.DisputeEvidenceParams{UncategorizedText: stripe.String("winning_evidence")}, Metadata: map[string]string{"a": "b"}})
	s.must(err)
	s.sim.Advance(61 * 24 * time.Hour)
	_, err = s.api.Disputes.Get(asked, nil)
	s.must(err)
	_, err = s.api.Disputes.Close(open(stripesim.Dispute{}), nil)
	s.must(err)
	intent := s.pay("pm_card_createDispute", nil)
	list := s.api.Disputes.List(&stripe.DisputeListParams{PaymentIntent: stripe.String(intent.ID)})
	if !list.Next() {
		s.t.Error("the card that is disputed is not")
	}
	s.must(list.Err())
	_, err = s.api.Refunds.New(&stripe.RefundParams{PaymentIntent: stripe.String(intent.ID)})
	s.refused(err, stripe.ErrorCodeChargeDisputed)
}

// sessions plays what checkout can do besides being paid.
func (s *story) sessions() {
	item := &stripe.CheckoutSessionLineItemParams{Quantity: stripe.Int64(2), PriceData: &stripe.CheckoutSessionLineItemPriceDataParams{
		Currency: stripe.String("usd"), UnitAmount: stripe.Int64(700), ProductData: &stripe.CheckoutSessionLineItemPriceDataProductDataParams{Name: stripe.String("Pack")},
	}}
	made := func(change func(*stripe.CheckoutSessionParams)) *stripe.CheckoutSession {
		s.t.Helper()
		params := &stripe.CheckoutSessionParams{Mode: stripe.String("payment"), SuccessURL: stripe.String("https://example.com"), LineItems: []*stripe.CheckoutSessionLineItemParams{item}}
		change(params)
		session, err := s.api.CheckoutSessions.New(params)
		s.must(err)
		return session
	}
	recovered := made(func(p *stripe.CheckoutSessionParams) {
		p.AfterExpiration = &stripe.CheckoutSessionAfterExpirationParams{Recovery: &stripe.CheckoutSessionAfterExpirationRecoveryParams{Enabled: stripe.Bool(true)}}
		p.CustomerEmail = stripe.String("b@example.com")
	})
	s.must(s.sim.PayCheckout(recovered.ID, "card_declined"))
	_, err := s.api.CheckoutSessions.Expire(recovered.ID, nil)
	s.must(err)
	bought := made(func(p *stripe.CheckoutSessionParams) {
		p.SuccessURL, p.UIMode, p.ReturnURL = nil, stripe.String("embedded"), stripe.String("https://example.com")
		p.CustomerCreation, p.CustomerEmail = stripe.String("always"), stripe.String("b@example.com")
		p.PaymentIntentData = &stripe.CheckoutSessionPaymentIntentDataParams{CaptureMethod: stripe.String("manual"), Metadata: map[string]string{"a": "b"}, Description: stripe.String("a pack")}
	})
	s.must(s.sim.PayCheckout(bought.ID, "paid"))
	session, err := s.api.CheckoutSessions.Get(bought.ID, nil)
	s.must(err)
	_, err = s.api.PaymentIntents.Capture(session.PaymentIntent.ID, nil)
	s.must(err)
	session, err = s.api.CheckoutSessions.Get(bought.ID, nil)
	s.must(err)
	if session.PaymentStatus != stripe.CheckoutSessionPaymentStatusPaid || session.Customer == nil {
		s.t.Errorf("the session is %+v", session)
	}
}

func (s *story) balance() {
	if _, err := s.api.Balance.Get(nil); err != nil {
		s.t.Error(err)
	}
	kinds := map[stripe.BalanceTransactionType]int{}
	params := &stripe.BalanceTransactionListParams{}
	params.AddExpand("data.source")
	list := s.api.BalanceTransactions.List(params)
	for list.Next() {
		kinds[list.BalanceTransaction().Type]++
	}
	s.must(list.Err())
	for _, kind := range []stripe.BalanceTransactionType{"charge", "payment", "refund", "payment_refund", "refund_failure", "payment_failure_refund", "adjustment"} {
		if kinds[kind] == 0 {
			s.t.Errorf("no balance transaction is a %s: %v", kind, kinds)
		}
	}
}

// TestStripeGoReadsADeclinedCard decodes the body of a card error as stripe-go does.
func TestStripeGoReadsADeclinedCard(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	_, err := s.api.PaymentIntents.New(&stripe.PaymentIntentParams{
		Amount: stripe.Int64(500), Currency: stripe.String("usd"), Confirm: stripe.Bool(true), PaymentMethod: stripe.String("pm_card_visa_chargeDeclinedInsufficientFunds"),
	})
	failure, ok := err.(*stripe.Error) //nolint:errorlint // stripe-go gives it as it is
	if !ok || failure.DeclineCode != stripe.DeclineCodeInsufficientFunds || failure.ChargeID == "" || failure.PaymentIntent == nil || failure.PaymentMethod == nil {
		t.Fatalf("the error is %v", err)
	}
	if failure.PaymentIntent.LastPaymentError.ChargeID != failure.ChargeID || failure.PaymentIntent.Status != stripe.PaymentIntentStatusRequiresPaymentMethod {
		t.Errorf("the intent of the error is %+v", failure.PaymentIntent)
	}
}

package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/client"
	"github.com/stripe/stripe-go/v76/webhook"

	"tallystick/stripesim"
)

// answer is what the simulator has said to one call.
type answer struct {
	method, path string
	status       int
	body         []byte
}

// recorder keeps every answer that passes.
type recorder struct {
	mu      sync.Mutex
	answers []answer
}

func (r *recorder) RoundTrip(q *http.Request) (*http.Response, error) {
	response, err := http.DefaultTransport.RoundTrip(q)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	response.Body = io.NopCloser(bytes.NewReader(body))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = append(r.answers, answer{method: q.Method, path: q.URL.Path, status: response.StatusCode, body: body})
	return response, err
}

// inbox keeps the webhooks that arrive.
type inbox struct {
	mu     sync.Mutex
	bodies [][]byte
	secret string
	faults []string
}

func (i *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, failed := webhook.ConstructEvent(body, r.Header.Get("Stripe-Signature"), i.secret); err != nil || failed != nil {
		i.faults = append(i.faults, errors.Join(err, failed).Error()+" of "+string(body))
	}
	i.bodies = append(i.bodies, body)
	w.WriteHeader(http.StatusNoContent)
}

// story drives the simulator by stripe-go's own client.
type story struct {
	t        *testing.T
	sim      *stripesim.Sim
	api      *client.API
	recorder *recorder
	inbox    *inbox
}

func newStory(t *testing.T) *story {
	t.Helper()
	s := &story{t: t, sim: stripesim.New(t, stripesim.Options{Switches: stripesim.Switches{RefundEvents: true}}), recorder: &recorder{}, inbox: &inbox{}}
	receiver := httptest.NewServer(s.inbox)
	t.Cleanup(receiver.Close)
	backend := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
		URL: stripe.String(s.sim.URL), HTTPClient: &http.Client{Transport: s.recorder}, MaxNetworkRetries: stripe.Int64(0),
		EnableTelemetry: stripe.Bool(false), LeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull},
	})
	s.api = client.New(s.sim.Key, &stripe.Backends{API: backend})
	endpoint, err := s.api.WebhookEndpoints.New(&stripe.WebhookEndpointParams{
		URL: stripe.String(receiver.URL), EnabledEvents: stripe.StringSlice([]string{"*"}), APIVersion: stripe.String(stripe.APIVersion),
	})
	s.must(err)
	s.inbox.mu.Lock()
	s.inbox.secret = endpoint.Secret
	s.inbox.mu.Unlock()
	return s
}

func (s *story) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// refused wants an error of Stripe's with this code.
func (s *story) refused(err error, code stripe.ErrorCode) {
	s.t.Helper()
	var e *stripe.Error
	if !errors.As(err, &e) || e.Code != code {
		s.t.Errorf("the error is %v, want the code %q", err, code)
	}
}

// play makes the simulator answer every object that it can.
func (s *story) play() {
	customer := s.customers()
	price := s.catalog()
	session := s.checkout(customer, price)
	s.payments(customer, session)
	s.metering(customer)
	s.meters(customer)
	s.invoicing(price)
	s.subscriptions()
	s.endpoints()
	s.money()
	s.protocol()
	s.lists(customer)
}

func (s *story) customers() *stripe.Customer {
	params := &stripe.CustomerParams{
		Name: stripe.String("Acme"), Email: stripe.String("acme@example.com"),
		Address: &stripe.AddressParams{City: stripe.String("Vienna"), Country: stripe.String("AT")},
	}
	params.AddMetadata("account", "acme")
	customer, err := s.api.Customers.New(params)
	s.must(err)
	_, err = s.api.Customers.Get(customer.ID, nil)
	s.must(err)
	_, err = s.api.Customers.Update(customer.ID, &stripe.CustomerParams{Description: stripe.String("changed")})
	s.must(err)
	gone, err := s.api.Customers.New(&stripe.CustomerParams{})
	s.must(err)
	_, err = s.api.Customers.Del(gone.ID, nil)
	s.must(err)
	deleted, err := s.api.Customers.Get(gone.ID, nil)
	s.must(err)
	if !deleted.Deleted {
		s.t.Error("a deleted customer does not say so")
	}
	_, err = s.api.Customers.Get("cus_nobody", nil)
	s.refused(err, stripe.ErrorCodeResourceMissing)
	return customer
}

func (s *story) catalog() *stripe.Price {
	product, err := s.api.Products.New(&stripe.ProductParams{Name: stripe.String("Credits"), Description: stripe.String("a pack")})
	s.must(err)
	_, err = s.api.Products.Update(product.ID, &stripe.ProductParams{Name: stripe.String("Credit pack")})
	s.must(err)
	params := &stripe.PriceParams{Product: stripe.String(product.ID), Currency: stripe.String("usd"), UnitAmount: stripe.Int64(1000), Nickname: stripe.String("small")}
	params.AddMetadata("credits", "100")
	price, err := s.api.Prices.New(params)
	s.must(err)
	expanded := &stripe.PriceParams{}
	expanded.AddExpand("product")
	price, err = s.api.Prices.Get(price.ID, expanded)
	s.must(err)
	if price.Product.Name != "Credit pack" {
		s.t.Errorf("the expanded product is called %q", price.Product.Name)
	}
	_, err = s.api.Prices.Update(price.ID, &stripe.PriceParams{Nickname: stripe.String("tiny")})
	s.must(err)
	return price
}

func (s *story) newSession(customer *stripe.Customer, price *stripe.Price, quantity int64) *stripe.CheckoutSession {
	s.t.Helper()
	session, err := s.api.CheckoutSessions.New(&stripe.CheckoutSessionParams{
		Mode: stripe.String("payment"), Customer: stripe.String(customer.ID), ClientReferenceID: stripe.String("acme"), SuccessURL: stripe.String("https://example.com/thanks"),
		LineItems: []*stripe.CheckoutSessionLineItemParams{{Price: stripe.String(price.ID), Quantity: stripe.Int64(quantity)}},
	})
	s.must(err)
	return session
}

// checkout plays every way in which a session ends, and gives a paid one.
func (s *story) checkout(customer *stripe.Customer, price *stripe.Price) *stripe.CheckoutSession {
	for _, outcomes := range [][]string{{"expired"}, {"unpaid", "async_succeeded"}, {"unpaid", "async_failed"}, {"card_declined", "paid"}} {
		session := s.newSession(customer, price, 1)
		for _, outcome := range outcomes {
			s.must(s.sim.PayCheckout(session.ID, outcome))
			_, err := s.api.CheckoutSessions.Get(session.ID, nil)
			s.must(err)
		}
	}
	open := s.newSession(customer, price, 1)
	_, err := s.api.CheckoutSessions.Expire(open.ID, nil)
	s.must(err)
	session := s.newSession(customer, price, 3)
	s.must(s.sim.PayCheckout(session.ID, "paid"))
	params := &stripe.CheckoutSessionParams{}
	for _, name := range []string{"line_items.data.price.product", "payment_intent.latest_charge", "customer"} {
		params.AddExpand(name)
	}
	session, err = s.api.CheckoutSessions.Get(session.ID, params)
	s.must(err)
	if session.LineItems.Data[0].Price.Product.Name == "" || session.PaymentIntent.LatestCharge.Amount != 3000 || session.Customer.Email == "" {
		s.t.Errorf("the session is not expanded as asked: %+v", session)
	}
	items := s.api.CheckoutSessions.ListLineItems(&stripe.CheckoutSessionListLineItemsParams{Session: stripe.String(session.ID)})
	for items.Next() {
		if items.LineItem().Quantity != 3 {
			s.t.Errorf("the line item's quantity is %d", items.LineItem().Quantity)
		}
	}
	s.must(items.Err())
	return session
}

func (s *story) payments(customer *stripe.Customer, session *stripe.CheckoutSession) {
	intent, err := s.api.PaymentIntents.New(&stripe.PaymentIntentParams{Amount: stripe.Int64(500), Currency: stripe.String("usd"), Customer: stripe.String(customer.ID)})
	s.must(err)
	_, err = s.api.PaymentIntents.Confirm(intent.ID, &stripe.PaymentIntentConfirmParams{PaymentMethod: stripe.String("pm_card_chargeDeclined")})
	s.refused(err, stripe.ErrorCodeCardDeclined)
	_, err = s.api.PaymentIntents.Get(intent.ID, nil)
	s.must(err)
	intent, err = s.api.PaymentIntents.Confirm(intent.ID, &stripe.PaymentIntentConfirmParams{PaymentMethod: stripe.String("pm_card_visa")})
	s.must(err)
	_, err = s.api.PaymentIntents.Update(intent.ID, &stripe.PaymentIntentParams{Description: stripe.String("changed")})
	s.must(err)
	manual, err := s.api.PaymentIntents.New(&stripe.PaymentIntentParams{
		Amount: stripe.Int64(700), Currency: stripe.String("eur"), CaptureMethod: stripe.String("manual"), Confirm: stripe.Bool(true), PaymentMethod: stripe.String("pm_card_visa"),
	})
	s.must(err)
	_, err = s.api.PaymentIntents.Capture(manual.ID, nil)
	s.must(err)
	dropped, err := s.api.PaymentIntents.New(&stripe.PaymentIntentParams{Amount: stripe.Int64(700), Currency: stripe.String("eur")})
	s.must(err)
	_, err = s.api.PaymentIntents.Cancel(dropped.ID, &stripe.PaymentIntentCancelParams{CancellationReason: stripe.String("abandoned")})
	s.must(err)

	charge := &stripe.ChargeParams{}
	charge.AddExpand("refunds")
	_, err = s.api.Charges.Get(session.PaymentIntent.LatestCharge.ID, charge)
	s.must(err)
	refund, err := s.api.Refunds.New(&stripe.RefundParams{PaymentIntent: stripe.String(session.PaymentIntent.ID), Amount: stripe.Int64(1000), Reason: stripe.String("requested_by_customer")})
	s.must(err)
	_, err = s.api.Refunds.Update(refund.ID, &stripe.RefundParams{Metadata: map[string]string{"a": "b"}})
	s.must(err)
	s.must(s.sim.EndRefund(refund.ID, "failed"))
	_, err = s.api.Refunds.Get(refund.ID, nil)
	s.must(err)
	_, err = s.api.Charges.Get(session.PaymentIntent.LatestCharge.ID, charge)
	s.must(err)
	pending := &stripe.RefundParams{PaymentIntent: stripe.String(intent.ID)}
	pending.AddMetadata("sim_status", "pending")
	refund, err = s.api.Refunds.New(pending)
	s.must(err)
	_, err = s.api.Refunds.Cancel(refund.ID, nil)
	s.must(err)
	_, err = s.api.Refunds.New(&stripe.RefundParams{PaymentIntent: stripe.String(intent.ID), Amount: stripe.Int64(501)})
	if err == nil {
		s.t.Error("a refund of more than was paid is accepted")
	}
}

func (s *story) metering(customer *stripe.Customer) {
	meter, err := s.api.BillingMeters.New(&stripe.BillingMeterParams{
		DisplayName: stripe.String("Tokens"), EventName: stripe.String("tokens"),
		DefaultAggregation: &stripe.BillingMeterDefaultAggregationParams{Formula: stripe.String("sum")},
	})
	s.must(err)
	_, err = s.api.BillingMeters.Update(meter.ID, &stripe.BillingMeterParams{DisplayName: stripe.String("All tokens")})
	s.must(err)
	for i, value := range []string{"5", "7", "11"} {
		at := time.Now().Add(-time.Duration(i) * time.Hour).Unix()
		_, err = s.api.BillingMeterEvents.New(&stripe.BillingMeterEventParams{
			EventName: stripe.String("tokens"), Identifier: stripe.String("event-" + strconv.Itoa(i)), Timestamp: stripe.Int64(at),
			Payload: map[string]string{"stripe_customer_id": customer.ID, "value": value},
		})
		s.must(err)
	}
	_, err = s.api.BillingMeterEventAdjustments.New(&stripe.BillingMeterEventAdjustmentParams{
		EventName: stripe.String("tokens"), Type: stripe.String("cancel"), Cancel: &stripe.BillingMeterEventAdjustmentCancelParams{Identifier: stripe.String("event-2")},
	})
	s.must(err)
	from, to := time.Now().Add(-24*time.Hour).Truncate(time.Hour).Unix(), time.Now().Add(time.Hour).Truncate(time.Hour).Unix()
	for window, want := range map[string]float64{"": 12, "hour": 12} {
		params := &stripe.BillingMeterEventSummaryListParams{ID: stripe.String(meter.ID), Customer: stripe.String(customer.ID), StartTime: stripe.Int64(from), EndTime: stripe.Int64(to)}
		if window != "" {
			params.ValueGroupingWindow = stripe.String(window)
		}
		sum := 0.0
		rows := s.api.BillingMeterEventSummaries.List(params)
		for rows.Next() {
			sum += rows.BillingMeterEventSummary().AggregatedValue
		}
		s.must(rows.Err())
		if sum != want {
			s.t.Errorf("Stripe's total by %q is %v, want %v", window, sum, want)
		}
	}
	product, err := s.api.Products.New(&stripe.ProductParams{Name: stripe.String("Tokens")})
	s.must(err)
	_, err = s.api.Prices.New(&stripe.PriceParams{
		Product: stripe.String(product.ID), Currency: stripe.String("usd"), UnitAmountDecimal: stripe.Float64(0.002),
		Recurring: &stripe.PriceRecurringParams{Interval: stripe.String("month"), UsageType: stripe.String("metered"), Meter: stripe.String(meter.ID)},
	})
	s.must(err)
	_, err = s.api.BillingMeters.Deactivate(meter.ID, nil)
	s.must(err)
	_, err = s.api.BillingMeters.Reactivate(meter.ID, nil)
	s.must(err)
	_, err = s.api.BillingMeters.Get(meter.ID, nil)
	s.must(err)
}

func (s *story) endpoints() {
	endpoint, err := s.api.WebhookEndpoints.New(&stripe.WebhookEndpointParams{URL: stripe.String("http://127.0.0.1:1/none"), EnabledEvents: stripe.StringSlice([]string{"charge.refunded"})})
	s.must(err)
	_, err = s.api.WebhookEndpoints.Update(endpoint.ID, &stripe.WebhookEndpointParams{Disabled: stripe.Bool(true)})
	s.must(err)
	_, err = s.api.WebhookEndpoints.Get(endpoint.ID, nil)
	s.must(err)
	_, err = s.api.WebhookEndpoints.Del(endpoint.ID, nil)
	s.must(err)
}

// lists walks every list with small pages.
func (s *story) lists(customer *stripe.Customer) {
	small := stripe.ListParams{Limit: stripe.Int64(3)}
	count := func(name string, next func() bool, err func() error, least int) {
		n := 0
		for next() {
			n++
		}
		s.must(err())
		if n < least {
			s.t.Errorf("the list of %s has %d, want at least %d", name, n, least)
		}
	}
	customers := s.api.Customers.List(&stripe.CustomerListParams{ListParams: small, Email: stripe.String("acme@example.com")})
	count("customers", customers.Next, customers.Err, 1)
	products := s.api.Products.List(&stripe.ProductListParams{ListParams: small})
	count("products", products.Next, products.Err, 2)
	prices := s.api.Prices.List(&stripe.PriceListParams{ListParams: small, Active: stripe.Bool(true)})
	count("prices", prices.Next, prices.Err, 2)
	sessions := s.api.CheckoutSessions.List(&stripe.CheckoutSessionListParams{ListParams: small, Customer: stripe.String(customer.ID)})
	count("sessions", sessions.Next, sessions.Err, 6)
	intents := s.api.PaymentIntents.List(&stripe.PaymentIntentListParams{ListParams: small})
	count("payment intents", intents.Next, intents.Err, 6)
	charges := s.api.Charges.List(&stripe.ChargeListParams{ListParams: small, CreatedRange: &stripe.RangeQueryParams{GreaterThan: 1}})
	count("charges", charges.Next, charges.Err, 4)
	refunds := s.api.Refunds.List(&stripe.RefundListParams{ListParams: small})
	count("refunds", refunds.Next, refunds.Err, 2)
	meters := s.api.BillingMeters.List(&stripe.BillingMeterListParams{ListParams: small})
	count("meters", meters.Next, meters.Err, 1)
	events := s.api.Events.List(&stripe.EventListParams{ListParams: small})
	count("events", events.Next, events.Err, 20)
	endpoints := s.api.WebhookEndpoints.List(&stripe.WebhookEndpointListParams{ListParams: small})
	count("webhook endpoints", endpoints.Next, endpoints.Err, 1)
}

// TestEveryAnswerIsAsStripesDocumentSays plays the story and holds each answer and
// each webhook against the document, unknown members refused.
func TestEveryAnswerIsAsStripesDocumentSays(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.play()
	s.must(s.sim.Drain(t.Context()))
	doc := stripeDocument(t)
	seen := map[string]int{}
	complaints := map[string]string{}
	judge := func(what string, found []string, body []byte) {
		for _, problem := range found {
			if complaints[what+": "+problem] == "" {
				complaints[what+": "+problem] = string(body)
			}
		}
	}
	for _, a := range s.recorder.answers {
		schema, err := answerSchema(doc, a.method, a.path, a.status)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		value := decode(t, a.body)
		judge(a.method+" "+a.path, problems(doc, schema, value), a.body)
		note(seen, value)
	}
	event := doc.Components.Schemas["event"].Value
	s.inbox.mu.Lock()
	defer s.inbox.mu.Unlock()
	for _, body := range s.inbox.bodies {
		value := decode(t, body)
		judge("webhook", problems(doc, event, value), body)
		note(seen, value)
	}
	for _, fault := range s.inbox.faults {
		t.Errorf("stripe-go refuses a webhook: %s", fault)
	}
	for complaint, body := range complaints {
		t.Errorf("%s\n\tin %.1500s", complaint, body)
	}
	for _, object := range []string{
		"customer", "product", "price", "checkout.session", "item", "payment_intent", "charge", "refund", "billing.meter", "billing.meter_event",
		"billing.meter_event_adjustment", "billing.meter_event_summary", "event", "webhook_endpoint", "list",
		"payment_method", "dispute", "balance_transaction", "balance",
		"invoice", "line_item", "invoiceitem", "credit_note", "credit_note_line_item", "customer_balance_transaction",
		"subscription", "subscription_item", "usage_record", "usage_record_summary", "test_helpers.test_clock",
	} {
		if seen[object] == 0 {
			t.Errorf("no %s was answered: the story does not show all that the simulator can do", object)
		}
	}
	t.Logf("%d answers, %d webhooks, objects %v", len(s.recorder.answers), len(s.inbox.bodies), seen)
}

// note counts the objects in a value.
func note(seen map[string]int, value any) {
	switch v := value.(type) {
	case map[string]any:
		if name, ok := v["object"].(string); ok {
			seen[name]++
		}
		for _, member := range v {
			note(seen, member)
		}
	case []any:
		for _, item := range v {
			note(seen, item)
		}
	}
}

// TestEveryAnswerSurvivesStripeGo decodes each answered object into stripe-go's
// type and encodes it again: no member that stripe-go knows may be lost on the way.
func TestEveryAnswerSurvivesStripeGo(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.play()
	complaints := map[string]bool{}
	for _, a := range s.recorder.answers {
		for _, o := range objects(decode(t, a.body)) {
			name, _ := o["object"].(string)
			fresh := goType(name)
			if fresh == nil {
				t.Errorf("stripe-go has no type for %q", name)
				continue
			}
			before, err := json.Marshal(o)
			if err == nil {
				err = json.Unmarshal(before, fresh)
			}
			if err != nil {
				t.Errorf("stripe-go cannot read this %s: %v in %s", name, err, before)
				continue
			}
			for _, lost := range lostMembers(o, fresh) {
				complaints[name+lost] = true
			}
		}
	}
	for complaint := range complaints {
		t.Error(complaint)
	}
}

// objects gives the answered objects themselves: an error or a list is none.
func objects(value any) []map[string]any {
	v, ok := value.(map[string]any)
	if !ok || v["object"] == nil {
		return nil
	}
	if v["object"] != "list" {
		return []map[string]any{v}
	}
	var all []map[string]any
	for _, item := range v["data"].([]any) {
		all = append(all, objects(item)...)
	}
	return all
}

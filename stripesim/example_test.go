package stripesim_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"time"

	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/client"

	"tallystick/stripesim"
)

// A program that uses stripe-go against a simulator of its own. In a test,
// stripesim.New(t) does the same in one line.
func Example() {
	sim, err := stripesim.NewServer(stripesim.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := httptest.NewServer(sim)
	defer func() { server.Close(); _ = sim.Close() }()
	backend := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{URL: &server.URL})
	api := client.New("sk_test_any", &stripe.Backends{API: backend, Connect: backend, Uploads: backend})

	customer, err := api.Customers.New(&stripe.CustomerParams{Name: stripe.String("Acme")})
	if err != nil {
		fmt.Println(err)
		return
	}
	session, err := api.CheckoutSessions.New(&stripe.CheckoutSessionParams{
		Mode: stripe.String("payment"), Customer: &customer.ID, SuccessURL: stripe.String("https://example.com/thanks"),
		LineItems: []*stripe.CheckoutSessionLineItemParams{{Quantity: stripe.Int64(2), PriceData: &stripe.CheckoutSessionLineItemPriceDataParams{
			Currency: stripe.String("usd"), UnitAmount: stripe.Int64(1000), ProductData: &stripe.CheckoutSessionLineItemPriceDataProductDataParams{Name: stripe.String("Credits")},
		}}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := sim.PayCheckout(session.ID, "paid"); err != nil { // what the customer does on Stripe's page
		fmt.Println(err)
		return
	}
	session, err = api.CheckoutSessions.Get(session.ID, nil)
	fmt.Println(session.PaymentStatus, session.AmountTotal, err)
	// Output: paid 2000 <nil>
}

// Time is virtual: a day passes at once, and what is due by then has happened.
func ExampleServer_Advance() {
	sim, err := stripesim.NewServer(stripesim.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = sim.Close() }()
	before := sim.Now()
	sim.Advance(24 * time.Hour)
	fmt.Println(sim.Now().Sub(before).Round(time.Hour), sim.Drain(context.Background()))
	// Output: 24h0m0s <nil>
}

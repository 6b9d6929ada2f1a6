package conformance

import (
	"errors"
	"net/http"

	"github.com/stripe/stripe-go/v76"

	"tallystick/stripesim"
)

// protocol plays refusals, keys and filters of events: their answers, too, have to
// be as the document says.
func (s *story) protocol() {
	for _, fault := range []string{
		"error_500_before", "error_503", "rate_limit", "lock_timeout", "conflict_409", "key_mismatch_400", "identifier_exists_400", "unauthorized_401", "forbidden_403",
	} {
		s.must(s.sim.AddFaults(&stripesim.Fault{Method: http.MethodPost, Path: "/v1/customers", Fault: fault, Times: 1}))
		_, err := s.api.Customers.New(&stripe.CustomerParams{})
		var e *stripe.Error
		if !errors.As(err, &e) || e.RequestID == "" {
			s.t.Errorf("stripe-go reads %s as %v", fault, err)
		}
		s.sim.ClearFaults()
	}
	params := &stripe.CustomerParams{Name: stripe.String("once")}
	params.SetIdempotencyKey("story-1")
	first, err := s.api.Customers.New(params)
	s.must(err)
	again, err := s.api.Customers.New(params)
	s.must(err)
	if first.ID != again.ID || again.LastResponse.Header.Get("Idempotent-Replayed") != "true" {
		s.t.Errorf("the key gives %s, then %s", first.ID, again.ID)
	}
	params.Name = stripe.String("twice")
	_, err = s.api.Customers.New(params)
	var e *stripe.Error
	if !errors.As(err, &e) || e.Type != stripe.ErrorTypeIdempotency {
		s.t.Errorf("a key of another call gives %v", err)
	}
	wrong := &stripe.CustomerParams{}
	wrong.AddExpand("colour")
	_, err = s.api.Customers.New(wrong)
	s.refused(err, "")
	events := s.api.Events.List(&stripe.EventListParams{
		ListParams: stripe.ListParams{Limit: stripe.Int64(2)}, Types: stripe.StringSlice([]string{"customer.created", "customer.updated"}), DeliverySuccess: stripe.Bool(true),
	})
	for events.Next() {
		if kind := events.Event().Type; kind != "customer.created" && kind != "customer.updated" {
			s.t.Errorf("a list of events about customers has %s", kind)
		}
	}
	s.must(events.Err())
}

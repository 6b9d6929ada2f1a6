package conformance

import (
	"fmt"
	"time"

	"github.com/stripe/stripe-go/v76"
)

// meters plays what metering leaves out: pre-aggregated and counting meters with
// keys of their own, pages of summaries, and what is refused.
func (s *story) meters(customer *stripe.Customer) {
	window := &stripe.BillingMeterParams{
		DisplayName: stripe.String("Peak seats"), EventName: stripe.String("seats"), EventTimeWindow: stripe.String("hour"),
		DefaultAggregation: &stripe.BillingMeterDefaultAggregationParams{Formula: stripe.String("sum")},
		CustomerMapping:    &stripe.BillingMeterCustomerMappingParams{EventPayloadKey: stripe.String("who"), Type: stripe.String("by_id")},
		ValueSettings:      &stripe.BillingMeterValueSettingsParams{EventPayloadKey: stripe.String("seats")},
	}
	meter, err := s.api.BillingMeters.New(window)
	s.must(err)
	_, err = s.api.BillingMeters.New(window)
	s.refused(err, stripe.ErrorCodeResourceAlreadyExists)
	counter, err := s.api.BillingMeters.New(&stripe.BillingMeterParams{
		DisplayName: stripe.String("Visits"), EventName: stripe.String("visits"),
		DefaultAggregation: &stripe.BillingMeterDefaultAggregationParams{Formula: stripe.String("count")},
	})
	s.must(err)
	_, err = s.api.BillingMeters.Deactivate(counter.ID, nil)
	s.must(err)
	listed := s.api.BillingMeters.List(&stripe.BillingMeterListParams{Status: stripe.String("inactive")})
	if !listed.Next() || listed.BillingMeter().StatusTransitions.DeactivatedAt == 0 {
		s.t.Error("no inactive meter is listed")
	}
	s.seats(customer, meter)
}

// seats sends absolute numbers, of which each hour's last one counts.
func (s *story) seats(customer *stripe.Customer, meter *stripe.BillingMeter) {
	noon := time.Now().UTC().Truncate(24 * time.Hour).Add(-12 * time.Hour)
	for h := range 5 {
		for _, n := range []string{"7", "2.5"} {
			event, err := s.api.BillingMeterEvents.New(&stripe.BillingMeterEventParams{
				EventName: stripe.String("seats"), Identifier: stripe.String(fmt.Sprintf("seats-%d-%s", h, n)), Timestamp: stripe.Int64(noon.Add(time.Duration(h) * time.Hour).Unix()),
				Payload: map[string]string{"who": customer.ID, "seats": n},
			})
			s.must(err)
			if event.Payload["seats"] != n {
				s.t.Errorf("the payload is %v", event.Payload)
			}
		}
	}
	_, err := s.api.BillingMeterEvents.New(&stripe.BillingMeterEventParams{
		EventName: stripe.String("seats"), Identifier: stripe.String("seats-0-7"), Payload: map[string]string{"who": customer.ID, "seats": "1"},
	})
	s.refused(err, "")
	adjustment, err := s.api.BillingMeterEventAdjustments.New(&stripe.BillingMeterEventAdjustmentParams{
		EventName: stripe.String("seats"), Type: stripe.String("cancel"), Cancel: &stripe.BillingMeterEventAdjustmentCancelParams{Identifier: stripe.String("seats-4-2.5")},
	})
	s.must(err)
	if adjustment.Status != stripe.BillingMeterEventAdjustmentStatusPending {
		s.t.Errorf("the adjustment is %s", adjustment.Status)
	}
	params := &stripe.BillingMeterEventSummaryListParams{
		ID: stripe.String(meter.ID), Customer: stripe.String(customer.ID), StartTime: stripe.Int64(noon.Unix()), EndTime: stripe.Int64(noon.Add(6 * time.Hour).Unix()),
		ValueGroupingWindow: stripe.String("hour"),
	}
	params.Limit = stripe.Int64(2)
	var got []float64
	rows := s.api.BillingMeterEventSummaries.List(params)
	for rows.Next() {
		got = append(got, rows.BillingMeterEventSummary().AggregatedValue)
	}
	s.must(rows.Err())
	if fmt.Sprint(got) != "[7 2.5 2.5 2.5 2.5]" { // the newest hour's last one is cancelled
		s.t.Errorf("the hours are %v", got)
	}
}

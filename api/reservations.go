package api

import "time"

// ReservationRequest is the body of POST /v1/reservations: exactly one of
// Quantity and Credits says how much to hold.
type ReservationRequest struct {
	ID         string            `json:"id,omitempty"`
	Account    string            `json:"account"`
	Meter      string            `json:"meter"`
	Quantity   *Decimal          `json:"quantity,omitempty"`
	Credits    *Decimal          `json:"credits,omitempty"`
	Dimensions map[string]string `json:"dimensions,omitempty"`
	TTLSeconds int               `json:"ttl_seconds"`
}

// Reservation is a hold on credits. Balance is the one right after the hold or,
// once it has ended, right after its end.
type Reservation struct {
	ID          string            `json:"id"`
	Account     string            `json:"account"`
	Meter       string            `json:"meter"`
	Quantity    *Decimal          `json:"quantity"` // nil: asked for in credits
	Dimensions  map[string]string `json:"dimensions"`
	RateVersion int               `json:"rate_version"`
	Credits     Decimal           `json:"credits"`  // held
	Captured    Decimal           `json:"captured"` // of these, what became usage,
	Returned    Decimal           `json:"returned"` // what went back,
	Expired     Decimal           `json:"expired"`  // and what belonged to grants that were due by then
	Grants      []GrantChange     `json:"grants"`   // what the hold took out of each
	State       string            `json:"state"`
	ExpiresAt   time.Time         `json:"expires_at"`
	Reason      string            `json:"reason"` // of the doubt
	DoubtedAt   *time.Time        `json:"doubted_at"`
	EndedAt     *time.Time        `json:"ended_at"`
	Usage       *string           `json:"usage"` // id of the usage that its capture made
	CreatedAt   time.Time         `json:"created_at"`
	Balance     Balance           `json:"balance"`
}

// CaptureRequest is the body of POST /v1/reservations/{id}/capture: exactly one of
// Quantity and Credits. Dimensions left out are those of the reservation.
type CaptureRequest struct {
	Quantity   *Decimal          `json:"quantity,omitempty"`
	Credits    *Decimal          `json:"credits,omitempty"`
	OccurredAt *time.Time        `json:"occurred_at,omitempty"`
	Dimensions map[string]string `json:"dimensions,omitempty"`
}

// ReleaseRequest is the body of POST /v1/reservations/{id}/release; it says
// nothing and may be left out.
type ReleaseRequest struct{}

// ExtendRequest is the body of POST /v1/reservations/{id}/extend.
type ExtendRequest struct {
	TTLSeconds int `json:"ttl_seconds"`
}

// DoubtRequest is the body of POST /v1/reservations/{id}/doubt.
type DoubtRequest struct {
	Reason string `json:"reason"`
}

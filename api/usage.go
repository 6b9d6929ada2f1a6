package api

import "time"

// VoidRequest is the body of POST /v1/usage/{id}/void.
type VoidRequest struct {
	Account string `json:"account"`
	Reason  string `json:"reason"`
}

// UsageVoid is a usage taken back: of the credits that it was charged, what was
// returned and what expired, because it came out of grants that were due by then;
// and the balance right after.
type UsageVoid struct {
	Usage    string    `json:"usage"`
	Account  string    `json:"account"`
	Meter    string    `json:"meter"`
	Quantity Decimal   `json:"quantity"`
	Credits  Decimal   `json:"credits"` // charged
	Returned Decimal   `json:"returned"`
	Expired  Decimal   `json:"expired"`
	Reason   string    `json:"reason"`
	Stripe   string    `json:"stripe"`   // not_billed, withdrawn, corrected, too_late or no_delivery
	Delivery *string   `json:"delivery"` // that was lowered or that corrects; nil where none was
	Actor    string    `json:"actor"`
	VoidedAt time.Time `json:"voided_at"`
	Balance  Balance   `json:"balance"`
}

// UsageDetail is a usage with how it was priced, what it took out of which grants
// (what they lack of its credits came out of the overdraft or became debt), and
// its void, nil where there is none.
type UsageDetail struct {
	Usage
	CreditsPerUnit Decimal       `json:"credits_per_unit"`
	Grants         []GrantChange `json:"grants"`
	Void           *UsageVoid    `json:"void"`
}

// RateVersion is the rates that a meter had from a time on.
type RateVersion struct {
	Version        int       `json:"version"`
	CreditsPerUnit Decimal   `json:"credits_per_unit"`
	Rates          []Rate    `json:"rates"`
	CreatedAt      time.Time `json:"created_at"`
}

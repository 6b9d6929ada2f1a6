// Package api holds the wire types of the HTTP API and its OpenAPI document. The
// server and its clients share them, so that they cannot drift apart.
package api

import (
	_ "embed"
	"encoding/json"
	"time"
)

// Document is openapi.yaml.
//
//go:embed openapi.yaml
var Document []byte

// Decimal is a number as its literal: exact, never a float. It reads a JSON
// number or string and writes a string; whether the text is a number with at
// most six places is for the server to say, with all other mistakes.
type Decimal string

// UnmarshalJSON keeps the literal. What is no number and no string is kept as it
// stands and refused later.
func (d *Decimal) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil && string(data) != "null" {
		*d = Decimal(text)
		return nil
	}
	*d = Decimal(data)
	return nil
}

// Balance is what an account has at one version of it.
type Balance struct {
	Available Decimal `json:"available"`
	Held      Decimal `json:"held"`
	Debt      Decimal `json:"debt"`
	Version   int64   `json:"version"`
}

// AccountRequest is the body of PUT /v1/accounts/{account}.
type AccountRequest struct {
	Name            string            `json:"name,omitempty"`
	StripeCustomers []string          `json:"stripe_customers,omitempty"`
	Overdraft       Decimal           `json:"overdraft,omitempty"`
	LowBalance      *Decimal          `json:"low_balance,omitempty"`
	InDoubtAfter    *InDoubtAfter     `json:"in_doubt_after,omitempty"`
	Metadata        map[string]string `json:"metadata,omitempty"`
}

// InDoubtAfter says what becomes of an account's reservation that stays in doubt
// for so long: release or capture.
type InDoubtAfter struct {
	Action  string `json:"action"`
	Seconds int    `json:"seconds"`
}

// Account is a customer of the AI product. Grants are those still open; they are
// present where one account is asked for.
type Account struct {
	Account         string            `json:"account"`
	Name            string            `json:"name"`
	StripeCustomers []string          `json:"stripe_customers"`
	Overdraft       Decimal           `json:"overdraft"`
	LowBalance      *Decimal          `json:"low_balance"`
	InDoubtAfter    *InDoubtAfter     `json:"in_doubt_after"`
	Low             bool              `json:"low"`
	Metadata        map[string]string `json:"metadata"`
	Balance         Balance           `json:"balance"`
	OpenDisputes    int               `json:"open_disputes"`
	Grants          []OpenGrant       `json:"grants,omitempty"`
	CreatedAt       time.Time         `json:"created_at"`
	UpdatedAt       time.Time         `json:"updated_at"`
}

// OpenGrant is a grant with credits left.
type OpenGrant struct {
	ID        string     `json:"id"`
	Kind      string     `json:"kind"`
	Credits   Decimal    `json:"credits"`
	Remaining Decimal    `json:"remaining"`
	Priority  int        `json:"priority"`
	ExpiresAt *time.Time `json:"expires_at"`
	Reason    string     `json:"reason"`
	Payment   *string    `json:"payment"`
	CreatedAt time.Time  `json:"created_at"`
}

// GrantRequest is the body of POST /v1/accounts/{account}/grants.
type GrantRequest struct {
	ID        string     `json:"id,omitempty"`
	Credits   Decimal    `json:"credits"`
	Reason    string     `json:"reason,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	Priority  int        `json:"priority,omitempty"`
}

// Grant is the answer to a grant: what was given and the balance right after.
type Grant struct {
	ID        string     `json:"id"`
	Account   string     `json:"account"`
	Kind      string     `json:"kind"`
	Credits   Decimal    `json:"credits"`
	Reason    string     `json:"reason"`
	ExpiresAt *time.Time `json:"expires_at"`
	Priority  int        `json:"priority"`
	CreatedAt time.Time  `json:"created_at"`
	Balance   Balance    `json:"balance"`
}

// AdjustmentRequest is the body of POST /v1/accounts/{account}/adjustments.
type AdjustmentRequest struct {
	ID      string  `json:"id,omitempty"`
	Credits Decimal `json:"credits"`
	Reason  string  `json:"reason"`
}

// Adjustment is the answer to an adjustment.
type Adjustment struct {
	ID        string    `json:"id"`
	Account   string    `json:"account"`
	Credits   Decimal   `json:"credits"`
	Reason    string    `json:"reason"`
	CreatedAt time.Time `json:"created_at"`
	Balance   Balance   `json:"balance"`
}

// Transfer is one line of an account's statement. Credits is signed as the
// available balance sees it.
type Transfer struct {
	Version   int64         `json:"version"`
	Kind      string        `json:"kind"`
	Credits   Decimal       `json:"credits"`
	Amount    Decimal       `json:"amount"`
	Source    string        `json:"source"`
	Target    string        `json:"target"`
	Cause     string        `json:"cause"`
	Grants    []GrantChange `json:"grants"`
	Balance   Balance       `json:"balance"`
	Actor     string        `json:"actor"`
	Note      string        `json:"note"`
	PostedAt  time.Time     `json:"posted_at"`
	ChainHash string        `json:"chain_hash"`
}

// GrantChange is how a transfer changed a grant's remainder.
type GrantChange struct {
	ID      string  `json:"id"`
	Credits Decimal `json:"credits"`
}

// Rate is a price for usage whose dimensions match.
type Rate struct {
	Match          map[string]string `json:"match"`
	CreditsPerUnit Decimal           `json:"credits_per_unit"`
}

// StripeBinding ties a meter to what bills it at Stripe.
type StripeBinding struct {
	Kind      string `json:"kind"`
	EventName string `json:"event_name,omitempty"`
	Price     string `json:"price,omitempty"`
}

// MeterRequest is the body of PUT /v1/meters/{meter}.
type MeterRequest struct {
	Unit           string         `json:"unit,omitempty"`
	Aggregation    string         `json:"aggregation,omitempty"`
	ValueField     string         `json:"value_field,omitempty"`
	CreditsPerUnit Decimal        `json:"credits_per_unit"`
	Rates          []Rate         `json:"rates,omitempty"`
	Stripe         *StripeBinding `json:"stripe,omitempty"`
}

// Meter is a named kind of usage.
type Meter struct {
	Meter          string         `json:"meter"`
	Unit           string         `json:"unit"`
	Aggregation    string         `json:"aggregation"`
	ValueField     string         `json:"value_field"` // member of a CloudEvent's data that holds the quantity
	CreditsPerUnit Decimal        `json:"credits_per_unit"`
	Rates          []Rate         `json:"rates"`
	RateVersion    int            `json:"rate_version"`
	Stripe         *StripeBinding `json:"stripe"`
	CreatedAt      time.Time      `json:"created_at"`
	UpdatedAt      time.Time      `json:"updated_at"`
}

// UsageRequest is the body of POST /v1/usage.
type UsageRequest struct {
	ID         string            `json:"id,omitempty"`
	Account    string            `json:"account"`
	Meter      string            `json:"meter"`
	Quantity   Decimal           `json:"quantity"`
	OccurredAt *time.Time        `json:"occurred_at,omitempty"`
	Dimensions map[string]string `json:"dimensions,omitempty"`
}

// Usage is a recorded usage with what it was charged and the balance right after.
type Usage struct {
	ID          string            `json:"id"`
	Account     string            `json:"account"`
	Meter       string            `json:"meter"`
	Quantity    Decimal           `json:"quantity"`
	OccurredAt  time.Time         `json:"occurred_at"`
	Dimensions  map[string]string `json:"dimensions"`
	Credits     Decimal           `json:"credits"`
	RateVersion int               `json:"rate_version"`
	RecordedAt  time.Time         `json:"recorded_at"`
	Balance     Balance           `json:"balance"`
}

// UsageBatchRequest is the body of POST /v1/usage/batch.
type UsageBatchRequest struct {
	Usage []UsageRequest `json:"usage"`
}

// UsageResult is what became of one item of a batch: exactly one of Usage and
// Problem is present.
type UsageResult struct {
	Result  string          `json:"result"` // recorded, replayed or refused
	Usage   *Usage          `json:"usage,omitempty"`
	Problem json.RawMessage `json:"problem,omitempty"`
}

// UsageBatch is the answer of POST /v1/usage/batch, in the order of the items.
type UsageBatch struct {
	Results []UsageResult `json:"results"`
}

// UsageTotal is one line of GET /v1/accounts/{account}/usage.
type UsageTotal struct {
	Meter    string            `json:"meter,omitempty"`
	From     *time.Time        `json:"from,omitempty"` // the hour or day, where grouped by one
	Group    map[string]string `json:"group,omitempty"`
	Quantity Decimal           `json:"quantity"`
	Credits  Decimal           `json:"credits"`
	Count    int64             `json:"count"`
}

// UsageTotals is the answer of GET /v1/accounts/{account}/usage.
type UsageTotals struct {
	From time.Time    `json:"from"`
	To   time.Time    `json:"to"`
	Data []UsageTotal `json:"data"`
}

// Problem is an RFC 9457 problem document.
type Problem struct {
	Type      string         `json:"type"`
	Title     string         `json:"title"`
	Status    int            `json:"status"`
	Code      string         `json:"code"`
	Detail    string         `json:"detail"`
	RequestID string         `json:"request_id"`
	Errors    []ProblemField `json:"errors"`
}

// ProblemField is one mistake in a request.
type ProblemField struct {
	Pointer string `json:"pointer"`
	Message string `json:"message"`
}

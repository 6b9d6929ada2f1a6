package api

import "time"

// RateLimit bounds the requests that a key may make of one process: so many a
// second, and so many at once after a pause. An item of a batch counts as a request.
type RateLimit struct {
	PerSecond int `json:"per_second"`
	Burst     int `json:"burst"`
}

// KeyRequest is the body of POST /v1/keys.
type KeyRequest struct {
	Name      string     `json:"name"`
	Scopes    []string   `json:"scopes"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	RateLimit *RateLimit `json:"rate_limit,omitempty"` // nil: none
}

// Key is an API key. Secret is present once, in the answer that made it.
type Key struct {
	ID                string     `json:"id"`
	Name              string     `json:"name"`
	Scopes            []string   `json:"scopes"`
	Secret            string     `json:"secret,omitempty"`
	RateLimit         *RateLimit `json:"rate_limit"`
	CreatedAt         time.Time  `json:"created_at"`
	ExpiresAt         *time.Time `json:"expires_at"`
	RevokedAt         *time.Time `json:"revoked_at"`
	RotatedAt         *time.Time `json:"rotated_at"`
	PreviousExpiresAt *time.Time `json:"previous_expires_at"` // end of the secret before the last rotation, while it still works
}

// RotateRequest is the body of POST /v1/keys/{id}/rotate. Without OverlapSeconds
// the old secret works for another day.
type RotateRequest struct {
	OverlapSeconds *int `json:"overlap_seconds,omitempty"`
}

// TokenRequest is the body of POST /v1/accounts/{account}/tokens.
type TokenRequest struct {
	Name       string `json:"name,omitempty"`
	TTLSeconds int    `json:"ttl_seconds"`
}

// Token lets its bearer read one account and nothing else. Secret is present
// once, in the answer that made it.
type Token struct {
	ID        string     `json:"id"`
	Account   string     `json:"account"`
	Name      string     `json:"name"`
	Secret    string     `json:"secret,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt time.Time  `json:"expires_at"`
	RevokedAt *time.Time `json:"revoked_at"`
}

package api

import (
	"encoding/json"
	"time"
)

// StripeEvent is an event in the inbox.
type StripeEvent struct {
	ID         string          `json:"id"`
	Type       string          `json:"type"`
	APIVersion string          `json:"api_version"`
	Livemode   bool            `json:"livemode"`
	State      string          `json:"state"`
	Attempts   int             `json:"attempts"`
	Error      string          `json:"error"`
	Source     string          `json:"source"`
	CreatedAt  time.Time       `json:"created_at"`
	ReceivedAt time.Time       `json:"received_at"`
	DoneAt     *time.Time      `json:"done_at"`
	Payload    json.RawMessage `json:"payload,omitempty"`
}

// Delivery is a sum of usage on its way to Stripe.
type Delivery struct {
	ID          string     `json:"id"` // also the identifier of the meter event
	Account     string     `json:"account"`
	Meter       string     `json:"meter"`
	Bucket      time.Time  `json:"bucket"`
	Sequence    int        `json:"sequence"`
	Origin      string     `json:"origin"`
	Quantity    Decimal    `json:"quantity"`
	Usages      int64      `json:"usages"`
	State       string     `json:"state"`
	Customer    string     `json:"customer"`
	EventName   string     `json:"event_name"`
	Attempts    int        `json:"attempts"`
	Error       string     `json:"error"`
	NextTryAt   time.Time  `json:"next_try_at"`
	FirstSentAt *time.Time `json:"first_sent_at"`
	DeliveredAt *time.Time `json:"delivered_at"`

	Backend          string     `json:"backend"`
	Price            string     `json:"price"`
	SubscriptionItem string     `json:"subscription_item"`
	SentValue        *Decimal   `json:"sent_value"`
	SentAt           *time.Time `json:"sent_at"`
	ReplacedBy       string     `json:"replaced_by"`
}

// RunRequest is the body of POST /v1/reconcile/runs; all of it may be left out.
type RunRequest struct {
	Checks  []string   `json:"checks,omitempty"`
	From    *time.Time `json:"from,omitempty"`
	To      *time.Time `json:"to,omitempty"`
	Account string     `json:"account,omitempty"`
	DryRun  bool       `json:"dry_run,omitempty"`
}

// Check is an audit rule, and how it stands.
type Check struct {
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Schedule    string     `json:"schedule"` // five cron fields, UTC; off or "" for none
	LastSuccess *time.Time `json:"last_success"`
	LastRun     string     `json:"last_run"` // id of the run of the latest slot
	LastState   string     `json:"last_state"`
	Error       string     `json:"error"`  // of that run
	Silent      bool       `json:"silent"` // it has not succeeded in its time
}

// Run is one execution of one check over a window.
type Run struct {
	ID         string     `json:"id"`
	Check      string     `json:"check"`
	Trigger    string     `json:"trigger"`
	From       time.Time  `json:"from"`
	To         time.Time  `json:"to"`
	Account    string     `json:"account"`
	State      string     `json:"state"`
	Compared   int64      `json:"compared"`
	Found      int        `json:"found"`
	New        int        `json:"new"`
	Resolved   int        `json:"resolved"`
	Calls      int64      `json:"calls"` // made to Stripe
	Note       string     `json:"note"`  // what was not read, and why
	Totals     Totals     `json:"totals"`
	Error      string     `json:"error"`
	StartedAt  time.Time  `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at"`
	Preview    []Finding  `json:"preview,omitempty"` // what a dry run found
}

// Totals is the money that a run found, by what has become of it.
type Totals struct {
	Leaked     []Money `json:"leaked"`
	Overbilled []Money `json:"overbilled"`
	AtRisk     []Money `json:"at_risk"`
}

// Money is an amount in minor units of a currency, with its reading for people.
type Money struct {
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
	Text     string `json:"text"`
}

// Finding is one disagreement between our records and Stripe's, or within ours.
type Finding struct {
	ID           string          `json:"id"`
	Check        string          `json:"check"`
	Severity     string          `json:"severity"`
	Subject      string          `json:"subject"`
	Account      string          `json:"account"`
	HappenedAt   time.Time       `json:"happened_at"`
	Ours         string          `json:"ours"`
	Theirs       string          `json:"theirs"`
	Difference   string          `json:"difference"`
	Unit         string          `json:"unit"`
	MoneyAtRisk  *Money          `json:"money_at_risk"`
	Effect       string          `json:"effect"`
	Cause        string          `json:"cause"`
	Explanation  string          `json:"explanation"`
	Evidence     json.RawMessage `json:"evidence"`
	Deadline     *time.Time      `json:"deadline"`
	Remains      string          `json:"remains"` // what can still be done after the deadline
	State        string          `json:"state"`
	Repair       string          `json:"repair"` // what repair would do; "" when there is none
	Safe         bool            `json:"safe"`   // whether it can neither over-bill nor over-credit
	TimesOpen    int             `json:"times_open"`
	FirstSeen    time.Time       `json:"first_seen"`
	OpenedAt     time.Time       `json:"opened_at"`
	LastSeen     time.Time       `json:"last_seen"`
	SnoozedUntil *time.Time      `json:"snoozed_until"`
	ResolvedAt   *time.Time      `json:"resolved_at"`
	ResolvedBy   string          `json:"resolved_by"` // "" when it vanished by itself
	StripeURL    string          `json:"stripe_url"`  // of the object in Stripe's dashboard
	History      []FindingEntry  `json:"history,omitempty"`
}

// FindingEntry is a line of a finding's history.
type FindingEntry struct {
	At     time.Time `json:"at"`
	Actor  string    `json:"actor"`
	Action string    `json:"action"`
	Detail string    `json:"detail"`
}

// AcknowledgeRequest is the body of POST /v1/findings/{id}/acknowledge; it may be left out.
type AcknowledgeRequest struct {
	Note string `json:"note,omitempty"`
}

// SnoozeRequest is the body of POST /v1/findings/{id}/snooze.
type SnoozeRequest struct {
	Until time.Time `json:"until"`
	Note  string    `json:"note,omitempty"`
}

// ResolveRequest is the body of POST /v1/findings/{id}/resolve.
type ResolveRequest struct {
	Reason string `json:"reason"`
}

// RepairRequest is the body of POST /v1/findings/{id}/repair.
type RepairRequest struct {
	DryRun bool   `json:"dry_run,omitempty"`
	Choice string `json:"choice,omitempty"` // release or capture, for a reservation in doubt
}

// Repair is what a repair did, or would do.
type Repair struct {
	Finding string `json:"finding"`
	Action  string `json:"action"`
	Result  string `json:"result"`
	DryRun  bool   `json:"dry_run"`
	Done    bool   `json:"done"`
}

// Health is the answer of /healthz and /readyz.
type Health struct {
	Status string            `json:"status"`
	Checks map[string]string `json:"checks,omitempty"`
}

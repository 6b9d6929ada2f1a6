package stripesim

// Switches set what Stripe leaves undocumented and what varies between accounts and
// API versions. The zero value is Stripe as it is documented.
type Switches struct {
	// The protocol.

	V2Semantics                bool  `json:"v2_semantics"`                 // idempotency keys as the v2 API has them: 30 days, and what has failed is done again
	AnyVersion                 bool  `json:"any_version"`                  // any Stripe-Version is taken; the shapes stay those of APIVersion
	MemoryExtraSeconds         int64 `json:"memory_extra_seconds"`         // idempotency keys and identifiers are remembered for 24 hours and up to so much more, at random
	RequestsPerSecond          int   `json:"requests_per_second"`          // of all endpoints together; 0: no limit, here and below
	EndpointRequestsPerSecond  int   `json:"endpoint_requests_per_second"` // of each endpoint
	ConcurrentRequests         int   `json:"concurrent_requests"`          // under way at once, of all endpoints together
	EndpointConcurrentRequests int   `json:"endpoint_concurrent_requests"` // under way at once, of each endpoint
	ClockSkewSeconds           int64 `json:"clock_skew_seconds"`           // by which the Date header and the time of signatures are off

	// Lists, events and webhooks.

	ListLagSeconds            map[string]int64 `json:"list_lag_seconds"`             // by object, or "*": how long a new one stays out of its list
	EventLagSeconds           int64            `json:"event_lag_seconds"`            // how long a new event stays out of the list of events
	SandboxRetries            bool             `json:"sandbox_retries"`              // webhooks are tried three times over a few hours, not for three days
	WebhookTimeoutMS          int              `json:"webhook_timeout_ms"`           // a slower answer is a failure; 0: 20 000
	EndpointDisabledAfterDays int              `json:"endpoint_disabled_after_days"` // an endpoint that has failed for so long is disabled; 0: never

	// Billing meters.

	MeterLagSeconds        int64  `json:"meter_lag_seconds"`        // how long an accepted meter event stays out of the summaries
	MeterLagJitterSeconds  int64  `json:"meter_lag_jitter_seconds"` // each meter event lags up to so much longer, at random
	MeterErrorsSync        bool   `json:"meter_errors_sync"`        // an unknown customer or meter is refused at once, not reported later
	MeterErrorsAsync       bool   `json:"meter_errors_async"`       // a wrong time or value, too, is reported later instead of refused
	ErrorLagSeconds        int64  `json:"error_lag_seconds"`        // how long after its ten seconds a report of meter errors goes out
	WholeMeterValues       bool   `json:"whole_meter_values"`       // a meter event takes whole values only, as Stripe did at first
	MeterEventsPerSecond   int    `json:"meter_events_per_second"`  // refuse more with 429; 0: no limit
	DuplicateEventCode     string `json:"duplicate_event_code"`     // code of the refusal of an identifier that is known; "": none
	AdjustmentLagSeconds   int64  `json:"adjustment_lag_seconds"`   // how long a cancelled meter event stays in the summaries
	AdjustmentsComplete    bool   `json:"adjustments_complete"`     // an adjustment is answered as complete, not as pending
	RefuseSecondAdjustment bool   `json:"refuse_second_adjustment"` // cancelling a meter event again is refused
	NoZeroSummary          bool   `json:"no_zero_summary"`          // a summary of no usage is an empty list, not one row of zero
	SummariesNeedCustomer  bool   `json:"summaries_need_customer"`  // summaries of a customer that never was are refused
	FormulaLast            bool   `json:"formula_last"`             // meters with the formula last can be made, as in newer API versions
	MeterEventsRaised      bool   `json:"meter_events_raised"`      // billing.meter.* events are raised, as newer API versions do

	// Payments, refunds and disputes.

	AuthenticatePayments    bool  `json:"authenticate_payments"`     // every card payment requires_action until the buyer has authenticated
	SettleSeconds           int64 `json:"settle_seconds"`            // how long debits, refunds and reviews of disputes take; 0: as long as in life
	RefundEvents            bool  `json:"refund_events"`             // refund.created, refund.updated and refund.failed are raised for charges, as newer API versions do
	RefundsPending          bool  `json:"refunds_pending"`           // every refund waits until it is told how it ends
	PendingRefundsUncounted bool  `json:"pending_refunds_uncounted"` // a refund is not in the charge's amount_refunded while it is pending
	KeepAmountRefunded      bool  `json:"keep_amount_refunded"`      // a failed refund leaves the charge's amount_refunded as it was
	FeeFree                 bool  `json:"fee_free"`                  // neither payments nor disputes cost a fee
	KeepDisputeFee          bool  `json:"keep_dispute_fee"`          // a dispute that is won does not bring its fee back

	// Subscriptions, usage records and invoices.

	GraceSeconds           int64  `json:"grace_seconds"`             // how long usage of the period before is taken in a new one; 0: 300, negative: not at all
	UsageAheadSeconds      int64  `json:"usage_ahead_seconds"`       // how far in the future the timestamp of a usage record may be
	UsageLagSeconds        int64  `json:"usage_lag_seconds"`         // how long an accepted usage record stays out of summaries and upcoming invoices
	UsageOpenPeriodNull    bool   `json:"usage_open_period_null"`    // the summary of the open period has neither start nor end
	ZeroUsageFree          bool   `json:"zero_usage_free"`           // without usage not even the flat amount of the first tier is charged
	AfterLastTry           string `json:"after_last_try"`            // what a subscription becomes when its invoice is not tried again: canceled, unpaid, or past_due as it is
	InvoiceGraceSeconds    int64  `json:"invoice_grace_seconds"`     // how long a draft waits before it is finalized by itself; 0: an hour, negative: not at all
	InvoiceWaitsForWebhook bool   `json:"invoice_waits_for_webhook"` // nor is it finalized while an endpoint has not taken invoice.created, for 72 hours at most
	InvoiceRetries         int64  `json:"invoice_retries"`           // how often a failed payment of an invoice is tried again; 0: three times, negative: never
	InvoiceRetrySeconds    int64  `json:"invoice_retry_seconds"`     // how long after the last try; 0: three days
	InvoicesNeedMethod     bool   `json:"invoices_need_method"`      // an invoice of a customer without a payment method is not paid
	TestClockAdvanceMS     int64  `json:"test_clock_advance_ms"`     // how long a test clock is advancing; 0: it is ready at the next call
}

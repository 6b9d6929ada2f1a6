package stripesim

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"
)

// Options configure a simulator; the zero value is ready for use.
type Options struct {
	Clock    Clock        // nil: a clock of its own that starts at the machine's time
	Dir      string       // keeps the state in this directory; "" keeps it in memory only
	Logger   *slog.Logger // nil: silent
	APIKey   string       // the only key that is accepted; "" accepts any sk_test_ or rk_test_
	Seed     uint64       // of ids and probabilistic faults
	Switches Switches
	Observe  func(Request) // is shown every call of the API after it; calls that run side by side are shown side by side
}

// Switches set what Stripe leaves undocumented or what varies between accounts.
type Switches struct {
	MeterLagSeconds      int64 `json:"meter_lag_seconds"`       // how long an accepted meter event stays out of the summaries
	MeterErrorsSync      bool  `json:"meter_errors_sync"`       // an unknown customer or meter is refused at once, not reported later
	WholeMeterValues     bool  `json:"whole_meter_values"`      // a meter event takes whole values only, as Stripe did at first
	EventLagSeconds      int64 `json:"event_lag_seconds"`       // how long a new event stays out of the list of events
	RefundEvents         bool  `json:"refund_events"`           // refund.created and refund.updated are sent for charges, as newer API versions do
	KeepAmountRefunded   bool  `json:"keep_amount_refunded"`    // a failed refund leaves the charge's amount_refunded as it was
	MeterEventsPerSecond int   `json:"meter_events_per_second"` // refuse more with 429; 0: no limit
	MemoryExtraSeconds   int64 `json:"memory_extra_seconds"`    // idempotency keys and identifiers are remembered for 24 hours and up to so much more, at random

	V2Semantics bool `json:"v2_semantics"` // idempotency keys as the v2 API has them: 30 days, and what has failed is done again
	AnyVersion  bool `json:"any_version"`  // any Stripe-Version is taken; the shapes stay those of APIVersion

	RequestsPerSecond          int `json:"requests_per_second"`          // of all endpoints together; 0: no limit, here and below
	EndpointRequestsPerSecond  int `json:"endpoint_requests_per_second"` // of each endpoint
	ConcurrentRequests         int `json:"concurrent_requests"`
	EndpointConcurrentRequests int `json:"endpoint_concurrent_requests"`

	ClockSkewSeconds int64            `json:"clock_skew_seconds"` // by which the Date header and the time of signatures are off
	ListLagSeconds   map[string]int64 `json:"list_lag_seconds"`   // by object, or "*": how long a new one stays out of its list

	SandboxRetries            bool `json:"sandbox_retries"`              // webhooks are tried three times over a few hours, not for three days
	WebhookTimeoutMS          int  `json:"webhook_timeout_ms"`           // a slower answer is a failure; 0: 20 000
	EndpointDisabledAfterDays int  `json:"endpoint_disabled_after_days"` // an endpoint that has failed for so long is disabled; 0: never

	MeterLagJitterSeconds   int64  `json:"meter_lag_jitter_seconds"`  // each meter event lags up to so much longer, at random
	MeterErrorsAsync        bool   `json:"meter_errors_async"`        // a wrong time or value, too, is reported later instead of refused
	ErrorLagSeconds         int64  `json:"error_lag_seconds"`         // how long after its ten seconds a report of meter errors goes out
	DuplicateEventCode      string `json:"duplicate_event_code"`      // code of the refusal of an identifier that is known
	AdjustmentLagSeconds    int64  `json:"adjustment_lag_seconds"`    // how long a cancelled meter event stays in the summaries
	AdjustmentsComplete     bool   `json:"adjustments_complete"`      // an adjustment is answered as complete, not as pending
	RefuseSecondAdjustment  bool   `json:"refuse_second_adjustment"`  // cancelling a meter event again is refused
	NoZeroSummary           bool   `json:"no_zero_summary"`           // a summary of no usage is an empty list, not one row of zero
	SummariesNeedCustomer   bool   `json:"summaries_need_customer"`   // summaries of a customer that never was are refused
	FormulaLast             bool   `json:"formula_last"`              // meters with the formula last can be made, as in newer API versions
	MeterEventsRaised       bool   `json:"meter_events_raised"`       // billing.meter.* events are raised, as newer API versions do
	RefundsPending          bool   `json:"refunds_pending"`           // every refund waits until it is told how it ends
	PendingRefundsUncounted bool   `json:"pending_refunds_uncounted"` // a refund is not in the charge's amount_refunded while it is pending
	AuthenticatePayments    bool   `json:"authenticate_payments"`     // every card payment requires_action until the buyer has authenticated
	InvoicesNeedMethod      bool   `json:"invoices_need_method"`      // an invoice of a customer without a payment method is not paid
	SettleSeconds           int64  `json:"settle_seconds"`            // how long debits, refunds and reviews of disputes take; 0: as long as in life
	FeeFree                 bool   `json:"fee_free"`                  // neither payments nor disputes cost a fee
	KeepDisputeFee          bool   `json:"keep_dispute_fee"`          // a dispute that is won does not bring its fee back
	InvoiceGraceSeconds     int64  `json:"invoice_grace_seconds"`     // how long a draft waits before it is finalized by itself; 0: an hour, negative: not at all
	InvoiceWaitsForWebhook  bool   `json:"invoice_waits_for_webhook"` // nor is it finalized while an endpoint has not taken invoice.created, for 72 hours at most
	InvoiceRetries          int64  `json:"invoice_retries"`           // how often a failed payment of an invoice is tried again; 0: three times, negative: never
	InvoiceRetrySeconds     int64  `json:"invoice_retry_seconds"`     // how long after the last try; 0: three days
	GraceSeconds            int64  `json:"grace_seconds"`             // how long usage of the period before is taken in a new one; 0: 300, negative: not at all
	UsageAheadSeconds       int64  `json:"usage_ahead_seconds"`       // how far in the future the timestamp of a usage record may be
	UsageLagSeconds         int64  `json:"usage_lag_seconds"`         // how long an accepted usage record stays out of summaries and upcoming invoices
	UsageOpenPeriodNull     bool   `json:"usage_open_period_null"`    // the summary of the open period has neither start nor end
	ZeroUsageFree           bool   `json:"zero_usage_free"`           // without usage not even the flat amount of the first tier is charged
	AfterLastTry            string `json:"after_last_try"`            // what a subscription becomes when its invoice is not tried again: canceled, unpaid, or past_due as it is
	TestClockAdvanceMS      int64  `json:"test_clock_advance_ms"`     // how long a test clock is advancing; 0: it is ready at the next call
}

// Server is the simulator as an http.Handler.
type Server struct {
	logger *slog.Logger
	clock  Clock
	apiKey string
	mux    *http.ServeMux

	observer func(Request)

	mu          guard // of everything below
	store       *store
	random      *mathrand.Rand
	switches    Switches
	faults      []*Fault
	keys        map[string]*savedAnswer
	meters      meterBook
	usage       usageBook
	webhooks    webhookControl
	traffic     traffic
	expiredKeys map[string]bool     // API keys that were good once
	inFlight    map[flight]struct{} // meter events under way
	requests    int64
	log         []Request // the last ones
	agenda      agenda
	standing    int64 // the time, while it stands still; 0: it runs
	testing     bool  // the time that stands still is that of a test clock
	forgotten   int64 // when forget last looked
	meterSecond int64
	meterCount  int

	controls []string // the patterns of the control plane

	wake chan struct{}
	stop context.CancelFunc
	done sync.WaitGroup
	http *http.Client
}

// NewServer makes a simulator and starts its webhook deliveries; Close ends them.
func NewServer(o Options) (*Server, error) {
	s := &Server{
		logger: o.Logger, clock: o.Clock, apiKey: o.APIKey, observer: o.Observe, switches: o.Switches,
		random: mathrand.New(mathrand.NewPCG(o.Seed, 0x7a11)), //nolint:gosec // reproducible on purpose
		keys:   map[string]*savedAnswer{}, inFlight: map[flight]struct{}{}, agenda: newAgenda(), meters: newMeterBook(), usage: newUsageBook(), wake: make(chan struct{}, 1),
		http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.clock == nil {
		s.clock = &ownClock{}
	}
	s.store, s.traffic, s.webhooks = &store{kinds: map[string]*shelf{}}, newTraffic(), newWebhookControl()
	s.expiredKeys = map[string]bool{}
	s.mu.store = s.store
	if err := s.store.open(o.Dir, s.replay); err != nil {
		return nil, err
	}
	s.routes()
	s.wakeUp()
	s.requeue()
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // a server lives until its Close, as http.Server does
	s.stop = stop
	s.done.Go(func() { s.deliverLoop(ctx) })
	return s, nil
}

// Close ends the deliveries and closes the journal.
func (s *Server) Close() error {
	s.stop()
	s.done.Wait()
	s.http.CloseIdleConnections()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store.close()
}

// Now is the simulator's time.
func (s *Server) Now() time.Time { return s.clock.Now() }

// Advance moves the simulator's time forward and lets what falls due happen.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	s.clock.Advance(d)
	s.store.log(entry{Type: "clock", Nanos: int64(d)})
	s.happen()
	s.mu.Unlock()
	s.nudge()
}

func (s *Server) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// now is the time in whole seconds, as objects carry it.
func (s *Server) now() int64 {
	if s.standing != 0 {
		return s.standing
	}
	return s.clock.Now().Unix()
}

// newID makes an id in Stripe's form. Ids of a simulator with a directory carry
// real randomness: after a restart the seeded sequence would begin again.
func (s *Server) newID(prefix string) string {
	var b [12]byte
	if s.store.persistent() {
		_, _ = rand.Read(b[:])
	} else {
		for i := range b {
			b[i] = byte(s.random.UintN(256)) //nolint:gosec // below 256
		}
	}
	var digits [2 * len(b)]byte
	hex.Encode(digits[:], b[:])
	copy(digits[:4], bytes.ToUpper(digits[:4]))
	return prefix + "_" + string(digits[:])
}

func (s *Server) routes() {
	s.mux = http.NewServeMux()
	s.routeCustomers()
	s.routeCatalog()
	s.routeCheckout()
	s.routePayments()
	s.routeRefunds()
	s.routeInvoices()
	s.routeMeters()
	s.routeSubscriptions()
	s.routeSubscriptionItems()
	s.routeUsage()
	s.routeTestClocks()
	s.routeEvents()
	s.routeControl()
	s.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintf(w, "This is stripesim, a simulator of Stripe at API version %s.\nSend API calls to /v1/… with any sk_test_ key; GET /_sim/state shows what it holds.\n", APIVersion)
	})
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.unknownURL(w, r)
	})
}

// unknownURL answers what no endpoint answers, a method that an endpoint lacks included.
func (s *Server) unknownURL(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	c := &call{s: s, r: r, id: s.newID("req")}
	s.mu.Unlock()
	s.write(w, c.id, c.dress(c.refuse(notFoundURL(r))))
}

// ServeHTTP answers Stripe's API under /v1 and the control plane under /_sim.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/_sim/") && path.Clean(r.URL.Path) != r.URL.Path {
		s.unknownURL(w, r) // the mux would redirect, and Stripe does not
		return
	}
	s.mux.ServeHTTP(w, r)
}

package stripesim

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
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
}

// Server is the simulator as an http.Handler.
type Server struct {
	logger *slog.Logger
	clock  Clock
	apiKey string
	mux    *http.ServeMux

	observer func(Request)

	mu          sync.Mutex // guards everything below
	store       *store
	random      *mathrand.Rand
	switches    Switches
	faults      []*Fault
	keys        map[string]*savedAnswer
	meters      meterBook
	webhooks    webhookControl
	inFlight    map[string]int // meter events under way per customer and meter
	requests    int64
	log         []Request // the last ones
	agenda      agenda
	standing    int64 // the time, while it stands still; 0: it runs
	forgotten   int64 // when forget last looked
	meterSecond int64
	meterCount  int

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
		keys:   map[string]*savedAnswer{}, inFlight: map[string]int{}, agenda: newAgenda(), meters: newMeterBook(), wake: make(chan struct{}, 1),
		http: &http.Client{Timeout: webhookTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.clock == nil {
		s.clock = &ownClock{}
	}
	var err error
	if s.store, err = openStore(o.Dir, s.replay); err != nil {
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
	s.store.log(entry{Type: "clock", Seconds: d.Seconds()})
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
	return prefix + "_" + strings.ToUpper(hex.EncodeToString(b[:2])) + hex.EncodeToString(b[2:])
}

func (s *Server) routes() {
	s.mux = http.NewServeMux()
	s.routeCustomers()
	s.routeCatalog()
	s.routeCheckout()
	s.routePayments()
	s.routeRefunds()
	s.routeMeters()
	s.routeEvents()
	s.routeControl()
	s.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintf(w, "This is stripesim, a simulator of Stripe at API version %s.\nSend API calls to /v1/… with any sk_test_ key; GET /_sim/state shows what it holds.\n", APIVersion)
	})
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		id := s.newID("req")
		s.mu.Unlock()
		s.writeError(w, id, notFoundURL(r))
	})
}

// ServeHTTP answers Stripe's API under /v1 and the control plane under /_sim.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

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

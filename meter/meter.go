package meter

import (
	"context"
	"log/slog"
	"net/netip"
	"regexp"
	"runtime"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"
	xrate "golang.org/x/time/rate"

	"tallystick/internal/pg"
	"tallystick/ledger"
	"tallystick/outbox"
)

// Stager keeps usage for Stripe, in the transaction that accepts it, and takes it
// back in the one that voids it.
type Stager interface {
	StageUsage(ctx context.Context, tx *sqlx.Tx, now time.Time, usages []outbox.Usage) error
	TakeBack(ctx context.Context, tx *sqlx.Tx, now time.Time, u outbox.Usage, recordedAt time.Time) (outbox.Taken, error)
}

// LanesDefault is how many transactions of the lanes run at a time: as many as
// there are processors, and more than one, so that a slow one does not stop all.
// Fewer lanes make bigger groups, and those are cheaper.
func LanesDefault() int { return max(2, runtime.GOMAXPROCS(0)) }

// Config is what a Meter needs.
type Config struct {
	DB     *pg.DB
	Keyed  *pg.DB // for the lanes: the same database, opened with Options.Keyed; default DB
	Now    func() time.Time
	Stager Stager
	Logger *slog.Logger
	Lanes  int // default LanesDefault()

	Failures int                   // failed authentications per client address and minute; default FailuresDefault
	Proxies  []netip.Prefix        // whose X-Forwarded-For says what the client's address is; default nobody's
	Registry prometheus.Registerer // for metrics of refusals; default none
}

// Meter is the metering API.
type Meter struct {
	db     *pg.DB
	keyed  *pg.DB
	now    func() time.Time
	stager Stager
	logger *slog.Logger

	keys     keyCache
	failures *failures
	owners   *lru.Cache[string, *xrate.Limiter] // of accounts' tokens, by account
	refusals *prometheus.CounterVec
	fields   fieldCache

	catalog catalog

	lanes   []*lane
	closing sync.RWMutex // written while closed is closed; read while a usage is put into its lane
	closed  chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

// New starts a Meter's lanes; Close ends them.
func New(c Config) *Meter {
	if c.Keyed == nil {
		c.Keyed = c.DB
	}
	m := &Meter{db: c.DB, keyed: c.Keyed, now: c.Now, stager: c.Stager, logger: c.Logger, closed: make(chan struct{})}
	m.keys = keyCache{most: keysCachedMax, entries: map[string]*keyEntry{}}
	m.failures = newFailures(c.Failures, c.Proxies, c.Now)
	m.owners, _ = lru.New[string, *xrate.Limiter](ownersMax) // fails for sizes below one only
	m.refusals = newRefusals(c.Registry)
	m.fields.known = map[string]*field{}
	lanes := c.Lanes
	if lanes == 0 {
		lanes = LanesDefault()
	}
	for range lanes {
		l := &lane{m: m, in: make(chan *job, laneDepth), memory: newMemory()}
		m.lanes = append(m.lanes, l)
		m.wg.Go(l.run)
	}
	return m
}

// Close refuses further usage, lets what was accepted be committed and answered,
// and returns when the lanes have ended. Closing twice is harmless.
func (m *Meter) Close() {
	m.once.Do(func() {
		m.closing.Lock()
		defer m.closing.Unlock()
		close(m.closed)
	})
	m.wg.Wait()
}

// laneOf gives the lane of an account. Accounts of one part share a lane, so that
// a transaction touches few parts.
func (m *Meter) laneOf(ref ledger.Ref) *lane { return m.lanes[int(ref.Part)%len(m.lanes)] }

// Depth is how many usages wait in the lanes, for metrics.
func (m *Meter) Depth() int {
	n := 0
	for _, l := range m.lanes {
		n += len(l.in)
	}
	return n
}

// form is what an identifier may look like: so many of A-Z a-z 0-9 . _ : - and,
// for accounts, @. It is checked without a regular expression because every usage is.
type form struct {
	least, most int
	at          bool
}

// MatchString tells whether s has the form.
func (f form) MatchString(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == '_', c == ':', c == '-', c == '@' && f.at:
		default:
			return false
		}
	}
	return f.least <= len(s) && len(s) <= f.most
}

// Forms of identifiers.
var (
	idForm        = form{least: 8, most: 128}
	accountForm   = form{least: 1, most: 128, at: true}
	meterForm     = form{least: 1, most: 128}
	eventNameForm = form{least: 1, most: 100}
	priceForm     = form{least: 1, most: 255}
	customerForm  = regexp.MustCompile(`^cus_[A-Za-z0-9_]{1,250}$`)
)

const (
	idRule      = "must be 8 to 128 of the characters A-Z a-z 0-9 . _ : -"
	accountRule = "must be 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -"
	meterRule   = "must be 1 to 128 of the characters A-Z a-z 0-9 . _ : -"
)

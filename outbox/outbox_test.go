package outbox_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/credit"
	"tallystick/internal/mail"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/ledger"
	"tallystick/outbox"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// desk is an outbox over a database of its own, with a clock that stands still
// and a Stripe and a mail server that answer by script.
type desk struct {
	*outbox.Outbox
	t   *testing.T
	db  *pg.DB
	own *pg.DB

	mu      sync.Mutex
	now     time.Time
	events  []outbox.MeterEvent
	answer  func(outbox.MeterEvent) outbox.Result
	mails   []mail.Message
	refusal error
	alertTo []string
	records []outbox.UsageRecord
	items   func(customer string) ([]outbox.Item, error)
	counted func(eventName, customer string, from, to time.Time) (credit.Quantity, error)
	record  func(outbox.UsageRecord) outbox.Result
}

// opened makes a desk with the accounts named, each with a customer, and the bound
// meter call.
func opened(t *testing.T, accounts ...string) *desk {
	t.Helper()
	dsn := pgtest.DSN(t)
	d := &desk{t: t, db: pgtest.Open(t, dsn, pg.Options{}), own: pgtest.Owner(t, dsn), now: start, answer: func(outbox.MeterEvent) outbox.Result {
		return outbox.Result{Outcome: outbox.OutcomeDelivered}
	}}
	d.Outbox = d.another()
	pgtest.Exec(t, d.own, `INSERT INTO meters (meter, unit, aggregation, stripe_event_name, stripe_bound_at, rate_version, created_at, updated_at)
		VALUES ('call', '', 'sum', 'calls', $1, 1, $1, $1), ('unbound', '', 'sum', NULL, NULL, 1, $1, $1)`, start)
	for _, account := range accounts {
		d.account(account, "cus_"+account)
	}
	return d
}

// another is a second process over the same database.
func (d *desk) another() *outbox.Outbox {
	return outbox.New(outbox.Config{
		DB: d.db, Now: d.clock, Usage: d, Mail: d, Logger: slog.New(slog.DiscardHandler), Reader: d, Settle: 10 * time.Second, Rate: 1_000_000, MeterRate: 1_000_000,
		AlertTo: d.alertTo, Domain: "example.com",
	})
}

func (d *desk) clock() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

func (d *desk) pass(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = d.now.Add(by)
}

// SendMeterEvent is outbox.UsageSender.
func (d *desk) SendMeterEvent(_ context.Context, e outbox.MeterEvent) outbox.Result {
	d.mu.Lock()
	d.events = append(d.events, e)
	answer := d.answer
	d.mu.Unlock()
	return answer(e)
}

// SendUsageRecord is outbox.UsageSender.
func (d *desk) SendUsageRecord(_ context.Context, u outbox.UsageRecord) outbox.Result {
	d.mu.Lock()
	d.records = append(d.records, u)
	record := d.record
	d.mu.Unlock()
	return record(u)
}

// Items is outbox.UsageReader.
func (d *desk) Items(_ context.Context, customer string) ([]outbox.Item, error) {
	d.mu.Lock()
	items := d.items
	d.mu.Unlock()
	return items(customer)
}

// Counted is outbox.UsageReader.
func (d *desk) Counted(_ context.Context, eventName, customer string, from, to time.Time) (credit.Quantity, error) {
	d.mu.Lock()
	counted := d.counted
	d.mu.Unlock()
	return counted(eventName, customer, from, to)
}

// Send is outbox.MailSender.
func (d *desk) Send(_ context.Context, m mail.Message) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mails = append(d.mails, m)
	return d.refusal
}

// answers lets Stripe answer the next calls so, the last one for good.
func (d *desk) answers(results ...outbox.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	d.answer = func(outbox.MeterEvent) outbox.Result {
		d.mu.Lock()
		defer d.mu.Unlock()
		r := results[min(n, len(results)-1)]
		n++
		return r
	}
}

func (d *desk) sent() []outbox.MeterEvent {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]outbox.MeterEvent(nil), d.events...)
}

func (d *desk) account(name string, customers ...string) {
	d.t.Helper()
	d.tx(func(tx *sqlx.Tx) error {
		_, err := ledger.PutAccount(d.t.Context(), tx, ledger.Account{Ref: ledger.RefOf(name), Metadata: "{}", Customers: customers}, start)
		return err
	})
}

func (d *desk) tx(do func(tx *sqlx.Tx) error) {
	d.t.Helper()
	if err := d.db.InTx(d.t.Context(), do); err != nil {
		d.t.Fatal(err)
	}
}

// stage stages usage of an account at times after the start.
func (d *desk) stage(account, meter string, quantity int64, at ...time.Duration) {
	d.t.Helper()
	var usages []outbox.Usage
	for _, a := range at {
		usages = append(usages, outbox.Usage{
			Part: ledger.RefOf(account).Part, Account: account, Meter: meter, OccurredAt: start.Add(a), Quantity: credit.Units(quantity),
		})
	}
	d.tx(func(tx *sqlx.Tx) error { return d.StageUsage(d.t.Context(), tx, d.clock(), usages) })
}

// step runs the worker until it has nothing more to do.
func (d *desk) step() {
	d.t.Helper()
	for more := true; more; {
		var err error
		if more, err = d.UsageStep(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
	}
}

// row is a delivery as it is kept.
type row struct {
	Account, Meter, Origin, State, Customer, Identifier, Error string

	Bucket           time.Time
	Sequence         int
	Quantity, Usages int64
	Attempts         int
	NextTryAt        time.Time `db:"next_try_at"`
}

func (d *desk) rows() []row {
	d.t.Helper()
	var rows []row
	err := d.db.Read(d.t.Context(), func(tx *sqlx.Tx) error {
		rows = nil
		return tx.Select(&rows, `SELECT account, meter, origin, state, customer, identifier, error, bucket, sequence, quantity, usages, attempts, next_try_at
			FROM deliveries ORDER BY account, meter, bucket, sequence`)
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return rows
}

// one is the only delivery.
func (d *desk) one() row {
	d.t.Helper()
	rows := d.rows()
	if len(rows) != 1 {
		d.t.Fatalf("%d deliveries, want 1: %+v", len(rows), rows)
	}
	return rows[0]
}

func (d *desk) state(want string) {
	d.t.Helper()
	if got := d.one(); got.State != want {
		d.t.Errorf("the delivery is %s, want %s: %+v", got.State, want, got)
	}
}

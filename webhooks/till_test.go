package webhooks_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/prometheus/client_golang/prometheus"

	"tallystick/internal/apptest"
	"tallystick/internal/credit"
	"tallystick/internal/loop"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/internal/stripe"
	"tallystick/internal/web"
	"tallystick/ledger"
	"tallystick/webhooks"
)

const secret = "whsec_till"

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// till is an inbox and its worker over a database of its own, with a clock that
// stands still and a Stripe that says what a test has written into its book.
type till struct {
	*webhooks.Webhooks
	*book
	t       *testing.T
	db      *pg.DB
	own     *pg.DB
	config  webhooks.Config
	handler http.Handler

	mu  sync.Mutex
	now time.Time
}

// opened makes a till with acme, who is the Stripe customer cus_acme. Each change
// is made to the configuration first.
func opened(t *testing.T, changes ...func(*webhooks.Config)) *till {
	t.Helper()
	return over(t, pgtest.DSN(t), changes...)
}

func over(t *testing.T, dsn string, changes ...func(*webhooks.Config)) *till {
	t.Helper()
	d := &till{t: t, book: newBook(), db: pgtest.Open(t, dsn, pg.Options{}), own: pgtest.Owner(t, dsn), now: start}
	d.config = webhooks.Config{
		DB: d.db, Now: d.clock, Stripe: d.book, Logger: slog.New(slog.DiscardHandler), Secrets: []string{secret},
		Actor: func(context.Context) string { return "key:test" },
	}
	for _, change := range changes {
		change(&d.config)
	}
	d.Webhooks = d.another()
	d.handler = routes(d.Webhooks)
	d.account("acme", "cus_acme")
	return d
}

// another is a second process over the same database.
func (d *till) another() *webhooks.Webhooks { return webhooks.New(d.config) }

func routes(h *webhooks.Webhooks) http.Handler {
	mux := http.NewServeMux()
	server := web.NewServer(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	for _, r := range h.Routes() {
		mux.Handle(r.Method+" "+r.Pattern, server.Handle(r.Pattern, r.Handler))
	}
	return mux
}

func (d *till) clock() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

func (d *till) pass(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = d.now.Add(by)
}

func (d *till) account(name string, customers ...string) {
	d.t.Helper()
	d.tx(func(tx *sqlx.Tx) error {
		_, err := ledger.PutAccount(d.t.Context(), tx, ledger.Account{Ref: ledger.RefOf(name), Metadata: "{}", Customers: append([]string{}, customers...)}, start)
		return err
	})
}

// spend takes credits from acme.
func (d *till) spend(credits int64) {
	d.t.Helper()
	d.tx(func(tx *sqlx.Tx) error {
		ref := ledger.RefOf("acme")
		batch, err := ledger.Load(d.t.Context(), tx, []ledger.Ref{ref})
		if err != nil {
			return err
		}
		op := ledger.Operation{Kind: ledger.KindAdjustment, Cause: "spent", Amount: -credit.Whole(credits), Actor: "test", At: d.clock()}
		posted, err := batch.Apply(ref, op)
		if err != nil {
			return err
		}
		if err := batch.Save(d.t.Context(), tx); err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO adjustments VALUES ($1, $2, 'spent', $3, 'spent', $4, $5, $6)`,
			ref.Part, ref.Account, op.Amount, make([]byte, 32), posted[0].Version, start)
		return err
	})
}

func (d *till) tx(do func(tx *sqlx.Tx) error) {
	d.t.Helper()
	if err := d.db.InTx(d.t.Context(), do); err != nil {
		d.t.Fatal(err)
	}
}

// plant runs a statement as the database's owner, to spoil or to mend something.
func (d *till) plant(statement string) {
	d.t.Helper()
	pgtest.Exec(d.t, d.own, statement)
}

// event is a body as Stripe sends it, about an object.
func event(id, kind, object string) string {
	return fmt.Sprintf(`{"id": %q, "object": "event", "type": %q, "api_version": %q, "livemode": false, "created": %d, "data": {"object": %s}}`,
		id, kind, stripe.APIVersion, start.Unix(), object)
}

// paid is the event that a payment intent has succeeded.
func paid(id, payment string) string {
	return event(id, "payment_intent.succeeded", fmt.Sprintf(`{"id": %q}`, payment))
}

// refunded is the event that a charge was refunded.
func refunded(id, payment string) string {
	return event(id, "charge.refunded", fmt.Sprintf(`{"id": "ch_1", "payment_intent": %q}`, payment))
}

// send makes a request of the handler, without a network in between.
func (d *till) send(method, path, body string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, bytes.NewReader([]byte(body)))
	r.Header = header
	if r.Header == nil {
		r.Header = http.Header{}
	}
	w := httptest.NewRecorder()
	d.handler.ServeHTTP(w, r)
	return w
}

// post delivers a body with signatures, each a header of its own.
func (d *till) post(body string, signatures ...string) *httptest.ResponseRecorder {
	return d.send(http.MethodPost, "/webhooks/stripe", body, http.Header{"Stripe-Signature": signatures})
}

// deliver delivers events, rightly signed, and wants them acknowledged.
func (d *till) deliver(bodies ...string) {
	d.t.Helper()
	for _, body := range bodies {
		if w := d.post(body, apptest.Sign(body, secret, d.clock())); w.Code != http.StatusOK {
			d.t.Errorf("%s was answered %d: %s", body, w.Code, w.Body)
		}
	}
}

// step runs the worker until it has nothing more to do.
func (d *till) step() {
	d.t.Helper()
	d.finish(d.Step)
}

// parkedStep looks at parked payments until none is due.
func (d *till) parkedStep() {
	d.t.Helper()
	d.finish(d.ParkedStep)
}

func (d *till) finish(step loop.Step) {
	d.t.Helper()
	for range 100 {
		if more, err := step(d.t.Context()); err != nil {
			d.t.Fatal(err)
		} else if !more {
			return
		}
	}
	d.t.Fatal("the step never ends saying that there is more")
}

// row is an event as it is kept.
type row struct {
	ID, State, Error, Source, Payload string

	Attempts  int
	NextTryAt time.Time  `db:"next_try_at"`
	DoneAt    *time.Time `db:"done_at"`
}

func (d *till) rows() (rows []row) {
	d.t.Helper()
	d.query(&rows, `SELECT event_id AS id, state, error, source, payload, attempts, next_try_at, done_at FROM stripe_events ORDER BY event_id`)
	return rows
}

// one is the only event.
func (d *till) one() row {
	d.t.Helper()
	rows := d.rows()
	if len(rows) != 1 {
		d.t.Fatalf("%d events, want 1: %+v", len(rows), rows)
	}
	return rows[0]
}

// state is the state of one event.
func (d *till) state(id string) string {
	d.t.Helper()
	for _, r := range d.rows() {
		if r.ID == id {
			return r.State
		}
	}
	return "absent"
}

// payment is a payment as it is kept; its state is "absent" when it is not.
type payment struct {
	State, Reason, Account string
	Credits                credit.Amount
}

func (d *till) payment(id string) payment {
	d.t.Helper()
	var found []payment
	d.query(&found, `SELECT state, reason, coalesce(account, '') AS account, credits FROM payments WHERE payment_id = $1`, id)
	if len(found) == 0 {
		return payment{State: "absent"}
	}
	return found[0]
}

// balance is what an account has, and what it owes.
func (d *till) balance(account string) string {
	d.t.Helper()
	var found []struct{ Available, Debt credit.Amount }
	d.query(&found, `SELECT available, debt FROM accounts WHERE account = $1`, account)
	if found[0].Debt == 0 {
		return found[0].Available.String()
	}
	return found[0].Available.String() + " owing " + found[0].Debt.String()
}

// has wants a balance, and the whole ledger in order.
func (d *till) has(account, want string) {
	d.t.Helper()
	if got := d.balance(account); got != want {
		d.t.Errorf("%s has %s, want %s", account, got, want)
	}
	d.verify()
}

func (d *till) verify() {
	d.t.Helper()
	report, err := ledger.Verify(d.t.Context(), d.db)
	if err != nil || !report.OK {
		d.t.Errorf("the ledger is broken: %+v, %v", report, err)
	}
}

// count gives the one number that a query asks for.
func (d *till) count(query string) int {
	d.t.Helper()
	var n []int
	d.query(&n, query)
	return n[0]
}

func (d *till) query(dst any, query string, args ...any) {
	d.t.Helper()
	err := d.db.Read(d.t.Context(), func(tx *sqlx.Tx) error { return tx.Select(dst, query, args...) })
	if err != nil {
		d.t.Fatalf("%s: %v", query, err)
	}
}

// book is a Stripe as simple as can be: what stands in it is what it says.
type book struct {
	mu       sync.Mutex
	sessions map[string]stripe.Session
	intents  map[string]stripe.PaymentIntent
	refunds  map[string][]stripe.Refund
	disputes map[string][]stripe.Dispute
	invoices map[string]stripe.Invoice
	notes    map[string][]stripe.CreditNote
	reads    map[string]int // how often each payment was read

	before func(ctx context.Context, payment string) error // ahead of the read of a payment
	after  func(payment string)                            // when all of a payment has been read
}

func newBook() *book {
	return &book{
		sessions: map[string]stripe.Session{}, intents: map[string]stripe.PaymentIntent{}, refunds: map[string][]stripe.Refund{}, disputes: map[string][]stripe.Dispute{},
		invoices: map[string]stripe.Invoice{}, notes: map[string][]stripe.CreditNote{}, reads: map[string]int{},
		before: func(context.Context, string) error { return nil }, after: func(string) {},
	}
}

// pays writes a payment of acme's into the book that buys 100 credits for 10.00
// USD; each change is made to it first.
func (b *book) pays(id string, changes ...func(*stripe.PaymentIntent)) {
	pi := stripe.PaymentIntent{
		ID: id, Customer: "cus_acme", Money: 1000, Currency: "usd", Status: "succeeded", Metadata: map[string]string{"credits": "100"}, CreatedAt: start,
	}
	for _, change := range changes {
		change(&pi)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.intents[id] = pi
}

// paysWith writes what pays does, with other metadata.
func (b *book) paysWith(id string, metadata map[string]string) {
	b.pays(id, func(pi *stripe.PaymentIntent) { pi.Metadata = metadata })
}

// meanwhile does something once, between the next read of a payment and what is
// done about it.
func (b *book) meanwhile(do func()) {
	var begun atomic.Bool // do may read, too
	b.after = func(string) {
		if begun.CompareAndSwap(false, true) {
			do()
		}
	}
}

// sells writes a session into the book, with or without a payment intent.
func (b *book) sells(s stripe.Session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[s.ID] = s
}

// refund writes a refund of a payment into the book, or its new status.
func (b *book) refund(payment, id, status string, money int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range b.refunds[payment] {
		if r.ID == id {
			b.refunds[payment][i].Status = status
			return
		}
	}
	at := start.Add(time.Duration(len(b.refunds[payment])) * time.Hour)
	b.refunds[payment] = append(b.refunds[payment], stripe.Refund{ID: id, PaymentIntent: payment, Money: money, Currency: "usd", Status: status, CreatedAt: at})
}

// Session is webhooks.StripeReader.
func (b *book) Session(ctx context.Context, id string) (stripe.Session, error) {
	if err := b.before(ctx, id); err != nil {
		return stripe.Session{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads[id]++
	s, ok := b.sessions[id]
	if !ok {
		return s, fmt.Errorf("no session %s: %w", id, io.EOF)
	}
	return s, nil
}

// SessionOf is webhooks.StripeReader.
func (b *book) SessionOf(_ context.Context, intent string) (stripe.Session, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		if s.PaymentIntent == intent {
			return s, true, nil
		}
	}
	return stripe.Session{}, false, nil
}

// PaymentIntent is webhooks.StripeReader.
func (b *book) PaymentIntent(ctx context.Context, id string) (stripe.PaymentIntent, error) {
	if err := b.before(ctx, id); err != nil {
		return stripe.PaymentIntent{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads[id]++
	pi, ok := b.intents[id]
	if !ok {
		return pi, fmt.Errorf("no payment intent %s: %w", id, io.EOF)
	}
	return pi, nil
}

// RefundsOf is webhooks.StripeReader.
func (b *book) RefundsOf(_ context.Context, intent string) ([]stripe.Refund, error) {
	b.mu.Lock()
	refunds := append([]stripe.Refund(nil), b.refunds[intent]...)
	b.mu.Unlock()
	b.after(intent)
	return refunds, nil
}

// DisputesOf is webhooks.StripeReader.
func (b *book) DisputesOf(_ context.Context, payment string) ([]stripe.Dispute, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]stripe.Dispute(nil), b.disputes[payment]...), nil
}

// Invoice is webhooks.StripeReader.
func (b *book) Invoice(_ context.Context, id string) (stripe.Invoice, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := b.invoices[id]
	if !ok {
		return i, fmt.Errorf("no invoice %s: %w", id, io.EOF)
	}
	return i, nil
}

// CreditNotesOf is webhooks.StripeReader.
func (b *book) CreditNotesOf(_ context.Context, invoice string) ([]stripe.CreditNote, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]stripe.CreditNote(nil), b.notes[invoice]...), nil
}

// SessionOfInvoice is webhooks.StripeReader.
func (b *book) SessionOfInvoice(context.Context, string, string) (stripe.Session, bool, error) {
	return stripe.Session{}, false, nil
}

// EventPages is webhooks.StripeReader.
func (b *book) EventPages(context.Context, []string, time.Time, time.Time, func([]stripe.Event) error) error {
	return nil
}

// Event is webhooks.StripeReader.
func (b *book) Event(_ context.Context, id string) (stripe.Event, error) {
	return stripe.Event{}, fmt.Errorf("no event %s: %w", id, io.EOF)
}

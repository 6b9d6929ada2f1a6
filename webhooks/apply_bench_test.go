package webhooks_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/stripe"
	"tallystick/ledger"
	"tallystick/webhooks"
)

// BenchmarkApply applies purchases, each by one event, with a Stripe that answers
// at once: the simulator, or Stripe itself, would be the limit.
func BenchmarkApply(b *testing.B) {
	dsn := onDisk(b)
	for _, tc := range []struct {
		name     string
		accounts int
	}{{"one", 1}, {"spread", 1000}} {
		b.Run(tc.name, func(b *testing.B) { applyMany(b, dsn, tc.name, tc.accounts) })
	}
}

// prompt is a Stripe that has every payment.
type prompt struct {
	webhooks.StripeReader
	name     string
	accounts int
}

func (p prompt) PaymentIntent(_ context.Context, id string) (stripe.PaymentIntent, error) {
	var n int
	if _, err := fmt.Sscanf(id[len("pi_"+p.name):], "_%d", &n); err != nil {
		return stripe.PaymentIntent{}, err
	}
	return stripe.PaymentIntent{
		ID: id, Money: 1000, Currency: "usd", Status: "succeeded", CreatedAt: start,
		Metadata: map[string]string{"credits": "100", "account": fmt.Sprintf("%s-%d", p.name, n%p.accounts)},
	}, nil
}

func (prompt) SessionOf(context.Context, string) (stripe.Session, bool, error) {
	return stripe.Session{}, false, nil
}

func (prompt) RefundsOf(context.Context, string) ([]stripe.Refund, error) { return nil, nil }

func (prompt) DisputesOf(context.Context, string) ([]stripe.Dispute, error) { return nil, nil }

func applyMany(b *testing.B, dsn, name string, accounts int) {
	b.Helper()
	db, err := pg.Open(b.Context(), dsn, pg.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	h := webhooks.New(webhooks.Config{DB: db, Now: time.Now, Stripe: prompt{name: fmt.Sprint(name, b.N), accounts: accounts}, Logger: slog.New(slog.DiscardHandler)})
	err = db.InTx(b.Context(), func(tx *sqlx.Tx) error {
		for i := range accounts {
			a := ledger.Account{Ref: ledger.RefOf(fmt.Sprintf("%s-%d", fmt.Sprint(name, b.N), i)), Metadata: "{}", Customers: []string{}}
			if _, err := ledger.PutAccount(b.Context(), tx, a, start); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(b.Context(), `
			INSERT INTO stripe_events (event_id, type, api_version, livemode, created_at, payload, source, received_at, state, attempts, next_try_at, error)
			SELECT 'evt_' || $1 || '_' || i, 'payment_intent.succeeded', '2023-10-16', false, now(), convert_to('{"data": {"object": {"id": "pi_' || $1 || '_' || i || '"}}}', 'UTF8'),
				'webhook', now(), 'pending', 0, now(), '' FROM generate_series(1, $2::int) i`, fmt.Sprint(name, b.N), b.N)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for more := true; more; {
		if more, err = h.Step(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "purchases/s")
	err = db.Read(b.Context(), func(tx *sqlx.Tx) error {
		var n int
		if err := tx.Get(&n, `SELECT count(*) FROM grants WHERE grant_id LIKE 'purchase:pi_' || $1 || '\_%'`, fmt.Sprint(name, b.N)); err != nil || n != b.N {
			b.Errorf("%d purchases are %d grants, %v", b.N, n, err)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

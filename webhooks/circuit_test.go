package webhooks_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/apptest"
	"tallystick/internal/pg"
	"tallystick/internal/pg/pgtest"
	"tallystick/stripesim"
	"tallystick/webhooks"
)

// TestARefusedKeyIsOneAlertAndUsesNoTries takes the key away at the simulator.
func TestARefusedKeyIsOneAlertAndUsesNoTries(t *testing.T) {
	t.Parallel()
	s, d := beside(t)
	payment := s.Buy(s.Price)
	var log bytes.Buffer
	d.config.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
	d.Webhooks = d.another()
	if err := s.Sim.AddFaults(&stripesim.Fault{Method: http.MethodGet, Path: "/v1/payment_intents/*", Fault: "unauthorized_401"}); err != nil {
		t.Fatal(err)
	}
	d.deliver(paid("evt_1", payment), paid("evt_2", payment))
	for range 20 {
		d.step()
		d.pass(10 * time.Minute)
	}
	for _, r := range d.rows() {
		if r.State != "pending" || r.Attempts != 0 || !strings.Contains(r.Error, "stripe_key_refused") {
			t.Errorf("while the key is refused it is %+v", r)
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, log.String())
	}
	s.Sim.ClearFaults()
	d.step()
	d.has("acme", "100")
}

// TestWhatAloneGetsNoAnswerUsesItsTries has another payment answered each time.
func TestWhatAloneGetsNoAnswerUsesItsTries(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.before = func(_ context.Context, payment string) error {
		if payment == "pi_bad" {
			return errors.New("connection reset")
		}
		return nil
	}
	d.deliver(paid("evt_bad", "pi_bad"))
	for i := range 15 {
		id := fmt.Sprint("pi_", i)
		d.pays(id)
		d.deliver(paid("evt_"+id, id))
		d.step()
		d.pass(7 * time.Hour)
	}
	if state := d.state("evt_bad"); state != "failed" {
		t.Errorf("after 15 tries it is %s, want it failed", state)
	}
	d.has("acme", "1500")
}

// TestWhileStripeIsAwayItIsLeftAlone counts how often it is asked in ten minutes.
func TestWhileStripeIsAwayItIsLeftAlone(t *testing.T) {
	t.Parallel()
	d := opened(t)
	asked := 0
	d.before = func(context.Context, string) error {
		asked++
		return errors.New("connection refused")
	}
	for second := range 600 {
		if second < 300 {
			d.deliver(paid(fmt.Sprint("evt_", second), "pi_1"))
		}
		if _, err := d.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.pass(time.Second)
	}
	if asked < 5 || asked > 30 {
		t.Errorf("in ten minutes Stripe was asked %d times", asked)
	}
}

// TestB10AnEventIsStoredWhileAllOtherConnectionsAreBusy holds the only one.
func TestB10AnEventIsStoredWhileAllOtherConnectionsAreBusy(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	busy := pgtest.Open(t, dsn, pg.Options{ConnectionsMax: 1})
	d := over(t, dsn, func(c *webhooks.Config) {
		c.Inbox, c.DB = pgtest.Open(t, dsn, pg.Options{ConnectionsMax: 2, Keyed: true}), busy
	})
	err := busy.InTx(t.Context(), func(*sqlx.Tx) error {
		for i := range 20 {
			body := paid(fmt.Sprint("evt_", i), "pi_1")
			if w := d.post(body, apptest.Sign(body, secret, start)); w.Code != http.StatusOK {
				t.Errorf("a delivery was answered %d: %s", w.Code, w.Body)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(d.rows()); n != 20 {
		t.Errorf("%d events are stored", n)
	}
}

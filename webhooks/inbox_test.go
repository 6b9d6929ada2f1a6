package webhooks_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/internal/apptest"
	"tallystick/internal/pg/pgdev"
	"tallystick/internal/pg/pgtest"
	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

// TestE01TheSameEventFiftyTimesAtOnceHasOneEffect sends it over HTTP to the whole
// program, whose worker runs meanwhile.
func TestE01TheSameEventFiftyTimesAtOnceHasOneEffect(t *testing.T) {
	t.Parallel()
	s := apptest.OpenShop(t, apptest.Options{})
	s.Control("/_sim/webhooks", `{"pause": true}`)
	payment := s.Buy(s.Price)
	var body string
	for _, raw := range s.Events(payment) {
		if strings.Contains(string(raw), `"checkout.session.completed"`) {
			body = string(raw)
		}
	}
	signature := apptest.Sign(body, s.Info.WebhookSecret, s.Clock.Now())
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if r := s.WebhookAs(body, signature); r.Status != http.StatusOK {
				t.Errorf("a delivery was answered %d: %s", r.Status, r.Body)
			}
		})
	}
	wg.Wait()
	var list struct{ Data []api.StripeEvent }
	s.Await("the event to be applied", func() bool {
		s.Want(http.StatusOK, http.MethodGet, "/v1/stripe/events?type=checkout.session.completed", nil, &list)
		return len(list.Data) > 0 && list.Data[0].State != "pending"
	})
	if len(list.Data) != 1 || list.Data[0].State != "done" {
		t.Errorf("the inbox holds %+v, want the event once, done", list.Data)
	}
	if got := s.Available("acme"); got != "100" {
		t.Errorf("acme has %s credits, want 100", got)
	}
	var transfers struct{ Data []any }
	s.Want(http.StatusOK, http.MethodGet, "/v1/accounts/acme/transfers", nil, &transfers)
	if len(transfers.Data) != 1 {
		t.Errorf("there are %d transfers, want 1: %v", len(transfers.Data), transfers.Data)
	}
}

// TestAnEventStaysAsItFirstCame delivers another body under the same id.
func TestAnEventStaysAsItFirstCame(t *testing.T) {
	t.Parallel()
	d := opened(t)
	first := paid("evt_1", "pi_1")
	d.deliver(first, paid("evt_1", "pi_2"))
	if got := d.one(); got.Payload != first || got.Source != "webhook" {
		t.Errorf("kept is %s from %s, want the first body", got.Payload, got.Source)
	}
}

func TestABodyThatIsNoEventIsRefused(t *testing.T) {
	t.Parallel()
	d := opened(t)
	for _, body := range []string{
		``, `null`, `[]`, `"evt_1"`, `{`, `{}`, `{"id": "evt_1", "type": "x"}`, `{"id": "", "type": "x", "created": 1}`, `{"type": "x", "created": 1}`,
		`{"id": "evt_1", "created": 1}`, `{"id": "evt_1", "type": "", "created": 1}`, `{"id": 1, "type": "x", "created": 1}`,
		`{"id": "evt_1", "type": "x", "created": "yesterday"}`, `{"id": "evt_1", "type": "x", "created": 1.5}`, `{"id": "evt_1", "type": "x", "created": null}`,
		`{"id": "evt_1", "type": "x", "created": 1, "livemode": "yes"}`, `{"id": "evt_1", "type": "x", "created": 1} {}`,
		`{"id": "` + strings.Repeat("e", 256) + `", "type": "x", "created": 1}`, `{"id": "evt_1", "type": "` + strings.Repeat("t", 256) + `", "created": 1}`,
	} {
		d.refuses(body, body, http.StatusBadRequest, "invalid_event", apptest.Sign(body, secret, start))
	}
	d.deliver(`{"id": "` + strings.Repeat("e", 255) + `", "type": "` + strings.Repeat("t", 255) + `", "created": 1}`)
	if got := d.one(); got.State != "ignored" {
		t.Errorf("the longest names are %s, want ignored", got.State)
	}
}

// TestE08WhatIsNotOursIsKeptAndNotApplied covers events that are rightly signed.
func TestE08WhatIsNotOursIsKeptAndNotApplied(t *testing.T) {
	t.Parallel()
	live := strings.Replace(paid("evt_1", "pi_1"), `"livemode": false`, `"livemode": true`, 1)
	older := strings.Replace(paid("evt_1", "pi_1"), stripe.APIVersion, "2020-08-27", 1)
	for _, tc := range []struct {
		name, body, state, reason string
		livemode                  bool
	}{
		{"an unknown type", event("evt_1", "radar.early_fraud_warning.created", `{"id": "issfr_1"}`), "ignored", "", false},
		{"an unknown type of the other mode", strings.Replace(live, "payment_intent.succeeded", "unheard.of", 1), "ignored", "", false},
		{
			"a thin event of the second API",
			`{"id": "evt_1", "object": "v2.core.event", "type": "v1.billing.meter.error_report_triggered", "livemode": false, "created": "2026-03-01T12:00:00.000Z",
			"related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"}}`, "ignored", "", false,
		},
		{"live mode with a test key", live, "flagged", "mode", false},
		{"test mode with a live key", paid("evt_1", "pi_1"), "flagged", "mode", true},
		{"another API version", older, "flagged", "API version 2020-08-27; create it with " + stripe.APIVersion, false},
		{"no API version", strings.Replace(older, "2020-08-27", "", 1), "flagged", "API version", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := opened(t, func(c *webhooks.Config) { c.Livemode = tc.livemode })
			d.pays("pi_1")
			d.deliver(tc.body, tc.body)
			d.pass(24 * time.Hour)
			d.step()
			got := d.one()
			if got.State != tc.state || !strings.Contains(got.Error, tc.reason) || (tc.reason == "") != (got.Error == "") || got.Payload != tc.body || got.Attempts != 0 {
				t.Errorf("kept is %+v, want it %s because of %q", got, tc.state, tc.reason)
			}
			if len(d.reads) > 0 {
				t.Errorf("Stripe was asked for %v", d.reads)
			}
			d.has("acme", "0")
		})
	}
}

// TestE11WithoutADatabaseNothingIsAcknowledged takes the server away and brings it back.
func TestE11WithoutADatabaseNothingIsAcknowledged(t *testing.T) {
	t.Parallel()
	server := pgtest.Server(t)
	d := over(t, server.DSN(pgdev.Database))
	d.pays("pi_1")
	d.deliver(paid("evt_before", "pi_1"))
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	body := paid("evt_during", "pi_1")
	if w := d.post(body, apptest.Sign(body, secret, start)); w.Code != http.StatusServiceUnavailable {
		t.Errorf("without a database a delivery was answered %d: %s", w.Code, w.Body)
	}
	if _, err := d.Step(t.Context()); err == nil {
		t.Error("without a database the worker says that all is well")
	}
	if err := server.Restart(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	d.deliver(body)
	d.step()
	if rows := d.rows(); len(rows) != 2 || d.state("evt_before") != "done" || d.state("evt_during") != "done" {
		t.Errorf("the inbox holds %+v, want both events done", rows)
	}
	d.has("acme", "100")
}

// TestW1ARefusedInsertIsNotAcknowledged lets the database refuse the row.
func TestW1ARefusedInsertIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	d := opened(t)
	body := paid("evt_1", "pi_1")
	d.plant("ALTER TABLE stripe_events ADD CONSTRAINT planted CHECK (false)")
	d.refuses("an event that the database refuses", body, http.StatusInternalServerError, "internal", apptest.Sign(body, secret, start))
	d.plant("ALTER TABLE stripe_events DROP CONSTRAINT planted")
	d.deliver(body)
	d.one()
}

func TestEventsAreListedNewestFirstAndByStateTypeAndID(t *testing.T) {
	t.Parallel()
	d := opened(t)
	d.pays("pi_1")
	for i := range 5 {
		d.deliver(strings.Replace(paid(fmt.Sprint("evt_", i), "pi_1"), fmt.Sprint(start.Unix()), fmt.Sprint(start.Unix()+int64(i/2)), 1))
	}
	d.deliver(event("evt_x", "unheard.of", `{}`))
	d.step()
	list := func(query string) (ids string, next string, first api.StripeEvent) {
		t.Helper()
		w := d.send(http.MethodGet, "/v1/stripe/events?"+query, "", nil)
		var page struct {
			Data       []api.StripeEvent `json:"data"`
			NextCursor *string           `json:"next_cursor"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s was answered %d, %v: %s", query, w.Code, err, w.Body)
		}
		for _, e := range page.Data {
			ids += strings.TrimPrefix(e.ID, "evt_")
			first = page.Data[0]
		}
		if page.NextCursor != nil {
			next = *page.NextCursor
		}
		return ids, next, first
	}
	if w := d.send(http.MethodGet, "/v1/stripe/events?state=lost", "", nil); w.Code != http.StatusBadRequest {
		t.Errorf("an unknown state was answered %d", w.Code)
	}
	for query, want := range map[string]string{"": "432x10", "state=ignored": "x", "state=done": "43210", "type=unheard.of": "x", "state=failed": "", "id=evt_9": ""} {
		if got, _, first := list(query); got != want || first.Payload != nil {
			t.Errorf("the list of %q is %s, want %s, without payloads", query, got, want)
		}
	}
	first, next, _ := list("limit=4")
	second, end, _ := list("limit=4&cursor=" + next)
	if first != "432x" || second != "10" || end != "" {
		t.Errorf("the pages are %s and %s, then %q", first, second, end)
	}
	if _, _, e := list("id=evt_3"); string(e.Payload) == "" || e.DoneAt == nil || e.Attempts != 1 {
		t.Errorf("one event shows as %+v, want its payload and its end", e)
	}
}

// TestE09AMissedEventIsFedOnceAndAppliedLikeADeliveredOne reads it from the
// simulator, as a repair does.
func TestE09AMissedEventIsFedOnceAndAppliedLikeADeliveredOne(t *testing.T) {
	t.Parallel()
	s, d := beside(t)
	payment := s.Buy(s.Price)
	var e struct{ ID string }
	for _, raw := range s.Events(payment) {
		if strings.Contains(string(raw), `"payment_intent.succeeded"`) {
			_ = json.Unmarshal(raw, &e) // an event has an id
		}
	}
	if _, err := d.Feed(t.Context(), "evt_nowhere"); !stripe.IsMissing(err) {
		t.Errorf("an event that Stripe does not have: %v, want that it is missing", err)
	}
	for i, want := range []bool{true, false, false} {
		missing, err := d.Feed(t.Context(), e.ID)
		if err != nil || missing != want {
			t.Errorf("feed %d: missing %v, %v; want %v", i, missing, err, want)
		}
		if got := d.one(); got.State != "pending" || got.Source != "replay" {
			t.Errorf("after feed %d it is %+v, want it due", i, got)
		}
		d.step()
		d.has("acme", "100")
	}
}

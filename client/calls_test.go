package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/client"
)

func TestNewRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ url, key string }{
		{"", "tsk_x"},
		{"localhost:8321", "tsk_x"},
		{"ftp://x", "tsk_x"},
		{"http://", "tsk_x"},
		{"http://x?y=1", "tsk_x"},
		{"http://user:secret@x", "tsk_x"},
		{"http://x", ""},
		{"http://x", "tsk_x\r\nX-Evil: 1"},
	} {
		if c, err := client.New(tc.url, tc.key); err == nil {
			_ = c.Close()
			t.Errorf("New(%q, %q) has no objection", tc.url, tc.key)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
	for _, option := range []client.Option{client.WithPatience(0), client.WithTryTime(-1)} {
		if _, err := client.New("http://x", "tsk_x", option); err == nil {
			t.Error("a bound of nothing is accepted")
		}
	}
	c, err := client.New("http://x/", "tsk_very_secret")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if printed := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(printed, "very_secret") {
		t.Error("printing a client shows its key")
	}
}

// TestEveryMethod drives every method against the running program.
func TestEveryMethod(t *testing.T) {
	t.Parallel()
	s := open(t)
	c, ctx := s.client(), t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	account, err := c.PutAccount(ctx, "user@example.com", api.AccountRequest{Name: "A user", Overdraft: "2"})
	must("PutAccount", err)
	if account.Account != "user@example.com" || account.Overdraft != "2" {
		t.Errorf("PutAccount gives %+v", account)
	}
	meter, err := c.PutMeter(ctx, "extra", api.MeterRequest{CreditsPerUnit: "2", Unit: "page"})
	must("PutMeter", err)
	if meter.Unit != "page" {
		t.Errorf("PutMeter gives %+v", meter)
	}
	renamed, err := c.PutAccountIf(ctx, "user@example.com", account.ETag, api.AccountRequest{Name: "Another"})
	must("PutAccountIf", err)
	if _, err := c.PutAccountIf(ctx, "user@example.com", account.ETag, api.AccountRequest{Name: "A third"}); !errors.Is(err, client.ErrStale) || renamed.Name != "Another" {
		t.Errorf("PutAccountIf gives %+v, and %v for a stale ETag", renamed, err)
	}
	_, err = c.PutMeterIf(ctx, "extra", meter.ETag, api.MeterRequest{CreditsPerUnit: "2", Unit: "page"})
	must("PutMeterIf", err)
	if _, err := c.PutMeterIf(ctx, "extra", meter.ETag, api.MeterRequest{CreditsPerUnit: "3"}); !errors.Is(err, client.ErrStale) {
		t.Errorf("PutMeterIf gives %v for a stale ETag", err)
	}
	grant, err := c.Grant(ctx, "user@example.com", api.GrantRequest{Credits: client.Int(50), Reason: "welcome"})
	must("Grant", err)
	if grant.Balance.Available != "50" || grant.ID == "" {
		t.Errorf("Grant gives %+v", grant)
	}
	adjusted, err := c.Adjust(ctx, "user@example.com", api.AdjustmentRequest{Credits: "-0.5", Reason: "mistake"})
	must("Adjust", err)
	if adjusted.Balance.Available != "49.5" {
		t.Errorf("Adjust gives %+v", adjusted)
	}
	recorded, err := c.Record(ctx, api.UsageRequest{ID: "usage-0001", Account: "user@example.com", Meter: "extra", Quantity: "1.5"})
	must("Record", err)
	if recorded.Credits != "3" || recorded.Replayed || recorded.Spooled {
		t.Errorf("Record gives %+v", recorded)
	}
	again, err := c.Record(ctx, api.UsageRequest{ID: "usage-0001", Account: "user@example.com", Meter: "extra", Quantity: "1.5"})
	must("Record again", err)
	if !again.Replayed || again.Balance != recorded.Balance {
		t.Errorf("the same id gives %+v", again)
	}
	reservations(t, s, c)
	balance, err := c.Balance(ctx, "user@example.com")
	must("Balance", err)
	if balance.Available != "42.5" { // 49.5 - 3 - 4
		t.Errorf("Balance gives %+v", balance)
	}
	totals, err := c.Totals(ctx, "user@example.com", "extra", time.Time{}, time.Time{}, "meter")
	must("Totals", err)
	if len(totals.Data) != 1 || totals.Data[0].Quantity != "3.5" {
		t.Errorf("Totals gives %+v", totals)
	}
	lists(t, c)
}

// reservations drives what is done with reservations; it uses 4 credits.
func reservations(t *testing.T, s *shop, c *client.Client) {
	t.Helper()
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	reserve := func(id string) {
		t.Helper()
		quantity := client.Int(10)
		r, err := c.Reserve(ctx, api.ReservationRequest{ID: id, Account: "user@example.com", Meter: "extra", Quantity: &quantity, TTLSeconds: 60})
		must("Reserve", err)
		if r.State != "open" || r.Credits != "20" {
			t.Errorf("Reserve gives %+v", r)
		}
	}
	reserve("hold-0001")
	extended, err := c.Extend(ctx, "user@example.com", "hold-0001", 90*time.Second+1)
	must("Extend", err)
	if left := extended.ExpiresAt.Sub(s.Clock.Now()); left < 85*time.Second {
		t.Errorf("the reservation has %v left after its extension", left)
	}
	captured, err := c.Capture(ctx, "user@example.com", "hold-0001", api.CaptureRequest{Quantity: new(client.Int(2))})
	must("Capture", err)
	if captured.Credits != "4" {
		t.Errorf("Capture gives %+v", captured)
	}
	reserve("hold-0002")
	doubted, err := c.Doubt(ctx, "user@example.com", "hold-0002", "it timed out")
	must("Doubt", err)
	released, err := c.Release(ctx, "", "hold-0002")
	must("Release", err)
	if doubted.State != "in_doubt" || released.State != "released" {
		t.Errorf("Doubt gives %s, Release %s", doubted.State, released.State)
	}
	one, err := c.GetReservation(ctx, "user@example.com", "hold-0001")
	must("GetReservation", err)
	if one.State != "captured" || *one.Usage != captured.ID {
		t.Errorf("GetReservation gives %+v", one)
	}
}

// lists drives the lists.
func lists(t *testing.T, c *client.Client) {
	t.Helper()
	ctx := t.Context()
	var states []string
	for r, err := range c.Reservations(ctx, "user@example.com", "") {
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, r.ID+" "+r.State)
	}
	if got := strings.Join(states, ", "); got != "hold-0001 captured, hold-0002 released" {
		t.Errorf("Reservations gives %s", got)
	}
	n := 0
	for range 2 { // a list can be read twice
		for _, err := range c.Transfers(ctx, "user@example.com", time.Time{}, time.Time{}) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	if n < 10 {
		t.Errorf("Transfers gives %d in two readings", n)
	}
	var accounts, meters []string
	for a, err := range c.Accounts(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		accounts = append(accounts, a.Account)
	}
	for m, err := range c.Meters(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		meters = append(meters, m.Meter)
	}
	if len(accounts) != 2 || len(meters) != 4 {
		t.Errorf("Accounts gives %v, Meters %v", accounts, meters)
	}
	for _, err := range c.Transfers(ctx, "nobody", time.Time{}, time.Time{}) {
		if !errors.Is(err, client.ErrAccountNotFound) {
			t.Errorf("the statement of nobody gives %v", err)
		}
	}
}

// TestAListIsReadPageByPage makes more than one page.
func TestAListIsReadPageByPage(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	usages := make([]api.UsageRequest, 1203) // two batches, three pages
	for i := range usages {
		usages[i] = api.UsageRequest{Account: "acme", Meter: "in", Quantity: "0.1"}
	}
	results, err := c.RecordBatch(t.Context(), usages)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if r.Result != "recorded" || r.Usage.ID != usages[i].ID {
			t.Fatalf("item %d: %+v", i, r)
		}
	}
	n := 0
	for transfer, err := range c.Transfers(t.Context(), "acme", time.Time{}, time.Time{}) {
		if err != nil {
			t.Fatal(err)
		}
		if transfer.Kind == "usage" {
			n++
		}
	}
	if n != len(usages) {
		t.Errorf("the statement has %d usages, want %d", n, len(usages))
	}
	results, err = c.RecordBatch(t.Context(), usages[:3])
	if err != nil || results[2].Result != "replayed" {
		t.Errorf("the same batch again: %+v, %v", results, err)
	}
}

func TestRefusalsAreTyped(t *testing.T) {
	t.Parallel()
	s := open(t)
	c, ctx := s.client(), t.Context()
	use := func(id, account, meter string, quantity api.Decimal) error {
		_, err := c.Record(ctx, api.UsageRequest{ID: id, Account: account, Meter: meter, Quantity: quantity})
		return err
	}
	if err := use("usage-0001", "acme", "out", "1"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		err  error
		want error
	}{
		{use("usage-0002", "acme", "out", "1000"), client.ErrInsufficientCredits},
		{use("usage-0001", "acme", "out", "2"), client.ErrIdempotencyConflict},
		{use("usage-0003", "nobody", "out", "2"), client.ErrAccountNotFound},
		{use("usage-0003", "acme", "nothing", "2"), client.ErrMeterNotFound},
		{use("x", "acme", "out", "1e3"), client.ErrInvalid},
	} {
		if !errors.Is(tc.err, tc.want) || errors.Is(tc.err, client.ErrUnavailable) {
			t.Errorf("got %v, want %v", tc.err, tc.want)
		}
	}
	if e := refusal(t, use("usage-0002", "acme", "out", "1000")); e.Available != "99" || e.Held != "0" || e.HeldByReservations || e.RequestID == "" || e.Status != 402 {
		t.Errorf("the refusal is %+v", e)
	}
	if e := refusal(t, use("x", "acme", "out", "1e3")); len(e.Errors) != 2 || !strings.Contains(e.Error(), "/quantity") {
		t.Errorf("the refusal is %+v", e)
	}
	results, err := c.RecordBatch(ctx, []api.UsageRequest{
		{Account: "acme", Meter: "out", Quantity: "1"}, {Account: "acme", Meter: "out", Quantity: "1000"},
	})
	if err != nil || client.ResultError(results[0]) != nil || !errors.Is(client.ResultError(results[1]), client.ErrInsufficientCredits) {
		t.Errorf("the batch gives %+v, %v", results, err)
	}
	wrong, err := client.New(s.Info.URL, "tsk_wrong")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = wrong.Close() }()
	if _, err := wrong.Balance(ctx, "acme"); !errors.Is(err, client.ErrUnauthorized) {
		t.Errorf("a wrong key gives %v", err)
	}
}

// TestC01RetriesAreOneUsage cuts the connection before and after the server has done
// its work, and has it ask for patience: each usage is charged once.
func TestC01RetriesAreOneUsage(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	faults := []fault{{}, {executed: true}, {half: true}, {status: 503}, {status: 500}, {status: 502, html: true}, {status: 408}, {status: 429}}
	for i, f := range faults {
		s.gate.next(f)
		r, err := c.Record(t.Context(), api.UsageRequest{Account: "acme", Meter: "out", Quantity: "1"})
		if err != nil {
			t.Errorf("%+v: %v", f, err)
		}
		if s.gate.left() != 0 {
			t.Fatalf("%+v: met no request", f)
		}
		if want := f.executed || f.half; r.Replayed != want {
			t.Errorf("%+v: replayed is %v", f, r.Replayed)
		}
		s.holds(fmt.Sprint(99-i), "0")
	}
}

// TestRetryAfterIsObeyed measures the wait between two tries.
func TestRetryAfterIsObeyed(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	for _, tc := range []struct {
		f    fault
		want time.Duration
	}{
		{fault{status: 429, retryAfter: "1"}, time.Second},
		{fault{status: 503, retryAfter: s.Clock.Now().Add(3 * time.Second).Format(http.TimeFormat)}, time.Second},
	} {
		s.gate.next(tc.f)
		start := time.Now()
		if _, err := c.Record(t.Context(), api.UsageRequest{Account: "acme", Meter: "out", Quantity: "1"}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < tc.want || took > 10*tc.want {
			t.Errorf("%+v: took %v", tc.f, took)
		}
	}
}

// TestTheEndOfPatienceIsUnavailable wants no try after what the caller, the client, or
// the server's Retry-After allow.
func TestTheEndOfPatienceIsUnavailable(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.gate.close(true)
	usage := api.UsageRequest{Account: "acme", Meter: "out", Quantity: "1"}
	_, err := s.client(client.WithPatience(300*time.Millisecond)).Record(t.Context(), usage)
	if !errors.Is(err, client.ErrUnavailable) || s.gate.seen.Load() < 2 {
		t.Errorf("after %d tries: %v", s.gate.seen.Load(), err)
	}
	_, err = s.client().Record(within(t, 200*time.Millisecond), usage)
	if !errors.Is(err, client.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at the caller's deadline: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	before := s.gate.seen.Load()
	if _, err := s.client().Record(ended, usage); !errors.Is(err, context.Canceled) || s.gate.seen.Load() != before {
		t.Errorf("with an ended context: %v", err)
	}
	s.gate.close(false)
	s.gate.next(fault{status: 503, retryAfter: "3600"})
	start := time.Now()
	_, err = s.client().Record(t.Context(), usage)
	if !errors.Is(err, client.ErrUnavailable) || refusal(t, err).Status != 503 || time.Since(start) > 5*time.Second {
		t.Errorf("with a Retry-After of an hour, after %v: %v", time.Since(start), err)
	}
	s.holds("100", "0")
}

// TestARefusalIsNotRepeated counts the requests.
func TestARefusalIsNotRepeated(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	for _, f := range []fault{{status: 404, html: true}, {status: 302, html: true}} {
		s.gate.next(f)
		_, err := c.Record(t.Context(), api.UsageRequest{Account: "acme", Meter: "out", Quantity: "1"})
		if e := refusal(t, err); e.Code != "" || errors.Is(err, client.ErrNotFound) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if _, err := c.Record(t.Context(), api.UsageRequest{Account: "acme", Meter: "out", Quantity: "1000"}); err == nil {
		t.Error("a thousand credits are there")
	}
	if n := s.gate.seen.Load(); n != 3 {
		t.Errorf("three refusals took %d requests", n)
	}
}

// TestABatchRepeatsWhatIsUndecided has the whole batch fail, and then items of it.
func TestABatchRepeatsWhatIsUndecided(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	s.gate.next(fault{executed: true}, fault{status: 503})
	usages := []api.UsageRequest{{Account: "acme", Meter: "out", Quantity: "1"}, {Account: "acme", Meter: "out", Quantity: "2"}}
	results, err := c.RecordBatch(t.Context(), usages)
	if err != nil || results[0].Result != "replayed" || results[1].Result != "replayed" {
		t.Errorf("the batch gives %+v, %v", results, err)
	}
	s.holds("97", "0")
	s.gate.close(true)
	short := s.client(client.WithPatience(200 * time.Millisecond))
	results, err = short.RecordBatch(t.Context(), usages)
	if !errors.Is(err, client.ErrUnavailable) || results[0].Result != "" {
		t.Errorf("without a server: %+v, %v", results, err)
	}
}

// A change with an ETag that may have been done is not repeated: it would be refused
// for what it has changed itself.
func TestC14AConditionalChangeIsNotRepeatedInTheDark(t *testing.T) {
	t.Parallel()
	s := open(t)
	g := newGate(t, s.Info.URL)
	c, err := client.New(g.url, s.Info.APIKey)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	before, err := c.PutAccount(t.Context(), "careful", api.AccountRequest{Name: "before"})
	if err != nil {
		t.Fatal(err)
	}
	g.next(fault{executed: true})
	if _, err := c.PutAccountIf(t.Context(), "careful", before.ETag, api.AccountRequest{Name: "after"}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("a lost answer gives %v", err)
	}
	stands, err := c.Account(t.Context(), "careful")
	if err != nil || stands.Name != "after" || g.seen.Load() != 3 {
		t.Errorf("the account is %+v, %v, after %d requests", stands, err, g.seen.Load())
	}
	g.next(fault{status: http.StatusTooManyRequests, retryAfter: "0"}) // refused before anything was done
	if a, err := c.PutAccountIf(t.Context(), "careful", stands.ETag, api.AccountRequest{Name: "then"}); err != nil || a.Name != "then" {
		t.Errorf("after a 429 it is %+v, %v", a, err)
	}
}

package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tallystick/api"
	"tallystick/client"
)

// forty is a reservation of acme's for 40 credits.
func forty(id string) client.Reservation {
	return client.Reservation{ID: id, Account: "acme", Meter: "out", Quantity: client.Int(40), Dimensions: map[string]string{"model": "s"}}
}

func says(quantity int, err error) func(context.Context) (client.Actual, error) {
	return func(context.Context) (client.Actual, error) {
		return client.Actual{Quantity: client.Int(quantity)}, err
	}
}

func saysNothing(err error) func(context.Context) (client.Actual, error) {
	return func(context.Context) (client.Actual, error) { return client.Actual{}, err }
}

// TestDoEndsEachCallAsItEnded plays every way in which work can end.
func TestDoEndsEachCallAsItEnded(t *testing.T) {
	t.Parallel()
	shared := open(t)
	refused := errors.New("the model refused")
	dial := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	for name, tc := range map[string]struct {
		work      func(context.Context) (client.Actual, error)
		state     client.State
		available string
		held      string
		err       error
		reason    string
	}{
		"used":                        {says(15, nil), client.StateCaptured, "85", "0", nil, ""},
		"used all":                    {says(40, nil), client.StateCaptured, "60", "0", nil, ""},
		"used more":                   {says(41, nil), client.StateCaptured, "59", "0", nil, ""},
		"used nothing":                {says(0, nil), client.StateReleased, "100", "0", nil, ""},
		"says nothing":                {saysNothing(nil), client.StateInDoubt, "60", "40", client.ErrNoActual, "did not say"},
		"refused":                     {saysNothing(refused), client.StateReleased, "100", "0", refused, ""},
		"refused, and used nothing":   {says(0, refused), client.StateReleased, "100", "0", refused, ""},
		"refused, and used something": {says(7, refused), client.StateCaptured, "93", "0", refused, ""},
		"deadline":                    {saysNothing(context.DeadlineExceeded), client.StateInDoubt, "60", "40", context.DeadlineExceeded, "deadline"},
		"deadline in the middle":      {says(7, fmt.Errorf("x: %w", context.DeadlineExceeded)), client.StateInDoubt, "60", "40", context.DeadlineExceeded, "7 counted until then"},
		"cancelled":                   {saysNothing(context.Canceled), client.StateInDoubt, "60", "40", context.Canceled, "canceled"},
		"cut":                         {saysNothing(io.ErrUnexpectedEOF), client.StateInDoubt, "60", "40", io.ErrUnexpectedEOF, "EOF"},
		"connection broke":            {saysNothing(&net.OpError{Op: "read", Err: errors.New("reset")}), client.StateInDoubt, "60", "40", nil, "reset"},
		"timeout":                     {saysNothing(timeout{}), client.StateInDoubt, "60", "40", timeout{}, "too slow"},
		"never connected":             {saysNothing(dial), client.StateReleased, "100", "0", dial, ""},
		"marked not used":             {saysNothing(client.NotUsed(context.DeadlineExceeded)), client.StateReleased, "100", "0", context.DeadlineExceeded, ""},
		"marked unknown":              {saysNothing(client.Unknown(refused)), client.StateInDoubt, "60", "40", refused, "refused"},
		"an error without text":       {saysNothing(client.Unknown(errors.New(""))), client.StateInDoubt, "60", "40", nil, "no reason"},
		"an error of a book's length": {saysNothing(client.Unknown(errors.New(strings.Repeat("ä\x00\xff", 1000)))), client.StateInDoubt, "60", "40", nil, "ä??ä"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := shared.other(t)
			r := forty("call-0001")
			r.Account = s.account
			out, err := s.client().Do(t.Context(), r, tc.work)
			if out.State != tc.state || out.ID != "call-0001" {
				t.Errorf("ended as %+v, want %s", out, tc.state)
			}
			if tc.err != nil && !errors.Is(err, tc.err) {
				t.Errorf("the error is %v, want %v", err, tc.err)
			}
			if (err == nil) != (tc.state != client.StateInDoubt && tc.err == nil) {
				t.Errorf("the error is %v", err)
			}
			s.holds(tc.available, tc.held)
			if r := s.state("call-0001", string(tc.state)); !strings.Contains(r.Reason, tc.reason) {
				t.Errorf("the reason is %q, want %q in it", r.Reason, tc.reason)
			}
		})
	}
}

type timeout struct{}

func (timeout) Error() string { return "too slow" }
func (timeout) Timeout() bool { return true }

func TestDoDoesNotCallWithoutCredits(t *testing.T) {
	t.Parallel()
	s := open(t)
	called := false
	work := func(context.Context) (client.Actual, error) { called = true; return client.Actual{Quantity: "1"}, nil }
	r := forty("")
	r.Quantity = "101"
	if _, err := s.client().Do(t.Context(), r, work); !errors.Is(err, client.ErrInsufficientCredits) || called {
		t.Errorf("called is %v: %v", called, err)
	}
	s.gate.close(true)
	if _, err := s.client(client.WithPatience(300*time.Millisecond)).Do(t.Context(), forty(""), work); !errors.Is(err, client.ErrUnavailable) || called {
		t.Errorf("without tallystick: called is %v: %v", called, err)
	}
	s.holds("100", "0")
}

func TestAPanicLeavesDoubt(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	func() {
		defer func() {
			if p := recover(); p != "oops" {
				t.Errorf("recovered %v", p)
			}
		}()
		_, _ = c.Do(t.Context(), forty("call-0001"), func(context.Context) (client.Actual, error) { panic("oops") })
	}()
	s.state("call-0001", "in_doubt")
	var done sync.WaitGroup
	done.Go(func() {
		_, _ = c.Do(t.Context(), forty("call-0002"), func(context.Context) (client.Actual, error) {
			runtime.Goexit()
			return client.Actual{}, nil
		})
	})
	done.Wait()
	s.state("call-0002", "in_doubt")
	s.holds("20", "80")
}

// TestDoSettlesAfterTheCallerIsGone ends the caller's context while the model works.
func TestDoSettlesAfterTheCallerIsGone(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	ctx, cancel := context.WithCancel(t.Context())
	out, err := c.Do(ctx, forty("call-0001"), func(context.Context) (client.Actual, error) {
		cancel()
		return client.Actual{Quantity: "15"}, nil
	})
	if err != nil || out.State != client.StateCaptured {
		t.Errorf("used: %+v, %v", out, err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	_, err = c.Do(ctx, forty("call-0002"), func(ctx context.Context) (client.Actual, error) {
		cancel()
		return client.Actual{}, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	s.state("call-0002", "in_doubt")
	s.holds("45", "40")
}

// TestDoExtendsWhileTheModelWorks works twice as long as the reservation lasts, with
// some extensions lost.
func TestDoExtendsWhileTheModelWorks(t *testing.T) {
	t.Parallel()
	s := open(t)
	r := forty("call-0001")
	r.TTL = 5 * time.Second
	s.gate.next(fault{path: "/extend"}, fault{path: "/extend", executed: true}, fault{path: "/extend", status: 503})
	_, err := s.client().Do(t.Context(), r, func(ctx context.Context) (client.Actual, error) {
		for range 11 {
			time.Sleep(time.Second)
			s.state("call-0001", "open")
		}
		return client.Actual{Quantity: "15"}, nil
	})
	if err != nil {
		t.Error(err)
	}
	if s.gate.left() != 0 {
		t.Error("there were not three extensions")
	}
	s.state("call-0001", "captured")
	s.holds("85", "0")
}

// TestC07DoCapturesOnce cuts every kind of request of a call, before and after it was
// executed.
func TestC07DoCapturesOnce(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	n := 0
	for _, path := range []string{"/v1/reservations", "/capture"} {
		for _, f := range []fault{{}, {executed: true}, {half: true}, {status: 503}, {status: 429, retryAfter: "1"}} {
			f.path = path
			s.gate.next(f, f)
			out, err := c.Do(t.Context(), forty(""), says(2, nil))
			if err != nil || out.State != client.StateCaptured || s.gate.left() != 0 {
				t.Fatalf("%+v: %+v, %v, %d left", f, out, err, s.gate.left())
			}
			n += 2
			s.holds(fmt.Sprint(100-n), "0")
		}
	}
	for id, times := range s.charges() {
		if times != 1 {
			t.Errorf("%s was charged %d times", id, times)
		}
	}
}

// TestC01TheSameCallIsDoneOnce has one id tried by several, and after its end.
func TestC01TheSameCallIsDoneOnce(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	if _, err := c.Do(t.Context(), forty("call-0001"), says(5, nil)); err != nil {
		t.Fatal(err)
	}
	called := false
	_, err := c.Do(t.Context(), forty("call-0001"), func(context.Context) (client.Actual, error) { called = true; return client.Actual{Quantity: "9"}, nil })
	if !errors.Is(err, client.ErrReservationClosed) || refusal(t, err).State != "captured" || called {
		t.Errorf("the id of a call that is done: called %v, %v", called, err)
	}
	other := forty("call-0001")
	other.Quantity = "41"
	if _, err := c.Do(t.Context(), other, says(1, nil)); !errors.Is(err, client.ErrIdempotencyConflict) {
		t.Errorf("the id with other content: %v", err)
	}
	var done sync.WaitGroup
	var mu sync.Mutex
	states := map[client.State]int{}
	start := make(chan struct{})
	for i := range 8 {
		done.Go(func() {
			<-start
			out, _ := c.Do(t.Context(), forty("call-0002"), says(i+1, nil))
			mu.Lock()
			states[out.State]++
			mu.Unlock()
		})
	}
	close(start)
	done.Wait()
	if states[client.StateCaptured] != 1 {
		t.Errorf("eight that race with one id end as %v", states)
	}
	if n := s.charges()["call-0002"]; n != 1 {
		t.Errorf("call-0002 was charged %d times", n)
	}
}

// TestAnEndingThatDoesNotGetThroughIsSaid closes the gate while the model works.
func TestAnEndingThatDoesNotGetThroughIsSaid(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client(client.WithPatience(2 * time.Second))
	broken := errors.New("the model broke")
	for _, tc := range []struct {
		ending string
		work   func(context.Context) (client.Actual, error)
	}{
		{"capture", says(3, nil)},
		{"release", saysNothing(broken)},
		{"doubt", saysNothing(client.Unknown(broken))},
	} {
		s.gate.close(false)
		out, err := c.Do(t.Context(), client.Reservation{Account: "acme", Meter: "out", Credits: "10"}, func(ctx context.Context) (client.Actual, error) {
			s.gate.close(true)
			return tc.work(ctx)
		})
		s.gate.close(false)
		var unsettled *client.UnsettledError
		if !errors.As(err, &unsettled) || unsettled.Ending != tc.ending || !errors.Is(err, client.ErrUnavailable) || out.State != client.StateUnknown {
			t.Fatalf("%s: %+v, %v", tc.ending, out, err)
		}
		if tc.ending != "capture" && !errors.Is(err, broken) {
			t.Errorf("%s: the model's own error is lost: %v", tc.ending, err)
		}
		s.state(out.ID, "open")
		if tc.ending == "capture" { // what the error carries is enough to do it later
			s.Want(201, http.MethodPost, "/v1/reservations/"+out.ID+"/capture?account=acme", string(unsettled.Body), nil)
			s.holds("97", "0")
		}
	}
}

// TestUsageOfOtherMetersIsRecordedToo captures on one meter and records on two.
func TestUsageOfOtherMetersIsRecordedToo(t *testing.T) {
	t.Parallel()
	s := open(t)
	c := s.client()
	work := func(context.Context) (client.Actual, error) {
		return client.Actual{Quantity: "10", Also: []api.UsageRequest{{Meter: "in", Quantity: "20"}, {Meter: "cached", Quantity: "5", ID: "my-own-id"}}}, nil
	}
	out, err := c.Do(t.Context(), forty("call-0001"), work)
	if err != nil || len(out.Also) != 2 || out.Usage.Credits != "10" {
		t.Fatalf("%+v, %v", out, err)
	}
	if u := out.Also[0].Usage; u.ID != "call-0001:in" || u.Credits != "10" || u.Dimensions["model"] != "s" || out.Also[1].Usage.ID != "my-own-id" {
		t.Errorf("the other usage is %+v and %+v", u, out.Also[1].Usage)
	}
	s.holds("79.5", "0")
	// Usage that the account cannot pay has happened all the same: the error has it.
	out, err = c.Do(t.Context(), forty("call-0002"), func(context.Context) (client.Actual, error) {
		return client.Actual{Quantity: "1", Also: []api.UsageRequest{{Meter: "out", Quantity: "500"}}}, nil
	})
	var unsettled *client.UnsettledError
	if !errors.As(err, &unsettled) || unsettled.Ending != "usage" || !errors.Is(err, client.ErrInsufficientCredits) || out.State != client.StateCaptured {
		t.Fatalf("%+v, %v", out, err)
	}
	var said api.UsageRequest
	if err := json.Unmarshal(unsettled.Body, &said); err != nil || said.Quantity != "500" || said.ID != "call-0002:out" {
		t.Errorf("the error carries %s", unsettled.Body)
	}
}

func TestStreamIsChargedAsItEnded(t *testing.T) {
	t.Parallel()
	shared := open(t)
	broken := errors.New("the model broke")
	for name, tc := range map[string]struct {
		play      func(s *client.Stream) (client.Outcome, error)
		state     string
		available string
	}{
		"counted": {func(s *client.Stream) (client.Outcome, error) { s.Count(3); s.Count(4); return s.End(nil) }, "captured", "93"},
		"said": {func(s *client.Stream) (client.Outcome, error) {
			s.Count(3)
			s.Used(client.Actual{Quantity: "5"})
			return s.End(nil)
		}, "captured", "95"},
		"cut after it was said": {func(s *client.Stream) (client.Outcome, error) {
			s.Used(client.Actual{Quantity: "5"})
			return s.End(io.ErrUnexpectedEOF)
		}, "captured", "95"},
		"cut":                    {func(s *client.Stream) (client.Outcome, error) { s.Count(3); return s.End(io.ErrUnexpectedEOF) }, "in_doubt", "60"},
		"broke after something":  {func(s *client.Stream) (client.Outcome, error) { s.Count(3); return s.End(broken) }, "in_doubt", "60"},
		"broke before anything":  {func(s *client.Stream) (client.Outcome, error) { return s.End(broken) }, "released", "100"},
		"nothing came":           {func(s *client.Stream) (client.Outcome, error) { return s.End(nil) }, "released", "100"},
		"closed":                 {func(s *client.Stream) (client.Outcome, error) { s.Count(3); return client.Outcome{}, s.Close() }, "in_doubt", "60"},
		"closed before anything": {func(s *client.Stream) (client.Outcome, error) { return client.Outcome{}, s.Close() }, "in_doubt", "60"},
		"closed after it was said": {func(s *client.Stream) (client.Outcome, error) {
			s.Used(client.Actual{Quantity: "5"})
			return client.Outcome{}, s.Close()
		}, "captured", "95"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := shared.other(t)
			r := forty("call-0001")
			r.Account = s.account
			stream, err := s.client().Stream(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			first, err := tc.play(stream)
			if err != nil {
				t.Errorf("the settlement fails: %v", err)
			}
			s.state("call-0001", tc.state)
			again, err := stream.End(errors.New("again"))
			if err != nil || (first.ID != "" && again.State != first.State) || stream.Close() != nil {
				t.Errorf("ended again: %+v after %+v, %v", again, first, err)
			}
			s.state("call-0001", tc.state)
			held := "0"
			if tc.state == "in_doubt" {
				held = "40"
			}
			s.holds(tc.available, held)
		})
	}
}

// TestNothingLeaks counts goroutines around every way of a call, against a server of
// its own, since the program has its own.
func TestNothingLeaks(t *testing.T) { //nolint:paralleltest // it counts the goroutines of the process
	before := goleak.IgnoreCurrent()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/release") {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, `{}`)
	}))
	spool, err := client.OpenSpool(t.TempDir(), client.SpoolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(server.URL, "tsk_x", client.FailOpen(spool), client.WithPatience(300*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Do(t.Context(), forty(""), says(1, nil))
	_, _ = c.Do(t.Context(), forty(""), saysNothing(errors.New("x")))
	stream, err := c.Stream(t.Context(), forty(""))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.Close(), c.Close(), spool.Close()); err != nil {
		t.Error(err)
	}
	server.Close()
	goleak.VerifyNone(t, before)
}

package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"tallystick/api"
	"tallystick/client"
)

// TestExamples plays the examples as one reads them, with what they print, against the
// running program: an Example function has nobody who would start it.
func TestExamples(t *testing.T) { //nolint:paralleltest // it takes what is printed
	s := open(t)
	for _, e := range []struct {
		name string
		play func(url, key string) error
		want string
	}{
		{"Do", exampleDo, "captured: 15 of 40 used, 85 left\nnot called: not enough credits\n"},
		{"Stream", exampleStream, "hello world\ncaptured: 2\n"},
		{"Transport", exampleTransport, "hello\ncaptured: 8 out, 20 in\n"},
		{"FailOpen", exampleFailOpen, "spooled\nsent\n"},
	} {
		printed, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		stdout := os.Stdout
		os.Stdout = printed
		err = e.play(s.Info.URL, s.Info.APIKey)
		os.Stdout = stdout
		got, readErr := os.ReadFile(printed.Name())
		if err := errors.Join(err, readErr, printed.Close()); err != nil || string(got) != e.want {
			t.Errorf("%s prints %q, want %q, %v", e.name, got, e.want, err)
		}
	}
}

func exampleDo(url, key string) error {
	ctx := context.Background()
	c, err := client.New(url, key)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	callModel := func(context.Context) (outputTokens int, err error) { return 15, nil }

	hold := client.Reservation{Account: "acme", Meter: "out", Quantity: client.Int(40)}
	outcome, err := c.Do(ctx, hold, func(ctx context.Context) (client.Actual, error) {
		tokens, err := callModel(ctx)
		return client.Actual{Quantity: client.Int(tokens)}, err
	})
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s of 40 used, %s left\n", outcome.State, outcome.Usage.Quantity, outcome.Usage.Balance.Available)

	hold.Quantity = client.Int(1_000_000)
	_, err = c.Do(ctx, hold, func(context.Context) (client.Actual, error) { panic("the model is called without credits") })
	if !errors.Is(err, client.ErrInsufficientCredits) {
		return err
	}
	fmt.Println("not called: not enough credits")
	return nil
}

func exampleStream(url, key string) error {
	c, err := client.New(url, key)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()

	s, err := c.Stream(context.Background(), client.Reservation{Account: "acme", Meter: "out", Quantity: client.Int(40)})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // in doubt, if the loop is left early
	for _, token := range []string{"hello", " world"} {
		fmt.Print(token)
		s.Count(1)
	}
	outcome, err := s.End(nil)
	if err != nil {
		return err
	}
	fmt.Printf("\n%s: %s\n", outcome.State, outcome.Usage.Quantity)
	return nil
}

func exampleTransport(url, key string) error {
	vendor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"type": "message", "model": "small-1", "content": "hello", "usage": {"input_tokens": 20, "output_tokens": 8}}`)
	}))
	defer vendor.Close()
	c, err := client.New(url, key)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()

	sdk := &http.Client{Transport: &client.Transport{ // what a vendor's SDK takes
		Client: c,
		Meters: client.Meters{Input: "in", Output: "out"},
		Estimate: func(*http.Request) client.Reservation {
			return client.Reservation{Meter: "out", Quantity: client.Int(40)}
		},
		OnSettled: func(_ *http.Request, used client.Tokens, outcome client.Outcome, err error) {
			defer fmt.Printf("%s: %d out, %d in\n", outcome.State, used.Output, used.Input)
			if err != nil {
				fmt.Println(err)
			}
		},
	}}
	ctx := client.WithAccount(context.Background(), "acme")
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, vendor.URL+"/v1/messages", strings.NewReader(`{"model": "small-1"}`))
	if err != nil {
		return err
	}
	answer, err := sdk.Do(r)
	if err != nil {
		return err
	}
	fmt.Println("hello")
	_, err = io.Copy(io.Discard, answer.Body)
	return errors.Join(err, answer.Body.Close())
}

func exampleFailOpen(url, key string) error {
	dir, err := os.MkdirTemp("", "spool")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	spool, err := client.OpenSpool(dir, client.SpoolOptions{OnDead: func(d client.DeadLetter) { fmt.Println("refused:", d.ID, d.Code) }})
	if err != nil {
		return err
	}
	defer func() { _ = spool.Close() }()
	away, err := client.New("http://127.0.0.1:1", key, client.FailOpen(spool), client.WithPatience(200*time.Millisecond)) // nobody listens there
	if err != nil {
		return err
	}
	usage, err := away.Record(context.Background(), api.UsageRequest{Account: "acme", Meter: "out", Quantity: "1"})
	if err := errors.Join(err, away.Close()); err != nil || !usage.Spooled {
		return err
	}
	fmt.Println("spooled")

	back, err := client.New(url, key, client.FailOpen(spool)) // perhaps another process
	if err != nil {
		return err
	}
	defer func() { _ = back.Close() }()
	if err := back.Drain(context.Background()); err != nil {
		return err
	}
	fmt.Println("sent")
	return nil
}

package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tallystick/client"
)

// settled is what OnSettled was told.
type settled struct {
	tokens client.Tokens
	out    client.Outcome
	err    error
}

// meteredModel is a model behind a Transport, and the settlements.
type meteredModel struct {
	*model
	s         *shop
	t         *testing.T
	transport *client.Transport
	ends      chan settled
}

func metered(t *testing.T, s *shop, options ...client.Option) *meteredModel {
	t.Helper()
	m := &meteredModel{model: newModel(t), s: s, t: t, ends: make(chan settled, 100)}
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	m.transport = &client.Transport{
		Base: base, Client: m.s.client(options...), Meters: client.Meters{Input: "in", CachedInput: "cached", Output: "out"},
		OnSettled: func(_ *http.Request, tokens client.Tokens, out client.Outcome, err error) {
			m.ends <- settled{tokens, out, err}
		},
	}
	return m
}

// reserving has 40 of out held before each call.
func (m *meteredModel) reserving() *meteredModel {
	m.transport.Estimate = func(*http.Request) client.Reservation { return client.Reservation{Meter: "out", Quantity: "40"} }
	return m
}

// call makes a call for the account and reads the answer to its end.
func (m *meteredModel) call(ctx context.Context, path string, header ...string) (answered, error) {
	m.t.Helper()
	r, err := http.NewRequestWithContext(client.WithAccount(ctx, m.s.account), http.MethodPost, m.URL+path, strings.NewReader(`{"model": "small-1"}`))
	if err != nil {
		m.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := m.transport.RoundTrip(r)
	if err != nil {
		return answered{}, err
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	return answered{response.StatusCode, response.Header, body}, err
}

// answered is an answer as its reader gets it.
type answered struct {
	status int
	header http.Header
	body   []byte
}

// end gives the one settlement of a call.
func (m *meteredModel) end() settled {
	m.t.Helper()
	select {
	case e := <-m.ends:
		if len(m.ends) > 0 {
			m.t.Errorf("it is settled again: %+v", <-m.ends)
		}
		return e
	case <-time.After(10 * time.Second):
		m.t.Fatal("the call is not settled")
		return settled{}
	}
}

// twenty is what most fixtures have used: 20 in at a half, 10 cached at a tenth and 8
// out at one make 19 credits.
var twenty = client.Tokens{Model: "small-1", Input: 20, CachedInput: 10, Output: 8}

// TestTransportReadsEveryFormat sends each format whole, in pieces of every size, and
// encoded, with a reservation and without.
func TestTransportReadsEveryFormat(t *testing.T) {
	t.Parallel()
	shared := open(t)
	withWrite, noCache, embedded := twenty, twenty, client.Tokens{Model: "small-1", Input: 20}
	withWrite.Input, withWrite.CacheWrite = 12, 8 // counted as input
	noCache.CachedInput = 0
	for name, tc := range map[string]struct {
		path      string
		body      string
		want      client.Tokens
		available string
	}{
		"chat":             {"/v1/chat/completions", chatWhole, twenty, "81"},
		"responses":        {"/v1/responses", responsesWhole, twenty, "81"},
		"messages":         {"/v1/messages", messagesWhole, withWrite, "81"},
		"embeddings":       {"/v1/embeddings", embeddingsWhole, embedded, "90"},
		"chat stream":      {"/v1/chat/completions", chatStream, twenty, "81"},
		"running totals":   {"/v1/chat/completions", chatRunning + "data: [DONE]\n\n", noCache, "82"},
		"responses stream": {"/v1/responses", responsesStream, twenty, "81"},
		"messages stream":  {"/v1/messages", messagesStream, twenty, "81"},
		"lines of windows": {"/v1/messages", strings.ReplaceAll(messagesStream, "\n", "\r\n"), twenty, "81"},
		"lines of old":     {"/v1/messages", strings.ReplaceAll(messagesStream, "\n", "\r"), twenty, "81"},
		"data in lines":    {"/v1/messages", strings.ReplaceAll(strings.Replace(messagesStream, `"delta":{"stop_reason"`, "\ndata: \"delta\":{\"stop_reason\"", 1), "\n", "\r\n"), twenty, "81"},
		"no blank line":    {"/v1/responses", strings.TrimSuffix(responsesStream, "\n\n"), twenty, "81"},
		"a huge event":     {"/v1/messages", strings.Replace(messagesStream, "event: ping", "data: "+strings.Repeat("x", 3<<20)+"\n\nevent: ping", 1), twenty, "81"},
	} {
		for how, a := range map[string]reply{"at once": {}, "in bytes": {piece: 1}, "in sevens": {piece: 7}, "gzipped": {gzipped: true}, "gzipped in pieces": {gzipped: true, piece: 5}} {
			if len(tc.body) > 1<<20 && a.piece > 0 {
				a.piece *= 4096 // the cut positions still differ
			}
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				m := metered(t, shared.other(t))
				if a.body = tc.body; len(a.body)%2 == 0 {
					m.reserving()
				}
				m.next(a)
				header := []string{"Accept-Encoding", "gzip"} // asked for by the caller, so that it is not decoded
				got, err := m.call(t.Context(), tc.path, header...)
				if err != nil {
					t.Fatal(err)
				}
				want := []byte(tc.body)
				if a.gzipped {
					want = zipped(want)
				}
				if !bytes.Equal(got.body, want) || (got.header.Get("Content-Encoding") == "gzip") != a.gzipped {
					t.Errorf("%d bytes arrive of %d, or others", len(got.body), len(want))
				}
				if e := m.end(); e.err != nil || e.tokens != tc.want || (e.out.State != client.StateCaptured && tc.want.Output > 0) {
					t.Errorf("settled as %+v", e)
				}
				m.s.holds(tc.available, "0")
			})
		}
	}
}

// TestTransportSettlesWhatIsNotAWholeAnswer plays refusals, cuts and silences, with 40
// credits held.
func TestTransportSettlesWhatIsNotAWholeAnswer(t *testing.T) {
	t.Parallel()
	shared := open(t)
	before := func(body, text string) int { return strings.Index(body, text) }
	for name, tc := range map[string]struct {
		a      reply
		state  client.State
		reason string
	}{
		"400":                        {reply{status: 400, body: `{"error": {}}`}, client.StateReleased, ""},
		"429":                        {reply{status: 429, body: `{"error": {}}`}, client.StateReleased, ""},
		"308":                        {reply{status: 308, body: `{}`}, client.StateReleased, ""},
		"503":                        {reply{status: 503, body: `{}`}, client.StateReleased, ""},
		"529":                        {reply{status: 529, body: `{}`}, client.StateReleased, ""},
		"500":                        {reply{status: 500, body: `{}`}, client.StateInDoubt, "500"},
		"504":                        {reply{status: 504, body: `{}`}, client.StateInDoubt, "504"},
		"no usage":                   {reply{body: `{"object": "chat.completion"}`}, client.StateInDoubt, "does not tell"},
		"not json":                   {reply{body: `{"usage": {"prompt_tokens": 1`, media: "application/json"}, client.StateInDoubt, "does not tell"},
		"empty":                      {reply{media: "application/json"}, client.StateInDoubt, "does not tell"},
		"stream without usage":       {reply{body: "data: {\"choices\":[]}\n\ndata: [DONE]\n\n"}, client.StateInDoubt, "does not tell"},
		"whole answer cut":           {reply{body: chatWhole, cutAfter: len(chatWhole) - 3}, client.StateInDoubt, "EOF"},
		"chat cut":                   {reply{body: chatStream, cutAfter: before(chatStream, `data: {"object":"chat.completion.chunk","model":"small-1","choices":[],`)}, client.StateInDoubt, "EOF"},
		"chat cut after its usage":   {reply{body: chatStream, cutAfter: before(chatStream, "data: [DONE]")}, client.StateCaptured, ""},
		"running totals cut":         {reply{body: chatRunning, cutAfter: len(chatRunning) - 1}, client.StateInDoubt, "EOF"},
		"running totals end":         {reply{body: chatRunning}, client.StateInDoubt, "does not tell"},
		"responses cut":              {reply{body: responsesStream, cutAfter: before(responsesStream, "event: response.completed") + 9}, client.StateInDoubt, "EOF"},
		"messages cut":               {reply{body: messagesStream, cutAfter: before(messagesStream, "event: ping")}, client.StateInDoubt, "EOF"},
		"messages cut after the end": {reply{body: messagesStream, cutAfter: before(messagesStream, "event: message_stop")}, client.StateCaptured, ""},
		"messages end too early":     {reply{body: messagesStream[:before(messagesStream, "event: message_delta")]}, client.StateInDoubt, "does not tell"},
		"messages overloaded":        {reply{body: messagesOverloaded}, client.StateInDoubt, "does not tell"},
		"gzip cut":                   {reply{body: messagesStream, gzipped: true, cutAfter: 150}, client.StateInDoubt, "EOF"},
		"gzip that is none":          {reply{body: messagesStream, encoding: "gzip"}, client.StateInDoubt, "does not tell"},
		"another encoding":           {reply{body: messagesStream, encoding: "br"}, client.StateInDoubt, "br cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := metered(t, shared.other(t)).reserving()
			m.next(tc.a)
			got, _ := m.call(t.Context(), "/v1/messages", "Accept-Encoding", "gzip")
			if tc.a.status != 0 && got.status != tc.a.status {
				t.Errorf("the status is %d", got.status)
			}
			if !tc.a.gzipped && tc.a.cutAfter == 0 && string(got.body) != tc.a.body {
				t.Errorf("the body is %s", got.body)
			}
			e := m.end()
			if e.out.State != tc.state {
				t.Errorf("settled as %+v, want %s", e, tc.state)
			}
			if (e.err != nil) != (strings.HasPrefix(tc.reason, "does not") || strings.HasPrefix(tc.reason, "br")) {
				t.Errorf("the error is %v", e.err)
			}
			if r := m.s.state(e.out.ID, string(tc.state)); !strings.Contains(r.Reason, tc.reason) {
				t.Errorf("the reason is %q, want %q in it", r.Reason, tc.reason)
			}
		})
	}
}

// TestTransportSettlesAReaderThatStops closes the body before its end.
func TestTransportSettlesAReaderThatStops(t *testing.T) {
	t.Parallel()
	shared := open(t)
	for name, tc := range map[string]struct {
		body  string
		until string
		state client.State
	}{
		"after the last event":    {messagesStream, "message_stop\"}\n\n", client.StateCaptured},
		"in the middle":           {messagesStream, "hello", client.StateInDoubt},
		"at the end of an object": {chatWhole, "}}}", client.StateCaptured},
		"before anything":         {chatWhole, "", client.StateInDoubt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := metered(t, shared.other(t)).reserving()
			m.next(reply{body: tc.body + strings.Repeat(" ", 100)})
			r, err := http.NewRequestWithContext(client.WithAccount(t.Context(), m.s.account), http.MethodPost, m.URL+"/v1/messages", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			response, err := m.transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			if tc.until != "" {
				n = strings.LastIndex(tc.body, tc.until) + len(tc.until)
			}
			if _, err := io.ReadFull(response.Body, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(response.Body.Close(), response.Body.Close()); err != nil {
				t.Error(err)
			}
			if e := m.end(); e.out.State != tc.state {
				t.Errorf("settled as %+v, want %s", e, tc.state)
			}
		})
	}
}

// TestTransportHoldsNothingBack reads each event before the next one is sent.
func TestTransportHoldsNothingBack(t *testing.T) {
	t.Parallel()
	s := open(t)
	proceed := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for event := range strings.SplitSeq(strings.TrimSuffix(messagesStream, "\n\n"), "\n\n") {
			_, _ = io.WriteString(w, event+"\n\n")
			_ = http.NewResponseController(w).Flush()
			<-proceed
		}
	}))
	defer server.Close()
	ends := make(chan settled, 1)
	tr := &client.Transport{
		Client: s.client(), Meters: client.Meters{Output: "out"},
		OnSettled: func(_ *http.Request, tokens client.Tokens, out client.Outcome, err error) {
			ends <- settled{tokens, out, err}
		},
	}
	r, err := http.NewRequestWithContext(client.WithAccount(t.Context(), "acme"), http.MethodPost, server.URL+"/v1/messages", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	buffer := make([]byte, 1<<16)
	for read, events := 0, 0; ; {
		n, err := response.Body.Read(buffer)
		if read += n; err != nil {
			break
		}
		if strings.HasSuffix(string(buffer[:n]), "\n\n") {
			events++
			proceed <- struct{}{}
		}
	}
	if e := <-ends; e.err != nil || e.tokens.Output != 8 {
		t.Errorf("settled as %+v", e)
	}
	s.holds("92", "0")
}

// TestTransportWithoutCreditsCallsNobody looks at what comes before the call.
func TestTransportWithoutCreditsCallsNobody(t *testing.T) {
	t.Parallel()
	m := metered(t, open(t), client.WithPatience(300*time.Millisecond)).reserving()
	closed := make(chan struct{}, 10)
	request := func(ctx context.Context) *http.Request {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL+"/v1/messages", closer{closed})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if _, err := m.transport.RoundTrip(request(t.Context())); !errors.Is(err, client.ErrNoAccount) { //nolint:bodyclose // there is none
		t.Errorf("without an account: %v", err)
	}
	select {
	case <-closed:
	default:
		t.Error("the request's body is left open")
	}
	m.transport.Estimate = func(*http.Request) client.Reservation { return client.Reservation{Meter: "out", Quantity: "101"} }
	if _, err := m.transport.RoundTrip(request(client.WithAccount(t.Context(), "acme"))); !errors.Is(err, client.ErrInsufficientCredits) { //nolint:bodyclose // there is none
		t.Errorf("without credits: %v", err)
	}
	m.s.gate.close(true)
	if _, err := m.transport.RoundTrip(request(client.WithAccount(t.Context(), "acme"))); !errors.Is(err, client.ErrUnavailable) { //nolint:bodyclose // there is none
		t.Errorf("without tallystick: %v", err)
	}
	if m.called() != 0 {
		t.Errorf("the model was called %d times", m.called())
	}
	m.next(reply{body: `{}`})
	m.transport.Account = func(*http.Request) string { t.Error("somebody pays for a look at the models"); return "" }
	if got, err := m.call(t.Context(), "/v1/models"); err != nil || got.status != 200 {
		t.Errorf("what is no call of a model: %v", err)
	}
}

type closer struct{ closed chan struct{} }

func (c closer) Read([]byte) (int, error) { return 0, io.EOF }
func (c closer) Close() error             { c.closed <- struct{}{}; return nil }

// TestTransportTellsWhatCannotBeReached plays connections that fail.
func TestTransportTellsWhatCannotBeReached(t *testing.T) {
	t.Parallel()
	m := metered(t, open(t)).reserving()
	m.next(reply{hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := m.call(ctx, "/v1/messages"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a model that hangs: %v", err)
	}
	m.s.state(m.end().out.ID, "in_doubt")
	m.Close()
	if _, err := m.call(t.Context(), "/v1/messages"); err == nil {
		t.Error("a model that is gone answers")
	}
	m.s.state(m.end().out.ID, "released")
}

// TestTransportRepeatsAreOneCall sends the same id again, as an SDK does.
func TestTransportRepeatsAreOneCall(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"context", "header"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			m := metered(t, open(t)).reserving()
			call := func(a reply) error {
				m.next(a)
				ctx, header := t.Context(), []string{"Idempotency-Key", `"call-0001"`}
				if how == "context" {
					ctx, header = client.WithID(ctx, "call-0001"), nil
				}
				_, err := m.call(ctx, "/v1/messages", header...)
				return err
			}
			for i, a := range []reply{{status: 429, body: "{}"}, {status: 500, body: "{}"}, {body: messagesStream}} {
				if err := call(a); err != nil {
					t.Fatalf("attempt %d: %v", i+1, err)
				}
				want := []string{"call-0001", "call-0001.r2", "call-0001.r3"}[i]
				if e := m.end(); e.out.ID != want {
					t.Errorf("attempt %d is %+v", i+1, e)
				}
			}
			m.s.holds("41", "40") // 19 used, and 40 held in doubt
			if err := call(reply{body: messagesStream}); !errors.Is(err, client.ErrReservationClosed) || m.called() != 3 {
				t.Errorf("after the call was charged: %v, %d calls", err, m.called())
			}
		})
	}
}

// TestTransportWithoutAReservation records what was used afterwards, each part once.
func TestTransportWithoutAReservation(t *testing.T) {
	t.Parallel()
	m := metered(t, open(t))
	for range 2 {
		m.next(reply{body: chatStream})
		if _, err := m.call(client.WithID(t.Context(), "call-0001"), "/v1/chat/completions"); err != nil {
			t.Fatal(err)
		}
		if e := m.end(); e.err != nil || len(e.out.Also) != 3 {
			t.Errorf("settled as %+v", e)
		}
		m.s.holds("81", "0")
	}
	m.next(reply{body: strings.ReplaceAll(chatStream, `"completion_tokens":8`, `"completion_tokens":800`)})
	if _, err := m.call(t.Context(), "/v1/chat/completions"); err != nil {
		t.Fatal(err)
	}
	if e := m.end(); !errors.Is(e.err, client.ErrInsufficientCredits) || e.out.State != client.StateUnknown {
		t.Errorf("usage that cannot be paid is settled as %+v", e)
	}
	trouble := make(chan error, 1)
	m.transport = &client.Transport{Client: m.s.client(client.OnTrouble(func(err error) { trouble <- err })), Meters: m.transport.Meters}
	m.next(reply{body: messagesOverloaded})
	if _, err := m.call(t.Context(), "/v1/messages"); err != nil {
		t.Fatal(err)
	}
	if err := <-trouble; !errors.Is(err, client.ErrNoUsage) {
		t.Errorf("the trouble is %v", err)
	}
}

// TestTransportFailsOpen has tallystick away for a whole call, and the policy for 500
// changed.
func TestTransportFailsOpen(t *testing.T) {
	t.Parallel()
	spool := spoolIn(t, t.TempDir(), client.SpoolOptions{})
	m := metered(t, open(t), client.FailOpen(spool), client.WithPatience(time.Second)).reserving()
	m.s.gate.close(true)
	m.next(reply{body: messagesStream})
	if got, err := m.call(t.Context(), "/v1/messages"); err != nil || string(got.body) != messagesStream {
		t.Fatal(err)
	}
	if e := m.end(); e.err != nil || e.out.State != client.StateSpooled {
		t.Errorf("settled as %+v", e)
	}
	m.s.gate.close(false)
	drain(t, m.transport.Client)
	m.s.holds("81", "0")
	m.transport.Unknown = func(status int) bool { return status == 503 }
	for status, want := range map[int]client.State{500: client.StateReleased, 503: client.StateInDoubt, 400: client.StateReleased} {
		m.next(reply{status: status, body: fmt.Sprint(`{"status": `, status, `}`)})
		if _, err := m.call(t.Context(), "/v1/messages"); err != nil {
			t.Fatal(err)
		}
		if e := m.end(); e.out.State != want {
			t.Errorf("%d is settled as %+v", status, e)
		}
	}
}

// TestTransportAsksForWhatItCanRead has callers who would take brotli from a server that
// would give it: the answer is read along all the same, and arrives as it was sent.
func TestTransportAsksForWhatItCanRead(t *testing.T) {
	t.Parallel()
	shared := open(t)
	for accept, zips := range map[string]bool{"br, gzip": true, "gzip, deflate, br, zstd": true, "*": true, "br": false, "br, gzip;q=0": false} {
		m := metered(t, shared.other(t)).reserving()
		m.next(reply{body: messagesStream, picky: true})
		got, err := m.call(t.Context(), "/v1/messages", "Accept-Encoding", accept)
		if err != nil {
			t.Fatal(err)
		}
		want := []byte(messagesStream)
		if zips {
			want = zipped(want)
		}
		if !bytes.Equal(got.body, want) || (got.header.Get("Content-Encoding") == "gzip") != zips {
			t.Errorf("%q: %d bytes arrive of %d, encoded as %q", accept, len(got.body), len(want), got.header.Get("Content-Encoding"))
		}
		if e := m.end(); e.err != nil || e.out.State != client.StateCaptured {
			t.Errorf("%q is settled as %+v", accept, e)
		}
	}
}

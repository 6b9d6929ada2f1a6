package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"tallystick/api"
)

// Meters names the meters of what a model's answer has used. One that is empty is
// counted as input, an empty Output is not metered.
type Meters struct {
	Input       string
	CachedInput string
	CacheWrite  string
	Output      string
}

// Transport is an http.RoundTripper that meters the answers of models in the formats of
// OpenAI (chat completions, responses, embeddings) and Anthropic (messages), whole or
// streamed. Put it under the vendor's own SDK:
//
//	openai.NewClient(option.WithHTTPClient(&http.Client{Transport: &client.Transport{Client: c, Meters: …}}))
//
// It asks only for encodings that it can read, gzip or none, of those that the caller
// takes. It changes no byte of an answer and holds none back; it settles when the answer has
// been read or its body is closed. What it settles goes to OnSettled; Read and Close
// of the body never fail because of it.
//
// The call's id comes from WithID, else from the request's Idempotency-Key, else it is
// made for each round trip: an SDK that repeats a request then makes a new call of it,
// which is right, since the model works twice. A repeat with the same id is charged
// once: it gets a new reservation where the one before was released or is in doubt,
// and is refused where it was captured.
//
// A streamed answer of OpenAI's chat completions tells its usage only if the request
// has stream_options.include_usage. An answer that does not tell is in doubt.
type Transport struct {
	Base   http.RoundTripper // http.DefaultTransport by default
	Client *Client
	Meters Meters

	// Account says who pays for a request; by default whom WithAccount has named. A
	// request that should be metered and has none is refused with ErrNoAccount.
	Account func(*http.Request) string
	// Estimate says what to hold before a request is made, on a meter that is one of
	// Meters, as a quantity; ID and Account are filled in where they are empty. By
	// default nothing is held, and an account without credits is noticed afterwards.
	Estimate func(*http.Request) Reservation
	// Metered tells which requests are calls of a model; by default a POST to a path
	// that ends as those of the formats above do.
	Metered func(*http.Request) bool
	// Unknown tells after which statuses of 500 and above the work may have been done;
	// by default all but 503 and 529, by which servers refuse. Below 500 nothing was
	// used.
	Unknown func(status int) bool
	// Dimensions of the usage; by default the answer's model.
	Dimensions func(*http.Request, Tokens) map[string]string
	// OnSettled learns how each metered call has ended. Errors go to the client's
	// OnTrouble where it is nil. It must not block for long: the reader of the body
	// waits for it.
	OnSettled func(*http.Request, Tokens, Outcome, error)
}

// ErrNoAccount refuses a request of which nobody is said to pay.
var ErrNoAccount = errors.New("no account pays for this call: name one with client.WithAccount")

// ErrNoUsage says that an answer did not tell what it has used.
var ErrNoUsage = errors.New("the answer does not tell its usage")

type contextKey struct{ name string }

var (
	accountKey = &contextKey{"account"}
	idKey      = &contextKey{"id"}
)

// WithAccount names the account that pays for the calls of a Transport.
func WithAccount(ctx context.Context, account string) context.Context {
	return context.WithValue(ctx, accountKey, account)
}

// WithID gives the next call of a Transport its id, 8 to 100 of [A-Za-z0-9._:-]: all
// repeats of the call, by whomever, are charged once.
func WithID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, idKey, id)
}

// metered is one round trip that is accounted for.
type metered struct {
	t       *Transport
	request *http.Request
	id      string
	account string
	hold    *hold // nil: nothing was reserved
}

// RoundTrip makes one call of the model. Without credits, or without tallystick, its
// error is that of the reservation, and the model is not called.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	if isMetered := t.Metered; isMetered == nil && !callsModel(r) || isMetered != nil && !isMetered(r) {
		return base.RoundTrip(r)
	}
	m, err := t.begin(r)
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // as a RoundTripper must
		}
		return nil, err
	}
	returned := false
	defer func() {
		if !returned {
			m.settle(Tokens{}, Unknown(errors.New("the transport ended by a panic")))
		}
	}()
	response, err := base.RoundTrip(readable(r))
	returned = true
	if response != nil && response.Request != nil {
		response.Request = r // as the caller has made it
	}
	switch {
	case err != nil:
		m.settle(Tokens{}, err)
	case response.StatusCode >= http.StatusOK && response.StatusCode < http.StatusMultipleChoices:
		m.watch(response)
	default:
		m.settle(Tokens{}, t.refused(response.StatusCode))
	}
	return response, err
}

// callsModel knows the paths of the formats.
func callsModel(r *http.Request) bool {
	if r.Method != http.MethodPost {
		return false
	}
	for _, end := range []string{"/chat/completions", "/completions", "/responses", "/embeddings", "/messages"} {
		if strings.HasSuffix(r.URL.Path, end) {
			return true
		}
	}
	return false
}

// refused is what a status that is none of success says about the work.
func (t *Transport) refused(status int) error {
	err := fmt.Errorf("the model's server answered %d", status)
	const overloaded = 529 // Anthropic's
	unknown := status >= http.StatusInternalServerError && status != http.StatusServiceUnavailable && status != overloaded
	if t.Unknown != nil && status >= http.StatusInternalServerError {
		unknown = t.Unknown(status)
	}
	if unknown {
		return Unknown(err)
	}
	return NotUsed(err)
}

// begin finds out who pays, and reserves.
func (t *Transport) begin(r *http.Request) (*metered, error) {
	m := &metered{t: t, request: r}
	if m.account, _ = r.Context().Value(accountKey).(string); t.Account != nil {
		m.account = t.Account(r)
	}
	if m.account == "" {
		return nil, ErrNoAccount
	}
	if m.id, _ = r.Context().Value(idKey).(string); m.id == "" {
		m.id = strings.Trim(r.Header.Get("Idempotency-Key"), `"`)
	}
	if m.id == "" {
		m.id = NewID()
	}
	if t.Estimate == nil {
		return m, nil
	}
	estimate := t.Estimate(r)
	if estimate.Account == "" {
		estimate.Account = m.account
	}
	if estimate.ID == "" {
		estimate.ID = m.id
	}
	var err error
	m.account, m.id = estimate.Account, estimate.ID
	m.hold, err = t.reserve(r.Context(), estimate)
	return m, err
}

// repeatsMax is how often a call with one id may be tried anew.
const repeatsMax = 20

// reserve holds for a call, or for its repeat: after an attempt that was not charged,
// the same id makes another reservation.
func (t *Transport) reserve(ctx context.Context, r Reservation) (*hold, error) {
	id := r.ID
	for attempt := 2; ; attempt++ {
		h, err := t.Client.hold(ctx, r)
		var refusal *Error
		switch {
		case err == nil, attempt > repeatsMax, !errors.As(err, &refusal):
			return h, err
		case errors.Is(err, ErrReservationClosed) && refusal.State != "captured", errors.Is(err, ErrReservationInDoubt):
			r.ID = fmt.Sprintf("%s.r%d", id, attempt)
		default:
			return nil, err
		}
	}
}

// usages is what an answer has used, by meter.
func (m *metered) usages(tokens Tokens) []api.UsageRequest {
	meters := m.t.Meters
	dimensions := map[string]string{}
	switch {
	case m.t.Dimensions != nil:
		dimensions = m.t.Dimensions(m.request, tokens)
	case tokens.Model != "":
		dimensions["model"] = tokens.Model
	}
	amounts := map[string]int64{
		cmp.Or(meters.CachedInput, meters.Input): tokens.CachedInput,
	}
	amounts[cmp.Or(meters.CacheWrite, meters.Input)] += tokens.CacheWrite
	amounts[meters.Input] += tokens.Input
	amounts[meters.Output] += tokens.Output
	var usages []api.UsageRequest
	for _, meter := range slices.Sorted(maps.Keys(amounts)) {
		if meter != "" && amounts[meter] > 0 {
			usages = append(usages, api.UsageRequest{ID: m.id + ":" + meter, Account: m.account, Meter: meter, Quantity: Int(amounts[meter]), Dimensions: dimensions})
		}
	}
	return usages
}

// settle accounts for the call; callErr is nil where the tokens are known.
func (m *metered) settle(tokens Tokens, callErr error) {
	ctx := m.request.Context()
	var out Outcome
	var err error
	switch {
	case m.hold == nil && callErr == nil:
		out, err = m.record(ctx, tokens)
	case m.hold == nil && isUnknown(callErr):
		out, err = Outcome{ID: m.id, State: StateUnknown}, callErr
	case m.hold == nil:
		out = Outcome{ID: m.id, State: StateReleased}
	case callErr == nil:
		out, err = m.hold.settle(ctx, m.actual(tokens), nil)
	default:
		out, err = m.hold.settle(ctx, Actual{}, callErr)
	}
	if errors.Is(callErr, ErrNoUsage) {
		err = errors.Join(callErr, err)
	}
	switch {
	case m.t.OnSettled != nil:
		m.t.OnSettled(m.request, tokens, out, err)
	case err != nil:
		m.t.Client.trouble(fmt.Errorf("call %s of %s: %w", m.id, m.account, err))
	}
}

// actual puts the usage of the reservation's own meter first.
func (m *metered) actual(tokens Tokens) Actual {
	a := Actual{Quantity: "0"}
	for _, u := range m.usages(tokens) {
		if u.Meter == m.hold.ask.Meter {
			a.Quantity, a.Dimensions = u.Quantity, u.Dimensions
			continue
		}
		a.Also = append(a.Also, u)
	}
	return a
}

// record accounts for a call for which nothing was reserved.
func (m *metered) record(ctx context.Context, tokens Tokens) (out Outcome, err error) {
	out = Outcome{ID: m.id, State: StateReleased}
	usages := m.usages(tokens)
	if len(usages) == 0 {
		return out, nil
	}
	out.State = StateCaptured
	out.Also, err = m.t.Client.recordAlso(ctx, usages)
	for _, result := range out.Also {
		if result.Result == resultSpooled && err == nil {
			out.State = StateSpooled
		}
	}
	if err != nil {
		out.State = StateUnknown
	}
	return out, err
}

// watch reads along as the body is read.
func (m *metered) watch(response *http.Response) {
	b := &watchedBody{ReadCloser: response.Body, m: m}
	b.reader, b.err = decoded(response.Header.Get("Content-Encoding"), newReader(response.Header.Get("Content-Type"), &b.tally))
	if response.Body == nil {
		b.ReadCloser = http.NoBody
	}
	response.Body = b
}

var _ io.ReadCloser = (*watchedBody)(nil)

package client

import (
	"context"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tallystick/api"
)

// batchMax is how many usages the server takes in one call.
const batchMax = 1000

// Recorded is what became of one usage.
type Recorded struct {
	api.Usage
	Replayed bool // it had been recorded before
	Spooled  bool // tallystick was away: Usage has only what was said; see FailOpen
}

// Record records one usage and charges it. It makes an id where there is none; give
// one where the same usage may be recorded again after a crash. Scope usage.
func (c *Client) Record(ctx context.Context, q api.UsageRequest) (Recorded, error) {
	c.complete(&q)
	var recorded Recorded
	replayed, err := c.send(ctx, request{method: http.MethodPost, path: pathUsage, body: q, answer: &recorded.Usage})
	if err == nil {
		recorded.Replayed = replayed
		return recorded, nil
	}
	if !c.spoolable(err) {
		return Recorded{}, err
	}
	if err := c.spool.put(usageEntry(q), err); err != nil {
		return Recorded{}, err
	}
	recorded.Usage = api.Usage{ID: q.ID, Account: q.Account, Meter: q.Meter, Quantity: q.Quantity, OccurredAt: *q.OccurredAt, Dimensions: q.Dimensions}
	recorded.Spooled = true
	return recorded, nil
}

// complete gives a usage its id and, where it may end up in the spool, its time: the
// same id must always say the same.
func (c *Client) complete(q *api.UsageRequest) {
	if q.ID == "" {
		q.ID = NewID()
	}
	if q.OccurredAt == nil && c.spool != nil {
		at := c.now().UTC()
		q.OccurredAt = &at
	}
}

// RecordBatch records usages, each for itself, a thousand to a call. The results are
// in the order of the items; ResultError gives why one was refused. Items that the
// server could not decide are sent again with the same ids. Where some stay unknown,
// the error is ErrUnavailable, their results are empty, and the same usages with the
// same ids may be sent again; ids that were made are written into usages. With FailOpen
// they go to the spool instead, and their result is "spooled". Scope usage.
func (c *Client) RecordBatch(ctx context.Context, usages []api.UsageRequest) ([]api.UsageResult, error) {
	results, err := c.recordBatch(ctx, usages)
	if err == nil || !c.spoolable(err) {
		return results, err
	}
	for i, u := range usages {
		if results[i].Result != "" {
			continue
		}
		if err := c.spool.put(usageEntry(u), err); err != nil {
			return results, err
		}
		results[i].Result = resultSpooled
	}
	return results, nil
}

// resultSpooled is what a batch says of an item beside what the server says.
const resultSpooled = "spooled"

func (c *Client) recordBatch(ctx context.Context, usages []api.UsageRequest) ([]api.UsageResult, error) {
	for i := range usages {
		c.complete(&usages[i])
	}
	results := make([]api.UsageResult, len(usages))
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	var open []int
	for i := range usages {
		open = append(open, i)
	}
	for wait := waitFirst; len(open) > 0; wait = min(2*wait, waitMax) {
		n := min(len(open), batchMax)
		again, err := c.recordSome(ctx, usages, results, open[:n])
		if err != nil {
			return results, err
		}
		open = append(open[n:], again...)
		if len(again) > 0 && pause(ctx, wait) != nil {
			return results, &unavailable{context.Cause(ctx)}
		}
	}
	return results, nil
}

// recordSome sends some usages and gives those that have to be sent again.
func (c *Client) recordSome(ctx context.Context, usages []api.UsageRequest, results []api.UsageResult, which []int) (again []int, err error) {
	var q api.UsageBatchRequest
	for _, i := range which {
		q.Usage = append(q.Usage, usages[i])
	}
	var answer api.UsageBatch
	if _, err := c.send(ctx, request{method: http.MethodPost, path: pathUsage + "/batch", body: q, answer: &answer}); err != nil {
		return nil, err
	}
	if len(answer.Results) != len(which) {
		return nil, &Error{Status: http.StatusOK, Detail: "a batch was answered with another number of results"}
	}
	for k, i := range which {
		if e, refused := ResultError(answer.Results[k]).(*Error); refused && e.Temporary() { //nolint:errorlint // it is that type or nil
			again = append(again, i)
			continue
		}
		results[i] = answer.Results[k]
	}
	return again, nil
}

// pause waits, or gives the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Paths of the API.
const (
	pathUsage        = "/v1/usage"
	pathReservations = "/v1/reservations"
	pathAccounts     = "/v1/accounts"
	pathMeters       = "/v1/meters"
)

// reservationPath is the path of one reservation, or of what is done with it.
func reservationPath(account, id, verb string) string {
	path := pathReservations + "/" + url.PathEscape(id)
	if verb != "" {
		path += "/" + verb
	}
	if account != "" {
		path += "?account=" + url.QueryEscape(account)
	}
	return path
}

func accountPath(account string, more ...string) string {
	return strings.Join(append([]string{pathAccounts, url.PathEscape(account)}, more...), "/")
}

// Reserve holds credits before work is done. Do is the short way. Scope usage.
func (c *Client) Reserve(ctx context.Context, q api.ReservationRequest) (api.Reservation, error) {
	if q.ID == "" {
		q.ID = NewID()
	}
	var r api.Reservation
	_, err := c.send(ctx, request{method: http.MethodPost, path: pathReservations, body: q, answer: &r})
	return r, err
}

// Capture ends a reservation with the usage that it was for. Ids of reservations are
// unique per account; an empty account does where the id alone is enough, here and
// below. Scope usage.
func (c *Client) Capture(ctx context.Context, account, id string, q api.CaptureRequest) (api.Usage, error) {
	var u api.Usage
	_, err := c.send(ctx, request{method: http.MethodPost, path: reservationPath(account, id, "capture"), body: q, answer: &u})
	return u, err
}

// Release ends a reservation without usage. Scope usage.
func (c *Client) Release(ctx context.Context, account, id string) (api.Reservation, error) {
	return c.onReservation(ctx, account, id, "release", api.ReleaseRequest{})
}

// Extend keeps a reservation open for so long from now, in whole seconds, rounded up.
// Scope usage.
func (c *Client) Extend(ctx context.Context, account, id string, ttl time.Duration) (api.Reservation, error) {
	return c.onReservation(ctx, account, id, "extend", api.ExtendRequest{TTLSeconds: seconds(ttl)})
}

// Doubt says that the outcome of the work is unknown: the hold stays. Scope usage.
func (c *Client) Doubt(ctx context.Context, account, id, reason string) (api.Reservation, error) {
	return c.onReservation(ctx, account, id, "doubt", api.DoubtRequest{Reason: reason})
}

func (c *Client) onReservation(ctx context.Context, account, id, verb string, body any) (api.Reservation, error) {
	var r api.Reservation
	_, err := c.send(ctx, request{method: http.MethodPost, path: reservationPath(account, id, verb), body: body, answer: &r})
	return r, err
}

func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// GetReservation gives one reservation as it stands. Scope read.
func (c *Client) GetReservation(ctx context.Context, account, id string) (api.Reservation, error) {
	var r api.Reservation
	_, err := c.send(ctx, request{method: http.MethodGet, path: reservationPath(account, id, ""), answer: &r})
	return r, err
}

// Reservations lists reservations; account and state may be empty. Scope read.
func (c *Client) Reservations(ctx context.Context, account, state string) iter.Seq2[api.Reservation, error] {
	return list[api.Reservation](ctx, c, pathReservations, url.Values{"account": {account}, "state": {state}})
}

// PutAccount makes an account or replaces what is said about it. Scope admin.
func (c *Client) PutAccount(ctx context.Context, account string, q api.AccountRequest) (api.Account, error) {
	var a api.Account
	_, err := c.send(ctx, request{method: http.MethodPut, path: accountPath(account), body: q, answer: &a})
	return a, err
}

// PutAccountIf replaces what is said about an account only while its ETag is this one;
// when somebody changed it in between, the error is ErrStale. It is not sent again where
// its outcome is unknown (ErrUnavailable): read the account to see. Scope admin.
func (c *Client) PutAccountIf(ctx context.Context, account, etag string, q api.AccountRequest) (api.Account, error) {
	var a api.Account
	_, err := c.send(ctx, request{method: http.MethodPut, path: accountPath(account), body: q, answer: &a, ifMatch: etag})
	return a, err
}

// Account gives an account with its balance and open grants. Scope read.
func (c *Client) Account(ctx context.Context, account string) (api.Account, error) {
	var a api.Account
	_, err := c.send(ctx, request{method: http.MethodGet, path: accountPath(account), answer: &a})
	return a, err
}

// Accounts lists the accounts. Scope read.
func (c *Client) Accounts(ctx context.Context) iter.Seq2[api.Account, error] {
	return list[api.Account](ctx, c, pathAccounts, url.Values{})
}

// Balance gives what an account has. Scope read.
func (c *Client) Balance(ctx context.Context, account string) (api.Balance, error) {
	a, err := c.Account(ctx, account)
	return a.Balance, err
}

// Transfers lists the changes of a balance within [from, to), newest first; a zero
// time leaves that end open. Scope read.
func (c *Client) Transfers(ctx context.Context, account string, from, to time.Time) iter.Seq2[api.Transfer, error] {
	return list[api.Transfer](ctx, c, accountPath(account, "transfers"), window(from, to))
}

// Totals sums an account's usage within [from, to); a zero from is 30 days ago. An
// empty meter means all; groupBy is hour, day, meter or names of dimensions. Scope read.
func (c *Client) Totals(ctx context.Context, account, meter string, from, to time.Time, groupBy ...string) (api.UsageTotals, error) {
	query := window(from, to)
	query.Set("meter", meter)
	query.Set("group_by", strings.Join(groupBy, ","))
	var totals api.UsageTotals
	_, err := c.send(ctx, request{method: http.MethodGet, path: accountPath(account, "usage") + "?" + said(query), answer: &totals})
	return totals, err
}

// Grant gives credits. Without an id in q it makes one; give one where the same grant
// may be made again after a crash. Scope admin.
func (c *Client) Grant(ctx context.Context, account string, q api.GrantRequest) (api.Grant, error) {
	if q.ID == "" {
		q.ID = NewID()
	}
	var g api.Grant
	_, err := c.send(ctx, request{method: http.MethodPost, path: accountPath(account, "grants"), body: q, answer: &g})
	return g, err
}

// Adjust corrects a balance by hand. Scope admin.
func (c *Client) Adjust(ctx context.Context, account string, q api.AdjustmentRequest) (api.Adjustment, error) {
	if q.ID == "" {
		q.ID = NewID()
	}
	var a api.Adjustment
	_, err := c.send(ctx, request{method: http.MethodPost, path: accountPath(account, "adjustments"), body: q, answer: &a})
	return a, err
}

// PutMeter makes a meter or changes it. Scope admin.
func (c *Client) PutMeter(ctx context.Context, meter string, q api.MeterRequest) (api.Meter, error) {
	var m api.Meter
	_, err := c.send(ctx, request{method: http.MethodPut, path: pathMeters + "/" + url.PathEscape(meter), body: q, answer: &m})
	return m, err
}

// PutMeterIf changes a meter only while its ETag is this one; see PutAccountIf. Scope admin.
func (c *Client) PutMeterIf(ctx context.Context, meter, etag string, q api.MeterRequest) (api.Meter, error) {
	var m api.Meter
	_, err := c.send(ctx, request{method: http.MethodPut, path: pathMeters + "/" + url.PathEscape(meter), body: q, answer: &m, ifMatch: etag})
	return m, err
}

// Meters lists the meters. Scope read.
func (c *Client) Meters(ctx context.Context) iter.Seq2[api.Meter, error] {
	return list[api.Meter](ctx, c, pathMeters, url.Values{})
}

func window(from, to time.Time) url.Values {
	query := url.Values{}
	for name, at := range map[string]time.Time{"from": from, "to": to} {
		if !at.IsZero() {
			query.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	return query
}

// said is a query without what was left empty.
func said(query url.Values) string {
	for name := range query {
		if query.Get(name) == "" {
			query.Del(name)
		}
	}
	return query.Encode()
}

// list reads page after page. An error is the last that it gives.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := maps.Clone(query) // the same list may be read again
		query.Set("limit", "500")
		for {
			var page struct {
				Data       []T     `json:"data"`
				NextCursor *string `json:"next_cursor"`
			}
			if _, err := c.send(ctx, request{method: http.MethodGet, path: path + "?" + said(query), answer: &page}); err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range page.Data {
				if !yield(item, nil) {
					return
				}
			}
			if page.NextCursor == nil {
				return
			}
			query.Set("cursor", *page.NextCursor)
		}
	}
}

package webhooks

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/stripe"
	"tallystick/internal/web"
)

// payloadMax bounds an event, in bytes.
const payloadMax = 256 << 10

// Refusals of the receiver. They tell nothing to somebody who guesses.
var (
	errNoSecret  = &fault.Error{Kind: fault.KindUnavailable, Code: "webhook_not_configured", Public: "no webhook secret is configured; set STRIPE_WEBHOOK_SECRET", RetryAfter: time.Minute}
	errSignature = &fault.Error{Kind: fault.KindInvalid, Code: "invalid_signature", Public: "the Stripe-Signature header does not fit the body, the secret or the time"}
	errPayload   = &fault.Error{Kind: fault.KindInvalid, Code: "invalid_event", Public: "the body is no Stripe event"}
	errNoEvent   = &fault.Error{Kind: fault.KindNotFound, Code: "event_not_found", Public: "there is no such event in the inbox"}
)

// event is an event as far as the inbox looks into it.
type event struct {
	ID         string
	Type       string
	APIVersion string
	Account    string // the connected account that it happened in; "" for our own
	Livemode   bool
	CreatedAt  time.Time
	Payload    []byte
}

// parseEvent reads an event of either API: of v1, created is a number of
// seconds, of v2 a text.
func parseEvent(payload []byte) (event, error) {
	var w struct {
		ID         string         `json:"id"`
		Type       string         `json:"type"`
		APIVersion string         `json:"api_version"`
		Account    string         `json:"account"`
		Livemode   bool           `json:"livemode"`
		Created    jsontext.Value `json:"created"`
	}
	// Half as dear as the standard library's, which reads everything twice.
	if err := jsonv2.Unmarshal(payload, &w, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)); err != nil || w.ID == "" || len(w.ID) > 255 || w.Type == "" || len(w.Type) > 255 {
		return event{}, errPayload.With(err)
	}
	e := event{ID: w.ID, Type: w.Type, APIVersion: w.APIVersion, Account: w.Account, Livemode: w.Livemode, Payload: payload}
	var seconds *int64 // pointers tell null from a time
	var text *time.Time
	if json.Unmarshal(w.Created, &seconds) == nil && seconds != nil {
		e.CreatedAt = time.Unix(*seconds, 0).UTC()
	} else if json.Unmarshal(w.Created, &text) == nil && text != nil {
		e.CreatedAt = text.UTC()
	} else {
		return event{}, errPayload
	}
	return e, nil
}

// triage says what is to become of an event, and why it is not applied.
func (h *Webhooks) triage(e event) (state, reason string) {
	_, handled := handlers[e.Type]
	switch {
	case !handled:
		return "ignored", ""
	case e.Account != "":
		return "flagged", fmt.Sprintf("it happened in the connected account %s: its payments are not ours", e.Account)
	case e.Livemode != h.livemode:
		return "flagged", "the event's mode is not that of the API key: the endpoint or the key belongs to the other mode"
	case e.APIVersion != stripe.APIVersion:
		return "flagged", fmt.Sprintf("the endpoint sends API version %s; create it with %s, then replay this event", e.APIVersion, stripe.APIVersion)
	}
	return "pending", ""
}

func (h *Webhooks) handleReceive(w http.ResponseWriter, r *http.Request) error {
	if len(h.secrets) == 0 {
		return errNoSecret
	}
	payload, err := web.ReadBody(w, r, payloadMax)
	if err != nil {
		return err
	}
	headers := r.Header.Values("Stripe-Signature")
	if len(headers) != 1 || stripe.VerifySignature(payload, headers[0], h.secrets, h.now()) != nil {
		return errSignature
	}
	e, err := parseEvent(payload)
	if err != nil {
		return err
	}
	fresh, err := h.intake.put(r.Context(), e, "webhook")
	if err != nil {
		return err
	}
	web.Note(r.Context(), slog.String("event", e.ID), slog.String("type", e.Type), slog.Bool("duplicate", !fresh))
	return web.JSON(w, http.StatusOK, struct {
		Received bool `json:"received"`
	}{true})
}

// listed is an event as Stripe lists it: rendered in the account's own version.
// Handlers take nothing but ids from a payload, so the version does not matter here.
func listed(e stripe.Event) event {
	return event{ID: e.ID, Type: e.Type, APIVersion: stripe.APIVersion, Livemode: e.Livemode, CreatedAt: e.CreatedAt, Payload: e.Payload}
}

// Feed puts an event that was missed into the inbox, as Stripe has it. It tells
// whether it was missing; an event that is there and was not applied is due again.
func (h *Webhooks) Feed(ctx context.Context, id string) (missing bool, err error) {
	found, err := h.stripe.Event(ctx, id)
	if err != nil {
		return false, err
	}
	fresh, err := h.intake.put(ctx, listed(found), "replay")
	if err != nil || fresh {
		return fresh, err
	}
	_, err = h.replay(ctx, id)
	return false, err
}

type eventRow struct {
	ID         string     `db:"event_id"`
	Type       string     `db:"type"`
	APIVersion string     `db:"api_version"`
	Livemode   bool       `db:"livemode"`
	CreatedAt  time.Time  `db:"created_at"`
	Payload    []byte     `db:"payload"`
	Source     string     `db:"source"`
	ReceivedAt time.Time  `db:"received_at"`
	State      string     `db:"state"`
	Attempts   int        `db:"attempts"`
	Error      string     `db:"error"`
	DoneAt     *time.Time `db:"done_at"`
}

func (e eventRow) wire() api.StripeEvent {
	w := api.StripeEvent{
		ID: e.ID, Type: e.Type, APIVersion: e.APIVersion, Livemode: e.Livemode, State: e.State, Attempts: e.Attempts, Error: e.Error,
		Source: e.Source, CreatedAt: e.CreatedAt.UTC(), ReceivedAt: e.ReceivedAt.UTC(), Payload: e.Payload,
	}
	if e.DoneAt != nil {
		done := e.DoneAt.UTC()
		w.DoneAt = &done
	}
	return w
}

// position is where a page of events ends.
type position struct {
	CreatedAt time.Time
	ID        string
}

// sqlList pages backwards over the index stripe_events_by_time. A payload is
// shown where one event is asked for.
const sqlList = `
	SELECT event_id, type, api_version, livemode, created_at, CASE WHEN $5 <> '' THEN payload END AS payload, source, received_at, state, attempts, error, done_at
	FROM stripe_events
	WHERE (created_at, event_id) < ($1, $2) AND ($3 = '' OR state = $3) AND ($4 = '' OR type = $4) AND ($5 = '' OR event_id = $5)
	ORDER BY created_at DESC, event_id DESC
	LIMIT $6`

var eventStates = []string{"pending", "done", "ignored", "flagged", "failed"}

func (h *Webhooks) handleList(w http.ResponseWriter, r *http.Request) error {
	after := farthest()
	limit, err := web.Page(r, &after)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	if state := query.Get("state"); state != "" && !slices.Contains(eventStates, state) {
		var p fault.Problems
		p.Addf("#query/state", "must be one of %v", eventStates)
		return p.Err(fault.ErrInvalid)
	}
	var rows []eventRow
	err = h.db.Read(r.Context(), func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(r.Context(), &rows, sqlList, after.CreatedAt, after.ID, query.Get("state"), query.Get("type"), query.Get("id"), limit+1)
	})
	if err != nil {
		return err
	}
	events := make([]api.StripeEvent, len(rows))
	for i, row := range rows {
		events[i] = row.wire()
	}
	return web.JSON(w, http.StatusOK, web.Paged(events, limit, func(e api.StripeEvent) any { return position{e.CreatedAt, e.ID} }))
}

// sqlReplay makes an event due again. A done one is, too: applying it once more
// changes nothing, unless Stripe says something new.
const sqlReplay = `
	UPDATE stripe_events SET state = 'pending', attempts = 0, next_try_at = $2, error = ''
	WHERE event_id = $1
	RETURNING event_id, type, api_version, livemode, created_at, payload, source, received_at, state, attempts, error, done_at`

func (h *Webhooks) replay(ctx context.Context, id string) (row eventRow, err error) {
	err = h.db.InTx(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &row, sqlReplay, id, h.now()) })
	if errors.Is(err, sql.ErrNoRows) {
		return row, errNoEvent
	}
	return row, err
}

func (h *Webhooks) handleReplay(w http.ResponseWriter, r *http.Request) error {
	row, err := h.replay(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, row.wire())
}

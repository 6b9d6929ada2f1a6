package meter

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/web"
	"tallystick/ledger"
)

func (m *Meter) handleReserve(w http.ResponseWriter, r *http.Request) error {
	var q api.ReservationRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	var p fault.Problems
	q.ID = idempotencyKey(r, q.ID, &p)
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	answer, again, err := m.Reserve(r.Context(), q, actor(r.Context()))
	if err != nil {
		return err
	}
	if again {
		replayed(w)
	}
	return web.JSON(w, http.StatusCreated, answer)
}

// named takes from a request which reservation it is about. What has not the form
// of an id, or of an account, is none.
func named(r *http.Request) (whose, error) {
	w := whose{id: r.PathValue("id"), account: r.URL.Query().Get("account"), by: actor(r.Context())}
	if !idForm.MatchString(w.id) || (w.account != "" && !accountForm.MatchString(w.account)) {
		return w, errNoReservation
	}
	return w, nil
}

// respond answers with the reservation as it stands.
func (e *ending) respond(w http.ResponseWriter) error {
	answer, err := e.row.wire()
	if err != nil {
		return err
	}
	if e.again {
		replayed(w)
	}
	return web.JSON(w, http.StatusOK, answer)
}

func (m *Meter) handleCapture(w http.ResponseWriter, r *http.Request) error {
	var q api.CaptureRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	c, err := m.validateCapture(q)
	if err != nil {
		return err
	}
	name, err := named(r)
	if err != nil {
		return err
	}
	name.simple = true
	e, err := m.end(r.Context(), name, func(ctx context.Context, e *ending) error { return e.capture(ctx, c) })
	if err != nil {
		return err
	}
	answer, err := e.usage.wire()
	if err != nil {
		return err
	}
	if e.again {
		replayed(w)
	}
	return web.JSON(w, http.StatusCreated, answer)
}

func (m *Meter) validateCapture(q api.CaptureRequest) (c capture, err error) {
	var p fault.Problems
	c = capture{measure: parseMeasure(&p, q.Quantity, q.Credits), dimensions: q.Dimensions}
	checkTexts(&p, "/dimensions", q.Dimensions, dimensionsMax, dimensionValueMax)
	c.occurredAt, c.untimely = m.occurred(q.OccurredAt, &p, inUsage.occurredAt)
	c.fingerprint = captureFingerprint(c.measure, q.OccurredAt, q.Dimensions)
	return c, p.Err(fault.ErrUnprocessed)
}

// captureFingerprint is a hash of what a capture says. What was left out is left
// out here, too.
func captureFingerprint(a measure, at *time.Time, dimensions map[string]string) []byte {
	parts := []string{"capture", a.text(), "", "its own"}
	if at != nil {
		parts[2] = at.UTC().Truncate(time.Microsecond).Format(time.RFC3339Nano)
	}
	if dimensions != nil {
		parts[3] = "these"
	}
	return hashTexts(appendTexts(parts, dimensions)...)
}

func (m *Meter) handleRelease(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength != 0 {
		var q api.ReleaseRequest
		if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
			return err
		}
	}
	name, err := named(r)
	if err != nil {
		return err
	}
	name.simple = true
	e, err := m.end(r.Context(), name, func(ctx context.Context, e *ending) error { return e.release(ctx) })
	if err != nil {
		return err
	}
	return e.respond(w)
}

func (m *Meter) handleExtend(w http.ResponseWriter, r *http.Request) error {
	var q api.ExtendRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	var p fault.Problems
	checkTTL(&p, q.TTLSeconds)
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	name, err := named(r)
	if err != nil {
		return err
	}
	ttl := time.Duration(q.TTLSeconds) * time.Second
	e, err := m.end(r.Context(), name, func(_ context.Context, e *ending) error { return e.extend(ttl) })
	if err != nil {
		return err
	}
	return e.respond(w)
}

func (m *Meter) handleDoubt(w http.ResponseWriter, r *http.Request) error {
	var q api.DoubtRequest
	if err := web.Decode(w, r, web.BodyMax, &q); err != nil {
		return err
	}
	var p fault.Problems
	if q.Reason == "" || len(q.Reason) > reasonMax {
		p.Addf("/reason", "must have 1 to %d bytes", reasonMax)
	}
	if err := p.Err(fault.ErrUnprocessed); err != nil {
		return err
	}
	name, err := named(r)
	if err != nil {
		return err
	}
	e, err := m.end(r.Context(), name, func(_ context.Context, e *ending) error { return e.doubt(q.Reason) })
	if err != nil {
		return err
	}
	return e.respond(w)
}

func (m *Meter) handleGetReservation(w http.ResponseWriter, r *http.Request) error {
	name, err := named(r)
	if err != nil {
		return err
	}
	e := &ending{}
	err = m.db.Read(r.Context(), func(tx *sqlx.Tx) error {
		ref, err := findReservation(r.Context(), tx, name.id, name.account)
		if err != nil {
			return err
		}
		key := usageKey{ref, name.id}
		found, err := readReservations(r.Context(), tx, []usageKey{key})
		if e.row = found[key]; err == nil && e.row == nil {
			err = errNoReservation
		}
		return err
	})
	if err != nil {
		return err
	}
	return e.respond(w)
}

func (m *Meter) handleListReservations(w http.ResponseWriter, r *http.Request) error {
	after := place{Ref: ledger.Ref{Part: -1}}
	limit, err := web.Page(r, &after)
	if err != nil {
		return err
	}
	account, state := r.URL.Query().Get("account"), r.URL.Query().Get("state")
	if !slices.Contains([]string{"", stateOpen, stateInDoubt, stateCaptured, stateReleased, stateExpired}, state) {
		var p fault.Problems
		p.Addf("#query/state", "must be open, in_doubt, captured, released or expired")
		return p.Err(fault.ErrInvalid)
	}
	var rows []reservation
	err = m.db.Read(r.Context(), func(tx *sqlx.Tx) (err error) {
		rows, err = listReservations(r.Context(), tx, after, account, state, limit+1)
		return err
	})
	if err != nil {
		return err
	}
	answers := make([]api.Reservation, len(rows))
	for i := range rows {
		if answers[i], err = rows[i].wire(); err != nil {
			return err
		}
	}
	return web.JSON(w, http.StatusOK, web.Paged(answers, limit, func(a api.Reservation) any { return place{Ref: ledger.RefOf(a.Account), ID: a.ID} }))
}

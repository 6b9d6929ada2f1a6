package meter

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// Modes of CloudEvents over HTTP.
const (
	modeStructured = iota
	modeBatch
	modeBinary
)

var (
	errEventMedia = web.ErrMediaType.Withf("send a CloudEvent as application/cloudevents+json, several as application/cloudevents-batch+json, " +
		"or one in binary mode: ce- headers and data as application/json")
	errManyEvents = &fault.Error{Kind: fault.KindUnprocessed, Code: "invalid_value", Public: fmt.Sprintf("a batch must list at most %d events", batchUsagesMax)}
)

// modeOf tells the mode from the Content-Type, as the HTTP binding has it: what is
// no media type of CloudEvents is data in binary mode.
func modeOf(header http.Header) (int, error) {
	types := header.Values("Content-Type")
	if len(types) > 1 {
		return 0, errEventMedia
	}
	if len(types) == 0 {
		return modeBinary, nil
	}
	media, _, err := mime.ParseMediaType(types[0])
	switch {
	case err != nil:
	case media == "application/cloudevents+json":
		return modeStructured, nil
	case media == "application/cloudevents-batch+json":
		return modeBatch, nil
	case strings.HasPrefix(media, "application/cloudevents"):
	case isJSON(media):
		return modeBinary, nil
	}
	return 0, errEventMedia
}

func isJSON(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json"))
}

func (m *Meter) handleEvents(w http.ResponseWriter, r *http.Request) error {
	mode, err := modeOf(r.Header)
	if err != nil {
		return err
	}
	if mode == modeBatch {
		return m.handleEventBatch(w, r)
	}
	body, err := web.ReadBody(w, r, web.BodyMax)
	if err != nil {
		return err
	}
	var e *event
	if mode == modeStructured {
		e, err = structuredEvent(body)
	} else {
		e, err = binaryEvent(r.Header, body)
	}
	if err != nil {
		return err
	}
	usages, refusals, err := m.usagesOf(r.Context(), []*event{e})
	if err != nil {
		return err
	}
	if refusals[0] != nil {
		return refusals[0]
	}
	return m.answerUsage(w, r, usages[0])
}

// handleEventBatch answers item by item: one that is no event, or holds a member
// twice, is refused for itself.
func (m *Meter) handleEventBatch(w http.ResponseWriter, r *http.Request) error {
	body, err := web.ReadBody(w, r, web.BatchBodyMax)
	if err != nil {
		return err
	}
	items, err := web.DecodeItems(body)
	if err != nil {
		return err
	}
	if len(items) > batchUsagesMax {
		return errManyEvents
	}
	events, malformed := make([]*event, len(items)), make([]error, len(items))
	for i, item := range items {
		events[i], malformed[i] = structuredEvent(item)
	}
	usages, refusals, err := m.usagesOf(r.Context(), events)
	if err != nil {
		return err
	}
	for i, err := range malformed {
		if err != nil {
			refusals[i] = err
		}
	}
	return m.answerUsages(w, r, usages, refusals)
}

// usagesOf makes usages of events, or refusals in their places. An event that is
// nil is passed over.
func (m *Meter) usagesOf(ctx context.Context, events []*event) ([]usage, []error, error) {
	fields, err := m.readFields(ctx, events)
	if err != nil {
		return nil, nil, err
	}
	usages, refusals := make([]usage, len(events)), make([]error, len(events))
	by := actor(ctx)
	for i, e := range events {
		if e == nil {
			continue
		}
		f := fields[e.attributes["type"]]
		if f == nil {
			f = &field{Value: valueFieldDefault, unknown: true}
		}
		q, in := e.usage(f)
		usages[i] = m.validateIdentified(q, by, &e.problems, in)
		refusals[i] = e.problems.Err(fault.ErrUnprocessed)
	}
	return usages, refusals, nil
}

// field says where the events of a meter hold their quantity.
type field struct {
	Meter   string `db:"meter"`
	Value   string `db:"value_field"`
	Counts  bool   `db:"counts"` // the quantity does not matter and may be left out
	unknown bool   // there is no such meter
}

// sqlReadFields relies on meters_pkey.
const sqlReadFields = `
	SELECT m.meter, m.value_field, m.aggregation = 'count' AS counts
	FROM meters m
	WHERE m.meter = ANY ($1::text[])`

// readFields reads the fields of the meters that events are for. What is in force
// now reads the event, as it is with rates: when a meter's field has been changed
// meanwhile, an event that is sent again has another quantity and is refused for
// that, not charged once more.
func (m *Meter) readFields(ctx context.Context, events []*event) (map[string]*field, error) {
	names := pq.StringArray{}
	fields := map[string]*field{}
	for _, e := range events {
		if e == nil {
			continue
		}
		if name := e.attributes["type"]; meterForm.MatchString(name) && fields[name] == nil {
			fields[name] = &field{Value: valueFieldDefault, unknown: true}
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fields, nil
	}
	var rows []*field
	err := m.db.Read(ctx, func(tx *sqlx.Tx) error {
		rows = nil
		return tx.SelectContext(ctx, &rows, sqlReadFields, names)
	})
	if err != nil {
		return nil, fmt.Errorf("read where events hold their quantity: %w", err)
	}
	for _, f := range rows {
		fields[f.Meter] = f
	}
	return fields, nil
}

package meter

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"sync"

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
	results, err := m.submitEvents(r.Context(), []*event{e})
	if err != nil {
		return err
	}
	return answerUsage(w, results[0])
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
	if err := m.spend(r.Context(), len(items)); err != nil {
		return err
	}
	outcomes := make([]result, len(items))
	var events []*event
	var at []int
	for i, item := range items {
		e, err := structuredEvent(item)
		if outcomes[i].err = err; err == nil {
			events, at = append(events, e), append(at, i)
		}
	}
	results, err := m.submitEvents(r.Context(), events)
	if err != nil {
		return err
	}
	for i, result := range results {
		outcomes[at[i]] = result
	}
	return answerUsages(w, outcomes)
}

// fieldTries bounds how often an event is read anew because its meter has been
// changed meanwhile.
const fieldTries = 3

// submitEvents records events. How a meter's events are read is taken from memory
// and held against the meter by the transaction that charges them, before the
// guard is looked at: when it has changed, they are read again. So are those that
// would be refused.
func (m *Meter) submitEvents(ctx context.Context, events []*event) ([]result, error) {
	results := make([]result, len(events))
	todo := make([]int, len(events))
	for i := range todo {
		todo[i] = i
	}
	for try := range fieldTries {
		some := make([]*event, len(todo))
		for k, i := range todo {
			some[k] = events[i]
		}
		fields, err := m.readFields(ctx, some, try == 0)
		if err != nil {
			return nil, err
		}
		usages, refusals := m.usagesOf(some, fields, actor(ctx))
		var again []int
		for k, result := range m.submitValid(ctx, usages, refusals) {
			if results[todo[k]] = result; result.stale || (refusals[k] != nil && try == 0) {
				again = append(again, todo[k])
			}
		}
		if todo = again; len(todo) == 0 {
			break
		}
	}
	return results, nil
}

// usagesOf makes usages of events, or refusals in their places.
func (m *Meter) usagesOf(events []*event, fields map[string]*field, by string) ([]usage, []error) {
	usages, refusals := make([]usage, len(events)), make([]error, len(events))
	for i, e := range events {
		f := fields[e.attributes["type"]]
		if f == nil {
			f = &field{Value: valueFieldDefault, unknown: true}
		}
		e := e.copied() // it may be read again
		q, in := e.usage(f)
		usages[i] = m.validateIdentified(q, by, &e.problems, in)
		usages[i].field = f
		refusals[i] = e.problems.Err(fault.ErrUnprocessed)
	}
	return usages, refusals
}

// field says where the events of a meter hold their quantity.
type field struct {
	Meter   string `db:"meter"`
	Value   string `db:"value_field"`
	Counts  bool   `db:"counts"` // the quantity does not matter and may be left out
	unknown bool   // there was no such meter
}

// stale tells whether a meter reads its events otherwise by now. No field, of
// usage that is no event, is never stale.
func (f *field) stale(d *definition) bool {
	switch {
	case f == nil:
		return false
	case d == nil:
		return !f.unknown
	}
	return f.unknown || d.ValueField != f.Value || (d.Aggregation == "count") != f.Counts
}

// fieldsMax bounds how many fields are kept in memory; beyond it all are read anew.
const fieldsMax = 10_000

// fieldCache keeps the fields of meters. They may be out of date: whoever uses one
// has it checked.
type fieldCache struct {
	mu    sync.RWMutex
	known map[string]*field
}

func (c *fieldCache) get(meter string) *field {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.known[meter]
}

func (c *fieldCache) keep(fields []*field) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known)+len(fields) > fieldsMax {
		clear(c.known)
	}
	for _, f := range fields {
		c.known[f.Meter] = f
	}
}

// sqlReadFields relies on meters_pkey.
const sqlReadFields = `
	SELECT m.meter, m.value_field, m.aggregation = 'count' AS counts
	FROM meters m
	WHERE m.meter = ANY ($1::text[])`

// readFields gives the fields of the meters that events are for, from memory where
// they may be, else from the database. What is in force when it is charged reads
// an event, as it is with rates: when a meter's field has been changed meanwhile,
// an event that is sent again has another quantity and is refused for that, not
// charged once more.
func (m *Meter) readFields(ctx context.Context, events []*event, memory bool) (map[string]*field, error) {
	names := pq.StringArray{}
	fields := map[string]*field{}
	for _, e := range events {
		name := e.attributes["type"]
		if _, seen := fields[name]; seen || !meterForm.MatchString(name) {
			continue
		}
		if fields[name] = nil; memory {
			fields[name] = m.fields.get(name)
		}
		if fields[name] == nil {
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
	m.fields.keep(rows)
	for _, f := range rows {
		fields[f.Meter] = f
	}
	return fields, nil
}

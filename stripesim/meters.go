package stripesim

import (
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of meter events.
const (
	eventAgeMax      = 35 * 24 * time.Hour
	eventAheadMax    = 5 * time.Minute
	identifierAge    = 24 * time.Hour
	adjustmentAgeMax = 24 * time.Hour
	identifierMax    = 100
)

// meterBook keeps accepted meter events as sums per customer, meter and minute;
// single events are kept only as long as they can be cancelled.
type meterBook struct {
	sums     map[meterCustomer]map[int64]*big.Rat // by minute
	recent   map[string]*meterRecord              // by identifier
	order    []string                             // identifiers by time received, for forgetting
	lagging  []*meterRecord                       // accepted, not yet in the sums
	accepted int64
	lost     int64
	errors   []object // asynchronous error reports
}

type meterCustomer struct{ meter, customer string }

// meterRecord is one event, as it is journalled.
type meterRecord struct {
	Meter      string    `json:"m"`
	Customer   string    `json:"c"`
	Minute     int64     `json:"t"`
	Value      string    `json:"v"`
	Identifier string    `json:"i"`
	Received   time.Time `json:"r"`
	Counts     time.Time `json:"n"` // when it enters the sums
	Lost       bool      `json:"l,omitempty"`
	Cancels    bool      `json:"x,omitempty"`
}

func newMeterBook() meterBook {
	return meterBook{sums: map[meterCustomer]map[int64]*big.Rat{}, recent: map[string]*meterRecord{}}
}

func (b *meterBook) restore(raw json.RawMessage) error {
	var r meterRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return err
	}
	b.settle(r.Received) // as it was then: an identifier may have been used again since
	b.take(&r)
	return nil
}

// take enters a record into the book: an event, or the cancellation of one.
func (b *meterBook) take(r *meterRecord) {
	if r.Cancels {
		b.cancel(r.Identifier)
		return
	}
	b.accepted++
	b.recent[r.Identifier] = r
	b.order = append(b.order, r.Identifier)
	if r.Lost {
		b.lost++
		return
	}
	b.lagging = append(b.lagging, r)
}

func (b *meterBook) add(r *meterRecord, sign int64) {
	value, ok := new(big.Rat).SetString(r.Value)
	if !ok {
		return // checked when it was accepted
	}
	key := meterCustomer{r.Meter, r.Customer}
	if b.sums[key] == nil {
		b.sums[key] = map[int64]*big.Rat{}
	}
	if b.sums[key][r.Minute] == nil {
		b.sums[key][r.Minute] = new(big.Rat)
	}
	b.sums[key][r.Minute].Add(b.sums[key][r.Minute], value.Mul(value, big.NewRat(sign, 1)))
}

func (b *meterBook) cancel(identifier string) {
	r := b.recent[identifier]
	if r == nil || r.Lost {
		return
	}
	if i := slices.Index(b.lagging, r); i >= 0 {
		b.lagging = slices.Delete(b.lagging, i, i+1)
	} else {
		b.add(r, -1)
	}
	r.Lost = true
}

// settle moves what has lagged long enough into the sums, and forgets
// identifiers that Stripe would have forgotten.
func (b *meterBook) settle(now time.Time) {
	b.lagging = slices.DeleteFunc(b.lagging, func(r *meterRecord) bool {
		if r.Counts.After(now) {
			return false
		}
		b.add(r, 1)
		return true
	})
	for len(b.order) > 0 {
		r := b.recent[b.order[0]]
		if r != nil && now.Sub(r.Received) < identifierAge {
			return
		}
		delete(b.recent, b.order[0])
		b.order = b.order[1:]
	}
}

// total sums a customer's usage over [from, to), in Unix seconds.
func (b *meterBook) total(key meterCustomer, from, to int64) *big.Rat {
	sum := new(big.Rat)
	minutes := b.sums[key]
	if int64(len(minutes)) > (to-from)/60 {
		for m := from - from%60; m < to; m += 60 {
			if v := minutes[m]; v != nil {
				sum.Add(sum, v)
			}
		}
		return sum
	}
	for m, v := range minutes {
		if m >= from && m < to {
			sum.Add(sum, v)
		}
	}
	return sum
}

// decimalText is the shortest exact decimal of a sum of decimals.
func decimalText(r *big.Rat) string {
	s := r.FloatString(12)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if s == "-0" {
		return "0"
	}
	return s
}

func (s *Server) routeMeters() {
	create := spec{
		"display_name": "string", "event_name": "string", "event_time_window": "string", "default_aggregation": spec{"formula": "string"},
		"customer_mapping": spec{"event_payload_key": "string", "type": "string"}, "value_settings": spec{"event_payload_key": "string"},
	}
	s.handle("POST /v1/billing/meters", create, func(c *call) (object, *apiError) { return s.makeMeter(c) })
	s.handle("GET /v1/billing/meters/{id}", nil, func(c *call) (object, *apiError) { return s.find("billing.meter", c.target(), "id") })
	s.handle("POST /v1/billing/meters/{id}", spec{"display_name": "string"}, func(c *call) (object, *apiError) {
		o, err := s.find("billing.meter", c.target(), "id")
		if err == nil && c.has("display_name") {
			s.change("billing.meter", o, object{"display_name": c.text("display_name"), "updated": s.now()})
		}
		return o, err
	})
	s.handle("POST /v1/billing/meters/{id}/deactivate", nil, func(c *call) (object, *apiError) { return s.switchMeter(c, "inactive") })
	s.handle("POST /v1/billing/meters/{id}/reactivate", nil, func(c *call) (object, *apiError) { return s.switchMeter(c, "active") })
	s.handle("GET /v1/billing/meters", listSpec(spec{"status": "string"}), func(c *call) (object, *apiError) {
		return s.list(c, "billing.meter", func(o object) bool { return !c.has("status") || text(o, "status") == c.text("status") })
	})
	event := spec{"event_name": "string", "identifier": "string", "timestamp": "int", "payload": "map"}
	s.handle("POST /v1/billing/meter_events", event, func(c *call) (object, *apiError) { return s.takeMeterEvent(c) })
	adjustment := spec{"event_name": "string", "type": "string", "cancel": spec{"identifier": "string"}}
	s.handle("POST /v1/billing/meter_event_adjustments", adjustment, func(c *call) (object, *apiError) { return s.adjustMeterEvent(c) })
	summary := listSpec(spec{"customer": "string", "start_time": "int", "end_time": "int", "value_grouping_window": "string"})
	s.handle("GET /v1/billing/meters/{id}/event_summaries", summary, func(c *call) (object, *apiError) { return s.summaries(c) })
}

func (s *Server) makeMeter(c *call) (object, *apiError) {
	if err := c.require("display_name", "event_name", "default_aggregation"); err != nil {
		return nil, err
	}
	formula := c.child("default_aggregation").text("formula")
	if formula != "sum" && formula != "count" {
		return nil, invalid("default_aggregation[formula]", "", "Invalid default_aggregation[formula]: must be one of count or sum")
	}
	if s.activeMeter(c.text("event_name")) != nil {
		return nil, invalid("event_name", "resource_already_exists", "An active meter with the event name `%s` already exists.", c.text("event_name"))
	}
	customerKey, valueKey := "stripe_customer_id", "value"
	if k := c.child("customer_mapping").text("event_payload_key"); k != "" {
		customerKey = k
	}
	if k := c.child("value_settings").text("event_payload_key"); k != "" {
		valueKey = k
	}
	o := object{
		"id": s.newID("mtr_test"), "object": "billing.meter", "created": s.now(), "updated": s.now(), "livemode": false, "status": "active",
		"display_name": c.text("display_name"), "event_name": c.text("event_name"), "event_time_window": c.orNull("event_time_window"),
		"default_aggregation": object{"formula": formula}, "status_transitions": object{"deactivated_at": nil},
		"customer_mapping": object{"event_payload_key": customerKey, "type": "by_id"}, "value_settings": object{"event_payload_key": valueKey},
	}
	s.store.put("billing.meter", o)
	s.raise(c, "billing.meter.created", o, nil)
	return o, nil
}

func (s *Server) switchMeter(c *call, status string) (object, *apiError) {
	o, err := s.find("billing.meter", c.target(), "id")
	if err != nil {
		return nil, err
	}
	if text(o, "status") == status {
		return nil, invalid("", "", "The meter is already %s.", status)
	}
	if name := text(o, "event_name"); status == "active" && s.activeMeter(name) != nil {
		return nil, invalid("event_name", "resource_already_exists", "An active meter with the event name `%s` already exists.", name)
	}
	transitions := object{"deactivated_at": nil}
	name := "billing.meter.reactivated"
	if status == "inactive" {
		transitions["deactivated_at"] = s.now()
		name = "billing.meter.deactivated"
	}
	previous := s.change("billing.meter", o, object{"status": status, "status_transitions": transitions, "updated": s.now()})
	s.raise(c, name, o, previous)
	return o, nil
}

func (s *Server) activeMeter(eventName string) object {
	for o := range s.store.shelf("billing.meter").all {
		if text(o, "event_name") == eventName && text(o, "status") == "active" {
			return o
		}
	}
	return nil
}

// limit refuses a second meter event under way for the same customer and meter,
// and events beyond the rate that is switched on.
func (s *Server) limit(r *http.Request, values url.Values) (release func(), err *apiError) {
	release = func() {}
	if r.URL.Path != "/v1/billing/meter_events" || r.Method != http.MethodPost {
		return release, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := s.switches.MeterEventsPerSecond; most > 0 {
		if second := s.now(); second != s.meterSecond {
			s.meterSecond, s.meterCount = second, 0
		}
		if s.meterCount++; s.meterCount > most {
			return release, rateLimited("endpoint-rate")
		}
	}
	key := values.Get("event_name") + "\x00" + values.Get("payload[stripe_customer_id]")
	if s.inFlight[key] > 0 {
		return release, rateLimited("resource-specific")
	}
	s.inFlight[key]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inFlight[key]--; s.inFlight[key] <= 0 {
			delete(s.inFlight, key)
		}
	}, nil
}

func (s *Server) takeMeterEvent(c *call) (object, *apiError) {
	if err := c.require("event_name", "payload"); err != nil {
		return nil, err
	}
	now := s.clock.Now()
	at := now
	if c.has("timestamp") {
		at = time.Unix(c.number("timestamp"), 0)
	}
	if oldest := now.Add(-eventAgeMax); at.Before(oldest) {
		return nil, invalid("timestamp", "timestamp_too_far_in_past", "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to %d.", oldest.Unix()).noRetry()
	}
	if at.After(now.Add(eventAheadMax)) {
		return nil, invalid("timestamp", "timestamp_in_future", "The event timestamp cannot be more than 5 minutes in the future.").noRetry()
	}
	s.meters.settle(now)
	identifier := c.text("identifier")
	if identifier == "" {
		identifier = s.newID("auto")
	}
	if len(identifier) > identifierMax {
		return nil, invalid("identifier", "parameter_invalid_string_length", "Invalid string: must be at most %d characters", identifierMax)
	}
	if s.meters.recent[identifier] != nil {
		return nil, invalid("identifier", "", "An event already exists with identifier %s.", identifier).noRetry()
	}
	record, problem := s.meterRecord(c, at, now, identifier)
	if problem != "" {
		if s.switches.MeterErrorsSync || problem == "meter_event_invalid_value" {
			return nil, invalid("payload", problem, "The meter event is invalid: %s.", problem).noRetry()
		}
		s.reportMeterError(c, problem, identifier)
		record.Lost = true
	}
	s.meters.take(record)
	s.meters.settle(now)
	raw, _ := json.Marshal(record) // plain values always encode
	s.store.log(entry{Type: "meter", Raw: raw})
	return object{
		"object": "billing.meter_event", "created": now.Unix(), "event_name": c.text("event_name"), "identifier": identifier, "livemode": false,
		"payload": maps.Clone(child(c.values, "payload")), "timestamp": at.Unix(),
	}, nil
}

// meterRecord finds meter, customer and value of an event, or the code of what is
// wrong with them.
func (s *Server) meterRecord(c *call, at, now time.Time, identifier string) (record *meterRecord, problem string) {
	record = &meterRecord{
		Minute: at.Unix() - at.Unix()%60, Identifier: identifier, Received: now, Value: "0", Lost: c.fault != nil && c.fault.Fault == "lose",
		Counts: now.Add(time.Duration(s.switches.MeterLagSeconds) * time.Second),
	}
	meter := s.activeMeter(c.text("event_name"))
	if meter == nil {
		return record, "no_meter"
	}
	payload := child(c.values, "payload")
	record.Meter = text(meter, "id")
	record.Customer = text(payload, text(child(meter, "customer_mapping"), "event_payload_key"))
	record.Value = "1"
	if text(child(meter, "default_aggregation"), "formula") == "sum" || text(payload, text(child(meter, "value_settings"), "event_payload_key")) != "" {
		record.Value = text(payload, text(child(meter, "value_settings"), "event_payload_key"))
	}
	switch o := s.store.get("customer", record.Customer); {
	case record.Customer == "":
		return record, "meter_event_no_customer_defined"
	case o == nil || flag(o, "deleted"):
		return record, "meter_event_customer_not_found"
	case record.Value == "":
		record.Value = "0"
		return record, "meter_event_value_not_found"
	case !decimalForm.MatchString(record.Value), s.switches.WholeMeterValues && strings.Contains(record.Value, "."):
		record.Value = "0"
		return record, "meter_event_invalid_value"
	}
	if text(child(meter, "default_aggregation"), "formula") == "count" {
		record.Value = "1"
	}
	return record, ""
}

// reportMeterError keeps a report and sends it as a thin event of the v2 API.
func (s *Server) reportMeterError(c *call, code, identifier string) {
	kind := "v1.billing.meter.error_report_triggered"
	if code == "no_meter" {
		kind = "v1.billing.meter.no_meter_found"
	}
	now := s.clock.Now()
	report := object{
		"id": s.newID("evt"), "object": "v2.core.event", "type": kind, "livemode": false, "created": now.UTC().Format("2006-01-02T15:04:05.000Z"),
		"data": object{
			"developer_message_summary": "There is 1 invalid event", "validation_start": now.UTC().Format(time.RFC3339), "validation_end": now.UTC().Format(time.RFC3339),
			"reason": object{"error_count": 1, "error_types": []any{object{
				"code": code, "error_count": 1, "sample_errors": []any{object{"error_message": code, "request": object{"identifier": identifier}}},
			}}},
		},
	}
	if meter := s.activeMeter(c.text("event_name")); meter != nil {
		report["related_object"] = object{"id": meter["id"], "type": "billing.meter", "url": "/v1/billing/meters/" + text(meter, "id")}
	}
	s.meters.errors = append(s.meters.errors, report)
	s.schedule(report)
}

func (s *Server) adjustMeterEvent(c *call) (object, *apiError) {
	if err := c.require("event_name", "type"); err != nil {
		return nil, err
	}
	identifier := c.child("cancel").text("identifier")
	if identifier == "" || c.text("type") != "cancel" {
		return nil, invalid("cancel[identifier]", "parameter_missing", "Missing required param: cancel[identifier].")
	}
	now := s.clock.Now()
	s.meters.settle(now)
	r := s.meters.recent[identifier]
	if r == nil || now.Sub(r.Received) > adjustmentAgeMax {
		return nil, invalid("cancel[identifier]", "resource_missing", "No meter event found within the last 24 hours with identifier %s.", identifier)
	}
	cancellation := &meterRecord{Identifier: identifier, Cancels: true, Received: now}
	s.meters.take(cancellation)
	raw, _ := json.Marshal(cancellation) // plain values always encode
	s.store.log(entry{Type: "meter", Raw: raw})
	return object{
		"object": "billing.meter_event_adjustment", "event_name": c.text("event_name"), "livemode": false, "status": "pending", "type": "cancel",
		"cancel": object{"identifier": identifier},
	}, nil
}

func (s *Server) summaries(c *call) (object, *apiError) {
	meter, err := s.find("billing.meter", c.target(), "id")
	if err == nil {
		err = c.require("customer", "start_time", "end_time")
	}
	if err != nil {
		return nil, err
	}
	from, to := c.number("start_time"), c.number("end_time")
	step, unit := to-from, int64(60)
	switch c.text("value_grouping_window") {
	case "":
	case "hour":
		step, unit = 3600, 3600
	case "day":
		step, unit = 86400, 86400
	default:
		return nil, invalid("value_grouping_window", "", "Invalid value_grouping_window: must be one of day or hour")
	}
	if from%unit != 0 || to%unit != 0 {
		return nil, invalid("start_time", "", "start_time and end_time must be aligned with the boundaries of a %s.", map[int64]string{60: "minute", 3600: "hour", 86400: "day"}[unit])
	}
	if from >= to {
		return nil, invalid("end_time", "", "end_time must be after start_time.")
	}
	s.meters.settle(s.clock.Now())
	key := meterCustomer{text(meter, "id"), c.text("customer")}
	var rows []any
	for start := to - step; start >= from; start -= step {
		sum := s.meters.total(key, start, start+step)
		if sum.Sign() == 0 && c.has("value_grouping_window") {
			continue
		}
		rows = append(rows, object{
			"id": "mtrusg_" + strconv.FormatInt(start, 36) + strconv.FormatInt(step, 36) + text(meter, "id")[len("mtr_test_"):], "object": "billing.meter_event_summary",
			"aggregated_value": json.Number(decimalText(sum)), "start_time": start, "end_time": start + step, "livemode": false, "meter": meter["id"],
		})
	}
	return page(c, c.r.URL.Path, "billing.meter_event_summary", rows)
}

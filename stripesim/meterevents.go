package stripesim

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of meter events.
const (
	daySeconds       = 86400
	eventAgeMax      = 35 * daySeconds
	eventAheadMax    = 5 * 60
	identifierAge    = 24 * time.Hour
	adjustmentAgeMax = 24 * time.Hour
	identifierMax    = 100
	payloadValueMax  = 100
)

// meterRecord is what is journalled of an event, or of its leaving the sums
// again. Received, Counts and Until are Unix nanoseconds.
type meterRecord struct {
	Meter      string `json:"m"`
	Customer   string `json:"c"`
	Window     int64  `json:"w"` // seconds, of which only the last event counts
	Last       bool   `json:"f"`
	At         int64  `json:"a"` // Unix seconds: the time of the usage
	Value      string `json:"v"`
	Identifier string `json:"i"`
	Received   int64  `json:"r"`
	Counts     int64  `json:"n"` // when it enters or leaves the sums
	Until      int64  `json:"u"` // then the identifier is forgotten
	Lost       bool   `json:"l"` // accepted, and never counted
	Leaves     string `json:"x"`
}

// Why an event leaves the sums again.
const (
	leavesCanceled = "canceled"
	leavesInvalid  = "invalid" // it was found so after it had been accepted
)

func (b *meterBook) restore(raw json.RawMessage) error {
	var r meterRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return err
	}
	b.settle(time.Unix(0, r.Received))
	b.take(&r)
	return nil
}

// record enters a record into the book and the journal.
func (s *Server) record(r *meterRecord) {
	s.meters.take(r)
	if s.store.persistent() {
		raw, _ := json.Marshal(r) // plain values always encode
		s.store.log(entry{Type: "meter", Raw: raw})
	}
}

func (s *Server) routeMeterEvents() {
	event := spec{"event_name": "string", "identifier": "string", "timestamp": "int", "payload": "map"}
	s.handle("POST /v1/billing/meter_events", event, func(c *call) (object, *apiError) { return s.takeMeterEvent(c) })
	adjustment := spec{"event_name": "string", "type": "string", "cancel": spec{"identifier": "string"}}
	s.handle("POST /v1/billing/meter_event_adjustments", adjustment, func(c *call) (object, *apiError) { return s.adjustMeterEvent(c) })
	summary := listSpec(spec{"customer": "string", "start_time": "int", "end_time": "int", "value_grouping_window": "string"})
	s.handle("GET /v1/billing/meters/{id}/event_summaries", summary, func(c *call) (object, *apiError) { return s.summaries(c) })
}

// checkMeterEvent refuses what is no meter event at all, whatever meter it is for.
func (s *Server) checkMeterEvent(c *call) *apiError {
	if err := firstError(c.require("event_name", "payload"), c.short("event_name", "event_name", eventNameMax), c.short("identifier", "identifier", identifierMax)); err != nil {
		return err
	}
	for key, v := range child(c.values, "payload") {
		if text, _ := v.(string); utf8.RuneCountInString(text) > payloadValueMax {
			return invalid("payload["+key+"]", "", "Invalid string: %s; must be at most %d characters", clip(text), payloadValueMax)
		}
	}
	return nil
}

func (s *Server) takeMeterEvent(c *call) (object, *apiError) {
	if err := s.checkMeterEvent(c); err != nil {
		return nil, err
	}
	now, payload, meter := s.clock.Now(), child(c.values, "payload"), s.meterNamed(c.text("event_name"))
	seconds := s.timeOfCustomer(meter, payload)
	r := &meterRecord{At: seconds, Identifier: c.text("identifier"), Received: now.UnixNano(), Value: "0"}
	if c.has("timestamp") {
		r.At = c.number("timestamp")
	}
	problem := outOfTime(r.At, seconds)
	if problem != nil && !s.switches.MeterErrorsAsync {
		return nil, problem.refusal()
	}
	if r.Identifier != "" && s.meters.remembered(r.Identifier, r.Received) != nil {
		return nil, s.duplicate(r.Identifier)
	}
	if problem == nil {
		problem = s.meterProblem(meter, payload, r)
	}
	if problem != nil && (s.switches.MeterErrorsSync || (problem.sync && !s.switches.MeterErrorsAsync)) {
		return nil, problem.refusal()
	}
	if problem == nil {
		problem = s.meters.plannedFailure(c.text("event_name"))
	}
	if r.Identifier == "" {
		r.Identifier = s.newID("auto")
	}
	r.Counts = now.Add(s.meterLag()).UnixNano()
	r.Until = now.Add(s.remembered(identifierAge)).UnixNano()
	r.Lost = problem != nil || (c.fault != nil && c.fault.Fault == "lose")
	s.record(r)
	if problem != nil {
		s.reportMeterError(meter, problem, r.Identifier)
	}
	return object{
		"object": "billing.meter_event", "created": seconds, "event_name": c.text("event_name"), "identifier": r.Identifier, "livemode": false,
		"payload": maps.Clone(payload), "timestamp": r.At,
	}, nil
}

// timeOfCustomer is the time that an event's own is held against: the customer's
// test clock, where it has one. What is remembered for so long is remembered by the
// simulator's clock all the same.
func (s *Server) timeOfCustomer(m *meterInfo, payload object) (seconds int64) {
	var customer object
	if m != nil {
		customer = s.store.get("customer", text(payload, m.customerKey))
	}
	s.onClockOf(customer, func() { seconds = s.now() })
	return seconds
}

func (s *Server) duplicate(identifier string) *apiError {
	return invalid("identifier", s.switches.DuplicateEventCode, "An event already exists with identifier %s.", identifier).noRetry()
}

// outOfTime tells what is wrong with the time of an event.
func outOfTime(at, now int64) *meterProblem {
	switch {
	case at < now-eventAgeMax:
		return &meterProblem{
			code: "timestamp_too_far_in_past", param: "timestamp", sync: true,
			message: "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to " + strconv.FormatInt(now-eventAgeMax, 10) + ".",
		}
	case at > now+eventAheadMax:
		return &meterProblem{
			code: "timestamp_in_future", param: "timestamp", sync: true,
			message: "The event timestamp cannot be more than 5 minutes in the future.",
		}
	}
	return nil
}

// meterLag is how long an event stays out of the sums.
func (s *Server) meterLag() time.Duration {
	lag := s.switches.MeterLagSeconds
	if jitter := s.switches.MeterLagJitterSeconds; jitter > 0 {
		lag += s.random.Int64N(jitter + 1)
	}
	return time.Duration(lag) * time.Second
}

// meterProblem fills in what a meter makes of an event, or tells what is wrong.
func (s *Server) meterProblem(m *meterInfo, payload object, r *meterRecord) *meterProblem {
	if m == nil {
		return problemOf("no_meter")
	}
	r.Meter, r.Window, r.Last, r.Customer = m.id, m.window, m.last, text(payload, m.customerKey)
	if m.last && r.Window == 0 {
		r.Window = 1 // of one second's events, too, the last one is the value
	}
	if !m.active {
		return problemOf("archived_meter")
	}
	value := text(payload, m.valueKey)
	switch customer := s.store.get("customer", r.Customer); {
	case r.Customer == "":
		return problemOf("meter_event_no_customer_defined")
	case customer == nil || flag(customer, "deleted"):
		return problemOf("meter_event_customer_not_found")
	case m.counts && value == "":
		value = "1"
	case value == "":
		return problemOf("meter_event_value_not_found")
	}
	exact, ok := parseDecimal(value)
	if !ok || (s.switches.WholeMeterValues && strings.Contains(value, ".")) || !s.meters.fits(meterCustomer{r.Meter, r.Customer}, exact) {
		return problemOf("meter_event_invalid_value")
	}
	if r.Value = value; m.counts {
		r.Value = "1"
	}
	return nil
}

// adjustMeterEvent cancels an event.
func (s *Server) adjustMeterEvent(c *call) (object, *apiError) {
	if err := c.require("event_name", "type"); err != nil {
		return nil, err
	}
	if c.text("type") != "cancel" {
		return nil, invalid("type", "", "Invalid type: must be cancel")
	}
	identifier := c.child("cancel").text("identifier")
	if identifier == "" {
		return nil, invalid("cancel[identifier]", "parameter_missing", "Missing required param: cancel[identifier].")
	}
	if err := firstError(c.short("event_name", "event_name", eventNameMax), c.child("cancel").short("identifier", "cancel[identifier]", identifierMax)); err != nil {
		return nil, err
	}
	now := s.clock.Now()
	e := s.meters.remembered(identifier, now.UnixNano())
	if e == nil || now.UnixNano()-e.received > int64(adjustmentAgeMax) || !s.isOf(e, c.text("event_name")) {
		return nil, invalid("cancel[identifier]", "resource_missing", "No meter event found within the last 24 hours with identifier %s.", identifier)
	}
	gone := e.leaving || e.state == stateCanceled
	if gone && s.switches.RefuseSecondAdjustment {
		return nil, invalid("cancel[identifier]", "", "The meter event with identifier %s has already been canceled.", identifier)
	}
	if !gone {
		lag := time.Duration(s.switches.AdjustmentLagSeconds) * time.Second
		s.record(&meterRecord{Identifier: identifier, Leaves: leavesCanceled, Received: now.UnixNano(), Counts: now.Add(lag).UnixNano()})
	}
	status := "pending"
	if s.switches.AdjustmentsComplete {
		status = "complete"
	}
	return object{
		"object": "billing.meter_event_adjustment", "event_name": c.text("event_name"), "livemode": false, "status": status, "type": "cancel",
		"cancel": object{"identifier": identifier},
	}, nil
}

// isOf tells whether an event may have had a name. Of one that never counted the
// name is not kept.
func (s *Server) isOf(e *meterEvent, eventName string) bool {
	return e.series == nil || text(s.store.get("billing.meter", e.series.key.meter), "event_name") == eventName
}

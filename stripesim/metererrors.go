package stripesim

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// meterProblem is why a meter event does not count.
type meterProblem struct {
	code    string
	param   string
	message string
	sync    bool // it is found out before the answer, unless a switch says otherwise
}

// meterProblems are the problems that Stripe knows, in its order of telling.
var meterProblems = []meterProblem{
	{code: "meter_event_customer_not_found", message: "The customer of the meter event does not exist or is deleted."},
	{code: "meter_event_no_customer_defined", message: "The payload of the meter event names no customer."},
	{code: "meter_event_dimension_count_too_high", message: "The payload of the meter event has too many dimensions."},
	{code: "archived_meter", message: "The meter of the meter event is inactive."},
	{code: "timestamp_too_far_in_past", message: "The timestamp of the meter event is too far in the past."},
	{code: "timestamp_in_future", message: "The timestamp of the meter event is too far in the future."},
	{code: "meter_event_value_not_found", message: "The payload of the meter event has no value."},
	{code: "meter_event_invalid_value", message: "The value of the meter event is not a number that is accepted.", sync: true},
	{code: "missing_dimension_payload_keys", message: "The payload of the meter event lacks the key of a dimension."},
	{code: "no_meter", message: "There is no meter with the event name of the meter event."},
}

// MeterErrorCodes lists what can be wrong with a meter event.
var MeterErrorCodes = func() (codes []string) {
	for _, p := range meterProblems {
		codes = append(codes, p.code)
	}
	return codes
}()

// problemOf gives the problem of a code, nil when there is none.
func problemOf(code string) *meterProblem {
	for i := range meterProblems {
		if meterProblems[i].code == code {
			return &meterProblems[i]
		}
	}
	return nil
}

func (p *meterProblem) refusal() *apiError {
	param := p.param
	if param == "" {
		param = "payload"
	}
	return invalid(param, p.code, "%s", p.message).noRetry()
}

// Reports of errors that were found out after the answer.
const (
	reportKind       = "v2.core.event"
	reportSeconds    = 10 // errors of so long share a report
	reportSamplesMax = 3  // of one code; the others are only counted
)

func (s *Server) routeMeterErrors() {
	s.agenda.do[reportKind] = s.reportDue
	s.handle("GET /v2/core/events/{id}", nil, func(c *call) (object, *apiError) {
		o, err := s.find(reportKind, c.target(), "id")
		if err == nil && !flag(o, "_sent") {
			err = missing(reportKind, c.target(), "id")
		}
		return o, err
	})
	s.control("POST /_sim/meter_errors", func(r *http.Request) (any, error) {
		var q struct {
			Code       string `json:"code"`
			Identifier string `json:"identifier"`
			EventName  string `json:"event_name"`
			Times      int    `json:"times"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		if q.Identifier != "" {
			return object{"invalid": q.Identifier}, s.InvalidateMeterEvent(q.Identifier, q.Code)
		}
		return object{"times": max(q.Times, 1)}, s.FailMeterEvents(q.EventName, q.Code, q.Times)
	})
}

// meterFailure makes the next events turn out to be invalid.
type meterFailure struct {
	eventName string
	problem   *meterProblem
	times     int
}

// FailMeterEvents lets the next so many events of a name ("" is any) be answered
// as accepted, never count, and be reported later, for the reason of a code. It
// fails when MeterErrorCodes does not have the code.
func (s *Server) FailMeterEvents(eventName, code string, times int) error {
	p, err := knownProblem(code)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.meters.failNext = append(s.meters.failNext, &meterFailure{eventName: eventName, problem: p, times: max(times, 1)})
	return nil
}

// InvalidateMeterEvent lets an event that was accepted, and may long have counted,
// leave the sums and be reported, for the reason of a code. It fails when the
// identifier is not remembered or does not count, and when MeterErrorCodes does
// not have the code.
func (s *Server) InvalidateMeterEvent(identifier, code string) error {
	p, err := knownProblem(code)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	now := s.clock.Now()
	e := s.meters.remembered(identifier, now.UnixNano())
	if e == nil || e.state == stateCanceled || e.state == stateInvalid {
		return fmt.Errorf("no meter event with the identifier %q counts; the simulator remembers identifiers for as long as Stripe does", identifier)
	}
	meter := readMeter(s.store.get("billing.meter", e.series.key.meter))
	s.record(&meterRecord{Identifier: identifier, Leaves: leavesInvalid, Received: now.UnixNano()})
	s.reportMeterError(meter, p, identifier)
	return nil
}

func knownProblem(code string) (*meterProblem, error) {
	if p := problemOf(code); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("the code %q is unknown; it is one of %s", code, strings.Join(MeterErrorCodes, ", "))
}

// plannedFailure gives the problem that an event was planned to have, if any.
func (b *meterBook) plannedFailure(eventName string) *meterProblem {
	for i, f := range b.failNext {
		if f.eventName == "" || f.eventName == eventName {
			if f.times--; f.times == 0 {
				b.failNext = slices.Delete(b.failNext, i, i+1)
			}
			return f.problem
		}
	}
	return nil
}

// reportMeterError notes an error for the report of its meter that goes out next.
// It is a thin event of the v2 API.
func (s *Server) reportMeterError(meter *meterInfo, p *meterProblem, identifier string) {
	about := ""
	if meter != nil {
		about = meter.id
	}
	if s.meters.open == nil {
		s.meters.open = map[string]object{}
		for o := range s.store.shelf(reportKind).all {
			if !flag(o, "_sent") {
				s.meters.open[text(child(o, "related_object"), "id")] = o
			}
		}
	}
	report := s.meters.open[about]
	if report == nil {
		report = s.newReport(about)
		s.meters.open[about] = report
	}
	reason := child(child(report, "data"), "reason")
	reason["error_count"] = number(reason, "error_count") + 1
	noteError(reason, p, identifier)
	child(report, "data")["developer_message_summary"] = errorCount(number(reason, "error_count"))
	s.store.put(reportKind, report)
}

func errorCount(n int64) string {
	if n == 1 {
		return "There is 1 invalid event"
	}
	return fmt.Sprintf("There are %d invalid events", n)
}

func (s *Server) newReport(meter string) object {
	now := s.clock.Now().UTC()
	end := now.Add(reportSeconds * time.Second)
	o := object{
		"id": s.newID("evt_test"), "object": reportKind, "type": "v1.billing.meter.no_meter_found", "livemode": false, "created": end.Format(milliseconds),
		"data": object{
			"developer_message_summary": "", "reason": object{"error_count": int64(0), "error_types": []any{}},
			"validation_start": now.Format(milliseconds), "validation_end": end.Format(milliseconds),
		},
	}
	if meter != "" {
		o["type"] = "v1.billing.meter.error_report_triggered"
		o["related_object"] = object{"id": meter, "type": "billing.meter", "url": "/v1/billing/meters/" + meter}
	}
	s.setAlarm(reportKind, o, end.Unix()+s.switches.ErrorLagSeconds)
	return o
}

// milliseconds is the form of times in the v2 API.
const milliseconds = "2006-01-02T15:04:05.000Z"

func noteError(reason object, p *meterProblem, identifier string) {
	types, _ := reason["error_types"].([]any)
	i := slices.IndexFunc(types, func(t any) bool { return text(t.(object), "code") == p.code })
	if i < 0 {
		i = len(types)
		types = append(types, object{"code": p.code, "error_count": int64(0), "sample_errors": []any{}})
		reason["error_types"] = types
	}
	kind := types[i].(object)
	kind["error_count"] = number(kind, "error_count") + 1
	if samples, _ := kind["sample_errors"].([]any); len(samples) < reportSamplesMax {
		kind["sample_errors"] = append(samples, object{"error_message": p.message, "request": object{"identifier": identifier}})
	}
}

// reportDue sends a report, and drops it as long afterwards as events are kept.
func (s *Server) reportDue(o object) {
	if flag(o, "_sent") {
		s.store.delete(reportKind, text(o, "id"))
		return
	}
	o["_sent"] = true
	delete(s.meters.open, text(child(o, "related_object"), "id"))
	s.schedule(o)
	s.setAlarm(reportKind, o, s.now()+int64(eventAge/time.Second))
}

// reports gives the error reports that went out, the oldest first.
func (s *Server) reports() []object {
	all := []object{}
	for o := range s.store.shelf(reportKind).all {
		if flag(o, "_sent") {
			all = append(all, s.view(o, nil))
		}
	}
	return all
}

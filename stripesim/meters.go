package stripesim

import (
	"net/http"
	"net/url"
	"unicode/utf8"
)

// Bounds of meters, in characters.
const (
	displayNameMax = 250
	eventNameMax   = 100
	payloadKeyMax  = 100
)

func (s *Server) routeMeters() {
	create := spec{
		"display_name": "string", "event_name": "string", "event_time_window": "string", "default_aggregation": spec{"formula": "string"},
		"customer_mapping": spec{"event_payload_key": "string", "type": "string"}, "value_settings": spec{"event_payload_key": "string"},
	}
	s.handle("POST /v1/billing/meters", create, func(c *call) (object, *apiError) { return s.makeMeter(c) })
	s.handle("GET /v1/billing/meters/{id}", nil, func(c *call) (object, *apiError) { return s.find("billing.meter", c.target(), "id") })
	s.handle("POST /v1/billing/meters/{id}", spec{"display_name": "string"}, func(c *call) (object, *apiError) { return s.renameMeter(c) })
	s.handle("POST /v1/billing/meters/{id}/deactivate", nil, func(c *call) (object, *apiError) { return s.switchMeter(c, "inactive") })
	s.handle("POST /v1/billing/meters/{id}/reactivate", nil, func(c *call) (object, *apiError) { return s.switchMeter(c, "active") })
	s.handle("GET /v1/billing/meters", listSpec(spec{"status": "string"}), func(c *call) (object, *apiError) {
		if status := c.text("status"); c.has("status") && status != "active" && status != "inactive" {
			return nil, invalid("status", "", "Invalid status: must be one of active or inactive")
		}
		return s.list(c, "billing.meter", func(o object) bool { return !c.has("status") || text(o, "status") == c.text("status") })
	})
	s.routeMeterEvents()
	s.routeMeterErrors()
}

// short refuses a text of more characters than Stripe takes.
func (p params) short(name, full string, most int) *apiError {
	if v := p.text(name); utf8.RuneCountInString(v) > most {
		return invalid(full, "", "Invalid string: %s; must be at most %d characters", clip(v), most)
	}
	return nil
}

// clip shows the beginning of a text that is too long to be shown.
func clip(v string) string {
	shown := []rune(v)
	return string(shown[:min(len(shown), 20)]) + "..."
}

// firstError gives the first one that is an error.
func firstError(all ...*apiError) *apiError {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

// payloadKey reads the payload key of a group of parameters, or gives the default
// of a group that was left out.
func (c *call) payloadKey(group, otherwise string) (string, *apiError) {
	if !c.has(group) {
		return otherwise, nil
	}
	full := group + "[event_payload_key]"
	p := c.child(group)
	if p.text("event_payload_key") == "" {
		return "", invalid(full, "parameter_missing", "Missing required param: %s.", full)
	}
	return p.text("event_payload_key"), p.short("event_payload_key", full, payloadKeyMax)
}

func (s *Server) checkMeter(c *call) *apiError {
	err := firstError(c.require("display_name", "event_name", "default_aggregation"), c.short("display_name", "display_name", displayNameMax), c.short("event_name", "event_name", eventNameMax))
	if err != nil {
		return err
	}
	formula := c.child("default_aggregation").text("formula")
	switch {
	case formula == "":
		return invalid("default_aggregation[formula]", "parameter_missing", "Missing required param: default_aggregation[formula].")
	case formula == "last" && s.switches.FormulaLast:
	case formula != "sum" && formula != "count":
		return invalid("default_aggregation[formula]", "", "Invalid default_aggregation[formula]: must be one of count or sum")
	}
	if window := c.text("event_time_window"); window != "" && window != "hour" && window != "day" {
		return invalid("event_time_window", "", "Invalid event_time_window: must be one of day or hour")
	}
	switch mapping := c.child("customer_mapping"); {
	case !c.has("customer_mapping"):
	case mapping.text("type") == "":
		return invalid("customer_mapping[type]", "parameter_missing", "Missing required param: customer_mapping[type].")
	case mapping.text("type") != "by_id":
		return invalid("customer_mapping[type]", "", "Invalid customer_mapping[type]: must be by_id")
	}
	return s.nameIsFree(c.text("event_name"))
}

// nameIsFree refuses a second active meter of an event name: Stripe would not
// know which of them an event is meant for.
func (s *Server) nameIsFree(eventName string) *apiError {
	if m := s.meterNamed(eventName); m != nil && m.active {
		return invalid("event_name", "resource_already_exists", "An active meter with the event name `%s` already exists.", eventName)
	}
	return nil
}

func (s *Server) makeMeter(c *call) (object, *apiError) {
	customerKey, badCustomer := c.payloadKey("customer_mapping", "stripe_customer_id")
	valueKey, badValue := c.payloadKey("value_settings", "value")
	if err := firstError(s.checkMeter(c), badCustomer, badValue); err != nil {
		return nil, err
	}
	o := object{
		"id": s.newID("mtr_test"), "object": "billing.meter", "created": s.now(), "updated": s.now(), "livemode": false, "status": "active",
		"display_name": c.text("display_name"), "event_name": c.text("event_name"), "event_time_window": c.orNull("event_time_window"),
		"default_aggregation": object{"formula": c.child("default_aggregation").text("formula")}, "status_transitions": object{"deactivated_at": nil},
		"customer_mapping": object{"event_payload_key": customerKey, "type": "by_id"}, "value_settings": object{"event_payload_key": valueKey},
	}
	s.store.put("billing.meter", o)
	s.meterChanged(c, "billing.meter.created", o, nil)
	return o, nil
}

// meterChanged raises the events that newer API versions have for meters.
func (s *Server) meterChanged(c *call, kind string, o, previous object) {
	s.meters.names = nil
	if s.switches.MeterEventsRaised {
		s.raise(c, kind, o, previous)
	}
}

func (s *Server) renameMeter(c *call) (object, *apiError) {
	o, err := s.find("billing.meter", c.target(), "id")
	if err == nil && c.has("display_name") && c.text("display_name") == "" {
		err = invalid("display_name", "parameter_invalid_empty", "You passed an empty string for 'display_name'. We assume empty values are an attempt to unset a parameter; however 'display_name' cannot be unset.")
	}
	if err == nil {
		err = c.short("display_name", "display_name", displayNameMax)
	}
	if err != nil {
		return nil, err
	}
	if c.has("display_name") {
		previous := s.change("billing.meter", o, object{"display_name": c.text("display_name"), "updated": s.now()})
		s.meterChanged(c, "billing.meter.updated", o, previous)
	}
	return o, nil
}

func (s *Server) switchMeter(c *call, status string) (object, *apiError) {
	o, err := s.find("billing.meter", c.target(), "id")
	if err == nil && text(o, "status") == status {
		err = invalid("", "", "The meter is already %s.", status)
	}
	if err == nil && status == "active" {
		err = s.nameIsFree(text(o, "event_name"))
	}
	if err != nil {
		return nil, err
	}
	transitions, name := object{"deactivated_at": nil}, "billing.meter.reactivated"
	if status == "inactive" {
		transitions, name = object{"deactivated_at": s.now()}, "billing.meter.deactivated"
	}
	previous := s.change("billing.meter", o, object{"status": status, "status_transitions": transitions, "updated": s.now()})
	s.meterChanged(c, name, o, previous)
	return o, nil
}

// meterInfo is what an event asks of a meter.
type meterInfo struct {
	id, eventName         string
	customerKey, valueKey string
	active, counts, last  bool
	archived              int64 // when; 0: never
	window                int64 // seconds, of which only the last event counts; 0: all count
}

// meterNamed gives the meter that events of a name are meant for: the active one,
// else the one that was archived last; nil when there is none.
func (s *Server) meterNamed(eventName string) *meterInfo {
	if s.meters.names == nil {
		s.meters.names = map[string]*meterInfo{}
		for o := range s.store.shelf("billing.meter").all {
			m, stands := readMeter(o), s.meters.names[text(o, "event_name")]
			if stands == nil || m.active || (!stands.active && m.archived >= stands.archived) {
				s.meters.names[m.eventName] = m
			}
		}
	}
	return s.meters.names[eventName]
}

func readMeter(o object) *meterInfo {
	formula := text(child(o, "default_aggregation"), "formula")
	return &meterInfo{
		id: text(o, "id"), eventName: text(o, "event_name"), active: text(o, "status") == "active", counts: formula == "count", last: formula == "last",
		customerKey: text(child(o, "customer_mapping"), "event_payload_key"), valueKey: text(child(o, "value_settings"), "event_payload_key"),
		archived: number(child(o, "status_transitions"), "deactivated_at"),
		window:   map[string]int64{"hour": hourSeconds, "day": daySeconds}[text(o, "event_time_window")],
	}
}

// flight is a customer and a meter of which one event is under way.
type flight struct{ meter, customer string }

// limit refuses a second meter event under way for the same customer and meter,
// and events beyond the rate that is switched on.
func (s *Server) limit(r *http.Request, values url.Values) (release func(), err *apiError) {
	if r.URL.Path != "/v1/billing/meter_events" || r.Method != http.MethodPost {
		return func() {}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := s.switches.MeterEventsPerSecond; most > 0 {
		if second := s.now(); second != s.meterSecond {
			s.meterSecond, s.meterCount = second, 0
		}
		if s.meterCount++; s.meterCount > most {
			return nil, rateLimited("endpoint-rate")
		}
	}
	f, customerKey := flight{meter: values.Get("event_name")}, "stripe_customer_id"
	if m := s.meterNamed(f.meter); m != nil {
		customerKey = m.customerKey
	}
	if f.customer = values.Get("payload[" + customerKey + "]"); f.customer == "" {
		return func() {}, nil
	}
	if _, busy := s.inFlight[f]; busy {
		return nil, rateLimited("resource-specific")
	}
	s.inFlight[f] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.inFlight, f)
	}, nil
}

package stripesim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Rule says which events something happens to: a share of all, or the next few of
// some types.
type Rule struct {
	Types       []string `json:"types,omitempty"`       // with * as in a filter of events; none: all
	Times       int      `json:"times,omitempty"`       // 0: without end
	Probability *float64 `json:"probability,omitempty"` // nothing: always; 0: never
}

// UnmarshalJSON takes an object, or a bare number as the probability.
func (r *Rule) UnmarshalJSON(data []byte) error {
	var share float64
	if err := json.Unmarshal(data, &share); err == nil {
		*r = Rule{Probability: &share}
		return nil
	}
	type plain Rule
	var p plain
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return errors.New(`a rule must be a share from 0 to 1, or {"types": […], "times": n, "probability": p}`)
	}
	*r = Rule(p)
	return nil
}

// Webhooks say how the deliveries of events go wrong. A member that is nil leaves
// what stands; a rule of probability 0 ends one.
type Webhooks struct {
	Lose            *Rule  `json:"lose,omitempty"`              // nothing arrives, and Stripe believes it pending for ever
	Duplicate       *Rule  `json:"duplicate,omitempty"`         // it arrives twice
	DuplicateNewID  *Rule  `json:"duplicate_new_id,omitempty"`  // two events are made of one change
	BadSignature    *Rule  `json:"bad_signature,omitempty"`     // this one and those below spoil a try
	WrongSecret     *Rule  `json:"wrong_secret,omitempty"`      // signed with the secret of another endpoint
	OldTimestamp    *Rule  `json:"old_timestamp,omitempty"`     // signed an hour ago
	FutureTimestamp *Rule  `json:"future_timestamp,omitempty"`  // signed in an hour
	WrongLivemode   *Rule  `json:"wrong_livemode,omitempty"`    // livemode is true
	WrongAPIVersion *Rule  `json:"wrong_api_version,omitempty"` // api_version is not the endpoint's
	TruncatedBody   *Rule  `json:"truncated_body,omitempty"`    // half of the body that was signed
	Reorder         *bool  `json:"reorder,omitempty"`           // in no order
	DelayMS         *int64 `json:"delay_ms,omitempty"`          // of the simulator's time, before the first try
	Pause           *bool  `json:"pause,omitempty"`             // nothing is sent, until it is false again
}

// all gives every rule by its name.
func (w *Webhooks) all() map[string]**Rule {
	rules := map[string]**Rule{"lose": &w.Lose, "duplicate": &w.Duplicate, "duplicate_new_id": &w.DuplicateNewID}
	for _, m := range w.mangles() {
		rules[m.name] = m.rule
	}
	return rules
}

func (w *Webhooks) check() error {
	for name, r := range w.all() {
		rule := *r
		switch {
		case rule == nil:
		case rule.Probability != nil && (*rule.Probability < 0 || *rule.Probability > 1):
			return fmt.Errorf("%s: probability is %v; it is a number from 0 to 1", name, *rule.Probability)
		case rule.Times < 0:
			return fmt.Errorf("%s: times is %d; it is how often at most, or 0 for without end", name, rule.Times)
		}
	}
	if w.DelayMS != nil && *w.DelayMS < 0 {
		return fmt.Errorf("delay_ms is %d; it must not be negative", *w.DelayMS)
	}
	return nil
}

// SetWebhooks changes how deliveries go wrong, from now on.
func (s *Server) SetWebhooks(w Webhooks) error {
	if err := w.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rules := s.webhooks.rules.all()
	for name, r := range w.all() {
		if *r != nil {
			*rules[name] = (*r).clone()
		}
	}
	if w.Reorder != nil {
		s.webhooks.rules.Reorder = w.Reorder
	}
	if w.DelayMS != nil {
		s.webhooks.rules.DelayMS = w.DelayMS
	}
	if w.Pause != nil {
		s.webhooks.rules.Pause = w.Pause
	}
	s.logWebhooks()
	s.nudge()
	return nil
}

func (s *Server) logWebhooks() {
	raw, _ := json.Marshal(s.webhooks.rules) // plain values always encode
	s.store.log(entry{Type: "webhooks", Raw: raw})
}

// strikes tells whether a rule strikes an event, and counts that.
func (s *Server) strikes(rule **Rule, kind string) bool {
	r := *rule
	if r == nil || (len(r.Types) > 0 && !slices.ContainsFunc(r.Types, func(p string) bool { return matchesType(p, kind) })) {
		return false
	}
	if r.Probability != nil && s.random.Float64() >= *r.Probability {
		return false
	}
	if r.Times > 0 {
		if r.Times--; r.Times == 0 {
			*rule = nil
		}
		s.logWebhooks()
	}
	return true
}

// Redeliver sends an event again, once, to every endpoint that wants it, lost ones
// included. Tries that are still to come are made all the same.
func (s *Server) Redeliver(event string) error { return s.redeliver(event, "") }

func (s *Server) redeliver(event, endpoint string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find("event", event, "event")
	if err == nil && s.expired(e) {
		err = missing("event", event, "event")
	}
	if err != nil {
		return err
	}
	found := false
	for o := range s.store.shelf("webhook_endpoint").all {
		if id := text(o, "id"); wants(o, text(e, "type"), false) && (endpoint == "" || endpoint == id) {
			s.note(e, id, statePending)
			s.send(e, id, true)
			found = true
		}
	}
	if !found && endpoint != "" {
		return fmt.Errorf("endpoint %s is not there, disabled, or does not listen to %s", endpoint, text(e, "type"))
	}
	s.nudge()
	return nil
}

// Drain waits until no delivery of an event is due or under way.
func (s *Server) Drain(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		w := &s.webhooks
		busy := w.running > 0 || (len(w.queue) > 0 && !w.queue[0].Due.After(s.clock.Now()))
		s.mu.Unlock()
		if !busy {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// WebhookState counts deliveries.
type WebhookState struct {
	Queued    int      `json:"queued"`
	Delivered int64    `json:"delivered"`
	Failed    int64    `json:"failed"`
	Lost      int64    `json:"lost"`
	Paused    bool     `json:"paused"`
	Rules     Webhooks `json:"rules"`
}

func (s *Server) webhookState() WebhookState {
	w := &s.webhooks
	rules := w.rules
	for _, r := range rules.all() {
		*r = (*r).clone()
	}
	return WebhookState{Queued: len(w.open), Delivered: w.delivered, Failed: w.failed, Lost: w.lost, Paused: w.paused(), Rules: rules}
}

func (s *Server) routeWebhookControl() {
	s.control("GET /_sim/webhooks", func(*http.Request) (any, error) { return s.State().Webhooks, nil })
	s.control("POST /_sim/webhooks", func(r *http.Request) (any, error) {
		var q Webhooks
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		err := s.SetWebhooks(q)
		return s.State().Webhooks, err
	})
	s.control("GET /_sim/webhooks/deliveries", func(r *http.Request) (any, error) {
		event := r.URL.Query().Get("event")
		tries := slices.DeleteFunc(s.Deliveries(), func(d Delivery) bool { return event != "" && d.Event != event })
		return object{"data": tries}, nil
	})
	s.control("POST /_sim/webhooks/redeliver", func(r *http.Request) (any, error) {
		var q struct {
			Event    string `json:"event"`
			Endpoint string `json:"endpoint"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		return object{"redelivered": q.Event}, s.redeliver(q.Event, q.Endpoint)
	})
	s.control("POST /_sim/webhook_endpoints/{id}/roll_secret", func(r *http.Request) (any, error) {
		q := struct {
			Keep int64 `json:"keep_seconds"`
		}{Keep: int64(secretOverlap.Seconds())}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		secret, err := s.RollSecret(r.PathValue("id"), time.Duration(q.Keep)*time.Second)
		return object{"secret": secret}, err
	})
}

func (s *Server) routeFaultControl() {
	list := func() any { return object{"rules": s.Faults(), "faults": FaultNames} }
	s.control("GET /_sim/faults", func(*http.Request) (any, error) { return list(), nil })
	s.control("POST /_sim/faults", func(r *http.Request) (any, error) {
		var q struct {
			Rules []*Fault `json:"rules"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		err := s.AddFaults(q.Rules...)
		return list(), err
	})
	s.control("DELETE /_sim/faults", func(*http.Request) (any, error) {
		s.ClearFaults()
		return list(), nil
	})
	s.control("POST /_sim/api_keys/expire", func(r *http.Request) (any, error) {
		var q struct {
			Key string `json:"key"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		if q.Key == "" {
			return nil, errors.New("key is missing: it is the API key that is refused from now on")
		}
		s.ExpireKey(q.Key)
		return object{"expired": q.Key}, nil
	})
	s.control("GET /_sim/switches", func(*http.Request) (any, error) { return s.State().Switches, nil })
	s.control("POST /_sim/switches", func(r *http.Request) (any, error) {
		changed := s.State().Switches
		if err := decodeControl(r, &changed); err != nil {
			return nil, err
		}
		if err := s.SetSwitches(changed); err != nil {
			return nil, err
		}
		return changed, nil
	})
}

// SetSwitches sets all switches, from now on.
func (s *Server) SetSwitches(w Switches) error {
	if err := w.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.switches = w.clone()
	raw, _ := json.Marshal(w) // plain values always encode
	s.store.log(entry{Type: "switches", Raw: raw})
	return nil
}

func (w Switches) check() error {
	for name, v := range map[string]int64{
		"meter_lag_seconds": w.MeterLagSeconds, "event_lag_seconds": w.EventLagSeconds, "meter_events_per_second": int64(w.MeterEventsPerSecond),
		"memory_extra_seconds": w.MemoryExtraSeconds, "requests_per_second": int64(w.RequestsPerSecond),
		"endpoint_requests_per_second": int64(w.EndpointRequestsPerSecond), "concurrent_requests": int64(w.ConcurrentRequests),
		"endpoint_concurrent_requests": int64(w.EndpointConcurrentRequests), "webhook_timeout_ms": int64(w.WebhookTimeoutMS),
		"endpoint_disabled_after_days": int64(w.EndpointDisabledAfterDays),
	} {
		if v < 0 {
			return fmt.Errorf("%s is %d; it must not be negative", name, v)
		}
	}
	for kind, v := range w.ListLagSeconds {
		if v < 0 {
			return fmt.Errorf("list_lag_seconds of %s is %d; it must not be negative", kind, v)
		}
	}
	return nil
}

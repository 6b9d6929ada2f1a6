package stripesim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"
)

// rule says which deliveries something happens to: a share of all, or the next
// few of some types.
type rule struct {
	Types       []string `json:"types"`
	Times       int      `json:"times"` // 0: without end
	Probability *float64 `json:"probability"`
	on          bool
}

// UnmarshalJSON takes an object, or a bare number as the probability.
func (r *rule) UnmarshalJSON(data []byte) error {
	var share float64
	if err := json.Unmarshal(data, &share); err == nil {
		*r = rule{Probability: &share, on: share > 0}
		return nil
	}
	type plain rule
	var p plain
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return errors.New(`must be a share from 0 to 1, or {"types": […], "times": n, "probability": p}`)
	}
	*r = rule(p)
	r.on = true
	return nil
}

func (r *rule) strikes(random *mathrand.Rand, kind string) bool {
	if !r.on || (len(r.Types) > 0 && !slices.ContainsFunc(r.Types, func(p string) bool { return matchesType(p, kind) })) {
		return false
	}
	if r.Probability != nil && random.Float64() >= *r.Probability {
		return false
	}
	if r.Times > 0 {
		if r.Times--; r.Times == 0 {
			r.on = false
		}
	}
	return true
}

// control answers a call of the control plane with plain JSON.
func (s *Server) control(pattern string, h func(r *http.Request) (any, error)) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := h(r)
		status := http.StatusOK
		if err != nil {
			var e *apiError
			status, v = http.StatusBadRequest, object{"error": err.Error()}
			if errors.As(err, &e) && e.status == http.StatusNotFound {
				status = http.StatusNotFound
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v) // the client may be gone
	})
}

// Error is the message of the error, for the control plane.
func (e *apiError) Error() string { return e.message }

// decodeControl reads a JSON body; an empty one leaves dst as it is.
func decodeControl(r *http.Request, dst any) error {
	d := json.NewDecoder(io.LimitReader(r.Body, bodyMax))
	d.DisallowUnknownFields()
	if err := d.Decode(dst); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("the body is not as docs/stripesim.md says: %w", err)
	}
	return nil
}

func (s *Server) routeControl() {
	s.control("GET /_sim/state", func(*http.Request) (any, error) { return s.State(), nil })
	s.control("GET /_sim/requests", func(*http.Request) (any, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return object{"data": shownRequests(s.log)}, nil
	})
	s.control("GET /_sim/clock", func(*http.Request) (any, error) { return object{"now": s.now()}, nil })
	s.control("POST /_sim/clock", func(r *http.Request) (any, error) {
		var q struct {
			Seconds float64 `json:"advance_seconds"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		if q.Seconds < 0 {
			return nil, errors.New("advance_seconds must not be negative: time goes forward only")
		}
		s.Advance(time.Duration(q.Seconds * float64(time.Second)))
		return object{"now": s.now()}, nil
	})
	s.control("GET /_sim/faults", func(*http.Request) (any, error) { return s.faultList(), nil })
	s.control("POST /_sim/faults", func(r *http.Request) (any, error) {
		var q struct {
			Rules []*Fault `json:"rules"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		err := s.AddFaults(q.Rules...)
		return s.faultList(), err
	})
	s.control("DELETE /_sim/faults", func(*http.Request) (any, error) {
		s.ClearFaults()
		return s.faultList(), nil
	})
	s.control("POST /_sim/checkout/sessions/{id}/pay", func(r *http.Request) (any, error) {
		var q struct {
			Outcome string `json:"outcome"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		if err := s.PayCheckout(r.PathValue("id"), q.Outcome); err != nil {
			return nil, err
		}
		return s.show("checkout.session", r.PathValue("id")), nil
	})
	s.control("POST /_sim/refunds/{id}/fail", func(r *http.Request) (any, error) {
		var q struct {
			Reason string `json:"reason"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		err := s.FailRefund(r.PathValue("id"), q.Reason)
		return s.show("refund", r.PathValue("id")), err
	})
	s.control("POST /_sim/refunds/{id}/succeed", func(r *http.Request) (any, error) {
		err := s.EndRefund(r.PathValue("id"), "succeeded")
		return s.show("refund", r.PathValue("id")), err
	})
	s.routeWebhookControl()
}

func (s *Server) routeWebhookControl() {
	s.control("POST /_sim/webhooks", func(r *http.Request) (any, error) {
		var q struct {
			Lose      *rule `json:"lose"`
			Duplicate *rule `json:"duplicate"`
			Reorder   *bool `json:"reorder"`
			DelayMS   *int  `json:"delay_ms"`
			Pause     *bool `json:"pause"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if q.Lose != nil {
			s.webhooks.lose = *q.Lose
		}
		if q.Duplicate != nil {
			s.webhooks.duplicate = *q.Duplicate
		}
		if q.Reorder != nil {
			s.webhooks.reorder = *q.Reorder
		}
		if q.DelayMS != nil {
			s.webhooks.delay = time.Duration(*q.DelayMS) * time.Millisecond
		}
		if q.Pause != nil {
			s.webhooks.paused = *q.Pause
		}
		s.nudge()
		return s.webhookState(), nil
	})
	s.control("POST /_sim/webhooks/redeliver", func(r *http.Request) (any, error) {
		var q struct {
			Event string `json:"event"`
		}
		if err := decodeControl(r, &q); err != nil {
			return nil, err
		}
		return object{"redelivered": q.Event}, s.Redeliver(q.Event)
	})
	s.control("POST /_sim/webhook_endpoints/{id}/roll_secret", func(r *http.Request) (any, error) {
		secret, err := s.RollSecret(r.PathValue("id"))
		return object{"secret": secret}, err
	})
	s.control("POST /_sim/switches", func(r *http.Request) (any, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		changed := s.switches
		if err := decodeControl(r, &changed); err != nil {
			return nil, err
		}
		s.switches = changed
		raw, _ := json.Marshal(changed) // plain values always encode
		s.store.log(entry{Type: "switches", Raw: raw})
		return changed, nil
	})
}

func (s *Server) show(kind, id string) object {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.store.get(kind, id); o != nil {
		return s.view(o, nil)
	}
	return nil
}

// AddFaults adds rules after those that stand.
func (s *Server) AddFaults(rules ...*Fault) error {
	for _, f := range rules {
		if !f.valid() {
			return fmt.Errorf("fault %q is unknown; it is one of %s", f.Fault, strings.Join(FaultNames, ", "))
		}
		f.random = mathrand.New(mathrand.NewPCG(f.Seed, 0xfa17)) //nolint:gosec // reproducible on purpose
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, rules...)
	return nil
}

// ClearFaults takes all rules away.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

func (s *Server) faultList() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	rules := make([]Fault, len(s.faults))
	for i, f := range s.faults {
		rules[i] = *f
	}
	return object{"rules": rules}
}

// Redeliver sends an event again to every endpoint that wants it, lost ones included.
func (s *Server) Redeliver(event string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find("event", event, "event")
	if err != nil {
		return err
	}
	lose := s.webhooks.lose
	s.webhooks.lose = rule{}
	s.schedule(e)
	s.webhooks.lose = lose
	return nil
}

// RollSecret gives an endpoint a further secret; both sign from now on.
func (s *Server) RollSecret(endpoint string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find("webhook_endpoint", endpoint, "id")
	if err != nil {
		return "", err
	}
	secret := "whsec_" + s.newID("x")[2:] + s.newID("x")[2:]
	secrets, _ := o["_secrets"].([]any)
	s.change("webhook_endpoint", o, object{"_secrets": append(slices.Clone(secrets), secret)})
	return secret, nil
}

// Drain waits until no delivery of an event is due or under way.
func (s *Server) Drain(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		now := s.clock.Now()
		busy := slices.ContainsFunc(s.webhooks.queue, func(p *pending) bool { return p.running || !p.due.After(now) })
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

// State is what the simulator holds, for tests and people.
type State struct {
	Now         int64          `json:"now"`
	Requests    int64          `json:"requests"`
	Counts      map[string]int `json:"counts"`
	Meters      []MeterTotal   `json:"meters"`
	MeterEvents MeterCounts    `json:"meter_events"`
	MeterErrors []object       `json:"meter_errors"`
	Webhooks    WebhookState   `json:"webhooks"`
	Switches    Switches       `json:"switches"`
}

// MeterTotal is the sum of one customer's usage of one meter, over all time.
type MeterTotal struct {
	Meter     string `json:"meter"`
	EventName string `json:"event_name"`
	Customer  string `json:"customer"`
	Total     string `json:"total"`
}

// MeterCounts counts meter events: those answered with 200, and of them those that
// count in no total because they were lost or found invalid, those that were
// cancelled, and those that are not in a total yet.
type MeterCounts struct {
	Accepted int64 `json:"accepted"`
	Lost     int64 `json:"lost"`
	Canceled int64 `json:"canceled"`
	Lagging  int   `json:"lagging"`
}

// WebhookState counts deliveries.
type WebhookState struct {
	Queued    int   `json:"queued"`
	Delivered int64 `json:"delivered"`
	Failed    int64 `json:"failed"`
	Lost      int64 `json:"lost"`
	Paused    bool  `json:"paused"`
}

// State gives counts of all objects and the totals of all meters.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	st := State{
		Now: s.now(), Requests: s.requests, Counts: map[string]int{}, Meters: []MeterTotal{}, MeterErrors: s.reports(),
		MeterEvents: MeterCounts{Accepted: s.meters.accepted, Lost: s.meters.lost, Canceled: s.meters.canceled, Lagging: s.meters.lagging},
		Webhooks:    s.webhookState(), Switches: s.switches,
	}
	for kind, sh := range s.store.kinds {
		st.Counts[kind] = len(sh.byID)
	}
	for key, usage := range s.meters.series {
		sum, _ := usage.sum(-timeMax, timeMax)
		st.Meters = append(st.Meters, MeterTotal{
			Meter: key.meter, EventName: text(s.store.get("billing.meter", key.meter), "event_name"), Customer: key.customer, Total: sum.text(),
		})
	}
	slices.SortFunc(st.Meters, func(a, b MeterTotal) int {
		return strings.Compare(a.EventName+"\x00"+a.Customer+"\x00"+a.Meter, b.EventName+"\x00"+b.Customer+"\x00"+b.Meter)
	})
	return st
}

func (s *Server) webhookState() WebhookState {
	w := &s.webhooks
	return WebhookState{Queued: len(w.queue), Delivered: w.delivered, Failed: w.failed, Lost: w.lost, Paused: w.paused}
}

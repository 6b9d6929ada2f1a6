package stripesim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
)

// control answers a call of the control plane with plain JSON.
func (s *Server) control(pattern string, h func(r *http.Request) (any, error)) {
	s.controls = append(s.controls, pattern)
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
		return fmt.Errorf("the body is not as docs/stripesim.md says: %w; it takes %s", err, strings.Join(memberNames(reflect.TypeOf(dst)), ", "))
	}
	return nil
}

// memberNames lists what a JSON body can say.
func memberNames(t reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		if inner := t.Field(i).Type; inner.Kind() == reflect.Slice {
			if below := memberNames(inner); below != nil {
				name += " of {" + strings.Join(below, ", ") + "}"
			}
		}
		names = append(names, name)
	}
	return names
}

func (s *Server) routeControl() {
	s.control("GET /_sim/{$}", func(*http.Request) (any, error) { return object{"calls": s.controls}, nil })
	s.mux.HandleFunc("/_sim/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(object{"error": "there is no " + r.Method + " " + r.URL.Path, "calls": s.controls}) // the client may be gone
	})
	s.control("GET /_sim/state", func(*http.Request) (any, error) { return s.State(), nil })
	s.control("GET /_sim/requests", func(*http.Request) (any, error) { return object{"data": shownRequests(s.Requests())}, nil })
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
	s.routeFaultControl()
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

func (s *Server) show(kind, id string) object {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.store.get(kind, id); o != nil {
		return s.view(o, nil)
	}
	return nil
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

// State gives counts of all objects and the totals of all meters.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	st := State{
		Now: s.now(), Requests: s.requests, Counts: map[string]int{}, Meters: []MeterTotal{}, MeterErrors: s.reports(),
		MeterEvents: MeterCounts{Accepted: s.meters.accepted, Lost: s.meters.lost, Canceled: s.meters.canceled, Lagging: s.meters.lagging},
		Webhooks:    s.webhookState(), Switches: s.switches.clone(),
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

package stripesim

import (
	"net/http"
	"net/url"
	"slices"
	"time"
)

// Request is one call of the API as the simulator took it, for tests that compute
// for themselves what it should hold.
type Request struct {
	At       time.Time // the simulator's time
	ID       string    // req_…
	Method   string
	Path     string
	Form     url.Values // of query and body; nil where a fault struck before they were read
	Key      string     // Idempotency-Key
	Fault    string     // the fault that struck, "" for none
	Executed bool       // the endpoint ran: what it says of itself in Status and Body has happened, whatever the client saw
	Replayed bool       // the answer came from the idempotency key
	Status   int        // 0 where the call never got as far as an answer
	Body     []byte
}

// requestsKept is how many requests GET /_sim/requests shows.
const requestsKept = 1000

// observe keeps a request and hands it to the observer.
func (s *Server) observe(r *http.Request, c *call, a *answer) {
	q := Request{At: s.clock.Now(), ID: c.id, Method: r.Method, Path: r.URL.Path, Form: c.form, Key: c.key, Executed: c.executed}
	if c.fault != nil {
		q.Fault = c.fault.Fault
	}
	if a != nil {
		q.Status, q.Body, q.Replayed = a.status, a.body, a.header["Idempotent-Replayed"] == "true"
	}
	if s.observer != nil {
		s.observer(q)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log) == requestsKept {
		s.log = append(s.log[:0], s.log[requestsKept/2:]...)
	}
	s.log = append(s.log, q)
}

// Requests gives the last calls of the API, the oldest first.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// shownRequests is the log as GET /_sim/requests answers it, the newest first.
func shownRequests(log []Request) []object {
	shown := make([]object, 0, len(log))
	for _, q := range slices.Backward(log) {
		shown = append(shown, object{
			"id": q.ID, "at": q.At.Format(time.RFC3339Nano), "method": q.Method, "path": q.Path, "form": q.Form.Encode(), "idempotency_key": q.Key,
			"fault": q.Fault, "executed": q.Executed, "replayed": q.Replayed, "status": q.Status, "answer": string(q.Body[:min(len(q.Body), 500)]),
		})
	}
	return shown
}

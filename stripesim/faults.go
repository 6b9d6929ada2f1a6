package stripesim

import (
	mathrand "math/rand/v2"
	"net/http"
	"path"
	"slices"
	"time"
)

// Fault is a rule: calls that match go wrong in the way it names.
type Fault struct {
	Method      string   `json:"method"`      // "" matches any
	Path        string   `json:"path"`        // a pattern of path.Match; "" matches any
	Fault       string   `json:"fault"`       // one of FaultNames
	Probability *float64 `json:"probability"` // of each matching call; nothing: always
	Times       int      `json:"times"`       // how often at most; 0: without end
	Seed        uint64   `json:"seed"`        // of the probability
	DelayMS     int      `json:"delay_ms"`    // of slow; default 30 000
	RetryAfter  int      `json:"retry_after"` // seconds, of rate_limit; 0: no header
	Hits        int      `json:"hits"`        // how often it struck

	random *mathrand.Rand
}

// FaultNames lists the ways in which a call can go wrong.
var FaultNames = []string{
	"drop_before", "drop_after", "error_500_before", "error_500_after", "error_502_html", "error_503", "rate_limit", "lock_timeout",
	"conflict_409", "slow", "slow_after", "malformed_json", "redirect_302", "unauthorized_401", "lose",
}

func (f *Fault) valid() bool { return slices.Contains(FaultNames, f.Fault) }

// pickFault gives the first rule that strikes a call, nil when none does.
func (s *Server) pickFault(r *http.Request) *Fault {
	for _, f := range s.faults {
		if f.Method != "" && f.Method != r.Method {
			continue
		}
		if ok, err := path.Match(f.Path, r.URL.Path); f.Path != "" && (err != nil || !ok) {
			continue
		}
		if f.Times > 0 && f.Hits >= f.Times {
			continue
		}
		if f.Probability != nil && f.random.Float64() >= *f.Probability {
			continue
		}
		f.Hits++
		return f
	}
	return nil
}

// before strikes ahead of the execution, and tells whether that was the answer.
func (f *Fault) before(s *Server, w http.ResponseWriter, r *http.Request, id string) bool {
	if f == nil {
		return false
	}
	switch f.Fault {
	case "drop_before":
		panic(http.ErrAbortHandler)
	case "error_500_before":
		s.writeError(w, id, serverError())
	case "error_502_html":
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write([]byte("<html><body><h1>502 Bad Gateway</h1></body></html>"))
	case "error_503":
		s.writeError(w, id, &apiError{status: http.StatusServiceUnavailable, typ: "api_error", message: "Stripe is temporarily unavailable."})
	case "rate_limit":
		e := rateLimited("global-rate")
		if f.RetryAfter > 0 {
			e.header["Retry-After"] = itoa(f.RetryAfter)
		}
		s.writeError(w, id, e)
	case "lock_timeout":
		s.writeError(w, id, lockTimeout())
	case "conflict_409":
		s.writeError(w, id, &apiError{status: http.StatusConflict, typ: "invalid_request_error", code: "idempotency_key_in_use", message: "There is currently another in-progress request using this Idempotent Key."})
	case "redirect_302":
		http.Redirect(w, r, "/", http.StatusFound)
	case "unauthorized_401":
		s.writeError(w, id, unauthorized("Expired API Key provided: sk_test_****"))
	case "slow":
		f.wait(r)
		return false
	default:
		return false
	}
	return true
}

// after strikes once the call has been executed.
func (f *Fault) after(s *Server, w http.ResponseWriter, r *http.Request, c *call, a *answer) bool {
	if f == nil {
		return false
	}
	switch f.Fault {
	case "drop_after":
		panic(http.ErrAbortHandler)
	case "slow_after":
		f.wait(r)
		return false
	case "error_500_after":
		e := serverError()
		stored := &answer{status: e.status, body: e.body()}
		if c.key != "" && c.executed && r.Method == http.MethodPost { // a replay leaves what is stored
			s.remember(c.key, stored, true)
		}
		s.write(w, c.id, stored)
	case "malformed_json":
		s.write(w, c.id, &answer{status: a.status, body: a.body[:len(a.body)/2]})
	default:
		return false
	}
	return true
}

func (f *Fault) wait(r *http.Request) {
	delay := time.Duration(f.DelayMS) * time.Millisecond
	if delay == 0 {
		delay = 30 * time.Second
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
}

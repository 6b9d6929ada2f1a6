package stripesim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// Bounds of idempotency keys.
const (
	keyAge   = 24 * time.Hour
	keyAgeV2 = 30 * 24 * time.Hour // with Switches.V2Semantics
	keyMax   = 255
)

// savedAnswer is what an idempotency key remembers.
type savedAnswer struct {
	Fingerprint string            `json:"fingerprint"`
	Until       time.Time         `json:"until"` // then it is forgotten
	Status      int               `json:"status"`
	Body        []byte            `json:"body"`
	Header      map[string]string `json:"header"`
	running     bool
}

// remembered is how long Stripe remembers something that it promises to remember
// for least.
func (s *Server) remembered(least time.Duration) time.Duration {
	if extra := s.switches.MemoryExtraSeconds; extra > 0 {
		return least + time.Duration(s.random.Int64N(extra+1))*time.Second
	}
	return least
}

// recall gives the answer that the key remembers, or nil and marks it as running.
func (s *Server) recall(c *call, fingerprint string) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	saved, now, age := s.keys[c.key], s.clock.Now(), keyAge
	if s.switches.V2Semantics {
		age = keyAgeV2
	}
	switch {
	case len(c.key) > keyMax:
		return c.refuse(invalid("", "", "Keys for idempotent requests can be at most %d characters long. Your key was %d.", keyMax, len(c.key)))
	case saved == nil || (!saved.running && !now.Before(saved.Until)):
		s.keys[c.key] = &savedAnswer{Fingerprint: fingerprint, Until: now.Add(s.remembered(age)), running: true}
		return nil
	case saved.Fingerprint != fingerprint:
		return c.refuse(keyMismatch(c.key))
	case saved.running:
		return c.refuse(keyInUse(c.key))
	case s.switches.V2Semantics && saved.Status >= http.StatusBadRequest:
		saved.running = true // the v2 API does again what has failed
		return nil
	}
	header := map[string]string{"Idempotent-Replayed": "true"}
	for k, v := range saved.Header {
		header[k] = v
	}
	return &answer{status: saved.Status, body: saved.Body, header: header}
}

// remember keeps an answer for its key. An answer to a call that never began to
// execute is not kept, and the key is free again.
func (s *Server) remember(c *call, a *answer, stored bool) {
	saved := s.keys[c.key]
	if !stored {
		delete(s.keys, c.key)
		return
	}
	if c.fault.is("error_500_after") && !s.switches.V2Semantics {
		a = c.fault.instead(c) // v1 keeps its failure; v2 would find its work done
	}
	saved.running, saved.Status, saved.Body, saved.Header = false, a.status, a.body, a.header
	raw, _ := json.Marshal(saved) // plain values always encode
	s.store.log(entry{Type: "key", ID: c.key, Raw: raw})
}

// release frees a key whose call has ended without an answer.
func (s *Server) release(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if saved := s.keys[key]; saved != nil && saved.running {
		delete(s.keys, key)
	}
}

// forgetKeys drops the keys whose time is over.
func (s *Server) forgetKeys(now time.Time) {
	for key, saved := range s.keys {
		if !saved.running && !now.Before(saved.Until) {
			delete(s.keys, key)
			s.store.log(entry{Type: "key", ID: key, Over: true})
		}
	}
}

func (s *Server) restoreKey(e entry) error {
	if e.Over {
		delete(s.keys, e.ID)
		return nil
	}
	saved := &savedAnswer{}
	s.keys[e.ID] = saved
	return json.Unmarshal(e.Raw, saved)
}

func keyInUse(key string) *apiError {
	return &apiError{
		status: http.StatusConflict, typ: "invalid_request_error", code: "idempotency_key_in_use",
		message: fmt.Sprintf("There is currently another in-progress request using this Idempotent Key (that probably means you submitted twice, and the other request is still going through): %s. Please try again later.", key),
	}
}

func keyMismatch(key string) *apiError {
	return &apiError{
		status: http.StatusBadRequest, typ: "idempotency_error",
		message: fmt.Sprintf("Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than '%s' if you meant to execute a different request.", key),
	}
}

package stripesim

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// bodyMax bounds a request, in bytes.
const bodyMax = 1 << 20

// keyAge is how long an idempotency key is remembered.
const keyAge = 24 * time.Hour

// call is one request to an endpoint, under the server's lock.
type call struct {
	params
	s      *Server
	r      *http.Request
	id     string // request id
	key    string // idempotency key
	expand []string
	form   url.Values
	fault  *Fault // the rule that struck this call, if any

	executed bool // the endpoint ran
}

// target is the id in the path.
func (c *call) target() string { return c.r.PathValue("id") }

// endpoint executes a call and gives the object to answer.
type endpoint func(c *call) (object, *apiError)

// savedAnswer is what an idempotency key remembers.
type savedAnswer struct {
	Fingerprint string            `json:"fingerprint"`
	Until       time.Time         `json:"until"` // then it is forgotten
	Status      int               `json:"status"`
	Body        []byte            `json:"body"`
	Header      map[string]string `json:"header"`
	running     bool
}

// handle mounts an endpoint with its parameters. Every call takes expand.
func (s *Server) handle(pattern string, sp spec, e endpoint) {
	full := spec{"expand": listOf{"string"}}
	for k, v := range sp {
		full[k] = v
	}
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, full, e) })
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, sp spec, e endpoint) {
	c := &call{s: s, r: r, key: r.Header.Get("Idempotency-Key")}
	s.mu.Lock()
	s.requests++
	c.id = s.newID("req")
	fault := s.pickFault(r)
	c.fault = fault
	s.mu.Unlock()
	var a *answer
	defer func() { s.observe(r, c, a) }()
	if fault.before(s, w, r, c.id) {
		return
	}
	a = s.answer(c, sp, e)
	if c.key != "" {
		if a.header == nil {
			a.header = map[string]string{}
		}
		a.header["Idempotency-Key"] = c.key
	}
	if fault.after(s, w, r, c, a) {
		return
	}
	s.write(w, c.id, a)
}

// answer authenticates, honours the idempotency key, checks parameters and
// executes.
func (s *Server) answer(c *call, sp spec, e endpoint) *answer {
	if err := s.authenticate(c.r); err != nil {
		return &answer{status: err.status, body: err.body(), header: err.header}
	}
	values, fingerprint, err := readForm(c.r)
	c.form = values
	if err != nil {
		return &answer{status: err.status, body: err.body()}
	}
	release, err := s.limit(c.r, values)
	if err != nil {
		return &answer{status: err.status, body: err.body(), header: err.header}
	}
	defer release()
	keyed := c.key != "" && c.r.Method == http.MethodPost
	if keyed {
		if a := s.recall(c.key, fingerprint); a != nil {
			return a
		}
	}
	a, store := s.execute(c, sp, e, values)
	if keyed {
		s.remember(c.key, a, store)
	}
	return a
}

func (s *Server) execute(c *call, sp spec, e endpoint, values url.Values) (a *answer, store bool) {
	nested, err := nest(values)
	if err == nil {
		c.values, err = sp.check(nested, "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var o object
	s.happen()
	if err == nil {
		for _, path := range c.list("expand") {
			if p, ok := path.(string); ok {
				c.expand = append(c.expand, p)
			}
		}
		c.executed = true
		o, err = e(c)
		c.executed = err == nil || err.stored
	}
	if err == nil && s.store.err != nil {
		s.logger.Error("the simulator cannot keep its state", "error", s.store.err)
		err = serverError()
	}
	if err != nil {
		return &answer{status: err.status, body: err.body(), header: err.header}, err.stored
	}
	return &answer{status: http.StatusOK, body: s.render(o, c.expand)}, true
}

func (s *Server) authenticate(r *http.Request) *apiError {
	key, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if user, _, basic := r.BasicAuth(); basic {
		key, ok = user, true
	}
	switch {
	case !ok || key == "":
		return unauthorized("You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').")
	case s.apiKey != "" && key != s.apiKey, s.apiKey == "" && !strings.HasPrefix(key, "sk_test_") && !strings.HasPrefix(key, "rk_test_"):
		return unauthorized("Invalid API Key provided: " + key[:min(8, len(key))] + "****")
	}
	return nil
}

// readForm gives the parameters of the query and body, and a fingerprint of all
// that an idempotency key is tied to.
func readForm(r *http.Request) (url.Values, string, *apiError) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, "", invalid("", "", "Invalid query string")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyMax+1))
	if err != nil || len(body) > bodyMax {
		return nil, "", invalid("", "", "Invalid request body")
	}
	form, err := url.ParseQuery(string(bytes.TrimSpace(body)))
	if err != nil {
		return nil, "", invalid("", "", "Invalid request body: it must be form-encoded")
	}
	for k, v := range form {
		values[k] = append(values[k], v...)
	}
	sum := sha256.Sum256([]byte(r.Method + " " + r.URL.Path + "?" + values.Encode()))
	return values, fmt.Sprintf("%x", sum), nil
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
func (s *Server) recall(key, fingerprint string) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	saved := s.keys[key]
	now := s.clock.Now()
	switch {
	case len(key) > 255:
		e := invalid("", "", "Keys for idempotent requests can be at most 255 characters long")
		return &answer{status: e.status, body: e.body()}
	case saved == nil || (!saved.running && !now.Before(saved.Until)):
		s.keys[key] = &savedAnswer{Fingerprint: fingerprint, Until: now.Add(s.remembered(keyAge)), running: true}
		return nil
	case saved.Fingerprint != fingerprint:
		e := &apiError{
			status: http.StatusBadRequest, typ: "idempotency_error",
			message: fmt.Sprintf("Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than '%s' if you meant to execute a different request.", key),
		}
		return &answer{status: e.status, body: e.body()}
	case saved.running:
		e := &apiError{
			status: http.StatusConflict, typ: "invalid_request_error", code: "idempotency_key_in_use",
			message: fmt.Sprintf("There is currently another in-progress request using this Idempotent Key (that probably means you submitted twice, and the other request is still going through): %s. Please try again later.", key),
		}
		return &answer{status: e.status, body: e.body()}
	}
	header := map[string]string{"Idempotent-Replayed": "true"}
	for k, v := range saved.Header {
		header[k] = v
	}
	return &answer{status: saved.Status, body: saved.Body, header: header}
}

// remember keeps an answer for its key. An answer to a call that never began to
// execute is not kept, and the key is free again.
func (s *Server) remember(key string, a *answer, store bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	saved := s.keys[key]
	if !store {
		delete(s.keys, key)
		return
	}
	saved.running, saved.Status, saved.Body, saved.Header = false, a.status, a.body, a.header
	raw, _ := json.Marshal(saved) // plain values always encode
	s.store.log(entry{Type: "key", ID: key, Raw: raw})
}

// replay restores what is no object from the journal.
func (s *Server) replay(e entry) error {
	switch e.Type {
	case "clock":
		s.clock.Advance(time.Duration(e.Seconds*float64(time.Second) + 0.5)) // to the nearest nanosecond
	case "key":
		saved := &savedAnswer{}
		if err := json.Unmarshal(e.Raw, saved); err != nil {
			return err
		}
		s.keys[e.ID] = saved
	case "meter":
		return s.meters.restore(e.Raw)
	case "switches":
		return json.Unmarshal(e.Raw, &s.switches)
	}
	return nil
}

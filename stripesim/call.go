package stripesim

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
)

// bodyMax bounds a request, in bytes.
const bodyMax = 1 << 20

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

// handle mounts an endpoint with its parameters. Every call takes expand.
func (s *Server) handle(pattern string, sp spec, e endpoint) {
	full := spec{"expand": listOf{"string"}}
	for k, v := range sp {
		full[k] = v
	}
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, full, e) })
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, sp spec, e endpoint) {
	c := &call{s: s, r: r, key: strings.TrimSpace(r.Header.Get("Idempotency-Key"))}
	s.mu.Lock()
	s.requests++
	c.id = s.newID("req")
	c.fault = s.pickFault(r)
	s.mu.Unlock()
	var a *answer
	defer func() { s.observe(r, c, a) }()
	if c.fault.before(w, c) {
		return
	}
	a = s.answer(c, sp, e)
	if c.fault.after(w, c, a) {
		return
	}
	s.write(w, c.id, c.dress(a))
}

// dress gives an answer the headers that echo the call's own.
func (c *call) dress(a *answer) *answer {
	dressed := &answer{status: a.status, body: a.body, header: map[string]string{}}
	for k, v := range a.header {
		dressed.header[k] = v
	}
	if c.key != "" {
		dressed.header["Idempotency-Key"] = c.key
	}
	if version := c.r.Header.Get("Stripe-Version"); versionForm.MatchString(version) {
		dressed.header["Stripe-Version"] = version
	}
	return dressed
}

// answer authenticates, honours the idempotency key, checks parameters and
// executes.
func (s *Server) answer(c *call, sp spec, e endpoint) *answer {
	if err := s.authenticate(c.r); err != nil {
		return c.refuse(err)
	}
	if err := s.checkHeaders(c.r); err != nil {
		return c.refuse(err)
	}
	values, fingerprint, err := readForm(c.r)
	c.form = values
	if err != nil {
		return c.refuse(err)
	}
	leave, err := s.admit(c)
	if err != nil {
		return c.refuse(err)
	}
	defer leave()
	release, err := s.limit(c.r, values)
	if err != nil {
		return c.refuse(err)
	}
	defer release()
	keyed := c.key != "" && c.r.Method == http.MethodPost
	if keyed {
		if a := s.recall(c, fingerprint); a != nil {
			return a
		}
		defer s.release(c.key)
	}
	c.fault.hold(c.r)
	return s.execute(c, sp, e, values, keyed)
}

// execute runs the endpoint. What it changes, and what the idempotency key
// remembers of it, stand or fall together.
func (s *Server) execute(c *call, sp spec, e endpoint, values url.Values, keyed bool) *answer {
	nested, err := nest(values)
	if err == nil {
		c.values, err = sp.check(nested, "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen()
	a, stored := s.run(c, e, err)
	if keyed {
		s.remember(c, a, stored)
	}
	if !s.store.commit() {
		s.logger.Error("the simulator cannot keep its state", "error", s.store.err)
		delete(s.keys, c.key)
		return c.refuse(serverError())
	}
	return a
}

// run gives the endpoint's answer, and whether an idempotency key keeps it: that of
// a call which never began to execute is not kept.
func (s *Server) run(c *call, e endpoint, err *apiError) (a *answer, stored bool) {
	var o object
	if err == nil {
		for _, path := range c.list("expand") {
			if p, ok := path.(string); ok {
				c.expand = append(c.expand, p)
			}
		}
		if err = c.checkExpand(); err == nil {
			err = s.checkMetadata(c)
		}
	}
	if err == nil {
		c.executed = true
		o, err = e(c)
		c.executed = err == nil || err.stored
	}
	if err != nil {
		err.place(c.r.URL.Path)
		return c.refuse(err), err.stored
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
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expiredKeys[key] {
		return expiredKey(key)
	}
	return nil
}

// replay restores what is no object from the journal.
func (s *Server) replay(e entry) error {
	switch e.Type {
	case "clock":
		s.clock.Advance(e.moved())
	case "key":
		return s.restoreKey(e)
	case "delivery":
		return s.restoreDelivery(e)
	case "expired_key":
		s.expiredKeys[e.ID] = true
	case "webhooks":
		return json.Unmarshal(e.Raw, &s.webhooks.rules)
	case "faults":
		return s.restoreFaults(e)
	case "meter":
		return s.meters.restore(e.Raw)
	case "usage":
		return s.usage.restore(e.Raw)
	case "switches":
		s.switches = Switches{}
		return json.Unmarshal(e.Raw, &s.switches)
	}
	return nil
}

package stripesim

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of events and their deliveries.
const (
	webhookTimeout = 20 * time.Second
	eventAge       = 30 * 24 * time.Hour
	sendsMax       = 16
	deliverPoll    = 100 * time.Millisecond
)

// retryWaits are the waits between tries of one delivery, over about three days.
var retryWaits = []time.Duration{
	time.Second, 5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 10 * time.Hour,
	12 * time.Hour, 12 * time.Hour, 12 * time.Hour, 12 * time.Hour,
}

// raise makes an event of a change, for the list of events and for webhooks. The
// call is nil for what happens by itself.
func (s *Server) raise(c *call, kind string, o, previous object) {
	data := object{"object": s.view(o, nil)}
	if len(previous) > 0 {
		data["previous_attributes"] = previous
	}
	request := object{"id": nil, "idempotency_key": nil}
	if c != nil {
		request["id"] = c.id
		if c.key != "" {
			request["idempotency_key"] = c.key
		}
	}
	e := object{
		"id": s.newID("evt"), "object": "event", "api_version": APIVersion, "created": s.eventTime(), "data": data, "livemode": false,
		"pending_webhooks": int64(0), "request": request, "type": kind,
	}
	e["pending_webhooks"] = int64(s.schedule(e))
	s.store.put("event", e)
}

func (s *Server) routeEvents() {
	s.handle("GET /v1/events/{id}", nil, func(c *call) (object, *apiError) {
		o, err := s.find("event", c.target(), "id")
		if err == nil && s.expired(o) {
			err = missing("event", c.target(), "id")
		}
		return o, err
	})
	filters := spec{"type": "string", "types": listOf{"string"}, "created": createdSpec, "delivery_success": "bool"}
	s.handle("GET /v1/events", listSpec(filters), func(c *call) (object, *apiError) {
		if c.has("type") && c.has("types") {
			return nil, invalid("types", "", "You may not specify both `type` and `types`.")
		}
		if len(c.list("types")) > 20 {
			return nil, invalid("types", "", "You may specify at most 20 types.")
		}
		return s.list(c, "event", func(o object) bool { return s.listed(c, o) })
	})
	endpoint := spec{
		"url": "string", "enabled_events": listOf{"string"}, "api_version": "string", "description": "string", "metadata": "map", "connect": "bool", "disabled": "bool",
	}
	s.handle("POST /v1/webhook_endpoints", endpoint, func(c *call) (object, *apiError) { return s.makeEndpoint(c) })
	s.handle("GET /v1/webhook_endpoints/{id}", nil, func(c *call) (object, *apiError) { return s.find("webhook_endpoint", c.target(), "id") })
	s.handle("GET /v1/webhook_endpoints", listSpec(nil), func(c *call) (object, *apiError) {
		return s.list(c, "webhook_endpoint", func(object) bool { return true })
	})
	s.handle("POST /v1/webhook_endpoints/{id}", endpoint, func(c *call) (object, *apiError) {
		o, err := s.find("webhook_endpoint", c.target(), "id")
		if err != nil {
			return nil, err
		}
		changes := object{}
		for _, name := range []string{"url", "enabled_events", "description"} {
			if c.has(name) {
				changes[name] = c.values[name]
			}
		}
		if c.has("disabled") {
			changes["status"] = map[bool]string{true: "disabled", false: "enabled"}[flag(c.values, "disabled")]
		}
		s.change("webhook_endpoint", o, changes)
		return o, nil
	})
	s.handle("DELETE /v1/webhook_endpoints/{id}", nil, func(c *call) (object, *apiError) {
		if _, err := s.find("webhook_endpoint", c.target(), "id"); err != nil {
			return nil, err
		}
		s.store.delete("webhook_endpoint", c.target())
		return object{"id": c.target(), "object": "webhook_endpoint", "deleted": true}, nil
	})
}

func (s *Server) expired(e object) bool {
	return s.clock.Now().Sub(time.Unix(number(e, "created"), 0)) >= eventAge
}

func (s *Server) listed(c *call, e object) bool {
	if s.expired(e) || number(e, "created") > s.now()-s.switches.EventLagSeconds || !inRange(c, number(e, "created")) {
		return false
	}
	kinds := []string{}
	for _, k := range c.list("types") {
		kinds = append(kinds, fmt.Sprint(k))
	}
	if c.has("type") {
		kinds = append(kinds, c.text("type"))
	}
	if len(kinds) > 0 && !slices.ContainsFunc(kinds, func(k string) bool { return matchesType(k, text(e, "type")) }) {
		return false
	}
	if c.has("delivery_success") {
		return flag(c.values, "delivery_success") == (number(e, "pending_webhooks") == 0 && !flag(e, "_failed"))
	}
	return true
}

func matchesType(pattern, kind string) bool {
	ok, err := path.Match(pattern, kind)
	return err == nil && ok
}

func (s *Server) makeEndpoint(c *call) (object, *apiError) {
	if err := c.require("url", "enabled_events"); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(c.text("url"), "http://") && !strings.HasPrefix(c.text("url"), "https://") {
		return nil, invalid("url", "url_invalid", "Invalid URL: An explicit scheme (such as https) must be provided.")
	}
	secret := "whsec_" + s.newID("x")[2:] + s.newID("x")[2:]
	o := object{
		"id": s.newID("we"), "object": "webhook_endpoint", "created": s.now(), "livemode": false, "metadata": c.metadata(), "status": "enabled",
		"url": c.text("url"), "enabled_events": c.list("enabled_events"), "api_version": c.orNull("api_version"), "application": nil,
		"description": c.orNull("description"), "_secrets": []any{secret},
	}
	s.store.put("webhook_endpoint", o)
	shown := object{"secret": secret}
	for k, v := range o {
		shown[k] = v
	}
	return shown, nil
}

// pending is one delivery that is still to be made.
type pending struct {
	event    object
	endpoint string
	attempt  int
	due      time.Time
	running  bool
}

// webhookControl says how deliveries are to go wrong.
type webhookControl struct {
	queue     []*pending
	paused    bool
	lose      rule
	duplicate rule
	reorder   bool
	delay     time.Duration
	delivered int64
	failed    int64
	lost      int64
}

// schedule queues an event for every endpoint that wants it and gives their number.
func (s *Server) schedule(e object) (endpoints int) {
	for o := range s.store.shelf("webhook_endpoint").all {
		id := text(o, "id")
		events, _ := o["enabled_events"].([]any)
		if text(o, "status") != "enabled" || !slices.ContainsFunc(events, func(k any) bool { return matchesType(fmt.Sprint(k), text(e, "type")) }) {
			continue
		}
		endpoints++
		if s.webhooks.lose.strikes(s.random, text(e, "type")) {
			s.webhooks.lost++
			e["_lost"] = true
			continue // Stripe believes it pending for ever; nothing arrives
		}
		copies := 1
		if s.webhooks.duplicate.strikes(s.random, text(e, "type")) {
			copies = 2
		}
		for range copies {
			due := s.clock.Now().Add(s.webhooks.delay)
			if s.webhooks.reorder {
				due = due.Add(time.Duration(s.random.IntN(500)) * time.Millisecond)
			}
			s.webhooks.queue = append(s.webhooks.queue, &pending{event: e, endpoint: id, due: due})
		}
	}
	s.nudge()
	return endpoints
}

// requeue takes up the deliveries that were pending when the process ended.
func (s *Server) requeue() {
	for e := range s.store.shelf("event").all {
		if number(e, "pending_webhooks") > 0 && !flag(e, "_lost") && !s.expired(e) {
			s.schedule(e)
		}
	}
}

// deliverLoop sends what is due, a bounded number at a time.
func (s *Server) deliverLoop(ctx context.Context) {
	slots := make(chan struct{}, sendsMax)
	var sends sync.WaitGroup
	defer sends.Wait()
	tick := time.NewTicker(deliverPoll)
	defer tick.Stop()
	for {
		s.tick()
		for _, p := range s.takeDue() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			sends.Go(func() {
				defer func() { <-slots }()
				s.deliver(ctx, p)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-tick.C:
		}
	}
}

func (s *Server) takeDue() []*pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen() // what falls due while nobody calls has its webhooks, too
	if s.webhooks.paused {
		return nil
	}
	now := s.clock.Now()
	var due []*pending
	for _, p := range s.webhooks.queue {
		if !p.running && !p.due.After(now) {
			p.running = true
			due = append(due, p)
		}
	}
	if s.webhooks.reorder {
		s.random.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	}
	return due
}

// deliver makes one try. A refusal of any kind, a redirect included, is retried
// with back-off; each try is signed afresh.
func (s *Server) deliver(ctx context.Context, p *pending) {
	s.mu.Lock()
	o := s.store.get("webhook_endpoint", p.endpoint)
	if o == nil || text(o, "status") != "enabled" {
		s.finish(p)
		s.mu.Unlock()
		return
	}
	body := s.eventBody(p.event)
	target := text(o, "url")
	signature := s.sign(o, body)
	s.mu.Unlock()
	ok := s.post(ctx, target, signature, body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok {
		s.webhooks.delivered++
		s.delivered(p)
		s.finish(p)
		return
	}
	s.webhooks.failed++
	if p.attempt >= len(retryWaits) {
		p.event["_failed"] = true
		s.finish(p)
		return
	}
	p.due = s.clock.Now().Add(retryWaits[p.attempt])
	p.attempt++
	p.running = false
}

func (s *Server) finish(p *pending) {
	s.webhooks.queue = slices.DeleteFunc(s.webhooks.queue, func(other *pending) bool { return other == p })
}

func (s *Server) delivered(p *pending) {
	if left := number(p.event, "pending_webhooks"); left > 0 && text(p.event, "object") == "event" {
		p.event["pending_webhooks"] = left - 1
		s.store.put("event", p.event)
	}
}

func (s *Server) eventBody(e object) []byte {
	body, _ := json.MarshalIndent(s.view(e, nil), "", "  ") // stored objects always encode
	return body
}

// sign makes the Stripe-Signature header: one v1 for each secret, and the v0 that
// Stripe adds in test mode, which nobody may accept.
func (s *Server) sign(endpoint object, body []byte) string {
	t := s.now()
	header := fmt.Sprintf("t=%d", t)
	secrets, _ := endpoint["_secrets"].([]any)
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, []byte(fmt.Sprint(secret)))
		_, _ = fmt.Fprintf(mac, "%d.%s", t, body)
		header += ",v1=" + hex.EncodeToString(mac.Sum(nil))
	}
	sum := sha256.Sum256(body)
	return header + ",v0=" + hex.EncodeToString(sum[:])
}

func (s *Server) post(ctx context.Context, target, signature string, body []byte) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return false
	}
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.Header.Set("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
	r.Header.Set("Stripe-Signature", signature)
	response, err := s.http.Do(r)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<16))
	_ = response.Body.Close()
	return response.StatusCode >= 200 && response.StatusCode < 300
}

// EnsureEndpoint makes an endpoint for all events, or points the one that was made
// so before at url, and gives its newest secret.
func (s *Server) EnsureEndpoint(url string) (secret string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for o := range s.store.shelf("webhook_endpoint").all {
		if text(child(o, "metadata"), "made_by") == "stripesim" {
			s.change("webhook_endpoint", o, object{"url": url, "status": "enabled"})
			secrets, _ := o["_secrets"].([]any)
			return fmt.Sprint(secrets[len(secrets)-1]), nil
		}
	}
	c := &call{s: s, params: params{object{"url": url, "enabled_events": []any{"*"}, "api_version": APIVersion, "metadata": object{"made_by": "stripesim"}}}}
	o, failed := s.makeEndpoint(c)
	if failed != nil {
		return "", failed
	}
	return text(o, "secret"), nil
}

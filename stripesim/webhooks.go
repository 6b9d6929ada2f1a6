package stripesim

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Bounds of deliveries.
const (
	webhookTimeout = 20 * time.Second
	sendsMax       = 16
	deliverPoll    = 100 * time.Millisecond
	reorderWithin  = 500 // milliseconds
)

// retryWaits are the waits between tries of one delivery, over almost three days.
var retryWaits = []time.Duration{
	time.Second, 5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 10 * time.Hour,
	12 * time.Hour, 12 * time.Hour, 12 * time.Hour, 8 * time.Hour,
}

// sandboxWaits are those of Switches.SandboxRetries.
var sandboxWaits = []time.Duration{time.Hour, 3 * time.Hour}

// What has become of an event at an endpoint. Stripe counts the first three as
// pending: they were not delivered.
const (
	statePending   = "pending"
	stateLost      = "lost" // Stripe believes it pending for ever
	stateFailed    = "failed"
	stateDelivered = "delivered"
	stateDropped   = "dropped" // the endpoint is disabled or deleted
)

// pending is one delivery that is still to be made, as it is journalled.
type pending struct {
	ID       int64     `json:"i"`
	Event    string    `json:"e"`
	Thin     object    `json:"b,omitempty"` // an event of the v2 API, which the store does not keep
	Endpoint string    `json:"w"`
	Attempt  int       `json:"n"` // tries that were made
	Due      time.Time `json:"d"`
	Manual   bool      `json:"m,omitempty"` // sent again by hand: it is tried once
	State    string    `json:"s,omitempty"` // of one that is over

	event  object
	mangle string // how the try under way is spoiled
}

// deliveries is a heap, the next one first.
type deliveries []*pending

// Len is heap.Interface.
func (d deliveries) Len() int { return len(d) }

// Less is heap.Interface.
func (d deliveries) Less(i, j int) bool {
	return d[i].Due.Before(d[j].Due) || (d[i].Due.Equal(d[j].Due) && d[i].ID < d[j].ID)
}

// Swap is heap.Interface.
func (d deliveries) Swap(i, j int) { d[i], d[j] = d[j], d[i] }

// Push is heap.Interface.
func (d *deliveries) Push(x any) { *d = append(*d, x.(*pending)) }

// Pop is heap.Interface.
func (d *deliveries) Pop() any {
	last := (*d)[len(*d)-1]
	(*d)[len(*d)-1] = nil
	*d = (*d)[:len(*d)-1]
	return last
}

// webhookControl is the queue of deliveries, and how they are to go wrong.
type webhookControl struct {
	rules     Webhooks
	queue     deliveries
	open      map[int64]*pending // all that are not over: those in the queue and those under way
	last      int64              // the id given last
	running   int
	delivered int64
	failed    int64
	lost      int64
	tries     []Delivery // the last ones
}

func newWebhookControl() webhookControl { return webhookControl{open: map[int64]*pending{}} }

// schedule queues an event for every endpoint that wants it.
func (s *Server) schedule(e object) {
	kind, thin := text(e, "type"), text(e, "object") == "v2.core.event"
	for o := range s.store.shelf("webhook_endpoint").all {
		if !wants(o, kind, thin) {
			continue
		}
		if s.strikes(&s.webhooks.rules.Lose, kind) {
			s.webhooks.lost++
			s.note(e, text(o, "id"), stateLost)
			continue
		}
		s.note(e, text(o, "id"), statePending)
		s.send(e, text(o, "id"), false)
		if s.strikes(&s.webhooks.rules.Duplicate, kind) {
			s.send(e, text(o, "id"), false)
		}
	}
	s.nudge()
}

// send queues one delivery.
func (s *Server) send(e object, endpoint string, manual bool) {
	w := &s.webhooks
	w.last++
	p := &pending{ID: w.last, Event: text(e, "id"), Endpoint: endpoint, Due: s.clock.Now(), Manual: manual, event: e}
	if text(e, "object") == "v2.core.event" {
		p.Thin = e
	}
	if w.rules.DelayMS != nil {
		p.Due = p.Due.Add(time.Duration(*w.rules.DelayMS) * time.Millisecond)
	}
	if w.rules.Reorder != nil && *w.rules.Reorder {
		p.Due = p.Due.Add(time.Duration(s.random.IntN(reorderWithin)) * time.Millisecond)
	}
	w.open[p.ID] = p
	heap.Push(&w.queue, p)
	s.logDelivery(p)
}

func (s *Server) logDelivery(p *pending) {
	raw, _ := json.Marshal(p) // stored objects always encode
	s.store.log(entry{Type: "delivery", ID: strconv.FormatInt(p.ID, 10), Raw: raw, Over: p.State != ""})
}

// note keeps what has become of an event at an endpoint. What was delivered once
// stays delivered.
func (s *Server) note(e object, endpoint, state string) {
	to := child(e, "_to")
	if to == nil || text(to, endpoint) == stateDelivered {
		return
	}
	to[endpoint] = state
	count := int64(0)
	for _, state := range to {
		if state == statePending || state == stateLost || state == stateFailed {
			count++
		}
	}
	e["pending_webhooks"] = count
}

// allDelivered tells that no endpoint lacks an event.
func allDelivered(e object) bool {
	for _, state := range child(e, "_to") {
		if state != stateDelivered {
			return false
		}
	}
	return true
}

// finish ends a delivery that is out of the queue.
func (s *Server) finish(p *pending, state string) {
	p.State = state
	delete(s.webhooks.open, p.ID)
	s.note(p.event, p.Endpoint, state)
	s.logDelivery(p)
}

// dropDeliveries ends what is queued for an endpoint that is no more.
func (s *Server) dropDeliveries(endpoint string) {
	var kept deliveries
	for _, p := range s.webhooks.queue {
		if p.Endpoint != endpoint {
			kept = append(kept, p)
			continue
		}
		s.finish(p, stateDropped)
	}
	s.webhooks.queue = kept
	heap.Init(&s.webhooks.queue)
}

// restoreDelivery takes up a delivery from the journal, or its end.
func (s *Server) restoreDelivery(e entry) error {
	p := &pending{}
	if err := decodeExact(e.Raw, p); err != nil {
		return err
	}
	s.webhooks.last = max(s.webhooks.last, p.ID)
	s.webhooks.open[p.ID] = p
	if e.Over {
		delete(s.webhooks.open, p.ID)
		if o := s.store.get("event", p.Event); o != nil {
			s.note(o, p.Endpoint, p.State)
		}
	}
	return nil
}

// requeue queues the deliveries that were open when the process ended; a try that
// was under way then is made again.
func (s *Server) requeue() {
	for _, p := range s.webhooks.open {
		if p.event = p.Thin; p.event == nil {
			p.event = s.store.get("event", p.Event)
		}
		if p.event == nil {
			delete(s.webhooks.open, p.ID) // its event has been forgotten
			continue
		}
		s.note(p.event, p.Endpoint, statePending)
		s.webhooks.queue = append(s.webhooks.queue, p)
	}
	heap.Init(&s.webhooks.queue)
}

// deliverLoop sends what is due, a bounded number at a time.
func (s *Server) deliverLoop(ctx context.Context) {
	slots := make(chan struct{}, sendsMax)
	var sends sync.WaitGroup
	defer sends.Wait()
	tick := time.NewTicker(deliverPoll)
	defer tick.Stop()
	for {
		for due := s.takeDue(); len(due) > 0; due = s.takeDue() {
			for _, p := range due {
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
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// takeDue takes the next deliveries out of the queue and decides how they are
// spoiled.
func (s *Server) takeDue() []*pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happen() // what falls due while nobody calls has its webhooks, too
	w := &s.webhooks
	var due []*pending
	if w.paused() {
		return nil
	}
	for now := s.clock.Now(); len(due) < sendsMax && len(w.queue) > 0 && !w.queue[0].Due.After(now); {
		p := heap.Pop(&w.queue).(*pending)
		p.mangle = s.pickMangle(text(p.event, "type"))
		due = append(due, p)
	}
	w.running += len(due)
	if w.rules.Reorder != nil && *w.rules.Reorder {
		s.random.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	}
	return due
}

func (w *webhookControl) paused() bool { return w.rules.Pause != nil && *w.rules.Pause }

// deliver makes one try. A refusal of any kind, a redirect included, is retried
// with back-off; each try is signed afresh.
func (s *Server) deliver(ctx context.Context, p *pending) {
	s.mu.Lock()
	o := s.store.get("webhook_endpoint", p.Endpoint)
	if o == nil || text(o, "status") != "enabled" {
		s.finish(p, stateDropped)
		s.webhooks.running--
		s.mu.Unlock()
		return
	}
	target, m := text(o, "url"), s.letter(p, o)
	timeout := webhookTimeout
	if ms := s.switches.WebhookTimeoutMS; ms > 0 {
		timeout = time.Duration(ms) * time.Millisecond
	}
	s.mu.Unlock()
	status, err := s.post(ctx, target, m, timeout)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.webhooks.running--
	p.Attempt++
	if errors.Is(ctx.Err(), context.Canceled) && err != nil {
		return // the simulator ends: the journal still has it
	}
	s.logTry(p, target, status, err)
	s.settleTry(p, err == nil && status >= 200 && status < 300)
}

// settleTry ends a delivery or lets it wait for its next try, and disables an
// endpoint that has failed for too long.
func (s *Server) settleTry(p *pending, ok bool) {
	o := s.store.get("webhook_endpoint", p.Endpoint)
	if ok {
		s.webhooks.delivered++
		s.finish(p, stateDelivered)
		if number(o, "_failing_since") != 0 {
			s.change("webhook_endpoint", o, object{"_failing_since": int64(0)})
		}
		return
	}
	s.webhooks.failed++
	waits := retryWaits
	if s.switches.SandboxRetries {
		waits = sandboxWaits
	}
	switch {
	case o == nil || text(o, "status") != "enabled":
		s.finish(p, stateDropped)
		return
	case p.Manual || p.Attempt > len(waits):
		s.finish(p, stateFailed)
	default:
		p.Due = s.clock.Now().Add(waits[p.Attempt-1])
		heap.Push(&s.webhooks.queue, p)
		s.logDelivery(p)
	}
	since := number(o, "_failing_since")
	if since == 0 {
		s.change("webhook_endpoint", o, object{"_failing_since": s.now()})
	} else if days := int64(s.switches.EndpointDisabledAfterDays); days > 0 && s.now() >= since+days*24*3600 {
		s.change("webhook_endpoint", o, object{"status": "disabled"})
		s.dropDeliveries(p.Endpoint)
	}
}

// post sends a letter and gives the status of the answer.
func (s *Server) post(ctx context.Context, target string, m letter, timeout time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(m.body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.Header.Set("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
	r.Header.Set("Stripe-Signature", m.signature)
	response, err := s.http.Do(r)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<16))
	_ = response.Body.Close()
	return response.StatusCode, nil
}

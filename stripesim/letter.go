package stripesim

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"time"
)

// What a spoiled try of a delivery shows instead.
const (
	wrongTimeOff    = time.Hour // by which a wrong time of a signature is off
	otherAPIVersion = "2022-11-15"
)

// letter is a webhook as it goes over the wire.
type letter struct {
	body      []byte
	signature string
}

// letter writes a delivery: in the endpoint's version, signed with each of its
// secrets, with a fresh time, and spoiled where a rule says so.
func (s *Server) letter(p *pending, endpoint object) letter {
	e := s.view(p.event, nil)
	if p.Thin == nil {
		if version := text(endpoint, "api_version"); version != "" {
			e["api_version"] = version
		}
	}
	at := s.now() + s.switches.ClockSkewSeconds
	secrets := s.secretsOf(endpoint)
	switch p.mangle {
	case "wrong_livemode":
		e["livemode"] = true
	case "wrong_api_version":
		e["api_version"] = otherAPIVersion
	case "old_timestamp":
		at -= int64(wrongTimeOff.Seconds())
	case "future_timestamp":
		at += int64(wrongTimeOff.Seconds())
	case "wrong_secret":
		secrets = []any{object{"secret": s.newSecret()}}
	}
	body, _ := json.MarshalIndent(e, "", "  ") // stored objects always encode
	signature := sign(at, secrets, body, p.mangle == "bad_signature")
	if p.mangle == "truncated_body" {
		body = body[:len(body)/2]
	}
	return letter{body: body, signature: signature}
}

// sign makes the Stripe-Signature header: one v1 for each secret, and the v0 that
// Stripe adds in test mode, which nobody may accept.
func sign(at int64, secrets []any, body []byte, bad bool) string {
	header := fmt.Sprintf("t=%d", at)
	for _, item := range secrets {
		mac := hmac.New(sha256.New, []byte(text(item.(object), "secret")))
		_, _ = fmt.Fprintf(mac, "%d.%s", at, body)
		sum := mac.Sum(nil)
		if bad {
			sum[0] ^= 1
		}
		header += ",v1=" + hex.EncodeToString(sum)
	}
	sum := sha256.Sum256(body)
	return header + ",v0=" + hex.EncodeToString(sum[:])
}

// mangles are the rules that spoil a try, in the order in which they are asked.
func (w *Webhooks) mangles() []struct {
	name string
	rule **Rule
} {
	return []struct {
		name string
		rule **Rule
	}{
		{"bad_signature", &w.BadSignature},
		{"wrong_secret", &w.WrongSecret},
		{"old_timestamp", &w.OldTimestamp},
		{"future_timestamp", &w.FutureTimestamp},
		{"wrong_livemode", &w.WrongLivemode},
		{"wrong_api_version", &w.WrongAPIVersion},
		{"truncated_body", &w.TruncatedBody},
	}
}

// pickMangle gives the first rule that spoils a try, "" when none does.
func (s *Server) pickMangle(kind string) string {
	for _, m := range s.webhooks.rules.mangles() {
		if s.strikes(m.rule, kind) {
			return m.name
		}
	}
	return ""
}

// Delivery is one try to deliver an event.
type Delivery struct {
	At       time.Time `json:"at"` // the simulator's time when it ended
	Event    string    `json:"event"`
	Type     string    `json:"type"`
	Endpoint string    `json:"endpoint"`
	URL      string    `json:"url"`
	Try      int       `json:"try"`    // the first one is 1
	Status   int       `json:"status"` // 0: no answer came
	Error    string    `json:"error"`  // why no answer came
	Fault    string    `json:"fault"`  // how it was spoiled, "" where it was not
}

// triesKept is how many tries GET /_sim/webhooks/deliveries shows.
const triesKept = 20000

func (s *Server) logTry(p *pending, target string, status int, err error) {
	d := Delivery{
		At: s.clock.Now(), Event: p.Event, Type: text(p.event, "type"), Endpoint: p.Endpoint, URL: target, Try: p.Attempt, Status: status, Fault: p.mangle,
	}
	if err != nil {
		d.Error = err.Error()
	}
	w := &s.webhooks
	if len(w.tries) == triesKept {
		w.tries = append(w.tries[:0], w.tries[triesKept/2:]...)
	}
	w.tries = append(w.tries, d)
}

// Deliveries gives the last tries to deliver events, the oldest first.
func (s *Server) Deliveries() []Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Delivery{}, s.webhooks.tries...)
}

// clone is a copy that shares nothing with w.
func (r *Rule) clone() *Rule {
	if r == nil {
		return nil
	}
	c := *r
	c.Types = append([]string{}, r.Types...)
	if r.Probability != nil {
		p := *r.Probability
		c.Probability = &p
	}
	return &c
}

// clone is a copy whose map can be changed.
func (w Switches) clone() Switches {
	w.ListLagSeconds = maps.Clone(w.ListLagSeconds)
	return w
}

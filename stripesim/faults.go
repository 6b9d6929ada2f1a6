package stripesim

import (
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"path"
	"slices"
	"strings"
)

// Fault is a rule: calls that match go wrong in the way it names.
type Fault struct {
	Method      string   `json:"method"`       // "" matches any
	Path        string   `json:"path"`         // a pattern of path.Match, or the beginning of a path and **; "" matches any
	Fault       string   `json:"fault"`        // one of FaultNames
	Probability *float64 `json:"probability"`  // of each matching call; nothing: always
	Every       int      `json:"every"`        // of the matching calls, each n-th; 0: each
	Times       int      `json:"times"`        // how often at most; 0: without end
	From        int64    `json:"from"`         // Unix seconds of the simulator's time; 0: from the beginning
	Until       int64    `json:"until"`        // Unix seconds of the simulator's time, exclusive; 0: without end
	Seed        uint64   `json:"seed"`         // of the probability
	DelayMS     int      `json:"delay_ms"`     // of slow, slow_after and slow_body; default 30 000
	RetryAfter  int      `json:"retry_after"`  // seconds, of an answered error; 0: no header
	ShouldRetry *bool    `json:"should_retry"` // Stripe-Should-Retry of an answered error; nothing: no header
	Reason      string   `json:"reason"`       // Stripe-Rate-Limited-Reason of rate_limit; default global-rate
	Bytes       int64    `json:"bytes"`        // of oversized_body; default 16 MiB
	Hits        int      `json:"hits"`         // how often it struck

	matched int // of Every
	random  *mathrand.Rand
}

// FaultNames lists the ways in which a call can go wrong.
var FaultNames = []string{
	"drop_before", "drop_after", "reset_before", "reset_after", "cut_body", "slow", "slow_after", "slow_body",
	"error_500_before", "error_500_after", "error_502_html", "error_502_after", "error_503", "error_503_after",
	"rate_limit", "lock_timeout", "conflict_409", "key_mismatch_400", "identifier_exists_400", "unauthorized_401", "forbidden_403", "redirect_302",
	"malformed_json", "wrong_content_type", "oversized_body", "empty_200", "page_shift", "lose",
}

// rateReasons are what Stripe-Rate-Limited-Reason can say.
var rateReasons = []string{"global-rate", "global-concurrency", "endpoint-rate", "endpoint-concurrency", "resource-specific"}

// check says what is wrong with a rule, and what would be right.
func (f *Fault) check() error {
	switch {
	case !slices.Contains(FaultNames, f.Fault):
		return fmt.Errorf("fault %q is unknown; it is one of %s", f.Fault, strings.Join(FaultNames, ", "))
	case f.Method != "" && f.Method != http.MethodGet && f.Method != http.MethodPost && f.Method != http.MethodDelete:
		return fmt.Errorf("method %q is none of Stripe's; it is GET, POST or DELETE, or nothing for any", f.Method)
	case f.Probability != nil && (*f.Probability < 0 || *f.Probability > 1):
		return fmt.Errorf("probability is %v; it is a number from 0 to 1", *f.Probability)
	case f.Times < 0 || f.Every < 0 || f.DelayMS < 0 || f.RetryAfter < 0 || f.Bytes < 0 || f.From < 0 || f.Until < 0:
		return fmt.Errorf("times, every, from, until, delay_ms, retry_after and bytes must not be negative")
	case f.Until != 0 && f.Until <= f.From:
		return fmt.Errorf("until is %d, which is not after from, %d; both are Unix seconds of the simulator's time", f.Until, f.From)
	case f.Reason != "" && !slices.Contains(rateReasons, f.Reason):
		return fmt.Errorf("reason %q is unknown; it is one of %s", f.Reason, strings.Join(rateReasons, ", "))
	}
	if _, err := path.Match(strings.TrimSuffix(f.Path, "**"), "/"); err != nil {
		return fmt.Errorf("path %q is no pattern: * stands for one part of a path, ** at its end for any rest", f.Path)
	}
	return nil
}

func (f *Fault) is(name string) bool { return f != nil && f.Fault == name }

func (f *Fault) matches(r *http.Request, now int64) bool {
	if (f.Method != "" && f.Method != r.Method) || now < f.From || (f.Until != 0 && now >= f.Until) {
		return false
	}
	if head, ok := strings.CutSuffix(f.Path, "**"); ok {
		return strings.HasPrefix(r.URL.Path, head)
	}
	ok, err := path.Match(f.Path, r.URL.Path)
	return f.Path == "" || (err == nil && ok)
}

// pickFault gives the first rule that strikes a call, nil when none does.
func (s *Server) pickFault(r *http.Request) *Fault {
	now := s.clock.Now().Unix()
	for _, f := range s.faults {
		if !f.matches(r, now) || (f.Times > 0 && f.Hits >= f.Times) {
			continue
		}
		if f.matched++; f.Every > 0 && f.matched%f.Every != 0 {
			continue
		}
		if f.Probability != nil && f.random.Float64() >= *f.Probability {
			continue
		}
		f.Hits++
		if f.Times > 0 {
			s.logFaults()
		}
		return f
	}
	return nil
}

// AddFaults adds rules after those that stand; of several that match a call the
// first one strikes. It adds none when one of them is wrong.
func (s *Server) AddFaults(rules ...*Fault) error {
	for i, f := range rules {
		if err := f.check(); err != nil {
			return fmt.Errorf("rule %d: %w", i, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range rules {
		f.arm()
	}
	s.faults = append(s.faults, rules...)
	s.logFaults()
	return nil
}

func (f *Fault) arm() {
	f.random = mathrand.New(mathrand.NewPCG(f.Seed, 0xfa17)) //nolint:gosec // reproducible on purpose
}

// ClearFaults takes all rules away.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
	s.logFaults()
}

// Faults gives the rules that stand, with how often each has struck.
func (s *Server) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	rules := make([]Fault, len(s.faults))
	for i, f := range s.faults {
		rules[i] = *f
		rules[i].random = nil
	}
	return rules
}

func (s *Server) logFaults() {
	raw, _ := json.Marshal(s.faults) // plain values always encode
	s.store.log(entry{Type: "faults", Raw: raw})
}

func (s *Server) restoreFaults(e entry) error {
	s.faults = nil
	if err := json.Unmarshal(e.Raw, &s.faults); err != nil {
		return err
	}
	for _, f := range s.faults {
		f.arm()
	}
	return nil
}

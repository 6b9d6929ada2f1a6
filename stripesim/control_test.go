package stripesim_test

import (
	"slices"
	"strings"
	"testing"

	"tallystick/stripesim"
)

// TestControlCallsSayWhatIsWrong sends each call what it does not take.
func TestControlCallsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	endpoint := u.make("/v1/webhook_endpoints", "url=http://127.0.0.1:1/&enabled_events[]=*")
	for _, tc := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"/_sim/faults", `{"rules": [{"fault": "explode"}]}`, 400, `fault "explode" is unknown; it is one of drop_before, drop_after`},
		{"/_sim/faults", `{"rules": [{"fault": "lose"}, {"fault": "lose", "probability": 1.1}]}`, 400, "rule 1: probability is 1.1; it is a number from 0 to 1"},
		{"/_sim/faults", `{"rules": [{"fault": "lose", "method": "post"}]}`, 400, "it is GET, POST or DELETE"},
		{"/_sim/faults", `{"rules": [{"fault": "lose", "path": "/v1/[", "times": 1}]}`, 400, "is no pattern"},
		{"/_sim/faults", `{"rules": [{"fault": "lose", "times": -1}]}`, 400, "must not be negative"},
		{"/_sim/faults", `{"rules": [{"fault": "lose", "from": 9, "until": 9}]}`, 400, "not after from"},
		{"/_sim/faults", `{"rules": [{"fault": "rate_limit", "reason": "mood"}]}`, 400, "it is one of global-rate"},
		{"/_sim/faults", `{"rule": []}`, 400, "rules of {method, path, fault, probability, every"},
		{"/_sim/switches", `{"meter_lag": 1}`, 400, "meter_lag_seconds"},
		{"/_sim/switches", `{"requests_per_second": -1}`, 400, "requests_per_second is -1; it must not be negative"},
		{"/_sim/switches", `{"list_lag_seconds": {"customer": -1}}`, 400, "list_lag_seconds of customer is -1"},
		{"/_sim/webhooks", `{"loose": 1}`, 400, "it takes lose, duplicate, duplicate_new_id"},
		{"/_sim/webhooks", `{"lose": "all"}`, 400, `a rule must be a share from 0 to 1`},
		{"/_sim/webhooks", `{"lose": 2}`, 400, "lose: probability is 2"},
		{"/_sim/webhooks", `{"bad_signature": {"times": -1}}`, 400, "bad_signature: times is -1"},
		{"/_sim/webhooks", `{"delay_ms": -1}`, 400, "delay_ms is -1"},
		{"/_sim/webhooks/redeliver", `{"event": "evt_none"}`, 404, "No such event: 'evt_none'"},
		{"/_sim/webhook_endpoints/we_none/roll_secret", ``, 404, "No such webhook_endpoint: 'we_none'"},
		{"/_sim/webhook_endpoints/" + endpoint + "/roll_secret", `{"keep_seconds": 86401}`, 400, "from 0 to 86400 seconds"},
		{"/_sim/clock", `{"advance_seconds": -1}`, 400, "time goes forward only"},
		{"/_sim/nothing", ``, 404, "there is no POST /_sim/nothing"},
	} {
		a := u.call("POST", tc.path, tc.body)
		if says, _ := a.Body["error"].(string); a.Status != tc.status || !strings.Contains(says, tc.says) {
			t.Errorf("%s %s is answered %d %s, want %d with %q", tc.path, tc.body, a.Status, a.Raw, tc.status, tc.says)
		}
	}
	if len(u.Faults()) != 0 {
		t.Errorf("a list of rules with a wrong one has added %v", u.Faults())
	}
}

// TestControlCallsAreListed and those that read show what was set.
func TestControlCallsAreListed(t *testing.T) {
	t.Parallel()
	u := newUser(t)
	calls, _ := u.must("GET", "/_sim/", "")["calls"].([]any)
	for _, want := range []string{"GET /_sim/state", "POST /_sim/faults", "GET /_sim/webhooks/deliveries", "POST /_sim/webhook_endpoints/{id}/roll_secret"} {
		if !slices.Contains(calls, any(want)) {
			t.Errorf("%s is not listed in %v", want, calls)
		}
	}
	u.must("POST", "/_sim/faults", `{"rules": [{"method": "GET", "path": "/v1/products", "fault": "error_503", "probability": 0.5, "every": 3, "times": 2, "seed": 7}]}`)
	rules, _ := u.must("GET", "/_sim/faults", "")["rules"].([]any)
	if len(rules) != 1 || member(rules[0].(map[string]any), "path") != "/v1/products" {
		t.Errorf("the rules are %v", rules)
	}
	if rules, _ := u.must("DELETE", "/_sim/faults", "")["rules"].([]any); len(rules) != 0 {
		t.Errorf("after all were taken away these stand: %v", rules)
	}
	u.must("POST", "/_sim/switches", `{"event_lag_seconds": 5, "list_lag_seconds": {"refund": 3}}`)
	u.must("POST", "/_sim/switches", `{"meter_lag_seconds": 7}`)
	switches := u.must("GET", "/_sim/switches", "")
	if got := u.State().Switches; got.EventLagSeconds != 5 || got.MeterLagSeconds != 7 || got.ListLagSeconds["refund"] != 3 {
		t.Errorf("the switches are %v", switches)
	}
	u.must("POST", "/_sim/webhooks", `{"lose": {"types": ["charge.*"], "times": 2}, "delay_ms": 1000}`)
	u.must("POST", "/_sim/webhooks", `{"pause": true}`)
	state := u.must("GET", "/_sim/webhooks", "")
	if member(state, "paused") != true || member(state, "rules", "lose", "types") == nil {
		t.Errorf("webhooks are set to %v", state)
	}
	u.make("/v1/customers", "name=a")
	requests := u.Requests()
	if last := requests[len(requests)-1]; last.Path != "/v1/customers" || last.Form.Get("name") != "a" || !last.Executed || last.Status != 200 {
		t.Errorf("the last request is %+v", last)
	}
	if err := u.SetSwitches(stripesim.Switches{}); err != nil || u.State().Switches.EventLagSeconds != 0 {
		t.Errorf("switches cannot be set back: %v", err)
	}
}

package stripe_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tallystick/internal/stripe"
	"tallystick/stripesim"
)

// made posts to the simulator and gives the id of what was made.
func made(t *testing.T, sim *stripesim.Sim, path string, values url.Values) string {
	t.Helper()
	id, _ := called(t, sim, http.MethodPost, path, values)["id"].(string)
	if id == "" {
		t.Fatalf("%s made nothing", path)
	}
	return id
}

// called calls the simulator and gives the object that it answers.
func called(t *testing.T, sim *stripesim.Sim, method, path string, values url.Values) (o map[string]any) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, sim.URL+path, strings.NewReader(values.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+sim.Key)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(&o); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s %s was answered %d, %v: %v", method, path, response.StatusCode, err, o)
	}
	return o
}

// TestEveryFaultIsSurvivedAndCountedOnce sends one event until it is done, through
// each fault of the simulator: whatever Stripe did, it counts once.
func TestEveryFaultIsSurvivedAndCountedOnce(t *testing.T) {
	t.Parallel()
	verdicts := map[string]stripe.Verdict{
		"drop_before": stripe.VerdictUnknown, "drop_after": stripe.VerdictUnknown, "error_500_before": stripe.VerdictUnknown, "error_500_after": stripe.VerdictUnknown,
		"error_502_html": stripe.VerdictUnknown, "error_503": stripe.VerdictUnknown, "rate_limit": stripe.VerdictThrottled, "lock_timeout": stripe.VerdictThrottled,
		"conflict_409": stripe.VerdictUnknown, "slow": stripe.VerdictUnknown, "slow_after": stripe.VerdictUnknown, "malformed_json": stripe.VerdictUnknown,
		"redirect_302": stripe.VerdictUnknown, "unauthorized_401": stripe.VerdictRefused, "forbidden_403": stripe.VerdictRefused,
		"reset_before": stripe.VerdictUnknown, "reset_after": stripe.VerdictUnknown, "cut_body": stripe.VerdictUnknown, "slow_body": stripe.VerdictUnknown,
		"error_502_after": stripe.VerdictUnknown, "error_503_after": stripe.VerdictUnknown, "key_mismatch_400": stripe.VerdictUnknown,
		"wrong_content_type": stripe.VerdictDone, "oversized_body": stripe.VerdictUnknown, "empty_200": stripe.VerdictUnknown,
	}
	for _, fault := range stripesim.FaultNames {
		want, known := verdicts[fault]
		switch fault {
		case "lose", "identifier_exists_400": // lies that nobody but the auditor can see through
			continue
		case "page_shift": // happens to lists
			continue
		}
		if !known {
			t.Errorf("the fault %s is not tried", fault)
			continue
		}
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			through(t, fault, want)
		})
	}
}

func through(t *testing.T, fault string, want stripe.Verdict) {
	t.Helper()
	sim := stripesim.New(t)
	customer := made(t, sim, "/v1/customers", url.Values{"name": {"acme"}})
	meter := made(t, sim, "/v1/billing/meters", url.Values{"display_name": {"calls"}, "event_name": {"calls"}, "default_aggregation[formula]": {"sum"}})
	if err := sim.AddFaults(&stripesim.Fault{Method: http.MethodPost, Path: "/v1/billing/meter_events", Fault: fault, Times: 1}); err != nil {
		t.Fatal(err)
	}
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL, Timeout: 2 * time.Second})
	e := event
	e.Customer, e.Timestamp = customer, sim.Now()
	verdict, _, err := client.SendMeterEvent(t.Context(), e)
	if verdict != want {
		t.Errorf("the first try: verdict %d, want %d: %v", verdict, want, err)
	}
	for tries := 0; verdict != stripe.VerdictDone; tries++ {
		if tries > 20 {
			t.Fatalf("never done: verdict %d, %v", verdict, err)
		}
		e.Attempt++
		if verdict, _, err = client.SendMeterEvent(t.Context(), e); verdict == stripe.VerdictThrottled {
			time.Sleep(100 * time.Millisecond) // a call that was given up may still be under way: one at a time
		}
	}
	from := sim.Now().Truncate(time.Hour)
	totals, err := client.Totals(t.Context(), meter, customer, from, from.Add(time.Hour), true)
	if err != nil || len(totals) != 1 || totals[0].Quantity != event.Value {
		t.Errorf("Stripe counts %v, %v; want 3, once", totals, err)
	}
}

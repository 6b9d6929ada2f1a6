package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"tallystick/api"
	"tallystick/internal/web"
)

// TestDeliveriesAreListedAndSentAgain records usage of an account without a customer,
// which waits, and looks at it from the command line.
func TestDeliveriesAreListedAndSentAgain(t *testing.T) {
	t.Parallel()
	p := up(t, dataDir(t))
	settings := []string{"TALLYSTICK_DATA=" + p.dir}
	p.must(http.StatusCreated, http.MethodPut, "/v1/accounts/acme", `{}`)
	p.must(http.StatusCreated, http.MethodPut, "/v1/meters/call", `{"credits_per_unit": 0, "stripe": {"kind": "meter", "event_name": "calls"}}`)
	p.must(http.StatusCreated, http.MethodPost, "/v1/usage", `{"id": "usage-0001", "account": "acme", "meter": "call", "quantity": "2.5"}`)
	step := func(code int, args, want string) string {
		t.Helper()
		got, out, errs := cli(t, settings, strings.Fields(args)...)
		if got != code || !strings.Contains(out+errs, want) {
			t.Errorf("%s ended with %d, want %d and %q:\n%s%s", args, got, code, want, out, errs)
		}
		return out
	}
	var page web.List[api.Delivery]
	if err := json.Unmarshal([]byte(step(exitFine, "deliveries list --state pending --account acme --output json", "")), &page); err != nil || len(page.Data) != 1 {
		t.Fatalf("listed are %+v, %v", page, err)
	}
	d := page.Data[0]
	if d.Backend != "meter_event" || d.Quantity != "2.5" || d.SentValue != nil || d.SentAt != nil || d.ReplacedBy != "" {
		t.Errorf("the delivery is %+v", d)
	}
	step(exitFine, "deliveries list --output csv", d.ID+",acme,call,")
	step(exitFine, "deliveries list --account nobody", "nothing to show")
	step(exitUsage, "deliveries list --state lost", "must be one of")
	step(exitUsage, "deliveries list --limit 501", "limit")
	step(exitFine, "deliveries retry "+d.ID, "2.5")
	step(exitUsage, "deliveries retry ts_nothing", "delivery_not_found")
	step(exitUsage, "deliveries retry", "accepts 1 arg")
}

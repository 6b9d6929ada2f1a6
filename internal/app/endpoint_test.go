package app_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"tallystick/api"
	"tallystick/internal/apptest"
	"tallystick/internal/stripe"
	"tallystick/webhooks"
)

// TestTheAuditorWantsTheEventTypesThatAreHandled: the two keep lists of their own, and an
// endpoint that listens to nothing of them lacks exactly what the other makes it listen to.
func TestTheAuditorWantsTheEventTypesThatAreHandled(t *testing.T) {
	t.Parallel()
	a := apptest.Start(t, apptest.Options{})
	for _, e := range a.Stripe(http.MethodGet, "/v1/webhook_endpoints", nil)["data"].([]any) {
		a.Stripe(http.MethodDelete, "/v1/webhook_endpoints/"+e.(map[string]any)["id"].(string), nil)
	}
	lacking := func(enabled ...string) []string {
		t.Helper()
		id := a.Stripe(http.MethodPost, "/v1/webhook_endpoints", url.Values{
			"url": {a.Info.URL + "/webhooks/stripe"}, "api_version": {stripe.APIVersion}, "enabled_events[]": enabled,
		})["id"].(string)
		a.Want(http.StatusCreated, http.MethodPost, "/v1/reconcile/runs", `{"checks": ["webhooks.endpoint"]}`, nil)
		var found struct{ Data []api.Finding }
		a.Want(http.StatusOK, http.MethodGet, "/v1/findings?check=webhooks.endpoint", nil, &found)
		a.Stripe(http.MethodDelete, "/v1/webhook_endpoints/"+id, nil)
		if len(found.Data) == 0 {
			return nil
		}
		var evidence struct{ Lacking []string }
		if err := json.Unmarshal(found.Data[0].Evidence, &evidence); err != nil || len(found.Data) > 1 {
			t.Fatalf("found are %+v, %v", found.Data, err)
		}
		return evidence.Lacking
	}
	got := lacking("customer.created")
	slices.Sort(got)
	if want := webhooks.EventTypes(); !slices.Equal(got, want) {
		t.Errorf("the auditor wants\n%q\nhandled are\n%q", got, want)
	}
	if got := lacking(webhooks.EventTypes()...); len(got) > 0 {
		t.Errorf("of what webhook setup makes it listen to, the auditor misses %q", got)
	}
}

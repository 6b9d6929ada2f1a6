package conformance

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/protocol"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"tallystick/api"
	"tallystick/internal/apptest"
)

// shop is a running tallystick with the account acme and a meter that reads its
// quantity from the member tokens.
func shop(t *testing.T) *apptest.App {
	t.Helper()
	a := apptest.Start(t, apptest.Options{})
	a.Want(http.StatusCreated, "PUT", "/v1/accounts/acme", `{}`, nil)
	a.Want(http.StatusCreated, "POST", "/v1/accounts/acme/grants", `{"id": "grant-0001", "credits": 1000}`, nil)
	a.Want(http.StatusCreated, "PUT", "/v1/meters/com.example.llm.tokens", `{"credits_per_unit": 1, "value_field": "tokens"}`, nil)
	return a
}

// llmEvent is an event as a Go program makes it.
func llmEvent(t *testing.T, id string, tokens int) cloudevents.Event {
	t.Helper()
	e := cloudevents.NewEvent()
	e.SetID(id)
	e.SetSource("https://example.com/llm")
	e.SetType("com.example.llm.tokens")
	e.SetSubject("acme")
	e.SetTime(time.Now().Add(-time.Second).UTC().Truncate(time.Second))
	e.SetExtension("sampledrate", 3)
	e.SetExtension("replayable", true)
	e.SetExtension("comexampleextension1", "value of it")
	if err := e.SetData(cloudevents.ApplicationJSON, map[string]any{"tokens": tokens, "dimensions": map[string]string{"model": "large"}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	return e
}

func available(a *apptest.App) string {
	var account api.Account
	a.Want(http.StatusOK, "GET", "/v1/accounts/acme", nil, &account)
	return string(account.Balance.Available)
}

// TestTheCloudEventsSDKSendsInEachMode sends each event twice with the official
// client, once in either mode: the second time is a replay.
func TestTheCloudEventsSDKSendsInEachMode(t *testing.T) {
	t.Parallel()
	a := shop(t)
	target, err := cehttp.New(cehttp.WithTarget(a.Info.URL+"/v1/events"), cehttp.WithHeader("Authorization", "Bearer "+a.Info.APIKey))
	if err != nil {
		t.Fatal(err)
	}
	client, err := cloudevents.NewClient(target)
	if err != nil {
		t.Fatal(err)
	}
	e := llmEvent(t, "event 1 é", 7)
	for name, ctx := range map[string]func() error{
		"structured": func() error { return client.Send(binding.WithForceStructured(t.Context()), e) },
		"binary":     func() error { return client.Send(binding.WithForceBinary(t.Context()), e) },
	} {
		for range 2 {
			if result := ctx(); !protocol.IsACK(result) {
				t.Errorf("%s: %v", name, result)
			}
		}
	}
	if got := available(a); got != "993" {
		t.Errorf("acme holds %s, want 993 after one event, sent four times", got)
	}
	refused := llmEvent(t, "event-2", 100_000)
	result := client.Send(t.Context(), refused)
	var answer *cehttp.Result
	if protocol.IsACK(result) || !protocol.ResultAs(result, &answer) || answer.StatusCode != http.StatusPaymentRequired {
		t.Errorf("an event that the balance does not cover was answered %v", result)
	}
}

// TestTheCloudEventsSDKsRequestsAreAnsweredByteForByte sends the SDK's requests by
// hand, to see the answers that its client hides, and batches, which it has none for.
func TestTheCloudEventsSDKsRequestsAreAnsweredByteForByte(t *testing.T) {
	t.Parallel()
	a := shop(t)
	url := a.Info.URL + "/v1/events"
	send := func(r *http.Request, err error) apptest.Response {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+a.Info.APIKey)
		if r.Body != nil { // the SDK streams; a length makes it the request that most clients send
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
		return a.Do(r)
	}
	e := llmEvent(t, "event-1", 5)
	first := send(cehttp.NewHTTPRequestFromEvent(t.Context(), url, e))
	var u api.Usage
	if err := json.Unmarshal(first.Body, &u); err != nil || first.Status != http.StatusCreated {
		t.Fatalf("the event was answered %d, %v: %s", first.Status, err, first.Body)
	}
	if u.ID != "event@https:~~example.com~llm@event-1" || u.Quantity != "5" || u.Dimensions["model"] != "large" || !u.OccurredAt.Equal(e.Time()) {
		t.Errorf("the event was recorded as %s", first.Body)
	}
	if again := send(cehttp.NewHTTPRequestFromEvent(t.Context(), url, e)); again.Header.Get("Idempotent-Replayed") != "true" || !bytes.Equal(again.Body, first.Body) {
		t.Errorf("the event that was sent again was answered %d: %s", again.Status, again.Body)
	}
	nobody := llmEvent(t, "event-2", 1)
	nobody.SetSubject("nobody")
	events := []event.Event{e, nobody, llmEvent(t, "event-3", 20)}
	for _, last := range []string{"recorded", "replayed"} {
		var b api.UsageBatch
		answer := send(cehttp.NewHTTPRequestFromEvents(t.Context(), url, events))
		if err := json.Unmarshal(answer.Body, &b); err != nil || answer.Status != http.StatusOK || len(b.Results) != 3 {
			t.Fatalf("the batch was answered %d, %v: %s", answer.Status, err, answer.Body)
		}
		if b.Results[0].Result != "replayed" || b.Results[1].Result != "refused" || b.Results[2].Result != last {
			t.Errorf("the batch was answered %s", answer.Body)
		}
	}
	if got := available(a); got != "975" {
		t.Errorf("acme holds %s, want 975", got)
	}
}

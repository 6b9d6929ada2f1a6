package webhooks_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"tallystick/internal/stripe"
	"tallystick/stripesim"
	"tallystick/webhooks"
)

const endpointURL = "http://localhost:1/webhooks/stripe"

func TestSetupMakesTheEndpointOnceAndRepairsIt(t *testing.T) {
	t.Parallel()
	sim := stripesim.New(t)
	client := stripe.New(stripe.Config{Key: sim.Key, BaseURL: sim.URL})
	step := func(dry bool, action string) webhooks.SetupResult {
		t.Helper()
		r, err := webhooks.Setup(t.Context(), client, endpointURL, dry)
		if err != nil || r.Action != action {
			t.Fatalf("it is %+v, %v; want %s", r, err, action)
		}
		return r
	}
	all := func() []stripe.Endpoint {
		t.Helper()
		all, err := client.Endpoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(all, func(e stripe.Endpoint) bool { return e.URL != endpointURL })
	}
	if r := step(true, webhooks.SetupCreate); r.Secret != "" || len(all()) != 0 {
		t.Errorf("dry it made %+v", all())
	}
	made := step(false, webhooks.SetupCreate)
	if got := all(); len(got) != 1 || !strings.HasPrefix(made.Secret, "whsec_") || got[0].APIVersion != stripe.APIVersion || !slices.Equal(slices.Sorted(slices.Values(got[0].EnabledEvents)), webhooks.EventTypes()) {
		t.Errorf("made is %+v with the secret %q", got, made.Secret)
	}
	if r := step(false, webhooks.SetupNothing); r.Secret != "" || len(r.Reasons) != 0 || r.Endpoint != made.Endpoint {
		t.Errorf("again it is %+v", r)
	}
	if _, err := client.UpdateEndpoint(t.Context(), made.Endpoint, []string{"charge.refunded", "*"}, "drift"); err != nil {
		t.Fatal(err)
	}
	if r := step(true, webhooks.SetupRepair); !strings.Contains(fmt.Sprint(r.Reasons), "lacks") || !strings.Contains(fmt.Sprint(r.Reasons), "needs no *") {
		t.Errorf("drifted it says %+v", r)
	}
	if r := step(false, webhooks.SetupRepair); r.Secret != "" || r.Endpoint != made.Endpoint {
		t.Errorf("repaired it is %+v", r)
	}
	step(false, webhooks.SetupNothing)
}

// keeper is a Stripe with endpoints that it would not let us make.
type keeper struct {
	webhooks.EndpointKeeper
	all  []stripe.Endpoint
	made []string
}

func (k *keeper) Endpoints(context.Context) ([]stripe.Endpoint, error) { return k.all, nil }

func (k *keeper) CreateEndpoint(_ context.Context, to string, events []string, _ string) (stripe.Endpoint, error) {
	k.made = append(k.made, to)
	return stripe.Endpoint{ID: "we_new", URL: to, EnabledEvents: events, Secret: "whsec_new"}, nil
}

func (k *keeper) UpdateEndpoint(_ context.Context, id string, _ []string, _ string) (stripe.Endpoint, error) {
	k.made = append(k.made, id)
	return stripe.Endpoint{ID: id}, nil
}

func TestSetupLeavesAnotherVersionAndMendsADisabledOne(t *testing.T) {
	t.Parallel()
	old := &keeper{all: []stripe.Endpoint{{ID: "we_old", URL: endpointURL, APIVersion: "2020-08-27", Enabled: true}, {ID: "we_other", URL: "https://other"}}}
	r, err := webhooks.Setup(t.Context(), old, endpointURL, false)
	if err != nil || r.Action != webhooks.SetupCreate || r.Secret != "whsec_new" || !slices.Equal(r.Surplus, []string{"we_old"}) || len(old.made) != 1 {
		t.Errorf("beside another version it is %+v, %v", r, err)
	}
	off := &keeper{all: []stripe.Endpoint{{ID: "we_1", URL: endpointURL, APIVersion: stripe.APIVersion, EnabledEvents: webhooks.EventTypes()}}}
	r, err = webhooks.Setup(t.Context(), off, endpointURL, false)
	if err != nil || r.Action != webhooks.SetupRepair || !slices.Equal(off.made, []string{"we_1"}) || !slices.Equal(r.Reasons, []string{"it is disabled"}) {
		t.Errorf("disabled it is %+v, %v", r, err)
	}
}

// TestTheDocumentListsTheTypesThatAreHandled keeps docs/stripe.md true.
func TestTheDocumentListsTheTypesThatAreHandled(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/stripe.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "```text\n")
	block, _, _ = strings.Cut(block, "```")
	if got := strings.Fields(block); !slices.Equal(got, webhooks.EventTypes()) {
		t.Errorf("docs/stripe.md lists\n%s\nhandled are\n%s", strings.Join(got, "\n"), strings.Join(webhooks.EventTypes(), "\n"))
	}
}

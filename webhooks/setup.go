package webhooks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"tallystick/internal/stripe"
)

// EndpointKeeper keeps the webhook endpoints at Stripe.
type EndpointKeeper interface {
	Endpoints(ctx context.Context) ([]stripe.Endpoint, error)
	CreateEndpoint(ctx context.Context, to string, events []string, key string) (stripe.Endpoint, error)
	UpdateEndpoint(ctx context.Context, id string, events []string, key string) (stripe.Endpoint, error)
}

// What Setup does about an endpoint.
const (
	SetupNothing = "nothing" // it is as it must be
	SetupCreate  = "create"
	SetupRepair  = "repair"
)

// SetupResult is what Setup has done, or would do.
type SetupResult struct {
	Action   string   `json:"action"`
	Endpoint string   `json:"endpoint"` // "" before it is created
	URL      string   `json:"url"`
	Reasons  []string `json:"reasons"`
	Secret   string   `json:"secret,omitempty"` // of a new endpoint; Stripe shows it this once
	Surplus  []string `json:"surplus"`          // endpoints for the same URL that are to be deleted by hand
}

// Setup makes the endpoint for url at Stripe, with our API version and exactly the
// types of events that are handled here, or repairs the one that is there. The API
// version of an endpoint cannot be changed: one of another version is left alone
// and a new one made beside it. Nothing is deleted. Dry says only what would be done.
func Setup(ctx context.Context, keeper EndpointKeeper, url string, dry bool) (SetupResult, error) {
	r := SetupResult{Action: SetupCreate, URL: url, Reasons: []string{}, Surplus: []string{}}
	all, err := keeper.Endpoints(ctx)
	if err != nil {
		return r, err
	}
	ours := slices.DeleteFunc(all, func(e stripe.Endpoint) bool { return e.URL != url })
	slices.SortFunc(ours, func(a, b stripe.Endpoint) int { return a.CreatedAt.Compare(b.CreatedAt) })
	i := slices.IndexFunc(ours, func(e stripe.Endpoint) bool { return e.APIVersion == stripe.APIVersion })
	for at, e := range ours {
		switch {
		case at == i:
		case e.APIVersion != stripe.APIVersion:
			r.Reasons = append(r.Reasons, fmt.Sprintf("%s has API version %s, which cannot be changed to %s", e.ID, version(e), stripe.APIVersion))
			r.Surplus = append(r.Surplus, e.ID)
		default:
			r.Surplus = append(r.Surplus, e.ID)
		}
	}
	types := EventTypes()
	key := setupKey(url, ours, types)
	if i < 0 {
		if len(ours) == 0 {
			r.Reasons = append(r.Reasons, "there is none for this URL")
		}
		if dry {
			return r, nil
		}
		made, err := keeper.CreateEndpoint(ctx, url, types, key)
		r.Endpoint, r.Secret = made.ID, made.Secret
		return r, err
	}
	r.Action, r.Endpoint = SetupRepair, ours[i].ID
	drift := driftOf(ours[i], types)
	if len(drift) == 0 {
		r.Action = SetupNothing
	}
	r.Reasons = append(r.Reasons, drift...)
	if dry || len(drift) == 0 {
		return r, nil
	}
	_, err = keeper.UpdateEndpoint(ctx, r.Endpoint, types, key)
	return r, err
}

func version(e stripe.Endpoint) string {
	if e.APIVersion == "" {
		return "of the account's default"
	}
	return e.APIVersion
}

// driftOf says in what an endpoint is not as it must be.
func driftOf(e stripe.Endpoint, types []string) (drift []string) {
	if !e.Enabled {
		drift = append(drift, "it is disabled")
	}
	var lacks, has []string
	for _, kind := range types {
		if !slices.Contains(e.EnabledEvents, kind) {
			lacks = append(lacks, kind)
		}
	}
	for _, kind := range e.EnabledEvents {
		if !slices.Contains(types, kind) {
			has = append(has, kind)
		}
	}
	if len(lacks) > 0 {
		drift = append(drift, "it lacks "+strings.Join(lacks, ", "))
	}
	if len(has) > 0 {
		drift = append(drift, "it needs no "+strings.Join(has, ", "))
	}
	return drift
}

// setupKey makes a repeat of the same step harmless: it names what was found.
func setupKey(url string, found []stripe.Endpoint, types []string) string {
	sum := sha256.New()
	_, _ = fmt.Fprintln(sum, url, types)
	for _, e := range found {
		_, _ = fmt.Fprintln(sum, e.ID, e.Enabled, e.EnabledEvents)
	}
	return "webhook-setup-" + hex.EncodeToString(sum.Sum(nil)[:16])
}

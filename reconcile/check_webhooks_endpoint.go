package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"tallystick/internal/pg"
	"tallystick/internal/stripe"
)

// Bounds of webhooks.endpoint.
const (
	endpointPath    = "/webhooks/stripe"
	undeliveredSlow = time.Hour          // a delivery may be tried again for so long before it is told
	undeliveredBack = 3 * 24 * time.Hour // Stripe tries for so long
	undeliveredMax  = 1000
)

// webhooksEndpoint is the check webhooks.endpoint.
func (r *Reconciler) webhooksEndpoint(ctx context.Context, s scope) (result, error) {
	out := result{timeless: true}
	if s.account != "" {
		out.covered = coversNothing
		return out, nil
	}
	endpoints, err := r.Stripe.Endpoints(ctx)
	if err != nil {
		return out, err
	}
	ours := r.ourEndpoints(endpoints)
	out.compared = int64(len(endpoints))
	if len(ours) == 0 {
		out.found = append(out.found, disagreement{
			Subject: "endpoint", HappenedAt: s.now, Unit: "endpoint", Ours: "an endpoint that ends in " + endpointPath, Theirs: "none", Difference: "-1", Cause: "endpoint_missing", Least: "high",
			Explanation: "Stripe has no webhook endpoint of this system: purchases, refunds and disputes arrive only when they are swept or fed. Make one with tallystick webhook setup.",
			Evidence:    map[string]any{"endpoints": len(endpoints)},
		})
	}
	for _, e := range ours {
		out.found = append(out.found, judgeEndpoint(e)...)
	}
	pending, err := r.undelivered(ctx, s)
	out.found = append(out.found, pending...)
	return out, err
}

// ourEndpoints are those with our path: of our own host where there are any, else
// of whatever host, since a proxy may give us another name.
func (r *Reconciler) ourEndpoints(all []stripe.Endpoint) (ours []stripe.Endpoint) {
	public, _ := url.Parse(r.PublicURL) // checked by the configuration; without it any host will do
	var here []stripe.Endpoint
	for _, e := range all {
		at, err := url.Parse(e.URL)
		if err != nil || !strings.HasSuffix(strings.TrimSuffix(at.Path, "/"), endpointPath) {
			continue
		}
		ours = append(ours, e)
		if public != nil && at.Host == public.Host {
			here = append(here, e)
		}
	}
	if len(here) > 0 {
		return here
	}
	return ours
}

// neededTypes are what our endpoint must listen to: refund.failed is newer than the
// API version, and nothing can listen to it.
func neededTypes() []string {
	return slices.DeleteFunc(relevantTypes(), func(kind string) bool { return kind == "refund.failed" })
}

// judgeEndpoint compares one endpoint with what this system needs.
func judgeEndpoint(e stripe.Endpoint) (found []disagreement) {
	d := disagreement{HappenedAt: e.CreatedAt, Unit: "endpoint", Difference: "0", Evidence: map[string]any{"endpoint": e.ID, "url": e.URL, "api_version": e.APIVersion}, Least: "high"}
	if !e.Enabled {
		d.Subject, d.Ours, d.Theirs, d.Cause = "disabled/"+e.ID, "enabled", "disabled", "endpoint_disabled"
		d.Explanation = fmt.Sprintf("The webhook endpoint %s (%s) is disabled: Stripe sends it nothing. Stripe disables an endpoint that has failed for days; mend it, then enable it (tallystick webhook setup).", e.ID, e.URL)
		found = append(found, d)
	}
	if e.APIVersion != stripe.APIVersion {
		d.Subject, d.Ours, d.Theirs, d.Cause = "version/"+e.ID, stripe.APIVersion, orDefault(e.APIVersion), "endpoint_version"
		d.Explanation = fmt.Sprintf("The webhook endpoint %s renders events in %s; this system reads %s and keeps others without applying them. A version cannot be changed: make a new endpoint (tallystick webhook setup) and delete this one.",
			e.ID, orDefault(e.APIVersion), stripe.APIVersion)
		found = append(found, d)
	}
	if lacking := lackingTypes(e.EnabledEvents); len(lacking) > 0 {
		needed := len(neededTypes())
		d.Subject, d.Ours, d.Theirs, d.Cause = "types/"+e.ID, fmt.Sprintf("%d types", needed), fmt.Sprintf("%d types", needed-len(lacking)), "endpoint_types"
		d.Difference, d.Unit = strconv.Itoa(-len(lacking)), "types"
		d.Explanation = fmt.Sprintf("The webhook endpoint %s does not listen to %s. tallystick webhook setup adds them.", e.ID, strings.Join(lacking, ", "))
		d.Evidence = map[string]any{"endpoint": e.ID, "url": e.URL, "lacking": lacking}
		found = append(found, d)
	}
	return found
}

func orDefault(text string) string {
	if text == "" {
		return "the account's default version"
	}
	return text
}

func lackingTypes(enabled []string) (lacking []string) {
	if slices.Contains(enabled, "*") {
		return nil
	}
	for _, kind := range neededTypes() {
		if !slices.Contains(enabled, kind) {
			lacking = append(lacking, kind)
		}
	}
	return lacking
}

// sqlByWebhook relies on stripe_events_pkey.
const sqlByWebhook = `SELECT event_id FROM stripe_events WHERE event_id = ANY ($1::text[]) AND source = 'webhook'`

// sqlLatestByWebhook goes back over the index stripe_events_by_time.
const sqlLatestByWebhook = `
	SELECT coalesce((SELECT created_at FROM stripe_events WHERE source = 'webhook' ORDER BY created_at DESC, event_id DESC LIMIT 1), 'epoch')`

// undelivered counts the events that Stripe could not deliver for a while. Which of
// several endpoints failed Stripe does not say; one that came here by webhook is not
// ours to mend. Where a later event has come, the endpoint works again: what was
// lost before is for the checks of what it was about.
func (r *Reconciler) undelivered(ctx context.Context, s scope) ([]disagreement, error) {
	var ids pg.Texts
	var oldest, latest time.Time
	err := r.DB.Read(ctx, func(tx *sqlx.Tx) error { return tx.GetContext(ctx, &latest, sqlLatestByWebhook) })
	if err != nil {
		return nil, fmt.Errorf("look for the latest webhook: %w", err)
	}
	relevant := neededTypes()
	err = r.Stripe.Undelivered(ctx, s.now.Add(-undeliveredBack), s.now.Add(-undeliveredSlow), func(e stripe.Event) error {
		if slices.Contains(relevant, e.Type) && e.CreatedAt.After(latest) {
			ids, oldest = append(ids, e.ID), e.CreatedAt
		}
		if len(ids) >= undeliveredMax {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	var arrived []string
	err = r.DB.Read(ctx, func(tx *sqlx.Tx) error {
		arrived = nil
		return tx.SelectContext(ctx, &arrived, sqlByWebhook, ids)
	})
	if err != nil {
		return nil, fmt.Errorf("look events up: %w", err)
	}
	n := len(ids) - len(arrived)
	if n == 0 {
		return nil, nil
	}
	var open []string
	for _, id := range ids {
		if !slices.Contains(arrived, id) && len(open) < 20 {
			open = append(open, id)
		}
	}
	count := strconv.Itoa(n)
	return []disagreement{{
		Subject: "deliveries", HappenedAt: oldest, Unit: "events", Ours: "0", Theirs: count, Difference: "+" + count, Cause: "deliveries_failing", Least: "high",
		Explanation: fmt.Sprintf("Stripe could not deliver %s events for more than %s: its endpoint is refused, slow or not reachable. Look at the endpoint's failed attempts in Stripe's dashboard and at the secret (STRIPE_WEBHOOK_SECRET).", count, undeliveredSlow),
		Evidence:    map[string]any{"events": open, "oldest": oldest.UTC()},
	}}, nil
}

// errEnough ends a list of which enough was read.
var errEnough = errors.New("enough was read")

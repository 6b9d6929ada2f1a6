package stripesim

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// Bounds of webhook endpoints.
const (
	endpointsMax  = 16
	secretOverlap = 24 * time.Hour // how long the secret before a roll is good for
)

// eventPattern is the name of a type of event, or all, or all of an object.
var eventPattern = regexp.MustCompile(`^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$`)

// endpointParams are what both calls take; each takes one more.
func endpointParams(name, kind string) spec {
	return spec{"url": "string", "enabled_events": listOf{"string"}, "description": "string", "metadata": "map", name: kind}
}

func (s *Server) routeWebhookEndpoints() {
	create := endpointParams("api_version", "string")
	create["connect"] = "bool"
	s.handle("POST /v1/webhook_endpoints", create, func(c *call) (object, *apiError) { return s.makeEndpoint(c) })
	s.handle("GET /v1/webhook_endpoints/{id}", nil, func(c *call) (object, *apiError) { return s.find("webhook_endpoint", c.target(), "id") })
	s.handle("GET /v1/webhook_endpoints", listSpec(nil), func(c *call) (object, *apiError) {
		return s.list(c, "webhook_endpoint", func(object) bool { return true })
	})
	s.handle("POST /v1/webhook_endpoints/{id}", endpointParams("disabled", "bool"), func(c *call) (object, *apiError) { return s.updateEndpoint(c) })
	s.handle("DELETE /v1/webhook_endpoints/{id}", nil, func(c *call) (object, *apiError) {
		if _, err := s.find("webhook_endpoint", c.target(), "id"); err != nil {
			return nil, err
		}
		s.store.delete("webhook_endpoint", c.target())
		s.dropDeliveries(c.target())
		return object{"id": c.target(), "object": "webhook_endpoint", "deleted": true}, nil
	})
}

// checkEndpoint refuses what neither call takes.
func checkEndpoint(c *call) *apiError {
	if c.has("url") {
		u, err := url.Parse(c.text("url"))
		switch {
		case err != nil || u.Host == "" && u.Scheme != "":
			return invalid("url", "url_invalid", "Invalid URL: %s", c.text("url"))
		case u.Scheme != "http" && u.Scheme != "https":
			return invalid("url", "url_invalid", "Invalid URL: An explicit scheme (such as https) must be provided.")
		}
	}
	if !c.has("enabled_events") {
		return nil
	}
	if len(c.list("enabled_events")) == 0 {
		return invalid("enabled_events", "parameter_invalid_empty", "You passed an empty string for 'enabled_events'. We assume empty values are an attempt to unset a parameter; however 'enabled_events' cannot be unset.")
	}
	for i, kind := range c.list("enabled_events") {
		if !eventPattern.MatchString(fmt.Sprint(kind)) {
			return invalid(fmt.Sprintf("enabled_events[%d]", i), "", "Invalid enabled_events[%d]: %v is no type of event", i, kind)
		}
	}
	return nil
}

func (s *Server) makeEndpoint(c *call) (object, *apiError) {
	if err := c.require("url", "enabled_events"); err != nil {
		return nil, err
	}
	if err := checkEndpoint(c); err != nil {
		return nil, err
	}
	if version := c.text("api_version"); version != "" && !versionForm.MatchString(version) {
		return nil, invalid("api_version", "", "Invalid API version: %s", version)
	}
	if len(s.store.shelf("webhook_endpoint").byID) >= endpointsMax {
		return nil, invalid("", "", "You have reached the maximum of %d test webhook endpoints.", endpointsMax)
	}
	secret := s.newSecret()
	o := object{
		"id": s.newID("we"), "object": "webhook_endpoint", "created": s.now(), "livemode": false, "metadata": c.metadata(), "status": "enabled",
		"url": c.text("url"), "enabled_events": c.list("enabled_events"), "api_version": c.orNull("api_version"), "application": nil,
		"description": c.orNull("description"), "_secrets": []any{object{"secret": secret, "until": int64(0)}},
	}
	s.store.put("webhook_endpoint", o)
	shown := object{"secret": secret}
	for k, v := range o {
		shown[k] = v
	}
	return shown, nil
}

func (s *Server) newSecret() string { return "whsec_" + s.newID("x")[2:] + s.newID("x")[2:] }

func (s *Server) updateEndpoint(c *call) (object, *apiError) {
	o, err := s.find("webhook_endpoint", c.target(), "id")
	if err == nil {
		err = checkEndpoint(c)
	}
	if err != nil {
		return nil, err
	}
	changes := object{}
	for _, name := range []string{"url", "enabled_events"} {
		if c.has(name) {
			changes[name] = c.values[name]
		}
	}
	if c.has("description") {
		changes["description"] = c.orNull("description")
	}
	if c.has("metadata") {
		changes["metadata"] = mergeMetadata(child(o, "metadata"), c.metadata())
	}
	if c.has("disabled") {
		changes["status"] = map[bool]string{true: "disabled", false: "enabled"}[flag(c.values, "disabled")]
		changes["_failing_since"] = int64(0)
	}
	s.change("webhook_endpoint", o, changes)
	if text(o, "status") == "disabled" {
		s.dropDeliveries(c.target())
	}
	return o, nil
}

// secretsOf gives the secrets that an endpoint's deliveries are signed with now,
// the newest one last.
func (s *Server) secretsOf(endpoint object) []any {
	all, _ := endpoint["_secrets"].([]any)
	var good []any
	for _, item := range all {
		if until := number(item.(object), "until"); until == 0 || s.now() < until {
			good = append(good, item)
		}
	}
	return good
}

// RollSecret gives an endpoint a new secret. The one before signs beside it for 24
// hours, or for as long as keep says, and is gone then.
func (s *Server) RollSecret(endpoint string, keep ...time.Duration) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find("webhook_endpoint", endpoint, "id")
	if err != nil {
		return "", err
	}
	overlap := secretOverlap
	if len(keep) > 0 {
		overlap = keep[0]
	}
	if overlap < 0 || overlap > secretOverlap {
		return "", fmt.Errorf("the old secret can be kept from 0 to %d seconds, not %d", int(secretOverlap.Seconds()), int(overlap.Seconds()))
	}
	secret := s.newSecret()
	var secrets []any
	for _, item := range s.secretsOf(o) {
		old, _ := item.(object)
		until := s.now() + int64(overlap.Seconds())
		if before := number(old, "until"); before != 0 {
			until = min(until, before)
		}
		secrets = append(secrets, object{"secret": old["secret"], "until": until})
	}
	s.change("webhook_endpoint", o, object{"_secrets": append(secrets, object{"secret": secret, "until": int64(0)})})
	return secret, nil
}

// EnsureEndpoint makes an endpoint for all events, those about meter errors
// included, or points the one that was made so before at url, and gives its newest
// secret.
func (s *Server) EnsureEndpoint(url string) (secret string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{"*", "v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"}
	for o := range s.store.shelf("webhook_endpoint").all {
		if text(child(o, "metadata"), "made_by") == "stripesim" {
			s.change("webhook_endpoint", o, object{"url": url, "status": "enabled", "enabled_events": all})
			secrets := s.secretsOf(o)
			return text(secrets[len(secrets)-1].(object), "secret"), nil
		}
	}
	c := &call{s: s, params: params{object{"url": url, "enabled_events": all, "api_version": APIVersion, "metadata": object{"made_by": "stripesim"}}}}
	o, failed := s.makeEndpoint(c)
	if failed != nil {
		return "", failed
	}
	return text(o, "secret"), nil
}

// wants tells whether an endpoint listens to a type of event. Those of the v2 API
// have to be listed: "*" is about the others.
func wants(endpoint object, kind string, thin bool) bool {
	events, _ := endpoint["enabled_events"].([]any)
	for _, k := range events {
		pattern := fmt.Sprint(k)
		if matchesType(pattern, kind) && (!thin || strings.Contains(pattern, ".")) {
			return text(endpoint, "status") == "enabled"
		}
	}
	return false
}

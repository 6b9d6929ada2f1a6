package stripesim

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// eventAge is how long an event can be retrieved and is listed.
const eventAge = 30 * 24 * time.Hour

// raise makes an event of a change, for the list of events and for webhooks.
// previous is what the members that were set have been before; those that are as
// they were are left out, and a change that changes nothing is no event. The call
// is nil for what happens by itself.
func (s *Server) raise(c *call, kind string, o, previous object) {
	changed := changedMembers(previous, o)
	if previous != nil && len(changed) == 0 && strings.HasSuffix(kind, ".updated") {
		return
	}
	data := object{"object": s.view(o, nil)}
	if len(changed) > 0 {
		data["previous_attributes"] = changed
	}
	request := object{"id": nil, "idempotency_key": nil}
	if c != nil {
		request["id"] = c.id
		if c.key != "" {
			request["idempotency_key"] = c.key
		}
	}
	e := object{
		"id": s.newID("evt"), "object": "event", "api_version": APIVersion, "created": s.eventTime(), "data": data, "livemode": false,
		"pending_webhooks": int64(0), "request": request, "type": kind,
	}
	s.announce(e)
	if s.strikes(&s.webhooks.rules.DuplicateNewID, kind) {
		again := maps.Clone(e)
		again["id"] = s.newID("evt")
		s.announce(again)
	}
}

// announce keeps an event and queues it for the endpoints that want it.
func (s *Server) announce(e object) {
	e["_to"] = object{}
	s.schedule(e)
	s.store.put("event", e)
}

// changedMembers gives the members of previous that are different now. Of a member
// that is an object only its own changed members are given, null for those that
// have come.
func changedMembers(previous, now object) object {
	changed := object{}
	for name, before := range previous {
		after := now[name]
		if strings.HasPrefix(name, "_") || equal(before, after) {
			continue
		}
		old, isObject := before.(object)
		young, stays := after.(object)
		if !isObject || !stays {
			changed[name] = before
			continue
		}
		old = maps.Clone(old)
		for inner := range young {
			if _, stood := old[inner]; !stood {
				old[inner] = nil
			}
		}
		changed[name] = changedMembers(old, young)
	}
	return changed
}

func (s *Server) routeEvents() {
	s.handle("GET /v1/events/{id}", nil, func(c *call) (object, *apiError) {
		o, err := s.find("event", c.target(), "id")
		if err == nil && s.expired(o) {
			err = missing("event", c.target(), "id")
		}
		return o, err
	})
	filters := spec{"type": "string", "types": listOf{"string"}, "created": createdSpec, "delivery_success": "bool"}
	s.handle("GET /v1/events", listSpec(filters), func(c *call) (object, *apiError) {
		if c.has("type") && c.has("types") {
			return nil, invalid("types", "", "You may not specify both `type` and `types`.")
		}
		if len(c.list("types")) > 20 {
			return nil, invalid("types", "", "You may specify at most 20 types.")
		}
		return s.list(c, "event", func(o object) bool { return s.listed(c, o) })
	})
	s.routeWebhookEndpoints()
}

func (s *Server) expired(e object) bool {
	return s.clock.Now().Sub(time.Unix(number(e, "created"), 0)) >= eventAge
}

func (s *Server) listed(c *call, e object) bool {
	if s.expired(e) || number(e, "created") > s.now()-s.switches.EventLagSeconds || !inRange(c, number(e, "created")) {
		return false
	}
	kinds := []string{}
	for _, k := range c.list("types") {
		kinds = append(kinds, fmt.Sprint(k))
	}
	if c.has("type") {
		kinds = append(kinds, c.text("type"))
	}
	if len(kinds) > 0 && !slices.ContainsFunc(kinds, func(k string) bool { return matchesType(k, text(e, "type")) }) {
		return false
	}
	if c.has("delivery_success") {
		return flag(c.values, "delivery_success") == allDelivered(e)
	}
	return true
}

func matchesType(pattern, kind string) bool {
	ok, err := path.Match(pattern, kind)
	return err == nil && ok
}

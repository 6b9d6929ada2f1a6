package app

import (
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"

	"tallystick/api"
	"tallystick/internal/fault"
	"tallystick/internal/web"
)

// Table lists every route of the service.
func (a *App) Table() []web.Route {
	own := []web.Route{
		{Method: "GET", Pattern: "/healthz", Handler: a.handleHealth},
		{Method: "GET", Pattern: "/readyz", Handler: a.handleReady},
		{Method: "GET", Pattern: "/metrics", Handler: plain(promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))},
		{Method: "GET", Pattern: "/openapi.yaml", Handler: handleDocument},
		{Method: "GET", Pattern: "/docs", Handler: plain(http.RedirectHandler("/docs/", http.StatusFound))},
		{Method: "GET", Pattern: "/docs/", Handler: handleDocs()},
		{Method: "GET", Pattern: "/{$}", Handler: plain(http.RedirectHandler("/docs/", http.StatusFound))},
	}
	return slices.Concat(own, a.Meter.Routes(), a.Webhooks.Routes(), a.Outbox.Routes(), a.Reconcile.Routes())
}

var (
	errNoRoute  = &fault.Error{Kind: fault.KindNotFound, Code: "route_not_found", Public: "there is no such route; GET /openapi.yaml lists them all"}
	errNoMethod = &fault.Error{Kind: fault.KindMethod, Code: "method_not_allowed", Public: "the route does not take this method; the Allow header says which it takes"}
)

func (a *App) routes(s *web.Server) http.Handler {
	mux := http.NewServeMux()
	methods := map[string][]string{}
	for _, route := range a.Table() {
		h := route.Handler
		if route.Scope != "" {
			h = a.Meter.Authorize(route.Scope, h)
		}
		mux.Handle(route.Method+" "+route.Pattern, s.Handle(route.Method+" "+route.Pattern, h))
		methods[route.Pattern] = append(methods[route.Pattern], route.Method)
	}
	// What no route takes is looked up without its method: there, patterns cannot
	// be in conflict that differ in their methods alone.
	others := http.NewServeMux()
	for pattern, allowed := range methods {
		if slices.Contains(allowed, "GET") {
			allowed = append(allowed, "HEAD")
		}
		others.Handle(pattern, s.Handle("405", func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			return errNoMethod
		}))
	}
	others.Handle("/", s.Handle("404", func(http.ResponseWriter, *http.Request) error { return errNoRoute }))
	mux.Handle("/", others)
	return mux
}

// plain makes a Handler of an http.Handler.
func plain(h http.Handler) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}
}

func (a *App) handleHealth(w http.ResponseWriter, _ *http.Request) error {
	return web.JSON(w, http.StatusOK, api.Health{Status: "ok"})
}

// handleReady tells whether requests can be served: the database answers. Stripe
// may be away; metering goes on without it.
func (a *App) handleReady(w http.ResponseWriter, r *http.Request) error {
	if err := a.DB.Ping(r.Context()); err != nil {
		return fault.ErrUnavailable.Withf("the database does not answer").With(err)
	}
	return web.JSON(w, http.StatusOK, api.Health{Status: "ok", Checks: map[string]string{"postgres": "ok"}})
}

func handleDocument(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(api.Document) // the client may be gone
	return nil
}

// handleDocs shows the document with embedded assets; it loads nothing from
// elsewhere. The page starts itself by an inline script, hence the policy.
func handleDocs() web.Handler {
	page := v5emb.NewHandlerWithConfig(swgui.Config{Title: "tallystick API", SwaggerJSON: "/openapi.yaml", BasePath: "/docs/", HideCurl: false})
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Content-Security-Policy", "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'")
		page.ServeHTTP(w, r)
		return nil
	}
}

package app

import (
	"net/http"

	"github.com/rs/cors"
)

// corsSeconds is how long a browser may remember that a page is allowed.
const corsSeconds = 600

// crossOrigin lets pages of the origins that are configured call the routes that
// an account's token may call, from the browser. It is nil where none is, and
// then no answer says a word about origins. Cookies are never allowed: a token
// is sent by whoever has it, not by the browser on its own.
func (a *App) crossOrigin() *cors.Cors {
	origins := a.options.Config.AllowedOrigins
	if len(origins) == 0 {
		return nil // an empty list means everybody to the library
	}
	return cors.New(cors.Options{
		AllowedOrigins: origins, AllowedMethods: []string{http.MethodGet, http.MethodHead}, AllowedHeaders: []string{"Authorization", "X-Request-Id"},
		ExposedHeaders: []string{"Retry-After", "X-Next-Cursor", "X-Request-Id"}, MaxAge: corsSeconds,
	})
}

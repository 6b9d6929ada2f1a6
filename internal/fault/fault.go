// Package fault is the one kind of error that may be shown to a user. It keeps
// apart what a program reads (Kind, Code), what a person reads (Public, Fields)
// and what only the operator's log may hold (Err).
package fault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Kind groups failures by what the caller can do about them. The zero Kind is
// Internal, so that a forgotten Kind never looks like the caller's mistake.
type Kind int

// The kinds. internal/web maps each to one HTTP status, in one table.
const (
	KindInternal     Kind = iota // our bug: 500
	KindInvalid                  // malformed request: 400
	KindUnprocessed              // well-formed, but its content is refused: 422
	KindUnauthorized             // no usable credentials: 401
	KindForbidden                // the key lacks the scope: 403
	KindNotFound                 // 404
	KindConflict                 // the state forbids it: 409
	KindExhausted                // not enough credits: 402
	KindTooLarge                 // body over its bound: 413
	KindMediaType                // unsupported content type: 415
	KindRateLimited              // slow down: 429
	KindUnavailable              // outcome unknown or a dependency is away: 503
	KindMethod                   // method not allowed: 405
	KindPrecondition             // it changed since the caller read it: 412
)

// Field is one mistake in a request. Pointer is an RFC 6901 JSON pointer into
// the body, or "#query/name" and "#header/name" for the other places.
type Field struct {
	Pointer string `json:"pointer"`
	Message string `json:"message"`
}

// Error is a failure that is safe to show. Err, when set, is the private cause
// and never leaves the process except into its log.
type Error struct {
	Kind       Kind
	Code       string // stable and documented in openapi.yaml
	Public     string // one sentence that says what to do next
	Fields     []Field
	Extra      map[string]any // further members of the problem document
	RetryAfter time.Duration  // zero: no Retry-After header
	Err        error
}

// Error gives the code, the public text and the private cause, for logs.
func (e *Error) Error() string {
	text := e.Code + ": " + e.Public
	for _, f := range e.Fields {
		text += fmt.Sprintf(" (%s %s)", f.Pointer, f.Message)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap gives the private cause.
func (e *Error) Unwrap() error { return e.Err }

// Is matches by Code, so that a sentinel still matches after With or Withf.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// With is a copy of e that carries a private cause.
func (e *Error) With(cause error) *Error {
	c := *e
	c.Err = cause
	return &c
}

// Withf is a copy of e with another public text.
func (e *Error) Withf(format string, args ...any) *Error {
	c := *e
	c.Public = fmt.Sprintf(format, args...)
	return &c
}

// WithExtra is a copy of e with one more member in its problem document.
func (e *Error) WithExtra(key string, value any) *Error {
	c := *e
	c.Extra = make(map[string]any, len(e.Extra)+1)
	for k, v := range e.Extra {
		c.Extra[k] = v
	}
	c.Extra[key] = value
	return &c
}

// The failures that several packages share. Those of one package live there.
var (
	ErrInternal    = &Error{Kind: KindInternal, Code: "internal", Public: "something went wrong on our side; the request id finds it in the log"}
	ErrInvalid     = &Error{Kind: KindInvalid, Code: "invalid_request", Public: "the request is malformed; see errors"}
	ErrUnprocessed = &Error{Kind: KindUnprocessed, Code: "invalid_value", Public: "the request is well-formed but has values that are refused; see errors"}
	ErrNotFound    = &Error{Kind: KindNotFound, Code: "not_found", Public: "there is no such thing"}
	ErrUnavailable = &Error{Kind: KindUnavailable, Code: "unavailable", Public: "the outcome is unknown; send the same request with the same id again", RetryAfter: time.Second}
	ErrIdempotency = &Error{Kind: KindUnprocessed, Code: "idempotency_conflict", Public: "this id was used before with other content; nothing was changed; choose a new id for new content"}
	ErrBroken      = &Error{Kind: KindInternal, Code: "invariant_broken", Public: "an invariant does not hold; nothing was changed; run: tallystick verify"}
)

// KindOf is the Kind of the first Error in err's chain, else KindInternal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindInternal
}

// Problems collects the mistakes of one request, so that all are reported at once.
type Problems struct{ fields []Field }

// Addf notes a mistake at pointer.
func (p *Problems) Addf(pointer, format string, args ...any) {
	p.fields = append(p.fields, Field{Pointer: pointer, Message: fmt.Sprintf(format, args...)})
}

// Copy is the same mistakes, to which others can be added.
func (p *Problems) Copy() Problems { return Problems{fields: slices.Clone(p.fields)} }

// Err is nil without mistakes, else a copy of base that lists them all.
func (p *Problems) Err(base *Error) error {
	if len(p.fields) == 0 {
		return nil
	}
	c := *base
	c.Fields = p.fields
	return &c
}

// Postpone is for mistakes that time makes, which count only when something new is
// asked for. Beside mistakes in p they are reported with them at once; else they
// are returned as an error, for whoever finds out whether it is new.
func (p *Problems) Postpone(late *Problems, base *Error) error {
	if len(p.fields) > 0 {
		p.fields = append(p.fields, late.fields...)
		return nil
	}
	return late.Err(base)
}

// textMax bounds what Text gives, in bytes.
const textMax = 1000

// Text is a cause as it is kept in a row, for people: bounded, cut between
// characters, and without what Postgres refuses in text.
func Text(cause string) string {
	cause = strings.ReplaceAll(cause[:min(len(cause), textMax)], "\x00", "")
	return strings.ToValidUTF8(cause, "")
}

// Package web is the thin layer between net/http and handlers: a handler answers
// or returns why it could not, and one place turns that into a problem document
// (RFC 9457), a log line and a metric.
package web

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"tallystick/internal/clock"
	"tallystick/internal/fault"
)

// Handler answers a request or returns why it could not. It must not write to
// the response and then return an error.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Route is one line of the service's route table.
type Route struct {
	Method  string
	Pattern string // of http.ServeMux, without the method
	Scope   string // what the caller's key must carry; "" for none
	Own     bool   // an account's token may call it, too, about its own account
	Handler Handler
}

// Server wraps handlers. Its fields are shared by all of them.
type Server struct {
	logger  *slog.Logger
	seconds *prometheus.HistogramVec
}

// NewServer registers the metrics of requests.
func NewServer(logger *slog.Logger, registry prometheus.Registerer) *Server {
	s := &Server{logger: logger, seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "tallystick_http_request_seconds", Help: "Latency of requests by route and status.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5}, // bounds of a histogram, not money
	}, []string{"route", "status"})}
	registry.MustRegister(s.seconds)
	return s
}

type contextKey struct{ name string }

var (
	requestIDKey = &contextKey{"request id"}
	noteKey      = &contextKey{"note"}
	callerKey    = &contextKey{"caller"}
)

// RequestID is the id of the request that ctx belongs to, "" outside of one.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey).(string)
	return id
}

// WithRequestID gives background work an id of its own.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey, id)
}

// WithCaller says who makes the request that ctx belongs to, such as key:key_1.
func WithCaller(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, callerKey, who)
}

// Caller is who makes the request, "" where nobody was asked for a key.
func Caller(ctx context.Context) string {
	who, _ := ctx.Value(callerKey).(string)
	return who
}

// Note adds attributes to the request's one log line.
func Note(ctx context.Context, attrs ...slog.Attr) {
	if notes, ok := ctx.Value(noteKey).(*[]slog.Attr); ok {
		*notes = append(*notes, attrs...)
	}
}

var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// Handle makes h an http.Handler: request id, log line, metric, problem
// document, and a panic that stays one request's trouble.
func (s *Server) Handle(route string, h Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := clock.Tick()
		id := r.Header.Get("X-Request-Id")
		if !requestIDForm.MatchString(id) {
			id = "req_" + strings.ReplaceAll(uuid.NewString(), "-", "")
		}
		var notes []slog.Attr
		ctx := context.WithValue(context.WithValue(r.Context(), requestIDKey, id), noteKey, &notes)
		r = r.WithContext(ctx)
		rec := &recorder{ResponseWriter: w}
		rec.Header().Set("X-Request-Id", id)
		rec.Header().Set("X-Content-Type-Options", "nosniff")
		err := s.call(h, rec, r)
		if err != nil && rec.status == 0 {
			WriteProblem(rec, id, err)
		}
		s.done(r, route, id, rec, clock.Since(start), notes, err)
	})
}

func (s *Server) call(h Handler, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { //nolint:errorlint // the sentinel of net/http, compared as it does
				panic(p)
			}
			err = fault.ErrInternal.With(errors.New("panic: " + slog.AnyValue(p).String() + "\n" + string(debug.Stack())))
		}
	}()
	if !isText(r) {
		return errNoText
	}
	return h(w, r)
}

var errNoText = fault.ErrInvalid.Withf("the address holds U+0000 or what is no UTF-8")

// isText tells whether an address is text that Postgres takes: handlers look for
// what it names, and would make an error of ours out of the caller's mistake.
func isText(r *http.Request) bool {
	texts := []string{r.URL.Path}
	for name, values := range r.URL.Query() {
		texts = append(append(texts, name), values...)
	}
	return !slices.ContainsFunc(texts, func(text string) bool { return !utf8.ValidString(text) || strings.Contains(text, "\x00") })
}

func (s *Server) done(r *http.Request, route, id string, rec *recorder, took time.Duration, notes []slog.Attr, err error) {
	status := rec.status
	if status == 0 {
		status = http.StatusOK
	}
	s.seconds.WithLabelValues(route, strconv.Itoa(status)).Observe(took.Seconds())
	level := slog.LevelInfo
	attrs := append([]slog.Attr{
		slog.String("request_id", id), slog.String("method", r.Method), slog.String("route", route),
		slog.Int("status", status), slog.Duration("took", took), slog.Int("bytes", rec.bytes),
	}, notes...)
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
		if status >= http.StatusInternalServerError && r.Context().Err() == nil { // a client that went away is no error of ours
			level = slog.LevelError
		}
	}
	s.logger.LogAttrs(r.Context(), level, "request", attrs...)
}

type recorder struct {
	http.ResponseWriter
	status, bytes int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += n
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// statuses is the only place where an error gets its status.
var statuses = map[fault.Kind]int{
	fault.KindInternal:     http.StatusInternalServerError,
	fault.KindInvalid:      http.StatusBadRequest,
	fault.KindUnprocessed:  http.StatusUnprocessableEntity,
	fault.KindUnauthorized: http.StatusUnauthorized,
	fault.KindForbidden:    http.StatusForbidden,
	fault.KindNotFound:     http.StatusNotFound,
	fault.KindConflict:     http.StatusConflict,
	fault.KindExhausted:    http.StatusPaymentRequired,
	fault.KindTooLarge:     http.StatusRequestEntityTooLarge,
	fault.KindMediaType:    http.StatusUnsupportedMediaType,
	fault.KindRateLimited:  http.StatusTooManyRequests,
	fault.KindUnavailable:  http.StatusServiceUnavailable,
	fault.KindMethod:       http.StatusMethodNotAllowed,
	fault.KindPrecondition: http.StatusPreconditionFailed,
}

// Problem is err as the members of a problem document. What is not a fault is
// our bug: its text stays in the log.
func Problem(requestID string, err error) (status int, members map[string]any) {
	var f *fault.Error
	if !errors.As(err, &f) {
		f = fault.ErrInternal
	}
	status = statuses[f.Kind]
	members = map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": status, "code": f.Code, "detail": f.Public,
	}
	for k, v := range f.Extra {
		members[k] = v
	}
	if requestID != "" {
		members["request_id"] = requestID
	}
	if len(f.Fields) > 0 {
		members["errors"] = f.Fields
	}
	return status, members
}

// WriteProblem answers with err as a problem document.
func WriteProblem(w http.ResponseWriter, requestID string, err error) {
	status, members := Problem(requestID, err)
	var f *fault.Error
	if errors.As(err, &f) && f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((f.RetryAfter+time.Second-1)/time.Second)))
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="tallystick"`)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(members) // the client may be gone
}

// JSON answers with v.
func JSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client may be gone
	return nil
}

// List is the answer of every list.
type List[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"next_cursor"`
}

// Page bounds of a list.
const (
	limitDefault = 50
	limitMax     = 500
)

// Page reads limit and cursor from the query. The cursor, if any, is decoded
// into position, which is otherwise left as it is.
func Page(r *http.Request, position any) (limit int, err error) {
	var p fault.Problems
	limit = limitDefault
	if text := r.URL.Query().Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > limitMax {
			p.Addf("#query/limit", "must be a number from 1 to %d", limitMax)
		}
	}
	if text := r.URL.Query().Get("cursor"); text != "" {
		raw, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || holdsNUL(raw) || json.Unmarshal(raw, position) != nil {
			p.Addf("#query/cursor", "must be the next_cursor of an earlier page")
		}
	}
	return limit, p.Err(fault.ErrInvalid)
}

// Paged makes the answer of a list out of up to limit+1 items: where there is
// one too many, it is cut off and the cursor points behind the last that stays.
func Paged[T any](items []T, limit int, position func(T) any) List[T] {
	list := List[T]{Data: items}
	if list.Data == nil {
		list.Data = []T{}
	}
	if len(items) > limit {
		list.Data = items[:limit]
		raw, _ := json.Marshal(position(list.Data[limit-1])) // plain structs always encode
		cursor := base64.RawURLEncoding.EncodeToString(raw)
		list.NextCursor = &cursor
	}
	return list
}

// Time reads an RFC 3339 time from the query, or gives the fallback.
func Time(r *http.Request, p *fault.Problems, name string, fallback time.Time) time.Time {
	text := r.URL.Query().Get(name)
	if text == "" {
		return fallback
	}
	t, err := time.Parse(time.RFC3339, text)
	t = t.UTC()
	if err != nil || t.Year() < 0 || t.Year() > 9999 { // which an offset can make of a year of four digits
		p.Addf("#query/"+name, "must be a time such as 2026-01-31T00:00:00Z")
	}
	return t
}

// Cell makes text safe as a cell of a CSV file: a spreadsheet would run what
// begins like a formula.
func Cell(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
		return "'" + text
	}
	return text
}

package stripesim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// apiError is an error in Stripe's form.
type apiError struct {
	status  int
	typ     string
	code    string
	param   string
	message string
	absent  string // the id that nothing has, of a resource that is missing
	extra   object
	header  map[string]string
	stored  bool // the endpoint had begun to execute: the answer belongs to the idempotency key
}

func invalid(param, code, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, typ: "invalid_request_error", code: code, param: param, message: fmt.Sprintf(format, args...)}
}

func missing(kind, id, param string) *apiError {
	return &apiError{
		status: http.StatusNotFound, typ: "invalid_request_error", code: "resource_missing", param: param, message: fmt.Sprintf("No such %s: '%s'", kind, id), absent: id,
	}
}

// place tells apart what is missing: what the path names is not found, and a
// parameter that names nothing makes a bad request.
func (e *apiError) place(path string) {
	if e.code == "resource_missing" && e.status == http.StatusNotFound && !strings.Contains(path+"/", "/"+e.absent+"/") {
		e.status = http.StatusBadRequest
	}
}

func notFoundURL(r *http.Request) *apiError {
	return &apiError{status: http.StatusNotFound, typ: "invalid_request_error", message: fmt.Sprintf("Unrecognized request URL (%s: %s). Please see https://stripe.com/docs or we can help at https://support.stripe.com/.", r.Method, r.URL.Path)}
}

func unauthorized(message string) *apiError {
	return &apiError{status: http.StatusUnauthorized, typ: "invalid_request_error", message: message, header: map[string]string{"WWW-Authenticate": `Bearer realm="Stripe"`}}
}

func rateLimited(reason string) *apiError {
	return &apiError{
		status: http.StatusTooManyRequests, typ: "invalid_request_error", code: "rate_limit", message: "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits.",
		header: map[string]string{"Stripe-Rate-Limited-Reason": reason},
	}
}

func lockTimeout() *apiError {
	return &apiError{
		status: http.StatusTooManyRequests, typ: "invalid_request_error", code: "lock_timeout",
		message: "This object cannot be accessed right now because another API request or Stripe process is currently accessing it. If you see this error intermittently, retry the request.",
	}
}

func serverError() *apiError {
	return &apiError{status: http.StatusInternalServerError, typ: "api_error", message: "An unknown error occurred"}
}

func (e *apiError) noRetry() *apiError {
	if e.header == nil {
		e.header = map[string]string{}
	}
	e.header["Stripe-Should-Retry"] = "false"
	return e
}

// refuse makes the answer of an error, which leads to the call's own log.
func (c *call) refuse(e *apiError) *answer {
	return &answer{status: e.status, body: e.body(c.id, c.s.clock.Now().Unix()), header: e.header}
}

func (e *apiError) body(request string, now int64) []byte {
	members := object{"type": e.typ, "message": e.message}
	if request != "" {
		members["request_log_url"] = fmt.Sprintf("https://dashboard.stripe.com/test/logs/%s?t=%d", request, now)
	}
	if e.code != "" {
		members["code"] = e.code
		members["doc_url"] = "https://stripe.com/docs/error-codes/" + strings.ReplaceAll(e.code, "_", "-")
	}
	if e.param != "" {
		members["param"] = e.param
	}
	for k, v := range e.extra {
		members[k] = v
	}
	b, _ := json.Marshal(object{"error": members}) // plain values always encode
	return b
}

// answer is a response before it is written.
type answer struct {
	status int
	body   []byte
	header map[string]string
}

// skewed is the time as the simulator's own clock shows it to others.
func (s *Server) skewed() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock.Now().Add(time.Duration(s.switches.ClockSkewSeconds) * time.Second)
}

func (s *Server) write(w http.ResponseWriter, requestID string, a *answer) {
	s.head(w, requestID, a, int64(len(a.body)))
	_, _ = w.Write(a.body) // the client may be gone
}

// head writes status and headers of an answer with a body of so many bytes.
func (s *Server) head(w http.ResponseWriter, requestID string, a *answer, size int64) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Stripe-Version", APIVersion)
	h.Set("Date", s.skewed().UTC().Format(http.TimeFormat))
	h.Set("Request-Id", requestID)
	for k, v := range a.header {
		h.Set(k, v)
	}
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	w.WriteHeader(a.status)
}

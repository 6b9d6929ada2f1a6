package stripesim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// apiError is an error in Stripe's form.
type apiError struct {
	status  int
	typ     string
	code    string
	param   string
	message string
	extra   object
	header  map[string]string
	stored  bool // the endpoint had begun to execute: the answer belongs to the idempotency key
}

func invalid(param, code, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, typ: "invalid_request_error", code: code, param: param, message: fmt.Sprintf(format, args...)}
}

func missing(kind, id, param string) *apiError {
	return &apiError{status: http.StatusNotFound, typ: "invalid_request_error", code: "resource_missing", param: param, message: fmt.Sprintf("No such %s: '%s'", kind, id)}
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

func (e *apiError) body() []byte {
	members := object{"type": e.typ, "message": e.message}
	if e.code != "" {
		members["code"] = e.code
		members["doc_url"] = "https://stripe.com/docs/error-codes/" + e.code
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

func (s *Server) writeError(w http.ResponseWriter, requestID string, e *apiError) {
	answer := &answer{status: e.status, body: e.body(), header: e.header}
	s.write(w, requestID, answer)
}

// answer is a response before it is written.
type answer struct {
	status int
	body   []byte
	header map[string]string
}

func (s *Server) write(w http.ResponseWriter, requestID string, a *answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Stripe-Version", APIVersion)
	if requestID != "" {
		h.Set("Request-Id", requestID)
	}
	for k, v := range a.header {
		h.Set(k, v)
	}
	h.Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client may be gone
}

package stripesim

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Sizes and times of faults that name none.
const (
	faultDelay    = 30 * time.Second
	faultBytes    = 16 << 20
	slowBodyParts = 16
)

// answeredInstead are the errors that a fault answers before the execution, or in
// place of what was executed.
var answeredInstead = map[string]struct {
	after bool
	make  func(f *Fault, c *call) *apiError
}{
	"error_500_before": {false, func(*Fault, *call) *apiError { return serverError() }},
	"error_500_after":  {true, func(*Fault, *call) *apiError { return serverError() }},
	"error_503":        {false, func(*Fault, *call) *apiError { return unavailable() }},
	"error_503_after":  {true, func(*Fault, *call) *apiError { return unavailable() }},
	"rate_limit": {false, func(f *Fault, _ *call) *apiError {
		if f.Reason != "" {
			return rateLimited(f.Reason)
		}
		return rateLimited("global-rate")
	}},
	"lock_timeout":     {false, func(*Fault, *call) *apiError { return lockTimeout() }},
	"conflict_409":     {false, func(_ *Fault, c *call) *apiError { return keyInUse(c.key) }},
	"key_mismatch_400": {false, func(_ *Fault, c *call) *apiError { return keyMismatch(c.key) }},
	"identifier_exists_400": {false, func(_ *Fault, c *call) *apiError {
		if values, _, err := readForm(c.r); err == nil {
			c.form = values
		}
		return invalid("identifier", "", "An event already exists with identifier %s.", c.form.Get("identifier")).noRetry()
	}},
	"unauthorized_401": {false, func(*Fault, *call) *apiError { return expiredKey("sk_test_") }},
	"forbidden_403": {false, func(*Fault, *call) *apiError {
		return &apiError{
			status: http.StatusForbidden, typ: "invalid_request_error",
			message: "The provided key 'rk_test_****' does not have the required permissions for this endpoint. Having the permission of this resource would allow this request to continue.",
		}
	}},
}

func unavailable() *apiError {
	return &apiError{status: http.StatusServiceUnavailable, typ: "api_error", message: "Stripe is temporarily unavailable."}
}

// instead is the error that the fault answers, with the headers about a retry.
func (f *Fault) instead(c *call) *answer {
	a := c.refuse(answeredInstead[f.Fault].make(f, c))
	if a.header == nil {
		a.header = map[string]string{}
	}
	f.hint(a.header)
	return a
}

func (f *Fault) hint(header map[string]string) {
	if f.RetryAfter > 0 {
		header["Retry-After"] = itoa(f.RetryAfter)
	}
	if f.ShouldRetry != nil {
		header["Stripe-Should-Retry"] = strconv.FormatBool(*f.ShouldRetry)
	}
}

// badGateway is what a proxy before Stripe answers.
func (f *Fault) badGateway() *answer {
	a := &answer{status: http.StatusBadGateway, body: []byte("<html><body><h1>502 Bad Gateway</h1></body></html>"), header: map[string]string{"Content-Type": "text/html"}}
	f.hint(a.header)
	return a
}

// before strikes ahead of the execution, and tells whether that was the answer.
func (f *Fault) before(w http.ResponseWriter, c *call) bool {
	if f == nil {
		return false
	}
	switch f.Fault {
	case "drop_before", "reset_before":
		cut(w, c.r, nil, f.Fault == "reset_before")
	case "error_502_html":
		c.s.write(w, c.id, f.badGateway())
	case "redirect_302":
		http.Redirect(w, c.r, "/", http.StatusFound)
	default:
		known, ok := answeredInstead[f.Fault]
		if !ok || known.after {
			return false
		}
		c.s.write(w, c.id, c.dress(f.instead(c)))
	}
	return true
}

// hold keeps a call waiting that is under way, its idempotency key included.
func (f *Fault) hold(r *http.Request) {
	if f.is("slow") {
		f.wait(r, f.delay())
	}
}

// after strikes once the call has been executed, and tells whether that was the
// answer.
func (f *Fault) after(w http.ResponseWriter, c *call, a *answer) bool {
	if f == nil {
		return false
	}
	a = c.dress(a)
	switch f.Fault {
	case "drop_after", "reset_after":
		cut(w, c.r, nil, f.Fault == "reset_after")
	case "cut_body":
		cut(w, c.r, halfAnswer(c, a), true)
	case "slow_after":
		f.wait(c.r, f.delay())
		return false
	case "slow_body":
		f.trickle(w, c, a)
	case "error_500_after", "error_503_after":
		c.s.write(w, c.id, c.dress(f.instead(c)))
	case "error_502_after":
		c.s.write(w, c.id, f.badGateway())
	case "malformed_json":
		c.s.write(w, c.id, &answer{status: a.status, body: a.body[:len(a.body)/2], header: a.header})
	case "wrong_content_type":
		a.header["Content-Type"] = "text/html; charset=utf-8"
		c.s.write(w, c.id, a)
	case "empty_200":
		c.s.write(w, c.id, &answer{status: http.StatusOK, header: a.header})
	case "oversized_body":
		f.flood(w, c, a)
	default:
		return false
	}
	return true
}

// halfAnswer is an answer as it goes over the wire, up to the middle of its body.
func halfAnswer(c *call, a *answer) []byte {
	var wire bytes.Buffer
	_, _ = fmt.Fprintf(&wire, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nRequest-Id: %s\r\nContent-Length: %d\r\n\r\n", a.status, http.StatusText(a.status), c.id, len(a.body))
	wire.Write(a.body[:len(a.body)/2])
	return wire.Bytes()
}

// cut ends the connection after some bytes: by its plain end, or by a reset.
func cut(w http.ResponseWriter, r *http.Request, head []byte, reset bool) {
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, bodyMax)) // what is left unread would make every end a reset
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // a recorder in a test, or HTTP/2: the server ends it in its own way
	}
	_, _ = conn.Write(head)
	if tcp, ok := conn.(*net.TCPConn); ok && reset {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// trickle writes the body in small parts.
func (f *Fault) trickle(w http.ResponseWriter, c *call, a *answer) {
	body := a.body
	c.s.head(w, c.id, a, int64(len(body)))
	for n := slowBodyParts; n > 0; n-- {
		part := len(body) / n
		_, err := w.Write(body[:part])
		body = body[part:]
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		if err != nil || !f.wait(c.r, f.delay()/slowBodyParts) {
			return
		}
	}
}

// flood writes blanks, which JSON allows, before the body.
func (f *Fault) flood(w http.ResponseWriter, c *call, a *answer) {
	left := f.Bytes
	if left == 0 {
		left = faultBytes
	}
	c.s.head(w, c.id, a, left+int64(len(a.body)))
	blanks := bytes.Repeat([]byte(" "), 1<<16)
	for ; left > 0; left -= int64(len(blanks)) {
		if _, err := w.Write(blanks[:min(left, int64(len(blanks)))]); err != nil {
			return
		}
	}
	_, _ = w.Write(a.body)
}

func (f *Fault) delay() time.Duration {
	if f.DelayMS == 0 {
		return faultDelay
	}
	return time.Duration(f.DelayMS) * time.Millisecond
}

// wait lasts as long as it should, or until the client gives up.
func (f *Fault) wait(r *http.Request, delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

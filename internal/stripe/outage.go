package stripe

import (
	"errors"
	"net/http"

	stripego "github.com/stripe/stripe-go/v76"
)

// IsPlainRefusal tells whether Stripe has understood the call and will not do it,
// now or later: the object is missing, or the call is wrong. A refused key, a rate
// limit, a failure of Stripe's or of the network's is none.
func IsPlainRefusal(err error) bool {
	var e *stripego.Error
	if !errors.As(err, &e) || e.HTTPStatusCode < 400 || e.HTTPStatusCode >= 500 || shouldRetry(e) == "true" {
		return false
	}
	switch e.HTTPStatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusTooManyRequests, http.StatusRequestTimeout:
		return false
	}
	return true
}

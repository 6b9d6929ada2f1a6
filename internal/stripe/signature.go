package stripe

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
)

// Tolerance is how far a signature's time may be from ours, either way.
const Tolerance = 300 * time.Second

// ErrSignature says that a payload was not signed by Stripe just now. It does not
// say why, to whoever sent it.
var ErrSignature = errors.New("the signature does not fit")

// VerifySignature checks the Stripe-Signature header of a payload against each
// secret in turn. stripe-go refuses only what is too old, and takes the time from
// whichever t comes last: here, one t, neither too old nor too far ahead.
func VerifySignature(payload []byte, header string, secrets []string, now time.Time) error {
	at, err := signedAt(header)
	if err != nil {
		return err
	}
	if age := now.Sub(at); age > Tolerance || age < -Tolerance {
		return ErrSignature
	}
	for _, secret := range secrets {
		if secret != "" && webhook.ValidatePayloadIgnoringTolerance(payload, header, secret) == nil {
			return nil
		}
	}
	return ErrSignature
}

func signedAt(header string) (time.Time, error) {
	var at time.Time
	seen := 0
	for part := range strings.SplitSeq(header, ",") {
		text, ok := strings.CutPrefix(part, "t=")
		if !ok {
			continue
		}
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds < 0 || seconds > 1<<40 {
			return at, ErrSignature
		}
		at = unix(seconds)
		seen++
	}
	if seen != 1 {
		return at, ErrSignature
	}
	return at, nil
}

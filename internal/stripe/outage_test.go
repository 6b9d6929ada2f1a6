package stripe_test

import (
	"fmt"
	"testing"

	"tallystick/internal/stripe"
)

func TestWhatIsAPlainRefusalAndWhatAnOutage(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{400: true, 402: true, 404: true, 401: false, 403: false, 408: false, 409: false, 429: false, 500: false, 503: false} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			d := doubled(t, 0, says(status, errorOf(refused, "", "no"), "Stripe-Should-Retry", "false"))
			_, err := d.Event(t.Context(), "evt_1")
			if got := stripe.IsPlainRefusal(err); err == nil || got != want || stripe.IsRefused(err) != (status == 401 || status == 403) {
				t.Errorf("%v is a plain refusal: %t, want %t", err, got, want)
			}
		})
	}
	d := doubled(t, 0, says(400, errorOf(refused, "", "busy"), "Stripe-Should-Retry", "true"))
	if _, err := d.Event(t.Context(), "evt_1"); err == nil || stripe.IsPlainRefusal(err) {
		t.Errorf("what Stripe says may be tried again is a plain refusal: %v", err)
	}
	gone := doubled(t, 0, hangsUp(""))
	if _, err := gone.Event(t.Context(), "evt_1"); err == nil || stripe.IsPlainRefusal(err) {
		t.Errorf("a cut connection is a plain refusal: %v", err)
	}
}

package webhooks

import "context"

// Resettle reads a payment from Stripe again and brings its grant and what was taken
// back to what Stripe says. Done again it changes nothing; a payment that is not
// paid, or none of ours, stays as it is.
func (h *Webhooks) Resettle(ctx context.Context, payment, by string) error {
	_, err := h.look(ctx, payment, by, func(*facts) {})
	return err
}

package outbox

import "context"

// Retry is what the API's call does.
func (o *Outbox) Retry(identifier string) (state string, err error) {
	row, err := o.retry(context.Background(), identifier)
	return row.State, err
}
